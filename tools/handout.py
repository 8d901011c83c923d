"""Copies for a class: `make handout` writes the lessons without solutions and outputs, and the answers apart, into build/handout/.

notebooks/    for the learners: no solutions, and nothing printed or drawn yet, so that a prediction is one
answers.md    for whoever teaches: each exercise, what its check demands, and one good answer
"""

import ast
import copy
import re
import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor, TagRemovePreprocessor

from tools import glossary, lessons
from utils import ROOT, console, files

HANDOUT = lessons.BUILD / "handout"
TITLE = "# @title Solution"


class HandoutError(RuntimeError):
    """A lesson would give its answers away; the message names the cell."""


def exercises(notebook) -> list[tuple]:
    """Every exercise of a lesson: the cells of its task, stub, check and solution."""
    kinds = [next((t for t in lessons.tags(c) if t in ("exercise", "check", "solution")), "") for c in notebook.cells]
    found = []
    for i, (cell, kind) in enumerate(zip(notebook.cells, kinds, strict=True)):
        if kind == "exercise":
            if kinds[i : i + 3] != ["exercise", "check", "solution"]:
                raise HandoutError(f"cell {cell.id}: after an exercise come two cells tagged `check` and `solution`")
            found.append(tuple(notebook.cells[i - 1 : i + 3]))
    for kind in ("check", "solution"):
        if kinds.count(kind) != len(found):
            raise HandoutError(f"{kinds.count(kind)} cells are tagged `{kind}`, but there are {len(found)} exercises")
    return found


def learner_copy(notebook):
    """The lesson without its solutions and outputs. HandoutError where a cell would still hold one, for want of its tag."""
    checks = [re.search(r"^def (\w+)\(", check.source, re.M)[1] for _, _, check, _ in exercises(notebook)]
    notebook = copy.deepcopy(notebook)
    for step in (TagRemovePreprocessor(remove_cell_tags={"solution"}), ClearOutputPreprocessor()):
        notebook, _ = step.preprocess(notebook, {})
    for cell in notebook.cells:  # every solution has this title and ends by running its check again
        runs_check = re.search(rf"^(?:{'|'.join(checks)})\(\)", cell.source, re.M)
        if cell.cell_type == "code" and (TITLE in cell.source or (checks and runs_check)):
            raise HandoutError(f"cell {cell.id} looks like a solution, but is not tagged `solution`")
    notebook.metadata.pop("course", None)  # the hash of the code that the committed outputs came from
    notebook.cells[0].source = lessons.between(notebook.cells[0].source, "badge", "")  # it opens the solved lesson
    return notebook


def demands(check: str) -> list[str]:
    """What a check's source asks for, in the words of its hints; what a hint fills in at run time becomes an ellipsis."""
    wanted = []
    for node in ast.walk(ast.parse(check)):
        if isinstance(node, ast.Assert):
            parts = node.msg.values if isinstance(node.msg, ast.JoinedStr) else [node.msg or node.test]
            words = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
            if words == ["…"]:  # no words at all: the condition itself
                words = [f"`{ast.unparse(node.test)}`"]
            wanted.append((node.lineno, "".join(words)))
    return [words for _, words in sorted(wanted)]


def answers(notebook) -> str:
    """A lesson's part of the answer key."""
    title = notebook.cells[0].source.splitlines()[0]
    text = f"#{title}\n"
    for task, _, check, solution in exercises(notebook):
        lines = solution.source.strip().splitlines()
        code = "\n".join(lines[lines[0].startswith(TITLE) : -1]).strip()  # without its title and the check at its end
        hints = "".join(f"- {hint}\n" for hint in demands(check.source))
        asked = glossary.LINK.sub(r"\1", task.source).strip()
        text += f"\n{asked}\n\n**The check's hints**\n\n{hints}\n**One good answer**\n\n```python\n{code}\n```\n"
    return text


def write(paths: list[Path], folder: Path) -> int:
    """Make `folder` from the lessons in `paths` and return the number of exercises; on an error nothing is written."""
    copies, key, count = {}, "# Answers\n\nFor whoever teaches the course; the learners' copies do not hold them.\n", 0
    for path in paths:
        try:
            notebook = nbformat.read(path, as_version=4)
            copies[path.name] = nbformat.writes(learner_copy(notebook)) + "\n"
            key += f"\n{answers(notebook)}"
            count += len(exercises(notebook))
        except HandoutError as error:
            raise HandoutError(f"{path.name}, {error}; nothing was written.") from None
    with files.replacing(folder) as new:
        for name, text in copies.items():
            files.place_file(new / "notebooks" / name, text)
        files.place_file(new / "answers.md", key)
    return count


def main() -> int:
    paths = lessons.lessons()
    try:
        count = write(paths, HANDOUT)
    except (HandoutError, files.Refused) as error:
        print(error, file=sys.stderr)
        return 1
    where = HANDOUT.relative_to(ROOT)
    print(
        f"{len(paths)} learner copies are in {where}/notebooks/, the answers to {count} exercises in {where}/answers.md."
    )
    return 0


if __name__ == "__main__":
    console.run(main)
