"""The native kernel on torch's tensors: whether it serves them, and in which way."""

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm.kernels import Kernel, dense, native
from batchnorm.layout import Plan
from batchnorm.torch import operators
from batchnorm.torch.snapshot import tracing
from batchnorm.torch.tensors import DENSE, NAMES
from batchnorm.torch.transforms import transforming

LOADED = native.load()
DIRECT = dense.kernel(xp, DENSE)


def _looks_dense(x: Tensor) -> bool:
    """Return whether x lies in a format that torch has a name for: what a compiler can guard."""
    named = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    return x.is_contiguous() or (named is not None and x.is_contiguous(memory_format=named))


def serve(x: Tensor, plan: Plan, residual: Tensor | None = None, weights: Tensor | None = None) -> Kernel | str:
    """Return the native kernel, or why it does not serve these tensors."""
    if isinstance(LOADED, str):
        return LOADED
    if x.device.type != "cpu":
        return f"the native kernel runs on a CPU, the input is on {x.device.type}"
    if x.dtype not in NAMES:
        return f"the native kernel has no {x.dtype}"
    if residual is not None and residual.dtype != x.dtype:
        return f"the residual is {residual.dtype}, the input {x.dtype}"
    if torch.compiler.is_compiling():
        simple = _looks_dense(x) and len(plan.kept) == 1 + (plan.group_axis is not None)
        expressible = weights is None or plan.group_axis in (None, plan.kept[0])
        return operators.KERNEL if simple and expressible and not tracing() else "no memory format of torch"
    if tracing():
        return "operations are written down, for machines that may not have the native kernel"
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        return "forward-mode derivatives are those of framework operations"
    if transforming():
        return "torch.func transforms framework operations"
    features = plan.kept_shape(x.shape)
    lies = native.arrangement(x.shape, x.stride(), features, native.apart(features, weights))
    if isinstance(lies, str):
        return lies
    looked_on = type(x) is not Tensor and type(x) is not torch.nn.Parameter
    return operators.KERNEL if looked_on or torch._C._len_torch_dispatch_stack() else DIRECT  # pyright: ignore
