"""Will it fit on my GPU? `python -m utils.planner --model llama-2-7b --bits 4 --seq 512 --batch 4`, or `plan(...)` in a notebook.

Closed formulas over a model's config.json: nothing is loaded, torch is not needed. Parameter counts are exact. Memory is what the
allocator holds at the peak of a step as the course trains (PEFT, AdamW, 16-bit autocast, SDPA, padded batches).
benchmarks/memory.py sets it against measurements, so far on a CPU; what CUDA does otherwise is said where it is computed.
Sizes are bytes; 1 GB = 10**9 bytes.
"""

import argparse
import difflib
import json
import sys
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

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
CONTEXT, FRAGMENTED = 10**9, 0.05  # held back of a card: the CUDA context and libraries; what fragmentation wastes


class Linear(NamedTuple):
    """A linear layer of every block. `reads` names its input: x, attention, y or inner (the MLP's middle)."""

    name: str
    d_out: int
    d_in: int
    reads: str

    @property
    def size(self) -> int:
        return self.d_out * self.d_in


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
    head: int  # parameters of the classifier that an encoder trains beside its LoRA
    total: int  # all parameters, the head included
    dropout: float
    attention_dropout: float

    @property
    def in_linears(self) -> int:
        """Weights of the blocks' linear layers: what is quantised, and what LoRA may target."""
        return self.blocks * sum(layer.size for layer in self.linears)


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
) -> Plan:
    """Parameters and memory of a fine-tuning, and memory of using its model on `batch` rows of `seq` tokens.

    model: a name in utils/configs, a profile's encoder or decoder, or the path of a config.json (RoBERTa, BERT, Llama, Mistral).
    r: rank; None, or targets="full", for full fine-tuning. targets: names of a block's linear layers, or one of all-linear,
    attention, mlp, qv. bits: 32 (fp32 weights), 16, 8 (LLM.int8) or 4 (NF4, double quantisation; only linear layers in blocks).
    chunked_loss: as TRL's SFTTrainer, which never holds all logits. device: "cuda" or "cpu".
    Raises ValueError for what cannot be, FileNotFoundError for a path that is not there.
    """
    shape = load(model, num_labels)
    _at_least_one(seq=seq, batch=batch)
    if seq > shape.positions:
        raise ValueError(f"seq={seq}, but {shape.name} has positions for {shape.positions} tokens at most.")
    if bits not in BITS:
        raise ValueError(f"bits={bits!r}, but weights come in {', '.join(map(str, BITS))} bits.")
    if device not in ("cuda", "cpu"):
        raise ValueError(f"device={device!r}, but the planner knows 'cuda' and 'cpu'.")
    full = r is None or targets == "full"
    if full and bits < 16:
        raise ValueError(f"bits={bits}, but full fine-tuning needs weights that it can change: 16 or 32 bits.")
    chosen, r = (shape.linears, 0) if full else (choose(shape, targets, r), r)
    lora = shape.blocks * sum(r * (layer.d_in + layer.d_out) for layer in chosen)
    trainable = shape.total if full else lora + shape.head
    # Bytes of a trained number: PEFT keeps adapters in fp32, but SFTTrainer turns those of a quantised model into bf16.
    learnt = trainable * (bits // 8 if full else 2 if bits < 16 and not shape.encoder else 4)
    stored = shape.blocks * sum(_stored(layer, bits) for layer in shape.linears)
    outside = shape.total - shape.in_linears  # embeddings, norms, biases, head: 16 bits or more
    weights = stored + outside * max(2, bits // 8)
    adapter = 0 if full else learnt
    terms = _activations(shape, chosen, r, bits, seq, batch, checkpointing, chunked_loss, device == "cpu")
    cache = 0 if shape.encoder else 2 * shape.blocks * shape.linears[1].d_out * seq * batch * max(2, bits // 8)
    return Plan(
        model=shape.name,
        method="full" if full else f"LoRA r={r} on {', '.join(layer.name.rpartition('self.')[2] for layer in chosen)}",
        total=shape.total + lora,
        lora=lora,
        head=shape.head,
        trainable=trainable,
        disk=learnt,
        bits_per_weight=8 * stored / shape.in_linears,
        training=Memory(
            weights, adapter, learnt, 2 * learnt, sum(terms.values())
        ),  # AdamW keeps two numbers for each learnt
        inference=Memory(weights, adapter, 0, 0, _working(shape, bits, seq * batch), cache),
        activation_terms=terms,
    )


def usable(card: float) -> int:
    """Bytes that a step may fill of a card of so many GB: less 5 % for fragmentation, less 1 GB for the CUDA context."""
    return int(card * 10**9 * (1 - FRAGMENTED)) - CONTEXT


def load(model, num_labels: int = 2) -> Shape:
    """The Shape of a known model, or of a config.json (the file, or the folder that holds it). ValueError, FileNotFoundError."""
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
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}); the planner reads a model's config.json.") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ENCODERS + DECODERS:
        kinds = ", ".join(ENCODERS + DECODERS)
        raise ValueError(f"{str(path)!r} describes a model of type {kind!r}; the planner knows {kinds}.")
    try:
        return _shape(name, config, num_labels)
    except KeyError as error:
        raise ValueError(f"{str(path)!r} lacks {error}, without which memory cannot be planned.") from None


def _shape(name: str, c: dict, num_labels: int) -> Shape:
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    _at_least_one(num_labels=num_labels, **{key: c[key] for key in (*sizes, "max_position_embeddings")})
    blocks, d, m, heads, vocabulary = (c[key] for key in sizes)
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
        head = num_labels * (d + 1) + (0 if bert else dense)
        outside = (vocabulary + positions + c.get("type_vocab_size", 2) + 2) * d + head + (dense if bert else 0)
        positions -= 0 if bert else (c.get("pad_token_id", 1) or 0) + 1  # RoBERTa counts from there
    else:
        d_head = c.get("head_dim") or d // heads
        q, kv = heads * d_head, (c.get("num_key_value_heads") or heads) * d_head
        linears = (
            *(Linear(f"self_attn.{each}_proj", size, d, "x") for each, size in (("q", q), ("k", kv), ("v", kv))),
            Linear("self_attn.o_proj", d, q, "attention"),
            *(Linear(f"mlp.{each}_proj", m, d, "y") for each in ("gate", "up")),
            Linear("mlp.down_proj", d, m, "inner"),
        )
        biases = bool(c.get("attention_bias")) * (q + 2 * kv + d) + bool(c.get("mlp_bias")) * (2 * m + d)
        others, head = biases + 2 * d, 0
        outside = vocabulary * d * (1 if c.get("tie_word_embeddings") else 2) + d
    total = outside + blocks * (sum(layer.size for layer in linears) + others)
    dropouts = [encoder * c.get(f"{each}_dropout_prob", 0.1) for each in ("hidden", "attention_probs")]
    return Shape(name, encoder, blocks, d, m, heads, vocabulary, positions, linears, head, total, *dropouts)


def choose(shape: Shape, targets, r: int) -> tuple[Linear, ...]:
    """The linear layers that `targets` means, all of which can have rank r. ValueError, with near misses, otherwise."""
    every = shape.linears
    short = {"all-linear": every, "attention": every[:4], "mlp": every[4:], "qv": every[:3:2]}
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


def _activations(shape, chosen, r, bits, seq, batch, checkpointing, chunked_loss, cpu) -> dict[str, int]:
    """Bytes of activations at the peak, term by term: what autograd keeps, and the largest of what comes and goes. r=0: full."""
    tokens, between = seq * batch, _between(shape, bits, cpu)
    block = _block(shape, chosen, r, bits, seq, batch, cpu)
    working = {"at work": _working(shape, bits, tokens)}
    loss = {"logits and loss": _loss(shape, bits, tokens, chunked_loss, cpu)}
    if checkpointing:  # every block's input is kept; the inside comes back for one block at a time
        kept = {"blocks' inputs": shape.blocks * between * tokens * shape.width}
        working |= {f"one block's {term}": size for term, size in block.items()}
    else:
        kept = {term: shape.blocks * size for term, size in block.items()}
    return kept | max(working, loss, key=lambda terms: sum(terms.values()))


def _between(shape: Shape, bits: int, cpu: bool) -> int:
    """Bytes of a number between two blocks. CUDA's autocast gives layer norms, and so encoders, fp32; the CPU's does not."""
    return 4 if bits == 32 or (shape.encoder and not cpu) else 2


def _block(shape, chosen, r, bits, seq, batch, cpu) -> dict[str, int]:
    """Bytes that autograd keeps of one block, term by term. Autocast's linear layers and attention work in 16 bits: 2 bytes."""
    tokens, d, m, q = seq * batch, shape.width, shape.inner, shape.linears[0].d_out
    between = _between(shape, bits, cpu)
    inside = between if bits < 16 else 2  # a quantised layer answers in the dtype of its input
    full = r == 0
    block = {}
    if shape.encoder:
        block["norms"] = 2 * tokens * (between * d + 2 * 4)  # inputs; mean and spread of each token
        block["activation"] = inside * tokens * m  # GELU's input
        each = inside if cpu else 1  # the CPU keeps dropout's mask as numbers, CUDA as bytes
        block["dropout"] = 2 * tokens * d * each * (shape.dropout > 0)  # after attention and after the MLP
    else:
        block["norms"] = 2 * tokens * (4 * d + 4 + 2 * d * full)  # inputs in fp32, a scale; outputs if RMSNorm learns
        block["activation"] = 3 * 2 * tokens * m  # SiLU's input and output, and the other factor
    # The CPU's fused attention knows no dropout, so there an encoder's attention is computed step by step.
    stepwise = cpu and shape.attention_dropout > 0
    if stepwise:  # q, k and v in fp32; for each head probabilities, noise and their product, seq x seq
        block["attention"] = 4 * 3 * tokens * (q + shape.heads * seq)
    else:  # q, k, v (repeated for every head where rows are padded), the answer; a log-sum for each head; padding's mask
        block["attention"] = 2 * 4 * tokens * q + 4 * tokens * shape.heads + 2 * tokens * seq
    # PEFT passes each adapter, over weights that are not quantised, a copy of the input by way of fp32, and autocast copies
    # what is fp32. Otherwise layers share their input, and attention's answer is kept already. LLM.int8 keeps all inputs.
    copied = bits > 8 and not full
    inputs = shape.linears if bits == 8 else chosen
    inputs = [layer for layer in inputs if copied or stepwise or layer.reads != "attention"]
    if not copied and between == 2:
        inputs = {layer.reads: layer for layer in inputs}.values()
    block["inputs of what learns"] = 2 * tokens * (sum(layer.d_in for layer in inputs) + r * len(chosen))
    # Autocast's 16-bit copies of fp32 weights, kept to pass the gradient on; adapters are fp32 unless SFTTrainer made them bf16.
    base = sum(layer.size for layer in shape.linears) * (bits == 32)
    adapters = r * sum(layer.d_in + layer.d_out for layer in chosen) * (shape.encoder or bits > 8)
    block["copies of weights"] = 2 * (base + adapters)
    return block


def _working(shape: Shape, bits: int, tokens: int) -> int:
    """Bytes that a block's forward or backward holds for a moment, beyond what autograd keeps."""
    d, m = shape.width, shape.inner
    if shape.encoder:  # embeddings, the block's input, both norms' outputs in fp32; the MLP's middle; dropout's output
        return tokens * (4 * 4 * d + 2 * m + 2 * d)
    dequantised = max(2 * layer.size for layer in shape.linears) if bits < 16 else 0
    return tokens * (3 * 2 * m + 4 * 2 * d) + dequantised  # the MLP's three, and the sums around it


def _loss(shape: Shape, bits: int, tokens: int, chunked: bool, cpu: bool) -> int:
    """Bytes that a decoder's loss holds when the backward pass begins."""
    if shape.encoder:
        return 0
    weights = 2 * shape.vocabulary * shape.width * (bits == 32)  # autocast's copy
    if not chunked:  # log-probabilities and two gradients like them, in fp32; the last norm's input
        return 4 * tokens * (3 * shape.vocabulary + shape.width) + weights
    # TRL works on 4,096 tokens x 32,768 of the vocabulary at a time: in place on CUDA, in seven fp32 tensors and a mask on a CPU.
    return min(tokens, 4096) * 32_768 * (2 + 29 * cpu) + 4 * 2 * tokens * shape.width + weights


def show(plan: Plan) -> None:
    """Print a plan as a table."""
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


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m utils.planner", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a known model, or the path of a config.json")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument(
        "--targets", default="all-linear", help="all-linear, attention, mlp, qv, full, or q_proj,v_proj"
    )
    parser.add_argument("--bits", type=int, default=4, help="4, 8, 16 or 32")
    parser.add_argument("--seq", type=int, default=512, help="tokens a row")
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--chunked-loss", action="store_true", help="as TRL's SFTTrainer")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    try:
        show(plan(**vars(parser.parse_args(arguments))))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
