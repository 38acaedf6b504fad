"""What today's tools make of the same models, and what the proof of a fold does not let pass."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from batchnorm.errors import BatchNormError
from batchnorm.surgery import Left, Report, fold
from batchnorm.surgery.fold import _difference
from batchnorm.torch import BatchNorm1d
from tolerance import PROJECT_BOUND, SILENTLY_WRONG


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def trained(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)
    return model.eval()


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


class Twice(nn.Module):
    """A convolution called twice, behind it a normalization each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.conv(self.one(self.conv(x))))


class TestWhatTodaysToolsGetWrong:
    """Of torch.nn.utils.fusion, and of torch.fx' fuse."""

    def test_groups_of_a_transposed_convolution(self) -> None:
        model = trained(nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)))
        assert fold(model, torch.randn(2, 4, 5, 5)).numbers["difference"] <= PROJECT_BOUND
        with pytest.raises(RuntimeError, match="size of tensor"):
            fuse_conv_bn_eval(model[0], model[1], transpose=True)

    def test_a_square_transposed_convolution_unless_told_that_it_is_one(self) -> None:
        model, x = trained(nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 4, 5, 5)
        assert fold(model, x).numbers["difference"] <= PROJECT_BOUND
        assert apart(fuse_conv_bn_eval(model[0], model[1])(x), model(x)) > SILENTLY_WRONG

    def test_a_linear_layer_without_scale(self) -> None:
        model = trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)))
        assert fold(model, torch.randn(3, 4)).numbers["difference"] <= PROJECT_BOUND
        with pytest.raises(TypeError, match="NoneType"):
            fuse_linear_bn_eval(model[0], model[1])

    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by what it imports
    def test_a_convolution_that_is_called_twice(self) -> None:
        from torch.fx.experimental.optimization import fuse

        model, x = trained(Twice()), torch.randn(2, 4, 5, 5)
        with pytest.raises(BatchNormError, match=r"one: conv is called 2 times.*two: .*conv is called 2 times"):
            fold(model, x)
        assert apart(fuse(model)(x), model(x)) > SILENTLY_WRONG


def folded_shift(by: float) -> Any:
    """Return a model, and what its fold would be with a shift that is off."""
    y = torch.randn(64, 4)
    return (y, y.bfloat16()), (y + by, y.bfloat16())


def test_each_output_is_judged_by_its_own_dtype() -> None:
    before, now = folded_shift(0.01)
    off, allowed = _difference(before, now)
    assert off > 100 * allowed
    off, allowed = _difference(*folded_shift(0.0))
    assert (off, allowed < SILENTLY_WRONG) == (0, True)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_is_no_number_is_a_difference(order: tuple[int, int]) -> None:
    old, new = (torch.ones(1), torch.ones(1)), (torch.tensor([torch.nan]), torch.ones(1))
    off, allowed = _difference([old[i] for i in order], [new[i] for i in order])
    assert not off <= allowed
    off, allowed = _difference([new[i] for i in order], [old[i] for i in order])
    assert not off <= allowed
    assert _difference([torch.tensor([1.0, torch.inf])], [torch.tensor([1.0, torch.inf])])[0] == 0


def test_inputs_that_show_nothing() -> None:
    model = trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(BatchNormError, match="no finite floating-point numbers"):
            fold(model, torch.full((2, 4), bad))
    model[1].running_var[2] = torch.nan
    with pytest.raises(BatchNormError, match="1: its running statistics hold inf or NaN"):
        fold(model, torch.ones(2, 4))


class Aliased(nn.Module):
    """Holds a layer in a tuple too, and calls it from there."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.parts = (self.linear, self.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[1](self.parts[0](x))


class Reads(nn.Module):
    """Reads the normalization's statistics beside calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) * self.norm.eps


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.other = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class FrozenBatchNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Named(nn.Linear):
    """A subclass that computes as its base does."""


class Doubled(nn.Linear):
    """One that does not."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_subclasses_that_compute_as_their_base() -> None:
    report = fold(trained(nn.Sequential(Named(4, 4), nn.BatchNorm1d(4))), torch.randn(3, 4))
    assert (report.names, type(report.model[0])) == (["1"], Named)


def test_many_reasons_are_counted() -> None:
    left = [Left(str(i), f"reason {i}") for i in range(12)]
    said = str(Report("fold", nn.Identity(), [], left))
    assert "left 7: reason 7" in said
    assert "reason 8" not in said
    assert "left 4 more, each with its reason in `left`" in said


def pruned() -> nn.Module:
    linear = nn.Linear(4, 4)
    prune.l1_unstructured(linear, "weight", 0.5)
    linear(torch.ones(1, 4))
    return nn.Sequential(linear, nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Aliased(), "linear is called by another way than its name"),
        (Reads(), "does not run, as it uses a layer otherwise than by calling it: AttributeError: .*'eps'"),
        (pruned(), "cannot be copied, and fold works on a copy"),
        (
            nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4)),
            r"0\.weight does not know its shape yet: run the model",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to("meta"), r"0\.weight is on the meta device"),
        (nn.Sequential(nn.Linear(4, 4)), "nothing to change in Sequential .it has no batch normalization of a class"),
        (nn.Sequential(nn.Linear(4, 4), FrozenBatchNorm()), "known, but FrozenBatchNorm"),
        (
            nn.Sequential(Doubled(4, 4), nn.BatchNorm1d(4)),
            "0 is a Doubled, whose weight and bias cannot take in a scale and shift of its outputs",
        ),
    ],
    ids=["aliased", "reads", "pruned", "lazy", "meta", "without", "foreign", "subclass"],
)
def test_models_that_cannot_be_folded_say_why(model: nn.Module, says: str) -> None:
    with pytest.raises(BatchNormError, match=says):
        fold(model.eval(), torch.randn(2, 4))


def test_what_the_inputs_do_not_reach_is_told() -> None:
    report = fold(trained(Heads()), torch.randn(3, 4))
    assert report.names == ["norm"]
    assert [left.where for left in report.left] == ["other"]
    assert "do not reach it" in report.left[0].why


def test_wrapped_models() -> None:
    model, x = trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))), torch.randn(3, 4)
    assert fold(nn.DataParallel(model), x).names == ["module.1"]
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
    assert fold(compiled, x).names == ["_orig_mod.1"]  # type: ignore[arg-type]


def test_a_residual_is_known_by_its_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(residual=x, input=self.linear(x))

    report = fold(trained(Named()), torch.randn(3, 4))
    assert [change.what for change in report.changes] == ["folded into linear"]


def test_merged_layers_stay_frozen() -> None:
    model = trained(nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))).requires_grad_(requires_grad=False)
    assert not any(p.requires_grad for p in fold(model, torch.randn(3, 4)).model.parameters())
