"""The layer without options on the native kernel, with as little as possible in between: small batches feel every call.

It computes what `Normalize` and `remember` of the general way compute. Whatever it does not serve, or finds wrong, it
leaves to that.
"""

import math
import struct
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter, is_
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.activations import ACTIVATIONS, check_activation
from batchnorm.conventions import ESTIMATORS, Estimator, check_epsilon
from batchnorm.kernels import native
from batchnorm.layout import Axis, Plan, plan
from batchnorm.statistics import Moments
from batchnorm.steps import Inputs, Recipe
from batchnorm.torch.check import has_memory
from batchnorm.torch.native import ordinary, watched
from batchnorm.torch.normalize import Normalize, Signs, as_before
from batchnorm.torch.recompute import in_backward
from batchnorm.torch.tensors import NAMES, PARALLEL_FOR
from batchnorm.torch.training import NON_FINITE, SMALL_BATCH, Step

_LIBRARY: Any = native.load()
_pack, _pack_memory = native.CALL.pack, native.MEMORY.pack
_arrays = struct.Struct("=4q").pack  # x, residual, weights, y
_BEFORE, _AFTER = struct.calcsize("=8q"), struct.calcsize("=12q")  # bytes of a call before x, and until after y
_address = Tensor.data_ptr


class Prepared(NamedTuple):
    """What a shape and the options of a layer settle once.

    Attributes:
        recipe: Of the general way.
        lies: Strides and dtype of x.
        features: (C,), or the kept shape where several axes are kept.
        kept: The kept shape.
        size: N.
        working: The working dtype, with its size in bytes in `row` = C·size.
        row: Bytes of the numbers of all features.
        head: How a call of the library begins.
        signs: How many masks hold the signs of z; 0 where the activation goes not by the sign.
        smooth: Whether the activation needs z itself.
    """

    recipe: Recipe
    lies: tuple[tuple[int, ...], torch.dtype]
    features: tuple[int, ...]
    kept: tuple[int, ...]
    size: int
    working: torch.dtype
    row: int
    head: tuple[int, ...]
    signs: int
    smooth: bool


@lru_cache(maxsize=4096)
def prepare(
    shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, *, axis: Axis, eps: float, activation: str | None
) -> Prepared | None:
    """Return what there is to settle, or None where the general way must serve."""
    check_epsilon(eps)
    check_activation(activation)
    axes, rank = (axis,) if isinstance(axis, int) else axis, len(shape)
    if isinstance(_LIBRARY, str) or dtype not in NAMES or not all(-rank <= a < rank for a in axes) or rank <= len(axes):
        return None
    layout: Plan = plan(rank, axis)
    kept, features = layout.kept_shape(shape), layout.parameter_shape(shape)
    lies = native.arrangement(shape, strides, kept)
    if isinstance(lies, str):
        return None
    working = torch.float64 if dtype == torch.float64 else torch.float32
    name, by_sign = NAMES[dtype], activation is not None and ACTIVATIONS[activation].by_sign
    head = (PARALLEL_FOR, *lies.sizes, native.DTYPES[name], native.ACTIVATIONS[activation])
    return Prepared(
        Recipe(layout, eps, activation), (strides, dtype), features, kept, layout.count(shape), working,
        math.prod(features) * working.itemsize, head, native.bits_size(lies.sizes, name) if by_sign else 0,
        activation is not None and not by_sign,
    )  # fmt: skip


def serves(x: Tensor, residual: Tensor | None) -> bool:
    """Return whether these are plain tensors on a CPU, and nobody looks on at what is done to them."""
    return (
        not torch.compiler.is_compiling()
        and ordinary(x)
        and (residual is None or (ordinary(residual) and _alike(residual, x)))
        and watched() is None
    )


def _alike(residual: Tensor, x: Tensor) -> bool:
    return residual.dtype is x.dtype and residual.shape == x.shape and residual.stride() == x.stride()


def plain(t: Any, prepared: Prepared, *, parameter: bool = False) -> bool:
    """Return whether this is None, or numbers of features that the library can read; a parameter may have 16 bits."""
    return t is None or (
        (type(t) is torch.nn.Parameter or type(t) is Tensor)
        and t.is_cpu
        and (t.dtype is prepared.working or (parameter and t.dtype in NAMES and t.dtype.itemsize < 4))
        and t.shape == prepared.features
        and t.is_contiguous()
        and has_memory(t)
    )


def _precise(parameter: Tensor | None, prepared: Prepared) -> Tensor | None:
    if parameter is None or parameter.dtype is prepared.working:
        return parameter
    return parameter.to(prepared.working)


def _room(parameter: Tensor, prepared: Prepared) -> Tensor:
    """Return room for a gradient in the working dtype."""
    if parameter.dtype is prepared.working:
        return torch.empty_like(parameter)
    return parameter.new_empty(prepared.features, dtype=prepared.working)


class Direct(torch.autograd.Function):
    """`Normalize` on plain tensors: (x, γ, β, residual, prepared, numbers, fixed) -> y.

    `numbers` has a row each of: mean, its low part, m2, 1/√(σ²+ε), and that times γ. In training they are written here;
    where the statistics are `fixed` the first and the third are given, the running mean and variance, and the second is
    unused.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, prepared: Prepared,
        numbers: Tensor, fixed: bool,
    ) -> Tensor:  # fmt: skip
        """Return y."""
        y, at, row = torch.empty_like(x), numbers.data_ptr(), prepared.row
        bits = None if residual is None or not prepared.signs else x.new_empty(prepared.signs, dtype=torch.int16)
        gamma, beta = _precise(weight, prepared), _precise(bias, prepared)
        _LIBRARY.call(
            "infer" if fixed else "forward",
            _pack(
                *prepared.head, x.data_ptr(), 0 if residual is None else residual.data_ptr(), 0, y.data_ptr(), 0, 0, 0,
                0 if bits is None else bits.data_ptr(), at, 0 if fixed else at + row, at + 2 * row, at + 3 * row,
                at + 4 * row, 0 if gamma is None else gamma.data_ptr(), 0 if beta is None else beta.data_ptr(),
                0, 0, 0, 0, 0, 0, prepared.recipe.eps, 0,
            )
        )  # fmt: skip
        ctx.prepared, ctx.residual_wanted, ctx.fixed = prepared, residual is not None, fixed
        ctx.save_for_backward(x, weight, bias, residual if prepared.smooth else None, numbers, bits)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, γ, β and the residual."""
        prepared: Prepared = ctx.prepared
        (dy,), (wants_dx, wants_dgamma, wants_dbeta, wants_dz, *_) = grad_outputs, ctx.needs_input_grad
        if torch.is_grad_enabled() or not ordinary(dy) or watched() is not None:
            return _generally(ctx, dy)
        x, weight, bias, residual, numbers, bits = ctx.saved_tensors
        lies = prepared.lies
        if x.stride() != lies[0] or dy.stride() != lies[0] or x.dtype is not lies[1] or dy.dtype is not lies[1]:
            x, dy = as_before(x, lies), as_before(dy, lies)  # hooks may have brought it back otherwise
        if residual is not None:
            residual = as_before(residual, lies)
        if numbers.dtype is not prepared.working or not numbers.is_contiguous():  # likewise
            numbers = numbers.to(prepared.working).contiguous()
        dx = torch.empty_like(x) if wants_dx else None
        dz = torch.empty_like(x) if wants_dz and prepared.recipe.activation is not None else None
        dgamma = _room(weight, prepared) if wants_dgamma else None
        dbeta = _room(bias, prepared) if wants_dbeta else None
        at, row, beta, fixed = numbers.data_ptr(), prepared.row, _precise(bias, prepared), ctx.fixed
        _LIBRARY.call(
            "backward",
            _pack(
                *prepared.head, x.data_ptr(), 0 if residual is None else residual.data_ptr(), 0, 0, dy.data_ptr(),
                0 if dx is None else dx.data_ptr(), 0 if dz is None else dz.data_ptr(),
                0 if bits is None else bits.data_ptr(), at, 0 if fixed else at + row, 0, at + 3 * row, 0, at + 4 * row,
                0 if beta is None else beta.data_ptr(), 0 if dbeta is None else dbeta.data_ptr(), 0,
                0 if dgamma is None else dgamma.data_ptr(), 0, 0, 0, 0.0, fixed,
            )
        )  # fmt: skip
        if weight is not None and dgamma is not None and weight.dtype is not dgamma.dtype:
            dgamma = dgamma.to(weight.dtype)
        if bias is not None and dbeta is not None and bias.dtype is not dbeta.dtype:
            dbeta = dbeta.to(bias.dtype)
        dz = (dy if prepared.recipe.activation is None else dz) if wants_dz else None
        return dx, dgamma, dbeta, dz, None, None, None


def _generally(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients by the general way: they will be differentiated again, or are more than their memory."""
    prepared: Prepared = ctx.prepared
    x, weight, bias, residual, numbers, bits = ctx.saved_tensors
    shape = prepared.features if ctx.fixed else prepared.kept
    mean, mean_low, m2, inv_std, _ = (row.reshape(shape) for row in numbers.view(5, -1))
    inputs, seen = Inputs(x, weight, bias, residual), [mean, m2, mean_low, inv_std]
    if ctx.fixed:
        inputs, seen = inputs._replace(mean=mean, var=m2), []
    known = SimpleNamespace(
        recipe=replace(prepared.recipe, inference=ctx.fixed),
        saved_tensors=(*inputs, None, *seen, *([] if bits is None else [bits])),
        signs=Signs(False, bits is not None),
        lies=prepared.lies,
        needs_input_grad=(False, *ctx.needs_input_grad[:4]),
        bias_dtype=None if bias is None else bias.dtype,
        residual_dtype=x.dtype if ctx.residual_wanted else None,
    )
    _, dx, dgamma, dbeta, dz, *_ = Normalize.backward(known, dy)
    return dx, dgamma, dbeta, dz, None, None, None


def step(seen: Tensor, prepared: Prepared) -> Step:
    """Return what the batch leaves to be remembered, for those who put it aside."""
    mean, mean_low, m2 = (row.reshape(prepared.features) for row in seen.view(5, -1)[:3])
    return Step(Moments(prepared.size, mean, m2, mean_low), grouped=False)


# What torch's own `apply` does beyond this is for torch.func, which the general way serves.
apply = super(torch.autograd.Function, Direct).apply  # pyright: ignore


def counts(batches: Any) -> bool:
    """Return whether this is None, or a count of batches that the library can move on."""
    return batches is None or (batches.dtype is torch.long and batches.is_cpu and batches.ndim == 0)


def remember(
    running: tuple[Tensor, Tensor, Tensor | None],
    seen: Tensor,
    prepared: Prepared,
    *,
    momentum: float,
    estimator: Estimator,
    skip: bool,
) -> bool:
    """Move the running mean and variance and the count of batches, in place, unless the batch is not finite.

    Returns:
        Whether they have moved.
    """
    mean, var, batches = running
    at, row, working = seen.data_ptr(), prepared.row, prepared.working
    moved = _LIBRARY.functions["remember"](
        _pack_memory(
            row // working.itemsize, native.DTYPES[NAMES[working]], at, at + row, at + 2 * row,
            mean.data_ptr(), var.data_ptr(), 0 if batches is None else batches.data_ptr(),
            prepared.size, momentum, estimator == "unbiased", skip,
        )
    )  # fmt: skip
    if moved < 0:
        raise native.failure("remember", -moved)
    torch.autograd.graph.increment_version((mean, var) if batches is None else (mean, var, batches))
    return moved == 1


def _are_integers(axis: Any) -> bool:
    return type(axis) is int or (type(axis) is tuple and all(type(a) is int for a in axis))


def _right(layer: Any, x: Tensor) -> bool:
    """Return whether the options are right, and of types that can be remembered; else the general way complains."""
    momentum, activation = layer.momentum, layer.activation
    return (
        type(momentum) is float
        and 0.0 <= momentum <= 1.0
        and type(layer.eps) is float
        and _are_integers(layer.axis)
        and (activation is None or type(activation) is str)
        and layer.nonfinite in NON_FINITE
        and layer.small_batch in SMALL_BATCH
        and layer.running_variance in ESTIMATORS
        and (layer.ranks is None or x.ndim in layer.ranks)
    )


def _trains_plainly(layer: Any) -> bool:
    """Return whether the options of a layer are none that the general way must see to."""
    return not (
        layer.sync
        or layer.renorm is not None
        or layer.virtual_batch_size is not None
        or layer.adjustment is not None
        or layer.nonfinite == "raise"
    )


_options = attrgetter(
    "momentum", "eps", "axis", "activation", "nonfinite", "small_batch", "running_variance", "sync", "renorm",
    "virtual_batch_size", "adjustment", "ranks",
)  # fmt: skip
_elements = Tensor.numel


class Checked(NamedTuple):
    """What the last call of a layer was found to be. A call that is the same need not be checked again.

    Attributes:
        options: All that the checks have read of the layer.
        shape: Of x.
        strides: Of x.
        dtype: Of x.
        held: γ, β, the running mean and variance, and the count of batches.
        tensors: Those of the five that are not None.
        addresses: Of the tensors: to assign to `.data` leaves a tensor the same object.
        elements: How many numbers each of the tensors has, likewise.
        trains: Whether this way serves training.
        prepared: What the shape and the options settle.
        call: That of inference without gradients: what comes before and after the addresses of the arrays; None where
            parameters of 16 bits must be widened for it each time.
    """

    options: tuple[Any, ...]
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    held: tuple[Tensor | None, ...]
    tensors: tuple[Tensor, ...]
    addresses: tuple[int, ...]
    elements: tuple[int, ...]
    trains: bool
    prepared: Prepared
    call: tuple[bytes, bytes] | None


def _checked(layer: Any, x: Tensor, residual: Tensor | None) -> Checked | None:
    """Return what a call is found to be, or None where this way does not serve it."""
    if not serves(x, residual):
        return None
    last: Checked | None = layer.checked
    try:
        parameters, buffers = layer._parameters, layer._buffers
        held = (
            parameters["weight"], parameters["bias"],
            buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"],
        )  # fmt: skip
    except KeyError:  # somebody has put something else in their place
        return None
    if (
        last is not None
        and all(map(is_, held, last.held))
        and x.dtype is last.dtype
        and x.shape == last.shape
        and x.stride() == last.strides
        and _options(layer) == last.options
        and tuple(map(_address, last.tensors)) == last.addresses
        and tuple(map(_elements, last.tensors)) == last.elements
        and layer._eager_because is None
    ):
        return last
    if not _right(layer, x):
        return None
    weight, bias, mean, var, batches = held
    ready = prepare(x.shape, x.stride(), x.dtype, axis=layer.axis, eps=layer.eps, activation=layer.activation)
    if (
        ready is None
        or (mean is None) != (var is None)
        or not (plain(weight, ready, parameter=True) and plain(bias, ready, parameter=True))
        or not (plain(mean, ready) and plain(var, ready))
    ):
        return None
    tensors = tuple(t for t in held if t is not None)
    narrow = any(p is not None and p.dtype is not ready.working for p in (weight, bias))
    layer._eager_because, layer.checked = None, Checked(
        _options(layer), x.shape, x.stride(), x.dtype, held, tensors,
        tuple(map(_address, tensors)), tuple(map(_elements, tensors)),
        _trains_plainly(layer) and ready.size > 1 and counts(batches), ready,
        None if narrow or mean is None or var is None else _around(ready, mean, var, weight, bias),
    )  # fmt: skip
    return layer.checked


def _around(
    prepared: Prepared, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[bytes, bytes]:
    """Return a call of inference without gradients: what comes before and after the addresses of its arrays."""
    call = _pack(
        *prepared.head, 0, 0, 0, 0, 0, 0, 0, 0, mean.data_ptr(), 0, var.data_ptr(), 0, 0,
        0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(), 0, 0, 0, 0, 0, 0,
        prepared.recipe.eps, 0,
    )  # fmt: skip
    return call[:_BEFORE], call[_AFTER:]


def train(layer: Any, x: Tensor, residual: Tensor | None) -> Tensor | None:
    """Return the output of a training step of a layer, and move its statistics; None where this way does not serve."""
    checked = _checked(layer, x, residual)
    if checked is None or not checked.trains:
        return None
    ready, (weight, bias, mean, var, batches) = checked.prepared, checked.held
    if weight is not None and "grad_sample" in vars(weight):
        return None
    numbers = x.new_empty(5 * ready.row // ready.working.itemsize, dtype=ready.working)
    y = apply(x, weight, bias, residual, ready, numbers, False)
    if mean is None or var is None or not layer.track_running_stats or layer.held or in_backward():
        return y
    skip, estimator, running = layer.nonfinite == "skip", layer.running_variance, (mean, var, batches)
    if layer.collected is not None:
        layer._remember(step(numbers, ready))
    elif not remember(running, numbers, ready, momentum=layer.momentum, estimator=estimator, skip=skip):
        layer._count(numbers.new_zeros((), dtype=torch.bool), step(numbers, ready))
    return y


def infer(layer: Any, x: Tensor, residual: Tensor | None) -> Tensor | None:
    """Return the output of a layer by its running statistics; None where this way does not serve."""
    checked = _checked(layer, x, residual)
    if checked is None:
        return None
    ready, (weight, bias, mean, var, _) = checked.prepared, checked.held
    if mean is None or var is None:
        return None
    if torch.is_grad_enabled():
        if layer.frozen:  # whatever `requires_grad` has been set to since
            weight, bias = (p.detach() if p is not None and p.requires_grad else p for p in (weight, bias))
        if any(t is not None and t.requires_grad for t in (x, weight, bias, residual)):
            mean, var = (mean.view(-1), var.view(-1)) if mean.ndim > 1 else (mean, var)
            numbers = torch.cat((mean, mean, var, mean, mean))  # a copy: they may move before the backward
            return apply(x, weight, bias, residual, ready, numbers, True)
    call = checked.call
    if call is None:
        weight, bias = _precise(weight, ready), _precise(bias, ready)
        call = _around(ready, mean, var, weight, bias)
    y, (before, after) = torch.empty_like(x), call
    arrays = _arrays(x.data_ptr(), 0 if residual is None else residual.data_ptr(), 0, y.data_ptr())
    _LIBRARY.call("infer", before + arrays + after)
    return y
