"""Is the score better in the end?"""

from collections.abc import Sequence
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
        }
    medians = [number(Effect.of("", networks[study.main]["scores"][side], 0.0).value()) for side in SIDES]
    return Finding(
        effects=tuple(effects),
        numbers={"networks": networks, "score": metric.name, "guess": study.guess, "reach": study.reach()},
        summary=f"In {the(effects[0].part)}, the best test {metric.name} " + _difference(effects[0], medians),
        notes=("The step is chosen by the validation score (early stopping), and so is the learning rate.",),
    )


def _difference(effect: Effect, medians: Sequence[str]) -> str:
    if effect.bound == "unknown":
        return "cannot be compared: too many runs diverge at once."
    without, with_it = medians
    return f"is {with_it} with batch normalization and {without} without: a difference of {effect.headline()}."


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
    statement="Networks with batch normalization reach a better score within the same steps.",
    source="Ioffe & Szegedy 2015, section 4.2.2",
    method="The runs of the claim on speed. Each side is trained at the learning rate whose best validation score is "
    "highest, and its test score is taken at the step of that validation score, as early stopping would.",
    caption="The best test score of each seed without and with batch normalization; a line joins the two runs that "
    "share split, weights and order of the data.",
    runs=runs,
    measure=measure,
    picture=picture,
)
