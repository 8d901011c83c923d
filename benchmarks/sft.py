"""Lesson 06 for longer: QLoRA on the FAQ, two passes over all training rows, judged after each on the held-out topics.

    python -m benchmarks.sft            # about 20 minutes on two cores

Answers, losses and the rubric are the lesson's own functions, read from its cells. One seed.
"""

import re
import tempfile
from pathlib import Path

from benchmarks import record
from utils import ROOT

LESSON = ROOT / "notebooks" / "06_llama2_qlora_sft.ipynb"
CELLS = ("answer", "rubric", "held-out-loss")
PASSES = 2


def lesson_code() -> str:
    """The lesson's cells that define how answers are given and judged."""
    import nbformat

    cells = {cell.id: cell.source for cell in nbformat.read(LESSON, as_version=4).cells}
    return "\n\n".join(cells[name] for name in CELLS)


def iter_plainly(rows, desc=""):
    """In place of the lesson's progress bar."""
    return rows


def code() -> str:
    """The hash of everything that decides this run."""
    from utils import data, models, profiles, training

    faq = data.FAQ.read_text(encoding="utf-8")
    profile = profiles.get("cpu")
    names = ("instruction_batch", "instruction_length", "instruction_rate", "answer_tokens")
    settings = repr([getattr(profile, name) for name in names])
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {"cells.py": lesson_code(), "data.py": f"FAQ = {faq!r}", "settings.py": settings}.items():
            (Path(folder) / name).write_text(text)
        return record.code_hash(
            Path(__file__), *sorted(Path(folder).iterdir()), data.load_instructions, data.pointer, data.chat,
            models.load_decoder, models.four_bits, training.sft_arguments,
        )  # fmt: skip


def main() -> None:
    import dataclasses

    import numpy as np
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTTrainer

    from utils import data, models, profiles, training

    profile = dataclasses.replace(profiles.get("cpu"), instruction_rows=(None, None))
    profiles.apply(profile)
    rows = data.load_instructions(profile)
    model, tokenizer = models.load_decoder(profile, quantization_config=models.four_bits())
    lesson = dict(
        profile=profile, tqdm=iter_plainly, tokenizer=tokenizer, re=re, np=np, torch=torch, data=data, training=training
    )
    exec(lesson_code(), lesson)
    kept = dict(origin=record.origin(code()), rows={name: len(part) for name, part in rows.items()}, passes=[])

    def judge(model, passes: int) -> None:
        answers = lesson["answer"](model, rows["test"]["prompt"][:])
        loss, words, pointer = lesson["held_out_loss"](model, rows["test"])
        wanted = [data.pointer(completion[0]["content"]) for completion in rows["test"]["completion"][:]]
        right = np.mean([data.pointer(text) == number for (text, _), number in zip(answers, wanted, strict=True)])
        form = np.mean([lesson["has_form"](*told) for told in answers])
        kept["passes"].append(dict(passes=passes, loss=loss, words=words, pointer=pointer, form=float(form)))
        kept["passes"][-1]["right pointers"] = float(right)
        print(kept["passes"][-1], flush=True)

    class AfterEachPass(TrainerCallback):
        def on_epoch_end(self, args, state, control, model, **_):
            judge(model, round(state.epoch))
            model.train()

    with tempfile.TemporaryDirectory() as folder:
        training.set_seed(0)
        trainer = SFTTrainer(
            model,
            args=training.sft_arguments(profile, folder, num_train_epochs=PASSES, disable_tqdm=True),
            train_dataset=rows["train"],
            processing_class=tokenizer,
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear"
            ),
            callbacks=[AfterEachPass()],
        )
        with trainer.model.disable_adapter():
            judge(trainer.model, 0)
        trainer.train()
    kept["training_loss"] = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    record.write("sft", kept)


if __name__ == "__main__":
    main()
