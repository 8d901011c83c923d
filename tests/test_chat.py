"""utils/chat.py and utils/turns.py: every form and format comes back equal, every defect is named, only answers are learnt."""

import csv
import json
import os

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from utils import assets, chat, data, models, profiles, training, turns
from utils.chat import ChatError, load_chat
from utils.sft import AnswerTrainer

FUZZ = int(os.environ.get("COURSE_FUZZ", "100"))  # conversations
AS = {
    "messages": dict(user="user", assistant="assistant", system="system"),
    "conversations": dict(user="human", assistant="gpt", system="system"),
}


def say(system, pairs) -> list[dict]:
    """The messages of a conversation."""
    messages = [dict(role="system", content=system)] if system else []
    for question, answer in pairs:
        messages += [dict(role="user", content=question), dict(role="assistant", content=answer)]
    return messages


def write_as(form: str, messages: list[dict]) -> dict:
    """The row that holds these messages in a form."""
    last = messages[-2:]
    if form == "prompt/completion":
        return dict(prompt=messages[:-1], completion=messages[-1:])
    if form == "messages":
        return dict(messages=messages)
    if form == "parts":
        return dict(messages=[dict(m, content=[dict(type="text", text=m["content"])]) for m in messages])
    if form == "conversations":
        names = AS["conversations"]
        return dict(conversations=[{"from": names[m["role"]], "value": m["content"]} for m in messages])
    if form == "[INST]":
        system = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n" if messages[0]["role"] == "system" else ""
        said = [m["content"] for m in messages if m["role"] != "system"]
        said[0] = system + said[0]
        return dict(text="".join(f"<s>[INST] {q} [/INST] {a} </s>" for q, a in zip(said[::2], said[1::2], strict=True)))
    if form == "ChatML":
        return dict(text="".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages))
    system = dict(system_prompt=messages[0]["content"]) if messages[0]["role"] == "system" else {}
    asked, answered = form.split("/")
    return {asked: last[0]["content"], answered: last[1]["content"], **system}


PAIRS = ("question/answer", "instruction/output", "Prompt/Completion", "instruction/response", "input/output")
FORMS = (*PAIRS, "prompt/completion", "messages", "parts", "conversations", "[INST]", "ChatML")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def write(file, rows) -> None:
    """Rows in the format of the file's name; a str stands for itself as a line of JSONL."""
    if file.suffix in (".csv", ".tsv"):
        cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
        pd.DataFrame(cells).fillna("").to_csv(
            file, index=False, quoting=csv.QUOTE_ALL, sep="\t" if file.suffix == ".tsv" else ","
        )
    elif file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_columns(rows)), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    else:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")


def _columns(rows) -> list[dict]:
    """Rows that all have all keys, as a table has them."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def some(count=24, form="question/answer", **changes) -> list[dict]:
    """Rows that are fine; `changes` {number: row} replaces some, counted from 1."""
    rows = [write_as(form, say(None, [(f"Question {i}?", f"Answer {i}.")])) for i in range(count)]
    for number, row in changes.items():
        rows[int(number[3:]) - 1] = row
    return rows


def saved(tmp_path, rows, name="mine.jsonl"):
    write(tmp_path / name, rows)
    return tmp_path / name


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_decoder(profiles.get("smoke"))[1]


def messages_of(splits) -> dict:
    """{number in the file: all messages of the conversation, from its last row}"""
    return {r["conversation"]: r["prompt"] + r["completion"] for part in splits.values() for r in part}


# --- forms and formats ---


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_format(tmp_path, form, suffix):
    pairs = 1 if form in PAIRS else 2
    told = [
        say(
            "Be brief." if i % 2 else None, [(f"Question {i}, {j}?\n你好", f'"Yes", {i}; {j} 👍') for j in range(pairs)]
        )
        for i in range(24)
    ]
    file = saved(tmp_path, [write_as(form, messages) for messages in told], f"mine{suffix}")
    splits = load_chat(file, verbose=False)
    first = {".csv": 2, ".tsv": 2}.get(suffix, 1)
    assert messages_of(splits) == {i + first: messages for i, messages in enumerate(told)}
    assert set(splits) == {"train", "validation", "test"} and all(len(part) for part in splits.values())
    assert splits["train"].column_names == ["prompt", "completion", "topic", "conversation"]
    answers = 1 if form in (*PAIRS, "prompt/completion") else 2
    assert sum(map(len, splits.values())) == 24 * answers


def test_what_is_read_is_said(tmp_path, capsys):
    rows = some() + [dict(instruction="Add", input="1, 2", output="3", id="7")]
    rows += [dict(Conversation=[dict(role="Human", content="Hi"), dict(role=" GPT", content="Ho")])]
    splits = data.load_chat(saved(tmp_path, rows))
    told = capsys.readouterr().out
    assert "mine.jsonl: 26 rows read, 26 kept." in told
    assert "question/answer (24), instruction/input/output (1), conversation (role/content) (1)" in told
    assert (
        "52 turns (at most 2 in a conversation), 26 answers to learn" in told and "Keys that were not used: id." in told
    )
    assert "Conversations, by a hash of the first question: " in told
    found = messages_of(splits)
    assert found[25][0]["content"] == "Add\n\n1, 2" and [m["role"] for m in found[26]] == ["user", "assistant"]


@pytest.mark.parametrize("name", ["assistant", "GPT", "Bot", "chatbot", "chat" + "gpt", " Model", "AI"])
def test_who_answers_has_many_names(name):
    said = turns.conversation(dict(conversations=[{"from": "Human", "value": "q"}, {"From": name, "value": "a"}]))
    assert said.messages == say(None, [("q", "a")]) and said.form == "conversations (from/value)"


def test_every_answer_is_a_row_of_its_own_and_a_conversation_is_never_divided(tmp_path):
    told = [say("Be brief.", [(f"{i}, {j}?", f"{i}, {j}.") for j in range(1 + i % 4)]) for i in range(40)]
    splits = load_chat(saved(tmp_path, [dict(messages=m) for m in told]), verbose=False)
    numbers = [set(part["conversation"]) for part in splits.values()]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 40
    for part in splits.values():
        for row in part:
            whole, said = told[row["conversation"] - 1], row["prompt"] + row["completion"]
            assert said == whole[: len(said)] and row["completion"][0]["role"] == "assistant"
    assert sum(map(len, splits.values())) == sum(len(m) // 2 for m in told)


def test_answers_in_a_prompt_are_given_and_not_learnt(tmp_path):
    rows = [write_as("prompt/completion", say(None, [(f"{i}?", "A."), ("B?", f"C {i}.")])) for i in range(20)]
    splits = load_chat(saved(tmp_path, rows), verbose=False)
    assert sum(map(len, splits.values())) == 20
    assert all(r["completion"][0]["content"].startswith("C") for part in splits.values() for r in part)


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.json", json.dumps({"version": 1, "data": some()})),
        ("a.json", "\n".join(map(json.dumps, some()))),  # lines, under the other name
        ("a.jsonl", json.dumps(some(), indent=1)),
        ("a.ndjson", "\ufeff" + "\r\n".join(map(json.dumps, some())) + "\r\n\r\n"),
        ("a.JSONL", "\n".join(json.dumps(row, ensure_ascii=False) for row in some(row3=dict(question="a\u2028b\x85?", answer="c")))),
        ("a.json", json.dumps({"conversations": [write_as("conversations", say(None, [(f"{i}?", "A")])) for i in range(24)]})),
    ],
)  # fmt: skip
def test_json_however_it_is_laid_out(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert sum(map(len, load_chat(tmp_path / name, verbose=False).values())) == 24


def test_utf_16_is_told_by_its_mark(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, some())), encoding="utf-16")
    assert sum(map(len, load_chat(tmp_path / "a.jsonl", verbose=False).values())) == 24


def test_the_courses_own_questions_come_in_by_topic(capsys):
    splits = load_chat(data.FAQ, by="topic", rows=(64, 16))
    assert [len(part) for part in splits.values()] == [64, 16, 16]
    assert not set(splits["train"]["topic"]) & {*splits["test"]["topic"], *splits["validation"]["topic"]}
    assert "Conversations, whole topics of 'topic': " in capsys.readouterr().out


# --- what is no use is named ---


def turn(role, content):
    return dict(role=role, content=content)


U, A, S = turn("user", "q"), turn("assistant", "a"), turn("system", "s")
WRONG = {
    "an empty answer": (dict(question="q", answer=" \u200b"), "'answer' is empty"),
    "no answer": (dict(question="q", answer=None), "has no answer among its keys 'question'"),
    "an answer that is a number": (dict(question="q", answer=7), "'answer' is a number and not a text"),
    "an answer in a list": (dict(question="q", answer=["a"]), "'answer' is a list and not a text"),
    "an empty instruction": (dict(instruction="", input="i", output="o"), "'instruction' is empty"),
    "an unknown key": (dict(question="q", anwser="a"), "has no answer among its keys 'anwser', 'question' (did you mean 'answer'?)"),
    "two questions": (dict(question="q", prompt="p", answer="a"), "has both 'prompt' and 'question'; keep one"),
    "two answers": (dict(question="q", response="p", answer="a"), "has both 'response' and 'answer'; keep one"),
    "two system texts": (dict(question="q", system="p", system_prompt="r", answer="a"), "has both 'system' and 'system_prompt'"),
    "a key twice": ('{"question": "q", "Question": "r", "answer": "a"}', "has the key 'question' twice"),
    "a key twice, alike": ('{"question": "q", "question": "r", "answer": "a"}', "has the key 'question' twice"),
    "no JSON": ('{"question": "q"', "is not JSON (Expecting ',' delimiter, column 17)"),
    "deep JSON": ("[" * 100_000, "is not JSON that can be read"),
    "no object": (["q", "a"], "is a list and not an object"),
    "a text": ("7", "is a number and not an object"),
    "half a character": ('{"question": "\\ud83d", "answer": "a"}', "'question' has half a character"),
    "no turns": (dict(messages=[]), "has no turns"),
    "a system text alone": (dict(messages=[S]), "has no turns"),
    "turns that are texts": (dict(messages=["q", "a"]), "turn 1 is a text and not an object"),
    "an empty turn": (dict(messages=[S, U, turn("assistant", "")]), "turn 3 (assistant) is empty"),
    "an empty system text": (dict(messages=[turn("system", ""), U, A]), "turn 1 (system) is empty"),
    "a turn without content": (dict(messages=[dict(role="user"), A]), "turn 1 (user) has no text"),
    "a turn without role": (dict(messages=[dict(content="q"), A]), "turn 1 has no role among its keys 'content'"),
    "a tool": (dict(messages=[U, turn("tool", "5"), A]), "turn 2 has the role 'tool'; user, assistant and system are read"),
    "a function": (dict(conversations=[{"from": "function", "value": "q"}]), "turn 1 has the role 'function'"),
    "a call of a tool": (dict(messages=[U, A | dict(tool_calls=[dict(id=1)])]), "turn 2 has 'tool_calls', which is not trained on"),
    "a turn not to be learnt": (dict(messages=[U, A | dict(weight=0)]), "turn 2 has 'weight', which is not trained on"),
    "tools": (dict(messages=[U, A], tools=[dict(name="f")]), "has 'tools', which is not trained on"),
    "a picture": (dict(messages=[turn("user", [dict(type="image_url", image_url="x")]), A]), "has a part of type 'image_url'"),
    "two users": (dict(messages=[U, U, A]), "turns 1 and 2 are both the user's"),
    "two assistants": (dict(messages=[S, U, A, A]), "turns 3 and 4 are both the assistant's"),
    "assistant first": (dict(messages=[S, A, U, A]), "the assistant speaks first"),
    "user last": (dict(messages=[U, A, U]), "ends with a question that has no answer"),
    "system in the middle": (dict(messages=[U, A, S, U, A]), "turn 3 is a system text; it belongs before the first question"),
    "two system turns": (dict(messages=[S, S, U, A]), "turn 2 is a system text"),
    "turns that are no list": (dict(messages=dict(role="user")), "'messages' is an object and not a list of turns"),
    "turns in a broken cell": (dict(messages="[{'role': 'user'}]"), "is not JSON"),
    "plain text": (dict(text="Hello there"), "'text' is neither [INST] nor ChatML"),
    "a broken [INST]": (dict(text="[INST] q"), "'text' is not of the form of [INST]"),
    "a broken ChatML": (dict(text="q<|im_start|>user\nq<|im_end|>"), "'text' is not ChatML from first to last"),
    "a completion by the user": (dict(prompt=[U], completion=[U]), "turns 1 and 2 are both the user's"),
    "a dressed prompt": (dict(prompt="<s>[INST] q [/INST]", completion="a"), "'prompt' is dressed in a template already, by its '<s>'"),
    "a dressed answer": (dict(question="q", answer="a </s>"), "'answer' is dressed in a template already, by its '</s>'"),
    "a dressed turn": (dict(messages=[turn("user", "<|im_start|>user\nq"), A]), "turn 1 (user) is dressed in a template already"),
    "preferences": (dict(prompt="q", chosen="a", rejected="b"), "has no answer among its keys 'chosen', 'prompt', 'rejected'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_use_is_refused_and_named_or_dropped_and_named(tmp_path, capsys, case):
    row, told = WRONG[case]
    file = saved(tmp_path, some(row3=row))
    before = file.read_bytes()
    with pytest.raises(ChatError) as error:
        load_chat(file)
    assert str(error.value).startswith("mine.jsonl: 1 of 24 rows cannot be learnt from: line 3: ") and told in str(
        error.value
    )
    assert error.value.rows == [3] and capsys.readouterr().out == "" and "pass drop=True" in str(error.value)
    kept = messages_of(load_chat(file, drop=True))
    assert set(kept) == set(range(1, 25)) - {3} and file.read_bytes() == before
    out = capsys.readouterr().out
    assert (
        "24 rows read, 23 kept" in out
        and f"Left out: line 3: {str(error.value).split('line 3: ')[1].split('. Mend')[0]}." in out
    )


def test_what_says_nothing_is_no_defect(tmp_path):
    """Keys that are null, empty or of another column; a weight of 1; a blank input."""
    rows = some(
        row3=dict(messages=[U | dict(tool_calls=None), A | dict(weight=1, name=None)], tools=[], text=" "),
        row4=dict(instruction="i", input="", output="o", system=None, question=None),
    )
    assert sum(map(len, load_chat(saved(tmp_path, rows), verbose=False).values())) == 24


def test_many_rows_with_one_defect_are_one_clause(tmp_path):
    rows = [dict(question=f"{i}?", reply="a") for i in range(30)]
    with pytest.raises(ChatError, match=r"30 of 30 rows .*lines 1, 2, 3, 4, 5, 6 and 24 more: has no answer") as error:
        load_chat(saved(tmp_path, rows))
    assert error.value.rows == list(range(1, 31))
    with pytest.raises(ChatError, match=r"has 0 conversations .*has no answer .*at least 20 are needed"):
        load_chat(saved(tmp_path, rows), drop=True)


def test_repeats_are_left_out_and_other_answers_are_told(tmp_path, capsys):
    rows = some(
        row5=dict(question=" Question 0?", answer="Answer 0."), row9=dict(question="Question 1?", answer="Other.")
    )
    splits = load_chat(saved(tmp_path, rows))
    told = capsys.readouterr().out
    assert "24 rows read, 23 kept" in told and "Left out as repeats: line 5 of 1." in told
    assert "Questions with several answers, all kept: 1 (lines 2, 9)." in told
    assert set(messages_of(splits)) == set(range(1, 25)) - {5}
    assert any({2, 9} <= set(part["conversation"]) for part in splits.values())


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.jsonl", b"", "holds no row"),
        ("a.jsonl", b" \n\n", "holds no row"),
        ("a.json", b"[]", "holds no row"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"question,answer\n", "no row under them"),
        ("a.txt", b"hello", "is none of the formats that are read: .jsonl"),
        ("a", b"hello", "is none of the formats"),
        ("a.json", b'[{"question": "q",\n "answer": }]', r"a.json: is not JSON \(Expecting value, line 2, column 12\)"),
        ("a.json", b'{"a": [], "b": []}', "an object with 2 lists"),
        ("a.jsonl", b'{"question": "\xe9"}', r"is not UTF-8 \(byte 15\)"),
        ("a.csv", "question,answer\né,a".encode("cp1252"), "is not UTF-8"),
        ("a.csv", b"question,answer\na, b,c\n", "row 2 has more fields"),
        ("a.csv", b"question,answer\na,b\na,b,c\n", "row 3 has more fields"),
        ("a.csv", b"one;two\na;b\n", r"has no form that is read among its keys 'one', 'two'"),
        ("a.parquet", b"PAR1", "is no Parquet file"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ChatError, match=told):
        load_chat(tmp_path / name)


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda file: load_chat([dict(question="q")]), "The file is a list; pass a path"),
        (lambda file: load_chat(file.parent), "none of the formats"),
        (lambda file: load_chat("a\0.jsonl"), r"cannot be read \(embedded null"),
        (lambda file: load_chat(file.with_name("b.jsonl")), r"cannot be read \(No such file"),
        (lambda file: load_chat(file, by="topik"), r"has no column 'topik' for topics; it has 'answer', 'question'"),
        (lambda file: load_chat(file, by="Questions"), r"no column 'questions' for topics \(did you mean 'question'\?\)"),
        (lambda file: load_chat(file, by=["topic"]), "by is a list"),
        (lambda file: load_chat(file, max_length=9), "max_length counts tokens; pass the model's tokenizer"),
        (lambda file: load_chat(file, test=1), "are shares of the whole"),
        (lambda file: load_chat(file, validation=0), "are shares of the whole"),
    ],
)  # fmt: skip
def test_wrong_arguments(tmp_path, call, told):
    with pytest.raises(ChatError, match=told):
        call(saved(tmp_path, some()))


def test_rows_of_a_table_have_the_numbers_that_a_spreadsheet_shows(tmp_path):
    lines = ["question,answer", *[f'"Two\nlines {i}",a' for i in range(24)]]
    lines[5:5] = ["", ",", "only,"]
    (tmp_path / "a.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8", newline="")
    chats = chat.read(tmp_path / "a.csv")
    assert chats.left == {"'question' is empty": [6, 7], "'answer' is empty": [8]} and chats.read == 27
    assert [c.number for c in chats.conversations] == [2, 3, 4, 5, *range(9, 29)]


# --- parts ---


def test_too_few_to_judge_by(tmp_path):
    with pytest.raises(ChatError, match=r"has 19 conversations .*at least 20 are needed, for a fifth of them judges"):
        load_chat(saved(tmp_path, some(19)))
    same = [dict(question="Hi", answer=f"Ho {i}") for i in range(30)]
    with pytest.raises(ChatError, match="has 1 different first questions; three parts need three"):
        load_chat(saved(tmp_path, same))
    two = [row | dict(topic=i % 2) for i, row in enumerate(some())]
    with pytest.raises(ChatError, match="has 2 different topics in 'topic'"):
        load_chat(saved(tmp_path, two), by="topic")


@pytest.mark.parametrize("topics", [3, 4, 12])
def test_whole_topics_are_held_out(tmp_path, topics):
    rows = [row | dict(Topic=f"topic {i % topics}" + " " * (i % 2)) for i, row in enumerate(some(60))]
    splits = load_chat(saved(tmp_path, rows), by="topic", verbose=False)
    found = [set(part["topic"]) for part in splits.values()]
    assert sum(map(len, found)) == topics and all(found)


def test_a_topic_is_in_every_row_and_no_question_in_two(tmp_path):
    rows = [row | dict(topic=f"t{i % 4}") for i, row in enumerate(some())]
    rows[4] = dict(question="question 0", answer="Other.", topic="t1")
    rows[6] |= dict(topic="")
    del rows[8]["topic"]
    with pytest.raises(ChatError) as error:
        load_chat(saved(tmp_path, rows), by="topic")
    for told in ("line 5: asks what stands under topic 't0' too", "lines 7, 9: 'topic' is empty"):
        assert told in str(error.value)


def test_the_same_question_is_never_in_two_parts_and_more_rows_move_none(tmp_path):
    def place(rows):
        splits = load_chat(saved(tmp_path, rows), verbose=False)
        return {(name, data.normalise(r["prompt"][0]["content"])) for name, part in splits.items() for r in part}

    rows = some(80) + [dict(question=f"QUESTION {i} !", answer="Another.") for i in range(40)]
    few, all_ = place(rows[:100]), place(rows + [dict(question=f"New {i}", answer="a") for i in range(50)])
    assert len(few) == 80 and few <= all_ and len(all_) == 130
    assert 8 <= sum(name == "test" for name, _ in few) <= 28


# --- what the model makes of it ---


def whole(row) -> str:
    """SmolLM2's template by hand."""
    messages = row["prompt"] + row["completion"]
    if messages[0]["role"] != "system":
        messages = [turn("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"), *messages]
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)


def trainer_on(rows, tokenizer, folder, **changes):
    """The course's trainer, with its own options, on a small random Llama."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id))
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    arguments = training.sft_arguments(profiles.get("smoke"), folder, disable_tqdm=True, **changes)
    return AnswerTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=config)


@pytest.mark.parametrize("form", FORMS)
def test_answer_and_end_token_are_learnt_and_nothing_else(tmp_path, tokenizer, form):
    """Token by token, through the trainer's own preparation and collator."""
    several = form not in PAIRS
    told = [
        say("Be kind." if i % 2 else None, [(f"What is {i}, {j}?", f"It is {i}, {j}; 好 👍.") for j in range(1 + several * (i % 3))])
        for i in range(20)
    ]  # fmt: skip
    file = saved(tmp_path, [write_as(form, messages) for messages in told])
    rows = load_chat(file, tokenizer=tokenizer, max_length=256, verbose=False)["train"]
    trainer = trainer_on(rows, tokenizer, tmp_path / "run")
    assert len(trainer.train_dataset) == len(rows)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    for row, ids, labels, mask in zip(rows, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        ids, labels, padding = ids[mask == 1].tolist(), labels[mask == 1].tolist(), labels[mask == 0].tolist()
        learnt = row["completion"][0]["content"] + "<|im_end|>\n"
        assert tokenizer.decode(ids) == whole(row) and set(padding) <= {-100}
        start = labels.count(-100)
        assert labels == [-100] * start + ids[start:] and tokenizer.decode(ids[start:]) == learnt
        assert tokenizer.decode(ids[:start]).endswith("<|im_start|>assistant\n")
        assert chat.tokens(tokenizer, row) == (ids, start, True)


def test_what_max_length_cuts_is_what_trl_cuts(tmp_path, tokenizer, capsys):
    long, prompt = dict(question="Short?", answer="long " * 90), dict(question="long " * 90, answer="Short.")
    rows = some(40, row3=long, row4=prompt)
    splits = load_chat(saved(tmp_path, rows), tokenizer=tokenizer, max_length=64)
    told = capsys.readouterr().out
    assert "no room for the answer, so that TRL leaves the row out: 1 (line 4)" in told
    assert "At max_length=64, the answer is cut: 1 (line 3)" in told and "the longest 1" in told
    everything = [row for part in splits.values() for row in part]
    assert len(everything) == 40
    trained = trainer_on(
        splits["train"].from_list(everything), tokenizer, tmp_path / "run", max_length=64
    ).train_dataset
    assert len(trained) == 39  # TRL leaves out what has no answer left
    assert sum(tokenizer.eos_token_id not in ids[-2:] for ids in trained["input_ids"]) == 1  # the cut one never ends
    with pytest.raises(ChatError, match=r"Every prompt .* has 16 tokens or more.*raise max_length to 1"):
        load_chat(saved(tmp_path, rows), tokenizer=tokenizer, max_length=16)


def with_template(template):
    tokenizer = AutoTokenizer.from_pretrained(assets.path("smollm2-llama"))
    tokenizer.chat_template = template
    return tokenizer


PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
ENDING = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "refuses system": (NO_SYSTEM + PLAIN + ENDING, "has a system text, which this model's template refuses (System role not supported)"),
    "wants alternation": (STRICT + PLAIN + ENDING, "has a system text, which this model's template refuses (Conversation roles"),
    "leaves system out": (PLAIN.replace("{{ m", "{% if m['role'] != 'system' %}{{ m").replace("}}{% end", "}}{% endif %}{% end") + ENDING,
                          "has a system text, which this model's template leaves out"),
    "broken": ("{{ nothing.there }}", "is refused by this model's template"),
    "changes answers": (PLAIN.replace("m['content']", "m['content'].replace('a ', '')") + ENDING,
                        "has an answer that this model's template changes"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_that_takes_no_system_text_is_told_before_training(tmp_path, case):
    template, told = TEMPLATES[case]
    rows = [dict(messages=say("Be brief.", [(f"q {i}", f"a {i}")])) for i in range(24)]
    with pytest.raises(ChatError) as error:
        load_chat(saved(tmp_path, rows), tokenizer=with_template(template))
    assert told in str(error.value) and "24 of 24 rows" in str(error.value)
    with pytest.raises(ChatError, match="has no chat template"):
        load_chat(saved(tmp_path, rows), tokenizer=with_template(None))


@pytest.mark.parametrize(
    "template, told, not_told",
    [
        (None, "the template adds its own: 'You are a helpful AI assistant named SmolLM", "dresses a prompt"),
        (PLAIN + ENDING, "The model's template: 'user: …<|im_end|>assistant: …<|im_end|>'", "adds its own"),
        (PLAIN + "{% if add_generation_prompt %}{{ 'bot: ' }}{% endif %}", "The template dresses a prompt alone differently", "adds its"),
        (PLAIN.replace(" + eos_token", "") + ENDING, "No end token '<|im_end|>' follows the answer", "adds its own"),
        (models.LLAMA2, "…", "adds its own"),
    ],
)  # fmt: skip
def test_what_a_template_does_is_told(tmp_path, capsys, template, told, not_told):
    tokenizer = AutoTokenizer.from_pretrained(assets.path("smollm2-llama"))
    tokenizer.chat_template = template or tokenizer.chat_template
    load_chat(saved(tmp_path, some()), tokenizer=tokenizer, max_length=200)
    out = capsys.readouterr().out
    assert (
        told in out
        and not_told not in out
        and "Unknown to the tokenizer: 0.0%" in out
        and "At max_length=200 nothing is cut" in out
    )


def test_llama_2_takes_a_system_text(tmp_path):
    rows = [dict(messages=say("Be brief.", [(f"q {i}", f"a {i}"), ("r", "b")])) for i in range(24)]
    splits = load_chat(saved(tmp_path, rows), tokenizer=with_template(models.LLAMA2), verbose=False)
    assert sum(map(len, splits.values())) == 48


def test_signs_of_the_template_in_a_text_are_named(tmp_path, tokenizer):
    rows = some(row3=dict(question="How to stop?", answer="With <|im_end|> it stops."))
    load_chat(saved(tmp_path, rows), verbose=False)  # what is a sign, only a model knows
    with pytest.raises(ChatError, match=r"line 3: has '<\|im_end\|>' in a text, which this model reads as a sign"):
        load_chat(saved(tmp_path, rows), tokenizer=tokenizer)


# --- after training ---


def test_a_run_is_judged_by_its_own_held_out_rows(tmp_path, tokenizer, capsys):
    told = [say(None, [(f"What is {i}?", "It is so."), ("Why?", "It is so.")]) for i in range(40)]
    splits = load_chat(saved(tmp_path, [dict(messages=m) for m in told]), tokenizer=tokenizer, verbose=False)
    trainer = trainer_on(splits["train"], tokenizer, tmp_path / "run", max_steps=12, learning_rate=0.03)
    untrained = chat.judge(trainer.model, tokenizer, splits["test"], answers=0, verbose=False)
    assert untrained.before == pytest.approx(untrained.after) and untrained.low == pytest.approx(0) == untrained.high
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    with torch.inference_mode(), training.autocast("cpu"):
        loss = trainer.compute_loss(trainer.model, batch).item()
    two = chat.judge(trainer.model, tokenizer, splits["train"].select(range(2)), answers=0, verbose=False)
    assert two.after == pytest.approx(loss, rel=1e-2)
    trainer.train()
    capsys.readouterr()
    verdict = chat.judge(trainer.model, tokenizer, splits["test"], answers=2, answer_tokens=4)
    assert verdict.after < verdict.before - 0.3 and verdict.low <= verdict.after - verdict.before <= verdict.high < 0
    conversations = len(set(splits["test"]["conversation"]))
    out = capsys.readouterr().out
    assert f"on {conversations:,} held-out conversations ({2 * conversations:,} answers" in out
    assert out.endswith("the answers became likelier.\n") and len(verdict.answers) == 2
    assert list(verdict.answers) == ["question", "before", "after", "reference"]
    one = splits["test"].filter(lambda row: row["conversation"] == splits["test"]["conversation"][0])
    chat.judge(trainer.model, tokenizer, one, answers=0)
    assert "from these alone no difference can be told" in capsys.readouterr().out


def test_the_interval_knows_that_rows_of_one_conversation_are_alike():
    change = np.repeat(np.random.default_rng(1).normal(-0.1, 1, 10), 20)
    alike = chat._interval(list(np.repeat(range(10), 20)), change, np.ones(200))
    alone = chat._interval(list(range(200)), change, np.ones(200))
    assert alike[0] < alone[0] < alone[1] < alike[1]


@pytest.mark.parametrize(
    "model, part, told",
    [("model", "test", "without an adapter"), ("adapted", "all", "pass one of load_chat's parts"), ("adapted", "text", "part is a str")],
)  # fmt: skip
def test_what_cannot_be_judged(tmp_path, tokenizer, model, part, told):
    splits = load_chat(saved(tmp_path, some()), verbose=False)
    adapted = trainer_on(splits["train"], tokenizer, tmp_path / "run").model
    model = adapted if model == "adapted" else adapted.get_base_model()
    with pytest.raises(ChatError, match=told):
        chat.judge(model, tokenizer, {"test": splits["test"], "all": splits, "text": "test"}[part])


# --- conversations of every kind, with planted defects ---

letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
texts = letters.map(lambda text: f"t{text}".strip()).filter(lambda text: "INST]" not in text and "<" not in text)
pieces = st.tuples(st.none() | texts, st.lists(st.tuples(texts, texts), min_size=1, max_size=4))

DEFECTS = {  # what is done to the messages, and what must be said; "raw" ones are done to the row in its form
    "user last": (lambda m: m[:-1], "ends with a question"),
    "assistant first": (lambda m: [x for x in m if x is not next(y for y in m if y["role"] == "user")], "assistant speaks first"),
    "two users": (lambda m: [*m[:-1], *m[-2:]], "are both the user's"),
    "two assistants": (lambda m: [*m, m[-1]], "are both the assistant's"),
    "system late": (lambda m: [*m, dict(role="system", content="s")], "is a system text"),
    "empty turn": (lambda m: [*m[:-1], dict(m[-1], content=" \t")], "is empty"),
    "tool": (lambda m: [*m[:-1], dict(role="tool", content="x"), m[-1]], "has the role 'tool'"),
}  # fmt: skip
RAW = {
    "empty": (lambda row: {**row, list(row)[1]: " "}, "is empty"),
    "no JSON": (lambda row: json.dumps(row)[:-1], "is not JSON"),
    "a list": (lambda row: [row], "is a list and not an object"),
    "a number": (lambda row: {**row, next(iter(row)): 7}, "is a number and not a"),
    "plain": (lambda row: dict(text="t " + str(len(str(row)))), "is neither [INST] nor ChatML"),
    "other keys": (lambda row: dict(a="b"), "has no form that is read"),
    "twice": (lambda row: row, ""),
}


@st.composite
def files(draw):
    """(suffix, rows, {index: messages}, {index: what must be said}); the last twenty rows are plain."""
    suffix = draw(st.sampled_from(SUFFIXES))
    possible = ["empty", "plain", "twice"]  # a table has texts in all of its columns, and no rows but rows
    possible += ["a list", "a number", "other keys"] * (suffix in (".jsonl", ".json")) + ["no JSON"] * (
        suffix == ".jsonl"
    )
    forms = [form for form in FORMS if suffix != ".parquet" or form != "parts"]
    one = draw(st.none() | st.sampled_from(forms))
    if one is None and suffix not in (".jsonl", ".json"):  # in a table that has other columns too, it belongs to them
        forms.remove("input/output")
    rows, good, bad = [], {}, {}
    for i in range(5):
        form = one or draw(st.sampled_from(forms))
        if suffix == ".parquet" and one is None and form == "prompt/completion":
            form = "messages"  # a column of a Parquet file has one type
        system, pairs = draw(pieces)
        pairs = [(f"{i} {j} {q}", a) for j, (q, a) in enumerate(pairs)][: 1 if form in PAIRS else 4]
        messages, defect = say(system, pairs), draw(st.none() | st.sampled_from([*DEFECTS, *RAW]))
        row = write_as(form, messages)
        if (
            defect in DEFECTS
            and form in ("messages", "parts", "conversations")
            and (defect != "tool" or form != "conversations")
        ):
            change, told = DEFECTS[defect]
            row = write_as(form, change(messages))
        elif defect in possible and (defect != "empty" or form in PAIRS):
            change, told = RAW[defect]
            row = change(row)
        else:
            defect = None
        rows.append(row)
        if defect is None or defect == "twice":
            good[len(rows) - 1] = messages
        else:
            bad[len(rows) - 1] = told
        if defect == "twice":
            rows.append(json.loads(json.dumps(row)))
    for i in range(20):
        messages = say(None, [(f"more {i}", "a")])
        good[len(rows)] = messages
        rows.append(write_as(one or "question/answer", messages))
    return suffix, rows, good, bad


@settings(max_examples=max(1, FUZZ // 5), phases=[Phase.generate])  # shrinking files takes minutes
@given(files())
def test_all_forms_come_back_equal_and_only_planted_defects_are_named(tmp_path_factory, drawn):
    suffix, rows, good, bad = drawn
    file = tmp_path_factory.mktemp("fuzz") / f"mine{suffix}"
    write(file, rows)
    first = 2 if suffix in (".csv", ".tsv") else 1
    chats = chat.read(file)
    named = {number - first: reason for reason, numbers in chats.left.items() for number in numbers}
    found = {c.number - first: c.messages for c in chats.conversations}
    repeats = {number - first for number in chats.repeats}
    assert set(named) == set(bad), (named, bad)
    assert all(told in named[i] for i, told in bad.items()), (named, bad)
    assert found == good and found.keys() | named.keys() | repeats == set(range(len(rows)))
    assert chats.read == len(rows) == len(chats.conversations) + len(named) + len(repeats)
    if bad:
        with pytest.raises(ChatError) as error:
            load_chat(file)
        assert error.value.rows == sorted(i + first for i in bad)
    splits = load_chat(file, drop=True, verbose=False)
    assert {n - first: m for n, m in messages_of(splits).items()} == good


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*turns.KNOWN, "role", "content", "from", "value", "type"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=FUZZ)
@given(
    st.sampled_from([".jsonl", ".json"]), st.lists(values, max_size=4), st.none() | st.sampled_from(["topic", "text"])
)
def test_any_json_is_read_or_refused_in_a_sentence(tmp_path_factory, suffix, rows, by):
    file = tmp_path_factory.mktemp("fuzz") / f"any{suffix}"
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    file.write_text(text, encoding="utf-8")
    try:
        chats = chat.read(file, by)
    except ChatError as error:
        assert len(str(error)) < 600
    else:
        assert chats.read == len(chats.conversations) + sum(map(len, chats.left.values())) + len(chats.repeats)
        assert all(
            turns.conversation(turns.level(dict(messages=c.messages))).messages == c.messages
            for c in chats.conversations
        )


@settings(max_examples=FUZZ)
@given(
    st.sampled_from(SUFFIXES),
    st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
)
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path_factory, suffix, raw):
    file = tmp_path_factory.mktemp("fuzz") / f"any{suffix}"
    file.write_bytes(raw)
    try:
        chat.read(file)
    except ChatError as error:
        assert str(error)
