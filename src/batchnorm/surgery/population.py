"""What layers see over all of the data: moments pooled over batches, calls and processes."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from typing import Any

import array_api_compat.torch as xp
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_leaves, tree_map

from batchnorm import kernels
from batchnorm.conventions import TORCH, Estimator
from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.layout import plan
from batchnorm.renorm import REMEMBERED
from batchnorm.statistics import Moments, merge, observed_variance
from batchnorm.steps import silence
from batchnorm.surgery.places import Place
from batchnorm.torch.check import check_weights

Run = Callable[[nn.Module, Any], Any]


class Population:
    """What one layer has seen so far."""

    def __init__(self, place: Place) -> None:
        """Begin with nothing."""
        self.place = place
        self.layer: Any = place.module
        self.moments: Moments | None = None  # float64
        self.batches = self.samples = self.skipped = 0

    def take(self, x: Tensor, weights: Tensor | None) -> None:
        """Merge the moments of a batch; one that is not finite is left out and counted."""
        layout = plan(x.ndim, getattr(self.layer, "axis", 1))
        if weights is not None:
            weights = check_weights(weights, x, layout)
            x = silence(x, weights, xp)
        if x.numel() == 0:
            return
        found = kernels.select(x, layout, xp, weights=weights).moments(x, layout, weights)
        found = Moments(*(part.double() if isinstance(part, Tensor) else part for part in found))
        if not bool(torch.isfinite(found.mean + found.m2).all()):
            self.skipped += 1
            return
        self.moments = found if self.moments is None else merge(self.moments, found, xp)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return the mean, and the variance by the estimator of the layer, in the shape of its buffers; float64."""
        if self.moments is None:
            raise BatchNormError(f"{self.place.name} has seen no data")
        shape = self.layer.running_mean.shape
        chosen: Estimator = getattr(self.layer, "running_variance", TORCH.running_variance)
        estimator = chosen if getattr(self.layer, "renorm", None) is None else REMEMBERED
        var = observed_variance(self.moments, estimator, xp)
        return (self.moments.mean + self.moments.mean_low).reshape(shape), var.reshape(shape)

    def count(self) -> float:
        """Return how many values a feature has been seen with: the least of all features."""
        count = 0.0 if self.moments is None else self.moments.count
        return float(count.min()) if isinstance(count, Tensor) else float(count)


@torch.no_grad()
def settle(layer: Any, mean: Tensor, var: Tensor) -> None:
    """Make these the running statistics of a layer, those of renormalization too."""
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    if getattr(layer, "renorm", None) is not None:
        layer.renorm_mean.copy_(mean)
        for name in ("renorm_stddev", "running_stddev"):
            getattr(layer, name).copy_((var + layer.eps).sqrt())


@contextmanager
def listening(populations: list[Population], *, normalise_by_them: bool) -> Generator[None]:
    """Show every input of the layers to their populations; perhaps let each normalise by what it has seen so far."""

    def show(population: Population, _: nn.Module, args: Any, kwargs: Any) -> None:
        named = dict(zip(("input", "residual", "weights"), args, strict=False)) | kwargs
        x = named["input"] if "input" in named else next(v for v in named.values() if isinstance(v, Tensor))
        population.take(x.detach(), named.get("weights"))
        if normalise_by_them and population.moments is not None:
            settle(population.layer, *population.statistics())

    handles: list[Any] = []
    try:
        for one in populations:
            handles.append(one.layer.register_forward_pre_hook(partial(show, one), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_of(model: nn.Module, batch: Any) -> Any:
    """Run a batch as loaders give them: of a tuple or list the first, a dict as keyword arguments."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def samples_in(batch: Any) -> int:
    """Return the size of the first axis that most tensors of a batch share; of two as frequent the larger."""
    sizes = Counter(int(leaf.shape[0]) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
    return max(sizes, key=lambda size: (sizes[size], size), default=1)


def batches(data: Any, device: Any, max_samples: int | None) -> Iterator[tuple[Any, int]]:
    """Yield each batch on the device, and its samples, until so many have been seen; the last is cut to fit."""
    if isinstance(data, Tensor):
        data = [data]
    if not isinstance(data, Iterable):
        raise ArgumentError(f"`data` must be batches, as a DataLoader gives them, got {type(data).__name__}")
    seen = 0
    for batch in data:
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


def one_pass(
    model: nn.Module, given: Iterator[tuple[Any, int]], call: Run, autocast: Any, told: Callable[[], None]
) -> tuple[int, int]:
    """Run the model on every batch, without gradients; return how many there were, and of how many samples."""
    kind = next((p.device.type for p in (*model.parameters(), *model.buffers())), "cpu")
    dtype = autocast if isinstance(autocast, torch.dtype) else None
    many = samples = 0
    with torch.no_grad(), torch.autocast(kind, dtype) if autocast else nullcontext():
        for batch, size in given:
            call(model, batch)
            many, samples = many + 1, samples + size
            told()
    return many, samples


@contextmanager
def progress(label: str, total: int | None, shown: bool) -> Generator[Callable[[], None]]:
    """Show how far a pass over the data has come, on a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def over_ranks(found: list[Population], failure: Exception | None, group: Any) -> None:
    """Merge what all processes have seen, in the order of their ranks; or fail in all of them where one has failed."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size(group) == 1:
        if failure is not None:
            raise failure
        return
    own = [
        (one.moments and Moments(*(_there(p, "cpu") for p in one.moments)), one.batches, one.samples, one.skipped)
        for one in found
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
        one.batches, one.samples, one.skipped = (sum(theirs[i][k] for theirs in everyone) for k in (1, 2, 3))


def _there(part: Any, device: Any) -> Any:
    return part.to(device) if isinstance(part, Tensor) else part
