"""Keep recorded runs honest: a record says where, when and with which values it was made, and what it should hold.

What decides a run is hashed by *value* (rows, token ids, resolved arguments, configurations), part by part, so that refactored
code makes no record stale. Whether such code still makes the same run is told by a canary: its first five losses, made anew in
fp32 and compared. `due` lists the runs that a record should hold; what is missing is said whenever the record is read.

A sweep of hours grows in results/unfinished/ and takes the place of the record that lessons show once it is whole. Until then
the former record stays, and says that it is being made anew.
"""

import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from utils import files

RESULTS = Path(__file__).parent / "results"
UNFINISHED = "unfinished"
CANARY_STEPS, CANARY_TOLERANCE = 5, 2e-5  # in fp32 processors differ by a millionth, changed runs by much more


def digest(value) -> str:
    """A hash of what a value says: lists, dicts, numbers, texts, arrays, datasets and configurations."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if hasattr(value, "to_dict") and hasattr(value, "column_names"):  # a split of a data set
        return {name: _plain(column) for name, column in value.to_dict().items()}
    if hasattr(value, "to_dict"):  # a configuration
        return _plain(value.to_dict())
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value)  # a dtype, an enum


# Where a run happens, not what it is
_ELSEWHERE = {
    "output_dir",
    "logging_dir",
    "disable_tqdm",
    "run_name",
    "use_cpu",
    "bf16",
    "fp16",
    "_name_or_path",
    "base_model_name_or_path",
    "activation_checkpointing",
    "transformers_version",
}


def arguments(options) -> dict:
    """What TrainingArguments or a model's configuration resolve to, without folders, bars, versions and this machine's precision."""
    told = options if isinstance(options, dict) else options.to_dict()
    return {name: value for name, value in told.items() if name not in _ELSEWHERE}


def chat_training(trainer) -> dict:
    """What decides the training of a chat model's adapter by TRL's trainer, part by part."""
    return dict(
        tokens=trainer.train_dataset["input_ids"][:],
        template=trainer.processing_class.chat_template,
        arguments=arguments(trainer.args),
        adapter=arguments(trainer.model.peft_config["default"]),
        config=arguments(trainer.model.config),
    )


def origin(values: dict, canary: dict | None = None, precision: str = "") -> dict:
    """What a record says of itself: versions, kind of machine (never its name), date, precision (of training, if none is given);
    hashes of what decides; canary."""
    packages = ("torch", "transformers", "peft", "numpy")
    return dict(
        date=datetime.date.today().isoformat(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        precision=precision or _precision(),
        python=platform.python_version(),
        versions={name: version(name).split("+")[0] for name in packages},
        values={name: digest(value) for name, value in values.items()},
        canary={name: [round(loss, 6) for loss in losses] for name, losses in (canary or {}).items()},
    )


def _precision() -> str:
    from utils import training

    return str(training.compute_dtype()).removeprefix("torch.")


def changed(kept: dict, values: dict) -> list[str]:
    """The parts of what decides that are not as they were when the record was made."""
    now = dict(origin=dict(values={name: digest(value) for name, value in values.items()}))
    return changed_between(kept, now)


def strayed(kept: dict, canary: dict) -> list[str]:
    """The canaries that do not give the recorded losses."""
    told = kept["origin"]["canary"]
    return sorted(
        name
        for name in told.keys() | canary.keys()
        if len(told.get(name, ())) != len(canary.get(name, ()))
        or not all(abs(x - y) <= CANARY_TOLERANCE for x, y in zip(told[name], canary[name], strict=True))  # NaN strays
    )


@contextmanager
def fp32():
    """`with fp32():` all training is in fp32, in which a canary gives the same losses on every processor; a decorator too."""
    before = os.environ.get("COURSE_PRECISION", "")
    os.environ["COURSE_PRECISION"] = "fp32"
    try:
        yield
    finally:
        os.environ["COURSE_PRECISION"] = before


def resume(name: str, values: dict) -> dict:
    """The record NAME to go on with, unfinished or whole; empty where there is none that was made with these values, or where
    a whole one is to be made anew."""
    anew = os.environ.get("COURSE_ANEW") == name
    for file in (RESULTS / UNFINISHED / f"{name}.json", RESULTS / f"{name}.json")[: 1 if anew else 2]:
        if file.exists():
            kept = json.loads(file.read_text())
            parts = changed(kept, values)
            if kept["origin"]["precision"] != _precision():
                parts.append("precision")
            if not parts:
                return kept
            print(f"{file.relative_to(RESULTS)}: {', '.join(parts)} changed since.", flush=True)
    return {}


def held(kept: dict) -> set[str]:
    """The names of the runs that a record holds."""
    groups = [group for group in kept.values() if isinstance(group, list)]
    return {run["name"] for group in groups for run in group if isinstance(run, dict) and "error" not in run}


def missing(kept: dict) -> list[str]:
    """The names of runs that are due and not there."""
    return [name for name in kept["due"] if name not in held(kept)]


def write(name: str, record: dict) -> None:
    """Save a record, whole or not at all: as results/NAME.json if it holds all that is due, else among the unfinished."""
    text = json.dumps(record, indent=1) + "\n"
    unfinished = RESULTS / UNFINISHED / f"{name}.json"
    file = unfinished if missing(record) else RESULTS / f"{name}.json"
    files.place_file(file, text)
    if file is not unfinished:
        unfinished.unlink(missing_ok=True)


def successor(name: str) -> dict | None:
    """The unfinished record that is to replace NAME, or None."""
    file = RESULTS / UNFINISHED / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


_recomputed = set()


def _recompute(name: str) -> None:
    """Run the script NAME in a process of its own, from where it stopped; the old record stays unless a whole one takes its place."""
    command, env = [sys.executable, "-m", f"benchmarks.{name}"], dict(os.environ, COURSE_ANEW=name)
    subprocess.run(command, check=True, cwd=RESULTS.parent.parent, env=env)
    _recomputed.add(name)


def read(name: str) -> dict:
    """The record NAME; made anew first with COURSE_RECOMPUTE=1. Prints when and where it was made, and what is missing.

    FileNotFoundError with the command that makes it.
    """
    file = RESULTS / f"{name}.json"
    if os.environ.get("COURSE_RECOMPUTE") == "1" and name not in _recomputed:
        _recompute(name)
    if not file.exists():
        raise FileNotFoundError(f"There is no record {name!r}; make it with `python -m benchmarks.{name}`.")
    kept = json.loads(file.read_text())
    print(told(name, kept))
    return kept


def told(name: str, kept: dict) -> str:
    """One line on a record: when and where it was made, whether it holds all that is due, whether a newer one is under way."""
    lacking, origin = missing(kept), kept["origin"]
    line = f"recorded {origin['date']} on {origin['machine']}, {origin['precision']}: "
    if lacking:
        line += f"INCOMPLETE, {len(lacking)} of {len(kept['due'])} runs are missing ({', '.join(lacking[:3])}"
        line += f"{' …' if len(lacking) > 3 else ''})"
    else:
        line += f"all {len(kept['due'])} runs"
    if newer := successor(name):
        line += f"; made before {', '.join(changed_between(kept, newer)) or 'nothing'} changed and being made anew "
        line += f"({len(newer['due']) - len(missing(newer))} of {len(newer['due'])} runs so far)"
    if lacking or newer:
        line += f"; `python -m benchmarks.{name}` goes on"
    return line


def changed_between(kept: dict, newer: dict) -> list[str]:
    """The parts of what decides in which two records differ."""
    old, new = kept["origin"]["values"], newer["origin"]["values"]
    return sorted(part for part in old.keys() | new.keys() if old.get(part) != new.get(part))
