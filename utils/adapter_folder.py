"""Read an adapter's folder, whoever wrote it, so that it can do no harm.

The configuration and the header of the weights are read first and compared with what PEFT would itself build on the base; only
then is memory taken. Nothing in a folder is run: no pickle, no regular expression, no code. Every refusal is one sentence.
"""

import copy
import dataclasses
import json
import math
import os
import re
import reprlib
import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

from utils import assets, files, models, profiles

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "course.json"
PICKLE, CARD = "adapter_model.bin", "README.md"  # what PEFT may write beside them
MOST = 10**9  # of any number
MOST_BYTES, MOST_NAMES, MOST_LABELS = 2**20, 512, 10_000  # of a JSON file or a header, of a list of modules, of a head
PREFIX = "base_model.model."  # PEFT's, before the base's own names


class AdapterError(ValueError):
    """An adapter cannot be saved or loaded; the message says why and what to do."""


def is_adapter(folder):
    """True where `folder` holds what the course or PEFT writes of an adapter, and nothing else; or why it is none."""
    folder = Path(folder)
    config = None if folder.is_symlink() else files.read_json(folder / CONFIG)
    if not (isinstance(config, dict) and config.get("peft_type")):
        inside = min((file.name for file in folder.iterdir()), default="nothing") if folder.is_dir() else "nothing"
        return f"it is no adapter, and holds {inside}"

    def known(name: str) -> bool:
        return name in (CONFIG, WEIGHTS, ABOUT, PICKLE) or (name == CARD and _is_pefts_card(folder / name))

    return next(
        (f"it holds {name}, which no save of an adapter wrote" for name in files.strangers(folder, known)), True
    )


def _is_pefts_card(file: Path) -> bool:
    """Whether a model card is PEFT's, with nothing filled in."""
    from huggingface_hub import ModelCard, ModelCardData

    quantization = r"The following `bitsandbytes`.*|- (quant_method|_?load_in|llm_int8|bnb_4bit)\w*: .*"
    added = re.compile(rf"### Framework versions|- PEFT [\w.]+|## Training procedure|{quantization}")
    text = file.read_text(encoding="utf-8", errors="replace")
    template = {*ModelCard.from_template(ModelCardData()).text.splitlines(), ""}
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    return "\nlibrary_name: peft\n" in text and all(
        line in template or added.fullmatch(line) for line in body.splitlines()
    )


@dataclass(frozen=True)
class Adapter:
    """An adapter that has been read: all is checked but what needs the base (`check`)."""

    folder: Path
    config: object  # peft.LoraConfig
    base: tuple[str, str | None]  # its name, and its hash or revision where that is known
    about: dict  # of course.json
    tensors: dict[str, tuple[str, tuple[int, ...]]]  # name: (dtype as safetensors writes it, shape)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; LABEL_0 … where the folder has none, as many as its head has rows."""
        if "labels" in self.about:
            return tuple(self.about["labels"])
        heads = [shape[0] for name, (_, shape) in self.tensors.items() if len(shape) == 2 and _LAST.search(name)]
        if not heads:
            raise AdapterError(f"{self.folder}: there is no classification head in it; train with task_type='SEQ_CLS'.")
        if heads[0] > MOST_LABELS:
            raise AdapterError(f"{self.folder}: its head has {heads[0]:,} labels; at most {MOST_LABELS:,} are loaded.")
        return tuple(f"LABEL_{i}" for i in range(heads[0]))

    def check(self, build) -> None:
        """AdapterError unless the tensors are just those that PEFT expects on the model that `build()` makes, and finite."""
        for fault in self._faults(build):  # the first is told, the rest is not looked for
            raise AdapterError(f"{self.folder}: {fault}")

    def attach(self, model, **options):
        """`model` with the adapter on top, as a PeftModel in eval mode; `options` reach PEFT."""
        from peft import PeftModel

        return PeftModel.from_pretrained(model, self.folder, config=copy.deepcopy(self.config), **options).eval()

    def _faults(self, build):
        from safetensors import safe_open

        r = max([self.config.r, *self.config.rank_pattern.values()])
        try:
            expected, base = self._expected(build, r)
        except Exception as error:  # PEFT has no common exception for a configuration that does not fit
            yield f"PEFT cannot put this adapter on its base. {first_line(error)}"
            return
        if not expected or _count(expected) > _count(base):
            yield f"with r = {r:,} the adapter would be larger than its base of {_count(base):,} numbers."
        for name in sorted(self.tensors.keys() - expected.keys()):
            yield self._stranger(name, base)
        if missing := sorted(expected.keys() - self.tensors.keys()):
            yield (
                f"{len(missing)} of {len(expected)} tensors are missing, such as {missing[0]!r}. "
                "Copy or save the adapter again."
            )
        for name, (kind, shape) in self.tensors.items():
            if kind not in ("F16", "BF16", "F32", "F64"):
                yield f"{name!r} is {kind}; an adapter holds floating-point numbers of 16, 32 or 64 bits."
            if shape != expected[name]:
                yield self._misshapen(name, shape, expected[name])
        with safe_open(self.folder / WEIGHTS, framework="pt") as opened:
            for name in self.tensors:
                if not opened.get_tensor(name).float().isfinite().all():
                    yield f"{name!r} holds NaN or infinite numbers; train again, with a lower learning rate."

    def _expected(self, build, r: int) -> tuple[dict, dict]:
        """The shapes, by name, of what PEFT would save and of the base's own tensors, found without memory for either."""
        import torch
        from peft import get_peft_model, get_peft_model_state_dict

        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's advice to who trains
            model = build()
            base = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
            if r > _count(base):  # more than even a meta tensor can count
                return {}, base
            config = copy.deepcopy(self.config)  # PEFT fills it in
            config.base_model_name_or_path = None
            model = get_peft_model(model, config)
            state = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {name: tuple(tensor.shape) for name, tensor in state.items()}, base

    def _stranger(self, name: str, base: dict) -> str:
        """Why a tensor that PEFT does not expect is there."""
        shape, theirs = self.tensors[name][1], base.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
        if theirs is None:
            targets = self.config.target_modules
            named = ", ".join(sorted(targets)[:8]) if isinstance(targets, set) else targets or "its target_modules"
            return f"{short(name)} belongs to no LoRA on {named} and to no head; save the adapter without it."
        if len(shape) == 2 and shape[0] != theirs[0] and shape[1:] == theirs[1:]:
            return (
                f"it was trained with a vocabulary of {shape[0]:,} tokens, and its base has {theirs[0]:,}. An adapter cannot bring "
                f"new tokens: load the base, call resize_token_embeddings({shape[0]}), then PeftModel.from_pretrained."
            )
        return f"{name!r} is a weight of the base itself, which an adapter must not replace; save it without."

    def _misshapen(self, name: str, shape: tuple, wanted: tuple) -> str:
        told = f"{name!r} is {_times(shape)}, where this base and r = {self.config.r} need {_times(wanted)}"
        if _LAST.search(name) and len(shape) == len(wanted) and shape[0] != wanted[0]:
            return f"{told}: load the base with num_labels={shape[0]}, or let load_finetuned do it."
        return f"{told}; load the base that it was trained on, with the configuration that was saved with it."


_LAST = re.compile(r"\.(classifier|score)(\.out_proj)?\.(weight|bias)$")  # the last layer of a classification head


def read(folder) -> Adapter:
    """The adapter in `folder`. AdapterError, before any tensor is read, if it is none or says what must not be trusted."""
    files.recover(folder)
    folder = Path(folder)
    _look(folder)
    config, about = _json(folder, CONFIG), _json(folder, ABOUT) if os.path.lexists(folder / ABOUT) else {}
    check_about(about, folder / ABOUT)
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder}: its peft_type is {short(config.get('peft_type'))}; the course loads LORA only.")
    if lacking := [name for name in _NEEDED if name not in config]:
        raise AdapterError(f"{folder / CONFIG} does not say {', '.join(lacking)}; save the adapter again with PEFT.")
    lora = _lora_config(config, folder / CONFIG)
    base = _base(config, about, folder)
    lora.base_model_name_or_path, lora.revision = base[0], None if base[0] in assets.ASSETS else base[1]
    return Adapter(folder, lora, base, about, _header(_file(folder, WEIGHTS)))


def compare(made_for: tuple[str, str | None], base: str) -> None:
    """AdapterError unless the base that an adapter was made for is `base`: its name, and its hash or revision where known."""
    given = base, models.base_sha256(base) or models.base_revision(base)
    if made_for[0] != base or (made_for[1] and made_for[1] != given[1]):
        told = [f"{name!r} ({(version or 'no hash')[:12]})" for name, version in (made_for, given)]
        raise AdapterError(
            f"This adapter was made for {told[0]}, and the model given is {told[1]}. "
            "Load the adapter's own base, or train one for this base."
        )


# --- files ---


def _look(folder: Path) -> None:
    """AdapterError that says what `folder` is, if it is no folder with an adapter in safetensors."""
    if not folder.exists():
        raise AdapterError(f"There is no folder {folder}; give the one that save_adapter returned.")
    if not folder.is_dir():
        raise AdapterError(f"{folder} is no folder; give the folder that holds {CONFIG}.")
    if not os.path.lexists(folder / CONFIG):
        if (folder / "config.json").exists():
            raise AdapterError(
                f"{folder} holds a whole model and no adapter; load it with its class's from_pretrained."
            )
        inside = sorted(place.parent.name for place in folder.glob(f"*/{CONFIG}"))
        hint = (
            f"give one of the folders in it: {', '.join(inside[:3])}"
            if inside
            else "give one that save_adapter returned"
        )
        raise AdapterError(f"{folder} holds no adapter ({CONFIG} is not there); {hint}.")
    if not os.path.lexists(folder / WEIGHTS):
        if os.path.lexists(folder / PICKLE):
            raise AdapterError(
                f"{folder} holds {PICKLE}, a pickle, and a pickle can run code; if you trust it, convert it: "
                f"safetensors.torch.save_file(torch.load('{PICKLE}', weights_only=True), '{WEIGHTS}')."
            )
        raise AdapterError(f"{folder} holds no {WEIGHTS}; copy the adapter again, whole.")


def _file(folder: Path, name: str) -> Path:
    """A regular file of `folder`; AdapterError for a pipe, a folder, and a link but for those of the hub's cache."""
    file = folder / name
    if (
        file.is_symlink()
        and Path(os.path.realpath(file)).parent != Path(os.path.realpath(folder)).parent.parent / "blobs"
    ):
        raise AdapterError(f"{file} is a link; put the file itself in its place.")
    if not file.is_file():  # open() would wait at a pipe
        raise AdapterError(f"{file} is no regular file; copy the adapter again.")
    return file


def _json(folder: Path, name: str) -> dict:
    file = _file(folder, name)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes, at most {MOST_BYTES:,} are read")
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it is a {type(found).__name__}, and no object")
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{file} cannot be read as JSON ({first_line(error)}); copy or save the adapter again."
        ) from error
    return found


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (dtype, shape)} of the tensors in a safetensors file, of which only the header is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        if length > MOST_BYTES:
            raise ValueError(f"a header of {length:,} bytes, at most {MOST_BYTES:,} are read")
        with safe_open(file, framework="pt") as opened:  # checks that names, sizes and the file's length agree
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(
            f"{file} is damaged or no safetensors file ({first_line(error)}); copy the adapter again."
        ) from error


# --- what a configuration may say ---


def _positive(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < value <= MOST


def _whole(value) -> bool:
    return _positive(value) and isinstance(value, Integral)


def _name(value) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]{1,200}", value) is not None


def _names(value) -> bool:
    if isinstance(value, list):
        return len(value) <= MOST_NAMES and all(map(_name, value))
    return value is None or _name(value)


def _layers(value) -> bool:
    listed = value if isinstance(value, list) else [value]
    return value is None or all(number == 0 or _whole(number) for number in listed)


def _pattern(each):
    def sound(value) -> bool:
        return value is None or (isinstance(value, dict) and _names([*value]) and all(map(each, value.values())))

    return sound


def _are_heads(names: list) -> bool:
    from utils.lora import HEADS  # brings torch

    return all(name in HEADS for name in names)


def _flag(value) -> bool:
    return isinstance(value, bool)


_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
_NAMES_TOLD = f"a list of at most {MOST_NAMES} names such as 'q_proj', and no regular expression"
_FIELDS = {  # of a LoraConfig that are kept: (whether a value is sound, what is)
    "r": (_whole, f"a whole number from 1 to {MOST:,}"),
    "lora_alpha": (_positive, f"a number above 0, to {MOST:,}"),
    "lora_dropout": (lambda value: value == 0 or (_positive(value) and value < 1), "a number from 0, below 1"),
    "target_modules": (_names, _NAMES_TOLD),
    "exclude_modules": (_names, _NAMES_TOLD),
    "layers_to_transform": (_layers, "a whole number or a list of such"),
    "layers_pattern": (_names, _NAMES_TOLD),
    "rank_pattern": (_pattern(_whole), f"names with whole numbers from 1 to {MOST:,}"),
    "alpha_pattern": (_pattern(_positive), f"names with numbers above 0, to {MOST:,}"),
    "modules_to_save": (
        lambda value: value is None or (isinstance(value, list) and _are_heads(value)),
        "a list of heads such as classifier or lm_head, for the rest is the base's",
    ),
    "task_type": (lambda value: value is None or value in _TASKS, f"one of {', '.join(_TASKS)}"),
    "bias": (lambda value: value == "none", "'none': other biases are the base's"),
    "init_lora_weights": (
        lambda value: isinstance(value, bool) or value in ("gaussian", "orthogonal", "eva"),
        "one that leaves the base's weights alone: true, false, gaussian, orthogonal or eva",
    ),
    "fan_in_fan_out": (_flag, "true or false"),
    "use_rslora": (_flag, "true or false"),
    "use_dora": (_flag, "true or false"),
    "lora_bias": (_flag, "true or false"),
}
_NEEDED = ("r", "lora_alpha", "target_modules", "base_model_name_or_path")
# Read elsewhere, or of no meaning once the weights are there.
_ASIDE = {"peft_type", "base_model_name_or_path", "revision", "base_sha256", "peft_version", "inference_mode"}
_ASIDE |= {"auto_mapping", "runtime_config", "eva_config"}


def _lora_config(given: dict, file: Path):
    """The LoraConfig of what was given: only fields that are known and sound; AdapterError names the first that is not."""
    from peft import LoraConfig

    defaults = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    for name, value in given.items():
        sound, allowed = _FIELDS.get(name, (None, ""))
        if sound and not sound(value):
            raise AdapterError(f"{file}: {name} is {short(value)}; allowed is {allowed}.")
        if not sound and name not in _ASIDE and value and value != defaults.get(name):
            raise AdapterError(
                f"{file}: it sets {short(name)} to {short(value)}, which this course does not load; plain LoRA, "
                "DoRA and rsLoRA it does."
            )
    kept = {name: given[name] for name in _FIELDS if given.get(name) is not None}
    kept["init_lora_weights"] = True  # every number is loaded, so how they began does not matter
    for name in ("target_modules", "exclude_modules", "layers_pattern"):  # PEFT takes a text for a regular expression
        if isinstance(kept.get(name), str) and kept[name] != "all-linear":
            kept[name] = [kept[name]]
    try:
        return LoraConfig(**kept)
    except Exception as error:  # fields that contradict each other
        raise AdapterError(f"{file}: PEFT refuses it. {first_line(error)}") from error


def _distinct(value) -> bool:
    named = isinstance(value, list) and 0 < len(value) <= MOST_LABELS
    return named and all(isinstance(name, str) and name.strip() for name in value) and len({*value}) == len(value)


_ABOUT = {  # of course.json
    "course": (lambda value: isinstance(value, str), "a version"),
    "base_sha256": (
        lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value),
        "a SHA-256 in hexadecimal",
    ),
    "bits": (lambda value: value == 4 and _whole(value), "4, or is left out"),
    "labels": (_distinct, "a list of names, each another"),
    "max_length": (_whole, "a whole number of tokens"),
    "chat_template": (lambda value: isinstance(value, str), "a text"),
    "pad_token": (lambda value: isinstance(value, str) and value, "a text"),
}


def check_about(about: dict, where) -> None:
    """AdapterError if a field of `course.json` is unsound; fields of a later course pass."""
    for name, (sound, allowed) in _ABOUT.items():
        if name in about and not sound(about[name]):
            raise AdapterError(f"{where}: {name} is {short(about[name])}; allowed is {allowed}.")


# --- which base ---


def _base(config: dict, about: dict, folder: Path) -> tuple[str, str | None]:
    """(name, hash or revision or None) of the base: one of the course's, or a hub id. A path is looked up, not trusted."""
    given, version = config["base_model_name_or_path"], about.get("base_sha256") or config.get("base_sha256")
    if not isinstance(given, str) or not given or not isinstance(version, str | None):
        raise AdapterError(f"{folder / CONFIG} does not name its base ({short(given)}); save it with save_adapter.")
    ours = sorted({name for p in profiles.PROFILES.values() for name in (p.encoder, p.decoder)} & set(assets.ASSETS))
    if given in ours:
        return given, version
    if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?$", given):
        return f"{cached[1]}/{cached[2]}", cached[3]
    # To look at a folder on a server would tell the server who we are.
    here = not given.startswith(("//", "\\\\")) and os.path.exists(given)
    last = re.split(r"[/\\]", given.rstrip("/\\"))[-1]
    if last in ours and not here:  # a checkpoint from another machine: the shapes will tell
        return last, version
    if here and (name := _same_weights(os.path.join(given, "model.safetensors"), ours)):
        return name, models.base_sha256(name)
    revision = config.get("revision")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", given) and not here:
        if revision is not None and not (isinstance(revision, str) and re.fullmatch("[0-9a-f]{40}", revision)):
            raise AdapterError(
                f"{folder / CONFIG}: revision is {short(revision)}; a hub's base needs a commit's 40 digits."
            )
        return given, revision
    raise AdapterError(
        f"{folder}: it was trained on the model in {short(given)}, which is none of the course's ({', '.join(ours)}) here. "
        "Save it again with save_adapter, which writes the base's name in place of a path."
    )


def _same_weights(file: str, names: list[str]) -> str | None:
    """The course's base whose weights `file` holds, wherever it lies; None if it is no file or another's."""
    for name in names if os.path.isfile(file) else ():
        ours = assets.cache_dir() / name / "model.safetensors"
        if not ours.is_file() or os.path.getsize(file) != ours.stat().st_size:
            continue
        if ours.samefile(file):
            return name
        if files.sha256(file) == models.base_sha256(name):
            return name
    return None


# --- words ---


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120
short = _short.repr  # of what a stranger wrote, which may be long


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _times(shape: tuple) -> str:
    return " x ".join(f"{side:,}" for side in shape) or "a single number"


def _count(shapes: dict) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
