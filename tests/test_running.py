"""`python -m tools.lessons run`: whatever ends a lesson is one failed row, the others run, and Ctrl-C stops it in a sentence."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import nbformat
import pytest

from tools import lessons
from utils import ROOT

FINE = "print('all is well')"


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run lessons made of these cells; returns the exit code, the rows and what was said of errors."""
    monkeypatch.setattr(lessons, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(lessons, "BUILD", tmp_path / "build")
    (tmp_path / "notebooks").mkdir()

    def go(**made):
        for name, cells in made.items():
            nbformat.write(notebook(*cells), tmp_path / "notebooks" / f"{name}.ipynb")
        monkeypatch.setattr(sys, "argv", ["lessons", "run", "--profile", "smoke"])
        code = lessons.main()
        said = capsys.readouterr()
        rows = said.out.partition("\n\n")[2].partition("\n\n")[0].splitlines()
        return code, rows, said.err

    return go


def test_a_lesson_that_ends_early_is_a_failed_row(run, tmp_path):
    died, failed = "import os; os._exit(137)", "1 / 0"
    code, rows, said = run(a=[FINE], b=[FINE, died, FINE], c=[FINE, failed, FINE], d=[FINE])
    assert code == 1 and [row.endswith("FAILED") for row in rows] == [False, True, True, False]
    assert (
        "The kernel died: the memory was full, or it was ended from outside.\n" in said and "ZeroDivisionError" in said
    )
    assert "nbclient" not in said, "a traceback of ours"
    kept = nbformat.read(tmp_path / "build" / "smoke" / "b.ipynb", as_version=4)
    assert kept.cells[0].outputs[0].text == "all is well\n"  # what ran before


def test_a_kernel_that_does_not_start_is_a_failure():
    result = lessons.execute(notebook("1"), "smoke", kernel="no-such-kernel")
    assert result.error.startswith("NoSuchKernel")


@pytest.mark.skipif(os.name == "nt", reason="there Ctrl-C is an event, not a signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_in_a_sentence_and_leaves_no_kernel(tmp_path, number):
    """In a process of its own, that the signal is sent to while a cell sleeps."""
    (tmp_path / "notebooks").mkdir()
    asleep = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    for name in ("a", "b"):
        nbformat.write(notebook(asleep), tmp_path / "notebooks" / f"{name}.ipynb")
    code = (
        "import sys; from pathlib import Path; from tools import lessons; from utils import console; "
        f"lessons.NOTEBOOKS = Path({str(tmp_path / 'notebooks')!r}); lessons.BUILD = Path({str(tmp_path / 'build')!r}); "
        f"lessons.execute.__defaults__ = (lessons.NOTEBOOKS, *lessons.execute.__defaults__[1:]); "
        "sys.argv = ['lessons', 'run']; console.run(lessons.main)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    kernel = tmp_path / "notebooks" / "pid"
    deadline = time.time() + 60
    while not (kernel.exists() and kernel.read_text()) and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "Stopped in a; nothing of it was kept, the lessons before it are done.\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(kernel.read_text()), 0)


def test_systems_without_signal_handlers_and_threads_run_lessons_too(monkeypatch):
    """Windows' event loop has no add_signal_handler; a thread has none either. Not run on Windows itself here."""
    results = []
    thread = threading.Thread(target=lambda: results.append(lessons.execute(notebook(FINE), "smoke")))
    thread.start()
    thread.join()

    def none(*_):
        raise NotImplementedError

    loop = type(asyncio.new_event_loop())
    monkeypatch.setattr(loop, "add_signal_handler", none)
    results.append(lessons.execute(notebook(FINE), "smoke"))
    assert [result.error for result in results] == ["", ""]
