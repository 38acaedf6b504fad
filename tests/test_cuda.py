"""Plain calls on a GPU, without one: torch's operators run on a CPU, and a fake stands for the one that does not."""

from typing import Any

import array_api_compat.torch as xp
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from batchnorm import reference
from batchnorm.core.passes import NormInputs
from batchnorm.kernels import Backend, Mode
from batchnorm.kernels.cuda import CudaKernel, unsupported
from batchnorm.layout import axes_of
from batchnorm.torch import BatchNorm, Renorm
from batchnorm.torch.backends import facts_of
from choosing import with_backends
from namespaces import to_numpy
from options import normal
from tolerance import assert_close


class Operators:
    """torch's operators, each call held against the schema of the installed torch."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        operator = getattr(torch.ops.aten, name).default

        def call(*arguments: Any) -> Any:
            assert len(arguments) == len(operator._schema.arguments)
            self.calls.append(name)
            if name != "batch_norm_elemt":
                return operator(*arguments)
            for value, argument in zip(arguments, operator._schema.arguments, strict=True):
                assert isinstance(value, float if str(argument.type) == "float" else Tensor), argument.name
            x, weight, bias, mean, inv_std, _ = arguments  # what torch has for a GPU alone
            assert {t.shape for t in (weight, bias, mean, inv_std)} == {(x.shape[1],)}
            scale, shift, center = (t.reshape(-1, *[1] * (x.ndim - 2)) for t in (weight * inv_std, bias, mean))
            return ((x.to(weight.dtype) - center) * scale + shift).to(x.dtype)

        return call


def as_on_a_gpu(operators: Operators) -> Backend:
    return Backend("cuda", "cpu", unsupported, lambda facts: CudaKernel(xp, operators, facts.eps))


def step(layer: BatchNorm, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    assert x.grad is not None
    got = {"y": y.detach(), "dx": x.grad}
    got |= {f"d{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return got | dict(layer.named_buffers())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16, 3), (8, 3, 5), (4, 3, 6, 7)])
def test_a_plain_step_is_by_torchs_operators_and_right(
    shape: tuple[int, ...], dtype: torch.dtype, affine: bool, training: bool
) -> None:
    operators, (x, dy) = Operators(), (normal(shape, i, dtype) for i in range(2))
    layer = BatchNorm(shape[1], affine=affine, dtype=dtype).train(training)
    twin = BatchNorm(shape[1], affine=affine, dtype=dtype).train(training)
    with with_backends(xp, as_on_a_gpu(operators)):
        got = step(layer, x, dy)
        with torch.no_grad():
            layer.eval()(x)
    expected = step(twin, x, dy)
    name = "float64" if dtype == torch.float64 else "float32"
    assert got.keys() == expected.keys()
    for key, value in got.items():
        assert value.dtype == expected[key].dtype, key
        assert_close(to_numpy(value), to_numpy(expected[key]), name, 16.0)
    trained = ["_batch_norm_with_update", "batch_norm_backward"]
    assert operators.calls == (trained if training else ["batch_norm_elemt"]) + ["batch_norm_elemt"]
    assert "kernel=" not in repr(layer)


def test_the_moments_are_those_of_the_reference_and_one_value_has_none() -> None:
    kernel, x = CudaKernel(xp, torch.ops.aten, 1e-5), normal((8, 3, 5))
    y, mean, low, m2, inv_std, _ = kernel.forward(x, (0, 2), None, None, eps=1e-5)
    truth = reference.train(x.numpy(), eps=1e-5)
    assert_close(to_numpy(y), truth.y, "float64", 8.0)
    assert_close(to_numpy(mean + low), truth.mean, "float64", 8.0)
    assert_close(to_numpy(m2), truth.var * 40, "float64", 64.0)
    assert_close(to_numpy(inv_std), 1.0 / (truth.var + 1e-5) ** 0.5, "float64", 8.0)
    assert not kernel.forward(x[:1, :, :1], (0, 2), None, None, eps=1e-5).m2.any()


def test_a_batch_with_inf_is_skipped_as_everywhere() -> None:
    layer, x = BatchNorm(3), torch.randn(8, 3)
    with with_backends(xp, as_on_a_gpu(Operators())):
        layer(x)
        before = {name: b.clone() for name, b in layer.named_buffers()}
        with pytest.warns(RuntimeWarning, match="1 batch with inf or NaN"):
            layer(x / 0.0)
    assert all(torch.equal(b, before[name]) for name, b in layer.named_buffers())
    assert layer.skipped() == 1


OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "weights": ({}, ("weights",), "torch's kernels for GPUs have no `weights`"),
    "residual": ({}, ("residual",), "torch's kernels for GPUs have no `residual`"),
    "activation": ({"activation": "relu"}, (), "torch's kernels for GPUs have no `activation`"),
    "both": ({"activation": "relu"}, ("residual",), "have no `residual` and no `activation`"),
    "axis": ({"axis": -1}, (), "torch's kernels for GPUs take plain tensors with features along axis 1"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_what_torch_has_no_kernel_for_says_so(kind: str) -> None:
    options, names, reason = OPTIONS[kind]
    x, operators = torch.randn(6, 3, 3), Operators()
    call = {name: torch.randn(6, 3, 3) if name == "residual" else torch.ones(6, 3) for name in names}
    layer, twin = BatchNorm(3, **options), BatchNorm(3, **options)
    with with_backends(xp, as_on_a_gpu(operators)):
        y = layer(x, **call)
    assert f"kernel=eager: {reason}" in repr(layer) or reason in repr(layer)
    assert not operators.calls
    assert_close(to_numpy(y.detach()), to_numpy(twin(x, **call).detach()), "float32", 8.0)


@pytest.mark.parametrize("options", [{"renorm": Renorm()}, {"virtual_batch_size": 2}, {"momentum": None}], ids=str)
def test_options_of_the_middle_step_keep_their_values(options: dict[str, Any]) -> None:
    x, dy = normal((8, 3), 0), normal((8, 3), 1)
    layer, twin = BatchNorm(3, **options).double(), BatchNorm(3, **options).double()
    with with_backends(xp, as_on_a_gpu(Operators())):
        got = step(layer, x, dy)
    for key, value in step(twin, x, dy).items():
        assert_close(to_numpy(got[key]), to_numpy(value), "float64", 16.0)


def test_second_derivatives_are_of_framework_operations() -> None:
    x = normal((6, 3)).requires_grad_()
    with with_backends(xp, as_on_a_gpu(Operators())):
        assert torch.autograd.gradgradcheck(BatchNorm(3, affine=False).double(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_dtypes(dtype: torch.dtype) -> None:
    kernel = CudaKernel(xp, torch.ops.aten, 1e-5)
    with torch.device("meta"):
        x, number = torch.empty(4, 3, 6, 7, dtype=dtype), torch.ones(1, 3, 1, 1)
        y, mean, low, m2, inv_std, reserve = kernel.forward(x, (0, 2, 3), number, number, eps=1e-5)
        gradients = kernel.backward(
            y, x, mean, low, inv_std, number, number, None, reserve=reserve,
            wants_dx=True, wants_dz=False, wants_sums=True,
        )  # fmt: skip
    numbers = (mean, low, m2, inv_std, gradients.sum_dz, gradients.sum_dz_centred)
    assert all((t.shape, t.dtype, t.device.type) == (number.shape, torch.float32, "meta") for t in numbers)  # pyright: ignore
    assert all((t.shape, t.dtype) == (x.shape, dtype) for t in (y, gradients.dx))  # pyright: ignore


def test_the_facts_of_a_tensor_on_a_gpu_choose_it() -> None:
    with FakeTensorMode():
        x = torch.empty(4, 3, 6, 7, device="cuda")
    facts = facts_of(NormInputs(x), axes_of(4, 1), activation=None, eps=1e-5)
    assert (facts.device, facts.mode) == ("cuda", Mode.DISPATCH_MODE)  # of the fake tensor, which is a subclass
    assert unsupported(facts) == Mode.DISPATCH_MODE.value
    assert unsupported(facts._replace(mode=Mode.EAGER, is_plain=True)) is None
    assert unsupported(facts._replace(mode=Mode.EAGER, is_plain=False)) is not None


def strided(x: Tensor) -> Tensor:
    return torch.stack((x, x), -1)[..., 0]


@pytest.mark.parametrize(
    ("make", "reason"),
    [(strided, "the input lies in no memory format of torch"), (lambda x: x[:, :0], "the input is empty")],
)
def test_what_cudnn_would_refuse_is_left_to_the_eager_kernel(make: Any, reason: str) -> None:
    x = make(normal((4, 3, 6, 7)))
    facts = facts_of(NormInputs(x), axes_of(4, 1), activation=None, eps=1e-5)
    assert unsupported(facts) == reason
    assert unsupported(facts_of(NormInputs(normal((4, 3, 6, 7))), axes_of(4, 1), activation=None, eps=1e-5)) is None
    last = normal((4, 3, 6, 7)).to(memory_format=torch.channels_last)
    assert unsupported(facts_of(NormInputs(last), axes_of(4, 1), activation=None, eps=1e-5)) is None


def test_forward_and_backward_let_torch_choose_by_the_same_arguments() -> None:
    given: list[list[bool]] = []

    class Noting(Operators):
        def __getattr__(self, name: str) -> Any:
            call = super().__getattr__(name)

            def noted(*arguments: Any) -> Any:
                at = (1, 2) if name == "_batch_norm_with_update" else (2,)
                given.append([arguments[i] is not None for i in at])
                return call(*arguments)

            return noted

    with with_backends(xp, as_on_a_gpu(Noting())):
        step(BatchNorm(3, affine=False).double(), normal((8, 3)), normal((8, 3), 1))
    assert given == [[True, True], [True]]


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_one_value_that_is_not_finite_is_skipped(bad: float) -> None:
    layer = BatchNorm(3, small_batch="allow")
    with with_backends(xp, as_on_a_gpu(Operators())), pytest.warns(RuntimeWarning, match="1 batch"):
        layer(torch.tensor([[bad, 0.0, 0.0]]))
    assert layer.running_mean is not None
    assert layer.running_mean.isfinite().all()
    assert layer.skipped() == 1
