"""The `gpu` profile's own code path, without a hub and without a GPU.

A temporary Hugging Face cache holds stand-ins under the repositories and revisions that `profiles.py` and `data.py` name: the real
architectures at tiny size with random weights, and beside them the files of the real repositories, whose gaps matter more than
the weights do. What touches the cache runs in a process of its own, for HF_HOME is read at import.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from itertools import pairwise, product
from pathlib import Path

import nbformat
import pytest

import utils
from tools import lessons
from utils import models, profiles

PROFILE = profiles.get("gpu")
GLUE = re.search(r'"nyu-mll/glue", "sst2", revision="(\w+)"', (utils.ROOT / "utils" / "data.py").read_text())[1]
OTHER = "0" * 40  # a revision that nobody asks for, and to which `main` points
DRESSED = "1" * 40  # of the Llama: brings a chat template, and no pad token
LESSONS = ("03_roberta_by_hand", "04_roberta_sst2", "05_four_bits", "06_llama2_qlora_sft")


# --- the texts ---

SENTENCES = [
    f"{a} {b} {c} {d} " for a, b, c, d in product(
        ("a quiet", "not a good", "the second", "an overlong", "one more"), ("film", "comedy", "thriller", "remake"),
        ("that is", "which stays", "and it feels"), ("moving .", "dull .", "warm and funny .", "a waste of time ."),
    )
]  # fmt: skip
TOPICS = ("rank", "bread", "rivers", "chess", "la lluvia", "tax", "glass", "owls", "Python", "winter", "maps", "salt")
QUESTIONS = [f"{ask} {topic}?" for ask, topic in product(("What is", "Tell me of", "¿Qué es", "Why", "Where"), TOPICS)]


def conversation(i: int) -> str:
    """A row of guanaco-llama2-1k: every fourth has two turns, every fifth an answer with lines and code."""
    answer = "In short:\n1. read\n2. `print(1)`" if i % 5 == 0 else f"That takes {i} words to say."
    text = f"<s>[INST] {QUESTIONS[i]} [/INST] {answer} </s>"
    return text + (f"<s>[INST] And then? [/INST] Then comes number {i + 1}. </s>" if i % 4 == 0 else "")


# --- the models ---


def write_roberta(folder: Path, hidden_size: int) -> None:
    """As FacebookAI/roberta-base is: weights of a masked language model, so the classification head is not among them."""
    import torch
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import RobertaConfig, RobertaForMaskedLM

    folder.mkdir(parents=True)
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(SENTENCES, 400, min_frequency=1, special_tokens=special, show_progress=False)
    trained.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    trained.save_model(str(folder))  # vocab.json, merges.txt
    trained.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    config = RobertaConfig(
        vocab_size=trained.get_vocab_size(), max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
        hidden_size=hidden_size, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaForMaskedLM(config).save_pretrained(folder)


def write_llama(folder: Path, hidden_size: int) -> None:
    """As NousResearch/Llama-2-7b-chat-hf is at the pinned revision: no chat template, the pad token only in
    `special_tokens_map.json`, a `<pad>` that has no row in the embeddings, fp16 weights in several files.

    What config, tokenizer_config and special_tokens_map say was rebuilt and found right by the files' SHA-256
    (3c66a81e…, 37951d5a…, 2ea88203…); added_tokens and generation_config are as others report them.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        map(conversation, range(len(QUESTIONS))), trainers.BpeTrainer(vocab_size=500, show_progress=False)
    )
    bpe = json.loads(trained.to_str())["model"]
    words = dict.fromkeys(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *bpe["vocab"]])
    vocab, merges = {word: i for i, word in enumerate(words)}, [tuple(pair) for pair in bpe["merges"]]
    llama = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    llama.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    llama.add_special_tokens([AddedToken(word, normalized=True) for word in ("<unk>", "<s>", "</s>")])
    llama.save(str(folder / "tokenizer.json"))
    flags = dict(lstrip=False, normalized=True, rstrip=False, single_word=False)
    special = {
        f"{name}_token": dict(content=word, **flags) for name, word in dict(bos="<s>", eos="</s>", unk="<unk>").items()
    }
    about = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    about |= dict(add_bos_token=True, add_eos_token=False, clean_up_tokenization_spaces=False, legacy=False, pad_token=None,
                  model_max_length=int(1e30), sp_model_kwargs={}, tokenizer_class="LlamaTokenizer")  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(vocab), hidden_size=hidden_size, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).half().save_pretrained(folder, max_shard_size="150KB")
    for name, content in {
        "tokenizer_config": about,
        "special_tokens_map": special | {"pad_token": "<unk>"},
        "added_tokens": {"<pad>": len(vocab)},
        "generation_config": dict(bos_token_id=1, eos_token_id=2, pad_token_id=len(vocab)),
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


# --- the cache ---


def write_dataset(folder: Path, repo: str, config: str, revision: str, splits: dict, features) -> None:
    """A dataset as `datasets` leaves it after its first use. Offline it looks for nothing else (not for files in the hub's
    cache), and takes the last one prepared, whatever revision is asked for: that the right one is asked for, test_data.py tests."""
    from datasets import Dataset, DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.arrow_writer import ArrowWriter

    name = repo.split("/")[1]
    place = folder / repo.replace("/", "___") / config / "0.0.0" / revision
    place.mkdir(parents=True)
    features, kept = Features(features), SplitDict()
    for split, rows in splits.items():
        with ArrowWriter(path=str(place / f"{name}-{split}.arrow"), features=features) as writer:
            writer.write_table(Dataset.from_dict(rows, features).data.table)
            count, size = writer.finalize()
        kept.add(SplitInfo(split, num_bytes=size, num_examples=count, dataset_name=name))
    DatasetInfo(
        features=features, builder_name="parquet", dataset_name=name, config_name=config, version="0.0.0", splits=kept
    ).write_to_directory(str(place))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for HF_HOME that holds what the profile names, and decoys."""
    from datasets import ClassLabel, Value

    home = tmp_path_factory.mktemp("hf")
    for write, repo, revision in (
        (write_roberta, PROFILE.encoder, PROFILE.encoder_revision),
        (write_llama, PROFILE.decoder, PROFILE.decoder_revision),
    ):
        folder = home / "hub" / f"models--{repo.replace('/', '--')}"
        write(folder / "snapshots" / revision, hidden_size=64)
        write(folder / "snapshots" / OTHER, hidden_size=128)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(OTHER)
    dressed = shutil.copytree(folder / "snapshots" / PROFILE.decoder_revision, folder / "snapshots" / DRESSED)
    (dressed / "special_tokens_map.json").unlink()
    (dressed / "chat_template.jinja").write_text("its own")
    labels = [i % 2 for i in range(len(SENTENCES))]
    rows = [dict(sentence=SENTENCES[a:b], label=labels[a:b], idx=list(range(b - a))) for a, b in ((0, 200), (200, 240))]
    glue = dict(train=rows[0], validation=rows[1], test=rows[1] | {"label": [-1] * 40})
    features = dict(sentence=Value("string"), label=ClassLabel(names=["negative", "positive"]), idx=Value("int32"))
    for config in ("sst2", "cola"):
        splits = glue if config == "sst2" else dict(train=dict(sentence=["no"], label=[0], idx=[0]))
        write_dataset(home / "datasets", "nyu-mll/glue", config, GLUE, splits, features)
    texts = dict(train=dict(text=[conversation(i) for i in range(len(QUESTIONS))]))
    write_dataset(home / "datasets", "mlabonne/guanaco-llama2-1k", "default", OTHER, texts, dict(text=Value("string")))
    return home


def settings(home) -> dict:
    """The environment in which the profile finds the stand-ins and no hub."""
    return dict(
        HF_HOME=str(home), HF_HUB_CACHE=str(home / "hub"), HF_DATASETS_CACHE=str(home / "datasets"), HF_HUB_OFFLINE="1",
        HF_MODULES_CACHE=str(home / "modules"), COURSE_PROFILE="gpu", COURSE_ENFORCE="0", PYTHONWARNINGS="ignore",
    )  # fmt: skip


def try_everything(folder: str) -> dict:
    """What the parts below return, or the traceback of what they raise."""
    told = {}
    for part in (try_encoder, try_decoder, try_gpu, try_missing):
        try:
            told[part.__name__] = part(Path(folder))
        except Exception:
            told[part.__name__] = traceback.format_exc()
    return told


@pytest.fixture(scope="session")
def tried(cache, tmp_path_factory):
    """try_everything(), in a process that has never seen another HF_HOME: (the folder it wrote to, what it returned)."""
    folder = tmp_path_factory.mktemp("tried")
    code = f"import json, test_gpu_profile as t; print(json.dumps(t.try_everything({str(folder)!r})))"
    path = os.pathsep.join(map(str, (utils.ROOT, utils.ROOT / "tests")))
    environment = {**os.environ, **settings(cache), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


def told_by(part, tried) -> dict:
    told = tried[1][part.__name__]
    assert isinstance(told, dict), told
    return told


def snapshot(repo: str, revision: str) -> Path:
    return Path(os.environ["HF_HUB_CACHE"], f"models--{repo.replace('/', '--')}", "snapshots", revision)


def message(call) -> str:
    """The type and the text of the error that `call` raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# --- the encoder and its sentences ---


def try_encoder(folder: Path) -> dict:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    from utils import adapters, data, models, training

    splits = data.load_sentiment(PROFILE)
    model, tokenizer = models.load_encoder(PROFILE)
    published = load_file(snapshot(PROFILE.encoder, PROFILE.encoder_revision) / "model.safetensors")
    packed, _ = models.load_encoder_in_4_bits(PROFILE)
    told = dict(
        rows={name: len(split) for name, split in splits.items()},
        columns={name: split.column_names for name, split in splits.items()},
        labels=sorted({*splits["train"]["label"], *splits["test"]["label"]}),
        kind=type(model).__name__,
        dtype=str(model.dtype),
        attention=model.config._attn_implementation,
        same_body=all(torch.equal(model.state_dict()[n], w) for n, w in published.items() if n.startswith("roberta.")),
        pieces=tokenizer.convert_ids_to_tokens(tokenizer("dull dull")["input_ids"]),
        pad=[tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id],
        packed=sum(type(module).__name__ == "Linear4bit" for module in packed.modules()),
        packed_dtype=str(packed.roberta.encoder.layer[0].output.dense.compute_dtype),
        head=str(packed.classifier.dense.weight.dtype),
        wanted_dtype=str(training.compute_dtype()),
    )
    adapted = get_peft_model(
        packed, LoraConfig("SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    ).eval()
    sentences = splits["test"]["sentence"][:]
    answers = training.predict(adapted, tokenizer, sentences, max_length=PROFILE.max_length)
    adapters.save_adapter(adapted, folder / "encoder", PROFILE.encoder, labels=data.LABELS)
    fresh, _ = models.load_encoder_in_4_bits(PROFILE, seed=5)
    reloaded = adapters.load_adapter(fresh, folder / "encoder", PROFILE.encoder).eval()
    told["reloaded"] = float(abs(training.predict(reloaded, tokenizer, sentences) - answers).max())
    told["right"] = [data.LABELS[i] for i in answers.argmax(1)]
    for name in ("gpu", "cpu"):  # cpu asks no hub, and finds the base in the cache
        words = adapters.load_finetuned(folder / "encoder", profiles.get(name))(sentences)
        told[name] = [row["label"] for row in words]
    told["other"] = message(lambda: adapters.load_adapter(packed, folder / "encoder", "FacebookAI/roberta-large"))
    moved = shutil.copytree(folder / "encoder", folder / "moved")
    config = (moved / "adapter_config.json").read_text()
    (moved / "adapter_config.json").write_text(config.replace(PROFILE.encoder_revision, OTHER))
    told["moved"] = message(lambda: adapters.load_adapter(packed, moved, PROFILE.encoder))
    return told


@pytest.fixture
def encoder(tried):
    return told_by(try_encoder, tried)


def test_sst2_comes_from_the_hub_s_id(encoder):
    assert encoder["rows"]["test"] == 40 and encoder["rows"]["train"] + encoder["rows"]["validation"] == 200
    assert set(map(tuple, encoder["columns"].values())) == {("sentence", "label")}
    assert encoder["labels"] == [0, 1]  # the validation split is tested on, for the test split's labels are all -1


def test_the_encoder_is_the_pinned_revision_s_with_a_new_head(encoder):
    assert encoder["kind"] == "RobertaForSequenceClassification" and encoder["same_body"]
    assert (encoder["dtype"], encoder["attention"]) == ("torch.float32", models.attention())


def test_the_tokenizer_is_roberta_s(encoder):
    assert encoder["pieces"][0] == "<s>" and encoder["pieces"][-2:] == ["Ġdull", "</s>"]
    assert not encoder["pieces"][1].startswith("Ġ")  # no space in front of the first word
    assert encoder["pad"] == ["<pad>", 1, 1]


def test_the_encoder_in_four_bits(encoder):
    assert encoder["packed"] == 2 * 6 and encoder["head"] == "torch.float32"
    assert encoder["packed_dtype"] == encoder["wanted_dtype"]


def test_an_adapter_of_a_hub_s_model_comes_back(encoder, tried):
    assert encoder["reloaded"] < 1e-6
    assert encoder["gpu"] == encoder["right"]
    assert sum(a == b for a, b in zip(encoder["cpu"], encoder["right"], strict=True)) >= 0.8 * len(encoder["right"])
    config = json.loads((tried[0] / "encoder" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (PROFILE.encoder, PROFILE.encoder_revision)
    assert not [value for value in config.values() if isinstance(value, str) and value.startswith(("/", "file:"))]
    assert re.match(rf"AdapterError: .*'{PROFILE.encoder}'.*'FacebookAI/roberta-large'", encoder["other"])
    assert re.match(rf"AdapterError: .*{OTHER[:12]}.*{PROFILE.encoder_revision[:12]}", encoder["moved"])


# --- the decoder and its conversations ---


def try_decoder(folder: Path) -> dict:
    import torch
    from peft import LoraConfig
    from safetensors.torch import load_file
    from trl import SFTTrainer

    from utils import adapters, data, models, training

    rows = data.load_instructions(PROFILE)
    model, tokenizer = models.load_decoder(PROFILE, quantization_config=models.four_bits())
    plain, _ = models.load_decoder(PROFILE)
    dressed = models.load_decoder(dataclasses.replace(PROFILE, decoder_revision=DRESSED))[1]
    weights = {}
    for file in snapshot(PROFILE.decoder, PROFILE.decoder_revision).glob("*.safetensors"):
        weights |= load_file(file)
    told = dict(
        rows={name: len(part) for name, part in rows.items()},
        columns=rows["train"].column_names,
        chats=[row["prompt"] + row["completion"] for part in rows.values() for row in part],
        turns=[[len(row["prompt"]), len(row["completion"])] for row in rows["train"]],
        kind=type(model).__name__,
        same_weights=all(torch.equal(plain.state_dict()[name], w.to(plain.dtype)) for name, w in weights.items()),
        dtypes=[str(dtype) for dtype in (plain.dtype, model.dtype, model.model.layers[0].mlp.up_proj.compute_dtype)],
        wanted_dtype=str(training.compute_dtype()),
        attention=[plain.config._attn_implementation, model.config._attn_implementation],
        packed=sorted({name.split(".")[-1] for name, m in model.named_modules() if type(m).__name__ == "Linear4bit"}),
        quantised=model.config.quantization_config.to_dict(),
        pad=[tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id, model.generation_config.pad_token_id],
        eos=tokenizer.eos_token,
        dressed=[dressed.pad_token, dressed.chat_template],
        texts=[], ids=[],
    )  # fmt: skip
    for chat in told["chats"]:
        told["texts"].append(tokenizer.apply_chat_template(chat, tokenize=False))
        told["ids"].append(tokenizer.apply_chat_template(chat)["input_ids"])
    with_system = [dict(role="system", content="Be brief."), dict(role="user", content="Why?")]
    told["system"] = tokenizer.apply_chat_template(with_system, tokenize=False, add_generation_prompt=True)

    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    changes = dict(
        max_steps=2, activation_checkpointing=True, train_sampling_strategy="group_by_length", disable_tqdm=True
    )
    trainer = SFTTrainer(
        model, args=training.sft_arguments(PROFILE, folder / "run", **changes), train_dataset=rows["train"],
        processing_class=tokenizer, peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"),
    )  # fmt: skip
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    told["batch"] = {name: tensor.tolist() for name, tensor in batch.items()}
    told["sampler"] = type(trainer._get_train_sampler()).__name__
    trainer.train()
    adapted = trainer.model.eval()
    told["calls"] = len(calls)
    told["B"] = [p.abs().max().item() for name, p in adapted.named_parameters() if "lora_B" in name]
    told["loss"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    adapters.save_adapter(adapted, folder / "decoder", PROFILE.decoder, tokenizer=tokenizer)
    fresh, _ = models.load_decoder(PROFILE, quantization_config=models.four_bits())
    ids = torch.tensor([told["ids"][0]])
    with torch.inference_mode():
        before = fresh(ids).logits
        reloaded = adapters.load_adapter(fresh, folder / "decoder", PROFILE.decoder).eval()
        after = reloaded(ids).logits
        with adapted.disable_adapter():
            told["base"] = float((adapted(ids).logits - before).abs().max())
    learnt = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    told["same_adapter"] = all(
        torch.equal(p, learnt[name].to(p.dtype)) for name, p in reloaded.named_parameters() if "lora_" in name
    )
    told["changed"] = float((after - before).abs().max())
    answer = reloaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    told["generated"] = answer.shape[1] - ids.shape[1]
    chat = adapters.load_finetuned(folder / "decoder", PROFILE)
    told["answer"], told["four"] = (
        chat("Why?"),
        type(chat.model.base_model.model.model.layers[0].mlp.up_proj.base_layer).__name__,
    )
    told["other"] = message(lambda: adapters.load_adapter(fresh, folder / "decoder", "meta-llama/Llama-2-7b-chat-hf"))
    return told


@pytest.fixture
def decoder(tried):
    return told_by(try_decoder, tried)


def test_guanaco_s_rows_are_prompts_and_completions(decoder):
    assert sum(decoder["rows"].values()) == len(QUESTIONS) and min(decoder["rows"].values()) > 0
    assert {"prompt", "completion"} <= set(decoder["columns"])
    assert {tuple(turns) for turns in decoder["turns"]} == {(1, 1), (3, 1)}
    said = [message["content"] for chat in decoder["chats"] for message in chat]
    assert not [text for text in said if re.search(r"</?s>|\[/?INST\]", text)] and set(QUESTIONS) < set(said)


def test_the_decoder_is_the_pinned_revision_s(decoder):
    assert decoder["kind"] == "LlamaForCausalLM" and decoder["same_weights"]
    assert decoder["dtypes"] == [decoder["wanted_dtype"]] * 3 and decoder["attention"] == [models.attention()] * 2


def test_the_decoder_in_four_bits(decoder):
    assert decoder["packed"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    chosen = decoder["quantised"]
    assert chosen["load_in_4bit"] and chosen["bnb_4bit_quant_type"] == "nf4" and chosen["bnb_4bit_use_double_quant"]


def test_padding_is_unk_and_not_the_end(decoder):
    """Llama 2 has no token for padding; `<pad>` has no row in the embeddings, and the published generation settings name it."""
    assert decoder["pad"] == ["<unk>", 0, 0, 0] and decoder["eos"] == "</s>"


def test_what_a_tokenizer_brings_is_kept_and_what_it_lacks_is_in_its_vocabulary(decoder):
    assert decoder["dressed"] == ["<unk>", "its own"]


def test_a_conversation_is_dressed_as_llama_2_was_trained(decoder):
    """The pinned repository brings no template. The text must be guanaco's own again, with one <s> and </s> for each turn."""
    assert sorted(decoder["texts"]) == sorted(map(conversation, range(len(QUESTIONS))))
    for chat, ids in zip(decoder["chats"], decoder["ids"], strict=True):
        assert (ids.count(1), ids.count(2)) == (len(chat) // 2, len(chat) // 2) and (ids[0], ids[-1]) == (1, 2)
        assert (1, 1) not in pairwise(ids)
    assert decoder["system"] == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST]"


def test_only_the_last_answer_and_its_end_are_learnt(decoder):
    batch = decoder["batch"]
    for ids, labels, seen in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        learnt = [label for label in labels if label != -100]
        assert learnt[-1] == 2 and learnt.count(2) == 1 and 1 not in learnt
        assert ids[0] == 1 and all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
        assert all(token == 0 and label == -100 for token, label, on in zip(ids, labels, seen, strict=True) if not on)


def test_two_steps_with_checkpointing_move_every_b(decoder):
    assert len(decoder["B"]) == 2 * 7 and min(decoder["B"]) > 0
    assert decoder["calls"] == 4  # twice in each step: the backward pass computes the layer again
    assert decoder["sampler"] == "LengthGroupedSampler" and all(0 < loss < 20 for loss in decoder["loss"])


def test_the_decoder_s_adapter_comes_back(decoder):
    assert decoder["same_adapter"] and decoder["base"] == 0 and decoder["changed"] > 0 and decoder["generated"] > 0
    assert isinstance(decoder["answer"], str) and decoder["four"] == "Linear4bit"
    assert re.match(rf"AdapterError: .*'{PROFILE.decoder}'.*'meta-llama/Llama-2-7b-chat-hf'", decoder["other"])


# --- what is not there ---


def try_missing(folder: Path) -> dict:
    import datasets

    from utils import data, models

    unknown = dataclasses.replace(PROFILE, encoder_revision="f" * 40, decoder="meta-llama/Llama-2-7b-chat-hf")
    datasets.config.HF_DATASETS_CACHE = folder / "nowhere"
    return dict(
        encoder=message(lambda: models.load_encoder(unknown)),
        decoder=message(lambda: models.load_decoder(unknown)),
        sentiment=message(lambda: data.load_sentiment(unknown)),
        instructions=message(lambda: data.load_instructions(unknown)),
    )


@pytest.fixture
def missing(tried):
    return told_by(try_missing, tried)


@pytest.mark.parametrize(
    "what, named",
    [("encoder", rf"{PROFILE.encoder}.*f{{40}}"), ("decoder", r"meta-llama/Llama-2-7b-chat-hf"),
     ("sentiment", "nyu-mll/glue"), ("instructions", "mlabonne/guanaco-llama2-1k")],
)  # fmt: skip
def test_without_a_hub_the_error_names_what_is_missing(missing, what, named):
    assert re.search(named, missing[what], re.DOTALL), missing[what]


# --- what a GPU would be asked to hold ---


def try_gpu(folder: Path) -> dict:
    """What the loader passes on where there is a GPU that computes in bf16, and one that does not."""
    from unittest import mock

    import torch
    import transformers

    from utils import models, training

    told = {}
    for name, modern in dict(bf16=True, fp16=False).items():
        with (
            mock.patch.object(torch.cuda, "is_available", lambda: True),
            mock.patch.object(
                torch.cuda, "is_bf16_supported", lambda including_emulation=True, m=modern: m or including_emulation
            ),
            mock.patch.object(transformers.AutoModelForCausalLM, "from_pretrained", side_effect=LookupError) as asked,
        ):
            told[name] = dict(precision=training.precision())
            message(lambda: models.load_decoder(PROFILE, quantization_config=models.four_bits()))
        options = asked.call_args.kwargs
        told[name] |= dict(
            source=asked.call_args.args[0], revision=options["revision"], dtype=str(options["dtype"]),
            four_bits=str(options["quantization_config"].bnb_4bit_compute_dtype),
            attention=options["attn_implementation"], device=list(options["device_map"].values()),
        )  # fmt: skip
    return told


@pytest.mark.parametrize("name, dtype", [("bf16", "torch.bfloat16"), ("fp16", "torch.float16")])
def test_on_a_gpu_the_whole_model_goes_there_in_its_own_16_bits(tried, name, dtype):
    assert told_by(try_gpu, tried)[name] == dict(
        source=PROFILE.decoder, revision=PROFILE.decoder_revision, precision={name: True}, dtype=dtype, four_bits=dtype,
        attention="sdpa", device=[0],
    )  # fmt: skip


# --- whole lessons ---


@pytest.mark.lesson
@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_reaches_its_last_cell(name, cache, tmp_path):
    """Claims are printed and not judged, for random weights know nothing."""
    notebook = nbformat.read(lessons.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.id == "own-table":  # thousands of sentences would teach them no more than these
            cell.source = cell.source.replace("rows.replace(", "rows[::15].replace(")
    result = lessons.execute(notebook, "gpu", COURSE_BUILD=str(tmp_path), **settings(cache))
    assert not result.error, result.error
    assert "Profile gpu" in str(result.notebook)
