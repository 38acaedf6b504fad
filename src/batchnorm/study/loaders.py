"""Torch datasets and loaders as data of a study: read once, from beginning to end, into arrays."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, WeightedRandomSampler
from torch.utils.data import Dataset as TorchDataset

from batchnorm.outputs import told
from batchnorm.study.arrays import Array, Batch, check_size, divided, listed, owner
from batchnorm.study.data import DataError

AT_A_TIME = 256  # rows of a dataset that are read together
CHECKED_EVERY = 2**26  # bytes


def read(name: str, source: "TorchDataset[Any] | DataLoader[Any]", notes: list[str]) -> tuple[Batch, int | None]:
    """Read a dataset or a loader, and return its contents and the batch size of the loader.

    A loader that shuffles, or draws examples more than once, is read in the order of its dataset: each example comes
    once, those of the last batch too, and none is both trained on and tested on. Other samplers are left as they are.

    Args:
        name: Of the factory that returned it.
        source: What is read.
        notes: What is worth knowing of it is added here.

    Raises:
        DataError: in one line, if it raises, is empty, is too large for memory, or holds batches that do not fit
            together.
    """
    batches: list[Batch] = []
    size = unchecked = 0
    try:
        for item in _in_order(source):
            batch = divided(name, item)
            batches.append(batch)
            added = sum(part.nbytes for part in batch.inputs.values())
            size, unchecked = size + added, unchecked + added
            if unchecked > CHECKED_EVERY:
                check_size(name, size)
                unchecked = 0
    except DataError:
        raise
    except Exception as error:  # of whatever kind the user's dataset brings about
        raise DataError(f"{owner(name)} cannot be read: {told(error)}{_way_out(error)}") from None
    if not batches:
        raise DataError(f"{owner(name)} returned an empty {type(source).__name__}")
    check_size(name, size)
    if isinstance(getattr(source, "sampler", None), WeightedRandomSampler):
        notes.append("each example read once: the weights of the DataLoader's sampler are left out")
    return _joined(name, batches, notes), _batch_size(source, batches)


def _in_order(source: "TorchDataset[Any] | DataLoader[Any]") -> Iterable[Any]:
    if not isinstance(source, DataLoader):
        return DataLoader(source, batch_size=AT_A_TIME)
    if isinstance(source.dataset, IterableDataset) or source.batch_size is None:
        return source
    if not isinstance(source.sampler, SequentialSampler | RandomSampler | WeightedRandomSampler):
        return source
    return DataLoader(source.dataset, batch_size=source.batch_size, collate_fn=source.collate_fn)


def _way_out(error: Exception) -> str:
    message = str(error)
    if "stack expects each tensor to be equal size" in message:
        return "; return a DataLoader whose collate_fn pads them to one length"
    return "; let it return tensors" if "default_collate" in message else ""


def _batch_size(source: "TorchDataset[Any] | DataLoader[Any]", batches: Sequence[Batch]) -> int | None:
    if not isinstance(source, DataLoader):
        return None
    return len(batches[0].targets) if source.batch_size is None else source.batch_size


def _joined(name: str, batches: Sequence[Batch], notes: list[str]) -> Batch:
    """Put the batches together; sequences that each batch pads to a length of its own are padded to the longest."""
    first = batches[0]
    if any(batch.inputs.keys() != first.inputs.keys() for batch in batches):
        raise DataError(f"{owner(name)} holds batches with different inputs")
    inputs: dict[str, Array] = {}
    for key in first.inputs:
        parts = [batch.inputs[key] for batch in batches]
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            parts = _padded(name, parts, alone=len(first.inputs) == 1)
            which = "x" if len(first.inputs) == 1 else repr(key) if first.named else f"input {int(key) + 1}"
            notes.append(f"{which} padded with 0 to shape {parts[0].shape[1:]}, that of the longest batch")
        inputs[key] = np.concatenate(parts)
    try:
        return Batch(inputs, np.concatenate([batch.targets for batch in batches]), first.named)
    except ValueError:
        shapes = listed(sorted({batch.targets.shape[1:] for batch in batches})[:3])
        raise DataError(f"{owner(name)} holds targets of different shapes, {shapes}: pad them to one") from None


def _padded(name: str, parts: Sequence[Array], *, alone: bool) -> list[Array]:
    shapes = listed(sorted({part.shape[1:] for part in parts})[:3])
    if alone or len({part.ndim for part in parts}) > 1:
        raise DataError(
            f"{owner(name)} holds batches of different shapes, {shapes} a row: let collate_fn pad them, and return "
            "((x, mask), y) or ((x, lengths), y)"
        )
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    widths = [[(0, 0), *((0, most - n) for most, n in zip(longest, part.shape[1:], strict=True))] for part in parts]
    return [np.pad(part, width) for part, width in zip(parts, widths, strict=True)]
