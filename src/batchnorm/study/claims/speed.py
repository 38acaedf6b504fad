"""Is training faster?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import SIDES, draw_curve, draw_goal, median_curve
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, number, ratios, the, times
from batchnorm.study.training import Spec
from batchnorm.study.tuning import Tuning, obstacles

WORTH_HAVING = 1.5
STEPS = "steps to the {level}, without ÷ with"


def runs(study: Study) -> list[list[Spec]]:
    """Every learning rate without and with batch normalization, in each network."""
    return [unit for network in study.networks for side in SIDES for unit in study.tune(side, network).units]


def measure(study: Study) -> Finding:
    """Compare the steps that each side needs at its own best rate."""
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"networks": {}, "goal": study.goal(), "guess": study.guess, "score": study.metric.name}
    for network in study.networks:
        sides = {side: study.tune(side, network) for side in SIDES}
        effects += _effects(study, study.named(network), sides)
        numbers["networks"][network] = {
            "name": study.named(network),
            "rates": {side: tuning.rate for side, tuning in sides.items()},
            "budgets": {side: tuning.budget for side, tuning in sides.items()},
            "curves": {side: median_curve(tuning.outcomes) for side, tuning in sides.items()},
            "steps": {side: study.arrivals(tuning.outcomes) for side, tuning in sides.items()},
            "near": {side: study.arrivals(tuning.outcomes, "near") for side, tuning in sides.items()},
        }
    return Finding(
        effects=tuple(effects),
        numbers=numbers,
        summary=_summary(study, effects[0]),
        notes=tuple(_note(study, network) for network in numbers["networks"].values()),
    )


def _summary(study: Study, effect: Effect) -> str:
    goal = study.goal()
    if math.isinf(goal):
        return f"No run learns to predict better than guessing, which scores {study.metric.name} {number(study.guess)}."
    if effect.bound == "unknown":
        return f"In {the(effect.part)}, too few seeds arrive at {study.metric.name} {number(goal)} to compare steps."
    return f"In {the(effect.part)}, batch normalization takes {_times(effect)} to {study.metric.name} {number(goal)}."


def _effects(study: Study, part: str, sides: Mapping[str, Tuning]) -> list[Effect]:
    budgets = (sides["none"].budget, sides["before"].budget)
    obstacle = obstacles({f"{word} it": sides[side] for side, (word, *_) in SIDES.items()})
    effects: list[Effect] = []
    for level, decides in (("goal", True), ("near", False)):
        steps = [study.arrivals(sides[side].outcomes, level) for side in ("none", "before")]
        name = STEPS.format(level="goal" if level == "goal" else "score near the goal")
        more: dict[str, Any] = {"part": part, "decides": decides, "obstacle": obstacle}
        effects.append(ratios(name, *steps, budgets=budgets, threshold=WORTH_HAVING, **more))
    without, with_it = (study.shares(sides[side].outcomes) for side in ("none", "before"))
    gains = (100 * (b - a) for a, b in zip(without, with_it, strict=True))
    name = "mean share of the way to the best score, over steps on a logarithmic scale, with − without"
    effects.append(Effect.of(name, gains, 0.0, part=part, decides=False, unit=" points"))
    return effects


def _times(effect: Effect) -> str:
    """Return a ratio of steps in words: "4.6 times fewer steps"."""
    if effect.bound == "unknown":
        return "an unknown number of steps"
    return times(effect, "fewer steps", "more steps", "as many steps")


def _note(study: Study, network: Mapping[str, Any]) -> str:
    """Return how many seeds arrived on each side, and at which learning rates."""
    words = [
        f"{arrived(network['steps'][side])} {word} it (learning rate {network['rates'][side]:g}, "
        f"{network['budgets'][side]:,} steps)"
        for side, (word, *_) in SIDES.items()
    ]
    return f"In {the(network['name'])}, " + ", ".join(words) + "."


def arrived(steps: Sequence[float]) -> str:
    """Return in words how many of the seeds arrived.

    >>> arrived([10.0, 20.0]), arrived([float("inf"), 20.0]), arrived([float("inf")])
    ('every seed arrives', '1 of 2 seeds arrives', 'no seed arrives')
    """
    count = sum(s < float("inf") for s in steps)
    every = {len(steps): "every seed arrives", 0: "no seed arrives"}
    return every.get(count, f"{count} of {len(steps)} seeds arrive{'s' if count == 1 else ''}")


def timed(finding: Finding, step_seconds: Mapping[str, float]) -> list[Effect]:
    """Turn ratios of steps into ratios of seconds, by the measured time of one step of the main network."""
    cost = step_seconds["before"] / step_seconds["none"]
    main = finding.effects[0].part

    def scaled(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(value / cost for value in values)

    return [
        replace(
            effect, name=effect.name.replace("steps", "seconds"), least=scaled(effect.least), most=scaled(effect.most),
            threshold=1.0, decides=False,
        )
        for effect in finding.effects
        if effect.part == main and effect.unit == "×"
    ]  # fmt: skip


def picture(finding: Finding) -> Figure:
    """Draw score against step for both sides, a panel a network."""
    networks = list(finding.numbers["networks"].values())
    figure, panels = pictures.figure(len(networks), share_y=True)
    effects = {e.part: e for e in finding.effects if e.decides}
    for axes, network in zip(panels, networks, strict=True):
        for side, curve in network["curves"].items():
            label, colour, _ = SIDES[side]
            draw_curve(axes, curve, label, colour)
        draw_goal(axes, finding.numbers["goal"])
        axes.set(xscale="log", title=f"{network['name']}: {_times(effects[network['name']])}")
    panels[-1].set_xlabel("training steps")
    panels[0].set_ylabel(f"test {finding.numbers['score']}")
    return figure


CLAIM = Claim(
    id="speed",
    title="Faster training",
    statement="Training takes fewer steps with batch normalization.",
    source="Ioffe & Szegedy 2015, section 4.2",
    method="The same network with and without batch normalization: the same weights at the start and the same order "
    "of the data, each side at the learning rate that is best on validation rows. Counted are the steps until the test "
    "score first reaches the goal; a run whose last score is below the goal has not arrived.",
    caption="Test score while training, each side at its best learning rate: median, and range over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    timed=timed,
)
