"""The Makefile holds in a folder of any name, and what is typed after a verb is text and never a command."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv

import policy
import pytest

from utils import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make on this system")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FOLDERS = ["plain", "a b", "kürs", "it's", 'a "b" c', "$HOME `true` $(X)", "a;b&c#d%e"]
TELL = (
    "import json, os, sys; print(json.dumps([sys.argv[1:], *map(os.environ.get, ('PYTHONSTARTUP', 'COURSE_BUILD'))]))"
)
STUB = f"""#!/bin/sh
exec "{sys.executable}" -I -S -c "{TELL}" "$@"
"""


@pytest.fixture
def course(tmp_path):
    """course(name, ready): a folder of that name with the Makefile and a Python that tells what it was asked."""

    def make(name, ready=True):
        folder = tmp_path / name
        (folder / ".venv" / "bin").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", folder)
        for file in ("pyproject.toml", "requirements.txt", "requirements-dev.txt", "python3"):
            (folder / file).write_text(STUB)
        shutil.copy(folder / "python3", folder / ".venv" / "bin" / "python")
        (folder / ".venv" / "bin" / "python").chmod(0o755)
        (folder / "python3").chmod(0o755)
        for mark in ("ready", "ready-dev") if ready else ():
            (folder / ".venv" / mark).touch()
        return folder

    return make


def run(folder, *arguments, **env):
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "MAKE", "MFLAGS"))} | env
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=folder, capture_output=True, text=True, env=env
    )


def asked(done) -> list:
    """What the stubs were asked, in order."""
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_verb_runs_in_a_folder_of_any_name(course, name):
    folder = course(name)
    verbs = sorted({*policy.verbs(MAKEFILE)} - {"help", "lint-workflows"})
    calls = asked(run(folder, *verbs))
    assert {"jupyterlab", "ruff", "pytest", "utils.assets", "utils.doctor", "tools.lessons"} <= {c[0][1] for c in calls}
    (started,) = (call for call in calls if call[1])
    assert "--nbmake" in started[0]
    assert started[1:] == [str(folder / "tools" / "deprecations.py"), str(folder / "build" / "smoke")]
    assert run(folder, "help").stdout.count("\n") == len(policy.verbs(MAKEFILE))


@pytest.mark.parametrize("name", FOLDERS)
def test_set_up_in_a_folder_of_any_name_and_with_a_python_anywhere(course, name):
    folder = course(name, ready=False)
    calls = [call[0] for call in asked(run(folder, "lint", f"PYTHON={folder / 'python3'}"))]
    assert calls[1] == ["-m", "venv", ".venv"] and calls[0][0] == "-c"
    assert [call[-2:] for call in calls if "pip" in call] == [
        ["-r", "requirements.txt"],
        ["-e", "."],
        ["-r", "requirements-dev.txt"],
    ]
    assert run(folder, "lint").stdout.count("pip") == 0, "a second time nothing is installed"


def test_learners_verbs_leave_the_maintainers_tools_out(course):
    for verb in ("setup", "lab", "run", "outputs", "handout", "prefetch", "doctor", "stamp", "adapters"):
        folder = course(verb, ready=False)
        done = run(folder, verb, f"PYTHON={folder / 'python3'}")
        assert "requirements-dev.txt" not in done.stdout and (folder / ".venv" / "ready").exists(), verb
    for verb in ("test", "test-lessons", "test-browser", "test-colab", "test-offline", "lint", "site", "pins"):
        folder = course(verb, ready=False)
        done = run(folder, verb, f"PYTHON={folder / 'python3'}")
        assert "-r requirements-dev.txt" in done.stdout and (folder / ".venv" / "ready-dev").exists(), verb


PLANTED = [
    '"; touch planted; "',
    "'; touch planted; '",
    "$(shell touch planted)",
    "$(touch planted)",
    "`touch planted`",
]
PLANTED += [
    "x\ntouch planted\n",
    "x; touch planted #",
    "$$(touch planted)",
    "${shell touch planted}",
    "a b  c",
    "ä\\",
    "$HOME",
]


@pytest.mark.parametrize("text", PLANTED)
@pytest.mark.parametrize("by", ["argument", "environment"])
@pytest.mark.parametrize(
    "verb, variable, option", [("stamp", "REPO", None), ("prefetch", "TO", "--to"), ("prefetch", "FOR", "--for")]
)
def test_what_is_typed_after_a_verb_is_text(course, verb, variable, option, by, text):
    folder = course("a b")
    done = run(folder, verb, f"{variable}={text}") if by == "argument" else run(folder, verb, **{variable: text})
    (call,) = asked(done)
    given = call[0][call[0].index(option) + 1] if option else call[0][-1]
    assert given == text and not list(folder.rglob("planted"))


@pytest.mark.parametrize("text", PLANTED)
def test_a_python_or_a_folder_that_is_none_is_a_failure_and_no_command(course, text):
    folder = course("a b", ready=False)
    for arguments in ([f"PYTHON={text}"], [f"OFFLINE={text}", "PYTHON=false"], [f"OFFLINE={text}", f"PYTHON={text}"]):
        assert run(folder, "setup", *arguments).returncode
    done = run(folder, "setup", f"OFFLINE={text}", f"PYTHON={folder / 'python3'}")
    assert done.returncode == 0  # this Python takes any folder
    assert not list(folder.rglob("planted"))


def test_recipes_name_no_folder_and_no_script_of_the_environment():
    """A path in a recipe is read by the shell, and a script's first line by the system: both have rules of their own."""
    recipes = re.findall(r"(?m)^\t.*$", MAKEFILE)
    assert len(recipes) > 20
    for line in recipes:
        assert not re.search(r"\$\((CURDIR|PYTHON|OFFLINE|REPO|BIN|MAKEFILE_LIST)\)", line), line
        assert not re.search(r"\$\((TO|FOR)\)", line.replace("$(if $(TO),", "").replace("$(if $(FOR),", "")), line


def test_verbs_run_for_real_in_a_folder_with_spaces_and_letters(tmp_path):
    folder = tmp_path / "a b" / "kürs 'q'"
    for path in policy.committed():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    venv.create(folder / ".venv", symlinks=True)
    packages = sysconfig.get_path("purelib", vars=dict(base=str(folder / ".venv"), platbase=str(folder / ".venv")))
    with open(os.path.join(packages, "ours.pth"), "w") as file:  # the packages of this environment serve
        file.write(sysconfig.get_path("purelib") + "\n")
    for mark in ("ready", "ready-dev"):
        (folder / ".venv" / mark).touch()
    done = run(folder, "lint", "handout", "stamp", "REPO=ada/b.git")
    assert "'ada/b.git' is not a repository's name on GitHub" in done.stderr, done.stdout + done.stderr
    assert "learner copies are in build/handout/notebooks/" in done.stdout
    assert (folder / "build" / "handout" / "answers.md").stat().st_size > 10_000
