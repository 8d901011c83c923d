"""A reader's own table: read to checked rows, looked at before anything trains, judged against its own baseline.

table = tables.read("reviews.csv")
print(tables.report(table, tokenizer))
mine = tables.split(table)
...
print(tables.judge(mine["test"], probabilities))
"""

import math
import re
import statistics
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from utils import data, sheets
from utils.sheets import TableError

TEXTS = "sentence text review comment content question utterance message tweet post body document feedback description input query"
LABELS = "label class category sentiment target intent emotion topic tag rating score stars grade value y"
# A fifth of the rows is for the test: of 50 that is 10, and 10 right answers of 10 say no more than "at least 72 %" (Wilson).
MIN_ROWS = 50
# Of 10 rows, 2 are for the test and 1 for validation; of fewer, a class would be learnt, chosen or judged by a single text.
MIN_CLASS = 10
NUMERIC = 10  # more different numbers than this are asked about: classes, or an amount?
SHARES = dict(validation=0.08, test=0.21)  # those of the course's own splits
SMALL = 200  # of a class with fewer rows, a split by hash alone may put far too many or too few into one part
MISSING = {"n/a", "na", "nan", "null", "none", "-", "?", "unknown", "#n/a"}
UNKNOWN = 0.05  # share of unknown tokens from which a model misses what a text says
REPEATS, EMPTY, CONTRADICTS = "repeats another text", "is empty", "has the text of another row under another label"


@dataclass(frozen=True)
class Table:
    """Checked rows. Each row of the file is either here or, by its number, in `left`."""

    file: str
    task: str  # "classification" or "regression"
    sentences: list[str]
    labels: list  # names of classes, or numbers
    rows: list[int]  # where each stands in the file
    classes: list[str]  # in the order of their codes; none for a regression
    left: dict[str, list[int]]  # why rows were left out: their numbers
    told: list[str] = field(default_factory=list)  # how the file was read

    @property
    def read(self) -> int:
        """How many rows the file has."""
        return len(self.rows) + sum(map(len, self.left.values()))


def read(
    file,
    text: str | None = None,
    label: str | None = None,
    *,
    task: str | None = None,
    sheet: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    names=None,
    merge: bool = False,
    drop: bool = False,
    verbose: bool = True,
) -> Table:
    """The checked Table in `file` (CSV, TSV, JSON, JSON Lines, Parquet, .xlsx); TableError where it cannot be learnt from.

    text, label: the columns, where their names do not say it. task: "classification", or "regression" for labels that are amounts.
    sheet, encoding, separator, names: see `sheets.read`. merge: classes that differ only in spelling become one.
    drop: rows without a text or a label are left out (else they are refused). verbose: print what was left out or looks odd.
    """
    if task not in (None, "classification", "regression"):
        raise TableError(
            f"task is {task!r}; it is 'classification' (labels are names) or 'regression' (labels are amounts)."
        )
    source = sheets.read(file, sheet, encoding, separator, names)
    i, j, told = _columns(source, text, label, headed=names is None)
    found, left = _usable(source, i, j, task, drop)
    notes = []
    if task != "regression":
        found = _classes_of(source, found, merge, notes)
    found = _distinct(source, found, left, notes)
    labels = [label for _, label in found.values()]
    _enough(source, labels, task, left)
    classes = [] if task == "regression" else sorted(set(labels), key=_order)
    table = Table(
        file=source.file,
        task=task or "classification",
        sentences=[text for text, _ in found.values()],
        labels=labels,
        rows=list(found),
        classes=classes,
        left={reason: sorted(rows) for reason, rows in left.items() if rows},
        told=[*source.told, told],
    )
    if verbose:
        for note in _left_notes(table, source.unit) + notes + _odd_notes(table, source.unit):
            print(note)
    return table


# --- columns ---


def _level(name: str) -> str:
    """A column's name without case, spaces, signs and the s of a plural."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return ("".join(filter(str.isalnum, name)) or name).removesuffix("s")


def _columns(source, text: str | None, label: str | None, headed: bool) -> tuple[int, int, str]:
    """(index of the texts, index of the labels, what to tell): as named by the caller, by their names, or the only two there are."""
    names, guessed = source.names, ""
    texts, labels = (
        [_named(source, given)] if given is not None else [i for i, name in enumerate(names) if _level(name) in known]
        for given, known in ((text, set(map(_level, TEXTS.split()))), (label, set(map(_level, LABELS.split()))))
    )
    texts = [i for i in texts if text is not None or i not in labels]
    labels = [i for i in labels if label is not None or i not in texts]
    if text is not None and label is not None and texts == labels:
        raise TableError(f"text and label both name the column {names[texts[0]]!r}; they are two columns.")
    if headed and source.unit == "row" and not (texts and labels) and _is_data(source):
        raise TableError(
            f"{source.file} seems to have no header: its first row is {' | '.join(names)[:120]!r}. Write names such as sentence "
            f"and label above it, or pass names= a list of {len(names)} names."
        )
    if len(names) == 2 and len(texts) + len(labels) == 1:
        texts, labels = texts or [1 - labels[0]], labels or [1 - texts[0]]
    elif len(names) == 2 and not texts and not labels:
        kinds = [len({str(cells[i]) for cells in source.rows.values()}) for i in (0, 1)]
        if 2 * min(kinds) <= len(source.rows) and 2 * min(kinds) <= max(kinds):
            labels = [kinds.index(min(kinds))]
            texts, guessed = [1 - labels[0]], " (guessed: labels repeat, texts hardly do)"
    for what, found in (("texts", texts), ("labels", labels)):
        if len(found) != 1:
            why = f"{_or(names[i] for i in found)} may all be it" if found else "no name says so"
            first = next(iter(source.rows.values()))
            seen = ", ".join(f"{name!r} (such as {str(cell)[:30]!r})" for name, cell in zip(names, first, strict=True))
            raise TableError(
                f"Which column of {source.file} holds the {what} is not clear: {why}. Pass text='…' and label='…', two of: {seen}."
            )
    return texts[0], labels[0], f"texts from {names[texts[0]]!r}, labels from {names[labels[0]]!r}{guessed}"


def _named(source, wanted: str) -> int:
    """Where the column that the caller named is: the one of exactly that name, or the only one like it."""
    for same in (lambda name: name == wanted, lambda name: _level(name) == _level(str(wanted))):
        if len(found := [i for i, name in enumerate(source.names) if same(name)]) == 1:
            return found[0]
    raise TableError(f"{source.file} has no column {wanted!r}; its columns are {', '.join(map(repr, source.names))}.")


def _is_data(source) -> bool:
    """Whether what stands in the header's place looks like a row: a number, a long text, or what its column says again."""
    for i, name in enumerate(source.names):
        if name and (
            _number(name) is not None
            or len(name) > 60
            or any(str(row[i]).strip() == name for row in source.rows.values())
        ):
            return True
    return False


# --- rows ---


def _usable(source, i: int, j: int, task: str | None, drop: bool) -> tuple[dict, dict]:
    """({number: (text, label)}, {reason: numbers of other rows}); TableError for rows that cannot be learnt from, unless `drop`."""
    found, left, several = {}, {EMPTY: []}, []
    comma = task == "regression" and _decimal_comma(source, j)
    for number, cells in source.rows.items():
        text, label = cells[i], cells[j]
        amount = _number(label, comma) if task == "regression" and isinstance(label, str) else None
        if not any(not isinstance(cell, str) or sheets.visible(cell) for cell in cells):
            reason = EMPTY
        elif not isinstance(text, str):
            reason = "has a list or an object in place of its text"
        elif not sheets.visible(text):
            reason = "has no text"
        elif not sheets.whole(text):
            reason = "has half a character (a lone surrogate) in its text"
        elif not isinstance(label, str):
            several.append(number)
            continue
        elif not sheets.visible(label):
            reason = "has no label"
        elif task == "regression" and amount is None:
            reason = "has a label that is no number"
        elif task == "regression" and not math.isfinite(amount):
            reason = "has a label that is not finite"
        else:
            found[number] = (text, label.strip() if task != "regression" else amount)
            continue
        left.setdefault(reason, []).append(number)
    if several:
        raise _several(source, several)
    refused = {reason: rows for reason, rows in left.items() if reason != EMPTY}
    if refused and not drop:
        what = "; ".join(f"{_rows(rows, source.unit)} {_verb(reason, rows)}" for reason, rows in refused.items())
        raise TableError(
            f"{source.file} has rows that cannot be learnt from: {what}. Mend them in the file, or pass drop=True to leave them out.",
            sorted(number for rows in refused.values() for number in rows),
        )
    return found, left


def _number(label: str, comma: bool = False) -> float | None:
    """The number that is written there, or None; float() alone would also take "1_000"."""
    label = label.strip().replace("\u2212", "-")
    if comma:
        label = label.replace(",", ".")
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", label, re.ASCII | re.IGNORECASE):
        return float(label)
    return None


def _decimal_comma(source, j: int) -> bool:
    """Whether the labels are written as 3,5; TableError where 1,234 may be a thousand or a bit more than one."""
    labels = {number: cells[j].strip() for number, cells in source.rows.items() if isinstance(cells[j], str)}
    commas = {number: label for number, label in labels.items() if re.fullmatch(r"[+-−]?[\d.]*,\d[\d,]*", label)}
    points = any("." in label for label in labels.values())
    if commas and (points or all(re.fullmatch(r"[+-−]?\d{1,3}(,\d{3})+", label) for label in commas.values())):
        number, label = next(iter(commas.items()))
        raise TableError(
            f"{source.file}, {source.unit} {number}: {label!r} may have a comma for decimals or for thousands; write all "
            "numbers with a point and without thousands.",
            commas,
        )
    return bool(commas)


def _distinct(source, found: dict, left: dict, notes: list) -> dict:
    """The rows, each text once (by `data.normalise`); a text under two labels leaves altogether, for none of them can be trusted."""
    same = {}
    for number, (text, _) in found.items():
        same.setdefault(data.normalise(text), []).append(number)
    examples = []
    for numbers in same.values():
        if len(said := list(dict.fromkeys(found[number][1] for number in numbers))) > 1:
            left.setdefault(CONTRADICTS, []).extend(numbers)
            examples.append(f"{found[numbers[0]][0][:60]!r} is {said[0]!r} and {said[1]!r}")
        else:
            left.setdefault(REPEATS, []).extend(numbers[1:])
    if examples:
        count = len(left[CONTRADICTS])
        notes.append(
            f"{count:,} rows have the text of another row under another label, so they were left out: {'; '.join(examples[:3])}. Keep "
            "the right one of each in the file."
        )
    gone = {number for numbers in left.values() for number in numbers}
    return {number: row for number, row in found.items() if number not in gone}


# --- classes ---


def _order(label: str):
    """Classes that are numbers by their size, others by their letters."""
    number = _number(label)
    return (number is None, number or 0, label)


def _several(source, numbers: list[int], example: str = "a list") -> TableError:
    return TableError(
        f"{source.file} has several labels in {_rows(numbers, source.unit)} ({example}); a row has one here. Keep the main one, or "
        "make a table for each label whose rows are yes or no.",
        numbers,
    )


def _classes_of(source, found: dict, merge: bool, notes: list) -> dict:
    """The rows with the names of their classes settled; TableError for several in one cell."""
    counts = Counter(label for _, label in found.values())
    parts = {label: frozenset(p.strip() for p in re.split(r"[;|,]", label) if p.strip()) for label in counts}
    parts = {label: split or {label} for label, split in parts.items()}
    holders = Counter(part for split in parts.values() for part in split)
    joint = {label for label, split in parts.items() if len(split) > 1 and all(holders[part] > 1 for part in split)}
    joint |= {label for label in counts if re.fullmatch(r"[\[({].*[,;].*[\])}]", label)}
    if joint:
        raise _several(source, [n for n, (_, label) in found.items() if label in joint], repr(sorted(joint)[0]))
    alike = {}
    for label, _ in counts.most_common():
        number = _number(label)
        alike.setdefault(number if number is not None and math.isfinite(number) else data.normalise(label), []).append(
            label
        )
    known = {}
    for spelt in (spelt for spelt in alike.values() if len(spelt) > 1):
        seen = " and ".join(f"{label!r} ({counts[label]:,})" for label in spelt)
        if merge:
            known |= dict.fromkeys(spelt, spelt[0])
            notes.append(f"The classes {seen} were made one, {spelt[0]!r}.")
        else:
            notes.append(f"The classes {seen} differ only in spelling; pass merge=True to make them one.")
    return {number: (text, known.get(label, label)) for number, (text, label) in found.items()}


def _enough(source, labels: list, task: str | None, left: dict) -> None:
    """TableError where no model could be trained on these labels and judged."""
    gone = ", ".join(f"{len(rows):,} {_verb(reason, rows)}" for reason, rows in left.items() if rows)
    gone = f" (of {len(source.rows):,} read: {gone})" if gone else ""
    counts = Counter(labels)
    if len(labels) < MIN_ROWS:
        raise TableError(
            f"{source.file} has {len(labels)} usable rows{gone}; at least {MIN_ROWS} are needed, for a fifth of them judges the "
            "model and a handful can judge nothing. Collect more."
        )
    if len(counts) < 2:
        raise TableError(
            f"All {len(labels):,} rows of {source.file}{gone} have the label {labels[0]!r}; there is nothing to learn. Add rows of "
            "another, or name the right column with label='…'."
        )
    if task == "regression":
        return
    if task is None and len(counts) > NUMERIC and all(_number(label) is not None for label in counts):
        raise TableError(
            f"The labels of {source.file} are {len(counts):,} different numbers, such as {_or(sorted(counts, key=_order)[:3])}; pass "
            "task='regression' if they are amounts, or task='classification' if each is the name of a class."
        )
    if 2 * len(counts) > len(labels):
        raise TableError(
            f"{source.file} has {len(counts):,} different labels in {len(labels):,} rows, such as {_or(list(counts)[:3])}: that looks "
            "like free text or a number of the row. Name the right column with label='…'."
        )
    if few := {label: count for label, count in counts.items() if count < MIN_CLASS}:
        seen = ", ".join(f"{label!r} {count}" for label, count in sorted(few.items(), key=lambda item: item[1])[:5])
        raise TableError(
            f"{source.file} has too few rows of {len(few)} of its {len(counts)} classes{gone}: {seen}{', …' if len(few) > 5 else ''}. "
            f"Each needs {MIN_CLASS}, two of them for the test; collect more, give them the label of a class near by, or take them out."
        )


# --- what is looked at before training ---


def report(table: Table, tokenizer=None, max_length: int = 128) -> str:
    """What the table holds, to print before training: rows, classes with counts, the baseline to beat.

    tokenizer: the model's; adds lengths, and how much of the texts it knows. max_length: tokens, where training cuts.
    """
    lines = [f"{table.file}: {table.read:,} rows read, {len(table.rows):,} kept. Read as {', '.join(table.told)}."]
    if table.left:
        lines.append(
            "Left out: " + ", ".join(f"{len(rows):,} {_verb(why, rows)}" for why, rows in table.left.items()) + "."
        )
    if table.task == "regression":
        mean, spread = statistics.fmean(table.labels), statistics.pstdev(table.labels)
        lines.append(f"Labels from {min(table.labels):g} to {max(table.labels):g}, mean {mean:.4g}.")
        lines.append(f"Baseline: always saying {mean:.4g} is off by {spread:.4g} (root mean square).")
    else:
        counts = Counter(table.labels).most_common()
        width = max(len(repr(label)) for label, _ in counts)
        lines.append(f"{len(counts)} classes:")
        lines += [f"    {label!r:<{width}}{count:>8,}{count / len(table.labels):>8.1%}" for label, count in counts[:30]]
        lines += [f"    and {len(counts) - 30} more, the smallest with {counts[-1][1]:,} rows"] * (len(counts) > 30)
        (commonest, most), (_, least) = counts[0], counts[-1]
        lines.append(f"Baseline: always saying {commonest!r} is right in {most / len(table.labels):.1%}.")
        if most >= 2 * least:
            lines.append("The classes are of unequal size: look at macro-F1 beside accuracy.")
    if tokenizer is not None:
        lines += _tokens(table, tokenizer, max_length)
    return "\n".join(lines)


def _tokens(table: Table, tokenizer, max_length: int) -> list[str]:
    """Lines on lengths in tokens, and on how much of the texts the tokenizer knows."""
    ids = tokenizer(table.sentences, add_special_tokens=False, verbose=False)["input_ids"]
    lengths = [len(row) + tokenizer.num_special_tokens_to_add() for row in ids]
    cut = sum(length > max_length for length in lengths)
    total = sum(map(len, ids))
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids) / max(total, 1)
    lines = [
        f"Lengths: half of the texts have at most {statistics.median(lengths):.0f} tokens, the longest {max(lengths):,}; "
        f"{cut:,} ({cut / len(lengths):.1%}) are cut at {max_length}.",
        f"Unknown to the tokenizer: {unknown:.1%} of the tokens.",
    ]
    if unknown > UNKNOWN:
        lines.append("The model cannot read much of this: take one that was trained on this language and script.")
    elif total > 1.3 * sum(map(len, table.sentences)):
        lines.append(
            "The tokenizer cuts single letters into pieces: the model has hardly seen this script; take one that was trained on it."
        )
    return lines


def split(table: Table, verbose: bool = True):
    """A DatasetDict with train, validation and test, columns `sentence` and `label`, by `data.split`'s hash of each text.

    So a text stays where it is when rows are added. Only classes with fewer than `SMALL` rows are cut by their rank in that
    order, so that each part has its share of each.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    hashed = data.split(table.sentences, [0] * len(table.sentences), **SHARES)
    label_of = dict(zip(table.sentences, table.labels, strict=True))
    groups = {}  # rows of each class (of all, for amounts) in the order of the hash, which runs through the parts
    for name in ("test", "validation", "train"):
        for text in hashed[name]["sentence"]:
            group = label_of[text] if table.classes else None
            groups.setdefault(group, []).append((text, name))
    place = {}
    for rows in groups.values():
        if len(rows) < SMALL:
            tests, validations = round(SHARES["test"] * len(rows)), max(1, round(SHARES["validation"] * len(rows)))
            names = ["test"] * tests + ["validation"] * validations + ["train"] * len(rows)
            rows = [(text, name) for (text, _), name in zip(rows, names, strict=False)]
        place |= dict(rows)
    order = [text for name in ("test", "validation", "train") for text in hashed[name]["sentence"]]
    features = Features(
        {"sentence": Value("string"), "label": ClassLabel(names=table.classes) if table.classes else Value("float32")}
    )
    parts = DatasetDict()
    for name in ("train", "validation", "test"):
        texts = [text for text in order if place[text] == name]
        labels = [table.classes.index(label_of[text]) if table.classes else label_of[text] for text in texts]
        parts[name] = Dataset.from_dict({"sentence": texts, "label": labels}, features)
    if verbose:
        rows = len(parts["test"])
        known = (
            ""
            if table.task == "regression"
            else f" An accuracy on {rows:,} rows is known to about ±{98 / rows**0.5:.0f} points."
        )
        print(", ".join(f"{len(part):,} {name}" for name, part in parts.items()) + f".{known}")
    return parts


# --- what came out ---


@dataclass(frozen=True)
class Judgement:
    """A score and its baseline on the same rows; `str()` says it in words."""

    better: bool  # than the baseline, by more than chance explains
    score: float  # accuracy, or root mean square error
    interval: tuple[float, float]  # 95 %
    baseline: float
    difference: tuple[float, float]  # 95 % interval of how much better the score is, row by row
    more: dict[str, float]  # macro-F1, or correlations
    words: str

    def __str__(self) -> str:
        return self.words


def judge(right, predicted) -> Judgement:
    """A model's predictions beside always giving the same answer, with 95 % intervals.

    right: a part of `split`, or its labels. predicted: classes (n,) or probabilities (n, classes); for a regression, numbers.
    TableError if they do not fit each other.
    """
    names = None
    amounts = None
    if hasattr(right, "features"):
        names, right = getattr(right.features["label"], "names", None), right["label"]
        amounts = names is None
    right, predicted = np.asarray(right), np.asarray(predicted)
    amounts = right.dtype.kind == "f" if amounts is None else amounts
    if predicted.ndim == 2 and len(predicted) == len(right):
        predicted = (
            predicted[:, 0] if amounts and predicted.shape[1] == 1 else predicted if amounts else predicted.argmax(1)
        )
    if right.ndim != 1 or right.shape != predicted.shape or not len(right):
        raise TableError(
            f"{len(right)} labels and predictions of the shape {predicted.shape} were given; pass one prediction for each label, or "
            "probabilities with a column a class."
        )
    if amounts:
        return _judge_amounts(right.astype(float), predicted.astype(float))
    if names is not None and predicted.dtype.kind == "U":
        right = np.asarray(names)[right]
    same = (right.dtype.kind in "iu") == (predicted.dtype.kind in "iu") and predicted.dtype.kind in "iuUb"
    if not same or (
        names is not None and predicted.dtype.kind in "iu" and not set(predicted) <= set(range(len(names)))
    ):
        raise TableError(
            f"The labels are like {right[0]!r} and the predictions like {predicted[0]!r}; pass classes of the same kind, or "
            "probabilities with a column a class."
        )
    if names is not None and right.dtype.kind in "iu":
        right, predicted = np.asarray(names)[right], np.asarray(names)[predicted]
    return _judge_classes(right, predicted)


def _judge_classes(right, predicted) -> Judgement:
    from scipy.stats import binomtest
    from sklearn.metrics import f1_score

    counts = Counter(right.tolist())
    (common, most), rows = counts.most_common(1)[0], len(right)
    hits, base = predicted == right, right == common
    low, high = binomtest(int(hits.sum()), rows).proportion_ci(method="wilson")
    # Of paired proportions (Agresti and Min 2005): half a row more in each of the four cells, else few rows look too sure.
    gained, lost, size = (hits & ~base).sum() + 0.5, (base & ~hits).sum() + 0.5, rows + 2
    middle = (gained - lost) / size
    half = 1.96 * ((gained + lost) / size - middle**2) ** 0.5 / size**0.5
    difference = (float(middle - half), float(middle + half))
    f1, base_f1 = (
        f1_score(right, said, average="macro", zero_division=0) for said in (predicted, np.full(rows, common))
    )
    words = [
        f"Accuracy {hits.mean():.3f} [{low:.3f}, {high:.3f}] on {rows:,} rows; always saying {common!r}: {base.mean():.3f}; "
        f"difference {hits.mean() - base.mean():+.3f} [{difference[0]:+.3f}, {difference[1]:+.3f}]."
    ]
    unequal = most >= 2 * min(counts.values())
    if unequal or len(counts) < 2:
        words.append(f"Macro-F1 {f1:.3f}; always saying {common!r}: {base_f1:.3f}.")
    words.append(_verdict(difference, f"always saying {common!r}"))
    recall, recall_half = _mean_recall(right, hits, counts)
    if unequal and difference[0] <= 0 and recall - recall_half > 1 / len(counts):
        words.append(
            f"Yet it tells the classes apart: the mean of their recalls is {recall:.3f} ± {recall_half:.3f}, where any constant gives "
            f"{1 / len(counts):.3f}."
        )
    more = {"macro_f1": float(f1), "baseline_macro_f1": float(base_f1), "mean_recall": recall}
    return Judgement(
        difference[0] > 0, float(hits.mean()), (low, high), float(base.mean()), difference, more, "\n".join(words)
    )


def _mean_recall(right, hits, counts) -> tuple[float, float]:
    """(mean of the classes' recalls, half its 95 % interval)"""
    recalls = [(hits[right == label].sum(), count) for label, count in counts.items()]
    smooth = [((k + 1) / (n + 2), n + 2) for k, n in recalls]
    half = 1.96 * sum(p * (1 - p) / n for p, n in smooth) ** 0.5 / len(counts)
    return float(sum(k / n for k, n in recalls) / len(counts)), float(half)


def _judge_amounts(right, predicted) -> Judgement:
    from scipy.stats import pearsonr, spearmanr

    if not np.isfinite(predicted).all():
        raise TableError("Some predictions are not finite; the training diverged, or what was passed is no prediction.")
    mean = right.mean()
    errors, base = (predicted - right) ** 2, (mean - right) ** 2
    generator, rows = np.random.default_rng(0), len(right)
    drawn = []
    for _ in range(1_000):  # bootstrap of rows, the same for both
        some = generator.integers(rows, size=rows)
        drawn.append((errors[some].mean() ** 0.5, base[some].mean() ** 0.5))
    scores, gains = np.array(drawn)[:, 0], np.diff(drawn)[:, 0]
    low, high = np.quantile(scores, (0.025, 0.975))
    difference = tuple(map(float, np.quantile(gains, (0.025, 0.975))))
    varied = rows > 2 and np.ptp(predicted) > 0 and np.ptp(right) > 0
    more = (
        {"pearson": float(pearsonr(right, predicted)[0]), "spearman": float(spearmanr(right, predicted)[0])}
        if varied
        else {}
    )
    told = "; ".join(f"{name.capitalize()}'s correlation {value:.3f}" for name, value in more.items())
    words = [
        f"Root mean square error {errors.mean() ** 0.5:.4g} [{low:.4g}, {high:.4g}] on {rows:,} rows; always saying the mean, {mean:.4g}: "
        f"{base.mean() ** 0.5:.4g}; smaller by {base.mean() ** 0.5 - errors.mean() ** 0.5:.4g} [{difference[0]:.4g}, {difference[1]:.4g}].",
        f"{told or 'No correlation: all predictions are the same'}.",
        _verdict(difference, f"always saying {mean:.4g}"),
    ]
    score, baseline = float(errors.mean() ** 0.5), float(base.mean() ** 0.5)
    return Judgement(difference[0] > 0, score, (float(low), float(high)), baseline, difference, more, "\n".join(words))


def _verdict(difference: tuple[float, float], baseline: str) -> str:
    if difference[0] > 0:
        return f"Better than {baseline}."
    return f"{'Worse than' if difference[1] < 0 else 'Not told apart from'} {baseline}."


# --- words ---


def _or(things) -> str:
    """As in: 'a', 'b' or 'c'."""
    *most, last = map(repr, things)
    return f"{', '.join(most)} or {last}" if most else last


def _rows(numbers: list[int], unit: str) -> str:
    """As in: row 3; rows 3 and 5; rows 3, 5, 8, 9, 12 and 30 more."""
    if len(numbers) == 1:
        return f"{unit} {numbers[0]}"
    shown = [str(number) for number in numbers[: 5 if len(numbers) > 6 else 6]]
    rest = f"{len(numbers) - len(shown):,} more" if len(numbers) > len(shown) else shown.pop()
    return f"{unit}s {', '.join(shown)} and {rest}"


def _verb(reason: str, rows: list) -> str:
    """The reason as it is said of so many rows."""
    if len(rows) == 1:
        return reason
    first, rest = reason.split(" ", 1)
    return f"{ {'has': 'have', 'is': 'are', 'repeats': 'repeat'}[first] } {rest}"


def _left_notes(table: Table, unit: str) -> list[str]:
    """A sentence for each kind of rows that were left out; those that contradict have one already."""
    kinds = {reason: rows for reason, rows in table.left.items() if reason != CONTRADICTS}
    return [f"Left out: {_rows(rows, unit)}, which {_verb(reason, rows)}." for reason, rows in kinds.items()]


def _odd_notes(table: Table, unit: str) -> list[str]:
    """Sentences on what is allowed and may not be meant."""
    notes = []
    if lost := [row for row, text in zip(table.rows, table.sentences, strict=True) if "\ufffd" in text]:
        notes.append(
            f"There is a \ufffd in {_rows(lost, unit)}: letters were lost when the file was written; take it from its source."
        )
    if twice := [row for row, text in zip(table.rows, table.sentences, strict=True) if _twice_coded(text)]:
        notes.append(
            f"Letters look wrongly read in {_rows(twice, unit)} (such as Ã¼ for ü): the file was made from misread UTF-8."
        )
    if odd := [label for label in table.classes if label.casefold() in MISSING]:
        notes.append(
            f"{_or(odd)} counts as a class; if it means that a label is missing, empty those cells and pass drop=True."
        )
    return notes


def _twice_coded(text: str) -> bool:
    """Whether it is UTF-8 that something once read as cp1252."""
    try:
        return not text.isascii() and text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False
