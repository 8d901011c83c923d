"""The glossary is whole, says where each word is met, and each lesson links the first use of a word that it does not explain."""

import re

import nbformat
import pytest
import test_teaching
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from policy import anchors
from reading import sentences

from tools import glossary, lessons, site
from utils import ROOT

PAGE = glossary.PAGE.read_text(encoding="utf-8")
ENTRIES = glossary.entries(PAGE)
PATHS = lessons.lessons()
OTHER_FORMS = {"loss mask": "mask"}  # too short to be linked


# --- the page ---


def test_the_glossary_is_whole_and_in_order():
    terms = [entry.term for entry in ENTRIES]
    assert len(terms) == PAGE.count("\n### ") >= 80, "an entry that is written in another way"
    assert terms == sorted(terms, key=str.casefold)
    assert {entry.anchor for entry in ENTRIES} == anchors(PAGE) - {"the-words-of-the-course"}
    forms = [form for entry in ENTRIES if entry.link for form in entry.forms]
    assert len({form.casefold() for form in forms}) == len(forms), "a form of two words"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.term)
def test_a_word_is_met_where_the_glossary_says(entry):
    assert entry.place == f"../notebooks/{test_teaching.STEMS[entry.lesson]}.ipynb"
    found = test_teaching.sections(entry.lesson)
    texts = [text for name, text in found.items() if not entry.section or name.startswith(f"{entry.section} ·")]
    texts += [] if entry.section else [cell.source for cell in test_teaching.LESSONS[entry.lesson].cells]
    forms = {entry.term, *entry.forms, OTHER_FORMS.get(entry.term, entry.term)}
    assert any(form.casefold() in text.casefold() for form in forms for text in texts)
    assert len(sentences(entry.told)) <= 3 and entry.told.endswith((".", ".)")), "a few plain sentences"


# --- the links ---


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_lesson_links_its_words(path):
    assert glossary.main(["--check", path.stem]) == 0, "run `python -m tools.glossary`"


def entry(term, lesson="00", forms=(), link=True):
    return glossary.Entry(term, "What it is.", lesson, "1", "x", forms or (term,), link)


WORDS = [
    entry("token"),
    entry("LoRA"),
    entry("attention mask", forms=("attention mask", "padding mask")),
    entry("attention"),
    entry("query, key, value", forms=("query and value", "query")),
    entry("strict=False", link=False),
    entry("spectrum", forms=("spectrum", "spectra")),
    entry("rank", lesson="01"),
]
HERE = glossary.FROM_A_LESSON


@pytest.mark.parametrize(
    "text, wanted",
    [
        # the first use only, as it is spelled there
        ("A token, a token.", f"A [token]({HERE}#token), a token."),
        ("Tokens come first.", f"[Tokens]({HERE}#token) come first."),
        ("The model's tokens' ids", f"The model's [tokens]({HERE}#token)' ids"),
        ("two **tokens** and a token", None),  # explained here
        ("**Token.** What it is. A token", None),
        ("the **query, key, value** and a query", None),
        ("**a token's number** is no token", f"**a [token]({HERE}#token)'s number** is no token"),
        ("*attention*", f"*[attention]({HERE}#attention)*"),
        ("(attention).", f"([attention]({HERE}#attention))."),
        ("spectra", f"[spectra]({HERE}#spectrum)"),
        ("query\nand  value", f"[query\nand  value]({HERE}#query-key-value)"),
        (
            "the attention mask of attention",
            f"the [attention mask]({HERE}#attention-mask) of [attention]({HERE}#attention)",
        ),
        # parts of words and names
        ("tokenizer, subtoken, token_ids, token-wise, a/token, token.text, --token, @token, token=1", None),
        ("LORA lora Loras QLoRA LoRA-FA", None),
        ("loRA and LoRA", f"loRA and [LoRA]({HERE}#lora)"),
        ("strict=False", None),
        # places that are left as they are
        ("# A token\n\n## 1 · Attention\n\nno", None),
        ("`token` ``a `token` b`` `two\ntokens`", None),
        ("```python\ntoken = 1\n```\n\n~~~\ntoken\n~~~", None),
        ("$token$ and $$\ntoken\n$$", None),
        ("[the token](a.md) ![a token](b.png) [token][r] [a [token] b](c)", None),
        ("<https://token.org> https://x.org/a token", f"<https://token.org> https://x.org/a [token]({HERE}#token)"),
        ("<!-- token --> <b class='token'>", None),
        ("| a token | b |\n|---|---|\n| token | x |", None),
        ("It costs \\$5. A token costs \\$6.", f"It costs \\$5. A [token]({HERE}#token) costs \\$6."),
        ("**Sources.** Attention is all you need.", None),
        ("**Sources.** A token.\n\nA token.", f"**Sources.** A token.\n\nA [token]({HERE}#token)."),
        # what this very lesson explains
        ("The rank of a matrix.", None),
        # links that are there
        (f"A [token]({HERE}#token), [twice]({HERE}#token).", f"A [token]({HERE}#token), twice."),
        (f"[gone]({HERE}#gone) and [the words]({HERE})", f"gone and [the words]({HERE})"),
    ],
)
def test_planted_words(text, wanted):
    found = glossary.linked([text], "01", WORDS)
    assert found == [text if wanted is None else wanted]
    assert glossary.linked(found, "01", WORDS) == found, "a second time changes nothing"


def test_first_is_first_in_the_lesson_and_code_in_one_cell_hides_nothing_in_the_next():
    texts = ["An `open span", "a token`", "## Token", "A token."]
    assert glossary.linked(texts, "01", WORDS) == [*texts[:1], f"a [token]({HERE}#token)`", *texts[2:]]


PIECES = [
    "token",
    "Tokens",
    "attention mask",
    " ",
    ", ",
    "\n\n",
    "`",
    "```\n",
    "**",
    "[",
    "](x)",
    "$",
    "| ",
    "# ",
    "LoRA",
]


@given(st.lists(st.sampled_from([*PIECES, f"[token]({HERE}#token)"])).map("".join))
def test_linking_adds_links_and_nothing_else(text):
    (found,) = glossary.linked([text], "01", WORDS)
    assert glossary.LINK.sub(r"\1", found) == glossary.LINK.sub(r"\1", text)
    assert glossary.linked([found], "01", WORDS) == [found]
    for word in WORDS:
        assert found.count(f"(../docs/glossary.md#{word.anchor})") <= 1


def test_entries_say_how_they_are_spelled():
    text = "# W\n\n### A b: `c`\n\nOne. Two (x). ([lesson 05, section 2](../n/05_x.ipynb)) <!-- linked as: a b; a bs -->\n\n"
    text += "### of A\n\nIt. ([lesson A](../n/A_x.ipynb))\n\n### common\n\nIt. ([lesson 00, section 1](y)) <!-- seen as: usual -->\n"
    first, second, third = glossary.entries(text)
    assert (first.term, first.anchor, first.told, first.lesson, first.section, first.place) == (
        "A b: `c`", "a-b-c", "One. Two (x).", "05", "2", "../n/05_x.ipynb"
    )  # fmt: skip
    assert (first.forms, first.link) == (("a b", "a bs"), True)
    assert (second.forms, second.link, second.lesson, second.section) == (("of A",), True, "A", None)
    assert (third.forms, third.link) == (("usual",), False)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Two lessons and a glossary of one word."""
    (tmp_path / "glossary.md").write_text(
        "# W\n\n### token\n\nA piece. ([lesson 00, section 1](../notebooks/00_a.ipynb))\n"
    )
    for name, text in (("00_a", "A token."), ("01_b", "# 01 · B\n\nA token.")):
        cells = [new_markdown_cell(text, id="one"), new_code_cell("# a token", id="two")]
        (tmp_path / f"{name}.ipynb").write_text(nbformat.writes(new_notebook(cells=cells)) + "\n", encoding="utf-8")
    monkeypatch.setattr(glossary, "PAGE", tmp_path / "glossary.md")
    monkeypatch.setattr(lessons, "NOTEBOOKS", tmp_path)
    return tmp_path


def test_links_are_written_once_and_checking_writes_nothing(course, capsys):
    before = {path.name: path.read_bytes() for path in course.iterdir()}
    assert glossary.main(["--check"]) == 1
    assert "not as they should be in 01_b. Run: python -m tools.glossary" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in course.iterdir()} == before
    assert glossary.main(["--check", "00"]) == 0
    assert glossary.main([]) == 0 and "written into 01_b" in capsys.readouterr().out
    prose, code = nbformat.read(course / "01_b.ipynb", 4).cells
    assert prose.source == f"# 01 · B\n\nA [token]({HERE}#token)." and code.source == "# a token"
    assert (course / "00_a.ipynb").read_bytes() == before["00_a.ipynb"]
    assert glossary.main(["--check"]) == glossary.main([]) == 0
    assert "as they should be" in capsys.readouterr().out


# --- on the site ---


def test_the_site_leads_to_the_term():
    text = f"[Tokens]({HERE}#token) [words]({HERE}) [gone]({HERE}#gone)"
    assert (
        site.prose(text, "notebooks/n.ipynb", ROOT, "")
        == f"{{term}}`Tokens <token>` [words]({HERE}) [gone]({HERE}#gone)"
    )


def test_every_entry_is_a_term_of_the_site():
    page = site.glossary_page(PAGE)
    block = re.fullmatch(r"(?s).*\n\n:::\{glossary\}\n(.*)\n:::\n", page)[1]
    assert [part.split("\n    ")[0] for part in block.split("\n\n")] == [entry.term for entry in ENTRIES]
    assert "<!--" not in page and "###" not in page
