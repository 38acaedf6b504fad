"""Do higher learning rates work, and a wider range of them?"""

import math
import operator

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.claims.speed import runs
from batchnorm.study.curves import draw_goal, draw_grid, score
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding

WIDER_BY = 0.5


def measure(study: Study) -> Finding:
    """Count the rates at which each seed ends at the goal."""
    goals, stride = study.goals(), study.settings.stride
    ends = {
        side: {
            rate: [score(o.test[-1]) for o in outcomes] for rate, outcomes in study.by_rate(study.sweep(side)).items()
        }
        for side in ("none", "before")
    }
    seeds = range(study.settings.seeds)
    usable = {
        side: [[r for r, end in by_rate.items() if end[i] >= goals[i]] for i in seeds] for side, by_rate in ends.items()
    }
    decades = {side: [stride * len(rates) for rates in lists] for side, lists in usable.items()}
    every = {
        side: [r for r, end in by_rate.items() if all(map(operator.ge, end, goals))] for side, by_rate in ends.items()
    }
    wider = tuple(b - a for a, b in zip(decades["none"], decades["before"], strict=True))
    higher = tuple(
        math.log10(max(b) / max(a)) if a and b else math.nan
        for a, b in zip(usable["none"], usable["before"], strict=True)
    )
    width = {side: stride * len(rates) for side, rates in every.items()}
    return Finding(
        effects=(
            Effect("range of usable learning rates, with − without", wider, WIDER_BY, unit=" decades"),
            Effect("highest usable learning rate, with against without", higher, 0.0, decides=False, unit=" decades"),
        ),
        numbers={
            "ends": {side: {f"{r:g}": end for r, end in by_rate.items()} for side, by_rate in ends.items()},
            "usable": every,
            "decades": width,
            "goal": study.goal(),
            "score": study.data.score_name,
        },
        summary=f"Every seed ends at {study.data.score_name} {study.goal():.3g} or better {_over(width['none'])} "
        f"without batch normalization, {_over(width['before'])} with it.",
        notes=(f"Counted on a grid: each usable rate stands for {stride:g} of a decade.",),
    )


def _over(decades: float) -> str:
    return f"over {decades:g} decades (powers of ten) of learning rate" if decades else "at no learning rate tried"


def picture(finding: Finding) -> Figure:
    """Draw the final score against the learning rate."""
    made, (axes,) = pictures.figure()
    draw_grid(axes, finding.numbers["ends"])
    draw_goal(axes, finding.numbers["goal"])
    axes.set(xlabel="learning rate", ylabel=f"final test {finding.numbers['score']}")
    axes.legend(loc="lower left")
    return made


CLAIM = Claim(
    id="learning-rate",
    statement="With batch normalization a wider range of learning rates works.",
    source="Ioffe & Szegedy 2015, sections 1 and 3.3",
    method="The runs of the claim on speed, at every learning rate of the grid. A rate is usable for a seed if the run "
    "ends at the goal or above; the range counts usable rates, a stride of the grid each.",
    caption="Final test score at each learning rate: median, and range over seeds. The dotted line is the goal.",
    runs=runs,
    measure=measure,
    picture=picture,
)
