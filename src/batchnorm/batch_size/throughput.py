"""How long a step takes, and from which batch size on the machine is busy.

t(B) = t₀ + B/φ: what a step costs whatever its size, and φ samples a second at most. Half of that throughput is reached
at Bhalf = t₀·φ. Of each size the least time counts, for whatever else a machine does makes steps longer, never shorter.
A larger batch takes no less time, so the least times are made monotone; where the line does not fit, they are
interpolated.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WORST_FIT = 0.20


@dataclass(frozen=True)
class Throughput:
    """Seconds of a step by batch size.

    Attributes:
        sizes: The sizes that were timed, ascending.
        seconds: The least of each, made monotone.
        fixed: t₀ in seconds, ≥ 0.
        per_sample: 1/φ in seconds.
        error: The largest |fitted/measured − 1|.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    fixed: float
    per_sample: float
    error: float

    @property
    def is_line(self) -> bool:
        """Whether the line fits, to 20 %."""
        return self.error <= WORST_FIT

    @property
    def half(self) -> float:
        """Bhalf: the batch size at which a sample costs twice what it costs in the largest batches."""
        if self.is_line:
            return self.fixed / self.per_sample
        grid = np.geomspace(self.sizes[0], self.sizes[-1], 1000)
        cost = np.array([self(float(size)) / size for size in grid])
        return float(grid[np.argmax(cost <= 2 * cost.min())])

    def least(self, size: int) -> float:
        """Return the least seconds of a step of a size that was timed; t(B) of any other."""
        return dict(zip(self.sizes, self.seconds, strict=True)).get(size) or self(size)

    def __call__(self, size: float) -> float:
        """Return t(B); beyond the sizes that were timed, along the line or in proportion to the last of them."""
        if self.is_line:
            return self.fixed + size * self.per_sample
        if size > self.sizes[-1]:
            return self.seconds[-1] * size / self.sizes[-1]
        return float(np.interp(size, self.sizes, self.seconds))


def quantile(values: Sequence[float], q: float) -> float:
    """Return the value below which a share q of them lies.

    >>> quantile([4.0, 1.0, 3.0, 2.0, 5.0], 0.25)
    2.0
    """
    ordered = sorted(values)
    return ordered[round(q * (len(ordered) - 1))]


def monotone(values: Sequence[float]) -> list[float]:
    """Return the nearest values, in the sense of least squares, that never fall (pool adjacent violators).

    >>> monotone([1.0, 3.0, 2.0, 4.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [statistics.fmean(pool) for pool in pools for _ in pool]


def fit(seconds: Mapping[int, Sequence[float]]) -> Throughput:
    """Fit t₀ + B/φ to the least times, each weighed by its own size: least squares of the relative error.

    Args:
        seconds: Of each step that was timed, by batch size; at least one size.

    >>> line = fit({b: [0.001 + b * 1e-5] for b in (8, 64, 512)})
    >>> round(line.half), line.is_line
    (100, True)
    """
    sizes = tuple(sorted(seconds))
    least = monotone([min(seconds[size]) for size in sizes])
    b, t = np.array(sizes, float), np.array(least)
    fixed, per_sample = (float(v) for v in np.linalg.lstsq(np.stack([1 / t, b / t], 1), np.ones(len(t)), rcond=None)[0])
    if fixed < 0 or per_sample <= 0 or len(sizes) == 1:  # no such line: through the origin, or flat
        share = float(np.sum(b / t) / np.sum((b / t) ** 2))
        level = float(np.sum(1 / t) / np.sum(1 / t**2))
        fixed, per_sample = (0.0, share) if fixed < 0 or len(sizes) == 1 else (level, 1e-6 * level / sizes[-1])
    error = float(np.max(np.abs((fixed + b * per_sample) / t - 1)))
    return Throughput(sizes, tuple(least), fixed, per_sample, error)
