"""Is the course ready for a GPU? What it claims for a CPU, tried on one card in about eight minutes; nothing is fetched.

    python -m benchmarks.gpu            # on a machine with a GPU
    python -m benchmarks.gpu --small    # proves the script, on a CPU too: small shapes, nothing is written
    python -m benchmarks.gpu --table    # print what is recorded

Four parts. The codes of NF4, the card's beside ours. A LoRA layer against PEFT's, forming B A, and the frozen layer. TRL's
SFTTrainer as the card trains, and forced to fp16 as an older one would. A decoder of Llama-2-7B's shape, weights random and made
on the card: our QLoRA against the tutorial's of 2023, in turns, with what the planner expects. A part that fails says so, and the
others go on.
"""

import argparse
import dataclasses
import gc
import importlib.util
import inspect
import math
import random
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from unittest import mock

from benchmarks import record
from utils import planner, profiles

BUDGET = 450  # seconds after which nothing new is begun
LARGE = 40 * 10**9  # bytes of a card that holds both 7B models at once
CHECKPOINTING, WITHOUT, TUTORIAL = "ours", "ours without checkpointing", "the tutorial of 2023"
LAYERS = ("layer, fp32", "layer, as it trains")
SFT = {"SFTTrainer, as this hardware trains": False, "SFTTrainer, fp16 as on a T4": True}  # name: is fp16 forced

# Lesson 06's, and what `training.sft_arguments` resolves to on a GPU (a test keeps them equal): needed also where TRL is missing
OURS = dict(
    double=True, r=8, alpha=16, dropout=0.05, targets="all-linear", planned="all-linear", optimizer="adamw_torch_fused",
    rate=2e-4, weight_decay=0.0, max_grad_norm=0.3,
)  # fmt: skip
# "Fine-tune Llama 2" as it went round in 2023: the settings are its own, the libraries today's. Without targets PEFT takes q and v.
THEIRS = dict(
    double=False, r=64, alpha=16, dropout=0.1, targets=None, planned="qv", optimizer="paged_adamw_32bit",
    rate=2e-4, weight_decay=0.001, max_grad_norm=0.3,
)  # fmt: skip
# name: (recipe, activation checkpointing)
DECODERS = {CHECKPOINTING: (OURS, True), WITHOUT: (OURS, False), TUTORIAL: (THEIRS, True)}
RATIOS = {"tutorial / ours": (TUTORIAL, CHECKPOINTING), "checkpointing / without": (CHECKPOINTING, WITHOUT)}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is tried."""

    decoder: dict  # a config.json
    shapes: tuple  # batch, tokens
    rounds: tuple[int, int, float]  # at least, at most, seconds after which the least is enough
    width: int  # of the layer
    layer_rounds: int
    matrices: tuple  # shape and dtype of the weights whose codes are compared
    chat: dict  # the config.json of what SFTTrainer trains
    chat_batch: tuple[int, int]
    chat_steps: int


FULL = Size(
    decoder=planner.read("llama-2-7b")[1],
    shapes=((1, 512), (4, 512), (1, 2048)),
    rounds=(3, 15, 20.0),
    width=4096,
    layer_rounds=60,
    matrices=((4096, 4096, "float32"), (4096, 4096, "bfloat16"), (4096, 4096, "float16"), (33, 99, "float32")),
    chat=planner.read("smollm2-135m")[1],
    chat_batch=(4, 256),
    chat_steps=12,
)
_TINY = dict(
    model_type="llama", vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=128, tie_word_embeddings=False,
)  # fmt: skip
SMALL = Size(
    decoder=_TINY,
    shapes=((1, 32), (4, 32)),
    rounds=(2, 2, 0.0),
    width=64,
    layer_rounds=4,
    matrices=((64, 128, "float32"), (64, 128, "bfloat16"), (33, 99, "float32")),
    chat=_TINY | dict(tie_word_embeddings=True),
    chat_batch=(2, 32),
    chat_steps=3,
)


def due(size: Size) -> list[str]:
    """The names of all runs, in the order in which they are made."""
    shapes = [f"{name}, {batch}x{seq}" for batch, seq in size.shapes for name in DECODERS]
    return [*map(_matrix, size.matrices), *LAYERS, *SFT, *shapes]


def _matrix(matrix: tuple) -> str:
    return "NF4 codes, {} x {}, {}".format(*matrix)


class Clock:
    """`clock.over` is true when the budget is spent, and nothing new should begin."""

    def __init__(self, budget: float = BUDGET):
        self._end = time.monotonic() + budget

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end


def tried(name: str, run) -> dict:
    """What `run` returns under its name; an error as a sentence, for one that fails must not take the others with it."""
    try:
        return dict(name=name) | run()
    except Exception as error:
        told = said(error)
    free()  # after the except block: until there the traceback holds the tensors
    return dict(name=name, error=told)


def said(error: Exception) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def free() -> None:
    """Give the card back what nothing refers to any more."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def needs(*packages: str) -> None:
    """RuntimeError with a sentence if one of the packages is not installed."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    if lacking:
        raise RuntimeError(f"This needs {' and '.join(lacking)}, not installed here: pip install {' '.join(lacking)}")


def race(steps: dict, rounds: tuple[int, int, float], clock: Clock, ready=lambda name: None) -> dict:
    """{name: [seconds in each round]}, all in every round, in a new order each time. `ready(name)` is not timed."""
    import torch

    # A GPU is given work, and answers later.
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    least, most, enough = rounds
    seconds, shuffled, start = {name: [] for name in steps}, random.Random(0), time.monotonic()
    for turn in range(most if steps else 0):
        if turn and (clock.over or (turn >= least and time.monotonic() - start > enough)):
            break
        for name in shuffled.sample(list(steps), len(steps)):
            ready(name)
            wait()
            began = time.perf_counter()
            steps[name]()
            wait()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def quartiles(above: list, below: list) -> list[float]:
    """The rounds' own ratios: lower quartile, median, upper quartile."""
    each = [x / y for x, y in zip(above, below, strict=True)]
    return [round(q, 3) for q in (statistics.quantiles(each, n=4) if len(each) > 1 else each * 3)]


# --- the codes of NF4 ---


def codes(size: Size, device: str, clock: Clock):
    """Yield, for each matrix, how many codes from this device's bitsandbytes differ from ours, and how many of those are ties."""
    for matrix in size.matrices:
        if not clock.over:
            yield tried(_matrix(matrix), lambda matrix=matrix: compare(matrix, device))


def compare(matrix: tuple, device: str) -> dict:
    """One matrix: mismatches, those that are no ties, and the largest error of what comes back, in parts of the block's absmax."""
    needs("bitsandbytes")
    import bitsandbytes.functional as bnb
    import numpy as np
    import torch

    from utils import nf4

    *shape, dtype = matrix
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).mul(0.02).to(device, getattr(torch, dtype))
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    theirs = nf4.unpack(packed.cpu().numpy().ravel(), weight.numel())
    values, levels = weight.float().cpu().numpy(), nf4.nf4_levels()
    ours, absmax = nf4.quantise(values, levels)
    back = bnb.dequantize_4bit(packed, state).float().cpu().numpy()
    scale = np.repeat(absmax, 64)[: values.size].reshape(values.shape)
    _, nested = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    constants, absmax2, offset = nf4.double_quantise(absmax)
    their_constants = nested.absmax.cpu().numpy().ravel()
    # bitsandbytes may look constants up in a table of 65,536 places: lesson 05's tolerance
    within = 2 / 65_535 + 2e-6
    return dict(
        codes=values.size,
        mismatches=int((ours != theirs).sum()),
        no_ties=no_ties(ours, theirs, values.ravel(), absmax, levels, 64, 1e-6),
        absmax_equal=bool((absmax == state.absmax.cpu().numpy()).all()),
        dequantised=float(np.abs((back - nf4.dequantise(theirs, absmax, levels, values.shape)) / scale).max()),
        constants=constants.size,
        constants_mismatches=int((constants != their_constants).sum()),
        constants_no_ties=no_ties(
            constants, their_constants, absmax - offset, absmax2, nf4.dynamic_levels(), 256, within
        ),
    )


def no_ties(ours, theirs, values, absmax, levels, block: int, within: float) -> int:
    """How many codes differ though one of the two levels is nearer to value / absmax, by more than `within`."""
    import numpy as np

    at = np.flatnonzero(ours != theirs)
    scaled = values[at].astype(float) / absmax[at // block]
    near, far = np.abs(scaled - levels[ours[at]]), np.abs(scaled - levels[theirs[at]])
    return int((np.abs(near - far) > within).sum())


# --- the layer ---


def layer(size: Size, device: str, clock: Clock):
    """Yield the layer's race in fp32, and as it runs in training: a 16-bit base, fp32 adapters, autocast."""
    for name in LAYERS:
        if not clock.over:
            yield tried(name, lambda name=name: race_layers(size, device, clock, trains=name == LAYERS[1]))


def race_layers(size: Size, device: str, clock: Clock, trains: bool) -> dict:
    """benchmarks/lora_layer.py's contestants on this device: milliseconds of each, and quartiles of the rounds' ratios."""
    import torch

    from benchmarks import lora_layer
    from utils import training

    torch.manual_seed(0)
    kind = training.compute_dtype() if trains else torch.float32
    with torch.device(device):
        layers = lora_layer.contestants(size.width)
        values, upstream = (torch.randn(*lora_layer.TOKENS, size.width, dtype=kind) for _ in range(2))
    layers["frozen"].to(kind)  # the one weight and bias that all share
    close = 1e-4 if kind == torch.float32 else 5e-2
    with training.autocast() if trains else nullcontext():
        with torch.no_grad():
            for name, each in layers.items():
                if name != "frozen":  # the same function, or the race is none
                    torch.testing.assert_close(each(values), layers["ours"](values), rtol=close, atol=close)
        steps = {
            name: lambda each=each: lora_layer.step(each, values, upstream.to(kind)) for name, each in layers.items()
        }
        race(steps, (lora_layer.WARM_UP,) * 2 + (0.0,), clock)
        seconds = race(steps, (size.layer_rounds,) * 2 + (0.0,), clock)
    return dict(
        d=size.width,
        dtype=str(kind).removeprefix("torch."),
        rounds=len(seconds["ours"]),
        milliseconds={name: round(1e3 * statistics.median(taken), 3) for name, taken in seconds.items()},
        ratios={told: quartiles(seconds[above], seconds[below]) for told, (above, below) in lora_layer.RATIOS.items()},
    )


# --- a model of random numbers in four bits ---


def random_decoder(config: dict, device: str, dtype, compute, double: bool):
    """A decoder as `models.load_decoder` loads one in four bits, weights random and made on the device: no file, no fp32 copy.

    dtype: of what is not quantised; compute: of the products; double: double quantisation.
    """
    needs("bitsandbytes")
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    from utils import models

    told = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(told, dtype=dtype, attn_implementation=models.attention())

    def drawn(shape):
        return torch.empty(shape, dtype=dtype, device=device).normal_(std=0.02)

    options = dict(compress_statistics=double, quant_type="nf4")
    for block in model.model.layers:
        for path, linear in [(path, each) for path, each in block.named_modules() if isinstance(each, nn.Linear)]:
            sizes, bias = (linear.in_features, linear.out_features), linear.bias is not None
            packed = Linear4bit(*sizes, bias, compute, device="meta", **options)
            packed.weight = Params4bit(drawn(linear.weight.shape), module=packed, **options).to(device)  # quantises
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent), name, packed)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                fresh = drawn(parameter.shape)
                setattr(module, name, nn.Parameter(fresh.fill_(1) if parameter.ndim == 1 else fresh, False))
    model.tie_weights()
    # The rotary embedding's frequencies are computed and not loaded: from the meta device they would come as garbage.
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(told)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise RuntimeError(
                f"{name} was not made; this transformers builds its decoder in another way than expected."
            )
    quantised = models.four_bits()
    quantised.bnb_4bit_use_double_quant, quantised.bnb_4bit_compute_dtype = double, compute
    model.is_loaded_in_4bit = model.is_quantized = True  # what PEFT, TRL, accelerate and the Trainer look for
    model.quantization_method = quantised.quant_method
    model.hf_quantizer = AutoHfQuantizer.from_config(quantised, pre_quantized=True)
    model.config.quantization_config = quantised
    model.config.use_cache = False
    if device == "cuda":
        model.hf_device_map = {"": 0}
    return models._stay_trainable(model)


# --- SFTTrainer ---


def sft(size: Size, device: str, clock: Clock):
    """Yield a few steps of TRL's SFTTrainer on rows of random tokens, by the course's own settings."""
    for name, forced in SFT.items():
        if not clock.over:
            yield tried(name, lambda forced=forced: train(size, device, forced))
            free()


def train(size: Size, device: str, forced: bool) -> dict:
    """Losses, and the least that any B has moved. forced: the card says that it has no bf16, and the course then uses fp16."""
    needs("bitsandbytes", "trl", "datasets", "tokenizers")
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    from utils import training

    batch, length = size.chat_batch
    profile = dataclasses.replace(profiles.get("gpu"), instruction_batch=batch, instruction_length=length)
    vocabulary, dice = size.chat["vocab_size"], random.Random(0)
    # rows of like and unlike length, so that some are padded; the first quarter stands for the question
    lengths = [length - length // 4 * (i % 2) for i in range(batch * size.chat_steps)]
    rows = Dataset.from_dict(
        {
            "input_ids": [[dice.randrange(3, vocabulary) for _ in range(n)] for n in lengths],
            "completion_mask": [[int(i >= n // 4) for i in range(n)] for n in lengths],
        }
    )
    no_bf16 = mock.patch.object(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with no_bf16 if forced else nullcontext(), tempfile.TemporaryDirectory() as folder, older_names(trl):
        training.set_seed(0)
        kind = training.compute_dtype()
        model = random_decoder(size.chat, device, kind, kind, double=True)
        changes = dict(max_steps=size.chat_steps, logging_steps=1, disable_tqdm=True)
        changes["logging_nan_inf_filter"] = False  # it would hide the very losses that are looked for
        trainer = trl.SFTTrainer(
            model,
            args=training.sft_arguments(profile, folder, **changes),
            train_dataset=rows,
            processing_class=no_words(vocabulary),
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=OURS["r"], lora_alpha=OURS["alpha"], lora_dropout=OURS["dropout"],
                target_modules=OURS["targets"],
            ),
        )  # fmt: skip
        training.ready_for_fp16(trainer.model)
        learnt = {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
        scaled = trainer.accelerator.scaler is not None
        if forced and device == "cuda" and (kind != torch.float16 or not scaled or learnt != {"torch.float32"}):
            raise RuntimeError(f"fp16 was not what came of it: {kind}, adapters {learnt}, scaler {scaled}.")
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = [entry["loss"] for entry in log]
    if not all(map(math.isfinite, losses)):
        raise ArithmeticError(f"Not all losses are finite: {losses}.")
    moved = [p.abs().max().item() for name, p in trainer.model.named_parameters() if "lora_B" in name]
    if not all(map(math.isfinite, moved)) or min(moved) <= 0:
        raise ArithmeticError(f"{sum(not m > 0 for m in moved)} of {len(moved)} matrices B have not moved.")
    return dict(
        dtype=str(kind).removeprefix("torch."),
        mixed_precision=trainer.accelerator.mixed_precision,
        scaler=scaled,
        adapters=sorted(each.removeprefix("torch.") for each in learnt),
        losses=[round(loss, 4) for loss in losses],
        skipped=sum(not math.isfinite(float(entry.get("grad_norm", 0))) for entry in log),  # by the scaler of fp16
        moved=min(moved),
        matrices=len(moved),
        note=""
        if kind == torch.float16 or not forced
        else f"fp16 needs a GPU, so this was {str(kind).removeprefix('torch.')}",
    )


def older_names(trl):
    """A context in which `training.sft_arguments` works with a transformers that calls activation checkpointing gradient's."""
    config = trl.SFTConfig
    if "activation_checkpointing" in inspect.signature(config).parameters:
        return nullcontext()

    def renamed(activation_checkpointing=False, **options):
        former = "gradient_checkpointing"
        return config(**{former: activation_checkpointing}, **options)

    return mock.patch.object(trl, "SFTConfig", renamed)


def no_words(vocabulary: int):
    """A tokenizer for rows that are token ids already: it only pads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"<{i}>": i for i in range(vocabulary)}
    told = dict(unk_token="<0>", pad_token="<1>", eos_token="<2>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<0>")), **told)


# --- the decoder ---


class Contestant:
    """A model with adapters and its optimiser, by a recipe."""

    def __init__(self, config: dict, recipe: dict, device: str):
        import torch
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        from utils import training

        torch.manual_seed(0)
        self.recipe, ours = recipe, recipe is OURS
        kind = training.compute_dtype()
        compute = torch.float16 if not ours and device == "cuda" else kind  # fp16 products gain nothing on a CPU
        model = random_decoder(config, device, kind if ours else compute, compute, recipe["double"])
        if not ours:  # as SFTTrainer did in 2023: all that is not in four bits becomes fp32
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=recipe["r"], lora_alpha=recipe["alpha"], lora_dropout=recipe["dropout"],
            target_modules=recipe["targets"],
        )  # fmt: skip
        self.model = get_peft_model(model, lora).train()
        self.learnt = [p for p in self.model.parameters() if p.requires_grad]
        if ours:
            for parameter in self.learnt:
                parameter.data = parameter.data.bfloat16()  # as SFTTrainer does today
            training.ready_for_fp16(self.model)
        options = dict(lr=recipe["rate"], weight_decay=recipe["weight_decay"])
        if ours:
            self.optimiser = torch.optim.AdamW(self.learnt, fused=True, **options)
        else:
            from bitsandbytes.optim import PagedAdamW32bit

            self.optimiser = PagedAdamW32bit(self.learnt, **options)
        # The tutorial said fp16=False, bf16=False: no autocast, and no scaler.
        self.context = training.autocast if ours else nullcontext
        self.scaler = torch.amp.GradScaler(device, enabled=ours and kind == torch.float16)

    def checkpointing(self, on: bool) -> None:
        """Switch activation checkpointing, by the name that this transformers has for it."""
        word = "enable" if on else "disable"
        switch = getattr(self.model, f"activation_checkpointing_{word}", None)
        switch = switch or getattr(self.model, f"gradient_checkpointing_{word}")
        switch(*([dict(use_reentrant=False)] if on else []))

    def step(self, batch: dict):
        """One step of training; the loss, still on the device. Gradients stay in memory between steps, as the planner has it."""
        from torch.nn.utils import clip_grad_norm_

        self.optimiser.zero_grad(set_to_none=False)
        with self.context():
            loss = self.model(**batch).loss
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        clip_grad_norm_(self.learnt, self.recipe["max_grad_norm"])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.detach()


def decoder(size: Size, device: str, clock: Clock):
    """Yield each recipe at each shape: tokens a second, bytes at the peak, and the planner's. In turns where both models fit."""
    import torch

    large = device == "cpu" or torch.cuda.get_device_properties(0).total_memory > LARGE
    for recipes in [[OURS, THEIRS]] if large else [[OURS], [THEIRS]]:
        built = {}
        for recipe in recipes if not clock.over else ():
            try:
                made = Contestant(size.decoder, recipe, device)
            except Exception as error:
                made = said(error)
            free()
            built |= {name: made for name, (own, _) in DECODERS.items() if own is recipe}
        for batch, seq in size.shapes:
            if not clock.over:
                yield from shape_runs(size, built, batch, seq, device, clock)
        made = built = None
        free()


def shape_runs(size: Size, built: dict, batch: int, seq: int, device: str, clock: Clock):
    """Yield the runs of one shape: what each holds in its second step, then the race of those that fit."""
    import torch

    print(f"  {batch} x {seq} …", flush=True)
    ids = torch.randint(10, size.decoder["vocab_size"], (batch, seq), device=device)
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0  # a padded batch, as real ones are
    inputs = dict(input_ids=ids, attention_mask=mask, labels=ids)

    def ready(name: str) -> None:
        built[name].checkpointing(DECODERS[name][1])

    runs = {}
    for name, contestant in built.items():
        told = dict(batch=batch, seq=seq, checkpointing=DECODERS[name][1])
        try:
            told["predicted"] = predict(size.decoder, *DECODERS[name], batch, seq, device)
        except Exception as error:  # the measurement is worth having without it
            told |= dict(predicted=None, planner=said(error))
        held = tried(
            f"{name}, {batch}x{seq}", lambda c=contestant, name=name: holds(c, lambda: ready(name), inputs, device)
        )
        runs[name] = held | told
    steps = {name: lambda c=built[name]: c.step(inputs) for name, run in runs.items() if "error" not in run}
    seconds = tried("race", lambda: race(steps, size.rounds, clock, ready))
    for name in steps:
        if "error" in seconds:
            runs[name]["error"] = f"It fitted, and was not timed. {seconds['error']}"
            continue
        taken = statistics.median(seconds[name])
        pairs = {told: pair for told, pair in RATIOS.items() if pair[0] == name and pair[1] in steps}
        runs[name] |= dict(
            rounds=len(seconds[name]),
            seconds=round(taken, 4),
            tokens_per_second=round(batch * seq / taken, 1),
            ratios={told: quartiles(*(seconds[each] for each in pair)) for told, pair in pairs.items()},
        )
    yield from runs.values()


def holds(contestant, ready, inputs: dict, device: str) -> dict:
    """Bytes at rest and at the peak of the second step (the first makes gradients and Adam's numbers), and the first loss."""
    from benchmarks import memory

    if isinstance(contestant, str):
        raise RuntimeError(f"Its model could not be made. {contestant}")
    ready()
    for _ in range(8):
        loss = contestant.step(inputs).item()
        if contestant.optimiser.state:  # the scaler of fp16 skips steps until it has found its scale
            break
    if not math.isfinite(loss):
        raise ArithmeticError(f"The loss is {loss}.")
    free()
    rest = memory.at_rest(contestant.model, contestant.optimiser)  # its own: the other model is on the card too
    return dict(loss=round(loss, 4), rest=rest, peak=rest + memory.at_work(lambda: contestant.step(inputs), device))


def predict(config: dict, recipe: dict, checkpointing: bool, batch: int, seq: int, device: str) -> int:
    """Bytes at the peak by the planner, which plans as this course trains: it knows nothing of the tutorial's single quantisation,
    nor of the fp32 that its SFTTrainer turned the rest into."""
    return planner.plan(
        config, r=recipe["r"], targets=recipe["planned"], bits=4, seq=seq, batch=batch, checkpointing=checkpointing,
        device=device, lora_dropout=recipe["dropout"], optimizer=recipe["optimizer"],
    ).training.total  # fmt: skip


# --- all of it ---

# What takes longest comes last.
PARTS = {"NF4 codes": codes, "the layer": layer, "SFTTrainer": sft, "the decoder": decoder}


def values(size: Size = FULL) -> dict:
    """What decides these runs."""
    from benchmarks import lora_layer

    recipes = {name: [recipe, checkpointing] for name, (recipe, checkpointing) in DECODERS.items()}
    return dict(
        size=dataclasses.asdict(size), recipes=recipes, layer=[lora_layer.R, lora_layer.ALPHA, lora_layer.TOKENS]
    )


def run(size: Size, device: str, clock: Clock, keep=lambda record: None) -> dict:
    """All parts in turn, as a record; `keep` is called with it after each run, so that one cut short is not lost."""
    import torch

    cuda, began = device == "cuda", time.monotonic()
    kept = dict(
        origin=record.origin(values(size)),
        card=torch.cuda.get_device_name(0) if cuda else "none: a CPU",
        memory=torch.cuda.get_device_properties(0).total_memory if cuda else 0,
        software=dict(cuda=torch.version.cuda) | {name: _version(name) for name in ("bitsandbytes", "trl")},
        seconds=0,
        due=due(size),
        runs=[],
    )

    def add(each: dict) -> None:
        kept["runs"].append(each)
        kept["seconds"] = round(time.monotonic() - began)
        keep(kept)

    for name, part in PARTS.items():
        print(f"{name} …", flush=True)
        before = len(kept["runs"])
        try:
            for each in part(size, device, clock):
                add(each)
        except Exception as error:
            add(dict(name=name, error=said(error)))
        if len(kept["runs"]) == before:
            print("  not begun: the time is up")
        free()
    return kept


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def spread(ratios: dict) -> str:
    """Ratios as `quartiles` gives them, in words."""
    return " · ".join(f"{told} {middle:.2f} ({low:.2f} to {high:.2f})" for told, (low, middle, high) in ratios.items())


def table(kept: dict) -> None:
    """Print a record."""
    print(f"\n{kept['card']}, {kept['seconds']} seconds")
    runs = {each["name"]: each for each in kept["runs"] if "error" not in each}
    for name, each in runs.items():
        if "mismatches" in each:
            print(f"{name}: {each['mismatches']:,} of {each['codes']:,} differ, {each['no_ties']:,} of them no ties; of the "
                  f"constants {each['constants_mismatches']:,} of {each['constants']:,}, {each['constants_no_ties']:,}")  # fmt: skip
        elif "milliseconds" in each:
            taken = " · ".join(f"{layer} {ms}" for layer, ms in each["milliseconds"].items())
            print(f"{name} ({each['dtype']}), d = {each['d']}: ms {taken}\n    {spread(each['ratios'])}")
        elif "losses" in each:
            how = f"{each['dtype']}, adapters {', '.join(each['adapters'])}, {'a' if each['scaler'] else 'no'} loss scaler"
            print(f"{name} ({how}): losses {each['losses'][0]} to {each['losses'][-1]}, {each['skipped']} steps skipped, "
                  f"all {each['matrices']} B moved{each['note'] and '; ' + each['note']}")  # fmt: skip
    print(f"\n{'':<40}{'tokens/s':>10}{'peak, MB':>10}{'planned':>10}{'planned/peak':>14}   ratios of time")
    for name, each in runs.items():
        if "peak" in each:
            planned = each["predicted"] or math.nan
            print(f"{name:<40}{each['tokens_per_second']:>10,.0f}{each['peak'] / 1e6:>10,.1f}{planned / 1e6:>10,.1f}"
                  f"{planned / each['peak']:>14.3f}   {spread(each['ratios'])}")  # fmt: skip
    print("The planner plans as this course trains: the tutorial's single quantisation and its fp32 are not in it.")
    for each in kept["runs"]:
        if "error" in each:
            planned = f" (planned: {each['predicted'] / 1e9:.2f} GB)" if each.get("predicted") else ""
            print(f"FAILED  {each['name']}{planned}: {each['error']}")
    if lacking := record.missing(kept):
        print(f"NOT RUN  {', '.join(lacking)}")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small shapes that prove the script; writes nothing")
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    options = parser.parse_args(arguments)
    if options.table:
        table(record.read("gpu"))
        return 0
    profiles.apply(profiles.get("cpu"))  # asks no hub
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.small:
        table(run(SMALL, device, Clock()))
        where = "a CPU" if device == "cpu" else torch.cuda.get_device_name(0)
        print(f"a small shape on {where}: this proves the script, not a card")
        return 0
    if device == "cpu":
        print("No GPU is at hand; `python -m benchmarks.gpu --small` proves the script on a CPU.", file=sys.stderr)
        return 2
    kept = run(FULL, device, Clock(), keep=lambda kept: record.write("gpu", kept))
    table(kept)
    wrong = [
        each["name"] for each in kept["runs"] if "error" in each or each.get("no_ties") or each.get("constants_no_ties")
    ]
    if wrong := [*wrong, *(name for name in record.missing(kept) if name not in wrong)]:
        print(f"Failed, not run, or with codes that differ: {', '.join(wrong)}.", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
