"""The native kernel as operators of torch: what compilers, modes and fake tensors see of it."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from batchnorm.kernels.native import abi
from batchnorm.torch import BatchNorm
from namespaces import to_numpy
from options import normal
from tolerance import assert_close

pytestmark = pytest.mark.skipif(isinstance(abi.load(), str), reason=f"no native kernel: {abi.load()}")
OPERATORS = torch.ops.batchnorm
FORWARD, BACKWARD = OPERATORS.forward.default, OPERATORS.backward.default
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"activation": "relu"},
    "residual": {"activation": "relu", "call": ("residual",)},
    "smooth": {"activation": "gelu", "call": ("residual",)},
    "weights": {"call": ("weights",)},
    "groups": {"virtual_batch_size": 2, "activation": "relu", "call": ("residual",)},
}


class Seen(TorchDispatchMode):
    """Notes the operators that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


def examples(
    shape: tuple[int, ...] = (4, 3, 5), dtype: torch.dtype = torch.float32
) -> dict[str, list[tuple[Any, ...]]]:
    x, dy, residual = (normal(shape, i, dtype) for i in range(3))
    kept = (1, shape[1], *[1] * (len(shape) - 2))
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    mean, low, inv_std, per_count, scale, shift = (normal(kept, i, precise) for i in range(6))
    weights = normal((shape[0], 1, *shape[2:]), 6, precise).abs()
    reduced, full = [0, *range(2, len(shape))], [mean, low, inv_std, per_count, scale, shift]
    return {
        "moments": [(x, reduced, None), (x, reduced, weights)],
        "affine": [(x, mean, None, scale, shift, None, "relu"), (x, mean, low, scale, shift, residual, None)],
        "forward": [(x, reduced, scale, None, 1e-5, "silu", residual, weights)],
        "backward": [
            (dy, x, *full, False, "gelu", residual, None, weights, True, True, True),
            (dy, x, *full[:3], None, scale, None, True, None, None, None, None, True, True, False),
            (dy, x, *full[:3], None, *full[4:], False, "relu", None, None, None, False, True, True),
        ],
        "backward_reduce": [(dy, x, reduced, mean, None), (dy, x, reduced, mean, low)],
        "backward_elementwise": [(dy, x, mean, low, scale, shift, inv_std, weights)],
    }


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # by torch itself
@pytest.mark.parametrize("name", examples())
def test_torch_finds_each_operator_in_order(name: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        for arguments in examples(dtype=dtype)[name]:
            opcheck(getattr(OPERATORS, name).default, arguments)


@pytest.mark.parametrize("name", examples())
def test_what_fake_tensors_say_is_what_comes(name: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.float16):
        for last in (False, True):
            for arguments in examples((4, 3, 5, 2), dtype)[name]:
                where = torch.channels_last if last else torch.contiguous_format
                laid = [
                    a.contiguous(memory_format=where) if isinstance(a, Tensor) and a.ndim == 4 else a for a in arguments
                ]
                mode, operator = FakeTensorMode(allow_non_fake_inputs=True), getattr(OPERATORS, name).default
                got: Any = operator(*laid)
                fake = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in laid]
                with mode:
                    expected: Any = operator(*fake)
                pairs = zip(*((o if isinstance(o, tuple) else (o,)) for o in (got, expected)), strict=True)
                for real, said in pairs:
                    assert (real.shape, real.dtype, real.stride()) == (said.shape, said.dtype, said.stride())


def arguments(names: tuple[str, ...], shape: tuple[int, ...]) -> dict[str, Tensor]:
    given = {"residual": normal(shape, 1, torch.float32), "weights": normal((shape[0], 1), 2).abs().float()}
    return {name: given[name] for name in names}


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # by torch.compile itself
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_compiled_step_is_made_of_the_operators(kind: str) -> None:
    torch.compiler.reset()
    graphs: list[set[Any]] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append({node.target for node in graph.graph.nodes if node.op == "call_function"})
        return make_boxed_func(graph.forward)

    options, shape = dict(OPTIONS[kind]), (4, 3, 5)
    call = arguments(options.pop("call", ()), shape)
    layer = BatchNorm(3, **options)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend=aot_autograd(fw_compiler=compiler, bw_compiler=compiler))
    leaves = [normal(shape, 0, torch.float32).requires_grad_() for _ in range(2)]
    for leaf, function in zip(leaves, (layer, compiled), strict=True):
        function(leaf, **call).square().sum().backward()
    forward, backward = graphs
    assert (OPERATORS.moments.default if "weights" in call else FORWARD) in forward
    assert BACKWARD in backward
    assert_close(to_numpy(leaves[1].grad), to_numpy(leaves[0].grad), "float32", 4.0)
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        assert_close(to_numpy(b.grad), to_numpy(a.grad), "float32", 16.0)
    for a, b in zip(layer.buffers(), twin.buffers(), strict=True):
        assert_close(to_numpy(b), to_numpy(a), "float32", 4.0)


def test_a_mode_sees_the_operators() -> None:
    layer, x = BatchNorm(3, activation="relu"), torch.randn(8, 3, requires_grad=True)
    with Seen() as seen:
        layer(x).sum().backward()
    assert {FORWARD, BACKWARD} <= set(seen.operators)
    with Seen() as seen, torch.no_grad():
        layer.eval()(x)
    assert OPERATORS.affine.default in seen.operators


@pytest.mark.parametrize("during", ["forward", "backward", "both"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_looking_on_changes_nothing(kind: str, during: str) -> None:
    options, shape = dict(OPTIONS[kind]), (5, 3, 4)
    call = arguments(options.pop("call", ()), shape)
    layer = BatchNorm(3, **options)
    twin = copy.deepcopy(layer)
    gradients = []
    for each, watched in ((layer, ""), (twin, during)):
        leaves = [normal(shape, 0, torch.float32).requires_grad_()]
        given = dict(call)
        if "residual" in call:
            given["residual"] = call["residual"].clone().requires_grad_()
            leaves.append(given["residual"])
        with FlopCounterMode(display=False) if watched in ("forward", "both") else nullcontext():
            y = each(leaves[0], **given)
        with FlopCounterMode(display=False) if watched in ("backward", "both") else nullcontext():
            y.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves] + [p.grad for p in each.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(to_numpy(b), to_numpy(a), "float32", 8.0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", OPTIONS)
def test_fake_tensors_go_through_the_layer(kind: str, training: bool) -> None:
    options = dict(OPTIONS[kind])
    names = options.pop("call", ())
    with FakeTensorMode():
        layer = BatchNorm(3, **options).train(training)
        x = torch.randn(4, 3, 5, 2, requires_grad=True).to(memory_format=torch.channels_last)
        given = {"residual": torch.randn_like(x), "weights": torch.ones(4, 1, 1)}
        y = layer(x, **{name: given[name] for name in names})
        y.sum().backward()
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert layer.weight.grad is not None
