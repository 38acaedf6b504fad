"""What goes wrong in training leaves no trace or is refused; what repeats a step does not count it twice."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from batchnorm.errors import ArgumentError, BatchNormError, NonFiniteError, ShapeError
from batchnorm.torch import BatchNorm, Renorm, accumulate
from namespaces import to_numpy
from states import assert_alike, assert_identical, buffers
from tolerance import assert_close

RENORM = Renorm(rmax=1.5, dmax=0.5, momentum=0.2)
quiet = pytest.mark.filterwarnings("ignore:.* left the running statistics untouched:RuntimeWarning")


def batch(*shape: int, seed: int = 0) -> Tensor:
    return 2.0 + 3.0 * torch.randn(shape or (8, 3), generator=torch.Generator().manual_seed(seed))


def spoilt(kind: str) -> Tensor:
    x = batch()
    x[2, 1] = {"nan": torch.nan, "inf": torch.inf, "overflow": 1e20}[kind]
    return x


@quiet
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"renorm": RENORM}, {"virtual_batch_size": 4}], ids=str)
@pytest.mark.parametrize("kind", ["nan", "inf", "overflow"])
def test_a_bad_batch_leaves_no_trace_after_good_ones(kind: str, options: dict[str, Any]) -> None:
    layer, twin = BatchNorm(3, **options), BatchNorm(3, **options)
    layer(spoilt(kind))
    for seed in range(5):
        layer(batch(seed=seed))
        twin(batch(seed=seed))
    assert_identical(layer.state_dict(), twin.state_dict())
    assert layer.skipped() == 1


@quiet
@pytest.mark.parametrize("options", [{}, {"renorm": RENORM}, {"virtual_batch_size": 4}], ids=str)
def test_a_bad_batch_with_weights_is_skipped(options: dict[str, Any]) -> None:
    layer = BatchNorm(3, **options)
    before = copy.deepcopy(layer.state_dict())
    layer(spoilt("inf"), weights=torch.linspace(0.5, 2.0, 8))
    assert_identical(layer.state_dict(), before)
    assert layer.skipped() == 1


@quiet
def test_a_thousand_good_batches_heal_what_they_never_do_in_torch() -> None:
    layer, torchs = BatchNorm(3), nn.BatchNorm1d(3)
    for one in (layer, torchs):
        one(spoilt("inf"))
        for _ in range(1000):
            one(batch())
    assert_close(to_numpy(layer.running_mean), to_numpy(batch().mean(0)), "float32", 10.0)
    assert not torchs.running_var[1].isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bad_batch_in_16_bits_is_skipped(dtype: torch.dtype) -> None:
    layer = BatchNorm(3)
    before = copy.deepcopy(layer.state_dict())
    with pytest.warns(RuntimeWarning, match="1 batch with inf or NaN"):
        layer(spoilt("inf").to(dtype))
    assert_identical(layer.state_dict(), before)


def test_a_merge_that_overflows_is_left_out() -> None:
    layer, far = BatchNorm(1), torch.full((2, 1), 1.5e19)
    before = copy.deepcopy(layer.state_dict())
    with pytest.warns(RuntimeWarning, match="1 batch of finite values whose variance overflows"), accumulate(layer):  # noqa: PT031
        layer(far)
        layer(-far)
    assert_identical(layer.state_dict(), before)


def test_raising_at_a_bad_batch_names_the_layer_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Identity(), BatchNorm(3, nonfinite="raise"))
    before = buffers(model)
    with pytest.raises(NonFiniteError, match=r"^1 \(BatchNorm\): `input` of shape \(8, 3\) holds inf or NaN"):
        model(spoilt("nan"))
    assert_identical(buffers(model), before)


def test_propagating_is_what_torch_does() -> None:
    layer, torchs = BatchNorm(3, nonfinite="propagate"), nn.BatchNorm1d(3)
    for one in (layer, torchs):
        one(spoilt("nan"))
    assert layer.running_mean.isnan().tolist() == torchs.running_mean.isnan().tolist() == [False, True, False]
    assert (layer.num_batches_tracked, layer.skipped()) == (1, 0)


def named() -> nn.Module:
    model = nn.Sequential(nn.Sequential())
    model[0].add_module("norm", BatchNorm(3))
    return model


def test_the_first_bad_batch_is_told_once_by_the_layers_name(recwarn: pytest.WarningsRecorder) -> None:
    model = named()
    with pytest.warns(RuntimeWarning, match=r"^0\.norm \(BatchNorm\): 1 batch with inf or NaN left"):
        model(spoilt("nan"))
    model(spoilt("nan"))
    model.train().state_dict()
    assert model[0].norm.skipped() == 2
    assert "nonfinite_batches=2" in repr(model)
    assert len(recwarn) == 0


@pytest.mark.parametrize("ask", [nn.Module.train, nn.Module.eval, nn.Module.state_dict])
def test_batches_skipped_where_reading_would_wait_are_told_later(ask: Any) -> None:
    model = named()
    model[0].norm.nonfinite_batches.fill_(3)
    with pytest.warns(
        RuntimeWarning,
        match=r"^0\.norm \(BatchNorm\): 3 batches with inf or NaN, or of finite values whose variance overflows",
    ):
        ask(model)
    ask(model)


def test_one_value_per_feature_is_refused_by_name_and_shape() -> None:
    with pytest.raises(ShapeError, match=r"^0\.norm \(BatchNorm\): Expected more than 1 .* \(1, 3\)"):
        named()(batch(1, 3))
    with pytest.raises(ShapeError, match=r"\(5, 3\) in 5 virtual batches"):
        BatchNorm(3, virtual_batch_size=1)(batch(5, 3))


@pytest.mark.parametrize(("options", "rows"), [({}, 1), ({"virtual_batch_size": 1}, 5), ({"renorm": RENORM}, 1)])
def test_one_value_per_feature_is_normalised_by_running_statistics(options: dict[str, Any], rows: int) -> None:
    layer = BatchNorm(3, small_batch="running", **options)
    layer.running_mean.fill_(2.0)
    before, x = buffers(layer), batch(rows, 3)
    assert torch.equal(layer(x), layer.eval()(x))
    assert_identical(buffers(layer), before)


def test_one_value_per_feature_may_be_allowed() -> None:
    layer = BatchNorm(3, small_batch="allow")
    assert torch.equal(layer(batch(1, 3)), torch.zeros(1, 3))
    assert layer.num_batches_tracked == 1


OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"renorm": RENORM},
    {"virtual_batch_size": 2},
    {"activation": "relu"},
    {"small_batch": "running"},
    {"nonfinite": "raise"},
    {"adjustment": lambda shape: (2.0, 1.0)},
    {"track_running_stats": False},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")


@every_option
def test_an_empty_batch_moves_nothing(options: dict[str, Any]) -> None:
    layer = BatchNorm(3, **options)
    before, x = buffers(layer), torch.empty(0, 3, requires_grad=True)
    layer(x, residual=torch.empty(0, 3), weights=torch.empty(0)).sum().backward()
    assert x.grad.shape == (0, 3)
    assert_identical(buffers(layer), before)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"virtual_batch_size": 2}], ids=str)
def test_no_weight_at_all_is_inference(options: dict[str, Any]) -> None:
    layer = BatchNorm(3, **options)
    layer(batch())
    before, x = buffers(layer), batch(6, 3, seed=1).requires_grad_()
    y = layer(x, weights=torch.zeros(6))
    (y * y.detach()).sum().backward()
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    assert_close(to_numpy(y), to_numpy((x - layer.running_mean) * scale), "float32", 10.0)
    assert_close(to_numpy(x.grad), to_numpy(y * scale), "float32", 10.0)
    assert_identical(buffers(layer), before)


def test_no_weight_at_all_is_finite_without_running_statistics() -> None:
    assert BatchNorm(3, track_running_stats=False)(batch(), weights=torch.zeros(8)).isfinite().all()


@pytest.mark.parametrize("filler", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("options", [{}, {"renorm": RENORM}, {"activation": "gelu"}], ids=str)
def test_padding_reaches_no_output_gradient_or_statistic(filler: float, options: dict[str, Any]) -> None:
    layer, twin, real = BatchNorm(3, **options), BatchNorm(3, **options), torch.arange(8) % 3 > 0
    x, skip, dy = batch(), batch(seed=1), batch(seed=2)
    compact = x[real].requires_grad_()
    padded, residual = (torch.where(real[:, None], a, filler).requires_grad_() for a in (x, skip))
    y, expected = layer(padded, residual, real), twin(compact, skip[real])
    (y[real] * dy[real]).sum().backward()
    (expected * dy[real]).sum().backward()
    assert_alike({"y": y[real], "dx": padded.grad[real]}, {"y": expected, "dx": compact.grad})
    assert not padded.grad[~real].any()
    assert not residual.grad[~real].any()
    assert_alike({n: p.grad for n, p in layer.named_parameters()}, {n: p.grad for n, p in twin.named_parameters()})
    assert_alike(buffers(layer), buffers(twin))


def test_features_last_equals_torch_transposed() -> None:
    layer, torchs, x = BatchNorm(3, axis=-1), nn.BatchNorm1d(3), batch(4, 5, 3)
    assert_alike({"y": layer(x)}, {"y": torchs(x.mT).mT})
    assert_alike(layer.state_dict(), torchs.state_dict())


@pytest.mark.parametrize("options", [{"axis": -1}, {"renorm": RENORM}, {"activation": "relu"}], ids=str)
def test_torchs_conversion_to_sync_refuses_to_lose_an_option(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"SyncBatchNorm would lose {next(iter(options))}="):
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(BatchNorm(3, **options)))


def test_torchs_conversion_to_sync_takes_a_plain_layer() -> None:
    model = nn.Sequential(BatchNorm(3))
    model(batch())
    expected = copy.deepcopy(model.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted[0], nn.SyncBatchNorm)
    assert_identical(dict(expected), converted.state_dict())


BAD_CALLS: dict[str, Any] = {
    "rank": lambda x: (x[0],),
    "features": lambda x: (x[:, :1],),
    "dtype": lambda x: (x.int(),),
    "residual shape": lambda x: (x, x[:1]),
    "residual dtype": lambda x: (x, x.int()),
    "weights shape": lambda x: (x, None, torch.ones(len(x) + 1)),
    "weights gradient": lambda x: (x, None, torch.ones(len(x), requires_grad=True)),
    "weights dtype": lambda x: (x, None, [1.0] * len(x)),
}
BAD_OPTIONS = {"momentum": 2.0, "eps": -1.0, "virtual_batch_size": 0, "activation": "x", "renorm": 1, "nonfinite": "x"}


@given(
    st.sampled_from([o for o in OPTIONS if "track_running_stats" not in o]),
    st.lists(st.sampled_from([*BAD_CALLS, *BAD_OPTIONS]), min_size=1, max_size=3),
    st.integers(2, 9),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_failed_calls_change_nothing_and_a_good_one_works_after(
    options: dict[str, Any], failures: list[str], rows: int, dtype: torch.dtype
) -> None:
    layer, x = BatchNorm(3, **options), batch(2 * rows, 3).to(dtype)
    before = buffers(layer)
    for failure in failures:
        kept = getattr(layer, failure, None)
        if failure in BAD_OPTIONS:
            setattr(layer, failure, BAD_OPTIONS[failure])
        with pytest.raises(BatchNormError):
            layer(*BAD_CALLS.get(failure, lambda x: (x,))(x))
        if failure in BAD_OPTIONS:
            setattr(layer, failure, kept)
        assert_identical(buffers(layer), before)
    assert layer(x).isfinite().all()
    assert layer.num_batches_tracked == 1


STEPS: list[tuple[dict[str, Any], Any]] = [
    ({}, None),
    ({"renorm": RENORM, "momentum": 0.5}, None),
    ({"renorm": RENORM, "momentum": None}, torch.arange(8) % 3),
    ({"momentum": None}, torch.zeros(8)),
]


class Block(nn.Module):
    def __init__(self, layer: Any, count: int, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norms = nn.Linear(3, 3), nn.ModuleList(layer(3, **options) for _ in range(count))

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.linear(x).tanh(), *([None, *weights] if weights else []))
        return x


def train_twice(model: nn.Module, again: dict[str, Any] | None, *weights: Tensor) -> dict[str, Tensor]:
    x = batch().requires_grad_()
    for _ in range(2):
        y = model(x, *weights) if again is None else checkpoint(model, x, *weights, **again)
        y.pow(3).sum().backward()
    return buffers(model) | {name: p.grad for name, p in model.named_parameters()} | {"x": x.grad}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("options", "weights"), STEPS, ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_checkpointing_repeats_the_step_without_counting_it_again(
    options: dict[str, Any], weights: Any, count: int, reentrant: bool
) -> None:
    given_weights = [] if weights is None else [weights]
    model, twin = (Block(BatchNorm, count, **options) for _ in range(2))
    again = train_twice(model, {"use_reentrant": reentrant}, *given_weights)
    assert_identical(again, train_twice(twin, None, *given_weights))
    assert model.norms[0].num_batches_tracked == (0 if weights is not None and not weights.any() else 2)


def test_checkpointing_counts_every_step_twice_in_torch() -> None:
    model = Block(nn.BatchNorm1d, 1)
    train_twice(model, {"use_reentrant": False})
    assert model.norms[0].num_batches_tracked == 4


REPLICAS = [{"virtual_batch_size": 2}, {"renorm": RENORM}, {"activation": "relu"}, {"momentum": None}]


@pytest.mark.parametrize("options", REPLICAS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_replicas_under_vmap_equal_a_loop(options: dict[str, Any], weighted: bool) -> None:
    replicas, xs, skips = [BatchNorm(3, **options) for _ in range(3)], batch(3, 8, 3), batch(3, 8, 3, seed=1)
    weights = torch.arange(24).reshape(3, 8) % 3 if weighted else None
    parameters, states = stack_module_state(replicas)
    base = BatchNorm(3, **options)

    def call(p: Any, s: Any, *args: Any) -> Tensor:
        return functional_call(base, (p, s), args)

    args = (parameters, states, xs, skips) if weights is None else (parameters, states, xs, skips, weights)
    ys = vmap(call)(*args)
    for i, one in enumerate(replicas):
        expected = one(xs[i], skips[i], None if weights is None else weights[i])
        assert_alike({"y": ys[i]} | {n: s[i] for n, s in states.items()}, {"y": expected} | buffers(one))


@pytest.mark.parametrize("options", REPLICAS, ids=str)
def test_torchs_transforms_differentiate_the_training_step(options: dict[str, Any]) -> None:
    layer, x = BatchNorm(3, track_running_stats="renorm" in options, **options), batch().requires_grad_()
    state = dict(layer.named_parameters())

    def loss(x: Tensor) -> Tensor:
        copies = {name: b.clone() + 0 * x.detach().sum().to(b.dtype) for name, b in layer.named_buffers()}
        return functional_call(layer, (state, copies), (x,)).pow(3).sum()

    (expected,) = torch.autograd.grad(loss(x), x)
    for transform in (grad, jacrev):
        assert_close(to_numpy(transform(loss)(x.detach())), to_numpy(expected), "float32", 10.0)
