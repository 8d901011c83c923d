"""A training step on a machine that others use too: how OpenMP's waiting is set, and what it costs, quiet and busy.

    python -m benchmarks.busy            # about 6 minutes on two cores; leave the machine alone meanwhile
    python -m benchmarks.busy --turns 5  # more turns

A step of lesson 04 (LoRA on query and value) runs in a process of its own for each setting, the settings in turns, beside no, one
and two other processes that never rest. The ratios are to the same step on the quiet machine, as OpenMP waits by itself.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from utils import ROOT, profiles

SETTINGS = {  # before torch loads
    "as it comes": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "KMP_BLOCKTIME=0": {"KMP_BLOCKTIME": "0"},  # what the course sets where the runtime is LLVM's or Intel's
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
if sys.platform == "linux":  # PyTorch brings GNU's runtime, which does not read it
    del SETTINGS["KMP_BLOCKTIME=0"]
else:
    SETTINGS = {name: setting for name, setting in SETTINGS.items() if "GOMP" not in name}
BUSY = (0, 1, 2)  # processes beside
STEPS, WARM_UP, LIMIT = 24, 4, 20  # steps in a process; not counted; seconds after which it stops early
ROWS, TOKENS = 32, 28  # a batch of lesson 04, of which half have fewer tokens


def one() -> float:
    """Milliseconds of a step, the median, in this process."""
    import torch
    from peft import LoraConfig, get_peft_model

    from utils import models, training

    profile = profiles.get("cpu")
    profiles.apply(profile)
    model, _ = models.load_encoder(profile, frozen=True)
    model = get_peft_model(model, LoraConfig("SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids, labels = torch.randint(1_000, 5_000, (ROWS, TOKENS)), torch.arange(ROWS) % 2
    taken, end = [], time.monotonic() + LIMIT
    while len(taken) < STEPS and (time.monotonic() < end or len(taken) <= WARM_UP):
        began = time.perf_counter()
        with training.autocast():
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        taken.append(time.perf_counter() - began)
    return 1e3 * statistics.median(taken[WARM_UP:])


def run(setting: str) -> float:
    """`one` in a fresh process with a setting, whatever the environment of this one says."""
    plain = {name: value for name, value in os.environ.items() if name not in (*profiles.WAITING, "OMP_WAIT_POLICY")}
    code = "import sys; sys.path.insert(0, ''); from benchmarks import busy; print(busy.one())"
    # An explicit default, so that the package's own setting does not step in: "as it comes" is what nobody has set.
    untouched = {} if SETTINGS[setting] else {"OMP_WAIT_POLICY": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=plain | untouched | SETTINGS[setting],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def table(taken: dict) -> None:
    """Print medians in milliseconds, and their ratios to the quiet step as it comes, {(setting, busy processes): [ms]}."""
    base = statistics.median(taken["as it comes", 0])
    print(f"{'one step of lesson 04':<26}" + "".join(f"{f'{n} busy beside':>24}" for n in BUSY))
    for setting in SETTINGS:
        told = (statistics.median(taken[setting, n]) for n in BUSY)
        print(f"{setting:<26}" + "".join(f"{ms:>12.0f} ms{ms / base:>8.2f} x" for ms in told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    taken = {(setting, n): [] for setting in SETTINGS for n in BUSY}
    for turn in range(turns):
        print(f"turn {turn + 1} of {turns} …", flush=True)
        for n in BUSY:
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
            try:
                for setting in SETTINGS:
                    taken[setting, n].append(run(setting))
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    table(taken)


if __name__ == "__main__":
    main()
