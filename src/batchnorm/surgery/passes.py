"""Passes of data through a model: every layer in question sees all of it, and the model is as before."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from numbers import Integral
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.models.preserve import held_generators, held_numbers, preserved
from batchnorm.surgery.flow import tensors_in
from batchnorm.surgery.places import Place, epsilon, require_numbers, uncompiled
from batchnorm.surgery.population import Population, settle
from batchnorm.surgery.ranks import everyones, pool, portable
from batchnorm.surgery.report import written

Run = Callable[[nn.Module, Any], Any]
HINT = "`call`, a function of model and batch, says how to run a batch"
SETTLED = 8 * torch.finfo(torch.float32).eps  # of σ: what rounding moves


@dataclass(frozen=True)
class Reading:
    """How data are read: the options of `recalibrate` of the same names; `shown` tells whether there is a bar."""

    call: Run | None = None
    max_samples: int | None = None
    device: Any = None
    autocast: Any = None
    shown: bool = True

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        most, autocast = self.max_samples, self.autocast
        number = isinstance(most, Integral) and not isinstance(most, bool)
        if most is not None and not (number and most > 0):
            raise ArgumentError(f"`max_samples` must be a number, at least 1, got {most!r}")
        object.__setattr__(self, "max_samples", None if most is None else int(most))
        if not (autocast is None or isinstance(autocast, bool | torch.dtype)):
            raise ArgumentError(f"`autocast` must be a dtype, torch.bfloat16 say, True or None, got {autocast!r}")


@contextmanager
def listening(populations: list[Population], before: list[Population], settled: set[nn.Module]) -> Generator[None]:
    """Show the inputs of the layers to their populations.

    A layer that is settled normalises by its statistics; another by all that it has seen so far, this batch included
    and what is still to come as the pass before has seen it, so that nothing is far beyond the variance it is divided
    by.
    """
    arrived = count()

    def show(population: Population, earlier: Population | None, _: nn.Module, args: Any, kwargs: Any) -> None:
        named = dict(zip(("input", "residual", "weights"), args, strict=False)) | kwargs
        x = named.get("input", next(iter(named.values()), None))
        if not isinstance(x, Tensor):
            raise BatchNormError(f"{population.place.name} was given {type(x).__name__}, no tensor: {HINT}")
        features, axis = population.layer.running_mean.numel(), getattr(population.layer, "axis", 1)
        if isinstance(axis, int) and (not -x.ndim <= axis < x.ndim or x.shape[axis] != features):
            shape = f"an input of shape {tuple(x.shape)}, where its {features} features lie along axis={axis}"
            raise BatchNormError(f"{population.place.name} was given {shape}: {HINT}")
        if population.arrival is None:
            population.arrival = next(arrived)
        population.take(x.detach(), named.get("weights"))
        if population.layer not in settled and population.moments is not None:
            settle(population.layer, *population.statistics(earlier))

    handles: list[Any] = []
    try:
        for one, earlier in zip(populations, before or [None] * len(populations), strict=True):
            handles.append(one.layer.register_forward_pre_hook(partial(show, one, earlier), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_of(model: nn.Module, batch: Any) -> Any:
    """Run a batch as loaders give them: of a tuple or list the first, a mapping as keyword arguments."""
    try:
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(batch[0] if isinstance(batch, tuple | list) else batch)
    except Exception as error:
        error.add_note(HINT)
        raise


def samples_in(batch: Any) -> int:
    """Return the size of the first axis that most tensors of a batch share; of two as frequent the larger.

    An object of a class of its own, graphs say, knows its samples, beside a target too, or its tensors do.
    """
    inside: Any = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    for part in (batch, *inside):
        for name in ("num_graphs", "batch_size"):
            known = None if isinstance(part, Mapping) else getattr(part, name, None)
            if isinstance(known, int):
                return known
    sizes = Counter(int(leaf.shape[0]) for leaf in tensors_in(batch) if leaf.ndim)
    return max(sizes, key=lambda size: (sizes[size], size), default=1)


def batches(data: Any, device: Any, max_samples: int | None) -> Iterator[tuple[Any, int]]:
    """Yield each batch on the device, and its samples, until so many have been seen; the last is cut to fit.

    Raises:
        ArgumentError: for what is no series of batches, or looks like one by mistake.
    """
    if isinstance(data, Tensor):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, Mapping | str | np.ndarray) or _one_batch(data):
        raise ArgumentError(
            f"`data` must be batches, as a DataLoader gives them, or one tensor, got {type(data).__name__}: of what is "
            "one batch make a list, [batch]; of arrays make tensors"
        )
    seen = 0
    for batch in data:
        batch = dict(batch) if isinstance(batch, Mapping) else batch  # of whatever class, for the tree
        size = samples_in(batch)
        keep = size if max_samples is None else min(size, max_samples - seen)

        def there(leaf: Any, size: int = size, keep: int = keep) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf.to(device) if hasattr(leaf, "to") else leaf
            return (leaf[:keep] if leaf.ndim and leaf.shape[0] == size else leaf).to(device)

        yield tree_map(there, batch), keep
        seen += keep
        if max_samples is not None and seen >= max_samples:
            return


def _one_batch(data: Any) -> bool:
    """Return whether a tuple is a batch, (inputs, labels), and not a series of batches as `Tensor.split` gives it."""
    parts = data if isinstance(data, tuple) else ()
    return len({(p.dtype, p.shape[1:]) if isinstance(p, Tensor) else type(p) for p in parts}) > 1


def one_pass(model: nn.Module, data: Any, how: Reading, ended: Sequence[Callable[[int], object]]) -> None:
    """Run the model on every batch, without gradients, and tell of each that has ended how many samples it had."""
    call = how.call or first_of
    home = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    dtype = how.autocast if isinstance(how.autocast, torch.dtype) else None
    with torch.no_grad(), torch.autocast(home.type, dtype) if how.autocast else nullcontext():
        for batch, size in batches(data, home if how.device is None else how.device, how.max_samples):
            call(model, batch)
            for listener in ended:
                listener(size)


@contextmanager
def progress(label: str, total: int | None, shown: bool) -> Generator[Callable[[int], None]]:
    """Show how many samples a pass over the data has seen, of so many if that is known, on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("samples"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda samples: bar.advance(task, samples)


def _samples(data: Any, max_samples: int | None) -> int | None:
    """Return how many samples a pass will see, as far as the data tell."""
    try:
        known = len(data) if isinstance(data, Tensor) else len(data.dataset)
    except (AttributeError, TypeError, NotImplementedError):  # a series of batches; a dataset that does not know
        known = None
    return min(known, max_samples or known) if known is not None else max_samples


def _turns(data: Any, found: list[Place], sequential: bool) -> int:
    """Return how many passes there may be: two, or with one for each layer and one to see that nothing moves.

    Twice that where the order in which layers are first called is not the order in which they feed one another.
    """
    if sequential and isinstance(data, Iterator):
        raise ArgumentError(
            "sequential=True goes over the data several times, got an iterator, which is used up after one"
        )
    if sequential:
        return 2 * (len(found) + 1)
    return 1 if isinstance(data, Iterator) else min(2, len(found))


def measured(
    model: nn.Module,
    data: Any,
    found: list[Place],
    how: Reading,
    *,
    sequential: bool,
    group: Any,
    label: str,
) -> tuple[list[Population], list[str]]:
    """Return what each layer sees over the data, and notes on what was seen; leave the model as it is, to the bit.

    With each pass one more layer is settled, in the order in which they are called: what comes before it is. All
    passes see the same data, as far as random numbers decide: those of torch, NumPy and Python, and of the loader,
    begin anew with each.
    """
    require_numbers(model)
    turns = min(everyones(partial(_turns, data, found, sequential), group))
    now, settled, moved, samples = list[Population](), set[nn.Module](), list[float](), list[float]()
    with preserved(model), uncompiled(model):
        model.eval()
        for turn in range(turns):
            fixed = bool(now) and settled.issuperset(one.layer for one in now if one.calls)
            before, now = now, [Population(place) for place in found]
            usual = f", pass {turn + 1} of {len(found) + 1 if sequential else turns}" if turns > 1 else ""
            watched = partial(_watched, model, data, how, now, before=before, settled=settled, name=f"{label}{usual}")
            everyone = everyones(watched, group)
            if len(everyone) > 1:
                pool(now, everyone)
            if not any(one.calls for one in now):
                now, moved = _used_up(before, sequential), []
                break
            moved = [_moved(a, b) for a, b in zip(before, now, strict=False)]
            samples.append(max(one.samples for one in now))
            for one in now:
                if one.moments is not None:
                    settle(one.layer, *one.statistics())
            if fixed and max(moved) <= SETTLED:
                break
            whole = max(one.batches for one in now) == 1  # all that there is has been seen at once
            settled |= {one.layer for one in now if whole or one.arrival == turn}
    return now, _notes(now, moved, samples, settled=None if sequential else settled)


def _watched(
    model: nn.Module,
    data: Any,
    how: Reading,
    now: list[Population],
    *,
    before: list[Population],
    settled: set[nn.Module],
    name: str,
) -> list[Any]:
    """Pass the data through the model, and return what the layers have seen of them in this process."""
    with (
        held_numbers(model),
        held_generators(data),
        progress(name, _samples(data, how.max_samples), how.shown) as told,
        listening(now, before, settled),
    ):
        one_pass(model, data, how, [*(one.close for one in now), told])
    return [portable(one) for one in now]


def _used_up(before: list[Population], sequential: bool) -> list[Population]:
    """Return what the first pass has seen where there are no data for another."""
    if sequential and before:
        raise BatchNormError("sequential=True goes over the data several times, and they were used up after one")
    if before:
        return before
    raise BatchNormError(
        "the data gave no batch that reaches a layer: statistics stay as they were (an iterator is used up after "
        "one pass, and a loader with drop_last=True gives none where there is less than one batch)"
    )


def _notes(
    populations: list[Population], moved: list[float], samples: list[float], *, settled: set[nn.Module] | None
) -> list[str]:
    """Return what was left out, and how far the last pass has moved what is not `settled`; None: nobody knows."""
    notes = list[str]()
    skipped = max(one.skipped for one in populations)
    if skipped:
        notes.append(f"left out for inf or NaN: {skipped} of the batches")
    if len(set(samples)) > 1:
        notes.append(
            f"the passes saw different data, of {', '.join(map(written, samples))} samples: the last one counts"
        )
    again = [one.calls > one.batches + one.skipped for one in populations]  # perhaps behind itself
    loose = [i for i, one in enumerate(populations) if one.calls and (again[i] or one.layer not in (settled or ()))]
    layers = f"not settled: {len(loose)} layer{'s' * (len(loose) > 1)} behind others"
    if loose and not moved:
        twice = all(again[i] for i in loose)
        why = "as the data gave one pass; a list or a DataLoader gives more"
        notes.append(f"{layers}, {'which is called more than once: sequential=True settles it' if twice else why}")
    elif loose and (by := max(moved[i] for i in loose)) > SETTLED:
        hint = "is a layer called more than once?" if settled is None else "sequential=True settles them"
        notes.append(f"{layers}, which the last pass moved by up to {by:.2g} σ: {hint}")
    return notes


def _moved(a: Population, b: Population) -> float:
    """Return how far statistics are apart: of the mean in σ, of the variance as a share."""
    if a.moments is None or b.moments is None:
        return 0.0 if a.moments is b.moments else float("inf")
    (mean, var), (new_mean, new_var) = a.statistics(), b.statistics()
    sigma = (new_var + epsilon(a.layer)).sqrt()
    return float(torch.maximum((new_mean - mean).abs() / sigma, (new_var - var).abs() / sigma**2).max())
