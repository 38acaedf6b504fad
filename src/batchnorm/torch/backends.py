"""The kernels of torch's tensors, and the plan of a call on them."""

import ctypes
from pathlib import Path

import array_api_compat.torch as xp
import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.core.passes import NormInputs
from batchnorm.core.plan import CallPlan, plan_call
from batchnorm.core.spec import NormSpec
from batchnorm.kernels import Backend, Facts, Kernel, Mode
from batchnorm.kernels.cuda import CudaKernel, unsupported
from batchnorm.kernels.native import abi
from batchnorm.kernels.native.calls import Arrays, NativeKernel
from batchnorm.kernels.native.memory import layout_of
from batchnorm.layout import Axes
from batchnorm.torch import operators
from batchnorm.torch.tracing import is_plain_tensor, mode

NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def _parallel_for() -> int:
    """Return the address of torch's own pool, so that two never fight for the cores; 0 where torch has no such name."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("*torch_cpu.*")):
        function = getattr(ctypes.CDLL(str(library)), "torch_parallel_for", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


PARALLEL_FOR = _parallel_for()
_LOADED = abi.load()  # once, for a compiler does not see through a cache
NATIVE = NativeKernel(
    Arrays(
        xp,
        address=Tensor.data_ptr,
        strides=Tensor.stride,
        dtype=lambda t: NAMES[t.dtype],
        empty=lambda shape, like, dtype: like.new_empty(shape, dtype=dtype),
        empty_like=torch.empty_like,
        copied=lambda t, into: into.copy_(t),
        contiguous=Tensor.contiguous,
        parallel_for=PARALLEL_FOR,
    )
)
operators.register("cpu", NATIVE)
_OPERATORS = operators.OperatorKernel()
_BY_OPERATORS = (Mode.COMPILE, Mode.DISPATCH_MODE)


def _expressible(facts: Facts) -> bool:
    """Return whether the operators serve how the arrays lie in memory."""
    axes = facts.axes
    alike = facts.weights is None or axes.group_axis in (None, axes.kept[0])
    return facts.in_named_format and alike and len(axes.kept) == 1 + (axes.group_axis is not None)


def _supports(facts: Facts) -> str | None:
    """Return why the native kernel does not serve a call; None where it does."""
    if isinstance(_LOADED, str):
        return _LOADED
    if facts.dtype not in abi.DTYPES:
        return f"the native kernel has no torch.{facts.dtype}"
    if facts.residual not in (None, facts.dtype):
        return f"the residual is torch.{facts.residual}, the input torch.{facts.dtype}"
    if facts.mode in _BY_OPERATORS:
        return None if _expressible(facts) else "the input lies in no memory format of torch"
    if facts.mode is not Mode.EAGER:
        return facts.mode.value
    if not facts.is_plain:
        return "the input is a stand-in for other tensors"
    layout = layout_of(facts)
    return layout if isinstance(layout, str) else None


def _kernel(facts: Facts) -> Kernel:
    return _OPERATORS if facts.mode in _BY_OPERATORS else NATIVE


kernels.register(
    xp,
    Backend("native", "cpu", _supports, _kernel),
    Backend("cuda", "cuda", unsupported, lambda facts: CudaKernel(xp, torch.ops.aten, facts.eps)),
    cascade=True,
)


def plan_tensors(spec: NormSpec, inputs: NormInputs, axes: Axes) -> CallPlan:
    """Return the plan of a call on tensors."""
    return plan_call(inputs.x, facts_of(inputs, axes, activation=spec.activation, eps=spec.eps), xp)


def facts_of(inputs: NormInputs, axes: Axes, *, activation: str | None, eps: float) -> Facts:
    """Return what is known of a call on tensors, under what runs now."""
    x, _, _, residual, weights = inputs
    under = mode()
    if under is Mode.EAGER and type(x) not in (Tensor, torch.nn.Parameter):
        under = Mode.DISPATCH_MODE  # that of the subclass
    is_plain = under is Mode.EAGER and is_plain_tensor(x) and (residual is None or is_plain_tensor(residual))
    return Facts(
        axes,
        tuple(x.shape),
        x.stride() if under is Mode.EAGER else (),
        _name(x),
        x.device.type,
        None if residual is None else _name(residual),
        None if weights is None else tuple(weights.shape),
        activation,
        eps,
        under,
        is_plain,
        (is_plain or under in _BY_OPERATORS) and _in_named_format(x),
    )


def _name(t: Tensor) -> str:
    return NAMES.get(t.dtype) or str(t.dtype).removeprefix("torch.")


def _in_named_format(x: Tensor) -> bool:
    """Return whether x is contiguous in one of torch's memory formats."""
    named = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    return x.is_contiguous() or (named is not None and x.is_contiguous(memory_format=named))
