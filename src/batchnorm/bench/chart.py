"""The chart of a run: how many times as fast as torch eager each contender is, a row a shape, a panel an operation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from batchnorm.bench.cases import Case, written
from batchnorm.bench.contenders import BASELINE, OURS
from batchnorm.bench.goals import GOALS
from batchnorm.bench.results import Results, Row
from batchnorm.errors import ArgumentError
from batchnorm.study.pictures import FAINT, INK, PAPER, STYLE

DOTS_PER_INCH = 150
WIDTH, ROW_HEIGHT, AROUND = 12.0, 0.25, 1.75  # inches
BAND, MUTED = "#f2f5f8", "#6b7280"
TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Look(NamedTuple):
    """How a contender is drawn."""

    colour: str
    marker: str
    size: float
    filled: bool = True


LOOKS = {
    "torch in place": Look(MUTED, "|", 8),
    "torch.compile": Look("#d1495b", "D", 4.2, filled=False),
    "keras": Look("#b07d12", "^", 5, filled=False),
    "flax": Look("#5b8c5a", "s", 4.4, filled=False),
    OURS: Look("#2e86ab", "o", 7),  # drawn last, on top
}
PANELS = (
    ("train", "float32", "training step"),
    ("train+add+relu", "float32", "… with add and ReLU"),
    ("train", "bfloat16", "training step"),
    ("inference", "float32", "inference"),
)
SHOWN = ", ".join(f"{op} in {dtype}" for op, dtype, _ in PANELS)


def save(results: Results, path: Path) -> None:
    """Write the chart to a .png or .svg.

    Raises:
        ArgumentError: if nothing was measured that it could show.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": "bench"}):
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        figure(results).savefig(path, dpi=DOTS_PER_INCH, facecolor="white", metadata=metadata)


def figure(results: Results) -> Figure:
    """Return the chart, of memory kept if that was measured.

    Raises:
        ArgumentError: if nothing was measured that it could show.
    """
    modes = [row.memory for row in results.rows]
    mode = "kept" if "kept" in modes or not modes else modes[0]
    rows = [row for row in results.rows if row.memory == mode and row.ratio is not None]
    panels = [p for p in PANELS if any(_in_panel(row, p) for row in rows)]
    if not panels:
        raise ArgumentError(f"the chart shows {SHOWN}: nothing of that was measured")
    places = _places([row for row in rows if any(_in_panel(row, p) for p in panels)])
    made = Figure(figsize=(WIDTH, AROUND + ROW_HEIGHT * len(places)), layout="constrained")
    axes: Sequence[Axes] = made.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _panel(ax, [row for row in rows if _in_panel(row, panel)], places, panel)
    _shapes(axes[0], places)
    _explain(made, results, mode)
    for text in made.findobj(Text):
        if isinstance(text, Text) and str(text.get_color()) in PAPER:
            text.set_color(PAPER[str(text.get_color())])
    return made


def check(cases: Sequence[Case]) -> None:
    """Refuse cases none of which the chart would show, before they are measured.

    Raises:
        ArgumentError: if so.
    """
    if not any((case.op, case.dtype) == panel[:2] for case in cases for panel in PANELS):
        raise ArgumentError(f"the chart shows {SHOWN}: nothing of that is measured")


def _in_panel(row: Row, panel: tuple[str, str, str]) -> bool:
    return (row.case.op, row.case.dtype) == panel[:2]


def _places(rows: Sequence[Row]) -> dict[tuple[Any, str], int]:
    """Return the row of each shape and layout, from the top: shapes by their bytes, layouts of one together."""
    found = dict.fromkeys((row.case.shape, row.case.layout) for row in rows)
    shapes = list(dict.fromkeys(shape for shape, _ in found))
    ordered = sorted(found, key=lambda key: (shapes.index(key[0]), key[1]))
    return {key: place for place, key in enumerate(ordered)}


def _panel(ax: Axes, rows: Sequence[Row], places: dict[tuple[Any, str], int], panel: tuple[str, str, str]) -> None:
    ax.set_title(panel[2], fontweight="bold", pad=8)
    ax.text(1.0, 1.012, panel[1], transform=ax.transAxes, ha="right", va="bottom", fontsize=9, color=MUTED)
    ax.axvline(1.0, color=PAPER[INK], linewidth=1.0, zorder=1.5)
    for row in rows:
        if row.contender == OURS and row.ratio is not None:
            place = places[row.case.shape, row.case.layout]
            ax.plot([1.0, row.ratio], [place, place], color=LOOKS[OURS].colour, linewidth=2.2, alpha=0.45, zorder=2)
            for goal in (goal for goal in GOALS if goal.unit == "×" and goal.about(row)):
                at = [place - 0.42, place + 0.42]
                ax.plot([goal.mean] * 2, at, color=LOOKS[OURS].colour, linewidth=1.6, zorder=1.8)
    for name, look in LOOKS.items():
        points = [(r.ratio, places[r.case.shape, r.case.layout]) for r in rows if r.contender == name]
        if points:
            ax.plot(
                *zip(*points, strict=True), look.marker, markersize=look.size, color=look.colour,
                markerfacecolor=look.colour if look.filled else "white", markeredgewidth=1.3, zorder=3,
            )  # fmt: skip
    _axis_of_ratios(ax, [row.ratio for row in rows if row.ratio is not None])


def _axis_of_ratios(ax: Axes, ratios: Sequence[float]) -> None:
    ax.set_xscale("log")
    low, high = min([0.45, *ratios]) / 1.15, max([5.0, *ratios]) * 1.2
    ax.set_xlim(low, high)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}×"))
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x", color=PAPER[FAINT], linewidth=0.6)
    ax.tick_params(length=0, labelcolor=PAPER[INK])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _shapes(ax: Axes, places: dict[tuple[Any, str], int]) -> None:
    """Name the rows: each shape once, beside its layouts, every second shape on a band."""
    layouts = [layout for _, layout in places]
    ax.set_yticks(list(places.values()), layouts, fontsize=9, color=MUTED)
    ax.set_ylim(len(places) - 0.4, -0.6)
    shapes = list(dict.fromkeys(shape for shape, _ in places))
    figure_of: Any = ax.get_figure()
    for position, shape in enumerate(shapes):
        of_shape = [place for key, place in places.items() if key[0] == shape]
        middle = sum(of_shape) / len(of_shape)
        ax.annotate(
            written(shape), (0, middle), xycoords=("axes fraction", "data"), xytext=(-50, 0),
            textcoords="offset points", ha="right", va="center", fontsize=10, annotation_clip=False,
        )  # fmt: skip
        if position % 2 == 0:
            for each in figure_of.axes:
                each.axhspan(of_shape[0] - 0.5, of_shape[-1] + 0.5, color=BAND, zorder=0, linewidth=0)


def _explain(made: Figure, results: Results, mode: str) -> None:
    """Add the title, who is who, and what it was measured on."""
    handles: list[Line2D] = []
    names = [name for name in [OURS, *LOOKS] if any(row.contender == name for row in results.rows)]
    for name in dict.fromkeys(names):
        look = LOOKS[name]
        mark: dict[str, Any] = {"marker": look.marker, "markersize": look.size, "markeredgewidth": 1.3, "linestyle": ""}
        face = look.colour if look.filled else "white"
        handles.append(Line2D([], [], color=look.colour, markerfacecolor=face, label=name, **mark))
    handles.append(Line2D([], [], color=PAPER[INK], linewidth=1.0, label=f"{BASELINE} eager"))
    handles.append(Line2D([], [], color=LOOKS[OURS].colour, linewidth=1.6, label="goal (geometric mean)"))
    made.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=10, handlelength=1.2)
    machine = results.machine
    versions = ", ".join(
        f"{n} {machine['versions'][n]}" for n in ("torch", "tensorflow", "flax") if n in machine["versions"]
    )
    unfinished = "" if results.finished else "INTERRUPTED: what was finished. "
    made.supxlabel(
        f"{unfinished}Times as fast as torch eager, least times of the same rounds; further right is faster.\n"
        f"{machine['cpu']}, {results.settings['threads']} threads, memory {mode}; {versions}",
        fontsize=9.5, color=MUTED,
    )  # fmt: skip
