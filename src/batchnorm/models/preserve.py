"""Work on somebody's model, and leave no trace: weights, buffers, gradients, modes, optimizer and random numbers."""

import copy
import random
import signal
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

Buffers = list[tuple[nn.Module, dict[str, torch.Tensor]]]
_HOLDERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
_KEPT_ELSEWHERE = ("_parameters", "_buffers", "_modules", "state", "param_groups")  # as far as their insides go


def _insides(value: Any, seen: set[int], *, deep: bool = True) -> list[Callable[[], object]]:
    """Return what puts back the insides of a value, and of what it holds, where they can be changed in place."""
    if id(value) in seen or isinstance(value, nn.Parameter):
        return []
    seen.add(id(value))
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return [lambda: value.set_state(state)]
    if isinstance(value, np.random.Generator):
        drawn = value.bit_generator.state
        return [lambda: setattr(value.bit_generator, "state", drawn)]
    if isinstance(value, np.ndarray):
        array = value.copy()
        return [lambda: np.copyto(value, array)]
    if isinstance(value, torch.Tensor):
        tensor = value.detach().clone()
        return [lambda: _put_back(value, tensor)]
    if type(value) not in _HOLDERS:
        return []
    held = copy.copy(value)
    insides: list[Callable[[], object]] = [lambda: _refill(value, held)]
    for part in list(held.values() if isinstance(held, dict) else held) if deep else []:
        insides += _insides(part, seen)
    return insides


@torch.no_grad()
def _put_back(value: torch.Tensor, held: torch.Tensor) -> None:
    if not torch.equal(value, held):  # else its version would change, and with it what autograd makes of it
        value.copy_(held)


def _refill(value: Any, held: Any) -> None:
    value.clear()
    (value.extend if isinstance(value, list | deque) else value.update)(held)


class _Attributes:
    """The attributes of an object, and the insides of those that can change: a module notes things down as it runs."""

    def __init__(self, owner: Any) -> None:
        self._owner, seen = owner, set[int]()
        self._before = dict(vars(owner))
        self._insides: list[Callable[[], object]] = []
        for name, value in self._before.items():
            if "_hooks" in name:
                continue  # those who listen meanwhile go on listening
            self._insides += _insides(value, seen, deep=name not in _KEPT_ELSEWHERE)

    def restore(self) -> None:
        now: dict[str, Any] = vars(self._owner)
        for name in [n for n in now if n not in self._before]:
            del now[name]
        now.update(self._before)
        for put_back in self._insides:
            put_back()


class _OptimizerState:
    """What an optimizer remembers and is set to. It works on a copy, the original is put aside."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._state = optimizer, optimizer.state
        self._attributes = _Attributes(optimizer)
        self._groups = [dict(group) for group in optimizer.param_groups]
        self.rewind()

    def rewind(self) -> None:
        """Begin again on a fresh copy."""
        copied = {p: copy.deepcopy(of_p) for p, of_p in self._state.items()}
        self._optimizer.state = defaultdict(dict, copied)
        for group, before in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.clear()
            group.update(before)

    def restore(self) -> None:
        """Give the original back."""
        self._attributes.restore()
        self.rewind()
        self._optimizer.state = self._state


class Snapshot:
    """A model and its optimizer as they are now. Copies of tensors lie in the main memory, not in that of a GPU."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None, loss: Any = None) -> None:
        """Take them down; from here on the optimizer works on a copy of its state. A loss may be a module too."""
        parts = [part for part in (model, loss) if isinstance(part, nn.Module)]
        groups = [] if optimizer is None else optimizer.param_groups
        learning = [p for part in parts for p in part.parameters()] + [p for group in groups for p in group["params"]]
        parameters = {id(p): p for p in learning}.values()
        tensors = {id(t): t for t in (*parameters, *(b for part in parts for b in part.buffers()))}.values()
        self._values = [(t, t.detach().to("cpu", copy=True)) for t in tensors]
        self._gradients = [(p, p.grad) for p in parameters]
        self._modules = [_Attributes(module) for part in parts for module in part.modules()]
        self._optimizer = None if optimizer is None else _OptimizerState(optimizer)
        self._clear()

    def _clear(self) -> None:
        for parameter, _ in self._gradients:
            parameter.grad = None

    @torch.no_grad()
    def rewind(self) -> None:
        """Begin again with the weights, buffers, modes and optimizer state taken down, and without gradients."""
        for module in self._modules:
            module.restore()
        for tensor, value in self._values:
            tensor.copy_(value)
        if self._optimizer is not None:
            self._optimizer.rewind()
        self._clear()

    def restore(self) -> None:
        """Give everything back as it was, gradients and the optimizer's own state too."""
        self.rewind()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        if self._optimizer is not None:
            self._optimizer.restore()


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Let a second Ctrl-C wait until the block is done: half a model would be worse than a moment's patience."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        raise KeyboardInterrupt


@contextmanager
def training_mode(model: nn.Module) -> Generator[None]:
    """Put a model that is in inference into training, and every part of it back into its own mode."""
    modes = {} if model.training else {module: module.training for module in model.modules()}
    if modes:
        model.train()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def kept_buffers(modules: Iterable[nn.Module]) -> Buffers:
    """Return copies of the buffers of each."""
    return [(module, {name: buffer.clone() for name, buffer in module.named_buffers()}) for module in modules]


@torch.no_grad()
def bring_back(kept: Buffers) -> None:
    """Write them back, also into buffers that were cast or moved since."""
    for module, buffers in kept:
        for name, value in buffers.items():
            module.get_buffer(name).copy_(value)


@contextmanager
def held_buffers(model: nn.Module) -> Generator[None]:
    """Let forwards that only look leave no trace in running statistics."""
    kept = kept_buffers([model])
    try:
        yield
    finally:
        bring_back(kept)


@contextmanager
def held_generators(loader: Any) -> Generator[None]:
    """Let a look at a DataLoader leave no trace in the generators of its own that it shuffles by."""
    inner = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), inner, getattr(inner, "sampler", None))
    owned = [getattr(owner, "generator", None) for owner in owners]
    states = [(generator, generator.get_state()) for generator in owned if isinstance(generator, torch.Generator)]
    workers = getattr(loader, "_iterator", None)  # persistent ones
    try:
        yield
    finally:
        if getattr(loader, "_iterator", None) is not workers:
            loader._iterator = workers
        for generator, state in states:
            generator.set_state(state)


@contextmanager
def held_numbers(model: nn.Module) -> Generator[None]:
    """Bring the global random numbers back, those of the model's device too, however the block ends."""
    python, numpy = random.getstate(), np.random.get_state()  # the global one is what models use
    away = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in away), "cuda")
    with torch.random.fork_rng([device.index or 0 for device in away], device_type=kind):
        try:
            yield
        finally:
            with _uninterrupted():
                random.setstate(python)
                np.random.set_state(numpy)


@contextmanager
def all_or_none(modules: Iterable[nn.Module]) -> Generator[Buffers]:
    """Give the buffers of all of them as they were, and bring them back where the block does not get to its end."""
    kept = kept_buffers(modules)
    try:
        yield kept
    except BaseException:
        with _uninterrupted():
            bring_back(kept)
        raise


@contextmanager
def preserved(model: nn.Module, optimizer: Optimizer | None = None, loss: Any = None) -> Generator[Snapshot]:
    """Bring all of them and the global random numbers back to the bit when the block ends, however it ends."""
    with held_numbers(model):
        snapshot: Snapshot | None = None
        try:
            with _uninterrupted():
                snapshot = Snapshot(model, optimizer, loss)
            yield snapshot
        finally:
            with _uninterrupted():
                if snapshot is not None:
                    snapshot.restore()
