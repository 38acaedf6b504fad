"""Does data on one scale train faster, and does batch normalization as first layer do the same?"""

from typing import Any, NamedTuple

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import draw_curve, draw_goal, median_curve
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, ratios
from batchnorm.study.networks import Placement
from batchnorm.study.scores import METRICS
from batchnorm.study.training import Spec
from batchnorm.study.tuning import Sweep, Tuning, obstacles

WORTH_HAVING = 1.5
AS_GOOD = 1.5


class Inputs(NamedTuple):
    """A way to present the inputs: their scaling, and where batch normalization is."""

    scaling: str
    placement: Placement


WAYS = {
    "raw": Inputs("raw", "none"),
    "min-max": Inputs("minmax", "none"),
    "standard": Inputs("standard", "none"),
    "batch normalization first": Inputs("raw", "first"),
}
COLOURS = dict(zip(WAYS, (pictures.PLAIN, pictures.OTHER, pictures.FOURTH, pictures.NORMALISED), strict=True))


def _key(study: Study) -> str:
    """Return the dataset to measure on: the study's own, or beside the digits a table whose scales differ."""
    return "scales" if "scales" in study.datasets else "main"


def _choices(study: Study, way: Inputs) -> dict[str, Any]:
    # Raw features in the thousands need rates that far below the usual.
    rates = study.settings.grid(-6.0 + study.shift, 0.0 + study.shift, stride=1.0)
    return {"data": _key(study), "scaling": way.scaling, "rates": rates, "steps": study.settings.short_steps // 2}


def _core(study: Study) -> tuple[Sweep, ...]:
    return tuple(study.sweep(way.placement, **_choices(study, way)) for way in WAYS.values())


def _tune(study: Study, name: str) -> Tuning:
    way = WAYS[name]
    return study.tune(way.placement, core=_core(study), **_choices(study, way))


def runs(study: Study) -> list[list[Spec]]:
    """Every way to present the inputs, at every learning rate."""
    return [unit for name in WAYS for unit in _tune(study, name).units]


def measure(study: Study) -> Finding:
    """Compare the steps to the goal, each way at its own best rate."""
    key, core = _key(study), _core(study)
    tunings = {name: _tune(study, name) for name in WAYS}
    steps = {name: study.arrivals(t.outcomes, data=key, core=core) for name, t in tunings.items()}

    def compared(part: str, one: str, other: str, threshold: float, side: Any) -> Effect:
        obstacle = obstacles({f"for {name} inputs": tunings[name] for name in (one, other)})
        budgets = tunings[one].budget, tunings[other].budget
        name = f"steps to the goal, {one} ÷ {other}"
        more: dict[str, Any] = {"budgets": budgets, "threshold": threshold, "side": side, "part": part}
        return ratios(name, steps[one], steps[other], obstacle=obstacle, **more)

    standard = compared("standardised inputs", "raw", "standard", WORTH_HAVING, "above")
    data = study.datasets[key]
    return Finding(
        effects=(
            standard,
            compared("min-max inputs", "raw", "min-max", WORTH_HAVING, "above"),
            compared("batch normalization first", "batch normalization first", "standard", AS_GOOD, "below"),
        ),
        numbers={
            "data": data.name,
            "goal": study.goal("goal", key, core),
            "score": data.metric,
            "rates": {name: tuning.rate for name, tuning in tunings.items()},
            "steps": steps,
            "curves": {name: median_curve(tuning.outcomes) for name, tuning in tunings.items()},
        },
        summary=f"On {data.name}, raw inputs take {standard.headline()} the steps of standardised ones.",
        notes=(
            f"Measured on {data.name}: {data.source}.",
            "No other layer of these networks is normalised.",
        ),
    )  # fmt: skip


def picture(finding: Finding) -> Figure:
    """Draw score against step for each way to present the inputs."""
    figure, (axes,) = pictures.figure()
    for name, curve in finding.numbers["curves"].items():
        draw_curve(axes, curve, name, COLOURS[name])
    draw_goal(axes, finding.numbers["goal"])
    axes.set(xscale="log", xlabel="training steps", ylabel=f"test {METRICS[finding.numbers['score']].name}")
    axes.set_title(f"raw ÷ standardised: {finding.effects[0].headline()} the steps")
    return figure


CLAIM = Claim(
    id="input-scaling",
    title="Inputs on one scale",
    statement="Inputs on one scale train faster than raw inputs, and batch normalization as first layer does the same.",
    source="LeCun, Bottou, Orr & Müller 1998, Efficient BackProp, section 4.3; Ioffe & Szegedy 2015, section 2",
    method="The main network without batch normalization on inputs as they come, scaled to [0, 1], or standardised "
    "(both learned from the training rows), or as they come behind a batch normalization without γ and β whose running "
    "statistics are the average of all batches. Each at its own best learning rate from the same grid. The digits, "
    "whose features share a scale, make way for the breast cancer table, whose do not.",
    caption="Test score while training, by how the inputs are presented, each at its best learning rate.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
)
