"""How noisy gradients are: the batch size beyond which averaging more samples hardly improves a step.

B_simple = tr Σ / |G|², Σ the covariance of the gradient of one sample, G the gradient of the whole objective.

Under batch normalization the objective itself depends on how many samples are normalised together, so estimators that
compare gradients of two batch sizes compare two objectives, and may even come out negative. Here the group of m is held
fixed: k groups of m samples, gᵢ their gradients, P = mean|gᵢ|², Q = |mean gᵢ|². Then without bias

    |G|² = (kQ − P)/(k − 1)        V = (P − Q)·k/(k − 1)        B_simple = m·V/|G|²

Groups are drawn from N rows, each without replacement, which lessens V by (N − m)/(N − 1); that is put right.

Source: McCandlish, Kaplan and Amodei 2018, "An Empirical Model of Large-Batch Training", appendix A.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Aggregate = Literal["sum", "scale_invariant"]

BLOCKS = 30
GROUPS = 4
TWO_SIDED = 2.0  # standard errors on either side


class Block(NamedTuple):
    """What k groups of m samples at the same weights say.

    Attributes:
        signal: Estimate of |G|², which may be negative by chance.
        noise: Estimate of tr Σ.
    """

    signal: float
    noise: float


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise scale at one set of weights.

    Attributes:
        value: B_simple in samples; a lower bound where `is_bound`.
        low: Lower end of the 95 % interval.
        high: Its upper end; infinite where `is_bound`.
        is_bound: Whether |G|² cannot be told from zero.
        signal: |G|².
        noise: tr Σ.
        blocks: How many blocks were averaged.
    """

    value: float
    low: float
    high: float
    is_bound: bool
    signal: float
    noise: float
    blocks: int


def correction(rows: int, group: float) -> float:
    """Return by how much a draw of `group` of `rows` without replacement lessens a variance, inverted.

    >>> correction(10, 1), correction(11, 6)
    (1.0, 2.0)
    """
    return (rows - 1) / (rows - group)


def block(square: float, square_of_mean: float, groups: int, per_group: float) -> Block:
    """Return what P and Q of k groups say.

    Args:
        square: P, the mean of |gᵢ|².
        square_of_mean: Q, |mean gᵢ|².
        groups: k ≥ 2.
        per_group: By what V is multiplied to give tr Σ: m, and the correction for a finite number of rows.

    >>> block(5.0, 3.0, groups=2, per_group=8.0)
    Block(signal=1.0, noise=32.0)
    """
    signal = (groups * square_of_mean - square) / (groups - 1)
    return Block(signal, per_group * (square - square_of_mean) * groups / (groups - 1))


def noise_scale(blocks: Sequence[Block]) -> NoiseScale:
    """Return tr Σ/|G|², numerator and denominator averaged apart, with an interval by the delta method.

    Where |G|² − 2 standard errors ≤ 0 the ratio has no upper end: its lower end is returned as a bound.

    Args:
        blocks: At least two, all at the same weights.
    """
    count = len(blocks)
    signal, noise = (math.fsum(values) / count for values in zip(*blocks, strict=True))
    spread = [(b.signal - signal, b.noise - noise) for b in blocks]
    over = count * (count - 1)
    var_signal, var_noise, both = (
        math.fsum(terms) / over for terms in zip(*((s * s, n * n, s * n) for s, n in spread), strict=True)
    )
    reach = TWO_SIDED * math.sqrt(var_signal)
    if signal - reach <= 0:
        bound = noise / (signal + reach) if signal + reach > 0 else math.inf
        return NoiseScale(bound, bound, math.inf, True, signal, noise, count)
    relative = var_noise / noise**2 + var_signal / signal**2 - 2 * both / (noise * signal) if noise > 0 else 0.0
    factor = math.exp(TWO_SIDED * math.sqrt(max(relative, 0.0)))
    ratio = noise / signal
    return NoiseScale(ratio, ratio / factor, ratio * factor, False, signal, noise, count)


def _square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)).square()


@dataclass
class GroupGradients:
    """Takes the gradient of one group after another and keeps what P and Q need: a sum, and squares.

    Attributes:
        parameters: Those that learn.
        aggregate: "sum", or "scale_invariant": the terms of each parameter weighed by its own |w|². The weights ahead
            of batch normalization may be scaled by c, which changes nothing but their gradient, by 1/c; the product
            stays.
    """

    parameters: Sequence[nn.Parameter]
    aggregate: Aggregate = "sum"
    _sums: list[Tensor | None] = field(default_factory=list[Tensor | None])
    _squares: float = 0.0
    _groups: int = 0

    def __post_init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._sums, self._squares, self._groups = [None] * len(self.parameters), 0.0, 0

    @torch.no_grad()
    def _weighed(self, gradients: Iterable[Tensor | None]) -> float:
        total = 0.0
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                weight = _square(parameter).item() if self.aggregate == "scale_invariant" else 1.0
                total += _square(gradient).item() * weight
        return total

    @torch.no_grad()
    def take(self) -> None:
        """Take the gradients that a backward has left in `.grad`, and clear them."""
        gradients = [None if p.grad is None else p.grad.to_dense() for p in self.parameters]
        self._squares += self._weighed(gradients)
        self._groups += 1
        for i, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            parameter.grad = None
            if gradient is not None:
                before = self._sums[i]
                wide = torch.promote_types(gradient.dtype, torch.float32)  # a sum in 16 bits overflows
                self._sums[i] = gradient.to(wide, copy=True) if before is None else before.add_(gradient)

    def block(self, per_group: float) -> Block | None:
        """Return what the groups taken so far say and forget them; None if a gradient was not finite."""
        groups, square = self._groups, self._squares / self._groups
        mean = self._weighed(None if s is None else s / groups for s in self._sums)
        self._forget()
        if not (math.isfinite(square) and math.isfinite(mean)):
            return None
        return block(square, mean, groups, per_group)


def measure(
    backward: Callable[[int], None],
    gradients: GroupGradients,
    *,
    rows: int,
    group: int,
    blocks: int = BLOCKS,
    groups: int = GROUPS,
    enough: Callable[[], bool] = lambda: False,
    settle: Callable[[int], None] = lambda _: None,
    found: list[Block] | None = None,
) -> tuple[list[Block], int]:
    """Draw blocks of groups at the weights as they are.

    Args:
        backward: `(m)`: draws m rows and leaves the gradient of their mean loss in `.grad`.
        gradients: Takes them from there.
        rows: N, how many there are to draw from.
        group: m.
        blocks: R.
        groups: k, in each block.
        enough: Asked after each block; True ends the measurement early.
        settle: Told m after each block.
        found: Takes the blocks as they come, so that an interrupt loses none.

    Returns:
        The blocks, and how many had to be left out because a gradient was not finite.
    """
    per_group = group * correction(rows, group)
    found = [] if found is None else found
    dropped = 0
    for _ in range(blocks):
        for _ in range(groups):
            backward(group)
            gradients.take()
        settle(group)
        made = gradients.block(per_group)
        if made is None:
            dropped += 1
        else:
            found.append(made)
        if enough():
            break
    return found, dropped
