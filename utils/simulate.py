"""Plan any text model that transformers knows: its step runs on tensors without data, and what is held gets added up.

The model is built from its config.json on the meta device and adapted by PEFT, so counts (and refusals) are PEFT's own. Then one
forward and backward pass runs under FakeTensorMode: shapes, dtypes and lifetimes are real, numbers do not exist. No weights and
no network are needed; torch, transformers and PEFT are, so utils/planner.py imports this only where it has no closed formula.
"""

import contextlib
import difflib
import inspect
import logging
import math
import warnings
import weakref
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TASKS = {  # what transformers calls the model, and PEFT its task
    "classifier": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "decoder": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "seq2seq": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
}
OUTSIDE = {"classifier", "score", "modules_to_save", "original_module", "lora_A", "lora_B"}
QV = ("q", "v", "query", "value", "q_proj", "v_proj", "query_proj", "value_proj", "q_lin", "v_lin")
FUSED = 1536  # tokens up to which bitsandbytes may multiply 4-bit weights on CUDA without unpacking them all


class Found(NamedTuple):
    """Counts of parameters, and bytes, of a simulated training."""

    total: int  # without LoRA
    lora: int
    head: int
    chosen: tuple[str, ...]  # last names of what LoRA adapts
    tensors: tuple[int, ...]  # sizes of all that is trained
    learnt: int  # its bytes
    weights: int
    bits_per_weight: float  # of the matrices between embeddings and head
    activations: int  # at the peak of a step, beyond what is held between two
    inside: int  # the same while the model is used
    cache: int


def run(config: dict, name: str, choice) -> Found:
    """Build, adapt and run what `config` (a config.json) describes. choice: the options of planner.plan, as attributes.
    ValueError for what transformers does not know as a text model, and for what PEFT refuses."""
    with _quiet():
        return _run(config, name, choice)


class Counts(NamedTuple):
    total: int  # without LoRA
    lora: int
    head: int


def adapted(config: dict, name: str, choice):
    """(model, kind, Counts): what is trained, on the meta device, and its counts of parameters."""
    kind = kind_of(config, name)
    with torch.device("meta"):
        model = base(config, name, kind, choice)
        total = sum(p.numel() for p in model.parameters())
        if choice.bits < 16:
            quantise(model, kind, choice.bits)
        if not choice.full:
            model = adapt(model, name, kind, choice)
    learnt = {path: p.numel() for path, p in model.named_parameters() if p.requires_grad}
    heads = {"classifier", "score"} if choice.full else {"modules_to_save"}
    head = sum(size for path, size in learnt.items() if kind == "classifier" and heads & set(path.split(".")))
    return model, kind, Counts(total, 0 if choice.full else sum(learnt.values()) - head, head)


def _run(config, name, choice) -> Found:
    model, kind, counts = adapted(config, name, choice)
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and choice.seq > positions > 0:
        raise ValueError(f"seq={choice.seq}, but {name} has positions for {positions} tokens at most.")
    layers = [path.removesuffix(".base_layer") for path, m in model.named_modules() if hasattr(m, "lora_A")]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            stored = materialise(model, choice.bits)
            trained = [p for p in model.parameters() if p.requires_grad]
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            activations = _train(model, kind, choice)
            inside, cache = _use(model, kind, choice)
    except Exception as error:
        raise ValueError(
            f"{name} ({config['model_type']}) cannot be planned: its step does not run without data "
            f"({type(error).__name__}: {_first_line(error)}); measure it as benchmarks/memory.py does."
        ) from error
    return Found(
        **counts._asdict(),
        chosen=tuple(dict.fromkeys(path.split(".")[-1] for path in layers)),
        tensors=tuple(p.numel() for p in trained),
        learnt=sum(p.nbytes for p in trained),
        weights=stored.bytes - (0 if choice.full else sum(p.nbytes for p in trained)),
        bits_per_weight=stored.bits,
        activations=activations,
        inside=inside,
        cache=cache,
    )


@contextlib.contextmanager
def _quiet():
    """What libraries say while a model is built would bury the plan."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


# --- the model, on the meta device ---


def kind_of(config: dict, name: str) -> str:
    """Whether a config.json is trained as a classifier, a decoder or a seq2seq. ValueError for what is no text model."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    told = config.get("model_type")
    if told not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(told), list(CONFIG_MAPPING), n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; give the config.json of a text model."
        raise ValueError(f"{name!r} describes a model of type {told!r}, which transformers does not know{hint}")
    if any(key.endswith("_config") and key.split("_")[0] in ("vision", "audio", "text", "thinker") for key in config):
        raise ValueError(
            f"{name!r} describes {told}, which reads more than text, and the planner plans text models; save its text_config as "
            "a config.json of its own and give that."
        )
    decodes, fills = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    classifies, rewrites = (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    made = " ".join(config.get("architectures") or ())
    if told in rewrites and config.get("is_encoder_decoder", True):
        return "seq2seq"
    if told in decodes and ("CausalLM" in made or "LMHead" in made or told not in fills or config.get("is_decoder")):
        return "decoder"
    if told in classifies:
        return "classifier"
    raise ValueError(f"{name!r} describes {told}, which transformers neither classifies text nor writes text with.")


def base(config: dict, name: str, kind: str, choice):
    """The model with its weights' dtype, as it is before anything is quantised or adapted."""
    import transformers

    options = {"num_labels": choice.num_labels} if kind == "classifier" else {}
    drop = ("num_labels", "id2label", "label2id", "transformers_version", "torch_dtype", "dtype", "quantization_config")
    kept = {key: value for key, value in config.items() if key not in drop and key != "auto_map"}
    dtype = torch.float32 if choice.bits == 32 else torch.bfloat16
    try:
        told = transformers.AutoConfig.for_model(**kept, **options)
        model = getattr(transformers, TASKS[kind][0]).from_config(
            told, attn_implementation=choice.attention, dtype=dtype
        )
    except Exception as error:
        raise ValueError(
            f"transformers cannot build {name!r} ({_first_line(error)}); give the whole config.json of a text model."
        ) from None
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    if kind == "classifier" and choice.num_labels > 1:
        model.config.problem_type = "single_label_classification"  # or some would look at the labels' values
    if kind == "seq2seq" and getattr(model.config, "decoder_start_token_id", None) is None:
        model.config.decoder_start_token_id = 0
    if not choice.full and choice.bits < 32:  # a lean body (utils.models.lean) has no dropout; its head stays in fp32
        for module in model.base_model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if kind == "classifier":
            for part, module in model.named_children():
                if part != model.base_model_prefix:
                    module.float()
    return model.train()


def quantise(model, kind: str, bits: int) -> None:
    """Swap the linear layers for bitsandbytes', all that transformers would: head and output embeddings stay."""
    from transformers import BitsAndBytesConfig
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    options = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    config = BitsAndBytesConfig(**options if bits == 4 else dict(load_in_8bit=True))
    if bits == 4:
        config.bnb_4bit_compute_dtype = torch.bfloat16
    skip = [n for n in ("classifier", "score") if hasattr(model, n)] if kind == "classifier" else None
    replace_with_bnb_linear(model, HfQuantizer.get_modules_to_not_convert(model, skip), config)
    model.requires_grad_(False)
    setattr(model, f"is_loaded_in_{bits}bit", True)


def adapt(model, name: str, kind: str, choice):
    """`model` as a PeftModel, what it trains in the precision of the course."""
    from peft import LoraConfig, get_peft_model

    targets = modules_of(model, name, choice)
    try:
        config = LoraConfig(
            task_type=TASKS[kind][1],
            r=choice.r,
            lora_alpha=16,
            lora_dropout=choice.lora_dropout,
            target_modules=targets,
        )
        model = get_peft_model(model, config)
    except Exception as error:
        raise ValueError(
            f"PEFT cannot adapt {name} with targets={choice.targets!r} ({_first_line(error)}); name some of its layers instead."
        ) from None
    for layer, module in model.named_modules():
        if hasattr(module, "lora_A"):
            sides = [next(iter(pair.values())).weight for pair in (module.lora_A, module.lora_B) if pair]
            largest = min(sides[0].shape[1], sides[1].shape[0])
            # What chooses experts is as narrow as they are few, and so is a head outside the blocks: PEFT does not mind.
            switch = layer.endswith(("gate", "router")) or not any(part.isdigit() for part in layer.split("."))
            if choice.r > largest and not switch and not hasattr(module, "parameter_name"):
                raise ValueError(
                    f"r={choice.r}, but the rank must be a whole number from 1 to {largest}, the smaller side of "
                    f"{layer.removeprefix('base_model.model.')} ({sides[1].shape[0]} x {sides[0].shape[1]})."
                )
    # PEFT keeps adapters in fp32, and a new head with them; SFTTrainer turns those of a quantised model into bf16.
    learnt = torch.bfloat16 if choice.bits < 16 and kind != "classifier" else torch.float32
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad and parameter.dtype != learnt:
                module._parameters[key] = nn.Parameter(parameter.data.to(learnt))
    return model.train()


def modules_of(model, name: str, choice):
    """PEFT's target_modules for what `targets` says. ValueError, with near misses, for a name that is not there."""
    from transformers.pytorch_utils import Conv1D

    targets = choice.targets
    if targets == "all-linear":
        return targets
    outer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linears = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not outer]
    inside = [n for n in linears if any(part.isdigit() for part in n.split("."))]
    attention = [n for n in inside if "attn" in n.lower() or "attention" in n.lower()]
    short = {
        "attention": attention,
        "mlp": [n for n in inside if n not in attention],
        "qv": [n for n in inside if n.split(".")[-1] in QV],
    }
    ends = dict.fromkeys(n.split(".")[-1] for n in linears)
    if isinstance(targets, str) and targets in short:
        if not short[targets]:
            raise ValueError(f"{name} has no layers that {targets!r} could mean; name some of {', '.join(ends)}.")
        return short[targets]
    wanted = targets.split(",") if isinstance(targets, str) else list(targets)
    modules = [n for n, _ in model.named_modules()]
    for target in wanted or [""]:
        if not target or not any(f".{n}".endswith(f".{target}") for n in modules):
            names = ["all-linear", *short, *ends]
            near = " or ".join(difflib.get_close_matches(target, names, n=3) or names)
            raise ValueError(f"No linear layer of {name} matches {target!r}; did you mean {near}?")
    return wanted


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split(". ")[0].split())[:200]


# --- fake tensors in its place ---


class Stored(NamedTuple):
    bytes: int  # of all parameters and buffers
    bits: float  # of a number in the matrices between embeddings and head


def materialise(model, bits: int) -> Stored:
    """Put fake CPU tensors where meta tensors are: packed ones in the layers that `quantise` swapped."""
    made, total, inner = {}, 0, []
    outside = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    for path, module in model.named_modules():
        pack = {"Linear4bit": _four_bits, "Linear8bitLt": _eight_bits}.get(type(module).__name__)
        pack = None if hasattr(module, "base_layer") else pack  # PEFT's layers have the same names
        counts = not isinstance(module, nn.Embedding) and not OUTSIDE & set(path.split("."))
        for store in (module._parameters, module._buffers):
            for key, old in store.items():
                if old is None:
                    continue
                if id(old) not in made:
                    if pack and key == "weight":
                        new, size = pack(module, old)
                    else:
                        new = torch.empty(old.shape, dtype=old.dtype)
                        size = new.nbytes
                        if isinstance(old, nn.Parameter):
                            new = nn.Parameter(new, requires_grad=old.requires_grad)
                    made[id(old)] = new, old  # `old` lives on, lest its id be given to another
                    total += size
                    if counts and old.ndim > 1 and isinstance(old, nn.Parameter) and id(old) not in outside:
                        inner.append((size, old.numel()))
                store[key] = made[id(old)][0]
    return Stored(total, 8 * sum(size for size, _ in inner) / max(1, sum(number for _, number in inner)))


def _four_bits(module, old):
    """NF4 with double quantisation: half a byte a weight; a byte for 64, fp32 for 64 x 256; tables of codes, an offset."""
    from bitsandbytes.functional import QuantState

    blocks = -(-old.numel() // 64)
    weight = nn.Parameter(torch.empty((-(-old.numel() // 2), 1), dtype=torch.uint8), requires_grad=False)
    absmax = torch.empty(-(-blocks // 256))
    second = QuantState(absmax=absmax, code=torch.empty(256), blocksize=256, dtype=torch.float32)
    weight.quant_state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=old.shape,
        code=torch.empty(16),
        blocksize=64,
        quant_type="nf4",
        dtype=torch.bfloat16,
        offset=torch.empty(()),
        state2=second,
    )
    weight.bnb_quantized, weight.quant_type, weight.compress_statistics = True, "nf4", True
    module.support_avx512bf16_for_cpu, module.compute_type_is_set = False, True
    return weight, weight.nbytes + blocks + absmax.nbytes + 4 * (16 + 256 + 1)


def _eight_bits(module, old):
    """LLM.int8: a byte a weight, a scale for each row."""
    weight = nn.Parameter(torch.empty(old.shape, dtype=torch.int8), requires_grad=False)
    weight.CB = weight.SCB = None
    module.state.CB, module.state.SCB = weight.data, torch.empty(old.shape[0])
    module.state.threshold = 0.0  # outliers cannot be counted where there are no numbers
    return weight, weight.nbytes + module.state.SCB.nbytes


# --- a step ---


class Tracker(TorchDispatchMode):
    """Adds up the bytes of the storages made inside it while they live; `peak` is the most there were at once."""

    def __init__(self, cuda: bool = False):
        super().__init__()
        self.held = self.peak = 0
        self.cuda, self._known = cuda, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        given = [t.untyped_storage() for t in tree_leaves((arguments, options)) if isinstance(t, torch.Tensor)]
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known and not any(storage is each for each in given):
                    self._known.add(storage)
                    self.held += storage.nbytes()
                    weakref.finalize(storage, self._drop, storage.nbytes())
        self.peak = max(self.peak, self.held + self._inside(function, arguments))
        return result

    def _drop(self, size: int) -> None:
        self.held -= size

    def _inside(self, function, arguments) -> int:
        """Bytes that a kernel takes and gives back by itself."""
        if function is torch.ops.aten.bmm.default and not self.cuda:  # a CPU's writes out what was only expanded
            return sum(x.nbytes for x in arguments if 0 in x.stride() and x.numel())
        if function.name() != "bitsandbytes::gemm_4bit":
            return 0
        x, _, (rows, columns) = arguments[:3]
        if self.cuda and x.numel() // x.shape[-1] <= FUSED:
            return 0
        return rows * columns * x.element_size() + 4 * -(-rows * columns // 64)  # unpacked, and its scales


@contextlib.contextmanager
def _as_on(device: str):
    """Where tensors lie on the CPU for want of data: what `device` does otherwise."""
    if device == "cpu":
        yield
        return
    asked = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda *kind: asked(*kind) if kind else True  # PEFT asks, and means CUDA
    try:
        with AsOnCuda():
            yield
    finally:
        torch.is_autocast_enabled = asked


@contextlib.contextmanager
def _computing(device: str):
    """16-bit autocast, as on `device`."""
    with torch.autocast("cpu", torch.bfloat16), _as_on(device):
        yield


def _batch(model, choice) -> dict:
    ids = torch.zeros((choice.batch, choice.seq), dtype=torch.long)
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids))  # a padded batch: masks get built


def _train(model, kind: str, choice) -> int:
    """Bytes that the peak of a step holds beyond weights, gradients and optimiser."""
    from utils.planner import chunk_bytes

    if choice.checkpointing:
        _checkpoint(model, choice.device)
    batch = _batch(model, choice)
    ids = batch["input_ids"]
    keep = max(1, math.ceil(choice.labels * choice.seq))
    if kind == "classifier":
        labels = torch.zeros(choice.batch, dtype=torch.long if choice.num_labels > 1 else torch.float32)
        batch["labels"] = labels
    elif kind == "seq2seq" or (keep == choice.seq and not choice.chunked_loss):
        batch["labels"] = ids
    with Tracker(choice.device == "cuda") as tracker:
        if "labels" in batch:
            with _computing(choice.device):
                loss = model(**batch).loss
            with _as_on(choice.device):
                loss.backward()
            return tracker.peak
        whole = model if choice.full else model.get_base_model()
        head = whole.get_output_embeddings()
        with _computing(choice.device):
            hidden = whole.base_model(**batch).last_hidden_state
            if not choice.chunked_loss:  # utils/sft.py scores labelled positions only
                scores = head(hidden[:, -keep:].reshape(-1, hidden.shape[-1]))
                hidden = F.cross_entropy(scores.float(), ids[:, -keep:].reshape(-1))
                del scores
        if choice.chunked_loss:
            vocabulary, width = head.weight.shape
            size = chunk_bytes(choice.batch * keep, width, vocabulary, choice.bits, choice.device == "cpu")
            tracker.peak = max(tracker.peak, tracker.held + size)
        with _as_on(choice.device):
            hidden.backward(torch.empty_like(hidden))
        return tracker.peak


def _checkpoint(model, device: str) -> None:
    # AsOnCuda is off in a backward pass, where a block is computed again.
    model.activation_checkpointing_enable(
        dict(use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _as_on(device)))
    )
    if not any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        model.enable_input_require_grads()


def _keeps_logits(model) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _use(model, kind: str, choice) -> tuple[int, int]:
    """(bytes while the model reads a batch, bytes of the cache it leaves), beyond its weights."""
    model.eval()
    batch = _batch(model, choice)
    if kind == "decoder":
        batch["use_cache"] = True
        if _keeps_logits(model):
            batch["logits_to_keep"] = 1
    if kind == "seq2seq":
        batch |= dict(decoder_input_ids=batch["input_ids"], use_cache=True)
    with Tracker(choice.device == "cuda") as tracker, torch.no_grad(), _computing(choice.device):
        out = model(**batch)
        peak = tracker.peak
    cache = getattr(out, "past_key_values", None)
    kept = {}
    for part in (cache, getattr(cache, "self_attention_cache", None), getattr(cache, "cross_attention_cache", None)):
        for layer in getattr(part, "layers", ()):
            for tensor in vars(layer).values():
                if isinstance(tensor, torch.Tensor):
                    kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
    held = sum(kept.values())
    return max(0, peak - held), held


class AsOnCuda(TorchFunctionMode):
    """What CUDA computes otherwise, on tensors that have no device to be computed on: norms and losses of autocast in fp32,
    dropout's mask in bytes, attention that keeps its four tensors and a log-sum for each row."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function is F.layer_norm:
            arguments = tuple(a.float() if isinstance(a, torch.Tensor) else a for a in arguments)
            options = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            with torch.autocast("cpu", enabled=False):
                return function(*arguments, **options)
        if function is F.dropout:
            x, p = arguments[0], options.get("p", arguments[1] if len(arguments) > 1 else 0.5)
            training = options.get("training", arguments[2] if len(arguments) > 2 else True)
            return torch.native_dropout(x, p, True)[0] if training and p else x
        if function is F.scaled_dot_product_attention:
            q, k, v = arguments[:3]
            mask = options.get("attn_mask", arguments[3] if len(arguments) > 3 else None)
            if options.get("enable_gqa"):
                k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
            return _Fused.apply(*(t.to(torch.bfloat16) for t in (q, k, v)), mask)
        return function(*arguments, **options)


class _Fused(torch.autograd.Function):
    """Attention by a fused kernel, as far as memory goes."""

    @staticmethod
    def forward(ctx, q, k, v, mask):
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors[:3]
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None
