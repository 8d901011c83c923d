"""Everything for a room without a network, in one folder: `make prefetch`, there `make setup OFFLINE=folder`.

python -m tools.prefetch [--to build/prefetch] [--for linux,windows-3.12]     fetch; several systems share one folder
python -m tools.prefetch --use FOLDER     check it for this machine and print pip's PIP_FIND_LINKS
"""

from __future__ import annotations  # so that a Python too old for the course can be told so

import argparse
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# `--use` runs before there is an environment: at the top only the standard library
from utils import ROOT, assets, console, files

FOLDER = ROOT / "build" / "prefetch"
SYSTEMS = {  # name: (its values in the pins' markers, oldest release that the wheels are for)
    "linux": (dict(sys_platform="linux", platform_system="Linux", platform_machine="x86_64"), "Linux with glibc 2.28"),
    "linux-arm": (
        dict(sys_platform="linux", platform_system="Linux", platform_machine="aarch64"),
        "Linux on ARM with glibc 2.28",
    ),
    "macos": (dict(sys_platform="darwin", platform_system="Darwin", platform_machine="arm64"), "macOS 14"),
    "windows": (dict(sys_platform="win32", platform_system="Windows", platform_machine="AMD64"), "Windows 10"),
}


# The files that a record may list
_NAME = re.compile(r"(wheels|packages)/[A-Za-z0-9][\w.+!-]*\.(whl|zip|tar\.gz)", re.ASCII)


class PrefetchError(RuntimeError):
    """The folder cannot be filled or used; the message says why and what to do."""


# --- which wheels a machine needs ---


def here() -> str:
    """This machine as the folder names it: `linux-3.11`."""
    is_this = (platform.system(), platform.machine())
    for name, (markers, _) in SYSTEMS.items():
        if (markers["platform_system"], markers["platform_machine"]) == is_this:
            return f"{name}-{sys.version_info[0]}.{sys.version_info[1]}"
    raise PrefetchError(f"The course has no packages for {' '.join(is_this)}, only for {', '.join(SYSTEMS)}.")


def target(name: str) -> str:
    """`windows-3.12` for what may be typed: a system, with a Python or (then this one's) without."""
    match = re.fullmatch(rf"({'|'.join(SYSTEMS)})(?:-(3\.\d+))?", name)
    if not match:
        raise PrefetchError(
            f"FOR={name} is no system the course knows: choose from {', '.join(SYSTEMS)}, "
            "with a version of Python where it is not the one you use, as in FOR=windows-3.12."
        )
    python = match[2] or f"3.{sys.version_info[1]}"
    if int(python[2:]) < 11:
        raise PrefetchError(f"FOR={name}: Python {python} is too old, the course needs 3.11 or later.")
    return f"{match[1]}-{python}"


def platforms(system: str) -> list[str]:
    """The wheel tags that the system installs, best first."""
    from packaging import tags

    if system == "windows":
        return ["win_amd64"]
    if system == "macos":
        return list(tags.mac_platforms((14, 0), "arm64"))
    machine = SYSTEMS[system][0]["platform_machine"]
    older = ["manylinux2014", "manylinux2010", "manylinux1"]
    return [f"{kind}_{machine}" for kind in [f"manylinux_2_{n}" for n in range(28, 4, -1)] + older]


def environments(name: str) -> list[dict]:
    """The markers' values there, for the first and for a late release of that Python: some pins tell them apart."""
    system, python = name.rsplit("-", 1)
    fixed = dict(
        SYSTEMS[system][0],
        os_name="nt" if system == "windows" else "posix",
        implementation_name="cpython",
        platform_python_implementation="CPython",
        python_version=python,
    )
    return [
        dict(fixed, python_full_version=full, implementation_version=full) for full in (f"{python}.0", f"{python}.99")
    ]


def _requires(wheel: Path) -> list:
    """What a wheel's own metadata asks for."""
    from importlib.metadata import distributions

    from packaging.requirements import Requirement

    (inside,) = distributions(path=[str(wheel)])
    return [Requirement(line) for line in inside.requires or ()]


def choose(pins: list[str], wheels: list[Path], name: str, environment: dict) -> tuple[list[Path], list]:
    """The wheels that the pins and all they pull in come to there, and the requirements that no wheel meets.

    pip evaluates markers for the Python that runs it, whatever --platform says, so they are evaluated here. And pins
    alone are not enough: torch's companions on Linux are not pinned, they follow from torch's own metadata.
    """
    from packaging import tags
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename

    system, python = name.rsplit("-", 1)
    version, places = (3, int(python[2:])), platforms(system)
    fitting = {*tags.cpython_tags(version, platforms=places)}
    fitting |= {*tags.compatible_tags(version, f"cp3{version[1]}", places)}
    at_hand = {}
    for wheel in wheels:
        project, release, _, kinds = parse_wheel_filename(wheel.name)
        if kinds & fitting:
            at_hand.setdefault(project, []).append((release, wheel))

    chosen, lacking, seen = {}, {}, set()
    queue = [(Requirement(line), "") for line in pins]  # (requirement, the extra that asks for it)
    while queue:
        need, extra = queue.pop(0)
        if need.marker and not need.marker.evaluate({**environment, "extra": extra}):
            continue
        project = canonicalize_name(need.name)
        if project not in chosen:  # the pins come first, and what depends on them agrees with them
            found = [item for item in at_hand.get(project, ()) if need.specifier.contains(item[0], prereleases=True)]
            if not found:
                lacking.setdefault(project, f"{need.name}{need.specifier}")
                continue
            chosen[project] = max(found)[1]
        for extra in {"", *need.extras}:
            if (project, extra) not in seen:
                seen.add((project, extra))
                queue += [(further, extra) for further in _requires(chosen[project])]
    return list(chosen.values()), list(lacking.values())


# --- filling the folder ---


def prefetch(folder: Path, names: list[str]) -> None:
    """Bring `folder` to what machines like `names` need. What is there already, whole, is not fetched again.

    A file is recorded before it is put there, and only what is recorded, with its hash, is ever deleted.
    """
    for part in ("wheels", "packages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with files.scratch(folder / "prefetch", wait=0) as aside:
        records = {name: _read(folder / f"{name}.json") for name in _served(folder)}
        _look(folder, records)
        packages = _packages(folder / "packages", aside)
        whole = {}  # file in wheels/ as recorded: its hash
        for record in records.values():
            for file, sha256 in record["files"].items():
                if file not in whole and _is(folder / file, sha256):
                    whole[file] = sha256
        for name in names:
            former = records.get(name, dict(course="", files={}))

            def note(more, name=name, former=former):
                _only_ours(folder, records, more)
                _write(folder, records, name, dict(former, files={**records.get(name, former)["files"], **more}))

            needed = {**packages, **_wheels(folder, name, whole, aside, note)}
            _write(folder, records, name, dict(course=_course(), files=needed))
            recorded = {file for record in records.values() for file in record["files"]}
            for file, sha256 in former["files"].items():
                if file not in recorded and _is(folder / file, sha256):
                    (folder / file).unlink()  # of older pins, and ours
    files.place_file(folder / "README.txt", _readme(folder, records))


def _write(folder: Path, records: dict, name: str, record: dict) -> None:
    records[name] = dict(record, files=dict(sorted(record["files"].items())))
    files.place_file(folder / f"{name}.json", json.dumps(records[name], indent=1) + "\n")


def _look(folder: Path, records: dict) -> None:
    """PrefetchError where the folder holds what would be overwritten, or might be installed in the place of what is fetched."""
    readme = folder / "README.txt"
    if os.path.lexists(readme) and not (readme.is_file() and readme.read_bytes().startswith(README.encode())):
        raise PrefetchError(f"{readme} was not written by `make prefetch`: choose a folder of its own with TO=folder.")
    pins = [re.sub(r"==([^\s;]+).*", r"-\1", line) for line in _pins()]
    _only_ours(folder, records, [*pins, *(file for record in records.values() for file in record["files"])])


def _only_ours(folder: Path, records: dict, wanted) -> None:
    """PrefetchError where a file that no record knows is of the same release as a file or pin in `wanted`."""
    recorded = {file for record in records.values() for file in record["files"]}
    releases = {_release(name) for name in wanted}
    pinned = {assets._pin(package) for package, *_ in assets.ASSETS.values()}
    for part in ("wheels", "packages"):
        for file in sorted((folder / part).glob("[!.]*")):
            ours = f"{part}/{file.name}" in recorded or (part == "packages" and any(_is(file, pin) for pin in pinned))
            if not ours and _release(file.name) in releases:
                raise PrefetchError(
                    f"{file} was not put there by `make prefetch`, and pip might install it in the place of a package of "
                    "the course: move it away, and run the same command again."
                )


def _release(name: str) -> tuple:
    """(project, version) in the name of a wheel or an archive, in one spelling; local versions and builds are the same release."""
    stem = re.sub(r"\.(whl|zip|tar\.gz)$", "", name.rpartition("/")[2].lower())
    match = re.match(r"(.+?)-v?(\d[^-+]*)", stem)
    if not match:
        return (name,)
    return re.sub(r"[-_.]+", "-", match[1]), re.sub(r"(\.0*)+$", "", re.sub(r"(^|\.)0+(?=\d)", r"\1", match[2]))


def _wheels(folder: Path, name: str, whole: dict, aside: Path, note) -> dict:
    """{file: hash} of the wheels for one kind of machine; adds to `whole`, and tells note(), what it had to fetch."""
    pins = _pins()
    fetched, wanted = [], {}
    for environment in environments(name):
        tried = None
        while True:
            at_hand = [folder / file for file in whole if file.startswith("wheels/")]
            chosen, lacking = choose(pins, at_hand, name, environment)
            if not lacking:
                break
            if lacking == tried:
                raise PrefetchError(f"{name}: pip fetched {', '.join(lacking)}, but not for this system.")
            tried = lacking
            got = _download(lacking, name, environment["python_full_version"], aside)
            hashes = {f"wheels/{wheel.name}": files.sha256(wheel) for wheel in got}
            note(hashes)
            whole.update(hashes)
            fetched += [files.move_file(wheel, folder / "wheels" / wheel.name) for wheel in got]
        wanted.update({f"wheels/{wheel.name}": whole[f"wheels/{wheel.name}"] for wheel in chosen})
    print(f"{name}: {len(wanted)} wheels, {_mb(folder / file for file in wanted)}; {_mb(fetched)} of it fetched now.")
    return wanted


def _download(requirements: list[str], name: str, python: str, aside: Path) -> list[Path]:
    """Wheels for another machine, through pip and so with pip's own settings (proxy, mirror, certificate)."""
    system = name.rsplit("-", 1)[0]
    aside = Path(tempfile.mkdtemp(dir=aside))
    listed, got = aside / "requirements.txt", aside / "got"
    files.place_file(listed, "\n".join(requirements) + "\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=2"]
    command += ["--implementation=cp", f"--python-version={python}", *(f"--platform={p}" for p in platforms(system))]
    shown = 0

    def progress():
        nonlocal shown
        try:
            files = [f for f in aside.rglob("*") if f.is_file() and got not in f.parents]
            hundreds = sum(f.stat().st_size for f in files) // 100_000_000
        except OSError:  # pip has just moved a file
            hundreds = 0
        shown, before = max(hundreds, shown), shown
        return f"{shown}00 MB" if shown > before else "."

    with assets._ticking(f"{name}: fetching {len(requirements)} packages", progress):
        run = subprocess.run(
            [*command, "-r", listed, "-d", got],
            env=dict(os.environ, TMPDIR=str(aside), TEMP=str(aside), TMP=str(aside), PIP_DISABLE_PIP_VERSION_CHECK="1"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    if run.returncode:
        raise PrefetchError(_why_pip_failed(name, run.stderr))
    return list(got.iterdir())


def _why_pip_failed(name: str, error: str) -> str:
    """One sentence for what pip printed."""
    if re.search("No space left|not enough space", error):
        return _FULL
    if re.search(
        r"connection broken|NewConnectionError|timed out|ProxyError|resolution|unreachable|IncompleteRead", error
    ):
        return f"{name}: no package index could be reached; connect to a network and run the same command again."
    none = re.search("No matching distribution found for (.+)", error)
    if none:
        return (
            f"{name}: the package index has no wheel of {none[1].strip()} for it; if it is a very new Python or system, "
            "take an older one, for example FOR=linux-3.12."
        )
    last = (error.strip().splitlines() or ["pip gave no reason"])[-1]
    return f"{name}: pip could not fetch the packages ({last}); run the same command again."


_FULL = (
    "The disk is full; free some GB, or name a folder on another disk with TO=folder, and run the same command again."
)


def _packages(folder: Path, aside: Path) -> dict:
    """{file: hash} of the three asset packages, from the course's cache or fetched into it, copied to `folder`."""
    found = {}
    for name, (package, size, *_) in assets.ASSETS.items():
        sha256 = assets._pin(package)
        there = next((file for file in folder.iterdir() if _is(file, sha256)), None)
        if there is None:
            with assets._guarded(name), files.scratch(assets.cache_dir() / name) as own:
                source = assets._fetch(package, size, own)  # it moves the file into the cache: one disk
            shutil.copyfile(source, aside / source.name)
            there = files.move_file(aside / source.name, folder / source.name)
        found[f"packages/{there.name}"] = sha256
    print(f"models and data: {len(found)} packages, {_mb(folder.parent / file for file in found)}.")
    return found


def _pins() -> list[str]:
    """What learners and maintainers install: with both lists, a room without a network can run the tests too."""
    files = [ROOT / name for name in ("requirements.txt", "requirements-dev.txt")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "-r "))]


def _course() -> str:
    """A hash of what the folder is made from: the pins of packages and of assets."""
    text = "\n".join([*_pins(), assets.PINS.read_text(encoding="utf-8")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is(file: Path, sha256: str) -> bool:
    return file.is_file() and files.sha256(file) == sha256


def _served(folder: Path) -> list[str]:
    """The machines that the folder has a record for."""
    kinds = re.compile(rf"({'|'.join(SYSTEMS)})-3\.\d+")
    return sorted(path.stem for path in folder.glob("*.json") if kinds.fullmatch(path.stem))


def _read(record: Path) -> dict:
    """What a system's record says; an unreadable one counts as none. PrefetchError where it names what was never written."""
    try:
        known = files.read_json(record)
        course, listed = str(known["course"]), {str(file): str(sha256) for file, sha256 in known["files"].items()}
    except (KeyError, TypeError, AttributeError):
        return dict(course="", files={})
    for file, sha256 in listed.items():
        if not (_NAME.fullmatch(file) and re.fullmatch("[0-9a-f]{64}", sha256)):
            raise PrefetchError(
                f"{record} lists {file!r}, which `make prefetch` never writes: delete that record, and run `make prefetch` "
                "again where there is a network."
            )
    return dict(course=course, files=listed)


def _mb(files) -> str:
    return f"{sum(file.stat().st_size for file in files if file.exists()) / 1e6:,.0f} MB"


README = "The course on fine-tuning with LoRA, for machines without a network"


def _readme(folder: Path, records: dict) -> str:
    text = (
        f"{README}: its Python packages (wheels/), and its models\n"
        "and data (packages/). They belong to one state of the course, whose folder has to be copied too. Nothing here needs\n"
        "to be unpacked or started. In the course's folder, with this folder in place of FOLDER:\n"
    )
    for name, record in sorted(records.items()):
        system, python = name.rsplit("-", 1)
        lines = [line.format(python=python) for line in WINDOWS if system == "windows"] or ["make setup OFFLINE=FOLDER"]
        text += f"\n{name}: {SYSTEMS[system][1]} or later, with Python {python}; {_mb(folder / f for f in record['files'])}\n\n"
        text += "".join(f"    {line}\n" for line in lines)
    return text


WINDOWS = (  # for PowerShell, what `make setup OFFLINE=FOLDER` does elsewhere
    '$env:PIP_NO_INDEX = "1"; $env:PIP_FIND_LINKS = py -{python} -m tools.prefetch --use FOLDER',
    r"py -{python} -m venv .venv; .venv\Scripts\pip install -r requirements.txt; "
    r".venv\Scripts\pip install --no-deps --no-build-isolation -e .",
    r".venv\Scripts\python -m utils.assets",
)


# --- using it ---


def use(folder: Path) -> str:
    """pip's PIP_FIND_LINKS for a folder that has all that this machine needs, as it was made."""
    if sys.version_info < (3, 11):  # noqa: UP036  an older Python gets as far as this line
        raise PrefetchError(
            f"Python {platform.python_version()} is too old: the course needs 3.11 or later; name a newer one, as in "
            "make setup PYTHON=python3.12 OFFLINE=folder."
        )
    records = _served(folder)
    if not records:
        kind = "holds no packages of the course" if folder.is_dir() else "is not a folder"
        raise PrefetchError(f"{folder} {kind}: name the one that `make prefetch` has filled.")
    name = here()
    again = f"run `make prefetch FOR={name} TO={folder}` where there is a network"
    if name not in records:
        system = name.rsplit("-", 1)[0]
        others = [known.rsplit("-", 1)[1] for known in records if known.rsplit("-", 1)[0] == system]
        other = f"take a Python it is for, as in make setup PYTHON=python{others[0]}, or " if others else ""
        raise PrefetchError(
            f"{folder} is for {' and '.join(records)}, and this machine with this Python is {name}: {other}{again}."
        )
    record = _read(folder / f"{name}.json")
    if record["course"] != _course():
        raise PrefetchError(f"{folder} was made for another state of the course, with other versions: {again}.")
    spoilt = [file for file, sha256 in record["files"].items() if not _is(folder / file, sha256)]
    if spoilt:
        raise PrefetchError(
            f"{folder} lacks {spoilt[0]}"
            + (f" and {len(spoilt) - 1} more files" if len(spoilt) > 1 else "")
            + f", or holds a damaged copy: copy the folder again, or {again}."
        )
    _only_ours(folder, {known: _read(folder / f"{known}.json") for known in records}, record["files"])
    # Addresses, not paths: pip would split a path at its spaces.
    return " ".join((folder / part).as_uri() for part in ("wheels", "packages"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--for", dest="names", default="", metavar="SYSTEM[-PYTHON],…")
    parser.add_argument("--use", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    try:
        if options.use:
            print(use(options.use.expanduser().absolute()))
            return 0
        folder = options.to.expanduser().absolute()
        names = [target(name) for name in re.findall(r"[^\s,]+", options.names) or [here()]]
        prefetch(folder, names)
    except (PrefetchError, assets.AssetError, files.Refused) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        print(
            _FULL
            if full
            else f"{error.filename or options.to}: {error.strerror}; choose another folder with TO=folder.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("Stopped; nothing half-fetched is kept, and the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"{folder} now serves {', '.join(names)}. There: make setup OFFLINE={folder}")
    return 0


if __name__ == "__main__":
    console.run(main)
