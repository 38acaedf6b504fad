"""Does the noise of batch statistics regularise: on the data as they are, with noisy targets, and on few rows?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchnorm.study import labels, pictures, watched
from batchnorm.study.data import split
from batchnorm.study.design import HALF_DECADE, Study
from batchnorm.study.findings import Claim, Effect, Finding, known
from batchnorm.study.statistics_probe import PROBE
from batchnorm.study.training import Spec

GROUP = 16  # rows a group should have: the literature finds the effect at 16 to 128
LEAST_GROUP = 8
SMALL = 4  # reported beside: the noise of so few rows is large
NOISY = 0.3  # of the training labels are random
FEW_ROWS = (150, 100, 50)  # the first of which there are twice as many
FEWEST_STEPS = 120
LEAST = 1e-12  # a loss, so that ratios exist where one vanishes
Losses = dict[str, list[float]]  # by rows of a group, one a seed


@dataclass(frozen=True)
class Protocol:
    """A way to train in which the noise may help.

    Attributes:
        part: Its name as a part of the claim.
        choices: What it changes of a run.
    """

    part: str
    choices: dict[str, Any] = field(default_factory=dict[str, Any])


def noisy(study: Study) -> Protocol:
    """Return the protocol with random training labels; values get noise of their own standard deviation."""
    if study.data.task == "regression":
        return Protocol("targets with as much noise again", {"label_noise": 1.0})
    return Protocol(f"{100 * NOISY:.0f} % random labels", {"label_noise": NOISY})


def few(study: Study) -> Protocol | None:
    """Return the protocol with few training rows; None where there are no more than few."""
    count = len(split(study.data, study.settings.seed).train)
    rows = next((rows for rows in FEW_ROWS if count >= 2 * rows), None)
    return None if rows is None else Protocol(f"{rows} training rows", {"rows": rows})


def protocols(study: Study) -> list[Protocol]:
    """Return the ways to train that the claim is about."""
    return [p for p in (Protocol("the data as they are"), noisy(study), few(study)) if p is not None]


def group_size(study: Study) -> int:
    """Return the rows of a group that decide: 16, or a few more or less so that groups are equal; 0 for none.

    >>> from batchnorm.study.design import Settings
    >>> [group_size(Study(Settings(batch_size=size), None)) for size in (8, 16, 60, 128, 500)]
    [0, 8, 15, 16, 16]
    """
    whole = study.settings.batch_size
    return whole // max(2, round(whole / GROUP)) if whole >= 2 * LEAST_GROUP else 0


def rate(study: Study) -> float:
    """Return the one learning rate of all runs: high enough for them to fit their training rows."""
    return float(f"{study.moderate_rate() * 10**HALF_DECADE:.2g}")


def steps(study: Study) -> int:
    """Return the steps of all runs: half of the main network's, which is long enough to fit few or noisy rows."""
    return max(study.settings.short_steps // 2, FEWEST_STEPS)


def grouped(study: Study, protocol: Protocol, size: int | None) -> Spec:
    """Return the run whose statistics are those of groups of `size` rows; None: of whole batches."""
    chosen = replace(study.spec(**protocol.choices), steps=steps(study), rate=rate(study))
    return replace(chosen, virtual_batch_size=size, probe=PROBE)


def runs(study: Study) -> list[list[Spec]]:
    """For every protocol, a run in whole batches and one in groups of either size."""
    size = group_size(study)
    sizes = (None, size, SMALL) if size else ()
    return [unit for p in protocols(study) for s in sizes for unit in watched.units(study, grouped(study, p, s))]


def losses(study: Study, looks: Mapping[str, watched.Probed], key: str) -> Losses:
    """Return a loss at the end of runs; a run that has diverged counts as the worst of all, or as guessing.

    Args:
        study: The study.
        looks: What the probes measured, by rows of a group.
        key: Which loss; "early" is the test loss at the step with the least validation loss.
    """
    raw = {size: [_loss(seed, key) for seed in seeds] for size, seeds in looks.items()}
    guess = {"regression": 1.0, "labels": math.log(2.0)}.get(study.data.task, math.log(max(study.data.outputs, 2)))
    worst = max(guess, *(known(loss, guess) for seeds in raw.values() for loss in seeds))
    return {size: [max(known(loss, worst), LEAST) for loss in seeds] for size, seeds in raw.items()}


def _loss(looks: Sequence[Mapping[str, Any]], key: str) -> float:
    if key != "early":
        return looks[-1][key]
    pairs = [(look["validation"], look["test"]) for look in looks if math.isfinite(look["validation"])]
    return min(pairs, default=(math.nan, math.nan))[1]


def loss_name(study: Study) -> str:
    """Return what the loss is called."""
    return "squared error" if study.data.task == "regression" else "cross-entropy"


def measure(study: Study) -> Finding:
    """Compare the test losses of groups with those of whole batches, protocol by protocol."""
    size, whole = group_size(study), study.settings.batch_size
    if not size:
        return Finding(skipped=f"needs batches of {2 * LEAST_GROUP} rows or more, to split them in two, got {whole}")
    effects: list[Effect] = []
    numbers: dict[str, Any] = {"rate": rate(study), "loss": loss_name(study), "group": size, "noisy": noisy(study).part}
    numbers["protocols"] = {}
    notes = [
        f"Every run has the one learning rate {rate(study):g} and {steps(study)} steps.",
        "Where the training loss is higher and the test loss lower, the noise has kept the network from fitting its "
        "training rows; where early stopping takes the gain away, the noise has stood in for it.",
    ]
    for protocol in protocols(study):
        by_size = {s: grouped(study, protocol, None if s == whole else s) for s in (whole, size, SMALL)}
        looks = {str(s): watched.probed(study, spec) for s, spec in by_size.items()}
        ends = {key: losses(study, looks, key) for key in ("test", "early", "train")}
        scores = {s: [known(look[-1]["score"], study.guess) for look in seeds] for s, seeds in looks.items()}
        effects += _effects(study, protocol.part, ends, scores)
        numbers["protocols"][protocol.part] = {**ends, "score": scores}
        notes += _notes(protocol.part, size, whole, ends, looks)
    return Finding(
        effects=tuple(effects),
        numbers=numbers,
        summary=_summary(next(e for e in effects if e.part == noisy(study).part), size, loss_name(study)),
        notes=tuple(notes),
    )


def _effects(study: Study, part: str, ends: Mapping[str, Losses], scores: Losses) -> list[Effect]:
    size, whole, metric = group_size(study), str(study.settings.batch_size), study.metric

    def ratio(name: str, key: str, rows: int, decides: bool = False) -> Effect:
        samples = [a / b for a, b in zip(ends[key][str(rows)], ends[key][whole], strict=True)]
        compared = f"{name}, groups of {rows} ÷ whole batches of {whole}"
        return Effect.of(compared, samples, 1.0, "below", part=part, decides=decides, unit="×")

    loss = loss_name(study)
    gains = [metric.factor * (a - b) for a, b in zip(scores[str(size)], scores[whole], strict=True)]
    name = f"test {metric.name}, groups of {size} − whole batches of {whole}"
    return [
        ratio(f"test {loss}", "test", size, decides=True),
        ratio(f"test {loss} with early stopping", "early", size),
        Effect.of(name, gains, 0.0, part=part, decides=False, unit=metric.unit),
        ratio(f"test {loss}", "test", SMALL),
    ]


def _notes(
    part: str, size: int, whole: int, ends: Mapping[str, Losses], looks: Mapping[str, watched.Probed]
) -> list[str]:
    train = {s: statistics.median(ends["train"][str(s)]) for s in (whole, size)}
    notes = [
        f"With {part}, the training loss is {train[size]:.2g} in groups of {size} and {train[whole]:.2g} in whole "
        "batches (medians)."
    ]
    diverged = {s: sum(not math.isfinite(_loss(seed, "test")) for seed in seeds) for s, seeds in looks.items()}
    return notes + [
        f"With {part}, {count} of {len(looks[s])} runs in {'whole batches' if s == str(whole) else f'groups of {s}'} "
        "diverged; each counts as the worst loss of all."
        for s, count in diverged.items()
        if count
    ]


def _summary(effect: Effect, size: int, loss: str) -> str:
    words = {"holds": "regularises", "does not hold": "does not regularise"}
    verdict = words.get(effect.verdict(), "does not clearly regularise")
    return (
        f"With {effect.part}, the noise of groups of {size} rows {verdict}: the test {loss} is {effect.headline()} "
        "that of whole batches."
    )


def picture(finding: Finding) -> Figure:
    """Draw the test loss relative to that of whole batches over the rows of a group, a line a protocol."""
    parts, group = finding.numbers["protocols"], finding.numbers["group"]
    figure, (axes,) = pictures.figure()
    sizes = sorted({int(s) for ends in parts.values() for s in ends["test"]})
    axes.set(xscale="log", xlabel="rows normalised together", xlim=(sizes[-1] * 1.15, sizes[0] / 1.15))
    axes.set_ylabel(f"test {finding.numbers['loss']}, relative")
    for i, (part, ends) in enumerate(parts.items()):
        _draw(axes, ends["test"], part, pictures.COLOURS[(i + 1) % len(pictures.COLOURS)], 1.0 + 0.03 * (i - 1))
    labels.name_line(axes, 1.0, "as in whole batches")
    axes.set_xticks(sizes, [str(s) for s in sizes], minor=False)
    axes.minorticks_off()
    labels.label_lines(axes)
    effect = next(e for e in finding.effects if e.decides and e.part == finding.numbers["noisy"])
    pictures.headline(figure, f"Groups of {group} rows: {effect.headline()} the test loss with {effect.part}")
    return figure


def _draw(axes: Axes, test: Losses, label: str, colour: str, aside: float) -> None:
    """Draw the median ratio by size, and the range over seeds as whiskers, a little aside of the others' whiskers."""
    whole = max(test, key=int)
    ratios = {int(s): sorted(a / b for a, b in zip(test[s], test[whole], strict=True)) for s in test}
    sizes = sorted(ratios, reverse=True)
    at = [s * aside for s in sizes]
    axes.plot(at, [statistics.median(ratios[s]) for s in sizes], color=colour, marker="o", markersize=5, label=label)
    axes.vlines(at, [ratios[s][0] for s in sizes], [ratios[s][-1] for s in sizes], color=colour, linewidth=1.2)


CLAIM = Claim(
    id="regularization",
    title="Noise that regularises",
    statement="The noise of batch statistics regularises: statistics of groups of 16 rows or so give a lower test loss "
    "than those of whole batches.",
    source="Ioffe & Szegedy 2015, section 3.4; Hoffer, Hubara & Soudry 2017; Luo et al. 2019; Summers & Dinneen 2020",
    method="The main network is trained in the same batches, normalised whole or in groups of 16 rows or so, all else "
    "being equal: on the data as they are, with noisy training targets, and on few training rows. Where targets are "
    "noisy, 30 % of the training labels are drawn anew from all classes, or values get normal noise of their own "
    "standard deviation added. The test loss is taken with statistics recalibrated on training rows, so that what is "
    "compared is the training and not the running statistics; targets of validation and test rows are left alone. "
    "Groups of 4, early stopping by the validation loss and the score stand beside it. A run that diverges counts as "
    "the worst loss of all.",
    caption="Test loss with recalibrated statistics by the number of rows normalised together, from whole batches on "
    "the left to small groups on the right, as a multiple of that of whole batches: median, and range over seeds. "
    "Below the dotted line the noise helps.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
    adds_seeds=False,
)
