"""The training script that lies beside a report: from the file to the score, in PyTorch and in Keras."""

import math
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from batchnorm.study.data import Dataset
from batchnorm.study.literals import WIDTH, literal, phrase
from batchnorm.study.own_model import factory_arguments, has_batch_norm, made
from batchnorm.study.scores import METRICS
from batchnorm.study.script_data import described, factory, source
from batchnorm.study.script_network import (
    TORCH_LOSSES,
    TORCH_OPTIMIZERS,
    keras_network,
    network_words,
    torch_network,
)

TEMPLATES = Path(__file__).with_name("templates")
TRAINED_SHARE = 0.6  # of all rows: the rest is for validation and for the test
FEWEST_EPOCHS, LEAST_PATIENCE = 10, 5
LONGEST = 1000  # characters of a reason


@dataclass(frozen=True)
class Setting:
    """What a study recommends.

    Attributes:
        placement: "before" or "after" each activation, or "none".
        norm: "batch", "layer" or "group" normalization, "tanh" for dynamic tanh; "init", with placement "none", for a
            start from the data.
        activation: One of `networks.ACTIVATIONS`, or "own" for a model of the user's own.
        hidden: Units of each hidden layer.
        optimizer: "sgd", "momentum", "rmsprop" or "adam".
        rate: The learning rate.
        batch_size: Rows a step.
        steps: How long training should take at the most.
        metric: One of `scores.METRICS`.
        reason: Where each number comes from: sentences for comments.
    """

    placement: str
    norm: str
    activation: str
    hidden: tuple[int, ...]
    optimizer: str
    rate: float
    batch_size: int
    steps: int
    metric: str
    reason: tuple[str, ...] = ()


def scripts(dataset: Dataset, setting: Setting, *, model: str | None = None, folder: Path = Path()) -> dict[str, str]:
    """Return programs that train the recommended network on the data of a study and print its score.

    Args:
        dataset: The data: a table, the digits, or arrays of a factory.
        setting: What the study recommends.
        model: `module:factory` of the user's own model, where the setting's activation is "own".
        folder: Where the programs will lie: they name files as seen from there.

    Returns:
        The source of train.py as "PyTorch" and of train_keras.py as "Keras"; PyTorch alone for a model of the user's
        own, nothing for data that no program can read again.
    """
    if source(dataset) == "caller" or (setting.activation == "own" and model is None):
        return {}
    common = described(dataset, folder) | _training(dataset, setting)
    if setting.activation == "own" and model is not None:
        return {"PyTorch": _rendered("train_torch.py.j2", common | _own(model, dataset, setting))}
    words = network_words(setting)
    return {
        "PyTorch": _rendered("train_torch.py.j2", common | words | torch_network(setting, dataset.task)),
        "Keras": _rendered("train_keras.py.j2", common | words | keras_network(setting, dataset.task)),
    }


def _rendered(template: str, answers: dict[str, Any]) -> str:
    """Return a script; names of the user's own are no templates, and come as literals."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["body"] = _body
    modules = {"importlib", "sys"} if answers["source"] == "factory" or answers["own"] else set[str]()
    factories = [answers[key] for key in ("data", "model") if answers.get(key) is not None]
    if all(factory.plain for factory in factories):
        modules -= {"importlib"}
    source = environment.get_template(template).render(answers, modules=sorted(modules))
    return re.sub(r"\n{4,}", "\n\n\n", source).strip("\n") + "\n"


def _body(text: str) -> str:
    """Return what a macro writes, without blank lines around it."""
    return text.strip("\n").rstrip()


def _training(dataset: Dataset, setting: Setting) -> dict[str, Any]:
    """Return what the templates ask about training."""
    rows = max(1, int(TRAINED_SHARE * len(dataset.x)))
    epochs = max(FEWEST_EPOCHS, math.ceil(setting.steps / max(1, rows // setting.batch_size)))
    reasons = [line for sentence in setting.reason for line in textwrap.wrap(phrase(sentence, LONGEST), WIDTH - 2)]
    return {
        "metric": setting.metric,
        "score_name": METRICS[setting.metric].name,
        "placement": setting.placement,
        "norm": setting.norm if setting.placement != "none" or setting.norm == "init" else "none",
        "hidden": literal(setting.hidden),
        "rate": repr(float(f"{setting.rate:.3g}")),  # Keras takes no integer
        "batch_size": setting.batch_size,
        "epochs": epochs,
        "patience": max(LEAST_PATIENCE, epochs // 3),
        "reasons": reasons,
        **{"own": False, "inserted": False, "off": False},
    }


def _own(model: str, dataset: Dataset, setting: Setting) -> dict[str, Any]:
    """Return what the templates ask about a model of the user's own."""
    normalizes = has_batch_norm(made(model, dataset))
    return {
        "own": True,
        "model": factory("--model", model, factory_arguments(model, dataset)),
        "inserted": setting.placement != "none" and not normalizes,
        "off": setting.placement == "none" and normalizes,
        "norm": "batch" if setting.placement != "none" else "none",
        "optimizer": TORCH_OPTIMIZERS[setting.optimizer],
        "loss": TORCH_LOSSES[dataset.task],
    }
