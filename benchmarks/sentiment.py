"""Ways to train the sentiment classifier, three seeds each, every learning rate chosen on validation.

    python -m benchmarks.sentiment            # about two hours on two cores; goes on where it stopped
    python -m benchmarks.sentiment --table    # print what is recorded

Each core trains a run of its own: a run with two threads is not twice as fast.

Lessons 01, 03, 04 and 05 show these runs. Test accuracy is only ever looked at after the choice is made.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from typing import NamedTuple

from torch import nn

from benchmarks import record

QKV_AND_MLP = ["query", "key", "value", "intermediate.dense", "output.dense"]
QV = (["query", "value"], 8)
# method: (target modules and rank of the LoRA, or None; learning rates to choose from). If the best is the first or the last,
# the grid goes on that way, so that the best comes to lie inside.
METHODS = {
    "head only": (None, (3e-4, 1e-3, 3e-3, 1e-2)),
    "head only, mean of tokens": (None, (1e-3, 3e-3, 1e-2, 3e-2)),
    "LoRA query+value": (QV, (2.5e-4, 5e-4, 1e-3, 2e-3)),
    "LoRA all linear": ((QKV_AND_MLP, 8), (2.5e-4, 5e-4, 1e-3, 2e-3)),
    "full": (None, (1.25e-5, 2.5e-5, 5e-5, 1e-4)),
}
# The same number of LoRA parameters, put in different places (Hu et al. 2021, table 5)
PLACES = {
    "query r=8": (["query"], 8),
    "key r=8": (["key"], 8),
    "value r=8": (["value"], 8),
    "output r=8": (["attention.output.dense"], 8),
    "query+key r=4": (["query", "key"], 4),
    "query+value r=4": (["query", "value"], 4),
    "query+key+value+output r=2": (["query", "key", "value", "attention.output.dense"], 2),
}
# LoRA query+value as it was trained before the frozen base was made lean: fp32 weights, dropout, fused attention
HEAVY = "LoRA query+value, heavy base"
SEEDS = (0, 1, 2)
PLACE_SEEDS = (0, 1)
TRUNCATIONS = (1, 2, 4, 8, 16, 32, 64, 384)
WIDER = 2  # how often a grid may be widened to either side


def build(profile, method: str, adapter, seed: int, alpha: float | None = None):
    """The model of one run: (model, tokenizer). `adapter` is (target modules, r) or None; alpha: 2 r where none is given."""
    import dataclasses

    from peft import LoraConfig, get_peft_model

    from utils import models, training

    options = {}
    if method == HEAVY:
        profile, options = dataclasses.replace(profile, lean_base=False), dict(attn_implementation="sdpa")
    model, tokenizer = models.load_encoder(profile, 2, seed, frozen=method != "full", **options)
    if adapter:
        training.set_seed(seed)
        targets, r = adapter
        model = get_peft_model(model, LoraConfig("SEQ_CLS", r=r, lora_alpha=alpha or 2 * r, target_modules=targets))
    elif "mean of tokens" in method:
        model.roberta.register_forward_hook(mean_of_tokens, with_kwargs=True)
    return model, tokenizer


def mean_of_tokens(body, inputs, options, output):
    """A hook that gives the head the mean of a sentence's tokens in place of the first one, which is what it reads."""
    mask = options["attention_mask"].unsqueeze(-1)
    mean = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
    output.last_hidden_state = mean.unsqueeze(1).to(output.last_hidden_state.dtype)
    return output


def tokenised(profile, splits, tokenizer):
    """The splits as token ids, cut to the profile's length."""
    return splits.map(
        lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=profile.max_length),
        batched=True,
        remove_columns="sentence",
    )


def trainer_for(profile, splits, method: str, model, tokenizer, folder, **changes):
    """(the Trainer of one run, what it trains and judges on: the splits); `changes` override single TrainingArguments."""
    from transformers import DataCollatorWithPadding, Trainer, default_data_collator

    from utils import training

    options = dict(save_only_model=True, disable_tqdm=True) | changes
    if method.startswith("head only"):  # nothing in front of the head changes, so that is computed once
        tokens, collator = read(profile, splits, model, tokenizer), default_data_collator
        model, options = Head(model.classifier), dict(train_sampling_strategy="random") | options
    else:
        tokens, collator = tokenised(profile, splits, tokenizer), DataCollatorWithPadding(tokenizer)
    trainer = Trainer(
        model=model,
        args=training.training_arguments(profile, folder, **options),
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        data_collator=collator,
        compute_metrics=training.accuracy,
    )
    return trainer, tokens


class Head(nn.Module):
    """A classification head alone, on what the body said."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, features, labels=None):
        """features (batch, width) -> {"loss", "logits" (batch, classes)}"""
        logits = self.classifier(features.unsqueeze(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return dict(loss=loss, logits=logits) if labels is not None else dict(logits=logits)


def read(profile, splits, model, tokenizer):
    """The splits as what the frozen body gives its head: the first token, or the mean of the tokens."""
    import torch
    from datasets import Dataset, DatasetDict

    from utils import training

    told = {}
    for name, split in splits.items():
        texts = split["sentence"][:]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        features = torch.empty(len(split), model.config.hidden_size)
        with torch.inference_mode(), training.autocast():
            for start in range(0, len(order), 64):
                rows = order[start : start + 64]
                options = dict(padding=True, truncation=True, max_length=profile.max_length, return_tensors="pt")
                batch = tokenizer([texts[i] for i in rows], **options)
                features[rows] = model.roberta(**batch).last_hidden_state[:, 0].float()
        told[name] = Dataset.from_dict(dict(features=features.numpy(), labels=split["label"][:])).with_format("torch")
    return DatasetDict(told)


def train(profile, splits, method: str, adapter, learning_rate: float, seed: int, built=None):
    """One run: (what is recorded, trained model, tokenizer). built: the (model, tokenizer) to train, in place of `build`'s."""
    from utils import lora

    model, tokenizer = built or build(profile, method, adapter, seed)
    with tempfile.TemporaryDirectory() as folder:
        options = dict(learning_rate=learning_rate, seed=seed)
        trainer, tokens = trainer_for(profile, splits, method, model, tokenizer, folder, **options)
        began = time.time()
        trainer.train()
        seconds = time.time() - began
        log = trainer.state.log_history
        test = trainer.predict(tokens["test"])
        right = in_order(trainer, tokens["test"], test.predictions.argmax(-1) == test.label_ids)
    counts = lora.count_parameters(model)
    result = dict(
        name=Run("", method, adapter, learning_rate, seed).name,
        method=method,
        learning_rate=learning_rate,
        seed=seed,
        validation=max(row["eval_accuracy"] for row in log if "eval_accuracy" in row),
        test=test.metrics["test_accuracy"],
        right=packed(right),
        epochs=[
            {key: round(row[key], 4) for key in ("epoch", "eval_loss", "eval_accuracy")}
            for row in log
            if "eval_loss" in row
        ],
        lora=counts.lora,
        head=counts.head,
        trainable=counts.lora + counts.head + counts.other,
        seconds=round(seconds),
    )
    return result, model, tokenizer


def in_order(trainer, rows, told):
    """What `trainer.predict(rows)` said of each row, in the rows' own order: grouped by length, a Trainer answers in another."""
    import numpy as np

    there = np.empty_like(told)
    there[list(trainer.get_test_dataloader(rows).batch_sampler.sampler)] = told
    return there


def packed(right) -> str:
    """Which test sentences were right, a bit each, in hexadecimal."""
    import numpy as np

    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def unpacked(run: dict, count: int, name: str = "right"):
    """The array of `count` bools that `packed` wrote, under this name."""
    import numpy as np

    return np.unpackbits(np.frombuffer(bytes.fromhex(run[name]), dtype=np.uint8))[:count].astype(bool)


def spectrum(profile, splits, model, tokenizer, ranks=TRUNCATIONS) -> dict:
    """What full fine-tuning changed: singular values of each update, and test accuracy when the updates are cut to each of `ranks`."""
    import torch

    from utils import models, training

    base, _ = models.load_encoder(profile, 2, 0)
    before, after = base.state_dict(), model.state_dict()
    names = [n for n in after if n.startswith("roberta.encoder") and after[n].ndim == 2]
    parts = {n: torch.linalg.svd(after[n] - before[n], full_matrices=False) for n in names}
    shown = ("0.attention.self.query", "0.attention.self.value", "5.attention.self.query", "5.attention.self.value")
    values = {
        name: [round(s, 6) for s in parts[f"roberta.encoder.layer.{name}.weight"][1].tolist()]
        for name in (*shown, "0.intermediate.dense", "5.intermediate.dense")
    }
    test, accuracies = splits["test"], {}
    for r in ranks:
        cut = {n: before[n] + (u[:, :r] * s[:r]) @ v[:r] for n, (u, s, v) in parts.items()}
        model.load_state_dict({**after, **cut})
        right = training.predict(model, tokenizer, test["sentence"][:]).argmax(1) == test["label"][:]
        accuracies[r] = round(float(right.mean()), 4)
    return dict(singular_values=values, accuracy_at_rank=accuracies)


@record.fp32()  # or the configurations would tell the processor's precision
def values(profile, splits) -> dict:
    """What decides these runs."""
    from utils import models, training

    model, tokenizer = models.load_encoder(profile, 2, 0)
    with tempfile.TemporaryDirectory() as folder:
        options = record.arguments(training.training_arguments(profile, folder))
    del options["learning_rate"]  # each run has its own
    return dict(
        rows=dict(splits),
        tokens=dict(tokenised(profile, splits, tokenizer)),
        arguments=options,
        config=record.arguments(model.config),
        base=models.base_sha256(profile.encoder),
        lean=profile.lean_base,
        plan=[{name: adapter for name, (adapter, _) in METHODS.items()}, PLACES, SEEDS, PLACE_SEEDS, TRUNCATIONS],
    )


def canary(profile, splits) -> dict:
    """{method: losses of the first steps, four rows each, in fp32}; a place counts as its method."""
    due = METHODS | {HEAVY: (QV, (1e-3,))}
    return {
        method: first_losses(
            profile, splits, method, partial(build, profile, method, adapter, 0), learning_rate=rates[0]
        )
        for method, (adapter, rates) in due.items()
    }


def first_losses(profile, splits, method: str, made, evaluate: bool = False, **changes) -> list[float]:
    """The losses of the first steps in fp32, four rows each; `made()` gives (model, tokenizer). evaluate: before that."""
    small = type(splits)({name: split.select(range(64)) for name, split in splits.items()})
    options = dict(max_steps=record.CANARY_STEPS, logging_steps=1, per_device_train_batch_size=4)
    options |= dict(eval_strategy="no", save_strategy="no", load_best_model_at_end=False) | changes
    with record.fp32(), tempfile.TemporaryDirectory() as folder:
        trainer, _ = trainer_for(profile, small, method, *made(), folder, **options)
        if evaluate:
            trainer.evaluate()
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def chosen(runs: list, method: str) -> float:
    """The learning rate with the best validation accuracy at seed 0 (the smaller one of equals)."""
    tried = sorted(
        (run["learning_rate"], run["validation"]) for run in runs if run["method"] == method and not run["seed"]
    )
    return max(tried, key=lambda run: run[1])[0]


def beyond(runs: list, method: str) -> float | None:
    """The rate to try next if the best of `method` is an edge of what was tried, and None if it is inside (or widened enough)."""
    grid = METHODS[method][1]
    tried = sorted(run["learning_rate"] for run in runs if run["method"] == method and not run["seed"])
    best, low, high = chosen(runs, method), tried[0], tried[-1]
    step = round(grid[1] / grid[0])
    if best == low and low > min(grid) / step**WIDER * 1.01:
        return low / step
    if best == high and high < max(grid) * step**WIDER * 0.99:
        return high * step
    return None


class Run(NamedTuple):
    """One run of the plan; `rate` is None until the choice that it waits for is made."""

    group: str
    method: str
    adapter: tuple | None
    rate: float | None
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}, {f'rate {self.rate:g}' if self.rate else 'the best rate'}, seed {self.seed}"


def plan(kept: dict) -> list[Run]:
    """All runs that the record should hold, given those it holds."""
    runs, best, found = kept["runs"], dict.fromkeys(METHODS), []
    held = {run["name"] for run in runs}
    for method, (adapter, rates) in METHODS.items():
        grid = [Run("runs", method, adapter, rate, SEEDS[0]) for rate in rates]
        if {run.name for run in grid} <= held:
            tried = {run["learning_rate"] for run in runs if run["method"] == method and run["seed"] == SEEDS[0]}
            more = beyond(runs, method)
            grid += [
                Run("runs", method, adapter, rate, SEEDS[0]) for rate in sorted({*tried - set(rates), more} - {None})
            ]
            best[method] = None if more else chosen(runs, method)
        found += grid
    rate = best["LoRA query+value"]
    for seed in SEEDS[1:]:
        found += [Run("runs", method, adapter, best[method], seed) for method, (adapter, _) in METHODS.items()]
    for seed in PLACE_SEEDS:
        found += [Run("places", place, at, rate, seed) for place, at in PLACES.items()]
    return found + [Run("heavy", HEAVY, QV, rate, seed) for seed in SEEDS]


@cache
def material():
    """(profile, splits) of the runs, in each process once."""
    from utils import data, profiles

    profile = profiles.get("cpu")
    profiles.apply(profile)
    return profile, data.load_sentiment(profile, verbose=False)


def work(run: Run) -> tuple[dict, dict | None]:
    """One run: (what is recorded, what full fine-tuning changed, of the first such run that is made after the choice)."""
    profile, splits = material()
    result, model, tokenizer = train(profile, splits, run.method, run.adapter, run.rate, run.seed)
    update = run.method == "full" and run.seed == SEEDS[1]
    return result, spectrum(profile, splits, model, tokenizer) if update else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at once (default: one a core)")
    options = parser.parse_args()
    if options.table:
        return table(record.read("sentiment"))
    profile, splits = material()
    decides = values(profile, splits)
    kept = record.resume("sentiment", decides)
    if not kept:
        kept = dict(origin=record.origin(decides, canary(profile, splits)), due=[], test_rows=len(splits["test"]))
        kept |= dict(runs=[], heavy=[], places=[])
        kept["due"] = [run.name for run in plan(kept)]
        record.write("sentiment", kept)
    os.environ["OMP_NUM_THREADS"] = str(max(1, os.cpu_count() // options.workers))
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {}
        while True:
            open_runs = [run for run in plan(kept) if run.rate and run.name not in record.held(kept)]
            free = [run for run in open_runs if run not in waiting.values()]
            for run in free[: options.workers - len(waiting)]:
                waiting[pool.submit(work, run)] = run
            if not waiting:
                break
            done = next(as_completed(waiting))
            result, update = done.result()
            kept[waiting.pop(done).group].append(result)
            kept |= dict(update=update) if update else {}
            kept["due"] = [run.name for run in plan(kept)]
            record.write("sentiment", kept)
            print({key: result[key] for key in ("name", "validation", "test", "seconds")}, flush=True)
    table(kept)


def of(runs: list, method: str, learning_rate: float) -> list:
    """The runs of a method at a rate, by seed."""
    found = [run for run in runs if run["method"] == method and run["learning_rate"] == learning_rate]
    return sorted(found, key=lambda run: run["seed"])


def summary(kept: dict) -> dict:
    """{method: dict(learning_rate, inside, test=[per seed], mean, spread, interval, trainable, lora, seconds)} at the chosen rate.

    inside: whether the chosen rate lies between others that were tried.
    """
    told = {}
    for method in METHODS:
        if not any(run["method"] == method for run in kept["runs"]):
            continue
        rate = chosen(kept["runs"], method)
        runs = of(kept["runs"], method, rate)
        test = [run["test"] for run in runs]
        tried = [run["learning_rate"] for run in kept["runs"] if run["method"] == method and run["seed"] == SEEDS[0]]
        told[method] = dict(
            learning_rate=rate,
            inside=min(tried) < rate < max(tried),
            test=test,
            mean=statistics.mean(test),
            spread=max(test) - min(test),
            interval=interval(test, kept["test_rows"]),
            trainable=runs[0]["trainable"],
            lora=runs[0]["lora"],
            seconds=statistics.median(run["seconds"] for run in runs),
        )
    return told


def interval(test: list[float], rows: int) -> tuple[float, float]:
    """95 % around the mean test accuracy of some seeds, for what other seeds and another `rows` test sentences would give."""
    mean = statistics.mean(test)
    seeds = statistics.variance(test) / len(test) if len(test) > 1 else 0.0
    half = 1.96 * (mean * (1 - mean) / rows + seeds) ** 0.5
    return mean - half, mean + half


def paired(right, others, draws: int = 2000) -> tuple[float, float]:
    """95 % of the mean difference in accuracy of two methods, seeds and test sentences drawn anew; a sentence is drawn for both.

    right, others: for each seed an array of bools, one a test sentence.
    """
    import numpy as np

    random, gap = np.random.default_rng(0), np.array(right, dtype=float) - np.array(others, dtype=float)
    seeds, rows = gap.shape
    drawn = [
        gap[random.integers(seeds, size=seeds)].mean(0)[random.integers(rows, size=rows)].mean() for _ in range(draws)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def lean_minus_heavy(kept: dict) -> tuple[float, tuple[float, float]]:
    """Accuracy of LoRA on the lean base minus on the heavy one, same seeds and sentences: mean, and its interval."""
    rate, count = chosen(kept["runs"], "LoRA query+value"), kept["test_rows"]
    lean = [unpacked(run, count) for run in of(kept["runs"], "LoRA query+value", rate)]
    heavy = [unpacked(run, count) for run in of(kept["heavy"], HEAVY, rate)]
    return statistics.mean(a.mean() - b.mean() for a, b in zip(lean, heavy, strict=True)), paired(lean, heavy)


def table(kept: dict) -> None:
    print(f"{'method':<28}{'lr':>9}{'trainable':>12}{'test mean':>11}{'spread':>8}{'seconds':>9}   95 %")
    for method, row in summary(kept).items():
        low, high = row["interval"]
        print(
            f"{method:<28}{row['learning_rate']:>9.2g}{row['trainable']:>12,}{row['mean']:>11.4f}{row['spread']:>8.4f}"
            f"{row['seconds']:>9.0f}   {low:.3f} to {high:.3f}"
        )
    for run in kept["heavy"] + kept["places"]:
        print(f"{run['method']:<28} seed {run['seed']}  test {run['test']:.4f}")


if __name__ == "__main__":
    main()
