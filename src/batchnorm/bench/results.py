"""What a run has found, as JSON keeps it."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from batchnorm.bench import checking
from batchnorm.bench.cases import Case
from batchnorm.bench.contenders import BASELINE
from batchnorm.errors import ArgumentError

SCHEMA = checking.SCHEMA
SIGNIFICANT = 5  # digits that are written


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    Attributes:
        memory: "kept" or "default".
        case: What was timed.
        contender: Who.
        failure: Why there are no times; None if there are.
        error: Largest error against float64 over the largest value, before it was timed.
        allowed: The error that would have been too large.
        kernel: Which kernel of ours ran.
        calls: Calls a sample.
        samples: Samples, each the mean of its calls.
        min_s: Seconds of a call, the least of the samples.
        median_s: Their median.
        ratio: Least time of torch eager ÷ this least: how many times as fast as torch. What else a machine does only
            adds time, and seldom to all alike.
        bandwidth: Bytes a second of the fastest copy of an array of this size, in the same rounds.
        share: Least bytes of the operation ÷ bandwidth ÷ least time.
    """

    memory: str
    case: Case
    contender: str
    failure: str | None = None
    error: float | None = None
    allowed: float | None = None
    kernel: str | None = None
    calls: int | None = None
    samples: int | None = None
    min_s: float | None = None
    median_s: float | None = None
    ratio: float | None = None
    bandwidth: float | None = None
    share: float | None = None

    def rounded(self) -> "Row":
        """Return it with as many digits as mean something, so that what is written is what is shown."""
        return replace(self, **{n: _written(v) for n, v in vars(self).items() if isinstance(v, float)})

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        flat = {**asdict(self), **self.case.as_dict()}
        del flat["case"]
        return {name: _written(value) for name, value in flat.items()}


def _written(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else None  # JSON knows no infinity


@dataclass
class Results:
    """A run: on what, how, and what it has found so far."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    command: list[str]
    notes: list[str] = field(default_factory=list[str])
    rows: list[Row] = field(default_factory=list[Row])
    finished: bool = False

    def to_json(self) -> str:
        """Return it as JSON, a row a line, with the goals it makes or misses."""
        from batchnorm.bench.goals import judge

        head = {
            "schema": SCHEMA,
            "command": self.command,
            "finished": self.finished,
            "machine": self.machine,
            "settings": self.settings,
            "ratio": f"least time of `{BASELINE}` ÷ least of the contender, in the same rounds",
            "notes": self.notes,
            "goals": [judged.as_dict() for judged in judge(self.rows)],
        }
        rows = ",\n".join(f"  {json.dumps(row.as_dict(), ensure_ascii=False)}" for row in self.rows)
        return json.dumps(head, indent=1, ensure_ascii=False)[:-2] + f',\n "rows": [\n{rows}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Return the run that `to_json` has written; the goals are judged anew.

        Raises:
            ArgumentError: if it is none, or of another version.
        """
        found = checking.checked(text)
        rows = [
            Row(case=Case.from_dict(row), **{name: _as_float(name, row[name]) for name in checking.ROW})
            for row in found["rows"]
        ]
        names = ("machine", "settings", "command", "notes")
        return cls(**{name: found[name] for name in names}, rows=rows, finished=found["finished"])

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read a file.

        Raises:
            ArgumentError: if it cannot be read, or holds no results.
        """
        text = checking.content(path)
        try:
            return cls.from_json(text)
        except ArgumentError as error:
            raise ArgumentError(f"{path}: {error}") from None


def _as_float(name: str, value: Any) -> Any:
    kinds = get_args(Row.__dataclass_fields__[name].type)
    return float(value) if float in kinds and value is not None else value
