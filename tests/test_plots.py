"""A slider and a box: what a reader does with them, what stands where nothing runs. Tables keep their alignment there."""

import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython import display as ipython
from ipywidgets import HTML, IntSlider, Text, VBox

from tools import lessons
from utils import plots


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: (bundle, options)."""
    told = []
    monkeypatch.setattr(ipython, "display", lambda thing, **options: told.append((thing, options)))
    monkeypatch.setenv("COURSE_ENFORCE", "")
    return told


@pytest.fixture
def parts(monkeypatch):
    """[the field, the answer] of the box that is made."""
    found = []

    def notice(children):
        found[:] = children
        return VBox(children)

    monkeypatch.setattr("ipywidgets.VBox", notice)
    return found


# --- a slider ---


def test_a_slider_draws_anew():
    drawn = []

    def draw(value):
        drawn.append(value)
        return plots.subplots()[0]

    control, picture = plots.slider(draw, "rank", 3, 1, 9, "The copy of rank {} <small>.").children
    assert isinstance(control, IntSlider) and isinstance(picture, HTML) and not control.continuous_update
    assert 'alt="The copy of rank 3 &lt;small&gt;."' in picture.value
    control.value = 4
    assert drawn == [3, 4] and 'alt="The copy of rank 4 ' in picture.value


# --- a box ---


def test_a_box_answers_and_keeps_its_example_for_those_who_only_read(shown, parts):
    plots.box(lambda text: f"{len(text)} letters", "A review", "Good film.")
    ((bundle, options),) = shown
    assert bundle["text/plain"] == "A review: Good film.\n10 letters"
    assert options == {"raw": True, "metadata": {"static": True}}
    control, answer = parts
    assert isinstance(control, Text) and not control.continuous_update and "Enter" in control.placeholder
    assert control.value == "Good film." and control.description == "A review" and "10 letters" in answer.value
    control.value = "  Bad.  "
    assert "4 letters" in answer.value and 'role="status"' in answer.value


def test_a_box_may_answer_with_a_table(shown, parts):
    plots.box(lambda text: {"positive": "93 %", "no <b>": 7}, "A review", "x")
    assert shown[0][0]["text/plain"] == "A review: x\npositive  93 %\nno <b>    7"
    _, answer = parts
    assert answer.value.count("<tr>") == 2 and "<b>" not in answer.value and "no &lt;b&gt;" in answer.value


def test_what_a_reader_types_is_text_and_not_a_page(shown, parts):
    plots.box(str, "A review", "x")
    control, answer = parts
    control.value = "<img src=x onerror=alert(1)>"
    assert "<img" not in answer.value and "&lt;img src=x" in answer.value


@pytest.mark.parametrize("empty", ["", "  \t"])
def test_an_empty_box_says_what_to_do(shown, parts, empty):
    asked = []
    plots.box(asked.append, "A review", "x")
    control, answer = parts
    control.value = empty
    assert "empty: type a text into it, then press Enter" in answer.value and asked == ["x"]


def test_an_error_is_a_sentence_and_the_next_text_is_answered(shown, parts):
    def answer(text):
        if text == "?":
            raise ValueError("a\nnumber <1>")
        return "fine"

    plots.box(answer, "A review", "?")
    said = "There is no answer to this text (ValueError: a number <1>). Try another one."
    assert shown[0][0]["text/plain"] == f"A review: ?\n{said}"
    control, reply = parts
    assert "(ValueError: a number &lt;1&gt;)" in reply.value and "Traceback" not in reply.value
    control.value = "yes"
    assert "fine" in reply.value


def test_an_example_that_fails_stops_a_checked_run(shown, monkeypatch):
    monkeypatch.setenv("COURSE_ENFORCE", "1")
    with pytest.raises(ZeroDivisionError):
        plots.box(lambda text: 1 / 0, "A review", "x")
    assert not shown


def test_a_committed_lesson_keeps_the_example_and_no_widget(tmp_path):
    cells = [nbformat.v4.new_markdown_cell("# A lesson <!-- minutes -->?<!-- /minutes -->", id="head")]
    for name, call in (
        ("box", "plots.box(lambda text: {'letters': len(text)}, 'A review', 'Good film.')"),
        ("slider", "plots.slider(lambda value: plots.subplots()[0], 'r', 1, 1, 2, 'Axes of rank {}.')"),
    ):
        cells.append(nbformat.v4.new_code_cell(f"from utils import plots\n{call}", id=name))
    result = lessons.execute(nbformat.v4.new_notebook(cells=cells), "smoke", tmp_path)
    assert not result.error
    assert [plots.WIDGET in cell.outputs[0].data for cell in result.notebook.cells[1:]] == [True, True]
    _, box, slider = lessons.clean(result.notebook, 1.0).cells
    nbformat.validate(result.notebook)
    assert [o.data for o in box.outputs] == [{"text/plain": "A review: Good film.\nletters  10"}]
    assert box.outputs[0].metadata == {} and slider.outputs == []


# --- tables ---


def sides(page: str) -> dict[str, str]:
    """{what a cell says: the side at which it stands, from its own attribute}"""
    return {text: side for side, text in re.findall(r"<t[hd] style=\"text-align: (\w+);[^>]*>(.*?)</t[hd]>", page)}


def test_a_table_s_cells_say_where_they_stand():
    frame = pd.DataFrame({"word": ["good", "bad"], "n": [1, np.nan], "p": np.float32([0.5, 1]), "mixed": [1, "one"]})
    page = plots.aligned(frame.style.format({"n": "{:.2f}", "p": "{:.0%}"}))
    found = sides(page)
    assert {text for text, side in found.items() if side == "right"} == {"n", "p", "1.00", "nan", "50%", "100%"}
    assert {text for text, side in found.items() if side == "left"} >= {"word", "good", "bad", "mixed", "one", "0"}
    assert len(re.findall(r"<t[hd]\b", page)) == len(re.findall("<t[hd] style", page)) == 15, "each cell, once"


def test_names_of_an_index_stand_left_and_hidden_columns_shift_nothing():
    frame = pd.DataFrame({"word": ["good"], "n": [7]}, index=pd.Index(["row"], name="kind"))
    assert sides(plots.aligned(frame.style)) | {"&nbsp;": ""} == {
        "word": "left", "n": "right", "kind": "left", "row": "left", "good": "left", "7": "right", "&nbsp;": ""
    }  # fmt: skip
    assert sides(plots.aligned(frame.style.hide(["word"], axis="columns").hide(axis="index"))) == {
        "n": "right",
        "7": "right",
    }


def test_notebooks_show_tables_aligned_once_a_lesson_has_started(tmp_path):
    lines = [
        "pd.DataFrame({'word': ['<b>'], 'n<': [7]})",
        "_.style.hide(axis='index')",
        "pd.DataFrame({'n': range(99)})",
    ]
    cells = [nbformat.v4.new_code_cell("import utils; utils.start(); import pandas as pd")]
    cells += [nbformat.v4.new_code_cell(line) for line in lines]
    result = lessons.execute(nbformat.v4.new_notebook(cells=cells), "smoke", tmp_path)
    assert not result.error
    plain, styled, long = (cell.outputs[0].data["text/html"] for cell in result.notebook.cells[1:])
    assert sides(plain)["&lt;b&gt;"] == "left" and sides(plain)["7"] == sides(plain)["n&lt;"] == "right"
    assert sides(styled)["7"] == "right" and "99 rows" in long


def test_outside_a_notebook_nothing_is_aligned(monkeypatch):
    monkeypatch.delitem(plots.sys.modules, "IPython")
    plots.align_tables()
