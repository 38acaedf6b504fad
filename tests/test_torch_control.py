"""Who moves the statistics, and when: freezing, holding, taking back, accumulating, checkpointing, vmap."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchnorm.errors import ArgumentError
from batchnorm.torch import BatchNorm, Renorm, accumulate, frozen, hold_statistics, transaction, use_running
from namespaces import to_numpy
from states import assert_alike, assert_identical, buffers
from tolerance import assert_close

RENORM = Renorm(rmax=1.5, dmax=0.5, momentum=0.2)
EVERY = [{}, {"renorm": RENORM}, {"momentum": None}, {"virtual_batch_size": 2}]
CONTROLS = [frozen, hold_statistics, use_running, transaction, accumulate]
every_option = pytest.mark.parametrize("options", EVERY, ids=str)


def batch(rows: int = 8, seed: int = 0, features: int = 3) -> Tensor:
    return 2.0 + 3.0 * torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), BatchNorm(4, **options), nn.ReLU(), nn.Linear(4, 3), BatchNorm(3, **options))


def learn(model: nn.Module, x: Tensor) -> None:
    model(x).pow(3).sum().backward()


def run_and_fail(model: nn.Module, *xs: Tensor) -> None:
    for x in xs:
        model(x)
    raise KeyError


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def test_a_frozen_model_trains_as_it_predicts_whatever_the_mode() -> None:
    model = network()
    learn(model, batch())
    before, expected = buffers(model), model.eval()(batch(seed=1))
    frozen(model).apply()
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(model.train()(batch(seed=1)), expected)
    assert_identical(buffers(model), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_of_a_frozen_model_stay_frozen_and_can_be_undone(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    learn(model, batch())
    frozen(model).apply()
    twin, before = copied(model).train(), buffers(model)
    twin(batch(seed=1))
    assert_identical(buffers(twin), before)
    frozen(twin).undo()
    assert all(p.requires_grad for p in twin.parameters())
    assert not model[1].weight.requires_grad
    twin(batch(seed=1))
    assert twin[1].num_batches_tracked == 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_optimizer_does_not_move_what_is_frozen(momentum: float) -> None:
    model = network()
    ids = [id(p) for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=0.1)
    learn(model, batch())
    optimizer.step()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with frozen(model):  # gradients of the last step are still there
        learn(model, batch(seed=1))
        optimizer.step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert [id(p) for p in model.parameters()] == ids


def test_thawing_brings_back_mixed_flags_and_gradients_after_an_error() -> None:
    model = network()
    learn(model, batch())
    model[1].weight.requires_grad_(False)
    flags, grads = zip(*((p.requires_grad, p.grad) for p in model.parameters()), strict=True)
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert [p.requires_grad for p in model.parameters()] == list(flags)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


def test_thawing_gives_gradients_the_dtype_of_a_cast_meanwhile() -> None:
    model = network()
    learn(model, batch())
    expected = {name: p.grad.double() for name, p in model.named_parameters()}
    frozen(model).apply()
    frozen(model.double()).undo()
    assert_identical({name: p.grad for name, p in model.named_parameters()}, expected)


def test_thawing_frees_a_parameter_that_two_layers_share() -> None:
    model = nn.Sequential(BatchNorm(3), BatchNorm(3))
    model[1].weight = model[0].weight
    learn(model, batch())
    for undo in (lambda: frozen(model).undo(), lambda: None):
        with frozen(model):
            assert not model[0].weight.requires_grad
            undo()
        assert model[0].weight.requires_grad
        assert model[0].weight.grad is not None


def test_a_block_within_a_frozen_model_does_not_thaw_it() -> None:
    model = network()
    frozen(model[1]).apply()
    with frozen(model):
        assert model[4].frozen
    assert (model[1].frozen, model[4].frozen) == (True, False)


BARE = nn.Sequential(nn.ReLU(), BatchNorm(3, track_running_stats=False))
REFUSED = [
    (
        nn.Sequential(BatchNorm(3), nn.BatchNorm1d(3)),
        r"1 \(BatchNorm1d\)",
        [c for c in CONTROLS if c is not transaction],
    ),
    (nn.Linear(2, 3), "has no batch normalization, got Linear", CONTROLS),
    ("model", "got str", CONTROLS),
    (BARE, "^1 keeps no running statistics", [frozen, use_running]),
]


@pytest.mark.parametrize(
    ("model", "said", "control"), [(m, said, c) for m, said, controls in REFUSED for c in controls]
)
def test_a_model_that_cannot_be_controlled_is_refused_by_name(model: Any, said: str, control: Any) -> None:
    with pytest.raises(ArgumentError, match=said), control(model):
        pass


@every_option
def test_holding_normalises_by_the_batch_and_moves_nothing(options: dict[str, Any]) -> None:
    model = network(**options)
    model(batch())
    before, inference = buffers(model), model.eval()(batch(seed=1))
    with hold_statistics(model.train()), hold_statistics(model):
        y = model(batch(seed=1))
    with pytest.raises(KeyError), hold_statistics(model), hold_statistics(model):
        run_and_fail(model, batch(seed=2))
    assert not torch.allclose(y, inference)
    assert_identical(buffers(model), before)
    assert torch.equal(model(batch(seed=1)), y)
    assert model[1].num_batches_tracked == model[4].num_batches_tracked == 2


def test_running_statistics_are_used_while_the_rest_trains() -> None:
    model = network()
    model(batch())
    before, expected = buffers(model), model.eval()(batch(seed=1))
    dropout = nn.Sequential(model, nn.Dropout(0.5)).train()
    with use_running(dropout), use_running(dropout):
        assert torch.equal(model(batch(seed=1)), expected)
        y = dropout(batch(seed=1))
    assert 0 < (y == 0).sum() < y.numel()
    y.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert_identical(buffers(model), before)


def test_a_copy_made_within_a_block_is_free() -> None:
    model = network()
    with hold_statistics(model), use_running(model), accumulate(model):
        twin, other = copy.deepcopy(model), pickled(model)
    for free in (twin, other):
        free(batch())
        assert free[1].num_batches_tracked == 1


@every_option
@pytest.mark.filterwarnings("ignore:.* left the running statistics untouched:RuntimeWarning")
def test_a_transaction_takes_back_all_or_nothing(options: dict[str, Any]) -> None:
    model = network(**options)
    before = buffers(model)
    with pytest.raises(KeyError), transaction(model):
        run_and_fail(model, batch(), batch() * torch.inf)
    assert_identical(buffers(model), before)
    with transaction(model) as step:
        model(batch())
    assert model[1].num_batches_tracked == 1
    step.rollback()
    assert_identical(buffers(model), before)


@pytest.mark.parametrize("scale", [1.0, torch.inf])
def test_a_step_that_the_scaler_skips_is_taken_back(scale: float) -> None:
    model = network()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    before, weight = buffers(model), model[0].weight.detach().clone()
    with transaction(model) as step:
        scaler.scale(model(batch()).pow(2).mean() * scale).backward()
        scaler.step(optimizer)
        scale_before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() < scale_before:
            step.rollback()
    assert torch.equal(model[0].weight, weight) == (scale == torch.inf)
    assert torch.equal(model[1].running_mean, before["1.running_mean"]) == (scale == torch.inf)


@pytest.mark.parametrize("settling", [0, 2])  # calls more, of which one lets the statistics move
def test_a_transaction_takes_back_what_was_accumulated_in_it(settling: int) -> None:
    model, twin = BatchNorm(3), BatchNorm(3)
    with accumulate(model, steps=3):
        with pytest.raises(KeyError), transaction(model):
            run_and_fail(model, batch(), batch())
        model(batch())
        with transaction(model) as step:
            model(batch(seed=1))
            for _ in range(settling):
                model(batch(seed=1))
            assert model.num_batches_tracked == settling // 2
            step.rollback()
        model(batch(seed=2))
        assert model.num_batches_tracked == 0
        model(batch(seed=3))
        assert model.num_batches_tracked == 1
    twin(torch.cat([batch(seed=i) for i in (0, 2, 3)]))
    assert_alike(buffers(model), buffers(twin))


SPLITS = [[size] * (64 // size) for size in (32, 16, 8, 4, 2)] + [[1 + 30, 2, 3, 28], [64]]


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("options", [{}, {"renorm": RENORM}, {"momentum": None}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_micro_batches_move_the_statistics_as_one_big_batch(
    sizes: list[int], options: dict[str, Any], weighted: bool
) -> None:
    layer, twin, x = BatchNorm(3, **options), BatchNorm(3, **options), batch(64)
    weights = torch.arange(64) % 4 / 2.0 if weighted else torch.ones(64)
    for one in (layer, twin):
        one(batch(seed=9))
    with accumulate(layer):
        with hold_statistics(layer):
            layer(x)  # is not accumulated
        for part, w in zip(x.split(sizes), weights.split(sizes), strict=True):
            layer(part, weights=w if weighted else None)
        assert layer.num_batches_tracked == 1
    twin(x, weights=weights if weighted else None)
    assert_alike(buffers(layer), buffers(twin))
    assert layer.num_batches_tracked == 2


def test_accumulated_virtual_batches_are_the_mean_over_all_groups() -> None:
    layer = BatchNorm(3, virtual_batch_size=4, momentum=1.0)
    parts = [batch(8), batch(12, seed=1), batch(3, seed=2)]
    with accumulate(layer):
        for part in parts:
            layer(part)
    groups = [x[i :: max(1, len(x) // 4)] for x in parts for i in range(max(1, len(x) // 4))]
    mean = np.mean([g.numpy().astype(np.float64).mean(0) for g in groups], 0)
    var = np.mean([g.numpy().astype(np.float64).var(0, ddof=1) for g in groups], 0)
    assert_close(to_numpy(layer.running_mean), mean, "float32", 10.0)
    assert_close(to_numpy(layer.running_var), var, "float32", 30.0)


@pytest.mark.filterwarnings("ignore:.* left the running statistics untouched:RuntimeWarning")
def test_a_bad_micro_batch_is_left_out_of_the_merge() -> None:
    layer, twin, x = BatchNorm(3), BatchNorm(3), batch(64)
    with accumulate(layer):
        layer(x[:16])
        layer(x[16:32] * torch.inf)
        layer(x[32:])
    twin(torch.cat([x[:16], x[32:]]))
    assert (layer.skipped(), layer.num_batches_tracked) == (1, 1)
    assert_alike(dict(layer.named_parameters()) | layer.state_dict(), dict(twin.named_parameters()) | twin.state_dict())


def test_statistics_move_after_every_so_many_calls_and_for_the_rest() -> None:
    model, twin, x = network(), network(), batch(40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with accumulate(model, steps=2):
        for part in x.split(8):
            model(part).sum().backward()
            optimizer.step()
    for part in x.split(16):
        twin[1](twin[0](part))
    assert model[1].num_batches_tracked == 3
    assert_alike(buffers(model[1]), buffers(twin[1]))


def test_a_layer_called_twice_merges_both_calls() -> None:
    layer, twin, x = BatchNorm(3), BatchNorm(3), batch(64)
    model = nn.Sequential(layer, nn.Identity())
    model.forward = lambda x: layer(x[::2]) + layer(x[1::2])
    with accumulate(model, steps=2):
        model(x[:32])
        assert layer.num_batches_tracked == 0
        model(x[32:])
    twin(x)
    assert_alike(buffers(layer), buffers(twin))


def test_an_error_drops_what_was_accumulated_and_frees_the_layers() -> None:
    layer = BatchNorm(3)
    before = buffers(layer)
    with pytest.raises(KeyError), accumulate(layer):
        run_and_fail(layer, batch())
    assert_identical(buffers(layer), before)
    layer(batch())
    assert layer.num_batches_tracked == 1


def test_accumulating_twice_is_refused_by_name() -> None:
    model = network()
    with accumulate(model[4]):
        with pytest.raises(ArgumentError, match=r"^4 accumulates already"), accumulate(model):
            pass
        model(batch())
        assert (model[1].num_batches_tracked, model[4].num_batches_tracked) == (1, 0)


@pytest.mark.parametrize("steps", [0, -1, 1.0, "2", True])
def test_steps_that_count_nothing_are_refused(steps: Any) -> None:
    with pytest.raises(ArgumentError, match=f"`steps` must be None or an int ≥ 1, got {steps!r}"):
        accumulate(network(), steps=steps).__enter__()
