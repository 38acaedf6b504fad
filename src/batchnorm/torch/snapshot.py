"""A copy of a buffer that a compiler may not take apart.

A training step reads a running statistic, normalises by it, and moves it. A compiler that computes the backward's
intermediates again, from the buffer as it is by then, gets other gradients (torch 2.13: silently with the backend
"aot_eager", with an error from autograd with "inductor"). What an opaque operator returns is kept instead.
"""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("batchnorm::snapshot", mutates_args=())
def _opaque(x: Tensor) -> Tensor:
    return x.clone()


@_opaque.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@_opaque.register_vmap
def _(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
    return _opaque(x), in_dims[0]


def tracing() -> bool:
    """Return whether operations are being written down, to be run without this code: torch.export, torch.jit.trace."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def snapshot(x: Tensor) -> Tensor:
    """Return a copy of x as it is now, which stays so in the backward."""
    return _opaque(x) if torch.compiler.is_compiling() else x.clone()
