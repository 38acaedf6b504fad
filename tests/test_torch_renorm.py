"""Batch renormalization: its formulas, its schedules, its checkpoints."""

from typing import Any

import pytest
import torch

import truth
from batchnorm.errors import ArgumentError
from batchnorm.torch import BatchNorm, Renorm
from options import (
    EPSILON,
    LAYOUTS,
    RENORMS,
    assert_equal,
    gradients,
    kept,
    layer_for,
    normal,
)

layouts = pytest.mark.parametrize(("shape", "axis"), LAYOUTS)


@layouts
@pytest.mark.parametrize("kind", RENORMS)
@pytest.mark.parametrize("virtual", [None, 2])
def test_renormalization_follows_its_formulas(
    shape: tuple[int, ...], axis: Any, kind: str, virtual: int | None
) -> None:
    renorm, axes = RENORMS[kind], kept(len(shape), axis)
    layer = layer_for(shape, axis, renorm=renorm, virtual_batch_size=virtual, momentum=0.2)
    features = layer.weight.numel()
    mean, stddev, M = (torch.full((features,), v, dtype=torch.float64) for v in (0.0, 1.0, 0.0))  # noqa: N806
    S = stddev.clone()  # noqa: N806
    for step in range(5):
        x = (1.0 + 2.0 * normal(shape, step)).requires_grad_()
        rmin, rmax, dmax = (c(step) if callable(c) else c for c in (renorm.rmin, renorm.rmax, renorm.dmax))
        expected = truth.normalise(
            x,
            axes=axes,
            gamma=layer.weight.ravel(),
            beta=layer.bias.ravel(),
            eps=EPSILON,
            virtual=virtual,
            renorm={"M": M, "S": S, "rmin": rmin, "rmax": rmax, "dmax": dmax},
        )
        y, dy = layer(x), normal(shape, 50 + step)
        assert_equal(y, expected.y)
        for a, b in zip(gradients(layer, y, dy, x), gradients(layer, expected.y, dy, x), strict=True):
            assert_equal(a, b)
        sigma = (expected.biased + EPSILON).sqrt()
        mean, stddev = 0.8 * mean + 0.2 * expected.mean, 0.8 * stddev + 0.2 * sigma
        new = renorm.momentum
        M, S = (1 - new) * M + new * expected.mean, (1 - new) * S + new * sigma  # noqa: N806
        remembered = {
            "running_mean": mean,
            "running_var": (stddev**2 - EPSILON).clamp(min=0.0),
            "running_stddev": stddev,
            "renorm_mean": M,
            "renorm_stddev": S,
        }
        for name, value in remembered.items():
            assert_equal(getattr(layer, name).ravel(), value)


def test_renormalization_bounded_to_nothing_is_plain_batch_normalization() -> None:
    bound, plain = BatchNorm(3, renorm=Renorm(1.0, 1.0, 0.0)).double(), BatchNorm(3).double()
    for seed in range(3):
        x = 3.0 + normal((8, 3), seed)
        assert_equal(bound(x), plain(x))


def test_unbounded_renormalization_with_equal_momenta_trains_as_it_predicts() -> None:
    layer = BatchNorm(3, momentum=0.1, renorm=Renorm(momentum=0.1)).double()
    layer(normal((8, 3)))  # the first batch finds σ = √1, without the ε that all later ones find in it
    for seed in range(5):
        x = 3.0 + 2.0 * normal((8, 3), seed)
        before = layer.eval()(x)
        assert_equal(layer.train()(x), before)


def test_the_schedule_goes_on_where_a_checkpoint_was_saved() -> None:
    options = {"renorm": Renorm.paper(hold=1, r_until=4, d_until=3)}
    straight, first, second = (BatchNorm(3, **options) for _ in range(3))
    xs = [1.0 + 3.0 * normal((8, 3), seed, torch.float32) for seed in range(6)]
    outputs = [straight(x) for x in xs]
    for x in xs[:3]:
        first(x)
    second.load_state_dict(first.state_dict())
    for x, expected in zip(xs[3:], outputs[3:], strict=True):
        assert torch.equal(second(x), expected)


def test_a_plain_checkpoint_starts_renormalization_at_its_statistics() -> None:
    plain = BatchNorm(3)
    for seed in range(3):
        plain(5.0 + 2.0 * normal((8, 3), seed, torch.float32))
    layer = BatchNorm(3, renorm=Renorm(rmax=3.0, dmax=5.0))
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.renorm_mean, plain.running_mean)
    assert torch.equal(layer.renorm_stddev, plain.running_var.sqrt())


@pytest.mark.parametrize(
    "renorm",
    [{"rmin": -1}, {"rmax": "3"}, {"dmax": -0.1}, {"rmin": 2.0, "rmax": 1.0}, {"momentum": 1.5}, {"momentum": None}],
)
def test_renormalization_refuses_what_is_out_of_range(renorm: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"rmin|rmax|dmax|momentum"):
        Renorm(**renorm)
