"""Put batch normalization into a model that has none."""

from collections.abc import Callable, Container
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.surgery.flow import Call, Flow, Returned, is_one_call, record, tensors_in
from batchnorm.surgery.folding import WEIGHTED, weighted
from batchnorm.surgery.places import Layers, Place, chosen, is_frozen_class, places, put, trainable
from batchnorm.surgery.report import Change, Left, Report, require_change
from batchnorm.torch import BatchNorm
from batchnorm.torch.naming import shorten

ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.ReLU,
    nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Hardshrink, nn.LogSigmoid, nn.RReLU,
    nn.Softshrink, nn.Tanhshrink, nn.Threshold, nn.GLU,
)  # fmt: skip
FUNCTIONS = {name for kind in ACTIVATIONS for name in (kind.__name__.lower(), f"{kind.__name__.lower()}_")} | {
    "leaky_relu", "leaky_relu_", "clamp", "clamp_", "clamp_min", "clamp_min_",
}  # fmt: skip
NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
ORDERED = (*WEIGHTED, *ACTIVATIONS, *NORMALIZATIONS, nn.Flatten, nn.Unflatten, nn.RNNBase, nn.MultiheadAttention)
ALREADY = "it is normalised already"
NEVER = "it is not called, or by something of torch.nn that runs its parts in its own way"
BY_ORDER = "by the order of the modules, without example inputs: functions, and modules called twice, are not seen"
MIXING = {"matmul", "__matmul__", "bmm", "einsum", "softmax", "scaled_dot_product_attention", "linear"}  # of features
NORMALIZING = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
REORDERING = {
    "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "H", "mH", "rot90", "unfold",
}  # fmt: skip
RESHAPING = {"reshape", "view", "reshape_as", "view_as", "unflatten"}
REDUCING = {"mean", "sum", "amax", "amin", "max", "min", "logsumexp", "norm", "select", "__getitem__", "squeeze"}


class _Spot(NamedTuple):
    """Where a layer goes: beside a module, ahead of it or behind, for so many features along an axis."""

    module: nn.Module
    ahead: bool
    features: int
    axis: int


def _weighted(call: Call) -> bool:
    return isinstance(call.module, WEIGHTED)


def _activation(call: Call) -> bool:
    return isinstance(call.module, ACTIVATIONS) or (call.module is None and call.name in FUNCTIONS)


def _ends(call: Call) -> bool:
    """Return whether what comes after a call has other features than what comes before."""
    return (
        _weighted(call)
        or isinstance(call.module, (*NORMALIZATIONS, nn.MultiheadAttention, nn.RNNBase))
        or call.name in MIXING | NORMALIZING
    )


def _leads_to(flow: Flow, call: Call, wanted: Callable[[Call], bool], *, through: bool) -> bool:
    """Return whether what a call makes gets to a wanted one: `through` all others, or only those that keep features."""
    waiting, seen = [*call.outputs], set(call.outputs)
    while waiting:
        for user in flow.users(waiting.pop()):
            if wanted(user):
                return True
            if through or not _ends(user):
                waiting += [value for value in user.outputs if value not in seen]
                seen.update(user.outputs)
    return False


def _features(flow: Flow, call: Call) -> tuple[int, int] | None:
    """Return how many features the output of a call has, and along which axis; None where that cannot be told."""
    shape = flow.shapes[call.outputs[0]]
    way = [call] if _weighted(call) else list(flow.upstream(call, lambda up: not _ends(up)))
    source = way[-1] if way and _ends(way[-1]) else None
    functions = {up.name for up in way if up.module is None}
    if len(shape) < 2 or functions & REORDERING:
        return None
    if source is None or not _weighted(source):
        return (shape[1], 1) if len(shape) == 2 else None
    of_source = flow.shapes[source.outputs[0]]
    linear = isinstance(source.module, nn.Linear)
    axis = -1 if linear else 1
    if not linear and len(of_source) != source.module.weight.dim():  # without an axis for the batch
        return None
    if len(shape) == 2 < len(of_source):  # flattened, or averaged over positions
        features = of_source[axis]
        if functions & REDUCING and (shape[1] != features or of_source[1:].count(features) > 1):
            return None  # or over features
        axis = 1
    elif len(shape) != len(of_source) or shape[axis] != of_source[axis] or functions & RESHAPING:
        return None
    return shape[axis], axis


def _spot(flow: Flow, call: Call, asked: bool) -> _Spot | str:
    """Return where the layer goes that normalises what a call makes, or why none can."""
    found = _features(flow, call)
    if found is None:
        return "which axis holds the features cannot be told"
    times = 0 if call.module is None else len(flow.of(call.module) or flow.returned[id(call.module)])
    if call.module is not None and times == 1:
        if call.outputs[0] in flow.results and not asked:
            return "the model returns what it makes"
        return _Spot(call.module, False, *found)
    if call.module is not None and not _activation(call):
        return f"it is called {times} times: one set of statistics cannot serve them all"
    users = flow.users(call.outputs[0])
    user = users[0].module if len(users) == 1 and call.outputs[0] not in flow.results else None
    if user is None or len(flow.of(user)) != 1 or len(users[0].inputs) != 1:
        return "no module stands for it alone, neither its own nor that of what follows: give it one"
    return _Spot(user, True, *found)


def _wanted(flow: Flow, position: str) -> list[Call]:
    """Return the calls whose output is to be normalised."""
    kind = _activation if position == "after" else _weighted
    inner = [call for call in flow.calls if kind(call) and _leads_to(flow, call, _weighted, through=True)]
    if position == "after":
        return inner
    return [call for call in inner if _normalised(flow, call) or _leads_to(flow, call, _activation, through=False)]


def _normalised(flow: Flow, call: Call) -> bool:
    users = [user for value in call.outputs for user in flow.users(value)]
    return bool(users) and all(
        isinstance(user.module, NORMALIZATIONS) or is_frozen_class(user.module) or user.name in NORMALIZING
        for user in users
    )


def _by_flow(flow: Flow, position: str, picked: dict[int, Place] | None) -> list[tuple[str, _Spot | str]]:
    """Return what is to be normalised by what feeds what, each with its spot, or why it has none."""
    if picked is None:
        calls = _wanted(flow, position)
        return [(call.name, ALREADY if _normalised(flow, call) else _spot(flow, call, False)) for call in calls]
    calls = [call for call in flow.calls if id(call.module) in picked]
    found = [(call.name, ALREADY if _normalised(flow, call) else _spot(flow, call, True)) for call in calls]
    taken = {call.outputs for call in calls}
    for key, place in picked.items():
        if "" in place.names and not flow.of(place.module):
            found.append((place.name, "it is the model itself: name a module in it"))
            continue
        for one in flow.returned[key]:
            if one.values not in taken:  # else it is what a module in it has made, which is normalised itself
                taken.add(one.values)
                found.append((place.name, _behind(flow, place, one)))
    return found


def _behind(flow: Flow, place: Place, returned: Returned) -> _Spot | str:
    """Return where the layer goes that normalises what a module made of others returns, or why none can."""
    if len(returned.values) != 1:
        return f"it returns {len(returned.values)} tensors"
    if not returned.alone:
        return "it takes more than one argument: name a module in it"
    call = Call(place.name, place.module, returned.values, returned.values)
    return ALREADY if _normalised(flow, call) else _spot(flow, call, True)


def _by_order(model: nn.Module, position: str, picked: Container[int] | None) -> list[tuple[str, _Spot | str]]:
    """Return the same by the order in which the modules are defined, where there are no inputs to run on."""
    inside = {id(part) for whole in model.modules() if _opaque(whole) for part in whole.modules() if part is not whole}
    found = places(model, lambda module: isinstance(module, ORDERED) and id(module) not in inside)
    last = max((i for i, place in enumerate(found) if isinstance(place.module, WEIGHTED)), default=0)
    spots: list[tuple[str, _Spot | str]] = []
    source: Any = None
    for i, (module, names) in enumerate(found):
        if not isinstance(module, ACTIVATIONS):
            source = module if isinstance(module, WEIGHTED) else None  # else who knows along which axis
        follows = found[i + 1].module if i + 1 < len(found) else None
        wanted = ACTIVATIONS if source is module else WEIGHTED
        by_default = i < last and (source is module) == (position == "before") and isinstance(follows, wanted)
        if source is None or not (by_default if picked is None else id(module) in picked):
            continue
        linear = isinstance(source, nn.Linear)
        spot = _Spot(module, False, source.out_features if linear else source.out_channels, -1 if linear else 1)
        spots.append((names[0], spot if len(names) == 1 else f"it is used {len(names)} times, as {', '.join(names)}"))
    return spots


def _opaque(module: nn.Module) -> bool:
    """Return whether a module of torch's uses its parts in ways of its own: attention, say."""
    return is_one_call(module) and not isinstance(module, (*WEIGHTED, *ACTIVATIONS)) and any(module.children())


def _beside(spot: _Spot, model: nn.Module) -> nn.Sequential:
    """Return what takes the place of the module: itself and the new layer, in their order."""
    like = next(spot.module.parameters(), next(model.parameters(), torch.empty(0)))
    layer = BatchNorm(spot.features, axis=spot.axis, device=like.device, dtype=like.dtype)
    pair = (layer, spot.module) if spot.ahead else (spot.module, layer)
    made = nn.Sequential(*pair)
    made.training = layer.training = spot.module.training
    return made


def _called(flow: Flow, leaving_out: Container[object]) -> list[Any]:
    """Return what is called in which order."""
    keys = [call.name if call.module is None else id(call.module) for call in flow.calls]
    return [key for key in keys if key not in leaving_out]


def _same_shapes(a: Any, b: Any) -> bool:
    shapes = [[tuple(tensor.shape) for tensor in tensors_in(one)] for one in (a, b)]
    return shapes[0] == shapes[1]


class _Surgery:
    """Changes that can be taken back."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self._before = model, list[tuple[Place, nn.Module, Any]]()
        self.layers: dict[int, str] = {}  # what was inserted, and where

    def operate(self, place: Place, spot: _Spot, *, drop_bias: bool) -> Change:
        module, pair = place.module, _beside(spot, self.model)
        bias = module._parameters.get("bias")  # pyright: ignore[reportPrivateUsage]
        drop = drop_bias and not spot.ahead and weighted(module) and bias is not None
        self._before.append((place, pair, bias if drop else None))
        if drop:
            module.register_parameter("bias", None)
        self.model = put(self.model, place, pair)
        layer = pair[0 if spot.ahead else 1]
        self.layers[id(layer)] = place.name
        after = f"{'ahead' if spot.ahead else 'behind'}{', without its bias' if drop else ''}"
        return Change(
            place.name, f"{type(layer).__name__}({spot.features}, axis={spot.axis}) {after}", type(module).__name__
        )

    def undo(self) -> None:
        for place, pair, bias in reversed(self._before):
            if bias is not None:
                place.module.register_parameter("bias", bias)
            self.model = put(self.model, Place(pair, place.names), place.module)


@trainable
def insert(
    model: nn.Module,
    example_inputs: Any = None,
    position: Literal["before", "after"] = "before",
    where: Layers | None = None,
    *,
    drop_bias: bool = True,
    allow_empty: bool = False,
) -> Report:
    """Insert batch normalization before or after each activation of `model`, in place.

    "before": behind each Linear and convolution whose output, on its way to other such layers, is activated. "after":
    behind each activation, module or function, that such layers follow. What the model returns is never normalised,
    unless `where` says so. The model is run once on the example inputs, in inference, to see what feeds what: a
    ReLU that is shared, or a function, is normalised ahead of the module that alone uses its output.

    Args:
        model: Changed in place: a layer m becomes `Sequential(m, BatchNorm)`, or `Sequential(BatchNorm, m)`, under the
            same names. Of a model that is one layer itself, take `report.model`. Make the optimizer afterwards: one
            that is there knows nothing of γ and β, and goes on holding the biases that were dropped.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments that the model accepts. None: the
            order in which modules are defined is taken for the order in which they are called.
        position: Before or after the activation.
        where: Behind which modules instead: names with wildcards, modules, or a predicate `(name, module) -> bool`.
        drop_bias: Drop the bias of a layer that is normalised: subtracting the mean cancels it.
        allow_empty: Whether it is right to find nothing.

    Returns:
        The report: `names` of the layers that are normalised now, and what was `left`, and why.

    Raises:
        ArgumentError: if `position` is neither, or `where` names what is not there.
        BatchNormError: if nothing was found to normalise, or the model does not run with what was inserted. Then it is
            as before.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> insert(net, torch.zeros(1, 2)).names
    ['0']
    >>> net[0]
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=False)
      (1): BatchNorm(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, axis=-1)
    )
    """
    if position not in ("before", "after"):
        raise ArgumentError(f'`position` must be "before" or "after" the activation, got {position!r}')
    there = {id(place.module): place for place in places(model)}
    named = None if where is None else chosen(list(there.values()), where, "where")
    picked = None if named is None else {id(place.module): place for place in named}
    flow = None if example_inputs is None else record(model, example_inputs)
    found = _by_order(model, position, picked) if flow is None else _by_flow(flow, position, picked)
    surgery, left, changes = _Surgery(model), dict[Left, None](), dict[int, Change]()
    for name, spot in found:
        if isinstance(spot, str):
            left[Left(name, spot)] = None
        elif id(spot.module) not in changes:
            changes[id(spot.module)] = surgery.operate(there[id(spot.module)], spot, drop_bias=drop_bias)
    if flow is not None:
        _try(surgery, flow, example_inputs)
        never = [p.name for key, p in (picked or {}).items() if not flow.of(p.module) and not flow.returned[key]]
        left |= {Left(name, NEVER): None for name in never}
    notes = [] if flow is not None else [BY_ORDER]
    if not found and where is None:
        notes.append(f"no layer to normalise {position} an activation; `where` names layers to put it behind")
        opaque = [place.name for place in there.values() if _opaque(place.module)]
        notes += [f"torch.nn runs the parts of {shorten(opaque)} in its own way, with nothing between them"] * bool(
            opaque
        )
    return require_change(Report("insert", surgery.model, [*changes.values()], [*left], notes=notes), allow_empty)


def _try(surgery: _Surgery, before: Flow, example_inputs: Any) -> None:
    """Run the model with what was inserted; take it out if that fails or changes what else is called."""
    try:
        now = record(surgery.model, example_inputs)
        if not _same_shapes(now.result, before.result):
            raise BatchNormError("the outputs have other shapes")
        called = [id(call.module) for call in now.calls if id(call.module) in surgery.layers]
        past = [name for key, name in surgery.layers.items() if called.count(key) != 1]
        if past:
            raise BatchNormError(f"{shorten(past)} is called by another way than its name, which leads past it")
        if _called(before, ()) != _called(now, surgery.layers):
            raise BatchNormError("it calls other things than before: does it ask what kind its modules are?")
    except BaseException as error:
        surgery.undo()
        if not isinstance(error, Exception):
            raise
        raise BatchNormError(
            f"the model does not run with what was inserted, which was taken out again: {error}"
        ) from error
