"""Bring what the README and method.md show of the committed runs in line with them: the picture and the tables.

batchnorm study --out docs/study/digits && python docs/study/update.py
"""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from batchnorm.study import intervals, pictures
from batchnorm.study.curves import SIDES, draw_curve, draw_goal, draw_grid

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
README, METHOD = ROOT / "README.md", HERE / "method.md"
COVERAGE = ROOT / "benchmarks" / "results" / "study_coverage.txt"
SCHEDULE = (6, 12)
FIXED = ((3,), (5,), (6,), (10,))


def between(name: str) -> re.Pattern[str]:
    """Return the pattern of what stands between the mark of that name and the end of its part."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)


BETWEEN = between("findings")


def results() -> dict[str, Any]:
    """Return the committed results."""
    return json.loads((HERE / "digits" / "results.json").read_text(encoding="utf-8"))


def findings(study: dict[str, Any]) -> str:
    """Return the table of the README: a row a claim, below the answer."""
    lines = ["", *(f"> {sentence}\n>" for sentence in study["answer"])]
    lines[-1] = lines[-1].removesuffix("\n>")
    lines += ["", "| claim | verdict | what was found |", "|---|---|---|"]
    for claim in study["claims"]:
        lines.append(f"| {claim['statement']} | **{claim['verdict']}** | {claim['summary']} |")
    return "\n".join([*lines, "", ""])


def ranks() -> str:
    """Return the rows of method.md: the rank at each look, and how often its interval misses the median."""
    lines: list[str] = []
    for schedule in (SCHEDULE[:1], SCHEDULE, *FIXED):
        rank = intervals.ranks(schedule)[schedule[-1]]
        name = " and then ".join(map(str, schedule)) + ("" if schedule == SCHEDULE else ", looked at once")
        missed = f"{100 * (1 - intervals.level(schedule)):.2f} %" if rank else "no interval"
        row = f"| {name} | {rank or '–'} | {missed} |"
        if row not in lines:
            lines.append(row)
    return "\n".join([*lines, ""])


def draw(study: dict[str, Any]) -> None:
    """Write digits.png: speed on the left, learning rates on the right, both of the main network."""
    numbers = {claim["id"]: claim["numbers"] for claim in study["claims"]}
    figure, (speed, rates) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    network = next(iter(numbers["speed"]["networks"].values()))
    for side, curve in network["curves"].items():
        label, colour, _ = SIDES[side]
        draw_curve(speed, curve, label, colour)
    draw_goal(speed, numbers["speed"]["goal"])
    draw_grid(rates, next(iter(numbers["learning-rate"]["networks"].values()))["ends"])
    draw_goal(rates, numbers["learning-rate"]["goal"])
    speed.set(xscale="log", xlabel="training steps, each side at its best learning rate", ylabel="test accuracy")
    speed.set_title(f"{network['name']} on digits", loc="left")
    rates.set(xlabel=f"learning rate, after {network['budgets']['none']:,} steps")
    pictures.save(figure, HERE / "digits.png")


def main() -> None:
    """Write the picture, and the tables of both pages."""
    draw(results())
    README.write_text(
        BETWEEN.sub(lambda _: findings(results()), README.read_text(encoding="utf-8"), count=1), encoding="utf-8"
    )
    text = between("ranks").sub(lambda _: ranks(), METHOD.read_text(encoding="utf-8"), count=1)
    coverage = COVERAGE.read_text(encoding="utf-8").strip()
    text = between("coverage").sub(lambda _: f"\n```\n{coverage}\n```\n\n", text, count=1)
    METHOD.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
