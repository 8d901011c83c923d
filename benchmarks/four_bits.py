"""LoRA on a 4-bit base, three seeds: the recipe of lesson 04's query+value runs with NF4 underneath.

    python -m benchmarks.four_bits            # about 10 minutes on two cores; goes on where it stopped

Lesson 05 shows these runs beside the 16-bit ones of benchmarks/sentiment.py, at the learning rate chosen there.
"""

from functools import partial

from benchmarks import record, sentiment

METHOD = "LoRA query+value"


def build(profile, seed: int):
    """The model of one run, as `sentiment.build` makes it but for the base: (model, tokenizer)."""
    from peft import LoraConfig, get_peft_model

    from utils import models, training

    model, tokenizer = models.load_encoder_in_4_bits(profile, 2, seed)
    training.set_seed(seed)
    targets, r = sentiment.QV
    return get_peft_model(model, LoraConfig("SEQ_CLS", r=r, lora_alpha=2 * r, target_modules=targets)), tokenizer


@record.fp32()  # or the configurations would tell the processor's precision
def values(profile, splits, learning_rate: float) -> dict:
    """What decides these runs."""
    from utils import models

    told = sentiment.values(profile, splits)
    return told | dict(
        plan=[sentiment.QV, sentiment.SEEDS, learning_rate], bits=record.arguments(models.four_bits(["classifier"]))
    )


def canary(profile, splits) -> dict:
    """The first losses in fp32, after an evaluation, which must not disturb them."""
    return {METHOD: sentiment.first_losses(profile, splits, METHOD, partial(build, profile, 0), evaluate=True)}


def main() -> None:
    profile, splits = sentiment.material()
    rate = sentiment.chosen(record.read("sentiment")["runs"], METHOD)
    decides = values(profile, splits, rate)
    names = [sentiment.Run("runs", METHOD, sentiment.QV, rate, seed).name for seed in sentiment.SEEDS]
    kept = record.resume("four_bits", decides)
    if not kept:
        kept = dict(origin=record.origin(decides, canary(profile, splits)), due=names)
        kept |= dict(test_rows=len(splits["test"]), runs=[])
        record.write("four_bits", kept)
    for seed, name in zip(sentiment.SEEDS, names, strict=True):
        if name not in record.held(kept):
            run, *_ = sentiment.train(profile, splits, METHOD, sentiment.QV, rate, seed, built=build(profile, seed))
            kept["runs"].append(run)
            record.write("four_bits", kept)
    for run in kept["runs"]:
        print(f"seed {run['seed']}  test {run['test']:.4f}  {run['seconds']} s")


if __name__ == "__main__":
    main()
