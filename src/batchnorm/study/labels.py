"""Words on a picture, where they belong: at the ends of lines, on named lines, on brackets, at a cut axis.

Where a label has room is known only when everything is drawn: `arrange` moves the labels then, apart from one another
and off the lines.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from batchnorm.study.style import INK, SMALLEST

LONGEST = 15  # characters in a row of a label beside a line
ROW = 1.25  # height of a row of text, in font sizes
GAP = 5.0  # between a line's end and its label, in points
TOUCHING = 2.0  # pixels at which a line counts as running through a label
POINTS_PER_INCH = 72.0
FLOOR = -0.25  # of an axis of R² or skill: guessing scores 0, and how far below hardly matters

Align = Literal["left", "center", "right"]
Points = NDArray[np.float64]
Kind = TypeVar("Kind", bound=Annotation)


class LineLabel(Annotation):
    """The name of a line, beside its end."""


class Place(NamedTuple):
    """Where a name may stand: its anchor as a share of the line's length, and how far from it, in rows of text."""

    along: float
    rows: float
    align: Align


class LineName(Annotation):
    """Text along a line, at that of several places where it hides least."""

    places: tuple[Place, ...] = ()
    ends: tuple[float, float] | None = None  # of the line, along x; None: the whole width of the axes


class Cut(LineName):
    """The words beside the mark of an axis that is cut off below."""

    lowest: float = math.inf
    diverged: bool = False


SIDEWAYS: tuple[tuple[Align, float], ...] = (("left", 0.02), ("right", 0.99), ("center", 0.5))
ALONG = tuple(Place(along, rows, align) for rows in (0.12, -1.12) for align, along in SIDEWAYS)
ABOVE = tuple(Place(along, rows, align) for rows in (0.15, 1.3) for align, along in SIDEWAYS)
BESIDE: tuple[tuple[Align, float], ...] = (("right", 1.0), ("left", 0.0), ("left", 1.0), ("right", 0.0))
ASTRIDE = (
    *(Place(0.5, rows, "center") for rows in (-1.25, 0.25)),
    *(Place(along, -1.35, align) for align, along in BESIDE),
    *(Place(along, rows, "center") for along in (0.5, 0.3, 0.7) for rows in (-2.3, 1.3, -3.4)),
)


def label_line(axes: Axes, line: Line2D, text: str | None = None) -> None:
    """Name a line at its end, in its own colour.

    Args:
        axes: The axes it lies in.
        line: The line; one without a finite point gets no label.
        text: Its name; None: the line's own label.
    """
    words = str(line.get_label()) if text is None else text
    points = np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        return
    label = LineLabel(
        _wrapped(words), tuple(points[-1]), xytext=(GAP, 0.0), textcoords="offset points",
        va="center", color=line.get_color(), annotation_clip=False,
    )  # fmt: skip
    _add(axes, label)


def _wrapped(words: str) -> str:
    return "\n".join(textwrap.fill(row, LONGEST) for row in words.splitlines())


def label_lines(axes: Axes, texts: Sequence[str] | None = None) -> None:
    """Name the lines of axes at their ends, in the order in which they were drawn, instead of in a legend.

    Args:
        axes: The axes.
        texts: A name for each line that has a label; None: those labels.
    """
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    names = [str(line.get_label()) for line in lines] if texts is None else texts
    for line, name in zip(lines, names, strict=True):
        label_line(axes, line, name)


def name_line(axes: Axes, y: float, text: str) -> None:
    """Draw a dotted horizontal line with its name on it: the goal, or what guessing scores."""
    axes.axhline(y, color=INK, linewidth=0.9, linestyle=(0, (1.5, 2.0)))
    reach(axes, y)
    _write(axes, y, text, ALONG)


def bracket(axes: Axes, x0: float, x1: float, y: float, text: str, *, open_end: bool = False) -> None:
    """Draw an effect: a line from one place to another at the height y, with a number on it.

    Args:
        axes: The axes.
        x0: Where it begins.
        x1: Where it ends.
        y: Its height.
        text: The number, with its unit.
        open_end: Whether it goes on beyond x1, nobody knows how far: it ends in an arrow then.
    """
    axes.plot([x0, x1], [y, y], color=INK, linewidth=2.0, solid_capstyle="butt", zorder=4)
    axes.plot([x0], [y], color=INK, marker="|", markersize=11, markeredgewidth=2.0, linestyle="", zorder=4)
    end: dict[str, Any] = {"marker": ">", "markersize": 7} if open_end else {"marker": "|", "markersize": 11}
    axes.plot([x1], [y], color=INK, markeredgewidth=0 if open_end else 2.0, linestyle="", zorder=4, **end)
    _write(axes, y, text, ASTRIDE, (x0, x1))


def clip_r2(axes: Axes, lowest: float, floor: float = FLOOR) -> None:
    """Cut an axis of scores off below, mark the cut and say how far down the scores go.

    Does nothing where no score lies below the floor. Of several calls the lowest score counts.

    Args:
        axes: The axes; what is drawn later must lie above the floor or be named in another call.
        lowest: The lowest score drawn; minus infinity for a run that diverged.
        floor: Where the axis ends.
    """
    if lowest >= floor:
        return
    axes.set_ylim(bottom=floor)
    cuts = _of(axes, Cut)
    if not cuts:
        stroke: dict[str, Any] = {
            "marker": [(-1.0, -0.45), (1.0, 0.45)], "markersize": 11, "color": INK, "markeredgewidth": 1.4,
            "linestyle": "", "clip_on": False, "transform": axes.transAxes, "zorder": 5,
        }  # fmt: skip
        axes.plot([0.0, 0.0], [0.015, 0.045], **stroke)
        cuts = [Cut("", (0.5, floor), **_within(axes))]
        cuts[0].places = ABOVE
        _add(axes, cuts[0])
    cut = cuts[0]
    if math.isinf(lowest):
        cut.diverged = True
    else:
        cut.lowest = min(cut.lowest, lowest)
    falls = [f"down to {cut.lowest:,.3g}".replace("-", "−")] if cut.lowest < floor else []
    cut.set_text("▼ axis cut: " + ", ".join([*falls, *["some runs diverged"] * cut.diverged]))


def reach(axes: Axes, highest: float) -> None:
    """Let axes whose limits were set before reach a height that is drawn now."""
    bottom, top = axes.get_ylim()
    if not axes.get_autoscaley_on() and highest > top:
        axes.set_ylim(top=highest + 0.04 * (highest - bottom))


def _within(axes: Axes) -> dict[str, Any]:
    """Return how text stands within axes: x as a share of their width, y in the data's units."""
    return {
        "xycoords": axes.get_yaxis_transform(), "xytext": (0.0, 0.0), "textcoords": "offset points",
        "color": INK, "fontsize": SMALLEST, "annotation_clip": False, "in_layout": False,
    }  # fmt: skip


def _write(axes: Axes, y: float, text: str, places: tuple[Place, ...], ends: tuple[float, float] | None = None) -> None:
    look = _within(axes)
    if ends is not None:
        look.update(xycoords="data", weight="bold")
    name = LineName(text, (0.5 if ends is None else ends[0], y), **look)
    name.places, name.ends = places, ends
    _add(axes, name)


def _add(axes: Axes, label: Annotation) -> None:
    axes.add_artist(label)
    label.set_clip_on(False)  # which `add_artist` sets; the room for what is clipped is not reserved


def arrange(figure: Figure) -> None:
    """Move the labels of a figure to where they can be read, and remove legends that say the same."""
    labelled = [axes for axes in figure.axes if _of(axes, LineLabel) or _of(axes, LineName)]
    if not labelled:
        return
    for axes in labelled:
        legend, names = axes.get_legend(), {str(label.get_text()) for label in _of(axes, LineLabel)}
        if legend is not None and {_wrapped(t.get_text()) for t in legend.get_texts()} <= names:
            legend.remove()
    figure.draw_without_rendering()
    for axes in labelled:
        _spread(axes, _of(axes, LineLabel))
        taken = [_box(label) for label in _of(axes, LineLabel)]
        for name in _of(axes, LineName):
            taken.append(_settle(axes, name, taken))


def _of(axes: Axes, kind: type[Kind]) -> list[Kind]:
    return [child for child in axes.get_children() if isinstance(child, kind)]


def _dots(axes: Axes) -> float:
    """Return the pixels of a point."""
    figure: Any = axes.get_figure()
    return float(figure.dpi) / POINTS_PER_INCH


def _spread(axes: Axes, labels: Sequence[LineLabel]) -> None:
    """Push labels at the ends of lines apart, each as near to its line as the others let it."""
    dots, frame = _dots(axes), axes.get_window_extent()
    ends: Any = axes.transData.transform([label.xy for label in labels]) if labels else np.empty((0, 2))
    wanted = [float(y) for y in ends[:, 1]]
    heights = [_rows(label) * dots for label in labels]
    order = sorted(range(len(labels)), key=lambda i: wanted[i])
    groups: list[tuple[list[int], float, float]] = []  # members from below, their height together, their middle
    for i in order:
        members, height = [i], heights[i]
        middle = _between(wanted[i], height, frame)
        while groups and groups[-1][2] + groups[-1][1] / 2 > middle - height / 2:
            below, below_height, below_middle = groups.pop()
            middle = (below_middle * len(below) + middle * len(members)) / (len(below) + len(members))
            members, height = [*below, *members], below_height + height
            middle = _between(middle, height, frame)
        groups.append((members, height, middle))
    for members, height, middle in groups:
        y = middle - height / 2
        for i in members:
            y += heights[i] / 2
            labels[i].set_position((GAP, (y - ends[i, 1]) / dots))
            y += heights[i] / 2


def _between(middle: float, height: float, frame: Bbox) -> float:
    """Return the middle of labels so high that they do not stand out of the frame."""
    return min(max(middle, frame.y0 + height / 2), max(frame.y1 - height / 2, frame.y0 + height / 2))


def _rows(label: Annotation) -> float:
    """Return the height of a label in points."""
    return ROW * float(label.get_fontsize()) * (str(label.get_text()).count("\n") + 1)


def _box(label: Annotation) -> Bbox:
    return label.get_window_extent()


def _settle(axes: Axes, name: LineName, taken: Sequence[Bbox]) -> Bbox:
    """Put a name where it hides least, and return its box."""
    others, frame, dots = _trace(axes, float(name.xy[1])), axes.get_window_extent(), _dots(axes)
    best: tuple[float, Place] | None = None
    for place in name.places:
        _put(axes, name, place, dots)
        box = _box(name)
        inside = (
            (others[:, 0] > box.x0 - TOUCHING) & (others[:, 0] < box.x1 + TOUCHING)
            & (others[:, 1] > box.y0 - TOUCHING) & (others[:, 1] < box.y1 + TOUCHING)
        )  # fmt: skip
        outside = max(0.0, box.y1 - frame.y1 - TOUCHING) + max(0.0, frame.y0 - box.y0 - TOUCHING)
        hidden = float(inside.sum()) + 10.0 * outside + 100.0 * sum(box.overlaps(other) for other in taken)
        if best is None or hidden < best[0]:
            best = hidden, place
    if best is not None:
        _put(axes, name, best[1], dots)
    return _box(name)


def _put(axes: Axes, name: LineName, place: Place, dots: float) -> None:
    frame = axes.get_window_extent()
    left, right = frame.x0, frame.x1
    if name.ends is not None:
        ends: Any = axes.transData.transform([(x, name.xy[1]) for x in name.ends])
        left, right = float(ends[0, 0]), float(ends[1, 0])
        anchor = left
    else:
        anchor = (left + right) / 2
    name.set_horizontalalignment(place.align)
    name.set_verticalalignment("bottom")
    x = left + place.along * (right - left)
    name.set_position(((x - anchor) / dots, place.rows * float(name.get_fontsize()) * ROW))


def _trace(axes: Axes, own: float) -> Points:
    """Return points along the lines of the axes, in pixels, near enough to one another to find any crossing.

    Horizontal lines at the height `own` are left out: a name is meant to stand on them.
    """
    pieces = [piece for line in axes.get_lines() for piece in _pieces(line, own)]
    return np.concatenate(pieces) if pieces else np.empty((0, 2))


def _pieces(line: Line2D, own: float) -> Iterator[Points]:
    if np.all(np.asarray(line.get_ydata(), float) == own):
        return
    corners: Points = np.asarray(line.get_transform().transform(line.get_xydata()), float)
    corners = corners[np.isfinite(corners).all(axis=1)]
    for start, end in pairwise(corners):
        steps = int(np.clip(np.hypot(*(end - start)) / TOUCHING, 1, 500))
        yield start + (end - start) * np.linspace(0, 1, steps + 1)[:, None]
