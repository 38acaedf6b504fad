"""There and back between the kinds of layer, with everything that hangs on them; and what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.surgery import convert, fold, recalibrate
from batchnorm.torch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, Renorm, frozen
from tolerance import PROJECT_BOUND, assert_close

INPUTS = {1: (6, 4), 2: (6, 4, 3, 3), 3: (6, 4, 2, 2, 2)}
TORCHS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
OURS = {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}


def used(layer: Any, dims: int = 2) -> Any:
    """Give a layer state that is not that of the beginning."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    for _ in range(3):
        layer(torch.randn(INPUTS[dims], dtype=next(layer.buffers()).dtype) * 2 + 1)
    return layer


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None, "eps": 1e-3}, {"dtype": torch.float64}], ids=str
)
@pytest.mark.parametrize("dims", TORCHS)
def test_there_and_back_is_the_identity(dims: int, options: dict[str, Any]) -> None:
    model = nn.Sequential(used(TORCHS[dims](4, **options), dims))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model[0].eval()
    said, before, parameters = repr(model), state(model), list(model.parameters())
    assert convert(model, "batchnorm").names == ["0"]
    assert type(model[0]) is OURS[dims]
    assert not model[0].training
    x = torch.randn(INPUTS[dims], dtype=options.get("dtype"))
    y = model(x)
    convert(model, "torch")
    assert repr(model) == said
    assert {n: v.tolist() for n, v in state(model).items()} == {n: v.tolist() for n, v in before.items()}
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not any(p.requires_grad for p in model.parameters())
    name = "float64" if x.dtype == torch.float64 else "float32"
    assert_close(y.numpy(), model(x).numpy(), name, 4)


def test_shared_layers_stay_shared_and_the_model_may_be_the_layer() -> None:
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(shared, nn.Sequential(shared))
    assert convert(model).names == ["0"]
    assert model[0] is model[1][0]
    report = convert(nn.BatchNorm2d(4))
    assert type(report.model) is BatchNorm2d
    assert report.names == ["BatchNorm2d"]


def test_synchronized_layers() -> None:
    model = nn.Sequential(used(nn.SyncBatchNorm(4).eval(), 2))
    before = state(model)
    convert(model)
    assert (type(model[0]), model[0].sync) == (BatchNorm, True)
    convert(model, "torch")
    assert type(model[0]) is nn.SyncBatchNorm
    assert all(torch.equal(v, before[n]) for n, v in state(model).items())
    plain = nn.Sequential(nn.BatchNorm2d(4), BatchNorm2d(4))
    convert(plain, "sync")
    assert type(plain[0]) is nn.SyncBatchNorm
    assert (type(plain[1]), plain[1].sync) == (BatchNorm2d, True)
    with pytest.raises(BatchNormError, match="nothing to change"):
        convert(plain, "sync")


def test_ghost_and_renorm_keep_state_and_function_in_inference() -> None:
    for to, options in (("ghost", {"virtual_batch_size": 3}), ("renorm", {"rmax": 3.0, "dmax": 5.0})):
        model = nn.Sequential(used(nn.BatchNorm2d(4))).eval()
        x = torch.randn(INPUTS[2])
        y = model(x)
        convert(model, to, **options)
        assert_close(model(x).detach().numpy(), y.detach().numpy(), "float32", 4)
        chosen = model[0].virtual_batch_size if to == "ghost" else model[0].renorm
        assert chosen == (3 if to == "ghost" else Renorm(**options))
        with pytest.raises(BatchNormError, match=r"0: torch's layer would lose .*\(lose=True lets it go\)"):
            convert(model, "torch")
        convert(model, "torch", lose=True)
        assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("to", "options", "kind"),
    [
        ("group", {}, nn.GroupNorm),
        ("group", {"num_groups": 2}, nn.GroupNorm),
        ("instance", {}, nn.InstanceNorm2d),
        ("layer", {}, nn.GroupNorm),
    ],
)
def test_other_normalizations_say_that_they_change_the_function(to: Any, options: dict[str, Any], kind: type) -> None:
    model = nn.Sequential(used(nn.BatchNorm2d(4)))
    weight = model[0].weight
    report = convert(model, to, **options)
    assert type(model[0]) is kind
    assert model[0].weight is weight
    assert "changes what the model computes" in str(report)
    assert model(torch.randn(INPUTS[2])).shape == INPUTS[2]
    if to == "group":
        assert model[0].num_groups == options.get("num_groups", 1)


@pytest.mark.parametrize("features", [1, 2, 3, 4, 7, 8, 31, 32, 48, 64, 96, 1000])
def test_groups_of_one_position_leave_something_to_learn(features: int) -> None:
    """A group of one value is β, and one of two is ±1, whatever they hold."""
    model = nn.Sequential(nn.BatchNorm1d(features))
    if not convert(model, "group", allow_empty=True).changes:
        assert features == 1
        return
    groups = model[0].num_groups
    assert 1 <= groups <= 32
    assert groups == 1 or features // groups >= 8
    y = model(torch.randn(50, features)).detach()
    assert y.std() > 0.5
    assert features < 8 or ((y.abs() - 1).abs() > 0.05).float().mean() > 0.75


@pytest.mark.parametrize(("to", "options"), [("group", {"num_groups": 4}), ("instance", {})])
def test_of_sequences_an_instance_is_many_values(to: Any, options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    convert(model, to, rank=3, **options)
    assert model(torch.randn(2, 4, 50)).std() > 0.5


class FrozenBatchNorm2d(nn.Module):
    """The one that detectron2, DETR and torchvision have in common."""

    def __init__(self, features: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(features) + 0.5)

    def forward(self, x: Any) -> Any:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class WithoutEpsilon(FrozenBatchNorm2d):
    """One that adds no ε, as an earlier library has it."""

    def forward(self, x: Any) -> Any:
        scale = self.weight * self.running_var.rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


def test_a_frozen_layer_that_computes_something_else_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), WithoutEpsilon(4))
    model[1].running_var.fill_(1e-5)
    for tool in (convert, lambda net: fold(net.eval(), torch.ones(2, 3, 5, 5))):
        with pytest.raises(BatchNormError, match=r"1: its forward computes something else than \(x − running_mean"):
            tool(model)


def detector() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def test_a_layer_that_is_frozen_for_good_stays_frozen_and_can_be_thawed() -> None:
    model, x = detector(), torch.randn(2, 3, 6, 6)
    expected = model(x).detach()
    assert convert(model).names == ["1"]
    layer = model[1]
    assert (type(layer), layer.frozen) == (BatchNorm2d, True)
    assert not any(p.requires_grad for p in layer.parameters())
    assert_close(model.train()(x).detach().numpy(), expected.numpy(), "float32", 4)
    assert int(layer.num_batches_tracked) == 0
    layer.thaw()
    assert all(p.requires_grad for p in layer.parameters())
    with pytest.raises(BatchNormError, match='is frozen for good: to="batchnorm" makes a layer of it that can be'):
        convert(detector(), "torch")


def test_a_layer_that_is_frozen_for_good_is_folded() -> None:
    model = detector()
    report = fold(model, torch.randn(2, 3, 6, 6))
    assert report.names == ["1"]
    assert report.numbers["difference"] <= PROJECT_BOUND


def test_a_layer_that_is_frozen_for_good_is_recalibrated_where_it_is_named() -> None:
    model, x = detector().eval(), torch.randn(20, 3, 6, 6) + 3
    with pytest.raises(BatchNormError, match="1: a FrozenBatchNorm2d is frozen for good, unless `layers` names it"):
        recalibrate(model, [x])
    recalibrate(model, [x[:7], x[7:]], layers="1")
    seen = model[0](x).detach()
    assert_close(model[1].running_mean.numpy(), seen.mean((0, 2, 3)).numpy(), "float32", 4)
    assert_close(model[1].running_var.numpy(), seen.var((0, 2, 3)).numpy(), "float32", 4)


def test_features_last_become_layer_normalization() -> None:
    model = nn.Sequential(BatchNorm(5, axis=-1, activation="gelu"))
    convert(model, "layer")
    assert [type(m) for m in model[0]] == [nn.LayerNorm, nn.GELU]


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"])
def test_timms_layers_keep_their_activation(activation: str | None) -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    model = nn.Sequential(used(BatchNorm2d(4, activation=activation))).eval()
    x = torch.randn(INPUTS[2])
    y = model(x).detach().numpy()
    for to, options, kind in (
        ("timm", {}, layers.BatchNormAct2d),
        ("batchnorm", {"fuse_activations": True}, BatchNorm2d),
        ("torch", {}, None),
    ):
        convert(model, to, **options)
        assert kind is None or type(model[0]) is kind
        assert_close(model(x).detach().numpy(), y, "float32", 4)
    with pytest.raises(BatchNormError, match=r"its Dropout.*would be lost"):
        convert(layers.BatchNormAct2d(4, drop_layer=nn.Dropout))


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_there_and_back_leaves_timms_very_activation(fuse: bool, inplace: bool) -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    model = nn.Sequential(layers.BatchNormAct2d(4, act_layer=nn.SiLU, inplace=inplace))
    before, activation, names = repr(model), model[0].act, list(model.state_dict())
    convert(model, fuse_activations=fuse)
    assert (list(model.state_dict()) == names) == fuse
    convert(model, "ghost", virtual_batch_size=2, fuse_activations=fuse)
    convert(model, "timm", lose=True)
    assert (repr(model), list(model.state_dict())) == (before, names)
    assert model[0].act is activation


@pytest.mark.usefixtures("torchvision")
def test_tools_that_rebuild_layers_find_the_activation_unless_it_was_fused_on_request() -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    before = nn.Sequential(layers.BatchNormAct2d(4)).eval()
    x = torch.randn(INPUTS[2])
    for tool in (layers.freeze_batch_norm_2d, nn.SyncBatchNorm.convert_sync_batchnorm):
        model = nn.Sequential(copy.deepcopy(before[0]))
        report = convert(model)
        assert [type(m) for m in model[0]] == [BatchNorm2d, nn.ReLU]
        assert "names of weights have changed" in str(report)
        assert_close(tool(model).eval()(x).detach().numpy(), before(x).detach().numpy(), "float32", 4)
    report = convert(model := nn.Sequential(copy.deepcopy(before[0])))
    assert [c.after for c in convert(model, fuse_activations=True).changes] == [
        "batchnorm BatchNorm2d(4, activation='relu')"
    ]
    assert_close(model(x).detach().numpy(), before(x).detach().numpy(), "float32", 4)


@pytest.mark.usefixtures("torchvision")
def test_what_todays_tool_gets_wrong() -> None:
    """torch.nn.SyncBatchNorm.convert_sync_batchnorm drops the activation that timm's layer includes."""
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    ours, theirs = nn.Sequential(layers.BatchNormAct2d(4)), nn.Sequential(layers.BatchNormAct2d(4))
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(theirs).eval()
    convert(ours, "sync")
    x = torch.randn(INPUTS[2])
    assert theirs(x).min() < 0  # no ReLU any more
    assert (ours[0][0].sync, ours.eval()(x).min().item()) == (True, 0)


class Own(nn.BatchNorm2d):
    """A layer of somebody's, which does more."""


def hooked() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.register_forward_hook(lambda *_: None)
    return layer


def registering() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.register_buffer("ema", torch.zeros(4))
    layer.register_parameter("scale", nn.Parameter(torch.ones(4)))
    layer.probe = nn.Linear(1, 1)
    return layer


def forwarding() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("model", "to", "options", "says"),
    [
        (Own(4), "batchnorm", {}, "Own: a Own, of which more than normalization"),
        (hooked(), "batchnorm", {}, "it has hooks"),
        (BatchNorm(4), "torch", {}, "say rank=2 or 3 for BatchNorm1d, 4 for BatchNorm2d, 5 for BatchNorm3d"),
        (nn.SyncBatchNorm(4), "torch", {"sync": False}, "say rank=2 or 3 for BatchNorm1d, 4 for BatchNorm2d, 5 for"),
        (BatchNorm(4), "instance", {}, "say rank=3 for InstanceNorm1d, 4 for InstanceNorm2d, 5 for InstanceNorm3d"),
        (registering(), "batchnorm", {}, "its scale and ema and probe would be lost"),
        (registering(), "group", {}, "its scale and ema and probe would be lost"),
        (BatchNorm(4, axis=-1), "torch", {"rank": 3}, "this one along -1"),
        (BatchNorm(4, axis=-1), "group", {}, "along axis -1"),
        (BatchNorm2d(4, running_variance="biased"), "torch", {}, "lose running_variance='biased'"),
        (nn.BatchNorm2d(6), "group", {"num_groups": 4}, "num_groups=4 does not divide its 6 features"),
        (nn.BatchNorm1d(4), "group", {"num_groups": 4}, r"one value on \(N, C\), which leaves nothing: say rank=3"),
        (nn.BatchNorm1d(1), "group", {}, r"one value on \(N, C\), which leaves nothing: say rank=3"),
        (nn.BatchNorm1d(4), "instance", {}, r"of \(N, C\) has one value per feature, which leaves nothing: say rank=3"),
        (forwarding(), "batchnorm", {}, "a forward of its own, which would be lost"),
        (nn.BatchNorm2d(6), "torch", {}, "it is that already"),
        (nn.SyncBatchNorm(6), "sync", {}, "it is that already"),
        (BatchNorm2d(6), "batchnorm", {}, "it is that already"),
        (nn.ReLU(), "batchnorm", {}, "nothing to change in ReLU"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_refusals_by_name(model: nn.Module, to: Any, options: dict[str, Any], says: str) -> None:
    before = repr(model)
    with pytest.raises(BatchNormError, match=says):
        convert(model, to, **options)
    report = convert(model, to, allow_empty=True, **options)
    assert (report.changes, repr(report.model)) == ([], before)


def test_frozen_layers_and_bad_arguments() -> None:
    model = nn.Sequential(BatchNorm2d(4))
    frozen(model).apply()
    with pytest.raises(BatchNormError, match="lose frozen=True"):
        convert(model, "torch")
    for to, options, says in (
        ("keras", {}, "must be one of batchnorm, torch, .* got 'keras'"),
        ("group", {"groups": 2}, 'to="group" takes num_groups, rank, got groups'),
        ("ghost", {}, 'to="ghost" needs `virtual_batch_size`'),
        ("batchnorm", {"layers": "5"}, "'5', which is no layer"),
    ):
        with pytest.raises(ArgumentError, match=says):
            convert(nn.Sequential(nn.BatchNorm2d(4)), to, **options)  # type: ignore[arg-type]


def test_optimizers_stay_valid() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    convert(model, nonfinite="raise")
    assert model[1].nonfinite == "raise"
    before = copy.deepcopy(model[1].weight)
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)


def test_only_the_layers_that_are_named() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    assert convert(model, layers="1.*").names == ["1.0"]
    assert convert(model, layers=lambda name, _: name == "0").names == ["0"]


@pytest.mark.parametrize(
    ("to", "options"), [("ghost", {"virtual_batch_size": 2}), ("batchnorm", {"nonfinite": "raise"})]
)
def test_frozen_layers_stay_frozen_and_thaw(to: Any, options: dict[str, Any]) -> None:
    model = nn.Sequential(BatchNorm2d(4))
    frozen(model).apply()
    convert(model, to, **options)
    model.train()(torch.randn(INPUTS[2]) + 5)
    assert model[0].running_mean.tolist() == [0] * 4
    frozen(model).undo()
    assert all(p.requires_grad for p in model.parameters())
    frozen(model).apply()
    with pytest.raises(BatchNormError, match="it is frozen"):
        convert(model, "group")


def test_an_error_leaves_every_layer_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.SyncBatchNorm(4))
    before = repr(model)
    with pytest.raises(ArgumentError, match=r"1: .*list"):
        convert(model, "instance", rank=[4])
    assert repr(model) == before
    with pytest.raises(BatchNormError, match="num_groups=0 does not divide"):
        convert(nn.Sequential(nn.BatchNorm2d(4)), "group", num_groups=0)


def test_statistics_keep_their_dtype_and_layers_what_is_noted_on_them() -> None:
    layer = nn.BatchNorm2d(4).half()
    layer.running_mean = torch.full((4,), 70000.0)
    layer.tag = "mine"
    model = nn.Sequential(layer)
    convert(model, "sync")
    assert (model[0].running_mean.dtype, model[0].running_mean[0].item(), model[0].tag) == (
        torch.float32,
        70000.0,
        "mine",
    )
    assert "changes what" in str(convert(nn.Sequential(nn.BatchNorm2d(4)), activation="relu"))


def test_a_layer_that_cannot_have_an_option_is_left_and_an_impossible_one_is_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False))
    report = convert(model, "renorm")
    assert (report.names, [left.where for left in report.left]) == (["0"], ["1"])
    assert "`renorm` follows the running statistics" in report.left[0].why
    with pytest.raises(BatchNormError, match="0: it is that already; 1: `renorm` follows the running statistics"):
        convert(model, "renorm")
    for to, options, says in (
        ("renorm", {"rmax": -1}, "got -1"),
        ("ghost", {"virtual_batch_size": 0}, "got 0"),
        ("batchnorm", {"activation": "swish"}, "got 'swish'"),
        ("batchnorm", {"axis": None}, "got None"),
        ("torch", {"sync": 1}, "`sync` must be a bool, got 1"),
    ):
        with pytest.raises(ArgumentError, match=says):
            convert(nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), to, **options)  # type: ignore[arg-type]


def test_layers_that_are_what_is_asked_for_are_listed() -> None:
    report = convert(nn.Sequential(BatchNorm2d(4), nn.BatchNorm2d(4)))
    assert (report.names, report.left[0].where, report.left[0].why) == (["1"], "0", "it is that already")
