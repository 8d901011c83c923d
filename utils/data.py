"""The sentences the lessons learn from, with splits that never change."""

import hashlib
import re

# Six sentences that a well-known tutorial shows before and after training. They are never trained on.
EXAMPLES = (
    ("a feel-good picture in the best sense of the term .", 1),
    ("resourceful and ingenious entertainment .", 1),
    ("it 's just incredibly dull .", 0),
    ("the movie 's biggest offense is its complete and utter lack of tension .", 0),
    ("impresses you with its open-endedness and surprises .", 1),
    ("unless you are in dire need of a diesel fix , there is no real reason to see it .", 0),
)
LABELS = ("negative", "positive")
DOMAINS = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}


def load_sentiment(profile, verbose: bool = True):
    """Sentences labelled negative (0) or positive (1), as a DatasetDict with train, validation and test.

    SST-2 where the profile may ask a hub, else the movie-review sentences among the assets; one printed line says which.
    Columns: `sentence`, `label`. `profile.train_rows` and `profile.eval_rows` cut the splits (None: all rows).
    """
    if profile.sentiment == "sst2":
        splits, told = _sst2()
    else:
        splits, told = (
            load_domain(profile.sentiment),
            "Movie-review sentences (Pang & Lee 2005), rated by 20 people each",
        )
    for name, split in splits.items():
        rows = profile.train_rows if name == "train" else profile.eval_rows
        if rows:
            splits[name] = split.select(range(min(rows, len(split))))
    if verbose:
        print(f"{told}: " + ", ".join(f"{len(split):,} {name}" for name, split in splits.items()) + ".")
    return splits


def load_domain(domain: str):
    """One of the four rated corpora (`DOMAINS`) as a DatasetDict: label = mean rating > 0, undecided ones (|rating| < 0.5) dropped."""
    if domain not in DOMAINS:
        raise ValueError(f"There is no domain {domain!r}; the course has {', '.join(DOMAINS)}.")
    from utils import assets

    sentences, labels = [], []
    for line in (assets.path("sentences") / DOMAINS[domain]).read_text(encoding="utf-8").splitlines():
        _, rating, sentence = line.split("\t", 2)
        if abs(float(rating)) >= 0.5:
            sentences.append(sentence.strip())
            labels.append(int(float(rating) > 0))
    return split(sentences, labels)


def split(sentences, labels, validation: float = 0.08, test: float = 0.21):
    """Split rows by a hash of their text, so that a sentence stays where it is whatever else is added.

    Rows that differ only in case, spaces and punctuation fall on the same side, and only the first is kept.
    `EXAMPLES` and every sentence that contains one go to the test split. Rows come in the order of their hash,
    so the first n of a split are a fair sample. Returns a DatasetDict with columns `sentence` and `label`.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    if len(sentences) != len(labels):
        raise ValueError(
            f"{len(sentences)} sentences but {len(labels)} labels were given; each sentence needs one label."
        )
    rows = {}
    for sentence, label in zip(sentences, labels, strict=True):
        rows.setdefault(normalise(sentence), (sentence, label))
    kept_apart = [normalise(text) for text, _ in EXAMPLES]
    parts = {"train": [], "validation": [], "test": []}
    for key, row in rows.items():
        place = int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12
        if place < test or any(example in key for example in kept_apart):
            name = "test"
        else:
            name = "validation" if place < test + validation else "train"
        parts[name].append((place, *row))
    classes = LABELS if set(labels) <= {0, 1} else sorted({str(label) for label in labels})
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=list(classes))})
    return DatasetDict(
        {
            name: Dataset.from_dict({"sentence": [r[1] for r in part], "label": [r[2] for r in part]}, features)
            for name, part in ((name, sorted(part)) for name, part in parts.items())
        }
    )


def normalise(text: str) -> str:
    """What makes two sentences the same: their letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _sst2():
    """SST-2; its own validation split (872 sentences) serves as test, for its test labels are secret."""
    from datasets import DatasetDict, load_dataset

    glue = load_dataset("nyu-mll/glue", "sst2", revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")
    held_out = {normalise(sentence) for sentence in glue["validation"]["sentence"]} | {
        normalise(s) for s, _ in EXAMPLES
    }
    train = glue["train"].filter(lambda row: normalise(row["sentence"]) not in held_out)
    parts = split(train["sentence"], train["label"], validation=0.03, test=0)
    test = glue["validation"].select_columns(["sentence", "label"])
    return DatasetDict(train=parts["train"], validation=parts["validation"], test=test), "SST-2 (Socher et al. 2013)"
