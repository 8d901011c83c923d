"""LoRA on a 4-bit base, three seeds: the recipe of lesson 04's query+value runs with NF4 underneath.

    python -m benchmarks.four_bits            # about 10 minutes on two cores; goes on where it stopped

Lesson 05 shows these runs beside the 16-bit ones of benchmarks/sentiment.py, at the learning rate chosen there.
"""

import tempfile
import time
from pathlib import Path

from benchmarks import record, sentiment

METHOD = "LoRA query+value"


def train(profile, splits, learning_rate: float, seed: int) -> dict:
    """One run, as `sentiment.train` makes it but for the base: what is recorded."""
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorWithPadding, Trainer

    from utils import models, training

    model, tokenizer = models.load_encoder_in_4_bits(profile, 2, seed)
    training.set_seed(seed)
    targets, r = sentiment.METHODS[METHOD][0]
    model = get_peft_model(model, LoraConfig("SEQ_CLS", r=r, lora_alpha=2 * r, target_modules=targets))
    tokens = splits.map(
        lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=profile.max_length),
        batched=True,
        remove_columns="sentence",
    )
    with tempfile.TemporaryDirectory() as folder:
        options = dict(learning_rate=learning_rate, seed=seed, save_only_model=True, disable_tqdm=True)
        trainer = Trainer(
            model=model,
            args=training.training_arguments(profile, folder, **options),
            train_dataset=tokens["train"],
            eval_dataset=tokens["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=training.accuracy,
        )
        began = time.time()
        trainer.train()
        seconds = round(time.time() - began)
        validation = max(row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row)
        test = trainer.predict(tokens["test"]).metrics["test_accuracy"]
    return dict(learning_rate=learning_rate, seed=seed, validation=validation, test=test, seconds=seconds)


def code() -> str:
    """The hash of everything that decides these runs."""
    from utils import models

    return record.code_hash(Path(__file__), models.load_encoder_in_4_bits, models.four_bits) + "-" + sentiment.code()


def main() -> None:
    from utils import data, profiles

    profile = profiles.get("cpu")
    profiles.apply(profile)
    rate = sentiment.chosen(record.read("sentiment")["runs"], METHOD)
    splits = data.load_sentiment(profile)
    kept = record.read("four_bits") if (record.RESULTS / "four_bits.json").exists() else {}
    if kept.get("origin", {}).get("code") != code():
        kept = dict(origin=record.origin(code()), runs=[])
    for seed in sentiment.SEEDS:
        if not any(run["seed"] == seed for run in kept["runs"]):
            kept["runs"].append(train(profile, splits, rate, seed))
            record.write("four_bits", kept)
    for run in kept["runs"]:
        print(f"seed {run['seed']}  test {run['test']:.4f}  {run['seconds']} s")


if __name__ == "__main__":
    main()
