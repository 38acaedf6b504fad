"""The answer in three sentences, and the recommended setting as code to paste."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from batchnorm.study.claims.placement import CLAIM as PLACEMENT
from batchnorm.study.design import Study
from batchnorm.study.findings import Effect, Finding
from batchnorm.study.networks import DEPTH, WIDTH

TORCH_OPTIMIZERS = {
    "sgd": "torch.optim.SGD(model.parameters(), lr={rate:g})",
    "momentum": "torch.optim.SGD(model.parameters(), lr={rate:g}, momentum=0.9)",
    "rmsprop": "torch.optim.RMSprop(model.parameters(), lr={rate:g})",
    "adam": "torch.optim.Adam(model.parameters(), lr={rate:g})",
}
KERAS_OPTIMIZERS = {
    "sgd": "keras.optimizers.SGD({rate!r})",
    "momentum": "keras.optimizers.SGD({rate!r}, momentum=0.9)",
    "rmsprop": "keras.optimizers.RMSprop({rate!r}, rho=0.99)",
    "adam": "keras.optimizers.Adam({rate!r})",
}

INPUTS = {"minmax": "inputs scaled to [0, 1]", "standard": "standardised inputs"}


@dataclass(frozen=True)
class Recommendation:
    """The setting a study recommends: where, for which activation, with which learning rate."""

    placement: str
    activation: str
    rate: float


def _deciding(finding: Finding | None) -> list[Effect]:
    return [e for e in finding.effects if e.decides] if finding is not None else []


def recommend(study: Study, findings: dict[str, Finding]) -> Recommendation | None:
    """Return the setting whose median run reached the goal first; None if none did, or no claim compared any."""
    placed = findings.get(PLACEMENT.id)
    speed = findings.get("speed")
    tried: list[tuple[dict[str, Any], str, str, float]] = []
    if placed is not None and placed.numbers:
        curves, rates = placed.numbers["curves"], placed.numbers["rates"]
        tried += [(c, a, place, rates[a][place]) for a, sides in curves.items() for place, c in sides.items()]
    if speed is not None:
        curves, rates = speed.numbers["curves"], speed.numbers["rates"]
        tried += [(curve, study.activation, place, rates[place]) for place, curve in curves.items()]
    if not tried:
        return None
    curve, activation, placement, rate = min(tried, key=lambda t: _arrival(t[0], study.goal()))
    arrived = not math.isinf(_arrival(curve, study.goal())[0])
    return Recommendation(placement, activation, rate) if arrived else None


def _arrival(curve: dict[str, Any], goal: float) -> tuple[float, float]:
    """Return when a median curve reaches the goal, and minus its last score to break ties."""
    steps = (at for at, value in zip(curve["steps"], curve["median"], strict=True) if value >= goal)
    return next(steps, float("inf")), -curve["median"][-1]


def sentences(study: Study, findings: dict[str, Finding], setting: Recommendation | None) -> list[str]:
    """Return what the study answers: whether, what it buys, and with which setting."""
    verdicts = [finding.verdict() for finding in findings.values()]
    speed = findings.get("speed")
    if speed is None:
        measured = len(verdicts) - verdicts.count("not measured")
        first = f"Claims measured on {study.data.name}: {measured}; of these hold: {verdicts.count('holds')}."
    else:
        ratio, low, high = _deciding(speed)[0].interval()
        words = {
            "holds": f"Yes: on {study.data.name}, batch normalization takes {_network(study)} to "
            f"{study.data.score_name} {study.goal():.3g} in {ratio:.2g} times fewer steps ({low:.2g} to {high:.2g}).",
            "does not hold": f"No: on {study.data.name}, batch normalization saves {_network(study)} no training steps "
            f"worth having: {_range(ratio, low, high)}.",
        }
        undecided = (
            f"Undecided: on {study.data.name}, it is open whether batch normalization saves {_network(study)} training "
            f"steps worth having: {_range(ratio, low, high)}."
        )
        first = words.get(speed.verdict(), undecided)
    rates = findings.get("learning-rate")
    second = rates.summary if rates is not None else next(f.summary or f.skipped for f in findings.values())
    if setting is None:
        return [first, second, "No setting is recommended: none was compared, or none reached the goal in time."]
    where = {"before": "before each activation", "after": "after each activation", "none": "nowhere"}[setting.placement]
    inputs = INPUTS[study.data.scaling]
    unit = "" if setting.activation == "own" else f" ({setting.activation})"
    return [
        first,
        second,
        f"Of the settings tried, the first to arrive: batch normalization {where}{unit}, {inputs}, "
        f"{study.settings.optimizer} with a learning rate of {setting.rate:g}, and batches of "
        f"{study.settings.batch_size}{_other_sizes(study, setting, findings.get('batch-size'))}.",
    ]


def _other_sizes(study: Study, setting: Recommendation, finding: Finding | None) -> str:
    """Return what other batch sizes did to the steps, in words that follow the study's own size."""
    tried = finding.numbers.get("steps", {}) if finding is not None else {}
    if not tried:
        return ", the one size that was tried"
    steps: dict[int, float] = {int(size): statistics.median(of_size) for size, of_size in tried.items()}
    least, own = min(steps, key=lambda size: steps[size]), study.settings.batch_size
    where = "" if setting.placement == "before" else " with it before the activation"
    said = f"; of the {len(steps)} sizes tried{where}, {min(steps)} to {max(steps)}, "
    if steps[least] >= steps[own]:
        return f"{said}none took fewer steps"
    return f"{said}{least} took the fewest steps, {steps[least]:g} instead of {steps[own]:g}"


def _range(ratio: float, low: float, high: float) -> str:
    if math.isnan(ratio):
        return "too few seeds reach the goal"
    return f"steps without it, divided by steps with it, are {ratio:.2g} ({low:.2g} to {high:.2g})"


def _network(study: Study) -> str:
    return "your model" if study.settings.model else f"a network of {DEPTH} hidden layers of {WIDTH} sigmoid units"


def code(study: Study, setting: Recommendation | None) -> dict[str, str]:
    """Return the recommended setting for PyTorch and Keras; nothing for a model of the user's own."""
    if setting is None or setting.activation == "own":
        return {}
    return {"PyTorch": _torch_code(study, setting), "Keras": _keras_code(study, setting)}


def _units(setting: Recommendation, norm: str, activation: str) -> str:
    between = {"before": [norm, activation], "after": [activation, norm], "none": [activation]}[setting.placement]
    return ", ".join(between)


def _inputs(study: Study) -> list[int]:
    """Return how many numbers enter each hidden layer."""
    return [study.data.x[0].size, *[WIDTH] * (DEPTH - 1)]


def _torch_code(study: Study, setting: Recommendation) -> str:
    activation = {"sigmoid": "nn.Sigmoid()", "relu": "nn.ReLU()"}[setting.activation]
    units = _units(setting, f"BatchNorm1d({WIDTH})", activation)
    rows = [f"    nn.Linear({i}, {WIDTH}), {units}," for i in _inputs(study)]
    optimizer = TORCH_OPTIMIZERS[study.settings.optimizer].format(rate=setting.rate)
    lines = [
        f"# {INPUTS[study.data.scaling]}, batches of {study.settings.batch_size}",
        "import torch",
        "from torch import nn",
        "from batchnorm.torch import BatchNorm1d",
        "",
        "model = nn.Sequential(",
    ]
    return "\n".join([*lines, *rows, f"    nn.Linear({WIDTH}, {study.data.outputs}),", ")", f"optimizer = {optimizer}"])


def _keras_code(study: Study, setting: Recommendation) -> str:
    inputs = _inputs(study)
    layers = "keras.layers"
    norm = "BatchNormalization(momentum=0.9, epsilon=1e-5)"
    units = _units(setting, norm, f'{layers}.Activation("{setting.activation}")')
    rows = [f"    {layers}.Dense({WIDTH}), {units}," for _ in inputs]
    last = {True: '"softmax"', False: "None"}[study.data.task == "classification"]
    loss = "sparse_categorical_crossentropy" if study.data.task == "classification" else "mse"
    optimizer = KERAS_OPTIMIZERS[study.settings.optimizer].format(
        rate=float(f"{setting.rate:g}")
    )  # Keras takes no 1 for 1.0
    return "\n".join(
        [
            "import keras", "from batchnorm.keras import BatchNormalization", "",
            "model = keras.Sequential([", f"    keras.Input(({inputs[0]},)),", *rows,
            f"    {layers}.Dense({study.data.outputs}, activation={last}),", "])",
            f'model.compile(optimizer={optimizer}, loss="{loss}")',
            f"# model.fit(x, y, batch_size={study.settings.batch_size})",
        ]
    )  # fmt: skip
