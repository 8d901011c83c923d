"""utils/planner.py: counts against transformers and PEFT on the meta device, memory against recorded measurements, errors."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks import memory, record
from utils import ROOT, assets, lora, planner, profiles
from utils.planner import plan

KNOWN = sorted(file.stem for file in planner.CONFIGS.glob("*.json"))
quick = settings(deadline=None, max_examples=25)


def config_of(name: str) -> dict:
    return json.loads((planner.CONFIGS / f"{name}.json").read_text())


def build(config: dict, num_labels: int = 2):
    """The model that a config.json describes, on the meta device."""
    auto = AutoModelForCausalLM if config["model_type"] in planner.DECODERS else AutoModelForSequenceClassification
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(**config, num_labels=num_labels))


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


# --- counts ---


def test_the_course_knows_eight_models():
    llamas = {"llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3.1-8b"}
    assert {"minilm", "roberta-base", "roberta-large", "smollm2-135m"} | llamas == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_counts_are_those_of_the_model(name):
    model = build(config_of(name))
    whole = parameters(model)
    full = plan(name, targets="full", bits=16)
    assert (full.total, full.trainable, full.lora) == (whole, whole, 0)
    for targets, r in (("qv", 8), ("all-linear", 4)):
        adapted = build(config_of(name))
        names = [layer.name for layer in planner.choose(planner.load(name), targets, r)]
        blocks = config_of(name)["num_hidden_layers"]
        lora.inject(adapted, [f"{i}.{n}" for i in range(blocks) for n in names], r, 16)
        if planner.load(name).encoder:
            adapted.classifier.requires_grad_(True)
        counts, planned = lora.count_parameters(adapted), plan(name, r=r, targets=targets)
        assert (planned.lora, planned.head, planned.total) == (counts.lora, counts.head, counts.total)
        assert planned.trainable == counts.lora + counts.head


@pytest.mark.parametrize(
    ("name", "targets", "r", "peft_targets", "found"),
    [
        ("roberta-base", ["query", "value"], 8, ["query", "value"], 294_912),
        ("roberta-base", "all-linear", 8, "all-linear", 1_327_104),
        ("llama-2-7b", "qv", 8, ["q_proj", "v_proj"], 4_194_304),
        ("llama-2-7b", "all-linear", 8, "all-linear", 19_988_480),
    ],
)
def test_counts_are_pefts(name, targets, r, peft_targets, found):
    task = "SEQ_CLS" if name.startswith("roberta") else "CAUSAL_LM"
    model = get_peft_model(build(config_of(name)), LoraConfig(task, r=r, target_modules=peft_targets))
    planned = plan(name, r=r, targets=targets)
    assert planned.lora == found
    assert planned.trainable == model.get_nb_trainable_parameters()[0]


def test_counts_that_were_published():
    """Hu et al. 2021, table 2, and the 7B model of lesson 06, LoRA included; a third label costs a row of the head and its bias."""
    base = plan("roberta-base", r=8, targets="qv", bits=32)
    assert (base.lora, base.head, base.total) == (294_912, 592_130, 124_647_170 + 294_912)
    llama = plan("llama-2-7b", r=8, targets=["q_proj", "v_proj"])
    assert (llama.lora, llama.total) == (4_194_304, 6_742_609_920)
    assert plan("roberta-base", num_labels=3).head == 592_130 + 769


sides = st.integers(1, 4)


@quick
@given(
    sides, sides, sides, sides, st.sampled_from(planner.ENCODERS + planner.DECODERS), st.booleans(), st.integers(1, 3)
)
def test_counts_of_any_config(tmp_path_factory, blocks, heads, per_head, groups, kind, flag, labels):
    config = dict(
        model_type=kind,
        num_hidden_layers=blocks,
        num_attention_heads=heads * groups,
        hidden_size=heads * groups * per_head * 2,
        intermediate_size=7 * groups,
        vocab_size=30 + heads,
        max_position_embeddings=20,
        pad_token_id=2,
    )
    if kind in planner.DECODERS:
        config |= dict(num_key_value_heads=heads, tie_word_embeddings=flag, head_dim=2 * per_head if flag else None)
    if kind == "llama":
        config |= dict(attention_bias=flag, mlp_bias=not flag)
    file = tmp_path_factory.mktemp("model") / "config.json"
    file.write_text(json.dumps(config))
    whole = parameters(build(config, labels))
    for source in (file, file.parent):
        assert plan(source, targets="full", bits=32, seq=10, num_labels=labels).total == whole


def test_local_models_are_as_their_configs_say():
    for profile in profiles.PROFILES.values():
        for name in (profile.encoder, profile.decoder):
            known = plan(name, bits=16)
            if name in assets.ASSETS:
                there = plan(assets.path(name), bits=16)
                assert dataclasses.replace(there, model=known.model) == known


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("qv", "q v"),
        ("attention", "q k v o"),
        ("mlp", "gate up down"),
        ("all-linear", "q k v o gate up down"),
        (["q_proj", "mlp.up_proj"], "q up"),
        ("k_proj,self_attn.q_proj", "q k"),
    ],
)
def test_targets_of_a_decoder(targets, names):
    chosen = planner.choose(planner.load("llama-3.1-8b"), targets, 8)
    assert [layer.name.rpartition(".")[2].removesuffix("_proj") for layer in chosen] == names.split()


def test_targets_of_an_encoder():
    def names(targets):
        return [layer.name for layer in planner.choose(planner.load("minilm"), targets, 8)]

    assert names("qv") == ["attention.self.query", "attention.self.value"]
    assert names(["output.dense"]) == ["attention.output.dense", "output.dense"]  # a trap: see lesson 05
    assert names(["dense"]) == names("all-linear")[3:]


# --- weights ---


@pytest.mark.parametrize("shape", [(64, 64), (192, 576), (1536, 384), (100, 30)])
def test_four_bits_are_bitsandbytes(shape):
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(shape[1], shape[0], bias=False, quant_type="nf4").to("cpu")
    kept = [t for t in layer.weight.quant_state.as_dict().values() if isinstance(t, torch.Tensor)]
    bytes_kept = layer.weight.nbytes + sum(t.nbytes for t in kept) + layer.weight.quant_state.offset.nbytes
    assert planner._stored(planner.Linear("", *shape, "x"), 4) == bytes_kept


@pytest.mark.parametrize(("bits", "each"), [(4, 4.127), (8, 8.007), (16, 16), (32, 32)])
def test_bits_per_weight(bits, each):
    assert round(plan("llama-2-7b", bits=bits).bits_per_weight, 3) == each


def test_only_the_blocks_are_quantised():
    four, sixteen = (plan("llama-2-7b", bits=bits).training.weights for bits in (4, 16))
    assert sixteen == 2 * 6_738_415_616
    outside = 2 * (2 * 32_000 * 4_096 + 65 * 4_096)  # embeddings, lm_head, norms
    assert four - outside == pytest.approx((sixteen - outside) * 4.127 / 16, rel=1e-4)


def test_an_adapter_on_disk():
    size = (ROOT / "data" / "adapters" / "sentiment" / "adapter_model.safetensors").stat().st_size
    assert plan("minilm", targets="qv", bits=32).disk == pytest.approx(size, rel=0.01)


def test_keys_and_values():
    """Llama-2-7B holds half a megabyte a token in 16 bits; eight keys for 32 heads make it a quarter; an encoder has none."""
    assert plan("llama-2-7b", bits=16, seq=4096, batch=1).inference.cache == 2**31
    assert plan("llama-3.1-8b", bits=4, seq=4096, batch=1).inference.cache == 2**29
    assert plan("roberta-base").inference.cache == plan("roberta-base").training.cache == 0


# --- memory ---

choices = dict(
    name=st.sampled_from(KNOWN),
    targets=st.sampled_from(["all-linear", "qv", "mlp", "full"]),
    bits=st.sampled_from(planner.BITS),
    seq=st.integers(1, 256),
    batch=st.integers(1, 16),
    device=st.sampled_from(["cuda", "cpu"]),
    checkpointing=st.booleans(),
)


@quick
@given(**choices)
def test_parts_add_up_and_more_costs_more(name, **options):
    if options["targets"] == "full":
        options["bits"] = max(16, options["bits"])
    one = plan(name, **options)
    for kept in (one.training, one.inference):
        assert kept.total == sum(dataclasses.astuple(kept)) and min(dataclasses.astuple(kept)) >= 0
        assert all(isinstance(part, int) for part in dataclasses.astuple(kept))
    assert sum(one.activation_terms.values()) == one.training.activations
    assert one.training.optimiser == 2 * one.training.gradients
    assert one.training.adapter == (0 if options["targets"] == "full" else one.disk)
    assert one.inference.total - one.inference.cache < one.training.total  # a cache may outgrow a checkpointed step
    for longer in (dict(seq=options["seq"] + 1), dict(batch=options["batch"] + 1)):
        assert plan(name, **(options | longer)).training.activations > one.training.activations
    if not options["checkpointing"]:
        assert plan(name, **(options | dict(checkpointing=True))).training.activations < one.training.activations


def test_checkpointing_and_a_chunked_loss_save_memory():
    whole = plan("llama-3.1-8b")
    again = plan("llama-3.1-8b", checkpointing=True)
    chunked = plan("llama-3.1-8b", checkpointing=True, chunked_loss=True)
    assert whole.training.activations > 3 * again.training.activations > 6 * chunked.training.activations
    # TRL's is written for CUDA: on a CPU it holds more than the plain loss, as long as the vocabulary is small
    plain, chunked = (plan("smollm2-135m", chunked_loss=chunked, device="cpu") for chunked in (False, True))
    assert chunked.training.activations > plain.training.activations


def test_what_the_qlora_paper_says():
    """Dettmers et al. 2023: inputs of a 7B's adapters 567 MB a sequence of 512, 18 MB with checkpointing (one block's); 65B in
    less than 48 GB, in 16 bits more than 780 GB."""
    inputs = plan("llama-2-7b", batch=1).activation_terms["inputs of what learns"]
    assert inputs / 567e6 == pytest.approx(1, abs=0.15)
    assert inputs / 32 / 18e6 == pytest.approx(1, abs=0.15)
    assert plan("llama-2-70b", batch=1, checkpointing=True).training.total < 48e9
    assert plan("llama-2-70b", batch=1, bits=32, targets="full").training.total > 780e9


def test_cards_hold_some_back():
    assert planner.usable(16) == 14_200_000_000
    weights = planner.usable(24)
    assert planner.Memory(weights, 0, 0, 0, 0).cards == (24, 40, 80)
    assert planner.Memory(weights, 0, 0, 0, 0, cache=1).cards == (40, 80)
    assert planner.Memory(10**12, 0, 0, 0, 0).cards == ()


RUNS = record.read("memory")["runs"]
names = [f"{run['method']} {run['batch']}x{run['seq']}" for run in RUNS]


def test_the_record_holds_every_shape():
    assert [(run["method"], run["batch"], run["seq"]) for run in RUNS] == list(memory.RUNS)


@pytest.mark.parametrize("run", RUNS, ids=names)
def test_predictions_are_near_the_measurements(run):
    predicted = memory.predict(run["method"], run["batch"], run["seq"], run["device"])
    assert predicted == run["predicted"], "utils/planner.py has changed since the record: `python -m benchmarks.memory`"
    assert predicted["rest"] == pytest.approx(run["measured"]["rest"], rel=0.01)
    assert memory.ratios(run) == pytest.approx(run["ratios"], abs=1e-4)
    assert all(0.85 <= ratio <= 1.15 for ratio in run["ratios"].values())


def test_a_live_measurement(capsys):
    run = memory.run("encoder, LoRA query+value", 4, 32)
    assert all(0.85 <= ratio <= 1.15 for ratio in run["ratios"].values())
    memory.table([run])
    assert "encoder, LoRA query+value, 4x32" in capsys.readouterr().out


# --- errors, and the command ---

WRONG = [
    (dict(model="lama-2-7b"), r"no model 'lama-2-7b'; did you mean llama-2-7b or"),
    (dict(model="gpt2"), r"no model 'gpt2'; the planner knows llama-2-13b, .*path of a config.json"),
    (dict(model="nowhere/config.json"), r"no file 'nowhere/config.json'"),
    (dict(model="utils"), r"no file 'utils/config.json'|no file 'utils\\\\config.json'"),
    (dict(r=0), r"r=0, .* 1 to 4096, the smaller side of self_attn.q_proj \(4096 x 4096\)"),
    (dict(r=4097), r"r=4097, .* 1 to 4096"),
    (dict(model="llama-3.1-8b", r=1025), r"r=1025, .* 1 to 1024, .*self_attn.k_proj \(1024 x 4096\)"),
    (dict(targets="q_porj"), r"of llama-2-7b matches 'q_porj'; did you mean q_proj"),
    (dict(targets="query"), r"matches 'query'; did you mean"),
    (dict(targets=""), r"matches ''; did you mean all-linear or"),
    (dict(targets="q_proj,lm_head"), r"matches 'lm_head'"),
    (dict(targets="proj"), r"matches 'proj'"),
    (dict(bits=5), r"bits=5, .* 4, 8, 16, 32 bits"),
    (dict(bits=8, targets="full"), r"bits=8, .*16 or 32 bits"),
    (dict(seq=0), r"seq=0, .* at least 1"),
    (dict(batch=-1), r"batch=-1, .* at least 1"),
    (dict(seq=4097), r"seq=4097, but llama-2-7b has positions for 4096"),
    (dict(model="roberta-base", seq=513), r"seq=513, but roberta-base has positions for 512"),
    (dict(device="tpu"), r"device='tpu', .*'cuda' and 'cpu'"),
]


@pytest.mark.parametrize(("options", "told"), WRONG)
def test_errors_are_one_line(options, told, capsys):
    options = dict(model="llama-2-7b") | options
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        plan(**options)
    assert planner.main([f"--{name}={value}" for name, value in options.items()]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [dict(r=True), dict(r=2.0), dict(r="8"), dict(seq=1.5), dict(batch="4"), dict(targets=[]), dict(bits="4")],
)
def test_errors_of_kind(options):
    with pytest.raises(ValueError, match=r"but|matches ''"):
        plan("llama-2-7b", **options)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not JSON"),
        ("{model", "is not JSON"),
        ("[1]", "type None"),
        ("{}", "type None; the planner knows roberta, xlm-roberta, bert, llama, mistral"),
        ('{"model_type": "gpt2"}', "type 'gpt2'"),
        ('{"model_type": "llama"}', "lacks 'num_hidden_layers'"),
        (json.dumps(config_of("llama-2-7b") | dict(hidden_size="wide")), "hidden_size='wide', but"),
        (json.dumps(config_of("llama-2-7b") | dict(vocab_size=0)), "vocab_size=0, but"),
    ],
)
def test_configs_that_cannot_be_planned(text, told, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(text)
    for source in (file, str(tmp_path)):
        with pytest.raises(ValueError, match=told):
            plan(source)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not JSON"):
        plan(tmp_path)


def test_the_command(capsys):
    asked = "--model llama-2-7b --r 8 --targets all-linear --bits 4 --seq 512 --batch 4 --checkpointing"
    assert planner.main(asked.split()) == 0
    told = capsys.readouterr().out
    planned = plan("llama-2-7b", checkpointing=True)
    for shown in (
        "19,988,480 of 6,758,404,096",
        "4.127 bits",
        f"{planned.training.total / 1e9:.3f}",
        "8, 16, 24, 40, 80",
    ):
        assert shown in told
    assert planner.main(["--model", "llama-2-70b", "--targets", "full", "--bits", "16"]) == 0
    assert "none of these" in capsys.readouterr().out


def test_planning_needs_no_torch():
    told = "import sys, utils.planner as p; p.plan('llama-2-7b'); print([m for m in ('torch', 'rich', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
