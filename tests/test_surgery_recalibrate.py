"""Statistics of the data: the cases that today's tools get wrong, and a model that is as before whenever it fails."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.surgery import recalibrate
from batchnorm.torch import BatchNorm, BatchNorm1d, Renorm, frozen
from processes import IMAGES, LAYERS, PROCESSES, SECONDS, finish, in_recalibration, run, start
from processes import deep as deep_network
from tolerance import assert_close

KINDS: dict[str, Callable[[int], Any]] = {"torch": nn.BatchNorm1d, "batchnorm": BatchNorm1d}


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[int], Any]:
    return KINDS[request.param]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def assert_statistics(layer: Any, x: Tensor) -> None:
    values = x.double().movedim(1, -1).flatten(0, -2).numpy()
    mean, var = values.mean(0), values.var(0, ddof=1)
    assert_close(layer.running_mean.numpy(), mean, "float32", np.abs(mean) + np.sqrt(var))
    assert_close(layer.running_var.numpy(), var, "float32", var)


def sorted_by_class(size: int = 50) -> list[Tensor]:
    """Seven batches, each of one class: variance 1 within, and the means apart."""
    means = torch.linspace(-4.5, 4.5, 7)
    return [torch.randn(size, 1, generator=torch.Generator().manual_seed(i)) + mean for i, mean in enumerate(means)]


class TestWhatTodaysToolGetsWrong:
    """Each case runs torch.optim.swa_utils.update_bn, too, and shows that it fails; but at a large mean."""

    def test_class_sorted(self, kind: Callable[[int], Any]) -> None:
        data, ours, theirs = sorted_by_class(), nn.Sequential(kind(1)), nn.Sequential(nn.BatchNorm1d(1))
        recalibrate(ours, data)
        update_bn(data, theirs)
        assert_statistics(ours[0], torch.cat(data))
        assert ours[0].running_var.item() > 9
        assert theirs[0].running_var.item() < 1.2  # of the variance between classes, nothing

    def test_batches_of_any_size(self, kind: Callable[[int], Any]) -> None:
        data = [torch.randn(128, 3), torch.randn(2, 3) + 40]
        ours, theirs = nn.Sequential(kind(3)), nn.Sequential(nn.BatchNorm1d(3))
        recalibrate(ours, data)
        update_bn(data, theirs)
        assert_statistics(ours[0], torch.cat(data))
        assert (theirs[0].running_mean > 15).all()  # a batch of 2 counts as much as one of 128: true mean, about 0.6
        assert (ours[0].running_mean < 2).all()

    def test_a_last_batch_of_one(self, kind: Callable[[int], Any]) -> None:
        data = [torch.randn(16, 3), torch.randn(1, 3)]
        ours = nn.Sequential(kind(3))
        recalibrate(ours, data)
        assert_statistics(ours[0], torch.cat(data))
        with pytest.raises(ValueError, match="more than 1 value"):
            update_bn(data, nn.Sequential(nn.BatchNorm1d(3)))

    def test_used_up_data(self, kind: Callable[[int], Any]) -> None:
        ours, theirs = (nn.Sequential(make(2)) for make in (kind, nn.BatchNorm1d))
        for model in (ours, theirs):
            model[0].running_mean += 5
        used_up, before = iter([torch.randn(4, 2)]), state(ours)
        assert len(list(used_up)) == 1
        with pytest.raises(BatchNormError, match="the data gave no batch"):
            recalibrate(ours, used_up)
        assert_unchanged(ours, before)
        update_bn(used_up, theirs)
        assert theirs[0].running_mean.tolist() == [0, 0]  # what it had learned is gone
        assert theirs[0].running_var.tolist() == [1, 1]

    def test_frozen_layers(self) -> None:
        ours, theirs = (nn.Sequential(make(2), make(2)) for make in (BatchNorm1d, nn.BatchNorm1d))
        for model in (ours, theirs):
            model[0].running_mean += 5
        frozen(ours[0]).apply()
        report = recalibrate(ours, [torch.randn(64, 2)])
        assert (report.names, [left.where for left in report.left]) == (["1"], ["0"])
        assert ours[0].running_mean.tolist() == [5, 5]
        theirs[0].eval()  # frozen as torch's users do it
        update_bn([torch.randn(64, 2)], theirs)
        assert theirs[0].running_mean.abs().max() < 1

    def test_torchs_layers_frozen_by_eval(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).train()
        model[0].eval()
        report = recalibrate(model, [torch.randn(64, 2) + 3])
        assert model[0].running_mean.tolist() == [0, 0]
        assert "frozen" in report.left[0].why
        assert [layer.training for layer in model] == [False, True]

    def test_dropout(self, kind: Callable[[int], Any]) -> None:
        data = [torch.ones(64, 4)]
        ours, theirs = (nn.Sequential(nn.Dropout(0.5), make(4)) for make in (kind, nn.BatchNorm1d))
        recalibrate(ours, data)
        update_bn(data, theirs)
        assert ours[1].running_var.tolist() == [0] * 4
        assert (theirs[1].running_var > 0.5).all()
        assert ours[0].training

    def test_a_large_mean(self, kind: Callable[[int], Any]) -> None:
        data = [torch.randn(500, 2) + 1e4 for _ in range(4)]
        ours = nn.Sequential(kind(2))
        recalibrate(ours, data)
        assert_statistics(ours[0], torch.cat(data))
        x = torch.cat(data)
        assert ((x**2).mean(0) - x.mean(0) ** 2 - ours[0].running_var).abs().max() > 1  # E[x²] − E[x]² in float32

    def test_dicts(self, kind: Callable[[int], Any]) -> None:
        class Net(nn.Module):
            def __init__(self, make: Callable[[int], Any]) -> None:
                super().__init__()
                self.norm = make(2)

            def forward(self, values: Tensor, scale: float) -> Tensor:
                return self.norm(values * scale)

        x = torch.randn(8, 2)
        ours = Net(kind)
        recalibrate(ours, [{"values": x, "scale": 2.0}])
        assert_statistics(ours.norm, 2 * x)
        with pytest.raises((TypeError, AttributeError)):
            update_bn([{"values": x, "scale": 2.0}], Net(nn.BatchNorm1d))  # type: ignore[list-item]

    def test_an_exception_half_way(self, kind: Callable[[int], Any]) -> None:
        def broken() -> Iterator[Tensor]:
            yield torch.randn(8, 2) + 7
            raise OSError("the disk is gone")

        ours, theirs = (nn.Sequential(make(2)) for make in (kind, nn.BatchNorm1d))
        before = state(ours)
        with pytest.raises(OSError, match="disk"):
            recalibrate(ours, broken())
        assert_unchanged(ours, before)
        with pytest.raises(OSError, match="disk"):
            update_bn(broken(), theirs)
        assert (theirs[0].running_mean > 5).all()


def deep(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), BatchNorm(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(48, 5), BatchNorm1d(5),
    )  # fmt: skip


@pytest.mark.parametrize("sizes", [(64,), (32, 32), (63, 1), (5,) * 12 + (4,), (1,) * 64], ids=str)
def test_any_split_gives_the_same(sizes: tuple[int, ...]) -> None:
    x = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 10
    whole, split = deep(), deep()
    recalibrate(whole, x, sequential=True)
    recalibrate(split, list(x.split(sizes)), sequential=True)
    for a, b in zip(whole.buffers(), split.buffers(), strict=True):
        if a.is_floating_point():
            assert_close(b.numpy(), a.numpy(), "float32", np.abs(a.numpy()) + 1)
    one_pass = deep()
    recalibrate(one_pass, list(x.split(sizes)))  # the first layer, in one pass, too
    assert_close(
        one_pass[1].running_mean.numpy(), whole[1].running_mean.numpy(), "float32", 1 + whole[1].running_mean.abs()
    )


def test_sequential_is_what_inference_sees() -> None:
    x = torch.randn(40, 2, 8, 8) * 2 - 5
    model = deep()
    recalibrate(model, list(x.split(7)), sequential=True)
    seen: dict[str, Tensor] = {}
    for name, layer in model.named_children():
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    with torch.no_grad():
        model.eval()(x)
    for name in ("1", "4", "8"):
        values = seen[name].movedim(1, -1).flatten(0, -2).double().numpy()
        layer = model.get_submodule(name)
        assert_close(layer.running_mean.numpy(), values.mean(0), "float32", 8 * np.abs(values).max(0))
        assert_close(layer.running_var.numpy(), values.var(0, ddof=1), "float32", 8 * (values**2).mean(0))


@pytest.mark.parametrize(  # three batches a pass: in the second and third pass, too
    ("step", "sequential"), [*((step, False) for step in range(3)), *((step, True) for step in (0, 2, 3, 4, 7))]
)
def test_a_failure_at_any_step_leaves_no_trace(step: int, sequential: bool) -> None:
    class Fails(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Fails.calls += 1
            if Fails.calls > step:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(nn.Linear(3, 4), BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2), nn.BatchNorm1d(2), Fails())
    model[0].weight.grad = torch.ones(4, 3)
    model[2].eval()
    data = torch.utils.data.DataLoader(torch.randn(12, 3), batch_size=5, shuffle=True)  # type: ignore[arg-type]
    before, modes, random = state(model), [m.training for m in model], torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, data, sequential=sequential)
    assert_unchanged(model, before)
    assert [m.training for m in model] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model[0].weight.grad, torch.ones(4, 3))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_success_changes_statistics_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), BatchNorm1d(4), nn.Dropout()).train()
    model[0].weight.grad = torch.ones(4, 3)
    data = [torch.randn(8, 3), torch.randn(4, 3)]
    before, random = state(model), torch.get_rng_state()
    report = recalibrate(model, data)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert model[1].num_batches_tracked == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training for m in model.modules())
    assert (report.names, report.numbers) == (["1"], {"samples": 12, "batches": 2})
    assert report.model is model


def test_every_kind_of_layer_and_input() -> None:
    tokens, mask = torch.randn(6, 5, 3), torch.rand(6, 5) > 0.3

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = BatchNorm(3, axis=-1, renorm=Renorm())

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.norm(x, weights=mask)

    model = Masked()
    recalibrate(model, [(tokens, mask)], call=lambda m, batch: m(*batch))
    real = tokens[mask].double().numpy()
    assert_close(model.norm.running_mean.numpy(), real.mean(0), "float32", 1)
    assert_close(model.norm.running_var.numpy(), real.var(0), "float32", 1)  # biased, as renormalization has it
    assert_close(model.norm.renorm_stddev.numpy(), np.sqrt(real.var(0) + model.norm.eps), "float32", 1)
    assert_close(model.norm.renorm_mean.numpy(), real.mean(0), "float32", 1)


def test_options() -> None:
    x = torch.randn(10, 2)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    recalibrate(model, [(x[:4], "labels"), (x[4:], "labels")], max_samples=7, layers="0")
    assert_statistics(model[0], x[:7])
    assert model[1].running_mean.tolist() == [0, 0]
    model.double()
    recalibrate(model, [x], call=lambda m, batch: m(batch.double()), layers=model[1])
    assert model[1].running_mean.abs().sum() > 0
    recalibrate(model.float(), [x], autocast=torch.bfloat16, layers=lambda name, _: name == "0")


def test_bad_batches_are_left_out_and_told() -> None:
    x = torch.randn(12, 2)
    bad = x.clone()
    bad[3] = torch.inf
    model = nn.Sequential(nn.BatchNorm1d(2))
    report = recalibrate(model, [x, bad])
    assert_statistics(model[0], x)
    assert "left out for inf or NaN: 1 of the batches" in str(report)
    assert report.numbers == {"samples": 12, "batches": 1}
    with pytest.raises(BatchNormError, match="no batch with finite values"):
        recalibrate(model, [bad])
    assert_statistics(model[0], x)


def test_refusals() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    for bad, says in (({"max_samples": 0}, "got 0"), ({"layers": "norm*"}, r"'norm\*'.*there are: 0")):
        with pytest.raises(ArgumentError, match=says):
            recalibrate(model, [torch.randn(4, 2)], **bad)
    with pytest.raises(ArgumentError, match="used up after one"):
        recalibrate(model, iter([torch.randn(4, 2)]), sequential=True)
    with pytest.raises(ArgumentError, match="got int"):
        recalibrate(model, 7)
    with pytest.raises(BatchNormError, match="nothing to change in Linear"):
        recalibrate(nn.Linear(2, 2), [torch.randn(4, 2)])
    assert recalibrate(nn.Linear(2, 2), [torch.randn(4, 2)], allow_empty=True).changes == []
    untracked = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(BatchNormError, match="0: it keeps no running statistics"):
        recalibrate(untracked, [torch.randn(4, 2)])


def test_drift_is_measured() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1, eps=1e-12))
    change = recalibrate(model, torch.tensor([[1.0], [5.0]])).changes[0]  # mean 3, unbiased variance 8
    assert change.numbers["values"] == 2
    assert change.numbers["mean_off_sigma"] == pytest.approx(3 / np.sqrt(8))
    assert change.numbers["variance_factor"] == pytest.approx(8)
    assert change.numbers["kl"] == pytest.approx((8 + 9 - 1 - np.log(8)) / 2)


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    finish(start(run, [in_recalibration], tmp_path), SECONDS)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False)["in_recalibration"] for rank in range(PROCESSES)]
    for layer in LAYERS:
        alone = deep_network(layer)
        recalibrate(alone, torch.randn(IMAGES) + 4, sequential=True)
        for rank in ranks:
            for name in (f"{norm}.running_{kind}" for norm in ("0.1", "1", "4") for kind in ("mean", "var")):
                expected = alone.state_dict()[name].numpy()
                assert_close(rank[layer]["found"][name].numpy(), expected, "float32", np.abs(expected) + 1)
        first, second = (rank[layer]["failures"] for rank in ranks)
        assert "process 1 has failed" in first[0]
        assert second[0]
        assert "process" not in second[0]
        assert first[1] == second[1] == ""  # one share of the data is enough
        for name, value in ranks[0][layer]["after"].items():
            assert torch.equal(value, ranks[1][layer]["after"][name])
