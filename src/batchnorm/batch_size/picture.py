"""The advice as one picture: predicted and measured time against B, the four limits, the plateau and the choice."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from batchnorm.batch_size.advice import Advice
from batchnorm.batch_size.remarks import number
from batchnorm.errors import MissingExtraError

NAMES = {
    "memory": "memory",
    "throughput": "throughput\nBhalf",
    "gradient_noise": "gradient\nnoise Bcrit",
    "statistics_noise": "statistics\nnoise m_min",
}
TALLEST = 12.0  # times the least: what lies above is off the picture


def draw(advice: Advice) -> Any:
    """Return the figure, in the style of the study's report.

    Raises:
        MissingExtraError: without matplotlib.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("Advice.plot", "matplotlib", "study")
    from batchnorm.study import pictures

    made, (time, limits) = pictures.figure(2, height=2.6)
    sizes = sorted(advice.predicted)
    most = max(sizes[-1], int(advice.limits["memory"].value or 0))
    _draw_time(time, advice, sizes)
    _draw_limits(limits, advice, [*sizes, most])
    marks = [1 << i for i in range(17) if sizes[0] <= 1 << i <= sizes[-1]]
    marks = marks[:: 1 + len(marks) // 9]
    low, high = (min(max(edge, sizes[0]), sizes[-1]) for edge in advice.plateau)
    for axes in (time, limits):
        axes.axvspan(low, high, color=pictures.NORMALISED, alpha=0.15, linewidth=0)
        axes.axvline(advice.batch_size, color=pictures.INK, linewidth=1.4)
        axes.set(xscale="log", xlim=(sizes[0] / 1.3, most * 1.3))
        axes.set_xticks(marks, [f"{m:,}" for m in marks])
        axes.minorticks_off()
    limits.set(xlabel="batch size B, in samples")
    return made


def _draw_time(axes: Any, advice: Advice, sizes: Sequence[int]) -> None:
    from batchnorm.study import pictures

    times = [advice.predicted[size] for size in sizes]
    axes.plot(sizes, times, color=pictures.NORMALISED, label="predicted", linewidth=1.8)
    known = {size: t for size, t in advice.measured.items() if math.isfinite(t)}
    if known:
        axes.plot(list(known), list(known.values()), color=pictures.PLAIN, marker="o", label="measured", linewidth=1.2)
        axes.legend()
    top = min(max([*times, *known.values()]) * 1.1, TALLEST)
    ticks = [t for t in (1, 1.5, 2, 3, 5, 8, 12) if t <= top]
    axes.set(yscale="log", ylim=(0.93, max(top, 1.6)))
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set(ylabel="time ÷ least")
    axes.set_title(f"time to a target: B = {advice.batch_size:,}, by {advice.binding.replace('_', ' ')}")


def _draw_limits(axes: Any, advice: Advice, sizes: Sequence[int]) -> None:
    """Draw each limit in a row of its own: its value, its interval, an arrow where it is a bound."""
    from batchnorm.study import pictures

    colours = dict(zip(NAMES, pictures.COLOURS, strict=True))
    rows = [(name, limit) for name, limit in advice.limits.items() if limit.value is not None][::-1]
    for height, (name, limit) in enumerate(rows):
        colour = colours[name]
        value = limit.value or 0.0
        at, low, high = (
            min(max(end, sizes[0]), sizes[-1]) for end in (value, limit.low or value, limit.high or math.inf)
        )
        axes.plot([low, high], [height, height], color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt")
        axes.plot([at], [height], color=colour, marker=">" if limit.is_bound else "D", markersize=7)
        axes.annotate(
            ("≥ " if limit.is_bound else "") + number(value), (at, height), xytext=(0, 7), ha="center",
            textcoords="offset points", fontsize=pictures.SMALLEST, color=pictures.INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [NAMES[name] for name, _ in rows])
    axes.set(ylim=(-0.5, len(rows) - 0.2), ylabel=" ")
    axes.set_title("the limits")
