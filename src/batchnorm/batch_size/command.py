"""What `batchnorm batch-size` asks about: a network and data by the names on the command line."""

from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from batchnorm.batch_size.advice import Advice
from batchnorm.batch_size.work import Loop
from batchnorm.errors import ArgumentError
from batchnorm.outputs import check_file, told, written
from batchnorm.study.data import Dataset as Table
from batchnorm.study.data import scaler
from batchnorm.study.networks import DEPTH, WIDTH
from batchnorm.study.own_loss import makes_one
from batchnorm.study.shipped import digits
from batchnorm.study.sources import chosen_data
from batchnorm.surgery.factory import call_factory, made_model, named
from batchnorm.torch import BatchNorm

PAIR = 2  # an input and a class
PICTURES = (".svg", ".png", ".pdf")
OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}


class Question(NamedTuple):
    """What `advise` takes, and how it is called."""

    name: str
    model: nn.Module
    loss: Any
    dataset: Any


def question(
    path: Path | None,
    *,
    target: str | None = None,
    task: str | None = None,
    data: str | None = None,
    model: str | None = None,
    loss: str | None = None,
    seed: int = 0,
) -> Question:
    """Return the model, the loss and the data that the command line names; the study's own where it names none.

    A factory of data may return a pair of arrays, a Dataset or a DataLoader; of the last two, the loss must be named
    unless they give pairs of an input and a class.

    Raises:
        BatchNormError: in one line, for what cannot be used.
    """
    torch.manual_seed(seed)
    made = call_factory("--data", data) if data is not None and path is None else None
    if isinstance(made, Dataset | DataLoader):
        if model is None:
            raise ArgumentError(f"`--data {data}` is a {type(made).__name__}: name --model for it too")
        return Question(
            data or "", made_model(model, None), _loss_of(made, data) if loss is None else _loss(loss), made
        )
    table = chosen_data(path, target, task, data) or digits()
    x, y = _arrays(table)
    network = _network(x[0].size, table.outputs) if model is None else made_model(model, None)
    return Question(table.name, network, _usual_loss(table) if loss is None else _loss(loss), (x, y))


def _arrays(table: Table) -> tuple[Any, Any]:
    """Return inputs scaled as the study scales them, and targets: classes, or values with mean 0 and deviation 1."""
    shift, factor = scaler(table.scaling)(table.x)
    y = table.y
    if table.task == "regression":
        y = ((y - y.mean()) / (y.std() or 1.0)).astype(np.float32)
    return ((table.x - shift) * factor).astype(np.float32), y


def _network(inputs: int, outputs: int) -> nn.Module:
    """Return the study's base network: three hidden layers of 100 units, batch normalization before each sigmoid."""
    layers: list[nn.Module] = [nn.Flatten()]
    for features in (inputs, *[WIDTH] * (DEPTH - 1)):
        layers += [nn.Linear(features, WIDTH), BatchNorm(WIDTH), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, outputs))


def _loss(name: str) -> Any:
    """Return a loss by its name, or what a function of that name returns."""
    loss = named("--loss", name)
    made = call_factory("--loss", name, once=True) if makes_one(loss) else loss
    if not callable(made) and not isinstance(made, Loop):
        raise ArgumentError(
            f"`--loss {name}` must return a function (output, target) or a Loop, got {type(made).__name__}"
        )
    return made


def _loss_of(data: Any, name: str | None) -> Any:
    """Return the cross entropy where the data are pairs of an input and a class."""
    loader = data if isinstance(data, DataLoader) else None
    rows: Any = data if loader is None else loader.dataset
    if isinstance(rows, IterableDataset):  # which `Samples` refuses, and says what to do
        return nn.functional.cross_entropy
    try:
        first = rows[0] if loader is None else loader.collate_fn([rows[0]])
    except Exception as error:  # of whatever kind a dataset brings about
        raise ArgumentError(f"`--data {name}` gives no sample: {told(error)}") from None
    target = first[1] if isinstance(first, tuple | list) and len(first) == PAIR else None
    whole = isinstance(target, Integral) or (isinstance(target, torch.Tensor) and not target.is_floating_point())
    if target is None or not whole:
        raise ArgumentError(f"`--data {name}` gives no pairs of an input and a class: name --loss for it too")
    return nn.functional.cross_entropy


def _usual_loss(table: Table) -> Any:
    if table.task == "classification":
        return nn.functional.cross_entropy

    def mean_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(output.reshape(target.shape), target)

    return mean_square


def optimizer(name: str | None, rate: float | None, model: nn.Module) -> torch.optim.Optimizer | None:
    """Return the optimizer that is named, at its learning rate; None for plain SGD whose rate is looked for.

    Raises:
        ArgumentError: if only one of the two is given where both are needed.
    """
    if rate is None:
        if name not in (None, "sgd"):
            raise ArgumentError(f"`--optimizer {name}` needs its learning rate: --rate 0.001, say")
        return None
    if not 0 < rate < float("inf"):
        raise ArgumentError(f"`--rate` must be > 0, got {rate}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError(f"`--model` must have parameters that learn, {type(model).__name__} has none")
    return OPTIMIZERS[name or "sgd"](model.parameters(), lr=rate)


def sizes(text: str | None) -> list[int] | None:
    """Return the sizes in a list with commas.

    Raises:
        ArgumentError: if it is none.

    >>> sizes("32, 64"), sizes(None)
    ([32, 64], None)
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"`--candidates` must be ints with commas between, 32,64,128 say, got {text!r}") from None


def check_picture(out: Path | None) -> None:
    """Refuse a file that no picture can be written to, before anything is measured.

    Raises:
        ArgumentError: if its ending is no picture's, or its folder is not there.
    """
    if out is not None:
        check_file("--out", out, PICTURES)


def write_picture(advice: Advice, out: Path) -> None:
    """Write the picture on white, in ink."""
    from batchnorm.study import pictures

    with written("--out", out) as draft:
        pictures.save(advice.plot(), draft)
