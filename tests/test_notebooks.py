"""What house style asks of every lesson, as tests; and what a lesson builds in view equals what utils keeps."""

import ast
import json
import re
from statistics import NormalDist

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import forgetting, record, sentiment
from tools import lessons
from utils import ROOT, data, lora, lowrank, models, nf4, profiles, training

PATHS = lessons.lessons()
LESSONS = {path.stem: nbformat.read(path, as_version=4) for path in PATHS}
each = pytest.mark.parametrize("name", LESSONS)


def cell(name: str, identity: str):
    return next(c for c in LESSONS[name].cells if c.id == identity)


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def prose(notebook):
    return [c for c in notebook.cells if c.cell_type == "markdown"]


@each
def test_valid_with_ids(name):
    notebook = LESSONS[name]
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({c.id for c in notebook.cells}) == len(notebook.cells)


@each
def test_anatomy(name):
    notebook = LESSONS[name]
    title = notebook.cells[0].source
    assert title.startswith(f"# {lessons.number(name)} · ")
    for row in ("**You will learn**", "**You need**", "**Minutes**", "<!-- minutes -->", "GPU"):
        assert row in title
    assert lessons.tags(notebook.cells[1]) == ["setup"]
    assert "## What you now know" in notebook.cells[-1].source
    for part in ("**What can go wrong.**", "**Where next.**", "**Sources.**", "https://"):
        assert part in notebook.cells[-1].source
    sections = [c for c in prose(notebook) if re.match(r"## \d", c.source)]
    assert [int(re.match(r"## (\d+) · ", c.source)[1]) for c in sections] == list(range(1, len(sections) + 1))


def test_setup_cell_is_the_same_everywhere():
    assert len({notebook.cells[1].source for notebook in LESSONS.values()}) == 1


@each
def test_exercises_are_three_cells(name):
    notebook = LESSONS[name]
    kinds = [next((t for t in lessons.tags(c) if t in ("exercise", "check", "solution")), "") for c in notebook.cells]
    spots = [i for i, kind in enumerate(kinds) if kind == "exercise"]
    few, many = {"00": (1, 1)}.get(lessons.number(name), (3, 5))
    assert few <= len(spots) <= many
    assert kinds.count("check") == kinds.count("solution") == len(spots)
    for number, i in enumerate(spots, start=1):
        assert kinds[i : i + 3] == ["exercise", "check", "solution"]
        assert f"### Exercise {number} · " in notebook.cells[i - 1].source
        check, solution = notebook.cells[i + 1], notebook.cells[i + 2]
        function = re.search(r"^def (\w+)\(", check.source, re.M)[1]
        assert solution.source.strip().endswith(f"{function}()")
        assert solution.metadata["jupyter"]["source_hidden"] and solution.metadata["cellView"] == "form"


@each
def test_later_cells_never_need_an_answer(name):
    answers = set()
    for c in code(LESSONS[name]):
        if "exercise" in lessons.tags(c):
            names = [node for node in ast.walk(ast.parse(c.source)) if isinstance(node, ast.Name)]
            answers |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
            answers |= {node.name for node in ast.walk(ast.parse(c.source)) if isinstance(node, ast.FunctionDef)}
        elif not {"check", "solution"} & set(lessons.tags(c)):
            used = {n.id for n in ast.walk(ast.parse(c.source)) if isinstance(n, ast.Name)}
            assert not used & (answers - {"runs", "layer", "text", "steps", "target", "doubt"}), c.id


@each
def test_outputs_are_fresh_whole_and_clean(name):
    notebook = LESSONS[name]
    assert notebook.metadata["course"]["code"] == lessons.code_hash(notebook), f"run `make outputs` ({name} changed)"
    assert "widgets" not in notebook.metadata
    for c in code(notebook):
        assert "execution" not in c.metadata and c.execution_count is None
        for output in c.outputs:
            assert output.output_type != "error", c.id
            assert output.get("name") != "stderr", (c.id, output.get("text"))
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    printed = "".join(o.get("text", "") for c in code(notebook) for o in c.outputs)
    assert "✗" not in printed
    solved = [c for c in code(notebook) if "solution" in lessons.tags(c)]
    assert all("[x]" in "".join(o.get("text", "") for o in c.outputs) for c in solved)
    assert any(c.outputs for c in code(notebook))


@each
def test_small_and_safe(name):
    text = (lessons.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    for banned in ("trust_remote_code=True", "pickle", "torch.load("):
        assert banned not in text


@each
def test_cells_are_short(name):
    cells = [c for c in code(LESSONS[name]) if not lessons.tags(c)]
    lengths = sorted(len(c.source.splitlines()) for c in cells if "plots.show(" not in c.source)
    assert lengths[len(lengths) // 2] <= 12, "mostly under ten lines"
    assert max(len(c.source.splitlines()) for c in cells) <= 40


def test_readme_map_tells_the_same_minutes():
    readme = (ROOT / "README.md").read_text()
    for name, notebook in LESSONS.items():
        minutes = re.search(r"<!-- minutes -->(.*?)<!-- /minutes -->", notebook.cells[0].source)[1]
        assert f"<!-- minutes:{lessons.number(name)} -->{minutes}<!-- /minutes -->" in readme
        assert f"notebooks/{name}.ipynb" in readme


# --- what is built in view equals what utils keeps ---


def namespace(source: str, /, **names):
    exec(source, names)
    return names


def test_lesson_02_builds_the_layer_of_utils():
    import math

    import torch.nn.functional as F

    Theirs = namespace(cell("02_lora_layer", "lora-linear").source, nn=nn, torch=torch, math=math, F=F)["LoRALinear"]
    base, x = nn.Linear(12, 7), torch.randn(5, 12)
    torch.manual_seed(0)
    theirs = Theirs(base, r=3, alpha=6)
    torch.manual_seed(0)
    ours = lora.LoRALinear(base, r=3, alpha=6)
    torch.testing.assert_close(theirs.lora_A, ours.lora_A, rtol=0, atol=0)
    for layer in (theirs, ours):
        nn.init.constant_(layer.lora_B, 0.1)
    torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=0)
    assert [n for n, p in theirs.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]


def test_lesson_02_trains_as_the_recorded_runs_do():
    import torch.nn.functional as F

    tasks, labels, rows, test_rows = forgetting.digits()
    kept = dict(tasks=tasks, labels=labels, train_rows=rows, test_rows=test_rows, torch=torch, nn=nn, F=F)
    source = cell("02_lora_layer", "reader").source.split("\ntorch.manual_seed")[0]
    train, ours = namespace(source, **kept)["train"], forgetting.reader(0)
    forgetting.train(ours, tasks["upright"][rows], labels[rows], 20, 1e-3, 0)
    theirs = train(forgetting.reader(0), "upright", 1e-3, 20)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_lesson_01_derives_the_gradients_of_utils():
    source = next(c.source for c in code(LESSONS["01_low_rank_maths"]) if "def gradients" in c.source)
    source = source.split("\ntarget =")[0]
    theirs = namespace(source, lowrank=lowrank, alpha=4)
    rng = np.random.default_rng(0)
    B, A, target = rng.standard_normal((6, 2)), rng.standard_normal((2, 5)), rng.standard_normal((6, 5))
    G = lowrank.delta(B, A, 4) - target
    for a, b in zip(theirs["gradients"](B, A, target), lowrank.gradients(B, A, 4, G), strict=True):
        np.testing.assert_allclose(a, b)


@torch.no_grad()
def test_lesson_03_computes_the_attention_of_the_model():
    model, tokenizer = models.load_encoder(profiles.get("smoke"), attn_implementation="eager")
    source = cell("03_roberta_by_hand", "heat-maps").source.split("\nwords =")[0]
    words = tokenizer("not a good film", return_tensors="pt")
    maps = namespace(source, torch=torch)["heat_maps"](model, words)
    torch.testing.assert_close(maps, torch.cat(model.roberta(**words, output_attentions=True).attentions))


def test_lesson_04_trains_with_the_arguments_of_the_recorded_runs(tmp_path):
    """Written out in the lesson, kept in utils, and used for the runs that it shows: three times the same."""
    from datasets import Dataset, DatasetDict
    from transformers import TrainingArguments

    profile = profiles.get("cpu")
    names = dict(TrainingArguments=TrainingArguments, profile=profile, training=training, workshop=tmp_path)
    shown = namespace(cell("04_roberta_sst2", "training-arguments").source, **names)["arguments"].to_dict()
    kept = training.training_arguments(profile, shown["output_dir"]).to_dict()
    rows = Dataset.from_dict(dict(sentence=["a gripping film .", "dull ."], label=[1, 0]))
    splits = DatasetDict(train=rows, validation=rows, test=rows)
    built = sentiment.build(profile, "LoRA query+value", sentiment.QV, 0)
    trainer, _ = sentiment.trainer_for(profile, splits, "LoRA query+value", *built, shown["output_dir"])
    runs = trainer.args.to_dict()
    free = {"disable_tqdm", "logging_dir", "save_only_model"}  # what is shown, and what a checkpoint holds
    shown, kept, runs = ({k: v for k, v in each.items() if k not in free} for each in (shown, kept, runs))
    assert shown == kept == runs
    recorded = sentiment.chosen(record.read("sentiment")["runs"], "LoRA query+value")
    assert shown["learning_rate"] == recorded, "the rate that validation chose"


def test_lesson_04_puts_lora_where_the_recorded_runs_do():
    from peft import LoraConfig, get_peft_model

    profile = profiles.get("smoke")
    config = namespace(cell("04_roberta_sst2", "config").source, LoraConfig=LoraConfig)["config"]
    base, _ = models.load_encoder(profile, frozen=True)
    training.set_seed(0)
    shown = get_peft_model(base, config)
    runs, _ = sentiment.build(profile, "LoRA query+value", sentiment.QV, 0)
    assert shown.peft_config["default"].to_dict() == runs.peft_config["default"].to_dict()
    for (name, one), (other_name, other) in zip(shown.named_parameters(), runs.named_parameters(), strict=True):
        assert (name, one.requires_grad) == (other_name, other.requires_grad) and torch.equal(one, other), name


def test_lesson_04_loads_what_the_recorded_runs_trained():
    """Section 3 in public calls gives, number by number, the model of `sentiment.build`."""
    import transformers
    from peft import LoraConfig, get_peft_model

    profile = profiles.get("smoke")
    names = {name: getattr(transformers, name) for name in ("AutoModelForSequenceClassification", "set_seed")}
    names |= dict(
        LoraConfig=LoraConfig, get_peft_model=get_peft_model, models=models, torch=torch, data=data, lora=lora
    )
    names["source"], names["revision"] = models.origin(profile, "encoder")
    names |= namespace(cell("04_roberta_sst2", "config").source, LoraConfig=LoraConfig) | dict(profile=profile)
    shown = namespace(cell("04_roberta_sst2", "wrap").source, **names)["model"]
    runs, _ = sentiment.build(profile, "LoRA query+value", sentiment.QV, 0)
    for (name, one), (other_name, other) in zip(shown.named_parameters(), runs.named_parameters(), strict=True):
        assert name == other_name and one.requires_grad == other.requires_grad
        assert one.dtype == other.dtype and torch.equal(one, other), name
    assert shown.training == runs.training
    assert [m.p for m in shown.modules() if isinstance(m, nn.Dropout)] == [
        m.p for m in runs.modules() if isinstance(m, nn.Dropout)
    ]


def test_lesson_04_s_recipe_is_public_calls_alone_and_tells_their_versions(tmp_path):
    """It runs with nothing of the course in reach, and what it leaves is what it trained."""
    from transformers import pipeline

    source = cell("04_roberta_sst2", "recipe").source
    assert "utils" not in source and "profile" not in source and "benchmarks" not in source
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.M))
    told = re.findall(r"(\w+) (\d+\.\d+)(?=[, .])", source.splitlines()[0])
    assert len(told) == 4
    for package, number in told:
        assert pins[package.lower()].startswith(f"{number}."), f"{package} {number}, and the course has {pins[package]}"
    splits = data.load_sentiment(profiles.get("smoke"), verbose=False)
    rows = type(splits)({name: split.select(range(32)) for name, split in splits.items()})
    base, _ = models.origin(profiles.get("smoke"), "encoder")
    options = dict(use_cpu=True, dataloader_pin_memory=False, learning_rate=2e-3)
    adapted, merged = namespace(source)["finetune"](rows, ["pan", "praise"], str(base), tmp_path, **options)
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("lora_B" in name for name in names) and any("classifier" in name for name in names)
    texts = rows["test"]["sentence"][:4]
    judge = pipeline("text-classification", model=str(tmp_path / "merged"), device="cpu")
    inputs = judge.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        want, got = (model.eval()(**inputs).logits.float() for model in (adapted, merged))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert [reply["label"] for reply in judge(texts)] == [merged.config.id2label[i] for i in want.argmax(1).tolist()]


def test_lesson_05_writes_out_the_four_bits_of_utils():
    from transformers import BitsAndBytesConfig

    source = cell("05_four_bits", "config").source.split("\nmodel, tokenizer")[0]
    shown = namespace(source, BitsAndBytesConfig=BitsAndBytesConfig, training=training)["quantisation"]
    assert shown.to_dict() == models.four_bits(skip=["classifier"]).to_dict()
    assert {"load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype"} <= set(re.findall(r"(\w+)=", source))


def test_lesson_05_derives_the_levels_and_compresses_the_constants_as_utils_does():
    source = cell("05_four_bits", "derive").source.split("\nprint(")[0]
    bell_levels = namespace(source, NormalDist=NormalDist, np=np)["bell_levels"]
    np.testing.assert_allclose(bell_levels(4), nf4.nf4_levels(), atol=3e-7)
    for bits in (2, 3, 8):
        levels = bell_levels(bits)
        assert (
            len(levels) == 2**bits
            and 0 in levels
            and (levels[0], levels[-1]) == (-1, 1)
            and (np.diff(levels) > 0).all()
        )
    absmax = np.random.default_rng(0).uniform(0.1, 0.8, 512).astype(np.float32)
    source = cell("05_four_bits", "double").source.split("\nprint(")[0]
    shown = namespace(source, np=np, nf4=nf4, absmax=absmax)
    codes, largest, offset = nf4.double_quantise(absmax)
    assert np.array_equal(shown["small"].ravel(), codes) and shown["offset"] == offset
    np.testing.assert_allclose(shown["restored"], nf4.double_dequantise(codes, largest, offset), rtol=1e-6)


def test_code_hash_sees_code_and_nothing_else():
    notebook = nbformat.from_dict(json.loads(json.dumps(LESSONS["01_low_rank_maths"])))
    before = lessons.code_hash(notebook)
    notebook.cells[0].source += "more prose"
    assert lessons.code_hash(notebook) == before
    notebook.cells[2].source += "\nx = 1"
    assert lessons.code_hash(notebook) != before


def test_outputs_are_steady_from_run_to_run():
    table = '<style>#T_0a1b2_row0 {}</style><table id="T_0a1b2"><td>T_abcdef</td></table><table id="T_99999">'
    same = '<style>#T_plan_0_row0 {}</style><table id="T_plan_0"><td>T_abcdef</td></table><table id="T_plan_1">'
    assert lessons.steady(table, "plan") == same and lessons.steady(same, "plan") == same
    assert lessons.steady("<Styler at 0x7f32466b1b90>", "plan") == "<Styler>"


@each
def test_outputs_hold_nothing_drawn_anew(name):
    for c in code(LESSONS[name]):
        for output in c.outputs:
            for kind in {"text/html", "text/plain"} & set(output.get("data", {})):
                assert lessons.steady(output.data[kind], c.id) == output.data[kind], c.id


# --- the second edition: one question a lesson, the picture first, what only draws is folded ---

SECOND = ("00", "01", "02", "03", "04", "05", "A")  # the lessons that are written anew; 06 follows
second = pytest.mark.parametrize("name", [name for name in LESSONS if lessons.number(name) in SECOND])
FOLDED = {
    "setup": "set-up",
    "drawing": "draw",
    "check": "check",
    "solution": "solution",
}  # tag, and its word in the opening


def claims(source: str) -> int:
    """How many claims a cell makes."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return sum(ast.unparse(function).rpartition(".")[2] == "claim" for function in calls)


def folding_faults(notebook) -> list[str]:
    """What is not folded as the lesson's opening says, or not said there."""
    sentences = re.split(r"(?<=[.!?])\s+", notebook.cells[0].source)
    said = next((sentence.casefold() for sentence in sentences if "folded" in sentence), "")
    found = {tag: [c for c in code(notebook) if tag in lessons.tags(c)] for tag in FOLDED}
    faults = [
        f"the opening's sentence on what is folded lacks {FOLDED[t]!r}"
        for t in found
        if found[t] and FOLDED[t] not in said
    ]
    cells = [c for tagged in found.values() for c in tagged]
    return faults + [f"{c.id} is not folded" for c in cells if not c.metadata.get("jupyter", {}).get("source_hidden")]


def drawing_faults(notebook) -> list[str]:
    """What is wrong with the cells that only draw."""
    faults = []
    for c in code(notebook):
        titled = c.source.startswith("# @title Figure · ")
        if titled != ("drawing" in lessons.tags(c)):
            faults.append(
                f"{c.id}: a cell tagged `drawing` begins with `# @title Figure · what it shows`, and no other does"
            )
        if titled:
            faults += [f"{c.id}: cellView is not form"] if c.metadata.get("cellView") != "form" else []
            faults += [f"{c.id} shows no figure"] if "plots.show(" not in c.source else []
            faults += [f"{c.id} hides a claim"] if claims(c.source) else []
            faults += [f"{c.id}: its title is too long for one line"] if len(c.source.splitlines()[0]) > 90 else []
    return faults


@second
def test_the_opening_says_what_is_folded(name):
    assert not folding_faults(LESSONS[name])


@each
def test_drawings_only_draw(name):
    assert not drawing_faults(LESSONS[name])


@second
def test_a_lesson_keeps_to_one_question(name):
    assert len(LESSONS[name].cells) <= 60
    assert sum(claims(c.source) for c in code(LESSONS[name])) <= 6


def drawn(
    source="# @title Figure · a line\nplots.show(f, 'a')", tags=("drawing",), view="form", hidden=True, opening=None
):
    """A lesson with one cell that draws."""
    fold = {"tags": list(tags), "cellView": view, "jupyter": {"source_hidden": hidden}}
    text = opening or "# 00 · A\n\nWhy.\n\nDrawings are folded; click on one."
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(source, id="line", metadata=fold)]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize(
    "planted, fault",
    [
        (drawn(), ""),
        (drawn(tags=[]), "no other does"),
        (drawn("plots.show(f, 'a')"), "begins with"),
        (drawn(view=None), "cellView"),
        (drawn("# @title Figure · a line\nax.plot(x)"), "shows no figure"),
        (drawn("# @title Figure · a line\nplots.show(f, 'a')\nclaim('x', 1, published=1)"), "hides a claim"),
        (drawn("# @title Figure · a line\nplots.show(f, 'a')\nchecks.claim('x', 1, published=1)"), "hides a claim"),
        (drawn(f"# @title Figure · {'a line ' * 12}\nplots.show(f, 'a')"), "too long"),
        (drawn(hidden=False), "line is not folded"),
        (drawn(opening="# 00 · A\n\nSolutions are folded. Drawings are not."), "lacks 'draw'"),
        (drawn(opening="# 00 · A\n\nSee the drawings."), "lacks 'draw'"),
    ],
)
def test_planted_drawings(planted, fault):
    found = drawing_faults(planted) + folding_faults(planted)
    assert bool(found) == bool(fault) and all(fault in line for line in found)
