"""The page that a study leaves behind: one file that asks nothing of the network, every name from the data escaped.

The one script it runs is its own, which the page's policy names by its hash; without it everything is still there, as
tables instead of sliders.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from batchnorm.outputs import plain, write_whole
from batchnorm.study import answer_picture, pictures, wording
from batchnorm.study.answer_picture import LOOKS, arrival
from batchnorm.study.bars import bar
from batchnorm.study.glossary import GLOSSARY
from batchnorm.study.intervals import FEWEST
from batchnorm.study.wording import NETWORKS

TEMPLATES = Path(__file__).with_name("templates")
# Text, symbol and class: no verdict is told by its colour alone.
SYMBOLS = {
    "holds": "✓", "does not hold": "✗", "mixed": "±", "undecided": "?", "not measured": wording.MISSING,
    "passes": "✓", "fails": "✗",
}  # fmt: skip
DIGITS = 4  # of a score in a curve: more cannot be seen
FEWEST_SIZES = 2  # for a slider


class Row(NamedTuple):
    """A row of the table of verdicts: what is measured, if the claim has several, and the effect."""

    label: str
    effect: Mapping[str, Any]


def deciding(claim: Mapping[str, Any]) -> list[Row]:
    """Return a claim's deciding effects with what tells them apart: the part, the name, or both."""
    effects = [effect for effect in claim["effects"] if effect["decides"]]
    if len(effects) < 2:
        return [Row("", effect) for effect in effects]
    parts = [effect["part"] for effect in effects]
    if all(parts) and len(set(parts)) == len(parts):
        return [Row(effect["part"], effect) for effect in effects]
    return [Row(": ".join(filter(None, (effect["part"], effect["name"]))), effect) for effect in effects]


def rates_table(explored: Mapping[str, Any]) -> list[tuple[float, list[tuple[str, str]]]]:
    """Return, learning rate by learning rate and side by side, when the median run arrives and where it ends."""

    def cell(curve: Mapping[str, Any] | None) -> tuple[str, str]:
        if curve is None:
            return "not run", wording.MISSING
        last, step = curve["median"][-1], arrival(curve, explored["goal"])
        return ("never" if step == float("inf") else wording.number(step)), (
            "diverged" if last is None else wording.number(last)
        )

    return [(rate, [cell(explored["sides"][side].get(f"{rate:g}")) for side in LOOKS]) for rate in explored["rates"]]


def _networks(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what can be explored, network by network, with its name."""
    networks: list[dict[str, Any]] = []
    for network, explored in (results.get("explore") or {}).items():
        if all(explored["sides"].get(side) for side in LOOKS):
            best = {side: answer_picture.best_rate(explored, side) for side in LOOKS}
            name = explored.get("name") or NETWORKS.get(network, network)
            networks.append({**explored, "name": name, "best": best})
    return networks


def _sizes(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return steps and seconds by batch size; None if fewer than two sizes were tried."""
    explored = results.get("explore_sizes") or {}
    sizes = explored.get("sizes", [])
    if len(sizes) < FEWEST_SIZES:
        return None
    seconds = explored.get("seconds")
    if seconds is None:
        measured = (results.get("timings") or {}).get("step_seconds", {})
        each = [measured.get(f"before, {size} rows") for size in sizes]
        pairs = zip(explored["steps"], each, strict=True)
        seconds = [steps * cost if steps is not None and cost is not None else None for steps, cost in pairs]
    return {"sizes": sizes, "steps": explored["steps"], "seconds": seconds}


def _payload(results: Mapping[str, Any], networks: Sequence[Mapping[str, Any]]) -> Markup:
    """Return what the script draws as JSON that can stand in a page."""

    def curve(whole: Mapping[str, Any]) -> dict[str, Any]:
        median = [None if score is None else round(score, DIGITS) for score in whole["median"]]
        return {"steps": whole["steps"], "median": median}

    drawn = [
        {
            **{k: network[k] for k in ("name", "rates", "best", "goal", "guess")},
            "sides": {s: {r: curve(c) for r, c in network["sides"][s].items()} for s in LOOKS},
        }
        for network in networks
    ]
    return htmlsafe_json_dumps(
        plain({"score": results["data"]["score"], "networks": drawn, "sizes": _sizes(results)}), ensure_ascii=False
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (wording.number, wording.needed, wording.sample, wording.duration, wording.plainly, wording.leaves)
    filters: tuple[Any, ...] = (*words, wording.listed, bar, deciding, rates_table)
    environment.filters.update({function.__name__: function for function in filters})
    return environment


def _source(name: str) -> Markup:
    """Return a style sheet or script of ours, to stand in a page as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _answer_svg(results: Mapping[str, Any], key: str = answer_picture.KEY) -> str | None:
    figure = answer_picture.draw(results)
    if figure is None:
        return None
    return pictures.inline(figure, key, answer_picture.title(results), answer_picture.description(results))


def render(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the report as one HTML page.

    Args:
        results: What `results.json` holds: plain data, None where there is no number. "timings", if it is there, is
            what `timings.json` holds.
        pictures: SVG of `pictures.inline` by claim id; a claim without one is shown without. "answer" is the picture
            beside the answer; it is drawn from the results if it is not among them.
    """
    drawn = {claim: Markup(svg) for claim, svg in pictures.items()}
    if answer_picture.KEY not in drawn and (svg := _answer_svg(results)) is not None:
        drawn[answer_picture.KEY] = Markup(svg)
    networks, script = _networks(results), _source("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("report.html.j2").render(
        results=results, pictures=drawn, networks=networks, sizes=_sizes(results), glossary=GLOSSARY, symbols=SYMBOLS,
        fewest=FEWEST, payload=_payload(results, networks), style=_source("style.css"), script=script, digest=digest,
        answer_caption=answer_picture.description(results),
    )  # fmt: skip


def write(path: Path, results: Mapping[str, Any], pictures: Mapping[str, str]) -> None:
    """Write the report whole or not at all: to a file beside it, then in its place."""
    page = render(results, pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def repr_html(results: Mapping[str, Any]) -> str:
    """Return the answer, its picture and the verdicts as HTML for a notebook, without script.

    Args:
        results: What `results.json` holds.
    """
    shown = plain(results)
    svg = _answer_svg(shown, "batchnorm-study-answer")
    template = _environment().get_template("notebook.html.j2")
    return template.render(results=shown, symbols=SYMBOLS, picture=None if svg is None else Markup(svg))
