"""The roofline: how fast this machine copies an array of the same size, in the same run.

A copy reads each byte and writes each byte: bandwidth = 2 · bytes / time. One that writes past the cache moves just
that; one that does not also reads what it overwrites, which is not counted, so that it comes out slower. The faster of
the two is the roofline. Below some megabytes arrays stay in the cache, and there is none.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from batchnorm.kernels.native import abi
from batchnorm.torch.backends import NAMES, PARALLEL_FOR

SMALLEST = 2**20  # bytes of an array from which on a copy is timed


def by_torch(source: Tensor, target: Tensor, threads: int) -> Callable[[], object]:
    """Return torch's copy, on the threads that torch has."""
    del threads
    return lambda: target.copy_(source)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def by_memmove(source: Tensor, target: Tensor, threads: int) -> Callable[[], object]:
    """Return the C library's copy, a piece a thread: past the cache where a piece is large, as it sees fit."""
    size = source.numel() * source.element_size()
    piece = -(-size // threads // 64) * 64
    pieces = [(at, min(piece, size - at)) for at in range(0, size, piece)]
    into, of = target.data_ptr(), source.data_ptr()

    def move(part: tuple[int, int]) -> None:
        ctypes.memmove(into + part[0], of + part[0], part[1])  # without Python's lock

    def copy() -> object:
        first, *others = pieces
        running = [_pool(threads).submit(move, part) for part in others]
        move(first)
        return [done.result() for done in running] and (source, target)  # kept alive

    return copy


def by_affine(source: Tensor, target: Tensor, threads: int) -> Callable[[], object]:
    """Return the native kernels' affine map, x·1 + 0, on torch's threads: past the cache where the array is large."""
    del threads
    zero = torch.zeros(1, dtype=torch.promote_types(source.dtype, torch.float32))
    call = abi.Call(PARALLEL_FOR, 1, 1, 1, 1, source.numel(), abi.DTYPES[NAMES[source.dtype]])
    call.x, call.y, call.mean = source.data_ptr(), target.data_ptr(), zero.data_ptr()

    def copy() -> object:
        abi.loaded().run("affine", call)
        return source, target, zero  # kept alive

    return copy


Copy = Callable[[Tensor, Tensor, int], Callable[[], object]]
COPIES: dict[str, Copy] = {"copy by torch": by_torch, "copy by memmove": by_memmove}
if isinstance(abi.load(), abi.Library):
    COPIES["copy by affine"] = by_affine


def rate(array_bytes: int, seconds: float) -> float:
    """Return bytes a second of a copy: 2 · bytes / seconds.

    >>> rate(1000, 0.5)
    4000.0
    """
    return 2 * array_bytes / seconds


def share(least_bytes: float, seconds: float, bandwidth: float) -> float:
    """Return how near an operation comes to what memory allows: its least bytes over what was possible in its time.

    >>> share(4000.0, 2.0, 4000.0)
    0.5
    """
    return least_bytes / bandwidth / seconds
