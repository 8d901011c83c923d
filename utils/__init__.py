"""What the lessons share. Importing it costs nothing: torch and the model libraries load when first needed."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class SettingError(ValueError):
    """An environment variable of the course is set to what cannot be."""


def named_folder(variable: str, default: str) -> Path:
    """The folder that an environment variable names, or the default. A relative one counts from the course's folder.

    SettingError where it begins with ~ and there is no such home folder.
    """
    named = os.environ.get(variable) or default
    try:
        return ROOT / Path(named).expanduser()
    except RuntimeError:
        raise SettingError(
            f"{variable}={named} begins with ~, and this system names no such home folder: set HOME, or write the path in full."
        ) from None


def start(seed=0):
    """Begin a lesson: choose the profile, keep it offline if it is a local one, seed, align tables, and say so in one line.

    Returns the `profiles.Profile` named by COURSE_PROFILE (default `cpu`).
    """
    from utils import plots, profiles

    plots.align_tables()
    profile = profiles.get()
    if not profiles.wait_in_passing():
        print(
            "torch was loaded before utils.start(): beside other busy programs training may crawl. Restart the kernel to mend it."
        )
    profiles.apply(profile, seed)
    print(f"Profile {profile.name}: {profile.summary}.")
    return profile
