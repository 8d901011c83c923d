"""Exercises have teeth: exercised.py tries the stub, wrong and right answers, and nbmake runs what it writes; see there.

Here: every exercise has answers to try, learner copies without solutions run to the end, and with the LoRA path sabotaged the
training claims fail.
"""

import copy
import re

import exercised
import nbformat
import pytest
from answers import ANSWERS
from exercised import LESSONS, exercises, tried

from tools import handout, lessons


def text_of(notebook) -> str:
    return "\n".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))


@pytest.mark.parametrize("name", LESSONS)
def test_every_exercise_has_answers_to_try(name):
    assert set(ANSWERS[name]) == set(exercises(LESSONS[name]))
    for each in ANSWERS[name].values():
        assert len(each["wrong"]) >= 2 and each["right"]


@pytest.mark.parametrize("name", LESSONS)
def test_the_copy_in_which_answers_are_tried_is_the_lesson_and_more(name):
    """`make test` runs these copies with nbmake and not the lessons themselves: all of a lesson is there, in order, and every answer."""
    lesson, copied = LESSONS[name], tried(name, LESSONS[name])
    ids = {cell.id for cell in lesson.cells}
    assert [dict(cell) for cell in copied.cells if cell.id in ids] == [dict(cell) for cell in lesson.cells]
    added = [cell.source for cell in copied.cells if cell.id not in ids]
    answers = [answer for each in ANSWERS[name].values() for kind in ("wrong", "right") for answer in each[kind]]
    assert len(added) == len(answers) + 2 * len(ANSWERS[name])  # the stub and the solution of each
    assert all(re.search(r"^assert \w+\.passed is (True|False)\b", source, re.M) for source in added)
    for answer in answers:
        assert any(source.startswith(f"{answer}\n") for source in added)


def test_all_lessons_are_written_for_nbmake(tmp_path):
    (tmp_path / "9_99_of_a_lesson_that_is_gone.ipynb").write_text("{}")
    exercised.main(tmp_path)
    assert {file.stem.partition("_")[2] for file in tmp_path.glob("*.ipynb")} == set(LESSONS)


@pytest.mark.lesson
@pytest.mark.parametrize("name", ["01_low_rank_maths", "02_lora_layer"])
def test_learner_copy_runs_to_the_end(name, tmp_path):
    result = lessons.execute(handout.learner_copy(LESSONS[name]), "smoke", COURSE_BUILD=str(tmp_path))
    assert not result.error, result.error
    printed = text_of(result.notebook)
    assert printed.count("[ ] ") == len(ANSWERS[name]) and "[x]" not in printed


def test_strict_mode_raises_at_the_first_open_exercise(tmp_path):
    learner = handout.learner_copy(LESSONS["01_low_rank_maths"])
    result = lessons.execute(learner, "smoke", COURSE_BUILD=str(tmp_path), COURSE_STRICT="1")
    assert "CheckFailed" in result.error and "Exercise 1" in result.error


# B never moves: the gradient of ours is multiplied by zero; of PEFT's, the output, and with it every gradient.
SABOTAGE = """
import torch
from torch import nn

def _setattr(self, name, value, _plain=nn.Module.__setattr__):
    if name == "lora_B" and isinstance(value, nn.Parameter):
        value.register_hook(lambda gradient: gradient * 0.0)
    _plain(self, name, value)

nn.Module.__setattr__ = _setattr

from peft.tuners.lora import layer as _layer

def _update_layer(self, adapter_name, *args, _plain=_layer.LoraLayer.update_layer, **kwargs):
    _plain(self, adapter_name, *args, **kwargs)
    self.lora_B[adapter_name].register_forward_hook(lambda module, inputs, output: output * 0.0)

_layer.LoraLayer.update_layer = _update_layer
"""


MUTE = """
def answer(model, prompts, **_):
    return [("", True)] * len(prompts)
"""


@pytest.mark.lesson
@pytest.mark.parametrize(
    "name, claim",
    [
        ("02_lora_layer", "loss at the end over the least that rank 4 allows"),
        ("03_roberta_by_hand", "trained tensors that stayed, or frozen ones that moved"),
        ("04_roberta_sst2", "LoRA layers whose B is still zero"),
        ("06_llama2_qlora_sft", "held-out loss, adapted over base"),
    ],
)
def test_a_lora_that_cannot_learn_fails_the_claims(name, claim, tmp_path):
    notebook = copy.deepcopy(LESSONS[name])
    notebook.cells = [
        cell for cell in notebook.cells if not {"exercise", "check", "solution"} & set(lessons.tags(cell))
    ]
    notebook.cells.insert(2, nbformat.v4.new_code_cell(SABOTAGE))  # after the set-up cell
    for spot, cell in enumerate(notebook.cells):
        if (
            cell.id == "answer"
        ):  # lesson 06 fails by its loss; its answers, a minute of generating, would prove nothing more
            notebook.cells.insert(spot + 1, nbformat.v4.new_code_cell(MUTE))
            break
    result = lessons.execute(notebook, "smoke", COURSE_BUILD=str(tmp_path))
    assert "ClaimFailed" in result.error and claim in result.error, result.error or "the sabotaged lesson passed"
