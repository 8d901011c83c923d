"""Four ways to train the sentiment classifier, three seeds each, learning rate chosen on validation.

    python -m benchmarks.sentiment            # about 75 minutes on two cores; goes on where it stopped
    python -m benchmarks.sentiment --table    # print what is recorded

Lessons 01 and 04 show these runs. Test accuracy is only ever looked at after the choice is made.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import record

QKV_AND_MLP = ["query", "key", "value", "intermediate.dense", "output.dense"]
# method: (target modules and rank of the LoRA, or None; learning rates to choose from)
METHODS = {
    "head only": (None, (1e-3, 3e-3, 1e-2)),
    "LoRA query+value": ((["query", "value"], 8), (1e-3, 2e-3, 4e-3)),
    "LoRA all linear": ((QKV_AND_MLP, 8), (5e-4, 1e-3, 2e-3)),
    "full": (None, (5e-5, 1e-4, 2e-4)),
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
SEEDS = (0, 1, 2)
TRUNCATIONS = (1, 2, 4, 8, 16, 32, 64, 384)


def build(profile, method: str, adapter, seed: int):
    """The model of one run: (model, tokenizer). `adapter` is (target modules, r) or None."""
    from peft import LoraConfig, get_peft_model

    from utils import models, training

    model, tokenizer = models.load_encoder(profile, 2, seed)
    if adapter:
        training.set_seed(seed)
        targets, r = adapter
        model = get_peft_model(model, LoraConfig("SEQ_CLS", r=r, lora_alpha=2 * r, target_modules=targets))
    elif method == "head only":
        model.roberta.requires_grad_(False)
    return model, tokenizer


def train(profile, splits, method: str, adapter, learning_rate: float, seed: int):
    """One run: (what is recorded, trained model, tokenizer)."""
    from transformers import DataCollatorWithPadding, Trainer

    from utils import lora, training

    model, tokenizer = build(profile, method, adapter, seed)
    tokens = splits.map(
        lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=profile.max_length),
        batched=True,
        remove_columns="sentence",
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = training.training_arguments(
            profile, folder, learning_rate=learning_rate, seed=seed, save_only_model=True, disable_tqdm=True
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=tokens["train"],
            eval_dataset=tokens["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=training.accuracy,
        )
        began = time.time()
        trainer.train()
        seconds = time.time() - began
        log = trainer.state.log_history
        test = trainer.predict(tokens["test"]).metrics["test_accuracy"]
    counts = lora.count_parameters(model)
    result = dict(
        method=method,
        learning_rate=learning_rate,
        seed=seed,
        validation=max(row["eval_accuracy"] for row in log if "eval_accuracy" in row),
        test=test,
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


def spectrum(profile, splits, model, tokenizer) -> dict:
    """What full fine-tuning changed: singular values of each update, and test accuracy when the updates are cut to rank r."""
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
    for r in TRUNCATIONS:
        cut = {n: before[n] + (u[:, :r] * s[:r]) @ v[:r] for n, (u, s, v) in parts.items()}
        model.load_state_dict({**after, **cut})
        right = training.predict(model, tokenizer, test["sentence"]).argmax(1) == test["label"]
        accuracies[r] = round(float(right.mean()), 4)
    return dict(singular_values=values, accuracy_at_rank=accuracies)


def code() -> str:
    """The hash of everything that decides these runs."""
    from utils import data, models, profiles, training

    return record.code_hash(
        Path(__file__), data.load_domain, data.split, data.normalise, models.load_encoder, training.training_arguments,
        training.predict, training.accuracy, training.set_seed,
    ) + f"-{profiles.get('cpu').epochs}x{profiles.get('cpu').batch_size}"  # fmt: skip


def chosen(runs: list, method: str) -> float:
    """The learning rate with the best validation accuracy at seed 0."""
    tried = [run for run in runs if run["method"] == method and run["seed"] == SEEDS[0]]
    return max(tried, key=lambda run: run["validation"])["learning_rate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    if parser.parse_args().table:
        return table(record.read("sentiment"))
    from utils import data, profiles

    profile = profiles.get("cpu")
    profiles.apply(profile)
    splits = data.load_sentiment(profile)
    kept = record.read("sentiment") if (record.RESULTS / "sentiment.json").exists() else {}
    if kept.get("origin", {}).get("code") != code():
        kept = dict(origin=record.origin(code()), runs=[], places=[])

    def once(group: str, method: str, adapter, learning_rate: float, seed: int) -> None:
        key = dict(method=method, learning_rate=learning_rate, seed=seed)
        if not any(key.items() <= run.items() for run in kept[group]):
            result, model, tokenizer = train(profile, splits, method, adapter, learning_rate, seed)
            kept[group].append(result)
            print(result, flush=True)
            if method == "full" and seed == SEEDS[1]:  # the first one at the chosen rate that is run after the choice
                kept["update"] = spectrum(profile, splits, model, tokenizer)
            record.write("sentiment", kept)

    for method, (adapter, rates) in METHODS.items():
        for rate in rates:
            once("runs", method, adapter, rate, SEEDS[0])
    for seed in SEEDS[1:]:
        for method, (adapter, _) in METHODS.items():
            once("runs", method, adapter, chosen(kept["runs"], method), seed)
    for seed in SEEDS[:2]:
        for place, adapter in PLACES.items():
            once("places", place, adapter, chosen(kept["runs"], "LoRA query+value"), seed)
    table(kept)


def summary(kept: dict) -> dict:
    """{method: dict(learning_rate, test=[per seed], mean, spread, trainable, lora, seconds)} at the chosen learning rate."""
    told = {}
    for method in METHODS:
        rate = chosen(kept["runs"], method)
        runs = sorted(
            (r for r in kept["runs"] if r["method"] == method and r["learning_rate"] == rate), key=lambda r: r["seed"]
        )
        test = [run["test"] for run in runs]
        told[method] = dict(
            learning_rate=rate,
            test=test,
            mean=statistics.mean(test),
            spread=max(test) - min(test),
            trainable=runs[0]["trainable"],
            lora=runs[0]["lora"],
            seconds=statistics.median(run["seconds"] for run in runs),
        )
    return told


def table(kept: dict) -> None:
    print(f"{'method':<18}{'lr':>8}{'trainable':>12}{'test mean':>11}{'spread':>8}{'seconds':>9}")
    for method, row in summary(kept).items():
        print(
            f"{method:<18}{row['learning_rate']:>8.0e}{row['trainable']:>12,}{row['mean']:>11.4f}{row['spread']:>8.4f}{row['seconds']:>9.0f}"
        )
    for run in kept["places"]:
        print(f"{run['method']:<28} seed {run['seed']}  test {run['test']:.4f}")


if __name__ == "__main__":
    main()
