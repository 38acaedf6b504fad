"""Noise of batch statistics: independent values, equal pixels and whole populations say what a sample is worth."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchnorm.torch as ours
import tolerance
from batchnorm.batch_size.statistics_noise import LayerNoise, Listener

ENDLESS = 1 << 40  # rows of a population so large that drawing without replacement does not show
BATCHNORM1D: dict[str, Any] = {"torch": nn.BatchNorm1d, "ours": ours.BatchNorm1d}
BATCHNORM2D: dict[str, Any] = {"torch": nn.BatchNorm2d, "ours": ours.BatchNorm2d}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heard(
    layer: nn.Module,
    batch: Callable[[], Any],
    *,
    group: int,
    rows: int = ENDLESS,
    blocks: int = 50,
    groups: int = 4,
) -> list[LayerNoise]:
    """Return what is heard of a layer that is given `batch()`: its inputs, or arguments by name."""
    model = nn.ModuleDict({"layer": layer})
    listener = Listener(model, rows)
    with listener.listening(), torch.no_grad():
        for _ in range(blocks):
            for _ in range(groups):
                given = batch()
                layer(**given) if isinstance(given, dict) else layer(given)
            listener.settle(group)
    return listener.layers()


def normal(*shape: int) -> Callable[[], Tensor]:
    random = generator()
    return lambda: torch.randn(shape, generator=random)


@pytest.mark.parametrize("whose", BATCHNORM1D)
def test_a_row_is_worth_one_value(whose: str) -> None:
    (found,) = heard(BATCHNORM1D[whose](30), normal(32, 30), group=32, blocks=200)
    assert found.per_sample == pytest.approx(1.0, rel=tolerance.STATISTICS_NOISE)
    assert found.low < 1.0 < found.high
    assert found.kurtosis == pytest.approx(
        3.0 * 31 / 33, rel=tolerance.STATISTICS_NOISE
    )  # E m₄/m₂² of 32 normal values
    assert (found.name, found.values, found.momentum) == ("layer", 1.0, 0.1)


@pytest.mark.parametrize("whose", BATCHNORM2D)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_independent_pixels_are_worth_a_value_each(whose: str, mean: float) -> None:
    draw = normal(16, 10, 3, 5)
    (found,) = heard(BATCHNORM2D[whose](10), lambda: draw() + mean, group=16)
    assert found.per_sample == pytest.approx(15.0, rel=tolerance.STATISTICS_NOISE)
    assert found.values == 15.0


@pytest.mark.parametrize("whose", BATCHNORM2D)
def test_equal_pixels_are_worth_one_value(whose: str) -> None:
    draw = normal(16, 30, 1, 1)
    (found,) = heard(BATCHNORM2D[whose](30), lambda: draw().expand(-1, -1, 4, 4).contiguous(), group=16)
    assert found.per_sample == pytest.approx(1.0, rel=tolerance.STATISTICS_NOISE)
    assert found.values == 16.0


def test_channels_last_count_for_their_channels() -> None:
    draw = normal(16, 5, 10)
    (found,) = heard(ours.BatchNorm(10, axis=-1), draw, group=16)
    assert found.per_sample == pytest.approx(5.0, rel=tolerance.STATISTICS_NOISE)


def test_drawing_without_replacement_is_put_right() -> None:
    x, random = torch.randn(40, 30, generator=generator()), generator(1)
    (found,) = heard(
        nn.BatchNorm1d(30), lambda: x[torch.randperm(40, generator=random)[:20]], group=20, rows=40, blocks=100
    )
    assert found.per_sample == pytest.approx(1.0, rel=tolerance.STATISTICS_NOISE)


def test_virtual_batches_are_what_is_normalized_together() -> None:
    layer = ours.BatchNorm(30, virtual_batch_size=8)
    (found,) = heard(layer, normal(32, 30), group=32)
    assert found.per_sample == pytest.approx(1.0, rel=tolerance.STATISTICS_NOISE)


def test_virtual_batches_of_few_rows_are_put_right_for_their_own_size() -> None:
    x, random = torch.randn(64, 30, generator=generator()), generator(1)
    layer = ours.BatchNorm(30, virtual_batch_size=8)
    (found,) = heard(
        layer, lambda: x[torch.randperm(64, generator=random)[:32]], group=32, rows=64, blocks=100
    )  # the first virtual batch is a draw of 8 of the 64 rows
    assert found.per_sample == pytest.approx(1.0, rel=tolerance.STATISTICS_NOISE)


def half_masked(draw: Callable[[], Tensor], mask: Tensor, padding: float) -> Callable[[], dict[str, Tensor]]:
    """Return what draws (N, L, C) with values of no meaning where the mask (N, L) is False."""
    return lambda: {"input": torch.where(mask[..., None], draw(), padding), "weights": mask}


@pytest.mark.parametrize("padding", [1e3, math.nan])
def test_what_is_masked_is_not_heard(padding: float) -> None:
    mask = (torch.arange(6) < 3).expand(16, 6)
    (found,) = heard(ours.BatchNorm(20, axis=-1), half_masked(normal(16, 6, 20), mask, padding), group=16)
    assert found.per_sample == pytest.approx(3.0, rel=tolerance.STATISTICS_NOISE)
    assert found.values == 3.0


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("shape", [(16, 6), (6,), (1, 6), (16, 1), None], ids=str)
def test_masks_may_have_any_shape_that_the_layer_takes(axis: int, shape: Any) -> None:
    draw = normal(16, 6, 20) if axis == -1 else normal(16, 20, 6)
    full = (16, 6, 1) if axis == -1 else (16, 1, 6)
    weights = torch.ones(shape or full)
    (found,) = heard(ours.BatchNorm(20, axis=axis), lambda: {"input": draw(), "weights": weights}, group=16)
    assert found.per_sample == pytest.approx(6.0, rel=tolerance.STATISTICS_NOISE)


def test_a_mask_may_come_by_position() -> None:
    model = nn.ModuleDict({"layer": ours.BatchNorm(20, axis=-1)})
    listener, draw = Listener(model, ENDLESS), normal(16, 6, 20)
    mask = (torch.arange(6) < 2).expand(16, 6)
    with listener.listening():
        for _ in range(50):
            for _ in range(4):
                model["layer"](draw(), None, mask)
            listener.settle(16)
    assert listener.layers()[0].values == 2.0


@pytest.mark.parametrize("whose", BATCHNORM1D)
def test_layers_in_inference_are_not_heard(whose: str) -> None:
    assert heard(BATCHNORM1D[whose](3).eval(), normal(8, 3), group=8, blocks=3) == []


def test_frozen_layers_are_not_heard() -> None:
    layer = ours.BatchNorm1d(3)
    layer.freeze()
    assert layer.training
    assert heard(layer, normal(8, 3), group=8, blocks=3) == []
    layer.thaw()
    assert len(heard(layer, normal(8, 3), group=8, blocks=3)) == 1


def test_constant_channels_say_nothing() -> None:
    draw, still = normal(32, 30), torch.arange(30) < 15

    def batch() -> Tensor:
        return torch.where(still, 7.7, draw())

    (found,) = heard(nn.BatchNorm1d(30), batch, group=32)
    assert found.per_sample == pytest.approx(1.0, rel=tolerance.STATISTICS_NOISE)
    assert heard(nn.BatchNorm1d(30), lambda: torch.full((32, 30), 7.7), group=32) == []


def test_samples_that_are_all_alike_are_worth_any_number_of_values() -> None:
    pattern = torch.arange(5.0).expand(16, 3, 5)  # every sample brings the same five values: no batch differs
    (found,) = heard(nn.BatchNorm1d(3), lambda: pattern, group=16)
    assert found.per_sample == math.inf
    assert found.fewest() == 1
    assert found.shift(16) == 0.0


def test_a_batch_that_is_not_finite_is_not_heard() -> None:
    draw, count = normal(32, 30), iter(range(1000))

    def batch() -> Tensor:
        x = draw()
        return x if next(count) % 8 else x * math.inf  # in every second block

    (found,) = heard(nn.BatchNorm1d(30), batch, group=32, blocks=100)
    assert found.per_sample == pytest.approx(1.0, rel=tolerance.STATISTICS_NOISE)


def test_the_noisiest_layer_comes_first() -> None:
    model = nn.Sequential(nn.BatchNorm2d(10), nn.BatchNorm2d(10))
    listener, draw = Listener(model, ENDLESS), normal(16, 10, 3, 3)
    with listener.listening():
        for _ in range(20):
            for _ in range(4):
                x = draw()
                model[0](x)
                model[1](x.mean((2, 3), keepdim=True))
            listener.settle(16)
    assert [found.name for found in listener.layers()] == ["1", "0"]


def hooks(model: nn.Module) -> list[Any]:
    return [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]


def test_no_hook_is_left_behind() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), ours.BatchNorm1d(3))
    with Listener(model, 100).listening():
        assert len(hooks(model)) == 3  # and one that hears when the model is called
    assert hooks(model) == []
    with pytest.raises(KeyboardInterrupt), Listener(model, 100).listening():
        raise KeyboardInterrupt
    assert hooks(model) == []


def test_one_group_or_one_block_says_nothing() -> None:
    assert heard(nn.BatchNorm1d(3), normal(8, 3), group=8, groups=1) == []
    assert heard(nn.BatchNorm1d(3), normal(8, 3), group=8, blocks=1) == []


def noise(**given: Any) -> LayerNoise:
    return LayerNoise(
        **{"name": "", "per_sample": 1.0, "low": 0.5, "high": 2.0, "kurtosis": 3.0, "values": 1.0} | given, momentum=0.1
    )


def test_a_quarter_of_a_deviation_takes_sixteen_values() -> None:
    assert noise().fewest() == 16
    assert noise().shift(16) == 0.25
    assert noise(per_sample=4.0).fewest() == 4
    assert noise(per_sample=0.99).fewest() == 17
    assert (noise().fewest(0.5), noise().fewest(2.0)) == (32, 8)
    assert noise(per_sample=1e9).fewest() == 1  # there is no smaller group


def test_the_noise_of_the_scale_follows_from_the_kurtosis() -> None:
    assert noise(kurtosis=5.0).scale(64) == 0.5 * math.sqrt(4.0 / 64)
    assert noise(kurtosis=1.0).scale(64) == 0.0
    assert noise().scale(63) is None


def test_the_gap_between_the_two_deviations() -> None:
    assert noise(values=2.0).bessel_gap(4) == pytest.approx(math.sqrt(8 / 7) - 1, **tolerance.FEW_ROUNDINGS)
    assert noise().bessel_gap(1) == math.inf


def test_a_layer_in_two_places_is_heard_in_each() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.norm(3.0 * x + 5.0)

    model, x = Twice(), torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    listener = Listener(model, len(x))
    with listener.listening():
        for _ in range(40):
            for _ in range(4):
                model(x[torch.randperm(len(x))[:50]])
            listener.settle(50)
    heard = {layer.name: layer.per_sample for layer in listener.layers()}
    assert set(heard) == {"norm", "norm, call 2"}
    assert all(value == pytest.approx(1.0, rel=tolerance.STATISTICS_NOISE) for value in heard.values())
