"""Fold batch normalization into the layers beside it, for inference, and prove that nothing changed."""

import copy
import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_map

from batchnorm.errors import BatchNormError
from batchnorm.surgery.carried import carries, features_behind
from batchnorm.surgery.convert import activation_of, options_of
from batchnorm.surgery.flow import Call, Flow, record, tensors_in
from batchnorm.surgery.folding import (
    TRANSPOSED,
    WEIGHTED,
    affine,
    after,
    ahead,
    merged,
    obeys,
    unlike_its_class,
    weighted,
)
from batchnorm.surgery.places import (
    epsilon,
    is_frozen_class,
    is_normalization,
    places,
    put,
    trainable,
)
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
OUTPUTS = "the outputs"
SHRUNK = 1e-4  # what is rounding is far less than this in float64, of what it was before; a mistake is as large
WORSE = 3.0  # times as far from float64 as the model itself: no worse than the rounding that happened to come
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
        self.other: set[int] = set()  # modules that return something else than before
        self.changes: dict[int, Change] = {}

    def passes(self, call: Call) -> bool:
        if call.module is None:
            return call.name in DROPPING  # in inference
        return isinstance(call.module, PASSING) or id(call.module) in self.gone

    def current(self, module: nn.Module) -> Any:
        return self.now.get(id(module), module)

    def producer(self, call: Call) -> tuple[Call, list[Call]] | str:
        """Return the call that a layer's input comes from, and goes nowhere else, and the way; or why there is none."""
        value, way = call.inputs[0], list[Call]()
        for made in self.flow.upstream(call, lambda one: self.passes(one) or carries(one)):
            others = len(self.flow.users(value)) - 1 + (value in self.flow.results)
            if others:
                return f"what {made.name} makes is used elsewhere too"
            if not (self.passes(made) or carries(made)):
                return made, way[::-1]
            way.append(made)
            value = made.inputs[0]
        return "its input is an input of the model"

    def consumer(self, call: Call) -> tuple[Call, list[Call]] | str:
        """Return the call that alone uses what a layer makes, and the way there; or why there is none."""
        way = list[Call]()
        while True:
            value = call.outputs[0]
            users = self.flow.users(value)
            if len(users) != 1 or value in self.flow.results:
                return "what it makes is used elsewhere too" if users else "nothing follows it"
            call = users[0]
            if not (self.passes(call) or carries(call)):
                return call, way
            way.append(call)

    def once(self, module: nn.Module) -> str | None:
        times = len(self.flow.of(module))
        return None if times == 1 else f"{self.places[id(module)].name} is called {times} times"

    def unfit(self, call: Call, *, outputs: bool) -> str | None:
        """Return why a call's module cannot take a batch normalization in; None where it can."""
        module: Any = call.module
        name = call.name
        if is_parametrized(module):
            return f"{name} is parametrized: torch.nn.utils.parametrize.remove_parametrizations makes it plain"
        if not isinstance(module, WEIGHTED):
            kind = "a function" if module is None else f"a {type(module).__name__}"
            return f"beside it is {name}, {kind}: no Linear or convolution of torch.nn"
        if self.once(module):
            return self.once(module)
        if module._forward_pre_hooks or module._forward_hooks or "weight" not in module._parameters:  # pyright: ignore
            return f"{name} has hooks, or a weight that is computed anew in each call (weight_norm, pruning: remove it)"
        if any(id(p) in self.flow.outside for p in module.parameters()):
            return f"the weight of {name} is used elsewhere too"
        if "forward" in vars(module):
            return f"{name} has a forward of its own, which some library has put there"
        if not weighted(module) and len(call.inputs) > 1:
            return f"{name} is a {type(module).__name__} that is given more than one tensor"
        if not weighted(module) and not obeys(module, *map(self.flow.tensor, call.inputs), outputs=outputs):
            what = f"a scale and shift of its {'outputs' if outputs else 'inputs'}"
            return f"{name} is a {type(module).__name__}, whose weight and bias cannot take in {what}"
        return None

    def features(self, call: Call, value: int) -> tuple[tuple[int, ...], int] | None:
        """Return the shape of what a weighted call takes or makes, and which axis its features lie along."""
        shape = self.flow.shapes[value]
        if isinstance(call.module, nn.Linear):
            return shape, len(shape) - 1
        return (shape, 1) if len(shape) == call.module.weight.dim() else None  # else without an axis for the batch

    def note(self, call: Call, what: str, into: Call, way: list[Call], *, new: nn.Module, rest: nn.Module) -> None:
        self.now[id(into.module)], self.now[id(call.module)] = new, rest
        ahead = self.flow.calls.index(into) > self.flow.calls.index(call)
        self.other.update(id(one.module) for one in [call if ahead else into, *way])
        if isinstance(rest, nn.Identity):
            self.gone.add(id(call.module))
        self.changes[id(call.module)] = Change(
            call.name, f"{what} {into.name}", type(call.module).__name__, type(rest).__name__
        )


def _own_features(layer: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int] | None:
    axis = getattr(layer, "axis", 1)
    return (shape, axis % len(shape)) if isinstance(axis, int) else None


def _refused(folding: _Folding, call: Call) -> str | None:
    """Return why a layer cannot be folded whatever is beside it."""
    layer: Any = call.module
    if layer.running_mean is None:
        return "it keeps no running statistics, and normalises by the batch in inference too"
    if not bool(torch.isfinite(layer.running_mean + layer.running_var).all()):
        return "its running statistics hold inf or NaN"
    least = float(layer.running_var.double().min()) if layer.running_var.numel() else 0.0
    if least + epsilon(layer) <= 0:
        return f"its running variance plus ε is no more than zero: {least:.3g}, with eps={epsilon(layer):g}"
    found = normalization(layer)
    if isinstance(found, str):
        return found
    if (unknown := unlike_its_class(layer)) is not None:
        return unknown
    values = call.inputs[1:]
    if len(values) > 1 or (values and values[0] == call.inputs[0]):
        return "it is given more than an input and a residual"
    return folding.once(layer)


def _astray(other: Call, path: list[Call]) -> str:
    if not path:
        return f"the features of {other.name} lie along another axis"
    return f"{', '.join(call.name for call in path)} between it and {other.name} mixes features, or adds to them"


def _upward(folding: _Folding, call: Call, activation: nn.Module | None) -> str | None:
    """Fold a layer into what comes before it; return why not."""
    layer, own = call.module, _own_features(call.module, folding.flow.shapes[call.inputs[0]])
    found = folding.producer(call)
    if isinstance(found, str):
        return found
    made, way = found
    path = [one for one in way if not folding.passes(one)]
    rest = Activated(activation) if activation is not None or len(call.inputs) > 1 else nn.Identity()
    then = affine(folding.current(layer))
    if isinstance(made.module, _BatchNorm) and id(made.module) not in folding.changes and not path:
        plain = normalization(made.module) is None and len(made.inputs) == 1 and not folding.once(made.module)
        if plain and made.module.running_mean is not None and own == _own_features(made.module, own[0] if own else ()):
            folding.note(call, "merged into", made, way, new=merged(folding.current(made.module), then), rest=rest)
            return None
    why = folding.unfit(made, outputs=True)
    theirs = None if why else folding.features(made, made.outputs[0])
    become = features_behind(path, theirs, own, of_first=True) if theirs and own else None
    if why is None and become is None:
        why = _astray(made, path)
    if why is None and become is not None:
        new = after(folding.current(made.module), then.at(become.to(then.scale.device)))
        folding.note(call, "folded into", made, way, new=new, rest=rest)
    return why


def _downward(folding: _Folding, call: Call, activation: nn.Module | None) -> str | None:
    """Fold a layer into what comes after it; return why not."""
    layer, own = call.module, _own_features(call.module, folding.flow.shapes[call.outputs[0]])
    found = folding.consumer(call)
    if isinstance(found, str):
        return found
    user, way = found
    why = folding.unfit(user, outputs=False)
    if why is None and (activation is not None or len(call.inputs) > 1):
        why = f"it is activated before {user.name}"
    path = [one for one in way if not folding.passes(one)]
    theirs = None if why else folding.features(user, user.inputs[0])
    come_from = features_behind(path, own, theirs, of_first=False) if theirs and own else None
    if why is None and come_from is None:
        why = _astray(user, path)
    if why is None and come_from is not None:
        first, module = affine(folding.current(layer)), folding.current(user.module)
        if bool(first.shift.any()) and weighted(module) and not _sees_every_tap(module):
            return f"{user.name} pads with zeros, which are no outputs of this layer"
        new = ahead(module, first.at(come_from.to(first.scale.device)))
        folding.note(call, "folded into", user, way, new=new, rest=nn.Identity())
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


class Difference(NamedTuple):
    """How far two outputs are apart.

    Attributes:
        off: The largest difference, over the largest number.
        allowed: What the dtype allows after one fold.
    """

    off: float
    allowed: float


def _difference(before: Any, now: Any) -> Difference | None:
    """Return the difference of outputs; of several that of the worst.

    What is inf or NaN must be so in both, and shows nothing: None where nothing else is there.
    """
    worst: Difference | None = None
    for old, new in zip(tensors_in(before), tensors_in(now), strict=True):
        if not (old.is_floating_point() and old.numel()):
            continue
        a, b, allowed = old.double(), new.double(), torch.finfo(old.dtype).eps ** POWER
        finite = a[a.isfinite()]
        largest = (float(finite.abs().max()) if finite.numel() else 0.0) or 1.0
        same = (a == b) | (a.isnan() & b.isnan())
        off = float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf, torch.inf).max()) / largest
        if (finite.numel() or off) and (worst is None or off / allowed > worst.off / worst.allowed):
            worst = Difference(off, allowed)
    return worst


@trainable
def fold(model: nn.Module, example_inputs: Any, *, allow_empty: bool = False) -> Report:
    """Return a copy of `model` for inference whose batch normalizations are part of the layers beside them.

    After a layer, y = scale·(W x + b) + shift with scale = γ/√(σ²+ε) and shift = β − μ·scale, so W' = scale·W and
    b' = scale·b + shift per output feature; before one, W' = W·scale per input feature and b' = b + Σ W·shift. Linear,
    Conv1d/2d/3d and ConvTranspose1d/2d/3d, with groups, with or without bias, γ and β; of two batch normalizations in
    a row one is made. All arithmetic is float64. An activation or residual of our layer, or of timm's, stays behind.

    Between the two there may be what moves elements or averages those of a feature: flatten, transpose, pooling by
    means. A subclass of such a layer that computes in a way of its own is folded into where that holds for it too.

    The model is run to see what feeds what, and the folded one to compare: the outputs, and what each folded layer
    hands on; a batch of one is taken twice, where the model takes two. What these inputs do not show (a branch that
    they do not take, a feature that is kept and not returned, inputs of another rank) is not proven.
    Where a network amplifies the rounding of its dtype beyond what one of usual condition does, it is folded and
    compared once more in float64. A layer is left as it is, and the report says why,
    where what comes before it is used elsewhere or called twice, where a convolution that follows it pads with zeros,
    or where it keeps no running statistics. The copy is in inference throughout.

    Args:
        model: Not changed. In inference: `model.eval()`.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments that the model accepts.
        allow_empty: Whether it is right to find nothing.

    Returns:
        The report: `model` is the folded copy, `numbers` the largest difference of its outputs on the example inputs,
        over the largest output, and of what the layers hand on.

    Raises:
        BatchNormError: if the model is in training or cannot be copied, if a difference is more than rounding explains
            (ε^0.7·√layers, ε of the output's dtype) and is hardly less in float64, or the folded model is further from
            float64 than three times the model itself; if the outputs hold nothing finite to compare, or if there was
            nothing to fold.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> report = fold(net, torch.randn(2, 3, 8, 8))
    >>> report.model[1], report.numbers["difference"] < 1e-5
    (Identity(), True)
    """
    for name, module in ((place.name, place.module) for place in places(model, is_normalization)):
        if module.training and not (getattr(module, "frozen", False) or is_frozen_class(module)):
            raise BatchNormError(f"{name} is in training, where it normalises by the batch: model.eval() first")
    example_inputs = _twice(model, example_inputs)
    proof = _folded(_copy(model), example_inputs, allow_empty)
    if proof.excess > 1:
        proof = _in_float64(model, example_inputs, proof)
    return proof.report


class Proof(NamedTuple):
    """A folded model, beside the one that it was made of.

    Attributes:
        report: Of what was folded.
        excess: The largest difference, in units of what is allowed.
        off: That over the largest number.
        where: The layer that hands it on, or "the outputs".
        compared: What was compared: what the model returned, or a layer handed on, before and now.
    """

    report: Report
    excess: float
    off: float
    where: str
    compared: dict[str, tuple[Any, Any]]


def _twice(model: nn.Module, example_inputs: Any) -> Any:
    """Return a batch of one twice, where the model takes that: what depends on the size of the batch shows then."""
    tensors = tensors_in(example_inputs)
    if not tensors or any(one.ndim == 0 or one.shape[0] != 1 for one in tensors):
        return example_inputs
    both = tree_map(_beside_itself, example_inputs)
    try:
        record(model, both)
    except Exception:  # of a model that takes one only
        return example_inputs
    return both


def _folded(copied: nn.Module, example_inputs: Any, allow_empty: bool) -> Proof:
    """Fold a model's layers in place, and compare it with itself."""
    found = places(copied, is_normalization)
    flow = record(copied, example_inputs)
    folding, left = _Folding(copied, flow), dict[str, Left]()
    calls = [call for call in flow.calls if is_normalization(call.module)]
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
    same = [key for key in folding.now if key not in folding.other]
    before = record(copied, example_inputs, [folding.places[key].module for key in same])
    for key, new in folding.now.items():
        copied = put(copied, folding.places[key], new)
    report = Report("fold", copied.eval(), [*folding.changes.values()], [*left.values()])
    return _proven(require_change(report, allow_empty), folding, example_inputs, before)


def _computed(model: nn.Module) -> str:
    """Return the attributes of a model that are tensors with a history."""
    return (
        ", ".join(
            f"{name}.{key}".lstrip(".")
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if any(tensor.grad_fn is not None for tensor in tensors_in(value))
        )
        or "a tensor"
    )


def _copy(model: nn.Module) -> nn.Module:
    try:
        with torch.no_grad():  # else parameters of TorchScript would be computed from the others
            return copy.deepcopy(model)
    except Exception as error:  # of whatever a model may hold
        hint = ""
        if "graph leaves" in str(error):  # an attribute that a forward has left, or what weight_norm and pruning keep
            hint = (
                f" (of {_computed(model)}, which a forward has left there: delete it, or run it under torch.no_grad())"
            )
        raise BatchNormError(
            f"the model cannot be copied, and fold works on a copy: {type(error).__name__}: {error}{hint}"
        ) from error


def _proven(report: Report, folding: _Folding, example_inputs: Any, before: Flow) -> Proof:
    """Run the folded model on the same inputs, and return how far its outputs are off, and those of its layers."""
    same = {folding.places[key].name: (key, id(folding.now[key])) for key in before.kept}
    try:
        now = record(report.model, example_inputs, [folding.now[key] for key in before.kept])
    except Exception as error:
        raise BatchNormError(
            f"the folded model does not run, as it uses a layer otherwise than by calling it: {type(error).__name__}: "
            f"{error}"
        ) from error
    for old, new in folding.now.items():
        if isinstance(new, (*WEIGHTED, _BatchNorm)) and len(now.of(new)) != 1:
            raise BatchNormError(
                f"{folding.places[old].name} is called by another way than its name, which leads past what was folded"
            )
    compared = {OUTPUTS: (before.result, now.result)}
    compared |= {name: (before.kept[old], now.kept.get(new, before.kept[old])) for name, (old, new) in same.items()}
    found = {name: one for name, pair in compared.items() if (one := _difference(*pair)) is not None}
    if OUTPUTS not in found:
        raise BatchNormError("the outputs hold no finite floating-point numbers that could show that nothing changed")
    where = max(found, key=lambda name: found[name].off / found[name].allowed)
    numbers = {"difference": found[OUTPUTS].off, "allowed": found[OUTPUTS].allowed * _rounds(report)}
    if len(found) > 1:
        numbers["difference_of_layers"] = max(one.off for name, one in found.items() if name != OUTPUTS)
    report.numbers.update(numbers)
    excess = found[where].off / (found[where].allowed * _rounds(report))
    return Proof(report, excess, found[where].off, where, compared)


def _rounds(report: Report) -> float:
    return max(1, len(report.changes)) ** 0.5


def _in_float64(model: nn.Module, example_inputs: Any, proof: Proof) -> Proof:
    """Fold once more in float64, where a mistake is as large as before, and rounding far smaller.

    Then what the folded model makes may be off by as much as what the model itself makes, some times over.
    """
    numbers = proof.report.numbers
    told = (
        f"what the folded model makes differs by more than rounding explains ({proof.where}: {proof.excess:.2g} times "
        f"as much; the outputs differ by {numbers['difference']:.1e} of the largest)"
    )
    try:
        again = _folded(_copy(model).double(), tree_map(_doubled, example_inputs), allow_empty=True)
    except Exception as error:
        raise BatchNormError(f"{told}, and it cannot be compared in float64 ({error}): not folded") from error
    if again.report.names != proof.report.names or not (again.excess <= 1 or again.off <= SHRUNK * proof.off):
        raise BatchNormError(f"{told}, and in float64 too ({again.where}: {again.off:.1e} of the largest): not folded")
    off: dict[str, tuple[float, float]] = {}  # from float64: as it is, and folded
    for name, (before, now) in proof.compared.items():
        exact, usual = again.compared[name][0], _difference(before, now)
        own, folded = _difference(exact, before), _difference(exact, now)
        if own is None or folded is None or usual is None:
            continue
        off[name] = own.off, folded.off
        most = max(WORSE * own.off, usual.allowed * _rounds(proof.report))
        if not (folded.off <= most and math.isfinite(folded.off)):
            raise BatchNormError(
                f"{told}: beside float64, {name} would be off by {folded.off:.1e} of the largest where the model "
                f"itself is by {own.off:.1e}, as folding makes it subtract large numbers or overflow: not folded"
            )
    numbers["difference_in_float64"] = again.report.numbers["difference"]
    as_it_is, when_folded = off.get(OUTPUTS, (math.nan, math.nan))
    note = (
        f"this network amplifies rounding: beside float64 its outputs are off by {as_it_is:.1e} of the largest as it "
        f"is, and by {when_folded:.1e} folded; in float64 folding changes them by "
        f"{numbers['difference_in_float64']:.1e}"
    )
    return proof._replace(report=replace(proof.report, notes=[*proof.report.notes, note]))


def _beside_itself(leaf: Any) -> Any:
    return torch.cat((leaf, leaf)) if isinstance(leaf, Tensor) else leaf


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
