"""Recorded runs: made with the values that are here, whole or saying what is missing, and telling what the course says of them."""

import copy
import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import RobertaConfig

from benchmarks import ask, forgetting, four_bits, gpu, lora_layer, memory, ranks, record, sentiment, sft
from utils import ROOT, data, profiles

RECORDS = ("ask", "forgetting", "four_bits", "gpu", "lora_layer", "memory", "ranks", "sentiment", "sft")
BEGUN = ("triage",)  # under way for the first time; no lesson shows it yet
NO_LOSSES = ("gpu", "memory")  # measurements, with nothing that a canary could follow


def decides(name: str) -> dict:
    """What decides the record NAME, as it is now."""
    if name == "sentiment":
        return sentiment.values(*sentiment.material())
    if name == "four_bits":
        return four_bits.values(*sentiment.material(), sentiment.chosen(load("sentiment")["runs"], four_bits.METHOD))
    if name == "sft":
        return sft.values(*sft.material())
    if name in ("ask", "ranks"):
        return dict(ask=ask, ranks=ranks)[name].values(*sentiment.material())
    return dict(forgetting=forgetting, gpu=gpu, lora_layer=lora_layer, memory=memory)[name].values()


def canary(name: str) -> dict:
    if name in ("forgetting", "lora_layer"):
        return dict(forgetting=forgetting, lora_layer=lora_layer)[name].canary()
    module = dict(ask=ask, ranks=ranks, sentiment=sentiment, four_bits=four_bits, sft=sft)[name]
    return module.canary(*(sft if name == "sft" else sentiment).material())


def load(name: str) -> dict:
    return json.loads((record.RESULTS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def now():
    """{record: what decides it now}, each worked out once."""
    return {name: decides(name) for name in RECORDS}


def faults(name: str, kept: dict, values: dict) -> list[str]:
    """What is wrong with a record: stale or incomplete, and no successor under way that is made with today's values."""
    wrong = [f"{part} changed" for part in record.changed(kept, values)]
    wrong += [f"{run} is missing" for run in record.missing(kept)]
    newer = record.successor(name)
    begun = newer and record.held(newer) and not record.changed(newer, values)
    return [] if begun else wrong


def test_every_record_is_there_and_no_other():
    assert {file.stem for file in record.RESULTS.glob("*.json")} == set(RECORDS)
    assert {file.stem for file in (record.RESULTS / record.UNFINISHED).glob("*.json")} <= {*RECORDS, *BEGUN}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_whole_and_made_with_these_values_or_is_being_made_anew(name, now):
    assert faults(name, load(name), now[name]) == [], f"`python -m benchmarks.{name}`"


@pytest.mark.parametrize("name", [name for name in RECORDS if name not in NO_LOSSES])
def test_this_code_still_makes_the_recorded_run(name, now):
    kept = load(name)
    if record.changed(kept, now[name]):
        kept = record.successor(name)  # which the test above demands
    assert record.strayed(kept, canary(name)) == []


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_says_where_it_comes_from_but_not_whose_machine_it_was(name):
    kept = load(name)
    origin = kept["origin"]
    assert set(origin) == {"date", "machine", "precision", "python", "versions", "values", "canary"}
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", origin["date"])
    assert re.fullmatch(r"\w+, \d+ cores, \w+", origin["machine"])
    assert {"torch", "transformers", "peft"} <= set(origin["versions"])
    assert not re.search(r'"(/|~|[A-Za-z]:\\\\)', json.dumps(kept))
    assert len(kept["due"]) == len(set(kept["due"])) >= 3 and record.held(kept) <= set(kept["due"])


# --- planted ---


def test_a_missing_run_is_found_and_told(tmp_path, monkeypatch, now):
    kept = load("lora_layer")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setenv("COURSE_PRECISION", "fp32")  # as the layer is measured
    lost = copy.deepcopy(kept)
    gone = lost["sizes"].pop(1)["name"]
    assert faults("lora_layer", kept, now["lora_layer"]) == []
    assert faults("lora_layer", lost, now["lora_layer"]) == [f"{gone} is missing"]
    assert "INCOMPLETE, 1 of 4 runs are missing (d = 1024); `python -m benchmarks.lora_layer` goes on" in record.told(
        "lora_layer", lost
    )
    record.write("lora_layer", lost)  # an incomplete one never takes the place of what lessons show
    assert not (tmp_path / "lora_layer.json").exists() and record.successor("lora_layer") == lost
    assert "being made anew (3 of 4 runs so far)" in record.told("lora_layer", kept)
    assert record.resume("lora_layer", now["lora_layer"]) == lost
    record.write("lora_layer", kept)
    assert record.successor("lora_layer") is None and record.resume("lora_layer", now["lora_layer"]) == kept


def test_another_held_out_topic_is_found(monkeypatch, now):
    monkeypatch.setitem(data.HELD_OUT, "test", data.HELD_OUT["test"][:-1])  # its rows move to training
    assert {"held_out", "rows"} <= set(record.changed(load("sft"), decides("sft")))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("rows", lambda v: v["rows"].update(test=v["rows"]["test"].select(range(1, len(v["rows"]["test"]))))),
        ("tokens", lambda v: v["tokens"].update(train=v["tokens"]["train"].select(range(100)))),
        ("arguments", lambda v: v["arguments"].update(weight_decay=0.1)),
        ("arguments", lambda v: v["arguments"].update(lr_scheduler_type="cosine")),
        ("config", lambda v: v["config"].update(num_hidden_layers=5)),
        ("base", lambda v: v.update(base="0" * 64)),
        ("lean", lambda v: v.update(lean=False)),
        ("plan", lambda v: v["plan"][0].update({"full": ["query"]})),
    ],
)
def test_each_value_that_decides_is_told_by_name(part, change, now):
    before = now["sentiment"]
    after = before | {name: dict(before[name]) for name in ("rows", "tokens", "arguments", "config")}
    after["plan"] = copy.deepcopy(before["plan"])
    change(after)
    kept = dict(origin=dict(values={name: record.digest(value) for name, value in before.items()}))
    assert record.changed(kept, before) == [] and record.changed(kept, after) == [part]


def test_a_canary_sees_another_run():
    told = dict(a=[0.7, 0.6, 0.5])
    kept = dict(origin=dict(canary=told))
    assert record.strayed(kept, dict(a=[0.7, 0.6, 0.50001])) == []
    for other in (
        dict(a=[0.7, 0.6, 0.5005]),
        dict(a=[0.7, 0.6]),
        {},
        dict(a=told["a"], b=[1.0]),
        dict(a=[0.7, 0.6, math.nan]),
    ):
        assert record.strayed(kept, other)


def test_a_digest_tells_values_and_nothing_else():
    rows = Dataset.from_dict(dict(text=["a", "b"], label=[0, 1]))
    same = [dict(x=[1, 2], y=(3,)), dict(y=[3], x=np.array([1, 2]))]
    assert record.digest(same[0]) == record.digest(same[1])
    assert record.digest(rows) == record.digest(Dataset.from_dict(dict(text=["a", "b"], label=[0, 1])))
    assert record.digest(rows) != record.digest(Dataset.from_dict(dict(text=["b", "a"], label=[1, 0])))
    assert record.digest({"b", "a"}) == record.digest({"a", "b"}) != record.digest({"a"})
    assert record.digest(RobertaConfig()) != record.digest(RobertaConfig(num_hidden_layers=3))
    assert record.digest(torch.float32) != record.digest(torch.bfloat16)


def test_arguments_leave_out_where_a_run_happens(tmp_path):
    from utils import training

    here, there = (
        record.arguments(training.training_arguments(profiles.get("cpu"), tmp_path / name, disable_tqdm=bar))
        for name, bar in (("a", True), ("b", False))
    )
    assert record.digest(here) == record.digest(there) and str(tmp_path) not in json.dumps(here, default=str)


def test_nothing_that_decides_names_a_folder(now):
    """A record must hold in any clone: the only paths among the values would be those of this one."""
    for name in RECORDS:
        assert str(ROOT) not in json.dumps(record._plain(now[name])), name


def test_a_record_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no record 'sizes'; make it with `python -m benchmarks.sizes`"):
        record.read("sizes")
    record.write("sizes", {"origin": record.origin(dict(a=1)), "due": ["one"], "runs": [dict(name="one")]})
    with pytest.raises(TypeError):
        record.write("sizes", {"due": ["one"], "runs": [dict(name="one", value=object())]})
    assert record.read("sizes")["runs"] == [dict(name="one")]
    assert [file.name for file in tmp_path.iterdir()] == ["sizes.json"]


def test_an_unfinished_record_that_does_not_fit_today_excuses_nothing(tmp_path, monkeypatch, now):
    kept = load("lora_layer")
    stale = copy.deepcopy(kept)
    stale["origin"]["values"]["plan"] = "0" * 16
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    for successor in (dict(stale, sizes=stale["sizes"][:1]), dict(kept, sizes=[])):  # of other values; not begun
        record.write("lora_layer", successor)
        assert faults("lora_layer", stale, now["lora_layer"]) == ["plan changed"]
    record.write("lora_layer", dict(kept, sizes=kept["sizes"][:1]))
    assert faults("lora_layer", stale, now["lora_layer"]) == []


@pytest.mark.parametrize("name", ["four_bits", "sft"])
def test_what_decides_is_the_same_on_every_processor(name, now, monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "bf16")
    assert (
        record.changed(dict(origin=dict(values={k: record.digest(v) for k, v in now[name].items()})), decides(name))
        == []
    )


def test_a_run_that_failed_is_not_held(tmp_path, monkeypatch):
    """A card on which everything failed does not replace a whole record."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    good = dict(origin=record.origin(dict(a=1)), due=["x"], runs=[dict(name="x", seconds=1)])
    record.write("gpu", good)
    record.write("gpu", dict(good, runs=[dict(name="x", error="no bitsandbytes")]))
    assert json.loads((tmp_path / "gpu.json").read_text()) == good and record.successor("gpu")


def test_runs_of_another_precision_are_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setenv("COURSE_PRECISION", "bf16")
    kept = dict(origin=record.origin(dict(a=1)), due=["x", "y"], runs=[dict(name="x")])
    record.write("some", kept)
    assert record.resume("some", dict(a=1)) == kept
    monkeypatch.setenv("COURSE_PRECISION", "fp32")
    assert record.resume("some", dict(a=1)) == {}


def test_a_script_that_ends_early_loses_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setenv("COURSE_RECOMPUTE", "1")
    monkeypatch.setattr(record, "_recomputed", set())
    kept = dict(origin=record.origin(dict(a=1)), due=["x"], runs=[dict(name="x")])
    record.write("some", kept)
    monkeypatch.setattr(record.subprocess, "run", lambda *_, **__: None)  # wrote nothing whole
    assert record.read("some") == kept and [file.name for file in tmp_path.iterdir()] == ["some.json"]


# --- the sentiment runs' plan ---


def test_the_record_is_due_what_the_plan_says(now):
    kept = load("sentiment")
    if record.changed(kept, now["sentiment"]):
        kept = record.successor("sentiment")
    assert [run.name for run in sentiment.plan(kept)] == kept["due"]


def test_the_lessons_train_at_the_rate_that_the_record_chose():
    assert profiles.get("cpu").learning_rate == sentiment.chosen(load("sentiment")["runs"], "LoRA query+value")


def test_a_lean_base_costs_no_accuracy():
    """Lean minus heavy, the same seeds and sentences: bands set before the runs."""
    mean, (low, _) = sentiment.lean_minus_heavy(load("sentiment"))
    assert mean >= -0.005 and low >= -0.010


def test_lora_at_small_ranks_trains_as_the_record_chose_at_rank_8():
    kept = load("sentiment")["runs"]
    assert sentiment.chosen(kept, ranks.METHOD) == ranks.RATE and sentiment.chosen(kept, ranks.FULL) == ranks.FULL_RATE
    held = {run["r"]: run["lora"] for run in load("ranks")["runs"] if run["r"]}
    (at_8,) = {run["lora"] for run in kept if run["method"] == ranks.METHOD}
    assert {r: 8 * numbers for r, numbers in held.items()} == {r: r * at_8 for r in ranks.RANKS}


def runs_of(method: str, validation: dict) -> list:
    return [
        dict(name=f"{method}, rate {rate:g}, seed 0", method=method, learning_rate=rate, seed=0, validation=score)
        for rate, score in validation.items()
    ]


def test_the_grid_goes_on_until_the_best_is_inside():
    tried = {2.5e-4: 0.80, 5e-4: 0.82, 1e-3: 0.83, 2e-3: 0.84}
    beyond = [sentiment.beyond(runs_of("LoRA query+value", tried), "LoRA query+value")]
    for score in (0.85, 0.86):
        tried[beyond[-1]] = score
        beyond.append(sentiment.beyond(runs_of("LoRA query+value", tried), "LoRA query+value"))
    assert beyond == [4e-3, 8e-3, None]  # widened twice, no further
    assert sentiment.beyond(runs_of("LoRA query+value", tried | {8e-3: 0.8}), "LoRA query+value") is None
    low = dict(zip(tried, (0.84, 0.83, 0.82, 0.81), strict=False))
    assert sentiment.beyond(runs_of("LoRA query+value", low), "LoRA query+value") == 1.25e-4


def test_the_plan_names_each_run_once_and_waits_for_the_choice():
    empty = sentiment.plan(dict(runs=[]))
    assert len({run.name for run in empty}) == len(empty) == 20 + 10 + 14 + 3
    assert sum(run.rate is not None for run in empty) == 20
    runs = runs_of("LoRA query+value", {2.5e-4: 0.80, 5e-4: 0.84, 1e-3: 0.83, 2e-3: 0.82})
    known = sentiment.plan(dict(runs=runs))
    assert {run.rate for run in known if run.group in ("places", "heavy")} == {5e-4}


def test_intervals_know_seeds_and_test_sentences():
    low, high = sentiment.interval([0.85, 0.85, 0.85], 2_000)
    assert 0.85 - low == pytest.approx(1.96 * (0.85 * 0.15 / 2_000) ** 0.5)
    wide = sentiment.interval([0.80, 0.85, 0.90], 2_000)
    assert wide[1] - wide[0] > 2 * (high - low)
    rng = np.random.default_rng(0)
    others = rng.random((3, 2_000)) < 0.85
    better = others | (rng.random((3, 2_000)) < 0.2)
    assert sentiment.paired(better, others)[0] > 0.01
    low, high = sentiment.paired(others, others[::-1])
    assert low < 0 < high


def test_answers_are_kept_bit_by_bit():
    right = np.random.default_rng(0).random(2_112) < 0.8
    assert (sentiment.unpacked(dict(right=sentiment.packed(right)), 2_112) == right).all()


def test_each_answer_is_kept_with_its_row(tmp_path):
    """Grouped by length, a Trainer predicts in an order of its own, another one for each seed."""
    profile = profiles.get("smoke")
    splits = data.load_sentiment(profile, verbose=False)
    small = type(splits)({name: split.select(range(64)) for name, split in splits.items()})
    options = dict(eval_strategy="no", save_strategy="no", load_best_model_at_end=False, per_device_eval_batch_size=4)
    truth, orders = np.array(small["test"]["label"]), []
    for seed in (0, 1):
        built = sentiment.build(profile, "LoRA query+value", sentiment.QV, seed)
        trainer, tokens = sentiment.trainer_for(
            profile, small, "LoRA query+value", *built, tmp_path, seed=seed, **options
        )
        said = trainer.predict(tokens["test"])
        assert (sentiment.in_order(trainer, tokens["test"], said.label_ids) == truth).all()
        orders.append(said.label_ids)
    assert (orders[0] != truth).any() and (orders[0] != orders[1]).any(), "then `in_order` has nothing left to do"


def test_recorded_answers_belong_to_the_same_rows():
    """Hard sentences are hard for every model, so right answers go together; of shuffled rows the correlation stays below 0.1."""
    kept = load("sentiment")
    count = kept["test_rows"]
    (head,) = (r for r in sentiment.of(kept["runs"], "head only, mean of tokens", 3e-2) if r["seed"] == 0)
    runs = [run for name in ("sentiment", "four_bits", "ranks") for run in load(name)["runs"]]
    runs += kept["heavy"] + kept["places"] + [dict(load("ask")["test"][1], test=1, method="asked")]
    for run in runs:
        if run["test"] > 0.6:  # or it has learnt nothing
            together = np.corrcoef(sentiment.unpacked(head, count), sentiment.unpacked(run, count))[0, 1]
            assert together > 0.15, f"{run['method']}, seed {run.get('seed')}: {together:.2f}"


def test_the_head_reads_the_mean_of_the_tokens_that_are_there():
    from types import SimpleNamespace

    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    output = SimpleNamespace(last_hidden_state=hidden)
    mask = torch.tensor([[1, 1, 0]])
    assert sentiment.mean_of_tokens(None, (), dict(attention_mask=mask), output).last_hidden_state.tolist() == [
        [[2.0, 3.0]]
    ]


# --- forgetting ---


def test_lora_forgets_less_at_equal_progress_if_its_rate_is_low():
    """What lesson 02 concludes, half-way through the new task: against full training at its best, and at LoRA's rates in turn."""
    runs = load("forgetting")["runs"]
    full = [forgetting.left(runs, "full", rate, 0.5) for rate in forgetting.RATES["full"]]
    best = max(full, key=np.mean)
    assert best.mean() - min(each.mean() for each in full) < 0.05, "full training keeps about as little at every rate"
    for method in ("LoRA r=4", "LoRA r=1"):
        leads = [
            forgetting.interval(forgetting.left(runs, method, rate, 0.5) - best) for rate in forgetting.RATES[method]
        ]
        assert all(low > 0 for _, low, _ in leads[:2]) and leads[-1][0] < 0
        assert min(leads[0][0], leads[1][0]) > leads[2][0] > leads[3][0], "the lead melts"


def test_what_is_left_is_read_where_the_new_task_first_gets_so_far():
    path = [(0.1, 1.0), (0.3, 0.8), (0.2, 0.1), (0.7, 0.4), (0.5, 0.0)]  # new, old
    assert forgetting.at(path, 0.05) == 1.0
    assert forgetting.at(path, 0.2) == pytest.approx(0.9)
    assert forgetting.at(path, 0.5) == pytest.approx(0.28)
    assert forgetting.at(path, 0.71) is None


def test_an_interval_is_student_s():
    mean, low, high = forgetting.interval(np.array([0.1, 0.2, 0.3, 0.4]))
    assert (mean, high - mean) == (pytest.approx(0.25), pytest.approx(3.182 * 0.12910 / 2, rel=1e-3))
    assert mean - low == pytest.approx(high - mean)


def test_only_lora_leaves_the_reader_s_own_weights_alone():
    tasks, labels, rows, _ = forgetting.digits()
    for method, r in forgetting.METHODS.items():
        network = forgetting.reader(0)
        before = [p.detach().clone() for p in network.parameters()]
        learner = forgetting.prepared(network, method, 0)
        forgetting.train(learner, tasks["on their side"][rows], labels[rows], 3, 1e-2, 0)
        frozen = [p for p in learner.parameters() if not p.requires_grad]
        assert all(map(torch.equal, before, network.parameters())), "each method starts from the same reader"
        assert len(frozen) == (len(before) if r else 0) and all(map(torch.equal, before if r else [], frozen))


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
