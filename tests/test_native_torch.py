"""The native kernel beneath torch's layers: the short way, the general way and the eager kernel give the same step."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.data import DataLoader, Dataset

from batchnorm.kernels.native import abi
from batchnorm.torch import BatchNorm, BatchNorm2d, fast_step, hold_statistics
from choosing import counting, without_fast_step, without_native
from namespaces import to_numpy
from options import ACTIVATIONS, LAYOUTS, layer_for, normal, without_features
from tolerance import assert_close

pytestmark = pytest.mark.skipif(isinstance(abi.load(), str), reason=f"no native kernel: {abi.load()}")
FUNCTIONS = getattr(abi.load(), "functions", {})
ACTIVE = [None, *ACTIVATIONS]
Given = dict[str, Tensor | None]


def step(layer: BatchNorm, x: Tensor, dy: Tensor | None = None, residual: Tensor | None = None, **call: Any) -> Given:
    """Return everything that one step leaves."""
    x = x.detach().requires_grad_()
    if residual is not None:
        call["residual"] = residual = residual.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x, **call)
    y.backward(torch.ones_like(y) if dy is None else dy)
    found = {"y": y.detach(), "dx": x.grad, "dz": None if residual is None else residual.grad}
    found |= {f"d{name}": None if p.grad is None else p.grad.clone() for name, p in layer.named_parameters()}
    return found | {name: b.clone() for name, b in layer.named_buffers()}


def assert_alike(got: Given, expected: Given, dtype: str = "float64", *, exactly: tuple[str, ...] = ()) -> None:
    assert list(got) == list(expected)
    for name, a in got.items():
        b = expected[name]
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert (a.dtype, a.stride()) == (b.dtype, b.stride()), name
            assert name not in exactly or torch.equal(a, b), name
            assert_close(to_numpy(a), to_numpy(b), dtype, 1.0 + to_numpy(b.detach().abs().max()))


def inputs(shape: Any, dtype: torch.dtype = torch.float64, count: int = 3) -> list[Tensor]:
    return [normal(shape, seed, dtype) for seed in range(count)]


def test_a_plain_step_is_three_calls_of_the_library() -> None:
    layer, (x, dy, residual) = layer_for((4, 3, 5), 1, activation="relu"), inputs((4, 3, 5))
    names = ("forward", "backward", "remember", "moments", "affine")
    with ExitStack() as stack:
        calls = [stack.enter_context(counting(FUNCTIONS, name)) for name in names]
        step(layer, x, dy, residual)
    assert [len(c) for c in calls] == [1, 1, 1, 0, 0]


def test_inference_is_one_call_of_the_library_and_its_backward_another() -> None:
    layer, (x, dy, residual) = layer_for((4, 3, 5), 1, activation="relu").eval(), inputs((4, 3, 5))
    with counting(FUNCTIONS, "infer") as inferred, counting(FUNCTIONS, "backward") as differentiated:
        step(layer, x, dy, residual)
        assert (len(inferred), len(differentiated)) == (1, 1)
        with torch.no_grad():
            layer(x)
    assert (len(inferred), len(differentiated)) == (2, 1)


@pytest.mark.parametrize(("options", "call"), [({"virtual_batch_size": 2}, ()), ({}, ("weights",))])
def test_an_option_is_served_by_the_native_kernel_too(options: dict[str, Any], call: Any) -> None:
    x, weights = normal((4, 3, 5)), torch.ones(4, 5)
    layer = layer_for((4, 3, 5), 1, **options)
    with counting(FUNCTIONS, "backward") as calls:
        step(layer, x, **dict.fromkeys(call, weights))
    assert len(calls) == 1
    assert layer._kernel_note is None


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("activation", ACTIVE)
def test_the_short_way_equals_the_general_way(activation: Any, dtype: str) -> None:
    kind = getattr(torch, dtype)
    precise = "float64" if dtype == "float64" else "float32"
    for shape, axis in LAYOUTS:
        for parameters in {kind, getattr(torch, precise)}:
            x, dy, residual = inputs(shape, kind)
            for given in (None, residual):
                layer = layer_for(shape, axis, activation=activation).to(parameters)
                twin = copy.deepcopy(layer)
                with counting(fast_step, "_apply") as calls:
                    got = step(layer, x, dy, given)
                assert len(calls) == 1
                with without_fast_step():
                    expected = step(twin, x, dy, given)
                exactly = ("y", "num_batches_tracked", "nonfinite_batches")
                assert_alike(got, expected, dtype, exactly=exactly)
                with torch.no_grad():
                    got = layer.eval()(x, given)
                    with without_fast_step():
                        expected = layer(x, given)
                assert_alike({"y": got}, {"y": expected}, dtype)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": {"virtual_batch_size": 2},
    "weights": {"call": ("weights",)},
    "residual": {"call": ("residual",)},
    "groups with weights and a residual": {"virtual_batch_size": 2, "call": ("weights", "residual")},
    "one group for each sample": {"virtual_batch_size": 1, "small_batch": "allow"},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_the_native_kernel_equals_the_eager_one(kind: str, activation: Any, training: bool) -> None:
    for shape, axis in LAYOUTS:
        x, dy, residual = inputs(shape)
        weights = normal(without_features(shape, axis), 5).abs() * (normal(without_features(shape, axis), 6) > -1.0)
        for last in {False, x.ndim == 4}:
            where = {"memory_format": torch.channels_last} if last else {}
            options, possible = dict(OPTIONS[kind]), {"weights": weights, "residual": residual}
            call = {name: possible[name] for name in options.pop("call", ())}
            layer = layer_for(shape, axis, activation=activation, eps=0.1, **options)  # few values lie close
            twin = copy.deepcopy(layer)
            got = step(layer.train(training), x.contiguous(**where), dy, **call)
            with without_native():
                expected = step(twin.train(training), x.contiguous(**where), dy, **call)
            assert_alike(*({n: None if a is None else a.contiguous() for n, a in f.items()} for f in (got, expected)))


def test_torchs_threads_give_the_same_bits() -> None:
    threads, layer, found = torch.get_num_threads(), BatchNorm(17, activation="relu"), []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            found.append([step(copy.deepcopy(layer), *inputs(s, torch.float32)) for s in ((9001, 17), (5, 17, 4001))])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert [name for name in a if not torch.equal(a[name], b[name])] == []  # pyright: ignore


class Normalised(Dataset[Tensor]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Tensor:
        return BatchNorm(17)(normal((2000, 17), i, torch.float32)).detach()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # what torch's loader does
def test_workers_of_a_loader_normalise() -> None:
    alone = [Normalised()[i] for i in range(3)]
    loader = DataLoader(Normalised(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(a, b) for a, b in zip(loader, alone, strict=True))


def test_threads_of_python_may_train_layers_at_once() -> None:
    def train(seed: int) -> Tensor:
        layer = BatchNorm(17, activation="relu")
        return step(layer, normal((3000, 17), seed, torch.float32))["dx"]  # pyright: ignore[reportReturnType]

    alone = [train(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(train, range(8)), alone, strict=True))


def otherwise(t: Tensor) -> dict[str, Tensor]:
    """Return equal tensors that lie otherwise in memory."""
    gaps = t.repeat_interleave(2, -1)[..., ::2]
    offset = t.new_empty(t.numel() + 3)[3:].view(t.shape).copy_(t)
    return {"gaps": gaps, "offset": offset, "last": t.contiguous(memory_format=torch.channels_last), "whole": t.clone()}


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("memory", ["gaps", "offset", "last", "whole"])
def test_what_comes_with_the_input_may_lie_otherwise(memory: str, activation: Any) -> None:
    x, dy, residual = inputs((4, 3, 5, 7), torch.float32)
    layer = BatchNorm2d(3, activation=activation)
    expected = step(copy.deepcopy(layer), x, dy, residual)
    for name, other in otherwise(dy).items():
        got = step(copy.deepcopy(layer), otherwise(x)[memory], other, otherwise(residual)[name])
        for part in ("y", "dx", "dz", "dweight", "running_var"):
            assert_close(to_numpy(got[part]), to_numpy(expected[part]), "float32", 8.0)


def test_one_gradient_for_all_is_spread() -> None:
    layer, x = BatchNorm(3, activation="relu"), normal((8, 3, 5), 0, torch.float32)
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.sum().backward()
    expected = step(layer, x, torch.ones_like(x))
    assert torch.equal(leaf.grad, expected["dx"])  # pyright: ignore[reportArgumentType]


def test_an_input_with_gaps_says_why_it_is_slow() -> None:
    layer = BatchNorm(3)
    layer(torch.randn(8, 6)[:, ::2])
    assert "not dense in memory" in str(layer._kernel_note)
    assert "not dense in memory" in repr(layer)
    layer(torch.randn(8, 3))
    assert layer._kernel_note is None


@pytest.mark.parametrize("way", [nullcontext, without_fast_step])
def test_what_is_kept_after_a_residual_is_a_bit_an_element(way: Any) -> None:
    x, residual = (normal((32, 8, 24, 24), i, torch.float32).requires_grad_() for i in range(2))
    kept: dict[int, Tensor] = {}

    def note(saved: Tensor) -> Tensor:
        kept[saved.data_ptr()] = saved
        return saved

    with way(), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        y = BatchNorm2d(8, activation="relu")(x, residual)
    assert x.data_ptr() in kept
    assert y.data_ptr() not in kept
    assert residual.data_ptr() not in kept
    beside = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at != x.data_ptr())
    a_feature = 4 * 8 * 8  # bytes: a few arrays of one float32 a feature
    assert x.numel() / 8 <= beside <= x.numel() / 8 + a_feature
    kept.clear()
    with way(), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        BatchNorm2d(8, activation="relu")(x)
    assert sum(t.untyped_storage().nbytes() for at, t in kept.items() if at != x.data_ptr()) <= a_feature


@pytest.mark.parametrize("way", [nullcontext, without_fast_step])
@pytest.mark.parametrize("activation", ACTIVE)
@pytest.mark.parametrize("given", [True, False])
def test_derivatives_of_derivatives(given: bool, activation: Any, way: Any) -> None:
    shape = (3, 2, 4)
    layer = layer_for(shape, 1, activation=activation, virtual_batch_size=None)
    x, residual = (normal(shape, i).requires_grad_() for i in range(2))

    def function(x: Tensor, weight: Tensor, bias: Tensor, *residual: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, *residual))

    arguments = (x, layer.weight, layer.bias, *([residual] if given else []))
    with way(), hold_statistics(layer), counting(fast_step, "_apply") as calls:
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments)
    assert bool(calls) == (way is nullcontext)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "silu", None])
def test_a_residual_of_another_dtype_has_its_own_gradient(activation: Any, dtype: torch.dtype) -> None:
    x, dy, residual = inputs((6, 3, 5), torch.float32)
    residual = residual.to(torch.bfloat16)  # whose values float32 and float64 hold too
    layer = BatchNorm(3, activation=activation)
    got = step(copy.deepcopy(layer), x, dy, residual.to(dtype))
    expected = step(layer, x, dy, residual.float())
    assert got["dz"] is not None
    assert got["dz"].dtype == dtype
    rounded = "bfloat16" if dtype == torch.bfloat16 else "float32"
    assert_close(to_numpy(got["dz"]), to_numpy(expected["dz"]), rounded, 8.0)
    assert_close(to_numpy(got["dx"]), to_numpy(expected["dx"]), "float32", 8.0)


def test_gradients_are_given_only_where_they_are_wanted() -> None:
    x, dy, residual = inputs((6, 3, 5))
    layer = layer_for((6, 3, 5), 1, activation="relu")
    every = [t.requires_grad_() for t in (x, residual)] + [layer.weight, layer.bias]
    expected = torch.autograd.grad(layer(x, residual), every, dy)
    for i, wanted in enumerate(every):
        for t in every:
            t.requires_grad_(t is wanted)
        y = layer(x, residual)
        y.backward(dy)
        assert [t.grad is not None for t in every] == [t is wanted for t in every]
        assert torch.equal(wanted.grad, expected[i])  # pyright: ignore[reportArgumentType]
        wanted.grad = None
