"""Make requirements.txt from pyproject.toml: `make pins`."""

import re
import subprocess
import sys

from utils import ROOT, files

HEAD = (
    "# Exact versions, made from pyproject.toml by `make pins`. torch's CUDA companions are left out:\n"
    "# they follow from whichever torch is installed.\n"
)
COMPANIONS = re.compile(r"^(nvidia-|cuda-|triton)")


def main() -> None:
    command = "-m uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate --no-header"
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=True)
    pins = [line for line in done.stdout.splitlines() if not COMPANIONS.match(line)]
    files.place_file(ROOT / "requirements.txt", HEAD + "\n".join(pins) + "\n")
    print(f"requirements.txt: {len(pins)} pins. Now: make setup test outputs")


if __name__ == "__main__":
    main()
