"""Recorded runs: made by the code that is here, and telling what the course says of them."""

import importlib
import importlib.util
import json
import re

import pytest
import torch

from benchmarks import lora_layer, record

REQUIRED = {"four_bits", "lora_layer", "memory", "sentiment", "sft"}
RECORDS = sorted(
    {file.stem for file in record.RESULTS.glob("*.json")} | REQUIRED
)  # a missing one fails, it is not skipped


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_was_made_by_this_code(name):
    kept = record.read(name)
    code = importlib.import_module(f"benchmarks.{name}").code()
    assert kept["origin"]["code"] == code, (
        f"benchmarks/{name}.py, or what it runs, has changed since the record: `python -m benchmarks.{name}`"
    )


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_says_where_it_comes_from_but_not_whose_machine_it_was(name):
    origin = record.read(name)["origin"]
    assert set(origin) == {"date", "machine", "python", "versions", "code"}
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", origin["date"])
    assert re.fullmatch(r"\w+, \d+ cores, \w+", origin["machine"])
    assert {"torch", "transformers", "peft"} <= set(origin["versions"])
    text = (record.RESULTS / f"{name}.json").read_text()
    assert not re.search(r'"(/|~|[A-Za-z]:\\\\)', text)


# --- code_hash ---

SCRIPT = '''
"""What it does."""
import math

RATES = {"full": (1e-3, 2e-3)}


def area(r, label=None):
    """The area."""
    if r < 0:  # nonsense
        return None
    return math.pi * r**2
'''
LAYOUT = """
import math  # needed below
RATES = {
    "full": (
        1e-3, 2e-3),
}
def area(r, label=None):
    # a comment in place of the docstring

    if (r < 0): return None
    return (math.pi * r ** 2)
"""


def hash_of(source, tmp_path) -> str:
    script = tmp_path / "script.py"
    script.write_text(source)
    return record.code_hash(script)


def test_comments_docstrings_and_layout_do_not_count(tmp_path):
    assert re.fullmatch("[0-9a-f]{16}", hash_of(SCRIPT, tmp_path))
    assert hash_of(SCRIPT, tmp_path) == hash_of(LAYOUT, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2e-3", "3e-3"),
        ("r**2", "r**3"),
        ("r < 0", "r <= 0"),
        ("r < 0", "r < False"),
        ('"full"', '"head"'),
        ("area", "surface"),
        ("(r, label=None)", "(radius, label=None)"),
        ("math.pi", "math.e"),
        ("label=None", "label=0"),
        ("label=None", "label"),
        ("return None", "pass"),
        ("import math", "import math, os"),
        ("(1e-3, 2e-3)", "(2e-3, 1e-3)"),
    ],
)
def test_every_name_and_number_counts(old, new, tmp_path):
    assert old in SCRIPT
    assert hash_of(SCRIPT, tmp_path) != hash_of(SCRIPT.replace(old, new), tmp_path)


def test_functions_are_hashed_alike_wherever_they_stand(tmp_path):
    hashes = []
    for name, source in (("one", SCRIPT), ("two", LAYOUT), ("three", SCRIPT.replace("r**2", "r**3"))):
        (tmp_path / f"{name}.py").write_text(source)
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        hashes.append(record.code_hash(module.area))
    assert hashes[0] == hashes[1] != hashes[2]
    assert record.code_hash(record.read, record.write) != record.code_hash(record.write, record.read)


def test_a_record_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no record 'sizes'; make it with `python -m benchmarks.sizes`"):
        record.read("sizes")
    record.write("sizes", {"origin": record.origin("abc"), "runs": [1]})
    with pytest.raises(TypeError):
        record.write("sizes", {"runs": object()})
    assert record.read("sizes")["runs"] == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["sizes.json"]


# --- the LoRA layer's speed ---


def test_lora_layer_keeps_its_promise():
    """At d = 2048: no slower than PEFT within the run's spread, twice as fast as forming B A, near the frozen layer alone."""
    kept = record.read("lora_layer")
    sizes = {size["d"]: size for size in kept["sizes"]}
    assert (kept["r"], kept["tokens"], set(sizes)) == (8, 512, {512, 1024, 2048, 4096})
    ratios = sizes[2048]["ratios"]
    assert ratios["ours / PEFT"][0] <= 1.0
    assert ratios["forming BA / ours"][1] >= 2.0
    assert ratios["ours / frozen"][1] <= 1.2


def test_lora_layer_runs_live(capsys):
    threads = torch.get_num_threads()
    told = lora_layer.run(d=32, rounds=4)
    assert torch.get_num_threads() == threads
    assert set(told["milliseconds"]) == {"frozen", "ours", "PEFT", "forming BA", "parametrize"}
    for low, median, high in told["ratios"].values():
        assert 0 < low <= median <= high
    assert json.loads(json.dumps(told)) == told
    lora_layer.table([told])
    assert "ours / PEFT" in capsys.readouterr().out


def test_all_contestants_compute_the_same_and_share_the_weight():
    torch.manual_seed(0)
    layers = lora_layer.contestants(16)
    frozen = layers.pop("frozen")
    x, gradients = torch.randn(4, 16), []
    for layer in layers.values():
        inner = x.clone().requires_grad_()
        layer(inner).square().sum().backward()
        gradients.append(inner.grad)
        assert any(p is frozen.weight for p in layer.parameters())
        assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 2 * 8 * 16
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layers["ours"](x), frozen(x), atol=1e-3)
