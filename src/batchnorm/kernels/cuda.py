"""Plain calls on a GPU by the kernels that torch has for them, cuDNN's where torch takes those.

There is no faster kernel here for what torch's own layer computes, and exchanging the layer should make nobody slower.
The running statistics are updated from the moments as everywhere else, guarded against inf and NaN.
"""

from collections.abc import Sequence
from typing import Any

from batchnorm.kernels.eager import EagerKernel, precise
from batchnorm.kernels.interface import BackwardResult, Facts, ForwardResult, Mode
from batchnorm.statistics import Array, Namespace


def unsupported(facts: Facts) -> str | None:
    """Return why torch's kernels do not serve a call; None where they do."""
    if facts.mode is not Mode.EAGER:
        return facts.mode.value
    if not facts.is_plain or facts.axes.kept != (1,):
        return "torch's kernels for GPUs take plain tensors with features along axis 1"
    if 0 in facts.shape:
        return "the input is empty"
    if not facts.in_named_format:
        return "the input lies in no memory format of torch"
    options = {"weights": facts.weights, "residual": facts.residual, "activation": facts.activation}
    in_use = [f"`{name}`" for name, value in options.items() if value is not None]
    return f"torch's kernels for GPUs have no {' and no '.join(in_use)}" if in_use else None


class CudaKernel(EagerKernel):
    """torch's forward and backward of plain batch normalization, and its affine map; the other passes are eager."""

    name = "cuda"
    needs_reserve = True

    def __init__(self, xp: Namespace, operators: Any, eps: float) -> None:
        """Create the kernel on torch's namespace and a table of torch's operators, such as torch.ops.aten."""
        super().__init__(xp, cascade=True)
        self._operators, self._eps = operators, eps

    def has_reserve(self, activation: str | None, *, residual: bool) -> bool:
        """Return True: cuDNN keeps one; it is empty where torch takes another kernel."""
        del activation, residual
        return True

    def forward(
        self,
        x: Array,
        reduced: Sequence[int],
        gamma: Array | None,
        beta: Array | None,
        *,
        eps: float,
        activation: str | None = None,
        residual: Array | None = None,
        weights: Array | None = None,
    ) -> ForwardResult:
        """Normalise x by its own statistics; m2 is that of the variance that torch would have put into a buffer."""
        del reduced, activation, residual, weights
        features, kept = x.shape[1], (1, x.shape[1], *(1 for _ in x.shape[2:]))
        count = x.numel() // features
        dtype = precise(x, self._xp)
        mean, var = (x.new_zeros(features, dtype=dtype) for _ in range(2))  # a momentum of one leaves nothing of them
        # Both are given, as the backward gives them: torch chooses between its kernels by whether there is one.
        gamma = self._xp.ones_like(mean) if gamma is None else gamma.reshape(features)
        beta = self._xp.zeros_like(mean) if beta is None else beta.reshape(features)
        y, _, inv_std, reserve = self._operators._batch_norm_with_update(x, gamma, beta, mean, var, 1.0, eps)
        m2 = var * (count - 1) if count > 1 else mean - mean  # torch divides by N − 1; inf and NaN stay to be seen
        mean, m2, inv_std = (a.reshape(kept) for a in (mean, m2, inv_std))
        return ForwardResult(y, mean, self._xp.zeros_like(mean), m2, inv_std, reserve)

    def affine(
        self,
        x: Array,
        mean: Array,
        mean_low: Array | None,
        scale: Array,
        shift: Array,
        *,
        residual: Array | None = None,
        activation: str | None = None,
    ) -> Array:
        """Return y = act((x−μ)·scale + shift + residual), in one pass where the mean is one number."""
        if mean_low is not None or residual is not None or activation is not None:
            return super().affine(x, mean, mean_low, scale, shift, residual=residual, activation=activation)
        flat = [self._xp.broadcast_to(a, mean.shape).reshape(-1) for a in (scale, shift, mean)]
        return self._operators.batch_norm_elemt(x, *flat, self._xp.ones_like(flat[2]), 0.0)

    def backward(
        self,
        dy: Array,
        x: Array,
        mean: Array,
        mean_low: Array | None,
        inv_std: Array,
        per_count: Array | None,
        scale: Array,
        shift: Array | None,
        *,
        fixed: bool = False,
        activation: str | None = None,
        residual: Array | None = None,
        reserve: Array | None = None,
        weights: Array | None = None,
        wants_dx: bool,
        wants_dz: bool,
        wants_sums: bool,
    ) -> BackwardResult:
        """Return dz, Σdz, Σdz·(x−μ) and dx."""
        del mean_low, per_count, fixed, shift, activation, residual, weights, wants_dz
        gamma, center, spread = (a.reshape(-1) for a in (scale / inv_std, mean, inv_std))
        outputs = [wants_dx, True, True]
        dx, dgamma, dbeta = self._operators.batch_norm_backward(
            dy, x, gamma, None, None, center, spread, True, self._eps, outputs, reserve
        )
        sums = (dbeta.reshape(mean.shape), dgamma.reshape(mean.shape) / inv_std) if wants_sums else (None, None)
        return BackwardResult(dy, *sums, dx if wants_dx else None)
