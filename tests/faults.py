"""Saves with one fault each: `python tests/faults.py FOLDER` tells as JSON what every fault left behind.

A save is traced first, call by call of what it asks the system for. Then it is repeated in a fork for every call and every kind
of fault, and what is there afterwards is looked at. No torch in this process, so a fork costs a millisecond or two.
"""

import argparse
import builtins
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import adapters, files

BASE = "some/base"  # a hub's name: its hash is not looked up
FAULTS = ("full", "full for good", "ctrl-c before", "ctrl-c after", "killed before", "killed after", "stranger")
CALLS = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "chmod", "fsync", "close")
WRITES = {"open for writing", "write", "mkdir", "fsync"}  # what a full disk refuses
STRANGER = "notes.txt"


# --- what is saved, and what is found ---


class Model:
    """Stands for a PEFT model: saving copies what PEFT once wrote to `source`."""

    config, active_adapter = None, "default"

    def __init__(self, source: Path):
        self.content = {file.name: file.read_bytes() for file in sorted(source.iterdir())}
        self.peft_config = dict(default=SimpleNamespace(task_type="CAUSAL_LM"))

    def save_pretrained(self, folder, safe_serialization, save_embedding_layers):
        for name, content in self.content.items():
            with open(folder / name, "wb") as stream:
                stream.write(content)


def material(folder: Path) -> None:
    """Three adapters that a checker without torch can tell apart: `old`, `new` and `next`."""
    for number, name in enumerate(("old", "new", "next")):
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text(json.dumps(dict(peft_type="LORA", lora_alpha=8 + number)))
        (folder / name / "adapter_model.safetensors").write_bytes(os.urandom(4096))


class Adapters:
    """Saves of a folder, by adapters.save_adapter."""

    target = "adapter"

    def __init__(self, source: Path):
        self.models = {name: Model(source / name) for name in ("old", "new", "next")}
        self.known = {}
        for name, model in self.models.items():
            config = json.loads(model.content["adapter_config.json"])
            weights = hashlib.sha256(model.content["adapter_model.safetensors"]).hexdigest()
            self.known[config["lora_alpha"], weights] = name

    def save(self, target: Path, name: str) -> None:
        adapters.save_adapter(self.models[name], target, BASE)

    def read(self, target: Path) -> str:
        """Which adapter is there, both of its files whole and of one save. KeyError where they are not."""
        config = json.loads((target / "adapter_config.json").read_text())
        weights = hashlib.sha256((target / "adapter_model.safetensors").read_bytes()).hexdigest()
        return self.known[config["lora_alpha"], weights] if config["base_model_name_or_path"] == BASE else "unfinished"

    def found(self, target: Path) -> str:
        return self.read(target) if files.recover(target).exists() else ""


class Texts:
    """Saves of a file, by files.place_file."""

    target = "text.md"
    text = staticmethod(lambda name: f"{name}\n" * 1000)

    def save(self, target: Path, name: str) -> None:
        files.place_file(target, self.text(name))

    def found(self, target: Path) -> str:
        if not target.exists():
            return ""
        name = target.read_text().partition("\n")[0]
        assert target.read_text() == self.text(name), "half a file"
        return name


# --- faults ---


class Tracer:
    """Counts the calls by which a save asks the system for something, and lets the one numbered `at` meet a fault."""

    def __init__(self, at=-1, fault="", stranger=lambda: None):
        self.at, self.fault, self.stranger, self.calls, self.full = at, fault, stranger, [], False

    def call(self, name, function, *args, **kwargs):
        number = len(self.calls)
        self.calls.append(name)
        if number == self.at:
            self.full = self.fault == "full for good"
            if self.fault == "stranger":
                self.stranger()
            if name == "write" and self.fault in ("full", "ctrl-c before", "killed before"):
                function(args[0][: len(args[0]) // 2])
            self.meet("before")
        if (number == self.at and self.fault == "full") or (self.full and name in WRITES):
            raise OSError(errno.ENOSPC, "No space left on device")
        result = function(*args, **kwargs)
        if number == self.at:
            self.meet("after")
        return result

    def meet(self, moment):
        if self.fault == f"ctrl-c {moment}":
            raise KeyboardInterrupt
        if self.fault == f"killed {moment}":
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """For good: the process is a fork, and ends soon."""

        def traced(name, function):
            return lambda *args, **kwargs: self.call(name, function, *args, **kwargs)

        real = {name: getattr(os, name) for name in CALLS}
        for name, function in real.items():
            setattr(os, name, traced(name, function))
        files.fcntl.flock = traced("flock", files.fcntl.flock)
        files._exchange = traced("exchange", files._exchange)
        opens = builtins.open

        def opened(file, mode="r", *args, **kwargs):
            if set(mode) <= set("rbt"):
                return opens(file, mode, *args, **kwargs)
            return Stream(self, self.call("open for writing", opens, file, mode, *args, **kwargs))

        builtins.open = io.open = opened


class Stream:
    """An open file whose writing and closing are traced."""

    def __init__(self, tracer, stream):
        self.tracer, self.stream = tracer, stream

    def write(self, content):
        def through(part):
            self.stream.write(part)
            self.stream.flush()

        return self.tracer.call("write", through, content)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.tracer.call("close", lambda: None)
        finally:
            self.stream.close()


def forked(work) -> int:
    """Run `work` in a fork: 0 if it returned, 1 if it raised what a fault raises, 2 if anything else; minus the signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    leave, ended = os._exit, 2
    try:
        work()
        ended = 0
    except (OSError, KeyboardInterrupt, files.Refused):
        ended = 1
    finally:
        leave(ended)


# --- one point ---

FOREIGN = {
    "notes.txt": "a reader's",
    ".adapter-mine/keep.txt": "a reader's",
    ".adapter.tmp": "not named as ours are",
    ".adapter.0123.old": "nor this",
    "adapter.kept-1/adapter_config.json": "{}",
    ".text.md.backup": "a reader's",
}


def snapshot(folder: Path) -> dict:
    paths = [folder / name for name in FOREIGN]
    return {path: (path.read_text(), path.stat().st_mtime_ns, path.stat().st_mode) for path in paths}


def prepare(folder: Path, saves, before: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in FOREIGN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if before:
        saves.save(folder / saves.target, before)
    return folder / saves.target


def fault(folder: Path, saves, before: str, at: int, kind: str) -> tuple[Path, int]:
    """Save `new` where `before` stands, with one fault: (target, how the process ended)."""
    target = prepare(folder, saves, before)

    def stranger():
        if target.is_dir():
            (target / STRANGER).write_bytes(b"a reader's")
            (folder / "came").touch()

    def work():
        Tracer(at, kind, stranger).install()
        saves.save(target, "new")

    return target, forked(work)


def judge(saves, before: str, kind: str, target: Path, ended: int, foreign: dict) -> str:
    """What is wrong after a fault; "" if nothing is."""
    if ended not in (0, 1, -signal.SIGKILL):
        return f"the save ended with {ended}"
    try:
        found = saves.found(target)
    except (KeyError, OSError, ValueError, AssertionError) as error:
        return f"half of something is there: {error!r}"
    allowed = {"new"} if ended == 0 else {before, "new"}
    if found not in allowed:
        return f"{found or 'nothing'} is there instead of {' or '.join(sorted(allowed))}"
    if kind == "stranger" and (target.parent / "came").exists():
        if not (target / STRANGER).exists() or (target / STRANGER).read_bytes() != b"a reader's":
            return "the file of another program is gone"
        (target / STRANGER).unlink()
        (target.parent / "came").unlink()
    try:
        saves.save(target, "next")
    except OSError as error:
        return f"the next save failed: {error!r}"
    if saves.found(target) != "next":
        return "the next save did not take place"
    if snapshot(target.parent) != foreign:
        return "a foreign file changed"
    left = {path.name for path in target.parent.iterdir()} - {target.name, *(Path(name).parts[0] for name in FOREIGN)}
    return f"the next save left {', '.join(left)}" if left else ""


@contextmanager
def way(name: str):
    """Swap folders by an exchange, or as where there is none."""
    real = files._exchange
    if name == "renames":
        files._exchange = lambda one, other: False
    try:
        yield
    finally:
        files._exchange = real


def scenarios(source: Path):
    for how, saves, before in (
        ("exchange", Adapters(source), "old"),
        ("renames", Adapters(source), "old"),
        ("exchange", Adapters(source), ""),
        ("exchange", Texts(), "old"),
        ("exchange", Texts(), ""),
    ):
        yield f"{type(saves).__name__}, {how}, {before or 'nothing'} before", how, saves, before


def calls_of(folder: Path, saves, before: str) -> list[str]:
    """The calls of one save without a fault."""
    target, log = prepare(folder, saves, before), folder / "log"

    def work():
        tracer = Tracer()
        tracer.install()
        saves.save(target, "new")
        calls = list(tracer.calls)
        log.write_text(json.dumps(calls))

    assert forked(work) == 0
    return json.loads(log.read_text())


def points(folder: Path, source: Path, wanted: str = ""):
    """Yield (scenario, way, saves, before, number of the call, call, kind of fault) of every point."""
    for name, how, saves, before in (each for each in scenarios(source) if each[0].startswith(wanted)):
        with way(how):
            calls = calls_of(folder, saves, before)
        for at, call in enumerate(calls):
            kinds = [kind for kind in FAULTS if kind != "full for good" or call in WRITES]
            for kind in kinds if isinstance(saves, Adapters) else kinds[:-1]:  # nobody writes into a file's folder
                yield name, how, saves, before, at, call, kind


def every(folder: Path, source: Path, wanted: str) -> list[dict]:
    told = []
    for name, how, saves, before, at, call, kind in points(folder, source, wanted):
        with way(how):
            target, ended = fault(folder, saves, before, at, kind)
            foreign = snapshot(folder)
            wrong = judge(saves, before, kind, target, ended, foreign)
        told.append(dict(scenario=name, call=f"{at}: {call}", fault=kind, ended=ended, wrong=wrong))
    return told


def some(folder: Path, source: Path, number: int) -> list[dict]:
    """A few of the adapters' points, from the first to the last, each left as it was found: for a look by PEFT."""
    killed = [p for p in points(folder / "trace", source) if isinstance(p[2], Adapters) and p[3]]
    told = []
    for place in range(number):
        name, how, saves, before, at, call, kind = killed[place * (len(killed) - 1) // (number - 1)]
        with way(how):
            target, ended = fault(folder / str(place), saves, before, at, kind)
        told.append(dict(scenario=name, call=f"{at}: {call}", fault=kind, ended=ended, target=str(target)))
    return told


# --- many at once ---


def crowd(folder: Path, source: Path, how: str, saves_each: int = 200) -> dict:
    """Two processes that save and two that read, all at once: what the readers found, and whether the savers ended well."""
    saves = Adapters(source)
    target = prepare(folder, saves, "old")

    def save(name):
        for _ in range(saves_each):
            saves.save(target, name)

    def read(log):
        found = {}
        while not (folder / "over").exists():
            try:
                name = files.read_whole(target, saves.read)
            except Exception as error:  # whatever it is: it is counted and told
                name = repr(error)
            found[name] = found.get(name, 0) + 1
            time.sleep(0.0005)
        log.write_text(json.dumps(found))

    def start(work, *args):
        child = os.fork()
        if not child:
            ended = 1
            try:
                work(*args)
                ended = 0
            finally:
                os._exit(ended)
        return child

    with way(how):
        logs = [folder / f"log{n}" for n in range(2)]
        readers = [start(read, log) for log in logs]
        savers = [start(save, name) for name in ("new", "next")]
        ended = [os.waitstatus_to_exitcode(os.waitpid(saver, 0)[1]) for saver in savers]
        (folder / "over").touch()
        ended += [os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) for reader in readers]
    left = [
        path.name for path in folder.iterdir() if path.name.startswith(f".{target.name}.") and path.name not in FOREIGN
    ]
    return dict(ended=ended, found=[json.loads(log.read_text()) for log in logs], last=saves.found(target), left=left)


# --- planted: writers that a test of this kind has to catch ---


def in_place(path, content, *, was=...):
    Path(path).write_text(content)


@contextmanager
def delete_then_rename(folder, ours):
    folder = Path(folder)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", type=Path, help="adapters written by PEFT: old/, new/ and next/")
    parser.add_argument("--some", type=int, help="leave the folders of so many points")
    parser.add_argument("--planted", choices=("in_place", "delete_then_rename"))
    parser.add_argument("--scenario", default="", help="only those whose name begins so, and no crowd")
    options = parser.parse_args()
    os.fsync = lambda _: None  # nobody cuts the power here, and a disk takes long
    if not options.source:
        options.source = options.folder / "source"
        material(options.source)
    if options.planted == "in_place":
        files.place_file = in_place
    elif options.planted:
        files.replacing = delete_then_rename
    if options.some:
        told = some(options.folder, options.source, options.some)
    else:
        told = dict(points=every(options.folder / "one", options.source, options.scenario))
        if not options.scenario:
            told["crowd"] = {how: crowd(options.folder / how, options.source, how) for how in ("exchange", "renames")}
    told = json.dumps(dict(told=told, torch="torch" in sys.modules))
    print(told)


if __name__ == "__main__":
    main()
