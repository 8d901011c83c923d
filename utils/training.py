"""Seeds, precision, metrics and meters that several lessons use."""

import gc
import os
import threading
import time


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    from transformers import set_seed

    set_seed(seed)


def precision() -> dict:
    """The mixed-precision switches of TrainingArguments that this machine's hardware runs fast.

    bf16 on a GPU or CPU that computes in it, fp16 on older GPUs, nothing (fp32) on other CPUs. COURSE_PRECISION (fp32 or
    bf16) overrides that, for measurements; ValueError if it is anything else.
    """
    import torch

    forced = os.environ.get("COURSE_PRECISION", "")
    if forced not in ("", "fp32", "bf16"):
        raise ValueError(f"COURSE_PRECISION is {forced!r}; set it to fp32 or bf16, or leave it unset.")
    if forced:
        return {"bf16": forced == "bf16"} | ({} if torch.cuda.is_available() else {"use_cpu": True})
    if torch.cuda.is_available():
        return {"bf16": True} if torch.cuda.is_bf16_supported(including_emulation=False) else {"fp16": True}
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 cannot tell yet
    return {"use_cpu": True, "bf16": bool(capabilities.get("avx512_bf16"))}


def compute_dtype():
    """The torch dtype in which this hardware multiplies fastest without losing range: bfloat16, float16 on older GPUs, or float32."""
    import torch

    chosen = precision()
    return torch.bfloat16 if chosen.get("bf16") else torch.float16 if chosen.get("fp16") else torch.float32


def autocast(device: str = ""):
    """A context that computes in the precision of training on `device` ("cpu", "cuda"; by default where this machine trains)."""
    import torch

    kind = compute_dtype()
    enabled = kind != torch.float32
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.autocast(device, kind if enabled else None, enabled=enabled)


def training_arguments(profile, output_dir, **changes):
    """The TrainingArguments with which the course trains its classifiers; `changes` override single options."""
    from transformers import TrainingArguments

    options = dict(
        output_dir=str(output_dir),
        learning_rate=profile.learning_rate,
        num_train_epochs=profile.epochs,
        per_device_train_batch_size=profile.batch_size,
        per_device_eval_batch_size=2 * profile.batch_size,
        warmup_steps=0.06,  # below 1: a share of all steps
        lr_scheduler_type="linear",
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",  # batches of like lengths: less padding
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_steps=25,
        report_to="none",
        dataloader_pin_memory=False,
        seed=0,
        **precision(),
    )
    return TrainingArguments(**(options | changes))


def sft_arguments(profile, output_dir, **changes):
    """The SFTConfig with which the course trains its chat models; `changes` override single options. ValueError for fp16 on a CPU."""
    import torch
    from trl import SFTConfig

    options = (
        dict(
            output_dir=str(output_dir),
            learning_rate=profile.instruction_rate,
            num_train_epochs=profile.instruction_epochs,
            per_device_train_batch_size=profile.instruction_batch,
            per_device_eval_batch_size=profile.instruction_batch,
            max_length=profile.instruction_length,
            completion_only_loss=True,  # learn the answers, not the questions
            warmup_steps=0.03,
            lr_scheduler_type="linear",
            max_grad_norm=0.3,  # QLoRA's
            train_sampling_strategy="group_by_length",
            activation_checkpointing=torch.cuda.is_available(),  # memory for time: here it is time that is short
            logging_steps=2,
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
            seed=0,
            **{"bf16": False, "fp16": False, **precision()},
        )
        | changes
    )
    if options["fp16"] and not torch.cuda.is_available():
        raise ValueError(
            "fp16=True was asked for on a CPU, where fp16 training overflows and gains nothing; leave it out (bf16 or fp32 is "
            "then chosen by what this machine computes in), or train on a GPU."
        )
    return SFTConfig(**options)


def ready_for_fp16(model):
    """`model`, what is trained cast to fp32 where training is in fp16: SFTTrainer makes adapters over 4-bit weights bf16, whose
    gradients the loss scaler of fp16 cannot handle. Elsewhere nothing changes."""
    return learning_in_fp32(model) if precision().get("fp16") else model


def learning_in_fp32(model):
    """`model`, what is trained cast to fp32."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return model


def accuracy(prediction) -> dict:
    """`compute_metrics` for a Trainer: {"accuracy": share of right labels}."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": accuracy_score(prediction.label_ids, prediction.predictions.argmax(-1))}


def predict(model, tokenizer, sentences, batch_size: int = 64, max_length: int = 128):
    """Class probabilities, an array (len(sentences), num_labels), in the order of `sentences`, any sequence of str.

    Computed in the precision of training, in which a lean base can be mixed with the fp32 of what learns.
    """
    import numpy as np
    import torch

    from utils import data

    sentences = data.texts(sentences, "sentences")
    if not sentences:
        raise ValueError("No sentence was given; pass a list of at least one string.")
    model.eval()
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))  # like lengths together: less padding
    rows = [None] * len(sentences)
    with torch.inference_mode(), autocast(model.device.type):
        for start in range(0, len(order), batch_size):
            ids = order[start : start + batch_size]
            batch = tokenizer(
                [sentences[i] for i in ids], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            )
            logits = model(**batch.to(model.device)).logits.float()
            for i, row in zip(ids, logits.softmax(-1).cpu().numpy(), strict=True):
                rows[i] = row
    return np.stack(rows)


def answers(model, tokenizer, prompts, answer_tokens: int, batch_size: int = 32) -> list[tuple[str, bool]]:
    """What a chat model says to each of `prompts`, lists of messages, and whether it stopped by itself within `answer_tokens`.

    Greedily, so the same each time.
    """
    import torch
    from tqdm.auto import tqdm

    model.eval()
    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: less padding
    told = [None] * len(texts)
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="answers", disable=len(starts) < 2):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            padding_side="left",  # generation goes on at the right end, and not from padding
            add_special_tokens=False,  # the template has brought them
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            ids = model.generate(**batch, max_new_tokens=answer_tokens, do_sample=False, use_cache=True)
        for i, new in zip(rows, ids[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            told[i] = (tokenizer.decode(new, skip_special_tokens=True).strip(), tokenizer.eos_token_id in new)
    return told


class Meter:
    """`with Meter() as m:` then `m.seconds` and `m.peak_bytes`, the most memory the process (or the GPU) held above its start."""

    def __enter__(self):
        import psutil
        import torch

        gc.collect()
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated()
        else:
            self._process = psutil.Process()
            self._base = self._peak = self._process.memory_info().rss
            self._stop = threading.Event()
            self._watch = threading.Thread(target=self._sample, daemon=True)
            self._watch.start()
        self._began = time.perf_counter()
        return self

    def _sample(self):
        while not self._stop.wait(0.002):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_):
        import torch

        if self._cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._began
        if self._cuda:
            self.peak_bytes = torch.cuda.max_memory_allocated() - self._base
        else:
            self._stop.set()
            self._watch.join()
            self.peak_bytes = self._peak - self._base
