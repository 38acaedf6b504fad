"""One look for every picture: colours that read on white and on black, and SVG that stands in a page as text."""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, LogFormatterMathtext

from batchnorm.study import labels
from batchnorm.study.style import (
    COLOURS,
    FAINT,
    FOURTH,
    INK,
    LARGEST,
    NORMALISED,
    OTHER,
    PAPER,
    PLAIN,
    SMALLEST,
    STYLE,
    VARIABLES,
    WIDTH,
)

__all__ = [
    "COLOURS", "FAINT", "FOURTH", "INK", "LARGEST", "NORMALISED", "OTHER", "PAPER", "PLAIN", "SMALLEST", "STYLE",
    "WIDTH", "decade", "figure", "headline", "inline", "literal", "power_of_ten", "save",
]  # fmt: skip

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HEADLINE = 52  # characters in a row of bold text that a figure has room for
TITLE = 48  # characters in a row of the title of a panel
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_COLOUR = re.compile("|".join(VARIABLES))


def figure(panels: int = 1, *, share_y: bool = False, height: float | None = None) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure in the common style, its panels one below the other so that a phone shows them large enough.

    Args:
        panels: How many.
        share_y: Whether they share the scale of y; the first one's label then stands beside each.
        height: Of one panel, in inches; None: 3.2, or 2.5 where there are several.
    """
    each = height or (3.2 if panels == 1 else 2.5)
    with mpl.rc_context(STYLE):
        made = Figure(figsize=(WIDTH, each * panels), layout="constrained")
        axes = made.subplots(panels, 1, squeeze=False, sharey=share_y)[:, 0]
    return made, list(axes)


def headline(made: Figure, text: str) -> None:
    """Write the point of a picture above it, with its number: "4.6 times fewer steps to accuracy 0.95"."""
    words = textwrap.fill(text, HEADLINE)
    made.suptitle(words, x=0.01, ha="left", fontsize=LARGEST, fontweight="bold", color=INK)


def literal(text: str, most: int = 32) -> str:
    r"""Return a name from the user's data as a label that shows what it says.

    A dollar sign would start a formula, control characters have no place in an SVG, and a long name leaves no room
    for the picture.

    Args:
        text: The name.
        most: Characters to keep; a longer name ends in an ellipsis.

    >>> print(literal("$cost$ in $"), literal("a very long name of a column", most=12))
    \$cost\$ in \$ a very long…
    """
    line = " ".join(_UNPRINTABLE.sub("\ufffd", text).split())
    return (line if len(line) <= most else line[: most - 1].rstrip() + "…").replace("$", r"\$")


def inline(made: Figure, key: str, title: str, description: str) -> str:
    """Return the figure as an SVG element: accessible, with the page's colours and font, its ids unique in the page.

    Args:
        made: The figure; titles, legends and labels added to it are brought into the common style, labels of
            `labels` and a legend to the place where they hide least.
        key: Prefix of every id, without spaces; the same figure with the same key gives the same text.
        title: Short name, for the element's title.
        description: What it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": key}), warnings.catch_warnings():
        # The reader's fonts draw the text, not the one that matplotlib measures it with.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        _restyle(made)
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(_UNPRINTABLE.sub("\ufffd", buffer.getvalue()))
    for element in root.iter():
        _for_page(element, key)
    for parent in root.findall(f".//{{{_SVG}}}style/.."):
        for style in parent.findall(f"{{{_SVG}}}style"):  # `*` would mean every element of the page
            parent.remove(style)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    names = {"role": "img", "aria-labelledby": f"{key}-title", "aria-describedby": f"{key}-desc"}
    root.attrib.update({**names, "stroke-linejoin": "round", "stroke-linecap": "butt"})
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        named = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{key}-{tag}"})
        named.text = _UNPRINTABLE.sub("\ufffd", text)
        root.insert(position, named)
    ElementTree.register_namespace("", _SVG)
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode"))


def save(made: Figure, path: Path) -> None:
    """Write a figure to a file of its own: black on white, in the common style."""
    with mpl.rc_context(STYLE):
        _restyle(made)
        for thing in made.findobj():
            for get, put in (("get_color", "set_color"), ("get_edgecolor", "set_edgecolor")):
                colour = getattr(thing, get, lambda: None)()
                if isinstance(colour, str) and colour in PAPER:
                    getattr(thing, put)(PAPER[colour])
        made.savefig(path, dpi=150, facecolor="white")


class _Decades(LogFormatter):
    """Labels what matplotlib would label on a logarithmic axis, in characters instead of a formula."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return decade(x) if super().__call__(x, pos) else ""


def decade(x: float) -> str:
    """Return a number of a logarithmic axis as people write it.

    >>> [decade(x) for x in (0.0, 1e-5, 0.03, 1.0, 8.0, 1000.0, 2e5)]
    ['0', '10⁻⁵', '0.03', '1', '8', '1,000', '2·10⁵']
    """
    return f"{x:,.10g}".replace("-", "−") if x == 0 or 1e-3 <= abs(x) < 1e5 else power_of_ten(x)


def power_of_ten(x: float) -> str:
    """Return a number with its power of ten, to three significant digits.

    >>> power_of_ten(-0.0000123), power_of_ten(1e6)
    ('−1.23·10⁻⁵', '10⁶')
    """
    digits, _, exponent = f"{x:.2e}".partition("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = f"{float(digits):g}".replace("-", "−")
    return power if factor == "1" else f"{factor}·{power}"


def _restyle(made: Figure) -> None:
    """Bring what was added to a figure outside its style into it: matplotlib takes these settings when it is called."""
    for axes in made.axes:
        title = axes.get_title("left") or axes.get_title("center")
        axes.set_title("", loc="center")
        axes.set_title("\n".join(textwrap.fill(row, TITLE) for row in title.splitlines()), loc="left")
        if not axes.get_ylabel():
            sharing = axes.get_shared_y_axes().get_siblings(axes)
            axes.set_ylabel(min(sharing, key=made.axes.index).get_ylabel())
        for axis in (axes.xaxis, axes.yaxis):
            _spell_out(axis)
        legend = axes.get_legend()
        if legend is not None:
            legend.set_frame_on(False)
            legend.set_loc("best")  # which place is free depends on the data
    for text in made.findobj(Text):
        if isinstance(text, Text):
            text.set_fontsize(min(max(float(text.get_fontsize()), SMALLEST), LARGEST))
            if same_color(text.get_color(), "black"):
                text.set_color(INK)
    labels.arrange(made)


def _spell_out(axis: Axis) -> None:
    for formatter, put in (
        (axis.get_major_formatter(), axis.set_major_formatter),
        (axis.get_minor_formatter(), axis.set_minor_formatter),
    ):
        if isinstance(formatter, LogFormatterMathtext):
            base: Any = getattr(axis.get_transform(), "base", 10.0)
            put(_Decades(base, labelOnlyBase=formatter.labelOnlyBase))


def _for_page(element: ElementTree.Element, key: str) -> None:
    """Give one element ids of its own, the page's colours and the page's font."""
    reference = element.attrib.pop(f"{{{_XLINK}}}href", None)
    if reference is not None:
        element.set("href", f"#{key}-{reference[1:]}")
    for name, value in element.attrib.items():
        if name == "id":
            element.set(name, f"{key}-{value}")
        elif name == "style":
            value = _COLOUR.sub(lambda colour: VARIABLES[colour[0]], value)
            element.set(name, re.sub(r"font-family: [^;]*", "font-family: var(--font, sans-serif)", value))
        elif name == "d":
            element.set(name, " ".join(value.split()))
        elif value.startswith("url(#"):
            element.set(name, f"url(#{key}-{value[5:]}")
