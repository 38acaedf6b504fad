"""Statistics under torch.func: what is remembered of a batch lies a level below the derivatives taken of it."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch._C import _functorch as functorch  # pyright: ignore
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

from batchnorm.torch.snapshot import tracing


def transforming() -> bool:
    """Return whether this runs inside grad, jacrev, vmap or another of torch.func's transforms."""
    return not torch.compiler.is_compiling() and functorch.peek_interpreter_stack() is not None


def batched(x: Tensor) -> bool:
    """Return whether x stands for one of many under vmap."""
    return functorch.is_batchedtensor(x)


def readable(x: Tensor) -> bool:
    """Return whether the values of x can be looked at now: on a CPU, where that waits for no device."""
    return x.device.type == "cpu" and not (torch.compiler.is_compiling() or tracing() or batched(x))


def surely(condition: Tensor) -> bool:
    """Return whether a condition is known to be true."""
    if not readable(condition):
        return False
    try:
        return bool(condition)
    except RuntimeError:  # a tracer's tensor has no value to read
        return False


@contextmanager
def beneath_derivatives(buffer: Tensor, values: tuple[Tensor, ...]) -> Generator[tuple[Tensor, ...]]:
    """Step out of the derivatives that `buffer` is not part of, so that it can be written; yield the values there.

    torch refuses to write a tensor that a transform has captured, since no derivative could follow. Here none shall:
    moments carry no gradient.
    """
    with ExitStack() as stack:
        while (top := functorch.peek_interpreter_stack()) is not None and top.key() == functorch.TransformType.Grad:
            level = top.level()
            if functorch.maybe_get_level(buffer) == level:
                break
            stack.enter_context(temporarily_pop_interpreter_stack())
            values = tuple(functorch.get_unwrapped(v) if functorch.maybe_get_level(v) == level else v for v in values)
        yield values
