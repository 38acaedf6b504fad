"""Is the score better in the end?"""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from batchnorm.study import pictures
from batchnorm.study.curves import SIDES
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, number, the
from batchnorm.study.training import Spec
from batchnorm.study.tuning import obstacles


def runs(study: Study) -> list[list[Spec]]:
    """Every learning rate without and with batch normalization, in each network."""
    return [u for network in study.networks for side in SIDES for u in study.tune(side, network, by="score").units]


def measure(study: Study) -> Finding:
    """Compare the test scores at the step with the best validation score, each side at its own best rate."""
    metric = study.metric
    effects: list[Effect] = []
    networks: dict[str, Any] = {}
    for network in study.networks:
        sides = {side: study.tune(side, network, by="score") for side in SIDES}
        ends = {side: [outcome.peak()[1] for outcome in tuning.outcomes] for side, tuning in sides.items()}
        gains = [metric.factor * (b - a) for a, b in zip(ends["none"], ends["before"], strict=True)]
        name = f"best test {metric.name}, with − without"
        obstacle = obstacles({f"{word} it": sides[side] for side, (word, *_) in SIDES.items()})
        effects.append(Effect.of(name, gains, 0.0, part=study.named(network), unit=metric.unit, obstacle=obstacle))
        networks[network] = {
            "name": study.named(network),
            "scores": ends,
            "rates": {side: tuning.rate for side, tuning in sides.items()},
            "budgets": {side: tuning.budget for side, tuning in sides.items()},
        }
    return Finding(
        effects=tuple(effects),
        numbers={"networks": networks, "score": metric.name, "guess": study.guess, "reach": study.reach()},
        summary=_summary(effects[0], networks[study.main], metric.name),
        notes=("The step is chosen by the validation score (early stopping), and so is the learning rate.",),
    )


def _summary(effect: Effect, network: Mapping[str, Any], metric: str) -> str:
    if effect.bound == "unknown":
        return f"In {the(effect.part)}, the best test {metric} cannot be compared: too many runs diverge at once."
    scores = {side: Effect.of("", network["scores"][side], 0.0).value() for side in SIDES}
    best = best_words(scores, network["budgets"], metric, "batch normalization")
    return f"In {the(effect.part)}, the best test {best}; seed by seed, the median difference is {effect.headline()}."


def best_words(scores: Mapping[str, float], budgets: Mapping[str, int], metric: str, what: str = "") -> str:
    """Return the best scores of both sides, and within how many steps.

    >>> best_words({"none": 0.97, "before": 0.98}, {"none": 400, "before": 400}, "accuracy")
    'accuracy within 400 steps is 0.98 with and 0.97 without'
    >>> best_words({"none": 0.97, "before": 0.98}, {"none": 1600, "before": 400}, "accuracy")
    'accuracy is 0.98 with (within 400 steps) and 0.97 without (within 1,600)'
    """
    without, with_it = number(scores["none"]), number(scores["before"])
    name = f"with {what}".rstrip()
    if budgets["none"] != budgets["before"]:
        return (
            f"{metric} is {with_it} {name} (within {budgets['before']:,} steps) and {without} without (within "
            f"{budgets['none']:,})"
        )
    within = f"{metric} within {budgets['none']:,} steps is {with_it} {name}"
    return f"{within} and without" if without == with_it else f"{within} and {without} without"


def picture(finding: Finding) -> Figure:
    """Draw the scores of both sides seed by seed, joined by a line, a panel a network."""
    networks = list(finding.numbers["networks"].values())
    figure, panels = pictures.figure(len(networks))
    effects = {e.part: e for e in finding.effects}
    for axes, network in zip(panels, networks, strict=True):
        without, with_it = (network["scores"][side] for side in ("none", "before"))
        for a, b in zip(without, with_it, strict=True):
            axes.plot([0, 1], [a, b], color=pictures.FAINT, linewidth=1.0, zorder=1)
        for x, (side, (_, colour, marker)) in enumerate(SIDES.items()):
            axes.scatter([x] * len(network["scores"][side]), network["scores"][side], color=colour, marker=marker, s=24)
        axes.set_xticks([0, 1], ["without", "with"])
        axes.set(
            xlim=(-0.5, 1.5),
            ylabel=f"best test {finding.numbers['score']}",
            title=f"{network['name']}: {effects[network['name']].headline()}",
        )
    return figure


CLAIM = Claim(
    id="score",
    title="Better final score",
    statement="Networks with batch normalization reach a better score.",
    source="Ioffe & Szegedy 2015, section 4.2.2",
    method="The runs of the claim on speed. Each side is trained at the learning rate whose best validation score is "
    "highest, and for longer where its scores still rise at the end; its test score is taken at the step of that "
    "validation score, as early stopping would.",
    caption="The best test score of each seed without and with batch normalization; a line joins the two runs that "
    "share split, weights and order of the data.",
    runs=runs,
    measure=measure,
    picture=picture,
)
