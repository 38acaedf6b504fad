"""The colours, sizes and settings that every picture of a study shares."""

from typing import Any

# Stand-ins that `pictures.inline` turns into the page's own colours, light or dark.
INK, FAINT = "#010203", "#040506"
PAPER = {INK: "#1a1a1a", FAINT: "#d0d0d0"}
# At least 4.5 : 1 on white, as some label the lines; told apart with red-green blindness too. In a page they become
# variables as well, because no colour has 4.5 : 1 on white and on black.
PLAIN, NORMALISED, OTHER, FOURTH = "#c0374b", "#1d6f96", "#8a6200", "#3f7a41"
COLOURS = (NORMALISED, PLAIN, OTHER, FOURTH)
VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    PLAIN: f"var(--plain, {PLAIN})",
    NORMALISED: f"var(--normalised, {NORMALISED})",
    OTHER: f"var(--other, {OTHER})",
    FOURTH: f"var(--fourth, {FOURTH})",
}

# A phone shows 5.4 inches (389 points) 358 pixels wide: 11 points become 10 pixels, which can just be read.
WIDTH = 5.4
LARGEST, SMALLEST = 11.0, 10.0

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": LARGEST,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": LARGEST,
    "axes.titlelocation": "left",
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
