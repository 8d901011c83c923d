"""utils/triage.py and benchmarks/triage.py: what counts as a record, what the model may choose, what the table says."""

import json

import pytest

from benchmarks import record, sentiment
from benchmarks import triage as runs
from utils import data, models, profiles, training, triage

PROFILE = profiles.get("smoke")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "positive",
        "[]",
        "3",
        "null",
        "{}",
        '{"kind": "film"}',
        '{"kind": "film", "verdict": "Positive"}',
        '{"kind": "movie", "verdict": "positive"}',
        '{"kind": "film", "verdict": true}',
        '{"kind": "film", "verdict": ["positive"]}',
        '{"kind": "film", "verdict": "positive", "reason": ""}',
        '{"kind": "film", "verdict": "negative", "verdict": "positive"}',
        'Here: {"kind": "film", "verdict": "positive"}',
        '{"kind": "film", "verdict": "positive"} ok',
        '[["kind", "film"], ["verdict", "positive"]]',
        '{"kind": "film", "verdict": "positive"',
        "[" * 100_000,
    ],
)
def test_what_is_no_record(answer):
    assert triage.read(answer) is None


def test_the_eight_records():
    assert len(set(triage.LEGAL)) == 8
    for text in triage.LEGAL:
        assert triage.read(text) == json.loads(text)
    assert triage.read('{"verdict":"negative",\n "kind":"tweet"}') == dict(kind="tweet", verdict="negative")


def test_rows_are_split_as_everywhere_and_say_what_was_rated():
    rows = data.load_records(PROFILE, verbose=False)
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [32, 16, 16]
    for domain, kind in triage.KINDS.items():
        whole = data.load_domain(domain)
        for name, part in rows.items():
            own = [row for row in part if row["kind"] == kind]
            assert {row["sentence"] for row in own} <= set(whole[name]["sentence"])
            for row in own:
                told = triage.read(row["completion"][0]["content"])
                assert told == dict(kind=kind, verdict=data.LABELS[row["label"]])
                assert row["prompt"] == [
                    dict(role="user", content=f"Text: {row['sentence']}\nReply with a JSON record.")
                ]


@pytest.fixture(scope="module")
def llama():
    return models.load_decoder(PROFILE)


def test_choosing_takes_the_likeliest_record_whatever_the_batch(llama):
    import torch

    model, tokenizer = llama
    rows = data.load_records(PROFILE, verbose=False)["test"].select(range(3))
    found = triage.choose(model, tokenizer, rows["prompt"][:], batch_size=3)
    assert found == triage.choose(model, tokenizer, rows["prompt"][:], batch_size=2)
    for prompt, chosen in zip(rows["prompt"], found, strict=True):
        asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        sums = []
        for text in triage.LEGAL:
            ids = tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([asked + ids])).logits[0, len(asked) - 1 : -1].float().log_softmax(-1)
            sums.append(sum(logits[place, token].item() for place, token in enumerate(ids)))
        best = max(sums)
        assert sums[triage.LEGAL.index(chosen)] > best - 0.15  # 16 bits: near ties may fall either way


def test_answers_come_in_the_order_of_the_questions(llama):
    prompts = [
        [dict(role="user", content=text)] for text in ("Say A, please, and nothing else at all.", "Hi", "Name a fruit.")
    ]
    together = training.answers(*llama, prompts, 6, batch_size=3)
    alone = [training.answers(*llama, [prompt], 6)[0] for prompt in prompts]
    assert [text.split()[:1] for text, _ in together] == [text.split()[:1] for text, _ in alone]
    assert training.answers(*llama, [], 6) == []


def test_malformed_answers_are_wrong_throughout():
    rows = data.load_records(PROFILE, verbose=False)["test"].select(range(4))
    right = [completion[0]["content"] for completion in rows["completion"]]
    assert [runs.judged(right, rows)[name] for name in ("valid", "verdict", "kind")] == [1, 1, 1]
    told = runs.judged([right[0], f"{right[1]}!", right[2], ""], rows)
    assert [told[name] for name in ("valid", "verdict", "kind")] == [0.5, 0.5, 0.5]


def made(name: str, verdicts, kinds) -> dict:
    """A run of the record whose answers were all valid."""
    return dict(
        name=name, rows=len(kinds), valid=1.0,
        right_verdict=sentiment.packed(verdicts), right_kind=sentiment.packed(kinds),
    )  # fmt: skip


def test_the_table_counts_films_and_compares_with_the_classifier_on_the_same_reviews():
    classifier = record.read("sentiment")
    films, best = classifier["test_rows"], sentiment.summary(classifier)[runs.CLASSIFIER]
    theirs = [
        sentiment.unpacked(run, films)
        for run in sentiment.of(classifier["runs"], runs.CLASSIFIER, best["learning_rate"])
    ]
    few, some = ["film", "tweet", "film", "product", "editorial", "film"], [True, False, True, False, False, False]
    kept = dict(kinds=dict(few=few, seeds=dict(film=films, product=2, tweet=2, editorial=2)))
    kept["runs"] = [made(name, some, [True] * 6) for name in (*runs.SHOWN, "mixed, 0")]
    for seed in runs.SEEDS:  # as right as the classifier, no editorial recognised
        kept["runs"].append(made(f"seed, {seed}", [*theirs[seed], *[False] * 6], [*[True] * (films + 4), False, False]))
    assert runs.against_classifier(kept, classifier) == (0, (0, 0))
    table = runs.summary(kept, classifier)
    ours, classified = table.iloc[-2], table.iloc[-1]
    assert ours["verdict, films"] == pytest.approx(classified["verdict, films"]) == pytest.approx(runs.films(kept))
    assert ours["kind"] == 3 / 4 and list(table["kind"][: len(runs.SHOWN)]) == [1] * len(runs.SHOWN)
    assert list(table["verdict, films"][: len(runs.SHOWN)]) == pytest.approx([2 / 3] * len(runs.SHOWN))
    assert ((table["from"] < table["verdict, films"]) & (table["verdict, films"] < table["to"])).all()
    first, mixed = runs.same_rows(kept)
    assert mixed == dict(rows=3, verdict=pytest.approx(2 / 3)) and first == theirs[0][:3].mean()
    better = theirs[0].copy()
    better[: films // 10] = True
    kept["runs"][-3] = made("seed, 0", [*better, *[False] * 6], [True] * (films + 6))
    assert runs.against_classifier(kept, classifier)[0] == pytest.approx((better.mean() - theirs[0].mean()) / 3)


def test_kinds_decide_between_equal_verdicts():
    tried = [(1e-3, 0.8, 0.7), (2e-3, 0.9, 0.5), (4e-3, 0.9, 0.6), (8e-3, 0.5, 0.9)]
    rates = [dict(name=f"rate, {rate:g}", rate=rate, verdict=verdict, kind=kind) for rate, verdict, kind in tried]
    assert runs.chosen([*rates, dict(name="seed, 0", verdict=1, kind=1)]) == 4e-3
    more = [dict(name="rate", rate=rate, verdict=verdict, kind=0.5) for rate, verdict in ((1e-3, 0.8), (4e-3, 0.6))]
    assert runs.chosen([*rates, *more]) == 1e-3, "two seeds each: 0.80 against 0.75; what one seed tried is out"
    asked = [dict(name=f"ask, {rate:g}", verdict=verdict, kind=kind) for rate, verdict, kind in tried]
    assert runs.best_ask([*rates, *asked, dict(name="best ask, free", verdict=1, kind=1)])["name"] == "ask, 0.004"


def test_examples_show_each_record_once():
    rows = data.load_records(profiles.get("cpu"), verbose=False)
    shown = [row["completion"][0]["content"] for row in runs.examples(rows, 8)]
    assert sorted(shown) == sorted(triage.LEGAL)
    assert len({json.loads(text)["kind"] for text in shown[:4]}) == 4


def test_ordinary_questions_are_trained_on_or_tested_never_both():
    trained, tested = runs.ordinary()
    assert len(trained) == len(tested) == 48 and not set(trained) & set(tested)
