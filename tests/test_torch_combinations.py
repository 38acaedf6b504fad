"""Options in any combination, and any split of a batch, against the truth."""

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import truth
from batchnorm.torch import BatchNorm, accumulate
from options import (
    ACTIVATIONS,
    EPSILON,
    RENORMS,
    assert_equal,
    assert_same_statistics,
    layer_for,
    normal,
    without_features,
)


@st.composite
def combinations(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(2, 4))
    axes = tuple(sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1, max_size=rank - 1))))
    shape = tuple(draw(st.integers(1 if i in axes else 2, 4)) for i in range(rank))
    shape = tuple(draw(st.integers(2, 7)) if i == min(set(range(rank)) - set(axes)) else n for i, n in enumerate(shape))
    return {
        "axes": axes,
        "shape": shape,
        "virtual": draw(st.none() | st.integers(1, 4)),
        "weights": draw(st.sampled_from([None, "mask", "numbers", "groups of zero", "zero", "small"])),
        "activation": draw(st.sampled_from([None, *ACTIVATIONS])),
        "residual": draw(st.booleans()),
        "affine": draw(st.booleans()),
        "renorm": draw(st.sampled_from([None, *RENORMS.values()])),
        "estimator": draw(st.sampled_from(["unbiased", "biased"])),
        "alike": draw(st.none() | st.integers(0, 2)),
        "seed": draw(st.integers(0, 99)),
    }


def drawn_weights(
    kind: str, shape: tuple[int, ...], axes: tuple[int, ...], seed: int, alike: int | None = None
) -> torch.Tensor:
    """Draw weights; along the axis `alike` of them, if there is one, they do not differ."""
    sizes = tuple(1 if i == alike else n for i, n in enumerate(without_features(shape, axes)))
    w = torch.rand(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {
        "mask": w > 0.4,
        "numbers": torch.where(w > 0.2, 3.0 * w, 0.0),
        "groups of zero": w * (torch.arange(sizes[0]) % 2).reshape([-1] + [1] * (len(sizes) - 1)),
        "zero": torch.zeros_like(w),
        "small": 1e-3 * w,
    }[kind]


def the_truth(c: dict[str, Any], layer: BatchNorm, x: Tensor, skip: Tensor, weights: Tensor | None) -> truth.Truth:
    shape, axes = c["shape"], c["axes"]
    renorm = None
    if c["renorm"] is not None:
        rmin, rmax, dmax = c["renorm"].clips(0)
        start = torch.zeros(layer.running_mean.numel(), dtype=torch.float64)
        renorm = {"M": start, "S": start + 1.0, "rmin": rmin, "rmax": rmax, "dmax": dmax}
    own = iter(() if weights is None else weights.shape)
    each = [1 if i in axes else next(own, 1) for i in range(len(shape))]
    return truth.normalise(
        x,
        axes=axes,
        gamma=layer.weight.ravel() if c["affine"] else None,
        beta=layer.bias.ravel() if c["affine"] else None,
        eps=EPSILON,
        residual=skip if c["residual"] else None,
        weights=None if weights is None else weights.double().reshape(each).expand(shape),
        virtual=c["virtual"],
        activation=c["activation"],
        running=(layer.running_mean.clone().ravel(), layer.running_var.clone().ravel()),
        renorm=renorm,
    )


def drawn_layer(c: dict[str, Any]) -> BatchNorm:
    options = {
        "activation": c["activation"],
        "virtual_batch_size": c["virtual"],
        "renorm": c["renorm"],
        "running_variance": c["estimator"],
        "affine": c["affine"],
    }
    axis = c["axes"] if len(c["axes"]) > 1 else c["axes"][0]
    layer = layer_for(c["shape"], axis, momentum=0.25, small_batch="allow", **options)
    layer.running_mean.copy_(normal(layer.running_mean.shape, 21))
    layer.running_var.copy_(0.5 + normal(layer.running_var.shape, 22).square())
    return layer


@settings(max_examples=5 * settings.default.max_examples)
@given(combinations())
def test_every_combination_equals_the_truth(c: dict[str, Any]) -> None:
    shape, seed, layer = c["shape"], c["seed"], drawn_layer(c)
    mean, var = layer.running_mean.clone().ravel(), layer.running_var.clone().ravel()
    x, skip, dy = (normal(shape, 3 * seed + i).requires_grad_(i < 2) for i in range(3))
    weights = None if c["weights"] is None else drawn_weights(c["weights"], shape, c["axes"], seed, c["alike"])
    expected = the_truth(c, layer, x, skip, weights)
    y = layer(x, skip if c["residual"] else None, weights)
    steep = 1.0 / math.sqrt(EPSILON)  # a group of one has σ = 0
    assert_equal(y, expected.y, scale=steep)
    leaves = [x, *([skip] if c["residual"] else []), *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(z, leaves, dy) for z in (y, expected.y)), strict=True):
        assert_equal(a, b, scale=steep * (1.0 + float(b.abs().max())))
    if expected.mean is None:
        assert torch.equal(layer.running_mean.ravel(), mean)
        assert layer.num_batches_tracked == 0
        return
    assert layer.num_batches_tracked == 1
    assert_equal(layer.running_mean.ravel(), 0.75 * mean + 0.25 * expected.mean)
    if c["renorm"] is None:
        seen = getattr(expected, c["estimator"])
        assert_equal(layer.running_var.ravel(), 0.75 * var + 0.25 * seen, scale=64.0 + float(seen.max()))


@given(combinations(), st.data())
def test_any_split_of_a_batch_is_remembered_as_the_whole(c: dict[str, Any], data: st.DataObject) -> None:
    shape, axes, seed = c["shape"], c["axes"], c["seed"]
    axis, along = axes if len(axes) > 1 else axes[0], min(set(range(len(shape))) - set(axes))
    options = {"momentum": 0.25, "small_batch": "allow", "renorm": c["renorm"], "running_variance": c["estimator"]}
    split, whole = (layer_for(shape, axis, **options) for _ in range(2))
    x, weights = normal(shape, seed), None
    if c["weights"] is not None:
        weights = drawn_weights(c["weights"], shape, axes, seed)
    whole(x, weights=weights)
    cuts = sorted(data.draw(st.sets(st.integers(1, shape[along] - 1))))
    with accumulate(split):
        for part in torch.arange(shape[along]).tensor_split(cuts):
            micro = None if weights is None else weights.index_select(0, part)
            split(x.index_select(along, part), weights=micro)
    assert_same_statistics(split, whole)
