"""What a kernel offers, and the facts that decide whether it serves a call."""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

from batchnorm.layout import Axes
from batchnorm.statistics import Array


class Mode(Enum):
    """Under what a call runs: who else sees its operations, and whether the values can be read."""

    EAGER = "eager"
    COMPILE = "a compiler traces"
    EXPORT = "operations are written down, for machines that may not have the native kernel"
    DISPATCH_MODE = "a dispatch mode, or a tensor subclass, sees every operation"
    FORWARD_AD = "forward-mode derivatives are those of framework operations"
    FUNCTORCH = "torch.func transforms framework operations"


class Facts(NamedTuple):
    """What is known of a call before any value is read: all that the choice of a kernel depends on.

    Attributes:
        axes: Of the input.
        shape: Of the input.
        strides: Of the input, in elements; () where it has no memory of its own.
        dtype: The name of the input's dtype, such as "float32".
        device: Its type, such as "cpu".
        residual: The name of the dtype of the residual; None without one.
        weights: The shape of the weights of samples; None without.
        activation: Its name; None without.
        eps: ε.
        mode: Under what the call runs.
        is_plain: Whether the arrays are plain ones, no stand-ins for others.
        in_named_format: Whether the framework has a name for how the input lies in memory, which a compiler can guard.
    """

    axes: Axes
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    residual: str | None = None
    weights: tuple[int, ...] | None = None
    activation: str | None = None
    eps: float = 0.0
    mode: Mode = Mode.EAGER
    is_plain: bool = True
    in_named_format: bool = False

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Return the kept shape: that of the input with 1 on the reduced axes."""
        return self.axes.kept_shape(self.shape)


class ForwardResult(NamedTuple):
    """The results of a forward in one call.

    Attributes:
        y: Output.
        mean: High part of μ, in the kept shape.
        mean_low: Low part of μ.
        m2: Σw(x−μ)².
        inv_std: 1/√(σ²+ε).
        reserve: What else the kernel's own backward reads, such as the signs of z; or None.
    """

    y: Array
    mean: Array
    mean_low: Array
    m2: Array
    inv_std: Array
    reserve: Array | None


class BackwardResult(NamedTuple):
    """The results of a backward in one call; None for what was not wanted."""

    dz: Array | None
    sum_dz: Array | None
    sum_dz_centred: Array | None
    dx: Array | None


class Kernel(Protocol):
    """One implementation of the passes over the data, forward and backward.

    z is the output before the activation, w the weights of samples in an array that broadcasts against x. Statistics
    have the kept shape (the rank of x, 1 on the reduced axes) and the working precision: float32, or float64 for
    float64 input. γ, β and what is made of them alone have 1 on the axis of virtual batches too, and may have to be
    broadcast. The mean is the sum `mean + mean_low`; an argument `mean_low` of None is zero. A kernel imports no
    framework: it is given the array namespace, and operators where it needs them, when it is made.
    """

    @property
    def name(self) -> str:
        """Return the name that `batchnorm info` and `extra_repr` show."""
        ...

    def moments(
        self, x: Array, reduced: Sequence[int], count: Any, weights: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Return the mean, m2 = Σw(x−μ)² and the low part of the mean over the axes `reduced`, in one pass.

        `count` is N, or Σw as an array that broadcasts against the results.
        """
        ...

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
        """Return y = act((x−μ)·scale + shift + residual) in the dtype of x, in one pass."""
        ...

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
        """Return dz = dy·act'(z); z is computed again, or has the sign of y where one is given."""
        ...

    def backward_reduce(
        self, dz: Array, x: Array, reduced: Sequence[int], mean: Array, mean_low: Array | None
    ) -> tuple[Array, Array]:
        """Return Σdz and Σdz·(x−μ) over the axes `reduced`, in one pass."""
        ...

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
        """Return dx = dz·of_dy + w·((x−μ)·of_centred + constant) in the dtype of x, in one pass."""
        ...

    def template(self, facts: Facts) -> Any:
        """Return a call of the native library that needs addresses alone; None where the kernel does not have one."""
        ...


class OneCallKernel(Kernel, Protocol):
    """A kernel that also does a whole forward, and a whole backward, in one call each."""

    @property
    def needs_reserve(self) -> bool:
        """Return whether `backward` serves only after a `forward` that has returned a reserve."""
        ...

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
        """Return y = act(γ·(x−μ)/√(σ²+ε) + β + residual) and the statistics of the batch.

        It is called where the statistics of the batch alone normalise, and no process exchanges moments. With weights N
        is the sum of the weights broadcast along the reduced axes.
        """
        ...

    def has_reserve(self, activation: str | None, *, residual: bool) -> bool:
        """Return whether `forward` returns a reserve for such a call: the two must agree."""
        ...

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
        """Return dz = dy·act'(z), Σdz, Σdz·(x−μ), and dx.

        dx = scale·dz − w·scale·per_count·(Σdz + (x−μ)·inv_std²·Σdz·(x−μ)), where the sums are over the axes on which
        `mean` has 1, and not weighted. `per_count` is 1/N, None for one over the number of values. Where the statistics
        are `fixed`, constants, dx = scale·dz.
        `scale` and `shift` are those of the affine map; a `shift` of None is zero, or not needed without an activation.
        `dy` may lie otherwise in memory than x, or be expanded. The residual is None where `reserve` stands for it.
        """
        ...


def one_call(kernel: Kernel) -> OneCallKernel | None:
    """Return the kernel if it does a whole pass in one call, else None."""
    whole: Any = kernel
    return whole if hasattr(kernel, "forward") else None
