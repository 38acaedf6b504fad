"""What `advise` answers: the batch size, the limits it follows from, and how sure that is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from batchnorm.batch_size.decision import Objective
from batchnorm.outputs import plain

LimitName = Literal["memory", "throughput", "gradient_noise", "statistics_noise"]
Binding = Literal["memory", "throughput", "gradient_noise", "statistics_noise", "group", "data", "budget"]
Confidence = Literal["high", "medium", "low"]


@dataclass(frozen=True)
class Limit:
    """One of the four limits.

    Attributes:
        value: In samples; None where it could not be measured, or does not exist.
        low: Lower end of its interval.
        high: Upper end.
        is_bound: Whether the value is only a bound: memory and gradient noise "at least" so much.
        note: What was measured, in a sentence.
    """

    value: float | None
    low: float | None
    high: float | None
    is_bound: bool
    note: str


@dataclass(frozen=True)
class Advice:
    """Which batch size, and why.

    `print` shows it on one page; `to_json()` and `plot()` give the numbers and the picture.

    Attributes:
        batch_size: B, the samples of one optimizer step, over all processes.
        group_size: m, the samples that are normalised together. Accumulation and more processes raise B, never m.
        binding: The limit that decides; "data" where there are too few rows for more, "group" where smaller batches
            would do but for how many samples are to be normalised together, "budget" where there was no time to
            measure the limit that would.
        limits: "memory", "throughput", "gradient_noise" and "statistics_noise", each a `Limit`.
        objective: Least "time" or little "compute".
        best: B*, where the predicted time is least.
        plateau: The smallest and the largest size predicted within 5 % of it.
        confidence: "high", "medium" or "low".
        because: What the confidence rests on.
        doubts: Why it is low, the gravest first; none where it is not.
        between: The smallest and the largest B that follow from what was measured: by the usual times of a step in
            place of the least, and by the ends of the noise scale's interval.
        measured_on: The data, network, loss, optimizer and device that were measured.
        current: The batch size that the factors below start from: the DataLoader's, else 32.
        learning_rate_factor: By what to multiply the learning rate when going from `current` to `batch_size`; None
            where the gradient noise, up to which it grows, was not measured.
        learning_rate: For plain SGD at `batch_size`, if one was looked for and found.
        momentum: The running statistics' α by which they forget as many samples ago as they do now, by the present α.
        remedies: What helps where too few samples are normalised together, first things first.
        notes: What else is worth knowing.
        seconds: The least seconds of a step, by the samples of one process.
        predicted: Predicted seconds to the target, relative to the least, by batch size.
        measured: With `measure=True`: the measured ones, relative to the least, by batch size.
        processes: How many processes train together.
        interrupted: What was being measured when Ctrl-C came; "" if nothing was cut short.
        details: Every other number, as plain data.
    """

    batch_size: int
    group_size: int
    binding: Binding
    limits: Mapping[LimitName, Limit]
    objective: Objective
    best: float
    plateau: tuple[float, float]
    confidence: Confidence
    because: str
    current: int
    learning_rate_factor: float | None
    doubts: tuple[str, ...] = ()
    between: tuple[int, int] = (0, 0)
    measured_on: Mapping[str, str] = field(default_factory=dict[str, str])
    learning_rate: float | None = None
    momentum: Mapping[float, float] = field(default_factory=dict[float, float])
    remedies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[int, float] = field(default_factory=dict[int, float])
    predicted: Mapping[int, float] = field(default_factory=dict[int, float])
    measured: Mapping[int, float] = field(default_factory=dict[int, float])
    processes: int = 1
    interrupted: str = ""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data; infinities and NaN as None."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain({**fields, "limits": {name: vars(limit) for name, limit in self.limits.items()}})

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False)

    def __str__(self) -> str:
        """Return the page as text."""
        from batchnorm.batch_size.page import text

        return text(self)

    def __repr__(self) -> str:
        """Return the answer in a line."""
        return (
            f"<Advice: B = {self.batch_size}, m = {self.group_size}, by {self.binding}, confidence {self.confidence}>"
        )

    def __rich__(self) -> Any:
        """Return the page for a terminal."""
        from batchnorm.batch_size.page import page

        return page(self)

    def plot(self) -> Any:
        """Return a matplotlib figure: time against B with the four limits, the plateau and the choice.

        Raises:
            MissingExtraError: if the extra `study`, which brings matplotlib, is not installed.
        """
        from batchnorm.batch_size.picture import draw

        return draw(self)
