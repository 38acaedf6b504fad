"""How fast the layer is meant to be, and whether it is: each goal has a geometric mean and a worst shape."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from batchnorm.bench.cases import FEATURES_LAST
from batchnorm.bench.contenders import OURS
from batchnorm.bench.results import Row

KIB, MIB = 2**10, 2**20
TINY = 64 * KIB


@dataclass(frozen=True)
class Goal:
    """What is to be reached, over all cases that it is about.

    Attributes:
        id: Its name.
        says: What it is about.
        about: Whether a case counts.
        mean: What the geometric mean must reach.
        worst: What no case may fall below.
        unit: "×" for times as fast as torch eager, "%" for the share of the copy roofline.
    """

    id: str
    says: str
    about: Callable[[Row], bool]
    mean: float
    worst: float
    unit: str = "×"

    def value(self, row: Row) -> float | None:
        """Return what a row contributes."""
        return row.share if self.unit == "%" else row.ratio


def _train(row: Row, op: str = "train", dtype: str = "float32") -> bool:
    return row.case.op == op and row.case.dtype == dtype and row.case.array_bytes > TINY


GOALS = (
    Goal(
        "train-first",
        "train forward+backward, float32, NCHW (and NCDHW, NCL)",
        lambda r: _train(r) and r.case.layout not in FEATURES_LAST,
        3.0,
        1.5,
    ),
    Goal(
        "train-last",
        "train forward+backward, float32, NHWC (and NDHWC, NLC, NC)",
        lambda r: _train(r) and r.case.layout in FEATURES_LAST,
        2.5,
        1.3,
    ),
    Goal(
        "train-add-relu",
        "train forward+backward with add and ReLU, float32, all layouts",
        lambda r: _train(r, "train+add+relu"),
        4.0,
        2.0,
    ),
    Goal(
        "train-bfloat16",
        "train forward+backward, bfloat16, all layouts",
        lambda r: _train(r, dtype="bfloat16"),
        2.5,
        1.2,
    ),
    Goal(
        "inference",
        "inference, outputs ≥ 32 MiB, float32 and bfloat16",
        lambda r: r.case.op == "inference" and r.case.dtype != "float16" and r.case.array_bytes >= 32 * MIB,
        1.3,
        1.0,
    ),
    Goal("tiny", "tiny, ≤ 64 KiB, every operation and dtype", lambda r: r.case.array_bytes <= TINY, 1.0, 0.9),
    Goal(
        "roofline",
        "share of the copy roofline, ≥ 16 MiB, forward+backward, float32 and bfloat16",
        lambda r: (
            r.case.operation.forward
            and r.case.operation.backward
            and r.case.dtype != "float16"
            and r.case.array_bytes >= 16 * MIB
        ),
        0.70,
        0.50,
        "%",
    ),
)


@dataclass(frozen=True)
class Judged:
    """A goal beside what was measured.

    Attributes:
        id: Of the goal.
        says: What it is about.
        unit: "×" or "%".
        memory: "kept", which the goals are for, or "default".
        cases: How many were measured.
        failed: How many had no times: a goal with one of them is missed.
        mean: Geometric mean; None without cases.
        worst: The least; None without cases.
        where: The case of the least.
        mean_goal: What `mean` must reach.
        worst_goal: What `worst` must.
        met: Whether both do; None without cases.
    """

    id: str
    says: str
    unit: str
    memory: str
    cases: int
    failed: int
    mean: float | None
    worst: float | None
    where: str | None
    mean_goal: float
    worst_goal: float
    met: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of numbers above zero.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def judge(rows: Sequence[Row]) -> list[Judged]:
    """Return every goal, for each way of keeping memory that was measured, beside our rows."""
    modes = list(dict.fromkeys(row.memory for row in rows))
    return [_judged(goal, mode, rows) for mode in modes for goal in GOALS]


def _judged(goal: Goal, mode: str, rows: Sequence[Row]) -> Judged:
    ours = [r for r in rows if r.contender == OURS and r.memory == mode and goal.about(r)]
    found = [(value, row.case.name) for row in ours if (value := goal.value(row)) is not None]
    failed = sum(row.failure is not None for row in ours)
    worst, where = min(found, default=(None, None))
    mean = geometric_mean([value for value, _ in found]) if found else None
    met = None
    if ours:
        met = not failed and mean is not None and worst is not None and mean >= goal.mean and worst >= goal.worst
    return Judged(
        goal.id, goal.says, goal.unit, mode, len(found), failed, mean, worst, where, goal.mean, goal.worst, met
    )  # fmt: skip
