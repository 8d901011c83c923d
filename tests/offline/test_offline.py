"""With the network cut, a fresh copy of the course sets itself up from the prefetched folder, and its tests pass.

`make test-offline`; the folder is build/prefetch, or the one named by OFFLINE. It takes as long as `make setup` and `make test`;
`pytest tests/offline -k "not suite"` leaves the second out.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tools import prefetch
from utils import ROOT

# A network of its own that holds nothing but itself: Jupyter's kernels are reached through the loopback.
NAMESPACES = (["unshare", "--net"], ["unshare", "--map-root-user", "--net"])
LOOPBACK = 'ip link set lo up && exec "$@"'
NOWHERE = "http://127.0.0.1:9"  # nobody listens on the discard port
PROXIES = {name: NOWHERE for kind in ("http", "https", "all") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())}


@pytest.fixture(scope="module")
def cut() -> list[str]:
    """What to put before a command to cut its network; nothing where this system cannot, and proxies lead nowhere instead."""
    for namespace in NAMESPACES:
        prefix = [*namespace, "sh", "-c", LOOPBACK, "sh"]
        try:
            if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
                return prefix
        except FileNotFoundError:
            break
    print("This system has no network namespaces for us: the network is cut by proxies that lead nowhere.")
    return []


@pytest.fixture(scope="module")
def home():
    """A folder for the copy of the course and everything that it writes."""
    with tempfile.TemporaryDirectory(prefix="course-offline-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def run(cut, home):
    """Run a command in the copy: no network, nothing of the caller's settings, caches or environment."""
    env = {key: os.environ[key] for key in ("LANG", "LC_ALL", "TERM", "SYSTEMROOT") if key in os.environ}
    own = Path(sys.prefix).resolve()
    path = [
        p for p in os.environ["PATH"].split(os.pathsep) if own not in [Path(p).resolve(), *Path(p).resolve().parents]
    ]
    env |= {"PATH": os.pathsep.join(path), "HOME": str(home), "PIP_CONFIG_FILE": os.devnull}
    env |= {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_RETRIES": "1"}
    if not cut:
        env |= PROXIES | {
            "no_proxy": "127.0.0.1,localhost",
            "NO_PROXY": "127.0.0.1,localhost",
            "PIP_INDEX_URL": NOWHERE,
        }

    def run(*command, **options):
        return subprocess.run([*cut, *map(str, command)], env=env, cwd=home / "course", text=True, **options)

    return run


@pytest.fixture(scope="module")
def folder() -> Path:
    """The prefetched folder, fit for the Python that runs this."""
    folder = Path(os.environ.get("OFFLINE") or prefetch.FOLDER).expanduser().absolute()
    try:
        prefetch.use(folder)
    except prefetch.PrefetchError as error:
        pytest.fail(f"{error} Run `make prefetch` first.", pytrace=False)
    return folder


@pytest.fixture(scope="module")
def copy(home) -> Path:
    """A clone of the last commit with the changes of the working tree on top, so that they can be tried before a commit."""
    copy = home / "course"
    subprocess.run(["git", "clone", "--quiet", ROOT, copy], check=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        else:  # deleted, and not yet committed
            (copy / name).unlink(missing_ok=True)
    assert not (copy / ".venv").exists() and not (copy / "data" / "cache").exists()
    return copy


@pytest.fixture(scope="module")
def ready(copy, folder, run) -> Path:
    """The copy, set up with the network cut."""
    done = run("make", "setup", f"OFFLINE={folder}", f"PYTHON={python()}")
    assert done.returncode == 0
    return copy


def python() -> Path:
    """The interpreter that the course's environment was made from; so was the folder."""
    return Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")


CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)"
OWN_LOOPBACK = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname(), 5)"


def test_the_cut_is_real(copy, cut, run):
    """What is reached from outside is not reached from inside, and pip finds no index; a kernel finds itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        subprocess.run([sys.executable, "-c", CONNECT, port], check=True)  # the planted connection works, uncut
        if cut:
            inside = run(sys.executable, "-c", CONNECT, port, capture_output=True)
            assert inside.returncode and "ConnectionRefusedError" in inside.stderr, inside.stderr
            outward = run(sys.executable, "-c", CONNECT.replace("127.0.0.1", "192.0.2.1"), port, capture_output=True)
            assert "Network is unreachable" in outward.stderr, outward.stderr
    assert run(sys.executable, "-c", OWN_LOOPBACK).returncode == 0
    got = run(
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-d", "got", "idna", capture_output=True
    )
    assert got.returncode and "No matching distribution found" in got.stderr, got.stdout + got.stderr
    assert "Retrying" in got.stderr, "pip did not even try to connect, so nothing is proved"


def test_a_folder_that_cannot_be_used_is_told_before_anything_is_made(copy, run, tmp_path):
    done = run("make", "setup", f"OFFLINE={tmp_path}", f"PYTHON={python()}", capture_output=True)
    assert done.returncode and "holds no packages of the course" in done.stderr and "Traceback" not in done.stderr
    assert not (copy / ".venv").exists()


def test_set_up(ready, run):
    done = run(ready / ".venv" / "bin" / "python", "-m", "utils.doctor", capture_output=True)
    assert done.returncode == 0 and "Ready: the lessons will run here." in done.stdout, done.stdout + done.stderr
    assert "all" in done.stdout and "at the tested versions" in done.stdout, done.stdout
    status = subprocess.run(["git", "status", "--porcelain", "--ignored"], cwd=ready, capture_output=True, text=True)
    made = {line[3:] for line in status.stdout.splitlines() if line.startswith("!!")}
    assert made <= {".venv/", "data/cache/", "lora_course.egg-info/", "utils/__pycache__/", "tools/__pycache__/"}, made


def test_suite(ready, run, folder):
    """`make test`, in the copy; what it adds to the learners' packages comes from the folder too."""
    assert run("make", "test", f"OFFLINE={folder}", f"PYTHON={python()}").returncode == 0
