"""What the frameworks call and default differently, and the rules every option obeys.

The one difference that bites most is momentum. Here, as in torch, it is the weight α of the NEW observation,
s ← s + α·(batch − s); Keras and Flax write the weight of the old one, so their 0.99 is 0.01 here.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from batchnorm.errors import ArgumentError

Estimator = Literal["unbiased", "biased"]
ESTIMATORS = get_args(Estimator)


@dataclass(frozen=True)
class Convention:
    """How one framework writes batch normalization.

    Attributes:
        axis: The kept axis by default.
        epsilon: ε, added to the variance inside the root.
        momentum: The default as this framework writes it.
        momentum_weighs_new: Whether `momentum` weighs the new observation (torch) or the old one (Keras, Flax).
        running_variance: Which estimate of the variance enters the running statistics.
    """

    axis: int
    epsilon: float
    momentum: float
    momentum_weighs_new: bool
    running_variance: Estimator

    def weight_of_new(self, momentum: float | None = None) -> float:
        """Return α of s ← s + α·(batch − s) for a momentum written in this convention (its default if None).

        >>> round(KERAS.weight_of_new(0.99), 6)
        0.01
        >>> TORCH.weight_of_new()
        0.1
        """
        written = self.momentum if momentum is None else momentum
        return written if self.momentum_weighs_new else 1.0 - written


TORCH = Convention(axis=1, epsilon=1e-5, momentum=0.1, momentum_weighs_new=True, running_variance="unbiased")
KERAS = Convention(axis=-1, epsilon=1e-3, momentum=0.99, momentum_weighs_new=False, running_variance="biased")
FLAX = Convention(axis=-1, epsilon=1e-5, momentum=0.99, momentum_weighs_new=False, running_variance="biased")


def check_momentum(momentum: Any) -> None:
    """Raise unless `momentum`, as the weight of the new observation, is in [0, 1] or None (cumulative average).

    >>> check_momentum(1.5)
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `momentum` must lie in [0, 1] or be None, got 1.5 (Keras' 0.99 is 0.01 here)
    """
    if momentum is None or (isinstance(momentum, Real) and 0.0 <= float(momentum) <= 1.0):
        return
    raise ArgumentError(f"`momentum` must lie in [0, 1] or be None, got {momentum!r} (Keras' 0.99 is 0.01 here)")


def check_epsilon(epsilon: Any, *, name: str = "eps") -> None:
    """Raise unless ε is a positive finite number.

    >>> check_epsilon(0)
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `eps` must be a positive finite number, got 0 (torch uses 1e-5, Keras 1e-3)
    """
    if isinstance(epsilon, Real) and 0.0 < float(epsilon) < math.inf:
        return
    raise ArgumentError(f"`{name}` must be a positive finite number, got {epsilon!r} (torch uses 1e-5, Keras 1e-3)")


def check_running_variance(estimator: Any) -> None:
    """Raise unless the estimator of the running variance is one that exists."""
    if estimator not in ESTIMATORS:
        raise ArgumentError(
            f'`running_variance` must be "unbiased" (σ²·N/(N−1), torch) or "biased" (σ², Keras and Flax), '
            f"got {estimator!r}"
        )


def check_groups(virtual_batch_size: Any, adjustment: Any) -> None:
    """Raise unless the size of virtual batches is None or an int ≥ 1, and `adjustment` None or a function without them.

    >>> check_groups(0, None)
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `virtual_batch_size` must be None or an int ≥ 1, got 0
    """
    size = virtual_batch_size
    if size is not None and (not isinstance(size, Integral) or isinstance(size, bool) or size < 1):
        raise ArgumentError(f"`virtual_batch_size` must be None or an int ≥ 1, got {size!r}")
    if adjustment is None:
        return
    if not callable(adjustment):
        raise ArgumentError(f"`adjustment` must be None or a function (shape) -> (scale, shift), got {adjustment!r}")
    if size is not None:
        raise ArgumentError(
            f"`adjustment` and `virtual_batch_size` exclude one another, got both (virtual_batch_size={size})"
        )


def refuse_unknown(function: str, unknown: Collection[str], meant: Mapping[str, str]) -> None:
    """Raise Python's TypeError for arguments that a function has not, with what they are called there.

    >>> refuse_unknown("BatchNorm()", {"epsilon": 1e-3}, {"epsilon": "eps"})
    Traceback (most recent call last):
    TypeError: BatchNorm() got an unexpected keyword argument 'epsilon' (it is `eps` here)
    """
    for name in unknown:
        hint = f" (it is `{meant[name]}` here)" if name in meant else ""
        raise TypeError(f"{function} got an unexpected keyword argument {name!r}{hint}")
