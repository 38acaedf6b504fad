"""What else would do: is batch normalization faster than what stands in for it today?"""

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.claims.speed import arrived
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, ratios
from batchnorm.study.networks import Norm, Placement
from batchnorm.study.training import Spec
from batchnorm.study.tuning import Tuning

RATES = 3
OWN = "batch normalization"
ALTERNATIVES: dict[Norm, tuple[str, Placement]] = {
    "layer": ("layer normalization", "before"),
    "group": ("group normalization", "before"),
    "tanh": ("dynamic tanh", "before"),
    "init": ("initialization from data", "none"),
}


def rates(study: Study) -> list[float]:
    """Return the learning rates that every side is tried at: the highest of the study's own grid, to start with."""
    return study.rates(study.main)[-RATES:]


def tunings(study: Study) -> dict[Norm, Tuning]:
    """Return batch normalization and each alternative at its best rate, as far as they have been trained."""
    grid = rates(study)
    sides: dict[Norm, Tuning] = {"batch": study.tune("before", rates=grid)}
    for norm, (_, side) in ALTERNATIVES.items():
        sides[norm] = study.tune(side, rates=grid, norm=norm)
    return sides


def runs(study: Study) -> list[list[Spec]]:
    """Every learning rate of the grid with batch normalization and with each alternative."""
    grid = set(study.sweep("before").unit(study))  # batch normalization is trained as a part of it
    units = [unit for tuning in tunings(study).values() for unit in tuning.units]
    return [unit for unit in units if set(unit) == grid or not set(unit) <= grid]


def measure(study: Study) -> Finding:
    """Compare the steps that each alternative needs with those of batch normalization, each at its own best rate."""
    sides = tunings(study)
    batch, metric = sides["batch"], study.metric
    own_steps, own_best = study.arrivals(batch.outcomes), [o.peak()[1] for o in batch.outcomes]
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"goal": study.goal(), "score": metric.name, "rates": {}, "steps": {"batch": own_steps}}
    for norm, (name, _) in ALTERNATIVES.items():
        tuning = sides[norm]
        steps = study.arrivals(tuning.outcomes)
        obstacles = {name: tuning.obstacle, OWN: batch.obstacle}
        obstacle = " and ".join(f"with {side}, {text}" for side, text in obstacles.items() if text)
        budgets = (tuning.budget, batch.budget)
        compared = "steps to the goal, alternative ÷ batch normalization"
        effects.append(ratios(compared, steps, own_steps, budgets=budgets, threshold=1.0, part=name, obstacle=obstacle))
        gains = [metric.factor * (a - o.peak()[1]) for a, o in zip(own_best, tuning.outcomes, strict=True)]
        compared = f"best test {metric.name}, batch normalization − alternative"
        effects.append(Effect.of(compared, gains, 0.0, part=name, decides=False, unit=metric.unit))
        numbers["steps"][norm] = steps
    numbers["rates"] = {norm: tuning.rate for norm, tuning in sides.items()}
    deciding = [e for e in effects if e.decides]
    return Finding(
        effects=tuple(effects), numbers=numbers, summary=_summary(deciding), notes=tuple(_notes(sides, numbers))
    )


def _summary(effects: list[Effect]) -> str:
    known = [e for e in effects if math.isfinite(e.value())]
    if not known:
        return "Neither batch normalization nor an alternative reaches the goal in enough seeds to compare them."
    nearest = min(known, key=Effect.value)
    return f"The fastest alternative, {nearest.part}, takes {nearest.headline()} the steps of batch normalization."


def _notes(sides: dict[Norm, Tuning], numbers: dict[str, Any]) -> list[str]:
    """Return how many seeds arrive with each, and at which learning rate."""
    words = [
        f"{arrived(numbers['steps'][norm])} with {ALTERNATIVES[norm][0] if norm in ALTERNATIVES else OWN} (learning "
        f"rate {side.rate:g}, {side.budget:,} steps)"
        for norm, side in sides.items()
    ]
    text = ", ".join(words) + "."
    return [
        text[0].upper() + text[1:],
        "Initialization from data trains no more parameters than batch normalization, and normalises nothing: each "
        "unit starts with zero mean and unit variance on the first batch. Dynamic tanh has one more parameter a layer.",
    ]


def picture(finding: Finding) -> Figure:
    """Draw the ratio of steps for each alternative: seeds, median and interval; 1 is batch normalization."""
    effects = [e for e in finding.effects if e.decides]
    figure, (axes,) = pictures.figure()
    axes.set(xscale="log", ylim=(len(effects) - 0.5, -0.6), xlabel="steps, as a multiple of batch normalization")
    ends = [end for e in effects for end in (*e.least, *e.most, 1.0) if math.isfinite(end) and end > 0.0]
    left, right = min(ends) / 1.6, max(ends) * 2.6
    axes.set_xlim(left, right)
    axes.axvline(1.0, color=pictures.INK, linewidth=1.0, linestyle=":")
    for y, effect in enumerate(effects):
        _row(axes, y, effect, (left, right))
    axes.set_yticks(range(len(effects)), [textwrap.fill(e.part, 16) for e in effects])
    axes.grid(visible=False, axis="y")
    pictures.headline(figure, finding.summary.removesuffix("."))
    return figure


def _row(axes: Axes, y: int, effect: Effect, limits: tuple[float, float]) -> None:
    """Draw an alternative: seeds as dots, those that never arrive as arrows, and the interval of the median."""
    left, right = limits
    for least, most in zip(effect.least, effect.most, strict=True):
        marker = "o" if least == most else ">" if least > 0.0 else "<" if math.isfinite(most) else ""
        axes.plot(
            [least if least > 0.0 else most], [y - 0.18], color=pictures.OTHER, marker=marker, markersize=5, alpha=0.6
        )
    low, high = effect.interval()
    axes.plot(
        [max(low, left), min(high, right)], [y, y], color=pictures.NORMALISED, linewidth=3.0, solid_capstyle="butt"
    )
    value = effect.value()
    if math.isfinite(value):
        axes.plot([value], [y], color=pictures.NORMALISED, marker="D", markersize=7)
    axes.text(right, y, effect.headline(), ha="right", va="center", color=pictures.INK)


CLAIM = Claim(
    id="alternatives",
    title="What else would do",
    statement="Batch normalization trains faster than what else would do: layer and group normalization, dynamic tanh, "
    "and initialization from data without normalization.",
    source="Ba, Kiros & Hinton 2016; Wu & He 2018; Zhu et al. 2025; Salimans & Kingma 2016, section 3; Mishkin & Matas "
    "2016",
    method="The main network with batch normalization, and with each alternative in its place: the same weights at the "
    "start, the same order of the data, the same steps, each side at its own best learning rate from the same grid. "
    "Compared seed by seed are the steps to the goal; the best score stands beside.",
    caption="Steps to the goal as a multiple of those with batch normalization, on a logarithmic scale: each seed as a "
    "dot (an arrow where it is a bound, as one side never arrives), the median as a diamond and its 95 % interval as a "
    "bar. To the right of the dotted line batch normalization is faster.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
)
