"""What one training step works on: the model, its loss, and batches of any size drawn from the data."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from batchnorm.batch_size.memory import is_out_of_memory
from batchnorm.errors import ArgumentError
from batchnorm.outputs import told

FEWEST_ROWS = 8
HELD_OUT = 0.2
MOST_HELD_OUT = 1000
MOST_ROWS = 1 << 20  # to draw from: more would say the same, and take their time and memory


@dataclass(frozen=True)
class Loop:
    """A forward pass of your own, for whatever `loss(model(input), target)` does not say.

    Attributes:
        loss: `(model, batch) -> loss`, the mean over the samples of the batch, as a scalar tensor.
        collate: Makes a batch of a list of samples; None: torch's default, or that of the DataLoader.

    >>> loop = Loop(lambda model, batch: (model(batch["x"]) * batch["weight"]).mean())
    """

    loss: Callable[[nn.Module, Any], Tensor]
    collate: Callable[[list[Any]], Any] | None = None


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with every tensor in it on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch


def _tensor(part: Any, dtype: torch.dtype) -> Tensor:
    """Return an array as a tensor; NumPy's floating-point numbers in the dtype of the model."""
    if isinstance(part, Tensor):
        return part
    made = torch.as_tensor(np.asarray(part))
    return made.to(dtype) if made.is_floating_point() else made


class Samples:
    """The data, by row numbers.

    Attributes:
        loader: The DataLoader they came in, if they did.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take a Dataset with a length, a DataLoader, or a tuple of arrays or tensors of equal length.

        NumPy's floating-point arrays become tensors of `dtype`.
        """
        self.loader: DataLoader[Any] | None = dataset if isinstance(dataset, DataLoader) else None
        self._tensors: tuple[Tensor, ...] | None = None
        self._dataset: Any = dataset
        if self.loader is not None:
            collate, self._dataset = collate or self.loader.collate_fn, self.loader.dataset
            dataset = self._dataset
        if isinstance(dataset, tuple):
            self._tensors = self._equal(dataset, dtype)
        elif isinstance(dataset, TensorDataset) and collate in (None, default_collate):
            self._tensors = dataset.tensors
        elif (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__getitem__")
            or not hasattr(dataset, "__len__")
        ):
            raise ArgumentError(
                "`dataset` must have a length and rows by number (a Dataset, a DataLoader of one, a list of samples or "
                f"a tuple of arrays), got {type(dataset).__name__}; of a stream, take the first samples: "
                "list(itertools.islice(stream, 10_000))"
            )
        self._collate = collate or default_collate
        if len(self) < FEWEST_ROWS:
            raise ArgumentError(f"`dataset` must have at least {FEWEST_ROWS} rows, got {len(self)}")

    @staticmethod
    def _equal(parts: tuple[Any, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
        try:
            tensors = tuple(_tensor(part, dtype) for part in parts)
            lengths = [len(t) for t in tensors]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"`dataset`, a tuple, must hold arrays of one row a sample: {error}") from None
        if len(set(lengths)) != 1:
            raise ArgumentError(f"`dataset`, a tuple, must hold arrays of equal length, got {lengths}")
        return tensors

    def __len__(self) -> int:
        return len(self._tensors[0]) if self._tensors is not None else len(self._dataset)

    def take(self, rows: Sequence[int]) -> Any:
        """Return a batch of the rows with these numbers."""
        if self._tensors is not None:
            at = torch.as_tensor(rows)
            return tuple(t[at.to(t.device)] for t in self._tensors)
        return self._collate([self._dataset[i] for i in rows])


class Work:
    """Forward and backward at any batch size, on rows drawn from a generator of its own.

    Attributes:
        model: The model.
        samples: The data.
        parameters: Those that learn.
        rows: How many rows are drawn from.
        held_out: Numbers of the rows that are kept to see what training has come to.
        at_once: As many of them go through the model together: more may not fit.
        seen: The loss of each `backward`, in the mode that the model trains in.
    """

    def __init__(self, model: nn.Module, loss: Any, samples: Samples, *, device: torch.device, seed: int) -> None:
        """Split off the held-out rows; see `advise` for the rest."""
        self.model, self.samples, self._device = model, samples, device
        self._loss = loss.loss if isinstance(loss, Loop) else _of_pairs(loss)
        learning = [*model.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
        self.parameters = [p for p in learning if p.requires_grad]
        self.at_once = MOST_HELD_OUT
        if not self.parameters:
            raise ArgumentError(f"`model` must have parameters that learn, {type(model).__name__} has none")
        self._seed, self.seen = seed, list[float]()
        self.restart()
        order = _order(len(samples), self._random)
        aside = min(int(len(order) * HELD_OUT), MOST_HELD_OUT)
        self.held_out, self._train = order[:aside], order[aside:]
        self.rows = len(self._train)

    def restart(self, repeat: int = 0) -> None:
        """Begin the sequence of drawn rows, and of torch's own random numbers, from its start."""
        self._random = torch.Generator().manual_seed(self._seed + 1000 * repeat)
        torch.manual_seed(self._seed + 1000 * repeat)

    def draw(self, size: int) -> Any:
        """Return a batch of `size` rows without replacement; with, where there are fewer."""
        if size <= self.rows:
            chosen = torch.randperm(self.rows, generator=self._random)[:size]
        else:
            chosen = torch.randint(self.rows, (size,), generator=self._random)
        return self.given([self._train[i] for i in chosen.tolist()])

    def given(self, rows: Sequence[int]) -> Any:
        """Return the batch of the rows with these numbers, on the device."""
        return to_device(self.samples.take(rows), self._device)

    def loss(self, batch: Any) -> Tensor:
        """Return the mean loss of a batch."""
        return self._loss(self.model, batch)

    def backward(self, size: int) -> None:
        """Draw a batch and leave the gradient of its mean loss in `.grad`; note that loss in `seen`."""
        loss = self.loss(self.draw(size))
        self.seen.append(float(loss.detach()))
        loss.backward()

    def try_once(self, size: int) -> None:
        """Run one forward and backward, to say in one line what does not fit.

        Raises:
            ArgumentError: if model, loss and data do not go together.
        """
        try:
            loss: Any = self.loss(self.draw(size))
        except Exception as error:
            if is_out_of_memory(error):
                raise ArgumentError(f"a step of {size} samples does not fit in memory: {error}") from error
            raise ArgumentError(
                f"model, loss and data do not go together: {told(error)} (in a batch of {size})"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ArgumentError(
                f"`loss` must return a scalar tensor with a gradient, got {got}: return the batch's mean"
            )
        if not bool(loss.detach().isfinite()):
            raise ArgumentError(f"the loss of the first batch is {loss.item()}: look for NaN in data or weights first")
        loss.backward()
        self.clear()

    def clear(self) -> None:
        """Drop every gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    def spare(self, rows: int) -> None:
        """Look at no more than so many of the held-out rows from here on, where time is short."""
        self.held_out = self.held_out[: max(rows, min(FEWEST_ROWS, len(self.held_out)))]

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean loss of the held-out rows in inference; modes stay as they were."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            parts = math.ceil(len(self.held_out) / self.at_once)
            rows = [self.held_out[i::parts] for i in range(parts)]
            return math.fsum(float(self.loss(self.given(r))) * len(r) for r in rows) / len(self.held_out)
        finally:
            for module, training in modes.items():
                module.training = training


def _order(rows: int, random: torch.Generator) -> list[int]:
    """Return the numbers of all rows in a random order; of very many, those of a random part."""
    if rows <= MOST_ROWS:
        return torch.randperm(rows, generator=random).tolist()
    drawn = torch.randint(rows, (MOST_ROWS,), generator=random).unique()
    return drawn[torch.randperm(len(drawn), generator=random)].tolist()


def _of_pairs(loss: Any) -> Callable[[nn.Module, Any], Tensor]:
    if not callable(loss) or isinstance(loss, type):
        got = f"the class {loss.__name__}: write {loss.__name__}()" if isinstance(loss, type) else type(loss).__name__
        raise ArgumentError(f"`loss` must be a function (output, target) or a Loop, got {got}")

    def of_pair(model: nn.Module, batch: Any) -> Any:
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            got = f"{len(batch)} parts" if isinstance(batch, list | tuple) else type(batch).__name__
            raise ArgumentError(f"a batch must be a pair (input, target), got {got}: give the loss as Loop(loss)")
        return loss(model(batch[0]), batch[1])

    return of_pair
