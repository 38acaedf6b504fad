"""The two passes over the data, the only code that has to be fast; one file a backend.

Every backend offers the same functions on the same shapes. Per-feature arrays have the kept shape (the rank of x,
1 on the reduced axes) and the working precision: float32, or float64 for float64 input.
"""

from collections.abc import Callable
from dataclasses import replace

from batchnorm.kernels import eager, native, numpy
from batchnorm.kernels.interface import Backward, Forward, Kernel, Wanted
from batchnorm.layout import Plan
from batchnorm.statistics import Array, Namespace

__all__ = ["Backward", "Faster", "Forward", "Kernel", "Wanted", "available", "plain", "register", "select"]

Faster = Callable[[Array, Plan, Array | None, Array | None], Kernel | str]

_EAGER: dict[str, Kernel] = {}
_FASTER: dict[str, Faster] = {"numpy": numpy.serve, "array_api_compat.numpy": numpy.serve}


def register(xp: Namespace, *, cascade: bool = False, faster: Faster | None = None) -> None:
    """Make the eager kernel of a namespace once, when its front-end is imported: not while a compiler looks on.

    Args:
        xp: The array namespace.
        cascade: Whether its sums add in a tree, not one after another.
        faster: `(x, plan, residual, weights) -> Kernel`, or why none of the faster ones serves these.
    """
    _EAGER[xp.__name__] = eager.kernel(xp, cascade=cascade)
    if faster is not None:
        _FASTER[xp.__name__] = faster


def plain(xp: Namespace) -> Kernel:
    """Return the kernel in the framework's own operations, which a framework can differentiate and a compiler fuse."""
    return _EAGER.get(xp.__name__) or eager.kernel(xp)


def select(
    x: Array, plan: Plan, xp: Namespace, *, residual: Array | None = None, weights: Array | None = None
) -> Kernel:
    """Return the fastest kernel that serves `x`; `Kernel.reason` says why no faster one does."""
    faster = _FASTER.get(xp.__name__)
    if faster is None:
        return plain(xp)
    found = faster(x, plan, residual, weights)
    return replace(plain(xp), reason=found) if isinstance(found, str) else found


def available() -> dict[str, str]:
    """Return each kernel of this installation with what there is to say of it."""
    library = native.load()
    if isinstance(library, str):
        return {"native": f"missing: {library}", "eager": "framework operations"}
    built = f"{library.instruction_set}, {library.threads} threads of its own, or those of PyTorch"
    return {
        "native": f"C++ on a CPU, {built}",
        "eager": "framework operations, for what the native kernel does not serve",
    }
