"""The native kernel on torch's tensors: whether it serves them, and in which way."""

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch._C import _functorch as functorch  # pyright: ignore
from torch.autograd import forward_ad

from batchnorm.kernels import Kernel, dense, native
from batchnorm.layout import Plan
from batchnorm.torch import operators
from batchnorm.torch.snapshot import tracing
from batchnorm.torch.tensors import DENSE, NAMES

LOADED = native.load()
DIRECT = dense.kernel(xp, DENSE)
MODE = "a dispatch mode"
_keys, _modes, _tracing_state = torch._C._dispatch_keys, torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state  # pyright: ignore
_includes, _PRE_DISPATCH = torch._C._dispatch_tls_is_dispatch_key_included, torch._C.DispatchKey.PreDispatch  # pyright: ignore
_exporting, _included = torch.compiler.is_exporting, torch._C._dispatch_tls_local_include_set  # pyright: ignore
with torch.inference_mode():
    _ORDINARY = {_keys(torch.empty(0, device="cpu")).raw_repr()}  # of a tensor without any history
    _UNWATCHED = {_included().raw_repr()}  # what a thread includes where nobody intercepts its operations
_ORDINARY.add(_keys(torch.empty(0, device="cpu")).raw_repr())
_UNWATCHED.add(_included().raw_repr())
WRITTEN_DOWN = "operations are written down, for machines that may not have the native kernel"


def ordinary(t: Any) -> bool:
    """Return whether a tensor is no more than its memory: dense or not, but no stand-in, view of signs, or subclass."""
    kind = type(t)
    return (kind is Tensor or kind is torch.nn.Parameter) and _keys(t).raw_repr() in _ORDINARY


def watched() -> str | None:
    """Return who wants to see every operation, None for nobody: then the library may work on the memory alone."""
    if _included().raw_repr() in _UNWATCHED and forward_ad._current_level < 0:  # pyright: ignore
        return None
    if _modes() or _includes(_PRE_DISPATCH):
        return MODE
    if _exporting() or _tracing_state() is not None:  # pyright: ignore
        return WRITTEN_DOWN
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        return "forward-mode derivatives are those of framework operations"
    if functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms framework operations"
    return None


def _by_operators(x: Tensor, plan: Plan, weights: Tensor | None) -> Kernel | str:
    """Return the kernel as operators, where torch has a name for how x lies: what a compiler can guard."""
    named = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    dense_ = x.is_contiguous() or (named is not None and x.is_contiguous(memory_format=named))
    expressible = weights is None or plan.group_axis in (None, plan.kept[0])
    if dense_ and expressible and len(plan.kept) == 1 + (plan.group_axis is not None):
        return operators.KERNEL
    return "the input lies in no memory format of torch"


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
        return WRITTEN_DOWN if tracing() else _by_operators(x, plan, weights)
    who = watched()
    if who == MODE or (who is None and type(x) not in (Tensor, torch.nn.Parameter)):
        return _by_operators(x, plan, weights)
    if who is not None or not ordinary(x) or not (residual is None or ordinary(residual)):
        return who or "the input is a stand-in for other tensors"
    features = plan.kept_shape(x.shape)
    lies = native.arrangement(x.shape, x.stride(), features, native.apart(features, weights))
    return lies if isinstance(lies, str) else DIRECT
