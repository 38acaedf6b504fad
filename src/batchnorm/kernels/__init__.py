"""The two passes over the data, the only code that has to be fast; one file a backend.

Every backend offers the same functions on the same shapes. Per-feature arrays have the kept shape (the rank of x,
1 on the reduced axes) and the working precision: float32, or float64 for float64 input.
"""

from batchnorm.kernels import eager
from batchnorm.kernels.interface import Kernel
from batchnorm.statistics import Array, Namespace

__all__ = ["Kernel", "register", "select"]


_EAGER: dict[str, Kernel] = {}


def register(xp: Namespace, *, cascade: bool = False) -> None:
    """Make the eager kernel of a namespace once, when its front-end is imported: not while a compiler looks on."""
    _EAGER[xp.__name__] = eager.kernel(xp, cascade=cascade)


def select(x: Array, xp: Namespace) -> Kernel:
    """Return the fastest kernel that serves `x`; `Kernel.reason` says why no faster one does."""
    del x  # one backend so far, and it serves every array
    return _EAGER.get(xp.__name__) or eager.kernel(xp)
