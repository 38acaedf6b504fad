"""Which kernel serves: tests that force one, or count what has run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from batchnorm import kernels
from batchnorm.torch import direct

TORCH = "array_api_compat.torch"


@contextmanager
def without_direct() -> Iterator[None]:
    """Leave every training step of torch's tensors to the general way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "serves", lambda *_: False)
        yield


@contextmanager
def without_native() -> Iterator[None]:
    """Serve torch's tensors by the eager kernel, as on a GPU."""
    with without_direct(), pytest.MonkeyPatch.context() as patch:
        patch.delitem(kernels._FASTER, TORCH, raising=False)
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
