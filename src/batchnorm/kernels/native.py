"""The two passes in C++, for dense arrays on a CPU: loads the library, knows its call, and no framework.

A front-end hands over addresses; what it owns stays its own. The library is built when the package is installed, where
there is a C++ compiler.
"""

import ctypes
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from batchnorm.errors import ArgumentError

INTERFACE = 2  # BN_INTERFACE of csrc/batchnorm.h, as this file knows it
LIBRARY = Path(__file__).with_name("libbatchnorm_native.so")
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2, "silu": 3, "gelu": 4, "tanh": 5, "sigmoid": 6}
FUNCTIONS = ("moments", "affine", "infer", "forward", "backward_reduce", "backward_elementwise", "backward", "remember")
_ERRORS = ("", "bad shape", "bad dtype", "bad activation", "null pointer", "no memory", "bad parallel_for")
CALL = struct.Struct("=8q21qdq")  # bn_call
MEMORY = struct.Struct("=8q2d2q")  # bn_memory
_REMEMBERED = 4096  # arrangements
_GROUPS, _CHANNELS, _OF_FEATURES = 1, 3, (1, 3)  # places in an arrangement's sizes


@dataclass(frozen=True)
class Library:
    """The loaded library.

    Attributes:
        functions: `bn_…`, by name; each takes the bytes of a `bn_call` and returns 0, or the number of an error.
        handle: All of it.
    """

    functions: dict[str, Callable[[bytes], int]]
    handle: Any

    def call(self, function: str, call: bytes) -> None:
        """Run a function on a `bn_call`; raise what it refuses it with."""
        error = self.functions[function](call)
        if error:
            raise failure(function, error)

    @property
    def instruction_set(self) -> str:
        """Return "avx512", "avx2" or "portable"."""
        return self.handle.bn_instruction_set().decode()

    @property
    def threads(self) -> int:
        """Return the threads of the library's own pool, which serves where no framework lends its own."""
        return int(self.handle.bn_threads())


@cache
def load() -> Library | str:
    """Return the library, or why there is none."""
    asked = os.environ.get("BATCHNORM_KERNEL", "")
    if asked == "eager":
        return 'the environment says BATCHNORM_KERNEL="eager"'
    if asked not in ("", "native"):
        raise ArgumentError(f'the environment variable BATCHNORM_KERNEL must be "native" or "eager", got {asked!r}')
    if not LIBRARY.exists():
        return (
            "there is no native library: when batchnorm was installed there was no C++ compiler, or it failed "
            "(`pip install --verbose` shows why)"
        )
    try:
        handle = ctypes.CDLL(str(LIBRARY))
        handle.bn_interface.restype = handle.bn_threads.restype = ctypes.c_int64
        found = handle.bn_interface()
    except (OSError, AttributeError) as error:
        return f"the native library does not load: {error}"
    if found != INTERFACE:
        return f"the native library has interface {found}, this version needs {INTERFACE} (install batchnorm again)"
    handle.bn_instruction_set.restype = ctypes.c_char_p
    handle.bn_use_threads.argtypes = [ctypes.c_int64]
    for name in FUNCTIONS:
        getattr(handle, f"bn_{name}").argtypes = [ctypes.c_char_p]
    return Library({name: getattr(handle, f"bn_{name}") for name in FUNCTIONS}, handle)


Sizes = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Arrangement:
    """How a dense array lies in memory, in the terms of the library.

    Attributes:
        sizes: (outer, groups, rows, channels, inner): features are (groups, channels), the others are reduced.
        order: All axes in the order of memory.
        weighed: The axes along which weights of samples may differ: the reduced ones and the groups.
    """

    sizes: Sizes
    order: tuple[int, ...]
    weighed: frozenset[int]


@lru_cache(maxsize=_REMEMBERED)
def arrangement(
    shape: tuple[int, ...], strides: tuple[int, ...], features: tuple[int, ...], apart: int | None = None
) -> Arrangement | str:
    """Return how an array lies, or why the library does not serve it.

    Args:
        shape: Of the array.
        strides: In elements.
        features: The kept shape, 1 on reduced axes.
        apart: An axis of features that must be one of groups: weights of samples differ along it.

    >>> arrangement((32, 64, 56, 56), (200704, 3136, 56, 1), (1, 64, 1, 1)).sizes
    (1, 1, 32, 64, 3136)
    >>> arrangement((32, 64, 56, 56), (200704, 1, 3584, 64), (1, 64, 1, 1)).sizes  # channels_last
    (1, 1, 100352, 64, 1)
    >>> arrangement((4, 6), (7, 1), (1, 6))
    'the input is not dense in memory (`.contiguous()` makes it so)'
    """
    if math.prod(shape) == 0:
        return "the input is empty"
    order = sorted(range(len(shape)), key=lambda i: (-strides[i], i))
    axes, expected = [i for i in order if shape[i] > 1], 1
    for i in reversed(axes):
        if strides[i] != expected:
            return "the input is not dense in memory (`.contiguous()` makes it so)"
        expected *= shape[i]
    kept = [i for i in axes if features[i] > 1]
    if kept != sorted(kept):
        return "its axes of features lie in another order in memory (`.contiguous()` mends it)"
    sizes, place, before, weighed = [1, 1, 1, 1, 1], 5, -1, set[int]()
    for i in reversed(axes):  # from the inside out, into the innermost place of its kind
        is_kept = features[i] > 1
        if i == apart:
            place = _GROUPS if place > _GROUPS else -1
        elif place > 4 or (place in _OF_FEATURES) != is_kept or before == apart:
            place = next((p for p in range(place - 1, -1, -1) if (p in _OF_FEATURES) == is_kept), -1)
        if place < 0:
            return "its axes of features lie in more than two places in memory"
        sizes[place] *= shape[i]
        before = i
        if place != _CHANNELS:
            weighed.add(i)
    outer, groups, rows, channels, inner = sizes
    return Arrangement((outer, groups, rows, channels, inner), tuple(order), frozenset(weighed))


def apart(features: tuple[int, ...], weights: Any) -> int | None:
    """Return the axis of features along which weights of samples differ: that of groups; None where there is none."""
    if weights is None:
        return None
    return next((i for i, n in enumerate(features) if n > 1 and weights.shape[i] > 1), None)


def run(
    function: str,
    sizes: Sizes,
    dtype: str,
    *,
    activation: str | None = None,
    parallel_for: int = 0,
    eps: float = 0.0,
    fixed: bool = False,
    x: int = 0,
    residual: int = 0,
    weights: int = 0,
    y: int = 0,
    dy: int = 0,
    dx: int = 0,
    dz: int = 0,
    bits: int = 0,
    mean: int = 0,
    mean_low: int = 0,
    m2: int = 0,
    inv_std: int = 0,
    factor: int = 0,
    scale: int = 0,
    shift: int = 0,
    sum_dz: int = 0,
    sum_dz_centred: int = 0,
    gamma_gradient: int = 0,
    of_centred: int = 0,
    constant: int = 0,
    per_count: int = 0,
) -> None:
    """Call a function of the library; csrc/batchnorm.h says what each reads and writes. Addresses, 0 for none."""
    library = load()
    if isinstance(library, str):
        raise ArgumentError(f"the native kernel cannot run: {library}")
    library.call(
        function,
        CALL.pack(
            parallel_for, *sizes, DTYPES[dtype], ACTIVATIONS[activation], x, residual, weights, y, dy, dx, dz, bits,
            mean, mean_low, m2, inv_std, factor, scale, shift, sum_dz, sum_dz_centred, gamma_gradient, of_centred,
            constant, per_count, eps, fixed,
        )
    )  # fmt: skip


def failure(function: str, error: int) -> Exception:
    """Return what to raise for a bn_error."""
    name = _ERRORS[error] if error < len(_ERRORS) else str(error)
    return MemoryError(name) if name == "no memory" else ArgumentError(f"the native kernel refused {function}: {name}")


def bits_size(sizes: Sizes, dtype: str) -> int:
    """Return how many 16-bit masks hold the sign of each element: a vector each, some not full."""
    outer, groups, rows, channels, inner = sizes
    lanes, lines = 8 if dtype == "float64" else 16, outer * groups * rows
    return lines * channels * (inner // lanes + 2 * (inner % lanes > 0)) if inner > 1 else lines * -(-channels // lanes)
