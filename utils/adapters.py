"""Keep adapters so that anybody can load them again, and bring back what they were trained for: answers in words.

A folder holds PEFT's two files and `course.json`: what PEFT does not write down and an answer in words needs.
"""

import copy
import dataclasses
import functools
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from utils import ROOT, assets, files, models, profiles
from utils.adapter_folder import (
    ABOUT,
    CARD,
    CONFIG,
    Adapter,
    AdapterError,
    check_about,
    compare,
    first_line,
    is_adapter,
    read,
    short,
)

# --- saving ---


def save_adapter(model, folder, base: str, tokenizer=None, labels=None, max_length: int | None = None) -> Path:
    """Write a PEFT adapter to `folder` with `base` (a profile's `encoder` or `decoder` name) and the base's hash in place
    of a path. Returns the folder. Whole or not at all: on any error the former adapter stays. files.Refused (a ValueError) where
    the folder holds anything but an adapter.

    labels: the names of a classifier's classes; by default the model's own (`id2label`). tokenizer: a chat model's, whose template
    and padding are part of what was trained. max_length: the longest input in training, in tokens. AdapterError before any work.
    """
    about = _describe(model, base, tokenizer, labels, max_length)
    with files.replacing(folder, is_adapter) as new:
        model.save_pretrained(new, safe_serialization=True, save_embedding_layers=_embeddings_too(model, base))
        (new / CARD).unlink(missing_ok=True)  # PEFT's model card names the base by its path
        config = json.loads((new / CONFIG).read_text(encoding="utf-8"))
        config["base_model_name_or_path"], config["revision"] = base, models.base_revision(base)
        files.place_file(new / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        files.place_file(new / ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return Path(folder).expanduser()


def _describe(model, base: str, tokenizer, labels, max_length) -> dict:
    """What `course.json` says: all that loading needs and that is in neither of PEFT's files."""
    import tomllib

    if not getattr(model, "peft_config", None):
        raise AdapterError(
            f"This {type(model).__name__} has no adapter to save; wrap it with get_peft_model and train it."
        )
    about = dict(
        course=tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"],
        base_sha256=models.base_sha256(base),
        bits=4 if getattr(getattr(model.config, "quantization_config", None), "load_in_4bit", False) else None,
        max_length=max_length,
    )
    if model.peft_config[model.active_adapter].task_type == "SEQ_CLS":
        about["labels"] = [str(name) for _, name in sorted(model.config.id2label.items())]
    if labels is not None:
        labels, known = list(labels), len(about.get("labels", []))
        if len(labels) != known:
            raise AdapterError(f"labels has {len(labels)} names, and the model {known} classes; give one for each.")
        about["labels"] = labels
    if tokenizer is not None:
        about |= dict(chat_template=tokenizer.chat_template, pad_token=tokenizer.pad_token)
    about = {key: value for key, value in about.items() if value is not None}
    check_about(about, "The adapter cannot be saved")
    return about


def _embeddings_too(model, base: str):
    """Whether the vocabulary was resized: then PEFT saves the embeddings as well. Of a hub's base, PEFT finds out."""
    if base not in assets.ASSETS:
        return "auto"
    return model.config.vocab_size != json.loads((assets.path(base) / "config.json").read_text())["vocab_size"]


# --- loading ---


def load_adapter(model, folder, base: str, **options):
    """`model` with the adapter in `folder` on top, as a PeftModel in eval mode; `options` reach PEFT.

    AdapterError, the model untouched, if the adapter was made for another base or is not whole and harmless.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapter = read(folder)
    compare(adapter.base, base)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise AdapterError("The model has an adapter already; give load_adapter a base that was loaded anew.")
    adapter.check(lambda: type(model)(copy.deepcopy(model.config)))
    return adapter.attach(model, **options)


def load_finetuned(folder, profile=None, own_template: bool = False):
    """What was fine-tuned, ready to answer in words: a `Classifier` or a `Chat`, on the base that `folder` names.

    profile: by default the one COURSE_PROFILE names; it says whether a hub may be asked for the base, and the longest answer.
    own_template: use the adapter's chat template where it is not the base's. A template is a program: read it before.
    AdapterError before the base is loaded, but for what only its tokenizer tells.
    """
    adapter, profile = read(folder), profile or profiles.get()
    name, version = adapter.base
    task = adapter.config.task_type
    if task not in ("SEQ_CLS", "CAUSAL_LM"):
        raise AdapterError(
            f"{adapter.folder}: task_type is {task!r}; load_finetuned answers for SEQ_CLS (a classifier) and CAUSAL_LM (a chat "
            "model). Load another kind with load_adapter, on a base of its kind."
        )
    revision = None if name in assets.ASSETS else version or models.base_revision(name)
    profile = dataclasses.replace(
        profile, encoder=name, encoder_revision=revision, decoder=name, decoder_revision=revision
    )
    try:
        return _classifier(adapter, profile) if task == "SEQ_CLS" else _chat(adapter, profile, own_template)
    except OSError as error:
        raise AdapterError(f"{adapter.folder}: its base cannot be loaded. {first_line(error)}") from error


@dataclass(frozen=True)
class Classifier:
    """Calls a list of sentences by name: [{"label": "positive", "probability": 0.98}, …], in their order."""

    model: object
    tokenizer: object
    labels: tuple[str, ...]
    max_length: int  # tokens; what is longer is cut

    def __call__(self, sentences) -> list[dict]:
        from utils import training

        rows = training.predict(self.model, self.tokenizer, sentences, max_length=self.max_length)
        return [dict(label=self.labels[row.argmax()], probability=float(row.max())) for row in rows]


@dataclass(frozen=True)
class Chat:
    """Answers a question in words: greedily, so the same each time."""

    model: object
    tokenizer: object
    answer_tokens: int

    def __call__(self, question: str) -> str:
        from utils import training

        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"The question is {question!r}; pass one text that is not empty.")
        asked = [dict(role="user", content=question)]
        return training.answers(self.model, self.tokenizer, [asked], self.answer_tokens)[0][0]


def merged_encoder(profile, folder, num_labels: int | None = None, **config):
    """The profile's encoder with the adapter in `folder` merged into its weights, in fp32 and with its own configuration.

    In the 16 bits of a lean base each sum would be rounded once more; here both are added in full precision. The labels are the
    adapter's unless `num_labels` or `config` says otherwise.
    """
    if num_labels is None:
        names = read(folder).labels
        num_labels, config = len(names), _naming(names) | config
    model, _ = models.load_encoder(profile, num_labels, **config)
    return load_adapter(model, folder, profile.encoder).merge_and_unload().eval()


def _classifier(adapter: Adapter, profile) -> Classifier:
    import torch
    from transformers import AutoModelForSequenceClassification

    names = dict(num_labels=len(adapter.labels), **_naming(adapter.labels))
    _check_on(adapter, AutoModelForSequenceClassification, models.origin(profile, "encoder"), **names)
    load = models.load_encoder_in_4_bits if _four_bits(adapter) else functools.partial(models.load_encoder, frozen=True)
    model, tokenizer = load(profile, **names, **_SAFE)
    model = adapter.attach(model.to("cuda" if torch.cuda.is_available() else "cpu"))
    longest = min(adapter.about.get("max_length", profile.max_length), tokenizer.model_max_length)
    return Classifier(model, tokenizer, adapter.labels, longest)


def _chat(adapter: Adapter, profile, own_template: bool) -> Chat:
    from transformers import AutoModelForCausalLM

    _check_on(adapter, AutoModelForCausalLM, models.origin(profile, "decoder"))
    options = dict(quantization_config=models.four_bits()) if _four_bits(adapter) else {}
    model, tokenizer = models.load_decoder(profile, **options, **_SAFE)
    template = adapter.about.get("chat_template", tokenizer.chat_template)
    if template != tokenizer.chat_template and not own_template:
        raise AdapterError(
            f"{adapter.folder}: it was trained with another chat template than that of {adapter.base[0]}. A template is a program: "
            f"read chat_template in {ABOUT}, and if you trust it, pass own_template=True."
        )
    pad = adapter.about.get("pad_token", tokenizer.pad_token)
    if pad not in tokenizer.get_vocab():
        raise AdapterError(
            f"{adapter.folder}: it was padded with {short(pad)}, a token that {adapter.base[0]} does not have."
        )
    tokenizer.chat_template, tokenizer.pad_token = template, pad
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Chat(adapter.attach(model), tokenizer, profile.answer_tokens)


_SAFE = dict(use_safetensors=True)  # whoever named the base


def _check_on(adapter: Adapter, kind, origin, **changes) -> None:
    """`adapter.check` on the base at `origin`, of which only the configuration is read."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(origin[0], revision=origin[1], trust_remote_code=False, **changes)
    if adapter.base[0] in assets.ASSETS:
        compare(adapter.base, adapter.base[0])
    adapter.check(lambda: kind.from_config(config))


def _four_bits(adapter: Adapter) -> bool:
    """Whether to load the base in four bits, as in training; where that cannot be, it says so and 16 bits serve."""
    if adapter.about.get("bits") != 4:
        return False
    try:
        models.four_bits()
    except RuntimeError as error:
        warnings.warn(f"Its base was in four bits, here it is in 16, so answers may differ. {error}", stacklevel=4)
        return False
    return True


def _naming(labels) -> dict:
    return dict(id2label=dict(enumerate(labels)), label2id={name: code for code, name in enumerate(labels)})
