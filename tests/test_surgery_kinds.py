"""What hangs on a layer as it becomes one of another kind: state, options, dtype, and the activation behind it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchnorm.errors import BatchNormError
from batchnorm.surgery import convert
from batchnorm.surgery.convert import activation_of
from batchnorm.torch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, Renorm, frozen
from tolerance import assert_close

SHAPE = (6, 4, 3, 3)
TORCHS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
OURS = {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}


def used(layer: Any, shape: tuple[int, ...] = SHAPE) -> Any:
    """Give a layer state that is not that of the beginning."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer(torch.randn(shape) * 2 + 1)
    return layer


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardswish, nn.Mish, nn.RReLU])
def test_any_activation_of_timms_stays_the_module_that_it_is(activation: type[nn.Module]) -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    model = nn.Sequential(used(layers.BatchNormAct2d(4, act_layer=activation))).eval()
    said, act, before, x = repr(model), model[0].act, state(model), torch.randn(SHAPE)
    y = model(x).detach().numpy()
    convert(model, "torch")
    assert (type(model[0][0]), model[0][1] is act, activation_of(model[0]) is act) == (nn.BatchNorm2d, True, True)
    assert not model[0].training
    assert_close(model(x).detach().numpy(), y, "float32", 4)
    for to in ("timm", "batchnorm", "timm"):
        convert(model, to)
        assert_close(model(x).detach().numpy(), y, "float32", 4)
        assert isinstance(model[0], nn.Sequential) == (to == "batchnorm")
    assert (repr(model), list(state(model))) == (said, list(before))
    if activation is nn.Hardswish:
        convert(model)
        assert type(model[0][0]) is BatchNorm2d
        with pytest.raises(BatchNormError, match="it is that already"):
            convert(model)
        assert convert(model, activation="relu").names == ["0"]
        assert (type(model[0]), model[0].activation) == (BatchNorm2d, "relu")


@pytest.mark.parametrize(
    "options",
    [{"renorm": Renorm()}, {"running_variance": "biased"}, {"adjustment": lambda _: (1.0, 0.0)}, {"axis": 1}],
    ids=lambda options: next(iter(options)),
)
def test_foreign_layers_carry_nothing_of_ours(options: dict[str, Any]) -> None:
    model = nn.Sequential(BatchNorm1d(4, **options))
    frozen(model).apply()
    model[0].tag = "mine"
    convert(model, "torch", lose=True)
    assert set(vars(model[0])) == {*vars(nn.BatchNorm1d(4)), "tag"}
    assert repr(pickle.loads(pickle.dumps(model))) == repr(model)
    convert(model, "batchnorm")
    assert (set(vars(model[0])) - set(vars(BatchNorm1d(4))), model[0].frozen) == ({"tag"}, False)


def test_a_warning_said_is_not_said_again() -> None:
    model = nn.Sequential(BatchNorm1d(4))
    with pytest.warns(RuntimeWarning, match="1 batch with inf"):
        model(torch.full((4, 4), torch.inf))
    convert(model, "ghost", virtual_batch_size=2)
    assert model.eval()[0].skipped() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_statistics_in_16_bits_survive_both_ways(dtype: torch.dtype) -> None:
    model = nn.Sequential(used(nn.BatchNorm2d(4)).to(dtype))
    for there, back in (("batchnorm", "torch"), ("torch", "batchnorm")):
        before = state(model)
        for to in (there, back):
            convert(model, to)
        assert {n: (v.dtype, v.tolist()) for n, v in state(model).items()} == {
            n: (v.dtype, v.tolist()) for n, v in before.items()
        }
        convert(model, "batchnorm", allow_empty=True)


def test_statistics_that_16_bits_cannot_hold_are_not_rounded_in_silence() -> None:
    model = nn.Sequential(BatchNorm2d(4).half())
    model[0].running_mean.fill_(0.1)
    with pytest.raises(BatchNormError, match=r"statistics in float16 beside .* changes running_mean \(lose=True"):
        convert(model, "torch")
    huge = copy.deepcopy(model)
    huge[0].running_var.fill_(1e5)
    with pytest.raises(BatchNormError, match="float16 parameters, which makes running_var inf"):
        convert(huge, "torch", lose=True)
    assert huge[0].running_var.tolist() == [1e5] * 4
    convert(huge.float(), "torch")
    convert(model, "torch", lose=True)
    assert (model[0].running_mean.dtype, huge[0].running_var.tolist()) == (torch.float16, [1e5] * 4)
    lost = nn.Sequential(BatchNorm2d(4).bfloat16())  # NaN and inf are what bfloat16 holds, too
    lost[0].running_mean.fill_(torch.nan)
    lost[0].running_var.fill_(torch.inf)
    assert convert(lost, "torch").names == ["0"]
    plain = nn.Sequential(BatchNorm2d(4, affine=False).half())  # whose statistics stay in float32
    plain[0].running_mean.fill_(0.1)
    assert convert(plain, "torch").names == ["0"]
    assert plain[0].running_mean.dtype == torch.float32


@pytest.mark.usefixtures("torchvision")
def test_statistics_of_timms_layers_are_not_rounded_either() -> None:
    pytest.importorskip("timm.layers", reason="timm is not installed")
    model = nn.Sequential(BatchNorm2d(4).half())
    model[0].running_mean.fill_(0.1)
    with pytest.raises(BatchNormError, match=r"timm's layer keeps statistics in float16 .* changes running_mean"):
        convert(model, "timm")
    convert(model, "timm", lose=True)
    assert model[0].running_mean.dtype == torch.float16


@pytest.mark.parametrize("to", ["group", "instance", "layer", "torch"])
def test_options_that_are_dropped_are_named(to: Any) -> None:
    options = {"virtual_batch_size": 4, "nonfinite": "raise", "activation": "relu"}
    model = nn.Sequential(BatchNorm2d(4, **options), BatchNorm2d(4))
    said = [change.what for change in convert(model, to, **({"lose": True} if to == "torch" else {})).changes]
    assert said == ["without virtual_batch_size=4, nonfinite='raise'", ""]


def test_an_activation_goes_behind_and_comes_back() -> None:
    both = used(BatchNorm2d(4, activation="leaky_relu"))
    model = nn.Sequential(both, nn.ModuleList([BatchNorm2d(4), both])).eval()
    both.tag = "mine"
    said, before, parameters = repr(model), state(model), list(model.parameters())
    x = torch.randn(SHAPE)
    y = model[0](x).detach().numpy()
    report = convert(model, "torch")
    assert report.notes == [
        "the names of weights have changed for layers 0: with an activation behind it a layer is two modules"
    ]
    assert model[0] is model[1][1]
    assert "0.0.weight" in state(model)
    for one in (model[0], copy.deepcopy(model[0]), pickle.loads(pickle.dumps(model[0]))):
        assert [type(part) for part in one] == [nn.BatchNorm2d, nn.LeakyReLU]
        assert not any(part.training for part in one.modules())
        assert_close(one(x).detach().numpy(), y, "float32", 4)
    with pytest.raises(BatchNormError, match=r"1\.0: it is that already"):
        convert(model, "torch")
    assert convert(model, "torch", layers=nn.BatchNorm2d, sync=True).names == ["0", "1.0"]
    assert convert(model, "torch", sync=False, rank=4).notes == []
    report = convert(copy.deepcopy(model), "group")
    assert [type(part) for part in report.model[0]] == [nn.GroupNorm, nn.LeakyReLU]
    assert len(convert(model, layers=["0", "1.0"]).notes) == 1
    assert (repr(model), list(state(model)), model[0].tag) == (said, list(before), "mine")
    assert all(torch.equal(v, before[n]) for n, v in state(model).items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model[0] is model[1][1]


def test_only_what_convert_has_put_together_becomes_one() -> None:
    written = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    assert convert(written).names == ["0.0"]
    hooked, shared, longer = (nn.Sequential(BatchNorm2d(4, activation="relu")) for _ in range(3))
    for model in (hooked, shared, longer):
        convert(model, "torch")
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(BatchNormError, match="0: it has hooks"):
        convert(hooked)
    shared.append(shared[0][0])
    assert convert(shared).names == ["0.0"]
    assert shared[0][0] is shared[1]
    longer[0].append(nn.Dropout())
    assert convert(longer).names == ["0.0"]
    assert [type(part) for part in longer[0]] == [BatchNorm2d, nn.ReLU, nn.Dropout]
    twice = nn.Sequential(BatchNorm2d(4, activation="relu"))
    convert(twice, "torch")
    twice[0][0] = BatchNorm2d(4, activation="tanh")
    assert convert(twice, "torch").names == ["0.0"]
    assert [type(part) for part in twice[0][0]] == [nn.BatchNorm2d, nn.Tanh]


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_synchronized_layers_become_plain_ones(rank: int) -> None:
    dims = max(1, rank - 2)
    model = nn.Sequential(used(nn.SyncBatchNorm(4).eval()), BatchNorm(4, sync=True), OURS[dims](4, sync=True))
    before = state(model[0])
    assert len(convert(model, "torch", sync=False, rank=rank).changes) == 3
    assert {type(layer) for layer in model} == {TORCHS[dims]}
    assert all(torch.equal(v, before[n]) for n, v in state(model[0]).items())
    assert model.eval()(torch.randn((2, 4, 3, 3, 3)[:rank])).shape == (2, 4, 3, 3, 3)[:rank]
    convert(model, "torch", sync=True)
    assert {type(layer) for layer in model} == {nn.SyncBatchNorm}
