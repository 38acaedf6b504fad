"""How exact the layer is, beside torch's own, against float64 on the same input."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchnorm import reference
from batchnorm.torch import BatchNorm, batch_norm
from namespaces import to_numpy, to_torch
from regimes import CASES, EPSILON, Case, data, forward, parameter_shape
from tolerance import assert_close, assert_no_worse, assert_within_project_bound

LARGE = {"NCHW": ((16, 4, 32, 32), 1), "NHWC": ((16, 32, 32, 4), -1), "NC": ((16384, 4), 1), "NLC": ((4, 4096, 4), -1)}
COMPARED = [
    case
    for case in dict.fromkeys(Case(c.layout, c.values, c.dtype) for c in CASES)
    if case.axis == 1 and case.dtype != "float64"
]


def large_means(shape: tuple[int, ...], ratio: float) -> torch.Tensor:
    return torch.from_numpy((ratio + np.random.default_rng(0).standard_normal(shape)).astype(np.float32))


@pytest.mark.parametrize("ratio", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("layout", LARGE)
def test_many_values_at_a_large_mean_stay_within_the_bound(layout: str, ratio: float) -> None:
    shape, axis = LARGE[layout]
    x = large_means(shape, ratio)
    assert_within_project_bound(to_numpy(BatchNorm(4, axis=axis)(x)), reference.train(x, axis=axis).y)


@pytest.mark.parametrize("layout", LARGE)
def test_at_a_million_deviations_torch_is_a_thousand_times_worse(layout: str) -> None:
    shape, axis = LARGE[layout]
    x = large_means(shape, 1e6)
    truth = reference.train(x, axis=axis).y
    torchs = torch.nn.functional.batch_norm(x.movedim(axis, 1), None, None, training=True).movedim(1, axis)
    ours = batch_norm(x, None, None, training=True, axis=axis)
    with pytest.raises(AssertionError):
        assert_within_project_bound(to_numpy(torchs), truth)
    assert_no_worse(1000.0 * (to_numpy(ours) - truth), to_numpy(torchs) - truth, 0.0, "float32")


@pytest.mark.parametrize("case", COMPARED, ids=str)
def test_never_worse_than_twice_torchs_error(case: Case) -> None:
    d, f = data(case), forward(case, training=True)
    gradients = reference.train_backward(d.dy, f)
    outputs = []
    for function in (batch_norm, torch.nn.functional.batch_norm):
        x = to_torch(d.x, case.dtype).requires_grad_()
        y = function(x, None, None, training=True, eps=EPSILON)
        y.backward(to_torch(d.dy, case.dtype))
        outputs.append((to_numpy(y), to_numpy(x.grad)))
    (y, dx), (torchs_y, torchs_dx) = outputs
    assert_no_worse(y, torchs_y, f.y, case.dtype)
    size = np.abs(d.dy).max() / np.sqrt(f.var + f.eps)  # of the terms that cancel in dx
    assert_no_worse(dx / size, torchs_dx / size, gradients.x / size, case.dtype)


@given(
    rank_and_axes=st.integers(2, 5).flatmap(
        lambda rank: st.tuples(
            st.just(rank), st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank - 1, unique=True)
        )
    ),
    draw=st.data(),
)
def test_any_shape_and_axes_agree_with_the_reference(rank_and_axes: tuple[int, list[int]], draw: st.DataObject) -> None:
    rank, kept = rank_and_axes
    axis = tuple(a - rank if draw.draw(st.booleans()) else a for a in kept)
    sizes = [draw.draw(st.integers(1 if i in kept else 2, 5)) for i in range(rank)]
    x, dy = np.random.default_rng(draw.draw(st.integers(0, 99))).standard_normal((2, *sizes))
    features = parameter_shape(tuple(sizes), axis if len(axis) > 1 else axis[0])
    layer = BatchNorm(features if len(axis) > 1 else features[0], axis=axis, momentum=1.0).double()
    leaf = torch.from_numpy(x).requires_grad_()
    y = layer(leaf)
    y.backward(torch.from_numpy(dy))
    f = reference.train(x, axis=axis)
    assert_close(to_numpy(y), f.y, "float64", 1.0 + np.abs(f.y))
    steepness = (1.0 + np.abs(f.y)) * np.abs(dy).max() / np.sqrt(f.var + f.eps)
    assert_close(to_numpy(leaf.grad), reference.train_backward(dy, f).x, "float64", steepness)
    assert_close(to_numpy(layer.running_mean), f.mean.reshape(features), "float64", 4.0)
    assert_close(to_numpy(layer.running_var), reference.unbiased(f.var, f.count).reshape(features), "float64", 16.0)
