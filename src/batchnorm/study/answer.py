"""The answer in three sentences, and the setting to use."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchnorm.study.claims import alternatives
from batchnorm.study.claims.score import best_words
from batchnorm.study.curves import SIDES
from batchnorm.study.design import PAPER, Study, network_word
from batchnorm.study.findings import Effect, Finding, agreed, number, quantity, times
from batchnorm.study.networks import Norm, Placement
from batchnorm.study.script import Setting
from batchnorm.study.training import Outcome
from batchnorm.study.tuning import Tuning
from batchnorm.study.usable import wider

AS_GOOD = 0.02  # of the way from guessing to the best score: settings that differ by less have the same score
MARGIN = 3  # times the steps to the goal that the script trains for at the most
INPUTS = {"minmax": "inputs scaled to [0, 1]", "standard": "standardised inputs", "raw": "inputs as they are"}
WHERE = {
    "before": "{norm} before each activation",
    "after": "{norm} after each activation",
    "none": "no normalization",
}
OWN = {
    "before": "its {norm}",
    "after": "its {norm}",
    "none": "its batch normalization switched off",
}  # of a model that brings its own
NORMS: dict[Norm, str] = {
    "batch": "batch normalization",
    "layer": "layer normalization",
    "group": "group normalization",
    "tanh": "dynamic tanh",
    "init": "an initialization that follows the data",
}
PLACES: tuple[Placement, ...] = ("none", "before", "after")


@dataclass(frozen=True)
class Candidate:
    """A setting that was run with every seed of the first look.

    Attributes:
        setting: What it is.
        arrivals: Its steps to the goal on validation rows, infinity where a seed has not arrived.
        score: Its best validation score, the median over seeds.
    """

    setting: Setting
    arrivals: list[float]
    score: float

    @property
    def late(self) -> int:
        """How many seeds have not arrived."""
        return sum(map(math.isinf, self.arrivals))

    @property
    def steps(self) -> float:
        """The median of the steps to the goal."""
        return statistics.median(self.arrivals)


def candidates(study: Study) -> list[Candidate]:
    """Return every setting of every network that was run: where the layer is, which one, at which learning rate."""
    if not study.trained(s for sweep in study.core for s in sweep.unit(study)):
        return []
    first = study.at(study.first)
    layers: dict[tuple[str, Placement, Norm], Tuning] = {
        (network, placement, "batch"): first.tune(placement, network)
        for network in study.networks
        for placement in PLACES
    }
    if not study.settings.model:
        for norm, tuning in alternatives.tunings(first).items():
            layers[study.main, "none" if norm == "init" else "before", norm] = tuning
    return [
        _candidate(study, layer, rate, outcomes)
        for layer, tuning in layers.items()
        if tuning.settled
        for rate, outcomes in {**tuning.by_rate, tuning.rate: tuning.outcomes}.items()
    ]


def _candidate(study: Study, layer: tuple[str, Placement, Norm], rate: float, outcomes: list[Outcome]) -> Candidate:
    arrivals = study.at(study.first).arrivals(outcomes, part="validation")
    scores = [outcome.peak()[0] for outcome in outcomes]
    arrived = [a for a in arrivals if math.isfinite(a)]
    steps = math.ceil(MARGIN * max(arrived)) if arrived else outcomes[0].steps[-1]
    setting = Setting(
        activation=layer[0], placement=layer[1], norm=layer[2], hidden=study.settings.hidden,
        optimizer=study.settings.optimizer, rate=rate, batch_size=study.settings.batch_size,
        steps=min(steps, outcomes[0].steps[-1]), metric=study.data.metric,
    )  # fmt: skip
    return Candidate(setting, arrivals, statistics.median(-math.inf if math.isnan(s) else s for s in scores))


def recommend(study: Study) -> Candidate | None:
    """Return the setting to use, of all that were run, by validation rows; None if nothing was learned.

    Of the settings in which the most seeds arrive, those whose score is as good as the best one's; of these, the one
    that takes the fewest steps.
    """
    every = [c for c in candidates(study) if math.isfinite(c.score)]
    if not every or math.isinf(study.goal()) or min(c.late for c in every) == len(every[0].arrivals):
        return None
    reliable = [c for c in every if c.late == min(c.late for c in every)]
    way = max(c.score for c in reliable) - study.guess
    good = [c for c in reliable if c.score >= max(c.score for c in reliable) - AS_GOOD * way]
    return min(good, key=lambda c: (c.steps, -c.score))


def sentences(
    study: Study, findings: Mapping[str, Finding], chosen: Candidate | None, seconds: Effect | None = None,
    references: Mapping[str, float] | None = None,
) -> list[str]:  # fmt: skip
    """Return what the study answers: whether, what it buys elsewhere, and with which setting.

    Args:
        study: The study.
        findings: What its claims came to.
        chosen: The setting to use.
        seconds: The ratio of seconds to the goal, for an answer that need not be the same on another machine.
        references: What models score that are no networks, by name.
    """
    last = _setting_sentence(study, chosen)
    if chosen is not None and references:
        last += _better_without_network(study, references)
    if "speed" not in findings or findings["speed"].skipped:
        verdicts = [finding.verdict() for finding in findings.values()]
        measured = len(verdicts) - verdicts.count("not measured")
        held = verdicts.count("holds") + verdicts.count("passes")
        claims = "1 claim was" if measured == 1 else f"{measured} claims were"
        first = f"On {study.data.name}, {claims} measured; {held or 'none'} of them hold{'s' if held < 2 else ''}."
        return [first, next((f.summary or f.skipped for f in findings.values()), ""), last]
    return [_first_sentence(study, findings, seconds), _second_sentence(study, findings), last]


def _part(finding: Finding | None, part: str) -> Effect | None:
    return next((e for e in finding.effects if e.decides and e.part == part), None) if finding else None


def _first_sentence(study: Study, findings: Mapping[str, Finding], seconds: Effect | None) -> str:
    part = study.named(study.main)
    speed, score = _part(findings["speed"], part), _part(findings.get("score"), part)
    if speed is None:
        return ""
    better = score.verdict() if score is not None else "undecided"
    word = {
        ("holds", "holds"): "Yes",
        ("holds", "undecided"): "Yes",
        ("holds", "does not hold"): "Faster, but to a worse score",
        ("undecided", "holds"): "Yes, for the score",
        ("does not hold", "holds"): "Yes, but only for the score",
        ("undecided", "undecided"): "Undecided",
    }.get((speed.verdict(), better), "No")
    layers = _size(study)
    text = f"{word}: on {study.data.name}, in {_article(part)}{layers}, {_speed_words(study, findings, study.main)}"
    if seconds is not None and seconds.bound != "unknown" and speed.bound != "unknown":
        text += f", and {times(seconds, 'less time', 'more time', 'as much time')} on this machine"
    return f"{text}; {_score_words(study, findings, score)}." if score is not None else f"{text}."


def _size(study: Study) -> str:
    if study.settings.model:
        return ""
    hidden = study.settings.hidden
    widths = f"{hidden[0]} units" if len(set(hidden)) == 1 else " and ".join(map(str, hidden)) + " units"
    return f" with {len(hidden)} hidden {'layer' if len(hidden) == 1 else 'layers'} of {widths}"


def _article(part: str) -> str:
    return part if part.startswith("your") else ("an " if part[0] in "aeiouAEIOU" else "a ") + part


def _speed_words(study: Study, findings: Mapping[str, Finding], network: str) -> str:
    speed = _part(findings["speed"], study.named(network))
    numbers = findings["speed"].numbers["networks"][network]
    goal = study.goal()
    if speed is None or math.isinf(goal):
        goals = study.at(study.first).goals()
        where = "" if all(map(math.isinf, goals)) else f"in {sum(map(math.isinf, goals))} of {len(goals)} seeds "
        guessing = f"{study.metric.name} {number(study.guess)}"
        return f"{where}no run learns to predict better than guessing, which scores {guessing}"
    score = f"{study.metric.name} {number(goal)}"
    arrivals = {side: (numbers["steps"][side], numbers["budgets"][side]) for side in SIDES}
    if speed.bound == "unknown":
        without, with_it = _arrivals(*arrivals["none"], "without it"), _arrivals(*arrivals["before"], "with it")
        return f"the steps to {score} with and without batch normalization cannot be compared: {without}, {with_it}"
    words = times(speed, "fewer steps", "more steps", "as many steps", around=True)
    late = {"at least": ("none", "without it"), "at most": ("before", "with it")}.get(speed.bound)
    why = f", as {_arrivals(*arrivals[late[0]], late[1])}" if late else ""
    return f"batch normalization takes {words} to {score}{why}" + (f", but {speed.obstacle}" if speed.obstacle else "")


def _arrivals(steps: Sequence[float], budget: int, where: str) -> str:
    """Return how many of a side's runs arrive: "no run without it arrives within 250 steps"."""
    count = sum(map(math.isfinite, steps))
    subject = f"{count} of {len(steps)} runs {where}" if count else f"no run {where}"
    return f"{subject} {'arrives' if count < 2 else 'arrive'} within {budget:,} steps"


def _score_words(study: Study, findings: Mapping[str, Finding], score: Effect) -> str:
    network = findings["score"].numbers["networks"][study.main]
    scores = {
        side: statistics.median(-math.inf if math.isnan(s) else s for s in network["scores"][side]) for side in SIDES
    }
    if any(map(math.isinf, scores.values())):
        return f"too many runs diverge at once to compare the best test {study.metric.name}"
    text = f"its best test {best_words(scores, network['budgets'], study.metric.name)}"
    if score.obstacle and math.isfinite(study.goal()):
        return f"{text}, but {score.obstacle}"
    return text + (", no clear difference" if score.verdict() == "undecided" and len(set(scores.values())) > 1 else "")


def _second_sentence(study: Study, findings: Mapping[str, Finding]) -> str:
    rates = findings.get("learning-rate")
    if len(study.networks) == 1:
        return rates.summary if rates is not None and rates.summary else findings["speed"].summary
    part = study.named(PAPER)
    text = f"In the {part} of the paper by Ioffe and Szegedy, {_speed_words(study, findings, PAPER)}"
    speed = _part(findings["speed"], part)
    if speed is not None and speed.bound != "unknown" and not speed.obstacle and speed.verdict() == "undecided":
        text += f", which {len(speed.least)} seeds leave undecided"
    range_of_rates = _part(rates, part)
    if range_of_rates is not None and not range_of_rates.obstacle and range_of_rates.bound != "unknown":
        text += f", and the range of learning rates that work {wider(range_of_rates)}"
    return text + "."


def _setting_sentence(study: Study, chosen: Candidate | None) -> str:
    if chosen is None:
        return "No setting is recommended: none of those that were run learned enough, or none was compared."
    setting = chosen.setting
    count = len(chosen.arrivals)
    verb = "arrives" if count - chosen.late == 1 else "arrive"
    arrived = "every seed arrives" if not chosen.late else f"{count - chosen.late} of {count} seeds {verb}"
    where = (OWN if study.own_normalizes else WHERE)[setting.placement].format(norm=NORMS[setting.norm])  # type: ignore[index]
    units = "your model" if setting.activation == "own" else f"{network_word(setting.activation)} units"
    steps = quantity(chosen.steps, " steps")
    after = f", after {steps} (median)" if math.isfinite(chosen.steps) else ""
    return (
        f"Of all settings that were run, use {units} with {where}, {INPUTS[study.data.scaling]}, {setting.optimizer} "
        f"with a learning rate of {setting.rate:g} and batches of {setting.batch_size}: of those that score "
        f"best on validation rows it is the fastest, and {arrived}{after}."
    )


def _better_without_network(study: Study, references: Mapping[str, float]) -> str:
    """Return a sentence on the best reference model, where it scores clearly higher than the networks; else ""."""
    name, score = max(references.items(), key=lambda item: item[1])
    reach = study.reach()
    if not score > reach + AS_GOOD * (reach - study.guess):
        return ""
    return f" A {name} scores higher: {study.metric.name} {number(score)}, where these networks reach {number(reach)}."


def multiplicity(findings: Mapping[str, Finding]) -> str:
    """Return how many verdicts may be false by chance alone."""
    count = sum(len(f.parts()) for f in findings.values() if not f.skipped and not f.check)
    decided = sum(agreed([v]) != "undecided" for f in findings.values() if not f.check for v in f.parts().values())
    return (
        f"{count} verdicts were asked for, of which {decided} could be decided. Each interval misses the true median "
        f"in at most 5 % of studies, so that at most {number(0.05 * count)} false verdicts would be expected if every "
        "true effect lay exactly at its threshold."
    )
