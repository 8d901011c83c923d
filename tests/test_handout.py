"""Learner copies hold no solution and no output; a lesson that would give a solution away is refused; the key holds them all."""

import copy

import nbformat
import pytest

from tools import glossary, handout, lessons

PATHS = lessons.lessons()
LESSONS = {path.stem: nbformat.read(path, as_version=4) for path in PATHS}
each = pytest.mark.parametrize("name", LESSONS)


def by_id(notebook) -> dict:
    return {cell.id: cell for cell in notebook.cells}


def solutions(notebook) -> dict:
    """{id of the exercise: lines that only its solution has}, found by title and id, not by the tag that the tool goes by."""
    cells, found = by_id(notebook), {}
    for identity, cell in cells.items():
        if cell.source.startswith("# @title Solution") or identity.endswith("-solution"):
            exercise = identity.removesuffix("-solution")
            given = cells[exercise].source.splitlines()
            lines = [line.strip() for line in cell.source.splitlines() if line not in given]
            found[exercise] = [line for line in lines if line]
    return found


def leaks(lesson, learner) -> set:
    """The exercises of whose solution some cell of the copy has a third of the lines. (A line or two may be common ones.)"""
    cells = [{line.strip() for line in cell.source.splitlines()} for cell in learner.cells]
    found = solutions(lesson).items()
    return {exercise for exercise, lines in found if any(len(cell & set(lines)) >= len(lines) / 3 for cell in cells)}


@each
def test_learner_copy_holds_no_solution(name):
    lesson = LESSONS[name]
    learner = handout.learner_copy(lesson)
    assert len(solutions(lesson)) == len(handout.exercises(lesson))
    assert leaks(lesson, learner) == set()

    assert leaks(lesson, lesson) == set(solutions(lesson)), "the search above finds what is there"
    for exercise, lines in solutions(lesson).items():  # and also where title and check are gone
        learner.cells.append(nbformat.v4.new_code_cell("\n".join(lines[1:-1])))
        assert exercise in leaks(lesson, learner)


@each
def test_a_prediction_is_one_for_nothing_is_shown_yet(name):
    code = [cell for cell in handout.learner_copy(LESSONS[name]).cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
    assert any(cell.get("outputs") for cell in LESSONS[name].cells), "the committed lesson keeps its own"


def test_what_stands_for_a_box_where_nothing_runs_is_not_handed_out():
    """plots.box leaves its example and the answer as plain text."""
    lesson = copy.deepcopy(LESSONS["01_low_rank_maths"])
    told = nbformat.v4.new_output("display_data", {"text/plain": "A review: Good film.\npositive  93 %"})
    lesson.cells.append(nbformat.v4.new_code_cell("plots.box(judge, 'A review', 'Good film.')", outputs=[told]))
    assert "93 %" not in nbformat.writes(handout.learner_copy(lesson))


@each
def test_all_else_is_kept(name):
    lesson, learner = LESSONS[name], handout.learner_copy(LESSONS[name])
    nbformat.validate(learner)
    assert [c.id for c in learner.cells] == [c.id for c in lesson.cells if not c.id.endswith("-solution")]
    before = by_id(lesson)
    for cell in learner.cells[1:]:
        assert (cell.source, cell.metadata) == (before[cell.id].source, before[cell.id].metadata)
    assert sum("check" in lessons.tags(c) for c in learner.cells) == len(handout.exercises(lesson))
    assert "course" not in learner.metadata and "course" in lesson.metadata  # no lesson whose outputs went stale


def test_the_badge_of_the_solved_lesson_is_left_out():
    lesson = copy.deepcopy(LESSONS["00_start_here"])
    lesson.cells[0].source = lessons.between(lesson.cells[0].source, "badge", "[![Open](badge.svg)](solved)")
    assert "solved" not in handout.learner_copy(lesson).cells[0].source


def untagged(notebook):
    by_id(notebook)["ex2-solution"].metadata.tags = []


def misspelt(notebook):
    by_id(notebook)["ex2-solution"].metadata.tags = ["soluton"]


def a_second_one(notebook):
    """Another way to solve it, which somebody added without a tag."""
    at = [cell.id for cell in notebook.cells].index("ex2-solution")
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("rank_for = sum\ncheck_rank_for()", id="another"))


def a_second_one_with_a_title(notebook):
    notebook.cells.append(nbformat.v4.new_code_cell("# @title Solution 2, shorter\nrank_for = sum", id="another"))


def untagged_check(notebook):
    by_id(notebook)["ex2-check"].metadata.tags = []


def untagged_exercise(notebook):
    by_id(notebook)["ex2"].metadata.tags = []


@pytest.mark.parametrize(
    "plant, cell",
    [
        (untagged, "cell ex2:"),
        (misspelt, "cell ex2:"),
        (a_second_one, "cell another"),
        (a_second_one_with_a_title, "cell another"),
        (untagged_check, "cell ex2:"),
        (untagged_exercise, "4 cells are tagged `check`, but there are 3 exercises"),
    ],
)
def test_a_solution_that_would_be_handed_out_is_refused(plant, cell, tmp_path, capsys, monkeypatch):
    lesson = copy.deepcopy(LESSONS["01_low_rank_maths"])
    plant(lesson)
    broken = tmp_path / "01_low_rank_maths.ipynb"
    nbformat.write(lesson, broken)
    monkeypatch.setattr(handout.lessons, "lessons", lambda: [PATHS[0], broken])
    monkeypatch.setattr(handout, "HANDOUT", tmp_path / "handout")
    assert handout.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("01_low_rank_maths.ipynb, ") and cell in said and said.count("\n") == 1
    assert not (tmp_path / "handout").exists()


def test_answer_key_lists_every_exercise(tmp_path):
    count = handout.write(PATHS, tmp_path)
    key = (tmp_path / "answers.md").read_text(encoding="utf-8")
    assert key.count("\n### Exercise ") == count == sum(len(solutions(lesson)) for lesson in LESSONS.values())
    for name, lesson in LESSONS.items():
        part = key[key.index(f"## {lessons.number(name)} · ") :].split("\n## ", 2)[0]
        for task, _, check, _ in handout.exercises(lesson):
            assert glossary.LINK.sub(r"\1", task.source) in part  # its links lead nowhere from there
            assert all(f"\n- {hint}\n" in part for hint in handout.demands(check.source))
        for exercise, lines in solutions(lesson).items():
            for line in lines[1:-1]:  # all but its title and the check at its end
                assert line in part, (name, exercise, line)
    copies = sorted((tmp_path / "notebooks").iterdir())
    assert [path.name for path in copies] == [path.name for path in PATHS]
    for path in copies:
        nbformat.validate(nbformat.read(path, as_version=4))


def test_demands_are_the_words_of_the_hints():
    source = """
@check("Exercise 9")
def check_it():
    for n in (1, 2):
        assert f(n) != 0, f"for n = {n} it is {f(n):.2f}"
    assert g == 1, (
        "first half, "
        "second half"
    )
    assert "no words" in h
    assert k, f"{k}"
"""
    wanted = ["for n = … it is …", "first half, second half", "`'no words' in h`", "`k`"]
    assert handout.demands(source) == wanted


def test_a_copy_imports_the_course_from_where_it_lies(tmp_path):
    """Not only from notebooks/: the course is installed into its environment."""
    handout.write(PATHS[:1], tmp_path)
    learner = nbformat.read(tmp_path / "notebooks" / PATHS[0].name, as_version=4)
    learner.cells = [*learner.cells[:2], nbformat.v4.new_code_cell("import os; print(os.getcwd(), utils.ROOT.name)")]
    result = lessons.execute(learner, "smoke", folder=tmp_path / "notebooks", PYTHONPATH="")
    assert not result.error, result.error
    assert str(tmp_path / "notebooks") in result.notebook.cells[-1].outputs[0].text
