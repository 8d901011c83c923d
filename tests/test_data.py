"""utils/data.py: splits that never change. The review texts are not ours to publish, so they are pinned by their hash."""

import hashlib

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import assets, data, profiles

PINNED = {  # rows, and a hash of texts, labels and order
    "train": (7_131, "58751473da5fe773"),
    "validation": (828, "40eb9eddc0ea2db7"),
    "test": (2_111, "38b65150b351ca65"),
}
OURS = {
    "Nobody in it seems to care.": "train",
    "Two hours that feel like four.": "train",
    "A fine cast in search of a story.": "train",
    "It sings.": "validation",
    "The plot has more holes than a net.": "test",
    "Well acted.": "test",
}
words = st.lists(
    st.sampled_from(["a", "dull", "film", "that", "grows", "on", "you", "is", "well", "acted", "long"]), min_size=1
)
sentences = st.lists(words.map(" ".join), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def movies():
    return data.load_domain("movies")


def place(splits) -> dict:
    """{normalised sentence: split}; a sentence that is in two splits fails."""
    found = {}
    for name, split in splits.items():
        for sentence in split["sentence"]:
            key = data.normalise(sentence)
            assert key not in found, f"{sentence!r} is twice in the splits: {found[key]} and {name}"
            found[key] = name
    return found


# --- the real sentences ---


@pytest.mark.parametrize("name", PINNED)
def test_the_splits_are_what_they_always_were(movies, name):
    rows, known = PINNED[name]
    split = movies[name]
    told = "\n".join(f"{data.normalise(s)} {y}" for s, y in zip(split["sentence"], split["label"], strict=True))
    assert (len(split), hashlib.sha256(told.encode()).hexdigest()[:16]) == (rows, known)


def test_enough_to_judge_by_and_balanced(movies):
    assert set(movies) == {"train", "validation", "test"} and len(movies["test"]) >= 2_000
    for split in movies.values():
        assert 0.48 < sum(split["label"]) / len(split) < 0.52
        assert split.features["label"].names == ["negative", "positive"]


@pytest.mark.parametrize("domain", data.DOMAINS)
def test_no_sentence_is_in_two_splits_and_none_is_lost(domain):
    splits = data.load_domain(domain)
    lines = (assets.path("sentences") / data.DOMAINS[domain]).read_text(encoding="utf-8").splitlines()
    decided = [line.split("\t", 2) for line in lines if abs(float(line.split("\t")[1])) >= 0.5]
    assert set(place(splits)) == {data.normalise(sentence) for _, _, sentence in decided}
    rating = {}
    for _, value, sentence in decided:
        rating.setdefault(data.normalise(sentence), float(value))
    for split in splits.values():
        assert all(y == (rating[data.normalise(s)] > 0) for s, y in zip(split["sentence"], split["label"], strict=True))


def test_the_six_examples_are_only_ever_tested_on(movies):
    examples = [data.normalise(sentence) for sentence, _ in data.EXAMPLES]
    assert len(set(examples)) == 6 and {label for _, label in data.EXAMPLES} == {0, 1}
    for name in ("train", "validation"):
        for sentence in movies[name]["sentence"]:
            assert not any(example in data.normalise(sentence) for example in examples), sentence
    tested = [data.normalise(sentence) for sentence in movies["test"]["sentence"]]
    assert sum(any(example in sentence for sentence in tested) for example in examples) >= 4  # the corpus has them


@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_profiles_take_slices_of_one_split(movies, name, capsys):
    profile = profiles.get(name)
    splits = data.load_sentiment(profile)
    wanted = {"train": profile.train_rows, "validation": profile.eval_rows, "test": profile.eval_rows}
    for part, rows in wanted.items():
        assert splits[part]["sentence"] == movies[part]["sentence"][:rows]
        assert splits[part]["label"] == movies[part]["label"][:rows]
    told = capsys.readouterr().out
    assert (
        told.startswith("Movie-review sentences")
        and f"{len(splits['train']):,} train" in told
        and told.count("\n") == 1
    )
    data.load_sentiment(profile, verbose=False)
    assert capsys.readouterr().out == ""


def test_sst2_never_trains_on_what_it_tests(monkeypatch, capsys):
    """The gpu profile's path, on a stand-in for the hub's data."""
    held_out = ["a quiet film .", "dull and loud ."]
    examples = [sentence for sentence, _ in data.EXAMPLES]
    train = [f"sentence number {i}" for i in range(200)] + [s.upper() for s in held_out] + examples
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((*arguments, options["revision"]))
        rows = {name: dict(sentence=s, label=[i % 2 for i in range(len(s))], idx=list(range(len(s))))
                for name, s in (("train", train), ("validation", held_out))}  # fmt: skip
        return datasets.DatasetDict({name: datasets.Dataset.from_dict(row) for name, row in rows.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = data.load_sentiment(profiles.get("gpu"))
    assert asked == [("nyu-mll/glue", "sst2", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")]
    assert list(splits["test"]["sentence"]) == held_out and splits["test"].column_names == ["sentence", "label"]
    assert set(splits["train"]["sentence"]) | set(splits["validation"]["sentence"]) == set(train[:200])
    assert 0 < len(splits["validation"]) < 30
    assert capsys.readouterr().out.startswith("SST-2")


# --- the rule ---


def test_our_own_sentences_stay_where_they_are():
    splits = data.split(list(OURS), [0, 1, 0, 1, 0, 1])
    assert place(splits) == {data.normalise(sentence): name for sentence, name in OURS.items()}
    rows = {s: y for split in splits.values() for s, y in zip(split["sentence"], split["label"], strict=True)}
    assert rows == dict(zip(OURS, [0, 1, 0, 1, 0, 1], strict=True))


@settings(deadline=None, max_examples=30)
@given(sentences, sentences, st.randoms())
def test_more_rows_move_no_row(some, more, random):
    before = place(data.split(some, [0] * len(some)))
    together = some + more
    random.shuffle(together)
    after = place(data.split(together, [0] * len(together)))
    assert before.items() <= after.items()


@settings(deadline=None, max_examples=30)
@given(sentences, st.randoms())
def test_duplicates_are_one_row(some, random):
    spelt = [f"  {s.upper()} !" if random.random() < 0.5 else s.replace(" ", " - ") for s in some]
    splits = data.split(some + spelt, [0] * len(some) + [1] * len(spelt))
    assert set(place(splits)) == {data.normalise(s) for s in some}  # place() fails if one is in two splits
    kept = [s for split in splits.values() for s in split["sentence"]]
    assert len(kept) == len(set(map(data.normalise, some)))
    assert set(kept) <= set(some) and not any(sum(split["label"]) for split in splits.values())  # the first one stays


def test_shares_are_as_asked():
    some = [f"sentence {i}" for i in range(4_000)]
    splits = data.split(some, [0] * 4_000, validation=0.1, test=0.3)
    assert abs(len(splits["validation"]) - 400) < 60 and abs(len(splits["test"]) - 1_200) < 90
    assert len(data.split(some, [0] * 4_000, test=0)["test"]) == 0


def test_what_contains_an_example_is_tested_on_whatever_its_hash():
    some = [f"I quote, {i} times: It's just incredibly DULL." for i in range(50)]
    assert set(place(data.split(some, [0] * 50)).values()) == {"test"}


def test_other_labels_than_the_two():
    splits = data.split(["one", "two", "three"], [0, 1, 2])
    assert splits["train"].features["label"].names == ["0", "1", "2"]


def rows_of(splits) -> dict:
    """{sentence: name of its class}"""
    return {
        s: split.features["label"].names[y]
        for split in splits.values()
        for s, y in zip(split["sentence"], split["label"], strict=True)
    }


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda rows: pd.Series(rows, index=range(7, 7 + len(rows)))])
def test_labels_keep_their_names_in_any_sequence(kind):
    """Twelve classes: as texts '10' comes before '2', as numbers not; and a table's index says nothing."""
    numbers = list(range(12))
    assert rows_of(data.split(kind([f"text {n}" for n in numbers]), kind(numbers))) == {
        f"text {n}": str(n) for n in numbers
    }
    assert rows_of(data.split(kind(["a", "b", "c"]), kind([5, 1, 20240101]))) == {"a": "5", "b": "1", "c": "20240101"}
    words = ["spam", "ham", " spam"]
    assert rows_of(data.split(kind(["a", "b", "c"]), kind(words))) == {"a": "spam", "b": "ham", "c": "spam"}


def test_contradicting_rows_are_told_and_the_first_stays(capsys):
    splits = data.split(["Good.", "good", "fine", "GOOD!"], [1, 0, 1, 0])
    assert rows_of(splits) == {"Good.": "positive", "fine": "positive"}
    assert capsys.readouterr().out == (
        "2 rows repeat a sentence with another label; the first label was kept. "
        "For example 'Good.' is positive and negative; 'Good.' is positive and negative.\n"
    )


@pytest.mark.parametrize(
    "one, other",
    [("👍", "👎"), ("C++", "C#"), ("C#", "C"), ("1.5", "15"), ("-5 degrees", "5 degrees"), ("fine :)", "fine :("), ("!!!", "???"),
     ("电影很好", "电影很糟"), ("хорошо", "плохо"), ("فيلم جيد", "فيلم سيئ"), ("कि", "की"), ("café", "caf"), ("5 €", "5 $"),
     ("8,5", "85"), ("1/2 star", "12 star"), ("10:1", "101"), ("Rating: *", "Rating: *****"), ("so :'(", "so :')"),
     ("\U0001faf8", "")],
)  # fmt: skip
def test_what_differs_in_any_script_stays_apart(one, other):
    assert data.normalise(one) != data.normalise(other)
    if other:
        assert sum(map(len, data.split([one, other], [0, 1]).values())) == 2


@pytest.mark.parametrize(
    "one, other",
    [("It's dull.", "its DULL !"), ("Straße", "STRASSE"), ("ﬁlm", "film"), ("ＡＢＣ", "abc"), ("❤️", "❤"), ("👍🏽", "👍"),
     ("e\u0301", "é"), ("ΟΔΟΣ", "οδος"), ("well-acted", "well acted"), ("-5", "\u22125")],
)  # fmt: skip
def test_what_differs_in_form_alone_is_the_same(one, other):
    assert data.normalise(one) == data.normalise(other) != ""


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: data.load_domain("films"), "no domain 'films'; the course has movies, products, tweets, editorials"),
        (lambda: data.split(["one", "two"], [1]), "2 sentences but 1 labels .*one label"),
        (lambda: data.split(["one", " "], [0, 1]), "sentences: row 2 is empty"),
        (lambda: data.split(["one"], "1"), "labels is a str"),
        (
            lambda: data.split(pd.DataFrame(dict(sentence=["a"], label=[1])), [1]),
            "sentences is a DataFrame; pass .* one column",
        ),
        (lambda: data.split("words", [1] * 5), "sentences is a str; pass a list of texts"),
        (lambda: data.split({"one": 1}, [1]), "sentences is a dict; pass a list"),
        (lambda: data.split(["one", float("nan")], [0, 1]), "sentences: row 2 is nan, a float, and not a text"),
        (lambda: data.split(["one", "two"], [0, None]), "Row 2 has the label None"),
        (lambda: data.split(["one", "two"], [0, float("nan")]), "Row 2 has the label nan"),
        (lambda: data.split(["one", "two"], ["good", " "]), "Row 2 has the label ' '"),
        (lambda: data.split(["one", "two"], ["good", 1]), "Some labels are words and some are numbers"),
        (lambda: data.split(["one", "two"], [0, -1]), "Row 2 has the label -1; numbers count classes from 0"),
    ],
)
def test_wrong_arguments(call, told):
    with pytest.raises((ValueError, TypeError), match=told):
        call()
