"""The kinds of layer that normalise, and how one is made of another, with all that hangs on it."""

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from batchnorm.activations import ActivationName
from batchnorm.errors import ArgumentError
from batchnorm.surgery.places import epsilon
from batchnorm.torch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm.torch.layers import OPTIONS

Made = nn.Module | str  # a layer, or why there can be none

OURS: dict[type, Any] = {
    nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d, nn.SyncBatchNorm: BatchNorm,
}  # fmt: skip
BY_RANK = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}
TORCHS: dict[type, Any] = {ours: torchs for torchs, ours in OURS.items() if ours is not BatchNorm}
INSTANCE: dict[type, Any] = {
    BatchNorm1d: nn.InstanceNorm1d, BatchNorm2d: nn.InstanceNorm2d, BatchNorm3d: nn.InstanceNorm3d,
}  # fmt: skip
ACTIVATIONS: dict[ActivationName, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU,
    "gelu": nn.GELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip
FEWEST_IN_GROUP = 8  # features
ONE_SAMPLE = "say rank=3 if the inputs are (N, C, L)"
ANY_RANK = "it takes inputs of any rank, and torch has a class for each: say rank="  # with the batch axis


class Followed(nn.Sequential):
    """A layer and the activation behind it, made of one that includes it: timm's, or ours where it is `fused`."""

    fused: bool = False


def is_ours(module: nn.Module) -> bool:
    """Return whether it is a layer of this project."""
    return isinstance(module, BatchNorm)


def is_timms(module: nn.Module, kinds: Sequence[str] = ("BatchNormAct2d",)) -> bool:
    """Return whether it is timm's BatchNormAct2d."""
    return type(module).__name__ in kinds and type(module).__module__.startswith("timm.")


def includes_activation(module: nn.Module) -> bool:
    """Return whether it is a layer of timm's that has an activation in it, frozen for good or not."""
    return is_timms(module, ("BatchNormAct2d", "FrozenBatchNormAct2d"))


def unfrozen(old: Any) -> nn.Module:
    """Return torch's layer with the numbers and the mode of one that is frozen for good."""
    like, features = old.weight, old.running_mean.numel()
    new = nn.BatchNorm2d(features, eps=epsilon(old), device=like.device, dtype=like.dtype)
    new.weight, new.bias = (nn.Parameter(t.detach().clone()) for t in (old.weight, old.bias))
    new.running_mean, new.running_var = (t.detach().clone() for t in (old.running_mean, old.running_var))
    return new.train(old.training)


@cache
def _own(kind: type) -> frozenset[str]:
    """Return all names that a class of layers sets on its instances."""
    fresh = kind(1)
    return frozenset({*vars(fresh), *_held(fresh)})


def _held(layer: nn.Module) -> list[str]:
    return [name for kind in ("_parameters", "_buffers", "_modules") for name in vars(layer)[kind]]


def registered(layer: nn.Module) -> list[str]:
    """Return the parameters, buffers and submodules of a layer that its class does not know of."""
    return [name for name in _held(layer) if name not in _own(type(layer))]


def _take_over(new: Any, old: Any) -> None:
    """Take over the statistics in their dtype; ours are float32 at least, and torch's, of ours, as the parameters."""
    if is_ours(new) and is_ours(old):
        new.inherit(old)
    if old.running_mean is None:
        return
    for name, value in old._buffers.items():
        if value is None or new._buffers.get(name) is None:
            continue
        if value.is_floating_point() and is_ours(new):
            value = value.to(torch.promote_types(value.dtype, torch.float32))
        elif value.is_floating_point() and is_ours(old) and old.weight is not None:
            value = value.to(old.weight.dtype)
        new._buffers[name] = value.clone()
    if is_ours(new):
        for name, value in new._renorm_start(new.running_mean, new.running_var).items():
            if old._buffers.get(name) is None:
                new._buffers[name] = value


def made(kind: Callable[..., nn.Module], old: Any, *first: Any, running: bool = True, **options: Any) -> nn.Module:
    """Return a layer of another kind with the state, device, dtype and mode, and the very parameters, of `old`."""
    parameters = {name: old._parameters.get(name) for name in ("weight", "bias")}
    like = next((p for p in (*parameters.values(), *old.buffers()) if p is not None), torch.empty(0))
    if running:
        options |= {"momentum": old.momentum, "track_running_stats": old.track_running_stats}
    new: Any = kind(*first, eps=old.eps, affine=old.affine, device=like.device, **options)
    if running:
        _take_over(new, old)
    theirs = {*_own(type(old)), *dir(type(old)), *vars(new), *dir(type(new))}
    for name, value in vars(old).items():
        if name not in theirs:  # what somebody has noted on it
            setattr(new, name, value)
    for name, parameter in parameters.items():
        new.register_parameter(name, parameter)
    return new.train(old.training)


def followed(layer: nn.Module, activation: nn.Module, *, fused: bool) -> nn.Module:
    """Return a layer with a very module behind it; `fused`: whether ours was to include it."""
    both = Followed(layer, activation)
    both.training, both.fused = layer.training, fused
    return both


def ours(old: Any, options: dict[str, Any]) -> nn.Module:
    """Return our layer with these options."""
    kind = OURS.get(type(old), type(old)) if not is_timms(old) else BatchNorm2d
    return made(kind, old, old.num_features, **options)


def lost(old: nn.Module, options: dict[str, Any], to: str) -> str:
    """Return the options that a foreign target does not have, as they are written; "" if there are none."""
    kept = {"activation", "axis", *(("sync", "process_group") if to == "torch" else ())}
    gone = [f"{name}={options[name]!r}" for name in options if name not in kept and options[name] != OPTIONS[name]]
    return ", ".join(gone + ["frozen=True"] * bool(getattr(old, "frozen", False)))


def _rounded(old: Any, to: str, lose: bool) -> str | None:
    """Return why the parameters' dtype cannot hold our statistics; None where it can, or may round them."""
    dtype = None if old.weight is None else old.weight.dtype
    for name in ("running_mean", "running_var") if dtype is not None and is_ours(old) else ():
        value = old._buffers[name]
        if value is None or value.dtype == dtype or value.is_meta:
            continue
        held, short = value.to(dtype).to(value.dtype), str(dtype).removeprefix("torch.")
        why = f"{to}'s layer keeps statistics in {short} beside {short} parameters, which "
        if (held.isinf() & value.isfinite()).any():
            return f"{why}makes {name} inf: model.float() first"
        if not lose and ((held != value) & ~value.isnan()).any():
            return f"{why}changes {name} (lose=True lets it)"
    return None


def _refused(old: nn.Module, options: dict[str, Any], to: str, lose: bool) -> str | None:
    """Return what a layer would lose that `lose` does not let go."""
    gone = lost(old, options, to)
    if gone and not lose:
        return f"{to}'s layer would lose {gone}, which training needs (lose=True lets it go)"
    return _rounded(old, to, lose)


def _class(old: nn.Module, rank: int | None) -> type[BatchNorm] | None:
    """Return which of our classes takes the rank of a layer's inputs; None where that is not known."""
    known = BatchNorm2d if is_timms(old) else OURS.get(type(old), type(old))
    return BY_RANK.get(rank or 0) if known is BatchNorm else known  # pyright: ignore[reportReturnType]


def torchs(
    old: Any, options: dict[str, Any], *, rank: int | None = None, sync: bool | None = None, lose: bool = False
) -> Made:
    """Return torch's layer, synchronized as `old` is unless `sync` says; or why there is none."""
    if options.get("axis", 1) != 1:
        return f"torch's layer has its features along axis 1, this one along {options['axis']}"
    refused, kind = _refused(old, options, "torch", lose), _class(old, rank)
    if refused:
        return refused
    if options.get("sync") if sync is None else sync:
        return made(nn.SyncBatchNorm, old, old.num_features, process_group=options.get("process_group"))
    if kind is None:
        return f"{ANY_RANK}2 or 3 for BatchNorm1d, 4 for BatchNorm2d, 5 for BatchNorm3d"
    return made(TORCHS[kind], old, old.num_features)


def timms(old: Any, options: dict[str, Any], activation: nn.Module | None, *, fused: bool, lose: bool = False) -> Made:
    """Return timm's layer, which includes any activation; or why there is none. `fused`: whether ours included it."""
    if options.get("axis", 1) != 1 or _class(old, 4) is not BatchNorm2d:
        return "timm's layer takes (N, C, H, W)"
    refused = _refused(old, options, "timm", lose)
    if refused:
        return refused
    try:
        kind = importlib.import_module("timm.layers").BatchNormAct2d
    except ImportError as error:
        raise ArgumentError('to="timm" makes timm\'s layers, and timm is not installed: pip install timm') from error
    except Exception as error:  # of a torchvision that was built for another PyTorch, say
        raise ArgumentError(f'to="timm" makes timm\'s layers, and timm cannot be imported: {error}') from error
    new: Any = made(kind, old, old.num_features, apply_act=False)
    if activation is not None:
        new.act, new.fused = activation, fused
    return new


def _layer_norm(features: int, *, affine: bool, **options: Any) -> nn.Module:
    return nn.LayerNorm(features, elementwise_affine=affine, **options)


def _groups(features: int) -> int:
    """Return the largest power of two up to 32 that makes equal groups of eight features or more.

    On (N, C), and on maps of one position, a group of two is ±1 whatever it holds, and one of four hardly more.
    """
    return next((n for n in (32, 16, 8, 4, 2) if features % n == 0 and features // n >= FEWEST_IN_GROUP), 1)


def other(
    old: Any, options: dict[str, Any], to: str, *, rank: int | None = None, num_groups: int | None = None
) -> Made:
    """Return a layer that normalises each sample by itself; or why there is none."""
    features, axis, kind = old.num_features, options.get("axis", 1), _class(old, rank)
    if getattr(old, "frozen", False):
        return "it is frozen, and would thaw"
    if to == "layer" and axis == -1:
        return made(_layer_norm, old, features, running=False)
    if axis != 1:
        return f"its features lie along axis {axis}, and those of the other along axis 1"
    flat = rank != 3 if kind is BatchNorm1d else kind is None and rank is None  # whether inputs may be (N, C)
    if to == "instance":
        if kind is None:
            return f"{ANY_RANK}3 for InstanceNorm1d, 4 for InstanceNorm2d, 5 for InstanceNorm3d"
        if flat:
            return f"an instance of (N, C) has one value per feature, which leaves nothing: {ONE_SAMPLE}"
        return made(INSTANCE[kind], old, features, running=False)
    groups = 1 if to == "layer" else _groups(features) if num_groups is None else num_groups
    if groups < 1 or features % groups:
        return f"num_groups={groups} does not divide its {features} features"
    if groups == features and flat:
        return f"a group of one feature is one value on (N, C), which leaves nothing: {ONE_SAMPLE}"
    return made(nn.GroupNorm, old, groups, features, running=False)
