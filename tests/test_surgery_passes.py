"""Passes of data through a model: what counts, what is refused, in which order layers settle."""

import copy
import sys
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.surgery import adapt, recalibrate
from batchnorm.torch import BatchNorm, BatchNorm1d
from chains import chain
from tolerance import FEW_ROUNDINGS, SINGLE


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def test_nothing_real_is_no_data() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = BatchNorm1d(2)

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return self.norm(x, weights=weights)

    model = Masked()
    model.norm.running_mean += 3
    with pytest.raises(BatchNormError, match="norm: no batch with finite values came to it"):
        recalibrate(model, [(torch.randn(4, 2), torch.zeros(4))], call=lambda m, batch: m(*batch))
    with pytest.raises(BatchNormError, match="norm: 1 values per feature came to it, and 2 are needed"):
        recalibrate(model, [{"x": torch.randn(1, 2), "weights": torch.ones(1)}])
    assert (model.norm.running_mean.tolist(), model.norm.running_var.tolist()) == ([3, 3], [1, 1])
    x = torch.full((16, 2), 8.0)
    few = (torch.arange(16) < 4).float()
    with adapt(model, [{"x": x, "weights": few}], "mix", prior=4) as adapted:
        assert adapted.norm.running_mean.tolist() == pytest.approx([5.5] * 2, **SINGLE)  # (4·3 + 4·8)/(4 + 4)


def test_batches_that_are_left_out_do_not_count() -> None:
    model, good = nn.Sequential(BatchNorm1d(2)), torch.full((16, 2), 8.0)
    adapted = adapt(model, [good, torch.full((16, 2), torch.nan)], "mix", prior=16)
    assert model[0].running_mean.tolist() == [4, 4]
    assert adapted.numbers == {"samples": 16, "batches": 1}
    assert adapted.notes == ["left out for inf or NaN: 1 of the batches"]


def test_squares_beyond_float32_are_finite_all_the_same() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2).double()), nn.Sequential(nn.BatchNorm1d(2))
    x = torch.randn(64, 2) * 1e20
    assert not recalibrate(model[0], [x], device="cpu", call=lambda m, batch: m(batch.double())).notes
    assert model[0][0].running_var.tolist() == pytest.approx(x.double().var(0).tolist(), **FEW_ROUNDINGS)
    with pytest.raises(BatchNormError, match=r"statistics in float32 cannot hold 1.*e"):
        recalibrate(model[1], [x])


def test_a_dtype_that_cannot_hold_the_statistics_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2)).half()
    with pytest.raises(BatchNormError, match=r"statistics in float16 cannot hold .*convert\(model, \"batchnorm\"\)"):
        recalibrate(model, (torch.randn(64, 2) * 4000).half())
    assert model[0].running_var.tolist() == [1, 1]


def test_mappings_of_any_class_are_keyword_arguments() -> None:
    model, x = nn.Sequential(BatchNorm1d(2)), torch.randn(8, 2)
    recalibrate(model, [UserDict(input=x[:3]), UserDict(input=x[3:])])
    assert model[0].running_mean.tolist() == pytest.approx(x.mean(0).tolist(), **SINGLE)


@pytest.mark.parametrize("data", [(torch.ones(4, 2), torch.ones(4)), {"x": torch.ones(4, 2)}, np.ones((4, 2)), "data"])
def test_what_is_no_series_of_batches(data: Any) -> None:
    with pytest.raises(ArgumentError, match=f"got {type(data).__name__}: of what is one batch make a list"):
        recalibrate(nn.Sequential(BatchNorm1d(2)), data)


def test_a_tensor_that_was_split_is_a_series() -> None:
    model, x = nn.Sequential(BatchNorm1d(2)), torch.randn(8, 2)
    assert recalibrate(model, x.split(3)).numbers == {"samples": 8, "batches": 3}


def test_bad_options_and_bad_inputs() -> None:
    model = nn.Sequential(BatchNorm1d(2))
    with pytest.raises(ArgumentError, match=r"`autocast` must be .* got 'bf16'"):
        recalibrate(model, torch.ones(4, 2), autocast="bf16")
    with pytest.raises(TypeError) as raised:
        recalibrate(model, [{"x": torch.ones(4, 2)}])
    assert "`call`, a function of model and batch" in raised.value.__notes__[0]
    with pytest.raises(BatchNormError, match="0 was given list, no tensor: `call`"):
        recalibrate(model, [[[1.0, 2.0]]])
    for wrong, says in ((nn.BatchNorm1d, "the class BatchNorm1d"), (None, "NoneType")):
        with pytest.raises(ArgumentError, match=f"`model` must be a torch.nn.Module, got {says}"):
            recalibrate(wrong, torch.ones(4, 2))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="TorchScript"):
        recalibrate(torch.jit.ScriptModule(), torch.ones(4, 2))
    with pytest.raises(BatchNormError, match=r"0\.weight does not know its shape yet: run the model once"):
        recalibrate(nn.Sequential(nn.LazyLinear(2), nn.BatchNorm1d(2)), torch.ones(4, 2))
    with pytest.raises(BatchNormError, match=r"0\.weight is on the meta device"):
        recalibrate(nn.Sequential(nn.BatchNorm1d(2)).to("meta"), torch.ones(4, 2))


def test_layers_that_are_not_called_keep_theirs() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.other = BatchNorm1d(2), BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.main(x)

    for tool in (recalibrate, adapt):
        report = tool(Heads(), torch.randn(8, 2))
        assert report.names == ["main"]
        assert [left.where for left in report.left] == ["other"]
        assert "nothing called it" in report.left[0].why


def test_an_averaged_model_in_inference_is_not_frozen() -> None:
    average = AveragedModel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval())
    assert recalibrate(average, torch.randn(8, 2)).names == ["module.1"]


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_models_run_as_python_does(whole: bool) -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    plain = nn.Sequential(copy.deepcopy(inner), nn.BatchNorm1d(2))
    model = nn.Sequential(inner if whole else torch.compile(inner, backend="eager"), nn.BatchNorm1d(2))  # type: ignore[list-item]
    if whole:
        model.compile(backend="eager")
    x = torch.randn(16, 2) + 4
    with torch.no_grad():
        model.eval()(x)  # it has run already, without anybody who listens
    recalibrate(model, x)
    recalibrate(plain, x)
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tool", [recalibrate, adapt])
def test_an_interruption_while_writing_leaves_no_half(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    written = []

    def drift(*_: Any) -> dict[str, float]:
        written.append(1)
        if len(written) == 2:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(sys.modules["batchnorm.surgery.recalibrate"], "drift", drift)
    with pytest.raises(KeyboardInterrupt):
        tool(model, torch.randn(16, 8) + 5)
    assert len(written) == 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_variance_factor_tells_which_way() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, eps=1e-12))
    change = recalibrate(model, torch.tensor([[0.0, 0.0], [1.0, 0.5]])).changes[0]
    assert change.numbers["variance_factor"] == pytest.approx(0.125)  # of the second feature; of the first 0.5


def test_the_estimator_is_that_of_the_layer() -> None:
    for estimator, variance in (("biased", 4), ("unbiased", 8)):
        model = nn.Sequential(BatchNorm1d(1, running_variance=estimator))
        recalibrate(model, torch.tensor([[1.0], [5.0]]))
        assert model[0].running_var.item() == variance


def test_gradients_are_off_and_16_bits_on_where_asked() -> None:
    seen: list[tuple[bool, torch.dtype]] = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.is_grad_enabled(), x.dtype))
            return x

    model = nn.Sequential(nn.Linear(2, 2), Looks(), nn.BatchNorm1d(2))
    recalibrate(model, torch.randn(8, 2))
    recalibrate(model, torch.randn(8, 2), autocast=torch.bfloat16)
    assert seen == [(False, torch.float32), (False, torch.bfloat16)]


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    recalibrate(chain(2), [torch.randn(8, 8), torch.randn(8, 8)], max_samples=12)
    shown = capsys.readouterr().err
    assert "pass 2 of 2" in shown
    assert "12/12" in shown
    recalibrate(chain(2), [torch.randn(8, 8)], progress=False)
    assert capsys.readouterr().err == ""


def test_pooling_is_in_float64() -> None:
    """Batches whose means differ by less than a rounding of float32 at this distance."""
    x = (torch.arange(4096.0) % 2 + 2.0**22).reshape(-1, 1)
    model = nn.Sequential(BatchNorm(1).double())
    recalibrate(model, list(x.split(2)), call=lambda m, batch: m(batch.double()))
    assert model[0].running_mean.item() == 2.0**22 + 0.5
    assert model[0].running_var.item() == pytest.approx(0.25 * 4096 / 4095, **FEW_ROUNDINGS)


class Graphs:
    """A batch as PyG makes them: of no class that torch knows."""

    def __init__(self, graphs: int, nodes: int) -> None:
        self.x, self.num_graphs = torch.randn(nodes, 3), graphs

    def to(self, device: Any) -> "Graphs":
        return self


class Cloud:
    """A batch that only its tensors know the size of."""

    def __init__(self, points: int) -> None:
        self.points, self.labels = torch.randn(points, 3), torch.zeros(points)


@pytest.mark.parametrize(
    "make",
    [lambda n: Graphs(n, 5 * n), Cloud, lambda n: (Graphs(n, 5 * n), torch.zeros(5 * n)), lambda n: [Graphs(n, 9)]],
)
def test_samples_of_batches_that_are_objects(make: Any) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()

    def call(model: nn.Module, batch: Any) -> Any:
        batch = batch[0] if isinstance(batch, tuple | list) else batch
        return model(batch.x if isinstance(batch, Graphs) else batch.points)

    assert recalibrate(model, [make(4), make(7)], call=call).numbers == {"samples": 11, "batches": 2}
    assert recalibrate(model, [make(4), make(7)], call=call, max_samples=3).numbers["batches"] == 1


def test_samples_are_what_most_tensors_have() -> None:
    data = [{"scale": torch.ones(1), "x": torch.randn(8, 2), "y": torch.randn(8)} for _ in range(5)]
    model = nn.Sequential(BatchNorm1d(2))
    report = recalibrate(model, data, call=lambda m, batch: m(batch["x"] * batch["scale"]), max_samples=10)
    assert report.numbers["samples"] == report.changes[0].numbers["values"] == 10


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(3, 8, 8)),
        (nn.Sequential(nn.Identity(), BatchNorm1d(4)), torch.randn(4)),
    ],
)
def test_an_input_that_does_not_fit_names_the_layer_and_the_way_out(model: nn.Module, batch: torch.Tensor) -> None:
    with pytest.raises(BatchNormError, match=r"1 was given an input of shape .* `call`, a function"):
        recalibrate(model, [batch])
