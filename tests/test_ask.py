"""Asking: the kept beginning changes no answer, the candidates are fair and chosen on validation."""

import numpy as np
import pytest
import torch

from benchmarks import ask, sentiment
from utils import models

PROFILE, SPLITS = sentiment.material()


@pytest.fixture(scope="module")
def decoder():
    return models.load_decoder(PROFILE, dtype=torch.float32)


def plain(decoder, prompt, examples, review) -> float:
    """The same score by one forward pass over the whole conversation, nothing kept."""
    model, tokenizer = decoder
    chat, words = (
        ask.chat(prompt, examples, review),
        [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ask.PROMPTS[prompt][1]],
    )
    batch = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        negative, positive = model(**batch).logits[0, -1, words].tolist()
    return positive - negative


@pytest.mark.parametrize(("prompt", "shots"), [("praise", 4), ("positive or negative", 0)])
def test_what_is_read_once_changes_no_answer(decoder, prompt, shots, monkeypatch):
    monkeypatch.setattr(ask, "BATCH", 2)  # so that what is kept is used more than once
    reviews, examples = SPLITS["validation"]["sentence"][:3], ask.draw(SPLITS["train"], shots, 0)
    scores, read, anew = ask.ask(*decoder, prompt, examples, reviews)
    expected = [plain(decoder, prompt, examples, review) for review in reviews]
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    alone, *_ = ask.ask(*decoder, prompt, examples, reviews[:1])  # all of it is the same in every call
    np.testing.assert_allclose(alone, expected[:1], atol=1e-3)
    assert 0 < anew < read and (read - anew > 150) == bool(shots)


def test_each_answer_is_one_token_and_each_question_holds_the_review(decoder):
    _, tokenizer = decoder
    for prompt, (question, words) in ask.PROMPTS.items():
        tokens = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        assert [len(each) for each in tokens] == [1, 1] and tokens[0] != tokens[1], prompt
        assert ask.answers(tokenizer, prompt) == [each[0] for each in tokens]
        assert "A {dull} film" in question.format("A {dull} film")


def test_examples_come_from_training_half_of_each_label_with_their_answers():
    rows = dict(zip(SPLITS["train"]["sentence"], SPLITS["train"]["label"], strict=True))
    examples = ask.draw(SPLITS["train"], 8, 0)
    assert all(rows[sentence] == label for sentence, label in examples)
    assert sorted(label for _, label in examples) == [0] * 4 + [1] * 4 and len({*examples}) == 8
    assert ask.draw(SPLITS["train"], 8, 0) == examples != ask.draw(SPLITS["train"], 8, 1)
    turns = ask.chat("praise", examples, "A new one.")
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 8 + ["user"]
    assert [turn["content"] for turn in turns[1::2]] == [("No", "Yes")[label] for _, label in examples]
    assert "A new one." in turns[-1]["content"]


def test_scores_are_judged_as_they_stand_and_at_a_threshold():
    scores, labels = np.array([1.0, 2.0, 3.0, 4.0]), [0, 0, 1, 1]  # says positive to all, and ranks them without fault
    told = ask.judged(scores, labels)
    assert (told["as_it_stands"], told["says_positive"], told["auc"], told["accuracy"]) == (0.5, 1.0, 1.0, 1.0)
    assert told["threshold"] == 2.5
    assert ask.judged(scores, labels, threshold=3.5)["accuracy"] == 0.75
    assert ask.judged(-scores, labels)["auc"] == 0.0
    few = ask.judged(scores, [0, 0, 0, 1][::-1])  # the only praise has the lowest score: saying negative to all is best
    assert few["accuracy"] == 0.75 and few["threshold"] > scores.max()


def tried(candidates, **accuracies) -> list:
    return [
        dict(
            name=ask.named(*each),
            **dict(zip(("prompt", "shots", "draw"), each, strict=True)),
            validation=dict(accuracy=accuracies.get(f"{each[0]}_{each[1]}", 0.6)),
        )
        for each in candidates
    ]


def test_the_best_prompt_with_examples_gets_more_draws():
    first = ask.plan([])
    assert len(first) == len({ask.named(*each) for each in first}) == 12 * 3
    runs = tried(first, praise_0=0.9, like_4=0.8)
    assert ask.plan(runs)[36:] == [("like", 4, draw) for draw in (1, 2, 3, 4)]
    assert ask.plan(runs[:-1]) == first
    more = runs + tried(ask.plan(runs)[36:])
    assert ask.plan(more) == ask.plan(runs) and ask.winner(dict(runs=more))["name"] == "praise, 0 shots"
