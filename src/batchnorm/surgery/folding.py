"""The arithmetic of folding, in float64: a batch normalization in inference, and the layer beside it, as one layer."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batchnorm.surgery.places import epsilon, is_frozen_class

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
SIZES = (1.0, -1e3, 1e6, 0.0)  # times the example, to try a subclass with
EXACT = 1e-9  # what float64 leaves of a mistake, in numbers near 1


def weighted(module: Any) -> bool:
    """Return whether a module is a Linear or convolution, or of a subclass that computes as it does."""
    kind = next((kind for kind in WEIGHTED if isinstance(module, kind)), None)
    return kind is not None and all(
        name not in vars(module) and getattr(type(module), name, None) is getattr(kind, name, None)
        for name in ("forward", "_conv_forward")
    )


@torch.no_grad()
def obeys(module: nn.Module, x: Tensor, *, outputs: bool) -> bool:
    """Return whether folding holds for a subclass that computes in a way of its own: whether it does on this input.

    Args:
        module: Of a subclass of a linear layer or convolution.
        x: An input of it, which is tried in several sizes: what clips or asks how large its input is shows then.
        outputs: Whether features of its outputs are scaled and shifted, or those of its inputs.
    """
    return all(_obeys(module, factor * x.double(), outputs=outputs) for factor in SIZES)


def _obeys(module: nn.Module, x: Tensor, *, outputs: bool) -> bool:
    drawn = torch.Generator().manual_seed(0)
    try:
        own: Any = copy.deepcopy(module).double().eval()
        axis = -1 if isinstance(module, nn.Linear) else 1
        plain: Tensor = own(x)
        features = (plain if outputs else x).shape[axis]
        scale, shift = (torch.rand(features, generator=drawn, dtype=torch.float64).to(x.device) + 0.5 for _ in range(2))
        both = Affine(scale, shift)
        if outputs:
            expected, got = both.on(plain, axis), after(own, both)(x)
        else:
            expected, got = own(both.on(x, axis)), ahead(own, both)(x)
    except Exception:  # of whatever kind a subclass brings about
        return False
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return expected.shape == got.shape and bool(((got - expected).abs() <= EXACT * (1 + largest)).all())


class Affine(NamedTuple):
    """What a batch normalization is in inference, per feature: y = scale·x + shift, float64."""

    scale: Tensor
    shift: Tensor

    def on(self, x: Tensor, axis: int) -> Tensor:
        """Return scale·x + shift, whose features lie along an axis."""
        shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
        return x * self.scale.reshape(shape) + self.shift.reshape(shape)

    def at(self, features: Tensor) -> "Affine":
        """Return that of these features."""
        return Affine(self.scale[features], self.shift[features])


def affine(layer: Any) -> Affine:
    """Return scale = γ/√(σ²+ε) and shift = β − μ·scale by the running statistics."""
    scale = 1 / torch.sqrt(layer.running_var.double() + epsilon(layer))
    if layer.weight is not None:
        scale = scale * layer.weight.detach().double()
    shift = -layer.running_mean.double() * scale
    return Affine(scale, shift if layer.bias is None else shift + layer.bias.detach().double())


@torch.no_grad()
def unlike_its_class(layer: Any) -> str | None:
    """Return why a frozen layer whose class has no ε as an attribute is not known; None where it is."""
    if not is_frozen_class(layer) or hasattr(layer, "eps"):
        return None
    formula = f"(x − running_mean)·weight/√(running_var + {epsilon(layer):g}) + bias"
    mean = layer.running_mean.reshape(1, -1, 1, 1)
    x = torch.cat((mean - 1, mean + 2))
    expected = affine(layer).on(x.double(), 1)
    try:
        off = (layer(x).double() - expected).abs()
    except Exception as error:  # of whatever kind a class brings about
        return f"its forward fails where it was to be {formula}: {type(error).__name__}: {error}"
    same = bool((off <= torch.finfo(x.dtype).eps ** 0.5 * (1 + expected.abs())).all())
    return None if same else f"its forward computes something else than {formula}"


def _weights(module: Any, scale: Tensor, *, outputs: bool) -> Tensor:
    """Return the weight, float64, times a number for each output feature or each input feature."""
    weight, groups = module.weight.detach().double(), getattr(module, "groups", 1)
    if isinstance(module, TRANSPOSED):  # (in, out/groups, …): inputs of a group lie together, outputs likewise
        grouped = weight.unflatten(0, (groups, -1))
        shape = (groups, 1, -1) if outputs else (groups, -1, 1)
        return (grouped * scale.reshape(shape + (1,) * (weight.dim() - 2))).flatten(0, 1)
    rest = (1,) * (weight.dim() - 2)
    if outputs:
        return weight * scale.reshape(-1, 1, *rest)
    grouped = weight.unflatten(0, (groups, -1))  # (out, in/groups, …)
    return (grouped * scale.reshape(groups, 1, -1, *rest)).flatten(0, 1)


def _bias_of(module: Any, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if module.bias is None else module.bias.detach().double()


def _renewed(module: Any, weight: Tensor, bias: Tensor) -> nn.Module:
    """Return a copy of a layer with other weights, in the dtype and memory format of its own."""
    new = copy.copy(module)
    new._parameters = dict(module._parameters)
    old = module.weight
    made = torch.empty_like(old, requires_grad=False).copy_(weight)
    new._parameters["weight"] = nn.Parameter(made, requires_grad=old.requires_grad)
    new._parameters["bias"] = nn.Parameter(bias.to(old.dtype), requires_grad=old.requires_grad)
    return new


def after(module: nn.Module, then: Affine) -> nn.Module:
    """Return the layer that does both: W' = scale·W and b' = scale·b + shift, per output feature."""
    return _renewed(
        module, _weights(module, then.scale, outputs=True), _bias_of(module, then.shift) * then.scale + then.shift
    )


def ahead(module: Any, first: Affine) -> nn.Module:
    """Return the layer that does both: W' = W·scale per input feature, b' = b + Σ W·shift over taps and inputs."""
    moved = _weights(module, first.shift, outputs=False)
    if isinstance(module, TRANSPOSED):
        groups = module.groups
        sums = moved.unflatten(0, (groups, -1)).flatten(3).sum((1, 3)).flatten()
    else:
        sums = moved.flatten(1).sum(1)
    return _renewed(module, _weights(module, first.scale, outputs=False), _bias_of(module, sums) + sums)


def merged(layer: Any, then: Affine) -> nn.Module:
    """Return one batch normalization that does two, one after the other: γ' = γ·scale, β' = β·scale + shift."""
    new, one = copy.copy(layer), torch.ones_like(then.scale)
    gamma = one if layer.weight is None else layer.weight.detach().double()
    beta = one - one if layer.bias is None else layer.bias.detach().double()
    dtype = layer.running_mean.dtype if layer.weight is None else layer.weight.dtype
    new._parameters = {
        name: nn.Parameter(value.to(dtype), requires_grad=layer.weight is not None and layer.weight.requires_grad)
        for name, value in (("weight", gamma * then.scale), ("bias", beta * then.scale + then.shift))
    }
    new.affine = True
    return new
