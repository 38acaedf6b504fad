"""Training: from a list of specifications to their outcomes, many replicas as one batched computation."""

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.study import own_loss, own_model
from batchnorm.study.arrays import leaving, unscaled_columns
from batchnorm.study.data import Dataset, Split, scaler, split
from batchnorm.study.foreign import blaming
from batchnorm.study.networks import Norm, Placement, base_network, rescale_to_data
from batchnorm.study.optimizers import ReplicaOptimizer
from batchnorm.study.scores import chosen_metric
from batchnorm.study.scores import scores as score_by


@dataclass(frozen=True, order=True)
class Spec:
    """One run: everything that decides its outcome. Equal specs share one outcome between claims.

    Attributes:
        data: Key of the dataset.
        placement: Where batch normalization is.
        activation: Of the base network.
        scaling: How inputs are scaled: "standard", "minmax" or "raw".
        optimizer: One of `OPTIMIZERS`.
        batch_size: Rows a step.
        steps: Steps in all.
        probe: `module:function` that looks into the network while it trains; "" for none.
        std: Standard deviation of the initial weights; None: the activation's own.
        rate: Learning rate.
        seed: Of the split, the weights and the order of the data.
        virtual_batch_size: Of the base network's layers; None: each batch is normalised as one.
        norm: What stands where `placement` says: "batch", "layer", "group" or "tanh"; "init" with placement "none".
        hidden: Widths of the base network's hidden layers.
        label_noise: Share of the training targets that are replaced by random ones.
        rows: Training rows to use; None: all.
    """

    data: str
    placement: Placement
    activation: str
    scaling: str
    optimizer: str
    batch_size: int
    steps: int
    probe: str
    std: float | None
    rate: float
    seed: int
    virtual_batch_size: int | None = None
    norm: Norm = "batch"
    hidden: tuple[int, ...] = (100, 100, 100)
    label_noise: float = 0.0
    rows: int | None = None

    @property
    def group(self) -> "Spec":
        """What runs must have in common to train as one computation."""
        return replace(self, std=None, rate=0.0, seed=0)


@dataclass
class Outcome:
    """What a run gave: scores by step (NaN once it has diverged), and what its probe saw."""

    steps: list[int] = field(default_factory=list[int])
    validation: list[float] = field(default_factory=list[float])
    test: list[float] = field(default_factory=list[float])
    probed: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def note(self, step: int, validation: float, test: float) -> None:
        """Add the scores after a step."""
        self.steps.append(step)
        self.validation.append(validation)
        self.test.append(test)

    def steps_to(self, goal: float, part: str = "test") -> float:
        """Return the first evaluated step whose score reaches the goal, if the run ends there too; else infinity."""
        scores = self.test if part == "test" else self.validation
        if not scores or not scores[-1] >= goal:  # NaN, where the run has diverged, is no arrival either
            return math.inf
        return next(float(step) for step, score in zip(self.steps, scores, strict=True) if score >= goal)

    def peak(self) -> tuple[float, float]:
        """Return the best validation score, and the test score at that step; NaN if no score is finite."""
        pairs = [pair for pair in zip(self.validation, self.test, strict=True) if math.isfinite(sum(pair))]
        return max(pairs, key=lambda pair: pair[0], default=(math.nan, math.nan))

    def until(self, step: int) -> "Outcome":
        """Return the outcome as it stood at the last evaluation up to a step."""
        count = sum(at <= step for at in self.steps)
        return Outcome(self.steps[:count], self.validation[:count], self.test[:count], self.probed)


@dataclass(frozen=True)
class Problem:
    """What is trained on and, if not the base network, which model: all a worker needs.

    Attributes:
        datasets: The data by key.
        model: `module:factory` of the user's own model; None: the base network.
        own_normalizes: Whether that model brings batch normalization of its own, or can take it in one place only.
    """

    datasets: dict[str, Dataset]
    model: str | None = None
    own_normalizes: bool = False


@dataclass(frozen=True)
class Rows:
    """The data of a chunk of replicas on their own splits and scales: batches to train on, parts to evaluate on."""

    data: Dataset
    splits: tuple[Split, ...]
    specs: tuple[Spec, ...]
    shift: NDArray[Any]
    factor: NDArray[Any]

    @classmethod
    def of(cls, data: Dataset, specs: Sequence[Spec]) -> "Rows":
        """Split and scale the data for each replica, learning both from its training rows only."""
        parts = {seed: split(data, seed) for seed in {s.seed for s in specs}}
        if specs[0].rows is not None:
            parts = {seed: replace(part, train=part.train[: specs[0].rows]) for seed, part in parts.items()}
        learn = scaler(specs[0].scaling)
        if data.inputs and specs[0].activation == "own":  # ids and masks are numbers to the base network
            learn = leaving(learn, unscaled_columns(data.inputs))
        learned = {seed: learn(data.x[part.train]) for seed, part in parts.items()}
        shift, factor = (np.stack([learned[s.seed][i] for s in specs])[:, None] for i in (0, 1))
        return cls(data, tuple(parts[s.seed] for s in specs), tuple(specs), shift, factor)

    def take(self, rows: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Return x (R, N, …) and y (R, N, …) for row numbers (R, N).

        Values to predict are standardised, but for a loss of the user's own, which may depend on their unit.
        """
        x = (self.data.x[rows] - self.shift) * self.factor
        y = self.data.y[rows]
        if self.data.task == "regression":
            means, stds = self._target_scale
            y = (y - means) / stds if self.data.loss is None else y
        if self.specs[0].label_noise:
            y = self._noisy(y, rows)
        return torch.from_numpy(x.astype(np.float32, copy=False)), torch.from_numpy(_narrow(y))

    def _noisy(self, y: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
        """Return targets of which the training rows' are random in part."""
        noise, chosen = self._noise
        replica = np.arange(len(rows))[:, None]
        random = noise[replica, rows]
        picked = chosen[replica, rows].reshape(*rows.shape, *[1] * (y.ndim - 2))
        if self.data.task == "regression":
            return y + np.where(picked, random, 0.0) * (1.0 if self.data.loss is None else self._target_scale[1])
        return np.where(picked, random, y)

    @cached_property
    def _noise(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Random targets for every row of the data, (R, rows, …), and the training rows that take them, (R, rows).

        Classes are drawn from all classes with equal chances, and so is each of several labels; values get N(0, 1)
        added, one standard deviation.
        """
        noise: list[NDArray[Any]] = []
        chosen: list[NDArray[Any]] = []
        for spec, part in zip(self.specs, self.splits, strict=True):
            random = np.random.default_rng([spec.seed, len(self.data.x), 1])
            if self.data.task == "regression":
                noise.append(random.standard_normal(self.data.y.shape))
            else:
                kinds = 2 if self.data.task == "labels" else self.data.outputs
                noise.append(random.integers(0, kinds, self.data.y.shape))
            picked = np.zeros(len(self.data.x), dtype=bool)
            shuffled = random.permutation(part.train)
            picked[shuffled[: round(spec.label_noise * len(shuffled))]] = True
            chosen.append(picked)
        return np.stack(noise), np.stack(chosen)

    @cached_property
    def _target_scale(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Mean and standard deviation of each replica's training target, (R, 1, …); every batch needs them."""
        means = np.stack([self.data.y[part.train].mean(0) for part in self.splits])[:, None]
        stds = np.stack([self.data.y[part.train].std(0) for part in self.splits])[:, None]
        return means, np.where(stds > 0, stds, 1.0)

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Return x and y of the "train", "validation" or "test" part of every replica."""
        return self.take(np.stack([getattr(part, name) for part in self.splits]))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches without end, the same for equal seeds; a partial last one is left out."""
        size = min(self.specs[0].batch_size, len(self.splits[0].train))
        orders = {s.seed: np.random.default_rng(s.seed) for s in self.specs}
        while True:
            shuffled = {seed: rng.permutation(self.splits[0].train.size) for seed, rng in orders.items()}
            rows = np.stack([p.train[shuffled[s.seed]] for p, s in zip(self.splits, self.specs, strict=True)])
            for start in range(0, rows.shape[1] - size + 1, size):
                yield self.take(rows[:, start : start + size])


def _narrow(y: NDArray[Any]) -> NDArray[Any]:
    """Return targets as networks take them: class numbers as they are, values as float32."""
    return y.astype(np.float32) if y.dtype.kind == "f" else y


def losses(output: Tensor, y: Tensor, data: Dataset) -> Tensor:
    """Return the loss of each replica, (R,): cross-entropy, mean squared error on standardised y, or the user's own."""
    if data.loss is not None:
        return own_loss.losses(data.loss, output, y, data)
    if data.task == "classification":
        return cross_entropy(output.flatten(0, 1), y.flatten(), reduction="none").reshape(y.shape).mean(1)
    if data.task == "labels":
        return binary_cross_entropy_with_logits(output, y, reduction="none").mean((1, 2))
    return (output.reshape(y.shape) - y).square().flatten(1).mean(1)


def scores(output: Tensor, y: Tensor, data: Dataset) -> list[float]:
    """Return each replica's score by the metric of the data, NaN where its output is not finite."""
    if data.loss is not None and data.metric == own_loss.METRIC:
        return own_loss.scores(data.loss, output, y, data)
    return score_by(chosen_metric(data.metric or None, data), output, y)


def build(problem: Problem, rows: Rows) -> nn.Module:
    """Return the replicas that the specs of `rows` ask for."""
    spec, data = rows.specs[0], rows.data
    if problem.model is not None:
        example, _ = rows.take(np.stack([part.train[:4] for part in rows.splits]))
        models = [
            own_model.build(problem.model, x, data, placement=spec.placement, seed=s.seed)
            for x, s in zip(example, rows.specs, strict=True)
        ]
        return own_model.SideBySide(models, data.outputs, [s.seed for s in rows.specs])
    inputs = math.prod(data.x.shape[1:])
    replicas = base_network(
        inputs, data.outputs, placement=spec.placement, activation=spec.activation,
        seeds=[s.seed for s in rows.specs], stds=[s.std for s in rows.specs],
        virtual_batch_size=spec.virtual_batch_size, norm=spec.norm, hidden=spec.hidden,
    )  # fmt: skip
    if spec.norm == "init":
        rescale_to_data(replicas, next(rows.batches())[0].flatten(2))
    return nn.Sequential(nn.Flatten(2), replicas) if data.x.ndim > 2 else replicas


def train_mode(network: nn.Module, placement: Placement) -> None:
    """Put the network into training; where it is to have no batch normalization, switch those layers off.

    A layer that stays in inference with the statistics it started with, μ = 0 and σ² = 1, is γ·x/√(1+ε) + β.
    """
    network.train()
    for module in network.modules():
        if placement == "none" and isinstance(module, _BatchNorm):  # of a model of the user's own
            module.eval()


@torch.no_grad()
def predict(network: nn.Module, x: Tensor) -> Tensor:
    """Run the network in inference and leave it so."""
    network.eval()
    return network.predict(x) if isinstance(network, own_model.SideBySide) else network(x)


def evaluated_steps(steps: int) -> list[int]:
    """Return the steps after which a run is evaluated: each at first, then 25 % apart, and the last."""
    marks, at = [0], 1
    while at < steps:
        marks.append(at)
        at = max(at + 1, int(at * 1.25))
    return [*marks, steps]


def train(specs: Sequence[Spec], problem: Problem) -> list[Outcome]:
    """Train runs of one group together.

    Args:
        specs: Runs that differ in seed, learning rate and initial std only.
        problem: Data, and the model if it is the user's own.

    Returns:
        One outcome a spec, in order.
    """
    torch.set_num_threads(1)  # one worker a core; and the bits must not depend on how many there are
    spec, data = specs[0], problem.datasets[specs[0].data]
    if problem.model is not None and len(specs) > (most := own_model.together(data)):
        return [outcome for i in range(0, len(specs), most) for outcome in train(specs[i : i + most], problem)]
    rows = Rows.of(data, specs)
    network = build(problem, rows)
    optimizer = ReplicaOptimizer(spec.optimizer, network, [s.rate for s in specs])
    outcomes = [Outcome() for _ in specs]
    probe = _probe(spec.probe)
    parts = [rows.part(name) for name in ("validation", "test")]
    batches, marks = rows.batches(), set(evaluated_steps(spec.steps))
    torch.manual_seed(spec.seed)
    for step in range(spec.steps + 1):
        if step in marks:
            validation, test = (scores(predict(network, x), y, data) for x, y in parts)
            for outcome, *values in zip(outcomes, validation, test, strict=True):
                outcome.note(step, *values)
            if probe is not None:
                for outcome, seen in zip(outcomes, probe(network, rows, step), strict=True):
                    outcome.probed += [{"step": step, **seen}] if seen else []
            train_mode(network, spec.placement)
        if step < spec.steps:
            x, y = next(batches)
            if problem.model is not None:
                torch.default_generator.manual_seed(step)  # see SideBySide
            _backward(losses(network(x), y, data).sum(), problem)
            optimizer.step()
    return outcomes


def _backward(loss: Tensor, problem: Problem) -> None:
    with blaming("--model", problem.model, "failed in the backward pass") if problem.model else nullcontext():
        loss.backward()


def _probe(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function) if name else None
