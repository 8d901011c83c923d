"""What a new task costs the old one: full fine-tuning and LoRA of two ranks, four learning rates each, eight draws.

    python -m benchmarks.forgetting            # about 6 minutes on one core; goes on where it stopped
    python -m benchmarks.forgetting --table    # print what is recorded

Each draw trains a digit reader of its own on upright digits, then adapts it to 100 digits lying on their side. While that goes
on, both tasks are asked every five steps. Lesson 02 compares the methods where they have learnt equally much of the new task.
"""

import argparse
import copy

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn
from tqdm.auto import tqdm

from benchmarks import record
from utils import lora, profiles

METHODS = {"full": None, "LoRA r=4": 4, "LoRA r=1": 1}  # the rank on every layer
RATES = {"full": (1e-4, 3e-4, 1e-3, 3e-3), "LoRA r=4": (1e-3, 3e-3, 1e-2, 3e-2), "LoRA r=1": (1e-3, 3e-3, 1e-2, 3e-2)}
ALPHA, DRAWS, EXAMPLES, BATCH = 8, range(8), 100, 64
READER = (600, 1e-3)  # how long and how fast the reader is trained
STEPS, EVERY = 751, 5  # of the new task; watched so often
LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # accuracies of the new task at which the old one is noted


def digits():
    """({task: pixels}, labels, rows to train on, rows to test on) of scikit-learn's digits, 8 x 8 pixels from 0 to 1."""
    found = load_digits()
    images, labels = torch.tensor(found.images / 16, dtype=torch.float32), torch.tensor(found.target)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    tasks = {"upright": images.flatten(1), "on their side": torch.rot90(images, 1, (1, 2)).flatten(1)}
    return tasks, labels, shuffled[:1200], shuffled[1200:]


def reader(seed: int):
    """An untrained network for the ten digits."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def prepared(network, method: str, seed: int):
    """A copy of a reader, ready to be adapted by `method`."""
    network = copy.deepcopy(network)
    if r := METHODS[method]:
        torch.manual_seed(seed)
        lora.inject(network, ["0", "2", "4"], r=r, alpha=ALPHA)
    return network


def train(network, pixels, answers, steps: int, rate: float, seed: int, watch=None) -> list[float]:
    """Train what is trainable on random batches; calls `watch` every few steps. Returns the losses."""
    draw, losses = torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate)
    for step in range(steps):
        if watch and step % EVERY == 0:
            watch()
        batch = torch.randint(len(answers), (BATCH,), generator=draw)
        loss = F.cross_entropy(network(pixels[batch]), answers[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def accuracy(network, pixels, answers) -> float:
    with torch.no_grad():
        return (network(pixels).argmax(1) == answers).float().mean().item()


def at(path, level: float) -> float | None:
    """Accuracy on the old task when the new one first reached `level`, between two looks in a straight line; None if it never did.

    path: (new, old) accuracy, look by look.
    """
    path = np.asarray(path)
    if path[:, 0].max() < level:
        return None
    k = int(np.argmax(path[:, 0] >= level))
    if k == 0:
        return float(path[0, 1])
    share = (level - path[k - 1, 0]) / (path[k, 0] - path[k - 1, 0])
    return float(path[k - 1, 1] + share * (path[k, 1] - path[k - 1, 1]))


def name(method: str, rate: float, draw: int) -> str:
    return f"{method}, rate {rate:g}, draw {draw}"


def run(method: str, rate: float, draw: int, network, material) -> dict:
    """Adapt a trained reader to the draw's examples and note what is left of the old task."""
    tasks, labels, train_rows, test_rows = material
    rows = train_rows[torch.randperm(len(train_rows), generator=torch.Generator().manual_seed(draw))[:EXAMPLES]]
    learner, path = prepared(network, method, draw), []

    def watch():
        new, old = (
            accuracy(learner, tasks[task][test_rows], labels[test_rows]) for task in ("on their side", "upright")
        )
        path.append((new, old))

    train(learner, tasks["on their side"][rows], labels[rows], STEPS, rate, draw, watch)
    left = [at(path, level) for level in LEVELS]
    return dict(
        name=name(method, rate, draw),
        method=method,
        rate=rate,
        draw=draw,
        start=[round(x, 4) for x in path[0]],
        end=[round(x, 4) for x in path[-1]],
        left=[None if old is None else round(old, 4) for old in left],
    )


def left(runs: list, method: str, rate: float, level: float) -> np.ndarray:
    """What is left of the old task at `level`, draw by draw; NaN where the new task never got so far."""
    found = {
        each["draw"]: each["left"][LEVELS.index(level)]
        for each in runs
        if (each["method"], each["rate"]) == (method, rate)
    }
    return np.array([np.nan if found[draw] is None else found[draw] for draw in sorted(found)])


def interval(draws) -> tuple[float, float, float]:
    """(mean, low, high): 95 % by Student's t over the draws."""
    half = stats.t.ppf(0.975, len(draws) - 1) * np.std(draws, ddof=1) / len(draws) ** 0.5
    return float(np.mean(draws)), float(np.mean(draws) - half), float(np.mean(draws) + half)


def table(runs: list) -> None:
    """Print what is left of the old task at each level, at each rate."""
    print(f"{'':<10}{'rate':>8}   old task when the new one reaches" + "".join(f"{level:>8.0%}" for level in LEVELS))
    for method, rates in RATES.items():
        for rate in rates:
            kept = (left(runs, method, rate, level) for level in LEVELS)
            cells = ("" if np.isnan(each).any() else f"{each.mean():.3f}" for each in kept)
            print(f"{method:<10}{rate:>8g}{'':<36}" + "".join(f"{cell:>8}" for cell in cells))


def values() -> dict:
    """What decides these runs."""
    tasks, labels, train_rows, test_rows = digits()
    return dict(
        rows=[tasks, labels, train_rows, test_rows],
        plan=[METHODS, RATES, ALPHA, list(DRAWS), EXAMPLES, BATCH, READER, STEPS, EVERY, LEVELS],
        reader=str(reader(0)),
    )


def canary() -> dict:
    """The first losses of the reader, and of each method on a reader that is not trained yet."""
    torch.set_num_threads(1)
    tasks, labels, rows, _ = digits()
    steps, told = record.CANARY_STEPS, {}
    told["reader"] = train(reader(0), tasks["upright"][rows], labels[rows], steps, READER[1], 0)
    for method, rates in RATES.items():
        learner = prepared(reader(0), method, 0)
        told[method] = train(learner, tasks["on their side"][rows], labels[rows], steps, rates[1], 0)
    return told


@record.fp32()  # a plain training loop, which knows no other precision
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    if parser.parse_args().table:
        return table(record.read("forgetting")["runs"])
    profiles.apply(profiles.get())
    torch.set_num_threads(1)  # the matrices are small: a second thread would mostly wait for the first
    decides = values()
    kept = record.resume("forgetting", decides)
    if not kept:
        due = [name(method, rate, draw) for draw in DRAWS for method in METHODS for rate in RATES[method]]
        kept = dict(origin=record.origin(decides, canary()), due=due, levels=LEVELS, runs=[])
    material = digits()
    tasks, labels, rows, _ = material
    for draw in tqdm(DRAWS, desc="draws"):
        network, held = reader(draw), record.held(kept)
        todo = [(method, rate) for method in METHODS for rate in RATES[method] if name(method, rate, draw) not in held]
        if todo:
            train(network, tasks["upright"][rows], labels[rows], *READER, draw)
        kept["runs"] += [run(method, rate, draw, network, material) for method, rate in todo]
        record.write("forgetting", kept)
    table(kept["runs"])


if __name__ == "__main__":
    main()
