"""Channel pruning: by torch-pruning, and by hand."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from check import CHECKS, Check, may_refuse, require, torch_first
from compare import alike, layers, pictures, plain, renorm, same_step, small
from torch import nn

KEPT = [0, 2, 3, 5]  # channels of the first layer
PER_FEATURE = ("running_mean", "running_var", "running_stddev", "renorm_mean", "renorm_stddev")


def _by_tool(model: nn.Module) -> nn.Module:
    """Remove half of the channels by torch-pruning."""
    import torch_pruning

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        pictures(1),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model[-1]],
    )
    pruner.step()
    return model


def _by_hand(model: Any) -> nn.Module:
    """Keep some channels of the first layer, as people do: by assigning smaller parameters and buffers."""
    first, layer, second = model[0], model[1], model[3]
    first.weight = nn.Parameter(first.weight[KEPT])
    first.out_channels = second.in_channels = layer.num_features = len(KEPT)
    second.weight = nn.Parameter(second.weight[:, KEPT])
    for name in ("weight", "bias"):
        setattr(layer, name, nn.Parameter(getattr(layer, name)[KEPT]))
    for name in PER_FEATURE:
        if getattr(layer, name, None) is not None:
            setattr(layer, name, getattr(layer, name)[KEPT])
    return model


def _pruned(make: Callable[[nn.Module], nn.Module], prune: Callable[[nn.Module], nn.Module], missing: bool) -> str:
    """Prune, and compare inference with torch's pruned model; train a step; save and load."""
    model, x = small(), pictures()
    other = make(model)
    with torch_first():
        right = prune(copy.deepcopy(model)).eval()
    with may_refuse(other):
        mine = prune(copy.deepcopy(other)).eval()
        with torch.no_grad():
            told = alike(mine(x), right(x), "output")
        widths = [layer.num_features for layer in layers(mine)]
        require(widths == [layer.num_features for layer in layers(right)], f"{widths} features")
        if not missing:
            told += ", " + same_step(right, mine, lambda one, cast: one(cast(x)))
        mine.train()(x).square().mean().backward()
        mine.train()(x)
    for layer in layers(mine):
        wrong = [n for n, b in layer.named_buffers() if b.dim() and b.shape[-1] != layer.num_features]
        require(not wrong, f"{wrong} have other than {layer.num_features} features")
        require(all(b.isfinite().all() for b in layer.buffers()), "the state is not finite")
    again = prune(make(small())).eval()
    again.load_state_dict(mine.state_dict())
    alike(again(x), mine.eval()(x), "output after loading")
    return f"{widths} features, {told}"


for _make in (plain, renorm):
    _kind = _make.__name__
    for _tool, _prune, _needs in (("torch-pruning", _by_tool, ("torch_pruning",)), ("by hand", _by_hand, ())):
        CHECKS.append(Check(f"pruning/{_tool}/{_kind}", partial(_pruned, _make, _prune, _make is renorm), _needs))
