"""How noisy the statistics of a batch are, layer by layer: how many samples should be normalised together.

The mean of a group of m samples scatters around the mean of all with Var(μ_B). If every value were independent that
would be σ²/(number of values); neighbouring pixels and frames are not. What a group is worth is therefore measured:

    m_eff = σ²/Var(μ_B)    shift noise = 1/√m_eff    scale noise = ½√((κ−1)/m_eff)

in standard deviations, κ the kurtosis, averaged over the channels of a layer. m_eff grows in proportion to m.
"""

import math
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.batch_size.gradient_noise import TWO_SIDED, correction
from batchnorm.layout import axes_of, weights_shape

LARGEST_SHIFT = 0.25
FEWEST_FOR_SCALE = 64


@dataclass(frozen=True)
class LayerNoise:
    """What the batches of one layer say.

    Attributes:
        name: As the model names it.
        per_sample: m_eff/m: how many independent values one sample is worth. 1 in a layer that sees one value a sample.
        low: Lower end of its 95 % interval.
        high: Its upper end.
        kurtosis: κ, averaged over channels; 3 for a normal distribution.
        values: Values of a channel that one sample brings: height times width, say.
        momentum: α of the layer, None for the average of all batches.
    """

    name: str
    per_sample: float
    low: float
    high: float
    kurtosis: float
    values: float
    momentum: float | None

    def shift(self, group: float) -> float:
        """Return the noise of the mean in a group of m samples, in standard deviations."""
        return 1.0 / math.sqrt(self.per_sample * group)

    def scale(self, group: float) -> float | None:
        """Return the noise of the standard deviation, relative to it; None below m = 64, where the formula fails."""
        if group < FEWEST_FOR_SCALE:
            return None
        return 0.5 * math.sqrt(max(self.kurtosis - 1.0, 0.0) / (self.per_sample * group))

    def bessel_gap(self, group: float) -> float:
        """Return by how much the unbiased standard deviation of a group exceeds the biased one, relative to it."""
        count = self.values * group
        return math.sqrt(count / (count - 1.0)) - 1.0 if count > 1 else math.inf

    def fewest(self, per_sample: float | None = None) -> int:
        """Return m_min: the smallest group whose shift noise is at most 0.25."""
        return max(1, math.ceil(1.0 / (LARGEST_SHIFT**2 * (per_sample or self.per_sample)) - 1e-9))


@dataclass
class _Seen:
    """What one layer has shown so far."""

    momentum: float | None
    groups: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor, Tensor]])
    blocks: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])  # (Var(μ)/σ², kurtosis)
    values: float = 1.0
    share: float = 1.0  # of a batch that is normalised together


class Listener:
    """Hears the inputs of every layer of batch normalization that normalises by the batch."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        """Take the model, and how many rows its batches are drawn from."""
        self._model, self._rows = model, rows
        self._seen: dict[str, _Seen] = {}
        self._calls: Counter[str] = Counter()  # of each layer since the model was called
        self._rooted = False

    @contextmanager
    def listening(self) -> Generator[None]:
        """Listen for as long as the block lasts."""
        handles = [self._model.register_forward_pre_hook(self._begin)]
        handles += [
            layer.register_forward_pre_hook(self._hear(name), with_kwargs=True)
            for name, layer in self._model.named_modules()
            if isinstance(layer, _BatchNorm)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, *_: Any) -> None:
        self._rooted = True
        self._calls.clear()

    def _site(self, name: str) -> str:
        """Return the layer's name, with which of its calls it is: one that stands in two places sees two inputs."""
        self._calls[name] += 1
        call = self._calls[name]
        return f"{name}, call {call}" if call > 1 and self._rooted else name

    def _hear(self, name: str) -> Any:
        def hear(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if layer.training and not getattr(layer, "frozen", False):
                x = args[0] if args else kwargs["input"]
                weights = kwargs.get("weights", args[2] if len(args) > 2 else None)
                seen = self._seen.setdefault(self._site(name), _Seen(getattr(layer, "momentum", None)))
                self._note(seen, layer, x.detach(), weights)

        return hear

    @torch.no_grad()
    def _note(self, seen: _Seen, layer: nn.Module, x: Tensor, weights: Any) -> None:
        layout = axes_of(x.ndim, axis=getattr(layer, "axis", 1))
        reduced = layout.reduced
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        w = torch.ones_like(x)
        if weights is not None:
            w = weights.reshape(weights_shape(weights.shape, x.shape, layout)).to(x.dtype).expand_as(x)
        groups = max(1, x.shape[reduced[0]] // (getattr(layer, "virtual_batch_size", None) or x.shape[reduced[0]]))
        one = (slice(None),) * reduced[0] + (slice(None, None, groups),)  # sample i is in virtual batch i mod groups
        x, w, seen.share = x[one], w[one], 1.0 / groups
        x = torch.where((w > 0) | x.isfinite(), x, 0.0)  # NaN in padding is nobody's value
        count = w.sum(reduced, keepdim=True)
        mean = (w * x).sum(reduced, keepdim=True) / count
        square, fourth = ((w * (x - mean).pow(p)).sum(reduced, keepdim=True) / count for p in (2, 4))
        seen.groups.append((mean.flatten(), square.flatten(), fourth.flatten()))
        seen.values = float(count.mean()) / x.shape[reduced[0]]

    def settle(self, group: int) -> None:
        """Take the groups heard since the last call as one block, all at the same weights."""
        for seen in self._seen.values():
            groups, seen.groups = seen.groups, []
            if len(groups) < 2:
                continue
            means, squares, fourths = (torch.stack(values) for values in zip(*groups, strict=True))
            between = means.var(0)
            variance = squares.mean(0) + between
            alive = variance > torch.finfo(variance.dtype).eps * means.mean(0).square()
            if not bool(alive.any()) or not bool(variance.isfinite().all()):
                continue
            together = group * seen.share
            ratio = float((between / variance)[alive].mean()) * together * correction(self._rows, together)
            kurtosis = float((fourths.mean(0) / squares.mean(0).square())[alive].mean())
            seen.blocks.append((ratio, kurtosis))

    def layers(self) -> list[LayerNoise]:
        """Return what was heard, the noisiest layer first."""
        found = [_noise(name, seen) for name, seen in self._seen.items() if len(seen.blocks) > 1]
        return sorted(found, key=lambda layer: layer.per_sample)


def _noise(name: str, seen: _Seen) -> LayerNoise:
    ratios = torch.tensor([ratio for ratio, _ in seen.blocks], dtype=torch.float64)
    reach = TWO_SIDED * float(ratios.std()) / math.sqrt(len(ratios))
    mean = float(ratios.mean())
    kurtosis = sum(kurtosis for _, kurtosis in seen.blocks) / len(seen.blocks)
    # infinite where no batch differs from another: position codes, say, are the same in each
    worth, low, high = (1.0 / share if share > 0 else math.inf for share in (mean, mean + reach, mean - reach))
    return LayerNoise(name, worth, low, high, kurtosis, seen.values, seen.momentum)
