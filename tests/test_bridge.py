"""Three views of one layer: NumPy, `LoRALinear`, PEFT; and PyTorch's own parametrization as an independent oracle."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora.layer import Linear as PeftLinear
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

from utils import lora, lowrank, models, profiles
from utils.lora import LoRALinear

quick = settings(deadline=None, max_examples=40)
layers = st.tuples(
    st.integers(1, 24), st.integers(1, 24), st.floats(0.5, 32), st.booleans(), st.integers(0, 99)
).flatmap(lambda drawn: st.tuples(st.just(drawn), st.integers(1, min(drawn[:2]))))


class PlusBA(nn.Module):
    """A LoRA as a function weight -> weight, written without looking at LoRALinear."""

    def __init__(self, A, B, scaling):
        super().__init__()
        self.A, self.B, self.scaling = nn.Parameter(A.clone()), nn.Parameter(B.clone()), scaling

    def forward(self, weight):
        return weight + self.scaling * self.B @ self.A


def trio(drawn, dtype=torch.float32):
    """(ours, PEFT's, the parametrised layer) with equal weights and factors, B away from zero."""
    (d_in, d_out, alpha, rslora, seed), r = drawn
    torch.manual_seed(seed)
    bases = [nn.Linear(d_in, d_out, dtype=dtype) for _ in range(3)]
    for base in bases[1:]:
        base.load_state_dict(bases[0].state_dict())
    ours = LoRALinear(bases[0], r, alpha, use_rslora=rslora)
    nn.init.normal_(ours.lora_B)
    config = LoraConfig(r=r, lora_alpha=alpha, use_rslora=rslora)
    theirs = PeftLinear(bases[1].requires_grad_(False), "default", config, r=r, lora_alpha=alpha).to(dtype)
    theirs.lora_A["default"].weight.data.copy_(ours.lora_A)
    theirs.lora_B["default"].weight.data.copy_(ours.lora_B)
    oracle = bases[2].requires_grad_(False)
    scaling = alpha / r**0.5 if rslora else alpha / r
    parametrize.register_parametrization(oracle, "weight", PlusBA(ours.lora_A.detach(), ours.lora_B.detach(), scaling))
    return ours, theirs, oracle


def near(one, other, size):
    """Equal to 1e-6 of `size`: what the terms, whose sum may be small, add up to without their signs."""
    torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=1e-6 * size.abs().max().item())


def learn(layer, x):
    """(answer, gradient of x, of A, of B) for the loss sum(answer ** 2)."""
    inner = x.clone().requires_grad_()
    answer = layer(inner)
    A, B = (p for p in layer.parameters() if p.requires_grad)  # all three register A first
    return answer, *torch.autograd.grad(answer.square().sum(), (inner, A, B))


def without_signs(layer):
    """A copy of `layer` whose parameters are all positive."""
    twin = copy.deepcopy(layer)
    for parameter in twin.parameters():
        parameter.data.abs_()
    return twin


@quick
@given(layers)
def test_one_update_three_ways(drawn):
    (_, _, alpha, rslora, _), r = drawn
    ours, theirs, oracle = trio(drawn)
    size = without_signs(oracle).weight
    A, B = ours.lora_A.detach().numpy(), ours.lora_B.detach().numpy()
    numpys = lowrank.delta(B, A, alpha * r**0.5 if rslora else alpha)
    near(ours.delta_weight, torch.from_numpy(numpys), size)
    near(ours.delta_weight, theirs.get_delta_weight("default"), size)
    near(ours.delta_weight, oracle.weight - oracle.parametrizations.weight.original, size)


@quick
@given(layers, st.lists(st.integers(1, 5), max_size=2))
def test_forward_and_gradients(drawn, batch):
    ours, theirs, oracle = trio(drawn)
    x = torch.randn(*batch, ours.base_layer.in_features)
    sizes = learn(without_signs(oracle), x.abs())
    mine = learn(ours, x)
    for others in (learn(theirs, x), learn(oracle, x)):
        for one, other, size in zip(mine, others, sizes, strict=True):
            near(one, other, size)


@quick
@given(layers)
def test_gradients_are_numpys(drawn):
    """dL/dA and dL/dB from dL/d(update), as lesson 01 derives them, are what autograd finds."""
    (_, _, alpha, rslora, _), r = drawn
    ours, *_ = trio(drawn, torch.float64)
    x = torch.randn(6, ours.base_layer.in_features, dtype=torch.float64)
    answer, _, dA, dB = learn(ours, x)
    G = (2 * answer.detach()).T @ x
    A, B = ours.lora_A.detach().numpy(), ours.lora_B.detach().numpy()
    by_hand = lowrank.gradients(B, A, alpha * r**0.5 if rslora else alpha, G.numpy())
    torch.testing.assert_close(dB, torch.from_numpy(by_hand[0]))
    torch.testing.assert_close(dA, torch.from_numpy(by_hand[1]))


@quick
@given(layers)
def test_merge_and_unmerge(drawn):
    ours, theirs, oracle = trio(drawn)
    size = without_signs(oracle).weight
    before = theirs.base_layer.weight.clone()
    ours.merge()
    theirs.merge()
    parametrize.remove_parametrizations(oracle, "weight", leave_parametrized=True)
    near(ours.base_layer.weight, theirs.base_layer.weight, size)
    near(ours.base_layer.weight, oracle.weight, size)
    ours.unmerge()
    theirs.unmerge()
    near(theirs.base_layer.weight, before, size)  # PEFT subtracts again and is nearly back
    assert torch.equal(ours.base_layer.weight, before)  # ours keeps the weight and is back


# --- on a real model ---

TARGETS, R, ALPHA = ["query", "value"], 8, 16
SENTENCES = ["A quiet film that grows on you.", "Dull, loud and far too long!", "Well acted."]


def wrapped(how: str):
    """The local RoBERTa with a LoRA on query and value, by `how`; equal heads."""
    model, tokenizer = models.load_encoder(profiles.get("smoke"))
    if how == "peft":
        return get_peft_model(
            model, LoraConfig("SEQ_CLS", r=R, lora_alpha=ALPHA, target_modules=TARGETS)
        ).eval(), tokenizer
    lora.inject(model, TARGETS, R, ALPHA)
    model.classifier.requires_grad_(True)
    return model, tokenizer


def ours_to_peft(name: str) -> str:
    """PEFT's name, as it saves it, for one of ours."""
    return f"base_model.model.{name}" + (".weight" if "lora_" in name else "")


@pytest.fixture(scope="module")
def pair():
    """(ours, PEFT's, a batch) with equal, trained-looking adapters."""
    (ours, tokenizer), (theirs, _) = wrapped("ours"), wrapped("peft")
    torch.manual_seed(0)
    for _, layer in lora.layers(ours):
        nn.init.normal_(layer.lora_B, std=0.05)
    known = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, layer in lora.layers(ours):
            for which in ("lora_A", "lora_B"):
                known[f"base_model.model.{name}.{which}.default.weight"].copy_(getattr(layer, which))
    return ours, theirs, tokenizer(SENTENCES, padding=True, return_tensors="pt")


def test_real_model_logits_and_gradients(pair):
    ours, theirs, batch = pair
    base, _ = models.load_encoder(profiles.get("smoke"))
    labels = torch.tensor([1, 0, 1])
    mine, peft = ours(**batch, labels=labels), theirs(**batch, labels=labels)
    assert (mine.logits - base(**batch).logits).abs().max() > 0.01  # the adapters say something
    assert (mine.logits - peft.logits).abs().max() < 1e-5
    mine.loss.backward()
    peft.loss.backward()
    known = dict(theirs.named_parameters())
    for name, layer in lora.layers(ours):
        for which in ("lora_A", "lora_B"):
            gradient = known[f"base_model.model.{name}.{which}.default.weight"].grad
            torch.testing.assert_close(getattr(layer, which).grad, gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        ours.classifier.dense.weight.grad,
        theirs.base_model.model.classifier.modules_to_save["default"].dense.weight.grad,
        rtol=1e-4,
        atol=1e-6,
    )


def test_real_model_counts(pair):
    ours, theirs, _ = pair
    width, depth = 384, 6
    mine = lora.count_parameters(ours)
    assert mine == lora.count_parameters(theirs)
    assert mine.lora == depth * len(TARGETS) * R * 2 * width
    assert mine.lora + mine.head == theirs.get_nb_trainable_parameters()[0]
    assert mine.head == width * width + width + 2 * width + 2


def test_a_peft_adapter_opens_in_ours(pair, tmp_path):
    _, theirs, batch = pair
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == R
    saved = load_file(tmp_path / "adapter_model.safetensors")
    fresh, _ = wrapped("ours")
    ours_to_theirs = {name: ours_to_peft(name) for name in lora.lora_state_dict(fresh)}
    assert set(ours_to_theirs.values()) == set(saved)
    lora.load_lora_state_dict(fresh, {mine: saved[peft] for mine, peft in ours_to_theirs.items()})
    with torch.no_grad():
        assert (fresh(**batch).logits - theirs(**batch).logits).abs().max() < 1e-5


def test_our_adapter_opens_in_peft(pair):
    ours, _, batch = pair
    fresh, _ = wrapped("peft")
    state = lora.lora_state_dict(ours)
    loaded = set_peft_model_state_dict(fresh, {ours_to_peft(name): t for name, t in state.items()})
    assert not loaded.unexpected_keys
    with torch.no_grad():
        assert (fresh(**batch).logits - ours(**batch).logits).abs().max() < 1e-5


@torch.no_grad()
def test_real_model_merged(pair):
    *both, batch = pair
    ours, theirs = map(copy.deepcopy, both)
    live = ours(**batch).logits
    names = lora.merge_all(ours)
    assert len(names) == 12 and not lora.layers(ours)
    assert (ours(**batch).logits - live).abs().max() < 1e-5
    assert (theirs.merge_and_unload()(**batch).logits - ours(**batch).logits).abs().max() < 1e-5
