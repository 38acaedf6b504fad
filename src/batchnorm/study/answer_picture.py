"""The picture beside the answer: the score while training with and without batch normalization, and what lies between.

It is drawn from what results.json holds, so that a report can be drawn again from its file.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchnorm.study import labels, pictures
from batchnorm.study.curves import SIDES, draw_curve
from batchnorm.study.wording import NETWORKS, number

KEY = "answer"
LOOKS: dict[str, tuple[str, str, str]] = {str(side): look for side, look in SIDES.items()}
SAME = 1.1  # ratios nearer to 1 than this are told as "as many steps"


class Line(NamedTuple):
    """One side: its median curve, at which rate, and the step at which it arrives; infinity if it never does."""

    curve: Mapping[str, Any]
    rate: float
    arrival: float

    @property
    def budget(self) -> int:
        """The last step trained."""
        return self.curve["steps"][-1]


def arrival(curve: Mapping[str, Any], goal: float | None) -> float:
    """Return the first step at which a median curve is at the goal, if it ends there too; infinity otherwise.

    There is no goal where no run has learned anything.

    >>> arrival({"steps": [1, 10, 100], "median": [0.1, 0.96, 0.97]}, 0.95)
    10
    >>> arrival({"steps": [1, 10, 100], "median": [0.1, 0.96, None]}, 0.95)
    inf
    """
    if goal is None or curve["median"][-1] is None or curve["median"][-1] < goal:
        return math.inf
    pairs = zip(curve["steps"], curve["median"], strict=True)
    return next(step for step, score in pairs if score is not None and score >= goal)


def best_rate(explored: Mapping[str, Any], side: str) -> float:
    """Return the learning rate that a study chose for a side; where it does not say, the first to arrive."""
    chosen = explored.get("best", {}).get(side)
    if chosen is not None:
        return chosen
    curves, goal = explored["sides"][side], explored["goal"]

    def order(rate: str) -> tuple[float, float]:
        last = curves[rate]["median"][-1]
        return arrival(curves[rate], goal), math.inf if last is None else -last

    return float(min(curves, key=order))


def lines(explored: Mapping[str, Any]) -> dict[str, Line]:
    """Return both sides of a network, each at its best learning rate."""
    chosen: dict[str, Line] = {}
    for side in LOOKS:
        rate = best_rate(explored, side)
        curve = explored.get("chosen", {}).get(side) or explored["sides"][side][f"{rate:g}"]
        chosen[side] = Line(curve, rate, arrival(curve, explored["goal"]))
    return chosen


def main_network(results: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Return the name of the network that the answer is for, and what was explored of it.

    None where nothing was explored, or no run has learned anything that would make a goal.
    """
    for network, explored in (results.get("explore") or {}).items():
        if explored["goal"] is not None and all(explored["sides"].get(side) for side in LOOKS):
            return str(explored.get("name") or NETWORKS.get(network, network)), explored
    return None


def _effect(results: Mapping[str, Any], part: str) -> Mapping[str, Any] | None:
    """Return the ratio of steps that the answer tells."""
    effects = [e for claim in results["claims"] if claim["id"] == "speed" for e in claim["effects"] if e["decides"]]
    return next((e for e in effects if e["part"] == part), effects[0] if effects else None)


def ratio_words(effect: Mapping[str, Any]) -> str:
    """Return a ratio of steps, without ÷ with, in words.

    >>> ratio_words({"value": 4.6, "bound": "exact"}), ratio_words({"value": 42, "bound": "at least"})
    ('4.6 times fewer steps', 'at least 42 times fewer steps')
    >>> ratio_words({"value": 0.25, "bound": "at most"}), ratio_words({"value": 1.04, "bound": "exact"})
    ('at least 4 times more steps', 'about as many steps')
    """
    value, bound = effect["value"], effect["bound"]
    if value < 1 and bound != "at least":
        words = f"{number(1 / value)} times more steps"
        sure = "at least " if bound == "at most" else ""
    else:
        words = f"{number(value)} times fewer steps"
        sure = f"{bound} " if bound in ("at least", "at most") else ""
    return sure + words if sure or not 1 / SAME < value < SAME else "about as many steps"


def title(results: Mapping[str, Any]) -> str:
    """Return what the picture says, with its number: "4.6 times fewer steps to accuracy 0.95 (ReLU network)"."""
    network = main_network(results)
    if network is None:
        return ""
    name, explored = network
    goal = f"{results['data']['score']} {explored['goal']:.3g}"
    effect, sides = _effect(results, name), lines(explored)
    if effect is None or not effect["value"]:
        late = [LOOKS[side][0] for side, line in sides.items() if math.isinf(line.arrival)]
        if len(late) == 2:
            return f"{goal} is reached neither with batch normalization nor without ({name})"
        if late:
            return f"{goal} is reached by one side only: not {late[0]} batch normalization ({name})"
        return f"{goal} with and without batch normalization ({name})"
    words = ratio_words(effect)
    if effect["verdict"] == "undecided":
        return f"Undecided: {words} to {goal} with batch normalization ({name})"
    return f"{words[0].upper()}{words[1:]} to {goal} with batch normalization ({name})"


def description(results: Mapping[str, Any]) -> str:
    """Return what the picture shows, for those who cannot see it."""
    network = main_network(results)
    if network is None:
        return ""
    _, explored = network
    score = results["data"]["score"]
    sentences = [f"Test {score} while training, the median over seeds."]
    for side, line in lines(explored).items():
        last = line.curve["median"][-1]
        never = f"not reached within {line.budget:,} steps"
        when = never if math.isinf(line.arrival) else f"reached at step {number(line.arrival)}"
        ends = "diverges" if last is None else f"ends at {number(last)} after {number(line.budget)} steps"
        sentences.append(
            f"{LOOKS[side][0].capitalize()} batch normalization, at learning rate {line.rate:g}, the goal of "
            f"{explored['goal']:.3g} is {when}, and the curve {ends}."
        )
    sentences.append(
        "The number above the picture is the median of every seed's own ratio, which is not the ratio of the medians."
    )
    return " ".join([*sentences, f"Guessing scores {number(explored['guess'])}."])


def draw(results: Mapping[str, Any]) -> Figure | None:
    """Return the picture; None where no network was trained with and without batch normalization.

    Args:
        results: The content of results.json, plain data.
    """
    network = main_network(results)
    if network is None:
        return None
    name, explored = network
    sides = lines(explored)
    figure, (axes,) = pictures.figure(height=3.6)
    for side, line in sides.items():
        label, colour, _ = LOOKS[side]
        when = f"never within {line.budget:,} steps" if math.isinf(line.arrival) else f"{number(line.arrival)} steps"
        draw_curve(axes, line.curve, f"{label}:\n{when}", colour)
    labels.name_line(axes, explored["goal"], f"goal {explored['goal']:.3g}")
    labels.name_line(axes, explored["guess"], f"guessing {number(explored['guess'])}")
    _bracket(axes, sides, explored["goal"], _effect(results, name))
    axes.set(xscale="log", xlabel="training steps", ylabel=f"test {results['data']['score']}")
    axes.set_xlim(_first(sides.values()), max(line.budget for line in sides.values()))
    pictures.headline(figure, title(results))
    return figure


def _first(every: Iterable[Line]) -> float:
    """Return where a logarithmic axis of steps begins."""
    return min(step for line in every for step in line.curve["steps"] if step > 0)


def _bracket(axes: Axes, sides: Mapping[str, Line], goal: float, effect: Mapping[str, Any] | None) -> None:
    """Draw what lies between the arrivals; to the end of the training where one side never arrives."""
    without, with_it = sides["none"], sides["before"]
    arrivals = sorted((without.arrival, with_it.arrival))
    if math.isinf(arrivals[0]) or effect is None or not effect["value"] or arrivals[0] == arrivals[1]:
        return
    fewer = with_it.arrival < without.arrival
    value = effect["value"] if fewer else 1 / effect["value"]
    never = math.isinf(arrivals[1])
    sure = "≥ " if never or effect["bound"] in ("at least", "at most") else ""
    end = max(line.budget for line in sides.values()) if never else arrivals[1]
    if value > 1:
        labels.bracket(axes, max(arrivals[0], 1), end, goal, f"{sure}{number(value)}×", open_end=never)
