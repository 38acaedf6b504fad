"""One answer for all processes: each measures on its own device, and all put together what they found."""

from typing import Any

from torch import distributed


def processes() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gathered(found: Any) -> list[Any]:
    """Return what every process found, in the same order on each."""
    count = processes()
    if count == 1:
        return [found]
    everyone: list[Any] = [None] * count
    distributed.all_gather_object(everyone, found)
    return everyone
