"""The pictures: the page's colours and font, names as they are, labels beside their lines and clear of one another."""

import html
import math
import re
from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from batchnorm.study import labels, pictures
from batchnorm.study.curves import draw_curve, draw_goal, draw_grid
from report_example import HOSTILE, STEPS, curve


def drawing(key: str) -> str:
    figure, (axes,) = pictures.figure()
    axes.plot([1, 10, 1000], [0.1, 0.5, 0.9], color=pictures.NORMALISED, label=pictures.literal(HOSTILE))
    axes.plot([1, 10, 1000], [0.1, 0.2, 0.8], color="black", label=pictures.literal("年収 $a$ and $b"))
    axes.set(xscale="log", xlabel="training steps", title="sigmoid")
    axes.legend()
    return pictures.inline(figure, key, "T", "D")


def arranged(figure: Figure) -> list[labels.LineLabel]:
    labels.arrange(figure)
    return [child for axes in figure.axes for child in axes.get_children() if isinstance(child, labels.LineLabel)]


def ranged(middle: float, high: float, spread: float = 0.05) -> dict[str, list[float]]:
    drawn = curve(middle, 0.1, high)
    median = drawn["median"]
    return drawn | {"low": [m - spread for m in median], "high": [m + spread for m in median]}


def names(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_picture_is_the_same_text_every_time() -> None:
    figure, (axes,) = pictures.figure()
    draw_curve(axes, ranged(30, 0.9), "with", pictures.NORMALISED)
    draw_goal(axes, 0.8, guess=0.1)
    axes.set(xscale="log")
    first = pictures.inline(figure, "speed", "T", "D")
    assert pictures.inline(figure, "speed", "T", "D") == first
    assert drawing("speed") == drawing("speed")
    other = pictures.inline(figure, "other", "T", "D")
    assert not set(re.findall(r'\bid="([^"]*)"', first)) & set(re.findall(r'\bid="([^"]*)"', other))


def test_pictures_take_the_colours_and_the_font_of_the_page() -> None:
    svg = drawing("speed")
    assert pictures.INK not in svg
    assert pictures.FAINT not in svg
    assert f"stroke: var(--normalised, {pictures.NORMALISED})" in svg
    assert "<style" not in svg
    texts = re.findall(r'<text style="([^"]*)"', svg)
    assert len(texts) > 5
    for style in texts:
        assert "fill: var(--ink)" in style
        assert "font-family: var(--font, sans-serif)" in style
        assert pictures.SMALLEST <= float(re.findall(r"font-size: ([\d.]+)px", style)[0]) <= pictures.LARGEST


def test_labels_of_a_picture_say_what_the_names_say() -> None:
    shown = [html.unescape(label) for label in re.findall(r"<text[^>]*>([^<]*)</text>", drawing("speed"))]
    assert "年収 $a$ and $b" in shown
    assert any(label.startswith("<script>alert(1)</script>") and label.endswith("…") for label in shown)
    assert {"1", "10", "100", "1,000"} <= set(shown)


def test_panels_that_share_an_axis_are_all_labelled_and_long_titles_wrap() -> None:
    figure, panels = pictures.figure(2, share_y=True)
    panels[0].set(ylabel="test accuracy", title="word " * 20)
    svg = pictures.inline(figure, "two", "T", "D")
    assert svg.count(">test accuracy</text>") == 2
    assert all(len(row) <= pictures.TITLE for row in panels[0].get_title("left").splitlines())


@pytest.mark.parametrize("ends", [(0.9, 0.9, 0.9), (0.1, 0.5, 0.9), (0.9, 0.1, 0.89, 0.11), (0.1, 0.1, 0.1, 0.1)])
def test_labels_at_the_ends_of_lines_keep_apart_and_within_the_axes(ends: Sequence[float]) -> None:
    figure, (axes,) = pictures.figure()
    for i, end in enumerate(ends):
        axes.plot([1, 2], [0.5, end], label=f"line {i} of a few")
    labels.label_lines(axes)
    boxes = [label.get_window_extent() for label in arranged(figure)]
    frame = axes.get_window_extent()
    assert len(boxes) == len(ends)
    assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))
    assert all(frame.y0 - 2 <= box.y0 and box.y1 <= frame.y1 + 2 and box.x0 > frame.x0 for box in boxes)
    heights = [box.y0 for box in boxes]
    assert all((a < b) == (y < z) for (a, y), (b, z) in pairwise(zip(ends, heights, strict=True)) if a != b)


def test_labels_may_be_named_otherwise_and_lines_without_points_have_none() -> None:
    figure, (axes,) = pictures.figure()
    axes.plot([1, 2], [1, 2], label="first")
    axes.plot([1, 2], [math.nan, math.nan], label="second")
    labels.label_lines(axes, ["the one", "the other"])
    assert [label.get_text() for label in arranged(figure)] == ["the one"]
    with pytest.raises(ValueError, match="shorter"):
        labels.label_lines(axes, ["too few"])


def test_a_legend_that_repeats_the_labels_goes_and_another_stays() -> None:
    for extra, stays in ((False, False), (True, True)):
        figure, (axes,) = pictures.figure()
        draw_curve(axes, ranged(30, 0.9), "batch normalization first", pictures.NORMALISED)
        if extra:
            axes.plot([1, 1000], [0, 1], label="the law")
        axes.legend()
        pictures.inline(figure, "k", "T", "D")
        assert (axes.get_legend() is not None) == stays


def test_a_name_stands_on_its_line_where_no_curve_runs_through_it() -> None:
    for slope, side in (((0.9, 0.1), "right"), ((0.1, 0.9), "left")):
        figure, (axes,) = pictures.figure()
        axes.plot([0, 0.4, 1], [slope[0], 0.5, slope[1]])
        axes.set(xlim=(0, 1), ylim=(0, 1))
        labels.name_line(axes, 0.87 if side == "left" else 0.88, "goal 0.87")
        labels.arrange(figure)
        name = axes.texts[0].get_window_extent()
        middle = (axes.get_window_extent().x0 + axes.get_window_extent().x1) / 2
        assert (name.x1 < middle) == (side == "left")


def test_a_bracket_has_two_ends_or_an_arrow() -> None:
    figure, (axes,) = pictures.figure()
    labels.bracket(axes, 10, 40, 0.9, "4×")
    labels.bracket(axes, 10, 100, 0.5, "≥ 10×", open_end=True)
    assert [line.get_marker() for line in axes.get_lines()] == ["None", "|", "|", "None", "|", ">"]
    assert names(axes) == ["4×", "≥ 10×"]
    labels.arrange(figure)
    assert all(axes.get_window_extent().overlaps(text.get_window_extent()) for text in axes.texts)


def test_an_axis_is_cut_where_scores_fall_far_and_says_so() -> None:
    _, (axes,) = pictures.figure()
    draw_curve(axes, curve(30, -13.0, 0.5), "without", pictures.PLAIN)
    draw_curve(axes, curve(30, -0.1, 0.9), "with", pictures.NORMALISED)
    bottom, top = axes.get_ylim()
    assert bottom == labels.FLOOR
    assert 0.9 < top < 1.2  # what was drawn after the cut is within the axes too
    assert "▼ axis cut: down to −13" in names(axes)
    diverged = {"steps": STEPS, "median": [-2.0, *[None] * (len(STEPS) - 1)]}
    draw_curve(axes, diverged, "diverged", pictures.OTHER)
    assert "▼ axis cut: down to −13, some runs diverged" in names(axes)
    assert len([name for name in names(axes) if "cut" in name]) == 1


def test_an_axis_of_good_scores_is_not_cut() -> None:
    _, (axes,) = pictures.figure()
    draw_curve(axes, ranged(30, 0.9), "with", pictures.NORMALISED)
    assert names(axes) == ["with"]
    assert axes.get_autoscaley_on()


def test_two_bands_at_the_most_lie_over_one_another() -> None:
    _, (axes,) = pictures.figure()
    for i in range(4):
        draw_curve(axes, ranged(30, 0.9 - i / 10), f"line {i}", pictures.COLOURS[i])
    assert sum(isinstance(child, PolyCollection) for child in axes.get_children()) == 2
    assert sum(isinstance(child, LineCollection) for child in axes.get_children()) == 2


def test_runs_that_diverged_are_crosses_at_the_bottom_of_a_grid() -> None:
    _, (axes,) = pictures.figure()
    ends = {"none": {"0.1": [0.5, 0.6], "1": [math.nan, -math.inf]}, "before": {"0.1": [0.8, 0.9], "1": [0.9, 0.9]}}
    draw_grid(axes, ends)
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [list(line.get_xydata()[0]) for line in crosses] == [[1.0, 0.0]]
    assert axes.get_ylim()[0] == 0.0
    draw_goal(axes, 0.7, guess=0.1)
    assert names(axes) == ["without", "with", "goal 0.7", "guessing 0.1"]
