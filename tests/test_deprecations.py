"""tools/deprecations.py: old calls in a lesson fail its run, in whatever way a library complains; a library's internals do not."""

import nbformat
import pytest

from tools import lessons
from utils import ROOT

LIBRARY = """
import logging, warnings
logger = logging.getLogger("some.library")
logger.setLevel(logging.ERROR)  # as transformers is set in the lessons

def with_stacklevel(colour=None):
    warnings.warn("colour= goes away", DeprecationWarning, stacklevel=2)

def without_stacklevel(**options):
    if "colour" in options:
        warnings.warn("`colour` is deprecated, use `color`", FutureWarning)

def logs(**options):
    if "colour" in options:
        logger.warning("`colour` is deprecated! Use `color` instead!")

def internals():
    without_stacklevel(colour=1)
    logs(colour=1)
    warnings.warn("an internal matter", DeprecationWarning)
    with_stacklevel()
"""


def run(tmp_path, *cells):
    (tmp_path / "somelibrary.py").write_text(LIBRARY)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    return lessons.execute(notebook, "smoke", tmp_path)


@pytest.mark.parametrize(
    "call",
    [
        "somelibrary.with_stacklevel(colour=1)",
        "somelibrary.without_stacklevel(colour=1)",
        "somelibrary.logs(colour=1)",
        "def mine():\n    return somelibrary.logs(colour=1)\nmine()",
    ],
)
def test_an_old_call_of_ours_fails(call, tmp_path):
    result = run(tmp_path, "import somelibrary", call)
    assert "DeprecationWarning" in result.error and ("colour" in result.error)


def test_internals_of_a_library_do_not(tmp_path):
    result = run(tmp_path, "import somelibrary", "somelibrary.internals(); somelibrary.logs(color=1)")
    assert not result.error, result.error


def test_what_an_import_does_is_internal_too(tmp_path):
    (tmp_path / "importing.py").write_text("import somelibrary\nsomelibrary.logs(colour=1)\n")
    result = run(tmp_path, "colour = 1\nimport importing", "isinstance(1, int)")
    assert not result.error, result.error


def test_a_real_old_argument_in_a_lesson_fails(tmp_path):
    load = "model = AutoModelForSequenceClassification.from_pretrained(assets.path('minilm-roberta'), {}=torch.float32)"
    imports = "import torch, utils\nutils.start()\nfrom transformers import AutoModelForSequenceClassification\n"
    imports += "from utils import assets"
    assert not run(tmp_path, imports, load.format("dtype")).error
    assert "`torch_dtype` is deprecated" in run(tmp_path, imports, load.format("torch_dtype")).error


def test_a_lessons_namespace_is_left_alone(tmp_path):
    assert "NameError" in run(tmp_path, "re.compile('x')").error
    assert "NameError" in run(tmp_path, "_install").error


def test_the_smoke_run_of_make_test_and_ci_use_it():
    assert 'PYTHONSTARTUP="$$PWD/tools/deprecations.py"' in (ROOT / "Makefile").read_text()
