"""Do higher learning rates work, and a wider range of them?"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import SIDES, draw_goal, draw_grid, score
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding
from batchnorm.study.training import Outcome, Spec
from batchnorm.study.tuning import Sweep
from batchnorm.study.usable import continued, range_effect, range_sentence, range_title, works

WIDER_BY = 0.5


def runs(study: Study) -> list[list[Spec]]:
    """The runs of the claim on speed, and rates beyond them as long as the last one works."""
    tunings = [(sweep, study.tune(sweep.spec.placement, sweep.spec.activation)) for sweep in study.core]
    units = [unit for _, tuning in tunings for unit in tuning.units]
    if all(tuning.settled for _, tuning in tunings):
        units += [
            sweep.at(study, rate)
            for sweep, tuning in tunings
            for rate in _rates(study, sweep)
            if rate not in tuning.by_rate
        ]
    return units


def _rates(study: Study, sweep: Sweep) -> list[float]:
    """Return the rates that are tried, the next one beyond them included where the last one still works."""
    rates = list(study.tune(sweep.spec.placement, sweep.spec.activation).by_rate)
    return continued(study, rates, partial(sweep.at, study), study.settings.stride)


def measure(study: Study) -> Finding:
    """Count the rates at which each seed ends at the goal."""
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"networks": {}, "goal": study.goal(), "score": study.metric.name}
    for network in study.networks:
        sweeps = {side: study.sweep(side, network) for side in SIDES}
        by_rate = {s: {r: study.outcomes(w.at(study, r)) for r in _rates(study, w)} for s, w in sweeps.items()}
        usable = {s: {r: works(study, w.at(study, r)) for r in by_rate[s]} for s, w in sweeps.items()}
        effects += _effects(study, study.named(network), usable)
        numbers["networks"][network] = {
            "name": study.named(network),
            "ends": {side: _ends(outcomes) for side, outcomes in by_rate.items()},
            "usable": {side: [r for r, ok in rates.items() if all(ok)] for side, rates in usable.items()},
        }
    return Finding(
        effects=tuple(effects),
        numbers=numbers,
        summary=range_sentence(effects[0], "learning rates"),
        notes=(
            f"Counted on a grid: each usable rate stands for {study.settings.stride:g} of a decade.",
            "A low rate may fail only because the steps are few: the highest rate that works, which stands beside, "
            "does not depend on that.",
        ),
    )


def _effects(study: Study, part: str, usable: Mapping[str, Mapping[float, Sequence[bool]]]) -> list[Effect]:
    name = "range of usable learning rates, with − without"
    stride = study.settings.stride
    highest = {
        side: [max((math.log10(r) for r, ok in rates.items() if ok[i]), default=math.nan) for i in range(study.first)]
        for side, rates in usable.items()
    }
    higher = (b - a for a, b in zip(highest["none"], highest["before"], strict=True))
    beside = "highest usable learning rate, with − without"
    return [
        range_effect(name, usable, stride=stride, threshold=WIDER_BY, part=part),
        Effect.of(beside, higher, 0.0, part=part, decides=False, unit=" decades"),
    ]


def _ends(by_rate: Mapping[float, Sequence[Outcome]]) -> dict[str, list[float]]:
    return {f"{rate:g}": [score(o.test[-1]) for o in outcomes] for rate, outcomes in by_rate.items()}


def picture(finding: Finding) -> Figure:
    """Draw the final score against the learning rate, a panel a network."""
    networks = list(finding.numbers["networks"].values())
    figure, panels = pictures.figure(len(networks), share_y=True)
    effects = {e.part: e for e in finding.effects if e.decides}
    for axes, network in zip(panels, networks, strict=True):
        draw_grid(axes, network["ends"])
        draw_goal(axes, finding.numbers["goal"])
        axes.set(title=f"{network['name']}: {range_title(effects[network['name']])}")
    panels[-1].set_xlabel("learning rate")
    panels[0].set_ylabel(f"final test {finding.numbers['score']}")
    return figure


CLAIM = Claim(
    id="learning-rate",
    title="Wider range of rates",
    statement="With batch normalization a wider range of learning rates works.",
    source="Ioffe & Szegedy 2015, sections 1 and 3.3",
    method="The runs of the claim on speed at every learning rate of the grid, which is continued as long as its last "
    "rate works. A rate works for a seed if the run ends at the goal within its steps; the range counts the rates that "
    "work, a stride of the grid each.",
    caption="Final test score at each learning rate: median, and range over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    adds_seeds=False,
)
