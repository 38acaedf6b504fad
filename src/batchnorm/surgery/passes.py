"""Passes of data through a model: every layer in question sees all of it, and the model is as before."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from itertools import count
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_leaves, tree_map

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.statistics import Moments, merge
from batchnorm.surgery.places import Place, require_numbers, uncompiled
from batchnorm.surgery.population import Population, settle
from batchnorm.torch.preserve import held_generators, held_numbers, preserved

Run = Callable[[nn.Module, Any], Any]
HINT = "`call`, a function of model and batch, says how to run a batch"
SETTLED = 8 * torch.finfo(torch.float32).eps  # of σ: what rounding moves


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
    """Return the size of the first axis that most tensors of a batch share; of two as frequent the larger."""
    sizes = Counter(int(leaf.shape[0]) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
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
                return leaf
            return (leaf[:keep] if leaf.ndim and leaf.shape[0] == size else leaf).to(device)

        yield tree_map(there, batch), keep
        seen += keep
        if max_samples is not None and seen >= max_samples:
            return


def _one_batch(data: Any) -> bool:
    """Return whether a tuple is a batch, (inputs, labels), and not a series of batches as `Tensor.split` gives it."""
    parts = data if isinstance(data, tuple) else ()
    return len({(p.dtype, p.shape[1:]) if isinstance(p, Tensor) else type(p) for p in parts}) > 1


def one_pass(
    model: nn.Module,
    given: Iterator[tuple[Any, int]],
    *,
    call: Run,
    autocast: Any,
    listeners: Sequence[Callable[[int], object]],
) -> None:
    """Run the model on every batch, without gradients, and tell the listeners of how many samples it was."""
    kind = next((p.device.type for p in (*model.parameters(), *model.buffers())), "cpu")
    dtype = autocast if isinstance(autocast, torch.dtype) else None
    with torch.no_grad(), torch.autocast(kind, dtype) if autocast else nullcontext():
        for batch, size in given:
            call(model, batch)
            for listener in listeners:
                listener(size)


@contextmanager
def progress(label: str, total: int | None, shown: bool) -> Generator[Callable[[int], None]]:
    """Show how many samples a pass over the data has seen, of so many if that is known, on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("samples"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda samples: bar.advance(task, samples)


def over_ranks(found: list[Population], failure: Exception | None, group: Any) -> None:
    """Merge what all processes have seen, in the order of their ranks; or fail in all of them where one has failed."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size(group) == 1:
        if failure is not None:
            raise failure
        return
    own = [
        (one.moments and Moments(*(_there(p, "cpu") for p in one.moments)), one.counted(), one.arrival) for one in found
    ]
    everyone: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(everyone, str(failure) if failure is not None else own, group)
    if failure is not None:
        raise failure
    for rank, theirs in enumerate(everyone):
        if isinstance(theirs, str):
            raise BatchNormError(f"process {rank} has failed: {theirs}")
    for i, one in enumerate(found):
        device = one.layer.running_mean.device
        parts = [Moments(*(_there(p, device) for p in theirs[i][0])) for theirs in everyone if theirs[i][0] is not None]
        one.moments = reduce(lambda a, b: merge(a, b, xp), parts) if parts else None
        one.arrival = next((theirs[i][2] for theirs in everyone if theirs[i][2] is not None), None)
        one.batches, one.samples, one.skipped, one.calls = map(
            sum, zip(*(theirs[i][1] for theirs in everyone), strict=True)
        )


def _there(part: Any, device: Any) -> Any:
    return part.to(device) if isinstance(part, Tensor) else part


def _turns(data: Any, found: list[Place], sequential: bool) -> int:
    """Return how many passes there may be: one for each layer, and one to see that nothing moves; or two at most."""
    if sequential and isinstance(data, Iterator):
        raise ArgumentError(
            "sequential=True goes over the data several times, got an iterator, which is used up after one"
        )
    if sequential:
        return len(found) + 1
    return 1 if isinstance(data, Iterator) else min(2, len(found))


def _checked(max_samples: int | None, autocast: Any) -> None:
    if max_samples is not None and not (isinstance(max_samples, int) and max_samples > 0):
        raise ArgumentError(f"`max_samples` must be a number, at least 1, got {max_samples!r}")
    if not (autocast is None or isinstance(autocast, bool | torch.dtype)):
        raise ArgumentError(f"`autocast` must be a dtype, torch.bfloat16 say, True or None, got {autocast!r}")


def measured(
    model: nn.Module,
    data: Any,
    found: list[Place],
    *,
    call: Run | None = None,
    max_samples: int | None = None,
    device: Any = None,
    autocast: Any = None,
    sequential: bool = False,
    group: Any = None,
    shown: bool = True,
    label: str = "recalibrate",
) -> tuple[list[Population], list[str]]:
    """Return what each layer sees over the data, and notes on what was seen; leave the model as it is, to the bit.

    With each pass one more layer is settled, in the order in which they are called: what comes before it is. All
    passes see the same data: random numbers begin anew with each, those of a loader that shuffles too.
    """
    _checked(max_samples, autocast)
    require_numbers(model)
    turns = _turns(data, found, sequential)
    if device is None:
        device = next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    populations, settled, moved = list[Population](), set[nn.Module](), list[float]()
    with preserved(model), uncompiled(model):
        model.eval()
        for turn in range(turns):
            seen = [Population(place) for place in found]
            failure: Exception | None = None
            name = f"{label}, pass {turn + 1} of {turns}" if turns > 1 else label
            try:
                with (
                    held_numbers(model),
                    held_generators(data),
                    progress(name, _samples(data, max_samples), shown) as told,
                    listening(seen, populations, settled),
                ):
                    given, listeners = batches(data, device, max_samples), [*(one.close for one in seen), told]
                    one_pass(model, given, call=call or first_of, autocast=autocast, listeners=listeners)
            except Exception as error:
                failure = error
            over_ranks(seen, failure, group)
            _require_data(seen)
            moved, populations = [_moved(a, b) for a, b in zip(populations, seen, strict=False)], seen
            for one in populations:
                if one.moments is not None:
                    settle(one.layer, *one.statistics())
            settled |= {one.layer for one in populations if one.arrival == turn}
            if moved and max(moved) <= SETTLED:
                break
    loose = [i for i, one in enumerate(populations) if one.calls and (sequential or one.layer not in settled)]
    by = max((moved[i] for i in loose), default=0.0) if moved else None
    return populations, [*_left_out(populations), *_unsettled(len(loose), by, sequential=sequential)]


def _samples(data: Any, max_samples: int | None) -> int | None:
    """Return how many samples a pass will see, as far as the data tell."""
    known = len(data.dataset) if hasattr(getattr(data, "dataset", None), "__len__") else None
    known = len(data) if isinstance(data, Tensor) else known
    return min(known, max_samples or known) if known is not None else max_samples


def _left_out(populations: list[Population]) -> list[str]:
    skipped = max((one.skipped for one in populations), default=0)
    return [f"left out for inf or NaN: {skipped} of the batches"] if skipped else []


def _unsettled(loose: int, moved: float | None, *, sequential: bool) -> list[str]:
    """Return a note where the statistics are not final, and by how much the last pass has still moved them."""
    if not loose or (moved is not None and moved <= SETTLED):
        return []
    if sequential:
        return ["the statistics were still moving in the last pass: is a layer called more than once?"]
    if moved is None:
        why = "as an iterator gives one pass; a list or a DataLoader gives more"
    else:
        why = f"which the second pass moved by up to {moved:.2g} σ; sequential=True settles them"
    return [f"not settled: {loose} layer{'s' * (loose > 1)} behind others, {why}"]


def _require_data(populations: list[Population]) -> None:
    if populations and not any(one.calls for one in populations):
        raise BatchNormError(
            "the data gave no batch that reaches a layer: statistics stay as they were (an iterator is used up after "
            "one pass, and a loader with drop_last=True gives none where there is less than one batch)"
        )


def _moved(a: Population, b: Population) -> float:
    """Return how far statistics are apart: of the mean in σ, of the variance as a share."""
    if a.moments is None or b.moments is None:
        return 0.0 if a.moments is b.moments else float("inf")
    (mean, var), (new_mean, new_var) = a.statistics(), b.statistics()
    sigma = (new_var + a.layer.eps).sqrt()
    return float(torch.maximum((new_mean - mean).abs() / sigma, (new_var - var).abs() / sigma**2).max())
