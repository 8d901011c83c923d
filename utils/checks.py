"""`check` judges an exercise, `claim` sets a measured number beside the expected and the published one."""

import os
from numbers import Integral

from utils.console import say


class CheckFailed(AssertionError):
    """An exercise's answer is not right yet (only raised with COURSE_STRICT=1)."""


class ClaimFailed(AssertionError):
    """A measured number left its band (only raised with COURSE_ENFORCE=1, which tests and `make run` set)."""


def check(title: str):
    """Decorator for an exercise's check: a function of assertions whose messages are the hints. It runs at once.

    Prints `[x] title`, or `[ ] title` with the first hint; `.passed` keeps the verdict. Call it again after another try.
    """

    def decorate(test):
        def run() -> None:
            try:
                test()
            except AssertionError as error:
                hint = str(error) or "not yet"
            except Exception as error:  # whatever a reader's answer may raise is a hint, not a traceback
                hint = f"your answer raised {type(error).__name__}: {error}"
            else:
                run.passed = True
                say(f"[x] {title}")
                return
            run.passed = False
            say(f"[ ] {title}: {hint}")
            if os.environ.get("COURSE_STRICT") == "1":
                raise CheckFailed(f"{title}: {hint}")

        run()
        return run

    return decorate


def claim(what: str, measured, *, expect=None, published=None, source: str = "", digits: int = 4) -> None:
    """Print a measured number beside the expected band and the published figure; ✓ says that it is in the band, ✗ that it is not.

    expect: (low, high), either None for open; or {profile name: (low, high)}, where a profile that is left out is not judged;
    without it, the published figure is expected exactly. With COURSE_ENFORCE=1 leaving the band raises ClaimFailed.
    """
    band = expect
    if isinstance(expect, dict):
        from utils import profiles

        band = expect.get(profiles.get().name, "not judged")
    if band is None and published is not None:
        band = (published, published)
    if band in (None, (None, None)):
        raise ValueError(
            "claim() needs what to expect: a band (low, high) with one end at least, or a published figure."
        )

    def show(x):
        if isinstance(x, (bool, str)):
            return str(x)
        return f"{int(x):,}" if isinstance(x, Integral) else f"{x:.{digits}g}"

    parts = [f"measured {show(measured)}"]
    holds = True
    if band == "not judged":
        parts.append(f"expected: not judged on profile {profiles.get().name}")
    else:
        low, high = band
        holds = bool((low is None or measured >= low) and (high is None or measured <= high))
        if low == high:
            parts.append(f"expected {show(low)}")
        elif low is None:
            parts.append(f"expected at most {show(high)}")
        elif high is None:
            parts.append(f"expected at least {show(low)}")
        else:
            parts.append(f"expected {show(low)} to {show(high)}")
    if published is not None:
        parts.append(f"published {show(published)}" + (f" ({source})" if source else ""))
    line = f"{'✓' if holds else '✗'} {what}: " + " · ".join(parts)
    say(line)
    if not holds and os.environ.get("COURSE_ENFORCE") == "1":
        raise ClaimFailed(line)
