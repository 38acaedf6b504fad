"""Training and prediction differ: by how much, and are both right?"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.study import pictures
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding, known
from batchnorm.study.training import Rows, Spec, evaluated_steps, predict, scores
from batchnorm.torch import transaction

SAME = 1e-5
DEPENDS = 0.01
AS_GOOD = 0.02
SIZES = (2, 4, 8, 16, 32, 64, 128)
PROBE = f"{__name__}:probe"


def runs(study: Study) -> list[list[Spec]]:
    """One watched run for each seed."""
    return [_specs(study)]


def _specs(study: Study) -> list[Spec]:
    steps = study.settings.short_steps
    return study.seeds(study.spec(placement="before", rate=study.moderate_rate(), steps=steps, probe=PROBE))


def probe(network: nn.Module, rows: Rows, step: int) -> list[dict[str, Any]]:
    """Compare training-mode and inference outputs on the validation part, by batch size; all of it at the end."""
    x, y = rows.part("validation")
    last = step == rows.specs[0].steps
    steady = predict(network, x)
    alone = torch.cat([predict(network, x[:, i : i + 1]) for i in range(min(16, x.shape[1]) if last else 1)], dim=1)
    with transaction(network) as untouched, torch.no_grad():
        for layer in (m for m in network.modules() if isinstance(m, _BatchNorm)):
            layer.train()
        whole = network(x)
        seen: list[dict[str, Any]] = [
            {"lag": lag, "train score": t, "predict score": p}
            for lag, t, p in zip(
                _relative(whole, steady), scores(whole, y, rows.data), scores(steady, y, rows.data), strict=True
            )
        ]
        if last:
            _look_closely(network, x, y, rows, steady, seen)
            same = (alone - steady[:, : alone.shape[1]]).abs().amax((1, 2)) / steady.std((1, 2))
            seen = [replica | {"alone": value} for replica, value in zip(seen, same.tolist(), strict=True)]
        untouched.rollback()
    return seen


def _look_closely(
    network: nn.Module, x: Tensor, y: Tensor, rows: Rows, steady: Tensor, seen: list[dict[str, Any]]
) -> None:
    gaps: dict[str, list[float]] = {}
    right: dict[str, list[float]] = {}
    for size in (s for s in SIZES if s <= x.shape[1]):
        batches = [network(part) for part in x.split(size, dim=1) if part.shape[1] == size]
        noisy = torch.cat(batches, dim=1)
        kept = noisy.shape[1]
        gaps[str(size)] = _relative(noisy, steady[:, :kept])
        right[str(size)] = scores(noisy, y[:, :kept], rows.data)
    for i, replica in enumerate(seen):
        replica |= {
            "gap": {s: g[i] for s, g in gaps.items()},
            "score": {s: r[i] for s, r in right.items()},
        }


def _relative(a: Tensor, b: Tensor) -> list[float]:
    """Return the root mean square of a − b, relative to the standard deviation of b, one a replica."""
    return ((a - b).square().mean((1, 2)).sqrt() / b.std((1, 2))).tolist()


def measure(study: Study) -> Finding:
    """Read what the probe saw."""
    watched = [study.lab[s].probed for s in _specs(study)]
    last = [seen[-1] for seen in watched]
    alone = tuple(known(seen["alone"], math.inf) for seen in last)
    size = max((s for s in last[0]["gap"] if int(s) <= study.settings.batch_size), key=int)
    depends = tuple(known(seen["gap"][size], 0.0) for seen in last)
    gaps = (abs(_late(seen, "train score") - _late(seen, "predict score")) for seen in watched)
    apart = tuple(known(value, math.inf) for value in gaps)
    gap = {s: [seen["gap"][s] for seen in last] for s in last[0]["gap"]}
    finite = [seen for seen in last if all(map(math.isfinite, (seen["alone"], *seen["gap"].values())))]
    summary = "Every run that was watched diverged: how its outputs change with their batch is unknown."
    if finite:
        small = min(gap, key=int)
        changes = {s: statistics.median(seen["gap"][s] for seen in finite) for s in (small, size)}
        summary = (
            f"In training mode a row's outputs change with its companions, by {changes[small]:.0%} of their spread in "
            f"batches of {small} and {changes[size]:.0%} in batches of {size}; in prediction by "
            f"{max(seen['alone'] for seen in finite):.0e} of it."
        )
    return Finding(
        effects=(
            Effect.of("prediction: a row alone against the same row in a batch", alone, SAME, "below"),
            Effect.of(f"training: change of a row's outputs with its companions, {size} a batch", depends, DEPENDS),
            Effect.of(
                f"{study.metric.name}, training mode against prediction, second half", apart, AS_GOOD, "below",
                decides=False,
            ),
        ),
        numbers={
            "gap": gap,
            "score by size": {s: [seen["score"][s] for seen in last] for s in gap},
            "steps": evaluated_steps(study.settings.short_steps),
            "lag": [[seen["lag"] for seen in seeds] for seeds in watched],
            "train score": [[seen["train score"] for seen in seeds] for seeds in watched],
            "predict score": [[seen["predict score"] for seen in seeds] for seeds in watched],
            "score": study.metric.name,
        },
        summary=summary,
        notes=(
            "Running statistics move by s ← s + 0.1·(batch − s): until they have caught up, early in training, "
            "prediction lags behind the training mode, as the lower panel shows.",
        ),
    )  # fmt: skip


def _late(seen: Sequence[dict[str, Any]], key: str) -> float:
    """Return the mean score over the second half of a run, when the running statistics have caught up."""
    return statistics.mean(s[key] for s in seen if s["step"] >= seen[-1]["step"] / 2)


def picture(finding: Finding) -> Figure:
    """Draw the gap between the modes by batch size, and both scores over training."""
    n = finding.numbers
    made, (by_size, over_time) = pictures.figure(2)
    sizes = [int(s) for s in n["gap"]]
    values = [sorted(v) for v in n["gap"].values()]
    by_size.fill_between(sizes, [v[0] for v in values], [v[-1] for v in values], color=pictures.NORMALISED, alpha=0.18)
    by_size.plot(sizes, [v[len(v) // 2] for v in values], color=pictures.NORMALISED, marker="s", markersize=4)
    scale = "log" if any(v[-1] > 0 for v in values) else "linear"  # no logarithm where every run has diverged
    by_size.set(xscale="log", yscale=scale, xlabel="batch size", title="change of outputs by companions")
    by_size.set_xticks(sizes, [str(s) for s in sizes], minor=False)
    by_size.minorticks_off()
    for key, colour, label in (
        ("train score", pictures.OTHER, "training mode"),
        ("predict score", pictures.NORMALISED, "prediction"),
    ):
        columns = [sorted(column) for column in zip(*n[key], strict=True)]
        over_time.plot(n["steps"], [c[len(c) // 2] for c in columns], color=colour, label=label)
    over_time.set(xscale="symlog", xlabel="training steps", title=f"validation {n['score']}")
    over_time.legend(loc="lower right")
    return made


CLAIM = Claim(
    id="train-predict",
    title="Training and prediction differ",
    statement="The layer differs between training and prediction, and both are right.",
    source="Ioffe & Szegedy 2015, section 3.1",
    method="A trained network in prediction is given rows alone and in batches: the outputs must be the same. In "
    "training mode the same rows are given in batches of 2 to 128: the outputs change with the companions, root mean "
    "square relative to their spread. And both modes score the whole validation part, all through the training.",
    caption="Above: how much a row's outputs depend on its companions in training mode. Below: scores of both modes "
    "over training; prediction waits for the running statistics.",
    runs=runs,
    measure=measure,
    picture=picture,
    check=True,
    adds_seeds=False,
)
