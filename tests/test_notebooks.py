"""What house style asks of every lesson, as tests; and what a lesson builds in view equals what utils keeps."""

import ast
import json
import re

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from tools import lessons
from utils import ROOT, lora, lowrank, profiles, training

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
    few, many = {"00": (1, 1), "A": (1, 3)}.get(lessons.number(name), (3, 5))
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


def namespace(source: str, **names):
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


def test_lesson_01_derives_the_gradients_of_utils():
    source = next(c.source for c in code(LESSONS["01_low_rank_maths"]) if "def gradients" in c.source)
    source = source.split("\ntarget =")[0]
    theirs = namespace(source, lowrank=lowrank, alpha=4)
    rng = np.random.default_rng(0)
    B, A, target = rng.standard_normal((6, 2)), rng.standard_normal((2, 5)), rng.standard_normal((6, 5))
    G = lowrank.delta(B, A, 4) - target
    for a, b in zip(theirs["gradients"](B, A, target), lowrank.gradients(B, A, 4, G), strict=True):
        np.testing.assert_allclose(a, b)


def test_lesson_04_trains_with_the_arguments_of_the_recorded_runs(tmp_path):
    from transformers import TrainingArguments

    profile = profiles.get("cpu")
    names = dict(TrainingArguments=TrainingArguments, profile=profile, training=training, workshop=tmp_path)
    shown = namespace(cell("04_roberta_sst2", "training-arguments").source, **names)["arguments"].to_dict()
    kept = training.training_arguments(profile, shown["output_dir"]).to_dict()
    only_display = {"disable_tqdm", "logging_dir"}
    assert {k: v for k, v in shown.items() if k not in only_display} == {
        k: v for k, v in kept.items() if k not in only_display
    }


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
