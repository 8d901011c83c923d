"""Adapters: what a folder holds, that anybody can load it again in words, and that no folder can do harm."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save, save_file
from transformers import RobertaConfig, RobertaForSequenceClassification

import utils
from utils import adapters, assets, data, models, profiles
from utils.adapter_folder import MOST_BYTES, AdapterError, is_adapter, read

BASE, SMOKE = "minilm-roberta", profiles.get("smoke")
SENTIMENT = utils.ROOT / "data" / "adapters" / "sentiment"
SENTENCES = ["A quiet film that grows on you.", "Dull.", "Well acted, and warm."]
QUESTION = "What does LoRA train?"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PIPE = getattr(os, "mkfifo", os.mkdir)  # Windows has none: a folder is no file either


def tiny(num_labels: int = 3, vocab_size: int = 30_522):
    """A RoBERTa of one block that is 16 wide: adapters for it are checked in milliseconds."""
    torch.manual_seed(0)
    shape = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3
    )
    return RobertaForSequenceClassification(RobertaConfig(vocab_size=vocab_size, num_labels=num_labels, **shape)).eval()


def adapted(model=None, **changes):
    """`model`, or a tiny one, with an adapter whose B is not zero."""
    options = dict(task_type="SEQ_CLS", r=2, lora_alpha=8, target_modules=["query", "value"]) | changes
    model = get_peft_model(tiny() if model is None else model, LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def logits(model):
    return model(torch.arange(3, 11)[None]).logits


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder of a sound adapter for the tiny model, its logits)."""
    model = adapted()
    return adapters.save_adapter(model, tmp_path_factory.mktemp("sound") / "tiny", BASE), logits(model)


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(whole[0], tmp_path / "tiny")


def load(folder):
    return adapters.load_adapter(tiny(), folder, BASE)


def edit(folder, name=CONFIG, **changes):
    """Change fields of a JSON file; ... takes one away."""
    file = folder / name
    told = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in told.items() if value is not ...}))
    return folder


def tensors(folder, change):
    """Rewrite the weights as `change` leaves them."""
    held = load_file(folder / WEIGHTS)
    save_file(change(held) or held, folder / WEIGHTS)
    return folder


def refusal(call, *given, **options) -> str:
    """The one sentence with which `call` refuses."""
    with pytest.raises(AdapterError) as caught:
        call(*given, **options)
    message = str(caught.value)
    assert 20 < len(message) < 700 and "\n" not in message and "Traceback" not in message, message
    return message


# --- what is saved ---


def test_a_classifier_s_folder_says_what_loading_needs(whole):
    folder, _ = whole
    assert {file.name for file in folder.iterdir()} == {CONFIG, WEIGHTS, "course.json"}
    config, about = (json.loads((folder / name).read_text()) for name in (CONFIG, "course.json"))
    assert (config["base_model_name_or_path"], config["revision"], config["task_type"]) == (BASE, None, "SEQ_CLS")
    assert about == dict(
        course=about["course"], base_sha256=models.base_sha256(BASE), labels=["LABEL_0", "LABEL_1", "LABEL_2"]
    )
    assert f'version = "{about["course"]}"' in (utils.ROOT / "pyproject.toml").read_text()


def test_labels_of_any_script_and_the_longest_input_are_kept(tmp_path):
    names = ["bon", "悪い", "so so"]
    folder = adapters.save_adapter(adapted(), tmp_path / "named", BASE, labels=names, max_length=64)
    adapter = read(folder)
    assert (
        adapter.labels == tuple(names)
        and adapter.about["max_length"] == 64
        and "悪い" in (folder / "course.json").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize(
    "given, told",
    [
        (dict(labels=["good", "bad"]), "2 names.*3 classes"),
        (dict(labels=["good", "good", "bad"]), "each another"),
        (dict(labels=["good", "", "bad"]), "each another"),
        (dict(max_length=0), "whole number of tokens"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_old_is_lost(given, told, folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert re.search(told, refusal(adapters.save_adapter, adapted(), folder, BASE, **given))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_model_without_an_adapter_is_not_saved(tmp_path):
    assert "no adapter to save" in refusal(adapters.save_adapter, tiny(), tmp_path / "none", BASE)
    assert not list(tmp_path.iterdir())


def test_peft_itself_loads_the_folder_without_a_remark(whole, recwarn):
    from peft import PeftModel

    again = PeftModel.from_pretrained(tiny(), whole[0]).eval()
    assert torch.equal(logits(again), whole[1])
    assert not [w for w in recwarn if "nexpected" in str(w.message)]


# --- loading again ---


def test_an_adapter_comes_back_the_same(whole):
    assert torch.equal(logits(load(whole[0])), whole[1])


@pytest.mark.parametrize(
    "changes",
    [
        dict(use_dora=True),
        dict(use_rslora=True, init_lora_weights="gaussian"),
        dict(lora_bias=True),
        dict(target_modules="all-linear"),
        dict(target_modules=["query", "word_embeddings"]),
        dict(rank_pattern={"query": 4}, alpha_pattern={"attention.self.query": 1}),
        dict(layers_to_transform=[0], layers_pattern="layer", exclude_modules=["value"]),
    ],
    ids=lambda changes: " ".join(changes),
)
def test_every_kind_of_lora_comes_back_the_same(changes, tmp_path):
    model = adapted(**changes)
    folder = adapters.save_adapter(model, tmp_path / "kind", BASE)
    assert torch.equal(logits(load(folder)), logits(model))
    assert not torch.allclose(logits(model), logits(tiny()), atol=1e-3)


def test_an_older_folder_loads(folder, whole):
    """As the course's first adapters and PEFT 0.5 wrote them: the hash in PEFT's file, many fields not yet there."""
    (folder / "course.json").unlink()
    old = ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "bias",
           "fan_in_fan_out", "inference_mode", "init_lora_weights", "base_model_name_or_path", "revision")  # fmt: skip
    gone = {name: ... for name in json.loads((folder / CONFIG).read_text()) if name not in old}
    edit(folder, **gone, base_sha256=models.base_sha256(BASE), enable_lora=None, merge_weights=False)
    assert torch.equal(logits(load(folder)), whole[1])
    edit(folder, base_sha256="f" * 64)
    assert "made for 'minilm-roberta' (ffffffffffff)" in refusal(load, folder)


def test_a_refusal_leaves_the_model_and_the_random_state_alone(folder):
    model, state = tiny(), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    tensors(folder, lambda held: {name: t for name, t in held.items() if "value.lora_B" not in name})
    assert "1 of 8 tensors are missing" in refusal(adapters.load_adapter, model, folder, BASE)
    assert model.state_dict().keys() == before.keys() and torch.equal(torch.get_rng_state(), state)


def test_a_model_with_an_adapter_is_refused(whole):
    assert "has an adapter already" in refusal(adapters.load_adapter, adapted(), whole[0], BASE)


def test_another_number_of_labels_is_told(whole):
    told = refusal(adapters.load_adapter, tiny(num_labels=2), whole[0], BASE)
    assert re.search("out_proj.* is 3.* need 2.*num_labels=3", told), told


def test_a_resized_vocabulary_is_told_with_both_sizes(tmp_path):
    """PEFT saves the embeddings then. The base is the local encoder, whose configuration it looks at."""
    model, _ = models.load_encoder(SMOKE)
    model.resize_token_embeddings(30_530)
    folder = adapters.save_adapter(adapted(model), tmp_path / "grown", BASE)
    told = refusal(adapters.load_finetuned, folder, SMOKE)
    assert "30,530" in told and "30,522" in told and "resize_token_embeddings(30530)" in told


# --- whose base it is ---


def checkpoint(folder, base: str):
    """A Trainer's own checkpoint: PEFT's files with the base's path, and the Trainer's."""
    (folder / "course.json").unlink()
    for name in ("optimizer.pt", "trainer_state.json", "training_args.bin", "README.md"):
        (folder / name).write_text("of the Trainer")
    return edit(folder, base_model_name_or_path=base)


def test_a_checkpoint_finds_its_base_by_path_hash_or_name(folder, tmp_path):
    here = assets.path(BASE)
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "model.safetensors").symlink_to(here / "model.safetensors")
    for base, sha in (
        (str(here), models.base_sha256(BASE)),
        (str(copied), models.base_sha256(BASE)),
        ("/home/jane/course/data/cache/minilm-roberta", None),
        (r"C:\course\data\cache\minilm-roberta", None),
    ):
        shutil.copy(SENTIMENT / CONFIG, folder)
        (folder / "course.json").touch()
        checkpoint(folder, base)
        edit(folder, base_sha256=...)
        assert read(folder).base == (BASE, sha)
    cached = "/home/jane/.cache/huggingface/hub/models--FacebookAI--roberta-base/snapshots/" + "e" * 40
    assert read(edit(folder, base_model_name_or_path=cached)).base == ("FacebookAI/roberta-base", "e" * 40)


def test_a_path_to_another_model_is_told(folder, tmp_path):
    other = tmp_path / "minilm-roberta"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"another")
    told = refusal(read, checkpoint(folder, str(other)))
    assert "none of the course's (minilm-roberta, smollm2-llama)" in told and "made for" not in told
    assert "none of the course's" in refusal(read, edit(folder, base_model_name_or_path="/home/jane/own-model"))


def test_the_weights_of_a_path_are_not_waited_for(folder, tmp_path):
    PIPE(tmp_path / "model.safetensors")
    assert "none of the course's" in refusal(read, edit(folder, base_model_name_or_path=str(tmp_path)))


@pytest.mark.parametrize(
    "base",
    [None, "", 7, ["minilm-roberta"], {}, "\0", "x" * 9999, "\\\\server\\share", "sentences", "../minilm", "a/b/c"],
)
def test_a_base_that_is_none(base, folder):
    assert re.search(
        "does not name its base|none of the course's", refusal(read, edit(folder, base_model_name_or_path=base))
    )


def test_a_hub_s_base_has_a_commit(folder):
    edit(folder, base_model_name_or_path="FacebookAI/roberta-base", revision="e" * 40)
    (folder / "course.json").unlink()
    assert read(folder).base == ("FacebookAI/roberta-base", "e" * 40)
    assert "made for 'FacebookAI/roberta-base' (eeeeeeeeeeee)" in refusal(load, folder)
    assert "40 digits" in refusal(read, edit(folder, revision="main; rm"))


# --- in words, in another process ---


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """(folder of an adapter for the local chat model, the answer of the model that was saved, its tokenizer)."""
    model, tokenizer = models.load_decoder(SMOKE)
    model = adapted(model, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    folder = tmp_path_factory.mktemp("chat") / "adapter"
    adapters.save_adapter(model, folder, SMOKE.decoder, tokenizer=tokenizer, max_length=SMOKE.instruction_length)
    return folder, adapters.Chat(model, tokenizer, SMOKE.answer_tokens)(QUESTION), tokenizer


FRESH = """
import json, socket, sys

def no(*_, **__):
    raise AssertionError("a request")

socket.socket.connect = socket.getaddrinfo = no
from utils import adapters

told = [adapters.load_finetuned(sys.argv[1])(json.loads(sys.argv[4])), adapters.load_finetuned(sys.argv[2])(sys.argv[5])]
try:
    adapters.load_finetuned(sys.argv[3])
except ValueError as error:
    told.append(str(error))
print(json.dumps(told))
"""


def test_another_process_answers_in_words_and_asks_no_hub(chat, folder):
    """Each of them by one call; the third names a base that only a hub has."""
    (folder / "course.json").unlink()
    edit(folder, base_model_name_or_path="nobody/has-this", revision="0" * 40)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= dict(COURSE_PROFILE="smoke", PYTHONPATH=str(utils.ROOT), PYTHONWARNINGS="ignore")
    command = [sys.executable, "-c", FRESH, SENTIMENT, chat[0], folder, json.dumps(SENTENCES), QUESTION]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    labels, answer, told = json.loads(done.stdout.splitlines()[-1])
    assert [row["label"] for row in labels] == ["positive", "negative", "positive"]
    assert all(0.5 < row["probability"] <= 1 for row in labels)
    assert answer == chat[1] and answer
    assert "nobody/has-this" in told and "asks no hub" in told


def test_the_course_s_own_adapter_says_what_a_new_one_would():
    about = json.loads((SENTIMENT / "course.json").read_text())
    assert about["labels"] == list(data.LABELS) and about["max_length"] == profiles.get("cpu").max_length
    assert about["base_sha256"] == models.base_sha256(BASE) and is_adapter(SENTIMENT) is True
    assert "base_sha256" not in json.loads((SENTIMENT / CONFIG).read_text())


def test_a_checkpoint_answers_with_as_many_labels_as_its_head_has(tmp_path):
    folder = shutil.copytree(SENTIMENT, tmp_path / "checkpoint-8")
    judge = adapters.load_finetuned(checkpoint(folder, str(assets.path(BASE))), SMOKE)
    assert [row["label"] for row in judge(SENTENCES)] == ["LABEL_1", "LABEL_0", "LABEL_1"]
    assert judge.max_length == SMOKE.max_length and not judge.model.training
    assert "trained_in" not in refusal(adapters.load_finetuned, tmp_path, SMOKE)
    assert "checkpoint-8" in refusal(adapters.load_finetuned, tmp_path, SMOKE)


def test_the_base_is_in_four_bits_again(tmp_path):
    import bitsandbytes as bnb

    model = adapted(models.load_encoder_in_4_bits(SMOKE)[0])
    folder = adapters.save_adapter(model, tmp_path / "four", BASE, labels=["no", "yes"])
    assert read(folder).about["bits"] == 4
    judge = adapters.load_finetuned(folder, SMOKE)
    assert sum(isinstance(module, bnb.nn.Linear4bit) for module in judge.model.modules()) == 6 * 6
    assert {row["label"] for row in judge(SENTENCES)} <= {"no", "yes"}


def test_four_bits_that_cannot_be_had_are_told_and_sixteen_serve(tmp_path, monkeypatch):
    def none(**_):
        raise RuntimeError("Four-bit weights need bitsandbytes.")

    folder = edit(shutil.copytree(SENTIMENT, tmp_path / "four"), "course.json", bits=4)
    monkeypatch.setattr(models, "four_bits", none)
    with pytest.warns(UserWarning, match="four bits, here it is in 16"):
        assert adapters.load_finetuned(folder, SMOKE)(SENTENCES[:1])[0]["label"] == "positive"


def test_merging_takes_the_adapter_s_labels():
    merged = adapters.merged_encoder(SMOKE, SENTIMENT)
    assert merged.config.id2label == dict(enumerate(data.LABELS)) and merged.dtype == torch.float32


def test_another_template_is_told_and_used_only_on_request(chat, tmp_path):
    folder, _, tokenizer = chat
    about = json.loads((folder / "course.json").read_text())
    assert (about["chat_template"], about["pad_token"]) == (tokenizer.chat_template, tokenizer.pad_token)
    other = edit(
        shutil.copytree(folder, tmp_path / "other"), "course.json", chat_template="Q: {{ messages[0]['content'] }}"
    )
    assert "another chat template than that of smollm2-llama" in refusal(adapters.load_finetuned, other, SMOKE)
    told = adapters.load_finetuned(other, SMOKE, own_template=True)
    assert told.tokenizer.chat_template.startswith("Q: ")
    with pytest.raises(ValueError, match="not empty"):
        told(" ")


def test_a_token_that_the_base_does_not_have_is_told(chat, tmp_path):
    folder = edit(shutil.copytree(chat[0], tmp_path / "padded"), "course.json", pad_token="<|new|>")
    assert "'<|new|>', a token that smollm2-llama does not have" in refusal(adapters.load_finetuned, folder, SMOKE)


@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION"])
def test_a_task_without_an_answer_is_told(task, folder):
    assert "load_adapter" in refusal(adapters.load_finetuned, edit(folder, task_type=task), SMOKE)


# --- what is no adapter ---


def test_what_is_no_folder_with_an_adapter_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, told in dict(
        file="is no folder",
        empty="holds no adapter",
        **{"owner/name": "There is no folder owner/name"},
    ).items():
        assert told in refusal(adapters.load_finetuned, name, SMOKE)
        assert told in refusal(adapters.load_adapter, None, name, BASE)
    tiny().save_pretrained(tmp_path / "model")
    assert "holds a whole model" in refusal(read, tmp_path / "model")


def test_an_adapter_is_ours_only_if_nothing_else_lies_in_it(whole, folder, tmp_path):
    assert is_adapter(whole[0]) is True and is_adapter(SENTIMENT) is True
    written = tmp_path / "by PEFT"
    adapted().save_pretrained(written)
    assert {"README.md", CONFIG, WEIGHTS} == {file.name for file in written.iterdir()} and is_adapter(written) is True
    (written / "README.md").write_text("My notes.")
    assert is_adapter(written) is not True
    (tmp_path / "link").symlink_to(folder)
    for other in (tmp_path / "link", tmp_path, tmp_path / "none"):
        assert is_adapter(other) is not True
    (folder / ".notes").write_text("mine")
    assert is_adapter(folder) is not True
    (folder / ".notes").unlink()
    (folder / CONFIG).write_text('{"compilerOptions": {}}')
    assert is_adapter(folder) is not True


# --- hostile folders: one sentence each, no request, no wait, and no memory taken ---

A = "base_model.model.roberta.encoder.layer.0.attention.self.query.lora_A.weight"
HANGS = r"(([a-z])+.)+[A-Z]([a-z])+\Z"


def swap(name: str, change):
    """A change of one tensor."""
    return lambda folder: tensors(folder, lambda held: held | {name: change(held.get(name))})


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def instead(name: str, make):
    """Something that is no file under the name of one."""

    def change(folder):
        (folder / name).rename(folder.parent / "moved")
        make(folder / name)

    return change


def half(folder):
    tensors(folder, lambda held: {name: held[name] for name in sorted(held)[::2]})


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def sparse(folder):
    """Matrices as large as r = 3,000,000 needs them, in a file that takes no room on the disk."""
    edit(folder, r=3_000_000)
    shapes = {name: t.shape for name, t in load_file(folder / WEIGHTS).items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        shape = [3_000_000 if side == 2 and "lora" in name else side for side in shape]
        size = 4 * torch.Size(shape).numel()
        header[name], end = dict(dtype="F32", shape=shape, data_offsets=[end, end + size]), end + size
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(folder / WEIGHTS, 8 + len(text) + end)


HOSTILE = {
    # the weights
    "a tensor of the base": (
        swap("base_model.model.roberta.embeddings.word_embeddings.weight", lambda _: torch.zeros(30_522, 16)),
        "embeddings.word_embeddings.weight' is a weight of the base itself",
    ),
    "a tensor of the wrapped layer": (
        swap(A.replace("lora_A", "base_layer"), lambda _: torch.zeros(16, 16)), "is a weight of the base itself",
    ),
    "a name without end": (swap("t" * 100_000, lambda _: torch.zeros(3)), "'ttt.*ttt' belongs to no LoRA on query, value"),
    "a stranger": (swap("base_model.model.trojan", lambda _: torch.zeros(3)), "'base_model.model.trojan' belongs to no LoRA"),
    "a layer too many": (swap(A.replace("query", "key"), lambda t: torch.zeros(2, 16)), "key.lora_A.weight' belongs to no LoRA"),
    "NaN": (swap(A, lambda t: t * float("nan")), "query.lora_A.weight' holds NaN"),
    "inf": (swap(A, lambda t: t.fill_(float("inf"))), "query.lora_A.weight' holds NaN or infinite"),
    "too large for 32 bits": (swap(A, lambda t: t.double() * 1e200), "query.lora_A.weight' holds NaN or infinite"),
    "int8": (swap(A, lambda t: t.to(torch.int8)), "query.lora_A.weight' is I8"),
    "eight bits": (swap(A, lambda t: t.to(torch.float8_e4m3fn)), "query.lora_A.weight' is F8_E4M3"),
    "another shape": (swap(A, lambda t: torch.zeros(2, 17)), "query.lora_A.weight' is 2 x 17, where .* 2 x 16"),
    "no shape": (swap(A, lambda t: torch.zeros(())), "is a single number"),
    "half of it": (half, "4 of 8 tensors are missing, such as "),
    "nothing in it": (write(WEIGHTS, save({})), "8 of 8 tensors are missing"),
    "not the head": (
        lambda folder: tensors(folder, lambda held: {n: t for n, t in held.items() if "lora_" in n}), "4 of 8 tensors",
    ),
    "a pickle": (pickled, "adapter_model.bin, a pickle, .*save_file"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds no adapter_model.safetensors"),
    "cut short": (lambda folder: os.truncate(folder / WEIGHTS, 2000), "damaged"),
    "grown": (lambda folder: os.truncate(folder / WEIGHTS, 200_000), "damaged"),
    "empty weights": (write(WEIGHTS, b""), "damaged"),
    "no safetensors": (write(WEIGHTS, b"PK\3\4" * 999), "damaged"),
    "a header of gigabytes": (write(WEIGHTS, (2**40).to_bytes(8, "little") + b"{"), "header of 1,099,511,627,776 bytes"),
    # the rank
    "r that takes gigabytes": (lambda folder: edit(folder, r=3_000_000), "with r = 3,000,000 the adapter would be larger"),
    "and a file to match": (sparse, "with r = 3,000,000 the adapter would be larger"),
    "r past all bounds": (lambda folder: edit(folder, r=10**40), "allowed is a whole number from 1 to 1,000,000,000"),
    "one layer's r": (lambda folder: edit(folder, rank_pattern={"query": 10**9}), "larger than its base"),
    "r that is another": (lambda folder: edit(folder, r=4), "is 2 x 16, where this base and r = 4 need 4 x 16"),
    "r = 0": (lambda folder: edit(folder, r=0), "r is 0; allowed is a whole number"),
    "r = true": (lambda folder: edit(folder, r=True), "r is True; allowed"),
    "r in words": (lambda folder: edit(folder, r="8"), "r is '8'; allowed"),
    # patterns
    "targets that hang": (lambda folder: edit(folder, target_modules=HANGS), "target_modules is .*no regular expression"),
    "in a list": (lambda folder: edit(folder, target_modules=["query", HANGS]), "target_modules is .*no regular expression"),
    "exclusions that hang": (lambda folder: edit(folder, exclude_modules=HANGS), "exclude_modules is"),
    "layers that hang": (lambda folder: edit(folder, layers_to_transform=[0], layers_pattern=HANGS), "layers_pattern is"),
    "ranks that hang": (lambda folder: edit(folder, rank_pattern={HANGS: 2}), "rank_pattern is"),
    "alphas that hang": (lambda folder: edit(folder, alpha_pattern={HANGS: 2}), "alpha_pattern is"),
    "a thousand names": (lambda folder: edit(folder, target_modules=[f"m{i}" for i in range(1000)]), "at most 512 names"),
    "targets that are nowhere": (lambda folder: edit(folder, target_modules=["q_proj"]), "No modules were targeted"),
    "no targets": (lambda folder: edit(folder, target_modules=[]), "PEFT cannot put this adapter"),
    "a saved part of the base": (lambda folder: edit(folder, modules_to_save=["roberta"]), "modules_to_save is .*heads"),
    "a saved pattern": (lambda folder: edit(folder, modules_to_save=[HANGS]), "modules_to_save is .*heads"),
    # other fields
    "another method": (lambda folder: edit(folder, peft_type="IA3"), "peft_type is 'IA3'; .*LORA only"),
    "no method": (lambda folder: edit(folder, peft_type=...), "peft_type is None"),
    "a method in a list": (lambda folder: edit(folder, peft_type=["LORA"]), r"peft_type is \['LORA'\]"),
    "biases": (lambda folder: edit(folder, bias="all"), "bias is 'all'; allowed is 'none'"),
    "alpha below 0": (lambda folder: edit(folder, lora_alpha=-1), "lora_alpha is -1"),
    "alpha without end": (lambda folder: edit(folder, lora_alpha=float("inf")), "lora_alpha is inf"),
    "alpha, none": (lambda folder: edit(folder, lora_alpha=...), "does not say lora_alpha"),
    "a task, unknown": (lambda folder: edit(folder, task_type="SEQ"), "task_type is 'SEQ'"),
    "a task that does not fit": (lambda folder: edit(folder, task_type="CAUSAL_LM"), "PEFT cannot put this adapter"),
    "weights that are rewritten": (lambda folder: edit(folder, init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "layers repeated": (lambda folder: edit(folder, layer_replication=[[0, 9**9]]), "sets 'layer_replication' to"),
    "code": (lambda folder: edit(folder, trust_remote_code=True), "sets 'trust_remote_code' to True"),
    "a field of tomorrow": (lambda folder: edit(folder, new_kind={"x": 1}), "sets 'new_kind' to"),
    "a contradiction": (lambda folder: edit(folder, layers_pattern=["layer"]), "PEFT refuses it"),
    # the JSON
    "no JSON": (write(CONFIG, b"{"), "cannot be read as JSON"),
    "a list": (write(CONFIG, b"[1]"), "it is a list, and no object"),
    "nested deeply": (write(CONFIG, b"[" * 500_000), "cannot be read as JSON"),
    "gigantic": (write(CONFIG, b'{"r": "' + b"8" * MOST_BYTES + b'"}'), "at most 1,048,576 are read"),
    "a gigantic number": (write(CONFIG, b'{"r": ' + b"8" * 9999 + b"}"), "cannot be read as JSON"),
    "no text": (write(CONFIG, b"\xff\xfe\x00"), "cannot be read as JSON"),
    "an unsound course.json": (write("course.json", b"null"), "course.json cannot be read as JSON"),
    "labels that are none": (lambda folder: edit(folder, "course.json", labels="yes"), "labels is 'yes'; allowed"),
    "a hash that is none": (lambda folder: edit(folder, "course.json", base_sha256="0"), "base_sha256 is '0'"),
    # what is no file
    "a pipe for the configuration": (instead(CONFIG, PIPE), "is no regular file"),
    "a pipe for the weights": (instead(WEIGHTS, PIPE), "is no regular file"),
    "a pipe for course.json": (instead("course.json", PIPE), "is no regular file"),
    "a folder for the weights": (instead(WEIGHTS, Path.mkdir), "is no regular file"),
    "a link": (instead(CONFIG, lambda file: file.symlink_to(file.parent.parent / "moved")), "is a link"),
    "a link to a device": (instead(WEIGHTS, lambda file: file.symlink_to("/dev/zero")), "is a link"),
    "a link to itself": (instead(WEIGHTS, lambda file: file.symlink_to(file.name)), "is a link"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_sentence(kind, folder):
    change, told = HOSTILE[kind]
    change(folder)
    message = refusal(load, folder)
    assert re.search(told, message), message


def test_links_of_the_hub_s_cache_are_followed(folder, whole, tmp_path):
    """As a download leaves them: snapshots/commit/file leads to blobs/hash."""
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "c0ffee", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(folder.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert torch.equal(logits(load(snapshot)), whole[1])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["query", "LORA", HANGS]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100)
@given(st.data())
def test_whatever_a_folder_says_it_loads_the_same_or_is_refused(whole, tmp_path_factory, data):
    """Random fields, bytes and tensors; what loads gives finite numbers."""
    folder = shutil.copytree(whole[0], tmp_path_factory.mktemp("mutated") / "tiny")
    told = json.loads((folder / CONFIG).read_text())
    match data.draw(st.sampled_from(["field", "course", "bytes", "tensor"])):
        case "field":
            edit(folder, **{data.draw(st.sampled_from(sorted(told))): data.draw(json_values)})
        case "course":
            name = data.draw(st.sampled_from(["labels", "base_sha256", "max_length", "chat_template", "bits", "new"]))
            edit(folder, "course.json", **{name: data.draw(json_values)})
        case "bytes":
            file = folder / data.draw(st.sampled_from([CONFIG, WEIGHTS, "course.json"]))
            content = bytearray(file.read_bytes())
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, min(len(content), 1500) - 1))] = data.draw(st.integers(0, 255))
            file.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
        case "tensor":
            shape = data.draw(st.lists(st.integers(0, 20), max_size=3))
            dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]))
            name = data.draw(st.sampled_from(sorted(load_file(folder / WEIGHTS)))) + data.draw(
                st.sampled_from(["", "s"])
            )
            swap(name, lambda _: torch.ones(shape, dtype=dtype))(folder)
    try:
        model = load(folder)
    except AdapterError as error:
        assert 20 < len(str(error)) < 700 and "\n" not in str(error)
    else:
        assert logits(model).isfinite().all()
