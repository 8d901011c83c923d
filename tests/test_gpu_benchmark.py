"""benchmarks/gpu.py where there is no GPU: the script runs through at a small shape, and what fails stays alone."""

import dataclasses
import importlib.util
import json
import math
import types
from contextlib import nullcontext

import nbformat
import numpy as np
import pytest
import torch

from benchmarks import gpu, record
from utils import ROOT, planner, profiles, training

ONE = dataclasses.replace(gpu.SMALL, shapes=((1, 32),))
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; run benchmarks.gpu itself")


@pytest.fixture(scope="module")
def small():
    """The record of a small run. Kept in memory: --small writes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "write", None)
        return gpu.run(gpu.SMALL, "cpu", gpu.Clock())


def held(kept: dict) -> dict:
    return {each["name"]: each for each in kept["runs"]}


@on_cpu
def test_all_runs_that_are_due_are_made_in_their_order(small):
    assert list(held(small)) == small["due"] == gpu.due(gpu.SMALL)
    assert record.missing(small) == []
    assert [each["error"] for each in small["runs"] if "error" in each] == []
    assert json.loads(json.dumps(small, allow_nan=False))["runs"] == small["runs"]
    assert small["card"] == "none: a CPU" and set(small["origin"]["values"]) == {"size", "recipes", "layer"}


@on_cpu
def test_codes_differ_by_ties_at_most(small):
    runs = [each for each in small["runs"] if "codes" in each]
    assert len(runs) == len(gpu.SMALL.matrices)
    for each in runs:
        assert each["no_ties"] == each["constants_no_ties"] == 0 and each["absmax_equal"]
        assert each["mismatches"] <= 0.001 * each["codes"] and each["dequantised"] < 0.005  # 16 bits round


@on_cpu
def test_the_layer_is_raced_against_the_others(small):
    for name in gpu.LAYERS:
        each = held(small)[name]
        assert set(each["milliseconds"]) == {"frozen", "ours", "PEFT", "forming BA", "parametrize"}
        assert each["rounds"] == gpu.SMALL.layer_rounds
        assert all(0 < low <= middle <= high for low, middle, high in each["ratios"].values())
    assert [held(small)[name]["dtype"] for name in gpu.LAYERS] == [
        "float32",
        str(training.compute_dtype()).removeprefix("torch."),
    ]


@on_cpu
def test_sfttrainer_learns_and_says_when_it_was_not_fp16(small):
    for name, forced in gpu.SFT.items():
        each = held(small)[name]
        assert len(each["losses"]) == gpu.SMALL.chat_steps and all(map(math.isfinite, each["losses"]))
        assert each["losses"][0] == pytest.approx(math.log(gpu.SMALL.chat["vocab_size"]), abs=0.3)  # it knows nothing
        assert each["moved"] > 0 and each["matrices"] == 7 * gpu.SMALL.chat["num_hidden_layers"]
        assert bool(each["note"]) is forced


@on_cpu
def test_the_decoder_has_the_planners_number_beside_it(small):
    for batch, seq in gpu.SMALL.shapes:
        runs = {name: held(small)[f"{name}, {batch}x{seq}"] for name in gpu.DECODERS}
        for name, each in runs.items():
            recipe, checkpointing = gpu.DECODERS[name]
            assert math.isfinite(each["loss"]) and each["tokens_per_second"] > 0 and each["rest"] < each["peak"]
            assert each["predicted"] == gpu.predict(gpu.SMALL.decoder, recipe, checkpointing, batch, seq, "cpu") > 0
            assert each["checkpointing"] is checkpointing
        if training.compute_dtype() == torch.bfloat16:  # which is what is planned
            for name in (gpu.CHECKPOINTING, gpu.WITHOUT):
                assert runs[name]["predicted"] / runs[name]["peak"] == pytest.approx(1, abs=0.1)
        assert list(runs[gpu.TUTORIAL]["ratios"]) == ["tutorial / ours"]
        assert list(runs[gpu.CHECKPOINTING]["ratios"]) == ["checkpointing / without"]


def test_the_planner_has_a_number_for_every_run_on_a_card():
    for batch, seq in gpu.FULL.shapes:
        ours, without, theirs = (
            gpu.predict(gpu.FULL.decoder, *recipe, batch, seq, "cuda") for recipe in gpu.DECODERS.values()
        )
        assert 4e9 < ours < without < 30e9 and 4e9 < theirs < 30e9


def test_a_planner_that_fails_costs_no_measurement(monkeypatch, capsys):
    monkeypatch.setattr(gpu.planner, "plan", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(gpu, "PARTS", {"the decoder": gpu.decoder})
    gpu.table(kept := gpu.run(ONE, "cpu", gpu.Clock()))
    assert [each["planner"] for each in kept["runs"]] == ["ZeroDivisionError: division by zero"] * 3
    assert all(each["peak"] > 0 and each["tokens_per_second"] > 0 for each in kept["runs"])
    assert "nan" in capsys.readouterr().out


@on_cpu
def test_small_prints_its_table_and_writes_nothing(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "run", lambda *_: small)
    assert gpu.main(["--small"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("a small shape on a CPU: this proves the script, not a card\n")
    assert all(name in printed for name in small["due"]) and "FAILED" not in printed
    assert gpu.main([]) == 2 and "No GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_fails_leaves_the_others(monkeypatch, capsys):
    def broken(size, device, clock):
        yield dict(name=gpu.due(size)[0])
        raise torch.OutOfMemoryError("CUDA out of memory.\n  Tried to allocate 2.00 GiB")

    monkeypatch.setattr(gpu, "PARTS", {"NF4 codes": broken, "the layer": gpu.layer})
    saved = []
    kept = gpu.run(gpu.SMALL, "cpu", gpu.Clock(), keep=lambda kept: saved.append(len(kept["runs"])))
    runs = held(kept)
    assert runs["NF4 codes"]["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert all("milliseconds" in runs[name] for name in gpu.LAYERS)
    assert saved == [1, 2, 3, 4]  # after each run, so that one cut short is not lost
    assert gpu.due(gpu.SMALL)[0] in runs and gpu.due(gpu.SMALL)[1] in record.missing(kept)
    del runs[gpu.due(gpu.SMALL)[0]]
    gpu.table(kept | dict(runs=list(runs.values())))
    assert "FAILED  NF4 codes: OutOfMemoryError" in (told := capsys.readouterr().out) and "NOT RUN" in told


def test_a_recipe_that_does_not_fit_leaves_the_others(monkeypatch):
    step = gpu.Contestant.step

    def too_large(self, batch):
        if self.recipe is gpu.THEIRS:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, batch)

    monkeypatch.setattr(gpu.Contestant, "step", too_large)
    ours, without, theirs = gpu.decoder(ONE, "cpu", gpu.Clock())
    assert theirs["error"] == "OutOfMemoryError: CUDA out of memory." and theirs["predicted"] > 0
    assert ours["tokens_per_second"] > 0 and without["tokens_per_second"] > 0


def test_a_model_that_cannot_be_made_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = [each["error"] for part in (gpu.codes, gpu.sft, gpu.decoder) for each in part(ONE, "cpu", gpu.Clock())]
    assert len(told) == len(ONE.matrices) + len(gpu.SFT) + len(gpu.DECODERS)
    assert all("This needs bitsandbytes" in each and "pip install bitsandbytes" in each for each in told)
    assert "bitsandbytes and trl" in told[len(ONE.matrices)]


def test_nothing_is_begun_when_the_time_is_up(capsys):
    kept = gpu.run(gpu.SMALL, "cpu", gpu.Clock(-1))
    assert kept["runs"] == [] and record.missing(kept) == gpu.due(gpu.SMALL)
    gpu.table(kept)
    assert f"NOT RUN  {gpu.due(gpu.SMALL)[0]}, " in capsys.readouterr().out


def test_a_race_ends_with_the_time():
    rounds = gpu.race(dict(a=lambda: None, b=lambda: None), (5, 9, 60.0), gpu.Clock(-1))
    assert [len(taken) for taken in rounds.values()] == [1, 1]
    assert len(gpu.race(dict(a=lambda: None), (3, 9, 0.0), gpu.Clock())["a"]) == 3
    assert gpu.race({}, (3, 9, 0.0), gpu.Clock()) == {}


# --- what is raced is what it is called ---


@pytest.mark.parametrize("double", [True, False])
def test_the_random_decoder_is_a_llama(double):
    """A plain one with the dequantised weights gives the same scores: nothing in it is left unmade."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoConfig, AutoModelForCausalLM

    config = gpu.SMALL.chat
    model = gpu.random_decoder(config, "cpu", torch.float32, torch.float32, double).eval()
    packed = {name: m for name, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert len(packed) == 7 * config["num_hidden_layers"]
    assert all(m.weight.quant_state.nested is double and m.weight.quant_type == "nf4" for m in packed.values())
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
    weights = {name: p for name, p in model.named_parameters() if "_proj" not in name}
    weights |= {f"{name}.weight": dequantize_4bit(m.weight.data, m.weight.quant_state) for name, m in packed.items()}
    assert plain.load_state_dict(weights, strict=False).missing_keys in ([], ["lm_head.weight"])  # tied
    for (name, there), (_, here) in zip(plain.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(here, there, msg=name)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)
    embeddings = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embeddings and embeddings.std() == pytest.approx(0.02, rel=0.05)


def test_the_recipes_train_what_they_say():
    from bitsandbytes.optim import PagedAdamW32bit

    ours, theirs = (gpu.Contestant(gpu.SMALL.decoder, recipe, "cpu") for recipe in (gpu.OURS, gpu.THEIRS))
    found = {}
    for contestant in (ours, theirs):
        plan = planner.plan(gpu.SMALL.decoder, contestant.recipe["r"], contestant.recipe["planned"], seq=32)
        assert sum(p.numel() for p in contestant.learnt) == plan.lora
        named = [name for name, p in contestant.model.named_parameters() if p.requires_grad]
        found[contestant.recipe["r"]] = {name.split(".lora_")[0].rpartition(".")[2] for name in named}
    assert len(found[8]) == 7 and found[64] == {"q_proj", "v_proj"}
    assert {p.dtype for p in ours.learnt} == {torch.bfloat16}
    assert {p.dtype for p in theirs.model.parameters() if p.is_floating_point()} == {torch.float32}
    assert isinstance(theirs.optimiser, PagedAdamW32bit)
    for on in (True, False):
        ours.checkpointing(on)
        assert ours.model.get_base_model().model.layers[0].gradient_checkpointing is on


def test_our_recipe_is_the_course_s(tmp_path):
    options = training.sft_arguments(profiles.get("gpu"), tmp_path)
    asked = (options.learning_rate, options.weight_decay, options.max_grad_norm, str(options.optim.value))
    assert asked == tuple(gpu.OURS[name] for name in ("rate", "weight_decay", "max_grad_norm", "optimizer"))
    lesson = nbformat.read(ROOT / "notebooks" / "06_llama2_qlora_sft.ipynb", as_version=4)
    source = "".join(cell.source for cell in lesson.cells if cell.cell_type == "code")
    r, alpha, dropout, targets = (gpu.OURS[name] for name in ("r", "alpha", "dropout", "targets"))
    assert f'r={r}, lora_alpha={alpha}, lora_dropout={dropout}, target_modules="{targets}"' in source


def test_a_code_that_is_no_tie_is_counted():
    levels, absmax = np.float32([-1, 0, 1]), np.float32([2])
    ours, values = np.array([1, 1, 2]), np.float32([1, 0.2, 2])
    assert gpu.no_ties(ours, np.array([2, 1, 2]), values, absmax, levels, 64, 1e-6) == 0  # halfway
    assert gpu.no_ties(ours, np.array([2, 2, 2]), values, absmax, levels, 64, 1e-6) == 1


def test_an_older_transformers_is_asked_by_the_older_name():
    def config(gradient_checkpointing=False, **options):
        return gradient_checkpointing, options

    older = types.SimpleNamespace(SFTConfig=config)
    with gpu.older_names(older):
        assert older.SFTConfig(activation_checkpointing=True, seed=0) == (True, dict(seed=0))
    assert older.SFTConfig is config
    today = types.SimpleNamespace(SFTConfig=lambda activation_checkpointing: None)
    assert isinstance(gpu.older_names(today), nullcontext)


@on_cpu
def test_a_card_without_bf16_trains_fp32_adapters_with_a_loss_scaler(monkeypatch):
    monkeypatch.setattr(training, "precision", lambda: {"fp16": True})
    contestant = gpu.Contestant(gpu.SMALL.decoder, gpu.OURS, "cpu")
    assert {p.dtype for p in contestant.learnt} == {torch.float32} and contestant.scaler.is_enabled()
    assert contestant.model.get_input_embeddings().weight.dtype == torch.float16
    ids = torch.arange(10, 42)[None]
    losses = [contestant.step(dict(input_ids=ids, labels=ids)).item() for _ in range(4)]
    assert all(map(math.isfinite, losses)) and contestant.optimiser.state
    assert min(p.abs().max() for name, p in contestant.model.named_parameters() if "lora_B" in name) > 0


# --- what a card said ---


def test_the_recorded_card_agrees_with_the_course():
    kept = json.loads((record.RESULTS / "gpu.json").read_text())
    runs = {each["name"]: each for each in kept["runs"]}
    assert kept["card"].startswith("NVIDIA") and not any("error" in each for each in runs.values())
    for each in (each for each in runs.values() if "codes" in each):
        assert each["absmax_equal"] and not each["no_ties"] and not each["constants_no_ties"]
    in_bf16, in_fp16 = (runs[name] for name in gpu.SFT)
    assert in_fp16["scaler"] and in_fp16["adapters"] == ["float32"] and in_fp16["skipped"] == 0
    assert in_fp16["losses"] == pytest.approx(in_bf16["losses"], abs=0.05)
    for name in gpu.LAYERS:
        low, _, _ = runs[name]["ratios"]["ours / PEFT"]
        assert low <= 1.0, "PEFT's layer would be the quicker one"
