"""One answer for all processes: each measures on its own device, and all put together what they found."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import distributed

from batchnorm.errors import ArgumentError


def processes() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return which of them this is."""
    return distributed.get_rank() if processes() > 1 else 0


def gathered(found: Any) -> list[Any]:
    """Return what every process found, in the same order on each."""
    count = processes()
    if count == 1:
        return [found]
    everyone: list[Any] = [None] * count
    distributed.all_gather_object(everyone, found)
    return everyone


@contextmanager
def failing_together() -> Generator[None]:
    """Let every process raise where one does, instead of waiting for it.

    Raises:
        ArgumentError: if another process has failed, with what it said.
    """
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
    said = gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for number, text in enumerate(said):
        if text is not None:
            raise ArgumentError(f"process {number} could not measure: {text}")
