"""LoRA for `nn.Linear`, small enough to read in one sitting; lesson 02 builds it step by step.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. Shapes: `lora_A` (r, in_features), `lora_B` (out_features, r).
"""

import difflib
import math
import re
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class LoRALinear(nn.Module):
    """y = base_layer(x) + scaling * B A x, with `base_layer` frozen and only A and B trained.

    base_layer: an `nn.Linear` (a subclass such as bitsandbytes' `Linear4bit` too). r: rank, 1 to min(in, out).
    alpha: > 0; scaling = alpha / r, or alpha / sqrt(r) with `use_rslora` (Kalajdzievski 2023).
    dropout: on the input of A, in [0, 1). Raises TypeError, ValueError for anything else.
    A starts as `nn.Linear` starts its weights (Kaiming uniform), B at zero, so at first nothing changes.
    """

    def __init__(self, base_layer: nn.Linear, r: int, alpha: float, dropout: float = 0.0, use_rslora: bool = False):
        super().__init__()
        _validate(base_layer, r, alpha, dropout)
        self.base_layer = base_layer.requires_grad_(False)
        self.r, self.alpha = r, alpha
        self.scaling = alpha / math.sqrt(r) if use_rslora else alpha / r
        # A and B learn in small steps, which 16 bits would round away: at least fp32, whatever the base is kept in.
        kind = dict(device=base_layer.weight.device, dtype=torch.float32)
        if base_layer.weight.is_floating_point():
            kind["dtype"] = torch.promote_types(base_layer.weight.dtype, torch.float32)
        self.lora_A = nn.Parameter(torch.empty(r, base_layer.in_features, **kind))
        self.lora_B = nn.Parameter(torch.zeros(base_layer.out_features, r, **kind))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.enabled = True  # False: answer as the base does
        self.register_buffer("_base_weight", None, persistent=False)  # the untouched weight, while merged

    def forward(self, x):
        """x (..., in_features) -> (..., out_features), in the dtype of the base's answer."""
        if self.merged and not self.enabled:
            return F.linear(x, self._base_weight, self.base_layer.bias)
        y = self.base_layer(x)
        if self.merged or not self.enabled:
            return y
        # Two thin products; B A itself, as large as the base's weight, is never formed. Scaling the r numbers between
        # them costs nothing, scaling the out_features numbers after them would.
        z = F.linear(self.dropout(x).to(self.lora_A.dtype), self.lora_A) * self.scaling
        return y + F.linear(z, self.lora_B).to(y.dtype)

    @property
    def merged(self) -> bool:
        """Whether the base's weight now holds the update."""
        return self._base_weight is not None

    @property
    def weight(self):
        """The weight that acts now, W + scaling * B A or W: some parents read it and never call the layer (nn.MultiheadAttention
        its `out_proj`, nn.TransformerEncoderLayer in eval). Dropout has no say in it; quantised weights are handed out as they are.
        """
        W = self.base_layer.weight
        if self.merged:
            return W if self.enabled else self._base_weight
        return self._updated() if self.enabled and W.is_floating_point() else W

    @property
    def bias(self):
        """The base's bias, (out_features,) or None."""
        return self.base_layer.bias

    @property
    def delta_weight(self):
        """scaling * B A, (out_features, in_features), computed in at least fp32."""
        kind = torch.promote_types(self.lora_A.dtype, torch.float32)
        return self.lora_B.to(kind) @ self.lora_A.to(kind) * self.scaling

    def _updated(self):
        """W + scaling * B A: the sum is taken in the wider dtype, then rounded once to W's."""
        W = self.base_layer.weight
        return (W + self.delta_weight).to(W.dtype)

    @torch.no_grad()
    def mergeable(self):
        """The weight that `merge` would give. Raises TypeError for a quantised base, ValueError where a number is not finite."""
        W = self.base_layer.weight
        if not W.is_floating_point():
            raise TypeError(
                f"The base weight is quantised ({W.dtype}); an update cannot be merged into it without loss. "
                "Merge into the 16-bit base instead."
            )
        for what, tensor in (("lora_A", self.lora_A), ("lora_B", self.lora_B), ("the base weight", W)):
            if not tensor.isfinite().all():
                raise ValueError(
                    f"{what} holds NaN or infinity, which a merge would spread. Train again, or load it again."
                )
        updated = self._updated()
        if not updated.isfinite().all():
            raise ValueError(
                f"The merged weight is too large for {W.dtype}. Merge into a base of a wider dtype, or train with smaller steps."
            )
        return updated

    def merge(self) -> None:
        """Put W + scaling * B A in W's place; again does nothing. W itself is kept untouched: whoever shares it keeps it, and
        `unmerge` is exact in every dtype. Raises what `mergeable` raises."""
        if not self.merged:
            updated = self.mergeable()
            self._base_weight = self.base_layer.weight.detach()
            self.base_layer.weight = nn.Parameter(updated, requires_grad=False)

    def unmerge(self) -> None:
        """Put the old weight back; does nothing if not merged."""
        if self.merged:
            self.base_layer.weight = nn.Parameter(self._base_weight, requires_grad=False)
            self._base_weight = None

    def to_linear(self) -> nn.Linear:
        """The base layer with the update merged in for good. This wrapper is used up."""
        self.merge()
        self._base_weight = None
        return self.base_layer

    def extra_repr(self) -> str:
        return f"r={self.r}, alpha={self.alpha}, scaling={self.scaling:g}, merged={self.merged}"


def _validate(base_layer, r, alpha, dropout) -> None:
    if not isinstance(base_layer, nn.Linear):
        raise TypeError(
            f"base_layer is a {type(base_layer).__name__}; LoRALinear wraps nn.Linear. Pass the linear layers inside it."
        )
    if "weight" not in base_layer._parameters:
        raise TypeError(
            "The layer computes its weight anew from other tensors (weight_norm, pruning, …), so an update cannot be added to it. "
            "Make that permanent first, with torch.nn.utils.parametrize.remove_parametrizations() or its like."
        )
    largest = min(base_layer.in_features, base_layer.out_features)
    if isinstance(r, bool) or not isinstance(r, Integral) or not 1 <= r <= largest:
        raise ValueError(
            f"r={r!r}, but the rank must be a whole number from 1 to {largest} (the smaller side of this "
            f"{base_layer.out_features} x {base_layer.in_features} layer); 4 to 64 is usual."
        )
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha!r}, but alpha must be a positive number; r or 2 * r is usual.")
    if isinstance(dropout, bool) or not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}, but dropout must be at least 0 and below 1; 0 to 0.1 is usual.")
    if dropout and isinstance(base_layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise ValueError(
            f"dropout={dropout!r}, but nn.MultiheadAttention reads this layer's weight and never calls it, so no dropout can act "
            "on its input. Use dropout=0, or leave out_proj out."
        )


def inject(model, target_modules, r: int, alpha: float, dropout: float = 0.0, use_rslora: bool = False) -> list[str]:
    """Freeze `model` but for LoRA that it has, wrap its linear layers that match, in place, and return their names.

    target_modules: a list of names, each the end of a module's path ("query", "attention.output.dense"), or one regular
    expression for the whole path. Unfreeze what else shall learn (a new head, say) after this call.
    A layer that has two names is wrapped once, under both. Raises ValueError if nothing matches (with near misses) or if a match
    is wrapped already or shares its weight with another module; the model is then unchanged.
    """
    if isinstance(model, (nn.Linear, LoRALinear)):
        raise TypeError(
            f"The model is itself a {type(model).__name__}; inject() wraps layers inside one. Use LoRALinear(layer, …)."
        )
    names = _names(model)
    wrapped = {name for m in names if isinstance(m, LoRALinear) for name in names[m]}
    inside = {m.base_layer for m in names if isinstance(m, LoRALinear)}
    linears = {name: m for m in names if isinstance(m, nn.Linear) and m not in inside for name in names[m]}
    is_pattern = isinstance(target_modules, str)
    wanted = [target_modules] if is_pattern else list(target_modules)
    if not wanted:
        raise ValueError("target_modules is empty; name at least one linear layer, such as ['query', 'value'].")

    def matches(name: str, target: str) -> bool:
        if is_pattern and re.fullmatch(target, name):
            return True
        return name == target or name.endswith("." + target)

    again = sorted(name for name in wrapped if any(matches(name, target) for target in wanted))
    if again:
        raise ValueError(
            f"{again[0]!r} is wrapped already (and {len(again) - 1} more). Wrap a model once: reload it, or undo with merge_all()."
        )
    for target in wanted:
        if not any(matches(name, target) for name in linears):
            raise ValueError(_no_match(target, linears, model))
    found = list(dict.fromkeys(m for name, m in linears.items() if any(matches(name, target) for target in wanted)))
    for layer in found:
        _validate(layer, r, alpha, dropout)
        _refuse_tied(layer, names[layer][0], model)
    for name, parameter in model.named_parameters():
        if not _is_lora(name):  # what an earlier call wrapped goes on learning
            parameter.requires_grad_(False)
    _replace(model, {layer: LoRALinear(layer, r, alpha, dropout, use_rslora) for layer in found})
    return [names[layer][0] for layer in found]


def _names(model) -> dict:
    """{module: all its names}; a module that is registered twice has two."""
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _replace(model, new: dict) -> None:
    """Put new[module] in the place of each module, under every name that it has in `model`."""
    for module, names in _names(model).items():
        if module in new:
            for name in names:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, new[module])


def _refuse_tied(layer, name: str, model) -> None:
    """PEFT warns of tied weights and then merges into both; here a model is never changed where nobody asked for it."""
    for other, parameter in model.named_parameters(remove_duplicate=False):
        if parameter is layer.weight and model.get_submodule(other.rpartition(".")[0]) is not layer:
            raise ValueError(
                f"{name!r} shares its weight with {other.removesuffix('.weight')!r} (tied weights), and an update of one must not "
                f"change the other. Leave {name!r} out of target_modules, or untie it first: give it a copy of the weight as an "
                "nn.Parameter of its own, and set tie_word_embeddings=False in the model's config if it has one."
            )


def _no_match(target: str, linears: dict, model) -> str:
    ends = {".".join(name.split(".")[-n:]) for name in linears for n in (1, 2)} - {""}
    near = difflib.get_close_matches(target, ends, n=3)
    other = next((type(m).__name__ for name, m in model.named_modules() if ("." + name).endswith("." + target)), None)
    told = f"No linear layer matches {target!r}"
    if other:
        told += f" (there is one of that name, but it is a {other})"
    if near:
        return f"{told}; did you mean {' or '.join(map(repr, near))}?"
    return f"{told}; this model's linear layers end in {', '.join(sorted(map(repr, ends))[:12]) or 'nothing: it has none'}."


def layers(model):
    """(name, LoRALinear) for each wrapped layer of `model`."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, LoRALinear)]


def merge_all(model) -> list[str]:
    """Replace every LoRALinear of `model` by a plain linear layer that holds the update; returns their names.

    All or none: where one layer cannot be merged, TypeError or ValueError names it and nothing has been changed.
    """
    if isinstance(model, LoRALinear):
        raise TypeError(
            "The model is itself a LoRALinear; merge_all() replaces layers inside one. Use its to_linear()."
        )
    found = layers(model)
    for name, layer in found:
        try:
            layer.merged or layer.mergeable()
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error} Nothing was merged.") from None
    for _, layer in found:
        _replace(model, {layer: layer.to_linear()})
    return [name for name, _ in found]


def lora_state_dict(model) -> dict:
    """What the adapter is: every lora_A and lora_B, and every other parameter that is trained (the head). Detached, on the CPU."""
    kept = {n: p for n, p in model.named_parameters() if _is_lora(n) or p.requires_grad}
    if not any(map(_is_lora, kept)):
        raise ValueError("This model has no LoRA layer to save; call inject() before training.")
    return {name: p.detach().cpu().clone() for name, p in kept.items()}


@torch.no_grad()
def load_lora_state_dict(model, state: dict) -> None:
    """Copy an adapter's tensors into `model`, which must be wrapped alike; ValueError names what is missing, unexpected or of
    another shape, and then nothing has been changed."""
    parameters = dict(model.named_parameters())
    due = {n for n, p in parameters.items() if _is_lora(n) or p.requires_grad}
    shapes = [
        f"{n} is {tuple(state[n].shape)}, the model's {tuple(parameters[n].shape)}"
        for n in state
        if n in parameters and state[n].shape != parameters[n].shape
    ]
    wrong = {
        "missing": sorted(due - set(state)),
        "unexpected": sorted(set(state) - set(parameters)),
        "wrong shape": shapes,
        "not finite": [n for n, tensor in state.items() if not tensor.isfinite().all()],
    }
    told = [f"{kind}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}" for kind, names in wrong.items() if names]
    if told:
        raise ValueError(
            f"The adapter does not fit this model ({'; '.join(told)}). Use the target_modules and r that it was trained with."
        )
    merged = [layer for _, layer in layers(model) if layer.merged]

    def put(tensors):
        for layer in merged:  # or the base would keep the old adapter's update
            layer.unmerge()
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
        for layer in merged:
            layer.merge()

    before = {name: parameters[name].clone() for name in state}
    try:
        put(state)
    except ValueError:  # finite, but too large once merged
        put(before)
        raise


class Counts(NamedTuple):
    """Parameters by what becomes of them; the five add up, so that a head cannot hide among the LoRA."""

    lora: int
    head: int
    other: int  # trained, and neither
    frozen: int
    total: int


HEADS = ("classifier", "score", "qa_outputs", "lm_head")


def count_parameters(model) -> Counts:
    """Count trained parameters in LoRA matrices, in the head and elsewhere, and the frozen ones; works on PEFT models too.

    The frozen copy that PEFT keeps of a head it trains is left out: it would be counted twice.
    """
    lora = head = other = frozen = 0
    for name, p in model.named_parameters():
        state = getattr(p, "quant_state", None)  # 4-bit weights are packed, their true shape is kept beside them
        size = math.prod(state.shape) if state else p.numel()
        if ".original_module." in name:
            continue
        if not p.requires_grad:
            frozen += size
        elif _is_lora(name):
            lora += size
        elif any(part in HEADS for part in name.split(".")):
            head += size
        else:
            other += size
    return Counts(lora, head, other, frozen, lora + head + other + frozen)


# PEFT adds the last three, for embeddings and for DoRA
LORA = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}


def _is_lora(name: str) -> bool:
    return not LORA.isdisjoint(name.split("."))
