"""One conversation in any of the forms that people keep them in, as the messages that a chat template takes.

`conversation(row)` finds the form by the row's keys. What it cannot take it refuses, and says what and where.
"""

import difflib
import json
import re
from typing import NamedTuple

from utils.sheets import FileError, visible, whole

FORMS = (
    "prompt/completion, question/answer, instruction/input/output, messages (role/content), conversations (from/value), "
    "or a text in [INST] or ChatML"
)
TURNS = ("messages", "conversations", "conversation")
ASKED = ("prompt", "instruction", "question", "query")
ADDED = ("input", "context")  # what a question is about; it goes below it
ANSWERED = ("completion", "output", "response", "answer")
SYSTEM = ("system", "system_prompt")
SPEAKER, SAID = ("role", "from"), ("content", "value")
KNOWN = (*TURNS, *ASKED, *ADDED, *ANSWERED, *SYSTEM, "text")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "ai"), "assistant"),
    "system": "system",
}
# Keys that change what a row or a turn means: to pass over them would train on something else than was meant.
ROW_CALLS = ("tools", "functions", "images")
TURN_CALLS = ("tool_calls", "tool_call_id", "function_call", "weight")


class ChatError(FileError):
    """A conversation, or a file of them, cannot be used."""


class Turns(NamedTuple):
    """Messages in order, from a system text, if there is one, to the last answer; those before `given` are not learnt."""

    form: str
    messages: list[dict]
    given: int
    used: set[str]  # the row's keys that were looked at


def conversation(row: dict) -> Turns:
    """The Turns of a row, an object levelled by `level`; ChatError says in half a sentence what is wrong with it."""
    _no_calls(row, ROW_CALLS, "")
    system = [key for key in SYSTEM if not nothing(row.get(key))]
    if len(system) > 1:
        raise ChatError(f"has both {system[0]!r} and {system[1]!r}; keep one of them")
    before = [_message("system", row[key], repr(key)) for key in system]
    form, read, keys = _form(row)
    messages, given, told = read(row, keys, before)
    _in_order(messages)
    return Turns(told or form, messages, given, {*keys, *system})


def _form(row: dict):
    """(name, function that reads it, keys) of the row's form: the first that says anything, for a table has all columns."""
    asked = [key for key in ASKED if key in row] or [key for key in ADDED[:1] if key in row]
    answered = [key for key in ANSWERED if key in row]
    added = [key for key in ADDED if key in row and key not in asked]
    forms = []
    if turns := _filled(row, TURNS):
        forms.append((f"{turns[0]}", _from_turns, turns))
    if asked and answered:
        asked, answered = _filled(row, asked), _filled(row, answered)
        for both in (asked, answered):
            if len(both) > 1:
                raise ChatError(f"has both {both[0]!r} and {both[1]!r}; keep one of them")
        keys = [*asked, *added, *answered]
        forms.append(("/".join(keys), _from_pair, keys))
    if "text" in row:
        forms.append(("text", _from_text, ["text"]))
    if not forms:
        lacks = "no answer" if asked else "no question" if answered else "no form that is read"
        hint = next((hint for key in row if key not in KNOWN and (hint := near(key, KNOWN))), "")
        raise ChatError(f"has {lacks} among its keys {listed(row)}{hint} (read are {FORMS})")
    return next((form for form in forms if any(not nothing(row[key]) for key in form[2])), forms[0])


def _from_turns(row: dict, keys: list[str], before: list[dict]):
    value = parse(row[keys[0]]) if isinstance(row[keys[0]], str) else row[keys[0]]  # a table's cell holds JSON
    if not isinstance(value, list):
        raise ChatError(f"{keys[0]!r} is {kind(value)} and not a list of turns")
    return [*before, *_turns(value)], 0, f"{keys[0]} ({'/'.join(_names(value))})"


def _from_pair(row: dict, keys: list[str], before: list[dict]):
    """Question and answer; a prompt may be messages, whose answers are given and not learnt."""
    asked, *added, answered = keys
    prompt = [*before, *_side(row[asked], "user", asked)]
    for key in added:
        if not nothing(row[key]):
            below = prompt[-1]["content"] + "\n\n" + text_of(row[key], repr(key))
            prompt[-1] = dict(prompt[-1], content=below)
    return prompt + _side(row[answered], "assistant", answered), len(prompt), ""


_CHATML = re.compile(r"\s*<\|im_start\|>(\w+)\n((?:(?!<\|im_(?:start|end)\|>).)*)(?:<\|im_end\|>|\Z)", re.DOTALL)


def _from_text(row: dict, keys: list[str], before: list[dict]):
    """A conversation that is written out with its template."""
    from utils import data

    text = text_of(row["text"], "'text'")
    if "<|im_start|>" not in text:
        if "[INST]" not in text:
            raise ChatError(f"'text' is neither [INST] nor ChatML, so who says what is not told: {text[:30]!r}")
        try:
            return [*before, *data.parse_inst(text)], 0, "text in [INST]"
        except ValueError as error:
            raise ChatError(f"'text' is not of the form of [INST]: {str(error).rstrip('.')}") from None
    turns, place = [], 0
    while text[place:].strip():
        found = _CHATML.match(text, place)
        if not found:
            raise ChatError(f"'text' is not ChatML from first to last: a turn begins {text[place:].strip()[:30]!r}")
        turns.append(dict(role=found[1], content=found[2]))
        place = found.end()
    return [*before, *_turns(turns)], 0, "text in ChatML"


# --- turns ---


def _side(value, role: str, key: str) -> list[dict]:
    """A prompt or a completion as messages: it is a text, or messages already, in a table's cell as JSON."""
    turns = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            turns = parse(value)
        except ChatError:
            pass  # a text that begins like that
    if isinstance(turns, list) and any(map(_is_turn, turns)):
        return _turns(turns, f"{key!r}, turn")
    return [_message(role, value, repr(key))]


def _turns(turns: list, what: str = "turn") -> list[dict]:
    """Messages of a list of turns, by role/content or from/value, under the roles that templates know."""
    messages = []
    for number, turn in enumerate(turns, start=1):
        where = f"{what} {number}"
        if not is_object(turn):
            raise ChatError(f"{where} is {kind(turn)} and not an object with role and content")
        turn = level(turn)
        speaker = next((turn[key] for key in SPEAKER if key in turn), None)
        name = speaker.strip().lower() if isinstance(speaker, str) else ""
        role = ROLES.get(name.removeprefix("chat"))  # a chatbot is a bot
        if role is None:
            told = f"has the role {speaker!r}" if speaker is not None else f"has no role among its keys {listed(turn)}"
            raise ChatError(f"{where} {told}; user, assistant and system are read (also human and gpt)")
        _no_calls(turn, TURN_CALLS, f"{where} ")
        said = next((turn[key] for key in SAID if key in turn), None)
        messages.append(_message(role, said, f"{where} ({role})"))
    return messages


# How a text begins or ends that a template has dressed already; another template around it is what no model has seen.
_DRESSED = re.compile(
    r"\A(<s>|\[INST\]|<<SYS>>|<\|im_start\|>|<\|begin_of_text\|>|<\|start_header_id\|>|<start_of_turn>)"
    r"|(</s>|\[/INST\]|<\|im_end\|>|<\|eot_id\|>|<\|endoftext\|>|<end_of_turn>)\Z"
)


def _message(role: str, value, what: str) -> dict:
    text = text_of(value, what)
    if sign := _DRESSED.search(text):
        raise ChatError(f"{what} is dressed in a template already, by its {sign[0]!r}; the bare text is needed")
    return dict(role=role, content=text)


def _in_order(messages: list[dict]) -> None:
    """ChatError unless they are a system text or none, then questions and answers in turn."""
    first = 2 if messages and messages[0]["role"] == "system" else 1
    turns = messages[first - 1 :]
    if not turns:
        raise ChatError("has no turns of user and assistant")
    for number, turn in enumerate(turns, start=first):
        if turn["role"] == "system":
            raise ChatError(f"turn {number} is a system text; it belongs before the first question, and only once")
        if turn["role"] != ("user", "assistant")[(number - first) % 2]:
            if number == first:
                raise ChatError("the assistant speaks first; a question must come before")
            raise ChatError(f"turns {number - 1} and {number} are both the {turn['role']}'s")
    if turns[-1]["role"] == "user":
        raise ChatError("ends with a question that has no answer")


def _no_calls(level: dict, names, where: str) -> None:
    """ChatError if there is more to it than words. A weight of 1, as OpenAI's format has it, says nothing."""
    if calls := [name for name in names if not nothing(level.get(name)) and level[name] != 1]:
        raise ChatError(f"{where}has {calls[0]!r}, which is not trained on here")


def _is_turn(value) -> bool:
    return is_object(value) and bool(set(SPEAKER) & set(level(value)))


def _names(turns: list) -> list[str]:
    """By which keys the first turn tells who says what."""
    keys = level(turns[0]) if turns else {}
    return [next((name for name in names if name in keys), names[0]) for names in (SPEAKER, SAID)]


# --- values ---


def parse(text: str):
    """The value that JSON writes, its objects as tuples of pairs, so that no key is lost; ChatError says what is wrong."""
    try:
        return json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise ChatError(f"is not JSON ({error.msg}, {where})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise ChatError(f"is not JSON that can be read ({str(error)[:60]})") from None


def is_object(value) -> bool:
    return isinstance(value, (tuple, dict))


def is_row(value) -> bool:
    """Whether an object is one conversation, and not the box around all of them."""
    names = {str(key).strip().lower(): item for key, item in value}
    turns = next((names[name] for name in TURNS if isinstance(names.get(name), list)), None)
    if turns is not None:
        return not turns or any(_is_turn(turn) for turn in turns)
    return bool({*ASKED, *ADDED, *ANSWERED, "text"} & set(names))


def level(row) -> dict:
    """An object with its keys in small letters, what is null left out; ChatError for a key that says something twice."""
    found = {}
    for key, value in row.items() if isinstance(row, dict) else row:
        name = str(key).strip().lower()
        if name in found and nothing(value):
            continue
        if not nothing(found.get(name)):
            raise ChatError(f"has the key {name!r} twice")
        found[name] = value
    return {name: value for name, value in found.items() if value is not None}


def text_of(value, what: str) -> str:
    """A text without the blanks around it; also one in OpenAI's parts. ChatError if it is none, or empty."""
    if isinstance(value, list) and value and all(map(is_object, value)):
        parts = [level(part) for part in value]
        if odd := [part.get("type") for part in parts if part.get("type") != "text"]:
            raise ChatError(f"{what} has a part of type {odd[0]!r}; only parts of type 'text' are read")
        if wrong := [part.get("text") for part in parts if not isinstance(part.get("text"), str)]:
            raise ChatError(f"{what} has a part whose text is {kind(wrong[0])} and not a text")
        value = "".join(part["text"] for part in parts)
    if value is None:
        raise ChatError(f"{what} has no text")
    if not isinstance(value, str):
        raise ChatError(f"{what} is {kind(value)} and not a text")
    if not whole(value):
        raise ChatError(f"{what} has half a character (a lone surrogate)")
    if not visible(value):
        raise ChatError(f"{what} is empty")
    return value.strip()


def nothing(value) -> bool:
    """Whether a cell, or a key's value, says nothing."""
    return value is None or value in ([], (), {}) or (isinstance(value, str) and not visible(value))


def _filled(row: dict, names) -> list[str]:
    """Those of the keys that the row has; blank ones only if all of them are."""
    found = [name for name in names if name in row]
    return [name for name in found if not nothing(row[name])] or found[:1]


def kind(value) -> str:
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list"}
    kinds |= {tuple: "an object", dict: "an object", type(None): "nothing"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def listed(names) -> str:
    return ", ".join(map(repr, sorted(names))) or "(none)"


def near(name: str, known) -> str:
    """A hint at the name that may have been meant."""
    found = difflib.get_close_matches(name, sorted(known), 1)
    return f" (did you mean {found[0]!r}?)" if found else ""
