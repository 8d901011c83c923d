"""Prepare a Colab machine: run by the set-up cell before anything is imported, so only the standard library is used here.

What Colab brings (torch, numpy, pandas …) is held at its version; what is missing is installed within pyproject.toml's ranges.
"""

import io
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Parts of these are loaded before the first cell, or are compiled against each other. pyarrow is not among them: Colab's is too
# old for the datasets that TRL needs.
HELD = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "scipy",
    "ipywidgets",
    "ipykernel",
    "pillow",
    "matplotlib",
    "scikit-learn",
)
NOT_NEEDED = ("jupyterlab", "nbclient", "nbconvert", "nbstripout", "setuptools")  # Colab is the notebook server
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def needed() -> list[str]:
    """What pyproject.toml asks for beyond what Colab is known to bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [line for line in project["dependencies"] if name_of(line) not in (*HELD, *NOT_NEEDED)]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~ \[;]", requirement)[0]


def missing(requirements: list[str]) -> list[str]:
    """The requirements that the installed versions do not meet."""
    from pip._vendor.packaging.requirements import Requirement

    lacking = []
    for line in requirements:
        wanted = Requirement(line)
        try:
            here = version(wanted.name)  # None where an installation was cut short
            if not here or not wanted.specifier.contains(here, prereleases=True):
                lacking.append(line)
        except PackageNotFoundError:
            lacking.append(line)
    return lacking


def held() -> list[str]:
    """Constraints that keep what is there: `torch==2.11.0+cu128` and so on."""
    here = {d.metadata["Name"].lower(): d.version for d in distributions() if d.metadata["Name"]}
    return [f"{name}=={here[name]}" for name in HELD if name in here]


def torchao_in_the_way() -> bool:
    """Whether there is a torchao before 0.16: PEFT refuses to load beside it."""
    try:
        return tuple(int(n) for n in version("torchao").split(".")[:2]) < (0, 16)
    except PackageNotFoundError:
        return False


def pip(*arguments: str) -> None:
    """Run pip; what it says is shown only if it fails, for it complains of packages that the course never loads."""
    run = subprocess.run([*PIP, *arguments], capture_output=True, text=True, errors="replace")
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        sys.exit(f"pip could not {arguments[0]} what the course needs ({last}). Run the set-up cell again.")


def mend() -> None:
    """Bring back what a clone that was cut short has left out; what a reader has changed stays as it is."""

    def git(*arguments):
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)

    if not (ROOT / ".git").exists():
        return
    listed = git("ls-tree", "-r", "-z", "--name-only", "HEAD")
    absent = [name for name in listed.stdout.decode().split("\0") if name and not (ROOT / name).exists()]
    files = git("archive", "HEAD", *absent) if absent else listed
    if listed.returncode or files.returncode:
        sys.exit(f"The course in {ROOT} was only half fetched: remove that folder, then run the set-up cell again.")
    if absent:
        print(f"Bringing back {len(absent)} missing files of the course.", flush=True)
        with tarfile.open(fileobj=io.BytesIO(files.stdout)) as archive:
            archive.extractall(ROOT, filter="data")


def main() -> None:
    mend()
    if torchao_in_the_way():
        pip("uninstall", "--yes", "torchao")
    if lacking := missing(needed()):
        print("Installing", ", ".join(map(name_of, lacking)), "…", flush=True)
        with tempfile.TemporaryDirectory() as tmp:
            constraints = Path(tmp) / "held.txt"
            constraints.write_text("\n".join(held()) + "\n", encoding="utf-8")
            pip("install", "-c", str(constraints), *lacking)
    sys.exit(subprocess.run([sys.executable, "-m", "utils.assets"], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
