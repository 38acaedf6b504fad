"""A model with torch's layers and the same with ours, both measured against the first in float64."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from check import require
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.renorm import Renorm
from batchnorm.surgery import convert
from batchnorm.torch import BatchNorm

Run = Callable[[nn.Module, Callable[[Any], Any]], Any]  # calls a model on inputs that the second gives their dtype
Model = TypeVar("Model", bound=nn.Module)
TIMES_TORCHS = 2.0  # how much farther from float64 than torch's own layers ours may be
EPS = torch.finfo(torch.float32).eps
DRAWS = 5  # of parameters, where the first is beyond that
ROUNDINGS = 4.0  # of the truth's norm, which both may be off: a few layers' worth


class Step(NamedTuple):
    """What a training step leaves: as one vector each."""

    outputs: Tensor
    gradients: Tensor
    statistics: Tensor


def stirred(model: Model, seed: int = 0) -> Model:
    """Return the model with statistics and parameters of its layers that are not where they start."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float32) * (high - low) + low

    with torch.no_grad():
        for layer in model.modules():
            if not isinstance(layer, _BatchNorm):
                continue
            ranges = {"running_mean": (-0.2, 0.2), "running_var": (0.7, 1.4), "weight": (0.7, 1.3), "bias": (-0.2, 0.2)}
            for name, (low, high) in ranges.items():
                value = getattr(layer, name)
                if value is not None:
                    value.copy_(uniform(value, low, high))
    return model


def ours(model: nn.Module, **options: Any) -> nn.Module:
    """Return a copy of the model with our layers in place of torch's and timm's."""
    return convert(copy.deepcopy(model), "batchnorm", **options).model


def plain(model: nn.Module) -> nn.Module:
    """Return a copy with our layers, without options."""
    return ours(model)


def renorm(model: nn.Module) -> nn.Module:
    """Return a copy with our layers and batch renormalization."""
    return ours(model, renorm=Renorm(rmin=None, rmax=3.0, dmax=5.0))


def layers(model: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]


def all_ours(model: nn.Module) -> int:
    """Return how many layers of ours a model has; none of torch's may be left."""
    left = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and not isinstance(m, BatchNorm)]
    require(not left, f"{len(left)} layers are not ours, {left[:2]}")
    return len(layers(model))


def tensors(result: Any) -> list[Tensor]:
    """Return all floating tensors in what a model returns."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    if isinstance(result, dict):
        return [tensor for value in result.values() for tensor in tensors(value)]
    if isinstance(result, list | tuple):
        return [tensor for value in result for tensor in tensors(value)]
    return []


def flat(result: Any) -> Tensor:
    """Return all numbers that a model returns, as one vector of float64."""
    found = tensors(result)
    return torch.cat([t.detach().double().flatten() for t in found]) if found else torch.empty(0).double()


def double(value: Any) -> Any:
    """Return inputs in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: double(one) for name, one in value.items()}
    return type(value)(map(double, value)) if isinstance(value, list | tuple) else value


def seeded(run: Callable[[], Any]) -> Any:
    """Run something whose random numbers are the same each time."""
    torch.manual_seed(0)
    return run()


def off(value: Tensor, truth: Tensor) -> float:
    """Return how far a vector is from the truth, relative to it; a NaN where the truth has one too is right."""
    require(value.shape == truth.shape, f"{value.numel()} numbers for {truth.numel()}")
    both = truth.isfinite()
    require(bool((value.isfinite() == both).all()), "NaN or inf where the truth has none, or the other way round")
    norm = float(truth[both].norm())
    return float((value[both] - truth[both]).norm()) / norm if norm else float(value[both].norm())


def no_worse(mine: Tensor, torchs: Tensor, truth: Tensor, what: str) -> str:
    """Return the errors, ours ÷ torch's; ours may be twice torch's, and a few roundings."""
    a, b = off(mine, truth), off(torchs, truth)
    told = f"{what} error {a:.1e} ÷ {b:.1e}"
    require(_bounded((a, b)), told)
    return told


def same_inference(model: nn.Module, other: nn.Module, run: Run) -> str:
    """Compare outputs in inference."""
    with torch.no_grad():
        truth = flat(seeded(lambda: run(copy.deepcopy(model).eval().double(), double)))
        torchs = flat(seeded(lambda: run(model.eval(), lambda x: x)))
        mine = flat(seeded(lambda: run(other.eval(), lambda x: x)))
    require(truth.numel() > 0 and float(truth.std()) > 0, "the outputs tell nothing")
    return no_worse(mine, torchs, truth, "output")


def step(model: nn.Module, run: Run, cast: Callable[[Any], Any]) -> Step:
    """Return what a training step leaves on a copy of the model."""
    model = copy.deepcopy(model).train()
    outputs = [t for t in tensors(seeded(lambda: run(model, cast))) if t.requires_grad]
    # of the middle of the range, so that no output is as good as another
    sum(((t.sigmoid() - 0.3).square().mean() for t in outputs), torch.zeros(())).backward()
    statistics = [s for layer in layers(model) for s in (layer.running_mean, layer.running_var) if s is not None]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return Step(flat(outputs), flat(gradients), flat(statistics))


def _errors(model: nn.Module, other: nn.Module, run: Run) -> dict[str, tuple[float, float]]:
    """Return the error of ours and of torch's, of all that a step leaves."""
    truth = step(copy.deepcopy(model).double(), run, double)
    torchs, mine = (step(one, run, lambda x: x) for one in (model, other))
    require(float(truth.gradients.norm()) > 0, "the gradients tell nothing")
    return {
        what: (off(getattr(mine, what), value), off(getattr(torchs, what), value))
        for what, value in truth._asdict().items()
    }


def same_step(model: nn.Module, other: nn.Module, run: Run) -> str:
    """Compare a training step: outputs, gradients and running statistics.

    Where rounding flips a ReLU a gradient may be off by more, on either side: what is then beyond the bound is measured
    with other parameters as well, and the median of the ratios counts.
    """
    errors = [_errors(model, other, run)]
    while not all(map(_bounded, errors[0].values())) and len(errors) < DRAWS:
        seed = len(errors)
        errors.append(_errors(*(stirred(copy.deepcopy(one), seed) for one in (model, other)), run))
    told, wrong = list[str](), list[str]()
    for what in Step._fields:
        draws = sorted((one[what] for one in errors), key=lambda pair: pair[0] / max(pair[1], EPS))
        middle = draws[len(draws) // 2]
        told.append(f"{what} error {middle[0]:.1e} ÷ {middle[1]:.1e}")
        wrong += [] if _bounded(middle) else [what]
    require(not wrong, ", ".join(told))
    return ", ".join(told) + (f" (median of {len(errors)})" if len(errors) > 1 else "")


def _bounded(errors: tuple[float, float]) -> bool:
    return errors[0] <= TIMES_TORCHS * errors[1] + ROUNDINGS * EPS


def small(features: int = 8) -> nn.Sequential:
    """Return a small convolutional network with torch's layers."""
    torch.manual_seed(0)
    return stirred(
        nn.Sequential(
            nn.Conv2d(3, features, 3, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(),
            nn.Conv2d(features, features, 3),
            nn.BatchNorm2d(features),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(features, 4),
        )
    ).eval()


def fused(model: nn.Sequential) -> nn.Module:
    """Return the same with ours, which include the ReLU behind them."""
    other: Any = ours(model)
    for i, layer in enumerate(other):
        if isinstance(layer, BatchNorm):
            layer.activation, other[i + 1] = "relu", nn.Identity()
    return other


def pictures(batch: int = 8) -> Tensor:
    """Return inputs of the small network."""
    return torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def alike(a: Any, b: Any, what: str, within: float = 1e-5) -> str:
    """Return how far two results are apart, relative to the second; raise where that is too much."""
    apart = off(flat(a), flat(b))
    require(apart <= within, f"{what} off by {apart:.1e}")
    return f"{what} off by {apart:.1e}"
