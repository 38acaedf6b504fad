"""Bring what the README shows of the committed study in line with docs/study/digits: the picture and the table.

batchnorm study --out docs/study/digits && python docs/study/update.py
"""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from batchnorm.study.curves import SIDES, draw_curve, draw_goal, draw_grid
from batchnorm.study.screen import interval, number

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
BETWEEN = re.compile(r"(?<=<!-- findings -->\n).*?(?=<!-- end -->)", re.DOTALL)


def results() -> dict[str, Any]:
    """Return the committed results."""
    return json.loads((HERE / "digits" / "results.json").read_text(encoding="utf-8"))


def findings(found: dict[str, Any]) -> str:
    """Return the table of the README: a row a claim."""
    lines = ["", "| claim | verdict | median over seeds (95 % interval) |", "|---|---|---|"]
    for claim in found["claims"]:
        effects = [e for e in claim["effects"] if e["decides"]]
        needs = [f"{'>' if e['side'] == 'above' else '<'} {number(e['threshold'], e['unit'])}" for e in effects]
        bounds = [", a bound as some runs never arrived" if e["bounded"] else "" for e in effects]
        facts = zip(effects, bounds, needs, strict=True)
        told = "; ".join(f"{e['name']}: {interval(e)}{bound}, needed {n}" for e, bound, n in facts)
        lines.append(f"| {claim['statement']} | **{claim['verdict']}** | {told} |")
    return "\n".join([*lines, "", ""])


def draw(found: dict[str, Any]) -> None:
    """Write digits.png: speed on the left, learning rates on the right."""
    numbers = {claim["id"]: claim["numbers"] for claim in found["claims"]}
    figure, (speed, rates) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for side, curve in numbers["speed"]["curves"].items():
        label, colour, _ = SIDES[side]
        draw_curve(speed, curve, label, colour)
    draw_goal(speed, *numbers["speed"]["goals"])
    draw_grid(rates, numbers["learning-rate"]["ends"])
    draw_goal(rates, numbers["learning-rate"]["goal"])
    speed.set(xscale="log", xlabel="training steps, each side at its best learning rate", ylabel="test accuracy")
    rates.set(xlabel="learning rate, after 1,000 steps")
    speed.legend(frameon=False, title="batch normalization", loc="center left")
    figure.savefig(HERE / "digits.png", dpi=120)


if __name__ == "__main__":
    draw(results())
    README.write_text(BETWEEN.sub(lambda _: findings(results()), README.read_text(encoding="utf-8")), encoding="utf-8")
