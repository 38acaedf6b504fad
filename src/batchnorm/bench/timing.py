"""Time functions in turn, in this process."""

import time
from collections.abc import Callable, Mapping

WARM_UP = 3  # rounds


def interleaved(
    steps: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of every call, after some rounds to warm up: A B C, then A B C again.

    >>> [len(taken) for taken in interleaved({"a": int, "b": int}, rounds=4).values()]
    [4, 4]
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + WARM_UP):
        for name, step in steps.items():
            start = clock()
            step()
            if round_ >= WARM_UP:
                taken[name].append(clock() - start)
    return taken
