"""Write docs/migration.md from docs/migration.json: `python -m tools.migration`."""

import json

from utils import ROOT, files

DATA, PAGE = ROOT / "docs" / "migration.json", ROOT / "docs" / "migration.md"


def load() -> list[dict]:
    """The old calls, each with library, old, how it ends today, new, since, why, and the pattern that finds the old one."""
    return json.loads(DATA.read_text(encoding="utf-8"))


def page(rows: list[dict]) -> str:
    """docs/migration.md."""
    text = (
        "# Old calls and today's names\n\nCode written for older releases of these libraries often fails today, or is quietly "
        "ignored. *Then* is a call as older texts have it, *now* what does the same with the course's pinned versions. *Today* "
        "says how the old call ends: it is refused for an argument, its name is gone, it warns and works, or it is silent. "
        "[Lesson A](../notebooks/A_then_and_now.ipynb) runs each of them and shows what a silent one can hide; those that fetch "
        "or run a stranger's code are not run. *Since* is the release that brought the change, be it a new name, a warning or a "
        "removal; a dash stands where we could not establish it. A test looks for every old call in the course's own code, and "
        "holds today's against the installed libraries.\n\n"
        "| Library | Then | Now | Today | Since | Why |\n|---|---|---|---|---|---|\n"
    )
    for row in rows:
        text += f"| {row['library']} | `{row['old']}` | `{row['new']}` | {row['today']} | {row['since'] or '–'} | {row['why']} |\n"
    return text


if __name__ == "__main__":
    files.place_file(PAGE, page(load()))
