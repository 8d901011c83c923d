"""The parameter counts the course quotes, proved on the meta device: shapes only, no weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from utils import lora

ROBERTA_BASE = dict(
    vocab_size=50_265,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3_072,
    max_position_embeddings=514,
    type_vocab_size=1,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
)
LLAMA_2_7B = dict(
    vocab_size=32_000,
    hidden_size=4_096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    intermediate_size=11_008,
    tie_word_embeddings=False,
)
BASE, HEAD = 124_647_170, 592_130  # roberta-base with a 2-label head, and that head


def roberta():
    with torch.device("meta"):
        return RobertaForSequenceClassification(RobertaConfig(**ROBERTA_BASE))


def llama():
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**LLAMA_2_7B))


def test_roberta_base():
    assert lora.count_parameters(roberta()) == (0, HEAD, BASE - HEAD, 0, BASE)


def test_lora_of_the_paper():
    """Hu et al. 2021, table 2: 0.3 M trained."""
    model = roberta()
    assert len(lora.inject(model, ["query", "value"], 8, 8)) == 24
    model.classifier.requires_grad_(True)
    assert lora.count_parameters(model) == (294_912, HEAD, 0, BASE - HEAD, BASE + 294_912)


def test_the_665_858_of_a_tutorial():
    """Its printout: 11 % LoRA, 89 % head, and a total in which the head stands twice."""
    model = get_peft_model(roberta(), LoraConfig("SEQ_CLS", r=2, target_modules=["query", "value"]))
    assert model.get_nb_trainable_parameters() == (665_858, 125_313_028)
    counts = lora.count_parameters(model)
    assert counts == (73_728, HEAD, 0, BASE - HEAD, BASE + 73_728)
    assert counts.lora + counts.head == 665_858
    assert BASE + 73_728 + HEAD == 125_313_028
    assert round(100 * counts.lora / 665_858) == 11


def test_the_420_098_of_a_tutorial():
    """LoRA, all biases and LayerNorms, and a head of LayerNorm and one linear layer: 0.34 % trained, 0.24 % LoRA."""
    with torch.device("meta"):
        body = RobertaModel(RobertaConfig(**ROBERTA_BASE))
        model = nn.ModuleDict(dict(body=body, head_norm=nn.LayerNorm(768), classifier=nn.Linear(768, 2)))
    lora.inject(model, ["query", "value"], 8, 8)
    for name, parameter in model.named_parameters():
        if "bias" in name or "LayerNorm" in name or name.startswith(("head_norm", "classifier")):
            parameter.requires_grad_(True)
    counts = lora.count_parameters(model)
    assert counts.lora == 294_912
    assert counts.lora + counts.head + counts.other == 420_098
    assert f"{420_098 / counts.total:.2%}" == "0.34%" and f"{counts.lora / counts.total:.2%}" == "0.24%"


@pytest.mark.parametrize(
    ("targets", "trained", "share"),
    [
        (["q_proj", "v_proj"], 4_194_304, "0.0622%"),
        (["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], 19_988_480, "0.2958%"),
    ],
)
def test_llama_2_7b(targets, trained, share):
    model = llama()
    lora.inject(model, targets, 8, 16)
    counts = lora.count_parameters(model)
    assert counts == (trained, 0, 0, 6_742_609_920 - 4_194_304, counts.total)
    assert counts.total == 6_742_609_920 - 4_194_304 + trained
    assert f"{counts.lora / counts.total:.4%}" == share
