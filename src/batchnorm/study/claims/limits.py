"""Where batch normalization fails: in groups of two rows, and on few training rows. Negative results, as measured."""

import statistics
from collections.abc import Sequence
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchnorm.study import pictures, watched
from batchnorm.study.claims.regularization import Losses, few, group_size, grouped, loss_name, losses, noisy
from batchnorm.study.curves import SIDES as STYLES
from batchnorm.study.design import LEAST_WAY, SIDES, Study
from batchnorm.study.findings import Claim, Effect, Finding, known
from batchnorm.study.networks import Placement
from batchnorm.study.training import Spec
from batchnorm.study.tuning import Tuning

TWO = 2
MARGIN = 0.01  # of a score: batch normalization would have to gain more than that on few rows
SMALLER, MOVING = "loss in groups of 2", "score with running statistics"


def _on_few_rows(study: Study) -> dict[Placement, Spec] | None:
    """Return a run on few rows for each side, at the rate that is best on all rows; None until it is known."""
    rows = few(study)
    tunings: dict[Placement, Tuning] = {side: study.at(study.first).tune(side, by="score") for side in SIDES}
    if rows is None or not all(tuning.settled for tuning in tunings.values()):
        return None
    return {side: study.spec(placement=side, rate=t.rate, **rows.choices) for side, t in tunings.items()}


def runs(study: Study) -> list[list[Spec]]:
    """Runs in groups of two rows with noisy targets, and in larger ones; and both sides on few rows."""
    units: list[list[Spec]] = []
    if size := group_size(study):
        units += [u for s in (TWO, size) for u in watched.units(study, grouped(study, noisy(study), s))]
    if few(study) is not None:
        units += [u for side in SIDES for u in study.at(study.first).tune(side, by="score").units]
        units += [u for spec in (_on_few_rows(study) or {}).values() for u in watched.units(study, spec)]
    return units


def measure(study: Study) -> Finding:
    """Compare groups of two with larger ones by loss and score, and both sides on few rows."""
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"loss": loss_name(study), "score": study.metric.name}
    notes: list[str] = []
    if group_size(study):
        effects += _of_two(study, numbers)
        notes.append(f"Groups of two rows were trained with {noisy(study).part}.")
    else:
        notes.append(f"Batches of {study.settings.batch_size} rows are not split into groups.")
    specs = _on_few_rows(study)
    if specs is not None:
        effects += _of_few(study, specs, numbers)
    else:
        notes.append("There are too few training rows to compare with fewer.")
    if not effects:
        return Finding(skipped="needs batches of 16 rows or more, or 100 training rows, to show either limit")
    return Finding(effects=tuple(effects), numbers=numbers, summary=_summary(effects[0], numbers), notes=tuple(notes))


def _of_two(study: Study, numbers: dict[str, Any]) -> list[Effect]:
    size, metric = group_size(study), study.metric
    looks = {str(s): watched.probed(study, grouped(study, noisy(study), s)) for s in (TWO, size)}
    test = losses(study, looks, "test")
    scores: dict[str, list[float]] = {
        f"{rows} {key}": [known(seed[-1][key], study.guess) for seed in looks[rows]]
        for rows, key in product(looks, ("running_score", "score"))
    }
    numbers |= {"group": size, "test": test, "scores": scores}
    ratios = [a / b for a, b in zip(test[str(TWO)], test[str(size)], strict=True)]

    def fall(name: str, ends: str, others: str, decides: bool) -> Effect:
        falls = [metric.factor * (a - b) for a, b in zip(scores[ends], scores[others], strict=True)]
        return Effect.of(name, falls, 0.0, "below", part=MOVING, decides=decides, unit=metric.unit)

    running, recalibrated = f"{TWO} running_score", f"{TWO} score"
    rescue = f"test {metric.name} in groups of 2, running − recalibrated statistics"
    return [
        Effect.of(f"test {loss_name(study)}, groups of 2 ÷ groups of {size}", ratios, 1.0, part=SMALLER, unit="×"),
        fall(f"test {metric.name}, groups of 2 − groups of {size}", running, f"{size} running_score", True),
        fall(rescue, running, recalibrated, False),
    ]


def _of_few(study: Study, specs: dict[Placement, Spec], numbers: dict[str, Any]) -> list[Effect]:
    metric, tunings = study.metric, [study.at(study.first).tune(side, by="score") for side in SIDES]
    ends = {
        side: [known(o.peak()[1], study.guess) for o in study.outcomes(study.seeds(s))] for side, s in specs.items()
    }
    part = f"{specs['none'].rows} training rows"
    numbers |= {"few": ends, "few part": part, "rates": {side: spec.rate for side, spec in specs.items()}}
    gains = [metric.factor * (b - a) for a, b in zip(ends["none"], ends["before"], strict=True)]
    learned = statistics.median(r.test - r.guess for r in study.at(study.first).ranges()) >= LEAST_WAY
    obstacle = next((t.at_edge for t in tunings if t.at_edge), "") if learned else "no run learns anything"
    name = f"best test {metric.name}, with − without"
    threshold = MARGIN * metric.factor
    return [Effect.of(name, gains, threshold, "below", part=part, unit=metric.unit, obstacle=obstacle)]


def _summary(effect: Effect, numbers: dict[str, Any]) -> str:
    if effect.part == SMALLER:
        return (
            f"With noisy targets, the test {numbers['loss']} in groups of 2 rows is {effect.headline()} that in groups "
            f"of {numbers['group']}."
        )
    return f"On {effect.part}, batch normalization changes the best test {numbers['score']} by {effect.headline()}."


def picture(finding: Finding) -> Figure:
    """Draw each comparison seed by seed, the two runs of a seed joined by a line, a panel a part."""
    numbers = finding.numbers
    effects = [e for e in finding.effects if e.decides]
    figure, panels = pictures.figure(len(effects))
    for axes, effect in zip(panels, effects, strict=True):
        if effect.part == SMALLER:
            test: Losses = numbers["test"]
            small, large = test[str(TWO)], test[str(numbers["group"])]
            _pairs(axes, ("groups of 2", small), (f"groups of {numbers['group']}", large), f"test {numbers['loss']}")
        elif effect.part == MOVING:
            small, large = (numbers["scores"][f"{rows} running_score"] for rows in (TWO, numbers["group"]))
            _pairs(axes, ("groups of 2", small), (f"groups of {numbers['group']}", large), f"test {numbers['score']}")
        else:
            sides = [(STYLES[side][0], numbers["few"][side]) for side in SIDES]
            _pairs(axes, sides[0], sides[1], f"best test {numbers['score']}")
        axes.set_title(f"{effect.part}: {effect.headline()}")
    return figure


def _pairs(axes: Axes, first: tuple[str, Sequence[float]], second: tuple[str, Sequence[float]], name: str) -> None:
    names, columns = (first[0], second[0]), (first[1], second[1])
    for pair in zip(*columns, strict=True):
        axes.plot([0, 1], pair, color=pictures.FAINT, linewidth=1.0, zorder=1)
    for x, (values, colour, marker) in enumerate(
        zip(columns, (pictures.PLAIN, pictures.NORMALISED), ("o", "s"), strict=True)
    ):
        axes.scatter([x] * len(values), values, color=colour, marker=marker, s=24)
        axes.plot([x - 0.1, x + 0.1], [statistics.median(values)] * 2, color=colour, linewidth=2.5)
    axes.set_xticks([0, 1], names)
    axes.set(xlim=(-0.5, 1.5), ylabel=name)


CLAIM = Claim(
    id="limits",
    title="Where it fails",
    statement="Batch normalization has limits: groups of two rows are too few, and on few training rows it gains "
    "nothing.",
    source="Wu & He 2018, section 1, for small groups; Summers & Dinneen 2020 for the statistics of prediction",
    method="With noisy training targets, as in the claim on regularization, the main network is trained in groups of "
    "2 rows and in groups of 16 or so. Smaller groups are noisier, but the test loss, with recalibrated statistics, "
    "should be higher in groups of 2, and so should the score be lower that predictions with running statistics have; "
    "whether recalibrated ones rescue it stands beside. On few training rows, networks with and without batch "
    "normalization are compared by the test score at the best validation step, each at the learning rate whose best "
    "validation score is highest on all rows; batch normalization should gain less than 0.01.",
    caption="Each comparison seed by seed; a line joins the two that share split, weights and order of the data, and a "
    "bar is the median.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
    adds_seeds=False,
)
