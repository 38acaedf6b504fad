"""Programs of others around the layer: what builds, loads, moves, exports, traces, quantizes or rebuilds it."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchnorm.errors import ArgumentError, BatchNormError, ShapeError
from batchnorm.surgery import convert, fold, insert
from batchnorm.torch import BatchNorm, BatchNorm1d, BatchNorm2d, Renorm, batch_norm, hold_statistics, transaction
from choosing import without_native
from namespaces import to_numpy
from tolerance import assert_close

ACTIVATIONS = [None, "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"]
deprecated = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning"),
]


def images(n: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n)).to(dtype)


def used(layer: Any) -> Any:
    """Return the layer with parameters and statistics that are not those it starts with."""
    generator = torch.Generator().manual_seed(1)
    for p in (layer.weight, layer.bias, layer.running_mean):
        nn.init.normal_(p, generator=generator)
    nn.init.uniform_(layer.running_var, 0.5, 2.0, generator=generator)
    return layer


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), used(BatchNorm2d(4, **options)))


def close(a: Any, b: Any, scale: float = 4.0) -> None:
    assert_close(to_numpy(a), to_numpy(b), "float32", scale)


def operators(program: Any) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


class Residual(nn.Module):
    """A layer with a residual, which torch's has not."""

    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.norm = used(BatchNorm2d(3, activation=activation))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, residual=x)


class TestExported:
    pytestmark = deprecated

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_inference_is_torchs_operator_and_the_activations(self, activation: str | None) -> None:
        model = Residual(activation).eval()
        program = torch.export.export(model, (images(),))
        assert operators(program)[0] == "aten.batch_norm.default"
        assert len(operators(program)) == 2 + (activation is not None)
        close(program.module()(images(4)), model(images(4)))

    @pytest.mark.parametrize("layer", [BatchNorm(6, axis=-1), BatchNorm(6, axis=2), BatchNorm(6, axis=-2)], ids=str)
    def test_features_may_lie_along_any_axis_but_the_first(self, layer: BatchNorm) -> None:
        model = used(layer).eval()
        program = torch.export.export(model, (images(),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
        assert "aten.batch_norm.default" in operators(program)
        close(program.module()(images(5)), model(images(5)))

    def test_what_torch_has_no_operator_for_is_written_down_in_parts(self) -> None:
        model = nn.Sequential(BatchNorm((1, 3, 1, 6), axis=(1, 3))).eval()
        program = torch.export.export(model, (images(),))
        assert "aten.batch_norm.default" not in operators(program)
        close(program.module()(images()), model(images()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_dtypes(self, dtype: torch.dtype) -> None:
        model = used(BatchNorm2d(3)).to(dtype).eval()
        program = torch.export.export(model, (images(dtype=dtype),))
        assert_close(
            to_numpy(program.module()(images(dtype=dtype))), to_numpy(model(images(dtype=dtype))), str(dtype)[6:], 8
        )

    def test_a_program_for_training_is_torchs_operator_and_moves_the_statistics_as_the_layer_does(self) -> None:
        model, twin = network(activation="relu"), network(activation="relu")
        program = torch.export.export(model, (images(),)).module()
        assert "batch_norm" in program.code
        close(program(images()), twin(images()))
        for (name, got), (_, wanted) in zip(program.named_buffers(), twin.named_buffers(), strict=True):
            assert got.dtype == wanted.dtype, name
            close(got, wanted)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"virtual_batch_size": 2}, "virtual_batch_size=2"),
            ({"renorm": Renorm()}, "renorm=Renorm"),
            ({"momentum": None}, "momentum=None"),
            ({"running_variance": "biased"}, "running_variance='biased'"),
        ],
    )
    def test_a_program_for_training_is_refused_where_an_option_would_be_lost(
        self, options: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ArgumentError, match=f"BatchNorm2d: a program for training cannot hold {said}.*eval"):
            torch.export.export(network(**options), (images(),))
        close(
            torch.export.export(network(**options).eval(), (images(),)).module()(images()), network().eval()(images())
        )

    @pytest.mark.parametrize("of_input", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("of_layer", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("of_residual", [None, torch.float32, torch.bfloat16])
    def test_dtypes_mix_as_they_do_in_the_layer(self, of_input: Any, of_layer: Any, of_residual: Any) -> None:
        layer, x = used(BatchNorm2d(3, activation="relu")).to(of_layer).eval(), images(dtype=of_input)
        call = {} if of_residual is None else {"residual": images(5, of_residual)[:4]}
        expected, found = layer(x, **call), torch.export.export(layer, (x,), call).module()(x, **call)
        assert found.dtype == expected.dtype
        assert_close(to_numpy(found), to_numpy(expected), "bfloat16" if of_input == torch.bfloat16 else "float32", 8.0)

    def test_what_does_not_fit_is_refused_as_by_the_layer(self) -> None:
        layer = BatchNorm2d(3).eval()
        for x, call in ((torch.randn(4, 5, 6, 6), {}), (images(), {"residual": images()[:1]})):
            with pytest.raises(ShapeError, match=r"BatchNorm2d: (`|expected 3 features)"):
                torch.export.export(layer, (x,), call)

    def test_inference_by_the_batch_has_every_option(self) -> None:
        layer = BatchNorm2d(3, virtual_batch_size=2, momentum=None, track_running_stats=False).eval()
        close(torch.export.export(layer, (images(),)).module()(images()), layer(images()))

    def test_held_statistics_are_refused_in_training(self) -> None:
        model = network()
        with hold_statistics(model), pytest.raises(ArgumentError, match="cannot hold held statistics"):
            torch.export.export(model, (images(),))

    def test_onnx_has_one_node_a_layer_which_the_runtime_folds_into_the_convolution(self, tmp_path: Path) -> None:
        import onnx
        import onnxruntime

        model, path = network(activation="relu").eval(), tmp_path / "model.onnx"
        torch.onnx.export(model, (images(),), path, dynamo=True, verbose=False, optimize=False)
        assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv", "BatchNormalization", "Relu"]
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert "BatchNormalization" not in [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]
        (y,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
        close(y, model(images()))


class TestTraced:
    pytestmark = deprecated

    @pytest.mark.parametrize("training", [False, True])
    def test_a_trace_runs_and_in_inference_warns_of_nothing(self, training: bool) -> None:
        model = network(activation="silu").train(training)
        with warnings.catch_warnings():  # in training torch's own function warns, of a comparison of sizes
            warnings.simplefilter("ignore" if training else "error", torch.jit.TracerWarning)
            traced = torch.jit.trace(copy.deepcopy(model), (images(),), check_trace=False)
        assert "aten::batch_norm" in str(traced.inlined_graph)
        close(traced(images(7)), model(images(7)))

    def test_scripting_is_refused_by_name_and_leaves_the_model_as_it_is(self) -> None:
        model = network()
        with pytest.raises(BatchNormError, match=r"BatchNorm2d: torch.jit.script cannot compile .*torch.jit.trace"):
            torch.jit.script(model)
        assert type(model[1]) is BatchNorm2d
        plain = copy.deepcopy(model).eval()
        convert(plain, "torch")
        close(torch.jit.script(plain)(images()), model.eval()(images()))

    @pytest.mark.parametrize("prepare", ["prepare_fx", "prepare_qat_fx"])
    def test_quantization_by_fx_says_what_to_call_first(self, prepare: str) -> None:
        from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping, quantize_fx

        mapping = get_default_qconfig_mapping() if prepare == "prepare_fx" else get_default_qat_qconfig_mapping()
        model = network().train(prepare != "prepare_fx")
        with pytest.raises(BatchNormError, match=r'1 .BatchNorm2d.: .*convert\(model, "torch"\)` first'):
            getattr(quantize_fx, prepare)(model, mapping, (images(),))
        convert(model, "torch")
        prepared = getattr(quantize_fx, prepare)(model, mapping, (images(),))
        assert not any(isinstance(m, BatchNorm) for m in prepared.modules())


def one_by_one(layer: nn.Module, checkpoint: dict[str, Tensor]) -> None:
    """Fill in a layer without memory as some loaders do: tensor by tensor, around `_apply` and `load_state_dict`."""
    for name, value in checkpoint.items():
        held = layer._parameters if name in layer._parameters else layer._buffers
        held[name] = nn.Parameter(value) if name in layer._parameters else value


class TestLoaded:
    @pytest.mark.parametrize("options", [{}, {"renorm": Renorm()}], ids=str)
    def test_no_buffer_is_missing_from_a_checkpoint(self, options: dict[str, Any]) -> None:
        layer = BatchNorm(3, **options)
        assert set(dict(layer.named_buffers())) | set(dict(layer.named_parameters())) == set(layer.state_dict())
        y = torch.func.functional_call(layer, layer.state_dict(), (torch.randn(4, 3),), strict=True)
        assert y.shape == (4, 3)

    def test_loaders_that_fill_in_tensors_one_by_one_leave_a_count_of_zero(self) -> None:
        checkpoint = used(BatchNorm(3)).state_dict()
        with torch.device("meta"):
            layer = BatchNorm(3)
        one_by_one(layer, checkpoint)
        assert (layer.skipped(), int(layer.nonfinite_batches)) == (0, 0)
        with pytest.warns(RuntimeWarning, match="1 batch with inf or NaN"):
            layer(torch.full((4, 3), torch.inf))
        assert layer.skipped() == 1

    def test_a_converted_model_without_memory_can_be_filled_in(self) -> None:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        convert(model)
        model.load_state_dict(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).state_dict(), assign=True)
        model(torch.randn(8, 4)).sum().backward()
        assert (model[1].num_batches_tracked, model[1].skipped()) == (1, 0)

    def test_the_count_survives_a_conversion_and_a_copy(self) -> None:
        model = nn.Sequential(BatchNorm(3))
        with pytest.warns(RuntimeWarning, match="1 batch"):
            model(torch.full((4, 3), torch.nan))
        convert(model, "ghost", virtual_batch_size=2)
        assert copy.deepcopy(model)[0].skipped() == 1

    def test_a_step_that_is_taken_back_takes_the_count_back(self) -> None:
        layer = BatchNorm(3)
        with transaction(layer) as step:
            with pytest.warns(RuntimeWarning, match="1 batch"):
                layer(torch.full((4, 3), torch.nan))
            step.rollback()
        assert layer.skipped() == 0

    @pytest.mark.parametrize("options", [{}, {"renorm": Renorm(rmax=2.0)}, {"small_batch": "running"}], ids=str)
    def test_who_switches_tracking_off_holds_the_statistics(self, options: dict[str, Any]) -> None:
        """As Lightning's finetuning callbacks do while the buffers are there."""
        layer, twin = used(BatchNorm1d(3, **options)), used(BatchNorm1d(3, **options))
        layer.track_running_stats = False
        before = {name: b.clone() for name, b in layer.named_buffers()}
        x = torch.randn(8, 3)
        close(layer(x), twin(x))
        assert all(torch.equal(b, before[name]) for name, b in layer.named_buffers())
        layer.track_running_stats = True
        layer(x)
        assert layer.num_batches_tracked == 1

    @pytest.mark.parametrize("options", [{}, {"renorm": Renorm(rmax=2.0)}], ids=str)
    def test_pruned_channels(self, options: dict[str, Any]) -> None:
        layer = used(BatchNorm1d(4, **options))
        layer.num_features = 2
        for name in ("running_mean", "running_var"):
            setattr(layer, name, getattr(layer, name)[:2].clone())
        for name in ("weight", "bias"):
            setattr(layer, name, nn.Parameter(getattr(layer, name)[:2].detach().clone()))
        if options:
            with pytest.raises(
                ShapeError,
                match=r"`running_stddev` must have shape \(2,\).* got \(4,\).*narrow the buffers",
            ):
                layer(torch.randn(8, 2))
            for name in ("running_stddev", "renorm_mean", "renorm_stddev"):
                setattr(layer, name, getattr(layer, name)[:2].clone())
        assert layer(torch.randn(8, 2)).shape == (8, 2)


@pytest.mark.parametrize(
    ("model", "change"),
    [
        (
            nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
            lambda m: insert(m, example_inputs=torch.randn(4, 4)),
        ),
        (
            nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval(),
            lambda m: fold(m, torch.randn(4, 4)),
        ),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), convert),
    ],
    ids=["insert", "fold", "convert"],
)
def test_what_tools_make_in_inference_mode_can_be_trained(model: nn.Module, change: Callable[[nn.Module], Any]) -> None:
    with torch.inference_mode():
        made = change(model).model
    assert not any(t.is_inference() for t in (*made.parameters(), *made.buffers()))
    made.train()(torch.randn(8, 4)).sum().backward()
    assert all(p.grad is not None for p in made.parameters())


def test_gradients_of_single_samples_are_refused_by_name_in_training_alone() -> None:
    """Opacus marks the parameters of which it keeps such gradients, and finds torch's own layers by their class."""
    model, x = nn.Sequential(nn.Linear(4, 3), BatchNorm1d(3)), torch.randn(8, 4)
    for parameter in model.parameters():
        parameter.grad_sample = None
    with pytest.raises(BatchNormError, match=r'1 .BatchNorm1d.: there are no gradients of single samples.*"group"'):
        model(x)
    assert model.eval()(x).shape == (8, 3)


class TestFailedCalls:
    def test_statistics_that_cannot_be_moved_are_refused_before_any_is_moved(self) -> None:
        mean, var = torch.zeros(3), torch.ones(1).expand(3)
        with pytest.raises(ArgumentError, match="`running_var` must have a number in memory for each feature"):
            batch_norm(torch.randn(4, 3), mean, var, training=True)
        layer = BatchNorm(3)
        layer.running_var = var
        with pytest.raises(ArgumentError, match="BatchNorm: `running_var` must"):
            layer(torch.randn(4, 3))
        assert not mean.any()
        assert not layer.running_mean.any()
        assert layer.num_batches_tracked == 0

    @pytest.mark.parametrize(
        ("name", "value"),
        [("num_batches_tracked", torch.tensor(False)), ("running_var", torch.ones(3, dtype=torch.int))],
    )
    def test_buffers_of_other_kinds_are_refused_before_any_is_moved(self, name: str, value: Tensor) -> None:
        layer = BatchNorm(3)
        setattr(layer, name, value)
        with pytest.raises(TypeError, match=f"`{name}` must be .*, got torch"):
            layer(torch.randn(4, 3))
        assert not layer.running_mean.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"renorm": Renorm.paper()}, {"virtual_batch_size": 2}, {"momentum": None}], ids=str
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_default_dtype_of_a_user_changes_no_result(
    dtype: torch.dtype, options: dict[str, Any], masked: bool
) -> None:
    x, results = images(6)[:, :, 0, 0].to(dtype), []
    mask = torch.arange(6) < 5 if masked else None
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            layer = BatchNorm(3, dtype=dtype, **options)
            y = layer(x.detach().requires_grad_(), weights=mask)
            y.sum().backward()
            results.append([y.detach(), *(b.clone() for b in layer.buffers()), layer.eval()(x).detach()])
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(64, 3), (4, 5, 7, 7), (2, 33, 3)])
def test_inference_gives_the_same_bits_with_gradients_and_without(
    dtype: torch.dtype, activation: str | None, added: bool, shape: tuple[int, ...]
) -> None:
    layer = used(BatchNorm(shape[1], activation=activation)).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    residual = x.flip(0) if added else None
    with torch.no_grad():
        expected = layer(x, residual=residual)
    assert torch.equal(layer(x, residual=residual), expected)
    assert torch.equal(layer(x.requires_grad_(), residual=residual), expected)


@pytest.mark.parametrize("kernel", ["native", "eager"])
@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"momentum": 1.0}, {"momentum": 1.0, "renorm": Renorm()}], ids=str
)
def test_a_momentum_of_one_leaves_nothing_of_what_was_there(kernel: str, options: dict[str, Any]) -> None:
    layer, x = BatchNorm(3, **options), 1e-2 * images(64)[:, :, 0, 0].contiguous()
    x = x if kernel == "native" else torch.stack((x, x), 2)[..., 0]  # no dense array
    for name, buffer in layer.named_buffers():
        if buffer.is_floating_point():
            buffer.fill_(-1e8 if "mean" in name else 5000.0)
    layer(x)
    assert ("kernel=eager" in repr(layer)) == (kernel == "eager")
    renormed = "renorm" in options
    var = x.double().var(0, correction=0 if renormed else 1)
    assert_close(to_numpy(layer.running_mean), to_numpy(x.double().mean(0)), "float32", 0.1)
    assert_close(to_numpy(layer.running_var), to_numpy(var), "float32", 0.1 if renormed else 0.001)
    if renormed:  # M and S move by a momentum of their own
        assert_close(to_numpy(layer.running_stddev), to_numpy((var + layer.eps).sqrt()), "float32", 0.1)


@pytest.mark.parametrize("training", [False, True])
def test_hooks_may_bring_what_was_saved_back_in_another_dtype(training: bool) -> None:
    layer, twin = (used(BatchNorm(3, activation="relu")).train(training) for _ in range(2))
    x, residual = (
        torch.randn(64, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in (1, 2)
    )
    double = torch.autograd.graph.saved_tensors_hooks(lambda t: t.double() if t.is_floating_point() else t, lambda t: t)
    with double:
        y = layer(x, residual=residual)
    wanted = torch.autograd.grad(twin(x, residual=residual).square().sum(), [x, residual, *twin.parameters()])
    for a, b in zip(torch.autograd.grad(y.square().sum(), [x, residual, *layer.parameters()]), wanted, strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float32", 64.0)


@pytest.mark.parametrize("kernel", ["native", "eager"])
@pytest.mark.parametrize(
    ("value", "said"), [(torch.nan, "with inf or NaN"), (1e30, "of finite values whose variance over")]
)
def test_a_warning_says_what_was_wrong_with_a_batch(kernel: str, value: float, said: str) -> None:
    x = value * torch.tensor([[1.0, 2.0], [-1.0, 3.0], [-1.0, -3.0], [-1.0, 1.0]])
    x = x if kernel == "native" else torch.stack((x, x), 2)[..., 0]
    with pytest.warns(RuntimeWarning, match=said):
        BatchNorm(2)(x)


def test_a_sample_of_next_to_no_weight_costs_no_digits() -> None:
    x = 1e6 + torch.randn(1001, 1, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(1001)
    for i in (0, 500, 1000):
        x[i], weights[i] = 0.0, 1e-20
    layer = BatchNorm(1, momentum=1.0)
    with without_native():
        layer(x, weights=weights)
    kept = weights.double() > 0.5
    assert "kernel=eager" in repr(layer)
    assert abs(layer.running_mean.double() - x.double()[kept].mean()) <= torch.finfo(torch.float32).eps * 1e6
    close(layer.running_var, x.double()[kept].var(0), 8.0)
