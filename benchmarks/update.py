"""Bring what benchmarks/README.md shows in line with the committed results, and draw docs/bench.png.

batchnorm bench --memory both --out benchmarks/results/layers
python benchmarks/resnet50.py
python benchmarks/update.py
"""

import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchnorm.bench.cases import FEATURES_LAST
from batchnorm.bench.chart import save
from batchnorm.bench.contenders import OURS
from batchnorm.bench.goals import MIB, Judged, judge
from batchnorm.bench.results import Results, Row
from batchnorm.bench.screen import heading, times

HERE = Path(__file__).parent
README, CHART = HERE / "README.md", HERE.parent / "docs" / "bench.png"
FRONT = HERE.parent / "README.md"
LAYERS, RESNET50 = HERE / "results" / "layers.json", HERE / "results" / "resnet50.json"
SPEED = re.compile(r"(?<=<!-- speed -->\n).*?(?=<!-- end -->)", re.DOTALL)
SPOKEN = {"train": "training step", "train+add+relu": "… with an addition and ReLU", "inference": "inference"}
BETWEEN = re.compile(r"(?<=<!-- goals -->\n).*?(?=<!-- end -->)", re.DOTALL)
VERDICTS = {True: "met", False: "**missed**", None: "not measured"}
NOTHING = "\nNot measured yet.\n\n"


def results() -> Results | None:
    """Return the committed run; None where there is none yet."""
    return Results.read(LAYERS) if LAYERS.exists() else None


def resnet50() -> dict[str, Any] | None:
    """Return the committed run of ResNet-50; None where there is none yet."""
    return json.loads(RESNET50.read_text(encoding="utf-8")) if RESNET50.exists() else None


def goals(run: Results | None, steps: dict[str, Any] | None) -> str:
    """Return the goals beside what was measured, as a table; a row a goal, and one a layout of ResNet-50."""
    if run is None:
        return NOTHING
    judged = {(one.id, one.memory): one for one in judge(run.rows)}
    lines = [
        "",
        "| goal | needed: mean, worst | geometric mean | worst | verdict | memory default: mean, worst |",
        "|---|---|---|---|---|---|",
        *(_line(one, judged.get((id_, "default"))) for (id_, mode), one in judged.items() if mode == "kept"),
        *_steps(steps),
    ]
    lines += ["", *(f"    {line}" for line in heading(run).splitlines()), "", *bounds(run.rows)]
    return "\n".join([*lines, "", ""])


def bounds(rows: Sequence[Row]) -> list[str]:
    """Return how far any layer could be ahead of torch's, where memory is what limits: a row a kind of case."""
    shares: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for row in rows:
        large = row.case.array_bytes >= 16 * MIB and row.case.op.startswith("train") and row.memory == "kept"
        if large and row.share is not None and row.contender in (OURS, "torch"):
            layout = "last" if row.case.layout in FEATURES_LAST else "first"
            kind = shares.setdefault((row.case.op, row.case.dtype, layout), {})
            kind.setdefault(row.contender, []).append(row.share)
    lines = [
        "| 16 MiB and more | features | batchnorm's share of the roofline | torch's | most any layer could be ahead |",
        "|---|---|---|---|---|",
    ]
    for (op, dtype, layout), found in sorted(shares.items()):
        if len(found) == 2:
            ours, torchs = (math.exp(statistics.fmean(map(math.log, found[name]))) for name in (OURS, "torch"))
            lines.append(f"| {op}, {dtype} | {layout} | {ours:.0%} | {torchs:.0%} | {1 / torchs:.1f}× |")
    return lines if len(lines) > 2 else []


def spoken(run: Results, steps: dict[str, Any] | None) -> str:
    """Return what the README says of a run: geometric means by operation and order, and where torch was faster."""
    ours = [row for row in run.rows if row.contender == OURS and row.memory == "kept" and row.ratio is not None]
    lines = ["", "| float32, times as fast as torch eager | features first | features last |", "|---|---|---|"]
    for op, said in SPOKEN.items():
        cells: list[str] = []
        for last in (False, True):
            of = [
                r
                for r in ours
                if r.case.op == op and r.case.dtype == "float32" and (r.case.layout in FEATURES_LAST) == last
            ]
            found = [row.ratio or 1.0 for row in of]
            cells.append(
                f"{math.exp(statistics.fmean(map(math.log, found))):.2f}× ({min(found):.2f} to {max(found):.2f})"
            )
        lines.append(f"| {said} | {' | '.join(cells)} |")
    if steps is not None:
        rows = {row["layout"]: row["ratio"] for row in steps["rows"] if "fused" in row["network"]}
        most = _without(steps)
        cells = [f"{rows[name]:.2f}× (without any layer: {most[name]:.2f})" for name in ("NCHW", "NHWC")]
        lines.append(f"| a whole step of ResNet-50, batch 32 of 64×64 | {' | '.join(cells)} |")
    slower = [row for row in ours if (row.ratio or 1.0) < 1]
    inference = sum(row.case.op == "inference" for row in slower)
    lines += ["", f"In {len(slower)} of {len(ours)} cases torch's layer was faster, {inference} of them inference."]
    return "\n".join([*lines, "", ""])


def _without(steps: dict[str, Any]) -> dict[str, float]:
    """Return how many times as fast a step is without any layer, by layout."""
    return {row["layout"]: row["ratio"] for row in steps["rows"] if row["network"].startswith("no layer")}


def _line(one: Judged, by_default: Judged | None) -> str:
    beside = "–" if by_default is None else f"{times(by_default.mean, one.unit)}, {times(by_default.worst, one.unit)}"
    cells = (
        one.says,
        f"≥ {times(one.mean_goal, one.unit)}, ≥ {times(one.worst_goal, one.unit)}",
        f"{times(one.mean, one.unit)} of {one.cases}",
        times(one.worst, one.unit) + (f" ({one.where})" if one.where else ""),
        VERDICTS[one.met],
        beside,
    )
    return f"| {' | '.join(cells)} |"


def _steps(steps: dict[str, Any] | None) -> list[str]:
    if steps is None:
        return []
    rows = [row for row in steps["rows"] if row["network"].startswith("batchnorm")]
    goal = steps["goal"]
    most = _without(steps)
    return [
        f"| training step of ResNet-50, {row['layout']}, {row['network']} | ≥ {times(goal)} | {times(row['ratio'])} "
        f"(without any layer: {times(most.get(row['layout']))}) | – | {VERDICTS[row['ratio'] >= goal]} | – |"
        for row in rows
    ]


if __name__ == "__main__":
    found = results()
    shown = goals(found, resnet50())
    README.write_text(BETWEEN.sub(lambda _: shown, README.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    if found is not None:
        told = spoken(found, resnet50())
        FRONT.write_text(SPEED.sub(lambda _: told, FRONT.read_text(encoding="utf-8"), count=1), encoding="utf-8")
        save(found, CHART)
