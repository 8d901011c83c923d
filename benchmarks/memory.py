"""The memory of a training step, measured, beside what utils/planner.py predicts.

    python -m benchmarks.memory            # about two minutes
    python -m benchmarks.memory --table    # print what is recorded

Each run is a process of its own: it trains one step, keeps the gradients as gradient accumulation does, and measures the next.
On a GPU the allocator tells its peak; on a CPU torch's profiler tells every allocation and release, and the peak is their
largest sum. (The process itself holds about twice that: libraries, and what the allocator gives back late.) Lesson 06 shows it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import record
from utils import models, planner, profiles, training

# what is trained: (a profile's model, options of planner.plan)
METHODS = {
    "encoder, LoRA query+value": ("encoder", dict(r=8, targets="qv", bits=32)),
    "encoder, full": ("encoder", dict(r=None, bits=32)),
    "decoder, QLoRA": ("decoder", dict(r=8, targets="all-linear", bits=4)),
    "decoder, QLoRA, checkpointing": ("decoder", dict(r=8, targets="all-linear", bits=4, checkpointing=True)),
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
)


def predict(method: str, batch: int, seq: int, device: str) -> dict:
    """Bytes that the planner expects: at rest between two steps, and at the peak of one."""
    kind, options = METHODS[method]
    memory = planner.plan(getattr(profiles.get("cpu"), kind), seq=seq, batch=batch, device=device, **options).training
    return dict(rest=memory.total - memory.activations, peak=memory.total)


def build(method: str, device: str):
    """The model of one run, in training mode: as lessons 04 and 06 make it."""
    import torch
    from peft import LoraConfig, get_peft_model

    kind, options = METHODS[method]
    profile = profiles.get("cpu")
    if kind == "encoder":
        model = models.load_encoder(profile)[0].to(device)
        if options["r"]:
            model = get_peft_model(model, LoraConfig("SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]))
        return model.train()
    model = models.load_decoder(profile, quantization_config=models.four_bits())[0]
    model = get_peft_model(model, LoraConfig("CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)  # as SFTTrainer does
    model.config.use_cache = False
    if options.get("checkpointing"):
        model.activation_checkpointing_enable(dict(use_reentrant=False))
        model.enable_input_require_grads()
    return model.train()


def measure(method: str, batch: int, seq: int) -> dict:
    """Bytes at rest and at the peak of the second step, in this process."""
    import torch

    profile = profiles.get("cpu")
    profiles.apply(profile)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(method, device)
    ids = torch.randint(10, model.config.vocab_size, (batch, seq), device=device)
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0  # a padded batch, as real ones are
    labels = torch.arange(batch, device=device) % 2 if METHODS[method][0] == "encoder" else ids
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)

    # 16 bits also on a CPU that would train in fp32: what is planned is autocast
    kind = torch.float16 if training.compute_dtype() == torch.float16 else torch.bfloat16

    def step():
        with torch.autocast(device, kind):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimiser.step()

    step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        rest = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return dict(device=device, rest=rest, peak=torch.cuda.max_memory_allocated())
    rest = at_rest(model, optimiser)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative when released
        peak = max(peak, held)
    return dict(device=device, rest=rest, peak=rest + peak)


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
    command = [sys.executable, "-m", "benchmarks.memory", "--one", method, str(batch), str(seq)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    measured = json.loads(done.stdout.splitlines()[-1])
    device = measured.pop("device")
    predicted = predict(method, batch, seq, device)
    told = dict(method=method, batch=batch, seq=seq, device=device, predicted=predicted, measured=measured)
    return told | dict(ratios={name: round(ratio, 4) for name, ratio in ratios(told).items()})


def ratios(run: dict) -> dict:
    """Predicted / measured: all that is held at the peak, and what the step adds to what is held at rest."""
    predicted, measured = run["predicted"], run["measured"]
    step = (predicted["peak"] - predicted["rest"]) / (measured["peak"] - measured["rest"])
    return dict(peak=predicted["peak"] / measured["peak"], step=step)


def code() -> str:
    """The hash of everything that decides the measurements (the predictions are compared anew by a test)."""
    return record.code_hash(Path(__file__), models.load_encoder, models.load_decoder, models.four_bits)


def table(runs: list) -> None:
    """Print what `run` returned for one or more shapes."""
    print(f"{'':<34}{'at the peak, MB':>22}{'predicted / measured':>26}")
    print(f"{'':<34}{'predicted':>12}{'measured':>10}{'peak':>16}{'step':>10}")
    for each in runs:
        told = f"{each['method']}, {each['batch']}x{each['seq']}"
        peaks = [each[source]["peak"] / 1e6 for source in ("predicted", "measured")]
        print(f"{told:<38}{peaks[0]:>8.1f}{peaks[1]:>10.1f}{ratios(each)['peak']:>16.3f}{ratios(each)['step']:>10.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "BATCH", "SEQ"), help="measure one shape in this process")
    options = parser.parse_args()
    if options.table:
        return table(record.read("memory")["runs"])
    if options.one:
        method, batch, seq = options.one
        return print(json.dumps(measure(method, int(batch), int(seq))))
    runs = []
    for method, batch, seq in RUNS:
        print(f"{method}, {batch}x{seq} …", flush=True)
        runs.append(run(method, batch, seq))
    record.write("memory", dict(origin=record.origin(code()), runs=runs))
    table(runs)


if __name__ == "__main__":
    main()
