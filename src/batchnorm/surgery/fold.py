"""Fold batch normalization into the layers beside it, for inference, and prove that nothing changed."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.parametrize import is_parametrized

from batchnorm.errors import BatchNormError
from batchnorm.surgery.convert import activation_of, options_of
from batchnorm.surgery.flow import Call, Flow, record, tensors_in
from batchnorm.surgery.folding import TRANSPOSED, WEIGHTED, affine, after, ahead, merged, weighted
from batchnorm.surgery.places import places, put, trainable
from batchnorm.surgery.report import Change, Left, Report, require_change

PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
DROPPING = {
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
}
UNREACHED = "the example inputs do not reach it, or do by another way than calling it"
POWER = 0.7  # of ε, times √layers: rounding stays below, mistakes do not


class Activated(nn.Module):
    """What is left of a folded layer that adds a residual or activates: y = act(x + residual)."""

    def __init__(self, activation: nn.Module | None) -> None:
        """Take the activation over."""
        super().__init__()
        self.activation = activation or nn.Identity()

    def forward(self, input: Tensor, residual: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Add and activate; weights of samples mean nothing in inference."""
        return self.activation(input if residual is None else input + residual)


def normalization(layer: nn.Module) -> nn.Module | str | None:
    """Return the activation that a layer includes, None where there is none, or why it does more than normalise."""
    options = options_of(layer)
    return options if isinstance(options, str) else activation_of(layer)


class _Folding:
    """A model on its way: what each module has become, and what was left and why."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.flow = flow
        self.places = {id(place.module): place for place in places(model)}
        self.now: dict[int, nn.Module] = {}
        self.gone: set[int] = set()  # layers that do nothing any more
        self.changes: dict[int, Change] = {}

    def passes(self, call: Call) -> bool:
        if call.module is None:
            return call.name in DROPPING  # in inference
        return isinstance(call.module, PASSING) or id(call.module) in self.gone

    def current(self, module: nn.Module) -> Any:
        return self.now.get(id(module), module)

    def producer(self, call: Call) -> Call | str:
        """Return the call that a layer's input comes from, and goes nowhere else; or why there is none."""
        value = call.inputs[0]
        for made in self.flow.upstream(call, self.passes):
            others = len(self.flow.users(value)) - 1 + (value in self.flow.results)
            if others:
                return f"what {made.name} makes is used elsewhere too"
            if not self.passes(made):
                return made
            value = made.inputs[0]
        return "its input comes from outside"

    def consumer(self, call: Call) -> Call | str:
        """Return the call that alone uses what a layer makes; or why there is none."""
        while True:
            value = call.outputs[0]
            users = self.flow.users(value)
            if len(users) != 1 or value in self.flow.results:
                return "what it makes is used elsewhere too" if users else "nothing follows it"
            call = users[0]
            if not self.passes(call):
                return call

    def once(self, module: nn.Module) -> str | None:
        times = len(self.flow.of(module))
        return None if times == 1 else f"{self.places[id(module)].name} is called {times} times"

    def unfit(self, call: Call, features_axis: int | tuple[int, ...], rank: int) -> str | None:
        """Return why a call's module cannot take a batch normalization in; None where it can."""
        module, name = call.module, call.name
        if is_parametrized(module):
            return f"{name} is parametrized: torch.nn.utils.parametrize.remove_parametrizations makes it plain"
        if not weighted(module):
            kind = f"a {type(module).__name__}" if module is not None else "a function, perhaps of a class of its own"
            return f"{name} is {kind}, no Linear or convolution of torch.nn"
        if self.once(module):
            return self.once(module)
        if any(id(p) in self.flow.outside for p in module.parameters()):
            return f"the weight of {name} is used elsewhere too"
        if module._forward_pre_hooks or module._forward_hooks or "weight" not in module._parameters:
            return f"{name} has hooks, or a weight that is computed anew in each call (weight_norm, pruning: remove it)"
        batched = isinstance(module, nn.Linear) or rank == module.weight.dim()
        if not batched or features_axis != (rank - 1 if isinstance(module, nn.Linear) else 1):
            return f"the features of {name} lie along another axis"
        return None

    def note(self, call: Call, what: str, into: Call, *, new: nn.Module, rest: nn.Module) -> None:
        self.now[id(into.module)], self.now[id(call.module)] = new, rest
        if isinstance(rest, nn.Identity):
            self.gone.add(id(call.module))
        self.changes[id(call.module)] = Change(
            call.name, f"{what} {into.name}", type(call.module).__name__, type(rest).__name__
        )


def _axis(layer: Any, rank: int) -> int | tuple[int, ...]:
    axis = getattr(layer, "axis", 1)
    return axis % rank if isinstance(axis, int) else axis


def _refused(folding: _Folding, call: Call) -> str | None:
    """Return why a layer cannot be folded whatever is beside it."""
    layer: Any = call.module
    if layer.running_mean is None:
        return "it keeps no running statistics, and normalises by the batch in inference too"
    if not bool(torch.isfinite(layer.running_mean + layer.running_var).all()):
        return "its running statistics hold inf or NaN"
    found = normalization(layer)
    if isinstance(found, str):
        return found
    values = call.inputs[1:]
    if len(values) > 1 or (values and values[0] == call.inputs[0]):
        return "it is given more than an input and a residual"
    return folding.once(layer)


def _upward(folding: _Folding, call: Call, activation: nn.Module | None) -> str | None:
    """Fold a layer into what comes before it; return why not."""
    layer, rank = call.module, len(folding.flow.shapes[call.inputs[0]])
    made = folding.producer(call)
    if isinstance(made, str):
        return made
    rest = Activated(activation) if activation is not None or len(call.inputs) > 1 else nn.Identity()
    then = affine(folding.current(layer))
    if isinstance(made.module, _BatchNorm) and id(made.module) not in folding.changes:
        plain = normalization(made.module) is None and len(made.inputs) == 1 and not folding.once(made.module)
        if plain and made.module.running_mean is not None and _axis(made.module, rank) == _axis(layer, rank):
            folding.note(call, "merged into", made, new=merged(folding.current(made.module), then), rest=rest)
            return None
    why = folding.unfit(made, _axis(layer, rank), rank)
    if why is None:
        folding.note(call, "folded into", made, new=after(folding.current(made.module), then), rest=rest)
    return why


def _downward(folding: _Folding, call: Call, activation: nn.Module | None) -> str | None:
    """Fold a layer into what comes after it; return why not."""
    layer, rank = call.module, len(folding.flow.shapes[call.outputs[0]])
    user = folding.consumer(call)
    if isinstance(user, str):
        return user
    why = folding.unfit(user, _axis(layer, rank), rank)
    if why is None and (activation is not None or len(call.inputs) > 1):
        why = f"it is activated before {user.name}"
    first, module = affine(folding.current(layer)), folding.current(user.module)
    if why is None and bool(first.shift.any()) and not _sees_every_tap(module):
        why = f"{user.name} pads with zeros, which are no outputs of this layer"
    if why is None:
        folding.note(call, "folded into", user, new=ahead(module, first), rest=nn.Identity())
    return why


def _sees_every_tap(module: Any) -> bool:
    """Return whether each output of a layer is a sum over all of its taps, so that a shift of inputs is a constant."""
    if isinstance(module, nn.Linear):
        return True
    if isinstance(module, TRANSPOSED):
        return {*module.kernel_size, *module.stride} == {1} and {*module.padding, *module.output_padding} == {0}
    padded = module.padding == "same" and {*module.kernel_size} != {1}
    padded |= not isinstance(module.padding, str) and any(module.padding)
    return not padded or module.padding_mode != "zeros"


def _difference(before: Any, now: Any) -> tuple[float, float]:
    """Return the largest difference of an output, over its largest number, and what its dtype allows after one fold.

    Of several outputs those of the worst. What is inf or NaN must be so in both, and shows nothing.
    """
    worst: tuple[float, float] | None = None
    for old, new in zip(tensors_in(before), tensors_in(now), strict=True):
        if not (old.is_floating_point() and old.numel()):
            continue
        a, b, allowed = old.double(), new.double(), torch.finfo(old.dtype).eps ** POWER
        finite = a[a.isfinite()]
        largest = (float(finite.abs().max()) if finite.numel() else 0.0) or 1.0
        same = (a == b) | (a.isnan() & b.isnan())
        off = float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf).max()) / largest
        if (finite.numel() or off) and (worst is None or off / allowed > worst[0] / worst[1]):
            worst = off, allowed
    if worst is None:
        raise BatchNormError("the outputs hold no finite floating-point numbers that could show that nothing changed")
    return worst


@trainable
def fold(model: nn.Module, example_inputs: Any, *, allow_empty: bool = False) -> Report:
    """Return a copy of `model` for inference whose batch normalizations are part of the layers beside them.

    After a layer, y = scale·(W x + b) + shift with scale = γ/√(σ²+ε) and shift = β − μ·scale, so W' = scale·W and
    b' = scale·b + shift per output feature; before one, W' = W·scale per input feature and b' = b + Σ W·shift. Linear,
    Conv1d/2d/3d and ConvTranspose1d/2d/3d, with groups, with or without bias, γ and β; of two batch normalizations in
    a row one is made. All arithmetic is float64. An activation or residual of our layer, or of timm's, stays behind.

    The model is run once to see what feeds what, and the folded one once to compare: what these inputs do not show (a
    branch that they do not take, a feature that is kept and not returned, inputs of another rank) is not proven. A
    layer is left as it is, and the report says why, where what comes before it is used elsewhere or called twice,
    where a convolution that follows it pads with zeros, or where it keeps no running statistics. The copy is in
    inference throughout.

    Args:
        model: Not changed. In inference: `model.eval()`.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments that the model accepts.
        allow_empty: Whether it is right to find nothing.

    Returns:
        The report: `model` is the folded copy, `numbers` the largest difference of its outputs on the example inputs,
        over the largest output.

    Raises:
        BatchNormError: if the model is in training or cannot be copied, if the difference is more than rounding
            explains (ε^0.7·√layers, ε of the output's dtype), if the outputs hold nothing finite to compare, or if
            there was nothing to fold.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> report = fold(net, torch.randn(2, 3, 8, 8))
    >>> report.model[1], report.numbers["difference"] < 1e-5
    (Identity(), True)
    """
    found = places(model, lambda module: isinstance(module, _BatchNorm))
    for name, module in ((place.name, place.module) for place in found):
        if module.training and not getattr(module, "frozen", False):
            raise BatchNormError(f"{name} is in training, where it normalises by the batch: model.eval() first")
    copied = _copy(model)
    flow = record(copied, example_inputs)
    folding, left = _Folding(copied, flow), dict[str, Left]()
    calls = [call for call in flow.calls if isinstance(call.module, _BatchNorm)]
    for way in (_upward, _downward):
        for call in calls:
            if id(call.module) in folding.changes:
                continue
            why = _refused(folding, call)
            why = why or way(folding, call, normalization(call.module))  # pyright: ignore[reportArgumentType]
            known = left.pop(call.name, None)
            if why is not None:
                also = "" if known is None or known.why == why else f"{known.why}; "
                left[call.name] = Left(call.name, f"{also}{why}")
    reached = {call.name for call in calls}
    left |= {place.name: Left(place.name, UNREACHED) for place in found if place.name not in reached}
    for key, new in folding.now.items():
        copied = put(copied, folding.places[key], new)
    report = Report("fold", copied.eval(), [*folding.changes.values()], [*left.values()])
    return _proven(require_change(report, allow_empty), folding, example_inputs)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # of whatever a model may hold
        raise BatchNormError(
            f"the model cannot be copied, and fold works on a copy: {error} (weight_norm and pruning keep such "
            "tensors: remove them first)"
        ) from error


def _proven(report: Report, folding: _Folding, example_inputs: Any) -> Report:
    """Run the folded model on the same inputs, and return the report with how far its outputs are off."""
    try:
        flow = record(report.model, example_inputs)
    except Exception as error:
        raise BatchNormError(
            f"the folded model does not run, as it uses a layer otherwise than by calling it: {type(error).__name__}: "
            f"{error}"
        ) from error
    for old, new in folding.now.items():
        if isinstance(new, (*WEIGHTED, _BatchNorm)) and len(flow.of(new)) != 1:
            raise BatchNormError(
                f"{folding.places[old].name} is called by another way than its name, which leads past what was folded"
            )
    off, allowed = _difference(folding.flow.result, flow.result)
    allowed *= max(1, len(report.changes)) ** 0.5
    if not off <= allowed:
        raise BatchNormError(
            f"the folded model's outputs differ by {off:.1e} of the largest, where rounding explains {allowed:.1e}: "
            "not folded"
        )
    report.numbers.update({"difference": off, "allowed": allowed})
    return report
