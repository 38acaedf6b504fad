"""The numbers that every contender works on: as in a network, neither zeros nor denormals among them."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchnorm.bench.cases import Case

Floats = NDArray[np.float32]
SEED = 0


class Arrays(NamedTuple):
    """Inputs in the order of memory, and what there is one of a feature, (C,). All float32, and exact in the dtype."""

    x: Floats
    dy: Floats
    residual: Floats
    gamma: Floats
    beta: Floats
    mean: Floats
    var: Floats


def rounded(values: Floats, dtype: str) -> Floats:
    """Return the values rounded to a dtype, to nearest and ties to even, as float32.

    >>> rounded(np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32), "bfloat16").tolist()
    [1.0, 1.015625]
    """
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)).view(np.float32)
    return values


@lru_cache(maxsize=1)
def _arrays(shape: tuple[int, ...], features: int, dtype: str) -> Arrays:
    rng = np.random.default_rng(SEED)

    def normal(mean: float, deviation: float, size: Any = shape) -> Floats:
        values = rng.standard_normal(math.prod(size), dtype=np.float32).reshape(size)
        values *= np.float32(deviation)
        values += np.float32(mean)
        return values

    x, dy, residual = (rounded(normal(*moments), dtype) for moments in ((3.0, 2.0), (0.0, 1.0), (0.5, 1.0)))
    each = (features,)
    gamma, var = (rng.uniform(low, high, each).astype(np.float32) for low, high in ((0.5, 1.5), (3.0, 5.0)))
    return Arrays(x, dy, residual, gamma, normal(0.0, 0.5, each), normal(3.0, 0.2, each), var)


def arrays(case: Case) -> Arrays:
    """Return the arrays of a case: x = 3 ± 2, dy = 0 ± 1, residual = ½ ± 1; the last are kept for the next op."""
    return _arrays(case.in_memory, case.features, case.dtype)
