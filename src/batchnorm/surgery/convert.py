"""Exchange the layers that normalise in a model: ours, torch's, timm's, synchronized ones, and other normalizations."""

import importlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.lazy import LazyModuleMixin

from batchnorm.activations import ActivationName
from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.renorm import Renorm
from batchnorm.surgery.places import Layers, Place, chosen, places, put
from batchnorm.surgery.report import Change, Left, Report, require_change
from batchnorm.torch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm.torch.layers import OPTIONS

Target = Literal["batchnorm", "torch", "timm", "sync", "ghost", "renorm", "group", "instance", "layer"]
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
OTHERS = ("group", "instance", "layer")
CHANGED = "this changes what the model computes: train it, or fine-tune it"
ALLOWED: dict[str, set[str]] = {  # options of each target
    "batchnorm": set(OPTIONS), "torch": {"rank", "lose"}, "timm": {"lose"}, "sync": {"process_group"},
    "ghost": {"virtual_batch_size"}, "renorm": set(Renorm.__dataclass_fields__), "group": {"num_groups"},
    "instance": {"rank"}, "layer": set(),
}  # fmt: skip


def _activation(module: nn.Module) -> ActivationName | str | None:
    """Return our name of an activation; a sentence where it has none."""
    if isinstance(module, nn.Identity):
        return None
    for name, make in ACTIVATIONS.items():
        made = make()
        if type(module) is type(made) and {**vars(module), "inplace": 0, "training": 0} == {
            **vars(made), "inplace": 0, "training": 0,
        }:  # fmt: skip
            return name
    return f"its activation {module} is none of {', '.join(ACTIVATIONS)}"


def _is_timms(module: nn.Module) -> bool:
    return type(module).__name__ == "BatchNormAct2d" and type(module).__module__.startswith("timm.")


def options_of(module: nn.Module) -> dict[str, Any] | str:
    """Return the options of our layer that does what this one does; a sentence where there is none."""
    if isinstance(module, LazyModuleMixin):
        return "it does not know its features yet: run the model once"
    if any(held for name, held in vars(module).items() if name.endswith("_hooks")):
        return "it has hooks, which would be lost"
    if type(module) in {BatchNorm, *BY_RANK.values()}:
        return {name: getattr(module, name) for name in OPTIONS}
    if type(module) in OURS:
        sync = isinstance(module, nn.SyncBatchNorm)
        return {"sync": True, "process_group": module.process_group} if sync else {}
    if not _is_timms(module):
        return f"a {type(module).__name__}, of which more than normalization might be lost"
    if not isinstance(module.drop, nn.Identity):
        return f"its {module.drop} would be lost"
    found = _activation(module.act) if isinstance(module.act, nn.Module) else "its activation is no module"
    return {"activation": found} if found is None or found in ACTIVATIONS else str(found)


def _is_ours(module: nn.Module) -> bool:
    return isinstance(module, BatchNorm)


def _take_over(new: Any, old: Any) -> None:
    """Take over the statistics in their dtype; ours are float32 at least, and torch's, of ours, as the parameters."""
    if old.running_mean is None:
        return
    for name, value in old._buffers.items():
        if value is None or new._buffers.get(name) is None:
            continue
        if value.is_floating_point() and _is_ours(new):
            value = value.to(torch.promote_types(value.dtype, torch.float32))
        elif value.is_floating_point() and _is_ours(old) and old.affine:
            value = value.to(old.weight.dtype)
        new._buffers[name] = value.clone()
    if _is_ours(new):
        for name, value in new._renorm_start(new.running_mean, new.running_var).items():
            if old._buffers.get(name) is None:
                new._buffers[name] = value
    if _is_ours(new) and _is_ours(old):
        new.frozen, new._thawed = old.frozen, old._thawed


def _made(kind: Callable[..., nn.Module], old: Any, *first: Any, running: bool = True, **options: Any) -> nn.Module:
    """Return a layer of another kind with the state, device, dtype and mode, and the very parameters, of `old`."""
    parameters = {name: old._parameters.get(name) for name in ("weight", "bias")}
    like = next((p for p in (*parameters.values(), *old.buffers()) if p is not None), torch.empty(0))
    if running:
        options |= {"momentum": old.momentum, "track_running_stats": old.track_running_stats}
    new: Any = kind(*first, eps=old.eps, affine=old.affine, device=like.device, **options)
    if running:
        _take_over(new, old)
    for name, value in vars(old).items():  # what somebody has noted on it
        if name not in vars(new) and name != "_thawed":
            setattr(new, name, value)
    for name, parameter in parameters.items():
        new.register_parameter(name, parameter)
    return new.train(old.training)


def _ours(old: Any, options: dict[str, Any]) -> nn.Module:
    kind = OURS.get(type(old), type(old)) if not _is_timms(old) else BatchNorm2d
    return _made(kind, old, old.num_features, **options)


def _lost(old: nn.Module, options: dict[str, Any], kept: set[str]) -> str | None:
    """Return the options that a target does not have, as they are written; None if there are none."""
    lost = [f"{name}={options[name]!r}" for name in options if name not in kept and options[name] != OPTIONS[name]]
    lost += ["frozen=True"] * bool(getattr(old, "frozen", False))
    return ", ".join(lost) or None


def _kind(old: nn.Module, rank: int | None) -> type[BatchNorm] | None:
    """Return which of our classes takes the rank of a layer's inputs; None where that is not known."""
    known = BatchNorm2d if _is_timms(old) else OURS.get(type(old), type(old))
    return BY_RANK.get(rank or 0) if known is BatchNorm else known  # pyright: ignore[reportReturnType]


def _followed(layer: nn.Module, options: dict[str, Any], old: nn.Module) -> nn.Module:
    """Return a layer with the activation behind it that ours includes."""
    name = options.get("activation")
    return layer if name is None else nn.Sequential(layer, ACTIVATIONS[name]()).train(old.training)


def _torchs(old: Any, options: dict[str, Any], rank: int | None = None, lose: bool = False) -> Made:
    lost, kind = _lost(old, options, {"activation", "sync", "process_group", "axis"}), _kind(old, rank)
    if options.get("axis", 1) != 1:
        return f"torch's layer has its features along axis 1, this one along {options['axis']}"
    if lost and not lose:
        return f"torch's layer would lose {lost}, which training needs (lose=True lets it go)"
    if options.get("sync"):
        made = _made(nn.SyncBatchNorm, old, old.num_features, process_group=options["process_group"])
    elif kind is None:
        return "it takes inputs of any rank, and torch has a class for each: say rank=2, 3, 4 or 5"
    else:
        made = _made(TORCHS[kind], old, old.num_features)
    return _followed(made, options, old)


def _timms(old: Any, options: dict[str, Any], lose: bool = False) -> Made:
    lost = _lost(old, options, {"activation", "axis"})
    if options.get("axis", 1) != 1 or _kind(old, 4) is not BatchNorm2d:
        return "timm's layer takes (N, C, H, W)"
    if lost and not lose:
        return f"timm's layer would lose {lost}, which training needs (lose=True lets it go)"
    try:
        kind = importlib.import_module("timm.layers").BatchNormAct2d
    except ImportError as error:
        raise ArgumentError('to="timm" makes timm\'s layers, and timm is not installed: pip install timm') from error
    name = options.get("activation")
    return _made(kind, old, old.num_features, apply_act=name is not None, act_layer=ACTIVATIONS[name] if name else None)


def _other(old: Any, options: dict[str, Any], to: str, rank: int | None = None, num_groups: int | None = None) -> Made:
    features, axis, kind = old.num_features, options.get("axis", 1), _kind(old, rank)
    if getattr(old, "frozen", False):
        return "it is frozen, and would thaw"
    if to == "layer" and axis == -1:
        layer: nn.Module = nn.LayerNorm(features, eps=old.eps, elementwise_affine=old.affine)
        layer.register_parameter("weight", old.weight)
        layer.register_parameter("bias", old.bias)
        return _followed(layer.train(old.training), options, old)
    if axis != 1:
        return f"its features lie along axis {axis}, and those of the other along axis 1"
    if to == "instance":
        if kind is None:
            return "it takes inputs of any rank, and torch has a class for each: say rank=3, 4 or 5"
        made = _made(INSTANCE[kind], old, features, running=False)
    else:
        groups = 1 if to == "layer" else math.gcd(32, features) if num_groups is None else num_groups
        if groups < 1 or features % groups:
            return f"num_groups={groups} does not divide its {features} features"
        made = _made(nn.GroupNorm, old, groups, features, running=False)
    return _followed(made, options, old)


def _converted(old: nn.Module, to: Target, asked: dict[str, Any]) -> Made | None:
    """Return what takes the place of a layer, why nothing can, or None where it is what is asked for."""
    options = options_of(old)
    if isinstance(options, str):
        return options
    ours = isinstance(old, BatchNorm)
    if to == "torch":
        return None if type(old) in OURS else _torchs(old, options, **asked)
    if to == "timm":
        return None if _is_timms(old) else _timms(old, options, **asked)
    if to in OTHERS:
        return _other(old, options, to, **asked)
    if to == "sync" and type(old) in OURS:
        return None if options.get("sync") else _made(nn.SyncBatchNorm, old, old.num_features, **asked)
    wanted = {**options, **_wanted(to, asked)}
    return None if ours and wanted == options else _ours(old, wanted)


def shown(module: nn.Module) -> str:
    """Return whose layer it is, of how many features, with the options that matter."""
    if isinstance(module, nn.Sequential):
        return " + ".join(shown(one) for one in module)
    whose, kind = type(module).__module__.partition(".")[0], type(module).__name__
    features = getattr(module, "num_features", getattr(module, "normalized_shape", getattr(module, "num_channels", "")))
    groups = [f"num_groups={module.num_groups}"] if isinstance(module, nn.GroupNorm) else []
    options = options_of(module) if isinstance(module, _BatchNorm) else {}
    told = [f"{k}={v!r}" for k, v in options.items() if v != OPTIONS[k]] if isinstance(options, dict) else []
    return f"{whose} {kind}({', '.join([str(features)] * (features != '') + groups + told)})"


def _wanted(to: Target, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the options of our layer that a target stands for."""
    if to == "renorm":
        return {"renorm": Renorm(**asked)}
    if to == "ghost" and "virtual_batch_size" not in asked:
        raise ArgumentError('to="ghost" needs `virtual_batch_size`, how many samples are normalised together')
    return {"sync": True, **asked} if to == "sync" else asked


def convert(
    model: nn.Module,
    to: Target = "batchnorm",
    *,
    layers: Layers | None = None,
    allow_empty: bool = False,
    **options: Any,
) -> Report:
    """Exchange every batch normalization of `model` for another kind of layer, in place.

    | to | becomes | options |
    |---|---|---|
    | "batchnorm" | `batchnorm.torch.BatchNorm1d/2d/3d`; `BatchNorm(sync=True)` for SyncBatchNorm | any of that layer |
    | "torch" | `torch.nn.BatchNorm1d/2d/3d` or SyncBatchNorm, an activation behind it | `rank`, `lose` |
    | "timm" | timm's BatchNormAct2d | `lose` |
    | "sync" | torch's become SyncBatchNorm, ours `sync=True` | `process_group` |
    | "ghost" | ours with virtual batches | `virtual_batch_size` |
    | "renorm" | ours with batch renormalization | those of `Renorm` |
    | "group" | GroupNorm | `num_groups`: else the largest divisor that 32 has, too |
    | "instance" | InstanceNorm1d/2d/3d | `rank` |
    | "layer" | LayerNorm; GroupNorm(1, C) where features come first | |

    The last three change what the model computes. With the others inference stays the same, and there and back is the
    identity. Parameters remain the same objects, so that optimizers stay valid; statistics, device, dtype, mode and
    requires_grad are taken over. A subclass of which something would be lost, a layer with hooks, or with options that
    the other kind has not, is left as it is, and the report says why.

    Args:
        model: Changed in place. Of a model that is one such layer itself, take `report.model`.
        to: The kind of layer.
        layers: Which: names with wildcards, modules, or a predicate `(name, module) -> bool`; all if None.
        allow_empty: Whether it is right to find nothing.
        options: As in the table. `rank` is that of the inputs where a layer takes any; `lose=True` lets go of
            options that matter in training alone.

    Raises:
        ArgumentError: for an unknown target or option.
        BatchNormError: if nothing was to be exchanged.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    >>> convert(model, "ghost", virtual_batch_size=16).changes[0].after
    'batchnorm BatchNorm1d(8, virtual_batch_size=16)'
    >>> convert(model, "torch", lose=True).names, model[1]
    (['1'], BatchNorm1d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True))
    """
    if to not in ALLOWED:
        raise ArgumentError(f"`to` must be one of {', '.join(ALLOWED)}, got {to!r}")
    unknown = set(options) - ALLOWED[to]
    if unknown:
        raise ArgumentError(
            f'to="{to}" takes {", ".join(sorted(ALLOWED[to])) or "no options"}, got {", ".join(sorted(unknown))}'
        )
    changes, left, found = list[Change](), list[Left](), list[tuple[Place, nn.Module]]()
    for place in chosen(places(model, lambda module: isinstance(module, _BatchNorm)), layers):
        try:
            made = _converted(place.module, to, options)
        except (BatchNormError, TypeError) as error:
            raise ArgumentError(f"{place.name}: {error}") from None
        if isinstance(made, str):
            left.append(Left(place.name, made))
        elif made is not None:
            changes.append(Change(place.name, "", shown(place.module), shown(made)))
            found.append((place, made))
    for place, made in found:  # all of them, or none
        model = put(model, place, made)
    notes = (CHANGED,) if changes and (to in OTHERS or {"activation", "axis"} & set(options)) else ()
    return require_change(Report(f"convert to {to}", model, changes, left, notes=notes), allow_empty)
