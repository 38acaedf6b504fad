"""Before or after the activation: which is better here?"""

from typing import Any

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import draw_curve, draw_goal, median_curve, score
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, of_ratios, ratios
from batchnorm.study.training import Spec


def _activations(study: Study) -> tuple[str, ...]:
    return (study.activation,) if study.settings.model else ("sigmoid", "relu")


def _sweep(study: Study, placement: Any, activation: str) -> list[Spec]:
    """Share the runs of other claims where there are such; longer ones are compared as they stood at the budget."""
    shared = placement == "before" and activation != "relu"
    steps = study.settings.steps if shared else study.settings.short_steps
    return study.sweep(placement, activation=activation, steps=steps)


def runs(study: Study) -> list[Spec]:
    """Every learning rate, before and after each activation."""
    if study.settings.model and study.own_normalizes:
        return []
    return [s for a in _activations(study) for place in ("before", "after") for s in _sweep(study, place, a)]


def measure(study: Study) -> Finding:
    """Compare steps and final scores, each placement at its own best rate."""
    if study.settings.model and study.own_normalizes:
        return Finding(skipped="the model has batch normalization of its own, or no activation modules to put it after")
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"score": study.data.score_name, "goal": study.goal(), "curves": {}, "rates": {}}
    budget = study.settings.short_steps
    for activation in _activations(study):
        found = {place: study.best(_sweep(study, place, activation), until=budget) for place in ("before", "after")}
        needed = {place: study.steps(outcomes) for place, (_, outcomes) in found.items()}
        compared = ratios(needed["after"], needed["before"], budget)
        named = "your model" if activation == "own" else activation
        effects.append(of_ratios(f"{named}: steps to the goal, after ÷ before", compared, 1.0))
        pairs = list(zip(found["before"][1], found["after"][1], strict=True))
        last = max(set(pairs[0][0].steps) & set(pairs[0][1].steps))
        gaps = tuple(100 * (score(_at(b, last)) - score(_at(a, last))) for b, a in pairs)
        name = f"{named}: {study.data.score_name} after {last} steps, before − after"
        effects.append(Effect(name, gaps, 0.0, decides=False, unit=" points"))
        numbers["curves"][activation] = {place: median_curve(outcomes) for place, (_, outcomes) in found.items()}
        numbers["rates"][activation] = {place: rate for place, (rate, _) in found.items()}
    words = [f"{e.name.split(':')[0]} {e.interval()[0]:.2g}×" for e in effects if e.decides]
    return Finding(
        effects=tuple(effects),
        numbers=numbers,
        summary=f"Steps after the activation, as a multiple of those before it: {', '.join(words)}.",
        notes=("Above 1 the place before the activation is the faster one, below 1 the place after it.",),
    )


def _at(outcome: Any, step: int) -> float:
    """Return the test score at an evaluated step."""
    return outcome.test[outcome.steps.index(step)]


def picture(finding: Finding) -> Figure:
    """Draw score against step for both placements, a panel an activation."""
    curves = finding.numbers["curves"]
    made, panels = pictures.figure(len(curves), share_y=True)
    labels = {"before": ("before", pictures.NORMALISED), "after": ("after the activation", pictures.OTHER)}
    for axes, (activation, sides) in zip(panels, curves.items(), strict=True):
        for side, curve in sides.items():
            draw_curve(axes, curve, *labels[side])
        draw_goal(axes, finding.numbers["goal"])
        axes.set(xscale="log", xlabel="training steps", title="your model" if activation == "own" else activation)
    panels[0].set_ylabel(f"test {finding.numbers['score']}")
    panels[-1].legend(loc="lower right")
    return made


CLAIM = Claim(
    id="placement",
    statement="Batch normalization belongs before the activation, not after it.",
    source="Ioffe & Szegedy 2015, section 3.2; the lecture notes leave it open",
    method="The same network normalised before each activation, or after it, each at its own best learning rate from "
    "the same grid. Compared seed by seed: steps to the goal, and the score at the end of the shorter budget.",
    caption="Test score while training with batch normalization before or after the activation.",
    runs=runs,
    measure=measure,
    picture=picture,
)
