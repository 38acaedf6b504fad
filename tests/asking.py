"""A small network to ask about, and what must be the same afterwards."""

import copy
import random
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import batchnorm.torch as ours
from batchnorm.batch_size import Advice, advise

ROWS = 120
cross_entropy = nn.functional.cross_entropy


def arrays(rows: int = ROWS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(dtype), (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long()


def network(norm: Any = nn.BatchNorm1d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), norm(8), nn.ReLU(), nn.Linear(8, 3))


def ask(model: Any = None, loss: Any = cross_entropy, dataset: Any = None, *given: Any, **options: Any) -> Advice:
    """Ask for little time about a small network, or whatever is given."""
    model = network() if model is None else model
    dataset = arrays() if dataset is None else dataset
    return advise(model, loss, dataset, *given, **{"budget_s": 0.6, "progress": False} | options)


def samples() -> list[tuple[Any, Any]]:
    return list(zip(*arrays(), strict=True))


class Noting(nn.Module):
    """Notes things down as it runs, in all the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(4, 8), ours.BatchNorm1d(8)
        self.dropout, self.still, self.last = nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.calls, self.sizes, self.kinds = 0, [1], {1}
        self.by_size, self.ordered, self.recent = {1: 1}, OrderedDict(a=1), deque([1], maxlen=3)
        self.output: Tensor | None = None
        self.nested = {"sizes": [1]}
        self.total, self.array = torch.zeros(8), np.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sizes.append(len(x))
        self.kinds.add(len(x))
        self.by_size[len(x)] = self.calls
        self.ordered[str(len(x))] = self.calls
        self.recent.append(len(x))
        self.nested["sizes"].append(len(x))
        self.fresh = self.calls
        self.array += random.random() + np.random.random()
        self.steps += 1
        z = self.norm(self.first(x))
        self.total += z.detach().sum(0)
        self.output = self.last(self.dropout(torch.relu(self.still(z))))
        return self.output


def held(value: Any) -> Any:
    """Return a copy of whatever a model or an optimizer holds, modules aside."""
    if isinstance(value, dict):
        return {k: held(v) for k, v in value.items()}
    if isinstance(value, list | tuple | deque):
        return [held(v) for v in value]
    if isinstance(value, Tensor | np.ndarray):
        return torch.as_tensor(value).detach().clone()
    return copy.copy(value)


def assert_same(before: Any, after: Any, where: str = "") -> None:
    assert type(before) is type(after), where
    if isinstance(before, dict):
        assert list(before) == list(after), where
        for key in before:
            assert_same(before[key], after[key], f"{where}.{key}")
    elif isinstance(before, list):
        assert len(before) == len(after), where
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(before, Tensor):
        assert before.dtype == after.dtype, where
        assert torch.equal(before.nan_to_num(), after.nan_to_num()), where
        assert torch.equal(before.isnan(), after.isnan()), where
    else:
        assert before == after, where


def attributes(module: nn.Module) -> dict[str, Any]:
    own = {k: v for k, v in vars(module).items() if not k.startswith("_") or k in ("_step_count", "_hooks")}
    return held(own)


class Everything:
    """What must be the same to the bit afterwards."""

    def __init__(self, model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> None:
        self.parts = model, optimizer, scheduler
        self.gradients = [p.grad for p in model.parameters()]
        self.hooks = self.count_hooks()
        self.state = None if optimizer is None else optimizer.state
        self.before = self.now()

    def count_hooks(self) -> int:
        modules = list(self.parts[0].modules())
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks) for m in modules)

    def now(self) -> dict[str, Any]:
        model, optimizer, scheduler = self.parts
        return {
            "state": held(dict(model.state_dict())),
            "gradients": held([p.grad for p in model.parameters()]),
            "attributes": {name: attributes(module) for name, module in model.named_modules()},
            "optimizer": held(optimizer.state_dict()) if optimizer else None,
            "optimizer's own": {k: held(v) for k, v in vars(optimizer).items() if "opt" in k} if optimizer else None,
            "scheduler": held(scheduler.state_dict()) if scheduler else None,
            "torch": torch.get_rng_state(),
            "numpy": held(np.random.get_state()),
            "python": held(random.getstate()),
        }

    def assert_same(self) -> None:
        model, optimizer, _ = self.parts
        assert_same(self.before, self.now())
        assert all(a is b for a, b in zip(self.gradients, (p.grad for p in model.parameters()), strict=True))
        assert self.hooks == self.count_hooks()
        if optimizer is not None:
            assert optimizer.state is self.state
