"""Code of the user's own, tried before anything is trained or written: a study of hours must not end in a traceback."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from batchnorm.study import own_loss, own_model
from batchnorm.study.data import DataError, Dataset
from batchnorm.study.foreign import blaming
from batchnorm.study.scores import chosen_metric
from batchnorm.study.training import Problem, Rows, Spec, build, losses, predict, train_mode

FEWEST = (4, 3, 2)  # rows that a claim may train on, or look at in training mode
PROBABLE = 1e-4  # from 1 that probabilities sum to


def completed(data: Dataset, *, model: str | None, loss: str | None, metric: str | None) -> Dataset:
    """Return the data with their score and, if there is one, the user's own loss.

    Args:
        data: What the study is about.
        model: `module:factory` of the user's own model.
        loss: `module:factory_or_function` of the user's own loss.
        metric: Name of the score; None: what suits the task, or the loss where the outputs do not suit the task.

    Raises:
        DataError: in one line, if a loss, a metric and the data do not go together.
    """
    if len(data.inputs) > 1 and model is None:
        raise DataError(f"`--data {data.name}` returns several inputs, which need a --model that takes them")
    if loss is None:
        return replace(data, metric=chosen_metric(metric, data).id)
    outputs = data.outputs if model is None else _outputs(model, data)
    by_loss = metric == own_loss.METRIC or (metric is None and outputs != data.outputs)
    if not by_loss and outputs != data.outputs:
        raise DataError(
            f"--metric {metric} needs a model with {data.outputs} outputs, `--model {model}` has {outputs}: leave it "
            f"out, and the score follows from --loss {loss}"
        )
    own = own_loss.tried(loss, data, outputs, scored=by_loss)
    name = own_loss.METRIC if by_loss else chosen_metric(metric, data).id
    return replace(data, metric=name, loss=own)


def _outputs(model: str, data: Dataset) -> int:
    """Return how many numbers the user's model puts out; two for two classes, if it is one."""
    own = own_model.OwnModel(model, own_model.made(model, data).eval(), data)
    arguments, keywords = own.arguments(torch.from_numpy(data.x[:4].astype(np.float32)))
    with blaming("--model", model, "does not take x"), torch.no_grad():
        output: Any = own.model(*arguments, **keywords)
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.ndim not in (1, 2) or len(output) != 4:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DataError(f"`--model {model}` must return shape (4,) or (4, K) for 4 rows, got {got}")
    return 2 if own.logit and output.numel() == 4 else output.numel() // 4


def tried(problem: Problem, spec: Spec) -> Problem:
    """Try the user's model in prediction and in training, and note what is particular to it.

    Returns:
        The problem that says whether batch normalization can move in the model, with a note where layers that the study
        puts in do not know what is padding.

    Raises:
        DataError: in one line, if no run could be trained with it.
    """
    name, data = problem.model or "", problem.datasets[spec.data]
    model, other = own_model.made(name, data), own_model.made(name, data)
    _check_parameters(name, model, other)
    problem = replace(problem, own_normalizes=own_model.has_batch_norm(model))
    rows = Rows.of(data, [spec])
    network = build(problem, rows)
    _predict(name, network, rows)
    _train(name, network, rows)
    if not problem.own_normalizes:
        problem = _noted(problem, spec.data)
        try:
            build(problem, Rows.of(data, [replace(spec, placement="after")]))
        except DataError:  # activations that are functions can be normalised before, not after
            return replace(problem, own_normalizes=True)
    return problem


def _noted(problem: Problem, key: str) -> Problem:
    data = problem.datasets[key]
    if all(part.kind == "values" for part in data.inputs[1:]):
        return problem
    note = "the layers that the study puts in take no mask: what is padding enters their statistics"
    return replace(problem, datasets={**problem.datasets, key: replace(data, notes=(*data.notes, note))})


def _check_parameters(name: str, model: nn.Module, other: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise DataError(f"`--model {name}` has no parameters to train: return one whose parameters require gradients")
    if model is other or {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}:
        raise DataError(
            f"`--model {name}` returns the same parameters in each call, and every run needs its own: build the whole "
            "model inside the function"
        )


def _predict(name: str, network: nn.Module, rows: Rows) -> None:
    """Predict for a few rows, down to a single one, and refuse outputs with which no training can go well."""
    x, _ = rows.take(np.stack([part.train[:4] for part in rows.splits]))
    for count in range(len(x[0]), 0, -1):
        output = predict(network, x[:, :count])
        if not output.isfinite().all():
            raise DataError(f"`--model {name}` returns NaN or infinite values at its initial weights")
    output = predict(network, x)
    if rows.data.task != "regression" and rows.data.loss is None and _are_probabilities(network, output):
        raise DataError(
            f"`--model {name}` returns probabilities, and the study's cross-entropy takes logits: leave out its last "
            "softmax or sigmoid, or name your --loss"
        )


def _are_probabilities(network: nn.Module, output: Tensor) -> bool:
    """Return whether outputs (R, N, K) are those of a softmax, or the last module that is defined is a sigmoid."""
    *_, last = network.modules()
    return isinstance(last, nn.Sigmoid) or bool((output >= 0.0).all() and (output.sum(-1) - 1.0).abs().max() < PROBABLE)


def _train(name: str, network: nn.Module, rows: Rows) -> None:
    """Take the gradients of a batch and of a few rows."""
    for x, y in _few(rows):
        train_mode(network, rows.specs[0].placement)
        loss = losses(network(x), y, rows.data).sum()
        if not loss.isfinite():
            raise DataError(f"`--model {name}` has a loss of {loss.item():g} in training at its initial weights")
        with blaming("--model", name, f"failed in the backward pass of {x.shape[1]} rows"):
            loss.backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise DataError(f"`--model {name}` has gradients that are NaN or infinite at its initial weights")
        network.zero_grad()


def _few(rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = next(rows.batches())
    yield x, y
    for count in FEWEST:
        yield x[:, :count], y[:, :count]
