"""The C interface of the native kernel: the library, its enumerations, and its two structures, field by field.

The only file that knows the order in which `csrc/batchnorm.h` declares things; a test reads that file and compares. The
library is built when the package is installed, where there is a C++ compiler.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from batchnorm.errors import ArgumentError
from batchnorm.kernels.dispatch import SWITCHED_OFF

INTERFACE = 2  # BN_INTERFACE of csrc/batchnorm.h, as this file knows it
LIBRARY = Path(__file__).parent.with_name("libbatchnorm_native.so")
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2, "silu": 3, "gelu": 4, "tanh": 5, "sigmoid": 6}
PASSES = ("moments", "affine", "infer", "forward", "backward_reduce", "backward_elementwise", "backward")
_ERRORS = ("", "bad shape", "bad dtype", "bad activation", "null pointer", "no memory", "bad parallel_for")
_SIZE, _ADDRESS, _REAL = ctypes.c_int64, ctypes.c_size_t, ctypes.c_double


class Call(ctypes.Structure):
    """`bn_call`: csrc/batchnorm.h says which function reads and writes which field. Addresses are 0 for none."""

    _fields_ = (
        ("parallel_for", _ADDRESS),
        *((name, _SIZE) for name in ("outer", "groups", "rows", "channels", "inner", "dtype", "activation")),
        *((name, _ADDRESS) for name in ("x", "residual", "weights", "y", "dy", "dx", "dz", "bits")),
        *((name, _ADDRESS) for name in ("mean", "mean_low", "m2", "inv_std", "factor", "scale", "shift")),
        *((name, _ADDRESS) for name in ("sum_dz", "sum_dz_centred", "gamma_gradient", "of_centred", "constant")),
        ("per_count", _ADDRESS),
        ("eps", _REAL),
        ("fixed", _SIZE),
    )


class UpdateCall(ctypes.Structure):
    """`bn_memory`: an update of running statistics."""

    _fields_ = (
        *((name, _SIZE) for name in ("features", "dtype")),
        *((name, _ADDRESS) for name in ("mean", "mean_low", "m2", "running_mean", "running_var", "batches")),
        *((name, _REAL) for name in ("count", "momentum")),
        *((name, _SIZE) for name in ("unbiased", "skip")),
    )


@dataclass(frozen=True)
class Library:
    """The loaded library.

    Attributes:
        functions: `bn_…` of csrc/kernels.cpp, by name. A pass returns 0 or a `bn_error`; `remember` returns 1 where the
            statistics have changed, 0 where the batch was skipped, and minus a `bn_error`.
        handle: All of it.
    """

    functions: dict[str, Callable[[Any], int]]
    handle: Any

    def run(self, function: str, call: Call) -> None:
        """Run one of the passes; raise where it refuses the call."""
        error = self.functions[function](call)
        if error:
            raise failure(function, error)

    def update(self, call: UpdateCall) -> bool:
        """Update running statistics; return whether they have changed, False for a batch that was skipped."""
        changed = self.functions["remember"](call)
        if changed < 0:
            raise failure("remember", -changed)
        return changed == 1

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
    if SWITCHED_OFF:
        return SWITCHED_OFF
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
        interface = handle.bn_interface()
    except (OSError, AttributeError) as error:
        return f"the native library does not load: {error}"
    if interface != INTERFACE:
        return f"the native library has interface {interface}, this version needs {INTERFACE} (install batchnorm again)"
    handle.bn_instruction_set.restype = ctypes.c_char_p
    handle.bn_use_threads.argtypes = [ctypes.c_int64]
    for name in PASSES:
        getattr(handle, f"bn_{name}").argtypes = [ctypes.POINTER(Call)]
    handle.bn_remember.argtypes = [ctypes.POINTER(UpdateCall)]
    return Library({name: getattr(handle, f"bn_{name}") for name in (*PASSES, "remember")}, handle)


def loaded() -> Library:
    """Return the library; raise where there is none."""
    library = load()
    if isinstance(library, str):
        raise ArgumentError(f"the native kernel cannot run: {library}")
    return library


def failure(function: str, error: int) -> Exception:
    """Return what to raise for a bn_error."""
    name = _ERRORS[error] if error < len(_ERRORS) else str(error)
    return MemoryError(name) if name == "no memory" else ArgumentError(f"the native kernel refused {function}: {name}")
