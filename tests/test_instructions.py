"""data/lora_faq.jsonl: its form, its variety, topics kept apart; and how questions and answers are loaded."""

import collections
import json
import re

import numpy as np
import pytest
import torch

from utils import data, models, profiles

ROWS = data.read_faq()
HELD_OUT = {topic: name for name, topics in data.HELD_OUT.items() for topic in topics}
TWINS, LEAK = 0.9, 0.8  # cosine of two questions' MiniLM vectors: of any two rows, and of a test and a training row


def show(row) -> str:
    return f"{row['question']} {row['answer']}"


# --- every row ---


def test_enough_rows_topics_and_lessons():
    assert len(ROWS) >= 400
    topics = collections.Counter(row["topic"] for row in ROWS)
    assert len(topics) >= 50 and min(topics.values()) >= 5
    assert {data.pointer(row["answer"]) for row in ROWS} == set(range(12))


def test_a_topic_belongs_to_one_lesson_and_stands_together():
    lessons = collections.defaultdict(set)
    for row in ROWS:
        lessons[row["topic"]].add(data.pointer(row["answer"]))
    assert all(len(found) == 1 for found in lessons.values())
    changes = [i for i in range(1, len(ROWS)) if ROWS[i]["topic"] != ROWS[i - 1]["topic"]]
    assert len(changes) == len(lessons) - 1
    order = [data.pointer(row["answer"]) for row in ROWS]
    assert order == sorted(order)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["question"][:40])
def test_the_form_that_the_model_shall_learn(row):
    assert row["question"].endswith("?") and 4 <= len(row["question"].split()) <= 24
    body = re.sub(r" \(notebook \d\d\)$", "", row["answer"])
    assert body != row["answer"] and "(notebook" not in body
    assert 10 <= len(body.split()) <= 45
    assert len(re.findall(r"[.!?](?:\s|$)", body)) in (1, 2, 3), body
    assert body.endswith(".") and (body[0].isalnum() or body[0] in "`'\""), body
    for key in row.values():
        assert key == key.strip() and "  " not in key and not re.search(r"[–—“”‘’\n]|\*\*|https?:", key)


def test_no_old_call_is_recommended():
    gone = r"evaluation_strategy=|max_seq_length=|torch_dtype=|prepare_model_for_int8|DataCollatorForCompletionOnly"
    assert not [row["answer"] for row in ROWS if re.search(gone, row["answer"])]


def test_questions_begin_in_many_ways():
    openings = collections.Counter(" ".join(row["question"].split()[:2]).lower() for row in ROWS)
    assert max(openings.values()) <= 0.06 * len(ROWS), openings.most_common(3)


# --- no row twice, and no test question among the training ones in other words ---


@pytest.fixture(scope="module")
def likeness():
    """Cosine of every two questions' vectors, by the encoder that was made for that."""
    model, tokenizer = models.load_encoder(profiles.get("smoke"))
    vectors = []
    for start in range(0, len(ROWS), 64):
        questions = [row["question"] for row in ROWS[start : start + 64]]
        batch = tokenizer(questions, padding=True, return_tensors="pt")
        with torch.inference_mode():
            hidden, mask = model.roberta(**batch).last_hidden_state, batch["attention_mask"][..., None]
        vectors.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    vectors = torch.cat(vectors).numpy()
    return np.triu(vectors @ vectors.T, 1)


def test_the_likeness_tells_paraphrases(likeness):
    row = {row["question"]: i for i, row in enumerate(ROWS)}
    pairs = np.argwhere(likeness > 0.75)
    assert 0 < len(pairs) < 60  # related questions exist, so the limits below could be exceeded
    assert len(row) == len(ROWS)


def test_no_question_is_another_one_in_other_words(likeness):
    twins = [(ROWS[i]["question"], ROWS[j]["question"]) for i, j in np.argwhere(likeness >= TWINS)]
    assert not twins


def test_no_held_out_question_is_close_to_a_training_row(likeness):
    train = [row["topic"] not in HELD_OUT for row in ROWS]
    close = [
        (round(float(likeness[i, j]), 2), ROWS[i]["question"], ROWS[j]["question"])
        for i, j in np.argwhere(likeness >= LEAK)
        if train[i] != train[j]
    ]
    assert not close


def test_no_two_answers_share_most_of_their_words():
    words = [set(re.findall(r"\w{4,}", row["answer"].lower())) - {"notebook"} for row in ROWS]
    for i, first in enumerate(words):
        for j in range(i):
            shared = len(first & words[j]) / max(1, len(first | words[j]))
            assert shared < 0.6, (ROWS[i]["answer"], ROWS[j]["answer"])


# --- loading ---


def test_what_is_held_out_is_written_here_once_more():
    """A topic that moves to training would make the test easier, and no other test could tell."""
    parts = data.load_instructions(profiles.get("cpu"), verbose=False)
    assert sorted(set(parts["validation"]["topic"])) == [
        "collecting data",
        "generating answers",
        "reading comparisons",
        "target modules",
    ]
    assert sorted(set(parts["test"]["topic"])) == [
        "NaN and precision",
        "batch size",
        "cost of full fine-tuning",
        "counting parameters",
        "double quantisation",
        "freezing by name",
        "gradient accumulation",
        "merging",
        "overfitting and stopping",
        "packing and sequence length",
        "serving and latency",
        "unanswerable questions",
    ]


def test_splits_are_by_topic_and_complete():
    parts = data.load_instructions(profiles.get("cpu"), verbose=False)
    topics = {name: set(part["topic"]) for name, part in parts.items()}
    assert topics["test"] == set(data.HELD_OUT["test"]) and topics["validation"] == set(data.HELD_OUT["validation"])
    assert not topics["train"] & set(HELD_OUT)
    assert len(parts["test"]) + len(parts["validation"]) == sum(row["topic"] in HELD_OUT for row in ROWS)
    assert len(parts["train"]) == profiles.get("cpu").instruction_rows[0]


def test_every_lesson_of_a_test_topic_is_trained_on():
    lesson = {row["topic"]: data.pointer(row["answer"]) for row in ROWS}
    trained = {n for topic, n in lesson.items() if topic not in HELD_OUT}
    assert {lesson[topic] for topic in HELD_OUT} <= trained


def test_rows_are_chat_messages(capsys):
    parts = data.load_instructions(profiles.get("smoke"))
    assert "The course's FAQ: 16 train, 6 validation, 6 test." in capsys.readouterr().out
    row = parts["train"][0]
    assert [m["role"] for m in row["prompt"]] == ["user"] and [m["role"] for m in row["completion"]] == ["assistant"]
    assert data.pointer(row["completion"][0]["content"]) is not None


BROKEN = {
    "{": r"line 2 is not JSON",
    "[" * 100_000: r"line 2 is not JSON",
    '{"topic": "t", "question": "\\ud83d?", "answer": "A. (notebook 01)"}': r"line 2: question has half a character",
    '["a"]': r"line 2 needs exactly the keys topic, question and answer",
    '{"topic": "t", "topic": "u", "question": "q?", "answer": "A. (notebook 01)"}': r"line 2 is not JSON \(a key stands twice",
    '{"topic": "t", "question": "q?"}': r"line 2 needs exactly the keys .* it has \['topic', 'question'\]",
    '{"topic": "t", "question": " ", "answer": "A. (notebook 01)"}': r"line 2: question is ' '",
    '{"topic": "t", "question": 7, "answer": "A. (notebook 01)"}': r"line 2: question is 7",
    '{"topic": "t", "question": "q?", "answer": "A."}': r"line 2: the answer must end in a pointer",
    '{"topic": "t", "question": "q?", "answer": "A. (notebook 1)"}': r"line 2: the answer must end in a pointer",
    '{"topic": "t", "question": "q?", "answer": "(notebook 01) A."}': r"line 2: the answer must end in a pointer",
}


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: line[:60])
def test_a_broken_row_is_named_by_its_line(tmp_path, line):
    good = json.dumps({"topic": "t", "question": "q?", "answer": "Yes. (notebook 01)"})
    file = tmp_path / "faq.jsonl"
    file.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=r"faq\.jsonl, " + BROKEN[line]):
        data.read_faq(file)
    assert file.read_text() == f"{good}\n{line}\n{good}\n"


def test_lines_end_where_they_end(tmp_path):
    """A line separator of Unicode inside a text, a byte order mark, Windows' line ends: all fine; another encoding is told."""
    row = {"topic": "t", "question": "one\u2028two\x0cthree?", "answer": "Yes. (notebook 01)"}
    file = tmp_path / "faq.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + 2 * (json.dumps(row, ensure_ascii=False) + "\r\n").encode())
    assert data.read_faq(file) == [row, row]
    file.write_bytes("{'q': 'é'}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"faq\.jsonl is not UTF-8 \(byte 8\); save it in that encoding"):
        data.read_faq(file)


def test_a_held_out_topic_must_exist(monkeypatch):
    monkeypatch.setitem(data.HELD_OUT, "test", (*data.HELD_OUT["test"], "merger"))
    with pytest.raises(ValueError, match="HELD_OUT names 'merger', which is no topic of the FAQ"):
        data.load_instructions(profiles.get("smoke"))


@pytest.mark.parametrize(
    "answer, number",
    [("Yes. (notebook 04)", 4), ("Use `r`. (notebook 11) ", 11), ("Yes (notebook 04)", None), ("Yes. (notebook 4)", None),
     ("(notebook 04)", None), ("Yes. (notebook 04) More.", None), ("", None)],
)  # fmt: skip
def test_pointer(answer, number):
    assert data.pointer(answer) == number


# --- Llama 2's text ---


def test_inst_text_becomes_messages_without_special_tokens():
    text = "<s>[INST] One\nline? [/INST] Yes. </s><s>[INST] Two? [/INST] No, [two]. </s>"
    assert data.parse_inst(text) == [
        {"role": "user", "content": "One\nline?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "No, [two]."},
    ]


def test_turns_need_not_begin_anew_and_a_system_text_may_stand_first():
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))
    ]
    for text in ("<s>[INST] q1 [/INST] a1</s>[INST] q2 [/INST] a2</s>", "[INST] q1 [/INST] a1 [INST] q2 [/INST] a2"):
        assert data.parse_inst(text) == turns
    told = data.parse_inst("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nq1 [/INST] a1 </s>")
    assert told == [{"role": "system", "content": "Be brief."}, *turns[:2]]


@pytest.mark.parametrize(
    "text",
    ["", "  ", "plain text", "<s>[INST] no end", "<s>[/INST] a [INST] b", "[INST] q [/INST] a </s> more",
     "before [INST] q [/INST] a", "[INST] q [/INST] a [INST]",
     "[INST] <<SYS>> a [/INST] b </s><s>[INST] c <</SYS>> q [/INST] a", "[INST] q [/INST] a [/INST] b", "[INST] [INST] q [/INST] a"],
)  # fmt: skip
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"\[INST\] question \[/INST\] answer"):
        data.parse_inst(text)


@pytest.mark.parametrize("text", [None, 7, ["[INST] q [/INST] a"], b"[INST] q [/INST] a"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(ValueError, match=r"A conversation reads .*; this one is a \w+\."):
        data.parse_inst(text)


@pytest.mark.parametrize("text", ["[INST] q [/INST]", "[INST]  [/INST] a", "[INST] <<SYS>> <</SYS>> q [/INST] a"])
def test_an_empty_turn_is_refused(text):
    with pytest.raises(ValueError, match="A turn has no text of its"):
        data.parse_inst(text)
