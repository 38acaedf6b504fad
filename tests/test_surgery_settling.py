"""Layers settle one after the other: exact for any split of the data, whatever the order of their calls."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchnorm.errors import BatchNormError
from batchnorm.surgery import recalibrate
from batchnorm.surgery.places import Place
from batchnorm.surgery.population import Population
from chains import by_class, chain, off
from tolerance import FAR, SINGLE, TO_THE_EYE, assert_close


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("sizes", [64, 16, 7, 1])
def test_two_layers_are_exact_for_any_split(sizes: int) -> None:
    x, start = by_class(), chain(2)
    whole, split = copy.deepcopy(start), copy.deepcopy(start)
    recalibrate(whole, x)  # in one batch all of the data are there at once
    assert recalibrate(split, list(x.split(sizes))).notes == []
    for a, b in zip(whole.buffers(), split.buffers(), strict=True):
        if a.is_floating_point():
            assert_close(b.numpy(), a.numpy(), "float32", a.abs().numpy() + 1)


@pytest.mark.parametrize("depth", [4, 12])
def test_deeper_ones_with_a_pass_for_each(depth: int) -> None:
    x, start = by_class(), chain(depth)
    truth = copy.deepcopy(start)
    recalibrate(truth, x)
    models = {kind: copy.deepcopy(start) for kind in ("iterator", "two passes", "sequential")}
    data = list(x.split(16))
    notes = recalibrate(models["iterator"], iter(data)).notes
    assert f"not settled: {depth - 1} layers behind others, as the data gave one pass" in notes[0]
    notes = recalibrate(models["two passes"], data).notes
    assert f"not settled: {depth - 2} layers behind others, which the last pass moved" in notes[0]
    assert recalibrate(models["sequential"], data, sequential=True).notes == []
    found = [off(model, truth) for model in models.values()]
    assert found[2] < FAR * found[1] < FAR * found[0]


class Branches(nn.Module):
    """Layers side by side, of which the last feeds another; and a layer that only the larger batches come to."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.BatchNorm1d(8) for _ in range(3)])
        self.only, self.last, self.end = nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu([first(x) for first in self.first][-1])
        y = torch.relu(self.only(y)) if len(y) == 24 else y
        return self.end(torch.relu(self.last(y)))


@pytest.mark.parametrize("order", [(16, 24, 8, 24), (24, 16, 24, 8)])
def test_branches_settle_whatever_the_order_of_their_calls(order: tuple[int, ...]) -> None:
    data = [torch.randn(size, 8) * (i + 1) + 3 * i for i, size in enumerate(order)]
    model = Branches()
    assert recalibrate(model, data, sequential=True).notes == []
    seen: dict[str, list[Tensor]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        for batch in data:
            model.eval()(batch)
    for name, inputs in seen.items():
        layer, values = model.get_submodule(name), torch.cat(inputs).double()
        assert_close(layer.running_mean.numpy(), values.mean(0).numpy(), "float32", 1 + values.abs().amax(0).numpy())
        assert_close(layer.running_var.numpy(), values.var(0).numpy(), "float32", 1 + values.square().amax(0).numpy())


def test_branches_that_stand_still_before_they_are_settled() -> None:
    model = Branches()
    model.only = model.end = nn.Identity()  # type: ignore[assignment]
    whole = copy.deepcopy(model)
    data = [torch.randn(16, 8) * (i + 1) + 3 * i for i in range(6)]
    recalibrate(model, data, sequential=True)
    recalibrate(whole, torch.cat(data))
    assert off(model, whole) < SINGLE["rel"] * 20


def test_what_is_still_to_come_is_as_the_pass_before_has_seen_it() -> None:
    place = Place(nn.BatchNorm1d(1), ("norm",))
    before, now = Population(place), Population(place)
    before.take(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), None)
    now.take(torch.tensor([[0.0], [2.0]]), None)
    mean, var = now.statistics(before)  # two of mean 1, and two of four of mean 6
    assert mean.item() == 3.5
    assert var.item() == pytest.approx((2 + 52 + 2.5**2 * 4) / 3)
    now.take(torch.tensor([[10.0], [12.0]]), None)
    assert [part.item() for part in now.statistics(before)] == [part.item() for part in now.statistics()]


class Halves:
    """Gives less with each pass over it, and at last nothing."""

    def __init__(self, *counts: int) -> None:
        self.counts = list(counts)

    def __iter__(self) -> Any:
        return iter([torch.randn(8, 8) for _ in range(self.counts.pop(0))])


def test_a_layer_that_may_be_behind_itself_is_not_called_settled() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.end = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.norm(torch.relu(self.norm(x))))

    report = recalibrate(Shared(), list(by_class().split(16)), max_samples=np.int64(320))  # type: ignore[arg-type]
    assert "not settled: 1 layer behind others" in report.notes[0]
    assert '"samples": 320' in report.to_json()


def test_data_that_change_from_pass_to_pass() -> None:
    notes = recalibrate(chain(2), Halves(3, 1)).notes
    assert "the passes saw different data, of 24, 8 samples: the last one counts" in notes[0]
    report = recalibrate(chain(2), Halves(3, 0))
    assert report.numbers["samples"] == 24
    assert "not settled: 1 layer behind others, as the data gave one pass" in report.notes[0]
    with pytest.raises(BatchNormError, match="and they were used up after one"):
        recalibrate(chain(2), Halves(3, 0), sequential=True)


def test_loaders_of_every_kind() -> None:
    class Series(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(torch.randn(24, 8))

    chained = torch.utils.data.ChainDataset([Series()])  # of no length
    assert recalibrate(chain(2), torch.utils.data.DataLoader(chained, batch_size=8)).numbers["samples"] == 24
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(64, 8)
    drawn = torch.utils.data.RandomSampler(rows, generator=generator)  # type: ignore[arg-type]
    batches = torch.utils.data.BatchSampler(drawn, 8, drop_last=False)
    loader = torch.utils.data.DataLoader(rows, batch_sampler=batches)  # type: ignore[arg-type]
    before = generator.get_state()
    assert recalibrate(chain(3), loader, sequential=True, max_samples=16).notes == []
    assert torch.equal(generator.get_state(), before)


def test_a_single_batch_is_all_there_is() -> None:
    assert recalibrate(chain(4), [by_class()]).notes == []


def test_all_passes_see_the_same_and_the_loader_is_as_before() -> None:
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(64, 8)
    loader = torch.utils.data.DataLoader(rows, batch_size=5, shuffle=True, generator=generator)  # type: ignore[arg-type]
    before = generator.get_state()
    model, again = chain(3), chain(3)
    again.load_state_dict(model.state_dict())
    report = recalibrate(model, loader, sequential=True, max_samples=20)
    assert report.notes == []  # settled, though each pass is a drawing of 20 of 64
    assert torch.equal(generator.get_state(), before)
    first = torch.cat(list(loader))[:20]
    recalibrate(again, first, sequential=True)
    assert off(again, model) < SINGLE["rel"] * 20


def test_layers_that_are_not_settled_remember_the_pass_before() -> None:
    model, used = chain(3), list[bool]()

    def look(layer: Any, args: tuple[Tensor]) -> None:
        used.append(torch.allclose(layer.running_mean, args[0].mean(0), **TO_THE_EYE))

    data = [torch.randn(16, 8), torch.randn(16, 8) + 3]
    model[7].register_forward_hook(lambda layer, args, _: look(layer, args))
    recalibrate(model, data)
    assert used == [True, False, False, False]  # by its own mean alone in the very first batch


def test_a_layer_called_within_itself_may_not_settle_and_says_so() -> None:
    class Within(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x) * 5)

    report = recalibrate(Within(), torch.randn(64, 2) + 3, sequential=True)
    assert ("is a layer called more than once?" in report.notes[0], report.numbers) == (
        True,
        {"samples": 64, "batches": 1},
    )
