"""Is this machine ready for the course? `python -m utils.doctor`, or `doctor.show(doctor.report())` in a notebook.

What it prints may be pasted anywhere: it names no folder, machine or user, and says the same from run to run.
"""

import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from utils import ROOT, SettingError, console, named_folder

MEMORY_GB, DISK_GB = 5, 2  # what the largest lesson (06, measured) and the set-up need
INSTALL = "Run `make setup`, or `python -m pip install -r requirements.txt` in the course's environment."
COLAB = "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


class Finding(NamedTuple):
    """One row. Status: ok; warn (the lessons run, but read the remedy); fail (they will not)."""

    status: str
    what: str
    found: str
    remedy: str = ""


def report() -> list[Finding]:
    """Look at everything the lessons depend on. Nothing is installed, fetched or built."""
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036  an older Python gets as far as this line
        remedy = "Install Python 3.11 or later, then run `make setup PYTHON=python3.12` with its name."
        return [Finding("fail", "Python", python, remedy)]
    rows = [Finding("ok", "Python", python)]
    for look in (_packages, _kernel, _shadow, _profile, _device, _memory, _home, _build, _assets, _four_bits):
        try:
            rows += look()
        except Exception as error:  # a broken package is a finding, not a crash
            status = "warn" if look is _four_bits else "fail"  # only some lessons quantise
            what = look.__name__.strip("_").replace("_", " ")
            if isinstance(error.__cause__ or error, SettingError):
                rows.append(Finding("fail", what, str(error), "Set that variable anew, then restart the kernel."))
            else:
                rows.append(Finding(status, what, f"{type(error).__name__}: {error}", INSTALL))
    return [row._replace(found=_anonymous(row.found)) for row in rows]


def show(rows: list[Finding]) -> None:
    """Print findings as an aligned table, below each what to do about it, and a verdict."""
    width = max(len(row.what) for row in rows)
    margin = " " * (width + 8)
    for row in rows:
        console.say(textwrap.fill(f"{row.status:<6}{row.what:<{width}}  {row.found}", 110, subsequent_indent=margin))
        if row.remedy:
            console.say(textwrap.fill("-> " + row.remedy, 110, initial_indent=margin, subsequent_indent=margin + "   "))
    failed, warned = (sum(row.status == status for row in rows) for status in ("fail", "warn"))
    verdict = f"To mend first: {failed}." if failed else "Ready: the lessons will run here."
    print(f"\n{verdict}" + (f" Worth knowing: {warned}." if warned else ""))


def _packages():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.version import Version

    from utils.colab import NOT_NEEDED

    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    tested = {pin.name: str(pin.specifier)[2:] for pin in pins if pin.marker is None or pin.marker.evaluate()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [Requirement(line) for line in project["dependencies"]]
    needed = [need for need in needed if not (COLAB and need.name in NOT_NEEDED)]
    rows = []
    for name, wanted in ((need.name, need.specifier) for need in needed):
        here = _version(name)
        if here is None:
            rows.append(Finding("fail", name, "not installed", INSTALL))
        elif not wanted.contains(here, prereleases=True):
            rows.append(Finding("fail", name, f"{here}, but the lessons need {wanted}", INSTALL))
        elif Version(here).public != tested[name]:  # public: without "+cpu" and the like
            rows.append(Finding("warn", name, f"{here}, tested with {tested[name]}", f"If a lesson fails: {INSTALL}"))
    rows = rows or [Finding("ok", "packages", f"all {len(needed)} at the tested versions")]
    torchao = _version("torchao")  # not the course's, but PEFT looks at it
    if torchao and Version(torchao) < Version("0.16"):
        found = f"{torchao}, and PEFT refuses to load beside one older than 0.16"
        rows.append(Finding("fail", "torchao", found, "Run `python -m pip uninstall -y torchao`."))
    return rows


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _kernel():
    if COLAB:
        return [Finding("ok", "kernel", "Colab's")]
    places = [Path(str(d.locate_file(""))).resolve() for d in metadata.distributions(name="lora-course")]
    if set(places) <= {ROOT}:  # found, if at all, only because we stand in the course's folder
        remedy = "Start with `make lab`; in an editor, choose the Python in the course's .venv as the kernel."
        return [Finding("warn", "kernel", "not the course's environment", remedy)]
    if "ipykernel" not in sys.modules:  # not in a notebook: which Python would JupyterLab start?
        from jupyter_client.kernelspec import KernelSpecManager

        python = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
        if python.is_absolute() and python.parent != Path(sys.executable).parent:
            remedy = "Run `python -m ipykernel install --sys-prefix` with the course's Python."
            return [Finding("warn", "kernel", "JupyterLab would start another environment's Python", remedy)]
    return [Finding("ok", "kernel", f"the course's environment, JupyterLab {metadata.version('jupyterlab')}")]


def _shadow():
    """Whose `utils` a lesson would import: asked of a Python of its own in the lessons' folder, for here ours comes first."""
    rows = []
    for name in () if COLAB else ("utils", "benchmarks"):
        find = f"import importlib.util as i; s = i.find_spec({name!r}); print(s.origin or [*s.submodule_search_locations][0])"
        command = [sys.executable, "-X", "utf8", "-c", find]
        done = subprocess.run(command, cwd=ROOT / "notebooks", capture_output=True, encoding="utf-8")
        if done.returncode == 0 and not Path(done.stdout.strip()).resolve().is_relative_to(ROOT / name):
            remedy = (
                f"In the folder notebooks, `python -c 'import {name}; print({name})'` tells which: unset PYTHONPATH if it leads "
                "there, or rename or uninstall that package, then restart the kernel."
            )
            rows.append(Finding("fail", name, "lessons would import another package of this name", remedy))
    return rows


def _profile():
    from utils import profiles

    name = os.environ.get("COURSE_PROFILE") or "cpu"
    if name not in profiles.PROFILES:
        remedy = f"Set COURSE_PROFILE to one of {', '.join(profiles.PROFILES)}, or leave it unset for cpu."
        return [Finding("fail", "profile", f"{name!r}, which does not exist", remedy)]
    if profiles.get().offline:
        return [Finding("ok", "profile", f"{name}: offline, no model hub is asked")]
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        remedy = "Unset HF_HUB_OFFLINE (and restart the kernel), or set COURSE_PROFILE=cpu."
        return [Finding("warn", "profile", f"{name}: loads from the model hub, but HF_HUB_OFFLINE forbids it", remedy)]
    return [Finding("ok", "profile", f"{name}: loads models and data from the hub")]


def _device():
    import torch

    from utils import training

    precision = training.precision()
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB, fast in {'bf16' if precision.get('bf16') else 'fp16'}"
        return [Finding("ok", "device", found)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"CPU, {cores} core{'s' * (cores != 1)}"
    if os.environ.get("COURSE_PROFILE") == "gpu":
        remedy = "Set COURSE_PROFILE=cpu, or choose a machine with an NVIDIA GPU."
        return [Finding("warn", "device", f"{found}; the gpu profile needs a GPU", remedy)]
    if not precision["bf16"]:
        remedy = "Nothing to mend, but training will take about twice the minutes that the lessons give."
        return [Finding("warn", "device", f"{found}, no fast bf16: training runs in fp32", remedy)]
    return [Finding("ok", "device", f"{found}, fast in bf16")]


def _memory():
    import psutil

    memory = psutil.virtual_memory()
    limit, used = _container()
    total = min(memory.total, limit)
    free = min(memory.available, limit - used) / 2**30
    if free >= MEMORY_GB:
        return [Finding("ok", "memory", f"{total / 2**30:.0f} GB, at least {MEMORY_GB} GB of it free")]
    remedy = f"The largest lesson needs about {MEMORY_GB} GB: close other programs and notebooks."
    status = "fail" if free < MEMORY_GB / 2 else "warn"
    return [Finding(status, "memory", f"{free:.1f} GB free of {total / 2**30:.0f} GB", remedy)]


def _container(folder=Path("/sys/fs/cgroup")):
    """(bytes that a container may use, bytes that it uses), caches that can be dropped left out; (inf, 0) where there is no limit."""
    try:
        limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
        return limit, used - int(cached[1])
    except (OSError, ValueError, TypeError):  # no container, or "max"
        return math.inf, 0


def _home():
    try:
        writable = _writable(Path.home())
    except RuntimeError:
        remedy = "Set HOME to a folder that can be written: JupyterLab and other libraries keep their settings there."
        return [Finding("warn", "home", "this system names no home folder", remedy)]
    remedy = (
        "Make it writable, or set HOME to a folder that is: JupyterLab and other libraries keep their settings there."
    )
    return [] if writable else [Finding("warn", "home", "the home folder cannot be written", remedy)]


def _build():
    if _writable(named_folder("COURSE_BUILD", "build")):
        return []
    remedy = "Make the course's folder writable, or point COURSE_BUILD to a folder that is, and COURSE_CACHE to one for the assets."
    return [Finding("fail", "build", "the folder that lessons write to cannot be written", remedy)]


def _writable(folder: Path) -> bool:
    """Whether a file can be made in the folder, or in what there is of the way to it; the file is gone at once."""
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _assets():
    from utils import assets

    folder = assets.cache_dir().absolute()
    bad = [name for name in assets.ASSETS if not assets._intact(folder / name, name)]
    rows = [Finding("ok", "assets", f"{', '.join(assets.ASSETS)}: present and intact")]
    if bad:
        found = ", ".join(f"{name} {'damaged' if (folder / name).exists() else 'missing'}" for name in bad)
        rows = [Finding("fail", "assets", found, "Run `python -m utils.assets` once, with a network.")]
    if bad and not _writable(folder):
        remedy = "Make that folder writable, or point COURSE_CACHE to one that is."
        rows.append(Finding("fail", "disk", "the folder for the assets cannot be written", remedy))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free >= DISK_GB:
        return [*rows, Finding("ok", "disk", f"at least {DISK_GB} GB free where the assets live")]
    remedy = f"Free about {DISK_GB} GB there, or point COURSE_CACHE to a folder on a disk with room."
    return [*rows, Finding("fail" if bad else "warn", "disk", f"{free:.1f} GB free where the assets live", remedy)]


def _four_bits():
    import logging

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it looks for a kernel on a hub
    import torch
    from bitsandbytes.nn import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(), torch.inference_mode():
        layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
        finite = bool(layer(torch.ones(1, 64, device=device)).isfinite().all())
    if layer.weight.dtype != torch.uint8 or not finite:
        raise RuntimeError("bitsandbytes did not quantise a layer, or computed nonsense with it")
    return [Finding("ok", "four bits", "bitsandbytes quantises and computes here")]


def _anonymous(text: str) -> str:
    """One short line without a folder of this machine in it."""
    for known in sorted({str(ROOT), sys.prefix, os.path.expanduser("~")}, key=len, reverse=True):
        text = text.replace(known, "...") if len(known) > 1 else text
    return textwrap.shorten(re.sub(r"(?<![\w.])(?:[A-Za-z]:)?[\\/]+(?:[^\s\\/'\":,;]+[\\/])+", ".../", text), 200)


def main() -> int:
    rows = report()
    show(rows)
    return int(any(row.status == "fail" for row in rows))


if __name__ == "__main__":
    console.run(main)
