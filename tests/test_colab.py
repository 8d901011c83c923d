"""The set-up cell on Colab: lessons run from an empty folder, a second run does nothing, and failures are told in a sentence.

Here Colab's own packages are ours; `make test-colab` runs the same with Colab's versions.
"""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import colabsim
import nbformat
import pytest

from tools import lessons
from utils import ROOT, colab, doctor

RECORDED = dict(
    line.strip().split("==")
    for line in (ROOT / "tests" / "colab" / "packages.txt").read_text().splitlines()
    if not line.startswith("#")
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return colabsim.remote(tmp_path_factory.mktemp("remote") / "course")


def last_output(result) -> str:
    return "".join(o.get("text", "") for o in result.notebook.cells[-1].outputs)


@pytest.mark.parametrize("name", ["01", pytest.param("04", marks=pytest.mark.lesson)])
def test_a_lesson_runs_from_an_empty_folder(name, address, tmp_path):
    empty, folder = tmp_path / "content", tmp_path / "content" / "lora-course"
    empty.mkdir()
    env = colabsim.environment(address, folder)
    result = lessons.execute(colabsim.lesson(name), "smoke", empty, **env)
    assert not result.error, result.error
    said = last_output(result)
    assert f"from {folder / 'utils'}" in said
    assert float(re.search(r"second set-up: (\S+) s", said)[1]) < 2 and "Installing" not in said
    assert [p.name for p in empty.iterdir()] == ["lora-course"]
    changed = subprocess.run(["git", "-C", folder, "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert not changed.stdout


def set_up(tmp_path, **env):
    """The set-up cell alone; returns its result and all it printed."""
    notebook = nbformat.read(lessons.lessons(["01"])[0], as_version=4)
    notebook.cells = [notebook.cells[1]]
    result = lessons.execute(notebook, "smoke", tmp_path, PYTHONPATH="", COLAB_RELEASE_TAG="simulated", **env)
    return result, result.error + "".join(o.get("text", "") for o in result.notebook.cells[0].outputs)


def test_an_unstamped_copy_says_what_is_missing_and_clones_nothing(tmp_path):
    (cell,) = {lesson.cells[1].source for lesson in (nbformat.read(p, as_version=4) for p in lessons.lessons())}
    if not re.search(r'"COURSE_REPO", ""', cell):
        pytest.skip("this copy has its address")
    result, said = set_up(tmp_path, COURSE_DIR=str(tmp_path / "lora-course"))
    assert re.search("SystemExit.*no public address yet: set COURSE_REPO", said) and result.error
    assert not list(tmp_path.iterdir())


def test_a_wrong_address_is_told_in_a_sentence_and_leaves_nothing(tmp_path):
    nowhere = (tmp_path / "nowhere").as_uri()
    result, said = set_up(tmp_path, COURSE_DIR=str(tmp_path / "lora-course"), COURSE_REPO=nowhere)
    assert re.search(f"SystemExit.*could not be fetched from {nowhere}", said) and result.error
    assert not list(tmp_path.iterdir())


def test_a_failing_preparation_stops_the_lesson(address, tmp_path, capfd):
    """Here the cache's place is a file, so that no asset can be had."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "lora-course"
    result, said = set_up(
        tmp_path, COURSE_DIR=str(folder), COURSE_REPO=address, COURSE_CACHE=str(tmp_path / "file"), PIP_NO_INDEX="1"
    )
    assert re.search(r"SystemExit.*could not be prepared \(the reason is above\)", said) and result.error
    assert "point COURSE_CACHE to a folder that can" in capfd.readouterr().err + said


# --- a second run mends ---


@pytest.fixture
def cut_short(tmp_path, monkeypatch):
    """A clone that lacks half of its files, and in which a reader has changed one."""
    source = tmp_path / "source"
    for name in ("a.txt", "docs/größe b.md", "utils/colab.py", "utils/z.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    git = ["git", "-c", "user.name=A Reader", "-c", "user.email=reader@example.org", "-C", source]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *command], check=True)
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", source.as_uri(), tmp_path / "clone"], check=True)
    clone = tmp_path / "clone"
    (clone / "utils" / "z.py").unlink()
    shutil.rmtree(clone / "docs")
    (clone / "a.txt").write_text("mine")
    monkeypatch.setattr(colab, "ROOT", clone)
    return clone


@pytest.mark.parametrize("index", ["whole", "none", "locked"])
def test_files_that_a_clone_left_out_come_back(cut_short, index, capsys):
    """Where git was killed, its index may be absent, or locked for good."""
    if index != "whole":
        (cut_short / ".git" / "index").rename(cut_short / ".git" / ("index.lock" if index == "locked" else "gone"))
    colab.mend()
    assert "Bringing back 2 missing files" in capsys.readouterr().out
    assert {name: (cut_short / name).read_text() for name in ("a.txt", "docs/größe b.md", "utils/z.py")} == {
        "a.txt": "mine",
        "docs/größe b.md": "docs/größe b.md",
        "utils/z.py": "utils/z.py",
    }
    colab.mend()
    assert capsys.readouterr().out == ""


def test_a_clone_without_its_commit_is_told_in_a_sentence(cut_short):
    shutil.rmtree(cut_short / ".git" / "objects")
    with pytest.raises(
        SystemExit, match=r"was only half fetched: remove that folder, then run the set-up cell again\."
    ):
        colab.mend()


def test_a_course_without_git_is_left_alone(cut_short):
    shutil.rmtree(cut_short / ".git")
    colab.mend()
    assert not (cut_short / "docs").exists()


def test_a_package_whose_installation_was_cut_short_is_missing(monkeypatch):
    monkeypatch.setattr(colab, "version", lambda name: None if name == "trl" else "1.5")
    assert colab.missing(["trl>=1.0", "peft>=1.0", "gguf>=2"]) == ["trl>=1.0", "gguf>=2"]


# --- what is installed, and what is left alone ---


@pytest.fixture
def machine(monkeypatch):
    """Colab's recorded packages in place of ours; `pip` notes what it is asked for."""
    asked = []

    def version(name):
        if name.lower() not in RECORDED:
            raise PackageNotFoundError(name)
        return RECORDED[name.lower()]

    class Package:
        def __init__(self, name):
            self.metadata, self.version = {"Name": name}, RECORDED[name]

    def pip(*arguments):
        constraints = Path(arguments[2]).read_text().split() if arguments[0] == "install" else []
        asked.append((arguments, constraints))

    monkeypatch.setattr(colab, "version", version)
    monkeypatch.setattr(colab, "distributions", lambda: [Package(name) for name in RECORDED])
    monkeypatch.setattr(colab, "pip", pip)
    monkeypatch.setattr(colab, "mend", lambda: None)
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(colab.subprocess, "run", lambda *a, **k: asked.append(("assets", k["cwd"])) or done)
    return asked


def test_what_colab_lacks_is_installed_and_what_it_has_is_held(machine):
    with pytest.raises(SystemExit) as end:
        colab.main()
    assert end.value.code == 0
    (uninstall, _), (install, constraints), prepared = machine
    assert uninstall == ("uninstall", "--yes", "torchao")
    names = {colab.name_of(line) for line in install[3:]}
    assert {"trl", "bitsandbytes", "gguf", "transformers", "datasets", "peft"} <= names
    assert not names & {"torch", "numpy", "pandas", "tqdm", "psutil", "rich", "accelerate", "jupyterlab"}
    assert "torch==2.11.0" in constraints and "numpy==2.0.2" in constraints and "ipywidgets==7.7.1" in constraints
    assert not [line for line in constraints if line.startswith("pyarrow")], "TRL's datasets needs a newer one"
    assert prepared == ("assets", ROOT)


def test_nothing_is_installed_where_nothing_is_missing(machine, monkeypatch):
    monkeypatch.setattr(colab, "missing", lambda requirements: [])
    monkeypatch.setitem(RECORDED, "torchao", "0.16.0")
    with pytest.raises(SystemExit):
        colab.main()
    assert machine == [("assets", ROOT)]


def test_pip_failing_is_one_sentence(capfd):
    with pytest.raises(SystemExit) as end:
        colab.pip("install", "--no-index", "a-package-that-is-not-there")
    assert re.search(
        r"^pip could not install what the course needs \(.+\)\. Run the set-up cell again\.$", end.value.code
    )
    assert capfd.readouterr().err == ""


def test_colabs_versions_are_no_failure_to_the_doctor(machine, monkeypatch):
    """What is held stays below our pins, and must be within our ranges; what is installed is taken as ours."""
    installed = {colab.name_of(line) for line in colab.missing(colab.needed())}
    here = {name: version for name, version in RECORDED.items() if name not in {*installed, "torchao"}}
    ours = doctor._version
    monkeypatch.setattr(doctor, "COLAB", True)
    monkeypatch.setattr(doctor, "_version", lambda name: here.get(name) or (ours(name) if name in installed else None))
    rows = doctor._packages()
    assert rows and {row.status for row in rows} == {"warn"}, rows
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0" if name == "numpy" else ours(name))
    assert "fail" in {row.status for row in doctor._packages()}


# --- what the notebooks ask of Colab ---


@pytest.mark.parametrize("path", lessons.lessons(), ids=lambda path: path.stem)
def test_lessons_with_a_gpu_part_ask_for_a_t4(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    needs = "GPU: not needed" not in "".join(notebook["cells"][0]["source"])
    assert (notebook["metadata"].get("accelerator") == "GPU") is needs
    assert (notebook["metadata"].get("colab", {}).get("gpuType") == "T4") is needs


COLABS_SECRETS = """
import builtins, os, sys, types
given, home = sys.argv[1:]
os.environ.pop("HF_TOKEN", None)
os.environ["HF_HOME"] = home
if given == "environment":
    os.environ["HF_TOKEN"] = "hf_from_the_environment"
class Error(Exception): ...
class NotebookAccessError(Error): ...
class SecretNotFoundError(Error): ...
def get(name):
    if given == "nothing":
        raise SecretNotFoundError(name)
    return "hf_from_the_secrets"
def module(name, **contents):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)
    return sys.modules[name]
userdata = module("google.colab.userdata", get=get, NotebookAccessError=NotebookAccessError, SecretNotFoundError=SecretNotFoundError)
errors = module("google.colab.errors", Error=Error)
module("google", colab=module("google.colab", userdata=userdata, errors=errors))
builtins.get_ipython = lambda: "<google.colab._shell.Shell object>"
from huggingface_hub import get_token
print(get_token())
"""


@pytest.mark.parametrize(
    ("given", "token"),
    [("secret", "hf_from_the_secrets"), ("environment", "hf_from_the_environment"), ("nothing", "None")],
)
def test_a_token_comes_from_colabs_secrets_or_the_environment_and_is_never_required(given, token, tmp_path):
    """huggingface_hub looks in both by itself; here with stand-ins for Colab's modules, in a process of its own."""
    run = subprocess.run([sys.executable, "-c", COLABS_SECRETS, given, tmp_path], capture_output=True, text=True)
    assert run.stdout.strip() == token, run.stderr
