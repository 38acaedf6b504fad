"""Batch renormalization: how far the output may follow the running statistics while training.

The formulas are in `statistics.correction`; here is what a user chooses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from batchnorm.conventions import Estimator
from batchnorm.errors import ArgumentError

Clip = float | Callable[[Any], Any]
CLIPS = ("rmin", "rmax", "dmax")
RENORM_ESTIMATOR: Estimator = (
    "biased"  # under `renorm` the running statistics take in the biased variance, in every framework
)


@dataclass(frozen=True)
class Ramp:
    """A clip value that moves in a straight line from `start` to `end` between two steps, and stays outside of them.

    Attributes:
        start: Value up to step `first`.
        end: Value from step `last` on.
        first: Step at which it starts to move.
        last: Step at which it arrives; later than `first`.

    >>> [Ramp(1.0, 3.0, first=5000, last=40000)(step) for step in (0, 5000, 22500, 40000, 90000)]
    [1.0, 1.0, 2.0, 3.0, 3.0]
    """

    start: float
    end: float
    first: int
    last: int

    def __post_init__(self) -> None:
        if not self.first < self.last:
            raise ArgumentError(f"`last` must be a later step than `first`={self.first}, got {self.last}")

    def __call__(self, step: Any) -> Any:
        """Return the value at `step`, a number or a 0-d array of any framework."""
        way = (step - self.first) / (self.last - self.first)
        return self.start + (self.end - self.start) * (0.5 * (abs(way) - abs(way - 1.0) + 1.0))  # clipped to [0, 1]


@dataclass(frozen=True)
class Inverse:
    """The reciprocal of a schedule: the paper's rmin is 1/rmax.

    >>> Inverse(Ramp(1.0, 4.0, first=0, last=10))(10)
    0.25
    """

    of: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.of) or isinstance(self.of, type):
            raise ArgumentError(f"`of` must be a schedule, a function of the step, got {self.of!r}")

    def __call__(self, step: Any) -> Any:
        """Return 1/schedule(step)."""
        return 1.0 / self.of(step)


@dataclass(frozen=True)
class Renorm:
    """Batch renormalization: y = γ·(x̂·r + d) + β, where r and d lead from the batch's to the running statistics.

    r = clip(σ/S, rmin, rmax) and d = clip((μ−M)/S, −dmax, dmax) are constants for the gradient, with σ = √(σ²+ε), and
    the running M and S as they were before the step. r=1 and d=0 is plain batch normalization; without clips the
    output is that of inference.

    Attributes:
        rmin: Least r; None: no bound. A number, or a function of the step (a 0-d array).
        rmax: Largest r, likewise.
        dmax: Largest |d|, likewise.
        momentum: α of M and S, the weight of the NEW observation: s ← s + α·(batch − s).

    Raises:
        ArgumentError: if a bound is negative, rmin > rmax, or `momentum` is outside [0, 1].

    Source: Ioffe 2017, https://arxiv.org/abs/1702.03275.

    Differs:
        Keras writes renorm_clipping={"rmin": …, "rmax": …, "dmax": …} and renorm_momentum=0.99, which is 0.01 here.

    >>> Renorm(rmax=3.0, dmax=5.0)
    Renorm(rmin=None, rmax=3.0, dmax=5.0, momentum=0.01)
    >>> Renorm(rmax=-1)
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `rmax` must be None, a number ≥ 0 or a function of the step, got -1
    """

    rmin: Clip | None = None
    rmax: Clip | None = None
    dmax: Clip | None = None
    momentum: float = 0.01

    def __post_init__(self) -> None:
        for name in CLIPS:
            value = getattr(self, name)
            schedule = callable(value) and not isinstance(value, type)
            if not (value is None or schedule or (isinstance(value, Real) and float(value) >= 0.0)):
                raise ArgumentError(f"`{name}` must be None, a number ≥ 0 or a function of the step, got {value!r}")
        if isinstance(self.rmin, Real) and isinstance(self.rmax, Real) and float(self.rmin) > float(self.rmax):
            raise ArgumentError(f"`rmin` must not exceed `rmax`={self.rmax}, got {self.rmin}")
        if not isinstance(self.momentum, Real) or not 0.0 <= float(self.momentum) <= 1.0:
            raise ArgumentError(f"`momentum` of renorm must lie in [0, 1], got {self.momentum!r} (Keras' 0.99 is 0.01)")

    @classmethod
    def paper(
        cls, *, hold: int = 5_000, r_until: int = 40_000, d_until: int = 25_000, momentum: float = 0.01
    ) -> "Renorm":
        """Return the paper's schedule: plain for `hold` steps, then rmax 1 → 3 and dmax 0 → 5, with rmin = 1/rmax.

        Source: Ioffe 2017, section 4.

        >>> clips = Renorm.paper().clips(40_000)
        >>> round(clips[0], 3), clips[1:]
        (0.333, (3.0, 5.0))
        """
        rmax = Ramp(1.0, 3.0, hold, r_until)
        return cls(Inverse(rmax), rmax, Ramp(0.0, 5.0, hold, d_until), momentum)

    @property
    def clipping(self) -> dict[str, Clip]:
        """Return the bounds that there are, by name."""
        return {name: clip for name in CLIPS if (clip := getattr(self, name)) is not None}

    def clips(self, step: Any) -> tuple[Any, Any, Any]:
        """Return (rmin, rmax, dmax) at `step`."""
        rmin, rmax, dmax = (c(step) if callable(c) else c for c in (self.rmin, self.rmax, self.dmax))
        return rmin, rmax, dmax
