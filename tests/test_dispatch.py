"""Which kernel serves a call: backends are asked in order, and adding one is one file and one line."""

import math
import re
from types import SimpleNamespace
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import pytest
import torch

from batchnorm import kernels
from batchnorm.kernels import Backend, BackwardResult, Facts, ForwardResult, Kernel, Mode
from batchnorm.kernels.eager import EagerKernel
from batchnorm.kernels.native import abi
from batchnorm.layout import axes_of
from batchnorm.torch import BatchNorm
from choosing import with_backends, without_fast_step
from suite import ROOT
from tolerance import assert_same_to_project_bound


class ToyKernel(EagerKernel):
    """The eager kernel in one call each way, which counts its calls."""

    name = "toy"
    needs_reserve = False

    def __init__(self) -> None:
        super().__init__(xp, cascade=True)
        self.calls: list[str] = []

    def has_reserve(self, activation: str | None, *, residual: bool) -> bool:
        return False

    def forward(
        self, x: Any, reduced: Any, gamma: Any, beta: Any, *, eps: float, activation: Any = None, residual: Any = None,
        weights: Any = None,
    ) -> ForwardResult:  # fmt: skip
        self.calls.append("forward")
        assert weights is None
        count = x.numel() // math.prod(n for i, n in enumerate(x.shape) if i not in reduced)
        mean, m2, low = self.moments(x, reduced, count)
        inv_std = (m2 / count + eps).rsqrt()
        scale = inv_std if gamma is None else inv_std * gamma
        shift = xp.zeros_like(scale) if beta is None else beta
        y = self.affine(x, mean, low, scale, shift, residual=residual, activation=activation)
        return ForwardResult(y, mean, low, m2, inv_std, None)

    def backward(
        self, dy: Any, x: Any, mean: Any, mean_low: Any, inv_std: Any, per_count: Any, scale: Any, shift: Any, *,
        fixed: bool = False, activation: Any = None, residual: Any = None, reserve: Any = None, weights: Any = None,
        wants_dx: bool,
        wants_dz: bool, wants_sums: bool,
    ) -> BackwardResult:  # fmt: skip
        self.calls.append("backward")
        dz = dy
        if activation is not None:
            dz = self.backward_activation(dy, x, mean, mean_low, scale, shift, activation=activation, residual=residual)
        reduced = [i for i, n in enumerate(mean.shape) if n == 1]
        sum_dz, sum_dz_centred = self.backward_reduce(dz, x, reduced, mean, mean_low)
        share = mean.numel() / x.numel() if per_count is None else per_count
        through = () if fixed else (-scale * share * inv_std**2 * sum_dz_centred, -scale * share * sum_dz)
        dx = self.backward_elementwise(dz, x, mean, mean_low, scale, *through)
        return BackwardResult(dz, sum_dz, sum_dz_centred, dx)


def toy_supports(facts: Facts) -> str | None:
    return None if facts.dtype == "float32" else f"the toy kernel has no {facts.dtype}"


def stepped(layer: BatchNorm, x: torch.Tensor, residual: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    x = x.clone().requires_grad_()
    y = layer(x, residual)
    y.backward(torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).reshape(y.shape))
    assert x.grad is not None
    return y.detach(), x.grad, layer.running_var.clone()


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("added", [True, False])
def test_a_new_backend_in_front_of_the_native_one(added: bool, activation: Any) -> None:
    toy, x = ToyKernel(), torch.randn(8, 3, 5)
    residual = torch.randn(8, 3, 5) if added else None
    expected = stepped(BatchNorm(3, activation=activation), x, residual)
    others = kernels.registered(xp).backends
    with with_backends(xp, Backend("toy", "cpu", toy_supports, lambda _: toy), *others):
        layer, double = BatchNorm(3, activation=activation), BatchNorm(3, activation=activation).double()
        got = stepped(layer, x, residual)
        assert toy.calls == ["forward", "backward"]
        assert "kernel=" not in repr(layer)
        stepped(double, x.double(), None if residual is None else residual.double())
        assert toy.calls == ["forward", "backward"]
        assert "kernel=native: the toy kernel has no float64" in repr(double)
        with without_fast_step():
            stepped(double, x.double())
        assert "kernel=native: the toy kernel has no float64" in repr(double)
    for a, b in zip(got, expected, strict=True):
        assert_same_to_project_bound(a, b)


def backend(name: str, device: str, refusal: str | None) -> Backend:
    kernel: Any = SimpleNamespace(name=name)
    return Backend(name, device, lambda _: refusal, lambda _: kernel)


def facts(**options: Any) -> Facts:
    return Facts(axes_of(2, 1), (4, 3), (3, 1), "float32", **options)


@pytest.mark.parametrize(
    ("backends", "device", "name", "reason"),
    [
        ([], "cpu", "eager", "this version has no native kernel for such arrays"),
        ([backend("a", "cpu", None), backend("b", "cpu", None)], "cpu", "a", ""),
        ([backend("a", "cpu", "no a"), backend("b", "cpu", None)], "cpu", "b", "no a"),
        ([backend("a", "cpu", "no a"), backend("b", "cpu", "no b")], "cpu", "eager", "no a"),
        ([backend("a", "cuda", None), backend("b", "cpu", None)], "cpu", "b", ""),
        ([backend("a", "cuda", "no a"), backend("b", "cpu", None)], "cuda", "eager", "no a"),
        ([backend("b", "cpu", None)], "xla", "eager", "the native kernel runs on a CPU, the input is on xla"),
    ],
)
def test_the_first_that_serves_is_taken(backends: list[Backend], device: str, name: str, reason: str) -> None:
    with with_backends(np, *backends):
        chosen = kernels.select(facts(device=device), np)
    assert (chosen.kernel.name, chosen.reason) == (name, reason)


def test_a_kernel_that_does_a_whole_pass_is_told_from_one_that_does_not() -> None:
    eager: Kernel = EagerKernel(np)
    assert kernels.one_call(eager) is None
    assert kernels.one_call(kernels.numpy.KERNEL) is kernels.numpy.KERNEL


def test_the_reason_names_what_the_call_runs_under() -> None:
    x = torch.randn(8, 3)
    layer = BatchNorm(3, affine=False)
    torch.func.vmap(layer.eval(), chunk_size=None)(torch.stack((x, x)))
    assert f"kernel=eager: {Mode.FUNCTORCH.value}" in repr(layer)
    layer(x)
    assert "kernel=" not in repr(layer)


# ctypes knows no order but its own: what the header declares is read from the header.
HEADER = (ROOT / "csrc" / "batchnorm.h").read_text("utf-8")
KINDS = {"int64_t": abi.Call.outer, "double": abi.Call.eps}


def declared(structure: str) -> list[tuple[str, str]]:
    """Return the names and the kinds of the fields of a structure: "int64_t", "double" or "pointer"."""
    (body,) = re.findall(rf"typedef struct \{{([^{{}}]*)\}} {structure};", HEADER)
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    fields = []
    for line in body.split(";"):
        if not line.strip():
            continue
        kind, names = re.fullmatch(r"\s*(?:const )?(\w+)\s+(.*)", line, re.DOTALL).groups()  # pyright: ignore
        for name in names.split(","):
            pointer = "*" in name or kind == "bn_parallel_for"
            fields.append((name.strip(" *\n"), "pointer" if pointer else kind))
    return fields


@pytest.mark.parametrize(("name", "structure"), [("bn_call", abi.Call), ("bn_memory", abi.UpdateCall)])
def test_the_structures_are_those_of_the_header(name: str, structure: Any) -> None:
    kinds = {"q": "int64_t", "l": "int64_t", "L": "pointer", "Q": "pointer", "d": "double"}
    ours = [(field, kinds[kind._type_]) for field, kind in structure._fields_]
    assert ours == declared(name)


@pytest.mark.parametrize(
    ("enumeration", "ours", "prefix"),
    [("bn_dtype", abi.DTYPES, "BN_"), ("bn_activation", abi.ACTIVATIONS, "BN_"), ("bn_error", abi._ERRORS, "BN_")],
)
def test_the_enumerations_are_those_of_the_header(enumeration: str, ours: Any, prefix: str) -> None:
    (body,) = re.findall(rf"typedef enum \{{([^{{}}]*)\}} {enumeration};", HEADER)
    names = [name.strip().removeprefix(prefix).lower() for name in body.split(",")]
    if isinstance(ours, dict):
        assert [("identity" if name is None else name) for name in sorted(ours, key=ours.__getitem__)] == names
        assert sorted(ours.values()) == list(range(len(ours)))
    else:
        assert ["ok", *(name.replace(" ", "_") for name in ours[1:])] == names


def test_the_functions_and_the_version_are_those_of_the_header() -> None:
    functions = re.findall(r"^int bn_(\w+)\(const bn_(?:call|memory) \*\w+\);", HEADER, re.MULTILINE)
    assert sorted(functions) == sorted([*abi.PASSES, "remember"])
    assert re.findall(r"#define BN_INTERFACE (\d+)", HEADER) == [str(abi.INTERFACE)]
