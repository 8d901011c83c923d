"""The memory of a training step, measured, beside what utils/planner.py predicts.

    python -m benchmarks.memory            # about five minutes
    python -m benchmarks.memory --table    # print what is recorded

Each run is a process of its own: it trains one step, keeps the gradients as gradient accumulation does, and measures the next.
On a GPU the allocator tells its peak; on a CPU torch's profiler tells every allocation and release, and the peak is their
largest sum. (The process itself holds about twice that: libraries, and what the allocator gives back late.) Lesson 06 shows
the course's own shapes; twelve more, of other architectures, are drawn by a seed.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import record
from utils import models, planner, profiles, training

# what is trained: (a profile's model, options of planner.plan)
QLORA = dict(r=8, targets="all-linear", bits=4)
METHODS = {
    "encoder, LoRA query+value": ("encoder", dict(r=8, targets="qv", bits=16)),
    "encoder, full": ("encoder", dict(r=None, bits=32)),
    "decoder, QLoRA": ("decoder", QLORA),
    "decoder, QLoRA, checkpointing": ("decoder", QLORA | dict(checkpointing=True)),
    "decoder, QLoRA, dropout": ("decoder", QLORA | dict(lora_dropout=0.05)),
    "decoder, QLoRA, dropout, half has labels": ("decoder", QLORA | dict(lora_dropout=0.05, labels=0.5)),
}
RUNS = (  # method, batch, tokens
    ("encoder, LoRA query+value", 32, 64),
    ("encoder, LoRA query+value", 32, 128),
    ("encoder, LoRA query+value", 8, 256),
    ("encoder, full", 32, 64),
    ("decoder, QLoRA", 4, 64),
    ("decoder, QLoRA", 4, 128),
    ("decoder, QLoRA", 2, 256),
    ("decoder, QLoRA, checkpointing", 4, 128),
    ("decoder, QLoRA, dropout", 4, 128),
    ("decoder, QLoRA, dropout, half has labels", 4, 128),
)

# Small models of other architectures: what their configs need beside the sizes that `drawn` draws.
ARCHITECTURES = {
    "bert": {},
    "roberta": {},
    "deberta-v2": dict(relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=64, share_att_key=True),
    "modernbert": dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    "llama": dict(num_key_value_heads=4),
    "mistral": dict(num_key_value_heads=2),
    "qwen2": dict(num_key_value_heads=2),
    "qwen3": dict(num_key_value_heads=4, head_dim=48),
    "gemma2": dict(num_key_value_heads=4, head_dim=32),
    "gemma3_text": dict(num_key_value_heads=4, head_dim=32),
    "phi3": dict(pad_token_id=0),
    "smollm3": dict(num_key_value_heads=4, pad_token_id=0),
    "mixtral": dict(num_key_value_heads=4, num_local_experts=4),
    "qwen2_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=192),
    "qwen3_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=192, head_dim=32),
    "gpt2": {},
}
ENCODERS = ("bert", "deberta-v2", "modernbert", "roberta")
SEED, DRAWN = 2027, 12


def drawn() -> list[dict]:
    """The DRAWN shapes, no architecture twice: a config.json, and the options that planner.plan is given."""
    dice, shapes = random.Random(SEED), []
    for kind in dice.sample(sorted(ARCHITECTURES), DRAWN):
        heads = 8
        config = dict(
            model_type=kind,
            vocab_size=dice.choice((8000, 16000, 32000)),
            hidden_size=heads * dice.choice((32, 48, 64)),
            intermediate_size=dice.choice((704, 1024, 1408)),
            num_hidden_layers=dice.choice((4, 6, 8)),
            num_attention_heads=heads,
            max_position_embeddings=512,
            **ARCHITECTURES[kind],
        )
        experts = any("experts" in key for key in config)
        options = dict(
            r=dice.choice((4, 8, 16)),
            targets=dice.choice(("all-linear", "all-linear", "attention", "full")),
            bits=dice.choice((4, 4, 16)),
            lora_dropout=dice.choice((0.0, 0.05, 0.1)),
            checkpointing=dice.random() < 0.25,
            batch=dice.choice((2, 4, 8)),
            seq=dice.choice((64, 128, 192)),
        )
        if options["targets"] == "full":
            options |= dict(bits=32, lora_dropout=0.0)
        if experts and options["targets"] == "all-linear":
            options["lora_dropout"] = 0.0  # PEFT has none for experts
        shapes.append(dict(config=config, options=options))
    return shapes


def predict(method: str, batch: int, seq: int, device: str) -> dict:
    """Bytes that the planner expects: at rest between two steps, and at the peak of one."""
    kind, options = METHODS[method]
    return _predicted(planner.plan(getattr(profiles.get("cpu"), kind), seq=seq, batch=batch, device=device, **options))


def predict_drawn(shape: dict, device: str) -> dict:
    """As `predict`, for one of the `drawn`."""
    return _predicted(planner.plan(shape["config"], device=device, **shape["options"]))


def _predicted(plan) -> dict:
    return dict(rest=plan.training.total - plan.training.activations, peak=plan.training.total)


def build(method: str, device: str):
    """The model of one run, in training mode: as lessons 04 and 06 make it."""
    kind, options = METHODS[method]
    profile = profiles.get("cpu")
    if kind == "encoder":
        model = models.load_encoder(profile, frozen=bool(options["r"]))[0].to(device)
    else:
        model = models.load_decoder(profile, quantization_config=models.four_bits())[0]
    return adapt(model, METHODS[method][1], ["query", "value"] if kind == "encoder" else "all-linear")


def build_drawn(shape: dict, device: str):
    """A small random model of the shape's architecture, loaded as transformers loads one, and adapted."""
    import torch
    import transformers

    config, options = shape["config"], shape["options"]
    encoder = config["model_type"] in ENCODERS
    auto = getattr(transformers, "AutoModelForSequenceClassification" if encoder else "AutoModelForCausalLM")
    loading = dict(dtype=torch.float32 if encoder or options["bits"] == 32 else torch.bfloat16)
    if options["bits"] == 4:
        loading["quantization_config"] = models.four_bits(["classifier"] if encoder else None)
    with tempfile.TemporaryDirectory() as folder:
        auto.from_config(transformers.AutoConfig.for_model(**config)).save_pretrained(folder)
        model = auto.from_pretrained(folder, attn_implementation=planner.attention_on(device), **loading)
    if options["bits"] < 32:  # LoRA: the frozen body is lean, as utils/models.py makes it
        for module in model.base_model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for parameter in model.base_model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    targets = options["targets"]
    if targets == "attention":  # the names of the layers, found in another way than the planner's
        names = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        names |= {"c_attn"} if config["model_type"] == "gpt2" else set()
        part = "attention." if config["model_type"] in ENCODERS else "attn."
        targets = [name for name, module in model.named_modules() if part in name and name.split(".")[-1] in names]
    return adapt(models._stay_trainable(model).to(device), options, targets)


def adapt(model, options: dict, targets):
    """`model` with PEFT's adapters, in training mode and in the precisions of the course."""
    import torch
    from peft import LoraConfig, get_peft_model

    encoder = model.config.model_type in ENCODERS
    if options["r"] and options["targets"] != "full":
        dropout = options.get("lora_dropout", 0.0)
        task = "SEQ_CLS" if encoder else "CAUSAL_LM"
        config = LoraConfig(task, r=options["r"], lora_alpha=16, lora_dropout=dropout, target_modules=targets)
        model = get_peft_model(model, config)
        learnt = torch.bfloat16 if options["bits"] < 16 and not encoder else torch.float32  # as SFTTrainer does
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(learnt)
    model.config.use_cache = False
    if options.get("checkpointing"):
        model.activation_checkpointing_enable(dict(use_reentrant=False))
        model.enable_input_require_grads()
    return model.train()


def measure(method: str, batch: int, seq: int) -> dict:
    """Bytes at rest and at the peak of the second step of a taught shape, in this process."""
    return _measure(
        lambda device: build(method, device), METHODS[method][0] == "encoder", batch, seq, METHODS[method][1]
    )


def measure_drawn(shape: dict) -> dict:
    """The same of one of the `drawn`."""
    encoder, options = shape["config"]["model_type"] in ENCODERS, shape["options"]
    return _measure(lambda device: build_drawn(shape, device), encoder, options["batch"], options["seq"], options)


def _measure(build, encoder: bool, batch: int, seq: int, options: dict) -> dict:
    import torch

    profile = profiles.get("cpu")
    profiles.apply(profile)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":  # 16 bits also on a CPU that would train in fp32: what is planned is autocast
        os.environ.setdefault("COURSE_PRECISION", "bf16")
    kind = training.compute_dtype()
    model = build(device)
    ids = torch.randint(10, model.config.vocab_size, (batch, seq), device=device)
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0  # a padded batch, as real ones are
    inputs = dict(input_ids=ids, attention_mask=mask)
    labels = torch.arange(batch, device=device) % 2 if encoder else ids
    learnt = torch.arange(seq, device=device).expand(batch, seq) >= seq - int(options.get("labels", 1) * seq)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)  # transformers' default

    def loss():
        if "labels" not in options:
            return model(**inputs, labels=labels).loss
        whole = model.get_base_model()  # scores only where there are labels, as utils/sft.py
        scores = whole.get_output_embeddings()(whole.base_model(**inputs).last_hidden_state[learnt])
        return torch.nn.functional.cross_entropy(scores.float(), labels[learnt])

    def step():
        with torch.autocast(device, kind):
            told = loss()
        told.backward()
        optimiser.step()

    step()
    rest = torch.cuda.memory_allocated() if device == "cuda" else at_rest(model, optimiser)
    return dict(device=device, rest=rest, peak=rest + at_work(step, device))


def at_work(step, device: str) -> int:
    """Bytes that a step holds at its peak, above what is held before it: the allocator's, or the profiler's on a CPU."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative when released
        peak = max(peak, held)
    return peak


def at_rest(model, optimiser) -> int:
    """Bytes of all that stays between two steps; what is shared counts once."""
    import torch

    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        tensors.append(parameter.grad)
        if getattr(parameter, "quant_state", None):
            tensors += parameter.quant_state.as_dict().values()
    for state in optimiser.state.values():
        tensors += state.values()
    stores = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, torch.Tensor)]
    return sum({store.data_ptr(): store.nbytes() for store in stores}.values())


def run(method: str, batch: int, seq: int) -> dict:
    """One run in a fresh process, about 15 seconds: measured and predicted bytes at rest and at the peak."""
    measured, device = _apart("--one", method, batch, seq)
    name = f"{method}, {batch}x{seq}"
    told = dict(
        name=name, method=method, batch=batch, seq=seq, device=device, predicted=predict(method, batch, seq, device)
    )
    return _compared(told | dict(measured=measured))


def run_drawn(number: int) -> dict:
    """The same of the drawn shape of this number."""
    shape = drawn()[number]
    measured, device = _apart("--drawn", number)
    return _compared(
        dict(name=describe(shape))
        | shape
        | dict(device=device, predicted=predict_drawn(shape, device), measured=measured)
    )


def _apart(*arguments) -> tuple[dict, str]:
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    measured = json.loads(done.stdout.splitlines()[-1])
    return measured, measured.pop("device")


def _compared(told: dict) -> dict:
    return told | dict(ratios={name: round(ratio, 4) for name, ratio in ratios(told).items()})


def ratios(run: dict) -> dict:
    """Predicted / measured: all that is held at the peak, and what the step adds to what is held at rest."""
    predicted, measured = run["predicted"], run["measured"]
    step = (predicted["peak"] - predicted["rest"]) / (measured["peak"] - measured["rest"])
    return dict(peak=predicted["peak"] / measured["peak"], step=step)


def values() -> dict:
    """What decides the measurements (the predictions are compared anew by a test)."""
    profile = profiles.get("cpu")
    bases = {kind: models.base_sha256(getattr(profile, kind)) for kind in ("encoder", "decoder")}
    return dict(methods=METHODS, plan=RUNS, drawn=drawn(), bases=bases, lean=profile.lean_base)


def describe(shape: dict) -> str:
    """A drawn shape in a few words."""
    options = shape["options"]
    trained = "full" if options["targets"] == "full" else f"{options['targets']} r={options['r']}"
    extra = [f"dropout {options['lora_dropout']}"] * bool(options["lora_dropout"]) + ["checkpointing"] * options[
        "checkpointing"
    ]
    size = f"{options['batch']}x{options['seq']}"
    return ", ".join([shape["config"]["model_type"], trained, f"{options['bits']} bits", *extra, size])


def table(runs: list) -> None:
    """Print what `run` returned for one or more shapes."""
    print(f"{'':<58}{'at the peak, MB':>22}{'predicted / measured':>26}")
    print(f"{'':<58}{'predicted':>12}{'measured':>10}{'peak':>16}{'step':>10}")
    for each in runs:
        told = each["name"]
        peaks = [each[source]["peak"] / 1e6 for source in ("predicted", "measured")]
        print(f"{told:<62}{peaks[0]:>8.1f}{peaks[1]:>10.1f}{ratios(each)['peak']:>16.3f}{ratios(each)['step']:>10.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "BATCH", "SEQ"), help="measure one shape in this process")
    parser.add_argument("--drawn", type=int, metavar="N", help="measure the drawn shape N in this process")
    options = parser.parse_args()
    if options.table:
        kept = record.read("memory")
        return table(kept["runs"] + kept["drawn"])
    if options.one:
        method, batch, seq = options.one
        return print(json.dumps(measure(method, int(batch), int(seq))))
    if options.drawn is not None:
        return print(json.dumps(measure_drawn(drawn()[options.drawn])))
    runs, others = [], []
    for method, batch, seq in RUNS:
        print(f"{method}, {batch}x{seq} …", flush=True)
        runs.append(run(method, batch, seq))
    for number, shape in enumerate(drawn()):
        print(f"{describe(shape)} …", flush=True)
        others.append(run_drawn(number))
    due = [f"{method}, {batch}x{seq}" for method, batch, seq in RUNS] + [describe(shape) for shape in drawn()]
    origin = record.origin(values(), precision="bfloat16")
    record.write("memory", dict(origin=origin, due=due, runs=runs, seed=SEED, drawn=others))
    table(runs + others)


if __name__ == "__main__":
    main()
