"""From four limits to one answer: how many samples a step, and how many normalised together.

To a target a training takes S(B) = Smin·(1 + Bcrit/B) steps of t(B) = t₀ + B/φ seconds (McCandlish et al. 2018), so

    T(B) ∝ (1 + Bcrit/B)·(t₀ + B/φ), least at B* = √(Bcrit·Bhalf)

and flat around it: with a = √(Bcrit/Bhalf) and x = B/B*, T(B)/T(B*) = (1 + a² + a(x + 1/x))/(1 + a)². The largest
hardware-friendly size within 5 % is chosen. Where t is no line the same is done on the measured times.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from batchnorm.batch_size.memory import friendly

Objective = Literal["time", "compute"]

PLATEAU = 0.05
COMPUTE_SHARE = 0.2
USUAL_GROUP = (32, 64)
SMALLEST_GROUP, LARGEST_GROUP = 16, 128


def fastest(critical: float, half: float) -> float:
    """Return B* = √(Bcrit·Bhalf).

    >>> fastest(critical=100.0, half=400.0)
    200.0
    """
    return math.sqrt(critical * half)


def excess(size: float, critical: float, half: float) -> float:
    """Return T(B)/T(B*) where t is a line.

    >>> excess(200.0, 100.0, 400.0), round(excess(400.0, 100.0, 400.0), 3)
    (1.0, 1.111)
    """
    a, x = math.sqrt(critical / half), size / fastest(critical, half)
    return (1 + a * a + a * (x + 1 / x)) / (1 + a) ** 2


@dataclass(frozen=True)
class Plateau:
    """The sizes whose time to a target is within 5 % of the least.

    Attributes:
        best: B*.
        low: The smallest of them.
        high: The largest.
    """

    best: float
    low: float
    high: float


def plateau(critical: float, seconds: Callable[[float], float], smallest: float, largest: float) -> Plateau:
    """Return where (1 + Bcrit/B)·t(B) is within 5 % of its least, between two sizes."""
    grid = np.geomspace(smallest, max(largest, smallest), 4000)
    time = np.array([(1.0 + critical / size) * seconds(float(size)) for size in grid])
    best = int(np.argmin(time))
    far = np.flatnonzero(time > (1.0 + PLATEAU) * time[best])
    low = int(far[far < best].max(initial=-1)) + 1  # the stretch around the least, not whatever else is as low
    high = int(far[far > best].min(initial=len(grid))) - 1
    return Plateau(float(grid[best]), float(grid[low]), float(grid[high]))


def pick(low: float, high: float, candidates: Sequence[int] | None) -> int:
    """Return the largest candidate, or hardware-friendly size, between two numbers; the nearest one if there is none.

    >>> pick(30, 100, None), pick(30, 100, [10, 40, 60, 200]), pick(70, 90, [10, 64, 128]), pick(66, 90, None)
    (96, 60, 64, 64)
    """
    if candidates is None:
        return friendly(high)
    inside = [c for c in candidates if low <= c <= high]
    middle = math.sqrt(low * high)
    return max(inside) if inside else min(candidates, key=lambda c: abs(math.log(c / middle)))


def reaching(least: float, candidates: Sequence[int] | None) -> tuple[float, float]:
    """Return the ends between which to pick a size that is not below a number, nor much above.

    >>> reaching(16, None), reaching(5, None), reaching(10, [4, 64, 128])
    ((16.0, 24.0), (5.0, 8.0), (10.0, 64.0))
    """
    if candidates is None:
        below = friendly(1.5 * least)
        return float(least), 1.5 * least if below >= least else 2.0 * below
    high = min((c for c in candidates if c >= least), default=max(candidates))
    return float(min(least, high)), float(high)


def rate_factor(before: int, after: int, critical: float, *, adaptive: bool) -> float:
    """Return by what to multiply the learning rate when the batch grows: B'/B for SGD, √(B'/B) for Adam, up to Bcrit.

    >>> rate_factor(32, 128, 64.0, adaptive=False), rate_factor(32, 128, 1e9, adaptive=True)
    (2.0, 2.0)
    """
    factor = (
        min(after, max(critical, before)) / before if after >= before else after / min(before, max(critical, after))
    )
    return math.sqrt(factor) if adaptive else factor


def momentum_for(momentum: float, before: int, after: int) -> float:
    """Return α' = 1 − (1 − α)^(B'/B): running statistics that forget as many samples ago as they did.

    >>> round(momentum_for(0.1, 32, 64), 4)
    0.19
    """
    return 1.0 - (1.0 - momentum) ** (after / before)


def group_size(per_process: int, fewest: int) -> int:
    """Return m: the whole batch of a process up to 128, else virtual batches of the usual size or of m_min.

    >>> group_size(96, 16), group_size(512, 16), group_size(512, 100)
    (96, 64, 112)
    """
    if per_process <= max(LARGEST_GROUP, fewest):
        return per_process
    return min(per_process, max(USUAL_GROUP[1], 16 * math.ceil(fewest / 16)))
