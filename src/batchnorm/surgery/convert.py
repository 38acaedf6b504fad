"""Exchange the layers that normalise in a model: ours, torch's, timm's, synchronized ones, and other normalizations."""

from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.lazy import LazyModuleMixin

from batchnorm.activations import ActivationName
from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.layout import normalise_axis
from batchnorm.renorm import Renorm
from batchnorm.surgery.folding import unlike_its_class
from batchnorm.surgery.kinds import (
    ACTIVATIONS,
    BY_RANK,
    OURS,
    Followed,
    Made,
    followed,
    includes_activation,
    is_ours,
    is_timms,
    lost,
    made,
    other,
    ours,
    registered,
    timms,
    torchs,
    unfrozen,
)
from batchnorm.surgery.places import (
    Layers,
    Place,
    chosen,
    is_frozen_class,
    is_normalization,
    places,
    put,
    trainable,
)
from batchnorm.surgery.report import Change, Left, Report, require_change
from batchnorm.torch import BatchNorm
from batchnorm.torch.layers import OPTIONS
from batchnorm.torch.naming import shorten

Target = Literal["batchnorm", "torch", "timm", "sync", "ghost", "renorm", "group", "instance", "layer"]

OTHERS = ("group", "instance", "layer")
CHANGED = "this changes what the model computes: train it, or fine-tune it"
MOVED = "the names of weights have changed for layers {}: with an activation behind it a layer is two modules"
ALREADY = "it is that already"
ALLOWED: dict[str, set[str]] = {  # options of each target
    "batchnorm": set(OPTIONS), "torch": {"rank", "sync", "lose"}, "timm": {"lose"}, "sync": {"process_group"},
    "ghost": {"virtual_batch_size"}, "renorm": set(Renorm.__dataclass_fields__), "group": {"num_groups", "rank"},
    "instance": {"rank"}, "layer": set(),
}  # fmt: skip


def _named(activation: nn.Module) -> dict[str, ActivationName]:
    """Return the option of our layer that is an activation; none where it has none."""
    for name, make in ACTIVATIONS.items():
        plain = make()
        if type(activation) is type(plain) and {**vars(activation), "inplace": 0, "training": 0} == {
            **vars(plain), "inplace": 0, "training": 0,
        }:  # fmt: skip
            return {"activation": name}
    return {}


def activation_of(module: nn.Module) -> nn.Module | None:
    """Return the activation that a layer includes, as a module; None where there is none."""
    if isinstance(module, Followed):
        return module[1]
    if includes_activation(module):
        return None if isinstance(module.act, nn.Identity) else module.act  # pyright: ignore[reportReturnType]
    name: Any = module.activation if isinstance(module, BatchNorm) else None
    if name is None:
        return None
    before = module.fused_from[0] if isinstance(module, BatchNorm) and module.fused_from else nn.Identity()
    return (before if _named(before) == {"activation": name} else ACTIVATIONS[name]()).train(module.training)


def options_of(module: nn.Module) -> dict[str, Any] | str:
    """Return the options of our layer that does what this one does; a sentence where there is none.

    An activation that ours has no name for is not among them: `activation_of` returns it.
    """
    if isinstance(module, LazyModuleMixin):
        return "it does not know its features yet: run the model once"
    if "forward" in vars(module) or any(held for name, held in vars(module).items() if name.endswith("_hooks")):
        return "it has hooks, or a forward of its own, which would be lost"
    if isinstance(module, Followed):
        options = options_of(module[0])
        if isinstance(options, dict):
            options.pop("activation", None)
            options |= _named(module[1])
        return options
    if type(module) in {BatchNorm, *BY_RANK.values()}:
        return {name: getattr(module, name) for name in OPTIONS}
    if type(module) in OURS:
        sync = isinstance(module, nn.SyncBatchNorm)
        return {"sync": True, "process_group": module.process_group} if sync else {}
    if not includes_activation(module):
        if is_frozen_class(module):
            return {}
        return f"a {type(module).__name__}, of which more than normalization might be lost"
    if not isinstance(module.drop, nn.Identity):
        return f"its {module.drop} would be lost"
    return {**_named(activation_of(module) or nn.Identity())}


def _converted(old: nn.Module, to: Target, asked: dict[str, Any], wanted: dict[str, Any], *, fuse: bool) -> Made:
    """Return what takes the place of a layer, or why nothing does."""
    options, activation = options_of(old), activation_of(old)
    layer: Any = old[0] if isinstance(old, Followed) else old
    if isinstance(options, str):
        return options
    fused = activation is not None and (is_ours(old) or bool(getattr(old, "fused", False)))
    if activation is not None and not (fuse or fused):
        options.pop("activation", None)
    if is_frozen_class(old):
        return _frozen(old, to, {**options, **wanted}, activation, fused=fused)
    if registered(layer):
        return f"its {' and '.join(registered(layer))} would be lost"
    if to == "timm":
        return ALREADY if is_timms(old) else timms(layer, options, activation, fused=fused, **asked)
    if to == "torch":
        already = type(layer) in OURS and asked.get("sync") in {None, "sync" in options}
        new = ALREADY if already else torchs(layer, options, **asked)
    elif to in OTHERS:
        new = other(layer, options, to, **asked)
    elif {**options, **wanted} == options and (is_ours(layer) or to == "sync"):
        joins = isinstance(old, Followed) and "activation" in options  # two modules become one
        return _by_ours(layer, options, activation, fused=fused) if joins and is_ours(layer) else ALREADY
    elif to == "sync" and type(layer) in OURS:
        new = made(nn.SyncBatchNorm, layer, layer.num_features, **asked)
    else:
        return _by_ours(layer, {**options, **wanted}, activation, fused=fused)
    return new if isinstance(new, str) or activation is None else followed(new, activation, fused=fused)


def _by_ours(layer: nn.Module, options: dict[str, Any], activation: nn.Module | None, *, fused: bool) -> Made:
    """Return our layer with the activation in it, if `options` name it, or behind it; or why there is none."""
    try:
        new: Any = ours(layer, options)
    except BatchNormError as error:  # two options that exclude one another
        return str(error)
    if activation is None:
        return new
    if "activation" not in options:
        return followed(new, activation, fused=fused)
    new.fused_from = (activation,)
    return new


def _frozen(old: nn.Module, to: Target, options: dict[str, Any], activation: nn.Module | None, *, fused: bool) -> Made:
    """Return our layer, frozen as the class is that was frozen for good, or why there is none."""
    if to != "batchnorm":
        return f'a {type(old).__name__} is frozen for good: to="batchnorm" makes a layer of it that can be thawed'
    if (unknown := unlike_its_class(old)) is not None:
        return unknown
    new: Any = _by_ours(unfrozen(old), options, activation, fused=fused)
    if not isinstance(new, str):
        layer: Any = new[0] if isinstance(new, Followed) else new
        layer.freeze()
    return new


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
    """Return the options of our layer that a target stands for; raise for those that no layer can have."""
    if to == "ghost" and "virtual_batch_size" not in asked:
        raise ArgumentError('to="ghost" needs `virtual_batch_size`, how many samples are normalised together')
    given = {"renorm": Renorm(**asked)} if to == "renorm" else {"sync": True, **asked} if to == "sync" else asked
    wanted: dict[str, Any] = {name: value for name, value in given.items() if name in OPTIONS}
    normalise_axis(wanted.get("axis", 1))
    alone: dict[str, Any] = {**wanted, "axis": 1}
    BatchNorm(1, **alone)
    return wanted


def _found(model: nn.Module, layers: Layers | None) -> list[Place]:
    """Return the chosen layers, each as one with the activation that was put behind it."""
    found = places(model, lambda module: is_normalization(module) or isinstance(module, Followed))
    inner = [place for place in found if is_normalization(place.module)]
    pairs = {
        id(place.module[0]): place
        for place in found
        if isinstance(place.module, Followed) and len(place.module) == 2 and activation_of(place.module[0]) is None
    }
    whole = [pairs.get(id(place.module), place) for place in inner]
    whole = [w if len(w.names) == len(place.names) else place for place, w in zip(inner, whole, strict=True)]  # shared
    named = [place._replace(names=w.names + place.names) for place, w in zip(inner, whole, strict=True)]
    kept = {id(place.module) for place in chosen(named, layers)}
    return [w for place, w in zip(inner, whole, strict=True) if id(place.module) in kept]


def _without(old: nn.Module, to: Target) -> str:
    """Return which options a layer has had that the other kind has not."""
    layer, options = old[0] if isinstance(old, Followed) else old, options_of(old)
    gone = lost(layer, options, to) if to in {"torch", "timm", *OTHERS} and isinstance(options, dict) else ""
    return gone and f"without {gone}"


@trainable
def convert(
    model: nn.Module,
    to: Target = "batchnorm",
    *,
    layers: Layers | None = None,
    fuse_activations: bool = False,
    allow_empty: bool = False,
    **options: Any,
) -> Report:
    """Exchange every batch normalization of `model` for another kind of layer, in place.

    | to | becomes | options |
    |---|---|---|
    | "batchnorm" | `batchnorm.torch.BatchNorm1d/2d/3d`; `BatchNorm(sync=True)` for SyncBatchNorm | any of that layer |
    | "torch" | `torch.nn.BatchNorm1d/2d/3d` or SyncBatchNorm, an activation behind it | `rank`, `sync`, `lose` |
    | "timm" | timm's BatchNormAct2d | `lose` |
    | "sync" | torch's become SyncBatchNorm, ours `sync=True` | `process_group` |
    | "ghost" | ours with virtual batches | `virtual_batch_size` |
    | "renorm" | ours with batch renormalization | those of `Renorm` |
    | "group" | GroupNorm | `num_groups`: else up to 32 groups of eight features or more, or one; `rank` |
    | "instance" | InstanceNorm1d/2d/3d | `rank` |
    | "layer" | LayerNorm; GroupNorm(1, C) where features come first | |

    The last three change what the model computes. With the others inference stays the same, and there and back is the
    identity. Parameters remain the same objects, so that optimizers stay valid; statistics, device, dtype, mode and
    requires_grad are taken over. A subclass of which something would be lost, a layer with hooks, with buffers of
    somebody's, or with options or statistics that the other kind cannot hold, is left as it is, and the report says
    why. A FrozenBatchNorm2d, of torchvision, timm or detectron2, becomes a layer of ours that is frozen. Where a layer
    of timm's includes an activation, that becomes a module of its own behind the layer, so that tools that rebuild or
    look for layers find both; this makes two modules of one, which changes the names of weights, and the way back makes
    one of the two again: load checkpoints before.

    Args:
        model: Changed in place. Of a model that is one such layer itself, take `report.model`.
        to: The kind of layer.
        layers: Which: names with wildcards, modules, or a predicate `(name, module) -> bool`; all if None.
        fuse_activations: Whether our layer takes in the activation that timm's has, as its option `activation`: one
            pass over memory less, and the names of weights stay. A tool that then puts another layer in its place by
            its class, such as timm's `freeze_batch_norm_2d` or torch's `fuse_conv_bn_eval`, drops the activation.
        allow_empty: Whether it is right to find nothing.
        options: As in the table. `rank` is that of the inputs with the batch axis, 4 for (N, C, H, W), where a layer
            takes any; `sync` makes SyncBatchNorm, or the plain class, of either; `lose=True` lets go of options that
            matter in training alone, and of digits of statistics beside 16-bit parameters.

    Raises:
        ArgumentError: for an unknown target or option, or a value that no layer can have.
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
    wanted = _wanted(to, options)
    changes, left, found = list[Change](), list[Left](), list[tuple[Place, nn.Module]]()
    for place in _found(model, layers):
        try:
            new = _converted(place.module, to, options, wanted, fuse=fuse_activations)
        except (BatchNormError, TypeError) as error:
            raise ArgumentError(f"{place.name}: {error}") from None
        if isinstance(new, str):
            left.append(Left(place.name, new))
        else:
            changes.append(Change(place.name, _without(place.module, to), shown(place.module), shown(new)))
            found.append((place, new))
    for place, new in found:  # all of them, or none
        model = put(model, place, new)
    notes = [CHANGED] if changes and (to in OTHERS or {"activation", "axis"} & set(options)) else []
    moved = [place.name for place, new in found if isinstance(place.module, Followed) != isinstance(new, Followed)]
    notes += [MOVED.format(shorten(moved))] * bool(moved)
    return require_change(Report(f"convert to {to}", model, changes, left, notes=notes), allow_empty)
