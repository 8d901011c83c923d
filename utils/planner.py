"""Will it fit on my GPU? `python -m utils.planner --model llama-2-7b --bits 4 --seq 512 --batch 4`, or `plan(...)` in a notebook.

For RoBERTa, BERT, Llama and Mistral closed formulas over a model's config.json: nothing is loaded, torch is not needed. Any other
text model of transformers goes through utils/simulate.py. Parameter counts are PEFT's and transformers' own. Memory is what the
allocator holds at the peak of a step as the course trains (PEFT, 16-bit autocast, padded batches; a frozen body below 32 bits
without dropout; attention step by step on a CPU, fused on CUDA). benchmarks/memory.py sets it against measurements on a CPU, and
benchmarks/gpu.py, for QLoRA alone, on CUDA; what CUDA does otherwise is said where it is computed. Sizes are bytes; 1 GB = 10**9.
"""

import argparse
import dataclasses
import difflib
import json
import math
import sys
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

from utils import console

CONFIGS = Path(__file__).parent / "configs"
ALIASES = {  # what profiles.py calls them
    "minilm-roberta": "minilm",
    "smollm2-llama": "smollm2-135m",
    "FacebookAI/roberta-base": "roberta-base",
    "NousResearch/Llama-2-7b-chat-hf": "llama-2-7b",
}
ENCODERS, DECODERS = ("roberta", "xlm-roberta", "bert"), ("llama", "mistral")
BITS = (4, 8, 16, 32)
CARDS = (8, 16, 24, 40, 80)  # GB
OPTIMIZERS = (
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
)  # as TrainingArguments calls them
ATTENTIONS = ("eager", "sdpa")
# Whose steps benchmarks/memory.py set against the allocator on a CPU, and whose QLoRA steps benchmarks/gpu.py did on CUDA
ON_CUDA = ("llama",)
MEASURED = (
    *("bert", "deberta-v2", "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"),
    *("roberta", "smollm3"),
)
PUBLISHED = {  # what others measured on GPUs: (options like theirs, a part of Memory, GB, where, why ours is another number)
    "llama-2-7b": (
        (
            dict(r=32, targets="qv", bits=16, seq=512, batch=2, lora_dropout=0.05),
            "total",
            19.77,
            "LoRA: litgpt, A10G, 32.8 minutes",
            "It trains without PEFT: its LoRA makes one padded tensor of query, key and value.",
        ),
        (
            dict(r=32, targets="qv", bits=4, seq=512, batch=2, lora_dropout=0.05),
            "total",
            13.68,
            "QLoRA: litgpt, A10G, 45.7 minutes",
            "Of the gap about 0.3 GB are constants that it does not quantise again, and 1 GB inputs that the bitsandbytes of its "
            "time kept for every 4-bit layer; the rest is unexplained.",
        ),
        (
            dict(r=64, bits=4, seq=512, batch=1, checkpointing=True),
            "weights",
            5.05,
            "QLoRA: its paper, the base's weights",
            "Embeddings and head are in 16 bits here; in 32 they would add 0.5 GB.",
        ),
    ),
}
CONTEXT, FRAGMENTED = 10**9, 0.05  # held back of a card: the CUDA context and libraries; what fragmentation wastes


class Linear(NamedTuple):
    """A linear layer. `reads` names its input: x, attention, y or inner (the MLP's middle); pooled: BERT's pooler's, which is in
    no block."""

    name: str
    d_out: int
    d_in: int
    reads: str

    @property
    def size(self) -> int:
        return self.d_out * self.d_in


@dataclass(frozen=True)
class Choice:
    """What `plan` was asked, checked."""

    full: bool
    r: int
    targets: object
    bits: int
    seq: int
    batch: int
    checkpointing: bool
    chunked_loss: bool
    num_labels: int
    device: str
    lora_dropout: float
    optimizer: str
    labels: float
    attention: str

    @property
    def tokens(self) -> int:
        return self.seq * self.batch

    @property
    def cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def eager(self) -> bool:
        return self.attention == "eager"


@dataclass(frozen=True)
class Shape:
    """What a config.json says, as far as memory depends on it."""

    name: str
    encoder: bool
    blocks: int
    width: int
    inner: int
    heads: int
    vocabulary: int
    positions: int
    linears: tuple[Linear, ...]
    head_tensors: tuple[int, ...]  # sizes of the classifier's, which an encoder trains beside its LoRA
    total: int  # all parameters, the head included
    dropout: float
    attention_dropout: float

    @property
    def head(self) -> int:
        return sum(self.head_tensors)

    @property
    def in_linears(self) -> int:
        """Weights of the linear layers below the head: what is quantised, and what LoRA may target."""
        return sum(self.times(layer) * layer.size for layer in self.linears)

    def times(self, layer: Linear) -> int:
        """How often the model has this layer."""
        return 1 if layer.reads == "pooled" else self.blocks

    @property
    def inner_linears(self) -> tuple[Linear, ...]:
        return tuple(layer for layer in self.linears if layer.reads != "pooled")


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what they are for. Gradients count as kept through it, which is what gradient accumulation does."""

    weights: int
    adapter: int  # LoRA, and the encoder's new head
    gradients: int
    optimiser: int
    activations: int
    cache: int = 0  # keys and values of the tokens so far

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.gradients + self.optimiser + self.activations + self.cache

    @property
    def cards(self) -> tuple[int, ...]:
        """The CARDS it fits on."""
        return tuple(card for card in CARDS if self.total <= usable(card))


@dataclass(frozen=True)
class Plan:
    """What `plan` found: counts of parameters, and bytes."""

    model: str
    method: str
    total: int  # LoRA included
    lora: int
    head: int
    trainable: int
    disk: int  # what a training saves: the adapter, or the whole model
    bits_per_weight: float  # of the blocks' linear layers, constants of quantisation included
    training: Memory
    inference: Memory
    activation_terms: dict[str, int]  # training.activations, term by term
    paged: int = 0  # of training.optimiser, what CUDA may move to ordinary memory when the card is full
    measured: str = ""  # what of this answer was set against a measurement


def plan(
    model,
    r: int | None = 8,
    targets="all-linear",
    bits: int = 4,
    seq: int = 512,
    batch: int = 4,
    checkpointing: bool = False,
    chunked_loss: bool = False,
    num_labels: int = 2,
    device: str = "cuda",
    lora_dropout: float = 0.0,
    optimizer: str = "adamw_torch_fused",
    labels: float = 1.0,
    attention: str | None = None,
) -> Plan:
    """Parameters and memory of a fine-tuning, and memory of using its model on `batch` rows of `seq` tokens.

    model: a name in utils/configs, a profile's encoder or decoder, a config.json of any text model (the file, its folder, or what
    it says as a dict). r: rank; None, or targets="full", for full fine-tuning. targets: names of linear layers, or one of
    all-linear, attention, mlp, qv. bits: 32 (fp32 weights), 16, 8 (LLM.int8) or 4 (NF4, double quantisation; only linear layers).
    chunked_loss: as TRL's SFTTrainer, which never holds all logits. labels: the share of tokens that a decoder's loss scores.
    device: "cuda" or "cpu". optimizer: one of OPTIMIZERS. attention: "eager" or "sdpa"; None: what `attention_on` the device is.
    Raises ValueError for what cannot be, FileNotFoundError for a path that is not there.
    """
    _at_least_one(seq=seq, batch=batch, num_labels=num_labels)
    _one_of(BITS, bits=bits)
    _one_of(("cuda", "cpu"), device=device)
    _one_of(OPTIMIZERS, optimizer=optimizer)
    _one_of((*ATTENTIONS, None), attention=attention)
    if not _number(lora_dropout) or not 0 <= lora_dropout < 1:
        raise ValueError(f"lora_dropout={lora_dropout!r}, but it must be a share from 0 to below 1.")
    if not _number(labels) or not 0 < labels <= 1:
        raise ValueError(f"labels={labels!r}, but it must be a share of the tokens, above 0 and at most 1.")
    full = r is None or targets == "full"
    if full and bits < 16:
        raise ValueError(f"bits={bits}, but full fine-tuning needs weights that it can change: 16 or 32 bits.")
    choice = Choice(
        full=full,
        r=0 if full else r,
        targets=targets,
        bits=bits,
        seq=seq,
        batch=batch,
        checkpointing=checkpointing,
        chunked_loss=chunked_loss,
        num_labels=num_labels,
        device=device,
        lora_dropout=0.0 if full else lora_dropout,
        optimizer=optimizer,
        labels=labels,
        attention=attention or attention_on(device),
    )
    name, config = read(model)
    return (_by_formula if config.get("model_type") in ENCODERS + DECODERS else _by_simulation)(name, config, choice)


def attention_on(device: str) -> str:
    """The attention with which the course trains there: PyTorch's fused one is slow backwards on a CPU."""
    return "eager" if device == "cpu" else "sdpa"


def _by_formula(name: str, config: dict, choice: Choice) -> Plan:
    shape, bits, full = _shape(name, config, choice.num_labels), choice.bits, choice.full
    if choice.seq > shape.positions:
        raise ValueError(f"seq={choice.seq}, but {shape.name} has positions for {shape.positions} tokens at most.")
    chosen = shape.linears if full else choose(shape, choice.targets, choice.r)
    tensors = _whole(shape) if full else _adapters(shape, chosen, choice.r)
    lora = 0 if full else sum(tensors) - shape.head
    # Bytes of a trained number: PEFT keeps adapters in fp32, but SFTTrainer turns those of a quantised model into bf16.
    each = bits // 8 if full else 2 if bits < 16 and not shape.encoder else 4
    stored = sum(shape.times(layer) * _stored(layer, bits) for layer in shape.linears)
    outside = shape.total - shape.in_linears  # embeddings, norms, biases, head: 16 bits or more
    weights = stored + outside * max(2, bits // 8) + (0 if full else shape.head * max(0, 4 - max(2, bits // 8)))
    terms = _activations(shape, () if full else chosen, choice)
    cache = 0 if shape.encoder else 2 * shape.blocks * shape.linears[1].d_out * choice.tokens * max(2, bits // 8)
    return _told(
        name,
        choice,
        [layer.name.rpartition("self.")[2] for layer in chosen],
        counts=(shape.total, lora, shape.head),
        tensors=tensors,
        learnt=each * sum(tensors),
        weights=weights,
        bits_per_weight=8 * stored / shape.in_linears,
        terms=terms,
        inside=max(_reading(shape, choice), _last_scores(shape, choice)),
        cache=cache,
        kind=config["model_type"],
    )


def _by_simulation(name: str, config: dict, choice: Choice) -> Plan:
    from utils import simulate

    if not choice.full:
        _at_least_one(r=choice.r)
    found = simulate.run(config, name, choice)
    return _told(
        name,
        choice,
        found.chosen,
        counts=(found.total, found.lora, found.head),
        tensors=found.tensors,
        learnt=found.learnt,
        weights=found.weights,
        bits_per_weight=found.bits_per_weight,
        terms={"a simulated step": found.activations},
        inside=found.inside,
        cache=found.cache,
        kind=config["model_type"],
    )


def _told(name, choice, chosen, counts, tensors, learnt, weights, bits_per_weight, terms, inside, cache, kind) -> Plan:
    (total, lora, head), adapter = counts, 0 if choice.full else learnt
    optimiser, paged = states(tensors, learnt // max(1, sum(tensors)), choice.optimizer, choice.cpu)
    return Plan(
        model=name,
        method="full" if choice.full else f"LoRA r={choice.r} on {', '.join(chosen)}",
        total=total + lora,
        lora=lora,
        head=head,
        trainable=sum(tensors),
        disk=learnt,
        bits_per_weight=bits_per_weight,
        training=Memory(weights, adapter, learnt, optimiser, sum(terms.values())),
        inference=Memory(weights, adapter, 0, 0, inside, cache),
        activation_terms=terms,
        paged=paged,
        measured=_measured(choice, kind),
    )


def states(tensors, each: int, optimizer: str, cpu: bool) -> tuple[int, int]:
    """(bytes, of them pageable) of Adam's two numbers for each number of the trained tensors, given their sizes.

    torch's have the `each` bytes of what is trained; bitsandbytes' four, or one and an fp32 scale for 256 from 4,096 numbers on.
    Paged ones leave a full card from 100,000 numbers on, which few adapters have; a CPU has no pages.
    """
    if optimizer == "adamw_torch_fused":
        return 2 * each * sum(tensors), 0
    held = paged = 0
    for size in tensors:
        packed = optimizer.endswith("8bit") and size >= 4096
        numbers = 2 * size * (1 if packed else 4)
        held += numbers + packed * 2 * 4 * -(-size // 256)
        paged += numbers * (optimizer.startswith("paged") and size >= 100_000 and not cpu)
    return held, paged


def _measured(choice: Choice, kind: str) -> str:
    """What of a plan was set against a measurement, for a model of this `model_type`."""
    plain = choice.optimizer == OPTIMIZERS[0] and not choice.chunked_loss
    if choice.device == "cuda":
        if plain and kind in ON_CUDA and choice.bits == 4 and not (choice.full or choice.eager):
            return "on CUDA, within 1 %, for QLoRA at Llama-2-7B's shape (benchmarks/gpu.py)"
        return "not on CUDA, for this kind of training: counts are exact, memory is an estimate"
    as_tried = plain and choice.eager and choice.bits != 8 and (choice.full or choice.bits < 32)
    if not (as_tried and kind in MEASURED):
        return "neither on a CPU nor on CUDA, for this kind of training"
    return "on a CPU, within 5 %, for small models of this architecture (benchmarks/memory.py)"


def _adapters(shape: Shape, chosen, r: int) -> tuple[int, ...]:
    """Sizes of the trained tensors of a LoRA: A and B of each layer, and an encoder's new head."""
    pairs = [side for layer in chosen for side in (r * layer.d_in, r * layer.d_out) * shape.times(layer)]
    return (*pairs, *shape.head_tensors)


def _whole(shape: Shape) -> tuple[int, ...]:
    """Sizes of all tensors; biases and norms, too short to matter, as one for each block."""
    linears = [layer.size for layer in shape.linears for _ in range(shape.times(layer))]
    return (*linears, shape.total - shape.in_linears)


def usable(card: float) -> int:
    """Bytes that a step may fill of a card of so many GB: less 5 % for fragmentation, less 1 GB for the CUDA context."""
    return int(card * 10**9 * (1 - FRAGMENTED)) - CONTEXT


def load(model, num_labels: int = 2) -> Shape:
    """The Shape of a model for which there are formulas, given as `plan` takes it. ValueError, FileNotFoundError."""
    name, config = read(model)
    if config["model_type"] not in ENCODERS + DECODERS:
        kinds = ", ".join(ENCODERS + DECODERS)
        raise ValueError(
            f"{name!r} describes a model of type {config['model_type']!r}; formulas there are for {kinds}."
        )
    return _shape(name, config, num_labels)


def read(model) -> tuple[str, dict]:
    """(name, config) of a known model, of a config.json (the file, or the folder that holds it), or of a config as a dict.
    ValueError, FileNotFoundError."""
    if isinstance(model, dict):
        name, config = str(model.get("model_type")), model
    else:
        known = sorted(file.stem for file in CONFIGS.glob("*.json"))
        name = ALIASES.get(str(model), str(model))
        path = CONFIGS / f"{name}.json" if name in known else Path(model)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file() and path.suffix == ".json":
            raise FileNotFoundError(
                f"There is no file {str(path)!r}; give the path of a config.json, or {', '.join(known)}."
            )
        if not path.is_file():
            near = difflib.get_close_matches(name.lower(), known)
            told = f"did you mean {' or '.join(near)}" if near else f"the planner knows {', '.join(known)}"
            raise ValueError(f"There is no model {name!r}; {told}, or give the path of a config.json.")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} is not JSON ({error}); the planner reads a model's config.json.") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{name!r} names no model_type; the planner reads the config.json of a text model.")
    return name, config


def _shape(name: str, c: dict, num_labels: int) -> Shape:
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    lacking = [key for key in (*needed, "max_position_embeddings") if key not in c]
    if lacking:
        raise ValueError(f"{name!r} lacks {lacking[0]!r}, without which memory cannot be planned.")
    _at_least_one(num_labels=num_labels, **{key: c[key] for key in (*needed, "max_position_embeddings")})
    blocks, d, m, n_heads, vocabulary = (c[key] for key in needed)
    positions, encoder, bert = c["max_position_embeddings"], c["model_type"] in ENCODERS, c["model_type"] == "bert"
    if encoder:
        linears = (
            *(Linear(f"attention.self.{each}", d, d, "x") for each in ("query", "key", "value")),
            Linear("attention.output.dense", d, d, "attention"),
            Linear("intermediate.dense", m, d, "y"),
            Linear("output.dense", d, m, "inner"),
        )
        others = sum(layer.d_out for layer in linears) + 4 * d  # biases, norms
        # RoBERTa's head begins with a dense layer that in BERT is the body's: its pooler. Both end in one linear layer.
        dense = d * d + d
        heads = (num_labels * d, num_labels) + (() if bert else (d * d, d))
        linears += (Linear("pooler.dense", d, d, "pooled"),) * bert
        outside = (vocabulary + positions + c.get("type_vocab_size", 2) + 2) * d + sum(heads) + (dense if bert else 0)
        positions -= 0 if bert else (c.get("pad_token_id", 1) or 0) + 1  # RoBERTa counts from there
    else:
        d_head = c.get("head_dim") or d // n_heads
        q, kv = n_heads * d_head, (c.get("num_key_value_heads") or n_heads) * d_head
        linears = (
            *(Linear(f"self_attn.{each}_proj", size, d, "x") for each, size in (("q", q), ("k", kv), ("v", kv))),
            Linear("self_attn.o_proj", d, q, "attention"),
            *(Linear(f"mlp.{each}_proj", m, d, "y") for each in ("gate", "up")),
            Linear("mlp.down_proj", d, m, "inner"),
        )
        biases = bool(c.get("attention_bias")) * (q + 2 * kv + d) + bool(c.get("mlp_bias")) * (2 * m + d)
        others, heads = biases + 2 * d, ()
        outside = vocabulary * d * (1 if c.get("tie_word_embeddings") else 2) + d
    total = outside + blocks * (sum(layer.size for layer in linears if layer.reads != "pooled") + others)
    dropouts = [encoder * c.get(f"{each}_dropout_prob", 0.1) for each in ("hidden", "attention_probs")]
    return Shape(name, encoder, blocks, d, m, n_heads, vocabulary, positions, linears, heads, total, *dropouts)


def choose(shape: Shape, targets, r: int) -> tuple[Linear, ...]:
    """The linear layers that `targets` means, all of which can have rank r. ValueError, with near misses, otherwise."""
    every = shape.linears
    short = {"all-linear": every, "attention": every[:4], "mlp": shape.inner_linears[4:], "qv": every[:3:2]}
    if isinstance(targets, str) and targets in short:
        chosen = short[targets]
    else:
        wanted = targets.split(",") if isinstance(targets, str) else list(targets)
        ends = [".".join(layer.name.split(".")[-n:]) for layer in every for n in (1, 2)]
        unknown = [target for target in wanted or [""] if not any(_matches(layer, target) for layer in every)]
        if unknown:
            names = [*short, *dict.fromkeys(ends)]
            near = " or ".join(difflib.get_close_matches(unknown[0], names, n=3) or names)
            raise ValueError(f"No linear layer of {shape.name} matches {unknown[0]!r}; did you mean {near}?")
        chosen = tuple(layer for layer in every if any(_matches(layer, target) for target in wanted))
    tightest = min(chosen, key=lambda layer: min(layer.d_in, layer.d_out))
    largest = min(tightest.d_in, tightest.d_out)
    if isinstance(r, bool) or not isinstance(r, Integral) or not 1 <= r <= largest:
        raise ValueError(
            f"r={r!r}, but the rank must be a whole number from 1 to {largest}, the smaller side of {tightest.name} "
            f"({tightest.d_out} x {tightest.d_in})."
        )
    return chosen


def _matches(layer: Linear, target: str) -> bool:
    return f".{layer.name}".endswith(f".{target}")


def _number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _one_of(allowed, **values) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or value not in allowed:
            raise ValueError(f"{name}={value!r}, but it must be one of {', '.join(map(str, allowed))}.")


def _at_least_one(**values) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r}, but it must be a whole number of at least 1.")


def _stored(layer: Linear, bits: int) -> int:
    """Bytes of a weight matrix as it is kept."""
    if bits == 4:  # half a byte; a byte for 64, fp32 for 64 x 256 of them; two tables of codes (16, 256) and an offset
        constants = -(-layer.size // 64)
        return layer.size // 2 + constants + 4 * -(-constants // 256) + 4 * (16 + 256 + 1)
    return layer.size * bits // 8 + (4 * layer.d_out if bits == 8 else 0)  # LLM.int8: a scale for each row


def _activations(shape: Shape, chosen, choice: Choice) -> dict[str, int]:
    """Bytes of activations at the peak, term by term: what autograd keeps, and the largest of what comes and goes."""
    chosen = [layer for layer in chosen if layer.reads != "pooled"]
    block = _block(shape, chosen, choice)
    working = {"at work": _working(shape, chosen, choice)}
    loss = {"logits and loss": _loss(shape, choice)}
    # Accumulation adds a new gradient to the old one: the largest, that of the embeddings, comes when all else has gone.
    last = {"a new gradient": shape.vocabulary * shape.width * max(2, choice.bits // 8) * choice.full}
    if not choice.checkpointing:
        kept = {term: shape.blocks * size for term, size in block.items()}
        return max(kept | max(working, loss, key=_sum), last, key=_sum)
    # Every block's input is kept (LLM.int8 keeps those of its layers all the same), and the inside comes back for one block at a
    # time. Forward, autocast holds its copies of all weights that learn.
    inputs = [layer.d_in for layer in _distinct(shape.inner_linears)] if choice.bits == 8 else []
    each = _between(shape, choice) * shape.width + 2 * sum(inputs)
    kept = {"blocks' inputs": shape.blocks * each * choice.tokens}
    working |= {f"one block's {term}": size for term, size in block.items()}
    copies = {"copies of weights": _copies(shape, choice)}
    forward = copies | {term: size * 10 // 12 for term, size in loss.items()}  # before the loss has its gradient
    reading = {"at work": _reading(shape, choice)}
    return max(kept | max(working, loss, forward, reading, key=_sum), last, key=_sum)


def _sum(terms: dict[str, int]) -> int:
    return sum(terms.values())


def _between(shape: Shape, choice: Choice) -> int:
    """Bytes of a number between two blocks. CUDA's autocast gives layer norms, and so encoders, fp32; the CPU's does not."""
    return 4 if choice.bits == 32 or (shape.encoder and not choice.cpu) else 2


def _block(shape: Shape, chosen, choice: Choice) -> dict[str, int]:
    """Bytes that autograd keeps of one block, term by term. Autocast's linear layers and attention work in 16 bits: 2 bytes."""
    tokens, cpu, full = choice.tokens, choice.cpu, choice.full
    d, m, q = shape.width, shape.inner, shape.linears[0].d_out
    between = _between(shape, choice)
    inside = between if choice.bits < 16 else 2  # a quantised layer answers in the dtype of its input
    drops = full or choice.bits == 32  # a frozen body below 32 bits has no dropout
    block = {}
    if shape.encoder:
        block["norms"] = 2 * tokens * (between * d + 2 * 4)  # inputs; mean and spread of each token
        block["activation"] = inside * tokens * m  # GELU's input
        each = inside if cpu else 1  # the CPU keeps dropout's mask as numbers, CUDA as bytes
        block["dropout"] = 2 * tokens * d * each * (drops and shape.dropout > 0)  # after attention and after the MLP
    else:
        block["norms"] = (
            2 * tokens * (4 * d + 4 + between * d * full)
        )  # inputs in fp32, a scale; outputs if RMSNorm learns
        block["activation"] = 3 * 2 * tokens * m  # SiLU's input and output, and the other factor
    noise = drops and shape.attention_dropout > 0
    if choice.eager:  # q, k, v; for each head seq x seq: probabilities (in 16 bits too where fp32), noise and product
        wide = between == 4 or not shape.encoder
        squares = 4 * (1 + noise) + 2 if wide else 2 * (1 + 2 * noise)
        block["attention"] = tokens * (3 * 2 * q + squares * shape.heads * choice.seq)
    elif noise and cpu:  # the CPU's fused attention knows no dropout: step by step, in fp32
        block["attention"] = 4 * 3 * tokens * (q + shape.heads * choice.seq)
    else:  # q, k, v (repeated for every head where rows are padded), the answer; a log-sum for each head; padding's mask
        block["attention"] = 2 * 4 * tokens * q + 4 * tokens * shape.heads + 2 * tokens * choice.seq
    block["inputs of what learns"] = _inputs(shape, chosen, choice, between)
    # Autocast's 16-bit copies of fp32 weights, kept to pass the gradient on; adapters are fp32 unless SFTTrainer made them bf16.
    base = sum(layer.size for layer in shape.inner_linears) * (choice.bits == 32)
    adapters = choice.r * sum(layer.d_in + layer.d_out for layer in chosen) * (shape.encoder or choice.bits > 8)
    block["copies of weights"] = 2 * (base + adapters)
    return block


def _inputs(shape: Shape, chosen, choice: Choice, between: int) -> int:
    """Bytes of the inputs that a block's trained layers keep, of what LoRA has between A and B, and of LoRA's dropout."""
    # PEFT passes each fp32 adapter a copy of the input by way of fp32, and autocast copies what is fp32; CUDA's 4 and 8 bits do
    # without. Otherwise layers share their input, and fused attention's answer is kept already. LLM.int8 keeps all inputs.
    tokens, full, cpu, bits = choice.tokens, choice.full, choice.cpu, choice.bits
    wide = not full and (bits > 8 or (shape.encoder and cpu))
    copied = wide or choice.lora_dropout > 0
    inputs = shape.inner_linears if full else chosen
    if not copied:
        inputs = [layer for layer in inputs if choice.eager or layer.reads != "attention"]
    if not copied and between == 2:
        inputs = _distinct(inputs)
    kept = 2 * tokens * (sum(layer.d_in for layer in inputs) + choice.r * len(chosen))
    if bits == 8:
        shared = () if copied else [layer.reads for layer in inputs]
        kept += 2 * tokens * sum(each.d_in for each in _distinct(shape.inner_linears) if each.reads not in shared)
    # Dropout's noise: on a CPU in the dtype of the input, on CUDA a byte.
    each = 0 if not choice.lora_dropout else 1 if not cpu else 4 if wide else between
    return kept + each * tokens * sum(layer.d_in for layer in chosen)


def _distinct(layers) -> tuple[Linear, ...]:
    """One layer for each input that they read."""
    return tuple({layer.reads: layer for layer in layers}.values())


def _working(shape: Shape, chosen, choice: Choice) -> int:
    """Bytes that a block's forward or backward holds for a moment, beyond what autograd keeps."""
    d, m, tokens = shape.width, shape.inner, choice.tokens
    if not shape.encoder:
        dequantised = max(2 * layer.size for layer in shape.linears) if choice.bits < 16 else 0
        return tokens * (3 * 2 * m + 4 * 2 * d) + dequantised  # the MLP's three, and the sums around it
    if not choice.cpu:  # embeddings, the block's input, both norms' outputs in fp32; the MLP's middle; dropout's output
        return tokens * (4 * 4 * d + 2 * m + 2 * d)
    again = choice.checkpointing * d * (14 if choice.bits == 32 else 5)  # gradients that wait while a block comes back
    if choice.bits == 32:  # gradients in fp32: of the MLP's middle and the sums, of attention's scores; padding's mask
        return tokens * (
            (6 * m + 10 * d if choice.full else 4 * m + 6 * d) + 4 * (1 + shape.heads) * choice.seq + again
        )
    widest = max((layer.d_in for layer in chosen), default=d)  # an adapter's input in fp32
    gone = choice.lora_dropout > 0 and not choice.checkpointing  # the last block's noise, by then
    return tokens * (2 * m + 4 * widest + (1 if gone else 4 if choice.full else 7) * d + 2 * choice.seq + again)


def _copies(shape: Shape, choice: Choice) -> int:
    """Bytes of the 16-bit copies that autocast holds, till a forward pass ends, of fp32 weights that learn."""
    head = shape.vocabulary * shape.width * (not shape.encoder)
    return 2 * (shape.in_linears + head) * (choice.bits == 32 and choice.full)


def _reading(shape: Shape, choice: Choice) -> int:
    """Bytes that a forward pass holds for a moment when nothing is kept for a backward pass."""
    tokens, each = choice.tokens, 4 if choice.bits == 32 else 2
    scores = choice.eager * (4 + each * shape.encoder) * shape.heads * choice.seq
    working = _working(shape, (), dataclasses.replace(choice, checkpointing=False))
    if shape.encoder:
        working = max(working, tokens * (4 * each * shape.width + scores))
    else:
        working += tokens * scores
    return working + _copies(shape, choice)


def _last_scores(shape: Shape, choice: Choice) -> int:
    """Bytes for a decoder's scores of each row's last token: a CPU writes out the head's weights for every row."""
    copies = choice.batch * (choice.cpu and choice.batch > 1 and choice.seq > 1)
    return 0 if shape.encoder else copies * 2 * shape.vocabulary * shape.width + _copies(shape, choice)


def _loss(shape: Shape, choice: Choice) -> int:
    """Bytes that a decoder's loss holds when the backward pass begins."""
    if shape.encoder:
        return 0
    scored = choice.batch * max(1, math.ceil(choice.labels * choice.seq))
    if choice.chunked_loss:
        return chunk_bytes(scored, shape.width, shape.vocabulary, choice.bits, choice.cpu)
    # Log-probabilities and two gradients like them, in fp32; the last norm's input; autocast's copy of fp32 weights.
    weights = 2 * shape.vocabulary * shape.width * (choice.bits == 32)
    return 4 * (3 * scored * shape.vocabulary + choice.tokens * shape.width) + weights


def chunk_bytes(tokens: int, width: int, vocabulary: int, bits: int, cpu: bool) -> int:
    """Bytes that TRL's loss holds, which works on 4,096 tokens x 32,768 of the vocabulary at a time: in place on CUDA, in seven
    fp32 tensors and a mask on a CPU."""
    copy = 2 * vocabulary * width * (bits == 32)  # autocast's
    return min(tokens, 4096) * 32_768 * (2 + 29 * cpu) + 4 * 2 * tokens * width + copy


def show(plan: Plan, published=()) -> None:
    """Print a plan as a table; below it what was measured, and what others published."""
    from rich.console import Console
    from rich.table import Table

    print(f"{plan.model}, {plan.method}")
    print(
        f"trained {plan.trainable:,} of {plan.total:,} parameters ({plan.trainable / plan.total:.4%}): LoRA {plan.lora:,}, "
        f"head {plan.head:,}; {plan.disk / 1e6:,.1f} MB on disk; {plan.bits_per_weight:.3f} bits a weight in the blocks"
    )
    table = Table("GB", "training", "inference")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in ("weights", "adapter", "gradients", "optimiser", "activations", "cache", "total"):
        table.add_row(part, *(f"{getattr(memory, part) / 1e9:.3f}" for memory in (plan.training, plan.inference)))
    fits = (", ".join(map(str, memory.cards)) or "none of these" for memory in (plan.training, plan.inference))
    table.add_row("fits on (GB)", *fits)
    Console().print(table)
    print(f"Of each card 1 GB is held back for the CUDA context and {FRAGMENTED:.0%} for fragmentation.")
    if plan.paged:
        print(f"Of the optimiser {plan.paged / 1e9:.3f} GB can move to ordinary memory when the card is full.")
    print(f"Measured: {plan.measured}.")
    for ours, theirs, where, why in published:
        print(f"Published: {theirs:.2f} GB ({where}); planned for the same training: {ours:.2f} GB. {why}")


def published(name: str) -> list[tuple[float, float, str, str]]:
    """What others measured of this model: GB as planned for the same training, theirs, where, and the reason for the gap."""
    known = PUBLISHED.get(name, ())
    return [(getattr(plan(name, **like).training, part) / 1e9, *told) for like, part, *told in known]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m utils.planner", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a known model, or the config.json of any text model")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument(
        "--targets", default="all-linear", help="all-linear, attention, mlp, qv, full, or q_proj,v_proj"
    )
    parser.add_argument("--bits", type=int, default=4, help="4, 8, 16 or 32")
    parser.add_argument("--seq", type=int, default=512, help="tokens a row")
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--chunked-loss", action="store_true", help="as TRL's SFTTrainer")
    parser.add_argument("--labels", type=float, default=1.0, help="share of the tokens that the loss scores")
    parser.add_argument("--num-labels", type=int, default=2, help="classes of a classifier")
    parser.add_argument("--lora-dropout", type=float, default=0.0)
    parser.add_argument("--optimizer", default=OPTIMIZERS[0], help=", ".join(OPTIMIZERS))
    parser.add_argument("--attention", help="eager or sdpa; left out: what the course uses on the device")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    try:
        planned = plan(**vars(parser.parse_args(arguments)))
        show(planned, published(planned.model))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    console.run(main)
