"""The layers: torch's classes by name, default, state_dict key and error, with an axis to choose."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  # how torch's tools find it

from batchnorm.conventions import TORCH, Estimator, check_epsilon, check_momentum, check_running_variance
from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.layout import Axis, normalise_axis
from batchnorm.torch.functional import batch_norm


def _check_num_features(num_features: Any, axes: tuple[int, ...]) -> None:
    sizes: tuple[Any, ...] = tuple(num_features) if isinstance(num_features, Sequence) else (num_features,)
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in sizes):
        raise ArgumentError(f"`num_features` must count features, got {num_features!r}")
    if len(axes) == 1 and not isinstance(num_features, int):
        raise ArgumentError(f"`num_features` must be an int for axis={axes[0]}, got {num_features!r}")
    if len(axes) > 1 and isinstance(num_features, int):
        raise ArgumentError(
            f"`num_features` must be the shape of the parameters for axis={axes}: the input's rank, with 1 on every "
            f"reduced axis; got {num_features}"
        )


class BatchNorm(_BatchNorm):
    """Batch normalization of an input of any rank ≥ 2, along any axis.

    y = γ·(x−μ)/√(σ²+ε) + β, per feature. Training: μ and σ² (biased) of the batch, and the running statistics move by
    s ← s + α·(batch − s), α = `momentum`. Inference: μ and σ² are the running ones.

    Args:
        num_features: C, the size of the input along `axis`. With several axes: the shape of the parameters, the
            input's rank with 1 on every reduced axis.
        eps: ε > 0, inside the root.
        momentum: α, the weight of the NEW observation, in [0, 1]; None: the average of all batches, α = 1/(t+1).
        affine: Whether γ and β are learned; they start at 1 and 0.
        track_running_stats: Whether running statistics are kept; without, inference normalises by the batch too.
        device: Where parameters and buffers live.
        dtype: Of the parameters. Running statistics are float32 at least, also after `.half()` or `.bfloat16()`.
        bias: Whether β is learned, if `affine`.
        axis: The KEPT axis or axes, negatives allowed. -1 for (N, L, C).
        running_variance: "unbiased" remembers σ²·N/(N−1), "biased" σ².

    Shape: input (N, C, *) for axis=1, or any shape with C along `axis`; the output has the same shape and dtype.

    Raises:
        ArgumentError: an option out of range, here or when the layer is called.
        DtypeError: a call with an input that is not floating point.
        ShapeError: a call with the wrong rank or feature count, or one value per feature in training.

    Source: Ioffe and Szegedy 2015.

    Differs:
        torch.nn.BatchNorm*: axis 1 only; where |μ| ≫ σ it loses precision. Keras: axis −1, ε 1e-3, momentum 0.99 which
        is 1−α, so 0.01 here. Flax: axis −1, momentum likewise; both remember the biased variance.

    >>> layer = BatchNorm(16, axis=-1)
    >>> layer(torch.randn(8, 20, 16)).shape  # (N, L, C), nothing transposed
    torch.Size([8, 20, 16])
    >>> BatchNorm(16, momentum=1.5)
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `momentum` must lie in [0, 1] or be None, got 1.5 (Keras' 0.99 is 0.01 here)
    """

    ranks: ClassVar[tuple[int, ...] | None] = None
    axis: Axis
    running_variance: Estimator

    def __init__(
        self,
        num_features: int | Sequence[int],
        eps: float = TORCH.epsilon,
        momentum: float | None = TORCH.momentum,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        axis: Axis = TORCH.axis,
        running_variance: Estimator = TORCH.running_variance,
    ) -> None:
        """Create the layer; see the class for the arguments."""
        axes = normalise_axis(axis)
        _check_num_features(num_features, axes)
        check_epsilon(eps)
        check_momentum(momentum)
        check_running_variance(running_variance)
        features: Any = num_features if isinstance(num_features, int) else tuple(num_features)
        super().__init__(features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.axis = axes[0] if len(axes) == 1 else axes
        self.running_variance = running_variance
        self._keep_precision(self._statistics())

    def _statistics(self) -> dict[str, Tensor]:
        named = {"running_mean": self.running_mean, "running_var": self.running_var}
        return {name: buffer for name, buffer in named.items() if buffer is not None}

    def _keep_precision(self, before: dict[str, Tensor]) -> None:
        """Where a cast has left running statistics in 16 bits, take them from `before` in float32."""
        for name, now in self._statistics().items():
            if now.dtype.itemsize < torch.float32.itemsize:
                setattr(self, name, before[name].to(device=now.device, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BatchNorm":
        before = self._statistics()
        super()._apply(fn, recurse)
        self._keep_precision(before)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._keep_precision(self._statistics())  # `assign=True` puts the checkpoint's own tensors in place

    def _check_input_dim(self, input: Tensor) -> None:
        if self.ranks is not None and input.dim() not in self.ranks:
            expected = " or ".join(f"{r}D" for r in self.ranks)
            raise ShapeError(
                f"expected {expected} input (got {input.dim()}D input of shape {tuple(input.shape)}); "
                "BatchNorm takes any rank"
            )

    def _observation_weight(self) -> float | Tensor:
        """Return α for the coming update: `momentum`, or 1/(t+1) where it is None."""
        if self.momentum is not None or self.num_batches_tracked is None:
            return 0.0 if self.momentum is None else self.momentum
        return 1.0 / (self.num_batches_tracked + 1).to(torch.float32)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`; in training, move the running statistics by one step."""
        if isinstance(input, Tensor):
            self._check_input_dim(input)
        by_batch = self.training or self.running_mean is None
        uses_running = self.track_running_stats if self.training else not by_batch
        y = batch_norm(
            input,
            self.running_mean if uses_running else None,
            self.running_var if uses_running else None,
            self.weight,
            self.bias,
            by_batch,
            self._observation_weight(),
            self.eps,
            axis=self.axis,
            running_variance=self.running_variance,
        )
        moved = self.training and self.track_running_stats and input.numel() > 0
        if moved and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return y

    def extra_repr(self) -> str:
        """Return torch's description, with the options that differ from its own."""
        options: list[tuple[str, Any, Any]] = [
            ("axis", self.axis, TORCH.axis),
            ("running_variance", self.running_variance, TORCH.running_variance),
        ]
        return ", ".join(
            [super().extra_repr(), *(f"{name}={value!r}" for name, value, plain in options if value != plain)]
        )


class BatchNorm1d(BatchNorm):
    """`BatchNorm` for (N, C) or (N, C, L), in place of torch.nn.BatchNorm1d.

    >>> BatchNorm1d(3)(torch.randn(4, 3, 5, 5))
    Traceback (most recent call last):
    batchnorm.errors.ShapeError: expected 2D or 3D input (got 4D input of shape (4, 3, 5, 5)); BatchNorm takes any rank
    """

    ranks = (2, 3)


class BatchNorm2d(BatchNorm):
    """`BatchNorm` for (N, C, H, W), in place of torch.nn.BatchNorm2d.

    >>> import torch.nn
    >>> swapped = BatchNorm2d(8)
    >>> swapped.load_state_dict(torch.nn.BatchNorm2d(8).state_dict())
    <All keys matched successfully>
    """

    ranks = (4,)


class BatchNorm3d(BatchNorm):
    """`BatchNorm` for (N, C, D, H, W), in place of torch.nn.BatchNorm3d.

    >>> BatchNorm3d(2)(torch.randn(2, 2, 3, 3, 3)).shape
    torch.Size([2, 2, 3, 3, 3])
    """

    ranks = (5,)
