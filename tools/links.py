"""The links of the documents and lessons: `python -m tools.links` lists the external ones in docs/links.txt.

python -m tools.links --check [URL …]    tries each (or those named) and tells which are dead
"""

import argparse
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import requests
import yaml
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from utils import ROOT, console, files

LIST = ROOT / "docs" / "links.txt"
DOCUMENTS = ("*.md", "data/*.md", "docs/*.md", ".github/**/*.md", ".github/ISSUE_TEMPLATE/*.yml", "notebooks/*.ipynb")
# What `make stamp` writes leads to this repository itself, and differs from fork to fork.
STAMPED = re.compile(r"<!-- (badges?|clone|colab)(?::\w+)? -->.*?<!-- /\1 -->", re.S)
URL = re.compile(r"https?://[^\s<>\"'`\\\])]+[^\s<>\"'`\\\]).,;:!?…]")
REFUSED = {401, 403, 405, 406, 429}  # the page is there, but not for programs


def written(content) -> list[str]:
    """All texts in what YAML gives."""
    if isinstance(content, dict | list):
        return [text for part in (content.values() if isinstance(content, dict) else content) for text in written(part)]
    return [content] if isinstance(content, str) else []


def markdown(path: Path) -> str:
    """The prose of a document; of a lesson its text cells and captions; of a form its texts."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yml":
        return "\n\n".join(written(yaml.safe_load(text)))
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    parts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    parts += [output.get("data", {}).get("text/markdown", "") for cell in cells for output in cell.get("outputs", [])]
    return "\n\n".join("".join(part) for part in parts)  # a notebook keeps a text as one string or as its lines


def documents(root: Path = ROOT) -> dict[str, str]:
    """{path in the repository: prose} of all documents and lessons."""
    paths = sorted(path for pattern in DOCUMENTS for path in root.glob(pattern) if not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): markdown(path) for path in paths}


def external(texts: dict[str, str]) -> dict[str, list[str]]:
    """{URL: the documents that have it}, sorted."""
    found = {}
    for path, text in texts.items():
        for url in URL.findall(STAMPED.sub("", text)):
            found.setdefault(url, []).append(path)
    return {url: sorted(set(found[url])) for url in sorted(found)}


def listing(texts: dict[str, str]) -> str:
    """What docs/links.txt holds."""
    return "".join(f"{url}\n" for url in external(texts))


def browser(timeout: float) -> requests.Session:
    """A session that waits a little and tries again when a server is slow or busy."""
    again = Retry(
        total=2, backoff_factor=timeout / 20, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
    )
    session = requests.Session()
    session.headers["User-Agent"] = "link check of a course"
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=again))
    return session


def attempt(session: requests.Session, url: str, timeout: float) -> tuple[str, str]:
    """("ok" | "moved" | "refused" | "dead", what came back)."""
    for ask in (session.head, session.get):  # some servers know no HEAD
        try:
            with ask(url.partition("#")[0], timeout=timeout, allow_redirects=True, stream=True) as answer:
                refused, told = answer.status_code in REFUSED, f"{answer.status_code} {answer.reason}"
                if answer.ok:
                    moved = any(step.status_code in (301, 308) for step in answer.history)
                    return ("moved", f"now {answer.url}") if moved else ("ok", told)
        except requests.RequestException as error:
            reason = getattr(error.args[0], "reason", error) if error.args else error
            refused, told = False, type(reason).__name__
    return ("refused" if refused else "dead"), told


def check(places: dict[str, list[str]], timeout: float) -> int:
    """Try each URL, few at a time; print those that do not simply answer. 1 if one is dead, otherwise 0."""
    session = browser(timeout)
    with ThreadPoolExecutor(4) as pool:
        results = dict(zip(places, pool.map(lambda url: attempt(session, url, timeout), places), strict=True))
    for url, (verdict, told) in sorted(results.items(), key=lambda item: item[1]):
        if verdict != "ok":
            print(f"{verdict:<8} {url}\n         {told}; in {', '.join(places[url]) or 'no document'}")
    count = Counter(verdict for verdict, _ in results.values())
    print(f"{len(results)} links: " + ", ".join(f"{count[v]} {v}" for v in ("ok", "moved", "refused", "dead")))
    return int(count["dead"] > 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.links", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="try the links; needs a network")
    parser.add_argument("urls", nargs="*", help="with --check: only these")
    parser.add_argument("--timeout", type=float, default=20, help="seconds to wait for an answer")
    options = parser.parse_args(arguments)
    places = external(documents())
    if options.check:
        wanted = {url: places.get(url, []) for url in options.urls} or places
        if wrong := [url for url in wanted if not urlsplit(url).hostname]:
            parser.error(f"{wrong[0]!r} is no address; give one that begins with https://")
        return check(wanted, options.timeout)
    if options.urls:
        parser.error("to try single links, add --check; without it the links of all documents are listed")
    files.place_file(LIST, listing(documents()))
    print(f"{LIST.relative_to(ROOT)}: {len(places)} links")
    return 0


if __name__ == "__main__":
    console.run(main)
