"""Prepare a Colab machine: run by the set-up cell before anything is imported, so only the standard library is used here.

What Colab brings (torch, numpy, pandas …) is held at its version; what is missing is installed within pyproject.toml's ranges.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELD = (
    "torch",
    "numpy",
    "pandas",
    "scipy",
    "pyarrow",
    "ipywidgets",
    "ipykernel",
    "pillow",
    "matplotlib",
    "scikit-learn",
)
NOT_NEEDED = ("jupyterlab", "setuptools")  # Colab is the notebook server


def missing(requirements: list[str]) -> list[str]:
    """The requirements that the installed versions do not meet."""
    from pip._vendor.packaging.requirements import Requirement

    lacking = []
    for line in requirements:
        wanted = Requirement(line)
        try:
            if not wanted.specifier.contains(version(wanted.name), prereleases=True):
                lacking.append(line)
        except PackageNotFoundError:
            lacking.append(line)
    return lacking


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line: re.split(r"[<>=!~ \[]", line)[0] for line in project["dependencies"]}
    wanted = [line for line, name in names.items() if name not in (*HELD, *NOT_NEEDED)]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    try:
        if tuple(int(n) for n in version("torchao").split(".")[:2]) < (0, 16):
            subprocess.run([*pip, "uninstall", "--yes", "torchao"], check=True)  # peft refuses to load beside it
    except PackageNotFoundError:
        pass
    lacking = missing(wanted)
    if lacking:
        print("Installing", ", ".join(names[line] for line in lacking), "…", flush=True)
        held = {d.metadata["Name"].lower(): d.version for d in distributions() if d.metadata["Name"]}
        with tempfile.TemporaryDirectory() as tmp:
            constraints = Path(tmp) / "held.txt"
            constraints.write_text("".join(f"{name}=={held[name]}\n" for name in HELD if name in held))
            subprocess.run([*pip, "install", "-c", str(constraints), *lacking], check=True)
    subprocess.run([sys.executable, "-m", "utils.assets"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
