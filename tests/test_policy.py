"""What the course promises its readers, held as rules: links, commands, badges, pictures, language, secrets.

The rules stand in policy.py, colours.py and reading.py; here each is applied, and each has to find faults that are planted.
"""

import copy
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import answers
import colours
import exercised
import nbformat
import policy
import pytest
import reading
import test_drift
import test_notebooks

from tools import lessons, links, stamp
from utils import ROOT

FILES = policy.committed()
TEXTS = links.documents()
NOTEBOOKS = {path: nbformat.reads(FILES[path], as_version=4) for path in FILES if path.endswith(".ipynb")}
VERBS = policy.verbs(FILES["Makefile"])
each_text = pytest.mark.parametrize("path", TEXTS)
each_lesson = pytest.mark.parametrize("path", NOTEBOOKS)


# --- links ---


@each_text
def test_relative_links_lead_somewhere(path):
    assert not policy.broken_links(path, TEXTS, FILES)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("[a](b.md)", ""),
        ("[a](b.md#second-part-x)", ""),
        ("[a](../docs/b.md) ![p](<p%20q.png>) [folder](../docs) [here](#one)\n\n# One", ""),
        ("[a](https://example.org/none) [m](mailto:x)", ""),
        ("`[a](none.md)`\n\n```\n[a](none.md)\n```", ""),
        ("[a](none.md)", "no file"),
        ("[a](B.md)", "no file"),  # not on every system the same file
        ("[a](b.md#no-part)", "no heading"),
        ("[a](#one)", "no heading"),
        ("![p](none.png)", "no file"),
        ("<img src='none.png'>", "no file"),
        ("[a][r]\n\n[r]: none.md", "no file"),
    ],
)
def test_planted_links(text, fault):
    texts = {"docs/a.md": text, "docs/b.md": "# First\n\n## Second part: `x`"}
    found = policy.broken_links("docs/a.md", texts, {*texts, "docs/p q.png"})
    assert bool(found) == bool(fault) and all(fault in line for line in found)


def test_forms_reach_files_by_the_branch():
    texts = {".github/a.md": "[a](../blob/main/docs/b.md#x)", "docs/b.md": "# X"}
    assert not policy.broken_links(".github/a.md", texts, texts)
    for wrong in ("../docs/b.md", "docs/b.md", "../blob/main/docs/c.md", "../blob/main/docs/b.md#y"):
        assert policy.broken_links(".github/a.md", texts | {".github/a.md": f"[a]({wrong})"}, texts)


def test_anchors_are_those_that_github_makes():
    text = '# Models & data\n\n## "Only … MB are free"\n\n## A `b.c` *d*\n\n## A `b.c` *d*\n\nTitle\n-----\n'
    assert policy.anchors(text) == {"models--data", "only--mb-are-free", "a-bc-d", "a-bc-d-1", "title"}


def test_external_links_are_listed():
    assert links.LIST.read_text(encoding="utf-8") == links.listing(TEXTS), "run `python -m tools.links`"
    assert len(links.external(TEXTS)) > 20 and not policy.bad_addresses(links.external(TEXTS))


def test_planted_addresses():
    index = ".".join(("https://py" + "pi", "org/project/x"))
    for url in ("http://example.org", "https://bit.ly/x", index, "https://download.pytorch.org/whl/cu128"):
        assert policy.bad_addresses([url])


def test_every_form_of_an_external_link_is_found_and_a_stamp_changes_nothing():
    text = "[a](https://a.org/b_(c)), <https://d.org>, https://e.org/f#g. `pip --index-url https://h.org/i`\n[r]: https://j.org"
    found = links.external({"x": text})
    assert list(found) == [
        "https://a.org/b_(c",
        "https://d.org",
        "https://e.org/f#g",
        "https://h.org/i",
        "https://j.org",
    ]
    stamped = stamp.stamp_readme((ROOT / "README.md").read_text(encoding="utf-8"), "owner/name", [])
    assert "owner/name" in stamped and links.listing(TEXTS | {"README.md": stamped}) == links.listing(TEXTS)


class Site(BaseHTTPRequestHandler):
    """A page for every way to answer."""

    def do_GET(self):
        kind = self.path.strip("/")
        if kind == "slow":
            self.server.gate.wait(10)
        elif kind in ("moved", "round"):
            self.send_response(301)
            self.send_header("Location", "/200" if kind == "moved" else "/round")
            self.end_headers()
        else:
            refuses_head = kind == "get" and self.command == "HEAD"
            self.send_response(501 if refuses_head else int(kind.replace("get", "200")))
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.gate = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.gate.set()
    server.shutdown()


@pytest.mark.parametrize(
    "page, verdict",
    [("200", "ok"), ("get", "ok"), ("moved", "moved"), ("403", "refused"), ("429", "refused")]
    + [("404", "dead"), ("410", "dead"), ("503", "dead"), ("round", "dead"), ("slow", "dead")],
)
def test_check_of_external_links(web, page, verdict, capsys):
    url = f"{web}/{page}"
    assert links.check({url: ["README.md"]}, timeout=0.2) == (verdict == "dead")
    printed = capsys.readouterr().out
    assert f"1 {verdict}" in printed and (
        verdict == "ok" or (f"{verdict:<8} {url}" in printed and "README.md" in printed)
    )


def test_check_from_the_command_line(web):
    command = [sys.executable, "-m", "tools.links", "--check", f"{web}/200", f"{web}/404", "--timeout", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "2 links: 1 ok, 0 moved, 0 refused, 1 dead" in done.stdout


@pytest.mark.parametrize("wrong", [["--check", "README.md"], ["https://example.org"]])
def test_command_line_refuses_what_it_cannot_do(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        links.main(wrong)
    assert "begins with https://" in (said := capsys.readouterr().err) or "add --check" in said


# --- badges ---


@each_text
def test_badges_lead_to_this_course(path):
    assert not policy.wrong_badges(path, TEXTS[path], stamp.slug(), FILES)


@pytest.mark.parametrize("slug", ["owner/name", ""])
def test_stamped_badges_are_right_and_none_may_stand_without_an_address(slug):
    names = [path.name for path in lessons.lessons()]
    readme = stamp.stamp_readme((ROOT / "README.md").read_text(encoding="utf-8"), "owner/name", names)
    files = {*FILES, ".github/workflows/test.yml"}
    found = policy.wrong_badges("README.md", readme, slug, files)
    assert len(found) == (0 if slug else len(names) + 2)  # a badge for each lesson; that of the tests has two addresses
    lesson = (
        stamp.stamp_lesson(copy.deepcopy(NOTEBOOKS[f"notebooks/{names[1]}"]), names[1], "owner/name").cells[0].source
    )
    assert bool(policy.wrong_badges(f"notebooks/{names[1]}", lesson, slug, files)) == (not slug)


@pytest.mark.parametrize(
    "path, text",
    [
        ("README.md", stamp.colab_badge("owner/name", "00_no_such_lesson.ipynb")),
        ("README.md", stamp.colab_badge("someone/else", "01_low_rank_maths.ipynb")),
        ("README.md", f"<!-- colab:00 --> {stamp.colab_badge('owner/name', '01_low_rank_maths.ipynb')}<!-- /colab -->"),
        ("notebooks/02_lora_layer.ipynb", stamp.colab_badge("owner/name", "01_low_rank_maths.ipynb")),
        ("README.md", "[![t](https://github.com/owner/name/actions/workflows/none.yml/badge.svg)](x)"),
        ("README.md", "https://colab.research.google.com/github/owner/name/tree/notebooks/01_low_rank_maths.ipynb"),
    ],
)
def test_planted_badges(path, text):
    assert policy.wrong_badges(path, text, "owner/name", FILES)


# --- commands ---


@each_text
def test_commands_and_paths_in_documents_exist(path):
    code = test_drift.code_in(TEXTS[path])
    assert not policy.bad_commands(code, VERBS)
    assert path == "docs/index.md" or not policy.missing_paths(code, FILES)  # Sphinx checks the contents of that one


def test_commands_named_in_the_code_exist():
    for path, text in FILES.items():
        if path.startswith(("utils/", "tools/", "benchmarks/")) and path.endswith(".py"):
            named = "\n".join(re.findall(r"`((?:make|python) [^`\n]+)`", text))
            assert not policy.bad_commands(named, VERBS), path


@pytest.mark.parametrize(
    "code",
    [
        "make dinner",
        "make setup dinner",
        "COURSE_PROFILE=gpu make la",
        "make setup PYTHON=python3.12 dinner",
        "python -m utils.doktor",
        ".venv/bin/python -m utils.planner --modell llama",
        "py -3.11 -m venv .venv; .venv\\Scripts\\python -m utils.asset",
        "python -m utils.lowrank",
    ],
)
def test_planted_commands(code):
    assert policy.bad_commands(code, VERBS)
    assert not policy.bad_commands("make setup PYTHON=python3.12; make run  # all\npython -m pip config list", VERBS)
    assert policy.missing_paths("see utils/no_such.py and docs/none/", FILES) == ["utils/no_such.py", "docs/none"]


def test_every_verb_says_what_it_does_and_stands_in_a_document():
    told = set().union(*(policy.called(test_drift.code_in(text)) for text in TEXTS.values()))
    assert not [verb for verb, help in VERBS.items() if not help], "a line `verb: …  ## what it does`"
    assert not VERBS.keys() - told - {"help"}, "named in no document"
    phony = re.search(r"(?m)^\.PHONY: (.*)$", FILES["Makefile"])[1].split()
    assert sorted(phony) == sorted(VERBS)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make on this system")
def test_make_help_lists_every_verb():
    lines = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {line.split()[0]: line.split(maxsplit=1)[1] for line in lines} == VERBS


def test_the_planner_answers_as_the_readme_promises():
    (command,) = re.findall(r"(?m)^\.venv/bin/python (-m utils\.planner .*)$", TEXTS["README.md"])
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    for promised in ("trained 19,988,480 of", "MB on disk", "activations", "training", "inference", "fits on (GB)"):
        assert promised in done.stdout


# --- pictures ---


@each_lesson
def test_pictures_have_alternative_text(path):
    found = policy.alternatives(NOTEBOOKS[path])
    assert found and not policy.poor_alternatives(found)


@each_text
def test_pictures_in_documents_have_alternative_text(path):
    assert not policy.poor_alternatives(token.content for token in policy.spans(TEXTS[path], "image"))


@pytest.mark.parametrize(
    "alt", ["", "Loss.", "Figure of a loss that falls from the first step to the last", "a " * 9 + "loss.png"]
)
def test_planted_pictures(alt):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell()])
    data, metadata = {"image/png": "x"}, {"image/png": {"alt": alt}}
    notebook.cells[0].outputs = [nbformat.v4.new_output("display_data", data, metadata=metadata if alt else {})]
    assert policy.poor_alternatives(policy.alternatives(notebook))
    notebook.cells = [nbformat.v4.new_markdown_cell(f"Look:\n\n![{alt}](a.png)")]
    assert policy.poor_alternatives(policy.alternatives(notebook))


def test_colours_can_be_told_apart():
    assert len(colours.PALETTE) >= 7 and not colours.confusable(colours.PALETTE)


@each_lesson
def test_lessons_keep_to_the_palette(path):
    cells = [cell for cell in NOTEBOOKS[path].cells if cell.cell_type == "code"]
    assert not {cell.id: found for cell in cells if (found := colours.wrong_colours(cell.source))}


def test_planted_colours():
    found = colours.confusable(
        {"orange": "tab:orange", "green": "tab:green", "blue": "tab:blue", "purple": "tab:purple"}
    )
    assert {line.split(" are")[0] for line in found} >= {"protanopia: orange and green", "protanopia: blue and purple"}
    assert any("deuteranopia" in line for line in colours.confusable({"a": "tab:green", "b": "tab:red"}))
    assert not colours.even("jet") and colours.even("cividis")
    for source in (
        "ax.plot(x, 'r--')",
        "ax.bar(x, y, color='tab:red')",
        "for c in ('red', 'blue'):\n    ax.plot(x, 'o', color=c)",
        "ax.imshow(x, cmap='jet')",
        "ax.text(0, 0, 'a', color=plots.ORANGE)",
        "for n, c in zip(names, (plots.SKY, plots.BLUE)):\n    ax.annotate(n, x, color=c)",
        "ax.plot(x, color=plots.SKY)",
    ):
        assert colours.wrong_colours(source), source
    assert not colours.wrong_colours("ax.plot(x, 'o-', color=plots.SKY); ax.text(0, 0, 'red', color=plots.GREY)")


@pytest.mark.parametrize(
    "one, other, apart",  # from the table of Sharma, Wu and Dalal
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_colour_difference_is_the_published_one(one, other, apart):
    assert colours.difference(one, other) == pytest.approx(apart, abs=1e-4)
    assert colours.contrast("black") == pytest.approx(21) and colours.contrast("#767676") == pytest.approx(
        4.54, abs=0.01
    )


# --- language ---


@each_text
def test_texts_are_readable(path):
    assert not reading.hard_to_read(TEXTS[path])
    assert not reading.wording(TEXTS[path])


def test_questions_and_answers_keep_to_the_wording():
    assert not reading.wording(FILES["data/lora_faq.jsonl"])


PLAIN = "The cat sat on the mat and looked at the small grey bird. "
HARD = "Notwithstanding considerable organisational difficulties, interdisciplinary methodologies facilitate optimisation. "


@pytest.mark.parametrize(
    "text, fault",
    [
        (PLAIN * 13, "a paragraph"),
        ("and so on " * 20, "a sentence"),
        (HARD * 10, "ease"),
        ((PLAIN[:-2] + " and " + PLAIN) * 10, "mean"),
    ],
)
def test_planted_prose(text, fault):
    assert not reading.hard_to_read((PLAIN * 11 + "\n\n") * 9)
    assert any(fault in line for line in reading.hard_to_read(text))


def test_planted_words():
    for word in ("cutting-edge", "optimized", "the color", "quantization"):
        assert reading.wording(f"This is {word}.")
    assert not reading.wording("`color`, *8-bit optimizers*, [quantization](x), optimised, size, prize")


@pytest.mark.parametrize(
    "word, count",
    [("rank", 1), ("matrix", 2), ("little", 2), ("trained", 1), ("adapted", 3), ("house", 1), ("changes", 2)],
)
def test_syllables(word, count):
    assert reading.syllables(word) == count


@each_text
def test_references_lead_somewhere(path):
    assert not policy.dead_references(path, TEXTS)
    assert not policy.dead_titles(path, TEXTS)


@pytest.mark.parametrize(
    "text",
    [
        "see lesson 12",
        "see lesson A",
        "lesson A, section 1",
        "Lesson 07 shows it",
        "section 3 of lesson 01",
        "lesson 01, sections 1 and 3",
        "lesson 01's section 4",
    ]
    + [
        "exercise 2 of lesson 01",
        "(01 §3)",
        "# 01 · A\n\nsee section 3",
        "| 3 · Not a heading | x |",
        "**2 · First**",
        "lessons 01 to 08",
    ],
)
def test_planted_references(text):
    texts = {"notebooks/01_a.ipynb": "# 01 · A\n\n## 1 · First\n\n### Exercise 1 · One\n\n## 2 · Second"}
    fine = "The lesson a learner likes; "
    fine += "lesson 01, sections 1 and 2; (lesson 07); lessons 07 to 11; Hu et al., section 4.2; **2 · Second**; exercise 1 of lesson 01"
    for path in ("docs/a.md", "notebooks/01_a.ipynb"):
        planted = texts | {path: texts.get(path, "") + "\n\n" + text}
        assert policy.dead_references(path, planted) + policy.dead_titles(path, planted)
        kept = texts | {path: texts.get(path, "") + "\n\n" + fine}
        assert not policy.dead_references(path, kept) + policy.dead_titles(path, kept)
    assert policy.dead_references("notebooks/01_a.ipynb", {"notebooks/01_a.ipynb": "# 01 · A\n\nas in section 1"})


# --- secrets ---


def test_nothing_private_in_any_committed_text():
    assert len(FILES) > 80
    assert not {path: found for path, text in FILES.items() if (found := policy.leaks(text))}
    assert not [path for path, text in FILES.items() if str(ROOT) in text], "the folder of this checkout"


@pytest.mark.parametrize(
    "parts",  # in pieces, for this file is searched too
    [("/ho", "me/ada/x"), ("/Us", "ers/ada"), ("C:\\\\Us", "ers\\\\ada"), ("/ro", "ot/.cache"), ("saved to /t", "mp/x")]
    + [
        ("hf", "_" + "aB" * 17),
        ("gh", "p_" + "a1" * 18),
        ("AK", "IA" + "A1" * 8),
        ("-----BEGIN RSA PRIVATE", " KEY-----"),
    ]
    + [
        ("pass", "word = 'correct-horse'"),
        ("ada@", "lovelace.org"),
        ("192.", "168.1.7"),
        ("nas.", "lan"),
        ("py", "pi.org"),
    ]
    + [("Clau", "de"), ("ai-", "generated")],
)
def test_planted_secrets(parts):
    secret = "".join(parts)
    assert policy.leaks(secret) and policy.leaks(f'"text": ["Loading {secret}\\n"]')


# --- drift: the faults of the old tutorials, planted into lessons; the suite's own tests must fail on them ---


@pytest.fixture
def planted():
    """A copy of lesson 01, and the name that it goes by."""
    return "01_low_rank_maths", copy.deepcopy(NOTEBOOKS["notebooks/01_low_rank_maths.ipynb"])


def test_a_planted_old_argument_is_caught(planted, monkeypatch):
    name, notebook = planted
    notebook.cells.insert(
        3, nbformat.v4.new_code_cell('arguments = TrainingArguments("out", evaluation_strategy="epoch")')
    )
    monkeypatch.setitem(test_drift.LESSONS, name, notebook)
    with pytest.raises(AssertionError, match="evaluation_strategy"):
        test_drift.test_no_old_call_in_lessons_but_where_it_is_quoted()


def test_a_planted_stale_output_is_caught(planted, monkeypatch):
    name, notebook = planted
    next(cell for cell in notebook.cells[2:] if cell.cell_type == "code").source += "\nprint('new')"
    monkeypatch.setitem(test_notebooks.LESSONS, name, notebook)
    with pytest.raises(AssertionError, match="make outputs"):
        test_notebooks.test_outputs_are_fresh_whole_and_clean(name)


def test_a_planted_error_in_an_output_is_caught(planted, monkeypatch):
    name, notebook = planted
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs)
    cell.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]
    monkeypatch.setitem(test_notebooks.LESSONS, name, notebook)
    with pytest.raises(AssertionError, match=cell.id):
        test_notebooks.test_outputs_are_fresh_whole_and_clean(name)


def test_a_planted_check_that_accepts_a_wrong_answer_is_caught(tmp_path):
    name = "00_start_here"
    notebook = copy.deepcopy(NOTEBOOKS[f"notebooks/{name}.ipynb"])
    (check,) = (cell for cell in notebook.cells if cell.id == "ex1-check")
    spot = notebook.cells.index(check)
    start = "from utils.checks import check\nbillions_full = billions_lora = ..."
    notebook.cells = [nbformat.v4.new_code_cell(start), *notebook.cells[spot - 1 : spot + 2]]

    def fault():
        return lessons.execute(exercised.tried(name, notebook), "smoke", COURSE_BUILD=str(tmp_path)).error

    assert not fault()  # as it is, all is well
    check.source = re.sub(r"(?m)^.*billions_full != 6.*\n|^.*abs\(billions_full.*\n", "", check.source)
    assert "passed is False" in fault() and answers.ANSWERS[name]["ex1"]["wrong"][0] in fault()
