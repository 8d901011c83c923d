"""Profiles, checks and claims, figures, meters, metrics, and adapters on disk."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from IPython import display as ipython
from IPython.display import Markdown
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import utils
from utils import adapters, assets, checks, models, plots, profiles, training

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No switch from outside; what a test sets is undone."""
    for name in ("COURSE_PROFILE", "COURSE_STRICT", "COURSE_ENFORCE", "COURSE_BUILD", "COURSE_PRECISION"):
        monkeypatch.setenv(name, "")


# --- importing and profiles ---


def test_importing_utils_costs_nothing():
    code = "import sys, utils; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'transformers')))"
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, check=True)
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.2


def test_the_profile_is_named_by_argument_or_environment(monkeypatch):
    assert profiles.get().name == "cpu"
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    assert profiles.get().name == "smoke" and profiles.get("gpu").name == "gpu"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_an_unknown_profile(monkeypatch, how):
    monkeypatch.setenv("COURSE_PROFILE", "cuda")
    with pytest.raises(ValueError, match=r"no profile 'cuda'; the course has smoke, cpu, gpu\. Set COURSE_PROFILE"):
        profiles.get("cuda" if how == "argument" else None)


def test_local_profiles_are_offline_and_pinned():
    for profile in profiles.PROFILES.values():
        local = profile.encoder in assets.ASSETS and profile.decoder in assets.ASSETS
        assert profile.offline == local == (profile.sentiment == "movies")
        for revision in (profile.encoder_revision, profile.decoder_revision):
            assert local or re.fullmatch("[0-9a-f]{40}", revision)


def test_start_applies_the_profile_and_says_so(monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    profiles.apply(profiles.get("gpu"))
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert utils.start() is profiles.get("smoke")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert capsys.readouterr().out == f"Profile smoke: {profiles.get().summary}.\n"


def spin_count(code: str, **environment) -> str:
    """What GNU's OpenMP runtime says of its waiting once `code` has run in a fresh process."""
    clean = {name: text for name, text in os.environ.items() if name not in (*profiles.WAITING, "OMP_WAIT_POLICY")}
    env = clean | dict(OMP_DISPLAY_ENV="VERBOSE", COURSE_PROFILE="smoke") | environment
    told = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=utils.ROOT, check=True
    )
    return re.search(r"GOMP_SPINCOUNT = '(\w+)'", told.stderr)[1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch brings another OpenMP runtime")
def test_openmp_waits_in_passing_unless_the_reader_says_otherwise():
    begin = "import utils; utils.start(); import torch"
    assert spin_count(begin) == profiles.WAITING["GOMP_SPINCOUNT"] == "1000"
    assert spin_count("import benchmarks.lora_layer") == "1000"
    assert spin_count("import torch") not in ("1000", "0")
    assert spin_count(begin, GOMP_SPINCOUNT="77") == "77"
    assert spin_count(begin, OMP_WAIT_POLICY="ACTIVE") not in ("1000", "0")


def test_start_says_when_it_comes_after_torch(monkeypatch, capsys):
    for name in (*profiles.WAITING, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    utils.start()
    assert "torch was loaded before utils.start()" in capsys.readouterr().out
    utils.start()  # the setting stands now, for what is started from here
    assert "torch was loaded" not in capsys.readouterr().out


def test_precision_can_be_forced(monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "fp32")
    assert training.compute_dtype() == torch.float32
    monkeypatch.setenv("COURSE_PRECISION", "bf16")
    assert training.compute_dtype() == torch.bfloat16
    monkeypatch.setenv("COURSE_PRECISION", "half")
    with pytest.raises(ValueError, match="COURSE_PRECISION is 'half'; set it to fp32 or bf16"):
        training.precision()


def test_build_folder_can_be_moved(monkeypatch, tmp_path):
    assert profiles.get().build == utils.ROOT / "build"
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    assert profiles.get().build == tmp_path


# --- check ---


def right():
    assert 1 + 1 == 2


def wrong():
    raise AssertionError("look at the sign")


def silent():
    raise AssertionError


def broken():
    return {}["rank"]


@pytest.mark.parametrize(
    ("test", "passes", "printed"),
    [
        (right, True, "[x] Rank\n"),
        (wrong, False, "[ ] Rank: look at the sign\n"),
        (silent, False, "[ ] Rank: not yet\n"),
        (broken, False, "[ ] Rank: your answer raised KeyError: 'rank'\n"),
    ],
)
def test_check(test, passes, printed, capsys, monkeypatch):
    again = checks.check("Rank")(test)
    assert capsys.readouterr().out == printed  # it runs where it is defined
    assert again() is None  # or every check would end a notebook cell with True
    assert again.passed is passes and capsys.readouterr().out == printed
    monkeypatch.setenv("COURSE_STRICT", "1")
    if passes:
        again()
    else:
        with pytest.raises(checks.CheckFailed, match=r"^Rank: "):
            again()


def test_check_looks_at_the_answer_of_the_moment(capsys):
    answer = SimpleNamespace(r=0)

    @checks.check("Rank")
    def again():
        if answer.r != 8:  # an assert would have pytest's own words added
            raise AssertionError("count the columns")

    assert again.passed is False
    answer.r = 8
    again()
    assert again.passed is True
    assert capsys.readouterr().out == "[ ] Rank: count the columns\n[x] Rank\n"


# --- claim ---


@pytest.mark.parametrize(
    ("measured", "options", "holds", "told"),
    [
        (0.84, dict(expect=(0.83, 0.9)), True, "measured 0.84 · expected 0.83 to 0.9"),
        (0.83, dict(expect=(0.83, 0.9)), True, "expected 0.83 to 0.9"),
        (0.9001, dict(expect=(0.83, 0.9)), False, "measured 0.9001 · expected 0.83 to 0.9"),
        (0.82, dict(expect=(0.83, None)), False, "expected at least 0.83"),
        (1.5, dict(expect=(None, 1)), False, "expected at most 1"),
        (float("nan"), dict(expect=(None, 1)), False, "measured nan"),
        (float("nan"), dict(expect=(0.83, None)), False, "measured nan"),
        (float("nan"), dict(expect=(0.83, 0.9)), False, "measured nan"),
        (np.float32("nan"), dict(expect={"cpu": (0, None)}), False, "measured nan"),
        (torch.tensor(float("nan")), dict(published=0.9), False, "measured nan"),
        (np.float32(0.5), dict(expect=(0.4, 0.6)), True, "measured 0.5"),
        (torch.tensor(0.5), dict(expect=(0.4, 0.6)), True, "measured 0.5"),
        (294_912, dict(published=294_912, source="Hu et al."), True, "measured 294,912 · expected 294,912 · published 294,912 (Hu et al.)"),
        (np.int64(294_912), dict(published=294_913), False, "measured 294,912 · expected 294,913 · published 294,913"),
        (0.93, dict(expect=(0.9, 1), published=0.951), True, "expected 0.9 to 1 · published 0.951"),
        (0.123456, dict(expect=(0, 1), digits=2), True, "measured 0.12 "),
        (True, dict(expect=(True, True)), True, "measured True · expected True"),
    ],
)  # fmt: skip
def test_claim(measured, options, holds, told, capsys, monkeypatch):
    assert checks.claim("accuracy", measured, **options) is None
    line = capsys.readouterr().out
    assert line.startswith(f"{'✓' if holds else '✗'} accuracy: measured ") and told in line and line.count("\n") == 1
    monkeypatch.setenv("COURSE_ENFORCE", "1")
    if holds:
        checks.claim("accuracy", measured, **options)
    else:
        with pytest.raises(checks.ClaimFailed, match="accuracy: measured"):
            checks.claim("accuracy", measured, **options)


def test_claim_has_a_band_for_each_profile(capsys, monkeypatch):
    monkeypatch.setenv("COURSE_ENFORCE", "1")
    bands = {"cpu": (0.8, 1), "gpu": (0.9, 1)}
    checks.claim("accuracy", 0.85, expect=bands, published=0.948)
    monkeypatch.setenv("COURSE_PROFILE", "gpu")
    with pytest.raises(checks.ClaimFailed, match=r"measured 0.85 · expected 0.9 to 1"):
        checks.claim("accuracy", 0.85, expect=bands)
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    capsys.readouterr()
    checks.claim("accuracy", 0.1, expect=bands, published=0.948)
    assert "not judged on profile smoke · published 0.948" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{}, dict(expect=(None, None)), dict(expect={"cpu": (None, None)})])
def test_a_claim_that_cannot_fail_is_none(options):
    with pytest.raises(ValueError, match="what to expect"):
        checks.claim("accuracy", 0.5, **options)


# --- figures ---


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: (object, options)."""
    told = []
    monkeypatch.setattr(ipython, "display", lambda thing, **options: told.append((thing, options)))
    with matplotlib.rc_context():
        yield told


def test_show_carries_the_alternative_text(shown):
    from matplotlib import pyplot

    figure, axes = plots.subplots()
    axes.plot([1, 2])
    plots.show(figure, "A line that rises.", caption="It rises.")
    (image, options), (caption, _) = shown
    assert options == {"raw": True, "metadata": {"image/png": {"alt": "A line that rises."}}}
    assert image["text/plain"] == "A line that rises." and image["image/png"].startswith(
        "iVBORw0KGgo"
    )  # PNG, in base64
    assert type(caption) is Markdown and caption.data == "*It rises.*"
    assert figure.number not in pyplot.get_fignums()  # or the notebook would show it twice


def test_show_without_a_caption_shows_the_figure_only(shown):
    plots.show(plots.subplots()[0], "Empty axes.")
    assert len(shown) == 1


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_show_refuses_a_figure_without_alternative_text(shown, alt):
    with pytest.raises(ValueError, match="alternative text"):
        plots.show(plots.subplots()[0], alt)
    assert not shown


def test_the_style_reaches_what_is_drawn_later(shown):
    figure, (axes, _) = plots.subplots(1, 2)
    (line,) = axes.plot([1, 2], label="one")
    axes.set_title("Left")
    assert line.get_color() == plots.BLUE
    assert axes.get_title("left") == "Left" and not axes.legend().get_frame_on()
    assert axes.imshow([[1, 2]]).get_cmap().name == "cividis"
    plots.show(figure, "Two axes.")


# --- metrics and meters ---


def test_accuracy():
    logits = np.array([[2.0, 1], [0, 3], [1, 0], [0, 1]])
    assert training.accuracy(SimpleNamespace(predictions=logits, label_ids=np.array([0, 1, 1, 1]))) == {
        "accuracy": 0.75
    }


@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_training_arguments_follow_the_profile(name, tmp_path):
    profile = profiles.get(name)
    arguments = training.training_arguments(profile, tmp_path, num_train_epochs=7)
    assert arguments.num_train_epochs == 7  # a change wins
    assert arguments.learning_rate == profile.learning_rate
    assert arguments.per_device_train_batch_size == profile.batch_size
    assert arguments.report_to == []


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path):
    """As lesson 04 says: four steps, then the rest from the checkpoint, end at the weights of eight in one go."""
    from benchmarks import sentiment
    from utils import data

    profile = profiles.get("smoke")
    splits = data.load_sentiment(profile, verbose=False)
    small = type(splits)({name: split.select(range(64)) for name, split in splits.items()})

    def run(folder, stop=None, resume=None):
        built = sentiment.build(profile, "LoRA query+value", sentiment.QV, 0)
        options = dict(
            max_steps=8, save_strategy="steps", save_steps=4, eval_strategy="no", load_best_model_at_end=False
        )
        options |= dict(per_device_train_batch_size=8, save_only_model=False, logging_strategy="no")
        trainer, _ = sentiment.trainer_for(profile, small, "LoRA query+value", *built, tmp_path / folder, **options)
        if stop:
            trainer.add_callback(Stop(stop))
        trainer.train(resume_from_checkpoint=resume)
        return torch.cat([p.detach().flatten() for name, p in built[0].named_parameters() if "lora_B" in name])

    whole = run("whole")
    stopped = run("stopped", stop=4)
    torch.testing.assert_close(run("stopped", resume=True), whole, rtol=0, atol=1e-6)
    assert not torch.allclose(stopped, whole, atol=1e-4)


class Stop(TrainerCallback):
    """End a run after a number of steps, as a power cut would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def test_precision_names_what_the_machine_computes_in():
    told = training.precision()
    if torch.cuda.is_available():
        assert told in ({"bf16": True}, {"fp16": True})
    else:
        assert told["use_cpu"] is True and "fp16" not in told  # fp16 on a CPU is accepted silently and useless


def test_seeds():
    drawn = []
    for seed in (1, 1, 2):
        training.set_seed(seed)
        drawn.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1] != drawn[2]


def test_meter_measures_memory_and_time():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with training.Meter() as m:
        block = torch.ones(50_000_000, device=device)  # 200 MB
        time.sleep(0.05)
        del block
    assert m.peak_bytes == pytest.approx(200e6, rel=0.15)
    assert 0.05 <= m.seconds < 5
    with training.Meter() as idle:
        time.sleep(0.02)
    assert idle.peak_bytes < 20e6


# --- models and adapters ---

BASE = "minilm-roberta"
SENTENCES = ["A quiet film that grows on you.", "Dull.", "Two hours that feel like four, and then some.", "Well acted."]


def adapted(seed: int):
    """The local RoBERTa with a tiny PEFT adapter whose B is not zero, so that it says something."""
    model, tokenizer = models.load_encoder(profiles.get("smoke"))
    model = get_peft_model(model, LoraConfig("SEQ_CLS", r=1, target_modules=["query"])).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return model, tokenizer


@torch.no_grad()
def logits(model, tokenizer):
    return model(**tokenizer(SENTENCES, padding=True, return_tensors="pt")).logits


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """(folder of a saved adapter, its logits)."""
    model, tokenizer = adapted(seed=1)
    folder = adapters.save_adapter(model, tmp_path_factory.mktemp("adapters") / "tiny", BASE)
    return folder, logits(model, tokenizer)


def test_an_adapter_comes_back_the_same(kept):
    folder, known = kept
    model, tokenizer = models.load_encoder(
        profiles.get("smoke"), seed=5
    )  # another random head: the saved one must replace it
    assert not torch.allclose(logits(model, tokenizer), known, atol=1e-2)
    model = adapters.load_adapter(model, folder, BASE).eval()
    assert torch.equal(logits(model, tokenizer), known)


def test_a_saved_adapter_names_its_base_and_no_path(kept):
    folder, _ = kept
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "course.json",
    }
    config, about = (json.loads((folder / name).read_text()) for name in ("adapter_config.json", "course.json"))
    assert config["base_model_name_or_path"] == BASE
    assert about["base_sha256"] == models.base_sha256(BASE) and re.fullmatch("[0-9a-f]{64}", about["base_sha256"])
    places = (assets.cache_dir(), utils.ROOT, folder.parent, Path.home(), Path(sys.prefix))
    for file in folder.iterdir():
        content = file.read_bytes()
        assert not any(str(place.resolve()).encode() in content for place in places if place != Path("/")), file.name
    assert [v for v in config.values() if isinstance(v, str) and re.match(r"/|[A-Za-z]:\\|file:", v)] == []


def test_the_wrong_base_is_refused_naming_both(kept):
    folder, _ = kept
    mine, other = models.base_sha256(BASE)[:12], models.base_sha256("smollm2-llama")[:12]
    with pytest.raises(ValueError, match=rf"'{BASE}' \({mine}\).*'smollm2-llama' \({other}\).*own base"):
        adapters.load_adapter(None, folder, "smollm2-llama")


def test_other_weights_under_the_same_name_are_refused(kept, monkeypatch):
    folder, _ = kept
    mine = models.base_sha256(BASE)
    monkeypatch.setattr(models, "base_sha256", lambda base: "f" * 64)
    with pytest.raises(ValueError, match=rf"{mine[:12]}.*{'f' * 12}"):
        adapters.load_adapter(None, folder, BASE)


def test_saving_again_replaces_and_a_failed_save_changes_nothing(kept, tmp_path, monkeypatch):
    first, second = adapted(seed=2)[0], adapted(seed=3)[0]
    folder = adapters.save_adapter(first, tmp_path / "tiny", BASE)
    adapters.save_adapter(second, folder, BASE)
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert content["adapter_model.safetensors"] != (kept[0] / "adapter_model.safetensors").read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(first, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        adapters.save_adapter(first, folder, BASE)
    assert content == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


def test_the_encoder_is_whole_and_its_head_follows_the_seed():
    one, two, other = (models.load_encoder(profiles.get("smoke"), 3, seed)[0] for seed in (0, 0, 1))
    assert one.num_labels == 3 and not one.training and one.dtype == torch.float32
    heads = [model.classifier.out_proj.weight for model in (one, two, other)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    body = [model.roberta.state_dict() for model in (one, other)]
    assert all(torch.equal(tensor, body[1][name]) for name, tensor in body[0].items())


def encoder_with_lora(**options):
    model, tokenizer = models.load_encoder(profiles.get("smoke"), frozen=True, **options)
    return get_peft_model(model, LoraConfig("SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])), tokenizer


def test_a_lean_base_is_in_the_precision_of_products_without_dropout_and_what_learns_is_not():
    plain, _ = models.load_encoder(profiles.get("smoke"))
    model, _ = encoder_with_lora()
    body, head = model.base_model.model.roberta, model.base_model.model.classifier
    for name, p in model.named_parameters():
        wanted = torch.float32 if "lora_" in name or "classifier" in name else training.compute_dtype()
        assert p.dtype == wanted, name
        assert p.requires_grad == ("lora_" in name or "modules_to_save" in name), name
    assert {m.p for m in body.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert head.modules_to_save["default"].dropout.p == plain.classifier.dropout.p == 0.1
    assert model.config.to_dict() == plain.config.to_dict()
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.1


def test_the_papers_recipe_is_left_alone():
    import dataclasses

    full = dataclasses.replace(profiles.get("smoke"), lean_base=False)
    assert profiles.get("gpu").lean_base is False
    model, _ = models.load_encoder(full, frozen=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        n for n, _ in model.named_parameters() if "classifier" in n
    ]


def test_a_lean_base_leaves_no_trace_in_what_is_saved(tmp_path):
    """Saved and loaded again, dropout and weights are a pretrained model's; merged, the answers are those of full precision."""
    profile = profiles.get("smoke")
    model, tokenizer = encoder_with_lora()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    folder = adapters.save_adapter(model, tmp_path / "adapter", profile.encoder)
    merged = adapters.merged_encoder(profile, folder)
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged")
    assert again.config.hidden_dropout_prob == 0.1 and {p.dtype for p in again.parameters()} == {torch.float32}
    assert {m.p for m in again.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    whole = adapters.load_adapter(models.load_encoder(profile)[0], folder, profile.encoder)
    told = [logits(m, tokenizer) for m in (whole, merged, again.eval())]
    assert np.abs(told[0] - told[1]).max() < 1e-4 and np.abs(told[1] - told[2]).max() < 1e-5
    wanted = training.predict(model, tokenizer, SENTENCES)  # on the lean base: near, and not the same
    assert 0 < np.abs(training.predict(merged, tokenizer, SENTENCES) - wanted).max() < 0.02


def test_a_frozen_lean_base_learns_as_the_heavy_one_does():
    """One step without dropout: gradients of the adapters agree with fp32 and fused attention to the rounding of 16 bits."""
    import dataclasses

    found = []
    for lean in (True, False):
        profile = dataclasses.replace(profiles.get("smoke"), lean_base=lean)
        options = {} if lean else dict(attn_implementation="sdpa")
        model, tokenizer = models.load_encoder(profile, frozen=True, **options)
        training.set_seed(0)
        config = LoraConfig("SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False)
        model = get_peft_model(model, config).eval()
        batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
        with training.autocast():
            loss = model(**batch, labels=torch.tensor([0, 1, 0, 1])).loss
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "lora_" in n]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.99


def test_predict_keeps_the_order_whatever_the_batches(monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "fp32")
    model, tokenizer = adapted(seed=1)
    one_by_one = np.concatenate([training.predict(model, tokenizer, [s]) for s in SENTENCES])
    together = training.predict(model.train(), tokenizer, SENTENCES, batch_size=3)
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    np.testing.assert_allclose(together, logits(model, tokenizer).softmax(-1), atol=1e-5)
    assert together.shape == (4, 2) and np.ptp(together[:, 0]) > 0.001  # sentences that do differ
    with pytest.raises(ValueError, match="at least one"):
        training.predict(model, tokenizer, [])
    table = pd.Series(SENTENCES, index=[30, 10, 20, 0])  # an index that is not 0, 1, 2, 3: by position all the same
    for given in (tuple(SENTENCES), np.array(SENTENCES), table):
        np.testing.assert_array_equal(
            training.predict(model, tokenizer, given), training.predict(model, tokenizer, SENTENCES)
        )
    for given, told in (
        ("a text", "sentences is a str"),
        ([*SENTENCES, None], "row 5 is None"),
        (7, "sentences is a int"),
    ):
        with pytest.raises(TypeError, match=told):
            training.predict(model, tokenizer, given)


def test_the_decoder_can_learn_to_stop():
    model, tokenizer = models.load_decoder(profiles.get("smoke"))
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.bfloat16
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
