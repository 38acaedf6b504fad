"""What a claim comes to: effects with intervals, and the verdict they give. Fixed before the run, plain after it."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from batchnorm.study import intervals

Verdict = Literal["holds", "does not hold", "undecided", "mixed", "not measured", "passes", "fails"]
Side = Literal["above", "below"]
LOWEST = {"×": 0.0}  # of what a quantity with this unit can be; −∞ for others
ROUNDING = 1e-12  # what is less than that is zero


def number(value: float) -> str:
    """Return a number to three significant digits; what the rounding of differences leaves is zero.

    >>> number(41.666), number(-0.5), number(1234.5), number(0.0002), number(math.inf), number(-5.5e-15)
    ('41.7', '−0.5', '1,234', '0.0002', '∞', '0')
    """
    if abs(value) < ROUNDING:
        return "0"
    text = f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", "−").replace("inf", "∞")


def the(part: str) -> str:
    """Return the part of a claim as sentences name it.

    >>> the("ReLU network"), the("your model")
    ('the ReLU network', 'your model')
    """
    return part if part.startswith("your ") else f"the {part}"


def quantity(value: float, unit: str) -> str:
    """Return a number with its unit, which is singular behind a 1.

    >>> quantity(1.0, " decades"), quantity(0.5, " decades"), quantity(1.0, "×")
    ('1 decade', '0.5 decades', '1×')
    """
    return counted(number(value), unit)


def counted(text: str, unit: str) -> str:
    """Return a number that is written already with its unit, which is singular behind a 1."""
    return text + (unit.removesuffix("s") if text == "1" else unit)


@dataclass(frozen=True)
class Effect:
    """One measured effect over paired seeds, against a threshold.

    A sample may be known as an interval only: where a run has not arrived within its budget, a ratio of steps is at
    least or at most so much. The headline is the median over seeds, and so is what the interval is for.

    Attributes:
        name: What is measured, without the part: "steps to the goal, without ÷ with".
        least: The least each seed's sample can be.
        most: The most it can be; the same number where the sample is known.
        threshold: Fixed before the run.
        side: Whether the claim needs the effect above or below the threshold.
        part: What the effect is about where a claim has parts: "ReLU network".
        decides: Whether a verdict rests on it; others are reported beside it.
        unit: Printed behind the number: "×", " decades", " points".
        obstacle: Why there can be no verdict whatever the numbers; "" if there can.
        schedule: The looks of the study that the samples belong to; empty: the samples were looked at once.
        check: Whether it checks the layer, so that each sample must lie on the claimed side, not only the median.
    """

    name: str
    least: tuple[float, ...]
    most: tuple[float, ...]
    threshold: float
    side: Side = "above"
    part: str = ""
    decides: bool = True
    unit: str = ""
    obstacle: str = ""
    schedule: tuple[int, ...] = ()
    check: bool = False

    @classmethod
    def of(cls, name: str, samples: Iterable[float], threshold: float, side: Side = "above", **more: Any) -> "Effect":
        """Return an effect whose samples are known; NaN says nothing."""
        values = tuple(samples)
        lowest = LOWEST.get(more.get("unit", ""), -math.inf)
        least = tuple(lowest if math.isnan(v) else v for v in values)
        return cls(name, least, tuple(math.inf if math.isnan(v) else v for v in values), threshold, side, **more)

    @property
    def median(self) -> tuple[float, float]:
        """The least and the most that the median over seeds can be.

        Of an even number of samples, each number between the middle two is a median. Where both of these are known it
        is the one halfway between; where not, the bounds are those of all.
        """
        if not self.least:
            return self.lowest, math.inf
        low, high = statistics.median(self.least), statistics.median(self.most)
        return (low, high) if low == high else (statistics.median_low(self.least), statistics.median_high(self.most))

    @property
    def lowest(self) -> float:
        """The least that any sample of this unit can be."""
        return LOWEST.get(self.unit, -math.inf)

    @property
    def bound(self) -> str:
        """How the median is known: "exact", "at least", "at most", "between" or "unknown"."""
        low, high = self.median
        if low == high:
            return "exact"
        open_below, open_above = low <= self.lowest, math.isinf(high)
        return {(True, True): "unknown", (False, True): "at least", (True, False): "at most"}.get(
            (open_below, open_above), "between"
        )

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the median; unbounded where there are too few seeds, or they say too little."""
        if not self.least:
            return self.lowest, math.inf
        low, high = intervals.interval(self.least, self.most, self.schedule)
        return max(low, self.lowest), high

    def verdict(self) -> Verdict:
        """Return "holds" if the whole interval lies on the claimed side, "does not hold" if on the other.

        A check holds if every sample lies on the claimed side, and else does not.
        """
        if self.check and self.least:
            above, below = min(self.least) > self.threshold, max(self.most) < self.threshold
            return "holds" if (above if self.side == "above" else below) else "does not hold"
        low, high = self.interval()
        above, below = low > self.threshold, high < self.threshold
        if self.obstacle or not (above or below):
            return "undecided"
        return "holds" if above == (self.side == "above") else "does not hold"

    def value(self) -> float:
        """Return the median, or the bound of it that is known; NaN where nothing is."""
        low, high = self.median
        return {"unknown": math.nan, "at most": high}.get(self.bound, low)

    def headline(self) -> str:
        """Return the median in words: "4.6×", "at least 42×", "unknown"."""
        low, high = self.median
        if self.bound == "unknown":
            return "unknown"
        if self.bound == "between":
            return f"between {number(low)} and {number(high)}{self.unit}"
        return ("" if self.bound == "exact" else f"{self.bound} ") + quantity(self.value(), self.unit)

    def range_text(self) -> str:
        """Return the 95 % interval in words; "" where there is none."""
        return _range(*self.interval(), self.lowest)

    def text(self) -> str:
        """Return median and interval in words: "4.6× (3.1 to 6.3)"."""
        around = self.range_text()
        return self.headline() + (f" ({around})" if around else "")

    def as_json(self) -> dict[str, Any]:
        """Return the effect with its interval and verdict, as plain data."""
        low, high = self.interval()
        names = ("name", "part", "unit", "threshold", "side", "decides", "obstacle")
        return {
            **{k: getattr(self, k) for k in names},
            "value": self.value(),
            "bound": self.bound,
            "low": low if low > self.lowest else None,
            "high": high,
            "text": self.text(),
            "headline": self.headline(),
            "range": self.range_text(),
            "samples": [list(pair) for pair in zip(self.least, self.most, strict=True)],
            "verdict": self.verdict(),
        }


def _range(low: float, high: float, lowest: float) -> str:
    open_below, open_above = low <= lowest, math.isinf(high)
    if open_below and open_above:
        return ""
    if open_above:
        return f"{number(low)} or more"
    return f"{number(high)} or less" if open_below else f"{number(low)} to {number(high)}"


def times(effect: Effect, fewer: str, more: str, same: str, *, around: bool = False) -> str:
    """Return a ratio of known median in words, turned over where it is below 1, with its interval where asked for.

    >>> slower = ratios("", [50.0], [100.0], budgets=(200, 200), threshold=1.5)
    >>> times(slower, "fewer steps", "more steps", "as many steps")
    '2 times more steps'
    """
    (low, high), (least, most) = effect.median, effect.interval()
    over = effect.value() < 1.0
    if over:
        (low, high), (least, most) = _turned_over(low, high), _turned_over(least, most)
    bound = "" if low == high else "at least " if math.isinf(high) else "at most " if low <= 0.0 else "between "
    if bound == "between ":
        words = f"between {number(low)} and {number(high)} times {more if over else fewer}"
    elif number(high if bound == "at most " else low) == "1":
        turned = {"at least ": "at most ", "at most ": "at least "}
        words = (bound if over else turned.get(bound, "")) + same
    else:
        words = f"{bound}{number(high if bound == 'at most ' else low)} times {more if over else fewer}"
    span = _range(least, most, 0.0) if around else ""
    return words + (f" ({span})" if span else "")


def _turned_over(low: float, high: float) -> tuple[float, float]:
    return 0.0 if math.isinf(high) else 1.0 / high, math.inf if low <= 0.0 else 1.0 / low


@dataclass(frozen=True)
class Finding:
    """What one claim found.

    Attributes:
        effects: Those that decide, and those reported beside them.
        numbers: Everything the picture is drawn from, as plain data.
        notes: Sentences a reader should not miss: what was seen, what it does not say.
        summary: The finding in one plain sentence with one number.
        skipped: Why the claim was not measured; "" if it was.
        check: Whether it is a check of the layer rather than a finding about the data.
    """

    effects: tuple[Effect, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    summary: str = ""
    skipped: str = ""
    check: bool = False

    def scheduled(self, schedule: tuple[int, ...], *, check: bool) -> "Finding":
        """Return the finding with the looks of its study, which the intervals depend on."""
        effects = (replace(e, schedule=schedule, check=check) for e in self.effects)
        return replace(self, effects=tuple(effects), check=check)

    @property
    def open(self) -> bool:
        """Whether more seeds could decide what is undecided."""
        return any(e.decides and not e.obstacle and e.verdict() == "undecided" for e in self.effects)

    def parts(self) -> dict[str, Verdict]:
        """Return the verdict of each part: what its deciding effects agree on."""
        names = dict.fromkeys(e.part for e in self.effects if e.decides)
        return {part: agreed(e.verdict() for e in self.effects if e.decides and e.part == part) for part in names}

    def verdict(self) -> Verdict:
        """Return the verdict that all parts share; "mixed" where they have different ones."""
        if self.skipped:
            return "not measured"
        verdicts = set(self.parts().values()) or {"undecided"}
        if self.check:
            return "passes" if verdicts == {"holds"} else "undecided" if verdicts == {"undecided"} else "fails"
        return verdicts.pop() if len(verdicts) == 1 else "mixed"


def agreed(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict that all share; "mixed" where some hold and some do not, else "undecided".

    >>> agreed(["holds", "holds"]), agreed(["holds", "does not hold"]), agreed(["holds", "undecided"]), agreed([])
    ('holds', 'mixed', 'undecided', 'undecided')
    """
    different = set(verdicts)
    if len(different) == 1:
        return different.pop()
    return "mixed" if {"holds", "does not hold"} <= different or "mixed" in different else "undecided"


@dataclass(frozen=True)
class Claim:
    """A claim about batch normalization, and how it is tested. One file a claim.

    Attributes:
        id: As `--claims` names it.
        title: Three to five words.
        statement: The claim, one sentence.
        source: Who claims it: paper and section.
        method: How it is measured, a few sentences.
        measure: `(study) -> Finding`; reads the outcomes of its runs.
        picture: `(finding) -> matplotlib figure`; shows the effect at a glance.
        caption: What the picture shows, for those who read and those who cannot see it.
        runs: `(study) -> units`: the runs wanted as far as the outcomes so far tell, a unit of them trained together;
            asked again after they are trained, until it names nothing new.
        timed: `(finding, seconds of a step) -> effects` in seconds: reported, but kept apart from what the same seed
            must reproduce.
        sizes: `(study) -> batch sizes` whose steps `timed` wants the seconds of.
        own_model: Whether it can be measured on a model of the user's own.
        check: Whether it checks the layer: no data can make it fail, unless the layer is wrong.
        adds_seeds: Whether seeds are added where the first ones leave it undecided.
    """

    id: str
    title: str
    statement: str
    source: str
    method: str
    measure: Callable[[Any], Finding]
    picture: Callable[[Finding], Any]
    caption: str
    runs: Callable[[Any], Iterable[Sequence[Any]]] = lambda _: ()
    timed: Callable[[Finding, Mapping[str, float]], Sequence[Effect]] = lambda _finding, _seconds: ()
    sizes: Callable[[Any], Sequence[int]] = lambda _: ()
    own_model: bool = True
    check: bool = False
    adds_seeds: bool = True


def ratios(
    name: str, dividends: Sequence[float], divisors: Sequence[float], *, budgets: tuple[float, float],
    threshold: float, side: Side = "above", **more: Any,
) -> Effect:  # fmt: skip
    """Return the effect of steps ÷ steps seed by seed, where infinity stands for a run that has not arrived.

    Args:
        name: Of the effect.
        dividends: Steps of the one side.
        divisors: Steps of the other.
        budgets: The steps within which the runs of either side could arrive.
        threshold: Fixed before the run.
        side: Which side of it the claim needs.
        more: Further attributes of the effect.

    >>> ratios("", [100.0, math.inf, math.inf], [50.0, 50.0, math.inf], budgets=(1000, 1000), threshold=1.5).most
    (2.0, inf, inf)
    >>> ratios("", [100.0, math.inf, math.inf], [50.0, 50.0, math.inf], budgets=(1000, 1000), threshold=1.5).least
    (2.0, 20.0, 0.0)
    """
    bounds = [_ratio(a, b, budgets) for a, b in zip(dividends, divisors, strict=True)]
    least, most = tuple(low for low, _ in bounds), tuple(high for _, high in bounds)
    return Effect(name, least, most, threshold, side, unit="×", **more)


def _ratio(dividend: float, divisor: float, budgets: tuple[float, float]) -> tuple[float, float]:
    """Return the least and the most that a ratio can be; arriving at the start counts as arriving at step 1."""
    late, early = math.isinf(dividend), math.isinf(divisor)
    if late and early:
        return 0.0, math.inf
    if late:
        return budgets[0] / max(divisor, 1.0), math.inf
    if early:
        return 0.0, max(dividend, 1.0) / budgets[1]
    exact = max(dividend, 1.0) / max(divisor, 1.0)
    return exact, exact


def known(value: float, otherwise: float) -> float:
    """Return a value, or what stands for it where a run has diverged: the losing side, never silence."""
    return value if math.isfinite(value) else otherwise
