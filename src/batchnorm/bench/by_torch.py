"""The contenders in PyTorch, ours among them, and the copies that are the roofline."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchnorm.bench import bandwidth
from batchnorm.bench.arrays import Arrays, Floats
from batchnorm.bench.cases import PERMUTED, Case
from batchnorm.bench.contenders import OURS
from batchnorm.bench.prepared import Prepared
from batchnorm.bench.truth import Outputs, checked_features
from batchnorm.core.passes import NormInputs
from batchnorm.core.spec import NormSpec
from batchnorm.layout import axes_of
from batchnorm.torch import BatchNorm
from batchnorm.torch.backends import plan_tensors

LAYERS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class AsUsersWrite(nn.Module):
    """torch.nn.BatchNorm*, and what follows it in functions of their own.

    (N, L, C) is transposed there and back, since torch's layers take features as axis 1.
    """

    def __init__(self, case: Case, *, in_place: bool = False) -> None:
        super().__init__()
        self.norm = LAYERS[len(case.shape)](case.features)
        self.relu, self.in_place, self.transposed = case.operation.relu, in_place, case.layout == "NLC"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the output, in the layout of x."""
        y = self.norm(x.transpose(1, 2)).transpose(1, 2) if self.transposed else self.norm(x)
        if self.in_place:
            if residual is not None:
                y += residual
            return torch.relu_(y) if self.relu else y
        if residual is not None:
            y = y + residual
        return torch.relu(y) if self.relu else y


class Ours(nn.Module):
    """batchnorm.torch.BatchNorm, which does all of it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        axis = -1 if case.layout == "NLC" else 1
        self.norm = BatchNorm(case.features, axis=axis, activation="relu" if case.operation.relu else None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the output."""
        return self.norm(x, residual)


def start(threads: int) -> dict[str, str]:
    """Set the number of threads; return the versions of what runs here."""
    torch.set_num_threads(threads)
    return {"torch": torch.__version__, "cpu capability": torch.backends.cpu.get_cpu_capability()}


def forget() -> None:
    """Drop what torch.compile has made for the last case."""
    torch.compiler.reset()


def tensor(values: Floats, case: Case) -> Tensor:
    """Return the values in the dtype and strides of the case."""
    made = torch.from_numpy(values).to(getattr(torch, case.dtype))
    return made.movedim(-1, 1) if case.layout in PERMUTED else made


def prepare(name: str, case: Case, given: Arrays) -> Prepared:
    """Make a contender ready."""
    module: Any = Ours(case) if name == OURS else AsUsersWrite(case, in_place=name == "torch in place")
    _set(module.norm, given)
    module.train(case.operation.training)
    call = torch.compile(module, fullgraph=True, dynamic=False) if name == "torch.compile" else module
    x, dy = tensor(given.x, case), tensor(given.dy, case)
    residual = tensor(given.residual, case) if case.operation.add else None
    axis = axes_of(x.dim(), -1 if case.layout == "NLC" else 1)
    call_plan = plan_tensors(NormSpec(), NormInputs(x, residual=residual), axis)
    kernel = call_plan.kernel.name if name == OURS else None
    return Prepared(*_step(case, module.norm, call, (x, dy, residual)), kernel)


def _set(norm: nn.Module, given: Arrays) -> None:
    pairs = {"weight": given.gamma, "bias": given.beta, "running_mean": given.mean, "running_var": given.var}
    with torch.no_grad():
        for name, values in pairs.items():
            getattr(norm, name).copy_(torch.from_numpy(values))


def _step(
    case: Case, norm: Any, call: Callable[..., Tensor], tensors: tuple[Tensor, Tensor, Tensor | None]
) -> tuple[Callable[[], object], Callable[[], Outputs]]:
    """Return what is timed, and what gives its outputs."""
    op = case.operation
    x, dy = (t.detach() for t in tensors[:2])  # leaves of this contender's own
    residual = None if tensors[2] is None else tensors[2].detach()
    leaves = [x, norm.weight, norm.bias, *([] if residual is None else [residual])]

    def forward() -> Tensor:
        return call(x) if residual is None else call(x, residual)

    def inference() -> Tensor:
        with torch.no_grad():
            return forward()

    if not op.training:
        return inference, lambda: {"y": _checked(inference(), case)}
    for leaf in leaves:
        leaf.requires_grad_()

    def train() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        y = forward()
        y.backward(dy)
        return y

    def outputs() -> Outputs:
        y = train()
        found = {"y": _checked(y, case), "dx": _checked(x.grad, case)}
        found |= {"dgamma": _checked(norm.weight.grad, case), "dbeta": _checked(norm.bias.grad, case)}
        return found | ({} if residual is None else {"dresidual": _checked(residual.grad, case)})

    if op.forward:
        return train if op.backward else forward, outputs
    y = forward()

    def backward() -> object:
        return torch.autograd.grad(y, leaves, dy, retain_graph=True)

    return backward, outputs


def _checked(values: Tensor | None, case: Case) -> NDArray[np.float64]:
    """Return the features that are checked, in the order of memory."""
    if values is None:
        raise ValueError("there is no gradient")
    at = torch.from_numpy(checked_features(case))
    values = values.detach()
    if values.dim() == 1:
        return values[at].double().numpy()
    ordered = values.movedim(1, -1) if case.layout in PERMUTED else values
    return ordered.index_select(case.axis_in_memory, at).double().numpy()


def copies(case: Case, given: Arrays, threads: int) -> dict[str, Prepared]:
    """Return the copies of an array of this size."""
    source = tensor(given.x, case)
    target = torch.empty_like(source).copy_(source)  # not the first to touch its pages
    made = {name: copy(source, target, threads) for name, copy in bandwidth.COPIES.items()}
    return {name: Prepared(step) for name, step in made.items()}
