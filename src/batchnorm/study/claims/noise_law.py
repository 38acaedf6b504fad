"""Does the noise of batch statistics shrink as 1/m with the number of rows, m, that they are of?"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure

from batchnorm.study import labels, pictures, watched
from batchnorm.study.claims.regularization import Protocol, grouped
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, known, number
from batchnorm.study.statistics_probe import QUANTITIES, SIZES
from batchnorm.study.training import Spec

LAW = -1.0
SMALLEST = 8  # rows from which on the law is fitted: the noise of fewer is no longer small, and outputs cannot follow
NEAR = 0.25  # of the slope to −1: beyond it the nearer law is 1/√m, or 1/m^(3/2)
Noises = dict[str, list[dict[str, float]]]  # by quantity, one a seed: relative variances by the rows of a group


def _spec(study: Study) -> Spec:
    return grouped(study, Protocol("the data as they are"), None)


def runs(study: Study) -> list[list[Spec]]:
    """The run in whole batches that the claim on regularization compares with."""
    return watched.units(study, _spec(study))


def slope(variances: Mapping[str, float]) -> float:
    """Return by which power of m variances fall: the least-squares slope of log against log, NaN where there is none.

    >>> round(slope({"4": 0.1, "8": 0.125, "16": 0.0625, "32": 0.03125}), 6)
    -1.0
    """
    fitted = {float(size): v for size, v in variances.items() if float(size) >= SMALLEST}
    if not all(math.isfinite(v) and v > 0.0 for v in fitted.values()):
        return math.nan
    return statistics.linear_regression([math.log(m) for m in fitted], [math.log(v) for v in fitted.values()]).slope


def _median(values: Iterable[float]) -> float:
    """Return the median of the values that are known; NaN where none is."""
    return statistics.median([v for v in values if math.isfinite(v)] or [math.nan])


def measure(study: Study) -> Finding:
    """Fit the slopes of three variances over the size of a group."""
    seeds = [looks[-1] for looks in watched.probed(study, _spec(study))]
    noises: Noises = {q: [seed[q] for seed in seeds] for q in QUANTITIES}
    slopes = {q: [slope(replica) for replica in replicas] for q, replicas in noises.items()}
    effects = tuple(
        Effect.of(
            "distance of the power of m from −1", [abs(s - LAW) for s in slopes[q]], NEAR, "below",
            part=f"variance of the {name}",
        )
        for q, name in QUANTITIES.items()
    )  # fmt: skip
    numbers = {"noise": noises, "slopes": slopes}
    silent = sum(map(math.isnan, slopes["outputs"]))
    if silent == len(seeds):
        summary = "No noise could be measured: every run diverged, or its outputs do not vary with the batch."
        return Finding(effects=effects, numbers=numbers, summary=summary)
    outputs = number(_median(slopes["outputs"]))
    notes = _notes(noises, slopes, [seed["layers"] for seed in seeds])
    if silent:
        notes.append(f"{silent} of {len(seeds)} runs diverged, or their outputs do not vary, and say nothing.")
    summary = f"Over random groups of m rows, the noise of the outputs changes as m^{outputs}."
    return Finding(effects=effects, numbers=numbers, summary=summary, notes=tuple(notes))


def _notes(noises: Noises, slopes: Mapping[str, Sequence[float]], layers: Sequence[Sequence[float]]) -> list[str]:
    mean, variance = (number(_median(slopes[q])) for q in ("mean", "variance"))
    two = _median(
        r[str(SIZES[0])] / r[str(SMALLEST)] * SIZES[0] / SMALLEST for r in noises["outputs"] if r[str(SMALLEST)] > 0.0
    )
    by_layer = ", ".join(f"{_median(shares):.2g}" for shares in zip(*layers, strict=True))
    return [
        f"The variance of the batch mean changes as m^{mean}, that of the batch variance as m^{variance} (medians).",
        f"The powers are fitted from {SMALLEST} rows on; of {SIZES[0]} rows the variance of the outputs is "
        f"{number(two)} times what the law continues to.",
        f"m·Var(μ_B)/σ², 1 for independent rows, is {by_layer} from the first hidden layer to the last: the deeper "
        "ones are given rows that their group has normalised already.",
    ]


def picture(finding: Finding) -> Figure:
    """Draw the variances by the rows of a group, with the 1/m law."""
    noise: Noises = finding.numbers["noise"]
    figure, (axes,) = pictures.figure()
    colours = (pictures.NORMALISED, pictures.OTHER, pictures.FOURTH)
    everything: list[float] = []
    for (quantity, replicas), colour in zip(noise.items(), colours, strict=True):
        medians = [known(_median(replica[str(m)] for replica in replicas), 0.0) for m in SIZES]
        everything += medians
        axes.plot(SIZES, medians, color=colour, marker="o", markersize=4, label=QUANTITIES[quantity])
    axes.plot(SIZES, [1.0 / m for m in SIZES], color=pictures.INK, linewidth=1.0, linestyle=":", label="1/m")
    axes.set(xscale="log", yscale="log" if min(everything) > 0 else "linear", xlabel="rows of a group, m")
    axes.set_ylabel("relative variance")
    axes.set_xticks(SIZES, [str(m) for m in SIZES], minor=False)
    axes.minorticks_off()
    labels.label_lines(axes)
    pictures.headline(figure, finding.summary.removesuffix("."))
    return figure


CLAIM = Claim(
    id="noise-law",
    title="Noise shrinks as 1/m",
    statement="The noise of batch statistics shrinks as 1/m with the number of rows m that they are of.",
    source="Luo et al. 2019, for whom the strength of the regularization falls as 1/m; Hoffer, Hubara & Soudry 2017",
    method="A trained network is given random groups of 2 to 128 rows in training mode, drawn with replacement. "
    "Measured over groups: the variances of each unit's mean and variance, relative to the unit's own, and that of a "
    "row's outputs as its companions change; and by which power of the size they fall from 8 rows on, which the law "
    "says is −1. "
    "Within 0.25 of it, the law is nearer than 1/√m and 1/m^(3/2).",
    caption="How the noise falls with the rows of a group, on logarithmic axes, and the 1/m law: medians over seeds.",
    runs=runs,
    measure=measure,
    picture=picture,
    own_model=False,
    adds_seeds=False,
)
