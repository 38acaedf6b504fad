"""Which batch size is best, and does the noise of the gradients tell?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchnorm.batch_size import decision, throughput
from batchnorm.batch_size.gradient_noise import NoiseScale
from batchnorm.batch_size.training import FIRST
from batchnorm.study import noise_probe, pictures
from batchnorm.study.data import split
from batchnorm.study.design import HALF_DECADE, Study
from batchnorm.study.findings import Claim, Effect, Finding, the
from batchnorm.study.timing import of_rows
from batchnorm.study.training import Spec
from batchnorm.study.tuning import Tuning, obstacles

FACTOR = 4.0  # the best size goes with the root of Bcrit: a factor of 4 moves it by 2
WORTH_HAVING = 1.5
SMALLEST = 4
VAST = 1e12
FEWEST_SIZES = 3
FEWEST_ARRIVALS = 3
PATIENCE = 2.0  # times the steps that the law allows a smaller size at most
ENOUGH = 1.5  # times the steps of the study's own size, for a larger one: the law allows it as many
LONGEST = 2  # times the network's own steps, for smaller sizes
BEYOND = 10.0  # times the sizes tried: farther away a fit says nothing
PROBE = f"{noise_probe.__name__}:probe"


def sizes(study: Study) -> list[int]:
    """Return the batch sizes to try: the study's own and powers of two times it; none where too few fit the rows."""
    base, rows = study.settings.batch_size, len(split(study.data, 0).train)
    powers = (-2, 0, 2) if study.settings.quick or study.settings.model else range(-2, 4)
    tried = {size for p in powers if SMALLEST <= (size := math.floor(base * 2.0**p + 0.5)) <= rows}
    return sorted(tried | {base}) if len(tried | {base}) >= FEWEST_SIZES else []


def runs(study: Study) -> list[list[Spec]]:
    """Every learning rate at the study's own size; three at each other size; and a short run that is watched."""
    if not sizes(study):
        return []
    base = study.tune("before")
    if not base.settled or not _arrives(study):
        return base.units
    units = [unit for size in sizes(study) for unit in _tune(study, size).units]
    return [*units, *study.units(_watched(study))]


def _arrives(study: Study) -> list[float]:
    """Return the steps at the study's own size; nothing if they are too few to compare with."""
    steps = study.arrivals(study.tune("before").outcomes)
    enough = sum(map(math.isfinite, steps)) >= FEWEST_ARRIVALS and math.isfinite(statistics.median(steps))
    return steps if enough else []


def _tune(study: Study, size: int) -> Tuning:
    """Return the runs at a size, at the best of three rates around the study's own best one times √(B'/B)."""
    base, settings = study.settings.batch_size, study.settings
    best = study.tune("before")
    if size == base:
        return best
    middle = round(math.log10(best.rate * math.sqrt(size / base)) / HALF_DECADE) * HALF_DECADE
    rates = settings.grid(middle - HALF_DECADE, middle + HALF_DECADE, HALF_DECADE)
    first = study.at(study.first)
    steps = math.ceil(statistics.median(_arrives(first)) * max(PATIENCE * base / size, ENOUGH))
    most = settings.short_steps * (LONGEST if size < base else 1)
    return study.tune("before", rates=rates, batch_size=size, steps=min(max(steps, FIRST), most))


def _watched(study: Study) -> Spec:
    """Return the run at the study's own size and best rate, watched until it arrives."""
    first = study.at(study.first)
    arrived = max(s for s in _arrives(first) if math.isfinite(s))
    steps = min(max(math.ceil(arrived), FIRST), study.settings.short_steps)
    return study.spec(placement="before", rate=study.tune("before").rate, steps=steps, probe=PROBE)


class Law(NamedTuple):
    """S(B) = Smin·(1 + Bcrit/B), fitted.

    Attributes:
        least: Smin.
        critical: Bcrit.
        end: Whether Bcrit lies at an end of what was searched: it may be farther away.
    """

    least: float
    critical: float
    end: bool


def fitted(steps: Mapping[int, float], critical: float | None = None) -> Law:
    """Fit the law of McCandlish et al. to steps in their relative error: least squares of the logarithm.

    Args:
        steps: By batch size, finite; at least two.
        critical: Bcrit, if it is known and only Smin is wanted.

    >>> law = fitted({b: 30 * (1 + 50 / b) for b in (8, 15, 30, 60, 120)})
    >>> round(law.least), round(law.critical), law.end
    (30, 50, False)
    """
    size, measured = np.array(list(steps), float), np.log(list(steps.values()))
    ends = size.min() / BEYOND, size.max() * BEYOND
    searched = np.geomspace(*ends, 2000) if critical is None else np.array([critical])
    left = measured - np.log1p(searched[:, None] / size)
    best = int(np.argmin(left.var(axis=1)))
    return Law(float(np.exp(left[best].mean())), float(searched[best]), best in (0, len(searched) - 1))


@dataclass(frozen=True)
class _Seed:
    """One seed: its steps by size, the law they follow, and the noise scale that was to predict it."""

    steps: dict[int, float]
    budgets: dict[int, int]
    noise: NoiseScale | None

    @property
    def counted(self) -> dict[int, float]:
        return {size: max(min(steps, self.budgets[size]), 1.0) for size, steps in self.steps.items()}

    @property
    def law(self) -> Law:
        return fitted(self.counted)

    def factor(self) -> tuple[float, float, float]:
        """Return how far Bcrit lies from its prediction, with the least and the most that can be; NaN if unknown."""
        late = sum(map(math.isinf, self.steps.values()))
        value = self.noise.value if self.noise else math.nan
        if len(self.steps) - late < FEWEST_SIZES or not 0.0 < value < math.inf:
            return math.nan, 0.0, math.inf
        law, at_least = self.law, self.noise is not None and self.noise.is_bound
        apart = math.exp(abs(math.log(law.critical / value)))
        farther = law.critical < value if at_least else min(self.steps) / BEYOND < value < max(self.steps) * BEYOND
        if not (late or at_least or law.end):
            return apart, apart, apart
        return apart, apart if farther and not late else 0.0, math.inf

    def against(self, constant: float) -> float:
        """Return the factor by which a constant is off, divided by that of the noise; NaN where either is unknown."""
        apart, least, most = self.factor()
        if not least == most == apart:
            return math.nan
        return math.exp(abs(math.log(self.law.critical / constant))) / apart


def measure(study: Study) -> Finding:
    """Fit the steps of each seed by size, and compare with what the gradient noise says."""
    tried = sizes(study)
    if not tried:
        rows = len(split(study.data, 0).train)
        return Finding(skipped=f"{rows} rows to train on are too few to compare {FEWEST_SIZES} batch sizes")
    if not _arrives(study):
        return Finding(
            effects=_effects([], study.settings.batch_size, ""),
            numbers={"steps": {}},
            summary=f"In batches of {study.settings.batch_size} too few seeds reach the goal within the steps.",
        )
    tunings = {size: _tune(study, size) for size in tried}
    steps = {size: study.arrivals(tuning.outcomes) for size, tuning in tunings.items()}
    budgets = {size: tuning.budget for size, tuning in tunings.items()}
    seeds = [
        _Seed(
            {size: of_size[i] for size, of_size in steps.items()},
            budgets,
            noise_probe.predicted(s.rate, study.lab[s].probed),
        )
        for i, s in enumerate(study.seeds(_watched(study)))
    ]
    obstacle = obstacles({f"in batches of {size}": tuning for size, tuning in tunings.items()})
    return Finding(
        effects=_effects(seeds, study.settings.batch_size, obstacle),
        numbers={
            "network": study.named(study.main),
            "steps": {str(size): of_size for size, of_size in steps.items()},
            "budgets": {str(size): budget for size, budget in budgets.items()},
            "rates": {str(size): tuning.rate for size, tuning in tunings.items()},
            "predicted": [s.noise.value if s.noise else math.nan for s in seeds],
            "predicted is a bound": [s.noise is not None and s.noise.is_bound for s in seeds],
            "fitted": [s.law.critical for s in seeds],
        },
        summary=_summary(study, seeds),
        notes=(
            f"The null model is a constant: {study.settings.batch_size}, the study's own batch size, taken for the "
            "critical one whatever the data.",
            "Tested is the critical batch size, up to which larger batches save steps; which size takes the fewest "
            "seconds also depends on the machine, and `batchnorm batch-size` answers that.",
        ),
    )


def _summary(study: Study, seeds: Sequence[_Seed]) -> str:
    said, fitted_sizes = ([getattr(s.noise, "value", math.nan) for s in seeds], [s.law.critical for s in seeds])
    return (
        f"In {the(study.named(study.main))}, larger batches save steps nearly in proportion up to about "
        f"{_range(fitted_sizes)}, by the steps counted; the noise of the gradients predicts {_range(said)}."
    )


def _range(values: Sequence[float]) -> str:
    finite = sorted(v for v in values if math.isfinite(v))
    if not finite:
        return "an unknown size"
    return f"{statistics.median(finite):.0f} ({finite[0]:.0f} to {finite[-1]:.0f} over seeds)"


def _effects(seeds: Sequence[_Seed], constant: int, obstacle: str) -> tuple[Effect, ...]:
    factors = [seed.factor() for seed in seeds]
    better = [seed.against(constant) for seed in seeds]
    of_constant = [math.exp(abs(math.log(seed.law.critical / constant))) for seed in seeds]
    part, other = "within a factor of 4", "better than a constant"
    name = "critical batch size, fitted to the steps against predicted by the noise: the factor between them"
    beside = f"the factor between the fitted size and a constant of {constant}"
    least, most = (tuple(f[i] for f in factors) for i in (1, 2))
    better_name = f"factor of a constant of {constant} ÷ factor of the noise"
    return (
        Effect(name, least, most, FACTOR, "below", part, unit="×", obstacle=obstacle),
        Effect.of(better_name, better, 1.0, part=other, unit="×", obstacle=obstacle),
        Effect.of(beside, of_constant, FACTOR, "below", part=other, decides=False, unit="×"),
    )


def timed(finding: Finding, step_seconds: Mapping[str, float]) -> list[Effect]:
    """Compare the seconds at the size that the noise and the time of a step advise with those at the best one."""
    steps = {int(size): of_size for size, of_size in finding.numbers["steps"].items()}
    if not steps:
        return []
    speed = throughput.fit({size: [step_seconds[of_rows(size)]] for size in steps})
    tried, budgets = sorted(steps), finding.numbers["budgets"]
    least: list[float] = []
    most: list[float] = []
    for i, critical in enumerate(finding.numbers["predicted"]):
        arrived = [of_size[i] * speed.least(size) for size, of_size in steps.items() if math.isfinite(of_size[i])]
        if math.isnan(critical) or not arrived:
            least, most = [*least, 0.0], [*most, math.inf]
            continue
        where = decision.plateau(min(critical, VAST), speed, tried[0], tried[-1])
        size = decision.pick(where.low, where.high, tried)
        seconds = min(steps[size][i], budgets[str(size)]) * speed.least(size) / min(arrived)
        least, most = [*least, seconds], [*most, math.inf if math.isinf(steps[size][i]) else seconds]
    name = "seconds to the goal, at the size advised ÷ at the best one tried"
    part = "within a factor of 4"
    return [Effect(name, tuple(least), tuple(most), WORTH_HAVING, "below", part, decides=False, unit="×")]


def picture(finding: Finding) -> Figure:
    """Draw steps against batch size, the law fitted and predicted, and where Bcrit lies."""
    made, (axes,) = pictures.figure(height=3.6)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="steps to the goal")
    n = finding.numbers
    counted = {int(b): sorted(max(min(s, n["budgets"][b]), 1.0) for s in of_size) for b, of_size in n["steps"].items()}
    if not counted:
        return made
    sizes, colour = list(counted), pictures.NORMALISED
    low, high = ([s[i] for s in counted.values()] for i in (0, -1))
    axes.fill_between(sizes, low, high, color=colour, alpha=0.18, linewidth=0)
    middle = {size: statistics.median(s) for size, s in counted.items()}
    axes.plot(sizes, list(middle.values()), color=colour, marker="s", markersize=4, linestyle="", label="measured")
    _draw_law(axes, middle, n["fitted"], name="fitted", line=Line(colour, "-", 3.0, 0.12))
    _draw_law(axes, middle, n["predicted"], name="predicted by the noise", line=Line(pictures.OTHER, "--", 1.5, 0.05))
    axes.set(xlim=(sizes[0] / 1.2, sizes[-1] * 1.2), ylim=(min(low) / 2.2, max(high) * 2.2))
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    round_numbers = [float(f"{d}e{e}") for e in range(6) for d in (1, 2, 5)]
    ticks = [y for y in round_numbers if min(low) / 2 <= y <= 2 * max(high)]
    axes.set_yticks(ticks, [f"{y:,g}" for y in ticks], minor=False)
    axes.minorticks_off()
    axes.legend(loc="upper right")
    return made


class Line(NamedTuple):
    """How a law is drawn: its line, and how high above the axis its Bcrit is."""

    colour: str
    style: str
    width: float
    height: float


def _draw_law(axes: Axes, steps: Mapping[int, float], criticals: Sequence[float], *, name: str, line: Line) -> None:
    """Draw the law with the median Bcrit; and above the axis that Bcrit, with its range over seeds."""
    known = [c for c in criticals if math.isfinite(c)]
    if not known:
        return
    law = fitted(steps, statistics.median(known))
    at = np.geomspace(min(steps), max(steps), 50)
    look: dict[str, Any] = {"color": line.colour, "linestyle": line.style, "linewidth": line.width}
    axes.plot(at, law.least * (1.0 + law.critical / at), **look, label=f"{name}, Bcrit {law.critical:.2g}")
    where = axes.get_xaxis_transform()
    axes.plot([min(known), max(known)], [line.height] * 2, **look, transform=where)
    axes.plot(law.critical, line.height, color=line.colour, marker="D", markersize=6, transform=where)


CLAIM = Claim(
    id="batch-size",
    title="Noise tells the batch size",
    statement="The noise of the gradients tells the critical batch size, and better than a constant does.",
    source="McCandlish, Kaplan & Amodei 2018, section 2",
    method="The main network with batch normalization is trained at batch sizes that are powers of two apart, or of "
    "four, each at its own best of three learning rates: the best one of the study's own size times the root of the "
    "ratio of the sizes, and half a decade to either side. The steps to the goal should follow "
    "S(B) = Smin·(1 + Bcrit/B), which is fitted seed by seed. Beside it, Bcrit is predicted from one short run: "
    "tr Σ/|G|², the noise of the gradients over groups of rows, at 0, 8, 16, 32, … steps; the median, weighed by how "
    "far the training loss fell. Compared is by what factor the two are apart; one of 4 would move the fastest size, "
    "which goes with the root, by 2. And the same factor of a constant, the study's own batch size, is divided by it.",
    caption="Steps to the goal at each batch size: median, and range over seeds; and S(B) = Smin·(1 + Bcrit/B) with "
    "Bcrit fitted to the steps, and with Bcrit predicted by the noise of the gradients. Below, the diamonds stand at "
    "Bcrit: median, and range over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    timed=timed,
    sizes=sizes,
)
