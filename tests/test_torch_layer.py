"""The layer in the place of torch's own: names, defaults, checkpoints, and the same numbers step by step."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import batchnorm.torch as ours
from namespaces import to_numpy
from tolerance import assert_close

CLASSES = [
    ("BatchNorm1d", (8, 3)),
    ("BatchNorm1d", (4, 3, 5)),
    ("BatchNorm2d", (4, 3, 5, 2)),
    ("BatchNorm3d", (2, 3, 2, 3, 2)),
]
drop_in = pytest.mark.parametrize(("name", "shape"), CLASSES)


def inputs(shape: tuple[int, ...], steps: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2.0 + 3.0 * torch.randn(shape, generator=generator) for _ in range(steps)]


def assert_same(a: torch.Tensor | None, b: torch.Tensor | None) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert a.dtype == b.dtype
        assert_close(to_numpy(a), to_numpy(b), "float32", 1.0 + np.abs(to_numpy(b)))


def assert_same_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    mine, torchs = a.state_dict(), b.state_dict()
    assert list(mine) == list(torchs)
    for key in mine:
        assert_same(mine[key], torchs[key])


def step(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor | None]:
    """Run forward, backward and a step of gradient descent; return all that can be seen."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1.0, 2.0, x.numel()).reshape(x.shape)).sum().backward()
    gradients = [None if p is None else p.grad for p in (layer.weight, layer.bias)]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= 0.1 * parameter.grad
    layer.zero_grad()
    return [y, x.grad, *gradients]


def assert_train_alike(mine: torch.nn.Module, torchs: torch.nn.Module, xs: list[torch.Tensor]) -> None:
    for x in xs:
        for a, b in zip(step(mine, x), step(torchs, x), strict=True):
            assert_same(a, b)
        assert_same_state(mine, torchs)


@drop_in
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 0.7, "eps": 1e-2},
        {"momentum": 0.0},
        {"momentum": 1},
        {"track_running_stats": False},
        {"affine": False},
        {"affine": False, "track_running_stats": False, "momentum": None},
        {"bias": False},
    ],
    ids=str,
)
def test_trains_and_infers_as_torch(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    mine, torchs = getattr(ours, name)(3, **options), getattr(torch.nn, name)(3, **options)
    assert_train_alike(mine, torchs, inputs(shape))
    assert_train_alike(mine.eval(), torchs.eval(), inputs(shape, steps=2, seed=1))
    assert_train_alike(mine.train(), torchs.train(), inputs(shape, steps=1, seed=2))


@drop_in
def test_checkpoints_load_both_ways_and_training_goes_on(name: str, shape: tuple[int, ...]) -> None:
    mine, torchs = getattr(ours, name)(3), getattr(torch.nn, name)(3)
    assert_train_alike(mine, torchs, inputs(shape))
    from_torchs, from_mine = getattr(ours, name)(3), getattr(torch.nn, name)(3)
    from_torchs.load_state_dict(torchs.state_dict())
    from_mine.load_state_dict(mine.state_dict())
    assert from_mine.num_batches_tracked == from_torchs.num_batches_tracked == 4
    assert_same_state(from_torchs, from_mine)
    assert_train_alike(from_torchs, from_mine, inputs(shape, seed=3))


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_signature_begins_with_torchs(name: str) -> None:
    torchs = inspect.signature(getattr(torch.nn, name)).parameters
    mine = inspect.signature(getattr(ours, name)).parameters
    assert [(p.name, p.default, p.kind) for p in torchs.values()] == [
        (p.name, p.default, p.kind) for p in list(mine.values())[: len(torchs)]
    ]
    *added, unknown = list(mine.values())[len(torchs) :]
    assert all(p.kind is p.KEYWORD_ONLY for p in added)
    assert unknown.kind is unknown.VAR_KEYWORD  # refused, with what is meant


def test_signature_of_the_function_begins_with_torchs() -> None:
    torchs = inspect.signature(torch.nn.functional.batch_norm).parameters
    mine = inspect.signature(ours.batch_norm).parameters
    assert [(p.name, p.default) for p in torchs.values()] == [
        (p.name, p.default) for p in list(mine.values())[: len(torchs)]
    ]


@pytest.mark.parametrize("name", ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_torchs_tools_find_the_layer(name: str) -> None:
    assert isinstance(getattr(ours, name)(3), getattr(torch.nn, name, _BatchNorm))


def test_a_trace_of_inference_is_saved_and_loaded(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), ours.BatchNorm1d(4, activation="gelu")).eval()
    x = torch.randn(5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated, and shapes are compared in Python
        torch.jit.save(torch.jit.trace(model, x), tmp_path / "traced.pt")
        loaded = torch.jit.load(tmp_path / "traced.pt")
    assert_same(loaded(x), model(x))


def test_torch_fx_sees_one_node() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), ours.BatchNorm2d(4, activation="relu"))
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("training", [True, False])
def test_weights_keep_channels_last(training: bool) -> None:
    x = torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last)
    y = ours.BatchNorm2d(3).train(training)(x, weights=torch.rand(4, 5, 2) > 0.3)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_switching_tracking_off_later_does_as_torch() -> None:
    mine, torchs = ours.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    for layer in (mine, torchs):
        layer.track_running_stats = False
    assert_train_alike(mine, torchs, inputs((8, 3)))
    assert mine.num_batches_tracked == 0


def test_momentum_none_is_the_average_of_all_batches() -> None:
    layer, xs = ours.BatchNorm(3, momentum=None), inputs((8, 3), steps=5)
    for x in xs:
        layer(x)
    assert_same(layer.running_mean, torch.stack([x.mean(0) for x in xs]).mean(0))
    assert_same(layer.running_var, torch.stack([x.var(0, correction=1) for x in xs]).mean(0))


def test_biased_running_variance() -> None:
    layer, (x,) = ours.BatchNorm(3, momentum=1.0, running_variance="biased"), inputs((4, 3), steps=1)
    layer(x)
    assert_same(layer.running_var, x.var(0, correction=0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["BatchNorm2d", "BatchNorm3d"])
def test_channels_last_stays_channels_last(name: str, training: bool) -> None:
    memory = {"BatchNorm2d": torch.channels_last, "BatchNorm3d": torch.channels_last_3d}[name]
    (x,) = inputs(dict(CLASSES)[name], steps=1)
    x = x.to(memory_format=memory).requires_grad_()
    y = getattr(ours, name)(3).train(training)(x)
    y.sum().backward()
    assert y.is_contiguous(memory_format=memory)
    assert x.grad.is_contiguous(memory_format=memory)


def test_inference_treats_every_row_alone() -> None:
    layer = ours.BatchNorm(3)
    xs = inputs((6, 3))
    for x in xs:
        layer(x)
    layer.eval()
    assert torch.equal(layer(xs[0]), torch.cat([layer(row[None]) for row in xs[0]]))


def test_the_description_shows_what_differs_from_torch() -> None:
    assert repr(ours.BatchNorm1d(3)) == repr(torch.nn.BatchNorm1d(3))
    changed = repr(ours.BatchNorm(3, axis=-1, running_variance="biased"))
    assert changed.endswith(", axis=-1, running_variance='biased')")
