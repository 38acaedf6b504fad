"""The options of a layer that every front-end shares, checked once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from batchnorm.activations import check_activation
from batchnorm.conventions import (
    TORCH,
    Estimator,
    check_epsilon,
    check_groups,
    check_momentum,
    check_running_variance,
)
from batchnorm.errors import ArgumentError
from batchnorm.layout import Axis, normalise_axis
from batchnorm.renorm import RENORM_ESTIMATOR, Renorm

NonFinite = Literal["skip", "raise", "propagate"]
SmallBatch = Literal["raise", "running", "allow"]
Adjustment = Callable[[Any], tuple[Any, Any]]
NON_FINITE, SMALL_BATCH = get_args(NonFinite), get_args(SmallBatch)


@dataclass(frozen=True)
class NormSpec:
    """The options of a layer; `batchnorm.torch.BatchNorm` says what each means.

    Attributes:
        axis: The kept axis or axes.
        eps: ε.
        activation: Its name, or None.
        momentum: α, the weight of the new observation; None for the average of all batches.
        estimator: The variance that the running statistics take in.
        virtual_batch_size: The size of the groups that a batch is split into, or None.
        renorm: A `Renorm`, or None.
        adjustment: `(shape) -> (scale, shift)` of x̂, or None.
        nonfinite: How a batch with inf or NaN is treated.
        small_batch: How one value per feature in training is treated.
        sync: Whether all processes share one set of moments.

    Raises:
        ArgumentError: an option out of range, or two that exclude one another.

    >>> NormSpec(axis=-1, nonfinite="ignore")
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `nonfinite` must be "skip", "raise" or "propagate", got 'ignore'
    """

    axis: Axis = TORCH.axis
    eps: float = TORCH.epsilon
    activation: str | None = None
    momentum: float | None = TORCH.momentum
    estimator: Estimator = TORCH.running_variance
    virtual_batch_size: int | None = None
    renorm: Renorm | None = None
    adjustment: Adjustment | None = None
    nonfinite: NonFinite = "skip"
    small_batch: SmallBatch = "raise"
    sync: bool = False

    def __post_init__(self) -> None:
        normalise_axis(self.axis)
        check_epsilon(self.eps)
        check_activation(self.activation)
        check_groups(self.virtual_batch_size, self.adjustment)
        check_running_variance(self.estimator)
        if self.nonfinite not in NON_FINITE:
            raise ArgumentError(f'`nonfinite` must be "skip", "raise" or "propagate", got {self.nonfinite!r}')
        if self.small_batch not in SMALL_BATCH:
            raise ArgumentError(f'`small_batch` must be "raise", "running" or "allow", got {self.small_batch!r}')
        check_momentum(self.momentum)
        if self.renorm is not None and not isinstance(self.renorm, Renorm):
            raise ArgumentError(f"`renorm` must be None or a Renorm, got {self.renorm!r}")
        if not isinstance(self.sync, bool):
            raise ArgumentError(f"`sync` must be a bool, got {self.sync!r}")

    @property
    def observed_estimator(self) -> Estimator:
        """Return the estimator of the variance that the running statistics take in: under `renorm` the biased one."""
        return self.estimator if self.renorm is None else RENORM_ESTIMATOR

    @property
    def max_fallback_count(self) -> int:
        """Return the largest count at which a feature is normalised by the running statistics, where there are any."""
        return 1 if self.small_batch == "running" else 0
