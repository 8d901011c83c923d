"""The folder for a room without a network: right for each system, whole, made once; and unfit ones are told in a sentence.

pip fetches from a local folder of tiny wheels here, so nothing needs a network; tests/offline does it all for real.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools import prefetch
from utils import ROOT, assets, files

PINS = [
    "plain==1.0",
    "native==1.0",
    "heavy==2.0",
    "winonly==0.4 ; sys_platform == 'win32'",
    "late==1.0 ; python_full_version < '3.11.5'",
    "late==2.0 ; python_full_version >= '3.11.5'",
]
WHEELS = {  # what the index holds: each with lines of its metadata
    "plain-1.0-py3-none-any": [],
    "native-1.0-cp311-cp311-manylinux_2_17_x86_64": [],
    "native-1.0-cp311-cp311-manylinux_2_39_x86_64": [],  # for newer systems than we promise
    "native-1.0-cp312-cp312-win_amd64": [],
    "native-1.0-cp312-cp312-macosx_13_0_arm64": [],
    "heavy-2.0-py3-none-any": [  # like torch: what it needs on Linux is not pinned
        "Requires-Dist: plain",
        'Requires-Dist: kit[fast]==1.0 ; platform_system == "Linux" and platform_machine == "x86_64"',
        'Requires-Dist: unwanted ; extra == "all"',
    ],
    "kit-1.0-py3-none-any": [
        "Provides-Extra: fast",
        'Requires-Dist: motor==1.5 ; extra == "fast"',
        'Requires-Dist: unwanted ; extra == "slow"',
    ],
    "motor-1.5-py3-none-manylinux_2_27_x86_64": ["Requires-Dist: heavy"],  # in a circle
    "winonly-0.4-py2.py3-none-any": [],
    "late-1.0-py3-none-any": [],
    "late-2.0-py3-none-any": ["Requires-Python: >=3.11.5"],
}
LINUX = {
    "plain-1.0-py3-none-any",
    "native-1.0-cp311-cp311-manylinux_2_17_x86_64",
    "heavy-2.0-py3-none-any",
    "kit-1.0-py3-none-any",
    "motor-1.5-py3-none-manylinux_2_27_x86_64",
    "late-1.0-py3-none-any",
    "late-2.0-py3-none-any",
}
WINDOWS = {
    "plain-1.0-py3-none-any",
    "native-1.0-cp312-cp312-win_amd64",
    "heavy-2.0-py3-none-any",
    "winonly-0.4-py2.py3-none-any",
    "late-2.0-py3-none-any",
}
DATA = "packages/demo_data-1.0-py3-none-any.whl"


def make_wheel(folder: Path, name: str, metadata) -> Path:
    project, version, *_ = name.split("-")
    info = f"{project}-{version}.dist-info"
    wheel = folder / f"{name}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        head = ["Metadata-Version: 2.1", f"Name: {project}", f"Version: {version}", *metadata]
        archive.writestr(f"{info}/METADATA", "\n".join(head) + "\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {name.split('-', 2)[2]}\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("an index")
    for name, metadata in WHEELS.items():
        make_wheel(folder, name, metadata)
    make_wheel(folder, "demo_data-1.0-py3-none-any", [])
    return folder


def make_course(index: Path, folder: Path, patch) -> None:
    """A course of a few tiny packages and one asset, on a machine whose pip sees the local index and nothing else."""
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        patch.delenv(key)
    patch.setenv("PIP_CONFIG_FILE", os.devnull)
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", index.as_uri())
    patch.setenv("COURSE_CACHE", str(folder / "cache"))
    pins = folder / "assets.txt"
    pins.write_text(f"demo-data==1.0 --hash=sha256:{files.sha256(index / Path(DATA).name)}\n")
    patch.setattr(assets, "PINS", pins)
    patch.setattr(assets, "ASSETS", {"demo": ("demo-data", 1000, 1000, 1, None)})
    patch.setattr(prefetch, "_pins", lambda: PINS)
    patch.setattr(prefetch, "here", lambda: "linux-3.11")


@pytest.fixture
def course(index, tmp_path, monkeypatch):
    make_course(index, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def filled(index, tmp_path_factory):
    """A folder filled for two systems, once for all tests."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        make_course(index, folder, patch)
        assert main("--to", folder / "stick", "--for", "linux-3.11,windows-3.12") == 0
    return folder / "stick"


@pytest.fixture
def folder(filled, course, tmp_path):
    """A copy of it; its name has a space, as that of a memory stick may."""
    return shutil.copytree(filled, tmp_path / "my stick")


def main(*arguments) -> int:
    before = sys.argv
    sys.argv = ["prefetch", *map(str, arguments)]
    try:
        return prefetch.main()
    finally:
        sys.argv = before


def sentence(capsys) -> str:
    """What was said to the user: one line."""
    said = capsys.readouterr().err.strip()
    assert said and "\n" not in said, said
    return said


def wheels_for(folder, name):
    record = json.loads((folder / f"{name}.json").read_text())
    return {Path(file).stem for file in record["files"] if file.startswith("wheels/")}


# --- what belongs into it ---


def test_each_system_gets_what_it_needs(folder):
    assert wheels_for(folder, "linux-3.11") == LINUX
    assert wheels_for(folder, "windows-3.12") == WINDOWS
    assert {file.stem for file in (folder / "wheels").iterdir()} == LINUX | WINDOWS
    assert (folder / DATA).exists()
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.txt",
        "linux-3.11.json",
        "packages",
        "wheels",
        "windows-3.12.json",
    ]
    readme = (folder / "README.txt").read_text()
    assert "make setup OFFLINE=FOLDER" in readme and "py -3.12 -m venv .venv" in readme
    assert "Python 3.11; 0 MB" in readme and str(folder) not in readme


def test_pip_would_judge_markers_by_the_python_that_runs_it(course, tmp_path):
    """The reason why `choose` evaluates them itself. If this fails, pip has learnt it, and `choose` could be shorter."""
    other, platform = ("linux", "win_amd64") if sys.platform == "win32" else ("win32", "manylinux2014_x86_64")
    (tmp_path / "r.txt").write_text(
        f"winonly==0.4 ; sys_platform != '{other}'\nplain==1.0 ; sys_platform == '{other}'\n"
    )
    platform = "win_amd64" if other == "win32" else platform
    command = f"-m pip download --no-deps --only-binary=:all: --platform {platform} -r r.txt -d got"
    done = subprocess.run([sys.executable, *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert "Ignoring plain" in done.stdout + done.stderr
    assert [file.name for file in (tmp_path / "got").iterdir()] == ["winonly-0.4-py2.py3-none-any.whl"]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("system", prefetch.SYSTEMS)
def test_the_real_pins_on_every_system(system, python):
    from test_environment import DEV, LINES, SYSTEMS, pins

    name = {"linux": "Linux", "linux-arm": "Linux", "macos": "macOS", "windows": "Windows"}[system]
    theirs = dict(SYSTEMS[name], platform_machine="aarch64") if system == "linux-arm" else SYSTEMS[name]
    for environment in prefetch.environments(f"{system}-{python}"):
        _, wanted = prefetch.choose(prefetch._pins(), [], f"{system}-{python}", environment)
        full = environment["python_full_version"]
        expected = pins(LINES + DEV, **theirs, python_version=python, python_full_version=full)
        assert {r.name: str(r.specifier) for r in map(Requirement, wanted)} == {
            k: f"=={v}" for k, v in expected.items()
        }
    assert ("colorama==0.4.6" in wanted) == (system == "windows")
    assert ("appnope==1.0.0" in wanted) == (system == "macos")


def test_tags_of_the_systems():
    assert prefetch.platforms("windows") == ["win_amd64"]
    assert {"macosx_14_0_arm64", "macosx_11_0_universal2"} <= set(prefetch.platforms("macos"))
    assert prefetch.platforms("linux")[0] == "manylinux_2_28_x86_64"
    assert {"manylinux2014_aarch64", "manylinux_2_17_aarch64"} <= set(prefetch.platforms("linux-arm"))


def test_of_two_builds_the_local_version_is_taken(index, tmp_path):
    """torch 2.13.0+cpu beside torch 2.13.0: pip takes the first, and so must we."""
    builds = [make_wheel(tmp_path, f"heavy-2.0{local}-py3-none-any", []) for local in ("", "+cpu")]
    chosen, lacking = prefetch.choose(["heavy==2.0"], builds, "linux-3.11", prefetch.environments("linux-3.11")[0])
    assert chosen == [builds[1]] and not lacking


# --- made once, and whole ---


def test_a_second_time_fetches_nothing(folder, monkeypatch, capsys):
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.whl")}

    def never(*_args, **_kwargs):
        raise AssertionError("something was fetched again")

    monkeypatch.setattr(prefetch.subprocess, "run", never)  # nor the asset, whose cache is empty
    assert main("--to", folder) == 0
    assert "7 wheels, 0 MB; 0 MB of it fetched now" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.whl")} == before
    assert wheels_for(folder, "windows-3.12") == WINDOWS, "the other system stays"


def test_damaged_and_cut_files_are_fetched_again(folder):
    files = [folder / "wheels" / "plain-1.0-py3-none-any.whl", folder / DATA]
    whole = [file.read_bytes() for file in files]
    for file, spoilt in zip(files, (whole[0][:-10], whole[1].replace(b"Name", b"Mane")), strict=True):
        file.write_bytes(spoilt)
    assert main("--to", folder) == 0
    assert [file.read_bytes() for file in files] == whole


def test_wheels_of_former_pins_go_and_what_is_not_ours_stays(folder, monkeypatch):
    (folder / "wheels" / "mine-1.0-py3-none-any.whl").write_bytes(b"somebody's")
    monkeypatch.setattr(prefetch, "_pins", lambda: [line for line in PINS if "heavy" not in line])
    assert main("--to", folder, "--for", "linux-3.11") == 0
    left = {file.stem for file in (folder / "wheels").iterdir()}
    assert left == (LINUX - {"kit-1.0-py3-none-any", "motor-1.5-py3-none-manylinux_2_27_x86_64"}) | WINDOWS | {
        "mine-1.0-py3-none-any"
    }, "heavy is still Windows'"


def test_what_another_system_lacks_or_a_stranger_left_is_no_matter(folder, capsys):
    (folder / "wheels" / "winonly-0.4-py2.py3-none-any.whl").unlink()
    for stranger in ("package.json", "notes-3.json"):
        (folder / stranger).write_text("{}")
    assert main("--to", folder, "--for", "linux-3.11") == 0
    assert capsys.readouterr().err == ""
    assert main("--use", folder) == 0
    assert main("--to", folder, "--for", "windows-3.12") == 0
    assert wheels_for(folder, "windows-3.12") == WINDOWS <= {file.stem for file in (folder / "wheels").iterdir()}


def test_the_folder_may_lie_on_another_disk_than_the_cache(course, tmp_path, monkeypatch):
    """A file is moved from where it was fetched: that works within one disk only."""
    real, moves = os.replace, []

    def replace(source, target):
        moves.append((Path(source), Path(target)))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "stick").mkdir()
    prefetch._packages(tmp_path / "stick", tmp_path / "stick")
    assert len(moves) >= 2
    for source, target in moves:
        assert ("stick" in source.parts) == ("stick" in target.parts), (source, target)


def test_nothing_half_fetched_is_kept(course, tmp_path, monkeypatch, capsys):
    """pip brings some wheels and then stops; an earlier run was killed."""
    folder = tmp_path / "stick"
    (folder / f".prefetch.{'0' * 24}.tmp").mkdir(parents=True)
    real = subprocess.run

    def stops(command, **options):
        got = Path(command[-1])
        if "download" in command and got.name == "got" and "--no-deps" in command and "--only-binary=:all:" in command:
            got.mkdir()
            (got / "plain-1.0-py3-none-any.whl").write_bytes(b"half")
            return subprocess.CompletedProcess(command, 2, stderr="connection broken by ReadTimeoutError\nERROR: x")
        return real(command, **options)

    monkeypatch.setattr(prefetch.subprocess, "run", stops)
    assert main("--to", folder) == 1
    assert sentence(capsys).startswith("linux-3.11: no package index could be reached; connect to a network")
    assert {path.name for path in folder.rglob("*")} == {"packages", "wheels", Path(DATA).name}
    monkeypatch.setattr(prefetch.subprocess, "run", real)
    assert main("--to", folder) == 0 and wheels_for(folder, "linux-3.11") == LINUX


# --- nothing that is not ours is deleted, overwritten or installed ---


def everything(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def lists(folder, file, sha256="0" * 64):
    """Add a file to the record of linux-3.11."""
    record = json.loads((folder / "linux-3.11.json").read_text())
    record["files"][file] = sha256
    (folder / "linux-3.11.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "file",
    [
        "../victim",
        "../victim.whl",
        "{root}/victim.whl",
        "wheels/../../victim.whl",
        "wheels\\..\\victim.whl",
        "C:victim.whl",
    ]
    + [
        "victim.whl",
        "wheels/victim",
        "wheels/.victim.whl",
        "wheels/sub/victim.whl",
        "other/victim.whl",
        "",
        "wheels/\nv.whl",
    ],
)
def test_a_record_with_a_name_that_was_never_written_is_refused(folder, tmp_path, capsys, file):
    for victim in (tmp_path / "victim", tmp_path / "victim.whl", folder / "victim.whl"):
        victim.write_text("somebody's")
    lists(folder, file.format(root=tmp_path), files.sha256(tmp_path / "victim"))
    before = everything(tmp_path)
    for arguments in (
        ("--to", folder, "--for", "linux-3.11"),
        ("--to", folder, "--for", "windows-3.12"),
        ("--use", folder),
    ):
        capsys.readouterr()
        assert main(*arguments) == 1
        assert "linux-3.11.json lists" in (said := sentence(capsys)) and "delete that record" in said
    assert everything(tmp_path) == before


def test_only_a_file_with_the_recorded_hash_is_deleted(folder):
    mine, ours = (folder / "wheels" / f"{name}-1.0-py3-none-any.whl" for name in ("mine", "former"))
    mine.write_bytes(b"somebody's, under a name that was ours")
    ours.write_bytes(b"ours, of older pins")
    lists(folder, "wheels/mine-1.0-py3-none-any.whl")
    lists(folder, "wheels/former-1.0-py3-none-any.whl", files.sha256(ours))
    assert main("--to", folder) == 0
    assert mine.exists() and not ours.exists()


STRANGE = {
    "a build tag": "wheels/plain-1.0-1-py3-none-any.whl",
    "a local version": "wheels/plain-1.0+mine-py3-none-any.whl",
    "spelt otherwise": "packages/Plain-1.0.0-py3-none-any.whl",
    "a source archive": "wheels/plain-v1.00.tar.gz",
    "the asset": "packages/demo_data-1.0-2-py3-none-any.whl",
    "another tag": "wheels/kit-1.0-py311-none-any.whl",
}


@pytest.mark.parametrize("file", STRANGE.values(), ids=STRANGE)
def test_a_wheel_that_pip_might_take_for_ours_is_refused_by_name(folder, capsys, file):
    (folder / file).write_bytes(b"somebody's")
    before = everything(folder)
    for arguments in (("--to", folder), ("--use", folder)):
        capsys.readouterr()
        assert main(*arguments) == 1
        assert f"{folder / file} was not put there" in (said := sentence(capsys)) and "move it away" in said
    assert everything(folder) == before


@pytest.mark.parametrize("file", ["packages/demo_data-3.3.2-py3-none-any.whl", "wheels/plain-2.0-py3-none-any.whl"])
def test_a_wheel_of_another_release_is_no_matter_and_stays(folder, file):
    (folder / file).write_bytes(b"somebody's")
    assert main("--to", folder) == main("--use", folder) == 0
    assert (folder / file).read_bytes() == b"somebody's"


def test_a_wheel_that_nobody_recorded_is_not_overwritten(course, tmp_path, capsys):
    for file in ("wheels/kit-1.0-py3-none-any.whl", "README.txt"):  # a companion is in no pin: it is met when fetched
        stranger = tmp_path / Path(file).stem / file
        stranger.parent.mkdir(parents=True)
        stranger.write_bytes(b"somebody's")
        assert main("--to", tmp_path / Path(file).stem) == 1
        assert str(stranger) in sentence(capsys) and stranger.read_bytes() == b"somebody's"


def test_a_second_prefetch_into_the_folder_is_told(folder, capsys):
    before = everything(folder)
    with files.locked(folder / "prefetch"):
        command = [sys.executable, "-m", "tools.prefetch", "--to", str(folder), "--for", "linux-3.11"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 1 and "is being written by another process" in done.stderr and "Traceback" not in done.stderr
    )
    assert everything(folder) == before


def test_what_a_killed_run_has_fetched_is_recorded_and_used(course, tmp_path, monkeypatch, capsys):
    """Killed at the last moment: the wheels are there, the record is not yet complete."""
    folder, real = tmp_path / "stick", prefetch._write

    def killed(folder, records, name, record):
        if record["course"]:
            raise KeyboardInterrupt
        real(folder, records, name, record)

    monkeypatch.setattr(prefetch, "_write", killed)
    assert main("--to", folder) == 130
    assert wheels_for(folder, "linux-3.11") == LINUX
    monkeypatch.setattr(prefetch, "_write", real)
    capsys.readouterr()
    assert main("--use", folder) == 1 and "another state of the course" in sentence(capsys)
    assert main("--to", folder) == 0 and "0 MB of it fetched now" in capsys.readouterr().out
    assert main("--use", folder) == 0


# --- errors in a sentence ---


@pytest.mark.parametrize(
    "wanted, said",
    [
        ("beos", "FOR=beos is no system the course knows: choose from linux, linux-arm, macos, windows"),
        ("windows-3", "FOR=windows-3 is no system"),
        ("macos-3.10", "FOR=macos-3.10: Python 3.10 is too old"),
        ("macos-3.11", "macos-3.11: the package index has no wheel of native==1.0 for it"),
    ],
)
def test_a_system_that_cannot_be_served(course, tmp_path, capsys, wanted, said):
    assert main("--to", tmp_path / "stick", "--for", wanted) == 1
    assert said in sentence(capsys)


def test_no_network(course, tmp_path, monkeypatch, capsys):
    """A real pip that really finds nobody at the other end."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(prefetch, "_pins", lambda: ["absent==1.0"])
    assert main("--to", tmp_path / "stick") == 1
    assert "no package index could be reached" in sentence(capsys)


def test_full_or_unwritable_disk(course, tmp_path, monkeypatch, capsys):
    assert "disk is full" in prefetch._why_pip_failed("linux-3.11", "OSError: [Errno 28] No space left on device")

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(prefetch.os, "replace", full)
    assert main("--to", tmp_path / "stick") == 1
    assert "disk is full" in sentence(capsys)
    (tmp_path / "file").write_text("")
    assert main("--to", tmp_path / "file") == 1
    assert "choose another folder with TO=folder" in sentence(capsys)


# --- using it ---


def test_use_gives_pip_what_it_needs(folder, tmp_path, monkeypatch, capsys):
    capsys.readouterr()
    assert main("--use", folder) == 0
    monkeypatch.setenv("PIP_FIND_LINKS", capsys.readouterr().out.strip())  # two addresses, spaces and all
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "-d",
        tmp_path / "got",
        "plain==1.0",
        "demo-data",
    ]
    subprocess.run(command, check=True)
    assert len(list((tmp_path / "got").iterdir())) == 2


def missing(folder):
    shutil.rmtree(folder)


def empty(folder):
    for path in folder.glob("*.json"):
        path.unlink()


def other_python(folder):
    (folder / "linux-3.11.json").rename(folder / "linux-3.13.json")


def other_system(folder):
    (folder / "linux-3.11.json").unlink()


def lacks_a_wheel(folder):
    (folder / "wheels" / "plain-1.0-py3-none-any.whl").unlink()


def damaged(folder):
    for wheel in ("plain-1.0", "heavy-2.0"):
        file = next((folder / "wheels").glob(f"{wheel}-*"))
        file.write_bytes(file.read_bytes()[:-1])


def lacks_an_asset(folder):
    (folder / DATA).unlink()


def older_pins(folder):
    record = folder / "linux-3.11.json"
    record.write_text(record.read_text().replace('"course": "', '"course": "0'))


def cut_record(folder):
    record = folder / "linux-3.11.json"
    record.write_text(record.read_text()[:100])


@pytest.mark.parametrize(
    "spoil, said",
    [
        (missing, "is not a folder: name the one that `make prefetch` has filled"),
        (empty, "holds no packages of the course"),
        (
            other_python,
            "this Python is linux-3.11: take a Python it is for, as in make setup PYTHON=python3.13, or run",
        ),
        (other_system, "is for windows-3.12, and this machine with this Python is linux-3.11: run `make prefetch"),
        (lacks_a_wheel, "lacks wheels/plain-1.0-py3-none-any.whl, or holds a damaged copy: copy the folder again"),
        (damaged, "and 1 more files"),
        (lacks_an_asset, f"lacks {DATA}"),
        (older_pins, "was made for another state of the course"),
        (cut_record, "was made for another state of the course"),
    ],
)
def test_a_folder_that_cannot_be_used(folder, capsys, spoil, said):
    spoil(folder)
    capsys.readouterr()
    assert main("--use", folder) == 1
    assert said in sentence(capsys)


def test_a_machine_that_is_not_served(monkeypatch):
    monkeypatch.setattr(prefetch.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(prefetch.platform, "machine", lambda: "x86_64")
    with pytest.raises(prefetch.PrefetchError, match="no packages for Darwin x86_64, only for linux, linux-arm, macos"):
        prefetch.here()


def test_the_check_needs_no_more_than_a_bare_python(tmp_path):
    """It runs before there is an environment: -S leaves out every installed package."""
    command = [sys.executable, "-S", "-m", "tools.prefetch", "--use", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "holds no packages of the course" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_tells_it_before_anything_is_made(tmp_path):
    command = ["make", "--dry-run", "setup", f"OFFLINE={tmp_path}", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "holds no packages of the course" in done.stderr
    assert "pip install" not in done.stdout
