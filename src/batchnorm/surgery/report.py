"""What a tool has done: where, what, before and after; printed as a table, and written as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from batchnorm.errors import BatchNormError
from batchnorm.outputs import plain
from batchnorm.surgery.places import scripted
from batchnorm.torch.naming import shorten

WIDTH = 110  # characters of a table as text
REASONS = 8  # shown below it


@dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        where: Name of the layer.
        what: What was done to it.
        before: What it was.
        after: What it is.
        numbers: What was measured, by name.
    """

    where: str
    what: str
    before: str = ""
    after: str = ""
    numbers: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Left:
    """A layer that was left as it is, and why."""

    where: str
    why: str


@dataclass(frozen=True)
class Report:
    """What a tool has done to a model.

    Attributes:
        tool: Its name.
        model: The model now; the one given, unless the tool says otherwise.
        changes: All that was changed, in the order of the model.
        left: What was looked at and left.
        numbers: What was measured of the whole.
        notes: What else there is to know.
    """

    tool: str
    model: nn.Module
    changes: Sequence[Change]
    left: Sequence[Left] = ()
    numbers: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """Return where something was changed."""
        return [change.where for change in self.changes]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it but the model, ready for JSON."""
        return {
            "tool": self.tool,
            "changes": [vars(change) for change in self.changes],
            "left": [vars(left) for left in self.left],
            "numbers": self.numbers,
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return it as JSON; a number that is none is null."""
        return json.dumps(plain(self.to_dict()), indent=2, ensure_ascii=False, allow_nan=False)

    def __rich__(self) -> RenderableType:
        """Return the table, and below it what was left and what else there is to know."""
        parts: list[RenderableType] = []
        if self.changes:
            parts.append(self._table())
        facts = ", ".join(f"{name.replace('_', ' ')} {written(value)}" for name, value in self.numbers.items())
        if facts:
            parts.append(Text(facts))
        why = reasons(self.left)
        parts += [Text(f"left {reason}") for reason in why[:REASONS]]
        parts += [Text(f"left {len(why) - REASONS} more, each with its reason in `left`")] if len(why) > REASONS else []
        parts += [Text(note) for note in self.notes]
        return Group(*(parts or [Text(f"{self.tool}: nothing to change")]))

    def _table(self) -> Table:
        numbers = list(dict.fromkeys(name for change in self.changes for name in change.numbers))
        told = [name for name in ("what", "before", "after") if any(getattr(change, name) for change in self.changes)]
        made = Table("layer", *told, title=self.tool, title_justify="left", title_style="bold")
        for name in numbers:
            made.add_column(name.replace("_", " "), justify="right", no_wrap=True)
        for change in self.changes:
            values = [written(change.numbers[name]) if name in change.numbers else "" for name in numbers]
            made.add_row(Text(change.where), *(Text(getattr(change, name)) for name in told), *values)
        return made

    def __str__(self) -> str:
        """Return what `print` shows."""
        console = Console(file=StringIO(), width=WIDTH, highlight=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def written(value: Any) -> str:
    """Return a number as people read it.

    >>> written(0.012345), written(7), written(1.5e-7), written(50176.0)
    ('0.0123', '7', '1.5e-07', '50,176')
    """
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.3g}"


def _nothing(tool: str, model: nn.Module) -> str:
    """Say that there is nothing to work on; and name the classes that sound as if they were."""
    if tool == "insert":
        return "it has no Linear or convolution whose output is activated on its way to another, or `where` names none"
    foreign = dict.fromkeys(type(m).__name__ for m in model.modules() if "BatchNorm" in type(m).__name__)
    return f"it has no batch normalization of a class that is known{f', but {shorten([*foreign])}' if foreign else ''}"


def reasons(left: Sequence[Left]) -> list[str]:
    """Return each reason once, with the names of the first layers that it holds for.

    >>> reasons([Left("a", "it is frozen"), Left("b", "it is frozen")])
    ['a, b: it is frozen']
    """
    why = dict.fromkeys(one.why for one in left)
    return [f"{shorten([one.where for one in left if one.why == reason])}: {reason}" for reason in why]


SCRIPTED = "it is TorchScript, whose layers cannot be reached: give the module it was made from"


def require_change(report: Report, allow_empty: bool) -> Report:
    """Return the report, with the layers that nothing can reach, unless nothing was changed and that is not allowed.

    Raises:
        BatchNormError: then, with what was left and why.
    """
    hidden = [Left(name, SCRIPTED) for name in scripted(report.model)]
    report = replace(report, left=[*report.left, *hidden])
    if report.changes or allow_empty:
        return report
    why = "; ".join([*reasons(report.left), *report.notes]) or _nothing(report.tool, report.model)
    raise BatchNormError(
        f"{report.tool} has found nothing to change in {type(report.model).__name__}"
        f" ({why}); allow_empty=True if that is right"
    )
