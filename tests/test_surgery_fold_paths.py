"""Folding sees what a model does: by exceptions, TorchScript, subclasses, moved and averaged features, both dtypes."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.errors import BatchNormError
from batchnorm.surgery import Report, fold
from batchnorm.torch import BatchNorm1d
from tolerance import PROJECT_BOUND, assert_close

folding: Any = sys.modules["batchnorm.surgery.fold"]  # the package has its function by that name


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def stirred(model: nn.Module) -> nn.Module:
    """Return a model in inference, whose layers of batch normalization do something."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 2)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_()
    return model.eval()


class Path(nn.Module):
    """A layer, what lies between, and the layer behind."""

    def __init__(self, first: nn.Module, between: Callable[[Tensor], Tensor], then: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.then = first, between, then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.between(self.first(x)))


class LeViT(nn.Module):
    """A Linear and a BatchNorm1d over tokens, as in timm's LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.bn = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


def folded(model: nn.Module, x: Tensor) -> Report:
    report = fold(stirred(model), x)
    with torch.no_grad():
        expected, got = model(x), report.model(x)
    assert float((got - expected).abs().max() / expected.abs().max()) <= PROJECT_BOUND
    return report


def reflected(x: Tensor) -> Tensor:
    return functional.pad(x, (1, 1), mode="reflect")


def pooled_flat(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3).flatten(1)


AHEAD: list[tuple[str, nn.Module, tuple[int, ...]]] = [
    ("tokens flattened", LeViT(), (2, 5, 6)),
    ("transposed", Path(nn.Linear(6, 8), lambda x: x.transpose(1, 2), nn.BatchNorm1d(8)), (2, 5, 6)),
    ("permuted", Path(nn.Linear(6, 8), lambda x: x.permute(0, 3, 1, 2), nn.BatchNorm2d(8)), (2, 3, 4, 6)),
    ("viewed", Path(nn.Linear(6, 12), lambda x: x.view(-1, 3, 4), nn.BatchNorm1d(3)), (5, 6)),
    ("unflattened", Path(nn.Linear(6, 12), nn.Unflatten(1, (3, 4)), nn.BatchNorm1d(3)), (5, 6)),
    ("convolved, flattened", Path(nn.Conv2d(3, 8, 3), lambda x: x.flatten(2), nn.BatchNorm1d(8)), (2, 3, 6, 6)),
    ("averaged", Path(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8)), (2, 3, 6, 6)),
    ("shuffled", Path(nn.Conv2d(3, 16, 3), nn.PixelShuffle(2), nn.BatchNorm2d(4)), (2, 3, 6, 6)),
]
BEHIND: list[tuple[str, nn.Module, tuple[int, ...]]] = [
    ("mean", Path(nn.BatchNorm2d(4), lambda x: x.mean((2, 3)), nn.Linear(4, 5)), (2, 4, 3, 3)),
    ("pooled", Path(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 5, 1)), (2, 4, 3, 3)),
    ("pooled, flat", Path(nn.BatchNorm2d(4), pooled_flat, nn.Linear(4, 5)), (2, 4, 3, 3)),
    ("padded", Path(nn.BatchNorm1d(4), reflected, nn.Conv1d(4, 5, 3)), (2, 4, 6)),
    ("padded", Path(nn.BatchNorm2d(4), nn.CircularPad2d(1), nn.Conv2d(4, 5, 3)), (2, 4, 3, 3)),
    ("flattened", Path(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5)), (2, 4, 3, 3)),
    ("transposed", Path(nn.BatchNorm1d(4), lambda x: x.transpose(1, 2), nn.Linear(4, 5)), (2, 4, 3)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "shape"), [case[1:] for case in AHEAD + BEHIND], ids=[case[0] for case in AHEAD + BEHIND]
)
def test_features_may_be_moved_and_averaged_on_the_way(model: nn.Module, shape: tuple[int, ...]) -> None:
    report = folded(model, torch.randn(shape))
    assert len(report.changes) == 1
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in report.model.modules())  # pyright: ignore


MIXING: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.amax((2, 3)),
    lambda x: x.sum((2, 3)),
    lambda x: functional.max_pool2d(x, 3).flatten(1),
    lambda x: x.mean((1, 2)).repeat(1, 2)[:, :4],
    lambda x: x.transpose(1, 3).mean((1, 2)).roll(1, 1),
    lambda x: x.flatten(1)[:, :4],
]


@pytest.mark.parametrize("between", MIXING)
def test_what_mixes_features_or_is_not_linear_stays(between: Callable[[Tensor], Tensor]) -> None:
    model = Path(nn.BatchNorm2d(4), between, nn.Linear(4, 5))
    report = fold(stirred(model), torch.randn(2, 4, 3, 4), allow_empty=True)
    assert [left.where for left in report.left] == ["first"]


def test_zeros_of_a_padding_are_no_outputs_of_the_layer() -> None:
    model = Path(nn.BatchNorm2d(4), nn.ZeroPad2d(1), nn.Conv2d(4, 5, 3))
    report = fold(stirred(model), torch.randn(2, 4, 3, 3), allow_empty=True)
    assert report.left[0].why.endswith("between between it and then mixes features, or adds to them")


class Padded(nn.Conv2d):
    """A convolution with a forward of its own, as timm's Conv2dSame."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(input, (1, 1, 1, 1)), self.weight, self.bias)


class Standardized(nn.Conv2d):
    """A convolution whose weights are standardized first, as in an NFNet: their scale does nothing."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


def test_a_subclass_is_folded_into_where_it_obeys_its_weight() -> None:
    x = torch.randn(2, 3, 5, 5)
    assert folded(nn.Sequential(Padded(3, 4, 3), nn.BatchNorm2d(4)), x).names == ["1"]
    assert folded(nn.Sequential(nn.BatchNorm2d(3), Padded(3, 4, 3), nn.BatchNorm2d(4)), x).names == ["2"]
    report = fold(stirred(nn.Sequential(Standardized(3, 4, 3), nn.BatchNorm2d(4))), x, allow_empty=True)
    assert [left.why for left in report.left] == [
        "0 is a Standardized, whose weight and bias cannot take in a scale and shift of its outputs; nothing follows it"
    ]


class Catches(nn.Module):
    """A model that asks with an argument that its layers do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.more = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv, self.bn, self.more):
            try:
                x = layer(x, lengths=None)
            except TypeError:
                x = layer(x)
        return x


def test_a_model_may_catch_the_exceptions_of_its_layers() -> None:
    assert folded(Catches(), torch.randn(2, 3, 5)).names == ["bn"]


def _sum(x: Tensor, y: Tensor) -> Tensor:
    return x.tanh() + y


with warnings.catch_warnings(action="ignore"):  # it is deprecated, and there
    SCRIPTED: Any = torch.jit.script(_sum)


class Scripted(nn.Module):
    """What the convolution makes is used within TorchScript too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        return SCRIPTED(made, self.bn(made))


class Doubling(torch.autograd.Function):
    """A function of somebody's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 2


class WithFunction(Scripted):
    """The same within an autograd function."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        return Doubling.apply(made) + self.bn(made)  # pyright: ignore


@pytest.mark.parametrize("model", [Scripted(), WithFunction()])
def test_uses_that_no_function_of_torch_shows_are_seen(model: nn.Module) -> None:
    report = fold(stirred(model), torch.randn(2, 3, 5, 5), allow_empty=True)
    assert [left.why.split(";")[0] for left in report.left] == ["what conv makes is used elsewhere too"]


def test_what_each_layer_hands_on_is_compared_too() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)), torch.randn(2, 3, 4, 4)
    nn.init.zeros_(model[2].weight)  # pyright: ignore
    report = folded(model, x)
    assert report.numbers["difference"] == 0
    assert 0 < report.numbers["difference_of_layers"] <= PROJECT_BOUND


def test_a_layer_that_hands_on_something_else_is_refused_though_no_output_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    nn.init.zeros_(model[2].weight)  # pyright: ignore
    right = folding.after

    def wrong(layer: nn.Module, then: Any) -> nn.Module:
        return right(layer, then._replace(shift=then.shift + 1))

    monkeypatch.setattr(folding, "after", wrong)
    with pytest.raises(BatchNormError, match=r"more than rounding explains \(1: .* and in float64 too \(1: "):
        fold(stirred(model), torch.randn(2, 3, 4, 4))


def test_a_variance_that_can_be_none_is_refused() -> None:
    model = stirred(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    model[1].running_var[2] = -0.5  # pyright: ignore
    report = fold(model, torch.randn(2, 3, 4, 4), allow_empty=True)
    assert report.left[0].why.startswith("its running variance plus ε is no more than zero: -0.5, with eps=1e-05")


class Sharp(nn.Module):
    """A network that amplifies rounding: a difference of large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn(self.conv(x))
        return (made + 3e4) - 3e4 + (1e4 * made).sin()


def test_a_network_that_amplifies_rounding_is_compared_in_float64() -> None:
    report = fold(stirred(Sharp()), torch.randn(2, 3, 4, 4))
    assert report.names == ["bn"]
    assert report.numbers["difference"] > report.numbers["allowed"]
    assert report.numbers["difference_in_float64"] < report.numbers["difference"] * PROJECT_BOUND
    assert "amplifies rounding" in report.notes[0]


def far_from_zero() -> tuple[nn.Module, Tensor]:
    """A layer ahead of a Linear, at means that a folded bias must cancel."""
    model = nn.Sequential(BatchNorm1d(4), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    nn.init.constant_(model[0].running_mean, 1e6)  # pyright: ignore
    return model, torch.randn(64, 4) + 1e6


def overflowing() -> tuple[nn.Module, Tensor]:
    """In 16 bits: the folded weights are larger than any number."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.init.constant_(model[0].weight, 300.0)  # pyright: ignore
    nn.init.constant_(model[1].running_var, 1e-6)  # pyright: ignore
    return model.half(), torch.full((4, 4), 1e-3, dtype=torch.float16)


@pytest.mark.parametrize("made", [far_from_zero, overflowing])
def test_a_fold_that_is_right_in_float64_and_wrong_in_the_dtype_is_refused(made: Any) -> None:
    model, x = made()
    before = model.eval()(x)
    with pytest.raises(BatchNormError, match=r"beside float64, .* would be off by .* where the model itself is by"):
        fold(model, x)
    assert before.isfinite().all()


class Skips(nn.Linear):
    """A Linear that adds what it is given."""

    def forward(self, input: Tensor, skip: Tensor | None = None) -> Tensor:
        made = super().forward(input)
        return made if skip is None else made * skip


class Beside(nn.Module):
    """A model whose first layer is called in a way of its own, and whose second is an ordinary one."""

    def __init__(self, first: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.bn, self.second, self.last = first, nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.relu(self.bn(self.call(self.first, x)))))


def wrapped() -> nn.Module:
    """A Linear whose forward a library has exchanged, as accelerate does."""
    linear = nn.Linear(4, 4)
    inner = linear.forward
    linear.forward = lambda input: 2 * inner(input)
    return linear


@pytest.mark.parametrize(
    ("first", "call", "why"),
    [
        (Skips(4, 4), lambda layer, x: layer(x, x), "first is a Skips that is given more than one tensor"),
        (wrapped(), lambda layer, x: layer(x), "first has a forward of its own, which some library has put there"),
    ],
)
def test_one_layer_that_is_unfit_is_left_and_the_others_are_folded(first: nn.Module, call: Any, why: str) -> None:
    report = fold(stirred(Beside(first, call)), torch.randn(3, 4))
    assert report.names == ["last"]
    assert report.left[0].why.startswith(why)


class Copies(nn.Module):
    """A layer whose input is used once more, by a function that takes only the dtype of its first argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        made = self.linear(x)
        return self.bn(made) + x.new_tensor(made)


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_what_a_new_tensor_is_made_of_is_used() -> None:
    report = fold(stirred(Copies()), torch.randn(3, 4), allow_empty=True)
    assert report.left[0].why.startswith("what linear makes is used elsewhere too; ")


class Turned(nn.Module):
    """A way on which the features stay in their places for a batch of one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn, self.last, self.end = (
            nn.Linear(3, 4),
            nn.BatchNorm1d(4),
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        made = self.linear(x)
        return self.end(self.last(self.bn(made.transpose(0, 1).reshape(made.shape))))


def test_a_batch_of_one_is_taken_twice() -> None:
    model = stirred(Turned())
    folded: Any = fold(model, torch.randn(1, 3)).model
    x = torch.randn(5, 3)
    assert_close(folded(x).detach(), model(x).detach(), "float32", model(x).abs().max().item())


class Clipped(nn.Conv2d):
    """A convolution that clips, at what no example shows."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(-50, 50)


class Asks(nn.Conv2d):
    """A convolution that asks how large its input is."""

    def forward(self, input: Tensor) -> Tensor:
        made = super().forward(input)
        return made if float(input.abs().max()) < 20 else 2 * made


@pytest.mark.parametrize("kind", [Clipped, Asks])
def test_a_subclass_that_does_otherwise_on_other_inputs_is_not_folded_into(kind: type[nn.Conv2d]) -> None:
    report = fold(stirred(nn.Sequential(kind(3, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 3, 5, 5), allow_empty=True)
    assert report.left[0].why.startswith(f"0 is a {kind.__name__}, whose weight and bias cannot take in")


def scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.script(module)  # pyright: ignore


def test_parts_that_are_torchscript_are_seen_from_outside() -> None:
    model = nn.Sequential(scripted(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4), scripted(nn.ReLU()), nn.Conv2d(4, 2, 1))
    report = fold(stirred(model), torch.randn(2, 3, 4, 4), allow_empty=True)
    assert report.left[0].why.startswith("beside it is convolution, a function: no Linear")
    inner = scripted(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    both = nn.Sequential(inner, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    report = fold(both, torch.randn(2, 3, 4, 4))
    assert (report.names, [left.where for left in report.left]) == (["2"], ["0.1"])
    assert report.left[0].why.startswith("it is TorchScript, whose layers cannot be reached")


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.kept = model[0](torch.ones(2, 3))  # pyright: ignore
    with pytest.raises(BatchNormError, match=r"\(of kept, which a forward has left there: delete it"):
        fold(model.eval(), torch.randn(2, 3))
