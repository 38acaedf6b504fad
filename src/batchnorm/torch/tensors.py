"""What the native kernel asks of torch's tensors."""

import ctypes
from pathlib import Path
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from batchnorm.kernels import dense

NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def _parallel_for() -> int:
    """Return the address of torch's own pool, so that two never fight for the cores; 0 where torch has no such name."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("*torch_cpu.*")):
        function = getattr(ctypes.CDLL(str(library)), "torch_parallel_for", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def _name(t: Tensor) -> str:
    return NAMES[t.dtype]


def _empty(shape: tuple[int, ...], like: Tensor, dtype: Any) -> Tensor:
    return like.new_empty(shape, dtype=dtype)


def _copied(t: Tensor, into: Tensor) -> Tensor:
    return into.copy_(t)


PARALLEL_FOR = _parallel_for()
DENSE = dense.bound(
    dense.Arrays(
        xp,
        address=Tensor.data_ptr,
        strides=Tensor.stride,
        dtype=_name,
        empty=_empty,
        empty_like=torch.empty_like,
        copied=_copied,
        contiguous=Tensor.contiguous,
        parallel_for=PARALLEL_FOR,
    )
)
