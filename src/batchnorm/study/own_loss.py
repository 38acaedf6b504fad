"""A loss of the user's own: a function (output, target) → mean loss, replica by replica, and the score it stands for.

The targets come as the `--data` factory returns them: values are not standardised, for a loss may depend on their unit.
Where the score of the task does not suit what the network puts out (a mean and a variance for one value, for instance),
the score is 1 − loss ÷ loss of the best constant output.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnorm.study.data import DataError, Dataset
from batchnorm.study.foreign import blaming
from batchnorm.surgery.factory import named

METRIC = "loss"
MOST_ROWS = 20_000  # that the best constant output is sought on
ITERATIONS = 200

Function = Callable[[Tensor, Tensor], Any]
Form = Literal["outputs", "logit"]


@dataclass(frozen=True)
class OwnLoss:
    """The user's loss in a study.

    Attributes:
        name: `module:function`, or `module:factory` of a function or a module.
        outputs: How many numbers the network puts out.
        form: How it is called: with the network's "outputs"; or, for two classes, with the "logit" of the second class
            and targets 0.0 and 1.0, as torch's BCEWithLogitsLoss.
        constant: The output with the least mean loss among those that are the same for every row; empty unless the
            score follows from it.
    """

    name: str
    outputs: int
    form: Form = "outputs"
    constant: tuple[float, ...] = ()


@lru_cache(maxsize=8)
def resolved(name: str) -> Function:
    """Return the function that `--loss` names, or that the factory or class it names returns.

    Raises:
        DataError: in one line, if it cannot be imported or called, or is no function.
    """
    with blaming("--loss", name, "failed"):
        loss = named("--loss", name)
        if callable(loss) and makes_one(loss):
            loss = loss()
    if not callable(loss):
        raise DataError(f"`--loss {name}` must be a function (output, target) → loss, or return one, got {loss!r:.60}")
    return loss


def makes_one(function: Any) -> bool:
    """Return whether it makes a loss: a class, or a function without arguments, where a loss needs two."""
    if isinstance(function, type):
        return True
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return not any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def tried(name: str, data: Dataset, outputs: int, *, scored: bool) -> OwnLoss:
    """Try the loss on the first rows, and return it in the form in which it takes them.

    Args:
        name: As `--loss` has it.
        data: What is trained on.
        outputs: How many numbers the network puts out.
        scored: Whether the score follows from the loss.

    Raises:
        DataError: in one line, if it takes the outputs in no form, or does not return a mean loss.
    """
    failures: list[DataError] = []
    rows = outputs + 2  # never as many as there are outputs: a matrix could pass for its transpose
    y = torch.from_numpy(data.y[:rows])
    forms: list[Form] = ["outputs", "logit"] if data.task == "classification" and outputs == 2 else ["outputs"]
    for form in forms:
        loss, output = OwnLoss(name, outputs, form), torch.zeros(len(y), outputs, requires_grad=True)
        try:
            with blaming("--loss", name, f"does not take outputs {tuple(output.shape)} and targets {tuple(y.shape)}"):
                value = _called(loss, output, _narrow(y), data)
        except DataError as error:
            failures.append(error)
            continue
        _check(name, value)
        return replace(loss, constant=_best_constant(loss, data)) if scored else loss
    raise failures[0]


def _narrow(y: Tensor) -> Tensor:
    return y.float() if y.is_floating_point() else y


def _check(name: str, value: Any) -> None:
    """Refuse what is no mean loss."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"`--loss {name}` must return the mean loss, one number in a tensor, got {got}")
    if not value.requires_grad:
        raise DataError(f"`--loss {name}` returns a loss without a gradient: compute it by torch, without detach")


def _called(loss: OwnLoss, output: Tensor, y: Tensor, data: Dataset) -> Any:
    """Call the loss for one replica: outputs (N, K), in the shape of the targets where those are as many values."""
    if loss.form == "logit":
        return resolved(loss.name)(output[:, 1] - output[:, 0], y.to(output.dtype))
    if data.task == "regression" and output.numel() == y.numel():
        output = output.reshape(y.shape)
    return resolved(loss.name)(output, y)


def losses(loss: OwnLoss, output: Tensor, y: Tensor, data: Dataset) -> Tensor:
    """Return the loss of each replica, (R,), for outputs (R, N, K) and targets (R, N, …).

    Raises:
        DataError: in one line, whatever the loss raises.
    """
    with blaming("--loss", loss.name, "failed"):
        replicas = zip(output, y, strict=True)
        return torch.stack([_called(loss, mine, truth, data).reshape(()) for mine, truth in replicas])


def scores(loss: OwnLoss, output: Tensor, y: Tensor, data: Dataset) -> list[float]:
    """Return 1 − loss ÷ loss of the best constant output for each replica; NaN where its loss is not finite.

    A loss below zero, which a likelihood may have, is compared with the size of that of the constant output.
    """
    constant = torch.tensor(loss.constant).expand_as(output)
    best, value = (losses(loss, o, y, data).double() for o in (constant, output))
    skill = (best - value) / best.abs().clamp(min=1e-12)
    return [s if math.isfinite(s) else math.nan for s in skill.tolist()]


def _best_constant(loss: OwnLoss, data: Dataset) -> tuple[float, ...]:
    """Return the constant output with the least mean loss, by L-BFGS from zero and from the mean target."""
    y = _narrow(torch.from_numpy(data.y[:: math.ceil(len(data.y) / MOST_ROWS)]))
    starts = [torch.zeros(loss.outputs)]
    if y.is_floating_point() and y[0].numel() == loss.outputs:
        starts.append(y.mean(0).reshape(-1))
    found = [_descended(start, lambda c: _called(loss, c.expand(len(y), -1), y, data)) for start in starts]
    value, constant = min(found, key=lambda pair: pair[0])
    if not math.isfinite(value) or value == 0.0:
        raise DataError(
            f"`--loss {loss.name}` is {value:g} for the best constant output, with which runs would be compared: "
            "name a --metric, or another loss"
        )
    return tuple(constant.tolist())


def _descended(start: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
    """Return the least loss that is met on the way down from a start, infinity if there is none, and where."""
    from scipy.optimize import minimize  # here, as it takes a second, and few studies have a loss of their own

    best: list[tuple[float, Tensor]] = [(math.inf, start)]

    def value_and_gradient(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        constant = torch.from_numpy(point).float().requires_grad_()
        value = loss(constant).reshape(())
        (gradient,) = torch.autograd.grad(value, constant, materialize_grads=True)
        if math.isfinite(value.item()) and value.item() < best[0][0]:
            best[0] = value.item(), constant.detach()
        return value.item(), gradient.double().numpy()

    with np.errstate(all="ignore"):  # a search that leaves the numbers has a best point before it does
        minimize(
            value_and_gradient, start.double().numpy(), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}
        )
    return best[0]
