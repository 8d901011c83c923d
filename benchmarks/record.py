"""Keep recorded runs honest: each carries where, when and by which code it was made, and `stale` tells when that code moved on."""

import ast
import datetime
import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def code_hash(*objects) -> str:
    """A hash of what scripts (paths) and functions say: names and values, without comments, docstrings and layout."""
    told = []
    for item in objects:
        source = item.read_text() if isinstance(item, Path) else textwrap.dedent(inspect.getsource(item))
        told.append(repr(_shape(ast.parse(source))))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _shape(node):
    if isinstance(node, ast.AST):
        fields = []
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list) and value:
                first = value[0]
                if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                    value = value[1:]  # a docstring
            if value not in (None, [], ""):  # so that a new Python's empty fields change nothing
                fields.append((name, _shape(value)))
        return (type(node).__name__, *fields)
    return [_shape(item) for item in node] if isinstance(node, list) else node


def origin(code: str) -> dict:
    """What a record says of itself: versions, kind of machine (never its name), date, hash of the code."""
    packages = ("torch", "transformers", "peft", "numpy")
    return dict(
        date=datetime.date.today().isoformat(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        python=platform.python_version(),
        versions={name: version(name).split("+")[0] for name in packages},
        code=code,
    )


def write(name: str, record: dict) -> None:
    """Save a record as results/NAME.json, whole or not at all."""
    aside = RESULTS / f".{name}.{os.getpid()}"
    aside.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(aside, RESULTS / f"{name}.json")


_recomputed = set()


def _recompute(name: str, file: Path) -> None:
    """Run the script NAME from the start, in a process of its own; the old record stays if it fails."""
    old = file.with_suffix(".old")
    if file.exists():
        os.replace(file, old)
    try:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True, cwd=RESULTS.parent.parent)
        old.unlink(missing_ok=True)
        _recomputed.add(name)
    finally:
        if old.exists():
            os.replace(old, file)


def read(name: str) -> dict:
    """The record NAME; made anew first with COURSE_RECOMPUTE=1. FileNotFoundError with the command that makes it."""
    file = RESULTS / f"{name}.json"
    if os.environ.get("COURSE_RECOMPUTE") == "1" and name not in _recomputed:
        _recompute(name, file)
    if not file.exists():
        raise FileNotFoundError(f"There is no record {name!r}; make it with `python -m benchmarks.{name}`.")
    return json.loads(file.read_text())
