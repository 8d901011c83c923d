"""What a LoRA layer costs: forward + backward of five layers that share one frozen weight, timed in turns.

    python -m benchmarks.lora_layer            # about 80 seconds
    python -m benchmarks.lora_layer --table    # print what is recorded

Turns and a single thread make the ratios fair on a busy machine: what slows a round slows every layer in it, and no small
product waits for a second thread that the system has put aside. Lesson 02 calls `run`.
"""

import argparse
import math
import random
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from benchmarks import record
from utils import profiles
from utils.lora import LoRALinear

ROUNDS = {512: 100, 1024: 60, 2048: 40, 4096: 12}  # width of the layer: how often each contestant runs
R, ALPHA, TOKENS = 8, 16, (4, 128)
WARM_UP = 2  # rounds that are not counted
RATIOS = {
    "ours / PEFT": ("ours", "PEFT"),
    "ours / frozen": ("ours", "frozen"),
    "forming BA / ours": ("forming BA", "ours"),
    "parametrize / ours": ("parametrize", "ours"),
}


class FormingBA(LoRALinear):
    """The version found in many tutorials: B A is formed first, as large as the weight itself, and so is its gradient."""

    def forward(self, x):
        return self.base_layer(x) + F.linear(x, self.scaling * self.lora_B @ self.lora_A)


class PlusBA(nn.Module):
    """weight -> weight + scaling B A, for `torch.nn.utils.parametrize`."""

    def __init__(self, layer: LoRALinear):
        super().__init__()
        self.scaling, self.lora_A, self.lora_B = layer.scaling, layer.lora_A, layer.lora_B

    def forward(self, weight):
        return weight + self.scaling * self.lora_B @ self.lora_A


def contestants(d: int) -> dict:
    """{name: layer}: a frozen d x d linear layer alone, and four ways to put the same A and B on it."""
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear as PeftLinear

    weight = nn.Linear(d, d).requires_grad_(False)

    def base() -> nn.Linear:
        layer = nn.Linear(d, d, device="meta")
        layer.weight, layer.bias = weight.weight, weight.bias
        return layer

    ours, forming = LoRALinear(base(), R, ALPHA), FormingBA(base(), R, ALPHA)
    nn.init.normal_(ours.lora_B, std=0.02)
    forming.load_state_dict(ours.state_dict())
    parametrised = base()
    parametrize.register_parametrization(parametrised, "weight", PlusBA(forming))
    theirs = PeftLinear(base(), "default", LoraConfig(r=R, lora_alpha=ALPHA), r=R, lora_alpha=ALPHA)
    theirs.lora_A["default"].weight.data.copy_(ours.lora_A)
    theirs.lora_B["default"].weight.data.copy_(ours.lora_B)
    return {
        "frozen": weight,
        "ours": ours,
        "PEFT": theirs,
        "forming BA": forming,
        "parametrize": parametrised,
    }


def step(layer, values, upstream) -> float:
    """Seconds of one forward and backward. The input needs its gradient, as inside a network."""
    layer.zero_grad(set_to_none=True)
    x = values.detach().requires_grad_()
    began = time.perf_counter()
    layer(x).backward(upstream)
    return time.perf_counter() - began


def run(d: int = 2048, rounds: int = 12, threads: int = 1) -> dict:
    """Time the five at width d: milliseconds (median) of each, and ratios as [lower quartile, median, upper quartile] of the
    rounds' own ratios. The defaults take about 8 seconds."""
    layers = contestants(d)
    values, upstream = torch.randn(*TOKENS, d), torch.randn(*TOKENS, d)
    with torch.no_grad():
        for name, layer in layers.items():
            if name != "frozen":  # the same function, or the race is none
                torch.testing.assert_close(layer(values), layers["ours"](values), rtol=1e-4, atol=1e-4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds = race(layers, values, upstream, rounds)
    finally:
        torch.set_num_threads(before)
    ratios = {
        told: statistics.quantiles((x / y for x, y in zip(seconds[above], seconds[below], strict=True)), n=4)
        for told, (above, below) in RATIOS.items()
    }
    return dict(
        name=f"d = {d}",
        d=d,
        rounds=rounds,
        threads=threads,
        milliseconds={name: round(1e3 * statistics.median(taken), 2) for name, taken in seconds.items()},
        ratios={told: [round(quartile, 3) for quartile in each] for told, each in ratios.items()},
    )


def race(layers: dict, values, upstream, rounds: int) -> dict:
    """{name: [seconds in each round]}, all layers in every round, in a new order each time: what ran before leaves its traces."""
    seconds, shuffled = {name: [] for name in layers}, random.Random(0)
    for turn in range(WARM_UP + rounds):
        for name in shuffled.sample(list(layers), len(layers)):
            took = step(layers[name], values, upstream)
            if turn >= WARM_UP:
                seconds[name].append(took)
    return seconds


def values() -> dict:
    """What decides these runs."""
    return dict(plan=[ROUNDS, R, ALPHA, TOKENS, WARM_UP, RATIOS], contestants=list(contestants(16)))


def canary() -> dict:
    """{contestant: the loss of five steps of gradient descent at d = 64}: the same function, learning alike."""
    torch.manual_seed(0)
    layers, told = contestants(64), {}
    x, wanted = torch.randn(32, 64), torch.randn(32, 64)
    layers.pop("frozen")
    for name, layer in layers.items():
        learners = {id(p): p for p in layer.parameters() if p.requires_grad}.values()
        before, told[name] = [p.detach().clone() for p in learners], []
        for _ in range(record.CANARY_STEPS):
            layer.zero_grad()
            loss = (layer(x) - wanted).square().mean()
            loss.backward()
            told[name].append(loss.item())
            with torch.no_grad():
                for p in learners:
                    p -= 0.5 * p.grad
        with torch.no_grad():  # two contestants share their A and B
            for p, old in zip(learners, before, strict=True):
                p.copy_(old)
    return told


def table(sizes: list) -> None:
    """Print what `run` returned for one or more sizes."""
    print("Ratios of time, median (quartiles):")
    print(f"{'d':>5}" + "".join(f"{told:>23}" for told in RATIOS))
    for size in sizes:
        cells = (
            f"{size['ratios'][told][1]:.2f} ({low:.2f} to {high:.2f})"
            for told in RATIOS
            for low, _, high in [size["ratios"][told]]
        )
        print(f"{size['d']:>5}" + "".join(f"{cell:>23}" for cell in cells))
    print("\nMilliseconds, forward + backward:")
    for size in sizes:
        print(f"{size['d']:>5}  " + " · ".join(f"{name} {ms:.1f}" for name, ms in size["milliseconds"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    if parser.parse_args().table:
        return table(record.read("lora_layer")["sizes"])
    profiles.apply(profiles.get())
    torch.manual_seed(0)
    sizes = []
    for d, rounds in ROUNDS.items():
        print(f"d = {d}: {rounds} rounds …", flush=True)
        sizes.append(run(d, rounds))
    kept = dict(
        origin=record.origin(values(), canary(), "float32"),
        due=[f"d = {d}" for d in ROUNDS],
        r=R,
        tokens=math.prod(TOKENS),
    )
    record.write("lora_layer", kept | dict(sizes=sizes))
    table(sizes)


if __name__ == "__main__":
    main()
