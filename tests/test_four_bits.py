"""Four-bit models: what is packed and what is not, the evaluation that must not break training, the base that stays itself."""

import sys

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model

from utils import lora, models, nf4, profiles, training

SMOKE = profiles.get("smoke")
SENTENCES = ["a gripping film from the first minute .", "it 's dull ."]


@pytest.fixture(scope="module")
def encoder():
    return models.load_encoder_in_4_bits(SMOKE)


@pytest.fixture(scope="module")
def decoder():
    return models.load_decoder(SMOKE, quantization_config=models.four_bits())


def test_what_is_packed_and_what_is_not(encoder):
    model, _ = encoder
    packed = {n for n, p in model.named_parameters() if p.dtype == torch.uint8}
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert packed == {name for name in linear if ".layer." in name} and len(packed) == 36
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64), name
    assert model.classifier.dense.weight.dtype == torch.float32
    plain, _ = models.load_encoder(SMOKE)
    assert torch.equal(model.classifier.dense.weight, plain.classifier.dense.weight)  # the same random head
    assert lora.count_parameters(model)[-1] == lora.count_parameters(plain)[-1]


def test_stored_bytes_are_what_the_count_of_bits_says(encoder):
    model, _ = encoder
    packed = [p for p in model.parameters() if p.dtype == torch.uint8]
    for p in packed:
        size = p.quant_state.shape.numel()
        assert models.stored_bytes(p) == round(nf4.bits_per_parameter(size, double=True) * size / 8)
    ratio = sum(map(models.stored_bytes, packed)) / sum(2 * p.quant_state.shape.numel() for p in packed)
    assert 0.257 < ratio <= 0.27
    assert models.stored_bytes(model.classifier.dense.weight) == 4 * 384 * 384


def gradients(evaluate_first: bool):
    """Gradients of every lora_B after one step's loss, with or without an evaluation before."""
    model, tokenizer = models.load_encoder_in_4_bits(SMOKE, classifier_dropout=0.0)
    training.set_seed(0)
    config = LoraConfig("SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(model, config)
    if evaluate_first:
        training.predict(model, tokenizer, SENTENCES)
    model.train()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with training.autocast():
        loss = model(**batch, labels=torch.tensor([1, 0])).loss
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if "lora_B" in n}


def test_an_evaluation_before_training_changes_no_gradient():
    before, after = gradients(False), gradients(True)
    assert len(before) == 12
    for name, grad in before.items():
        assert grad.norm() > 0 and torch.allclose(grad, after[name], atol=1e-6), name


def test_the_same_for_the_decoder(decoder):
    model, tokenizer = decoder
    switches = [m.support_avx512bf16_for_cpu for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(switches) == 210 and not any(switches)
    layer, x = model.model.layers[0].self_attn.q_proj, torch.randn(2, 576, dtype=torch.bfloat16)
    with torch.inference_mode():
        model.eval()(**tokenizer("Hello", return_tensors="pt"))
    x.requires_grad_(True)
    layer.train()(x).sum().backward()
    assert x.grad.norm() > 0


def test_an_adapter_switched_off_is_the_base(decoder):
    """After training steps, the model with its adapter off gives a freshly loaded base's logits."""
    model, tokenizer = models.load_decoder(SMOKE, quantization_config=models.four_bits())
    batch = tokenizer("What does the rank of a matrix count?", return_tensors="pt")
    training.set_seed(0)
    model = get_peft_model(model, LoraConfig("CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(2):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        fresh = decoder[0].eval()(**batch).logits
        adapted = model(**batch).logits
        with model.disable_adapter():
            off = model(**batch).logits
    assert (off - fresh).abs().max() <= 1e-5
    assert (adapted - fresh).abs().max() > 0.1


def test_padding_is_not_the_end(decoder):
    model, tokenizer = decoder
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


# --- what cannot be ---


def test_without_bitsandbytes_there_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(
        RuntimeError, match=r"need bitsandbytes, which does not load on this platform .*leave quantization_config"
    ):
        models.four_bits()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU trains in fp16")
def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"fp16=True was asked for on a CPU.*leave it out"):
        training.sft_arguments(SMOKE, tmp_path / "out", fp16=True)
    assert not (tmp_path / "out").exists()


def test_adapters_become_fp32_only_where_fp16_needs_it(monkeypatch):
    for precision, dtype in (({"fp16": True}, torch.float32), ({"bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(training, "precision", lambda precision=precision: precision)
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).to(torch.bfloat16)
        model[0].requires_grad_(False)
        assert training.ready_for_fp16(model)[1].weight.dtype == dtype
        assert model[0].weight.dtype == torch.bfloat16


def test_sft_arguments_follow_the_profile(tmp_path):
    arguments = training.sft_arguments(SMOKE, tmp_path, max_length=99)
    assert arguments.completion_only_loss and arguments.max_length == 99
    assert arguments.learning_rate == SMOKE.instruction_rate
    assert (arguments.bf16, arguments.fp16) == (training.compute_dtype() == torch.bfloat16, False)
    assert arguments.activation_checkpointing is torch.cuda.is_available()
