"""Whole models at once: which statistics their layers normalise by, and whether and when these move."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.core.step import BatchMoments
from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.torch.layers import BatchNorm
from batchnorm.torch.naming import shorten
from batchnorm.torch.tracing import in_backward


def _normalizations(model: Any) -> dict[str, _BatchNorm]:
    """Return the batch normalization of a model by name, torch's own too, each once however often it is used."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    layers = {name or type(model).__name__: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        raise ArgumentError(f"`model` has no batch normalization, got {type(model).__name__}")
    return layers


def _layers(model: Any) -> dict[str, BatchNorm]:
    """Return the layers of a model by name, each once however often it is used; or raise."""
    layers = _normalizations(model)
    foreign = [f"{name} ({type(m).__name__})" for name, m in layers.items() if not isinstance(m, BatchNorm)]
    if foreign:
        raise ArgumentError(
            f"`model` has layers that are not of batchnorm.torch: {shorten(foreign)} (build it with "
            "BatchNorm1d, 2d or 3d from there; the checkpoints fit)"
        )
    return {name: m for name, m in layers.items() if isinstance(m, BatchNorm)}


def _layers_with_statistics(model: Any, purpose: str) -> dict[str, BatchNorm]:
    """Return the layers of a model by name; or raise where one has no running statistics for the purpose."""
    named = _layers(model)
    for name, layer in named.items():
        if layer.running_mean is None:
            raise ArgumentError(f"{name} keeps no running statistics {purpose} (track_running_stats=False)")
    return named


class frozen:  # noqa: N801  # used like a function
    """Freeze every batch normalization of a model: running statistics, no updates, γ and β fixed.

    `with frozen(model):` for a while, `frozen(model).apply()` for good, until `frozen(model).undo()`. It survives
    `model.train()`, copies and pickles. Parameters keep their identity, so an optimizer stays valid; their gradients
    are put aside, so that it does not move them either. Undoing brings all back.

    Raises:
        ArgumentError: if the model has no layer of `batchnorm.torch`, one of torch's own, or one that keeps no
            running statistics.

    Differs:
        `layer.eval()` is undone by the next `model.train()`, and lets γ and β learn. In Keras this is trainable=False.

    >>> model = nn.Sequential(nn.Linear(2, 3), BatchNorm(3))
    >>> _ = frozen(model).apply()
    >>> _ = model.train()(torch.randn(8, 2))
    >>> model[1].num_batches_tracked.item(), [p.requires_grad for p in model[1].parameters()]
    (0, [False, False])
    >>> _ = frozen(model).undo()
    >>> [p.requires_grad for p in model[1].parameters()]
    [True, True]
    """

    def __init__(self, model: nn.Module) -> None:
        self._all = _layers_with_statistics(model, "to be frozen to")
        self._blocks: list[list[BatchNorm]] = []

    def __repr__(self) -> str:
        """Return which layers these are, and how many of them are frozen now."""
        held = sum(layer.frozen for layer in self._all.values())
        return f"<frozen: {held} of {len(self._all)} layers, {shorten([*self._all])}>"

    def apply(self) -> "frozen":
        """Freeze for good; layers that are frozen already stay as they are."""
        for layer in self._all.values():
            layer.freeze()
        return self

    def undo(self) -> "frozen":
        """Thaw every layer of the model, whoever has frozen it."""
        for layer in reversed(self._all.values()):  # a parameter that two share was learning when the first froze it
            layer.thaw()
        return self

    def __enter__(self) -> "frozen":
        self._blocks.append([layer for layer in self._all.values() if not layer.frozen])
        return self.apply()

    def __exit__(self, *_: object) -> None:
        for layer in reversed(self._blocks.pop()):
            layer.thaw()


@contextmanager
def hold_statistics(model: nn.Module) -> Generator[None]:
    """Normalise by the batch, as in training, without moving any running statistic.

    For the forwards that a step makes beside its first one: SAM, adversarial examples, a GAN's other half.

    >>> layer = BatchNorm(3)
    >>> with hold_statistics(layer):
    ...     _ = layer(torch.randn(8, 3))
    >>> layer.num_batches_tracked.item()
    0
    """
    layers = list(_layers(model).values())
    for layer in layers:
        layer.hold_depth += 1
    try:
        yield
    finally:
        for layer in layers:
            layer.hold_depth -= 1


@contextmanager
def use_running(model: nn.Module) -> Generator[None]:
    """Normalise by the running statistics, which do not move, while γ, β and the rest of the model train.

    >>> layer = BatchNorm(3)
    >>> with use_running(layer):
    ...     y = layer(torch.ones(8, 3))
    >>> y[0, 0].item(), layer.num_batches_tracked.item()  # (1 − 0)/√(1 + 1e-5)
    (0.9999949932098389, 0)
    """
    layers = list(_layers_with_statistics(model, "to use").values())
    for layer in layers:
        layer.use_running_depth += 1
    try:
        yield
    finally:
        for layer in layers:
            layer.use_running_depth -= 1


def _state(layer: _BatchNorm) -> list[tuple[str, Tensor]]:
    """Return what a training step moves: the buffers, and the count of skipped batches, which is none."""
    count: Tensor | None = getattr(layer, "nonfinite_batches", None)
    return [*layer.named_buffers(), *([] if count is None else [("nonfinite_batches", count)])]


class transaction:  # noqa: N801  # used like a function
    """Take back what a step does to the running statistics, if it fails or is not wanted.

    They are restored, to the bit, if the block raises or `rollback()` is called in it or after it: for a step that
    GradScaler skips, say. Works on torch's own layers too. Layers that `accumulate` collects for forget what they have
    accumulated in the block.

    >>> layer = BatchNorm(3)
    >>> with transaction(layer) as step:
    ...     _ = layer(torch.randn(8, 3))
    ...     step.rollback()
    >>> layer.num_batches_tracked.item(), layer.running_mean.tolist()
    (0, [0.0, 0.0, 0.0])
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = list(_normalizations(model).values())
        self._before: list[tuple[dict[str, Tensor], list[BatchMoments]]] = []

    def __enter__(self) -> "transaction":
        self._before = [
            ({name: t.clone() for name, t in _state(layer)}, [*(getattr(layer, "accumulated", None) or ())])
            for layer in self._layers
        ]
        return self

    @torch.no_grad()
    def rollback(self) -> None:
        """Restore the running statistics of when the block was entered."""
        if not self._before:
            raise BatchNormError("`rollback` goes back to where a block began, and none has: `with transaction(model)`")
        for layer, (buffers, accumulated) in zip(self._layers, self._before, strict=True):
            for name, now in _state(layer):
                now.copy_(buffers[name])
            if isinstance(layer, BatchNorm) and layer.accumulated is not None:
                layer.accumulated[:] = accumulated  # also what `accumulate` has remembered meanwhile

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.rollback()


class _Calls:
    """Counts the calls of a model that its layers hold something of, and lets these flush after every so many."""

    def __init__(self, layers: list[BatchNorm], steps: int | None) -> None:
        self._layers, self._steps = layers, steps
        self._before = 0
        self.calls = 0
        self._held: list[int] = []  # how much the layers held after each call

    def _holding(self) -> int:
        return sum(len(layer.accumulated or ()) for layer in self._layers)

    def begin(self, *_: Any) -> None:
        self._before = self._holding()
        self.calls += 1

    def end(self, *_: Any) -> None:
        if in_backward() or not any(layer.updates_statistics() for layer in self._layers):
            return
        kept = [n for n in self._held if n <= self._before]  # a `transaction` may have taken calls back
        self._held = [*kept, self._holding()]
        if len(self._held) == self._steps:
            self._held = [n for n in self._held if n > 0]
            for layer in self._layers:
                layer.flush()


@contextmanager
def accumulate(model: nn.Module, steps: int | None = None) -> Generator[None]:
    """Move the running statistics once for several micro-batches, by their merged moments: those of one big batch.

    Each micro-batch is still normalised by its own moments. With virtual batches it is the mean over all groups of all
    micro-batches that is remembered. If the block raises, what is not yet remembered is dropped.

    Args:
        model: A model with layers of `batchnorm.torch`.
        steps: Move after every so many calls of `model` in training; None: once, at the end of the block. What is left
            at the end of the block moves them once more.

    Raises:
        ArgumentError: if `steps` is not a positive int, the model has no such layers, or accumulates already.

    >>> layer, x = BatchNorm(3, momentum=1.0), torch.randn(64, 3)
    >>> with accumulate(layer):
    ...     for micro_batch in x.split(2):
    ...         _ = layer(micro_batch)
    >>> bool(torch.isclose(layer.running_var, x.var(0)).all()), layer.num_batches_tracked.item()
    (True, 1)
    """
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
        raise ArgumentError(f"`steps` must be None or an int ≥ 1, got {steps!r}")
    named = _layers(model)
    for name, layer in named.items():
        if layer.accumulated is not None:
            raise ArgumentError(f"{name} accumulates already: one `accumulate` cannot stand in another")
    layers = list(named.values())
    calls = _Calls(layers, steps)
    hooks = [model.register_forward_pre_hook(calls.begin), model.register_forward_hook(calls.end)]
    for layer in layers:
        layer.accumulated = []
    try:
        yield
        if steps is not None and not calls.calls and any(layer.accumulated for layer in layers):
            warnings.warn(
                f"accumulate(model, steps={steps}) counts calls of `model`, a {type(model).__name__}, and it was never "
                "called: the statistics of the whole block move once (give the module that you call)",
                RuntimeWarning,
                stacklevel=3,
            )
        for layer in layers:
            layer.flush()
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.accumulated = None
