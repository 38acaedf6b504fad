"""The array namespaces that the definition is tested on, with the way in and out of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Never

import array_api_compat.numpy
import array_api_compat.torch
import array_api_strict
import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from batchnorm.kernels.native import abi
from batchnorm.kernels.native import numpy as native
from batchnorm.torch import operators
from kernel_calls import Called, eager


class ReadOnly(np.ndarray[Any, Any]):
    """An array that refuses to be written, also where it is the result of an operation."""

    def _refuse(self, *_: Any) -> Never:
        raise TypeError("written in place")

    __setitem__ = __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _refuse  # type: ignore[assignment]


def read_only(array: NDArray[Any]) -> ReadOnly:
    frozen = array.view(ReadOnly)
    frozen.flags.writeable = False
    return frozen


def to_torch(array: NDArray[Any], dtype: str = "") -> torch.Tensor:
    """Return a tensor with the values, and the strides, of an array."""
    strides = [s // array.itemsize for s in array.strides]
    tensor = torch.empty_strided(array.shape, strides, dtype=getattr(torch, dtype or array.dtype.name))
    return tensor.copy_(torch.from_numpy(array))


def to_numpy(array: Any) -> NDArray[np.float64]:
    if isinstance(array, torch.Tensor):
        return array.detach().to(torch.float64).numpy()
    return np.asarray(array, dtype=np.float64)


@dataclass(frozen=True)
class Namespace:
    """An array namespace `xp`, the dtypes it has, and how an array enters it."""

    name: str
    xp: Any
    array: Callable[[NDArray[Any], str], Any]
    dtypes: tuple[str, ...]
    cascade: bool = False  # whether the kernel may take it that sums are added in a tree

    @property
    def kernel(self) -> Called:
        return eager(self.xp, cascade=self.cascade)


NAMESPACES = [
    Namespace("numpy", array_api_compat.numpy, lambda a, _: a, ("float16", "float32", "float64")),
    Namespace("readonly", array_api_compat.numpy, lambda a, _: read_only(a), ("float16", "float32", "float64")),
    Namespace("strict", array_api_strict, lambda a, _: array_api_strict.asarray(a), ("float32", "float64")),
    Namespace("torch", array_api_compat.torch, to_torch, ("float16", "bfloat16", "float32", "float64"), cascade=True),
    Namespace("one-by-one", array_api_compat.torch, to_torch, ("float16", "bfloat16", "float32", "float64")),
]


@dataclass(frozen=True)
class Served(Namespace):
    """An array namespace with another kernel than the eager one, for dense arrays."""

    served: Any = None

    @property
    def kernel(self) -> Called:
        return Called(self.served, self.xp)


def to_ml_dtypes(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return an array of a dtype that NumPy may not have itself, with the strides of the given one."""
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype, order="K")


TORCH_DTYPES = ("float16", "bfloat16", "float32", "float64")
KERNELS: list[Served] = []
if not isinstance(abi.load(), str):
    KERNELS += [
        Served("native-arrays", np, to_ml_dtypes, TORCH_DTYPES, served=native.KERNEL),
        Served("native-operators", array_api_compat.torch, to_torch, TORCH_DTYPES, served=operators.OperatorKernel()),
    ]
