"""A text in, a JSON record out: what QLoRA makes of the small Llama, beside asking it, and what it costs elsewhere.

    python -m benchmarks.triage            # about 80 minutes on two cores; goes on where it stopped
    python -m benchmarks.triage --table    # print what is recorded

The learning rate and the best way to ask are chosen on validation rows. Three seeds answer all film reviews of the test, the ones
that lesson 04's classifier was tested on, and the first rows of the other kinds; all else answers the first test rows of any kind.
"""

import argparse
import collections
import json
import math
import statistics
import tempfile

from benchmarks import record, sentiment
from utils import ROOT, triage

RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
CLOSE = (
    2e-3,
    4e-3,
)  # within two points of the best by the first seed, which cannot tell them apart: all seeds try these
SEEDS = (0, 1, 2)
CHOOSING = 200  # validation rows by which a rate is chosen, 60 by which a way to ask is
ASKING = 60
OTHERS = 100  # test rows of each kind beside films
FEW = 400  # test rows for what is no main run
TOKENS = 24  # of an answer; a record has at most 15
ORDINARY = ROOT / "data" / "everyday_questions.txt"
ORDINARY_TOKENS = 60

RULES = (
    'Reply with a JSON record and nothing else: {{"kind": "film", "product", "tweet" or "editorial", '
    '"verdict": "positive" or "negative"}}.'
)
# How the base is asked: the text stands where the braces are
WAYS = {
    "as trained": triage.ASKED,
    "told": "Text: {}\n" + RULES,
    "told first": RULES + "\nText: {}\nRecord:",
    "told at length": "Where does this text come from, a film review, a product review, a tweet or a newspaper editorial? Is it "
    "positive or negative?\nText: {}\n" + RULES,
}
SHOTS = (0, 4, 8)


def config():
    """The lesson's LoraConfig."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")


def build(profile, rows, folder, rate: float, seed: int, **changes):
    """(trainer, tokenizer): QLoRA on rows, with the lesson's settings."""
    from utils import models, training
    from utils.sft import AnswerTrainer

    model, tokenizer = models.load_decoder(profile, quantization_config=models.four_bits())
    training.set_seed(seed)
    options = dict(disable_tqdm=True, learning_rate=rate, seed=seed) | changes
    trainer = AnswerTrainer(
        model,
        args=training.sft_arguments(profile, folder, **options),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=config(),
    )
    return trainer, tokenizer


def train(profile, rows, rate: float, seed: int):
    """(model, tokenizer, losses) after the lesson's training."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, tokenizer = build(profile, rows, folder, rate, seed)
        trainer.train()
        losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
        return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False), tokenizer, losses


def judged(answers: list[str], rows) -> dict:
    """How good these answers to `rows` are: shares, and a bit a row, in hexadecimal. What is malformed is wrong throughout."""
    told = [triage.read(text) for text in answers]
    verdict = [
        t is not None and t["verdict"] == triage.VERDICTS[label] for t, label in zip(told, rows["label"], strict=True)
    ]
    kind = [t is not None and t["kind"] == own for t, own in zip(told, rows["kind"], strict=True)]
    valid = [t is not None for t in told]
    shares = {name: sum(each) / len(each) for name, each in dict(valid=valid, verdict=verdict, kind=kind).items()}
    bits = {f"right_{name}": sentiment.packed(each) for name, each in dict(verdict=verdict, kind=kind).items()}
    return dict(rows=len(told)) | {name: round(share, 4) for name, share in shares.items()} | bits


def test_rows(rows):
    """All film reviews of the test, then the first rows of each other kind."""
    from datasets import concatenate_datasets

    films, *others = (rows["test"].filter(lambda row, kind=kind: row["kind"] == kind) for kind in triage.KINDS.values())
    return concatenate_datasets([films, *(part.select(range(OTHERS)) for part in others)])


def way(name: str, examples, sentence: str) -> list[dict]:
    """The conversation that asks in this way: examples (rows) with their records, then the text."""
    turns = []
    for row in examples:
        turns += [dict(role="user", content=WAYS[name].format(row["sentence"])), row["completion"][0]]
    return [*turns, dict(role="user", content=WAYS[name].format(sentence))]


def examples(rows, shots: int) -> list[dict]:
    """The first training rows of as many different records, kinds and verdicts in turn."""
    kinds = list(triage.KINDS.values())
    places = [(kind, (number + 1 + turn) % 2) for turn in (0, 1) for number, kind in enumerate(kinds)]
    return [next(row for row in rows["train"] if (row["kind"], row["label"]) == place) for place in places[:shots]]


def ordinary() -> tuple[list[str], list[str]]:
    """(questions to train on, questions to test on) that have nothing to do with records: every second one is for the test."""
    questions = ORDINARY.read_text(encoding="utf-8").splitlines()
    return questions[1::2], questions[::2]


def own_answers(profile, questions: list[str]):
    """Rows in which the 16-bit base answers ordinary questions as it always does; an answer cut off ends at its last sentence."""
    from datasets import Dataset

    from utils import models, training

    model, tokenizer = models.load_decoder(profile)
    prompts = [[dict(role="user", content=question)] for question in questions]
    rows = []
    for prompt, (text, stopped) in zip(
        prompts, training.answers(model, tokenizer, prompts, ORDINARY_TOKENS), strict=True
    ):
        text = text if stopped or "." not in text else text[: text.rindex(".") + 1]
        rows.append(dict(prompt=prompt, completion=[dict(role="assistant", content=text)]))
    return Dataset.from_list(rows)


def spread(model, tokenizer) -> dict:
    """What a model answers to ordinary questions: the share of records, and of answers that begin like one."""
    from utils import training

    prompts = [[dict(role="user", content=question)] for question in ordinary()[1]]
    answers = [text for text, _ in training.answers(model, tokenizer, prompts, ORDINARY_TOKENS)]
    records = sum(triage.read(text) is not None for text in answers)
    return dict(
        questions=len(answers),
        records=records / len(answers),
        braces=sum(text.startswith("{") for text in answers) / len(answers),
        answers=answers[:6],
    )


def strength(rating: float) -> int:
    """How strongly a review judges: the mean rating's size, rounded, from 1 to 4."""
    return min(4, max(1, math.floor(abs(rating) + 0.5)))


def strengths(rows, count: int):
    """The first film reviews of a part, their record a verdict and a strength."""
    from utils import data

    ratings = {}
    for sentence, rating in data.rated("movies"):
        ratings.setdefault(data.normalise(sentence), rating)
    films = rows.filter(lambda row: row["kind"] == "film").select(range(count))

    def dressed(row):
        rating = ratings[data.normalise(row["sentence"])]
        told = json.dumps(dict(verdict=triage.VERDICTS[row["label"]], strength=strength(rating)))
        return dict(rating=rating, completion=[dict(role="assistant", content=told)])

    return films.map(dressed)


def second_field(model, tokenizer, rows) -> dict:
    """Whether a strength was learnt: its mean absolute error beside that of the constant 2, paired, over the valid answers."""
    import numpy as np
    from scipy.stats import bootstrap, spearmanr

    from utils import training

    found = []
    for (text, _), row in zip(training.answers(model, tokenizer, rows["prompt"][:], TOKENS), rows, strict=True):
        try:
            told = json.loads(text)
        except ValueError:
            continue
        if isinstance(told, dict) and told.get("verdict") in triage.VERDICTS and told.get("strength") in (1, 2, 3, 4):
            found.append((told["verdict"] == triage.VERDICTS[row["label"]], told["strength"], row["rating"]))
    right, said, rating = (np.array(column) for column in zip(*found, strict=True))
    wanted = np.array([strength(each) for each in rating])
    gain = np.abs(said - wanted) - np.abs(2 - wanted)
    low, high = (
        bootstrap((gain,), np.mean, method="percentile", rng=0).confidence_interval if gain.any() else (0.0, 0.0)
    )
    return dict(
        rows=len(rows),
        valid=len(found) / len(rows),
        verdict=float(right.sum() / len(rows)),
        error=float(np.abs(said - wanted).mean()),
        constant=float(np.abs(2 - wanted).mean()),
        gain=[float(gain.mean()), float(low), float(high)],
        said={int(k): int((said == k).sum()) for k in np.unique(said)},
        spearman=float(spearmanr(said[right], np.abs(rating[right]))[0]) if len(set(said[right])) > 1 else None,
    )


def named(kind: str, *told) -> str:
    return ", ".join([kind, *map(str, told)])


def candidates() -> list[str]:
    return [named("ask", name, f"{shots} shots") for name in WAYS for shots in SHOTS]


def tries() -> list[tuple[float, int]]:
    """(rate, seed) of the trainings by which the rate is chosen."""
    return [(rate, SEEDS[0]) for rate in RATES] + [(rate, seed) for rate in CLOSE for seed in SEEDS[1:]]


def due() -> list[str]:
    """The runs of a whole record, in their order."""
    return [
        *(named("rate", f"{rate:g}", seed) for rate, seed in tries()),
        *(named("seed", seed) for seed in SEEDS),
        *(named("base", bits, "free") for bits in ("16 bits", "4 bits")),
        *(named("base", bits, "eight records") for bits in ("16 bits", "4 bits")),
        *candidates(),
        named("best ask", "free"),
        named("best ask", "eight records"),
        named("mixed", 0),
        named("strength", 0),
        named("spread", "base"),
        named("spread", "adapted"),
        named("spread", "mixed"),
    ]


def chosen(runs: list) -> float:
    """The rate with the best validation verdicts, the mean of its seeds, among those that most seeds tried; kinds decide between
    equals."""
    tried = collections.defaultdict(list)
    for run in runs:
        if run["name"].startswith("rate"):
            tried[run["rate"]].append((run["verdict"], run["kind"]))
    seeds = max(map(len, tried.values()))
    means = {rate: [statistics.mean(each) for each in zip(*told, strict=True)] for rate, told in tried.items()}
    return max((rate for rate, told in tried.items() if len(told) == seeds), key=means.get)


def best_ask(runs: list) -> dict:
    """The way to ask with the best validation verdicts among answers that need no choice from outside; kinds decide between equals."""
    return max((run for run in runs if run["name"].startswith("ask")), key=lambda run: (run["verdict"], run["kind"]))


def plan() -> list:
    return [RATES, CLOSE, SEEDS, CHOOSING, ASKING, OTHERS, FEW, TOKENS, WAYS, SHOTS, ordinary(), ORDINARY_TOKENS]


@record.fp32()  # or the configurations would tell the processor's precision
def values(profile, rows) -> dict:
    """What decides these runs."""
    from utils import models

    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build(profile, rows["train"], folder, RATES[0], 0)
        told = record.chat_training(trainer)
    return told | dict(rows=dict(rows), base=models.base_sha256(profile.decoder), plan=plan())


def canary(profile, rows) -> dict:
    """In fp32: the first losses of single rows."""
    from utils import training

    with record.fp32(), tempfile.TemporaryDirectory() as folder:
        options = dict(max_steps=record.CANARY_STEPS, logging_steps=1, per_device_train_batch_size=1)
        trainer, _ = build(profile, rows["train"].select(range(8)), folder, 1e-3, 0, **options)
        training.learning_in_fp32(trainer.model)  # TRL makes adapters bf16, in which processors differ
        trainer.train()
    return dict(training=[row["loss"] for row in trainer.state.log_history if "loss" in row])


def material():
    """(profile, rows)"""
    from utils import data, profiles

    profile = profiles.get("cpu")
    profiles.apply(profile)
    return profile, data.load_records(profile)


class Runs:
    """The runs of the record, each made once and kept at once."""

    def __init__(self):
        self.profile, self.rows = material()
        decides = values(self.profile, self.rows)
        self.kept = record.resume("triage", decides)
        if not self.kept:
            self.kept = dict(origin=record.origin(decides, canary(self.profile, self.rows)), due=due(), runs=[])
        self.few = self.rows["test"].select(range(FEW))
        seeds = collections.Counter(test_rows(self.rows)["kind"])
        self.kept["kinds"] = dict(few=self.few["kind"][:], seeds=dict(seeds))

    def waiting(self, *names: str) -> bool:
        return bool(set(names) - record.held(self.kept))

    def keep(self, name: str, **told) -> None:
        if name in record.held(self.kept):
            return
        self.kept["runs"].append(dict(name=name) | told)
        record.write("triage", self.kept)
        print({key: value for key, value in self.kept["runs"][-1].items() if "right" not in key}, flush=True)

    def answered(self, model, tokenizer, rows, prompts=None) -> dict:
        from utils import training

        prompts = rows["prompt"][:] if prompts is None else prompts
        return judged([text for text, _ in training.answers(model, tokenizer, prompts, TOKENS)], rows)

    def weighed(self, model, tokenizer, rows, prompts=None) -> dict:
        prompts = rows["prompt"][:] if prompts is None else prompts
        return judged(triage.choose(model, tokenizer, prompts, batch_size=16), rows)

    def rates(self) -> None:
        for rate, seed in tries():
            if self.waiting(name := named("rate", f"{rate:g}", seed)):
                model, tokenizer, losses = train(self.profile, self.rows["train"], rate, seed)
                told = self.answered(model, tokenizer, self.rows["validation"].select(range(CHOOSING)))
                self.keep(name, rate=rate, seed=seed, losses=losses, **told)

    def seeds(self) -> None:
        rate = chosen(self.kept["runs"])
        for seed in SEEDS:
            names = [named("seed", seed)] + ([named("spread", "adapted")] if seed == 0 else [])
            if self.waiting(*names):
                model, tokenizer, losses = train(self.profile, self.rows["train"], rate, seed)
                if seed == 0:
                    self.keep(named("spread", "adapted"), **spread(model, tokenizer))
                if self.waiting(names[0]):
                    told = self.answered(model, tokenizer, test_rows(self.rows))
                    self.keep(names[0], rate=rate, seed=seed, losses=losses, **told)

    def bases(self) -> None:
        from utils import models

        for bits, options in (("16 bits", {}), ("4 bits", dict(quantization_config=models.four_bits()))):
            model, tokenizer = models.load_decoder(self.profile, **options)
            if self.waiting(name := named("base", bits, "free")):
                self.keep(name, **self.answered(model, tokenizer, self.few))
            if self.waiting(name := named("base", bits, "eight records")):
                self.keep(name, **self.weighed(model, tokenizer, self.few))
            if bits == "16 bits" and self.waiting(name := named("spread", "base")):
                self.keep(name, **spread(model, tokenizer))

    def asks(self) -> None:
        from utils import models

        model, tokenizer = models.load_decoder(self.profile)
        rows = self.rows["validation"].select(range(ASKING))
        for name in WAYS:
            for shots in SHOTS:
                if self.waiting(each := named("ask", name, f"{shots} shots")):
                    prompts = [way(name, examples(self.rows, shots), sentence) for sentence in rows["sentence"]]
                    self.keep(each, way=name, shots=shots, **self.answered(model, tokenizer, rows, prompts))
        best = best_ask(self.kept["runs"])
        shown = examples(self.rows, best["shots"])
        prompts = [way(best["way"], shown, sentence) for sentence in self.few["sentence"]]
        for how, judge in (("free", self.answered), ("eight records", self.weighed)):
            if self.waiting(name := named("best ask", how)):
                self.keep(name, of=best["name"], **judge(model, tokenizer, self.few, prompts))

    def remedy(self) -> None:
        from datasets import concatenate_datasets

        if not self.waiting(named("mixed", 0), named("spread", "mixed")):
            return
        extra = own_answers(self.profile, ordinary()[0])
        columns = ["prompt", "completion"]
        rows = concatenate_datasets([self.rows["train"].select_columns(columns), extra])
        model, tokenizer, losses = train(self.profile, rows, chosen(self.kept["runs"]), 0)
        self.keep(named("spread", "mixed"), **spread(model, tokenizer))
        self.keep(named("mixed", 0), ordinary=len(extra), losses=losses, **self.answered(model, tokenizer, self.few))

    def strength(self) -> None:
        if self.waiting(name := named("strength", 0)):
            rows = strengths(self.all_films("train"), self.rows["train"].num_rows)
            model, tokenizer, losses = train(self.profile, rows, chosen(self.kept["runs"]), 0)
            self.keep(name, losses=losses, **second_field(model, tokenizer, strengths(self.rows["test"], FEW)))

    def all_films(self, part: str):
        import dataclasses

        from utils import data

        return data.load_records(dataclasses.replace(self.profile, record_rows=(None, None)), verbose=False)[part]


def on_films(run: dict, kinds):
    """For each film review that a run answered, whether its verdict was right; kinds: of the rows that it answered, an array."""
    return sentiment.unpacked(run, run["rows"], "right_verdict")[kinds[: run["rows"]] == "film"]


def by_name(kept: dict) -> dict:
    """{name: run}"""
    return {run["name"]: run for run in kept["runs"]}


def answered_kinds(kept: dict) -> dict:
    """{name of a run: kind of each row that it answered, an array}, of all runs on test rows."""
    import numpy as np

    few, all_films = np.array(kept["kinds"]["few"]), kept["kinds"]["seeds"]
    seeds = np.repeat([*triage.KINDS.values()], [all_films[kind] for kind in triage.KINDS.values()])
    runs = [
        run["name"] for run in kept["runs"] if "right_kind" in run and run["name"].split(",")[0] not in ("rate", "ask")
    ]
    return {name: seeds if name.startswith("seed") else few for name in runs}


# How a run is called in lesson 06's table
SHOWN = {
    "base, 4 bits, free": "base, 4 bits, as trained",
    "base, 4 bits, eight records": "base, 4 bits, one of eight",
    "base, 16 bits, free": "base, 16 bits, as trained",
    "base, 16 bits, eight records": "base, 16 bits, one of eight",
    "best ask, free": "base, 16 bits, at its best",
    "best ask, eight records": "at its best, one of eight",
}


def summary(kept: dict, classifier: dict):
    """Lesson 06's table: valid answers, right verdicts on film reviews with their 95 % interval, kinds as the mean over the four."""
    import numpy as np
    import pandas as pd

    kinds, runs, rows = answered_kinds(kept), by_name(kept), {}

    def kind_share(name: str) -> float:
        right, own = sentiment.unpacked(runs[name], runs[name]["rows"], "right_kind"), kinds[name]
        return float(np.mean([right[own == kind].mean() for kind in dict.fromkeys(own)]))

    def row(names: list[str]) -> dict:
        shares = [float(on_films(runs[name], kinds[name]).mean()) for name in names]
        low, high = sentiment.interval(shares, int((kinds[names[0]] == "film").sum()))
        valid, kind = (float(np.mean(x)) for x in ([runs[n]["valid"] for n in names], [*map(kind_share, names)]))
        return {"valid": valid, "verdict, films": float(np.mean(shares)), "from": low, "to": high, "kind": kind}

    for name, shown in SHOWN.items():
        rows[shown] = row([name])
    rows["adapted, 4 bits, three seeds"] = row([named("seed", seed) for seed in SEEDS])
    theirs = sentiment.summary(classifier)[CLASSIFIER]
    low, high = theirs["interval"]
    rows["lesson 04's classifier"] = {"verdict, films": theirs["mean"], "from": low, "to": high}
    return pd.DataFrame(rows).T[["valid", "verdict, films", "from", "to", "kind"]]


CLASSIFIER = "LoRA query+value"


def films(kept: dict) -> float:
    """The adapted model's share of right verdicts on all film reviews of the test, the mean of the seeds."""
    import numpy as np

    return float(np.mean(seeds_on_films(kept)))


def seeds_on_films(kept: dict) -> list:
    """For each seed, whether each film review's verdict was right."""
    kinds, runs = answered_kinds(kept), by_name(kept)
    return [on_films(runs[named("seed", seed)], kinds[named("seed", seed)]) for seed in SEEDS]


def against_classifier(kept: dict, classifier: dict) -> tuple[float, tuple[float, float]]:
    """Right verdicts of the adapted model minus those of lesson 04's classifier on the same reviews: mean, and its interval."""
    import numpy as np

    rate = sentiment.summary(classifier)[CLASSIFIER]["learning_rate"]
    theirs = [
        sentiment.unpacked(run, classifier["test_rows"]) for run in sentiment.of(classifier["runs"], CLASSIFIER, rate)
    ]
    ours = seeds_on_films(kept)
    return float(np.mean(ours) - np.mean(theirs)), sentiment.paired(ours, theirs)


def same_rows(kept: dict) -> tuple[float, dict]:
    """Right verdicts of the first seed on those texts that the mixed run answered and the seeds too (films); the mixed run there."""
    kinds, runs = answered_kinds(kept), by_name(kept)
    mixed = on_films(runs[named("mixed", 0)], kinds[named("mixed", 0)])
    first = seeds_on_films(kept)[0][: len(mixed)]  # in the same order: that of a hash
    return float(first.mean()), dict(rows=len(mixed), verdict=float(mixed.mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    if parser.parse_args().table:
        return table(record.read("triage"))
    runs = Runs()
    for step in (runs.rates, runs.seeds, runs.bases, runs.asks, runs.remedy, runs.strength):
        step()
    record.write("triage", runs.kept)
    table(runs.kept)


def table(kept: dict) -> None:
    """Print a record."""
    print(f"{'':<34}{'rows':>6}{'valid':>8}{'verdict':>9}{'kind':>8}")
    for run in kept["runs"]:
        if "kind" in run:
            print(f"{run['name']:<34}{run['rows']:>6}{run['valid']:>8.1%}{run['verdict']:>9.1%}{run['kind']:>8.1%}")
        elif "records" in run:
            print(
                f"{run['name']:<34}{run['questions']:>6} ordinary questions: {run['records']:.1%} records, {run['braces']:.1%} braces"
            )
        else:
            print(f"{run['name']:<34}{run['rows']:>6}{run['valid']:>8.1%}{run['verdict']:>9.1%}  error {run['error']:.3f}, "
                  f"constant {run['constant']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
