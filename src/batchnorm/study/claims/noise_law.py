"""Does the noise of batch statistics shrink as 1/m with the number of rows, m, that they are of?"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

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


def _spec(study: Study) -> Spec:
    return grouped(study, Protocol("the data as they are"), None)


def runs(study: Study) -> list[list[Spec]]:
    """The run in whole batches that the claim on regularization compares with."""
    return watched.units(study, _spec(study))


def slope(variances: Mapping[str, float]) -> float:
    """Return by which power of m variances fall: the least-squares slope of log against log, 0 where there is none.

    >>> round(slope({"4": 0.1, "8": 0.125, "16": 0.0625, "32": 0.03125}), 6)
    -1.0
    """
    fitted = {float(size): v for size, v in variances.items() if float(size) >= SMALLEST}
    if not all(math.isfinite(v) and v > 0.0 for v in fitted.values()):
        return 0.0
    return statistics.linear_regression([math.log(m) for m in fitted], [math.log(v) for v in fitted.values()]).slope


def _below(replicas: list[dict[str, float]]) -> float:
    """Return the variance at the smallest size relative to the 1/m law through the smallest size that is fitted."""
    shares = [
        r[str(SIZES[0])] * SIZES[0] / (r[str(SMALLEST)] * SMALLEST) if r[str(SMALLEST)] > 0.0 else math.nan
        for r in replicas
    ]
    return statistics.median(known(share, 0.0) for share in shares)


def measure(study: Study) -> Finding:
    """Fit the slopes of three variances over the size of a group."""
    seeds = [looks[-1] for looks in watched.probed(study, _spec(study))]
    noises: dict[str, list[dict[str, float]]] = {q: [seed[q] for seed in seeds] for q in QUANTITIES}
    slopes = {q: [slope(replica) for replica in replicas] for q, replicas in noises.items()}
    effects = tuple(
        Effect.of(
            "distance of the power of m from −1", [abs(s - LAW) for s in slopes[q]], NEAR, "below",
            part=f"variance of the {name}",
        )
        for q, name in QUANTITIES.items()
    )  # fmt: skip
    by_layer = zip(*(seed["layers"] for seed in seeds), strict=True)
    layers = [f"{statistics.median(known(share, 0.0) for share in values):.2g}" for values in by_layer]
    medians = {q: statistics.median(values) for q, values in slopes.items()}
    flat = sum(s == 0.0 for s in slopes["outputs"])
    return Finding(
        effects=effects,
        numbers={"noise": noises, "slopes": slopes},
        summary=f"Over random groups of m rows, the noise of the outputs changes as m^{number(medians['outputs'])}.",
        notes=(
            f"The variance of the batch mean changes as m^{number(medians['mean'])}, that of the batch variance as "
            f"m^{number(medians['variance'])} (medians).",
            f"The powers are fitted from {SMALLEST} rows on; of 2 rows the variance of the outputs is "
            f"{number(_below(noises['outputs']))} times what the law continues to.",
            f"m·Var(μ_B)/σ², 1 for independent rows, is {', '.join(layers)} from the first hidden layer to the last: "
            "the deeper ones are given rows that their group has normalised already.",
            *([f"{flat} of {len(seeds)} runs diverged or do not vary: no law, a power of 0."] if flat else []),
        ),
    )


def picture(finding: Finding) -> Figure:
    """Draw the variances by the rows of a group, with the 1/m law."""
    noise: dict[str, Any] = finding.numbers["noise"]
    figure, (axes,) = pictures.figure()
    everything: list[float] = []
    for (quantity, replicas), colour in zip(
        noise.items(), (pictures.NORMALISED, pictures.OTHER, pictures.FOURTH), strict=True
    ):
        medians = [statistics.median(known(replica[str(m)], 0.0) for replica in replicas) for m in SIZES]
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
)
