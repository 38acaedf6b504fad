"""Each option against a truth that knows nothing of how the layer works."""

import math
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import truth
from batchnorm.errors import ArgumentError, DtypeError, ShapeError
from batchnorm.torch import BatchNorm, BatchNorm2d, Renorm, batch_norm
from namespaces import to_numpy
from options import (
    ACTIVATIONS,
    EPSILON,
    LAYOUTS,
    assert_equal,
    assert_same_statistics,
    gradients,
    kept,
    layer_for,
    normal,
    without_features,
)
from tolerance import assert_within_project_bound

layouts = pytest.mark.parametrize(("shape", "axis"), LAYOUTS)


@layouts
@pytest.mark.parametrize("activation", [None, "silu"])
def test_integer_weights_equal_repeated_samples(shape: tuple[int, ...], axis: Any, activation: str | None) -> None:
    x, skip, dy = normal(shape).requires_grad_(), normal(shape, 1).requires_grad_(), normal(shape, 2)
    batch = next(i for i in range(len(shape)) if i not in kept(len(shape), axis))
    times = torch.arange(shape[batch]) % 3  # 0, 1, 2, 0, …
    weights = times.reshape([-1] + [1] * (len(without_features(shape, axis)) - 1))
    layer, twin = (layer_for(shape, axis, activation=activation) for _ in range(2))
    along = [-1 if i == batch else 1 for i in range(len(shape))]
    y = layer(x, skip, weights)
    mine = gradients(layer, y, dy * times.reshape(along), x, skip)
    again, more, repeated_dy = (a.repeat_interleave(times, batch) for a in (x, skip, dy))
    repeated = twin(again, more)
    theirs = gradients(twin, repeated, repeated_dy, x, skip)
    assert_equal(y.repeat_interleave(times, batch), repeated)
    for a, b in zip(mine, theirs, strict=True):
        assert_equal(a, b)
    assert_same_statistics(layer, twin)


def masks(shape: tuple[int, ...], axis: Any) -> torch.Tensor:
    return normal(without_features(shape, axis), 5) > -0.3


@layouts
@pytest.mark.parametrize("filler", [7.0, 1e30, math.inf, math.nan])
def test_a_mask_equals_the_compacted_input(shape: tuple[int, ...], axis: Any, filler: float) -> None:
    mask, axes = masks(shape, axis), kept(len(shape), axis)
    full = mask.reshape([1 if i in axes else n for i, n in enumerate(shape)]).expand(shape)
    x = torch.where(full, normal(shape), filler).requires_grad_()
    dy = torch.where(full, normal(shape, 2), 0.0)
    layer = layer_for(shape, axis, activation="tanh")
    y = layer(x, weights=mask)
    mine = gradients(layer, y, dy, x)

    def compacted(a: torch.Tensor) -> torch.Tensor:
        return a.movedim(axes, tuple(range(-len(axes), 0)))[mask].flatten(1)  # (samples, features)

    small = compacted(x.detach()).requires_grad_()
    twin = layer_for(tuple(small.shape), 1, activation="tanh")
    with torch.no_grad():
        twin.weight.copy_(layer.weight.ravel())
        twin.bias.copy_(layer.bias.ravel())
    expected = twin(small)
    theirs = gradients(twin, expected, compacted(dy), small)
    assert_equal(compacted(y), expected)
    assert_equal(compacted(mine[0]), theirs[0])
    assert mine[0].masked_select(~full).eq(0.0).all()
    assert y.isfinite().all()
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        assert_equal(a.ravel(), b)
    for name in ("running_mean", "running_var"):
        assert_equal(getattr(layer, name).ravel(), getattr(twin, name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_work_in_every_dtype(dtype: torch.dtype) -> None:
    x, mask = normal((6, 5, 3), dtype=dtype), masks((6, 5, 3), -1)
    layer, twin = BatchNorm(3, axis=-1).to(dtype), BatchNorm(3).to(dtype)
    for weights in (mask, mask.float(), mask.to(dtype), mask.long(), mask[..., None]):
        y = layer(x, weights=weights)
        assert y.dtype == dtype
        assert torch.equal(y[mask], twin(x[mask])) or dtype == torch.float32
        assert_equal(y[mask], twin(x[mask]), str(dtype).removeprefix("torch."), 1.0)


def test_scaling_all_weights_changes_only_the_correction_of_bessel() -> None:
    x, w = normal((8, 3)), torch.rand(8, dtype=torch.float64)
    a, b = (batch_norm(x, None, None, training=True, weights=c * w) for c in (1.0, 1e-3))
    assert_equal(a, b)


@layouts
@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_virtual_batches_equal_a_loop_over_strided_groups(shape: tuple[int, ...], axis: Any, size: int) -> None:
    batch = next(i for i in range(len(shape)) if i not in kept(len(shape), axis))
    x, skip, dy = normal(shape).requires_grad_(), normal(shape, 1).requires_grad_(), normal(shape, 2)
    layer = layer_for(shape, axis, virtual_batch_size=size, small_batch="allow", momentum=1.0)
    plain = layer_for(shape, axis, small_batch="allow", momentum=1.0)
    y = layer(x, skip)
    mine = gradients(layer, y, dy, x, skip)
    expected, means, variances = torch.zeros_like(y), [], []
    groups = max(1, shape[batch] // size)
    for g in range(groups):
        members = torch.arange(g, shape[batch], groups)
        part = plain(x.index_select(batch, members), skip.index_select(batch, members))
        expected = expected.index_copy(batch, members, part)
        means.append(plain.running_mean.clone())
        variances.append(plain.running_var.clone())
    assert_equal(y, expected)
    for a, b in zip(mine, gradients(plain, expected, dy, x, skip), strict=True):
        assert_equal(a, b)
    assert_equal(layer.running_mean, torch.stack(means).mean(0))
    assert_equal(layer.running_var, torch.stack(variances).mean(0))
    assert layer.num_batches_tracked == 1


def test_virtual_batches_keep_parameters_plain() -> None:
    ghost, plain = BatchNorm(3, virtual_batch_size=2), BatchNorm(3)
    ghost(normal((7, 3), dtype=torch.float32))
    plain.load_state_dict(ghost.state_dict())
    ghost.load_state_dict(plain.state_dict())
    x = normal((4, 3), dtype=torch.float32)
    assert torch.equal(ghost.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("renorm", [None, Renorm(rmax=1.2, dmax=0.5)])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_adjustment_scales_and_shifts_what_is_normalised(renorm: Renorm | None, activation: str | None) -> None:
    shape = (5, 3, 4)
    scale, shift = 1.0 + 0.1 * normal((5, 1, 4), 7), normal((3, 1), 8)
    layer = layer_for(shape, 1, adjustment=lambda _: (scale, shift), renorm=renorm, activation=activation)
    bare = layer_for(shape, 1, renorm=renorm)
    torch.nn.init.ones_(bare.weight)
    torch.nn.init.zeros_(bare.bias)
    x, skip = normal(shape), normal(shape, 1)
    z = (bare(x) * scale + shift) * layer.weight[:, None] + layer.bias[:, None] + skip
    assert_equal(layer(x, skip), truth.ACTIVATIONS[activation](z))
    assert_same_statistics(layer, bare)
    plain = layer_for(shape, 1, activation=activation)
    plain.load_state_dict(layer.state_dict(), strict=renorm is None)
    assert torch.equal(layer.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("training", [True, False])
def test_activation_and_residual_round_once(activation: str, dtype: str, training: bool) -> None:
    x, skip = (normal((6, 3, 4), seed, getattr(torch, dtype)) for seed in (0, 1))
    layer = BatchNorm(3, activation=activation).to(x.dtype).train(training)
    exact = BatchNorm(3).double().train(training)
    expected = truth.ACTIVATIONS[activation](exact(x.double()) + skip.double())
    assert_equal(layer(x, skip), expected, dtype, 4.0)


def stretched(shape: torch.Size) -> tuple[torch.Tensor, float]:
    return torch.linspace(0.5, 1.5, shape[0])[:, None, None], 0.2


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "silu"},
        {"activation": "gelu", "virtual_batch_size": 2},
        {"activation": "tanh", "weights": True},
        {"activation": "sigmoid", "weights": True, "virtual_batch_size": 3},
        {"activation": "relu"},
        {"activation": "leaky_relu", "weights": True},
        {"adjustment": stretched, "activation": "tanh"},
    ],
    ids=lambda options: "+".join(options),
)
def test_torch_agrees_with_the_derivatives(check: Any, options: dict[str, Any]) -> None:
    options = dict(options)
    weights = torch.tensor([[1.0], [0.0], [2.0], [0.5], [1.0]]) if options.pop("weights", False) else None
    x, skip = normal((5, 2, 3)), normal((5, 2, 3), 1)
    gamma, beta = normal(2, 2), normal(2, 3)

    def function(x: Any, gamma: Any, beta: Any, skip: Any) -> torch.Tensor:
        return batch_norm(x, None, None, gamma, beta, True, residual=skip, weights=weights, **options)

    assert check(function, tuple(a.requires_grad_() for a in (x, gamma, beta, skip)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activation": "swish"}, "'swish'"),
        ({"virtual_batch_size": 0}, "`virtual_batch_size` must be None or an int ≥ 1, got 0"),
        ({"virtual_batch_size": 2.0}, "got 2.0"),
        ({"renorm": True}, "`renorm` must be None or a Renorm, got True"),
        ({"adjustment": 3}, "got 3"),
        ({"adjustment": lambda _: (1, 0), "virtual_batch_size": 2}, "`adjustment` and `virtual_batch_size` exclude"),
        ({"nonfinite": "ignore"}, "'ignore'"),
        ({"small_batch": None}, "got None"),
        ({"running_variance": "ml"}, "'ml'"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name_and_value(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        BatchNorm(3, **options)
    assert said in str(caught.value)
    layer = BatchNorm(3)
    for name, value in options.items():
        setattr(layer, name, value)
    with pytest.raises(ArgumentError) as caught:
        layer(torch.ones(4, 3))
    assert said in str(caught.value)


def test_renormalization_without_what_it_follows_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`renorm` follows the running statistics, got track_running_stats=False"):
        BatchNorm(3, renorm=Renorm(), track_running_stats=False)
    layer = BatchNorm(3)
    layer.renorm = Renorm()
    with pytest.raises(ArgumentError, match="`renorm` must be chosen when the layer is made"):
        layer(torch.ones(4, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"residual": torch.ones(4, 3)}, ShapeError, "`residual` must have the input's shape (4, 3, 5), got (4, 3)"),
        ({"residual": torch.ones(4, 3, 5, dtype=torch.long)}, DtypeError, "torch.int64"),
        ({"residual": 1.0}, DtypeError, "got float"),
        ({"weights": [1, 2]}, DtypeError, "got list"),
        ({"weights": torch.ones(4)}, ShapeError, "must broadcast to (4, 5)"),
        ({"weights": torch.ones(4, 3, 5)}, ShapeError, "got shape (4, 3, 5)"),
        ({"weights": torch.ones(4, 5, dtype=torch.complex64)}, DtypeError, "torch.complex64"),
        ({"weights": torch.ones(4, 5, requires_grad=True)}, ArgumentError, "`weights` carry no gradient"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_an_argument_that_does_not_fit_is_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], said: str, training: bool
) -> None:
    with pytest.raises(error) as caught:
        torch.nn.Sequential(torch.nn.Identity(), BatchNorm(3).train(training))[1](torch.ones(4, 3, 5), **arguments)
    assert said in str(caught.value)
    assert str(caught.value).startswith("BatchNorm: ")


@pytest.mark.parametrize("bad", [-1.0, -math.inf, math.inf, math.nan])
def test_weights_that_are_no_weights_are_refused(bad: float) -> None:
    layer = BatchNorm(3)
    with pytest.raises(ArgumentError, match="`weights` must be finite and ≥ 0"):
        layer(torch.randn(2, 3), weights=torch.tensor([1.0, bad]))
    with pytest.raises(ArgumentError, match="`weights` must be finite and ≥ 0"):
        layer(torch.randn(2, 3), weights=torch.tensor([1, -1]))
    assert layer.num_batches_tracked == 0


def test_weights_that_sum_to_one_up_to_rounding_do_not_blow_up_the_variance() -> None:
    x = normal((64, 3), dtype=torch.float32)
    for seed in range(50):
        layer, weights = BatchNorm(3, momentum=1.0), torch.softmax(normal((64,), seed, torch.float32), 0)
        layer(x, weights=weights)
        assert layer.running_var.max() < 4.0


@pytest.mark.parametrize(
    "options", [{}, {"virtual_batch_size": 8}, {"renorm": Renorm(rmax=3.0, momentum=1.0)}], ids=str
)
@pytest.mark.parametrize("weighted", [True, False])
def test_every_option_stays_within_the_bound_at_a_million_deviations(options: dict[str, Any], weighted: bool) -> None:
    x = (1e6 + normal((64, 3))).float()
    weights = torch.arange(64) % 3 > 0 if weighted else None
    layer = BatchNorm(3, momentum=1.0, **options)
    for _ in range(2):  # renormalization has found the mean by the second
        before = [b.clone().double() for b in (layer.running_mean, layer.running_var)]
        state = {name: b.clone().double() for name, b in layer.named_buffers()}
        y = layer(x, weights=weights)
    renorm = None
    if layer.renorm is not None:
        renorm = {"M": state["renorm_mean"], "S": state["renorm_stddev"], "rmin": None, "rmax": 3.0, "dmax": None}
    expected = truth.normalise(
        x.double(),
        axes=(1,),
        gamma=None,
        beta=None,
        eps=EPSILON,
        weights=None if weights is None else weights.double()[:, None].expand(64, 3),
        virtual=layer.virtual_batch_size,
        running=(before[0], before[1]),
        renorm=renorm,
    )
    assert_within_project_bound(to_numpy(y), to_numpy(expected.y))


def test_an_adjustment_can_be_learned() -> None:
    scale, shift = torch.ones(3, 1).requires_grad_(), torch.zeros(3, 1).requires_grad_()
    layer, x = BatchNorm(3, adjustment=lambda _: (scale, shift)), normal((4, 3, 5), 1, torch.float32)
    dy = normal((4, 3, 5), 2, torch.float32)
    dscale, dshift = torch.autograd.grad(layer(x), [scale, shift], dy)
    x_hat = (x - x.mean((0, 2), keepdim=True)) / (x.var((0, 2), correction=0, keepdim=True) + EPSILON).sqrt()
    assert_equal(dscale.ravel(), (dy * x_hat).sum((0, 2)), "float32")
    assert_equal(dshift.ravel(), dy.sum((0, 2)), "float32")


def test_an_adjustment_must_broadcast_to_the_input() -> None:
    layer = BatchNorm(3, adjustment=lambda _: (torch.ones(2, 4, 3), 0.0))
    with pytest.raises(ShapeError, match="must return a scale that broadcasts"):
        layer(torch.randn(4, 3))


def test_the_description_names_the_options() -> None:
    layer = BatchNorm2d(3, activation="relu", virtual_batch_size=16, renorm=Renorm(rmax=3.0), small_batch="running")
    for part in ("activation='relu'", "virtual_batch_size=16", "rmax=3.0", "small_batch='running'"):
        assert part in repr(layer)
    assert "nonfinite" not in repr(layer)
