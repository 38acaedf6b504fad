"""What one training step costs with and without batch normalization, measured side by side."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from batchnorm.study import own_model
from batchnorm.study.networks import ACTIVATIONS
from batchnorm.study.optimizers import ReplicaOptimizer
from batchnorm.study.own_model import SideBySide
from batchnorm.study.training import Problem, Rows, Spec, losses
from batchnorm.torch import BatchNorm

REPEATS = 60
LESS_OFTEN = 4  # other batch sizes, larger ones among them, take every fourth turn


def of_rows(size: int) -> str:
    """Return the key of a step with batch normalization at a batch size that was asked for."""
    return f"before, {size} rows"


class _Nothing(nn.Module):
    """What stands where batch normalization was, whatever else than its input that was called with."""

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return x


def _without(model: nn.Module) -> nn.Module:
    """Replace every layer of batch normalization by nothing at all."""
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            setattr(model, name, _Nothing())
        else:
            _without(child)
    return model


def _model(problem: Problem, spec: Spec, x: torch.Tensor) -> nn.Module:
    """Return one model as a user would write it: no replicas, no switches."""
    data = problem.datasets["main"]
    if problem.model is not None:
        return own_model.build(problem.model, x, data, placement="before", seed=0)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, width in pairwise((x[0].numel(), *spec.hidden)):
        layers += [nn.Linear(inputs, width), BatchNorm(width), ACTIVATIONS[spec.activation].module()]
    return nn.Sequential(*layers, nn.Linear(spec.hidden[-1], data.outputs))


def step_seconds(problem: Problem, spec: Spec, sizes: Sequence[int] = ()) -> dict[str, float]:
    """Return the median seconds of a training step (forward, backward, SGD) without and with batch normalization.

    All take turns, so that whatever else the machine does weighs on each.

    Args:
        problem: Data and model.
        spec: Its batch size is that of "none" and "before".
        sizes: Further batch sizes; their steps, with batch normalization, are under `of_rows(size)`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = {"none": _step(problem, spec, _without), "before": _step(problem, spec)}
        steps |= {of_rows(size): _step(problem, replace(spec, batch_size=size)) for size in sizes}
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(REPEATS):
            for name, step in steps.items():
                if name in ("none", "before") or turn % LESS_OFTEN == 0:
                    start = time.perf_counter()
                    step()
                    taken[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(times) for name, times in taken.items()}


def _step(
    problem: Problem, spec: Spec, changed: Callable[[nn.Module], nn.Module] = lambda model: model
) -> Callable[[], None]:
    rows = Rows.of(problem.datasets["main"], [spec])
    (x, *_), y = next(rows.batches())
    model = changed(_model(problem, spec, x)).train()
    optimizer = ReplicaOptimizer("sgd", SideBySide([model], rows.data.outputs), [0.01])

    def step() -> None:
        losses(model(x).reshape(1, len(x), -1), y, rows.data).sum().backward()
        optimizer.step()

    return step
