"""captum: what explains a model by its modules must explain ours as torch's."""

from collections.abc import Callable
from functools import partial

from check import CHECKS, Check, may_refuse, torch_first
from compare import alike, fused, ours, pictures, small
from torch import Tensor, nn

Method = Callable[[nn.Module, Tensor], Tensor]


def _integrated(model: nn.Module, x: Tensor) -> Tensor:
    from captum.attr import IntegratedGradients

    return IntegratedGradients(model).attribute(x, target=1, n_steps=8)


def _deep_lift(model: nn.Module, x: Tensor) -> Tensor:
    from captum.attr import DeepLift

    return DeepLift(model).attribute(x, target=1)


def _guided(model: nn.Module, x: Tensor) -> Tensor:
    from captum.attr import GuidedBackprop

    return GuidedBackprop(model).attribute(x, target=1)


def _grad_cam(model: nn.Module, x: Tensor) -> Tensor:
    from captum.attr import LayerGradCam

    return LayerGradCam(model, model.get_submodule("4")).attribute(x, target=1)


def _conductance(model: nn.Module, x: Tensor) -> Tensor:
    from captum.attr import LayerConductance

    return LayerConductance(model, model.get_submodule("1")).attribute(x, target=1, n_steps=8)


def _explained(method: Method, make: Callable[[nn.Sequential], nn.Module]) -> str:
    x, other = pictures(2), make(small())
    with torch_first():
        torchs = method(small(), x.clone().requires_grad_())
    with may_refuse(other):
        mine = method(other, x.clone().requires_grad_())
    return alike(mine, torchs, "attributions", 1e-4)


for _method in (_integrated, _deep_lift, _guided, _grad_cam, _conductance):
    CHECKS.append(Check(f"captum/{_method.__name__[1:]}/plain", partial(_explained, _method, ours), ("captum",)))


def _fused_explained(method: Method) -> str:
    """Explain a model whose ReLUs are in the layers: the same, or a warning or refusal that names a layer."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return _explained(method, fused)
        except AssertionError:
            told = [str(w.message) for w in caught if "BatchNorm" in str(w.message)]
            if told:
                return f"it warns: {told[0]}"
            raise


CHECKS.append(Check("captum/integrated/with activation", partial(_fused_explained, _integrated), ("captum",)))
CHECKS.append(Check("captum/deep_lift/with activation", partial(_fused_explained, _deep_lift), ("captum",)))
CHECKS.append(Check("captum/guided/with activation", partial(_fused_explained, _guided), ("captum",)))
