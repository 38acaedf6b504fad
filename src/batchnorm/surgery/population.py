"""What a layer sees over all of the data: moments pooled over batches and calls."""

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from batchnorm.conventions import TORCH, Estimator
from batchnorm.core.passes import NormInputs, moments_of
from batchnorm.core.spec import NormSpec
from batchnorm.core.step import zero_masked
from batchnorm.errors import BatchNormError
from batchnorm.layout import Axes, axes_of
from batchnorm.renorm import RENORM_ESTIMATOR
from batchnorm.statistics import Moments, divisor, merge, observed_variance
from batchnorm.surgery.places import Place
from batchnorm.torch.backends import plan_tensors
from batchnorm.torch.check import check_weights


class Population:
    """What one layer has seen so far.

    Attributes:
        moments: Pooled, float64; None for nothing yet.
        batches: That have come to it with finite values.
        samples: In these, those of no weight not counted.
        skipped: Batches that were left out.
        calls: Of the layer, with data or without.
        arrival: Its place in the order in which the layers were first called.
    """

    def __init__(self, place: Place) -> None:
        """Begin with nothing."""
        self.place = place
        self.layer: Any = place.module
        self.moments: Moments | None = None
        self.batches = self.skipped = self.calls = 0
        self.samples: float = 0
        self.arrival: int | None = None
        self._share: float = 0  # of the samples of the batch under way that count

    def take(self, x: Tensor, weights: Tensor | None) -> None:
        """Merge the moments of a batch; one that is not finite is left out and counted."""
        self.calls += 1
        layout = axes_of(x.ndim, getattr(self.layer, "axis", 1))
        if weights is not None:
            weights = check_weights(weights, x, layout)
            x = zero_masked(x, weights, xp)
        if x.numel() == 0:
            return
        found = self._moments(x, layout, weights)
        if not _finite(found) and bool(torch.isfinite(x).all()):  # squares beyond float32
            found = self._moments(x.double(), layout, weights)
        if not _finite(found):
            self.skipped += 1
            return
        if not bool(torch.as_tensor(found.count).any()):
            return
        self._share = max(self._share, 1 if weights is None else float(torch.as_tensor(weights).ne(0).double().mean()))
        self.moments = found if self.moments is None else merge(self.moments, found, xp)

    def _moments(self, x: Tensor, layout: Axes, weights: Tensor | None) -> Moments:
        inputs = NormInputs(x, weights=weights)
        call = plan_tensors(NormSpec(), inputs, layout)
        moments = moments_of(call.kernel, call, inputs)
        return Moments(*(part.double() if isinstance(part, Tensor) else part for part in moments))

    def counted(self) -> tuple[int, float, int, int]:
        """Return what can be added up over processes: batches, samples, skipped, calls."""
        return self.batches, self.samples, self.skipped, self.calls

    def close(self, samples: int) -> None:
        """End a batch of so many samples."""
        self.batches += self._share > 0
        self.samples += samples * self._share
        self._share = 0

    def statistics(self, before: "Population | None" = None) -> tuple[Tensor, Tensor]:
        """Return the mean, and the variance by the estimator of the layer, in the shape of its buffers; float64.

        What the pass before has seen stands in for what this one has yet to see, if it is given.
        """
        moments = self.moments
        if moments is None:
            raise BatchNormError(f"{self.place.name} has seen no data")
        if before is not None and before.moments is not None:
            whole = before.moments
            rest = torch.as_tensor(whole.count - moments.count).clamp(min=0)
            moments = merge(moments, whole._replace(count=rest, m2=whole.m2 * (rest / divisor(whole.count, xp))), xp)
        shape = self.layer.running_mean.shape
        chosen: Estimator = getattr(self.layer, "running_variance", TORCH.running_variance)
        estimator = chosen if getattr(self.layer, "renorm", None) is None else RENORM_ESTIMATOR
        var = observed_variance(moments, estimator, xp)
        return (moments.mean + moments.mean_low).reshape(shape), var.reshape(shape)

    def count(self) -> float:
        """Return how many values a feature has been seen with: the least of all features."""
        count = 0.0 if self.moments is None else self.moments.count
        return float(count.min()) if isinstance(count, Tensor) else float(count)


def _finite(found: Moments) -> bool:
    return bool(torch.isfinite(found.mean + found.m2).all())


@torch.no_grad()
def settle(layer: Any, mean: Tensor, var: Tensor) -> None:
    """Make these the running statistics of a layer, those of renormalization too.

    Raises:
        BatchNormError: if their dtype cannot hold them.
    """
    for buffer, value in ((layer.running_mean, mean), (layer.running_var, var)):
        if not bool(value.to(buffer.dtype).isfinite().all()):
            dtype, largest = str(buffer.dtype).removeprefix("torch."), float(value.abs().max())
            raise BatchNormError(
                f"running statistics in {dtype} cannot hold {largest:.3g}: keep them in float32, as the layers of "
                'convert(model, "batchnorm") do'
            )
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    if getattr(layer, "renorm", None) is not None:
        layer.renorm_mean.copy_(mean)
        for name in ("renorm_stddev", "running_stddev"):
            getattr(layer, name).copy_((var + layer.eps).sqrt())
