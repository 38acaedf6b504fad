"""What a claim comes to: effects with intervals, and the verdict they give. Fixed before the run, plain after it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

Verdict = Literal["holds", "does not hold", "undecided", "not measured"]

FEWEST_PAIRS = 3
VAST = 1e12


@cache
def _interval(known: tuple[float, ...]) -> tuple[float, float, float]:
    if len(known) < FEWEST_PAIRS:
        return math.nan, math.nan, math.nan
    median = float(np.median(known))
    if np.ptp(known) == 0:
        return median, median, median
    from scipy import stats  # here, because worker processes need none of it

    random = np.random.default_rng(0)
    found: Any = stats.bootstrap((known,), np.median, n_resamples=2000, method="percentile", rng=random)
    return median, float(found.confidence_interval.low), float(found.confidence_interval.high)


def _known(samples: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(s for s in samples if not math.isnan(s))


@dataclass(frozen=True)
class Effect:
    """One measured effect: its median over paired seeds, with a 95 % bootstrap interval, against a threshold.

    Attributes:
        name: What is measured, with its unit.
        samples: One value a seed; NaN where a seed says nothing.
        threshold: Fixed before the run.
        side: Whether the claim needs the effect above or below the threshold.
        decides: Whether the claim's verdict rests on it; others are reported beside it.
        unit: Printed behind the number: "×", " decades".
        bounded: A remark where some samples are bounds, such as runs that never arrived.
        least: The least each sample can be, where some are bounds.
        most: The most each sample can be.
    """

    name: str
    samples: tuple[float, ...]
    threshold: float
    side: Literal["above", "below"] = "above"
    decides: bool = True
    unit: str = ""
    bounded: str = ""
    least: tuple[float, ...] | None = None
    most: tuple[float, ...] | None = None

    def interval(self) -> tuple[float, float, float]:
        """Return (median, low, high); NaN where fewer than three seeds say anything."""
        return _interval(_known(self.samples))

    def verdict(self) -> Verdict:
        """Return "holds" if the whole interval lies on the claimed side, "does not hold" if on the other."""
        low = _interval(_known(self.least or self.samples))[1]
        high = _interval(_known(self.most or self.samples))[2]
        above, below = low > self.threshold, high < self.threshold
        if above or below:
            return "holds" if above == (self.side == "above") else "does not hold"
        return "undecided"

    def as_json(self) -> dict[str, Any]:
        """Return the effect with its interval and verdict, as plain data."""
        median, low, high = self.interval()
        plain = {k: getattr(self, k) for k in ("name", "unit", "threshold", "side", "decides", "bounded")}
        return {**plain, "value": median, "low": low, "high": high, "verdict": self.verdict(), "samples": self.samples}


@dataclass(frozen=True)
class Finding:
    """What one claim found.

    Attributes:
        effects: Those that decide, and those reported beside them.
        numbers: Everything the picture is drawn from, as plain data.
        notes: Sentences a reader should not miss: what was seen, what it does not say.
        summary: The finding in one sentence.
        skipped: Why the claim was not measured; "" if it was.
    """

    effects: tuple[Effect, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    summary: str = ""
    skipped: str = ""

    def verdict(self) -> Verdict:
        """Combine the deciding effects: all hold, or one does not, or it is undecided."""
        if self.skipped:
            return "not measured"
        verdicts: list[Verdict] = [e.verdict() for e in self.effects if e.decides]
        for decisive in ("does not hold", "undecided"):
            if decisive in verdicts or not verdicts:
                return decisive if verdicts else "undecided"
        return "holds"


@dataclass(frozen=True)
class Claim:
    """A claim about batch normalization, and how it is tested. One file a claim.

    Attributes:
        id: As `--claims` names it.
        statement: The claim, one sentence.
        source: Who claims it.
        method: How it is measured, two or three sentences.
        measure: `(study) -> Finding`; reads the outcomes of its runs.
        picture: `(finding) -> matplotlib figure`; shows the effect at a glance.
        caption: What the picture shows, for those who read and those who cannot see it.
        runs: `(study) -> specs` known before anything is trained.
        further: `(study) -> specs` that depend on the outcomes of `runs`.
        timed: `(finding, seconds of a step by placement) -> effects` in seconds: reported, but kept apart from what
            the same seed must reproduce.
        sizes: `(study) -> batch sizes` whose steps `timed` wants the seconds of.
        own_model: Whether it can be measured on a model of the user's own.
    """

    id: str
    statement: str
    source: str
    method: str
    measure: Callable[[Any], Finding]
    picture: Callable[[Finding], Any]
    caption: str
    runs: Callable[[Any], Sequence[Any]] = lambda _: ()
    further: Callable[[Any], Sequence[Any]] = lambda _: ()
    timed: Callable[[Finding, Mapping[str, float]], Sequence[Effect]] = lambda _finding, _seconds: ()
    sizes: Callable[[Any], Sequence[int]] = lambda _: ()
    own_model: bool = True


class Ratios(NamedTuple):
    """Ratios seed by seed; where a run never arrived, the least and the most that the ratio can be.

    Attributes:
        samples: The ratios, runs that never arrived counted as arriving at the budget's end.
        least: The least each can be: 0 where the divisor never arrived.
        most: The most each can be: a very large number where the dividend never arrived.
        bounded: A remark, if any run never arrived.
    """

    samples: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    bounded: str


def ratios(dividends: Sequence[float], divisors: Sequence[float], budget: float) -> Ratios:
    """Return steps ÷ steps seed by seed; a seed where neither side arrived says nothing.

    >>> ratios([100.0, math.inf], [50.0, 50.0], budget=1000.0).samples
    (2.0, 20.0)
    >>> ratios([100.0, math.inf], [50.0, 50.0], budget=1000.0).bounded
    '1 of 2 seeds did not arrive within 1000 steps on one side: counted as 1000, a bound'
    """
    pairs = list(zip(dividends, divisors, strict=True))
    samples = tuple(
        math.nan if math.isinf(a) and math.isinf(b) else max(min(a, budget), 1.0) / max(min(b, budget), 1.0)
        for a, b in pairs
    )
    least = tuple(0.0 if math.isinf(b) and not math.isinf(a) else s for (a, b), s in zip(pairs, samples, strict=True))
    most = tuple(VAST if math.isinf(a) and not math.isinf(b) else s for (a, b), s in zip(pairs, samples, strict=True))
    late = sum(math.isinf(a) or math.isinf(b) for a, b in pairs)
    remark = (
        f"{late} of {len(pairs)} seeds did not arrive within {budget:.0f} steps on one side: "
        f"counted as {budget:.0f}, a bound"
    )
    return Ratios(samples, least, most, remark if late else "")


def of_ratios(
    name: str, found: Ratios, threshold: float, side: Literal["above", "below"] = "above", **more: Any
) -> Effect:
    """Return the effect that ratios make, with what is only a bound treated as one."""
    return Effect(
        name,
        found.samples,
        threshold,
        side,
        unit="×",
        bounded=found.bounded,
        least=found.least,
        most=found.most,
        **more,
    )


def known(value: float, otherwise: float) -> float:
    """Return a value, or what stands for it where a run has diverged: the losing side, never silence."""
    return value if math.isfinite(value) else otherwise
