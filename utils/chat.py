"""A reader's own conversations: read in the form they have, looked at before any training, judged after it.

rows = chat.load_chat("my.jsonl", tokenizer=tokenizer, max_length=256)  # prints what it found
...                                                                     # lesson 06's training on rows["train"]
chat.judge(model, tokenizer, rows["test"])
"""

import io
import json
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from utils import sheets, turns
from utils.turns import ChatError

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".xlsx", ".parquet")
# A fifth of the conversations is for the test: of 20 that is four, and of fewer no interval means anything.
LEAST = 20
FEW = 4  # conversations, fewer than which are all alike too easily for an interval


@dataclass(frozen=True)
class Conversation:
    """Messages from a system text, if there is one, to the last answer; those before `given` are not learnt."""

    number: int  # where it stands in the file
    form: str
    messages: list[dict]
    given: int = 0
    topic: str = ""

    @property
    def question(self) -> str:
        """What makes two conversations one for the split: the first question, as `data.normalise` sees it."""
        from utils import data

        return data.normalise(next(m["content"] for m in self.messages if m["role"] == "user"))

    @property
    def rows(self) -> list[dict]:
        """A row for each answer that is learnt: all that was said before as prompt, the answer as completion."""
        answers = [i for i, m in enumerate(self.messages) if m["role"] == "assistant" and i >= self.given]
        return [
            dict(
                prompt=self.messages[:i],
                completion=self.messages[i : i + 1],
                topic=self.topic,
                conversation=self.number,
            )
            for i in answers
        ]


@dataclass(frozen=True)
class Chats:
    """What a file holds. Each of its rows is either among `conversations` or, by its number, in `left`."""

    file: str
    unit: str  # what the numbers count: lines, objects or rows (as a spreadsheet shows them)
    by: str | None
    conversations: list[Conversation]
    left: dict[str, list[int]]  # why rows are no use: their numbers
    repeats: dict[int, int]  # rows that say what an earlier one says: that one's number
    unused: list[str] = field(default_factory=list)  # keys that were not looked at

    @property
    def read(self) -> int:
        """How many rows the file has."""
        return len(self.conversations) + len(self.repeats) + sum(map(len, self.left.values()))


class Dressed(NamedTuple):
    """A row in the model's template, in tokens."""

    number: int
    ids: list[int]
    start: int  # where the answer begins
    same: bool  # whether the prompt alone is dressed as it is within the whole
    ends: bool  # whether the end token follows the answer


def load_chat(
    file,
    *,
    by: str | None = None,
    tokenizer=None,
    max_length: int | None = None,
    drop: bool = False,
    rows: tuple[int | None, int | None] = (None, None),
    validation: float = 0.1,
    test: float = 0.2,
    verbose: bool = True,
):
    """The conversations in `file` as `data.load_instructions` gives them: a DatasetDict with train, validation and test.

    file: JSONL, JSON, CSV, TSV, .xlsx or Parquet; a row in any of the `turns.FORMS`, found by its keys, each row by its own. Every answer
    becomes a row: `prompt` (all before it) and `completion`, lists of messages; `topic`, and `conversation`, where it stood.
    Rows that are no use are refused, each named, or with `drop` left out and named. What repeats an earlier row word for word
    is left out in any case. Other answers to the same question are kept and told. Blanks around a text are dropped.
    Parts are chosen by a hash of the first question, or of the column `by`, of which whole topics are held out.
    tokenizer, max_length: those of the training; they add lengths, and what the model's chat template makes of the rows.
    rows: how many at most to train on, and in each other part (None: all). verbose: print the report. ChatError otherwise.
    """
    from datasets import Dataset, DatasetDict

    if max_length is not None and tokenizer is None:
        raise ChatError("max_length counts tokens; pass the model's tokenizer with it.")
    chats, dressed = dress(read(file, by), tokenizer)
    if chats.left and not drop:
        raise ChatError(
            f"{chats.file}: {sum(map(len, chats.left.values())):,} of {chats.read:,} rows cannot be learnt from: "
            f"{_reasons(chats)}. Mend them in the file, or pass drop=True to leave them out.",
            sorted(number for numbers in chats.left.values() for number in numbers),
        )
    parts = split(chats, validation, test)
    if dressed and max_length is not None and all(row.start >= max_length for row in dressed):
        raise ChatError(
            f"Every prompt of {chats.file} has {max_length} tokens or more, so no answer is left to learn; raise max_length to "
            f"{max(len(row.ids) for row in dressed)}, at which nothing is cut."
        )
    limits = {name: rows[0 if name == "train" else 1] for name in parts}
    used = {name: [row for c in part for row in c.rows][: limits[name]] for name, part in parts.items()}
    if verbose:
        print(report(chats, parts, tokenizer, max_length, dressed))
        if any(limits.values()):
            print("Used of these: " + ", ".join(f"{len(part):,} {name}" for name, part in used.items()) + ".")
    return DatasetDict({name: Dataset.from_list(part) for name, part in used.items()})


# --- files ---


def _rows(file) -> tuple[str, list[tuple[int, object]]]:
    """(what the numbers count, [(number, row)]); a row is an object, or the ChatError that says why it is none."""
    if not isinstance(file, (str, os.PathLike)):
        raise ChatError(f"The file is a {type(file).__name__}; pass a path, such as 'my.jsonl'.")
    path = Path(file)
    if path.suffix.lower() not in FORMATS:
        raise ChatError(f"{path.name} is none of the formats that are read: {', '.join(FORMATS)}.")
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ChatError(f"{str(path)!r} cannot be read ({reason}); pass the path of a file.") from None
    try:
        unit, rows = {"c": _table, "t": _table, "x": _table, "p": _parquet}.get(path.suffix[1].lower(), _json)(
            raw, path
        )
    except UnicodeDecodeError as error:
        raise ChatError(f"{path.name} is not UTF-8 (byte {error.start + 1}); save it in that encoding.") from None
    if not rows:
        raise ChatError(f"{path.name} holds no row; a row is one of {turns.FORMS}.")
    return unit, rows


def _parquet(raw: bytes, path: Path):
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(raw)).to_pylist()
    except (ValueError, OSError) as error:
        raise ChatError(f"{path.name} is no Parquet file ({str(error).splitlines()[0]}); save it anew.") from None
    return "row", list(enumerate(rows, start=1))


def _table(raw: bytes, path: Path):
    try:
        sheet = sheets.understood(raw, path, columns=1)
    except sheets.TableError as error:
        raise ChatError(str(error), error.rows) from None
    return "row", [(number, dict(zip(sheet.names, cells, strict=True))) for number, cells in sheet.rows.items()]


def _json(raw: bytes, path: Path):
    """One list, one object with a list in it, or an object a line, whichever it is: many a .json holds lines."""
    text = raw.decode(json.detect_encoding(raw)).removeprefix("\ufeff")  # also UTF-16, by its mark
    lines = text.split("\n")  # and nowhere else: U+2028 may stand inside a line of JSON
    try:
        whole = turns.parse(text)
    except ChatError as error:
        first = next((line for line in lines if line.strip()), "")
        if not first:
            return "line", []
        if path.suffix.lower() == ".json" and (first.strip() == "{" or first.lstrip()[0] != "{"):
            raise ChatError(
                f"{path.name}: {error}; a list of objects is expected, or a file with an object a line."
            ) from None
        return "line", [(n, _line(line)) for n, line in enumerate(lines, start=1) if line.strip()]
    if isinstance(whole, tuple) and not turns.is_row(whole):
        lists = [value for _, value in whole if isinstance(value, list)]
        if len(lists) > 1:
            raise ChatError(f"{path.name} is an object with {len(lists)} lists in it; keep the one of conversations.")
        whole = lists[0] if lists else whole
    if isinstance(whole, list):
        return "object", list(enumerate(whole, start=1))
    return "line", [(1, whole)]


def _line(line: str):
    try:
        return turns.parse(line)
    except ChatError as error:
        return error


# --- rows ---


def read(file, by: str | None = None) -> Chats:
    """The Chats in `file`, which refuses no row but names each that is no use. by: the column of topics.

    ChatError if the file cannot be read, or has no such column.
    """
    if not isinstance(by, (str, type(None))):
        raise ChatError(
            f"by is a {type(by).__name__}; it is the name of the column that holds topics, such as 'topic'."
        )
    by = by and by.strip().lower()
    unit, rows = _rows(file)
    chats, keys = Chats(Path(file).name, unit, by, [], {}, {}), set()
    said, topics, unused = {}, {}, set()
    for number, row in rows:
        try:
            row = _object(row)
            keys |= set(row)
            found = turns.conversation(row)
            conversation = Conversation(number, found.form, found.messages, found.given, _topic(row, by))
            same = (found.given, *((m["role"], m["content"]) for m in found.messages))
            if same in said:
                chats.repeats[number] = said[same]
                continue
            if by and topics.setdefault(conversation.question, conversation.topic) != conversation.topic:
                raise ChatError(f"asks what stands under {by} {topics[conversation.question]!r} too")
        except ChatError as error:
            chats.left.setdefault(str(error), []).append(number)
            continue
        said[same] = number
        unused |= {key for key, value in row.items() if not turns.nothing(value)} - found.used - {by}
        chats.conversations.append(conversation)
    if by and keys and by not in keys:
        raise ChatError(
            f"{chats.file} has no column {by!r} for topics{turns.near(by, keys)}; it has {turns.listed(keys)}."
        )
    chats.unused.extend(sorted(unused))
    return chats


def _object(row) -> dict:
    if isinstance(row, ChatError):
        raise row
    if not turns.is_object(row):
        raise ChatError(f"is {turns.kind(row)} and not an object")
    return turns.level(row)


def _topic(row: dict, by: str | None) -> str:
    topic = row.get(by, "") if by else ""
    if not by or (isinstance(topic, int) and not isinstance(topic, bool)):
        return str(topic)
    return turns.text_of(topic, repr(by))


# --- parts ---


def split(chats: Chats, validation: float = 0.1, test: float = 0.2) -> dict[str, list[Conversation]]:
    """{part: conversations}, by a hash of the first question (or of the topic), so that no question is in two parts.

    What is added later moves no conversation, except where a part had too little and took the next by their hash.
    ChatError for too few conversations.
    """
    from utils import data

    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise ChatError(f"validation={validation} and test={test} are shares of the whole, such as 0.1 and 0.2.")
    if len(chats.conversations) < LEAST:
        raise ChatError(
            f"{chats.file} has {len(chats.conversations)} conversations to learn from in its {chats.read:,} rows"
            f"{f' ({_reasons(chats)})' if chats.left else ''}; at least {LEAST} are needed, for a fifth of them judges the model, "
            "and from fewer than four nothing can be told."
        )
    groups = {}
    for conversation in chats.conversations:
        key = data.normalise(conversation.topic) if chats.by else conversation.question
        groups.setdefault(key, []).append(conversation)
    if len(groups) < 3:
        what = f"different topics in {chats.by!r}" if chats.by else "different first questions"
        raise ChatError(
            f"{chats.file} has {len(groups)} {what}; three parts need three at least, for none may be in two of them."
        )
    places = sorted((data.place_of(key), key) for key in groups)

    def below(share):  # how many groups lie there, and no fewer than of the smallest file
        return max(sum(place < share for place, _ in places), round(share * min(len(places), LEAST)), 1)

    first = min(below(test), len(places) - 2)
    second = min(max(below(test + validation), first + 1), len(places) - 1)
    spans = dict(train=places[second:], validation=places[first:second], test=places[:first])
    return {name: [c for _, key in span for c in groups[key]] for name, span in spans.items()}


# --- the model's template ---


def tokens(tokenizer, row: dict) -> tuple[list[int], int, bool]:
    """(ids of a row, where the answer begins, whether the prompt alone is dressed alike), as TRL's SFTTrainer makes them."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"]
    parted = (i for i, (one, other) in enumerate(zip(prompt, ids, strict=False)) if one != other)
    start = next(parted, min(len(prompt), len(ids)))
    return ids, start, start == len(prompt)


def dress(chats: Chats, tokenizer) -> tuple[Chats, list[Dressed]]:
    """(the Chats, those left out that this model's template cannot take; their rows in tokens). Without a tokenizer: as it was."""
    if tokenizer is None:
        return chats, []
    if not getattr(tokenizer, "chat_template", None):
        raise ChatError("The tokenizer has no chat template, so it cannot write a conversation; take a chat model's.")
    special = sorted({t.content for t in tokenizer.added_tokens_decoder.values() if t.special})
    kept, dressed, left = [], [], {reason: list(numbers) for reason, numbers in chats.left.items()}
    for conversation in chats.conversations:
        try:
            dressed += _dress(conversation, tokenizer, special)
            kept.append(conversation)
        except ChatError as error:
            left.setdefault(str(error), []).append(conversation.number)
    return Chats(**vars(chats) | dict(conversations=kept, left=left)), dressed


def _dress(conversation: Conversation, tokenizer, special: list[str]) -> list[Dressed]:
    messages = conversation.messages
    if held := [token for token in special if any(token in message["content"] for message in messages)]:
        raise ChatError(f"has {held[0]!r} in a text, which this model reads as a sign of its template")
    try:
        texts = [
            tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
            for row in conversation.rows
        ]
        found = [tokens(tokenizer, row) for row in conversation.rows]
    except Exception as error:  # a template is a program, and stops as its author chose
        if messages[0]["role"] == "system" and _takes(tokenizer, messages[1:]):
            raise ChatError(f"has a system text, which this model's template refuses ({str(error)[:60]})") from None
        raise ChatError(f"is refused by this model's template ({str(error)[:60]})") from None
    if messages[0]["role"] == "system" and messages[0]["content"] not in texts[0]:
        raise ChatError("has a system text, which this model's template leaves out")
    answers = [row["completion"][0]["content"] for row in conversation.rows]
    if lost := [answer for answer, text in zip(answers, texts, strict=True) if answer not in text]:
        raise ChatError(f"has an answer that this model's template changes: {lost[0][:30]!r}")
    end = tokenizer.eos_token_id
    return [Dressed(conversation.number, ids, start, same, end in ids[start:]) for ids, start, same in found]


def _takes(tokenizer, messages: list[dict]) -> bool:
    try:
        return bool(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:
        return False


def default_system(tokenizer) -> str:
    """The system text that the template writes where a conversation has none; "" if it writes none."""
    asked = [dict(role="user", content="?")]
    told = [dict(role="system", content="\ue000"), *asked]
    if not _takes(tokenizer, told):
        return ""
    before, _, after = tokenizer.apply_chat_template(told, tokenize=False).partition("\ue000")
    plain = tokenizer.apply_chat_template(asked, tokenize=False)
    between = plain[len(before) : len(plain) - len(after)]
    return between.strip() if after and plain == before + between + after else ""


# --- what is looked at before training ---


def report(chats: Chats, parts: dict, tokenizer=None, max_length: int | None = None, dressed=()) -> str:
    """What the file holds, to print before training: rows, forms, turns, what was left out, parts, lengths, the template."""
    found = chats.conversations
    forms = {form: sum(c.form == form for c in found) for form in dict.fromkeys(c.form for c in found)}
    forms = ", ".join(form if len(forms) == 1 else f"{form} ({count:,})" for form, count in forms.items())
    turns_each, answers = ([*map(len, each)] for each in zip(*((c.messages, c.rows) for c in found), strict=True))
    systems = sum(c.messages[0]["role"] == "system" for c in found)
    lines = [
        f"{chats.file}: {chats.read:,} rows read, {len(found):,} kept. Form: {forms}.",
        f"{sum(turns_each):,} turns (at most {max(turns_each)} in a conversation), {sum(answers):,} answers to learn. "
        f"Conversations with a system text: {systems:,}.",
    ]
    if chats.unused:
        lines.append(f"Keys that were not used: {', '.join(chats.unused)}.")
    if chats.left:
        lines.append(f"Left out: {_reasons(chats)}.")
    if chats.repeats:
        pairs = [f"{number} of {first}" for number, first in chats.repeats.items()]
        lines.append(f"Left out as repeats: {_where(chats.unit, pairs)}.")
    said = {}
    for c in found:
        for row in c.rows:
            key = tuple((m["role"], m["content"]) for m in row["prompt"])
            said.setdefault(key, {}).setdefault(row["completion"][0]["content"], c.number)
    if several := [answers for answers in said.values() if len(answers) > 1]:
        told = [_where(chats.unit, list(answers.values())) for answers in several]
        lines.append(f"Questions with several answers, all kept: {len(several):,} ({_few(told, '; ')}).")
    what = f"whole topics of {chats.by!r}" if chats.by else "by a hash of the first question"
    sizes = [
        [f"{sum(map(count, part)):,} {name}" for name, part in parts.items()]
        for count in (lambda c: 1, lambda c: len(c.rows))
    ]
    lines.append(f"Conversations, {what}: {', '.join(sizes[0])}. Answers: {', '.join(sizes[1])}.")
    return "\n".join(lines + (_template(chats, tokenizer, max_length, dressed) if dressed else []))


def _template(chats: Chats, tokenizer, max_length: int | None, dressed: list[Dressed]) -> list[str]:
    """Lines on lengths in tokens, on how much of the texts the tokenizer knows, and on what its template does."""
    lengths = [len(row.ids) for row in dressed]
    unknown = sum(row.ids.count(tokenizer.unk_token_id) for row in dressed) / sum(lengths)
    lines = [
        f"Tokens a row: half have at most {statistics.median(lengths):.0f}, the longest {max(lengths):,}. "
        f"Unknown to the tokenizer: {unknown:.1%}."
    ]
    if max_length is not None:
        gone = [row.number for row in dressed if row.start >= max_length]
        cut = [row.number for row in dressed if row.start < max_length < len(row.ids)]
        for numbers, told in (
            (gone, "no room for the answer, so that TRL leaves the row out"),
            (cut, "the answer is cut"),
        ):
            if numbers:
                where = _where(chats.unit, list(dict.fromkeys(numbers)))
                lines.append(f"At max_length={max_length}, {told}: {len(numbers):,} ({where}).")
        if not gone and not cut:
            lines.append(f"At max_length={max_length} nothing is cut.")
    example = tokenizer.apply_chat_template(
        [dict(role="user", content="…"), dict(role="assistant", content="…")], tokenize=False
    )
    lines.append(f"The model's template: {example!r}.")
    plain = sum(c.messages[0]["role"] != "system" for c in chats.conversations)
    if plain and (default := default_system(tokenizer)):
        lines.append(f"To the {plain:,} conversations without a system text the template adds its own: {default!r}.")
    if odd := list(dict.fromkeys(row.number for row in dressed if not row.same)):
        lines.append(
            f"The template dresses a prompt alone differently from the whole ({_where(chats.unit, odd)}): those answers are learnt "
            "after a prompt that the model does not meet when it is asked."
        )
    if endless := list(dict.fromkeys(row.number for row in dressed if not row.ends)):
        lines.append(
            f"No end token {tokenizer.eos_token!r} follows the answer ({_where(chats.unit, endless)}): the model would not "
            "learn to stop; take a template that ends a turn."
        )
    return lines


def _where(unit: str, numbers: list[int]) -> str:
    return f"{unit}{'s' * (len(numbers) > 1)} {_few(numbers)}"


def _few(items: list, joint: str = ", ", most: int = 6) -> str:
    return joint.join(map(str, items[:most])) + (f" and {len(items) - most:,} more" if len(items) > most else "")


def _reasons(chats: Chats) -> str:
    return _few([f"{_where(chats.unit, numbers)}: {reason}" for reason, numbers in chats.left.items()], "; ")


# --- what is looked at after it ---


class Verdict(NamedTuple):
    """Loss a token on held-out answers, in nats: before, after, and the 95 % interval of the change; some answers in words."""

    before: float
    after: float
    low: float
    high: float
    answers: object  # a table: question, before, after, reference


def judge(
    model, tokenizer, part, *, max_length: int | None = None, answers: int = 3, answer_tokens: int = 80, verbose=True
) -> Verdict:
    """How an adapter changed the model on `part`, one part of `load_chat`: "before" is the model with the adapter switched off.

    The loss is that of training: answer and end token, cut at max_length. The interval is a bootstrap over conversations.
    answers: how many questions to ask both, greedily. ChatError for what is no PEFT model, or no part.
    """
    import pandas as pd

    from utils import training

    if not hasattr(model, "disable_adapter"):
        raise ChatError(
            f"The model is a {type(model).__name__} without an adapter; pass the PEFT model that was trained."
        )
    if not {"prompt", "completion"} <= set(getattr(part, "column_names", ())):
        raise ChatError(f"The part is a {type(part).__name__}; pass one of load_chat's parts, such as rows['test'].")
    rows, dressed = [], []
    for row in part:
        ids, start, _ = tokens(tokenizer, row)
        if max_length is None or start < max_length:
            rows.append(row)
            dressed.append((ids[:max_length], start))
    if not rows:
        raise ChatError(
            "No row has an answer within max_length, so nothing can be judged; raise it, or give more rows."
        )
    asked = rows[:answers]

    def heard():
        said = training.answers(model, tokenizer, [row["prompt"] for row in asked], answer_tokens)
        return _losses(model, dressed), [text for text, _ in said]

    was = model.training
    model.eval()
    with model.disable_adapter():
        before, plain = heard()
    after, adapted = heard()
    model.train(was)
    whole = before[:, 1].sum()
    groups = [row.get("conversation", i) for i, row in enumerate(rows)]
    low, high = _interval(groups, after[:, 0] - before[:, 0], before[:, 1])
    table = pd.DataFrame(
        [
            (r["prompt"][-1]["content"], b, a, r["completion"][0]["content"])
            for r, b, a in zip(asked, plain, adapted, strict=True)
        ],
        columns=["question", "before", "after", "reference"],
    )
    verdict = Verdict(float(before[:, 0].sum() / whole), float(after[:, 0].sum() / whole), low, high, table)
    if verbose:
        meaning = "the answers became likelier" if high < 0 else "the answers became less likely"
        if low <= 0 <= high or len(set(groups)) < FEW:
            meaning = "from these alone no difference can be told"
        print(
            f"Loss a token on {len(set(groups)):,} held-out conversations ({len(rows):,} answers, {int(whole):,} tokens): "
            f"{verdict.before:.3f} before, {verdict.after:.3f} after.\n"
            f"Change {verdict.after - verdict.before:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}: {meaning}."
        )
    return verdict


def _losses(model, dressed: list[tuple[list[int], int]]):
    """For each row, its tokens and where the answer begins, the answer's summed loss in nats and its length: an array (rows, 2)."""
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    from utils import training

    found = []
    for ids, start in tqdm(dressed, desc="loss", leave=False):
        ids = torch.tensor([ids], device=model.device)
        with torch.inference_mode(), training.autocast(model.device.type):
            scores = model(input_ids=ids).logits[0, start - 1 : -1].float()
        loss = torch.nn.functional.cross_entropy(scores, ids[0, start:], reduction="sum")
        found.append((loss.item(), ids.shape[1] - start))
    return np.array(found)


def _interval(groups: list, change, count, draws: int = 2_000) -> tuple[float, float]:
    """The 95 % interval of sum(change) / sum(count), whole groups drawn anew: rows of one conversation are no news to each other."""
    import numpy as np

    _, of = np.unique(groups, return_inverse=True)
    change, count = np.bincount(of, change), np.bincount(of, count)
    drawn = np.random.default_rng(0).multinomial(len(count), np.full(len(count), 1 / len(count)), size=draws)
    low, high = np.percentile((drawn @ change) / (drawn @ count), [2.5, 97.5])
    return float(low), float(high)
