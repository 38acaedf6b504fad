"""Several processes, each with its share of the data: what one has, all have; where one fails, all do."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import array_api_compat.torch as xp
from torch import Tensor, distributed

from batchnorm.errors import BatchNormError
from batchnorm.statistics import Moments, merge
from batchnorm.surgery.population import Population


def everyones(work: Callable[[], Any], group: Any) -> list[Any]:
    """Do something in each process, and return what came of it in all of them, in the order of their ranks.

    Raises:
        BatchNormError: where it has failed in another process. In this one the exception itself.
    """
    failure, own = None, None
    try:
        own = work()
    except Exception as error:
        failure = error
    alone = not distributed.is_available() or not distributed.is_initialized()
    everyone: list[Any] = [None] * (1 if alone else distributed.get_world_size(group))
    if failure is not None and len(everyone) == 1:
        raise failure
    if len(everyone) == 1:
        return [own]
    distributed.all_gather_object(everyone, (str(failure), True) if failure is not None else (own, False), group)
    if failure is not None:
        raise failure
    for rank, (theirs, failed) in enumerate(everyone):
        if failed:
            raise BatchNormError(f"process {rank} has failed: {theirs}")
    return [theirs for theirs, _ in everyone]


def portable(one: Population) -> tuple[Any, ...]:
    """Return what a population has to tell to other processes."""
    moments = one.moments and Moments(*(_there(part, "cpu") for part in one.moments))
    return moments, one.counted(), one.arrival


def pool(populations: list[Population], everyone: list[Any]) -> None:
    """Give each population what all processes have seen, merged in the order of their ranks."""
    for one, told in zip(populations, zip(*everyone, strict=True), strict=True):
        device = one.layer.running_mean.device
        parts = [Moments(*(_there(part, device) for part in moments)) for moments, _, _ in told if moments is not None]
        one.moments = reduce(lambda a, b: merge(a, b, xp), parts) if parts else None
        one.arrival = next((arrival for _, _, arrival in told if arrival is not None), None)
        counts = zip(*(counted for _, counted, _ in told), strict=True)
        one.batches, one.samples, one.skipped, one.calls = map(sum, counts)


def _there(part: Any, device: Any) -> Any:
    return part.to(device) if isinstance(part, Tensor) else part
