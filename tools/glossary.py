"""Link each lesson's first use of a glossary term to its entry: `python -m tools.glossary` writes the links into the lessons.

python -m tools.glossary --check [LESSON …]    writes nothing, and names the lessons whose links are not as they should be
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tools import lessons
from utils import ROOT, console, files

PAGE = ROOT / "docs" / "glossary.md"
FROM_A_LESSON = "../docs/glossary.md"
# An entry: a heading, what it is, where the lessons explain it, and how else it is spelled.
ENTRY = re.compile(
    r"^### (?P<term>.+)\n\n(?P<told>.+?) \(\[lesson (?P<lesson>\w+)(?:, section (?P<section>\d+))?\]\((?P<place>[^)]+)\)\)"
    r"(?: <!-- (?P<as>linked as|seen as): (?P<forms>.+) -->)?$",
    re.M,
)
LINK = re.compile(rf"\[([^\]]*)\]\({re.escape(FROM_A_LESSON)}#[^)\s]+\)")
# Where nothing is linked. Math and spans may hold what looks like one of the others, so all are found in one go.
LEFT_ALONE = (
    r"^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence)[ \t]*$",
    r"(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)",
    r"\$\$.*?\$\$|(?<![\\$])\$[^$\n]+\$",
    r"<!--.*?-->|</?[a-zA-Z][^>\n]*>|<https?:[^>\s]+>|https?://\S+",
    r"!?\[(?:[^\[\]]|\[[^\]]*\])*\](?:\([^)]*\)|\[[^\]]*\])",
    r"^ {0,3}#{1,6} [^\n]*$|^ *\|[^\n]*$",
    r"^\*\*Sources?\..*?(?:\n\s*\n|\Z)",
)


@dataclass(frozen=True)
class Entry:
    """A glossary entry. forms: how the term is spelled in the lessons; link: whether its first use there is linked."""

    term: str
    told: str
    lesson: str
    section: str | None
    place: str
    forms: tuple[str, ...]
    link: bool

    @property
    def anchor(self) -> str:
        """As GitHub makes it from the heading."""
        return re.sub(r"[^\w\- ]", "", self.term.lower()).replace(" ", "-")


def entries(text: str) -> list[Entry]:
    """The entries of docs/glossary.md.

    A comment at an entry's end may give its forms in place of the term: `linked as: one; another`, or `seen as: …` for a word
    that every reader knows or that means other things too, which is never linked.
    """
    found = []
    for match in ENTRY.finditer(text):
        known = match.group("term", "told", "lesson", "section", "place")
        forms = tuple(match["forms"].split("; ")) if match["forms"] else (match["term"],)
        found.append(Entry(*known, forms, match["as"] != "seen as"))
    return found


def spelled(form: str) -> str:
    """The pattern of a form: at a sentence's start or within it, one or several, never a part of another word or name."""
    first = f"[{form[0]}{form[0].upper()}]" if form[0].isalpha() else re.escape(form[0])
    rest = r"\s+".join(map(re.escape, form[1:].split(" ")))
    return rf"(?<![\w\-/.@\\]){first}{rest}s?(?![\w\-/=]|\.\w)"


def linked(texts: list[str], number: str, known: list[Entry]) -> list[str]:
    """The prose cells of lesson `number` with each entry's first use linked.

    Not linked is what the lesson itself explains: what it has in bold, and the entries that lead to it.
    """
    forms = sorted(
        ((form, entry) for entry in known if entry.link for form in entry.forms), key=lambda pair: -len(pair[0])
    )
    owners = {f"term{i}": entry for i, (_, entry) in enumerate(forms)}
    words = (f"(?P<{name}>{spelled(form)})" for name, (form, _) in zip(owners, forms, strict=True))
    pattern = re.compile("|".join([*LEFT_ALONE, *words]), re.M | re.S)
    texts = [LINK.sub(r"\1", text) for text in texts]
    bold = [text.rstrip(".,:;") for text in re.findall(r"\*\*([^*\n]+)\*\*", "\n".join(texts))]

    def explained(entry) -> bool:
        named = (spelled(form) for form in (entry.term, *entry.forms))
        return entry.lesson == number or any(re.fullmatch(name, text) for name in named for text in bold)

    done = {entry for entry in known if explained(entry)}

    def link(match) -> str:
        entry = owners.get(match.lastgroup)
        if entry is None or entry in done:
            return match[0]
        done.add(entry)
        return f"[{match[0]}]({FROM_A_LESSON}#{entry.anchor})"

    return [pattern.sub(link, text) for text in texts]


def whole(path: Path, known: list[Entry]) -> tuple[str, str]:
    """(a lesson's text, what it is with all its links)"""
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    sources = linked([cell.source for cell in prose], lessons.number(path), known)
    if sources == [cell.source for cell in prose]:
        return before, before
    for cell, source in zip(prose, sources, strict=True):
        cell.source = source
    return before, nbformat.writes(notebook) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.glossary", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("names", nargs="*", metavar="LESSON", help="lesson numbers; all where none is given")
    options = parser.parse_args(arguments)
    known, changed = entries(PAGE.read_text(encoding="utf-8")), []
    for path in lessons.lessons(options.names):
        before, after = whole(path, known)
        if after != before:
            changed.append(path.stem)
            if not options.check:
                files.place_file(path, after, was=before)
    if options.check and changed:
        print(
            f"The glossary's links are not as they should be in {', '.join(changed)}. Run: python -m tools.glossary",
            file=sys.stderr,
        )
        return 1
    print(f"Glossary links: {'written into ' + ', '.join(changed) if changed else 'as they should be'}.")
    return 0


if __name__ == "__main__":
    console.run(main)
