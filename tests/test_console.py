"""No console brings a command to a traceback: one that lacks letters, one that hangs up, one where Ctrl-C is pressed."""

import io
import os
import subprocess
import sys

import pytest

from utils import ROOT, checks, console

COMMANDS = {  # each with arguments that print at once
    "utils.planner": ["--help"],
    "utils.doctor": [],
    "tools.stamp": [],
    "tools.links": ["--help"],
    "tools.lessons": ["--help"],
    "tools.prefetch": ["--help"],
}


class Console(io.TextIOWrapper):
    """A console of another encoding."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding)

    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "utf-8"])
def test_marks_are_told_on_every_console(encoding, monkeypatch):
    screen = Console(encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COURSE_ENFORCE", "0")
    checks.claim("rank of 日本", 4, expect=(4, None), published=3, source="Hu · 2021")
    checks.claim("loss", 4.0, expect=(None, 1))
    checks.check("Exercise 1 · größer")(lambda: None)

    @checks.check("Exercise 2 · größer")
    def wrong():
        raise AssertionError("✗ a hint → \udcff")

    right, broken, passed, failed = screen.shown().splitlines()
    assert right.startswith(("✓" if encoding == "utf-8" else "ok") + " rank of ") and "measured 4" in right
    assert broken.startswith(("✗" if encoding == "utf-8" else "NO") + " loss: measured 4")
    assert passed.startswith("[x] Exercise 1 ") and failed.startswith("[ ] Exercise 2 ") and failed.endswith("?")


def test_a_console_that_has_the_letters_gets_them(capsys):
    console.say("✓ a · b …")
    assert capsys.readouterr().out == "✓ a · b …\n"


def finish(code, **options):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, **options)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


def test_a_command_prints_on_a_console_that_lacks_letters():
    env = dict(os.environ, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert finish("from utils import console; console.run(lambda: print('a ✓ b'))", env=env).stdout == "a ? b\n"


@pytest.mark.parametrize("end, code", [("0", 0), ("3", 3), ("None", 0), ("sys.exit(4)", 4), ("sys.exit('no')", 1)])
def test_a_command_ends_with_its_own_code(end, code):
    assert finish(f"import sys; from utils import console; console.run(lambda: {end})").returncode == code


@pytest.mark.skipif(os.name == "nt", reason="there signals are sent otherwise")
def test_ctrl_c_is_one_sentence():
    code = "import os, signal; from utils import console; console.run(lambda: os.kill(os.getpid(), signal.SIGINT))"
    done = finish(code)
    assert done.returncode == 130 and done.stderr == "Stopped.\n"


@pytest.mark.parametrize("module", COMMANDS)
def test_a_reader_who_hangs_up_is_no_error_worth_a_traceback(module):
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", module, *COMMANDS[module]]
        done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr


def test_every_command_ends_through_the_console():
    """tools.deprecations runs inside every kernel, and utils.colab before there is a package."""
    files = [*ROOT.glob("utils/*.py"), *ROOT.glob("tools/*.py")]
    mains = {f.stem: f.read_text(encoding="utf-8").partition('if __name__ == "__main__":')[2] for f in files}
    mains = {name: end for name, end in mains.items() if end}
    assert {"doctor", "assets", "planner", "lessons", "stamp"} <= mains.keys()
    assert {name for name, end in mains.items() if "console.run(" not in end} <= {"colab", "migration"}


def test_the_console_serves_before_there_is_an_environment():
    code = "import sys; before = {*sys.modules}; import utils.console; print({*sys.modules} - before)"
    assert finish(code).stdout.strip() in ("{'utils', 'utils.console'}", "{'utils.console', 'utils'}")
