"""The native kernel on arrays that know their address, their strides and their dtype."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from batchnorm.activations import ACTIVATIONS
from batchnorm.kernels.eager import precise
from batchnorm.kernels.interface import BackwardResult, Facts, ForwardResult
from batchnorm.kernels.native import abi
from batchnorm.kernels.native.memory import MemoryLayout, layout_of, memory_layout, weight_group_axis
from batchnorm.statistics import Array, Namespace


@dataclass(frozen=True)
class Arrays:
    """What the native kernel asks of a framework.

    Attributes:
        xp: The array namespace.
        address: `(array) -> int`.
        strides: `(array) -> tuple`, in elements.
        dtype: `(array) -> str`, a name of `abi.DTYPES`.
        empty: `(shape, like, dtype) -> array`, contiguous.
        empty_like: `(array) -> array` that lies in memory as the given one does, which is dense.
        copied: `(array, into) -> into`, with the values of the array.
        contiguous: `(array) -> array`.
        parallel_for: The address of a `bn_parallel_for`; 0 for the library's own threads.
    """

    xp: Namespace
    address: Callable[[Array], int]
    strides: Callable[[Array], tuple[int, ...]]
    dtype: Callable[[Array], str]
    empty: Callable[[tuple[int, ...], Array, Any], Array]
    empty_like: Callable[[Array], Array]
    copied: Callable[[Array, Array], Array]
    contiguous: Callable[[Array], Array]
    parallel_for: int = 0

    def layout(self, x: Array, features: tuple[int, ...], weights: Array | None = None) -> MemoryLayout:
        """Return how x lies in memory."""
        group_axis = weight_group_axis(features, None if weights is None else tuple(weights.shape))
        layout = memory_layout(tuple(x.shape), self.strides(x), features, group_axis)
        if isinstance(layout, str):
            raise NotImplementedError(f"the native kernel does not serve this: {layout}")
        return layout

    def match_layout(self, array: Array | None, x: Array) -> Array | None:
        """Return the array laid out as x is, itself where it is already."""
        if array is None or (array.dtype == x.dtype and self.strides(array) == self.strides(x)):
            return array
        return self.copied(array, self.empty_like(x))

    def broadcast_features(
        self, numbers: dict[str, Array | None], features: tuple[int, ...]
    ) -> dict[str, Array | None]:
        """Return numbers of features, one for each, side by side."""
        return {name: None if n is None else self._side_by_side(n, features) for name, n in numbers.items()}

    def _side_by_side(self, n: Array, features: tuple[int, ...]) -> Array:
        return self.contiguous(n if tuple(n.shape) == features else self.xp.broadcast_to(n, features))

    def in_order(self, weights: Array | None, x: Array, layout: MemoryLayout) -> Array | None:
        """Return weights of samples one after another as in memory: along all axes but those of channels."""
        if weights is None:
            return None
        shape = tuple(n if i in layout.weight_axes else 1 for i, n in enumerate(x.shape))
        return self.contiguous(self.xp.permute_dims(self.xp.broadcast_to(weights, shape), layout.order))

    def empty_numbers(self, x: Array, features: tuple[int, ...]) -> Array:
        """Return memory for a number for each feature, in the working dtype of x."""
        return self.empty(features, x, precise(x, self.xp))


def _features(mean: Array, scale: Array) -> tuple[int, ...]:
    return tuple(max(n, m) for n, m in zip(mean.shape, scale.shape, strict=True))


def kept_shape(x: Array, reduced: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of x with 1 on the reduced axes."""
    return tuple(1 if i in reduced else n for i, n in enumerate(x.shape))


class NativeKernel:
    """The kernel for the arrays of one framework."""

    name = "native"
    needs_reserve = False

    def __init__(self, arrays: Arrays) -> None:
        """Create the kernel for arrays of one kind."""
        self._arrays = arrays

    def _run(
        self,
        function: str,
        layout: MemoryLayout,
        x: Array,
        arrays: dict[str, Array | None],
        *,
        activation: str | None = None,
        eps: float = 0.0,
        fixed: bool = False,
    ) -> None:
        a = self._arrays
        call = layout.enter(abi.Call(a.parallel_for, x=a.address(x), eps=eps, fixed=fixed))
        call.dtype, call.activation = abi.DTYPES[a.dtype(x)], abi.ACTIVATIONS[activation]
        for field, array in arrays.items():
            if array is not None:
                setattr(call, field, a.address(array))
        abi.loaded().run(function, call)

    def template(self, facts: Facts) -> abi.Call | None:
        """Return a call with all but its addresses; None where weights of samples are in use."""
        layout = layout_of(facts)
        if facts.weights is not None or isinstance(layout, str):
            return None
        call = layout.enter(abi.Call(self._arrays.parallel_for, eps=facts.eps))
        call.dtype, call.activation = abi.DTYPES[facts.dtype], abi.ACTIVATIONS[facts.activation]
        return call

    def moments(
        self, x: Array, reduced: Sequence[int], count: Any, weights: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Return μ, Σw(x−μ)² and the low part of μ; the library counts itself."""
        del count
        a, features = self._arrays, kept_shape(x, reduced)
        layout = a.layout(x, features, weights)
        mean, mean_low, m2 = (a.empty_numbers(x, features) for _ in range(3))
        weights = a.in_order(weights, x, layout)
        self._run("moments", layout, x, {"weights": weights, "mean": mean, "mean_low": mean_low, "m2": m2})
        return mean, m2, mean_low

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
        reserves: bool = True,
    ) -> ForwardResult:
        """Normalise x by its own statistics, each channel while it is in the cache.

        The reserve holds a bit for each element, the sign of z; without `reserves` there is none.
        """
        a, features = self._arrays, kept_shape(x, reduced)
        layout = a.layout(x, features, weights)
        y, (mean, mean_low, m2, inv_std) = a.empty_like(x), (a.empty_numbers(x, features) for _ in range(4))
        bits = None
        if reserves and self.has_reserve(activation, residual=residual is not None):
            bits = a.empty((layout.bits_size(a.dtype(x)),), x, a.xp.int16)
        arrays = {
            "residual": a.match_layout(residual, x), "weights": a.in_order(weights, x, layout), "y": y, "bits": bits,
            "mean": mean, "mean_low": mean_low, "m2": m2, "inv_std": inv_std,
        }  # fmt: skip
        parameters = {"scale": gamma, "shift": beta}
        self._run(
            "forward", layout, x, arrays | a.broadcast_features(parameters, features), activation=activation, eps=eps
        )  # fmt: skip
        return ForwardResult(y, mean, mean_low, m2, inv_std, bits)

    def has_reserve(self, activation: str | None, *, residual: bool) -> bool:
        """Return whether the backward cannot find the signs of z from x alone, and reads nothing else of z."""
        return residual and activation is not None and ACTIVATIONS[activation].by_sign

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
        """Return y = act((x−μ)·scale + shift + residual)."""
        a, features, y = self._arrays, _features(mean, scale), self._arrays.empty_like(x)
        numbers = {"mean": mean, "mean_low": mean_low, "scale": scale, "shift": shift}
        arrays = {"residual": a.match_layout(residual, x), "y": y} | a.broadcast_features(numbers, features)
        self._run("affine", a.layout(x, features), x, arrays, activation=activation)
        return y

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
        """Return dz, Σdz, Σdz·(x−μ) and dx, each channel while it is in the cache; without an activation dz is dy."""
        a, features = self._arrays, _features(mean, scale)
        layout, dy = a.layout(x, features, weights), a.match_layout(dy, x)
        dx = a.empty_like(x) if wants_dx else None
        dz = a.empty_like(x) if wants_dz and activation is not None else None
        sum_dz, sum_dz_centred = (None if fixed and not wants_sums else a.empty_numbers(x, features) for _ in range(2))
        numbers = {
            "mean": mean, "mean_low": mean_low, "inv_std": inv_std, "per_count": per_count, "scale": scale,
            "shift": shift,
        }  # fmt: skip
        arrays = {
            "dy": dy, "residual": a.match_layout(residual, x), "weights": a.in_order(weights, x, layout),
            "bits": reserve, "dx": dx, "dz": dz, "sum_dz": sum_dz, "sum_dz_centred": sum_dz_centred,
        }  # fmt: skip
        arrays |= a.broadcast_features(numbers, features)
        self._run("backward", layout, x, arrays, activation=activation, fixed=fixed)
        return BackwardResult(dy if activation is None else dz, sum_dz, sum_dz_centred, dx)

    def backward_activation(
        self,
        dy: Array,
        x: Array,
        mean: Array,
        mean_low: Array | None,
        scale: Array,
        shift: Array,
        *,
        activation: str,
        residual: Array | None = None,
        y: Array | None = None,
    ) -> Array:
        """Return dz = dy·act'(z) in the dtype of x; z is computed again."""
        del y
        return self.backward(
            dy, x, mean, mean_low, scale, None, scale, shift, fixed=True, activation=activation, residual=residual,
            wants_dx=False, wants_dz=True, wants_sums=False,
        ).dz  # fmt: skip

    def backward_reduce(
        self, dz: Array, x: Array, reduced: Sequence[int], mean: Array, mean_low: Array | None
    ) -> tuple[Array, Array]:
        """Return Σdz and Σdz·(x−μ)."""
        a, features = self._arrays, kept_shape(x, reduced)
        sums = a.empty_numbers(x, features), a.empty_numbers(x, features)
        arrays = {"dy": a.match_layout(dz, x), "sum_dz": sums[0], "sum_dz_centred": sums[1]}
        arrays |= a.broadcast_features({"mean": mean, "mean_low": mean_low}, features)
        self._run("backward_reduce", a.layout(x, features), x, arrays)
        return sums

    def backward_elementwise(
        self,
        dz: Array,
        x: Array,
        mean: Array,
        mean_low: Array | None,
        of_dy: Array,
        of_centred: Array | None = None,
        constant: Array | None = None,
        *,
        weights: Array | None = None,
    ) -> Array:
        """Return dx = dz·of_dy + w·((x−μ)·of_centred + constant)."""
        a, features, dx = self._arrays, _features(mean, of_dy), self._arrays.empty_like(x)
        layout = a.layout(x, features, weights)
        numbers = {"mean": mean, "mean_low": mean_low, "scale": of_dy, "of_centred": of_centred, "constant": constant}
        arrays = {"dy": a.match_layout(dz, x), "dx": dx, "weights": a.in_order(weights, x, layout)}
        self._run("backward_elementwise", layout, x, arrays | a.broadcast_features(numbers, features))
        return dx
