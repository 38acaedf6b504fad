"""One graph holds the step, whatever the options: outputs, gradients and statistics equal those without a compiler."""

import copy
from typing import Any

import pytest
import torch

from batchnorm.torch import BatchNorm, Renorm
from namespaces import to_numpy
from tolerance import assert_close

SHAPE = (9, 3, 5)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average of all": {"momentum": None},
    "activation": {"activation": "gelu"},
    "residual": {"activation": "relu", "call": ("residual",)},
    "weights": {"call": ("weights",)},
    "weights of zero": {"virtual_batch_size": 3, "call": ("absent",)},
    "virtual": {"virtual_batch_size": 3},
    "virtual with a rest": {"virtual_batch_size": 2, "call": ("residual", "weights")},
    "renorm": {"renorm": Renorm(rmax=3.0, dmax=5.0)},
    "schedule": {"renorm": Renorm.paper(hold=1, r_until=4, d_until=3), "momentum": None},
    "adjustment": {"adjustment": lambda shape: (torch.linspace(0.5, 1.5, shape[0])[:, None, None], 0.1)},
    "propagate": {"nonfinite": "propagate"},
    "small batches": {"small_batch": "running", "call": ("weights",)},
}


def arguments(names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    given = {"residual": torch.randn(SHAPE), "weights": torch.rand(SHAPE[0], SHAPE[2]) > 0.3}
    if "absent" in names:
        return {"weights": given["weights"] & (torch.arange(SHAPE[0]) % 3 > 0)[:, None]}  # one of three groups
    return {name: given[name] for name in names}


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # by torch.compile itself
def test_one_graph_holds_many_replicas_in_inference() -> None:
    torch.compiler.reset()
    layer, xs = BatchNorm(3).eval(), torch.randn(4, 8, 3)
    many = torch.func.vmap(layer)
    assert_close(to_numpy(torch.compile(many, backend="aot_eager")(xs)), to_numpy(many(xs)), "float32", 4.0)


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # by torch.compile itself
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_one_graph_holds_every_option(kind: str, backend: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    options = dict(OPTIONS[kind])
    call = arguments(options.pop("call", ()))
    layer = BatchNorm(SHAPE[1], **options)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    for step in range(3):
        x = (step + 2.0 * torch.randn(SHAPE)).requires_grad_()
        again = x.detach().clone().requires_grad_()
        for function, leaf in ((layer, x), (compiled, again)):
            (function(leaf, **call) * torch.linspace(-1.0, 1.0, leaf.numel()).reshape(SHAPE)).sum().backward()
        assert_close(to_numpy(again.grad), to_numpy(x.grad), "float32", 4.0)
        assert_close(to_numpy(compiled(x, **call)), to_numpy(layer(x, **call)), "float32", 4.0)
    for expected, got in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        assert_close(to_numpy(got), to_numpy(expected), "float32", 16.0)
    x = torch.randn(SHAPE)
    assert_close(to_numpy(compiled.eval()(x, **call)), to_numpy(layer.eval()(x, **call)), "float32", 4.0)
