"""Lesson 06 for longer: QLoRA on the FAQ, two passes over all training rows, judged after each on the held-out topics.

    python -m benchmarks.sft            # about 20 minutes on two cores

Answers, losses and the rubric are the lesson's own functions, read from its cells. One seed.
"""

import dataclasses
import re
import tempfile

from benchmarks import record
from utils import ROOT

LESSON = ROOT / "notebooks" / "06_llama2_qlora_sft.ipynb"
CELLS = ("answer", "rubric", "held-out-loss")
PASSES = 2


def lesson(profile, tokenizer) -> dict:
    """The lesson's functions by which answers are given and judged, by name."""
    import nbformat
    import numpy as np
    import torch

    from utils import data, training

    cells = {cell.id: cell.source for cell in nbformat.read(LESSON, as_version=4).cells}
    names = dict(profile=profile, tqdm=lambda rows, desc="": rows, tokenizer=tokenizer)
    names |= dict(re=re, np=np, torch=torch, data=data, training=training)
    exec("\n\n".join(cells[name] for name in CELLS), names)
    return names


def build(profile, rows, folder, **changes):
    """(trainer, tokenizer) of the run; `changes` override single options of SFTConfig."""
    from peft import LoraConfig

    from utils import models, training
    from utils.sft import AnswerTrainer

    model, tokenizer = models.load_decoder(profile, quantization_config=models.four_bits())
    training.set_seed(0)
    trainer = AnswerTrainer(
        model,
        args=training.sft_arguments(profile, folder, disable_tqdm=True, **changes),
        train_dataset=rows["train"],
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear"
        ),
    )
    return trainer, tokenizer


@record.fp32()  # or the configurations would tell the processor's precision
def values(profile, rows) -> dict:
    """What decides this run."""
    from utils import data, models

    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build(profile, rows, folder, num_train_epochs=PASSES)
        told = record.chat_training(trainer)
    told |= dict(rows=dict(rows), base=models.base_sha256(profile.decoder), plan=PASSES)
    return told | dict(held_out=data.HELD_OUT, answer_tokens=profile.answer_tokens)


RUBRIC = (  # text, whether the model stopped by itself
    ("It is the rank. (notebook 01)", True),
    ("It is the rank. (notebook 01)", False),
    ("It is the rank.", True),
    ("One. Two. Three. Four. (notebook 01)", True),
)


def canary(profile, rows) -> dict:
    """In fp32: the first losses of single rows, the base's held-out loss of two rows, and the rubric's verdicts as 0 and 1."""
    from utils import training

    with record.fp32(), tempfile.TemporaryDirectory() as folder:
        few = type(rows)({name: part.select(range(8)) for name, part in rows.items()})
        options = dict(max_steps=record.CANARY_STEPS, logging_steps=1, per_device_train_batch_size=1)
        trainer, tokenizer = build(profile, few, folder, **options)
        training.learning_in_fp32(trainer.model)  # TRL makes adapters bf16, in which processors differ
        judge = lesson(profile, tokenizer)
        before = judge["held_out_loss"](trainer.model, few["test"].select(range(2)))
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return dict(training=losses, base=before, rubric=[float(judge["has_form"](*told)) for told in RUBRIC])


def material():
    """(profile, rows): all rows of the FAQ."""
    from utils import data, profiles

    profile = dataclasses.replace(profiles.get("cpu"), instruction_rows=(None, None))
    profiles.apply(profile)
    return profile, data.load_instructions(profile)


def main() -> None:
    import numpy as np
    from transformers import TrainerCallback

    from utils import data

    profile, rows = material()
    decides = values(profile, rows)
    names = [f"after pass {passes}" for passes in range(PASSES + 1)]
    kept = dict(origin=record.origin(decides, canary(profile, rows)), due=names)
    kept |= dict(rows={name: len(part) for name, part in rows.items()}, passes=[])

    def judge(model, passes: int) -> None:
        answers = told["answer"](model, rows["test"]["prompt"][:])
        loss, words, pointer = told["held_out_loss"](model, rows["test"])
        wanted = [data.pointer(completion[0]["content"]) for completion in rows["test"]["completion"][:]]
        right = np.mean([data.pointer(text) == number for (text, _), number in zip(answers, wanted, strict=True)])
        form = np.mean([told["has_form"](*each) for each in answers])
        run = dict(name=names[passes], passes=passes, loss=loss, words=words, pointer=pointer, form=float(form))
        kept["passes"].append(run | {"right pointers": float(right)})
        print(kept["passes"][-1], flush=True)

    class AfterEachPass(TrainerCallback):
        def on_epoch_end(self, args, state, control, model, **_):
            judge(model, round(state.epoch))
            model.train()

    with tempfile.TemporaryDirectory() as folder:
        trainer, tokenizer = build(profile, rows, folder, num_train_epochs=PASSES)
        told = lesson(profile, tokenizer)
        trainer.add_callback(AfterEachPass())
        with trainer.model.disable_adapter():
            judge(trainer.model, 0)
        trainer.train()
    kept["training_loss"] = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    record.write("sft", kept)


if __name__ == "__main__":
    main()
