"""The lessons with every answer of answers.py tried in its place: `python tests/exercised.py FOLDER` writes them there for nbmake.

One run of such a copy is a run of the lesson itself, for nothing of it is left out, and the proof of its checks.
"""

import copy
import re
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from answers import ANSWERS

from tools import handout, lessons
from tools.lessons import number
from utils import files

LESSONS = {path.stem: nbformat.read(path, as_version=4) for path in lessons.lessons()}
LONGEST = ("06", "04", "03", "05", "02")  # to begin with, so that two workers end together


def exercises(notebook):
    """{id of the exercise cell: (its check cell, name of the check function)}"""
    found = handout.exercises(notebook)
    return {stub.id: (check, re.search(r"^def (\w+)\(", check.source, re.M)[1]) for _, stub, check, _ in found}


def tried(name: str, notebook):
    """A copy of lesson `name` in which each check must reject the stub and wrong answers, and accept right ones and the solution.

    The stub comes first, as a reader meets it; the other answers follow the check, and the lesson goes on with its solution.
    """
    notebook, cells = copy.deepcopy(notebook), []
    checks = {check.id: (exercise, function) for exercise, (check, function) in exercises(notebook).items()}
    for cell in notebook.cells:
        cells.append(cell)
        if cell.id in checks:
            exercise, function = checks[cell.id]
            tries = [("", False)]  # the stub
            tries += [(answer, False) for answer in ANSWERS[name][exercise]["wrong"]]
            tries += [(answer, True) for answer in ANSWERS[name][exercise]["right"]]
            for answer, passes in tries:
                proof = f"{answer}\n{function}()\nassert {function}.passed is {passes}, {(exercise, answer, passes)!r}"
                cells.append(nbformat.v4.new_code_cell(proof))
        if "solution" in lessons.tags(cell):
            function = re.findall(r"^(\w+)\(\)$", cell.source, re.M)[-1]
            cells.append(nbformat.v4.new_code_cell(f"assert {function}.passed is True"))
    notebook.cells = cells
    return notebook


def ours(folder: Path):
    """Whether a folder holds nothing but what `main` writes, so that it may be replaced."""
    strange = files.strangers(folder, re.compile(r"\d+_(\d\d|A)_\w+\.ipynb").fullmatch)
    return next((f"it holds {name}" for name in strange), True)


def main(folder: Path) -> None:
    """Write all of them into `folder`, named in the order in which they should be begun."""
    order = sorted(LESSONS, key=lambda name: (*LONGEST, number(name)).index(number(name)))
    with files.replacing(folder, ours) as new:
        for place, name in enumerate(order):
            nbformat.write(tried(name, LESSONS[name]), new / f"{place}_{name}.ipynb")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
