"""Make requirements.txt and requirements-dev.txt from pyproject.toml: `make pins`."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from utils import ROOT, console, files

HEAD = (
    "# Exact versions, made from pyproject.toml by `make pins`. torch's CUDA companions are left out:\n"
    "# they follow from whichever torch is installed.\n"
)
HEAD_DEV = (
    "# What the tests and the maintainers' verbs add, made with requirements.txt in one resolution by `make pins`.\n"
    "-r requirements.txt\n"
)
COMPANIONS = re.compile(r"^(nvidia-|cuda-|triton)")


def resolve(*options: str) -> list[str]:
    """The pins that uv finds for pyproject.toml, a line each."""
    command = "-m uv pip compile pyproject.toml --universal --python-version 3.11 --no-annotate --no-header"
    done = subprocess.run([sys.executable, *command.split(), *options], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr.strip()}\n\nNo file was changed: uv found no versions that fit together.")
    return done.stdout.splitlines()


def split(pins: list[str], learners: list[str]) -> tuple[list[str], list[str]]:
    """Each pin in one of two lists: of a package that is among the learners', and of what only maintainers need.

    The learners' own lines say which packages these are and no more: all versions come from `pins`.
    """
    names = {name(line) for line in learners}
    pins = [line for line in pins if not COMPANIONS.match(line)]
    return [line for line in pins if name(line) in names], [line for line in pins if name(line) not in names]


def name(pin: str) -> str:
    return pin.partition("==")[0]


def main() -> None:
    pins = resolve("--extra", "dev")
    with tempfile.TemporaryDirectory() as aside:
        everything = Path(aside) / "all.txt"
        everything.write_text("\n".join(pins) + "\n", encoding="utf-8")
        ours, dev = split(pins, resolve("--constraint", str(everything)))
    for file, head, lines in (("requirements.txt", HEAD, ours), ("requirements-dev.txt", HEAD_DEV, dev)):
        files.place_file(ROOT / file, head + "\n".join(lines) + "\n")
    print(f"requirements.txt: {len(ours)} pins, requirements-dev.txt: {len(dev)} more. Now: make setup test outputs")


if __name__ == "__main__":
    console.run(main)
