"""Old calls stay out, and today's calls fit the installed libraries: their names, options and numbers of arguments.

docs/migration.json lists the old calls; docs/migration.md is written from it: `python -m tools.migration`.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import re
from collections import ChainMap

import nbformat
import pytest

from tools import lessons
from tools.migration import PAGE, load, page
from utils import ROOT

ROWS = load()
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row["old"][:48])


# --- the page ---


def test_page_is_what_the_data_gives():
    assert PAGE.read_text(encoding="utf-8") == page(ROWS), "run `python -m tools.migration`"


@each_row
def test_rows_are_whole_and_patterns_tell_old_from_new(row):
    assert list(row) == ["library", "old", "today", "new", "since", "why", "pattern"]
    assert row["today"] in ("refused", "gone", "warns", "silent", "not run")  # lesson A runs them
    assert row["since"] is None or re.fullmatch(r"\d+\.\d+", row["since"])
    assert not any("|" in row[key] for key in ("library", "old", "new", "why")), "it would end a cell of the table"
    ast.parse(row["old"]), ast.parse(row["new"])
    assert re.search(row["pattern"], row["old"])
    assert not [other["old"] for other in ROWS if re.search(other["pattern"], row["new"])]


@pytest.mark.parametrize(
    "old",
    (
        'options = {"evaluation_strategy": "epoch"}',
        "SFTTrainer(\n    model,\n    peft_config=LoraConfig(target_modules=list(names(8))),\n    tokenizer=tok,\n)",
        "SFTTrainer(model, TrainingArguments('out'))",
        "def forward(self, x, head_mask=None): pass",
        "TrainingArguments('out', gradient_checkpointing=True)",
        "import evaluate",
        "load_dataset(name, trust_remote_code = True)",
    ),
)
def test_old_calls_are_found_in_other_forms(old):
    assert old_calls(old)


@pytest.mark.parametrize(
    "fine",
    (
        "trainer.evaluate()",
        "Trainer(model, data_collator=DataCollatorWithPadding(tokenizer=tok))",
        "model, tokenizer = load(); trainer = SFTTrainer(model)",
        "prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)",
        'assert today["warmup_ratio"] == "warmup_steps"',
        "BitsAndBytesConfig(load_in_4bit=True)",
    ),
)
def test_no_false_alarm(fine):
    assert not old_calls(fine)


# --- old calls stay out of code and prose ---

# Cells that quote an old call on purpose: to see it fail, or to ask for today's name
QUOTED = {
    ("A_then_and_now", "head-mask"),
    ("A_then_and_now", "copied-forward"),
    ("A_then_and_now", "recipe-table"),
    ("A_then_and_now", "ex2-check"),
    ("A_then_and_now", "ex2-solution"),
    ("06_llama2_qlora_sft", "ex3"),
    ("06_llama2_qlora_sft", "ex3-solution"),
}
MODULES = sorted(path for folder in ("utils", "benchmarks", "tools") for path in (ROOT / folder).glob("*.py"))
LESSONS = {path.stem: nbformat.read(path, as_version=4) for path in lessons.lessons()}
TOLD_AS_OLD = r"\b(gone|no longer|now called|takes the place of|renamed|deprecated|used to be)\b"


def old_calls(text: str) -> list[str]:
    """The old calls of the table that stand in `text`."""
    return [row["old"] for row in ROWS if re.search(row["pattern"], text)]


def code_in(markdown: str) -> str:
    """The code in a text: fenced blocks and `spans`. Tables of old names ("Then | Now") are left out."""
    markdown = re.sub(r"(?m)^\| *(?:Library \| *)?Then \| *Now .*\n(?:\|.*\n?)*", "", markdown)
    fenced = re.findall(r"(?ms)^```[^\n]*\n(.*?)^```", markdown)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", markdown))
    return "\n".join(fenced + spans)


def test_code_in_a_text():
    text = "Use `a=1`.\n\n```python\nb=2\n```\n\n| Then | Now |\n|---|---|\n| `c=3` | `d=4` |\n\nand `e=5`\n"
    assert code_in(text).split() == ["b=2", "a=1", "e=5"]


def test_no_old_call_in_lessons_but_where_it_is_quoted():
    found = {}
    for name, notebook in LESSONS.items():
        for cell in notebook.cells:
            if calls := old_calls(cell.source if cell.cell_type == "code" else code_in(cell.source)):
                found[name, cell.id] = calls
    assert found.keys() == QUOTED, {place: calls for place, calls in found.items() if place not in QUOTED}


def test_no_old_call_in_modules():
    found = {path.name: old_calls(path.read_text(encoding="utf-8")) for path in MODULES}
    assert len(found) > 15 and not any(found.values()), found


@pytest.mark.parametrize(
    "document", sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md"} - {PAGE})
)
def test_no_old_call_in_documents(document):
    sections = re.split(r"(?m)^(?=#{1,4} )", document.read_text(encoding="utf-8"))
    told = [text for text in sections if "got an unexpected keyword argument" not in text.split("\n")[0]]
    assert not [call for text in told for call in old_calls(code_in(text))]


def test_the_help_on_refused_options_names_refused_options():
    """What warns and works is no error, so nobody would look for it under one."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    (heading,) = re.findall(r"(?m)^### TypeError: .*unexpected keyword argument.*$", page)
    for option in re.findall(r"'(\w+)'", heading):
        assert [row["today"] for row in ROWS if re.search(rf"\b{option}=", row["old"])][:1] == ["refused"], option


def test_no_old_call_in_answers():
    lines = (ROOT / "data" / "lora_faq.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    wrong = [text for text in answers if old_calls(code_in(text)) and not re.search(TOLD_AS_OLD, text)]
    assert len(answers) > 100 and not wrong


# --- today's calls fit the installed libraries ---

LIBRARIES = ("transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate")
# Our functions that hand further options on to a config
FORWARDS = {
    "training_arguments": ("transformers", "TrainingArguments"),
    "sft_arguments": ("trl", "SFTConfig"),
}
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one import, attribute or option came to. `fault`: "" where it fits, None where nobody can tell from a signature."""

    line: int
    what: str
    fault: str | None


def attribute(thing, name: str):
    """`thing.name`, a submodule too. AttributeError if there is none."""
    try:
        return getattr(thing, name)
    except AttributeError:
        if not inspect.ismodule(thing):
            raise
    try:
        return importlib.import_module(f"{thing.__name__}.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"{thing.__name__} has no {name!r}") from None


class Collector(ast.NodeVisitor):
    """Collects a verdict on every import from LIBRARIES, every attribute of what was imported, and every option given to it."""

    def __init__(self, tree):
        self.verdicts, self.tree = [], tree
        self.scopes = [tree]
        self.names = ChainMap(self.imports(tree))
        self.functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        self.visit(tree)

    def say(self, node, what: str, fault: str | None = "") -> None:
        self.verdicts.append(Verdict(node.lineno, what, fault))

    # names

    def own_nodes(self, scope):
        """The nodes of a scope without those of the functions inside it."""
        waiting = list(ast.iter_child_nodes(scope))
        while waiting:
            node = waiting.pop()
            yield node
            if not isinstance(node, SCOPES):
                waiting.extend(ast.iter_child_nodes(node))

    def imports(self, scope) -> dict:
        """{name: what it stands for, None if it is not from LIBRARIES} of a scope's imports and parameters."""
        found = {}
        if isinstance(scope, SCOPES):
            found = {a.arg: None for a in ast.walk(scope.args) if isinstance(a, ast.arg)}
        for node in self.own_nodes(scope):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for alias in node.names:
                module = node.module if isinstance(node, ast.ImportFrom) else alias.name
                ours = not getattr(node, "level", 0) and module.split(".")[0] in LIBRARIES
                name = alias.asname or (alias.name.split(".")[0] if isinstance(node, ast.Import) else alias.name)
                found[name] = self.imported(node, module, alias) if ours else None
        return found

    def imported(self, node, module: str, alias):
        what = f"import {module}" if isinstance(node, ast.Import) else f"from {module} import {alias.name}"
        try:
            thing = importlib.import_module(module)
            if isinstance(node, ast.ImportFrom):
                thing = attribute(thing, alias.name)
            elif not alias.asname:
                thing = importlib.import_module(module.split(".")[0])
        except (ImportError, AttributeError) as error:
            self.say(node, what, str(error))
            return None
        self.say(node, what)
        return thing

    def resolve(self, node):
        """What a dotted name rooted in an import stands for, else None."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute) and (owner := self.resolve(node.value)) is not None:
            return getattr(owner, node.attr, None)
        return None

    # visits

    def enter(self, node):
        self.names = self.names.new_child(self.imports(node))
        self.scopes.append(node)
        self.generic_visit(node)
        self.scopes.pop()
        self.names = self.names.parents

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = enter

    def visit_Attribute(self, node):
        self.generic_visit(node)
        if (owner := self.resolve(node.value)) is not None:
            try:
                attribute(owner, node.attr)
                self.say(node, ast.unparse(node))
            except AttributeError as error:
                self.say(node, ast.unparse(node), str(error))

    def visit_ClassDef(self, node):
        for base in map(self.resolve, node.bases):
            if base is not None and base.__name__ == "TrainerCallback":  # a misnamed event is never called
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name.startswith("on_"):
                        fault = "" if hasattr(base, method.name) else "TrainerCallback knows no such event"
                        self.say(method, method.name, fault)
        self.generic_visit(node)

    def visit_Call(self, node):
        self.generic_visit(node)
        called = ast.unparse(node.func)
        forward = FORWARDS.get(called.split(".")[-1])
        if forward and self.resolve(node.func) is None:
            config = getattr(importlib.import_module(forward[0]), forward[1])
            for option in self.options(node):
                fits = option is None or option in ("profile", *inspect.signature(config).parameters)
                fault = None if option is None else "" if fits else f"{config.__name__} has no option {option!r}"
                self.say(node, f"{called}({option or '**'}=)", fault)
        elif (target := self.resolve(node.func)) is not None and callable(target):
            self.judge(node, called, target)

    # options

    def judge(self, node, called: str, target):
        options = self.options(node)
        try:
            # transformers wraps the classmethods of its Auto classes in a way that hides their first argument
            bound_twice = hasattr(getattr(target, "__wrapped__", None), "__self__")
            signature = inspect.signature(target, follow_wrapped=not bound_twice)
        except (TypeError, ValueError):
            self.say(node, called, None)
            return
        names = signature.parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in names.values())
        config = inspect.isclass(target) and target.__name__.endswith(("Config", "Arguments"))
        for option in options:
            if option is None or (option not in names and open_ended and not config):
                self.say(node, f"{called}({option or '**'}=)", None)
            else:
                # configs of models take some options through a property (num_labels)
                fits = option in names or (config and isinstance(getattr(target, option, None), property))
                self.say(node, f"{called}({option}=)", "" if fits else f"{called} has no option {option!r}")
        known = {option: None for option in options if option in names}
        if not any(isinstance(a, ast.Starred) for a in node.args):
            bind = signature.bind_partial if None in options else signature.bind
            try:
                bind(*node.args, **known)
                self.say(node, f"{called}(…)")
            except TypeError as error:  # too many, or one missing
                self.say(node, f"{called}(…)", f"{called}: {error}")

    def options(self, call) -> list:
        """The names of the options of a call, those in `**dict` too; None for each part that cannot be followed."""
        found = []
        for keyword in call.keywords:
            found += [keyword.arg] if keyword.arg else self.keys(keyword.value)
        return list(dict.fromkeys(found))

    def keys(self, node, depth: int = 0) -> list:
        """The keys of a dict: written out, joined by |, held by a variable, or returned by a function of the same file."""

        def again(part):
            return self.keys(part, depth + 1)

        def join(parts):
            return list(itertools.chain.from_iterable(parts))

        if depth > 8:
            return [None]
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            return join(again(v) if k is None else [getattr(k, "value", None)] for k, v in pairs)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return again(node.left) + again(node.right)
        if isinstance(node, ast.IfExp):
            return again(node.body) + again(node.orelse)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            if name == "dict" and not node.args:
                return self.options(node)
            if name in self.functions:
                values = [n.value for n in self.own_nodes(self.functions[name]) if isinstance(n, ast.Return)]
                return join(map(again, values)) or [None]
        if isinstance(node, ast.Name) and self.names.get(node.id, self) is self:
            return join(map(again, self.assigned(node.id))) or [None]
        return [None]

    def assigned(self, name: str) -> list:
        """What a variable is given in the nearest scope that gives it anything."""
        for scope in reversed(self.scopes):
            values = []
            for node in self.own_nodes(scope):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and any(
                    isinstance(t, ast.Name) and t.id == name for t in targets
                ):
                    values.append(node.value)
                elif isinstance(node, ast.For) and name in [n.id for n in ast.walk(node.target) if hasattr(n, "id")]:
                    values += self.looped_over(node)
            if values:
                return values
        return []

    def looped_over(self, loop) -> list:
        """The dicts in `for name, options in choices.items()`, `choices` a dict of dicts that is written out."""
        if isinstance(loop.iter, ast.Call) and ast.unparse(loop.iter).endswith(".items()"):
            for value in self.assigned(ast.unparse(loop.iter.func.value)):
                if isinstance(value, ast.Dict):
                    return value.values
        return [loop.iter]


def collect(source: str) -> list[Verdict]:
    """A verdict on everything in `source` that touches LIBRARIES."""
    return Collector(ast.parse(source)).verdicts


def faults(source: str) -> list[str]:
    return [verdict.fault for verdict in collect(source) if verdict.fault]


SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in MODULES}
for name, notebook in LESSONS.items():
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    SOURCES[name] = "\n\n".join(f"# cell {cell.id}\n{cell.source}" for cell in code)


@pytest.fixture(scope="module")
def verdicts():
    return {name: collect(source) for name, source in SOURCES.items()}


def place(name: str, line: int) -> str:
    """Where a line is: the lesson's cell, or the module's line."""
    cells = re.findall(r"(?m)^# cell (\S+)$", "\n".join(SOURCES[name].splitlines()[:line]))
    return f"{name}, cell {cells[-1]}" if cells else f"{name}:{line}"


def test_every_name_and_option_exists(verdicts):
    wrong = [(place(name, v.line), v.what, v.fault) for name, found in verdicts.items() for v in found if v.fault]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_collector_finds_what_is_there(verdicts):
    every = [v for found in verdicts.values() for v in found]
    told = [v for v in every if v.fault is not None]
    options = [v for v in told if v.what.endswith("=)")]
    unclear = sorted({v.what for v in every if v.fault is None})
    print(f"\n{len(told)} judged, {len(options)} of them options; not to be judged: {unclear}")
    assert len(options) >= 150 and len([v for v in told if v.what.endswith("(…)")]) >= 50
    assert len([v for v in told if "import" in v.what]) >= 40
    # what travels in dicts is found where it is written
    training = {v.what for v in verdicts["utils/training.py"]}
    for option in ("train_sampling_strategy", "bf16", "fp16", "use_cpu"):
        assert f"TrainingArguments({option}=)" in training and f"SFTConfig({option}=)" in training
    assert "SFTConfig(completion_only_loss=)" in training
    assert {v.fault for v in verdicts["utils/training.py"]} == {"", None}, "**changes stays open"
    assert "training.training_arguments(load_best_model_at_end=)" in {v.what for v in verdicts["05_four_bits"]}
    assert "TrainingArguments(num_train_epochs=)" in {v.what for v in verdicts["04_roberta_sst2"]}


@pytest.mark.parametrize(
    "source",
    (
        "from transformers import TrainingArguments\nTrainingArguments(evaluation_strategy='epoch')",
        "from trl import SFTTrainer\nSFTTrainer(model, tokenizer=tokenizer)",
        "def run():\n    from transformers import Trainer as T\n    return lambda: T(model, tokenizer=tokenizer)",
        "import bitsandbytes as bnb\nbnb.nn.Linear4bits(64, 64)",
        "import bitsandbytes as bnb\nbnb.nn.Linear4bit(64, 64, quant='nf4')",
        "import transformers\ntransformers.AutoModelForCausalLM.from_pretrainde('base')",
        "from transformers import no_such_name",
        "import trl.no_such_module",
        "from transformers import AutoModelForCausalLM\nAutoModelForCausalLM.from_config(revision='main')",
        "from transformers import RobertaConfig\nRobertaConfig(number_of_labels=2)",
        "from peft import LoraConfig\noptions = dict(r=8) | {'lora_alfa': 16}\nLoraConfig(**options)",
        "from transformers import TrainingArguments\noptions = {}\noptions |= {'warmup_ratio': 0}\nTrainingArguments(**options)",
        "from transformers import BitsAndBytesConfig\nBitsAndBytesConfig(load_in_4bit=True, double_quant=True)",
        "training.sft_arguments(profile, folder, max_seq_length=512)",
        "from peft import get_peft_model\nget_peft_model(model)",
        "from transformers import TrainerCallback\nclass Watch(TrainerCallback):\n    def on_epoch_ended(self): pass",
    ),
)
def test_planted_mistakes_are_caught(source):
    assert faults(source)


def test_what_is_not_from_a_library_is_left_alone():
    assert not collect("from sklearn.datasets import nothing\nimport numpy as np\nnp.nothing(nothing=1)")
    assert not collect("def build(peft):\n    return peft.anything(some=1)\n\nTrainer(tokenizer=1)")


# The signatures say nothing of these: passed through **kwargs, a method of a variable, still accepted, or another library
UNSIGNED = (
    "torch_dtype",
    "load_in_4bit",
    "args=TrainingArguments",
    "gradient_",
    "head_mask",
    "evaluate",
    "trust_remote",
)
PRELUDE = """
from peft import {kbit}
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer, {collator}
"""


@each_row
def test_installed_libraries_refuse_the_old_call_and_know_the_new(row):
    old = PRELUDE.format(
        kbit=next(iter(re.findall(r"prepare_model_for_int8_training", row["old"])), "prepare_model_for_kbit_training"),
        collator=next(iter(re.findall("DataCollatorForCompletionOnlyLM", row["old"])), "SFTConfig"),
    )
    assert bool(faults(old + row["old"])) != any(word in row["old"] for word in UNSIGNED)
    new = PRELUDE.format(kbit="prepare_model_for_kbit_training", collator="SFTConfig")
    assert not faults(new + row["new"])


def test_installed_models_know_the_new_methods_only():
    from transformers import PreTrainedModel
    from transformers.models.roberta.modeling_roberta import RobertaSelfAttention

    assert callable(PreTrainedModel.activation_checkpointing_enable)
    assert not hasattr(RobertaSelfAttention, "transpose_for_scores")
    assert "head_mask" not in inspect.signature(RobertaSelfAttention.forward).parameters
