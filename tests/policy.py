"""The rules for what the course says and shows, each a function that returns what breaks the rule; test_policy.py applies them."""

import ast
import functools
import importlib.util
import itertools
import posixpath
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

from reading import PARSER

from tools.lessons import number
from utils import ROOT


def committed() -> dict[str, str]:
    """{path: text} of every text file that git keeps, or would keep."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8")
    texts = {}
    for path in filter(None, done.stdout.split("\0")):
        try:
            texts[path] = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture, weights
            texts[path] = ""
        except FileNotFoundError:  # deleted, and not yet committed
            pass
    return texts


def spans(markdown: str, kind: str) -> list:
    """The tokens of one kind within the text's lines: `image`, `link_open`, `code_inline` …"""
    return [child for token in PARSER.parse(markdown) for child in token.children or () if child.type == kind]


# --- writers ---

# Calls that make, change or remove a file or folder where it stands. utils/files.py does all of this, whole or not at all.
WRITERS = {
    *("write_text", "write_bytes", "touch", "truncate", "extract", "extractall", "symlink_to", "hardlink_to"),
    *("rmtree", "move", "copy2", "copyfile", "copytree", "copyfileobj", "renames", "unlink", "removedirs", "rmdir"),
    *("savefig", "save_file", "save_model", "save_pretrained", "save_to_disk", "tofile", "savetxt", "savez", "imsave"),
    *("to_json", "to_csv", "to_parquet", "to_excel", "to_pickle", "to_html", "to_feather"),
}
OF_MODULES = {  # names that stand for something else elsewhere
    *("os.replace", "os.rename", "os.remove", "os.open", "os.link", "os.symlink", "os.write", "shutil.copy"),
    *("json.dump", "pickle.dump", "yaml.dump", "torch.save", "numpy.save", "np.save", "nbformat.write"),
}


def writers(source: str) -> list[tuple[str, str]]:
    """(function in which it stands, call) of every call that writes in place."""
    found = []

    def look(node, function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and (call := writes(node)):
            found.append((function, call))
        for child in ast.iter_child_nodes(node):
            look(child, function)

    look(ast.parse(source), "")
    return found


def writes(call: ast.Call) -> str:
    """The name of a call that writes in place; "" for any other."""
    whole = ast.unparse(call.func)
    name = whole.rpartition(".")[2]
    if name in WRITERS or whole in OF_MODULES:
        return name
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg in (None, "mode"))]
    if name in ("open", "fdopen", "ZipFile", "TarFile", "NamedTemporaryFile"):
        modes = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        return (
            name if any(re.fullmatch(r"[rwaxbt+:gz]{1,4}", mode) and set(mode) & set("wax+") for mode in modes) else ""
        )
    # A path's own rename and replace take one argument; those of a text, a table or a data class do not.
    return name if name in ("rename", "replace") and "." in whole and len(call.args) == 1 and not call.keywords else ""


# --- links ---


@functools.cache
def anchors(markdown: str) -> set[str]:
    """The #anchors of a text's headings, as GitHub makes them."""
    tokens, found = PARSER.parse(markdown), set()
    for opening, title in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(child.content for child in title.children if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            again = (f"{slug}-{n}" for n in itertools.count(1))
            found.add(slug if slug not in found else next(a for a in again if a not in found))
    return found


def targets(markdown: str) -> list[str]:
    """Where a text's links and pictures lead."""
    html = re.findall(r"<(?:a|img)\b[^>]*?(?:href|src)=[\"']([^\"']+)", markdown)
    references = re.findall(r"(?m)^\[[^\]]+\]: (\S+)", markdown)
    return (
        html
        + references
        + [t.attrs["href"] for t in spans(markdown, "link_open")]
        + [t.attrs["src"] for t in spans(markdown, "image")]
    )


def broken_links(path: str, texts: dict[str, str], files) -> list[str]:
    """Relative links of texts[path] that lead to no file of `files`, letter by letter, or to no heading of it."""
    folder, found = posixpath.dirname(path), []
    for target in map(unquote, targets(texts[path])):
        if urlsplit(target).scheme:
            continue
        if path.startswith(".github/"):  # shown under /owner/name/issues, from where files are reached by the branch
            folder, target = "", target.removeprefix("../blob/main/") if target.startswith("../blob/main/") else "none"
        file, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(folder, file)) if file else path
        if file not in files and not any(other.startswith(f"{file}/") for other in files):
            found.append(f"{path}: {target} leads to no file")
        elif anchor and anchor not in anchors(texts.get(file, "")):
            found.append(f"{path}: {target} leads to no heading")
    return found


SHORTENERS = r"(bit\.ly|t\.co|goo\.gl|tinyurl\.com|ow\.ly|is\.gd|buff\.ly|rebrand\.ly|lnkd\.in)"
INDEXES = r"(py[p]i\.org|python[h]osted\.org|npm[j]s\.(org|com)|ana[c]onda\.org|deb[i]an\.org|index\.[c]rates\.io)"
INDEX_TOLD = "https://download.pytorch.org/whl/cpu"  # the one package index that we name, for PyTorch's CPU build


def bad_addresses(urls) -> list[str]:
    """External links that hide where they lead, are not encrypted, or name a package index."""
    rules = (("https only", r"http://"), ("a shortener", rf"https?://{SHORTENERS}/"), ("a package index", INDEXES))
    found = [f"{url}: {rule}" for url in urls for rule, pattern in rules if re.search(pattern, url)]
    return found + [f"{url}: a package index" for url in urls if "pytorch.org/whl" in url and url != INDEX_TOLD]


def wrong_badges(path: str, text: str, slug: str, files) -> list[str]:
    """Badges that do not lead to this repository's lesson or workflow; without an address there are none."""
    found = []
    for repository, target in re.findall(r"colab\.research\.google\.com/github/([^/\s]+/[^/\s]+)/([^\s)\"]+)", text):
        file = target.removeprefix("blob/main/")
        if not slug or repository != slug or file == target or file not in files:
            found.append(f"{path}: a Colab badge leads to {repository}, {target}")
        elif path.startswith("notebooks/") and file != path:
            found.append(f"{path}: its Colab badge leads to {file}")
    for lesson, file in re.findall(r"<!-- colab:(\w+) -->[^\n]*?/notebooks/([^)\s]+)[^\n]*?<!-- /colab -->", text):
        found += (
            [] if file.startswith(f"{lesson}_") else [f"{path}: the Colab badge of lesson {lesson} leads to {file}"]
        )
    for repository, file in re.findall(r"github\.com/([^/\s]+/[^/\s]+)/actions/workflows/([\w.-]+\.ya?ml)", text):
        if not slug or repository != slug or f".github/workflows/{file}" not in files:
            found.append(f"{path}: a badge leads to the workflow {repository}, {file}")
    return found


# --- commands ---


def verbs(makefile: str) -> dict[str, str]:
    """{verb: what `make help` says of it} of a Makefile."""
    return {v: told.strip() for v, told in re.findall(r"(?m)^([a-z][\w-]*):(?!=)[^#\n]*(?:## *(.*))?$", makefile)}


def called(code: str) -> set[str]:
    """The verbs of make that `code` calls."""
    code = re.sub(r'\b[A-Z]+=(?:"[^"]*"|[^\s;`]+) ?', "", code)  # settings, as in `make setup PYTHON=python3.12`
    return {word for call in re.findall(r"\bmake((?: [a-z][\w-]*)+)", code) for word in call.split()}


def bad_commands(code: str, known) -> list[str]:
    """Verbs of make, modules and their options in `code` that do not exist."""
    found = [f"make {verb}" for verb in sorted(called(code) - {*known})]
    for module, rest in re.findall(r"\bpython3? -m ([\w.]*\w)(?![\w{]|\.[\w{])((?: [^\s`;|&)]+)*)", code):
        try:
            source = Path(importlib.util.find_spec(module).origin)
        except (ModuleNotFoundError, AttributeError, TypeError):
            found.append(f"python -m {module}")
            continue
        if source.is_relative_to(ROOT) and ".venv" not in source.parts:
            text = source.read_text(encoding="utf-8")
            found += [] if "__main__" in text else [f"python -m {module} does nothing"]
            told = {*re.findall(r"[\"'](--[\w-]+)[\"']", text), "--help"}
            found += [f"python -m {module} {o}" for o in re.findall(r"--[\w-]+", rest) if o not in told]
    return found


def missing_paths(code: str, files) -> list[str]:
    """Paths of ours that `code` names and that are not there; what git ignores may be absent."""
    named = re.findall(
        r"(?<![\w./-])(?:notebooks|utils|benchmarks|data|tests|tools|docs|\.github|\.ci)/[\w./-]*\w", code
    )
    ignored = ("data/cache", "docs/build")
    return [
        path
        for path in named
        if path not in files and not any(f.startswith(f"{path}/") for f in files) and not path.startswith(ignored)
    ]


# --- pictures ---


def poor_alternatives(alternatives) -> list[str]:
    """Alternative texts that do not say what is seen."""
    found = []
    for alt in alternatives:
        if len(alt.split()) < 8:
            found.append(f"too short: {alt!r}")
        elif re.match(r"(an? |the )?(image|picture|figure|graphic|screenshot|plot|chart)\b( of| showing|:)", alt, re.I):
            found.append(f"begin with what is seen: {alt[:60]!r}")
        elif re.search(r"\w\.(png|jpe?g|svg|gif)\b", alt):
            found.append(f"a file name: {alt[:60]!r}")
    return found


def alternatives(notebook) -> list[str]:
    """The alternative texts of all pictures that a lesson shows; "" where there is none."""
    data = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [o.metadata.get(kind, {}).get("alt", "") for o in data for kind in o.get("data", {}) if "image/" in kind]
    return shown + [
        token.content for c in notebook.cells if c.cell_type == "markdown" for token in spans(c.source, "image")
    ]


# --- references ---


def some(number: str) -> str:
    """The pattern of one such number or several: 1, 3 and 5 to 7. No part of a longer number, as section 4.2 of a paper is."""
    return rf"{number}(?:(?:, | and | or | to ){number})*(?![\d.]*\d)"


APPENDIX = r"(?-i:A\b)"  # a lesson with a letter; "a lesson" is none
LESSONS, SECTIONS = f"(?:{some('[0-9]{2}')}|{APPENDIX})", some(r"[1-9]\d?")


def listed(text: str) -> set:
    """The numbers in "1, 3 and 5 to 7"; "A" is one by itself."""
    if text.isalpha():
        return {text}
    found = set()
    for part in re.split(r", | and | or ", text):
        ends = [int(n) for n in part.split(" to ")]
        found |= set(range(ends[0], ends[-1] + 1))
    return found


def numbered(markdown: str) -> dict[str, set[int]]:
    """{"section": its numbers, "exercise": its numbers} of a lesson's text."""
    found = {"section": r"(?m)^## (\d+) · ", "exercise": r"(?m)^### Exercise (\d+) · "}
    return {kind: {int(n) for n in re.findall(pattern, markdown)} for kind, pattern in found.items()}


def dead_references(path: str, texts: dict[str, str], planned=range(7, 12)) -> list[str]:
    """Lessons, sections and exercises that texts[path] points to and that are not there.

    A lesson to come may be named in brackets, "(lesson 07)", and in the range "lessons 07 to 11": nobody can be sent to it.
    A section without a lesson is one of the lesson that the nearest heading above names, "# 03 · …" or "# A · …".
    """
    notebooks = {name: text for name, text in texts.items() if name.startswith("notebooks/")}
    there = {lesson: numbered(text) for name, text in notebooks.items() for lesson in listed(number(name))}
    text, found = texts[path], []
    headings = [(match.start(), match[1]) for match in re.finditer(rf"(?m)^#+ (\d\d|{APPENDIX}) · ", text)]
    for match in re.finditer(rf"(?i)\blessons? ({LESSONS})", text):
        for lesson in listed(match[1]) - there.keys():
            bracketed = text[match.start() - 1] == "(" and text[match.end()] == ")"
            if lesson not in planned or not (bracketed or match[1] == f"{planned[0]:02} to {planned[-1]}"):
                found.append(f"{path}: {match[0]}")
    one = rf"\d\d|(?<=lesson ){APPENDIX}"
    pattern = rf"(?i)(?:\b({one})(?:'s|,)? )?(?:\b(section|exercise)s? |§ ?)({SECTIONS})(?: of lesson ({one}))?"
    for match in re.finditer(pattern, text):
        above = [lesson for start, lesson in headings if start < match.start()]
        named = match[1] or match[4] or (above[-1] if above else "")
        (lesson,) = listed(named) if named else [None]
        if lesson in there and listed(match[3]) - there[lesson][(match[2] or "section").lower()]:
            found.append(f"{path}: {match[0]}")
    return found


def dead_titles(path: str, texts: dict[str, str]) -> list[str]:
    """Sections named in texts[path], as in "3 · Freeze by name", that neither a lesson nor the text itself has."""
    whole = "\n".join([*texts.values(), texts[path]])
    headings = {title.strip() for title in re.findall(r"(?m)^##+ (\d+ · .+)$", whole)}
    named = re.findall(r"[|*\"“\[] ?([1-9]\d? · [^|*\"”\]\n]+?) ?[|*\"”\]]", texts[path])
    return [f"{path}: {title}" for title in named if title not in headings]


# --- what must not be in any committed text ---

LEAKS = {
    "a folder of somebody's machine": r"(?<![\w.])/(?:root|work|tmp|mnt)/[\w.]|(?i:/(?:home|users)/|[a-z]:\\+users\\+)(?!jane\b)[\w.]+",
    "a token": r"\b(?:hf_[A-Za-z]{20}|gh[pousr]_\w{20}|github_pat_\w{20}|sk-[\w-]{20}|AKIA[0-9A-Z]{16}|xox[abps]-[\w-]{10})",
    "a private key": r"BEGIN [A-Z ]*PRIVATE KEY",
    "a password": r"(?i)\b(?:password|passwd|secret|api_?key)\s*[=:]\s*[\"'][^\"'\s{]{8,}[\"']",
    "an e-mail address": r"\b[\w.+-]+@(?!example\.)(?:[\w-]+\.)+(?:com|org|net|edu|io|ai|dev|de|uk|eu)\b",
    "an address in a local network": r"\b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}\b|\w+\.(?:lan|internal)\b",
    "a package index": INDEXES,
    "a machine as the author": r"(?i)\b(?:cl[a]ude|anth[r]opic|chat[g]pt|cop[i]lot|co[d]ex|(?:ai|llm)[- ](?:generated|assisted|written))\b",
}


def leaks(text: str) -> list[str]:
    """What `text` gives away; encoded pictures are left out, and "jane" is nobody."""
    text = re.sub(r'"image/png": "[^"]*"', "", text)
    return [f"{what}: {match[0]!r}" for what, pattern in LEAKS.items() for match in re.finditer(pattern, text)]
