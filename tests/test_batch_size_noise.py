"""Gradient noise: closed forms, exact enumeration and per-example gradients say what the estimator must find."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tolerance
from batchnorm.batch_size.gradient_noise import (
    Block,
    GroupGradients,
    NoiseScale,
    block,
    correction,
    measure,
    noise_scale,
)
from batchnorm.batch_size.work import Samples, Work

CPU = torch.device("cpu")
cross_entropy = nn.functional.cross_entropy


class Point(nn.Module):
    """w − x, whose loss ½|w − x|² has the gradient w − x."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x


def half_square(output: Tensor, _: Tensor) -> Tensor:
    return output.square().sum(1).mean() / 2


def drawn_rows(work: Work, count: int) -> list[int]:
    """Return the rows that batches are drawn from."""
    return sorted(set(range(count)) - set(work.held_out))


def scale_of(work: Work, *, group: int, blocks: int, aggregate: Any = "sum", groups: int = 4) -> NoiseScale:
    gradients = GroupGradients(work.parameters, aggregate)
    found, dropped = measure(work.backward, gradients, rows=work.rows, group=group, blocks=blocks, groups=groups)
    assert dropped == 0
    return noise_scale(found)


def test_a_quadratic_has_the_noise_of_its_rows() -> None:
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1.0, 2, 3])
    work = Work(Point(torch.ones(3, dtype=torch.float64)), half_square, Samples((x, x)), device=CPU, seed=0)
    rows = x[drawn_rows(work, len(x))]
    signal = (1 - rows.mean(0)).square().sum().item()
    noise = (rows - rows.mean(0)).square().sum(1).mean().item()
    found = scale_of(work, group=16, blocks=1000)
    assert found.low < noise / signal < found.high
    assert found.noise == pytest.approx(noise, rel=tolerance.NOISE_OF_MANY_BLOCKS)
    assert found.signal == pytest.approx(signal, rel=tolerance.NOISE_OF_MANY_BLOCKS)
    assert found.value == pytest.approx(noise / signal, rel=tolerance.NOISE_OF_MANY_BLOCKS)
    assert (found.is_bound, found.blocks) == (False, 1000)


@pytest.mark.parametrize(("per_group", "groups"), [(1, 2), (2, 2), (3, 2), (2, 3)])
def test_a_block_is_unbiased_on_every_draw_of_a_small_population(per_group: int, groups: int) -> None:
    population = [(Fraction(a), Fraction(b)) for a, b in ((1, 0), (4, -2), (-3, 5), (7, 7))]
    rows = len(population)
    mean = [sum(values) / rows for values in zip(*population, strict=True)]
    trace = sum((v - m) ** 2 for row in population for v, m in zip(row, mean, strict=True)) / rows

    def mean_of(vectors: Any) -> tuple[Fraction, ...]:
        return tuple(sum(values, Fraction()) / len(vectors) for values in zip(*vectors, strict=True))

    def square(vector: tuple[Fraction, ...]) -> Fraction:
        return sum((v * v for v in vector), Fraction())

    one_group = [mean_of(chosen) for chosen in itertools.combinations(population, per_group)]
    drawn: list[Any] = []
    for gradients in itertools.product(one_group, repeat=groups):
        p = sum(map(square, gradients), Fraction()) / groups
        exactly: Any = block(p, square(mean_of(gradients)), groups, per_group * correction(Fraction(rows), per_group))  # type: ignore[arg-type]
        drawn.append(exactly)
    assert sum(b.signal for b in drawn) / len(drawn) == sum(m * m for m in mean)
    assert sum(b.noise for b in drawn) / len(drawn) == trace


def digits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=dtype), torch.tensor(y)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))


def normalized() -> nn.Module:
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(32, 10), nn.BatchNorm1d(10))


def exact_scale(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return tr Σ/|G|² over all rows, from the gradient of each."""
    losses = (cross_entropy(model(row[None]), label[None]) for row, label in zip(x, y, strict=True))
    each = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)  # torch.func takes 10 s to load
    flat = torch.stack([torch.cat([g.flatten() for g in gradients]) for gradients in each]).double()
    return float((flat - flat.mean(0)).square().sum(1).mean() / flat.mean(0).square().sum())


def test_digits_agree_with_the_gradients_of_every_example() -> None:
    x, y = digits()
    model = plain()
    work = Work(model, cross_entropy, Samples((x, y)), device=CPU, seed=0)
    rows = drawn_rows(work, len(x))
    truth = exact_scale(model, x[rows], y[rows])
    found = scale_of(work, group=32, blocks=100)
    assert found.value == pytest.approx(truth, rel=tolerance.NOISE_OF_DIGITS)
    assert found.low < truth < found.high


def mean_square_gradient(work: Work, size: int, draws: int) -> float:
    total = 0.0
    for _ in range(draws):
        work.backward(size)
        total += sum(float(p.grad.square().sum()) for p in work.parameters if p.grad is not None)
        work.clear()
    return total / draws


def test_batch_normalization_makes_two_sizes_contradict_each_other_but_not_groups_of_one_size() -> None:
    x, y = digits()
    work = Work(normalized(), cross_entropy, Samples((x, y)), device=CPU, seed=0)
    small, large = 2, 64
    of_small, of_large = (mean_square_gradient(work, size, 200) for size in (small, large))
    signal = (large * of_large - small * of_small) / (large - small)
    noise = (of_small - of_large) / (1 / small - 1 / large)
    assert noise / signal < 0  # as the specification says of estimators that compare two sizes
    found = scale_of(work, group=large, blocks=30)
    assert 0 < found.low < found.value < found.high < math.inf
    assert not found.is_bound


@pytest.mark.parametrize("aggregate", ["sum", "scale_invariant"])
def test_the_scale_of_weights_ahead_of_batch_normalization_does_not_matter(aggregate: Any) -> None:
    def scaled(factor: float) -> float:
        torch.manual_seed(0)
        layers = [nn.Linear(64, 8, bias=False), nn.BatchNorm1d(8, eps=1e-12), nn.ReLU(), nn.Linear(8, 10)]
        model = nn.Sequential(*layers).double()
        with torch.no_grad():
            model[0].weight.mul_(factor)
        work = Work(model, cross_entropy, Samples(digits(torch.float64)), device=CPU, seed=0)
        return scale_of(work, group=32, blocks=10, aggregate=aggregate).value

    same = scaled(10.0) == pytest.approx(scaled(1.0), **tolerance.SCALE_FREE)
    assert same == (aggregate == "scale_invariant")


def test_each_parameter_is_weighed_by_its_own_square() -> None:
    ones, threes = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((2,), 3.0))
    gradients = GroupGradients([ones, threes], "scale_invariant")
    for sign in (1.0, -1.0):
        ones.grad, threes.grad = torch.full((2,), sign), torch.full((2,), 1.0)
        gradients.take()
    # P = 2·2 + 2·18, Q = 2·18: the first parameter's gradients cancel, and both are weighed by |w|²
    assert gradients.block(1.0) == (pytest.approx(32.0, **tolerance.SINGLE), pytest.approx(8.0, **tolerance.SINGLE))


def test_a_signal_that_cannot_be_told_from_zero_leaves_a_lower_bound() -> None:
    found = noise_scale([Block(-1.0, 8.0), Block(1.5, 12.0), Block(0.5, 10.0), Block(-0.4, 10.0)])
    spread = np.std([-1.0, 1.5, 0.5, -0.4], ddof=1) / 2
    assert found.is_bound
    assert found.high == math.inf
    assert found.value == found.low == pytest.approx(10.0 / (0.15 + 2 * spread), **tolerance.FEW_ROUNDINGS)
    assert not noise_scale([Block(1.0, 8.0), Block(1.1, 9.0)]).is_bound


def test_a_signal_wholly_below_zero_bounds_nothing() -> None:
    found = noise_scale([Block(-1.0, 8.0), Block(-1.1, 8.0)])
    assert (found.value, found.low, found.high, found.is_bound) == (math.inf, math.inf, math.inf, True)


def test_equal_blocks_leave_no_doubt() -> None:
    found = noise_scale([Block(2.0, 8.0)] * 3)
    assert (found.value, found.low, found.high, found.is_bound) == (4.0, 4.0, 4.0, False)
    without = noise_scale([Block(2.0, 0.0)] * 3)  # all samples alike
    assert (without.value, without.low, without.high) == (0.0, 0.0, 0.0)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random, features, group, groups = np.random.default_rng(0), 20, 16, 4
    mean = np.full(features, 0.5)  # |G|² = 5; Σ = 1, tr Σ = 20: B_simple = 4
    inside = 0
    for _ in range(1000):
        g = mean + random.normal(size=(30, groups, features)) / math.sqrt(group)
        squares, of_mean = (g**2).sum(2).mean(1), (g.mean(1) ** 2).sum(1)
        found = noise_scale([block(p, q, groups, group) for p, q in zip(squares, of_mean, strict=True)])
        inside += found.low <= 4.0 <= found.high
    assert tolerance.COVERAGE[0] <= inside / 1000 <= tolerance.COVERAGE[1]


def backward_of(gradients: list[list[Tensor | None]], parameters: list[nn.Parameter]) -> Callable[[int], None]:
    """Return what leaves one list of gradients after another in `.grad`."""
    rest = iter(gradients)

    def backward(_: int) -> None:
        for parameter, gradient in zip(parameters, next(rest), strict=True):
            parameter.grad = None if gradient is None else gradient.clone()

    return backward


def test_gradients_that_are_not_finite_are_left_out_and_counted() -> None:
    w = nn.Parameter(torch.zeros(2))
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.inf])
    order: list[list[Tensor | None]] = [[g] for g in (good, good * 3, bad, good, good, torch.full((2,), math.nan))]
    found, dropped = measure(backward_of(order, [w]), GroupGradients([w]), rows=10, group=2, blocks=3, groups=2)
    # gradients g and 3g: P = 5·5, Q = 4·5; V = 10, times m·(N − 1)/(N − m) = 2·9/8
    assert found == [Block(pytest.approx(15.0, **tolerance.SINGLE), pytest.approx(22.5, **tolerance.SINGLE))]
    assert dropped == 2
    assert w.grad is None


def test_parameters_without_a_gradient_count_for_nothing() -> None:
    used, unused, sometimes = (nn.Parameter(torch.ones(2)) for _ in range(3))
    one = torch.ones(2)
    order: list[list[Tensor | None]] = [[one, None, None], [one, None, 2 * one]]
    found, _ = measure(
        backward_of(order, [used, unused, sometimes]), GroupGradients([used, unused, sometimes]),
        rows=1 << 40, group=1, blocks=1, groups=2,
    )  # fmt: skip
    # P = (2 + 2 + 8)/2, Q = 2 + 2: a gradient that is missing is zero
    assert found == [Block(pytest.approx(2.0, **tolerance.SINGLE), pytest.approx(4.0, **tolerance.SINGLE))]


def test_sparse_gradients_are_those_of_the_dense() -> None:
    def of(sparse: bool) -> NoiseScale:
        torch.manual_seed(0)
        model = nn.Sequential(nn.EmbeddingBag(7, 5, sparse=sparse), nn.Linear(5, 3))
        x = torch.randint(7, (40, 4), generator=torch.Generator().manual_seed(0))
        work = Work(model, cross_entropy, Samples((x, x[:, 0] % 3)), device=CPU, seed=0)
        return scale_of(work, group=8, blocks=5)

    sparse, dense = of(True), of(False)
    assert sparse.value == pytest.approx(dense.value, **tolerance.SCALE_FREE)


def test_gradients_in_16_bits_say_what_those_in_32_bits_say() -> None:
    def of(dtype: torch.dtype) -> NoiseScale:
        x, y = digits()
        model = plain().to(dtype)
        work = Work(model, cross_entropy, Samples((x.to(dtype), y)), device=CPU, seed=0)
        return scale_of(work, group=32, blocks=20)

    assert of(torch.bfloat16).value == pytest.approx(of(torch.float32).value, rel=tolerance.HALF_PRECISION)


def test_a_sum_of_16_bit_gradients_does_not_overflow() -> None:
    w = nn.Parameter(torch.zeros(1, dtype=torch.float16))
    order: list[list[Tensor | None]] = [[torch.full((1,), 40000.0, dtype=torch.float16)] for _ in range(4)]
    found, dropped = measure(backward_of(order, [w]), GroupGradients([w]), rows=100, group=2, blocks=1)
    assert dropped == 0
    assert found[0].signal == pytest.approx(40000.0**2, rel=tolerance.HALF_PRECISION)


def test_a_measurement_ends_after_the_block_in_which_there_is_enough() -> None:
    work = Work(plain(), cross_entropy, Samples(digits()), device=CPU, seed=0)
    settled: list[int] = []
    found, _ = measure(
        work.backward, GroupGradients(work.parameters), rows=work.rows, group=8,
        enough=lambda: len(settled) == 3, settle=settled.append,
    )  # fmt: skip
    assert (len(found), settled) == (3, [8, 8, 8])
