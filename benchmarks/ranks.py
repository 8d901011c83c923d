"""How little is enough: LoRA on all linear layers at small ranks, and full fine-tuning whose updates are cut to a rank, 0 too.

    python -m benchmarks.ranks            # about 25 minutes on two cores; goes on where it stopped
    python -m benchmarks.ranks --table    # print what is recorded

Lesson 01 shows these runs beside those of benchmarks/sentiment.py, which has r = 8 and, as r = 0, the head alone. Alpha and the
learning rate are the same at every rank: the rate that was the best there at r = 8, and the one alpha tried there, 16. One seed.
"""

import argparse
from functools import partial

from benchmarks import record, sentiment

METHOD, FULL = "LoRA all linear", "full"
TARGETS, R = sentiment.METHODS[METHOD][0]
ALPHA = 2 * R  # as sentiment.py has it at r = 8
RANKS, RATE, SEED = (1, 2, 4), 2e-3, 0
FULL_RATE, FULL_SEED = 2e-4, 1
CUTS = (0, *sentiment.TRUNCATIONS)
NAMES = {None: f"{FULL}, cut, rate {FULL_RATE:g}, seed {FULL_SEED}"}  # rank: run
NAMES |= {r: f"{METHOD} r={r}, rate {RATE:g}, seed {SEED}" for r in RANKS}


def build(profile, r: int):
    """The model of one run: alpha stays where r changes."""
    return sentiment.build(profile, METHOD, (TARGETS, r), SEED, ALPHA)


def values(profile, splits) -> dict:
    """What decides these runs."""
    told = sentiment.values(profile, splits)
    return told | dict(plan=[TARGETS, ALPHA, RANKS, [RATE], [SEED], FULL_RATE, CUTS])


def canary(profile, splits) -> dict:
    """{rank: losses of the first steps, four rows each, in fp32}."""
    return {
        f"r={r}": sentiment.first_losses(profile, splits, METHOD, partial(build, profile, r), learning_rate=RATE)
        for r in RANKS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    if parser.parse_args().table:
        return table(record.read("ranks"))
    profile, splits = sentiment.material()
    decides = values(profile, splits)
    kept = record.resume("ranks", decides)
    if not kept:
        kept = dict(origin=record.origin(decides, canary(profile, splits)), due=[*NAMES.values()])
        kept |= dict(test_rows=len(splits["test"]), runs=[])
        record.write("ranks", kept)
    for r, name in NAMES.items():
        if name not in record.held(kept):
            how = (FULL, None, FULL_RATE, FULL_SEED) if r is None else (METHOD, None, RATE, SEED, build(profile, r))
            run, model, tokenizer = sentiment.train(profile, splits, *how)
            del run["seconds"]  # of no interest here, and not fair where other work ran beside it
            kept["runs"].append(dict(run, name=name, r=r))
            if r is None:
                kept["update"] = sentiment.spectrum(profile, splits, model, tokenizer, CUTS)
            record.write("ranks", kept)
    table(kept)


def table(kept: dict) -> None:
    for run in kept["runs"]:
        print(f"{run['name']:<48} validation {run['validation']:.4f}  test {run['test']:.4f}")
    print("updates cut to rank:", kept["update"]["accuracy_at_rank"])


if __name__ == "__main__":
    main()
