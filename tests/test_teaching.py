"""What the instructor's texts say of the lessons is so: sections, minutes, figures, wrong answers, code, numbers; issue forms are valid."""

import ast
import importlib.util
import itertools
import math
import re

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from answers import ANSWERS
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tools import lessons, prefetch
from utils import ROOT, adapters, data, lora, lowrank, models, nf4, planner, profiles, training

DOCS, FORMS = ROOT / "docs", ROOT / ".github" / "ISSUE_TEMPLATE"
TEACHING, GLOSSARY = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("teaching", "glossary"))
QUESTIONS, KEY = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("assessment", "assessment-key"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
LESSONS = {lessons.number(path): nbformat.read(path, as_version=4) for path in lessons.lessons()}
STEMS = {lessons.number(path): path.stem for path in lessons.lessons()}
each = pytest.mark.parametrize("number", LESSONS)


def sections(number: str) -> dict[str, str]:
    """{"1 · its heading": all its cells' sources} of a lesson."""
    found, name = {}, ""
    for cell in LESSONS[number].cells:
        if cell.cell_type == "markdown" and (heading := re.match(r"## (.+)", cell.source)):
            name = heading[1]
        found[name] = found.get(name, "") + "\n" + cell.source
    return {name: text for name, text in found.items() if re.match(r"\d", name)}


def part(text: str, heading: str) -> str:
    """What stands under a heading of a page, up to the next of its level or above."""
    (begin,) = re.finditer(rf"^(#+) {re.escape(heading)}.*$", text, re.M)
    end = re.search(rf"^#{{1,{len(begin[1])}}} ", text[begin.end() :], re.M)
    return text[begin.end() : begin.end() + end.start()] if end else text[begin.end() :]


def title(number: str) -> str:
    return LESSONS[number].cells[0].source.splitlines()[0][2:]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows, heads and rulers left out."""
    lines = [line.strip()[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in line] for line in lines]
    rulers = [i for i, line in enumerate(lines) if set("".join(line)) <= set("-: ")]
    return [line for i, line in enumerate(lines) if i not in rulers and i + 1 not in rulers]


# --- teaching.md: sections and minutes ---


def machine(number: str) -> dict[str, str]:
    """{section number: "3 min"} as stamped."""
    return dict(re.findall(rf"<!-- machine:{number}\.(\d+) -->(.*?)<!-- /machine -->", part(TEACHING, title(number))))


def bounds(told: str) -> tuple[float, float]:
    """(least, most) minutes of what was rounded up to "30 s" or "3 min"."""
    limit, unit = re.fullmatch(r"(\d+) (s|min)", told).groups()
    if unit == "s":
        return {"10": (0, 1 / 6), "30": (1 / 6, 0.5)}[limit]
    return (0.5 if limit == "1" else int(limit) - 1, int(limit))


@each
def test_a_lesson_s_table_names_its_sections(number):
    table = [row for row in rows(part(TEACHING, title(number))) if "machine:" in row[1]]
    assert [row[0] for row in table] == list(sections(number))
    assert [f"machine:{number}.{i} " in row[1] for i, row in enumerate(table, start=1)] == [True] * len(table)


@each
def test_estimates_add_up_to_the_lesson_s_own(number):
    (whole,) = re.findall(r"about (\d+) to read", LESSONS[number].cells[0].source)
    table = [row for row in rows(part(TEACHING, title(number))) if "machine:" in row[1]]
    assert sum(int(re.fullmatch(r"(\d+) min", row[2])[1]) for row in table) == int(whole)
    assert f"about {whole} min" in next(line for line in TEACHING.splitlines() if line.startswith(f"| [{number}]"))


@each
def test_machine_minutes_agree_with_the_readme(number):
    (minutes,) = re.findall(rf"<!-- minutes:{number} -->(.*?)<!-- /minutes -->", README)
    assert re.findall(rf"<!-- minutes:{number} -->(.*?)<!-- /minutes -->", TEACHING) == [minutes]
    whole = int(re.fullmatch(r"under (\d+)", minutes)[1])
    least, most = zip(*map(bounds, machine(number).values()), strict=True)
    assert sum(least) < whole and max(most) <= whole


@pytest.mark.parametrize(("heading", "hours"), [("Half a day", 3.5), ("A full day", 6.5)])
def test_a_day_adds_up_and_leaves_the_machine_its_time(heading, hours):
    clock = 0
    for at, minutes, what, where in rows(part(TEACHING, heading)):
        assert at == f"{clock // 60}:{clock % 60:02}", what
        clock += int(minutes)
        needed = 0
        for number, first, last in re.findall(r"(\d\d) §(\d)(?:–§(\d))?", where):
            for section in range(int(first), int(last or first) + 1):
                needed += bounds(machine(number)[str(section)])[1]
        assert needed <= int(minutes), f"{what}: the machine may take {needed} minutes"
    assert clock == 60 * hours


def test_the_rules_of_the_schedules_see_faults():
    steps = [bounds(told) for told in ("10 s", "30 s", "1 min", "2 min")]
    assert steps == sorted(steps) and all(one[1] == other[0] for one, other in itertools.pairwise(steps))
    for wrong in ("", "under 3 min", "20 s"):
        with pytest.raises((AttributeError, KeyError)):
            bounds(wrong)
    assert rows("| a | b |\n|---|---|\n| 1 | 2 |") == [["1", "2"]]


def test_stamping_times_sections_and_rounds_up():
    cells = [nbformat.v4.new_markdown_cell("# 00 · A title"), nbformat.v4.new_code_cell("start()")]
    for heading, count in (("## 1 · One", 2), ("## 2 · Two", 2), ("### Exercise 1", 1), ("## What you now know", 0)):
        cells += [nbformat.v4.new_markdown_cell(heading), *(nbformat.v4.new_code_cell("x") for _ in range(count))]
    notebook = nbformat.v4.new_notebook(cells=cells)
    times = {i: 7.0 for i, cell in enumerate(cells) if cell.cell_type == "code"}
    assert lessons.by_section(notebook, times) == {"1": 14.0, "2": 21.0}
    seconds = {"1": 10.0, "2": 10.1, "3": 30.1, "4": 60.1}
    text = "<!-- minutes:00 -->?<!-- /minutes -->"
    text += "".join(f"<!-- machine:00.{number} -->?<!-- /machine -->" for number in seconds)
    stamped = lessons.stamp_teaching(text, "00", lessons.Result(notebook, 61.0, 7.0, "", sections=seconds))
    assert re.findall(r" -->([^<]+)<", stamped) == ["under 2", "10 s", "30 s", "1 min", "2 min"]
    with pytest.raises(ValueError, match=r"machine:00\.5"):
        lessons.stamp_teaching(text, "00", lessons.Result(notebook, 1.0, 1.0, "", sections={"5": 1.0}))


# --- teaching.md: figures, wrong answers, references ---


@each
def test_every_figure_has_its_words(number):
    drawn = {c.id for c in LESSONS[number].cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})}
    spoken = re.findall(r"<!-- figure:(\w+) (\S+) -->", part(TEACHING, title(number)))
    assert sorted(spoken) == sorted((number, cell) for cell in drawn)
    for line in part(TEACHING, title(number)).splitlines():
        if "<!-- figure:" in line:
            assert 25 <= len(line.split()) <= 130, line[:60]


@each
def test_wrong_answers_are_those_that_the_checks_reject(number):
    """Each answer quoted is (part of) one in answers.py, which exercised.py has proven to be rejected."""
    tried = {name[2:]: answers["wrong"] for name, answers in ANSWERS[STEMS[number]].items()}
    table = [row for row in rows(part(TEACHING, title(number))) if row[0].isdigit()]
    for exercise, quoted, *_ in table:
        (quoted,) = re.findall(r"`(.+)`", quoted)
        assert any(quoted in re.sub(r"\s+", " ", wrong) for wrong in tried[exercise]), quoted
    assert {row[0] for row in table} == set(tried), "an exercise without a wrong answer"


def test_what_else_is_named_exists():
    """Links, commands and numbered sections are held by test_policy.py for every document."""
    named = re.findall(r"topics? \*([^*]+)\*", TEACHING + GLOSSARY)
    assert len(named) > 5 and set(named) <= {row["topic"] for row in data.read_faq()}
    (systems,) = re.findall(r'FOR="(.+?)"', TEACHING)
    assert [prefetch.target(name) for name in systems.split()]


# --- teaching.md: a trained model for whoever cannot train ---


def fences(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


FALLBACK = fences(part(TEACHING, "A laptop that cannot train"))


def test_the_checkpoint_loads_as_told(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    names = {}
    exec(FALLBACK[0].replace("print(", "shown = ("), names)
    assert names["shown"].argmax(1).tolist() == [data.LABELS.index("positive"), data.LABELS.index("negative")]
    with pytest.raises(ValueError, match="made for"):
        adapters.load_adapter(names["model"], ROOT / "data" / "adapters" / "sentiment", "roberta-base")


def test_the_checkpoint_fits_the_layers_wrapped_by_hand():
    from transformers.models.roberta.modeling_roberta import RobertaSelfAttention

    profile = profiles.get("smoke")
    sentences = [sentence for sentence, _ in data.EXAMPLES]
    base, tokenizer = models.load_encoder(profile, frozen=True)
    theirs = adapters.load_adapter(base, ROOT / "data" / "adapters" / "sentiment", profile.encoder)
    source = {c.id: c.source for c in LESSONS["03"].cells}
    names = dict(
        lora=lora, load_file=load_file, RobertaSelfAttention=RobertaSelfAttention, models=models, profile=profile
    )
    for cell, wanted in (("kind", "kind"), ("wrap", "wrap_attention"), ("freeze", "freeze")):
        tree = ast.parse(source[cell])
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == wanted]
        exec(compile(tree, cell, "exec"), names)
    names["model"], _ = models.load_encoder(profile, seed=99)
    names["wrap_attention"](names["model"], r=8, alpha=16)
    names["freeze"](names["model"])
    exec(FALLBACK[2], names)
    ours = training.predict(names["model"], tokenizer, sentences)
    np.testing.assert_allclose(ours, training.predict(theirs, tokenizer, sentences), atol=1e-5)


def test_lesson_04_goes_on_with_the_checkpoint(tmp_path):
    """Sections 1 to 3, the page's cell, section 4 without its training, then judging and merging."""
    notebook, cells, number = nbformat.from_dict(dict(LESSONS["04"])), [], 0
    keep = {"imports", "training-arguments", "training-run", "save"}
    for cell in (nbformat.from_dict(dict(c)) for c in LESSONS["04"].cells):
        if cell.cell_type == "markdown":
            heading = re.match(r"## (\d)", cell.source)
            number = int(heading[1]) if heading else number
            if heading and number == 4:
                cells.append(nbformat.v4.new_code_cell(FALLBACK[1]))
            continue
        if cell.id == "training-run":
            cell.source, changed = re.subn(r"^trainer\.train\(\)$", "# trainer.train()", cell.source, flags=re.M)
            assert changed == 1
        if cell.id in keep or (number in (0, 1, 2, 3, 5) and "drawing" not in lessons.tags(cell)):
            cells.append(cell)
    proof = "assert (answers == right).mean() > 0.8, 'the checkpoint was not used'"
    cells.append(nbformat.v4.new_code_cell(proof))
    notebook.cells = cells
    result = lessons.execute(notebook, "smoke", COURSE_BUILD=str(tmp_path))
    assert not result.error, result.error


# --- the questions and their key ---


def question(number: int) -> tuple[str, str]:
    """Its text and its answer."""
    return tuple(part(page, f"{number} · ") for page in (QUESTIONS, KEY))


def results(number: int) -> list[str]:
    """What the key has in bold."""
    return re.findall(r"\*\*(.+?)\*\*", question(number)[1])


def test_questions_key_and_marks_agree():
    headings = re.findall(r"^## (\d+ · .+) \((\d) marks\)$", QUESTIONS, re.M)
    assert re.findall(r"^## (\d+ · .+) \((\d) marks\)$", KEY, re.M) == headings and len(headings) == 12
    marks = [int(mark) for _, mark in headings]
    assert sum(marks) == 60 and "There are 60 marks" in QUESTIONS
    table = rows(part(KEY, "Where the questions come from"))
    assert [(row[0], int(row[1])) for row in table] == [(str(i), mark) for i, mark in enumerate(marks, start=1)]
    assert sum("fault" in row[3] for row in table) >= 3
    worth = {"½": 0.5, "1½": 1.5, "½ each": 1, "½ each, at most 1": 1}
    for number, mark in enumerate(marks, start=1):
        answer = re.sub(r"```.*?```", "", question(number)[1], flags=re.S)
        given = re.findall(r"\((\d|1?½(?: each(?:, at most 1)?)?)(?:;[^)]*)?\)", answer)
        assert sum(worth.get(g) or float(g) for g in given) == mark, (number, given)


def test_every_result_of_the_key_is_computed_somewhere():
    source = (ROOT / "tests" / "test_teaching.py").read_text(encoding="utf-8")
    for number in range(1, 13):
        assert not results(number) or f"results({number})" in source


def test_2_spectra():
    text, answer = question(2)
    weight, update = (np.array(list(map(float, row[1:]))) for row in rows(text))
    assert len(weight) == len(update) == 6 and min(*weight, *update) > 0, "full rank, both"
    shares = [lowrank.tail_error(values, 2) for values in (weight, update)]
    assert "15 per cent" in text and f"{shares[1]:.0%}" == "15%"
    for squares in (weight**2, update**2):
        assert f"√({squares[2:].sum():.4g} / {squares.sum():.4g})" in answer
    assert f"{shares[0] ** 2:.2f} and {shares[1] ** 2:.3f} are shares" in answer
    random = np.random.default_rng(0)
    (u, _), (v, _) = (np.linalg.qr(random.standard_normal((6, 6))) for _ in range(2))
    target, ends = u * update @ v.T, []
    for alpha in (4, 2):  # "alpha changes the way there, not the end"
        B, A = np.zeros((6, 2)), random.standard_normal((2, 6)) / 2
        for _ in range(4000):
            dB, dA = lowrank.gradients(B, A, alpha, lowrank.delta(B, A, alpha) - target)
            B, A = B - 0.05 * dB, A - 0.05 * dA
        ends.append(((lowrank.delta(B, A, alpha) - target) ** 2).sum() / 2)
    np.testing.assert_allclose(ends, (update[2:] ** 2).sum() / 2, rtol=1e-3)
    assert results(2) == [f"{share:.2f}" for share in shares] + [f"{ends[0]:.3f}"]


def first_step(r: int, alpha: float) -> float:
    """How far one step of AdamW moves a layer's answers, as a mean over draws."""
    moves = []
    for seed in range(20):
        torch.manual_seed(seed)
        base = nn.Linear(300, 1200)
        layer, x, y = lora.LoRALinear(base, r, alpha), torch.randn(1, 300), torch.randn(1, 1200)
        optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=1e-3)
        F.mse_loss(layer(x), y).backward()
        optimizer.step()
        moves.append((layer(x) - base(x)).norm().item())
    return float(np.mean(moves))


def test_3_counting_and_scaling():
    d_out, d_in, r, alpha = 1200, 300, 6, 12
    text = question(3)[0]
    assert all(told in text for told in ("1,200 rows and 300 columns", "r = 6 and alpha = 12", "ten blocks", "r = 24"))
    few = lowrank.lora_parameters(d_out, d_in, r)
    base = nn.Linear(d_in, d_out)
    layer = lora.LoRALinear(base, r, alpha)
    assert few == layer.lora_A.numel() + layer.lora_B.numel()
    assert lora.LoRALinear(base, 24, 48).scaling == layer.scaling
    step = first_step(6, 12)
    assert first_step(24, 12) == pytest.approx(step, rel=0.1) and first_step(24, 48) == pytest.approx(4 * step, rel=0.1)
    told = [few, 10 * few, lowrank.break_even_rank(d_out, d_in), layer.scaling, 48, 12]
    assert results(3) == [f"{x:,.0f}" for x in told]


def test_4_the_first_step():
    told = []
    for a_zero, b_zero in ((False, True), (True, False), (False, False), (True, True)):
        torch.manual_seed(0)
        base = nn.Linear(12, 8)
        layer, x, y = lora.LoRALinear(base, 3, 3), torch.randn(64, 12), torch.randn(64, 8)
        with torch.no_grad():
            layer.lora_A.zero_() if a_zero else layer.lora_A.normal_()
            layer.lora_B.zero_() if b_zero else layer.lora_B.normal_()
        assert torch.equal(layer(x), base(x)) == (a_zero or b_zero)
        optimizer, losses, moved = torch.optim.SGD([layer.lora_A, layer.lora_B], lr=0.01), [], None
        for _ in range(50):
            before = layer.lora_A.clone(), layer.lora_B.clone()
            losses.append(F.mse_loss(layer(x), y))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
            if moved is None:
                moved = [not torch.equal(*pair) for pair in zip(before, (layer.lora_A, layer.lora_B), strict=True)]
        told.append({(False, True): "B", (True, False): "A", (True, True): "Both", (False, False): "neither"}[*moved])
        assert (losses[-1] < losses[0]) == any(moved)
    assert results(4) == told


class Shapes(TorchDispatchMode):
    """The shapes of all that is computed."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.seen = [*getattr(self, "seen", []), tuple(getattr(out, "shape", ()))]
        return out


def test_5_the_faults_of_the_layer():
    layers = {}
    for which, text in zip(("wrong", "right"), question(5), strict=True):
        names = dict(nn=nn, F=F, torch=torch, math=math)
        exec(fences(text)[0], names)
        layers[which] = names["LoRALinear"]
    torch.manual_seed(0)
    base, x = nn.Linear(768, 640), torch.randn(5, 768)
    formed, start, moved = {}, {}, {}
    for which, Layer in layers.items():
        layer = Layer(base, 8, 16)
        start[which] = (layer(x) - base(x)).abs().max().item()
        moved[which] = layer.lora_A.std().item()
        with Shapes() as shapes:
            layer(x).square().mean().backward()
        made = [p for p in layer.parameters() if p.shape == (640, 768)]
        formed[which] = any(shape == (640, 768) for shape in shapes.seen)
        assert all(p.grad is None for p in made), "frozen, as the question says"
        assert layer.lora_B.grad.any()
    assert formed == {"wrong": True, "right": False}
    assert start["wrong"] > 0.1
    factor = math.sqrt(3 * 768)
    assert moved["wrong"] / moved["right"] == pytest.approx(factor, rel=0.05)
    assert results(5) == [f"{start['right']:.0f}", f"{factor:.0f}"]


def test_6_what_a_token_takes():
    from transformers import RobertaConfig, RobertaModel

    scores, values = torch.tensor([2.0, 1, 0]), torch.tensor([-2.0, 3, 1])
    weights = scores.softmax(0)
    padded = torch.cat([scores, torch.zeros(2)])
    masked = padded.masked_fill(torch.tensor([0, 0, 0, 1, 1]) == 1, -math.inf).softmax(0)
    assert torch.equal(masked[:3], weights) and not masked[3:].any()

    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = RobertaModel(RobertaConfig(**sizes, attn_implementation="eager"), add_pooling_layer=False).eval()
    ids, told = torch.tensor([[5, 6, 7]]), []
    before = model(ids, output_attentions=True, output_hidden_states=True)
    for target in ("value", "query"):
        layers = [model.get_submodule(name) for name in lora.inject(model, [target], r=2, alpha=4)]
        for layer in layers:
            nn.init.normal_(layer.lora_B)
        after = model(ids, output_attentions=True, output_hidden_states=True)
        told.append("can" if not torch.equal(after.attentions[0], before.attentions[0]) else "cannot")
        told.append("can" if not torch.equal(after.hidden_states[1], before.hidden_states[1]) else "cannot")
        assert not torch.equal(after.attentions[1], before.attentions[1]), "the next block's inputs have changed"
        for layer in layers:
            layer.enabled = False
    shares = [f"{p:.3f}" for p in (*weights, padded.softmax(0)[0], masked[0])]
    assert results(6) == [", ".join(shares[:3]), minus(f"{weights @ values:.3f}"), *told, *shares[3:]]


def test_7_the_head_that_was_not_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = iter(range(100))

    def build_model():
        """A frozen body with LoRA in it and a new head, other than the last one's; as the question describes it."""
        torch.manual_seed(0)
        model = nn.ModuleDict(dict(body=nn.Sequential(nn.Linear(20, 16), nn.Tanh()), classifier=nn.Linear(16, 4)))
        torch.manual_seed(next(made))
        lora.inject(model, ["body.0"], r=2, alpha=4)
        nn.init.normal_(model["classifier"].weight)
        model["classifier"].requires_grad_(True)
        return model

    def answers(model):
        return model["classifier"](model["body"](x))

    torch.manual_seed(1)
    x = torch.randn(400, 20)
    right = (x[:, 0] > 0) + 2 * (x[:, 1] > 0)
    model = build_model()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(answers(model), right).backward()
        optimizer.step()
    trained = answers(model)
    assert (trained.argmax(1) == right).float().mean() > 0.85

    def reload(code):
        names = dict(model=model, save_file=save_file, load_file=load_file, build_model=build_model, lora=lora)
        exec(code, names)
        return answers(names["again"])

    faulty, sound = (fences(text)[0] for text in question(7))
    scores = [(reload(faulty).argmax(1) == right).float().mean().item() for _ in range(3)]
    assert len(set(scores)) == 3 and max(scores) < 0.7, scores
    difference = max((reload(sound) - trained).abs().max().item() for _ in range(3))
    assert results(7) == [f"{difference:.0f}"]


def test_8_what_peft_counts(capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048)
    config = RobertaConfig(vocab_size=20_000, max_position_embeddings=514, type_vocab_size=1, num_labels=3, **sizes)
    with torch.device("meta"):
        model = RobertaForSequenceClassification(config)
        model = get_peft_model(model, LoraConfig("SEQ_CLS", r=16, target_modules=["query"]))
    model.print_trainable_parameters()
    assert capsys.readouterr().out.strip() in question(8)[0]
    counts, everything = lora.count_parameters(model), sum(p.numel() for p in model.parameters())
    share = counts.lora / (counts.lora + counts.head)
    told = [f"{counts.lora:,}", f"{counts.head:,}", f"{100 * share:.0f}", f"{everything - counts.total:,}"]
    assert results(8) == told
    assert 0.003 < counts.lora / counts.total < 0.004, "about a third of a per cent"


def test_9_what_may_be_reported():
    runs = [list(map(float, row)) for row in rows(question(9)[0])]
    assert len(runs) == 5
    _, _, reported = max(runs, key=lambda run: run[1])
    luckiest = max(run[2] for run in runs)
    assert luckiest > reported and f"{100 * luckiest:.1f} %" in question(9)[0] and f"{luckiest}" in question(9)[1]
    ours, full = (
        list(map(float, re.search(rf"{name}: ([\d., ]+\d)", question(9)[0])[1].split(", ")))
        for name in ("LoRA", "full fine-tuning")
    )
    assert ours[0] == reported and f"{100 * full[0]:.1f} %" in question(9)[0]
    spread = max(ours) - min(ours)
    assert abs(np.mean(ours) - np.mean(full)) < spread / 10, "far smaller than the spread"
    assert results(9) == [f"{reported}", f"{np.mean(ours):.4f}", f"{np.mean(full):.4f}", f"{spread:.3f}"]


def minus(text: str) -> str:
    """Printed as in prose, with a minus sign."""
    return text.replace("-", "−")


def test_10_a_block_of_four():
    text, answer = question(10)
    levels = nf4.nf4_levels()
    shown = [float(x.replace("−", "-")) for x in re.search(r"to four places: (.+?)\.\n", text)[1].split(", ")]
    np.testing.assert_allclose(shown, levels, atol=5.1e-5)
    block = np.array([0.06, -0.24, 0.15, -0.02], np.float32)
    assert minus("0.06, -0.24, 0.15, -0.02") in text
    back = nf4.dequantise(*nf4.quantise(block, levels, 4), levels, block.shape, 4)
    assert back[1] == block[1] and (back != block).sum() == 3
    size = 3_000_000_000
    plain, double = (nf4.bits_per_parameter(size, block=32, double=d) for d in (False, True))
    saved = size * (plain - double) / 8 / 1e9
    assert results(10) == [minus(f"{x:.4f}") for x in back] + [f"{plain:.0f}", f"{double:.3f}", f"{saved:.2f}"]
    assert f"{8 * saved:.2f} GB" in answer, "a byte forgotten"
    tempting = levels[np.searchsorted(levels, 0.15 / 0.24)] * 0.24
    assert f"({tempting:.4f})" in answer or f"({tempting:.3f})" in answer


def test_11_labels():
    text, answer = question(11)
    end = 2

    class Tokenizer:
        eos_token, pad_token_id = "end", end

    names = dict(tokenizer=Tokenizer(), torch=torch)
    exec(fences(text)[0], names)
    row, longer = dict(prompt_ids=[5, 6, 7], answer_ids=[8, 9, end]), dict(prompt_ids=[4] * 5, answer_ids=[4, 4, end])
    faulty = names["collate"]([row, longer])["labels"][0].tolist()
    assert len(faulty) == 8 and end not in faulty and faulty[:3] == [5, 6, 7], "both faults, as told"
    names = {}
    exec(fences(answer)[0], names)
    sound = names["labels_for"](row["prompt_ids"], row["answer_ids"], 8)
    assert results(11) == [minus(", ".join(map(str, labels))) for labels in (faulty, sound)]


def test_12_the_card():
    text = question(12)[0]
    limit, fits = planner.usable(24), []
    assert f"{limit / 1e9:.1f} GB" in text
    for name, *told in rows(text):
        bits, checkpointing = int(name.split()[0]), "checkpointing" in name
        plan = planner.plan(
            "llama-2-13b", bits=bits, seq=1024, batch=4, checkpointing=checkpointing, chunked_loss=True
        ).training
        parts = plan.weights, plan.adapter + plan.gradients + plan.optimiser, plan.activations
        assert told == [f"{x / 1e9:.1f}" for x in parts], name
        if 24 in plan.cards:
            fits.append(f"{plan.total / 1e9:.1f}")
        else:
            assert (plan.weights if bits == 16 else plan.activations) > limit, "the part that the key blames"
    assert len(fits) == 1 and results(12) == [*fits, f"{math.log(8):.2f}"]


# --- issue forms and the pull request ---

NEEDED = {"markdown": {"value"}, "input": {"label"}, "textarea": {"label"}}
NEEDED |= {"dropdown": {"label", "options"}, "checkboxes": {"label", "options"}}
KEYS = {"name", "description", "body", "labels", "title", "assignees"}


def faults(form: dict) -> list[str]:
    """What GitHub's rules for issue forms would refuse."""
    told = [f"no {key}" for key in ("name", "description", "body") if not form.get(key)]
    told += [f"unknown key {key}" for key in set(form) - KEYS]
    fields = [field for field in form.get("body", []) if field.get("type") != "markdown"]
    told += [] if fields else ["nothing to fill in"]
    for field in form.get("body", []):
        kind, attributes = field.get("type"), field.get("attributes", {})
        told += [] if kind in NEEDED else [f"{kind} is no type"]
        told += [f"{field.get('id')}: no {key}" for key in NEEDED.get(kind, set()) - set(attributes)]
        options = attributes.get("options", [])
        if kind == "dropdown":
            told += [f"{option!r} is no word" for option in options if not isinstance(option, str)]
            told += ["an option twice, or a reserved one"] if len({*options, "None"}) <= len(options) else []
        if kind == "checkboxes":
            told += ["a box without a label" for box in options if not box.get("label")]
    for values in ([f.get("id") for f in fields], [f.get("attributes", {}).get("label") for f in fields]):
        told += ["an id or a label twice"] if len(set(values)) < len(values) else []
    return told + [f"a bad id: {f['id']}" for f in fields if not re.fullmatch(r"[\w-]+", f.get("id", "x"))]


def load(name: str) -> dict:
    return yaml.safe_load((FORMS / name).read_text(encoding="utf-8"))


def test_the_rules_refuse_bad_forms():
    good = load("bug.yml")
    assert not faults(good)
    for spoil in (
        lambda form: form.pop("description"),
        lambda form: form.update(about="the name of older templates"),
        lambda form: form["body"][1].pop("attributes"),
        lambda form: form["body"][1].update(type="text"),
        lambda form: form["body"][1].update(id="two words"),
        lambda form: form["body"][2]["attributes"]["options"].append("all lessons"),
        lambda form: form["body"][2]["attributes"]["options"].append(True),
        lambda form: form["body"][2].update(id="doctor"),
        lambda form: form.update(body=form["body"][:1]),
    ):
        form = load("bug.yml")
        spoil(form)
        assert faults(form)


@pytest.mark.parametrize("name", ["bug.yml", "lost.yml"])
def test_a_form_is_valid_and_names_the_lessons_there_are(name):
    form = load(name)
    assert not faults(form)
    by_id = {field.get("id"): field.get("attributes", {}) for field in form["body"]}
    named = re.findall(r"^\| \[((?:\d\d|A) · [^\]]+)\]", README, re.M)
    assert [o for o in by_id["lesson"]["options"] if " · " in o] == named and len(named) == len(LESSONS)
    if name == "bug.yml":
        assert by_id["profile"]["options"] and set(by_id["profile"]["options"]) == set(profiles.PROFILES)
        (module,) = re.findall(r"`python -m ([\w.]+)`", by_id["doctor"]["description"])
        assert importlib.util.find_spec(module)
        assert re.search(r"^doctor:", (ROOT / "Makefile").read_text(), re.M)
        assert [field["id"] for field in form["body"] if field.get("validations", {}).get("required")] == [
            "doctor", "lesson", "expected", "happened", "profile", "runs"
        ]  # fmt: skip


def test_other_issues_stay_possible_and_links_lead_somewhere():
    assert load("config.yml") == {"blank_issues_enabled": True}
    for file in [*FORMS.glob("*.yml"), ROOT / ".github" / "pull_request_template.md"]:
        for target in re.findall(r"\]\((.+?)\)", file.read_text(encoding="utf-8")):
            assert (ROOT / target.removeprefix("../blob/main/")).exists() and target.startswith("../blob/main/")


def test_the_pull_request_asks_for_what_contributing_asks():
    asked = (ROOT / ".github" / "pull_request_template.md").read_text(encoding="utf-8")
    rules = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for named in re.findall(r"`([^`]+)`", asked):
        assert f"{named}" in rules, named
