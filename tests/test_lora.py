"""utils/lora.py: the layer, injection, saving, counting."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

from utils import lora, lowrank
from utils.lora import LoRALinear

FLOATS = (torch.float32, torch.bfloat16, torch.float64)
quick = settings(deadline=None, max_examples=60)


def make(d_in=16, d_out=12, r=4, alpha=8.0, dtype=torch.float32, adapter=None, trained=True, **options) -> LoRALinear:
    """A layer with B away from zero (unless not `trained`), its adapter in another dtype where one is given."""
    layer = LoRALinear(nn.Linear(d_in, d_out, dtype=dtype), r, alpha, **options)
    if trained:
        nn.init.normal_(layer.lora_B)
    for parameter in (layer.lora_A, layer.lora_B):
        parameter.data = parameter.data.to(adapter or dtype)
    return layer


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x):
        return self.norm(x + self.output["dense"](torch.tanh(self.query(x)) * self.key(x) + self.value(x)))


class Net(nn.Module):
    """Two blocks and a head: paths such as `layers.1.query` and `layers.0.output.dense`."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(2))
        self.classifier = nn.Linear(width, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


def net(seed=0) -> Net:
    torch.manual_seed(seed)
    return Net()


def adapted(seed=0, targets=("query", "value"), r=2, **options) -> Net:
    """A wrapped Net whose head learns too, with B and head drawn from `seed`; the base is the same for every seed."""
    model = net()
    lora.inject(model, targets, r, 4, **options)
    model.classifier.requires_grad_(True)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            nn.init.normal_(parameter)
    return model


def x_for(layer, *shape):
    base = layer.base_layer
    return torch.randn(*shape, base.in_features, dtype=base.weight.dtype)


# --- the layer ---

shapes = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda d: st.tuples(st.just(d[0]), st.just(d[1]), st.integers(1, min(d)))
)
batches = st.lists(st.integers(1, 4), max_size=2)  # the input has 1 to 3 dimensions


@quick
@given(shapes, batches, st.sampled_from(FLOATS), st.booleans(), st.integers(0, 99))
def test_nothing_changes_while_B_is_zero(shape, batch, dtype, training, seed):
    torch.manual_seed(seed)
    layer = make(*shape, dtype=dtype, trained=False, dropout=0.5).train(training)
    x = x_for(layer, *batch)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert layer.lora_A.abs().max() > 0  # or nothing would ever learn


@quick
@given(shapes, batches, st.sampled_from(FLOATS), st.floats(0.1, 64), st.booleans(), st.integers(0, 99))
def test_on_the_fly_merged_and_formula_agree(shape, batch, dtype, alpha, rslora, seed):
    torch.manual_seed(seed)
    d_in, d_out, r = shape
    layer = make(d_in, d_out, r, alpha, dtype, use_rslora=rslora)
    x = x_for(layer, *batch)
    scaling = alpha / math.sqrt(r) if rslora else alpha / r
    W, b, A, B = (
        t.detach().double() for t in (layer.base_layer.weight, layer.base_layer.bias, layer.lora_A, layer.lora_B)
    )
    expected = x.double() @ (W + scaling * B @ A).T + b
    # The most that rounding can add up to in this dtype
    size = x.double().abs() @ (W.abs() + scaling * B.abs() @ A.abs()).T + b.abs()
    bound = 8 * torch.finfo(dtype).eps * size

    live = layer(x)
    assert live.dtype == dtype and live.shape == (*batch, d_out)
    assert ((live.double() - expected).abs() <= bound).all()
    layer.merge()
    assert ((layer(x).double() - expected).abs() <= bound).all()
    assert layer.scaling == pytest.approx(scaling)


@quick
@given(shapes, st.sampled_from(FLOATS), st.integers(0, 99))
def test_rank_of_the_update_is_at_most_r(shape, dtype, seed):
    torch.manual_seed(seed)
    layer = make(*shape, dtype=dtype)
    delta = layer.delta_weight.detach()
    assert delta.shape == layer.base_layer.weight.shape
    assert 1 <= lowrank.numerical_rank(delta.double().numpy(), rtol=1e-4) <= shape[2]


def test_delta_weight_is_the_scaled_product_in_fp32_or_wider():
    layer = make(r=4, alpha=8, dtype=torch.bfloat16)
    expected = 2 * layer.lora_B.float() @ layer.lora_A.float()
    assert layer.delta_weight.dtype == torch.float32
    torch.testing.assert_close(layer.delta_weight, expected, rtol=1e-6, atol=1e-6)
    assert make(dtype=torch.float64).delta_weight.dtype == torch.float64


def test_A_starts_as_nn_linear_does_and_B_at_zero():
    layer = LoRALinear(nn.Linear(400, 300), 64, 8)
    bound = 1 / math.sqrt(400)  # Kaiming uniform with a = sqrt(5)
    assert layer.lora_A.abs().max() <= bound
    assert layer.lora_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layer.lora_B.any()


def test_only_A_and_B_learn():
    layer = make()
    x = x_for(layer, 5).requires_grad_()
    layer(x).square().sum().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is not None] == ["lora_A", "lora_B"]
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]
    assert x.grad.abs().max() > 0  # the layers below must learn through it


def test_on_the_first_step_only_B_moves():
    layer = make(trained=False)
    layer(x_for(layer, 5)).square().sum().backward()
    assert not layer.lora_A.grad.any() and layer.lora_B.grad.any()


def test_gradients_against_numerical_differences():
    layer = make(6, 5, 2, dtype=torch.float64)
    x = x_for(layer, 3).requires_grad_()

    def answer(x, A, B):
        return torch.func.functional_call(layer, {"lora_A": A, "lora_B": B}, x)

    assert torch.autograd.gradcheck(answer, (x, layer.lora_A, layer.lora_B))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("adapter", FLOATS)
def test_merge_is_explicit_idempotent_and_undone_exactly(dtype, adapter):
    torch.manual_seed(0)
    layer = make(dtype=dtype, adapter=adapter)
    x = x_for(layer, 7)
    before, live = layer.base_layer.weight.clone(), layer(x)
    layer.train().eval()  # changing the mode must not merge
    assert not layer.merged and torch.equal(layer.base_layer.weight, before)

    layer.merge()
    once = layer.base_layer.weight.clone()
    layer.merge()
    assert layer.merged and torch.equal(layer.base_layer.weight, once) and not torch.equal(once, before)
    assert set(layer.state_dict()) == {
        "lora_A",
        "lora_B",
        "base_layer.weight",
        "base_layer.bias",
    }  # not the kept weight
    assert layer.base_layer.weight.dtype == dtype == layer(x).dtype
    coarsest = max(torch.finfo(dtype).eps, torch.finfo(adapter).eps)
    torch.testing.assert_close(layer(x), live, rtol=8 * coarsest, atol=64 * coarsest)

    layer.unmerge()
    layer.unmerge()
    assert not layer.merged and torch.equal(layer.base_layer.weight, before) and torch.equal(layer(x), live)


def test_merge_rounds_once():
    """In bf16 the sum is taken in fp32: adding an already rounded update would double the error."""
    torch.manual_seed(0)
    layer = make(64, 64, 8, dtype=torch.bfloat16)
    exact = layer.base_layer.weight.float() + layer.delta_weight
    layer.merge()
    assert torch.equal(layer.base_layer.weight, exact.bfloat16())


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_switched_off_it_answers_as_the_base(merged, dtype):
    layer = make(dtype=dtype)
    x = x_for(layer, 5)
    base = layer.base_layer(x)
    if merged:
        layer.merge()
    on = layer(x)
    layer.enabled = False
    assert torch.equal(layer(x), base)
    layer.enabled = True
    assert torch.equal(layer(x), on) and not torch.equal(on, base)


def test_a_merged_layer_follows_a_change_of_dtype():
    layer = make()
    layer.merge()
    layer.bfloat16().unmerge()
    assert layer.base_layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("merged", [False, True])
def test_to_linear_leaves_a_plain_layer(merged):
    layer = make()
    x = x_for(layer, 5)
    live = layer(x)
    if merged:
        layer.merge()
    plain = layer.to_linear()
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), live)


def test_dropout_acts_in_training_only_and_on_the_adapter_only():
    torch.manual_seed(0)
    layer = make(dropout=0.5)
    plain = make()
    plain.load_state_dict(layer.state_dict())
    x = x_for(layer, 50)
    assert torch.equal(layer.eval()(x), plain(x))
    first, second = layer.train()(x), layer(x)
    assert not torch.equal(first, second)
    mean = torch.stack([layer(x) for _ in range(3000)]).mean(0)  # what is dropped is made up for by scaling
    assert (mean - plain(x)).abs().max() < 0.15 * (plain(x) - layer.base_layer(x)).abs().max()


def test_no_bias_and_subclasses_of_linear():
    class Mine(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 3

    base = Mine(6, 5, bias=False)
    layer = LoRALinear(base, 2, 4)
    x = torch.randn(4, 6)
    assert torch.equal(layer(x), base(x))


def test_autocast_keeps_fp32_parameters_and_answers_in_bf16():
    torch.manual_seed(0)
    layer = make(64, 64, 8)
    x = x_for(layer, 32)
    exact = layer(x)
    exact.square().mean().backward()
    gradient, layer.lora_B.grad = layer.lora_B.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        answer = layer(x)
        assert answer.dtype == torch.bfloat16
        answer.float().square().mean().backward()
    assert layer.lora_B.grad.dtype == torch.float32
    assert (answer.float() - exact).norm() < 0.02 * exact.norm()
    assert (layer.lora_B.grad - gradient).norm() < 0.03 * gradient.norm()


@pytest.mark.parametrize("merged", [False, True])
def test_a_deep_copy_stands_alone(merged):
    layer = make()
    if merged:
        layer.merge()
    x = x_for(layer, 5)
    twin, answer = copy.deepcopy(layer), layer(x)
    assert torch.equal(twin(x), answer)
    with torch.no_grad():
        twin.unmerge()
        twin.lora_B.zero_()
        twin.base_layer.weight.zero_()
    assert torch.equal(layer(x), answer)


@pytest.mark.parametrize("r", [0, -1, 7, 2.0, "4", None, True])
def test_bad_rank(r):
    with pytest.raises(ValueError, match=rf"r={re.escape(repr(r))}, .* whole number from 1 to 6 .*usual"):
        LoRALinear(nn.Linear(6, 8), r, 8)


@pytest.mark.parametrize("alpha", [0, -1.0, math.nan, math.inf, "16", None, True])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=rf"alpha={re.escape(repr(alpha))}, .*positive number.*usual"):
        LoRALinear(nn.Linear(6, 8), 2, alpha)


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.5, math.nan, "0.1", None, True])
def test_bad_dropout(dropout):
    with pytest.raises(ValueError, match=rf"dropout={re.escape(repr(dropout))}, .*at least 0 and below 1.*usual"):
        LoRALinear(nn.Linear(6, 8), 2, 4, dropout)


@pytest.mark.parametrize("layer", [nn.Embedding(4, 4), nn.Conv1d(4, 4, 1), nn.Sequential(nn.Linear(4, 4)), None])
def test_only_a_linear_layer_is_wrapped(layer):
    with pytest.raises(TypeError, match=rf"is a {type(layer).__name__};.*wraps nn.Linear.*Pass"):
        LoRALinear(layer, 2, 4)


def test_a_lora_layer_is_not_wrapped_again():
    with pytest.raises(TypeError, match="LoRALinear"):
        LoRALinear(make(), 2, 4)


def test_numbers_from_numpy_are_welcome():
    layer = LoRALinear(nn.Linear(6, 8), np.int64(2), np.float32(4))
    assert layer.scaling == 2 and layer.lora_A.shape == (2, 6)


# --- who else reads or holds the weight ---


def trained(model, targets, **options):
    """`model` with LoRA on `targets`, B away from zero."""
    torch.manual_seed(1)
    lora.inject(model, targets, 2, 4, **options)
    for _, layer in lora.layers(model):
        nn.init.normal_(layer.lora_B, std=0.3)
    return model


def by_hand(model, x):
    """The same model's answer with every update added to the weights of a copy, and LoRA nowhere."""
    plain = copy.deepcopy(model)
    for name, layer in lora.layers(plain):
        if layer.enabled and not layer.merged:
            layer.base_layer.weight.data += layer.delta_weight.to(layer.base_layer.weight.dtype)
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, layer.base_layer)
    return plain(x)


def encoder(targets, **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return trained(nn.TransformerEncoder(layer, 2), targets, **options)


@pytest.mark.parametrize("targets", [["linear1", "linear2"], ["out_proj"], r".*"])
@pytest.mark.parametrize("state", ["live", "merged", "switched off"])
@pytest.mark.parametrize("way", ["train", "eval", "fast path"])
def test_parents_that_read_the_weight_see_the_update(targets, state, way):
    """PyTorch's encoder reads the weights in eval, and attention those of out_proj always; both never call the layer then."""
    model = encoder(targets).train(way == "train")
    for _, layer in lora.layers(model):
        if state == "merged":
            layer.merge()
        layer.enabled = state != "switched off"
    x = torch.randn(3, 5, 8)
    with torch.set_grad_enabled(way != "fast path"):
        assert torch.is_grad_enabled() != (way == "fast path")
        torch.testing.assert_close(model(x), by_hand(model, x), rtol=1e-4, atol=1e-5)


def test_an_adapter_that_is_only_read_learns():
    model = encoder(["out_proj"]).train()
    model(torch.randn(3, 5, 8)).square().sum().backward()
    assert all(p.grad.any() for _, layer in lora.layers(model) for p in (layer.lora_A, layer.lora_B))


def test_dropout_where_it_could_not_act_is_refused():
    attention = nn.MultiheadAttention(8, 2)
    with pytest.raises(ValueError, match=r"dropout=0.1, but nn.MultiheadAttention reads .*dropout=0"):
        lora.inject(attention, ["out_proj"], 2, 4, dropout=0.1)
    assert not lora.layers(attention)


@pytest.mark.parametrize(
    "compute",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_a_weight_that_is_computed_is_refused(compute):
    with pytest.raises(TypeError, match=r"computes its weight anew.*remove_parametrizations"):
        LoRALinear(compute(nn.Linear(6, 5)), 2, 4)


class Tied(nn.Module):
    """A small language model: the head's weight is the embedding's."""

    def __init__(self):
        super().__init__()
        self.embed, self.proj, self.lm_head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, x):
        return self.lm_head(torch.tanh(self.proj(self.embed(x))))


def test_tied_weights_are_refused_by_both_names():
    model = Tied()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'lm_head' shares its weight with 'embed' .*nn.Parameter of its own"):
        lora.inject(model, ["lm_head", "proj"], 2, 4)
    assert same(before, snapshot(model))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # as the message says
    assert lora.inject(model, ["lm_head", "proj"], 2, 4) == ["proj", "lm_head"]


def test_two_linear_layers_with_one_weight_are_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    for target in ("0", "1"):
        with pytest.raises(ValueError, match=rf"'{target}' shares its weight with '{1 - int(target)}'"):
            lora.inject(model, [target], 2, 4)


def test_a_merge_by_hand_leaves_the_embedding_alone():
    """Whoever wraps a tied head without inject() gets a head with a weight of its own."""
    model, x = Tied(), torch.arange(12)
    model.lm_head = LoRALinear(model.lm_head, 2, 4)
    nn.init.normal_(model.lm_head.lora_B)
    live, embedding = model(x), model.embed.weight.clone()
    model.lm_head.merge()
    assert torch.equal(model.embed.weight, embedding)
    torch.testing.assert_close(model(x), live, rtol=1e-4, atol=1e-5)
    lora.merge_all(model)
    assert torch.equal(model.embed.weight, embedding)
    torch.testing.assert_close(model(x), live, rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    """One linear layer under two names, as in models that share layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleDict({"second": self.first, "other": nn.Linear(8, 8)})

    def forward(self, x):
        return self.blocks["other"](torch.tanh(self.first(x))) + self.blocks["second"](x)


@pytest.mark.parametrize("targets", [["first"], ["second"], ["first", "second"], r"blocks\.second", r"first"])
def test_a_layer_with_two_names_is_wrapped_once_under_both(targets):
    model, x = Twice(), torch.randn(3, 8)
    assert lora.inject(model, targets, 2, 4) == ["first"]
    assert model.first is model.blocks["second"] and isinstance(model.first, LoRALinear)
    nn.init.normal_(model.first.lora_B)
    live = model(x)
    assert [name for name, _ in lora.layers(model)] == ["first"]
    for again in (["first"], ["second"]):
        with pytest.raises(ValueError, match="wrapped already"):
            lora.inject(model, again, 2, 4)
    assert lora.merge_all(model) == ["first"]
    assert type(model.first) is nn.Linear and model.first is model.blocks["second"]
    torch.testing.assert_close(model(x), live, rtol=1e-4, atol=1e-5)


def test_a_block_that_is_used_twice_is_wrapped_once():
    shared = Block()
    model = trained(nn.Sequential(shared, shared), ["query"])
    assert len(lora.layers(model)) == 1
    x = torch.randn(3, 8)
    torch.testing.assert_close(model(x), by_hand(model, x))


# --- a base in four bits ---


@pytest.fixture(scope="module")
def four_bits():
    import bitsandbytes as bnb

    torch.manual_seed(0)
    base = bnb.nn.Linear4bit(128, 64, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    layer = LoRALinear(base, 4, 8)
    nn.init.normal_(layer.lora_B)
    return layer


def test_four_bits_forward_and_backward(four_bits):
    assert four_bits.base_layer.weight.dtype == torch.uint8 and four_bits.lora_A.dtype == torch.float32
    x = torch.randn(3, 128, requires_grad=True)
    update = x @ four_bits.delta_weight.T
    torch.testing.assert_close(four_bits(x), four_bits.base_layer(x) + update, rtol=1e-4, atol=1e-4)
    four_bits(x).square().sum().backward()
    assert all(t.grad.isfinite().all() and t.grad.any() for t in (x, four_bits.lora_A, four_bits.lora_B))


@pytest.mark.parametrize("undertaking", ["merge", "to_linear"])
def test_four_bits_are_not_merged_into(four_bits, undertaking):
    codes = four_bits.base_layer.weight.clone()
    with pytest.raises(TypeError, match=r"quantised \(torch.uint8\).*16-bit base instead"):
        getattr(four_bits, undertaking)()
    assert not four_bits.merged and torch.equal(four_bits.base_layer.weight, codes)


def test_four_bits_are_counted_whole(four_bits):
    assert lora.count_parameters(four_bits) == (4 * (128 + 64), 0, 0, 128 * 64 + 64, 128 * 64 + 64 + 4 * (128 + 64))


# --- injection ---

EVERY_PATH = {f"layers.{i}.{name}" for i in (0, 1) for name in ("query", "key", "value", "output.dense")}


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["query", "value"], {f"layers.{i}.{n}" for i in (0, 1) for n in ("query", "value")}),
        (("output.dense",), {"layers.0.output.dense", "layers.1.output.dense"}),
        (["dense"], {"layers.0.output.dense", "layers.1.output.dense"}),
        (["layers.1.key"], {"layers.1.key"}),
        ("key", {"layers.0.key", "layers.1.key"}),
        (r"layers\.0\..*(query|dense)", {"layers.0.query", "layers.0.output.dense"}),
        (r".*", EVERY_PATH | {"classifier"}),
    ],
)
def test_inject_wraps_what_is_named_and_nothing_else(targets, found):
    model = net()
    x = torch.randn(3, 8)
    before = model(x)
    names = lora.inject(model, targets, 2, 4)
    assert set(names) == found and len(names) == len(found)
    assert {name for name, _ in lora.layers(model)} == found
    assert torch.equal(model(x), before)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.lora_{m}" for name in found for m in "AB"
    }


def test_inject_hands_on_its_options():
    model = net()
    lora.inject(model, ["key"], 4, 8, dropout=0.25, use_rslora=True)
    layer = model.layers[1].key
    assert (layer.r, layer.alpha, layer.scaling, layer.dropout.p) == (4, 8, 4, 0.25)


def snapshot(model):
    """All that a failed call must leave alone: modules, tensors, what learns."""
    return (
        [(name, id(module)) for name, module in model.named_modules()],
        [(name, p.requires_grad) for name, p in model.named_parameters()],
        {name: t.clone() for name, t in model.state_dict().items()},
    )


def same(one, other) -> bool:
    return one[:2] == other[:2] and all(torch.equal(t, other[2][name]) for name, t in one[2].items())


@pytest.mark.parametrize(
    ("targets", "options", "told"),
    [
        (["query", "valeu"], {}, r"'valeu'; did you mean .*'value'"),
        ("qeury", {}, r"'qeury'; did you mean 'query'"),
        (["q_proj"], {}, r"'q_proj'; this model's linear layers end in .*'query'"),
        (["uery"], {}, r"No linear layer matches 'uery'"),
        (["norm"], {}, r"'norm' \(there is one of that name, but it is a LayerNorm\)"),
        (["output"], {}, r"'output' \(there is one of that name, but it is a ModuleDict\)"),
        (r"layers\.7\..*", {}, r"No linear layer matches 'layers"),
        ([], {}, "empty"),
        ("", {}, "No linear layer matches ''"),
        (["query"], dict(r=9), r"r=9, .* 1 to 8"),
        ([".*"], {}, r"No linear layer matches '\.\*'"),  # a list holds names, not patterns
        (["key", "classifier"], dict(r=4), r"r=4, .* 1 to 2"),  # fits the first, not the second
        (["query"], dict(alpha=0), "alpha=0"),
        (["query"], dict(dropout=1), "dropout=1"),
    ],
)
def test_inject_refuses_and_leaves_the_model_as_it_was(targets, options, told):
    model = net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=told):
        lora.inject(model, targets, **(dict(r=2, alpha=4) | options))
    assert same(before, snapshot(model))


@pytest.mark.parametrize("targets", [["query"], ["key", "value"], r".*", r"layers\.0\.value"])
def test_inject_twice_is_refused(targets):
    model = adapted(targets=("query", "value"))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'layers.0.(query|value)' is wrapped already.*(merge_all|reload)"):
        lora.inject(model, targets, 2, 4)
    assert same(before, snapshot(model))


def test_inject_never_wraps_the_base_inside_a_wrapper():
    model = adapted()
    with pytest.raises(ValueError, match="No linear layer matches 'base_layer'"):
        lora.inject(model, ["base_layer"], 2, 4)


def test_other_layers_may_follow_with_another_rank():
    model = net()
    lora.inject(model, ["query"], 2, 4)
    lora.inject(model, ["output.dense"], 4, 8)
    assert [layer.r for _, layer in lora.layers(model)] == [2, 4, 2, 4]
    model(torch.randn(3, 8)).sum().backward()
    assert all(layer.lora_B.grad.any() for _, layer in lora.layers(model))


@pytest.mark.parametrize("function", [lambda m: lora.inject(m, ["query"], 2, 4), lora.merge_all])
def test_a_layer_by_itself_is_not_a_model(function):
    with pytest.raises(TypeError, match="itself a LoRALinear"):
        function(make())


@pytest.mark.parametrize("merged_before", [False, True])
def test_merge_all_leaves_the_plain_model(merged_before):
    model = adapted()
    x = torch.randn(5, 8)
    live = model(x)
    if merged_before:
        for _, layer in lora.layers(model):
            layer.merge()
    names = lora.merge_all(model)
    assert names == [f"layers.{i}.{n}" for i in (0, 1) for n in ("query", "value")]
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]
    assert model.state_dict().keys() == net().state_dict().keys()
    torch.testing.assert_close(model(x), live, rtol=1e-5, atol=1e-5)
    assert lora.merge_all(model) == []


SPOILT = {
    "four bits": r"quantised \(torch.uint8\).*16-bit base",
    "NaN in A": "lora_A holds NaN or infinity",
    "infinity in B": "lora_B holds NaN or infinity",
    "NaN in the base": "the base weight holds NaN or infinity",
    "too large in float16": r"too large for torch.float16.*wider dtype",
    "too large in float32": "too large for torch.float32",
}


@torch.no_grad()
def spoil(layer, what):
    if what == "four bits":
        layer.base_layer.weight = nn.Parameter(torch.zeros(8, 4, dtype=torch.uint8), requires_grad=False)
    elif what == "NaN in A":
        layer.lora_A[0, 0] = math.nan
    elif what == "infinity in B":
        layer.lora_B[0, 0] = -math.inf
    elif what == "NaN in the base":
        layer.base_layer.weight[0, 0] = math.nan
    else:
        large = 1e3 if "16" in what else 1e30
        layer.base_layer.to(torch.float16 if "16" in what else torch.float32)
        layer.lora_A.fill_(large)
        layer.lora_B.fill_(large)


@pytest.mark.parametrize("what", SPOILT)
@pytest.mark.parametrize("place", [0, 3])
def test_merge_all_is_all_or_nothing(what, place):
    model = adapted()
    name, layer = lora.layers(model)[place]
    spoil(layer, what)
    before = snapshot(model)
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: .*{SPOILT[what]}.*Nothing was merged\.$"):
        lora.merge_all(model)
    assert len(lora.layers(model)) == 4 and not any(layer.merged for _, layer in lora.layers(model))
    after = snapshot(model)
    assert before[:2] == after[:2]
    for key, tensor in before[2].items():
        torch.testing.assert_close(after[2][key], tensor, rtol=0, atol=0, equal_nan=True)
    with pytest.raises((TypeError, ValueError), match=SPOILT[what]):
        layer.merge()
    assert not layer.merged


# --- saving ---


def test_an_adapter_goes_through_safetensors_with_its_head(tmp_path):
    trained, other = adapted(seed=1), adapted(seed=2)
    x = torch.randn(4, 8)
    assert not torch.allclose(trained(x), other(x))
    save_file(lora.lora_state_dict(trained), tmp_path / "adapter.safetensors")
    lora.load_lora_state_dict(other, load_file(tmp_path / "adapter.safetensors"))
    assert torch.equal(trained(x), other(x))


def test_an_adapter_is_small_and_detached():
    model = adapted()
    state = lora.lora_state_dict(model)
    assert set(state) == {f"layers.{i}.{n}.lora_{m}" for i in (0, 1) for n in ("query", "value") for m in "AB"} | {
        "classifier.weight",
        "classifier.bias",
    }
    assert all(type(t) is torch.Tensor and not t.requires_grad for t in state.values())
    model.layers[0].query.lora_B.data.zero_()
    assert state["layers.0.query.lora_B"].any()  # a copy, so it can be kept while training goes on
    model.classifier.requires_grad_(False)
    assert "classifier.weight" not in lora.lora_state_dict(model)


def test_frozen_adapters_are_still_saved():
    model = adapted()
    model.requires_grad_(False)
    assert len(lora.lora_state_dict(model)) == 8


def test_adapters_swap_on_one_base_also_while_merged():
    first, second, model = adapted(seed=1), adapted(seed=2), adapted(seed=3)
    x = torch.randn(4, 8)
    for _, layer in lora.layers(model):
        layer.merge()
    for source in (first, second, first):
        lora.load_lora_state_dict(model, lora.lora_state_dict(source))
        assert all(layer.merged for _, layer in lora.layers(model))
        torch.testing.assert_close(model(x), source(x), rtol=1e-5, atol=1e-5)
    for _, layer in lora.layers(model):
        layer.unmerge()
    assert torch.equal(model.layers[0].query.base_layer.weight, net().layers[0].query.weight)


def drop(state):
    del state["layers.0.query.lora_A"], state["classifier.bias"]


def add(state):
    state["layers.9.query.lora_A"] = torch.zeros(2, 8)


def reshape(state):
    state["layers.1.value.lora_B"] = torch.zeros(8, 3)


def poison(state):
    state["layers.0.query.lora_B"][0, 0] = math.nan


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ((drop,), r"missing: classifier.bias, layers.0.query.lora_A"),
        ((add,), r"unexpected: layers.9.query.lora_A"),
        ((poison,), r"not finite: layers.0.query.lora_B"),
        ((reshape,), r"wrong shape: layers.1.value.lora_B is \(8, 3\), the model's \(8, 2\)"),
        ((drop, add, reshape), r"missing: .*unexpected: .*wrong shape: .*target_modules and r"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(spoil, told):
    model, state = adapted(seed=1), lora.lora_state_dict(adapted(seed=2))
    for how in spoil:
        how(state)
    before = snapshot(model)
    with pytest.raises(ValueError, match=told):
        lora.load_lora_state_dict(model, state)
    assert same(before, snapshot(model))


def test_an_adapter_too_large_to_merge_leaves_the_merged_one():
    model, state = adapted(seed=1).half(), lora.lora_state_dict(adapted(seed=2))
    for name in state:
        if "lora_" in name:
            state[name].fill_(1e3)
    for _, layer in lora.layers(model):
        layer.merge()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        lora.load_lora_state_dict(model, state)
    assert same(before, snapshot(model)) and all(layer.merged for _, layer in lora.layers(model))


def test_a_model_without_lora_has_no_adapter():
    with pytest.raises(ValueError, match=r"no LoRA layer.*inject"):
        lora.lora_state_dict(net())


# --- counting ---


@quick
@given(st.sets(st.sampled_from(["query", "key", "value", "dense"]), min_size=1), st.integers(1, 8), st.booleans())
def test_counts_add_up(targets, r, head):
    model = net()
    whole = sum(p.numel() for p in model.parameters())
    lora.inject(model, sorted(targets), r, 4)
    model.classifier.requires_grad_(head)
    model.layers[0].norm.requires_grad_(True)
    counts = lora.count_parameters(model)
    assert counts == (2 * len(targets) * r * 16, 18 * head, 16, whole - 18 * head - 16, counts.total)
    assert counts.total == sum(counts[:4]) == sum(p.numel() for p in model.parameters())
    model.requires_grad_(False)  # a LoRA that does not learn is frozen like all else
    assert lora.count_parameters(model) == (0, 0, 0, counts.total, counts.total)


def test_counts_of_a_model_without_lora():
    model = net()
    whole = sum(p.numel() for p in model.parameters())
    assert lora.count_parameters(model) == (0, 18, whole - 18, 0, whole)
    assert lora.count_parameters(model.requires_grad_(False)) == (0, 0, 0, whole, whole)


def test_embeddings_and_magnitudes_of_peft_count_as_lora():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 8))
    theirs = get_peft_model(model, LoraConfig(r=2, target_modules=["0", "1"], use_dora=True))
    counts = lora.count_parameters(theirs)
    learning = {name.split(".")[3]: p.numel() for name, p in theirs.named_parameters() if p.requires_grad}
    assert learning.keys() == lora.LORA and counts[:3] == (2 * 8 + 2 * 12 + 8 + 2 * 8 + 2 * 8 + 8, 0, 0)
