"""Before or after the activation: which is better here?"""

from typing import Any

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import draw_curve, draw_goal, median_curve
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, number, ratios, the
from batchnorm.study.networks import Placement
from batchnorm.study.training import Spec
from batchnorm.study.tuning import obstacles

PLACES: tuple[Placement, ...] = ("before", "after")


def runs(study: Study) -> list[list[Spec]]:
    """Every learning rate, before and after each activation."""
    if study.settings.model and study.own_normalizes:
        return []
    return [unit for network in study.networks for place in PLACES for unit in study.tune(place, network).units]


def measure(study: Study) -> Finding:
    """Compare steps and best scores, each placement at its own best rate."""
    if study.settings.model and study.own_normalizes:
        return Finding(skipped="the model has batch normalization of its own, or no activation modules to put it after")
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"score": study.metric.name, "goal": study.goal(), "curves": {}, "rates": {}}
    for network in study.networks:
        sides = {place: study.tune(place, network) for place in PLACES}
        steps = {place: study.arrivals(tuning.outcomes) for place, tuning in sides.items()}
        budgets = (sides["after"].budget, sides["before"].budget)
        part = study.named(network)
        obstacle = obstacles({f"{place} it": tuning for place, tuning in sides.items()})
        more: dict[str, Any] = {"budgets": budgets, "threshold": 1.0, "part": part, "obstacle": obstacle}
        effects.append(ratios("steps to the goal, after ÷ before", steps["after"], steps["before"], **more))
        gains = [
            study.metric.factor * (b.peak()[1] - a.peak()[1])
            for a, b in zip(sides["after"].outcomes, sides["before"].outcomes, strict=True)
        ]
        name = f"best test {study.metric.name}, before − after"
        effects.append(Effect.of(name, gains, 0.0, part=part, decides=False, unit=study.metric.unit))
        numbers["curves"][part] = {place: median_curve(tuning.outcomes) for place, tuning in sides.items()}
        numbers["rates"][part] = {place: tuning.rate for place, tuning in sides.items()}
    return Finding(effects=tuple(effects), numbers=numbers, summary=_summary([e for e in effects if e.decides]))


def _summary(effects: list[Effect]) -> str:
    words = {"holds": "before the activation is faster", "does not hold": "after the activation is faster"}
    sentences = [
        f"in {the(e.part)}, {words.get(e.verdict(), 'neither place is clearly faster')} "
        f"(steps after ÷ before: {e.headline()})"
        for e in effects
    ]
    text = "; ".join(sentences) + "."
    return text[0].upper() + text[1:]


def picture(finding: Finding) -> Figure:
    """Draw score against step for both placements, a panel a network."""
    curves = finding.numbers["curves"]
    figure, panels = pictures.figure(len(curves), share_y=True)
    labels = {"before": ("before", pictures.NORMALISED), "after": ("after", pictures.OTHER)}
    effects = {e.part: e for e in finding.effects if e.decides}
    for axes, (part, sides) in zip(panels, curves.items(), strict=True):
        for side, curve in sides.items():
            draw_curve(axes, curve, *labels[side])
        draw_goal(axes, finding.numbers["goal"])
        axes.set(xscale="log", title=f"{part}: steps after ÷ before {_ratio(effects[part])}")
    panels[-1].set_xlabel("training steps")
    panels[0].set_ylabel(f"test {finding.numbers['score']}")
    return figure


def _ratio(effect: Effect) -> str:
    return effect.headline() if effect.bound != "exact" else number(effect.value())


CLAIM = Claim(
    id="placement",
    title="Before the activation",
    statement="Batch normalization before the activation trains faster than after it.",
    source="Ioffe & Szegedy 2015, section 3.2, who place it before",
    method="The same network normalised before each activation, or after it, each at its own best learning rate from "
    "the same grid and within the same steps. Compared seed by seed are the steps to the goal, network by network.",
    caption="Test score while training with batch normalization before or after the activation: median, and range over "
    "seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
)
