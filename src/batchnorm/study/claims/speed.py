"""Is training faster?"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import SIDES, draw_curve, draw_goal, median_curve
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, of_ratios, ratios
from batchnorm.study.training import Spec

WORTH_HAVING = 1.5


def runs(study: Study) -> list[Spec]:
    """Every learning rate without and with batch normalization."""
    return study.sweep("none") + study.sweep("before")


def measure(study: Study) -> Finding:
    """Compare the steps each side needs at its own best rate."""
    sides = {placement: study.best(study.sweep(placement)) for placement in ("none", "before")}
    effects: list[Effect] = []
    steps: dict[str, Any] = {}
    goals = {level: study.goal(level=level) for level in ("easy", "hard")}
    for level, goal in goals.items():
        needed = {side: study.steps(outcomes, level=level) for side, (_, outcomes) in sides.items()}
        found = ratios(needed["none"], needed["before"], study.settings.steps)
        name = f"steps to {study.data.score_name} {goal:.3g}, without ÷ with"
        effects.append(of_ratios(name, found, WORTH_HAVING, decides=level == "hard"))
        steps[level] = needed
    ratio, low, high = effects[-1].interval()
    return Finding(
        effects=tuple(effects),
        numbers={
            "rates": {side: rate for side, (rate, _) in sides.items()},
            "curves": {side: median_curve(outcomes) for side, (_, outcomes) in sides.items()},
            "steps": steps,
            "goals": list(goals.values()),
            "score": study.data.score_name,
        },
        summary="Too few seeds reached the goal within the budget on either side."
        if math.isnan(ratio)
        else "Steps to the goal without batch normalization, divided by steps with it, each at its best learning rate: "
        f"{'a bound of ' if effects[-1].bounded else ''}{ratio:.2g}, {low:.2g} to {high:.2g} over seeds.",
        notes=(f"Best learning rates: {sides['none'][0]:g} without, {sides['before'][0]:g} with.",),
    )


def timed(finding: Finding, step_seconds: Mapping[str, float]) -> list[Effect]:
    """Turn ratios of steps into ratios of seconds, by the measured time of one step on either side."""
    cost = step_seconds["before"] / step_seconds["none"]

    def scaled(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return values and tuple(value / cost for value in values)

    return [
        replace(
            effect, name=effect.name.replace("steps", "seconds"), samples=scaled(effect.samples) or (),
            least=scaled(effect.least), most=scaled(effect.most), threshold=1.0, decides=False,
        )
        for effect in finding.effects
    ]  # fmt: skip


def picture(finding: Finding) -> Figure:
    """Draw score against step for both sides, every seed within the band."""
    made, (axes,) = pictures.figure()
    for side, curve in finding.numbers["curves"].items():
        label, colour, _ = SIDES[side]
        draw_curve(axes, curve, label, colour)
    draw_goal(axes, *finding.numbers["goals"])
    axes.set(xscale="log", xlabel="training steps", ylabel=f"test {finding.numbers['score']}")
    axes.legend(loc="lower right")
    return made


CLAIM = Claim(
    id="speed",
    statement="Training is faster with batch normalization.",
    source="Ioffe & Szegedy 2015, section 4.2",
    method="The same network with and without batch normalization, the same number of parameters, the same weights at "
    "the start and the same order of the data, each at the learning rate of the grid that reaches the goal first on "
    "validation data. Counted: the steps until the test score first reaches the goal.",
    caption="Test score while training, each side at its best learning rate: median, and range over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    timed=timed,
)
