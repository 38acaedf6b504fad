"""Folding: every kind of layer, with the proof; what today's tool gets wrong; and refusals by name."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchnorm.errors import BatchNormError
from batchnorm.surgery import fold
from batchnorm.surgery.fold import Activated
from batchnorm.torch import BatchNorm, BatchNorm2d
from tolerance import EPS, PROJECT_BOUND

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
KINDS = {
    "Linear": (nn.Linear, 0), "Conv1d": (nn.Conv1d, 1), "Conv2d": (nn.Conv2d, 2), "Conv3d": (nn.Conv3d, 3),
    "ConvTranspose1d": (nn.ConvTranspose1d, 1), "ConvTranspose2d": (nn.ConvTranspose2d, 2),
    "ConvTranspose3d": (nn.ConvTranspose3d, 3),
}  # fmt: skip
BOUND = {torch.float32: PROJECT_BOUND, torch.float64: PROJECT_BOUND * EPS["float64"] / EPS["float32"]}


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def trained(model: nn.Module) -> nn.Module:
    """Give every layer statistics and parameters that are not those it starts with; in inference."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.normal_(1, 2)
            layer.running_var.uniform_(0.1, 4)
            for parameter in layer.parameters():
                nn.init.normal_(parameter, 1.0, 0.5)
    return model.eval()


def pair(kind: str, order: str, *, groups: int, bias: bool, affine: bool) -> tuple[nn.Module, Tensor]:
    make, dims = KINDS[kind]
    padding = {} if dims == 0 else {"kernel_size": 1 if order == "before" and "T" in kind else 3, "groups": groups}
    layer = make(4, 8, bias=bias, **padding)
    norm = NORMS[dims or 1](4 if order == "before" else 8, affine=affine)
    x = torch.randn(3, 4, *[5] * dims)
    return trained(nn.Sequential(*((norm, layer) if order == "before" else (layer, norm)))), x


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("order", ["after", "before"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, order: str, groups: int, bias: bool, affine: bool, dtype: torch.dtype) -> None:
    model, x = pair(kind, order, groups=groups, bias=bias, affine=affine)
    model, x = model.to(dtype), x.to(dtype)
    report = fold(model, x)
    assert [type(m) for m in report.model if not isinstance(m, nn.Identity)] == [KINDS[kind][0]]
    with torch.no_grad():
        off = (report.model(x) - model(x)).abs().max() / model(x).abs().max()
    assert off <= BOUND[dtype]
    assert report.numbers["difference"] == pytest.approx(float(off))
    assert not torch.equal(report.model(x + 1), report.model(x))


def test_a_row_of_layers_and_what_passes_through() -> None:
    model = trained(
        nn.Sequential(
            nn.BatchNorm2d(3), nn.Identity(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4),
            nn.BatchNorm2d(4), BatchNorm2d(4, activation="silu"), nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 2),
        )
    )  # fmt: skip
    x = torch.randn(2, 3, 5, 5)
    report = fold(model, x)
    kinds = [type(m) for m in report.model if not isinstance(m, nn.Identity | nn.Dropout | nn.Flatten)]
    assert kinds == [nn.Conv2d, Activated, nn.Linear]
    assert [(c.where, c.what) for c in report.changes] == [
        ("2", "merged into 0"), ("5", "folded into 3"), ("6", "folded into 3"), ("7", "folded into 3"),
        ("0", "folded into 3"), ("9", "folded into 10"),
    ]  # fmt: skip
    assert not report.left
    assert isinstance(model[5], nn.BatchNorm2d)  # the original is as it was


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3))
        self.na, self.nb = nn.BatchNorm2d(4), BatchNorm(4, activation="relu")
        self.nc = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = torch.relu(self.na(self.a(x)))
        y = self.nb(self.b(y), x)
        z = self.c(y)
        return {"out": [self.nc(z), z.mean()], "rank": y.dim()}


def test_residuals_fan_out_and_outputs_of_any_kind() -> None:
    report = fold(trained(Residual()), (torch.randn(2, 4, 6, 6),))
    assert report.names == ["na", "nb"]
    assert isinstance(report.model.nb, Activated)
    assert [(left.where, left.why) for left in report.left] == [
        ("nc", "what c makes is used elsewhere too; nothing follows it")
    ]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) @ self.linear.weight


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:  # (N, L = 5, C = 4): the layer's features are L
        return self.norm(self.linear(x))


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (Tied(), torch.randn(3, 4), "norm: the weight of linear is used elsewhere too"),
        (Sequences(), torch.randn(2, 5, 4), "norm: the features of linear lie along another axis"),
        (normed(), torch.randn(3, 4), "1: 0 is parametrized: .*remove_parametrizations"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)), torch.randn(1, 4, 5, 5), "1 pads with zeros"),
        (
            nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)),
            torch.randn(1, 4, 5, 5),
            "beside it is 1, a ReLU: no Linear",
        ),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3)), torch.randn(1, 4, 5, 5), "1 pads with zeros"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), torch.randn(3, 4), "no running"),
        (nn.Linear(2, 2), torch.randn(1, 2), "nothing to change in Linear"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_refusals(model: nn.Module, x: Tensor, says: str) -> None:
    before = {name: value.clone() for name, value in trained(model).state_dict().items()}
    with pytest.raises(BatchNormError, match=says):
        fold(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert fold(model, x, allow_empty=True).changes == []


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_pads_with_outputs(mode: str) -> None:
    model = trained(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1, padding_mode=mode)))
    assert fold(model, torch.randn(2, 4, 5, 5)).numbers["difference"] <= PROJECT_BOUND


def test_training_is_refused_and_frozen_layers_are_not() -> None:
    model = nn.Sequential(nn.Linear(4, 4), BatchNorm(4)).train()
    with pytest.raises(BatchNormError, match=r"1 is in training.*model\.eval\(\)"):
        fold(model, torch.randn(3, 4))
    model[1].freeze()
    assert fold(model, torch.randn(3, 4)).names == ["1"]


def test_a_wrong_fold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("batchnorm.surgery.fold")
    affine = module.affine
    monkeypatch.setattr(module, "affine", lambda layer: affine(layer)._replace(shift=affine(layer).shift * 1.01))
    with pytest.raises(BatchNormError, match="differ by"):
        fold(trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))), torch.randn(5, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits(dtype: torch.dtype) -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), BatchNorm2d(8)))
    model, x = model.to(dtype), torch.randn(2, 3, 8, 8).to(dtype)
    report = fold(model, x)
    assert report.model[0].weight.dtype == dtype
    assert report.numbers["difference"] <= report.numbers["allowed"]


def test_onnx_of_the_folded_model(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = trained(
        nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4, activation="relu"), nn.Flatten(), nn.Linear(144, 2))
    )
    x = torch.randn(2, 3, 8, 8)
    folded, file = fold(model, x).model, tmp_path / "folded.onnx"
    torch.onnx.export(folded, (x,), file, dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(file))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    want = model(x).detach().numpy()
    assert np.abs(found - want).max() <= PROJECT_BOUND * np.abs(want).max()
    assert b"BatchNorm" not in file.read_bytes()


@dataclass
class Out:
    hidden: Tensor
    y: Tensor


class Inside(nn.Module):
    """A model whose output is an object, and which uses a property of what a layer makes, changes its input, draws."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.c, self.n = how, nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Any:
        if self.how == "changes":
            x.mul_(2)
        h = self.c(x)
        y = self.n(h)
        if self.how == "draws":
            return y + torch.randn(4)
        if self.how == "masks":
            return y.masked_fill(torch.eye(4) > 0, -torch.inf)
        if self.how == "property":
            return y + h.mT.mT
        return Out(h, y) if self.how == "object" else y


@pytest.mark.parametrize("how", ["object", "property"])
def test_uses_that_are_hard_to_see_are_seen(how: str) -> None:
    with pytest.raises(BatchNormError, match="n: what c makes is used elsewhere too"):
        fold(trained(Inside(how)), torch.randn(4, 4))


@pytest.mark.parametrize("how", ["changes", "draws", "masks"])
def test_what_is_right_is_not_refused(how: str) -> None:
    model, x = trained(Inside(how)), torch.randn(4, 4)
    before, random = x.clone(), torch.get_rng_state()
    assert fold(model, x).names == ["n"]
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_proof_needs_something_to_compare() -> None:
    model = trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Flatten()))
    with pytest.raises(BatchNormError, match="no finite floating-point numbers"):
        fold(model, torch.randn(0, 4))


def test_hooks_are_in_the_way() -> None:
    model = trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    model[0].register_forward_hook(lambda *given: given[-1] * 2)
    with pytest.raises(BatchNormError, match="1: 0 has hooks"):
        fold(model, torch.randn(3, 4))
