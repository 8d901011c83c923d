"""The web edition: what is staged for Sphinx, and a small course built with it. tests/browser/ looks at the real one."""

import base64
import json
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import lessons, site, stamp
from utils import ROOT, data, files

PATHS = lessons.lessons()
PIXEL = base64.b64encode((ROOT / "docs" / "figure.png").read_bytes()).decode()
ALT = "Two bars: the left one is twice as high."


def staged(path, slug=""):
    notebook = nbformat.read(path, as_version=4)
    return site.lesson(notebook, f"notebooks/{path.name}", ROOT, slug)


def figure(alt=ALT):
    metadata = {"image/png": {"alt": alt}} if alt else {}
    return new_output("display_data", data={"image/png": PIXEL, "text/plain": "figure"}, metadata=metadata)


def small_course(root):
    """Two lessons, a front page and a FAQ of two rows, in the folders that the real course has."""
    for folder in ("notebooks", "docs", "data"):
        (root / folder).mkdir(parents=True)
    cells = [
        new_markdown_cell(
            "# 00 · Why\n\n<!-- badge -->![b](https://other.host/b.svg)<!-- /badge -->\n\nThe [next](01_how.ipynb)."
        ),
        new_code_cell("import this", metadata={"tags": ["setup"]}),
        new_code_cell("draw()", outputs=[figure()], metadata={"tags": ["drawing"]}),
        new_markdown_cell("Of [ranks](../docs/glossary.md#rank)."),
        new_markdown_cell("## 1 · Numbers\n\n### Exercise 1 · Count\n\nHow many?"),
        new_code_cell("answer = ...", metadata={"tags": ["exercise"]}),
        new_code_cell("assert answer == 42", metadata={"tags": ["check"]}),
        new_code_cell("answer = 42", metadata={"tags": ["solution"]}),
        new_markdown_cell("Beyond the exercise."),
    ]
    first = new_notebook(cells=cells, metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}})
    nbformat.write(first, root / "notebooks" / "00_why.ipynb")
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 01 · How")]), root / "notebooks" / "01_how.ipynb")
    (root / "README.md").write_text(
        "# A course\n\n| Lesson | Question | Minutes on two cores | Minutes on a GPU |\n|---|---|---|---|\n"
        "| [00 · Why](notebooks/00_why.ipynb) | Why? | <!-- minutes:00 -->under 3<!-- /minutes --> | not measured |\n"
        "| [01 · How](notebooks/01_how.ipynb) | How? | under 4 | 2 |\n\nSee the [licence](LICENSE).\n"
    )
    (root / "LICENSE").write_text("MIT\n")
    pages = "notebooks/00_why\nnotebooks/01_how\ndocs/faq\ndocs/glossary\n"
    entry = "### rank\n\nHow many. ([lesson 01](../notebooks/01_how.ipynb)) <!-- linked as: ranks -->\n"
    (root / "docs" / "glossary.md").write_text(f"# Words\n\n{entry}")
    (root / "docs" / "index.md").write_text(f"```{{include}} README.md\n```\n\n```{{toctree}}\n{pages}```\n")
    rows = [
        {"topic": "8-bit things", "question": "Is `a_b` *one* name?", "answer": "Yes, in [0, 1]. (notebook 01)"},
        {"topic": "8-bit things", "question": "And later?", "answer": "Later. (notebook 09)"},
    ]
    (root / "data" / "lora_faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- staging the lessons ---


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_figure_of_a_lesson_carries_its_alternative_text(path):
    told = 0
    for cell in staged(path).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert cell.metadata["mystnb"]["image"]["alt"] == output.metadata["image/png"]["alt"] != ""
                told += 1
    assert told >= 3


@pytest.mark.parametrize("outputs", [[figure("")], [figure(), figure("")], [figure(), figure("Another.")]])
def test_a_figure_without_its_own_text_is_refused_by_name(outputs):
    notebook = new_notebook(cells=[new_code_cell("draw()", id="bars", outputs=outputs)])
    with pytest.raises(SystemExit, match=r"notebooks/00_why\.ipynb, cell bars: .* alternative text"):
        site.lesson(notebook, "notebooks/00_why.ipynb", ROOT, "")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_a_lesson_folds_is_folded_and_nothing_else(path):
    fold = {"setup": "hide-input", "drawing": "hide-input", "check": "hide-input", "solution": "hide-cell"}
    folded = 0
    for cell in staged(path).cells:
        tags = lessons.tags(cell)
        wanted = [fold[tag] for tag in tags if tag in fold]
        assert [tag for tag in tags if tag.startswith("hide-")] == wanted
        assert bool(wanted) == ("code_prompt_show" in cell.metadata.get("mystnb", {}))
        folded += len(wanted)
    assert folded >= 3


def test_widgets_stay_behind():
    notebook = new_notebook(metadata={"widgets": {"state": {}}}, cells=[new_markdown_cell("# A lesson")])
    assert "widgets" not in site.lesson(notebook, "notebooks/00_why.ipynb", ROOT, "").metadata


def test_lines_of_claims_may_wrap_and_tables_may_not():
    def tags(text):
        cell = new_code_cell("", outputs=[new_output("stream", text=text)])
        return lessons.tags(site.lesson(new_notebook(cells=[cell]), "notebooks/00_why.ipynb", ROOT, "").cells[0])

    assert tags("✓ counted: measured 2\n✗ weighed: measured 3\n") == ["claims"]
    assert tags("✓ counted: measured 2\n a  b\n") == tags("") == []


@pytest.mark.parametrize("path", PATHS[:2], ids=lambda path: path.stem)
def test_the_colab_button_comes_with_an_address(path):
    button = f"[Open in Colab]({stamp.colab_url('ann/course', path.name)})"
    assert button in staged(path, "ann/course").cells[0].source
    assert "colab" not in staged(path).cells[0].source


# --- staging prose ---

TEXTS = {
    # text, the file it stands in, unstamped, stamped (None: the same)
    "a page": ("[x](../docs/migration.md)", "notebooks/n.ipynb", "[x](../docs/migration.md)", None),
    "a place on it": ("[x](migration.md#then-and-now)", "docs/d.md", "[x](migration.md#then-and-now)", None),
    "the README": ("[x](../README.md#start)", "docs/d.md", "[x](../index.md#start)", None),
    "the FAQ": ("[x](lora_faq.jsonl)", "data/README.md", "[x](../docs/faq.md)", None),
    "from the front page": ("[x](../data/README.md)", "docs/index.md", "[x](data/README.md)", None),
    "a file": ("[the `x`](../LICENSE)", "docs/d.md", "the `x`", "[the `x`](https://github.com/a/b/blob/main/LICENSE)"),
    "a folder": ("[x](utils/)", "README.md", "x", "[x](https://github.com/a/b/tree/main/utils)"),
    "an image": ("![x](docs/figure.png)", "README.md", "![x](docs/figure.png)", None),
    "elsewhere": ("[x](https://a.b/c.md) [y](#z)", "README.md", "[x](https://a.b/c.md) [y](#z)", None),
    "nowhere": ("[x](no/such.md)", "README.md", "[x](no/such.md)", None),
    "code": (
        "`[x](LICENSE)`\n\n```\n[x](LICENSE)\n```\n",
        "README.md",
        "`[x](LICENSE)`\n\n```\n[x](LICENSE)\n```\n",
        None,
    ),
    "badges": ("a <!-- colab:04 -->[![b](https://h/b.svg)](https://h)<!-- /colab -->c", "README.md", "a c", None),
}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    text, path, plain, stamped = TEXTS[name]
    assert site.prose(text, path, ROOT, "") == plain
    assert site.prose(text, path, ROOT, "a/b") == (plain if stamped is None else stamped)


def test_an_image_of_another_host_is_refused():
    with pytest.raises(SystemExit, match=r"^docs/a\.md: the image https://h/b\.svg is on another host"):
        site.prose("Text ![alt](https://h/b.svg).", "docs/a.md", ROOT, "")
    assert site.prose("`![alt](https://h/b.svg)`", "docs/a.md", ROOT, "") == "`![alt](https://h/b.svg)`"


def test_the_front_page_lists_every_lesson_with_its_minutes():
    text = site.lesson_map((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [text.count(f"(notebooks/{path.name})") for path in PATHS] == [1] * len(PATHS)
    assert text.count("min on two server cores") == len(PATHS) and "| Lesson |" not in text
    with pytest.raises(SystemExit, match=r"README\.md has no table that begins with `\| Lesson \|`"):
        site.lesson_map("# A course\n\nNo table.\n")


def test_the_faq_page_has_every_row():
    page, rows = site.faq_page(ROOT), data.read_faq()
    assert page.count("\n### ") == len(rows)
    for row in rows:
        assert f"### {site.plain(row['question'])}\n" in page
        assert site.plain(row["answer"].rpartition(" (notebook")[0]) in page
    assert page.count("\n## ") == len({row["topic"] for row in rows})


def test_the_glossary_keeps_its_words_and_its_opening():
    text = "# Words\n\nOpening.\n\n### rank\n\nHow *many*. <!-- linked as: ranks -->\n\n### tail\n\nThe rest.\n"
    terms = "rank\n    How *many*.\n\ntail\n    The rest."
    assert site.glossary_page(text) == f"# Words\n\nOpening.\n\n:::{{glossary}}\n{terms}\n:::\n"
    assert site.glossary_page("# Words\n\nNone yet.\n") == "# Words\n\nNone yet.\n"


# --- a whole build, of a small course ---


def test_build_and_a_failed_build_leaves_the_former_site(tmp_path):
    root, out = tmp_path / "course", tmp_path / "build" / "site"
    small_course(root)
    assert site.build(root, out, "ann/course") < 60
    page = (out / "notebooks" / "00_why.html").read_text(encoding="utf-8")
    assert f'alt="{ALT}"' in page and 'href="01_how.html"' in page and "other.host" not in page
    assert stamp.colab_url("ann/course", "00_why.ipynb") in page
    assert 'href="../docs/glossary.html#term-rank"' in page and ">ranks</span>" in page
    drawing = page[page.index("tag_drawing") : page.index(f'alt="{ALT}"')]
    assert 0 < drawing.index("<details") < drawing.index(">draw<") < drawing.index("</details>"), (
        "the picture stays outside"
    )
    exercise = re.sub("</?span[^>]*>", "", page[page.index('class="exercise-body') :])
    assert 0 < exercise.index("<details") < exercise.index("== ") < exercise.index("</details>")
    solution = exercise[exercise.index("tag_solution") :]
    assert 0 < solution.index("<details") < solution.index("answer") < solution.index("</details>")
    assert "Beyond the exercise." in solution[solution.index("</details>") :]
    front = (out / "index.html").read_text(encoding="utf-8")
    assert "under 3 min on two cores" in front and "under 4 min on two cores, 2 min on a GPU" in front
    faq = (out / "docs" / "faq.html").read_text(encoding="utf-8")
    assert ">a_b</span>" in faq and "*one* name" in faq and 'href="../notebooks/01_how.html"' in faq
    assert "Lesson\u00a009" in faq and "09_" not in faq
    mathjax = [path for path in (out / "_static" / "mathjax").rglob("*") if path.is_file()]
    assert 10 < len(mathjax) < 40 and sum(path.stat().st_size for path in mathjax) < 3e6

    (root / "docs" / "extra.md").write_text("# Extra\n\nA [broken link](nowhere.md).\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as failure:
        site.build(root, out, "ann/course")
    told = str(failure.value)
    assert "docs/extra.md:3: WARNING" in told and "nowhere.md" in told and "isn't included in any toctree" in told
    assert told.endswith("The site was not built: Sphinx found what is named above. The former one is as it was.")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["site"]


def test_a_folder_that_is_no_site_is_not_replaced(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("a reader's own")
    with pytest.raises(files.Refused, match=r"site is not replaced: it holds index\.html"):
        site.build(ROOT, tmp_path / "site", "")
    assert (tmp_path / "site" / "index.html").read_text() == "a reader's own"


def test_mathjax_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(site.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"sphinx-mathjax-offline, .* is missing\. Run: make setup"):
        site.copy_mathjax(tmp_path)
    assert not list(tmp_path.iterdir())
