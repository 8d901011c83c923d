"""A save that meets a fault leaves the old or the new, whole; one that ends well leaves the new; and nothing else changes.

The faults are made by faults.py, in a process without torch; here is judged what it tells.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import faults
import pytest

from utils import ROOT, adapters, files

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no fork on Windows")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # quicker than a disk


def run(*options):
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        command = [sys.executable, ROOT / "tests" / "faults.py", folder, *options]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["torch"] is False
    return told["told"]


@pytest.fixture(scope="module")
def told():
    return run()


def test_every_fault_leaves_the_old_or_the_new_and_changes_nothing_else(told):
    assert [point for point in told["points"] if point["wrong"]] == []
    assert len(told["points"]) >= 300


def test_faults_are_of_every_kind_and_hit_every_kind_of_call(told):
    scenarios = Counter(point["scenario"] for point in told["points"])
    assert len(scenarios) == 5 and min(scenarios.values()) >= 60
    assert {point["fault"] for point in told["points"]} == set(faults.FAULTS)
    calls = {point["call"].partition(": ")[2] for point in told["points"]}
    assert calls >= {"open for writing", "write", "mkdir", "replace", "exchange", "fsync", "flock", "unlink", "rmdir"}
    ended = Counter(point["ended"] for point in told["points"])
    assert set(ended) == {0, 1, -9} and min(ended.values()) >= 100  # unharmed, told, killed


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_reader_beside_400_saves_finds_an_adapter_every_time(told, how):
    crowd = told["crowd"][how]
    assert crowd["ended"] == [0] * 4 and crowd["left"] == []
    assert crowd["last"] in ("new", "next")
    for found in crowd["found"]:
        assert set(found) <= {"old", "new", "next"} and sum(found.values()) >= 50, found


@pytest.mark.parametrize(
    ("planted", "scenario", "at_least"),
    [("in_place", "Texts, exchange, old", 6), ("delete_then_rename", "Adapters, exchange, old", 10)],
)
def test_a_writer_of_the_old_kinds_is_caught(planted, scenario, at_least):
    points = run("--planted", planted, "--scenario", scenario)["points"]
    found = [point["wrong"] for point in points if point["wrong"].startswith(("half of", "nothing is there"))]
    assert len(found) >= at_least


# --- loaded through PEFT ---


def network(seed):
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn

    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    if seed is None:
        return body
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=8 + seed, target_modules=["0", "2"], init_lora_weights=False)
    return get_peft_model(body, config).eval()


def test_ten_folders_after_a_fault_load_through_peft(tmp_path):
    import torch
    from peft import PeftModel

    x, known = torch.randn(3, 6), []
    for seed, name in enumerate(("old", "new", "next")):
        model = network(seed)
        model.save_pretrained(tmp_path / "source" / name)
        (tmp_path / "source" / name / "README.md").unlink()
        known.append(model(x))
    command = [sys.executable, ROOT / "tests" / "faults.py", tmp_path, "--source", tmp_path / "source", "--some", "10"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, check=True)
    points = json.loads(done.stdout)["told"]
    assert len(points) == 10 and len({point["fault"] for point in points}) > 3
    for point in points:
        answer = PeftModel.from_pretrained(network(None), files.recover(point["target"])).eval()(x)
        of = [name for name, wanted in zip(("old", "new"), known, strict=False) if torch.equal(answer, wanted)]
        assert of == ["new"] if point["ended"] == 0 else len(of) == 1, point


# --- what an adapter's save replaces, and what it refuses ---


@pytest.fixture
def model(tmp_path):
    faults.material(tmp_path / "source")
    return faults.Model(tmp_path / "source" / "new")


def contents(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def write(path: Path, text="a reader's"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


FOREIGN = {
    "a folder of data": lambda folder: write(folder / "data.csv"),
    "below a folder": lambda folder: write(folder / "a" / "b" / "data.csv"),
    "a file beside an adapter": lambda folder: (old(folder), write(folder / "notes.txt")),
    "a hidden file beside it": lambda folder: (old(folder), write(folder / ".env")),
    "an adapter below it": lambda folder: (old(folder), old(folder / "second")),
    "a checkpoint of a Trainer": lambda folder: (old(folder), write(folder / "optimizer.pt")),
    "a reader's model card": lambda folder: (old(folder), write(folder / "README.md")),
    "weights without a configuration": lambda folder: write(folder / "adapter_model.safetensors"),
    "a configuration of something else": lambda folder: write(folder / "adapter_config.json", '{"theme": "dark"}'),
    "a configuration that is none": lambda folder: write(folder / "adapter_config.json", "[1"),
    "a whole model": lambda folder: (write(folder / "config.json", "{}"), write(folder / "model.safetensors")),
    "a file": lambda folder: write(folder),
    "a link to an adapter": lambda folder: (old(folder.with_name("real")), folder.symlink_to("real")),
    "a link in an adapter": lambda folder: (old(folder), (folder / "adapter_model.bin").symlink_to("/etc/hosts")),
    "a dangling link": lambda folder: folder.symlink_to("nowhere"),
    "a pipe": lambda folder: os.mkfifo(folder),
    "a pipe in it": lambda folder: (folder.mkdir(), os.mkfifo(folder / "adapter_config.json")),
}


def old(folder):
    write(folder / "adapter_config.json", '{"peft_type": "LORA"}')
    write(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("there", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_adapter_is_refused_by_name_before_a_byte_is_written(tmp_path, model, there):
    there(tmp_path / "place")
    before, when = contents(tmp_path), tmp_path.stat().st_mtime_ns
    with pytest.raises(ValueError, match=rf"^{tmp_path}/place is not replaced: .*nothing was changed\.$"):
        adapters.save_adapter(model, tmp_path / "place", faults.BASE)
    assert contents(tmp_path) == before and tmp_path.stat().st_mtime_ns == when


@pytest.mark.parametrize("name", [".", "..", "", "/", "~", "inner/..", "../inner", "./", "../../"])
def test_the_working_folder_and_home_are_refused(tmp_path, model, monkeypatch, name):
    inner = tmp_path / "outer" / "inner"
    (inner / "inner").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "outer"))
    monkeypatch.chdir(inner)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"is not replaced: it is, or holds, (the working folder|your home folder)"):
        adapters.save_adapter(model, name, faults.BASE)
    assert contents(tmp_path) == before


def test_an_adapter_with_what_others_drop_into_it_is_replaced(tmp_path, model):
    old(tmp_path / "place")
    for litter in (".DS_Store", "._adapter_config.json", ".ipynb_checkpoints/adapter_config-checkpoint.json"):
        write(tmp_path / "place" / litter)
    assert adapters.save_adapter(model, tmp_path / "place", faults.BASE) == tmp_path / "place"
    assert {path.name for path in (tmp_path / "place").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "course.json",
    }


def test_what_peft_saved_is_replaced_as_long_as_its_card_is_as_it_came(tmp_path, model):
    network(0).save_pretrained(tmp_path / "place")
    card = tmp_path / "place" / "README.md"
    text = card.read_text()
    for own in (
        text + "\nMy notes.\n",
        text.replace("[More Information Needed]", "Ada", 1),
        text.replace("library_name", "x"),
    ):
        card.write_text(own)
        with pytest.raises(files.Refused, match=r"holds README\.md"):
            adapters.save_adapter(model, tmp_path / "place", faults.BASE)
    card.write_text(text)
    adapters.save_adapter(model, tmp_path / "place", faults.BASE)
    assert not card.exists()
