"""The sentences and the questions the lessons learn from, with splits that never change."""

import hashlib
import json
import re
import unicodedata
from numbers import Integral
from pathlib import Path

from utils import ROOT, sheets
from utils.chat import load_chat  # noqa: F401  (a reader's own, in the shape of load_instructions)

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

FAQ = ROOT / "data" / "lora_faq.jsonl"
# Whole topics are held back, one of most notebooks, so that a question of the test is about something never trained on.
HELD_OUT = {
    "validation": ("collecting data", "target modules", "generating answers", "reading comparisons"),
    "test": (
        "cost of full fine-tuning",
        "counting parameters",
        "merging",
        "freezing by name",
        "overfitting and stopping",
        "double quantisation",
        "packing and sequence length",
        "serving and latency",
        "batch size",
        "unanswerable questions",
        "gradient accumulation",
        "NaN and precision",
    ),
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
            "Movie-review sentences (Pang & Lee 2005), each rated by fifteen people or more",
        )
    for name, split in splits.items():
        rows = profile.train_rows if name == "train" else profile.eval_rows
        if rows:
            splits[name] = split.select(range(min(rows, len(split))))
    if verbose:
        print(_counted(told, splits))
    return splits


def load_domain(domain: str):
    """One of the four rated corpora (`DOMAINS`) as a DatasetDict: label = mean rating > 0, undecided ones (|rating| < 0.5) dropped."""
    if domain not in DOMAINS:
        raise ValueError(f"There is no domain {domain!r}; the course has {', '.join(DOMAINS)}.")
    rows = rated(domain)
    return split([sentence for sentence, _ in rows], [int(rating > 0) for _, rating in rows])


def rated(domain: str) -> list[tuple[str, float]]:
    """(sentence, mean rating of fifteen people or more, -4 to 4) of each row of a corpus, undecided ones (|rating| < 0.5) left out."""
    from utils import assets

    rows = []
    for line in (assets.path("sentences") / DOMAINS[domain]).read_text(encoding="utf-8").splitlines():
        _, rating, sentence = line.split("\t", 2)
        if abs(float(rating)) >= 0.5:
            rows.append((sentence.strip(), float(rating)))
    return rows


def load_records(profile, verbose: bool = True):
    """Texts of four kinds, each with the JSON record that says its kind and its verdict (`triage`), as a DatasetDict.

    The splits are those of `load_domain`, so no sentence of a test is trained on in another lesson. Columns: `sentence`, `kind`,
    `label`, and `prompt` and `completion`, each a list of chat messages. `profile.record_rows` is (train, others), None: all.
    """
    from utils import triage

    parts = {"train": [], "validation": [], "test": []}
    for domain, kind in triage.KINDS.items():
        for name, part in load_domain(domain).items():
            for sentence, label in zip(part["sentence"], part["label"], strict=True):
                answer = [dict(role="assistant", content=triage.wanted(kind, label))]
                row = dict(sentence=sentence, kind=kind, label=label)
                row |= dict(prompt=triage.prompt(sentence), completion=answer)
                parts[name].append((place_of(normalise(sentence)), row))
    return _cut(parts, profile.record_rows, "Texts with their records" if verbose else "")


def place_of(key: str) -> float:
    """Where a text stands between 0 and 1, by its hash: always the same, and as good as drawn."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12


def split(sentences, labels, validation: float = 0.08, test: float = 0.21):
    """Split rows by a hash of their text, so that a sentence stays where it is whatever else is added.

    sentences: any sequence of str. labels: as many, all str (classes in alphabetical order) or all whole numbers from 0.
    Rows with the same `normalise` key fall on the same side, and only the first is kept; how many contradict it is printed.
    `EXAMPLES` and every sentence that contains one go to the test split. Rows come in the order of their hash,
    so the first n of a split are a fair sample. Returns a DatasetDict with columns `sentence` and `label`.
    TypeError, ValueError for anything else; they name the row, counted from 1.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    sentences = texts(sentences, "sentences")
    if blank := [row for row, text in enumerate(sentences, start=1) if not text.strip()]:
        raise ValueError(f"sentences: row {blank[0]} is empty; leave such rows out.")
    codes, classes = _classes(labels)
    if len(sentences) != len(codes):
        raise ValueError(
            f"{len(sentences)} sentences but {len(codes)} labels were given; each sentence needs one label."
        )
    rows, contradicting = {}, []
    for sentence, label in zip(sentences, codes, strict=True):
        first = rows.setdefault(normalise(sentence), (sentence, label))
        if first[1] != label:
            contradicting.append(f"{first[0]!r} is {classes[first[1]]} and {classes[label]}")
    if contradicting:
        print(
            f"{len(contradicting):,} rows repeat a sentence with another label; the first label was kept. "
            f"For example {'; '.join(contradicting[:3])}."
        )
    kept_apart = [normalise(text) for text, _ in EXAMPLES]
    parts = {"train": [], "validation": [], "test": []}
    for key, row in rows.items():
        place = place_of(key)
        if place < test or any(example in key for example in kept_apart):
            name = "test"
        else:
            name = "validation" if place < test + validation else "train"
        parts[name].append((place, *row))
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=classes)})
    return DatasetDict(
        {
            name: Dataset.from_dict({"sentence": [r[1] for r in part], "label": [r[2] for r in part]}, features)
            for name, part in ((name, sorted(part)) for name, part in parts.items())
        }
    )


def _classes(labels) -> tuple[list[int], list[str]]:
    """(code of each row, names of the classes) of labels that are all words, or all whole numbers from 0."""
    if isinstance(labels, str):
        raise TypeError("labels is a str; pass a list of labels, one for each sentence.")
    labels = list(labels)
    for row, label in enumerate(labels, start=1):
        if not isinstance(label, (str, Integral)) or isinstance(label, bool) or not str(label).strip():
            raise ValueError(f"Row {row} has the label {label!r}; a label is a word, or a whole number from 0.")
        if not isinstance(label, str) and label < 0:
            raise ValueError(f"Row {row} has the label {label}; numbers count classes from 0.")
    words = [label for label in labels if isinstance(label, str)]
    if words and len(words) < len(labels):
        raise ValueError("Some labels are words and some are numbers; use one kind.")
    if not words and set(labels) <= {0, 1}:
        return [int(label) for label in labels], list(LABELS)
    labels = [label.strip() if words else int(label) for label in labels]
    classes = {label: code for code, label in enumerate(sorted(set(labels)))}
    return [classes[label] for label in labels], [str(label) for label in classes]


def texts(given, what: str = "texts") -> list[str]:
    """Any sequence of str (a list, a tuple, a column of a table, an array) as a list, in its own order.

    TypeError for a single str, whose letters would count as texts, and for an item that is no str; `what` names them.
    """
    table = getattr(given, "ndim", 1) > 1 or hasattr(given, "column_names")
    if isinstance(given, (str, bytes, dict, set, frozenset)) or table or not hasattr(given, "__len__"):
        raise TypeError(
            f"{what} is a {type(given).__name__}; pass a list of texts, such as ['a fine film', 'dull'], or one column of a table."
        )
    found = list(given)  # a pandas Series by its order, whatever its index says
    for row, text in enumerate(found, start=1):
        if not isinstance(text, str):
            raise TypeError(f"{what}: row {row} is {text!r}, a {type(text).__name__}, and not a text; read it as text.")
    return found


# What tells two texts apart beside letters and digits: what stands inside a number or before it, a smiley, some signs.
_SIGN = r"[:;=]'?-?[()\[\]]|(?<=\d)[.,:/](?=\d)|(?<!\S)-(?=\d)|[#%&@*]"
_PARTS = re.compile(rf"(?P<sign>{_SIGN})|.", re.DOTALL)


def normalise(text: str) -> str:
    """What makes two texts the same, in any script: letters, digits and signs that carry meaning, case and width levelled.

    "It's dull." is "its DULL", but 👍 is not 👎, C++ is not C# and 1.5 is not 15. A text of punctuation alone stays what it is.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).replace("\u2212", "-")
    kept = [part[0] for part in _PARTS.finditer(text) if part["sign"] or _means(part[0])]
    return "".join(kept) or "".join(text.split())


def _means(character: str) -> bool:
    """Whether it counts: a letter, a mark on one, a number or a symbol; not what only chooses the form of an emoji.

    What this Python does not know yet (Cn) counts as the symbol that it is to a newer one; so do the letters in flags.
    """
    kind = unicodedata.category(character)
    if "\ufe00" <= character <= "\ufe0f":
        return False
    return kind[0] in "LNM" or kind in ("Sm", "Sc", "So", "Cn") or "\U000e0020" <= character <= "\U000e007f"


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


def load_instructions(profile, verbose: bool = True):
    """Questions and answers to train a chat model on, as a DatasetDict with train, validation and test.

    The course's FAQ, split by topic, or guanaco-llama2-1k where the profile may ask a hub; one printed line says which.
    Columns: `prompt` and `completion`, each a list of chat messages, and `topic`. `profile.instruction_rows` is
    (train, others), None: all there are.
    """
    if profile.instructions == "guanaco":
        rows, told = _guanaco(), "guanaco-llama2-1k (after OpenAssistant, Köpf et al. 2023)"
    else:
        rows, told = [(row["topic"], chat(row)) for row in read_faq()], "The course's FAQ"
        held = {topic for topics in HELD_OUT.values() for topic in topics}
        if lost := sorted(held - {topic for topic, _ in rows}):
            raise ValueError(f"HELD_OUT names {lost[0]!r}, which is no topic of the FAQ; correct the name.")
    parts = {"train": [], "validation": [], "test": []}
    for topic, messages in rows:
        asked = next(message["content"] for message in messages if message["role"] == "user")
        key = hashlib.sha256(asked.encode()).hexdigest()
        name = next((name for name, topics in HELD_OUT.items() if topic in topics), "train")
        if not topic and int(key[:4], 16) < 0.2 * 16**4:  # no topics: every fifth row, by its hash
            name = "test" if int(key[4], 16) < 8 else "validation"
        parts[name].append((key, dict(prompt=messages[:-1], completion=messages[-1:], topic=topic)))
    return _cut(parts, profile.instruction_rows, told if verbose else "")


def _cut(parts: dict[str, list], limits: tuple[int | None, int | None], told: str):
    """{part: (hash, row) pairs} as a DatasetDict, rows in the order of their hash, so the first n are a fair sample.

    limits: (train, others), None: all. told: what they are, for the printed line; empty for none.
    """
    from datasets import Dataset, DatasetDict

    for name, part in parts.items():
        limit = limits[name != "train"]
        parts[name] = Dataset.from_list([row for _, row in sorted(part, key=lambda pair: pair[0])[:limit]])
    if told:
        print(_counted(told, parts))
    return DatasetDict(parts)


def _counted(told: str, parts) -> str:
    return f"{told}: " + ", ".join(f"{len(part):,} {name}" for name, part in parts.items()) + "."


def read_faq(file=FAQ) -> list[dict]:
    """The FAQ's rows: dicts of topic, question and answer. ValueError names the line that is malformed."""
    name, rows = Path(file).name, []
    try:
        text = Path(file).read_bytes().decode("utf-8").removeprefix("\ufeff")
        lines = text.split("\n")  # and nowhere else: U+2028 may stand inside a line of JSON
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 (byte {error.start + 1}); save it in that encoding.") from None
    for number, line in enumerate(lines[: -1 if lines[-1] == "" else None], start=1):
        where = f"{name}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:  # the latter for brackets thousands deep
            raise ValueError(f"{where} is not JSON ({error}); write one object a line.") from None
        if not isinstance(row, dict) or set(row) != {"topic", "question", "answer"}:
            raise ValueError(f"{where} needs exactly the keys topic, question and answer; it has {list(row)}.")
        if empty := [key for key, text in row.items() if not isinstance(text, str) or not text.strip()]:
            raise ValueError(f"{where}: {empty[0]} is {row[empty[0]]!r}; it must be a text that is not empty.")
        if broken := [key for key, text in row.items() if not sheets.whole(text)]:
            raise ValueError(f"{where}: {broken[0]} has half a character (a lone surrogate); write the whole one.")
        if pointer(row["answer"]) is None:
            raise ValueError(
                f"{where}: the answer must end in a pointer such as '(notebook 04)'; it ends {row['answer'][-24:]!r}."
            )
        rows.append(row)
    return rows


def _once(pairs: list) -> dict:
    """The object that JSON's pairs make; ValueError if a key stands twice, of which json would keep the last."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"a key stands twice among {[key for key, _ in pairs]}")
    return row


def chat(row: dict) -> list[dict]:
    """A row of the FAQ as chat messages."""
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def pointer(answer: str) -> int | None:
    """The notebook that an answer of the FAQ points to at its very end, or None."""
    found = re.search(r"[.!?)`] \(notebook (\d\d)\)$", answer.strip())
    return int(found[1]) if found else None


_TURN = re.compile(
    r"\s*(?:<s>)?\s*\[INST\](?P<system>\s*<<SYS>>(?P<told>(?:(?!\[/?INST\]|</?s>|<</?SYS>>).)*)<</SYS>>)?(?P<question>(?:(?!\[/?INST\]|</?s>|<</?SYS>>).)*)"
    r"\[/INST\](?P<answer>(?:(?!\[/?INST\]|</?s>|<</?SYS>>).)*)(?:</s>)?",
    re.DOTALL,
)


def parse_inst(text: str) -> list[dict]:
    """Llama 2's `<s>[INST] question [/INST] answer </s>…` as chat messages, without the special tokens.

    The chat template writes them anew: left in the text, the first token would be there twice. A system text stands in
    `<<SYS>>` before the first question. ValueError if the text is not of that form from its first letter to its last.
    """
    if not isinstance(text, str):
        raise ValueError(f"A conversation reads '[INST] question [/INST] answer'; this one is a {type(text).__name__}.")
    messages, place = [], 0
    while text[place:].strip():
        found = _TURN.match(text, place)
        if not found:
            raise ValueError(
                f"A turn must read '[INST] question [/INST] answer'; this one begins {text[place:].strip()[:40]!r}."
            )
        if found["system"]:
            if messages:
                raise ValueError(
                    "A system text (<<SYS>>) stands in a later turn; it belongs before the first question."
                )
            messages.append({"role": "system", "content": found["told"].strip()})
        messages += [
            {"role": "user", "content": found["question"].strip()},
            {"role": "assistant", "content": found["answer"].strip()},
        ]
        place = found.end()
    if empty := [message["role"] for message in messages if not message["content"]]:
        raise ValueError(f"A turn has no text of its {empty[0]}; '[INST] question [/INST] answer' needs both.")
    if not messages:
        raise ValueError("The text holds no turn; '<s>[INST] question [/INST] answer </s>' is expected.")
    return messages


def _guanaco():
    """(topic, messages) of each conversation; it has no topics."""
    from datasets import load_dataset

    rows, odd = [], []
    for row in load_dataset("mlabonne/guanaco-llama2-1k", split="train"):
        try:
            rows.append(("", parse_inst(row["text"])))
        except ValueError as error:
            odd.append(str(error))
    if odd:
        print(f"{len(odd)} conversations are not of the expected form and were left out; the first: {odd[0]}")
    return rows
