"""Torch's own batch-norm cases: the samples of torch.testing._internal, given to these layers and to torch's."""

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.testing import make_tensor
from torch.testing._internal import common_nn
from torch.testing._internal.common_methods_invocations import op_db, python_ref_db
from torch.testing._internal.common_modules import MODULE_CLASS_NAMES, ModuleInput, module_db
from torch.testing._internal.common_utils import noncontiguous_like
from torch.testing._internal.jit_metaprogramming_utils import get_nn_functional_tests
from torch.testing._internal.opinfo.core import SampleInput
from torch.utils._pytree import tree_map

import batchnorm.torch as ours
from batchnorm.errors import ArgumentError, ShapeError
from namespaces import to_numpy
from tolerance import assert_close, assert_no_worse, largest_error


class Arguments(NamedTuple):  # after the input, in a call of torch.nn.functional.batch_norm
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


def native(weight: Tensor | None, bias: Tensor | None, *others: Any) -> Arguments:
    *running, training, momentum, eps = others
    return Arguments(*(running or (None, None)), weight, bias, training, momentum, eps)


SCRIPTED = "nn_functional_tests batch_norm"
MODULES = {f"nn.BatchNorm{rank}d": getattr(ours, f"BatchNorm{rank}d") for rank in (1, 2, 3)}
OPS: dict[str, Callable[..., Arguments]] = {  # how the arguments of each become those of batch_norm
    "nn.functional.batch_norm": Arguments,
    "native_batch_norm": native,
    "_native_batch_norm_legit": native,
    "_batch_norm_with_update": lambda weight, bias, *others: native(weight, bias, *others[:2], True, *others[2:]),
    SCRIPTED: Arguments,
}
OTHERS = ("nn.LazyBatchNorm1d", "nn.LazyBatchNorm2d", "nn.LazyBatchNorm3d", "nn.SyncBatchNorm")
OTHERS += ("ao.nn.quantized.BatchNorm2d", "ao.nn.quantized.BatchNorm3d")
NOT_RUN = {
    "nn.functional.batch_norm.without_cudnn": "no dtype on a CPU; the samples are those of nn.functional.batch_norm",
    **dict.fromkeys(OTHERS, "torch lists the class, but has no ModuleInfo of it; it is not replaced"),
}
NEGATIVE = (ArgumentError, "a negative momentum moves away from what is observed; the sample is run with another")
NO_FEATURES = (ShapeError, "with a single axis there are no features to normalise")
REFUSED = {  # samples that torch accepts
    "(3, 2, 4) training=False momentum=-1.2": NEGATIVE,
    "(3, 2, 4) training=True momentum=-1.2": NEGATIVE,
    "(3, 2, 3, 4) training=True momentum=-1.0": NEGATIVE,
    "(3, 2, 3, 4) training=False momentum=-1.0": NEGATIVE,
    "(0,) training=True momentum=0.1": NO_FEATURES,
    "(0,) training=False momentum=0.1": NO_FEATURES,
}
UNCOUNTED = {"zero_batch": "an empty batch shows nothing and does not move num_batches_tracked; torch counts it"}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
MODULE_INFOS = {info.name: info for info in module_db}
OP_INFOS = {info.full_name: info for info in op_db}
TORCHS: dict[str, Any] = {name: MODULE_INFOS[name].module_cls for name in MODULES}
TORCHS |= {name: OP_INFOS[name].op if name in OP_INFOS else torch.nn.functional.batch_norm for name in OPS}


class Op(NamedTuple):  # a sample of a function
    name: str
    dtype: torch.dtype
    given: SampleInput

    @property
    def arguments(self) -> Arguments:
        return OPS[self.name](*self.given.args, **self.given.kwargs)

    @property
    def sample(self) -> str:
        return f"{tuple(self.given.input.shape)} training={self.arguments.training} momentum={self.arguments.momentum}"

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.sample}"


class Layer(NamedTuple):  # a module input of a layer
    name: str
    dtype: torch.dtype
    training: bool
    given: ModuleInput

    @property
    def input(self) -> Tensor:
        return self.given.forward_input.args[0].detach()

    def made(self, cls: Callable[..., Any], **options: Any) -> Any:
        return cls(*self.given.constructor_input.args, **self.given.constructor_input.kwargs, **options)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {'training' if self.training else 'inference'} {self.given.desc}"


def scripted_samples(dtype: torch.dtype) -> Iterator[SampleInput]:
    for name, shape, arguments, *_ in get_nn_functional_tests():
        if name == "batch_norm":
            values = [make_tensor(shape, device="cpu", dtype=dtype), *(getattr(a, "tensor", a) for a in arguments)]
            for leaf in (v for v in (values[0], *values[3:5]) if v is not None):  # x, γ and β
                leaf.requires_grad_()
            yield cast(SampleInput(values[0], args=tuple(values[1:])), dtype)


def samples(name: str) -> Iterator[tuple[torch.dtype, SampleInput]]:
    info = OP_INFOS.get(name)
    for dtype in sorted(info.dtypes, key=str) if info else (torch.float32, torch.float64):
        torch.manual_seed(0)
        drawn = info.reference_inputs("cpu", dtype, True, set_seed=False) if info else scripted_samples(dtype)
        yield from ((dtype, given) for given in drawn)


def module_inputs(name: str) -> Iterator[tuple[torch.dtype, bool, ModuleInput]]:
    info = MODULE_INFOS[name]
    for dtype, training in product(info.dtypes, (True, False)):
        torch.manual_seed(0)
        options = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training}
        yield from ((dtype, training, given) for given in info.module_inputs_func(info, **options))


def with_accepted_momentum(case: Op) -> Op:
    both = (case.given.args, case.given.kwargs)
    args, options = tree_map(lambda v: 0.3 if isinstance(v, float) and v < 0.0 else v, both)
    return case._replace(given=SampleInput(case.given.input, args=args, kwargs=options))


def cast(given: SampleInput, dtype: torch.dtype) -> SampleInput:
    return given.transform(lambda v: v.to(dtype).requires_grad_(v.requires_grad) if isinstance(v, Tensor) else v)


with torch.random.fork_rng():
    ALL_OPS = [Op(name, *given) for name in OPS for given in samples(name)]
    LAYERS = [Layer(name, *given) for name in MODULES for given in module_inputs(name)]
RUN_OPS = [with_accepted_momentum(case) for case in ALL_OPS if REFUSED.get(case.sample) != NO_FEATURES]


each = partial(pytest.mark.parametrize, "case", ids=str)
each_precise_op = each([case for case in RUN_OPS if case.dtype == torch.float64])
each_precise_layer = each([case for case in LAYERS if case.dtype == torch.float64])
each_layout = pytest.mark.parametrize("layout", ["contiguous", "noncontiguous"])
each_check = pytest.mark.parametrize("check", [gradcheck, gradgradcheck])


def results(y: Tensor, x: Tensor, others: dict[str, Any]) -> dict[str, Any]:
    """Go backward with values that 16 bits hold exactly; return the output, the gradients and the buffers."""
    y.backward(torch.arange(y.numel()).remainder(7).sub(2.5).to(y.dtype).reshape(y.shape))
    seen = {key: value for key, value in others.items() if isinstance(value, Tensor)}
    return {"y": y, "x": x.grad, **{key: v.grad if v.requires_grad else v for key, v in seen.items()}}


def op_results(case: Op, function: Callable[..., Any] | None = None) -> dict[str, Any]:
    given = copy.deepcopy(case.given)
    x, arguments = given.input, case._replace(given=given).arguments
    y = function(x, *given.args, **given.kwargs) if function else ours.batch_norm(x, *arguments)
    return results(y if isinstance(y, Tensor) else y[0], x, arguments._asdict())  # some return the statistics too


def layer_results(layer: torch.nn.Module, x: Tensor) -> dict[str, Any]:
    layer.zero_grad()
    x = x.detach().requires_grad_()
    return results(layer(x), x, layer.state_dict(keep_vars=True))  # what a checkpoint holds


def assert_alike(mine: dict[str, Any], torchs: dict[str, Any], truth: dict[str, Any] | None = None) -> None:
    """Assert that ours is torch's; or, where a truth is given, that ours is close to it, and no worse than torch's."""
    dtype = str(mine["y"].dtype).removeprefix("torch.")
    size = 1.0 + largest_error(to_numpy(torchs["y"]), 0.0)
    assert [(key, value.dtype) for key, value in mine.items()] == [(key, v.dtype) for key, v in torchs.items()]
    for key, expected in (truth or torchs).items():
        actual, want = to_numpy(mine[key]), to_numpy(expected)
        assert_close(actual, want, dtype, size + np.abs(want))
        if truth:
            assert_no_worse(actual, to_numpy(torchs[key]), want, dtype)


def pair(case: Layer) -> tuple[Any, Any]:
    """Return our layer and torch's with the same parameters and buffers, none of them at its initial value."""
    mine, torchs = (case.made(of[case.name], dtype=case.dtype) for of in (MODULES, TORCHS))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for value in torchs.state_dict().values():
            if value.is_floating_point():
                value.copy_(make_tensor(value.shape, device="cpu", dtype=value.dtype, low=0.5, high=2.0))
    mine.load_state_dict(torchs.state_dict())
    return mine.train(case.training), torchs.train(case.training)


def assert_layers_alike(case: Layer, x: Tensor) -> dict[str, Any]:
    mine, torchs = pair(case)
    for _ in range(2):
        seen, expected = layer_results(mine, x), layer_results(torchs, x)
        if case.given.desc in UNCOUNTED:
            assert torchs.num_batches_tracked == int(case.training)
            torchs.num_batches_tracked.zero_()
        assert_alike(seen, expected)
    return seen


@each_layout
@each(RUN_OPS)
def test_the_function_computes_what_torchs_does(case: Op, layout: str) -> None:
    if layout == "noncontiguous":
        case = case._replace(given=case.given.noncontiguous())
    mine, torchs = op_results(case), op_results(case, TORCHS[case.name])
    exact = case._replace(given=cast(case.given, torch.float64))  # as in 16 bits torch rounds the statistics too
    assert_alike(mine, torchs, op_results(exact, TORCHS[case.name]) if case.dtype.itemsize == 2 else None)


@each_check
@each_precise_op
def test_the_gradients_of_the_function_are_right(case: Op, check: Any) -> None:
    def function(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        running = copy.deepcopy(case.arguments[:2])
        return ours.batch_norm(x, *running, weight, bias, *case.arguments[4:])

    assert check(function, (case.given.input, *case.arguments[2:4]), fast_mode=True)


@each([case for case in ALL_OPS if case.sample in REFUSED])
def test_a_sample_that_torch_accepts_is_refused_before_anything_moves(case: Op) -> None:
    op_results(case, TORCHS[case.name])
    before = copy.deepcopy(case.arguments[:2])
    with pytest.raises(REFUSED[case.sample][0]):
        ours.batch_norm(case.given.input, *case.arguments)
    assert all(torch.equal(value, old) for value, old in zip(case.arguments[:2], before, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch's forward mode
@each_precise_op
def test_derivatives_in_forward_mode_are_right_in_inference_and_missing_in_training(case: Op) -> None:
    def function(x: Tensor) -> Tensor:
        return ours.batch_norm(x, *copy.deepcopy(case.arguments))

    missing = case.arguments.training and case.given.input.numel() > 0
    with pytest.raises(NotImplementedError) if missing else nullcontext():
        assert gradcheck(function, (case.given.input,), check_forward_ad=True, check_backward_ad=False)


@each_layout
@each(LAYERS)
def test_the_layer_computes_what_torchs_does(case: Layer, layout: str) -> None:
    assert_layers_alike(case, noncontiguous_like(case.input) if layout == "noncontiguous" else case.input)


@each([case for case in LAYERS if case.input.ndim in CHANNELS_LAST])
def test_the_layer_keeps_the_memory_format(case: Layer) -> None:
    memory = CHANNELS_LAST[case.input.ndim]
    seen = assert_layers_alike(case, case.input.contiguous(memory_format=memory))
    assert all(seen[key].is_contiguous(memory_format=memory) for key in ("y", "x"))


@each_check
@each_precise_layer
def test_the_gradients_of_the_layer_are_right(case: Layer, check: Any) -> None:
    layer, _ = pair(case)
    leaves = dict(layer.named_parameters())

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(leaves, values, strict=True)), (x,))

    assert check(function, (case.input.requires_grad_(), *leaves.values()), fast_mode=True)


@each([case for case in LAYERS if case.training])
def test_training_and_inference_differ_where_they_do_in_torch(case: Layer) -> None:
    mine, torchs = (torch.equal(layer.train()(case.input), layer.eval()(case.input)) for layer in pair(case))
    assert mine == torchs


@each(LAYERS)
def test_a_saved_layer_goes_on_as_the_layer_does(case: Layer) -> None:
    layer, torchs = pair(case)
    layer(case.input)
    file = io.BytesIO()
    torch.save(layer, file)  # pickled
    twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert repr(twin) == repr(layer) == repr(torchs)
    seen, expected = layer_results(twin, case.input), layer_results(layer, case.input)
    assert [key for key in expected if not torch.equal(seen[key], expected[key])] == []


MADE: dict[str, Callable[..., torch.nn.Module]] = {
    "with device and dtype": lambda make, dtype: make(device="meta", dtype=dtype),
    "then cast": lambda make, dtype: make().to(dtype),
    "then emptied": lambda make, dtype: make(device="meta", dtype=dtype).to_empty(device="cpu"),
}


@pytest.mark.parametrize("made", MADE)
@each([case for case in LAYERS if case.training])
def test_parameters_and_buffers_lie_where_torchs_do(case: Layer, made: str) -> None:
    mine, torchs = (
        {key: (v.device, v.dtype, v.shape, v.requires_grad) for key, v in layer.state_dict(keep_vars=True).items()}
        for layer in (MADE[made](partial(case.made, of[case.name]), case.dtype) for of in (MODULES, TORCHS))
    )
    assert mine == torchs


@pytest.mark.parametrize("name", MODULES)
def test_an_error_input_raises_torchs_type_of_error(name: str) -> None:
    info = MODULE_INFOS[name]
    wrong = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    for case in wrong:
        constructor, forward = case.module_error_input.constructor_input, case.module_error_input.forward_input
        for cls, said in ((TORCHS[name], case.error_regex), (MODULES[name], "`eps` must be a positive")):
            with pytest.raises(case.error_type, match=said):
                cls(*constructor.args, **constructor.kwargs)(*forward.args, **forward.kwargs)
    assert len(wrong) > 0


def torchs_cases() -> set[str]:
    """Return the name of every batch-norm case in torch's databases, and of every class that torch wants tested."""
    found = {i.full_name for i in (*op_db, *python_ref_db) if "batch_norm" in f"{i.full_name} {i.aten_name}"}
    found |= {name for name in (*MODULE_INFOS, *MODULE_CLASS_NAMES.values()) if "BatchNorm" in name}
    found |= {SCRIPTED for test in get_nn_functional_tests() if test[0] == "batch_norm"}
    older = (*common_nn.module_tests, *common_nn.get_new_module_tests(), *common_nn.criterion_tests)
    return found | {str(test) for test in older if "BatchNorm" in str(test)}


def test_every_case_of_torch_is_run_or_has_a_reason() -> None:
    run = {case.name for case in (*RUN_OPS, *LAYERS)}
    assert run == {*OPS, *MODULES}
    assert run & set(NOT_RUN) == set()
    assert torchs_cases() == run | set(NOT_RUN)


def test_every_reason_holds() -> None:
    declared = {name: info.dtypes for name, info in (OP_INFOS | MODULE_INFOS).items()}
    assert [name for name in NOT_RUN if declared.get(name)] == []
    assert [name for name in OPS if name in OP_INFOS and (OP_INFOS[name].error_inputs_func or OP_INFOS[name].ref)] == []
    assert set(REFUSED) == {case.sample for case in ALL_OPS if case.sample in REFUSED}
    assert set(UNCOUNTED) == {case.given.desc for case in LAYERS if case.given.desc in UNCOUNTED}
