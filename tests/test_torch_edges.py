"""Corners: weights that sum to one sample, blocks in blocks, steps that do not count, options chosen too late."""

import pytest
import torch
from torch import Tensor

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.torch import BatchNorm, BatchNorm1d, Renorm, accumulate, frozen, transaction
from namespaces import to_numpy
from tolerance import assert_close

RENORM = {"renorm": Renorm(rmax=1.5, dmax=0.5, momentum=0.2), "momentum": 0.5}


def batch(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_running_statistics_stand_in_for_is_not_remembered() -> None:
    layer, x = BatchNorm(3, small_batch="running").double(), batch()
    one = torch.tensor([1.0] + [0.0] * 7)
    assert torch.equal(layer(x, weights=one), layer.eval()(x))
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_mean, torch.zeros(3, dtype=torch.float64))
    layer.train()(x, weights=3.0 * one)
    assert layer.num_batches_tracked == 1


def test_groups_that_running_statistics_stand_in_for_are_not_averaged_in() -> None:
    layer, x = BatchNorm(3, small_batch="running", virtual_batch_size=4, momentum=1.0).double(), batch()
    layer(x, weights=torch.tensor([1.0, 1.0] + [1.0, 0.0] * 3))  # the odd group has one sample
    assert_close(to_numpy(layer.running_mean), to_numpy(x[::2].mean(0)), "float64")
    assert_close(to_numpy(layer.running_var), to_numpy(x[::2].var(0)), "float64", 4.0)


def test_renormalization_cannot_be_chosen_later() -> None:
    layer = BatchNorm(3)
    layer.renorm = Renorm()
    with pytest.raises(ArgumentError, match="`renorm` must be chosen when the layer is made"):
        layer(torch.randn(4, 3))


def test_conversion_is_refused_before_any_layer_is_converted() -> None:
    model = torch.nn.Sequential(BatchNorm1d(3), torch.nn.Sequential(BatchNorm(3, activation="relu")))
    with pytest.raises(ArgumentError, match=r"^1\.0 \(BatchNorm\): .* would lose activation='relu'"):
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model[0], BatchNorm1d)


def test_a_plain_checkpoint_put_in_place_is_not_shared_with_renormalization() -> None:
    layer, plain = BatchNorm(3, renorm=Renorm()), BatchNorm(3)
    layer.load_state_dict(plain.state_dict(), assign=True)
    layer(5.0 + torch.randn(8, 3))
    assert not torch.equal(layer.renorm_mean, layer.running_mean)


def test_the_count_of_skipped_batches_starts_at_zero_when_a_model_leaves_the_meta_device() -> None:
    layer = BatchNorm(3, device="meta")
    layer.to_empty(device="cpu").load_state_dict(BatchNorm(3).state_dict())
    assert layer.nonfinite_batches == 0
    other = BatchNorm(3, device="meta")
    other.load_state_dict(BatchNorm(3).state_dict(), assign=True)
    assert other.to("cpu").nonfinite_batches == 0


def test_a_frozen_layer_learns_nothing_whatever_is_done_to_its_flags() -> None:
    layer = BatchNorm(3)
    frozen(layer).apply()
    layer.requires_grad_(True)
    layer(torch.randn(4, 3, requires_grad=True)).pow(3).sum().backward()
    assert [p.grad for p in layer.parameters()] == [None, None]
    frozen(layer).undo()
    assert all(p.requires_grad for p in layer.parameters())


def test_a_block_that_freezes_can_stand_in_itself() -> None:
    layer = BatchNorm(3)
    block = frozen(layer)
    with block, block:
        assert layer.frozen
    assert not layer.frozen


def test_an_uncounted_micro_batch_is_still_one_of_the_steps() -> None:
    layer = BatchNorm(3, small_batch="running", momentum=1.0)
    with accumulate(layer, steps=2):
        for step in range(3):
            layer(100.0 * step + torch.randn(8, 3))
            layer(100.0 * step + torch.randn(1, 3))
            assert layer.num_batches_tracked == step + 1
            assert (layer.running_mean - 100.0 * step).abs().max() < 50.0


def test_a_model_that_is_never_called_is_pointed_out() -> None:
    model = torch.nn.Sequential(BatchNorm(3))
    with pytest.warns(RuntimeWarning, match="never called"), accumulate(model, steps=2):
        model[0](torch.randn(8, 3))
    with pytest.raises(BatchNormError, match="`rollback`"):
        transaction(model).rollback()


def test_renorm_checkpoints_load_into_plain_layers() -> None:
    renormed, plain = BatchNorm(3, **RENORM), BatchNorm(3)
    renormed(torch.randn(8, 3))
    plain.load_state_dict(renormed.state_dict())
    assert torch.equal(plain.running_var, renormed.running_var)


def test_synchronisation_of_one_process_is_the_plain_layer() -> None:
    layer, plain = BatchNorm(3, sync=True), BatchNorm(3)
    x = torch.randn(8, 3)
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.running_var, plain.running_var)


def test_synchronisation_of_several_processes_says_that_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 4)
    layer, x = BatchNorm(3, sync=True), torch.randn(8, 3)
    with pytest.raises(BatchNormError, match="`sync=True` over 4 processes is not built yet"):
        layer(x)
    assert layer.num_batches_tracked == 0
    layer.eval()(x)
    BatchNorm(3)(x)
