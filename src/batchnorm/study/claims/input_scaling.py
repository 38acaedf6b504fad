"""Does data on one scale train faster, and does batch normalization as first layer do the same?"""

import math
from typing import Any

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import draw_curve, draw_goal, median_curve
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, Ratios, of_ratios, ratios
from batchnorm.study.training import Spec

WORTH_HAVING = 1.5
AS_GOOD = 1.5
# name: (scaling of the input, placement of batch normalization)
INPUTS: dict[str, tuple[str, Any]] = {
    "raw": ("raw", "none"),
    "min-max": ("minmax", "none"),
    "standard": ("standard", "none"),
    "batch normalization first": ("raw", "first"),
}
COLOURS = dict(zip(INPUTS, (pictures.PLAIN, pictures.OTHER, pictures.FOURTH, pictures.NORMALISED), strict=True))


def _key(study: Study) -> str:
    """Return the dataset to measure on: the study's own, or beside the digits a table whose scales differ."""
    return "scales" if "scales" in study.datasets else "main"


def _steps(study: Study) -> int:
    return study.settings.short_steps // 2


def _sweep(study: Study, inputs: str) -> list[Spec]:
    scaling, placement = INPUTS[inputs]
    # Raw features in the thousands need rates that far below the usual.
    rates = study.settings.grid(-6.0 + study.shift, 0.0 + study.shift, stride=1.0)
    steps = _steps(study)
    return study.sweep(placement, rates, data=_key(study), scaling=scaling, steps=steps, activation="relu")


def runs(study: Study) -> list[Spec]:
    """Every way to present the input, at every learning rate."""
    return [s for inputs in INPUTS for s in _sweep(study, inputs)]


def measure(study: Study) -> Finding:
    """Compare the steps to the goal, each input at its own best rate."""
    key, budget = _key(study), _steps(study)
    found = {inputs: study.best(_sweep(study, inputs), "easy") for inputs in INPUTS}
    needed = {inputs: study.steps(outcomes, key, "easy") for inputs, (_, outcomes) in found.items()}
    raw = ratios(needed["raw"], needed["standard"], budget)
    first = ratios(needed["batch normalization first"], needed["standard"], budget)
    minmax = ratios(needed["raw"], needed["min-max"], budget)
    data = study.datasets[key]
    return Finding(
        effects=(
            of_ratios("steps to the goal, raw ÷ standard", raw, WORTH_HAVING),
            of_ratios("steps to the goal, batch normalization first ÷ standard", first, AS_GOOD, "below"),
            of_ratios("steps to the goal, raw ÷ min-max", minmax, WORTH_HAVING, decides=False),
        ),
        numbers={
            "data": data.name,
            "goal": study.goal(key, "easy"),
            "score": data.score_name,
            "rates": {inputs: rate for inputs, (rate, _) in found.items()},
            "steps": needed,
            "curves": {inputs: median_curve(outcomes) for inputs, (_, outcomes) in found.items()},
        },
        summary=f"On {data.name}, steps to the goal as a multiple of those with standardised inputs: "
        f"{_times(raw)} with raw ones, {_times(first)} with raw ones behind batch "
        "normalization.",
        notes=(f"Measured on {data.name}: {data.source}.", "No other layer of these networks is normalised."),
    )  # fmt: skip


def _times(found: Ratios) -> str:
    value = Effect("", found.samples, 0.0).interval()[0]
    return "unknown" if math.isnan(value) else f"{value:.2g}{' (a bound: some never arrived)' if found.bounded else ''}"


def picture(finding: Finding) -> Figure:
    """Draw score against step for each way to present the input."""
    made, (axes,) = pictures.figure()
    for inputs, curve in finding.numbers["curves"].items():
        draw_curve(axes, curve, inputs, COLOURS[inputs])
    draw_goal(axes, finding.numbers["goal"])
    axes.set(xscale="log", xlabel="training steps", ylabel=f"test {finding.numbers['score']}")
    axes.legend(loc="lower right")
    return made


CLAIM = Claim(
    id="input-scaling",
    statement="Data on one scale trains faster than raw data, and batch normalization as first layer does the same.",
    source="the lecture notes; LeCun et al. 1998, Efficient BackProp, section 4.3",
    method="The base network without batch normalization on inputs as they come, scaled to [0, 1], or standardised "
    "(both learned from the training rows), or as they come behind a batch normalization without γ and β whose running "
    "statistics are the average of all batches. Each at its own best learning rate from the same grid. The digits, "
    "whose features share a scale, make way for the breast cancer table, whose do not.",
    caption="Test score while training, by how the input is presented, each at its best learning rate.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
)
