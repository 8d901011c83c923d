"""Asking at its best: a chat model is asked whether a film review is praise, in a dozen ways, with examples and without.

    python -m benchmarks.ask            # about 25 minutes on two cores; goes on where it stopped
    python -m benchmarks.ask --table    # print what is recorded

Prompt, examples and threshold are chosen on validation rows; about the test rows the model is asked twice, with the winner and
with the first prompt as it stands. Lesson 00 runs both on some of them.
"""

import argparse
import copy
import itertools
import random

from benchmarks import record, sentiment

# name: (question, the words for negative and positive with which the answer may begin)
PROMPTS = {
    "positive or negative": (
        "Film review: {}\nIs this review positive or negative? Answer with one word.",
        ("Negative", "Positive"),
    ),
    "negative or positive": (
        "Film review: {}\nIs this review negative or positive? Answer with one word.",
        ("Negative", "Positive"),
    ),
    "sentiment": ("{}\n\nSentiment:", ("negative", "positive")),
    "sentiment, told": (
        "What is the sentiment of this sentence from a film review?\n\n{}\n\nAnswer positive or negative.",
        ("negative", "positive"),
    ),
    "classify": (
        "Classify the text as negative or positive.\nText: {}\nClass:",
        ("negative", "positive"),
    ),
    "praise": ("A critic wrote: {}\nDoes the critic praise the film? Answer Yes or No.", ("No", "Yes")),
    "like": ("{}\n\nDid the person who wrote this like the film? Answer Yes or No.", ("No", "Yes")),
    "recommend": (
        "Film review: {}\nWould this critic recommend the film? Answer Yes or No.",
        ("No", "Yes"),
    ),
    "good or bad": ("Film review: {}\nIs the film good or bad? Answer with one word.", ("Bad", "Good")),
    "great or bad": ("{} The film was", ("bad", "great")),
    "thumbs": ("Film review: {}\nThumbs up or thumbs down?", ("down", "up")),
    "stars": ("Film review: {}\nHow many stars, 1 or 5?", ("1", "5")),
}
SHOTS = (0, 4, 8)  # examples shown before the question
DRAWS = 5  # of examples, for the best prompt: how much do they matter?
EVERY = 2  # validation rows: every second one chooses, for time
BATCH = 32


def chat(prompt: str, examples, review: str) -> list[dict]:
    """The conversation that asks about `review`; `examples`: (sentence, label) pairs that are shown with their answers first."""
    question, words = PROMPTS[prompt]
    turns = []
    for sentence, label in examples:
        turns += [dict(role="user", content=question.format(sentence)), dict(role="assistant", content=words[label])]
    return [*turns, dict(role="user", content=question.format(review))]


def draw(rows, shots: int, seed: int) -> list[tuple[str, int]]:
    """`shots` training rows as (sentence, label), half of each label, in a random order."""
    dice = random.Random(seed)
    labels, sentences = rows["label"][:], rows["sentence"][:]
    picked = [
        (sentences[i], label)
        for label in (0, 1)
        for i in dice.sample([i for i, own in enumerate(labels) if own == label], shots // 2)
    ]
    return dice.sample(picked, len(picked))


def answers(tokenizer, prompt: str) -> list[int]:
    """The tokens of the words for negative and positive; each word is one."""
    return [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in PROMPTS[prompt][1]]


def ask(model, tokenizer, prompt: str, examples, reviews, bar: bool = False):
    """(scores, read, anew): for each review the logit of the word for positive less that of the word for negative; tokens of a
    call, and those of them that are not the same in every call.

    What all conversations begin with is read once and kept (its keys and values), so that each call reads only its own end.
    bar: show the progress.
    """
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    texts = [
        tokenizer.apply_chat_template(chat(prompt, examples, review), tokenize=False, add_generation_prompt=True)
        for review in reviews
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))
    shared = min(len([*same]), min(map(len, ids)) - 1)  # one token at least is left to read
    weight, scores = model.lm_head.weight[answers(tokenizer, prompt)].float(), np.empty(len(ids))
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    with torch.inference_mode():
        beginning = torch.tensor([ids[0][:shared]], device=model.device)
        known = model.model(input_ids=beginning, use_cache=True).past_key_values
        for start in tqdm(range(0, len(order), BATCH), disable=not bar):
            rows = order[start : start + BATCH]
            ends = [ids[i][shared:] for i in rows]
            long = max(map(len, ends))
            padded = [end + [tokenizer.pad_token_id] * (long - len(end)) for end in ends]
            mask = [[1] * (shared + len(end)) + [0] * (long - len(end)) for end in ends]
            kept = copy.deepcopy(known)  # a forward pass adds to it
            kept.batch_repeat_interleave(len(rows))
            hidden = model.model(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                past_key_values=kept,
            ).last_hidden_state
            last = hidden[range(len(rows)), [len(end) - 1 for end in ends]]
            logits = last.float() @ weight.T  # in 16 bits, logits of this size differ in steps of an eighth
            scores[rows] = (logits[:, 1] - logits[:, 0]).cpu().numpy()
    read = sum(map(len, ids)) / len(ids)
    return scores, read, read - shared


def judged(scores, labels, threshold: float | None = None) -> dict:
    """Accuracy as it stands, AUC, and the accuracy at `threshold`, by default the one that is best for these very rows."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(labels)
    if threshold is None:
        ordered = np.sort(scores)
        between = np.concatenate([[ordered[0] - 1], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1]])
        threshold = float(between[np.argmax([((scores > t) == labels).mean() for t in between])])
    return dict(
        as_it_stands=round(float(((scores > 0) == labels).mean()), 4),
        says_positive=round(float((scores > 0).mean()), 4),
        auc=round(float(roc_auc_score(labels, scores)), 4),
        threshold=round(threshold, 4),
        accuracy=round(float(((scores > threshold) == labels).mean()), 4),
    )


def plan(runs: list) -> list[tuple[str, int, int]]:
    """(prompt, shots, draw) of all candidates, given those that were tried: every prompt first, then more draws for the best."""
    first = [(prompt, shots, 0) for prompt in PROMPTS for shots in SHOTS]
    tried = {run["name"] for run in runs}
    if not {named(*each) for each in first} <= tried:
        return first
    best = max((run for run in runs if not run["draw"] and run["shots"]), key=lambda run: run["validation"]["accuracy"])
    return first + [(best["prompt"], best["shots"], draw) for draw in range(1, DRAWS)]


def named(prompt: str, shots: int, draw: int) -> str:
    return f"{prompt}, {shots} shots" + (f", draw {draw}" if draw else "")


def winner(kept: dict) -> dict:
    """The candidate with the best validation accuracy at its own threshold (the first of equals)."""
    return max(kept["runs"], key=lambda run: run["validation"]["accuracy"])


def values(profile, splits) -> dict:
    """What decides these runs."""
    from transformers import AutoTokenizer

    from utils import models

    source, revision = models.origin(profile, "decoder")
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    return dict(
        rows=dict(splits),
        template=tokenizer.chat_template,
        base=models.base_sha256(profile.decoder),
        plan=[PROMPTS, SHOTS, DRAWS, EVERY],
        examples=[draw(splits["train"], shots, seed) for shots in SHOTS for seed in range(DRAWS)],
    )


def canary(profile, splits) -> dict:
    """The probability of the word for positive against that for negative, for five rows, in fp32."""
    import numpy as np
    import torch

    from utils import models

    model, tokenizer = models.load_decoder(profile, dtype=torch.float32)
    rows, told = splits["validation"]["sentence"][: record.CANARY_STEPS], {}
    for prompt, shots in ((next(iter(PROMPTS)), 0), ("praise", 4)):
        scores, *_ = ask(model, tokenizer, prompt, draw(splits["train"], shots, 0), rows)
        told[named(prompt, shots, 0)] = (1 / (1 + np.exp(-scores))).tolist()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    if parser.parse_args().table:
        return table(record.read("ask"))
    import numpy as np

    from utils import models

    profile, splits = sentiment.material()
    decides = values(profile, splits)
    kept = record.resume("ask", decides)
    if not kept:
        kept = dict(origin=record.origin(decides, canary(profile, splits)), due=[], runs=[], test=[])
    model, tokenizer = models.load_decoder(profile)

    def asked(split: str, prompt: str, shots: int, seed: int, threshold=None) -> dict:
        examples = draw(splits["train"], shots, seed)
        rows = splits[split][:: EVERY if split == "validation" else 1]
        scores, read, anew = ask(model, tokenizer, prompt, examples, rows["sentence"])
        labels = np.array(rows["label"])
        told = judged(scores, labels, threshold) | dict(read=round(read, 1), anew=round(anew, 1))
        return told | (dict(right=sentiment.packed((scores > threshold) == labels)) if split == "test" else {})

    def due() -> list[str]:
        return [named(*each) for each in plan(kept["runs"])] + ["test, the first prompt", "test, the winner"]

    while waiting := [each for each in plan(kept["runs"]) if named(*each) not in record.held(kept)]:
        prompt, shots, seed = waiting[0]
        run = dict(name=named(*waiting[0]), prompt=prompt, shots=shots, draw=seed)
        kept["runs"].append(run | dict(validation=asked("validation", *waiting[0])))
        kept["due"] = due()
        record.write("ask", kept)
        print(kept["runs"][-1], flush=True)
    first, best = kept["runs"][0], winner(kept)
    for name, run, threshold in (("first prompt", first, 0.0), ("winner", best, best["validation"]["threshold"])):
        if f"test, the {name}" in record.held(kept):
            continue
        told = asked("test", run["prompt"], run["shots"], run["draw"], threshold)
        kept["test"].append(dict(name=f"test, the {name}", of=run["name"]) | told)
    record.write("ask", kept)
    table(kept)


def table(kept: dict) -> None:
    """Print a record."""
    print(f"{'':<36}{'as it stands':>13}{'positive':>10}{'AUC':>8}{'best cut':>10}{'tokens':>8}")
    for run in sorted(kept["runs"], key=lambda run: -run["validation"]["accuracy"]):
        told = run["validation"]
        print(f"{run['name']:<36}{told['as_it_stands']:>13.3f}{told['says_positive']:>10.2f}{told['auc']:>8.3f}"
              f"{told['accuracy']:>10.3f}{told['read']:>8.0f}")  # fmt: skip
    for told in kept["test"]:
        print(f"{told['name']} ({told['of']}): as it stands {told['as_it_stands']:.3f}, AUC {told['auc']:.3f}, at its threshold "
              f"{told['accuracy']:.3f}, {told['read']:.0f} tokens a call")  # fmt: skip


if __name__ == "__main__":
    main()
