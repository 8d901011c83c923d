"""Write docs/migration.md from docs/migration.json: `python -m tools.migration`."""

import json

from utils import ROOT, files

DATA, PAGE = ROOT / "docs" / "migration.json", ROOT / "docs" / "migration.md"


def load() -> list[dict]:
    """The old calls, each with library, old, new, since, why, and the pattern that finds the old one."""
    return json.loads(DATA.read_text(encoding="utf-8"))


def page(rows: list[dict]) -> str:
    """docs/migration.md."""
    text = (
        "# Then and now\n\nCode written for older releases of these libraries often fails today, or is quietly ignored. On the "
        "left is a call as older tutorials have it, on the right what does the same with the course's pinned versions. *Since* "
        "is the release that brought the change, be it a new name, a warning or a removal; a dash stands where we could not "
        "establish it. A test looks for every call on the left in the course's own code, and holds those on the right against "
        "the installed libraries.\n\n| Library | Then | Now | Since | Why |\n|---|---|---|---|---|\n"
    )
    for row in rows:
        text += f"| {row['library']} | `{row['old']}` | `{row['new']}` | {row['since'] or '–'} | {row['why']} |\n"
    return text


if __name__ == "__main__":
    files.place_file(PAGE, page(load()))
