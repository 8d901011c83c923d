"""The web edition of the course: `python -m tools.site` builds it into build/site/, with nothing from the network."""

import importlib.util
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from tools import glossary, stamp
from tools.lessons import number
from utils import ROOT, console, data, files

CONF = ROOT / "docs"
FAQ, GLOSSARY = "data/lora_faq.jsonl", "docs/glossary.md"
# What stands on the site, at the path that it has in the repository; the README is part of the front page.
PAGES = ("notebooks/[!.]*.ipynb", "docs/[!.]*.md", "data/README.md", "CONTRIBUTING.md", "CHANGELOG.md")
MOVED = {"README.md": "index.md", "docs/index.md": "index.md", FAQ: "docs/faq.md"}
# Code fences and code spans are left alone; a link's text may hold code spans.
LINK = re.compile(
    r"(?P<code>^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence)[ \t]*$|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]`]|`[^`]*`)*)\]\((?P<target>[^()\s]+)\)",
    re.M | re.S,
)
BADGES = re.compile(r"<!-- (badges?|colab)(:\w+)? -->.*?<!-- /\1 -->", re.S)  # what `make stamp` writes
FOLDED = {  # tag: what myst-nb folds away, and what to click
    "setup": ("hide-input", "Set-up cell"),
    "check": ("hide-input", "How the answer is checked"),
    "drawing": ("hide-input", "How it is drawn"),
    "solution": ("hide-cell", "Solution"),
}


def pages(root: Path) -> dict[str, str]:
    """The files that become pages: where each is in the repository, and where among the staged sources."""
    found = sorted(path.relative_to(root).as_posix() for pattern in PAGES for path in root.glob(pattern))
    return {path: path for path in found if path not in MOVED} | MOVED


def prose(text: str, path: str, root: Path, slug: str) -> str:
    """Markdown of the file `path` for the site: no badges, and links that lead somewhere.

    A link to another page leads to that page. One to another file of the repository leads to where it is published, or is
    plain text as long as that is nowhere. A link into the glossary becomes one to the term, which Sphinx keeps. What exists
    nowhere is left as it is: Sphinx then complains.
    """
    staged, words = pages(root), root / GLOSSARY
    terms = (
        {entry.anchor: entry.term for entry in glossary.entries(words.read_text("utf-8"))} if words.is_file() else {}
    )
    here = posixpath.dirname(staged.get(path, path))

    def link(match):
        target, _, anchor = (match["target"] or "").partition("#")
        if match["image"] and re.match("https?:", target):
            raise SystemExit(
                f"{path}: the image {target} is on another host, of which the site asks nothing. Copy it to docs/."
            )
        if match["code"] or not target or re.match(r"[a-z]+:", target):
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if file == GLOSSARY and anchor in terms:
            return f"{{term}}`{match['text']} <{terms[anchor]}>`"
        if file in staged or (match["image"] and (root / file).is_file()):
            target = posixpath.relpath(staged.get(file, file), here or ".")
            return f"{match['image']}[{match['text']}]({target}{'#' * bool(anchor)}{anchor})"
        if (root / file).exists():
            kind = "tree" if (root / file).is_dir() else "blob"
            return f"[{match['text']}]({stamp.github_url(slug)}/{kind}/main/{file})" if slug else match["text"]
        return match[0]

    return LINK.sub(link, BADGES.sub("", text))


def lesson(notebook, path: str, root: Path, slug: str):
    """A lesson for the site: outputs as committed, no widgets, alternative texts, folded cells, a button for Colab."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = prose(cell.source, path, root, slug)
            continue
        options = cell.metadata.setdefault("mystnb", {})
        for tag in set(cell.metadata.get("tags", [])) & set(FOLDED):
            fold, label = FOLDED[tag]
            cell.metadata.tags.append(fold)
            options.update(code_prompt_show=label, code_prompt_hide=label)
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream").splitlines()
        if printed and all(line.startswith(("✓", "✗")) for line in printed):
            cell.metadata.setdefault("tags", []).append("claims")  # sentences, which may wrap
        images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        alts = {output.metadata.get("image/png", {}).get("alt", "") for output in images}
        if len(alts) > 1 or "" in alts:
            raise SystemExit(
                f"{path}, cell {cell.id}: a cell shows one figure, with alternative text; this one shows {len(images)}, "
                f"{sum(map(bool, alts))} of them with a text of its own. Use plots.show(figure, alt) once in a cell."
            )
        if alts:
            options["image"] = {"alt": alts.pop()}
    if slug:
        first = notebook.cells[0]
        button = f"[Open in Colab]({stamp.colab_url(slug, posixpath.basename(path))}){{.button .colab}}"
        first.source = re.sub(r"\A(# .*\n)", rf"\1\n{button}\n", first.source)
    return notebook


def lesson_map(readme: str) -> str:
    """The README with its table of lessons turned into the list of the front page."""
    table = re.search(r"^\| Lesson \|.*\n(?:\|.*\n)+", readme, re.M)
    if not table:
        raise SystemExit(
            "README.md has no table that begins with `| Lesson |`; the front page lists the lessons from it."
        )
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines())
    text = "{.lesson-map}\n"
    for row in rows:
        minutes = {
            name.removeprefix("Minutes "): re.sub("<!--.*?-->", "", cell)
            for name, cell in zip(header, row, strict=False)
            if name.startswith("Minutes ")
        }
        known = ", ".join(f"{cell} min {where}" for where, cell in minutes.items() if "not " not in cell)
        text += f"- {row[0]}\n\n  {row[1]}\n\n  {known}\n\n"
    return readme[: table.start()] + text + readme[table.end() :]


def faq_page(root: Path) -> str:
    """The FAQ as a page: a heading for every topic and every question."""
    lessons = {number(path): path.name for path in (root / "notebooks").glob("[!.]*.ipynb")}
    topics, index, rows = {}, {}, data.read_faq(root / FAQ)
    for row in rows:
        lesson, topic = f"{data.pointer(row['answer']):02}", row["topic"]
        name = f"Lesson\u00a0{lesson}"
        where = f"[{name}](../notebooks/{lessons[lesson]})" if lesson in lessons else name
        answer = plain(row["answer"].rpartition(" (notebook")[0])
        topics.setdefault(topic, []).append(f"### {plain(row['question'])}\n\n{answer} {where}\n")
        index.setdefault(lesson, {})[topic] = f"[{topic}](#{topic.lower().replace(' ', '-')})"
    planned = " Lessons without a link are planned." if set(index) - set(lessons) else ""
    return (
        "---\ntocdepth: 2\n---\n\n# Questions and answers\n\n"
        f"{len(rows)} questions about LoRA, QLoRA and training practice, written for this course; lesson 06 trains a model on "
        f"some of them. Each answer names the lesson that shows it.{planned}\n\n| Lesson | Topics |\n|---|---|\n"
        + "".join(f"| {lesson} | {' · '.join(links.values())} |\n" for lesson, links in sorted(index.items()))
        + "".join(f"\n## {topic[0].upper()}{topic[1:]}\n\n" + "\n".join(answers) for topic, answers in topics.items())
    )


def glossary_page(text: str) -> str:
    """The glossary with its headings and what is below each as terms that the search knows."""
    opening, *entries = re.split(r"(?m)^### ", re.sub(r" *<!--.*?-->", "", text))
    terms = ("\n    ".join(entry.strip().split("\n\n")) for entry in entries)
    return opening + (":::{glossary}\n" + "\n\n".join(terms) + "\n:::\n" if entries else "")


def plain(text: str) -> str:
    """`text` with everything but its code spans safe from being read as Markdown."""
    return re.sub(r"(`[^`]*`)|([\\$*_<\[\]|#~])", lambda m: m[1] or "\\" + m[2], text)


def stage(root: Path, folder: Path, slug: str) -> None:
    """Write the sources that Sphinx reads into `folder`, at the places that they have in the repository."""
    special = {"README.md": lesson_map, GLOSSARY: glossary_page}
    for path, place in pages(root).items():
        target = folder / (path if path == "README.md" else place)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path == FAQ:
            target.write_text(faq_page(root), encoding="utf-8")
        elif path.endswith(".ipynb"):
            nbformat.write(lesson(nbformat.read(root / path, as_version=4), path, root, slug), target)
        else:
            text = prose((root / path).read_text(encoding="utf-8"), path, root, slug)
            target.write_text(special.get(path, str)(text), encoding="utf-8")
    for image in (root / "docs").glob("[!.]*.png"):
        shutil.copy(image, folder / "docs")


def copy_mathjax(folder: Path) -> None:
    """MathJax with its fonts, out of the installed package: one of its bundles, a twentieth of the whole."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None:
        raise SystemExit("The package sphinx-mathjax-offline, which typesets the formulas, is missing. Run: make setup")
    source, fonts = Path(package.submodule_search_locations[0], "static", "mathjax"), "output/chtml/fonts/woff-v2"
    shutil.copytree(source / fonts, folder / fonts)
    shutil.copy(source / "tex-chtml.js", folder)


def build(root: Path = ROOT, out: Path = ROOT / "build" / "site", slug: str | None = None) -> float:
    """Build the site into `out` and return the seconds it took. If anything is wrong, `out` stays as it was.

    slug: "owner/name" of the published repository, "" for none; without it, what `make stamp` wrote.
    """
    start = time.perf_counter()
    slug = stamp.slug(root) if slug is None else slug
    with files.replacing(out) as new, tempfile.TemporaryDirectory() as aside:
        stage(root, Path(aside, "source"), slug)
        copy_mathjax(new / "_static" / "mathjax")
        sphinx(Path(aside), new, slug)
    return time.perf_counter() - start


def sphinx(aside: Path, new: Path, slug: str) -> None:
    """Run Sphinx on the sources staged in `aside`, into `new`. Whatever it warns of is an error."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-N", "-c", CONF]
    if slug:
        theme = {"repository_url": stamp.github_url(slug), "use_repository_button": "true", "use_issues_button": "true"}
        command += [word for name, value in theme.items() for word in ("-D", f"html_theme_options.{name}={value}")]
    source = aside / "source"
    command += ["-d", aside / "doctrees", source, new]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        warnings = (done.stderr.strip() or done.stdout.strip()).replace(f"{source}{os.sep}", "")
        raise SystemExit(
            f"{warnings}\n\nThe site was not built: Sphinx found what is named above. The former one is as it was."
        )


def main() -> None:
    try:
        seconds = build()
    except files.Refused as error:
        sys.exit(str(error))
    print(f"build/site/index.html: built in {seconds:.0f} s. Open it in a browser.")


if __name__ == "__main__":
    console.run(main)
