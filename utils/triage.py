"""A text in, an exact JSON record out: the task that a small Llama masters in lesson 06.

A record is `{"kind": "film", "verdict": "positive"}`: where the text comes from, and whether it praises, as people rated it. Eight
records are legal, and nothing else counts: an answer with a word before or after its record is malformed.
"""

import json

from utils.data import LABELS

KINDS = {"movies": "film", "products": "product", "tweets": "tweet", "editorials": "editorial"}  # by domain
VERDICTS = LABELS
LEGAL = tuple(json.dumps(dict(kind=kind, verdict=verdict)) for kind in KINDS.values() for verdict in VERDICTS)
ASKED = "Text: {}\nReply with a JSON record."


def wanted(kind: str, label: int) -> str:
    """The record of a text of this kind with this label (0, 1), as text."""
    return json.dumps(dict(kind=kind, verdict=VERDICTS[label]))


def prompt(sentence: str) -> list[dict]:
    """The question about a text, as chat messages."""
    return [dict(role="user", content=ASKED.format(sentence))]


def read(answer: str) -> dict | None:
    """The record that a whole answer is, or None: JSON, exactly the two keys, each once, with legal values."""
    try:
        pairs = json.loads(answer, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, tuple) or len(pairs) != 2:
        return None
    found = dict(pairs)
    return next((found for legal in LEGAL if found == json.loads(legal)), None)


def choose(model, tokenizer, prompts, batch_size: int = 32) -> list[str]:
    """For each conversation that of the `LEGAL` records which the model finds most probable: it cannot be malformed.

    The prompt is read once; its keys and values serve all eight records.
    """
    import torch
    from tqdm.auto import tqdm

    model.eval()
    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    records = tokenizer([text + tokenizer.eos_token for text in LEGAL], add_special_tokens=False)["input_ids"]
    tails = tokenizer.pad({"input_ids": records}, padding_side="right", return_tensors="pt").to(model.device)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # like lengths together: less padding
    told = [""] * len(ids)
    with torch.inference_mode():
        for start in tqdm(range(0, len(order), batch_size), desc="records weighed"):
            rows = order[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, padding_side="right", return_tensors="pt")
            batch = batch.to(model.device)
            kept = model(**batch, use_cache=True, logits_to_keep=1).past_key_values
            kept.batch_repeat_interleave(len(LEGAL))
            lengths, mask = batch["attention_mask"].sum(1), batch["attention_mask"]
            lengths, mask = (x.repeat_interleave(len(LEGAL), 0) for x in (lengths, mask))
            tail, own = (tails[name].repeat(len(rows), 1) for name in ("input_ids", "attention_mask"))
            logits = model(
                input_ids=tail,
                attention_mask=torch.cat([mask, own], 1),
                position_ids=lengths[:, None] + torch.arange(tail.shape[1], device=model.device),
                past_key_values=kept,
            ).logits[:, :-1]  # how all records begin tells nothing between them
            each = torch.stack([-torch.nn.functional.cross_entropy(a.float(), b, reduction="none")
                                for a, b in zip(logits, tail[:, 1:], strict=True)])  # fmt: skip
            whole = (each * own[:, 1:]).sum(1).view(len(rows), -1)
            for i, best in zip(rows, whole.argmax(1).tolist(), strict=True):
                told[i] = LEGAL[best]
    return told
