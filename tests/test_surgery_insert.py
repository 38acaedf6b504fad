"""Batch normalization put into models that have none."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.surgery import insert
from batchnorm.surgery.flow import arguments
from batchnorm.torch import BatchNorm
from tolerance import assert_close


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def test_before_and_after_the_activation() -> None:
    x = torch.randn(8, 4)
    before, after = mlp(), mlp()
    assert insert(before, x).names == ["0", "2"]
    assert insert(after, x, "after").names == ["1", "3"]
    for net, order in ((before, [nn.Linear, BatchNorm, nn.ReLU]), (after, [nn.Linear, nn.ReLU, BatchNorm])):
        leaves = [m for m in net.modules() if not list(m.children())]
        assert [type(m) for m in leaves[:3]] == order
        assert [m.num_features for m in leaves if isinstance(m, BatchNorm)] == [6, 5]
        assert net(x).shape == (8, 2)


def test_axis_and_features_of_every_kind_of_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.ConvTranspose2d(3, 2, 3), nn.SiLU())
            self.token, self.act = nn.Linear(5, 7), nn.ReLU()
            self.head = nn.Linear(7, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.act(self.token(self.stem(x).flatten(1, 2))))

    for position in ("before", "after"):
        net = Net()
        insert(net, torch.randn(2, 1, 5, 5), position)
        found = [(m.num_features, m.axis) for m in net.modules() if isinstance(m, BatchNorm)]
        assert found == [(3, 1), (2, 1), (7, -1)]
        assert net(torch.randn(2, 1, 5, 5)).shape == (2, 10, 1)


def test_the_model_is_looked_at_and_left_as_it_was() -> None:
    net = mlp()
    net.append(nn.Dropout())
    net[1].eval()
    modes = [m.training for m in net.modules()]
    values = [p.clone() for p in net.parameters()]
    with pytest.raises(RuntimeError):
        insert(net, torch.randn(8, 3))
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(values, net.parameters(), strict=True))
    assert not any(isinstance(m, BatchNorm) for m in net.modules())


def test_what_is_refused_is_named() -> None:
    with pytest.raises(ArgumentError, match="got 'between'"):
        insert(mlp(), torch.randn(2, 4), "between")
    with pytest.raises(BatchNormError, match=r"nothing to change in Linear \(no layer to normalise before"):
        insert(nn.Linear(4, 2), torch.randn(2, 4))
    shared = nn.Linear(4, 4)
    with pytest.raises(BatchNormError, match="0: it is called 2 times"):
        insert(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 1)), torch.randn(2, 4))


class Block(nn.Module):
    """A residual block as timm writes them, its normalization taken out, one ReLU for all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv2(self.act(self.conv1(x))) + x)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.act(self.stem(x))).mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.act, self.fc2 = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.fc2(self.act(self.fc1(x)))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv1d(3, 6, 3), nn.Linear(18, 7), nn.Linear(7, 2)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> dict[str, torch.Tensor]:
        x = nn.functional.max_pool1d(self.conv(x), 2).relu()
        x = nn.functional.silu(self.fc1(x.flatten(1)) * scale)
        return {"logits": self.fc2(x)}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 2)
        self.act = nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.act(self.inner(self.act(self.inner(x)))))


CONV = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2), nn.LeakyReLU(), nn.Flatten(),
    nn.Linear(24, 3), nn.Softmax(1),
)  # fmt: skip
IMAGES = torch.randn(4, 3, 8, 8)
CASES: dict[str, tuple[nn.Module, Any, dict[str, list[str]]]] = {
    "mlp": (mlp(), torch.randn(8, 4), {"before": ["0", "2"], "after": ["1", "3"]}),
    "convnet": (CONV, torch.randn(4, 1, 8, 8), {"before": ["0", "3"], "after": ["1", "4"]}),
    "resnet": (ResNet(), IMAGES, {
        "before": ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"],
        "after": ["act", "blocks.0.conv2", "blocks.1.conv2"],
    }),
    "transformer": (Transformer(), torch.randn(4, 5, 8), {"before": ["fc1"], "after": ["act"]}),
    "functional": (
        Functional(), {"x": torch.randn(4, 3, 8), "scale": 2.0}, {"before": ["conv", "fc1"], "after": ["fc2"]},
    ),
    "shared": (Shared(), torch.randn(4, 4), {"before": [], "after": ["outer"]}),
}  # fmt: skip


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("name", CASES)
def test_on_models_of_many_kinds(name: str, position: Any) -> None:
    model, inputs, expected = copy.deepcopy(CASES[name])
    report = insert(model, inputs, position, allow_empty=True)
    assert report.names == expected[position]
    layers = [m for m in model.modules() if isinstance(m, BatchNorm)]
    assert len(layers) == len(report.names)
    outputs: list[torch.Tensor] = []
    for layer in layers:
        layer.register_forward_hook(
            lambda layer, _, y: outputs.append(y.detach().movedim(layer.axis, -1).flatten(0, -2))
        )
    args, kwargs = arguments(inputs)
    y = model.train()(*args, **kwargs)
    (y["logits"] if isinstance(y, dict) else y).sum().backward()
    assert all(layer.num_batches_tracked == 1 for layer in layers)
    assert all(layer.weight.grad is not None for layer in layers)
    for rows in outputs:  # along the right axis: what a feature has made is normalised
        assert_close(rows.mean(0).numpy(), torch.zeros(rows.shape[1]).numpy(), "float32", 1)
    if name == "shared":
        assert any("called 2 times" in left.why or "no module stands" in left.why for left in report.left)


def test_a_final_output_is_not_normalised_though_it_is_activated() -> None:
    for position, name in (("before", "0"), ("after", "1")):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Sigmoid())
        assert insert(model, torch.randn(2, 4), position).names == [name]


def test_a_bias_that_is_cancelled_is_dropped() -> None:
    model = mlp()
    x, parameters = torch.randn(64, 4), dict(model.named_parameters())
    y = insert(copy.deepcopy(model), x, drop_bias=False).model.train()(x)
    insert(model, x)
    assert [m.bias is None for m in model.modules() if isinstance(m, nn.Linear)] == [True, True, False]
    assert model[0][0].weight is parameters["0.weight"]
    assert_close(model.train()(x).detach().numpy(), y.detach().numpy(), "float32", 8)


def test_where_says() -> None:
    model = mlp()
    assert insert(model, torch.randn(2, 4), where=lambda name, module: name == "4").names == ["4"]
    assert isinstance(model[4][1], BatchNorm)  # the output layer, when asked
    assert insert(mlp(), torch.randn(2, 4), where=["0", "1"]).names == ["0", "1"]
    with pytest.raises(ArgumentError, match="`where` names '7', which is no layer"):
        insert(mlp(), torch.randn(2, 4), where="7")
    with pytest.raises(ArgumentError, match="`where` must be names, modules, classes or a predicate, got 4"):
        insert(mlp(), torch.randn(2, 4), where=4)  # type: ignore[arg-type]
    assert insert(mlp(), torch.randn(2, 4), where=nn.Linear).names == ["0", "2", "4"]


def test_without_inputs_by_the_order_of_modules() -> None:
    for position, names in (("before", ["0", "2"]), ("after", ["1", "3"])):
        model = mlp()
        report = insert(model, position=position)
        assert report.names == names
        assert "by the order of the modules" in report.notes[0]
        assert model(torch.randn(2, 4)).shape == (2, 2)
    left = insert(Shared(), allow_empty=True).left
    assert not left  # what is called twice cannot be seen


def test_a_normalised_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(BatchNormError, match="0: it is normalised already"):
        insert(model, torch.randn(2, 4))


class Permuted(nn.Module):
    """Square images whose axes are exchanged: sizes cannot tell where the features went."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.linear = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.act(self.conv(x).permute(0, 3, 2, 1)))


def test_features_that_went_elsewhere_are_not_guessed() -> None:
    with pytest.raises(BatchNormError, match="act: which axis holds the features cannot be told"):
        insert(Permuted(), torch.randn(2, 3, 6, 6), "after")
    assert insert(Permuted(), torch.randn(2, 3, 6, 6)).names == ["conv"]


@dataclass
class Out:
    hidden: torch.Tensor
    y: torch.Tensor


class Returning(nn.Module):
    """A model that returns what it has inside, in an object, draws random numbers and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> Out:
        self.calls += 1
        hidden = self.act(self.a(x))
        return Out(hidden, self.b(hidden) + torch.randn(2))


def test_what_a_model_returns_is_not_normalised_and_looking_leaves_no_trace() -> None:
    model = Returning()
    x = torch.randn(4, 4)
    random = torch.get_rng_state()
    with pytest.raises(BatchNormError, match="act: the model returns what it makes"):
        insert(model, x, "after")
    insert(model, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.calls == 0


def test_an_interruption_takes_it_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    before, calls = repr(model), 0

    def interrupt(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt

    model[2].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        insert(model, torch.randn(2, 4))
    assert repr(model) == before


def test_without_inputs_it_keeps_out_of_what_it_cannot_see() -> None:
    with pytest.raises(BatchNormError, match="nothing to change in TransformerEncoderLayer"):
        insert(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    normed = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    assert insert(normed).names == ["4"]
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(144, 2))
    assert insert(flat, position="after", allow_empty=True).names == []


class Reads(nn.Module):
    """A model that reads an attribute of a layer, which what takes its place does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)) / self.a.in_features)


def test_what_does_not_run_is_taken_out_again() -> None:
    model = Reads()
    before = repr(model)
    with pytest.raises(BatchNormError, match=r"taken out again.*in_features"):
        insert(model, torch.randn(2, 4))
    assert repr(model) == before
    assert model.a.bias is not None


def test_twenty_layers_of_sigmoid_train_with_it_alone() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        layers = [part for _ in range(20) for part in (nn.Linear(32, 32), nn.Sigmoid())]
        return nn.Sequential(*layers, nn.Linear(32, 2))

    torch.manual_seed(1)
    x = torch.randn(512, 32)
    y = (x[:, 0] > 0).long()

    def accuracy(model: nn.Module) -> float:
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(x), y).backward()
            optimizer.step()
        return (model(x).argmax(1) == y).float().mean().item()

    without, with_it = network(), network()
    insert(with_it, x)
    assert accuracy(without) < 0.6
    assert accuracy(with_it) > 0.9


class Standardized(nn.Conv2d):
    """A convolution with a forward of its own, as in an NFNet."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(input, weight, self.bias)


def test_subclasses_of_convolutions_are_convolutions() -> None:
    net = nn.Sequential(Standardized(3, 4, 3), nn.ReLU(), Standardized(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    assert insert(net, torch.randn(2, 3, 8, 8)).names == ["0", "2"]
    assert net[0][0].bias is not None  # nobody knows what it is to its forward


def test_a_module_made_of_others_is_normalised_behind_what_it_returns() -> None:
    net = ResNet()
    report = insert(net, torch.randn(2, 3, 8, 8), where="blocks.0")
    assert (report.names, report.left) == (["blocks.0"], [])
    assert [type(part) for part in net.blocks[0]] == [Block, BatchNorm]
    assert (net.blocks[0][1].num_features, net.blocks[0][1].axis) == (8, 1)


def test_no_value_is_normalised_twice_for_its_names() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 2))
    assert insert(net, torch.randn(3, 4), where=["0", "0.1"]).names == ["0.1"]


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x)


class Both(Pair):
    def forward(self, x: torch.Tensor) -> Any:
        return self.a(x), self.b(x)


class Adds(Pair):
    def forward(self, x: torch.Tensor, y: Any = None) -> torch.Tensor:
        return self.a(x) + self.b(y)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.adds, self.unused = Both(), Adds(), Pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.adds(*self.both(x))


def test_why_a_module_made_of_others_is_left_is_true() -> None:
    report = insert(Outer(), torch.randn(3, 4), where=["both", "adds", "unused"], allow_empty=True)
    assert {left.where: left.why for left in report.left} == {
        "both": "it returns 2 tensors",
        "adds": "it takes more than one argument: name a module in it",
        "unused": "it is not called, or by something of torch.nn that runs its parts in its own way",
    }
