"""Load the models a profile names, and keep adapters: safetensors only, no remote code, no machine's path."""

import json
import os
from pathlib import Path

from utils import assets


def load_encoder(profile, num_labels: int = 2, seed: int = 0, **config):
    """(model, tokenizer): the profile's RoBERTa with a new, random classification head of `num_labels` outputs.

    The head is drawn with `seed`, so two calls give equal models. `config` reaches the model's configuration (id2label …).
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source, revision = _source(profile, "encoder")
    torch.manual_seed(seed)
    # The body is loaded in fp32: mixed precision autocasts the work, and the small updates need fp32 to add up in.
    model = AutoModelForSequenceClassification.from_pretrained(
        source, revision=revision, num_labels=num_labels, dtype=torch.float32, **config
    )
    return model.eval(), AutoTokenizer.from_pretrained(source, revision=revision)


def load_decoder(profile, **options):
    """(model, tokenizer): the profile's chat Llama; `options` reach `from_pretrained` (dtype, quantization_config …).

    The tokenizer pads with a token that is not the end of text, so that a model trained on padded batches still learns to stop.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, revision = _source(profile, "decoder")
    options.setdefault("dtype", torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(source, revision=revision, **options)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    for candidate in ("<|endoftext|>", "<unk>"):
        if tokenizer.convert_tokens_to_ids(candidate) not in (None, tokenizer.eos_token_id):
            if tokenizer.pad_token in (None, tokenizer.eos_token):
                tokenizer.pad_token = candidate
            break
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def save_adapter(model, folder, base: str) -> Path:
    """Write a PEFT adapter to `folder` with `base` (a profile's `encoder` or `decoder` name) and the base's hash in place
    of a path. Written aside and renamed. Returns the folder."""
    import shutil
    import tempfile

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(aside, safe_serialization=True)
        (aside / "README.md").unlink(missing_ok=True)  # PEFT's model card names the base by its path
        config = json.loads((aside / "adapter_config.json").read_text())
        config["base_model_name_or_path"], config["revision"] = base, None
        config["base_sha256"] = base_sha256(base)
        (aside / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for file in (aside, *aside.iterdir()):
            file.chmod(0o755 if file.is_dir() else 0o644)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def load_adapter(model, folder, base: str):
    """`model` with the adapter in `folder` on top, as a PeftModel. ValueError if the adapter was made for another base."""
    from peft import PeftConfig, PeftModel

    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    made_for, sha256 = config["base_model_name_or_path"], config.pop("base_sha256", None)
    if made_for != base or (sha256 and sha256 != base_sha256(base)):
        raise ValueError(
            f"This adapter was made for {made_for!r} ({(sha256 or 'no hash')[:12]}), and the model given is {base!r} "
            f"({(base_sha256(base) or 'no hash')[:12]}). Load the adapter's own base, or train one for this base."
        )
    return PeftModel.from_pretrained(model, folder, config=PeftConfig.from_peft_type(**config))


def base_sha256(base: str) -> str | None:
    """The hash of a local base's weights; None for a hub id, whose revision identifies it."""
    if base not in assets.ASSETS:
        return None
    return json.loads((assets.path(base) / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"]


def _source(profile, kind: str):
    """(folder or hub id, revision) of the profile's encoder or decoder."""
    name, revision = getattr(profile, kind), getattr(profile, f"{kind}_revision")
    return (assets.path(name), None) if name in assets.ASSETS else (name, revision)
