"""A small picture of one effect against its threshold: the interval as a bar, the median as a dot, in plain SVG.

The threshold stands in the middle of every bar, and the side that the claim needs is shaded: a claim holds where the
whole bar lies in the shade.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup, escape

from batchnorm.study.intervals import FEWEST
from batchnorm.study.wording import needed

WIDTH, HEIGHT, MARGIN = 170, 40, 9
MIDDLE, LEVEL = WIDTH / 2, 11.0
REACH = MIDDLE - MARGIN - 6  # pixels from the threshold to the value farthest from it
Place = Callable[[float], float]  # from a value to its pixel
LEAST_RATIO = math.log(1.5)  # a bar that spans less would make a trifle look large


def bar(effect: Mapping[str, Any]) -> Markup:
    """Return an effect as an inline SVG element with alternative text.

    A ratio is drawn on a logarithmic scale. An end that is not bounded is an arrow to the edge.
    """
    place = _scale(effect)
    above = effect["side"] == "above"
    parts = [
        f'<rect class="claimed" x="{MIDDLE if above else MARGIN:g}" y="0" width="{MIDDLE - MARGIN:g}" '
        f'height="{2 * LEVEL:g}"/>',
        *_interval(effect, place),
        f'<path class="tick" d="M{MIDDLE:g} 0V{2 * LEVEL + 3:g}"/>',
        *_median(effect, place),
        f'<text x="{MIDDLE:g}" y="{HEIGHT - 5}" text-anchor="middle">needs {escape(needed(effect))}</text>',
    ]
    words = f"{effect['text']}; needed: {needed(effect)}"
    return Markup(
        f'<svg class="bar" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(words)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _logarithmic(effect: Mapping[str, Any]) -> bool:
    return effect["unit"] == "×" and effect["threshold"] > 0


def _scale(effect: Mapping[str, Any]) -> Place:
    """Return the function from a value to its place, the threshold in the middle and every value within the bar."""
    logarithmic, threshold = _logarithmic(effect), effect["threshold"]
    values = [effect[k] for k in ("value", "low", "high") if effect[k] is not None]

    def distance(value: float) -> float:
        if not logarithmic:
            return value - threshold
        return math.log(value / threshold) if value > 0 else -math.inf

    finite = [abs(distance(v)) for v in values if math.isfinite(distance(v))]
    least = LEAST_RATIO if logarithmic else abs(threshold) * 0.5
    span = max([*finite, least]) or 1.0

    def place(value: float) -> float:
        return MIDDLE + min(max(distance(value) / span, -1.0), 1.0) * REACH

    return place


def _interval(effect: Mapping[str, Any], place: Place) -> list[str]:
    """Draw the interval; where there is none because there are too few seeds, nothing."""
    low, high, bound = effect["low"], effect["high"], effect["bound"]
    if _logarithmic(effect) and low == 0:
        low = None
    if low is None and high is None and bound == "exact" and len(effect["samples"]) < FEWEST:
        return []
    # Without an interval a bound still says to which side the effect may reach.
    ends = (
        effect["value"] if low is None and bound == "at least" else low,
        effect["value"] if high is None and bound == "at most" else high,
    )
    left, right = (None if end is None else place(end) for end in ends)
    start, stop = MARGIN if left is None else left, WIDTH - MARGIN if right is None else right
    unknown = " unknown" if bound == "unknown" and left is None and right is None else ""
    drawn = [f'<path class="interval{unknown}" d="M{start:.1f} {LEVEL:g}H{max(stop, start + 1):.1f}"/>']
    if left is None:
        drawn.append(f'<path class="end" d="M{MARGIN + 1} 4L2 {LEVEL:g}L{MARGIN + 1} 18"/>')
    if right is None:
        drawn.append(f'<path class="end" d="M{WIDTH - MARGIN - 1} 4L{WIDTH - 2} {LEVEL:g}L{WIDTH - MARGIN - 1} 18"/>')
    return drawn


def _median(effect: Mapping[str, Any], place: Place) -> list[str]:
    """Draw the median: a dot, or a triangle that points to where it may lie if it is a bound."""
    if effect["value"] is None:
        return []
    x = place(effect["value"])
    tips = {"at least": 6, "at most": -6}
    if effect["bound"] in tips:
        tip = tips[effect["bound"]]
        return [f'<path class="median" d="M{x - tip:.1f} 4.5L{x + tip:.1f} {LEVEL:g}L{x - tip:.1f} 17.5Z"/>']
    return [f'<circle class="median" cx="{x:.1f}" cy="{LEVEL:g}" r="5"/>']
