"""Which kernel serves: tests that force one, or count what has run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import array_api_compat.torch as torch
import pytest

from batchnorm import kernels
from batchnorm.kernels import dispatch
from batchnorm.kernels.dispatch import Backend, Registered
from batchnorm.torch import fast_step


@contextmanager
def without_fast_step() -> Iterator[None]:
    """Leave every step of torch's tensors to the general way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_step, "serves", lambda *_: False)
        yield


@contextmanager
def with_backends(xp: Any, *backends: Backend) -> Iterator[None]:
    """Serve the arrays of a namespace by these backends, and by the eager kernel what they do not serve."""
    with pytest.MonkeyPatch.context() as patch:
        chosen = Registered(kernels.registered(xp).eager, backends)
        patch.setitem(dispatch._REGISTERED, xp.__name__, chosen)
        yield


@contextmanager
def without_native() -> Iterator[None]:
    """Serve torch's tensors by the eager kernel, as on a GPU."""
    with without_fast_step(), with_backends(torch):
        yield


@contextmanager
def counting(patched: Any, name: str) -> Iterator[list[None]]:
    """Yield a list that grows by one with each call of a function of a module or a table."""
    calls: list[None] = []
    lookup, replace = (dict.__getitem__, "setitem") if isinstance(patched, dict) else (getattr, "setattr")
    function = lookup(patched, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        getattr(patch, replace)(patched, name, counted)
        yield calls
