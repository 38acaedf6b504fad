"""Under what a call runs: plainly, or watched by a compiler, an exporter, a transform, a backward pass.

Each of these needs something of a layer that updates statistics: one reads the operations, another repeats the forward,
a third may not see a buffer written. Only this file asks torch which of them it is, mostly by names that torch calls
private.
"""

import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch  # pyright: ignore
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

from batchnorm.kernels import Mode

_keys, _modes = torch._C._dispatch_keys, torch._C._len_torch_dispatch_stack  # pyright: ignore
_includes, _PRE_DISPATCH = torch._C._dispatch_tls_is_dispatch_key_included, torch._C.DispatchKey.PreDispatch  # pyright: ignore
_EAGER = Mode.EAGER
_is_compiling, _is_exporting = torch.compiler.is_compiling, torch.compiler.is_exporting
_included = torch._C._dispatch_tls_local_include_set  # pyright: ignore
with torch.inference_mode():
    _PLAIN_KEYS = {_keys(torch.empty(0, device="cpu")).raw_repr()}  # of a tensor without any history
    _UNINTERCEPTED = {_included().raw_repr()}  # what a thread includes where nobody intercepts its operations
_STAND_INS = [  # of tensors that are not on a CPU, whose plain keys are those of their device
    getattr(torch._C.DispatchKey, name)  # pyright: ignore
    for name in ("Python", "FuncTorchBatched", "FuncTorchGradWrapper", "Functionalize", "Negative", "Conjugate")
]
_PLAIN_KEYS.add(_keys(torch.empty(0, device="cpu")).raw_repr())
_UNINTERCEPTED.add(_included().raw_repr())


def is_exporting() -> bool:
    """Return whether operations are being written down, to be run without this code: torch.export, torch.jit.trace."""
    return _is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def mode() -> Mode:
    """Return under what this call runs; under `Mode.EAGER` the library may work on the memory of plain tensors."""
    if _is_compiling():
        return Mode.EXPORT if is_exporting() else Mode.COMPILE
    if _included().raw_repr() in _UNINTERCEPTED and forward_ad._current_level < 0:  # pyright: ignore
        return _EAGER
    if _modes() or _includes(_PRE_DISPATCH):
        return Mode.DISPATCH_MODE
    if is_exporting():
        return Mode.EXPORT
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        return Mode.FORWARD_AD
    return Mode.FUNCTORCH if in_transform() else Mode.EAGER


def is_plain_tensor(t: Any) -> bool:
    """Return whether t is no subclass, fake tensor, functorch wrapper, or lazily negated or conjugated view."""
    if is_plain_on_cpu(t):
        return True
    kind, keys = type(t), _keys(t)
    return (kind is Tensor or kind is torch.nn.Parameter) and not (t.is_cpu or any(keys.has(key) for key in _STAND_INS))


def is_plain_on_cpu(t: Any) -> bool:
    """Return whether t is a plain tensor on a CPU, which the native library can read."""
    kind = type(t)
    return (kind is Tensor or kind is torch.nn.Parameter) and _keys(t).raw_repr() in _PLAIN_KEYS


def in_transform() -> bool:
    """Return whether this runs inside grad, jacrev, vmap or another of torch.func's transforms."""
    return not _is_compiling() and functorch.peek_interpreter_stack() is not None


def in_backward() -> bool:
    """Return whether this runs inside a backward pass: a forward there repeats one that has been counted."""
    if _is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


def will_be_differentiated(*tensors: Tensor | None) -> bool:
    """Return whether a backward will follow; exporters and forward-mode derivatives want the operations themselves."""
    if not torch.is_grad_enabled() or forward_ad._current_level >= 0 or is_exporting():  # pyright: ignore
        return False
    return any(t is not None and t.requires_grad for t in tensors)


def is_one_of_many(x: Tensor) -> bool:
    """Return whether x stands for one of many under vmap."""
    return functorch.is_batchedtensor(x)


def is_readable(x: Tensor) -> bool:
    """Return whether the values of x can be looked at now: on a CPU, where that waits for no device."""
    return x.device.type == "cpu" and not (_is_compiling() or is_exporting() or is_one_of_many(x))


def known_true(condition: Tensor) -> bool:
    """Return whether a condition is known to be true."""
    if not is_readable(condition):
        return False
    try:
        return bool(condition)
    except RuntimeError:  # a tracer's tensor has no value to read
        return False


@contextmanager
def outside_grad_levels(buffer: Tensor, values: tuple[Tensor, ...]) -> Generator[tuple[Tensor, ...]]:
    """Leave the functorch grad levels that `buffer` is not part of, so that it can be written; yield the values there.

    torch refuses to write a tensor that a transform has captured, since no derivative could follow. None has to follow
    here: moments carry no gradient.
    """
    with ExitStack() as stack:
        while (top := functorch.peek_interpreter_stack()) is not None and top.key() == functorch.TransformType.Grad:
            level = top.level()
            if functorch.maybe_get_level(buffer) == level:
                break
            stack.enter_context(temporarily_pop_interpreter_stack())
            values = tuple(functorch.get_unwrapped(v) if functorch.maybe_get_level(v) == level else v for v in values)
        yield values


@torch.library.custom_op("batchnorm::first_forward", mutates_args=())
def _outside_backward(x: Tensor) -> Tensor:
    first = torch._C._current_graph_task_id() == -1  # pyright: ignore
    return torch.full((), first, dtype=torch.bool, device=x.device)


@_outside_backward.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.bool, device=x.device)


@_outside_backward.register_vmap
def _(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, None]:
    return _outside_backward(x), None


def first_forward(x: Tensor) -> Tensor | None:
    """Return whether this is no repetition, where a compiled graph can only ask when it runs; None elsewhere."""
    return _outside_backward(x) if _is_compiling() and not is_exporting() else None


@torch.library.custom_op("batchnorm::snapshot", mutates_args=())
def _opaque_clone(x: Tensor) -> Tensor:
    return x.clone()


@_opaque_clone.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@_opaque_clone.register_vmap
def _(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
    return _opaque_clone(x), in_dims[0]


def snapshot(x: Tensor) -> Tensor:
    """Return a copy of a buffer as it is now, which stays so in the backward.

    A training step reads a running statistic, normalises by it, and moves it. A compiler that computes the backward's
    intermediates again, from the buffer as it is by then, gets other gradients (torch 2.13: silently with the backend
    "aot_eager", with an error from autograd with "inductor"). What an opaque operator returns is kept instead.
    """
    return _opaque_clone(x) if _is_compiling() else x.clone()


def called_from(function: str) -> bool:
    """Return whether the caller of the caller of this runs in a function of that name.

    torch's `convert_sync_batchnorm` asks nobody before it replaces a layer; by its name in the frame it can be told
    from others who list the children of a module.
    """
    return sys._getframe(2).f_code.co_name == function  # pyright: ignore[reportPrivateUsage]
