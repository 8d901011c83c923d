"""Write the course's public address everywhere it belongs: `make stamp REPO=owner/name`. A second time changes nothing.

It is kept in pyproject.toml; from there come the badges, the links and the address that the set-up cell clones on Colab.
"""

import re
import sys
import tomllib

import nbformat

from tools.lessons import between, number
from utils import ROOT, console, files

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def slug(root=ROOT) -> str:
    """ "owner/name" on GitHub, or "" while this copy has no public address."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["course"]["repository"]


def github_url(slug: str) -> str:
    return f"https://github.com/{slug}"


def colab_url(slug: str, name: str) -> str:
    """Where Colab opens the lesson in the file `name`."""
    return f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}"


def colab_badge(slug: str, name: str) -> str:
    return f"[![Open in Colab]({BADGE})]({colab_url(slug, name)})" if slug else ""


def stamp_project(text: str, slug: str) -> str:
    """pyproject.toml."""
    return re.sub(r'(?m)^repository = ".*"$', f'repository = "{slug}"', text, count=1)


def stamp_lesson(notebook, name: str, slug: str):
    """A lesson: its badge, and the address in its set-up cell."""
    notebook.cells[0].source = between(notebook.cells[0].source, "badge", colab_badge(slug, name))
    address = f"{github_url(slug)}.git" if slug else ""
    setup = notebook.cells[1]
    setup.source = re.sub(r'(os\.environ\.get\("COURSE_REPO", )".*?"', rf'\1"{address}"', setup.source)
    return notebook


def stamp_readme(text: str, slug: str, names: list[str]) -> str:
    """README.md: the badge of the tests, the lines that clone, and a Colab badge for each lesson."""
    url = github_url(slug)
    test = f"[![Tests]({url}/actions/workflows/test.yml/badge.svg)]({url}/actions/workflows/test.yml)" if slug else ""
    clone = f"\n\n```\ngit clone {url}.git\ncd {slug.split('/')[-1]}\n```\n\n" if slug else ""
    text = between(between(text, "badges", test), "clone", clone)
    for name in names:
        badge = colab_badge(slug, name)
        text = between(text, f"colab:{number(name)}", " " + badge if badge else "")
    return text


def stamp(slug: str, root=ROOT) -> list[str]:
    """Stamp the checkout in `root`; returns the files that changed. Nothing is written unless all can be."""
    names = sorted(path.name for path in (root / "notebooks").glob("[!.]*.ipynb"))
    paths = [root / "pyproject.toml", root / "README.md", *(root / "notebooks" / name for name in names)]
    old = {path: path.read_text(encoding="utf-8") for path in paths}
    new = {paths[0]: stamp_project(old[paths[0]], slug), paths[1]: stamp_readme(old[paths[1]], slug, names)}
    for path in paths[2:]:
        lesson = nbformat.reads(old[path], as_version=4)
        new[path] = nbformat.writes(stamp_lesson(lesson, path.name, slug)) + "\n"
    changed = [path for path in paths if new[path] != old[path]]
    for path in changed:
        files.place_file(path, new[path], was=old[path])
    return [str(path.relative_to(root)) for path in changed]


# GitHub's own rules: an owner of 1 to 39 letters, digits and single hyphens between them (an underscore stands in the names that
# companies give), a name of 1 to 100, which may hold dots but is no path and ends neither in .git nor in .wiki.
OWNER, NAME = r"(?=.{1,39}/)[a-z0-9]+(?:[-_][a-z0-9]+)*", r"(?=.{1,100}\Z)\w[\w.-]*(?<!\.git)(?<!\.wiki)"


def main(arguments: list[str]) -> int:
    wanted = arguments[0] if len(arguments) == 1 else ""
    if not re.fullmatch(f"{OWNER}/{NAME}", wanted, re.IGNORECASE | re.ASCII):
        print(
            f"{wanted!r} is not a repository's name on GitHub; give its owner and name: make stamp REPO=owner/name",
            file=sys.stderr,
        )
        return 2
    try:
        changed = stamp(wanted)
    except files.Refused as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Stamped with {wanted}: {', '.join(changed) or 'nothing to change'}.")
    return 0


if __name__ == "__main__":
    console.run(lambda: main(sys.argv[1:]))
