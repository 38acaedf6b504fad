"""The activations that the layer can apply itself, in the pass that writes its output.

Each is a function of the pre-activation z with its gradient, written on an array namespace. A kernel recomputes z in
the backward rather than keep it; where only the sign of z matters, the output tells it as well.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from batchnorm.errors import ArgumentError

Array = Any
Namespace = Any

ActivationName = Literal["relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"]
LEAKY_SLOPE = 0.01


class Activation(NamedTuple):
    """One activation.

    Attributes:
        function: `(z, xp) -> y`.
        gradient: `(dy, z, xp) -> dz`, dz = dy·act'(z).
        by_sign: Whether the derivative depends on the sign of z alone, which y shares.
    """

    function: Callable[[Array, Namespace], Array]
    gradient: Callable[[Array, Array, Namespace], Array]
    by_sign: bool = False


def _sigmoid(z: Array, xp: Namespace) -> Array:
    if hasattr(xp, "sigmoid"):
        return xp.sigmoid(z)
    small = xp.exp(-xp.abs(z))  # never overflows, and keeps its digits for z ≪ 0
    return xp.where(z >= 0, xp.ones_like(z), small) / (1.0 + small)


def _sigmoid_gradient(dy: Array, z: Array, xp: Namespace) -> Array:
    s = _sigmoid(z, xp)
    return dy * (s * (1.0 - s))


def _relu(z: Array, xp: Namespace) -> Array:
    return xp.relu(z) if hasattr(xp, "relu") else xp.maximum(z, xp.zeros_like(z))  # either keeps a NaN


def _relu_gradient(dy: Array, z: Array, xp: Namespace) -> Array:
    return dy * xp.astype(z > 0, dy.dtype)  # several times as fast as `where` in torch on a CPU


def _leaky_relu(z: Array, xp: Namespace) -> Array:
    return xp.where(z > 0, z, z * LEAKY_SLOPE)


def _leaky_relu_gradient(dy: Array, z: Array, xp: Namespace) -> Array:
    return dy * (xp.astype(z > 0, dy.dtype) * (1.0 - LEAKY_SLOPE) + LEAKY_SLOPE)


def _silu(z: Array, xp: Namespace) -> Array:
    return z * _sigmoid(z, xp)


def _silu_gradient(dy: Array, z: Array, xp: Namespace) -> Array:
    s = _sigmoid(z, xp)
    return dy * (s * (1.0 + z * (1.0 - s)))


def _erf(z: Array, xp: Namespace) -> Array:
    if hasattr(xp, "erf"):
        return xp.erf(z)
    values = [math.erf(v) for v in xp.reshape(z, (-1,))]  # NumPy has none, and the standard library knows one number
    return xp.reshape(xp.asarray(values, dtype=z.dtype), z.shape)


def _normal_cdf(z: Array, xp: Namespace) -> Array:
    return 0.5 * (1.0 + _erf(z * math.sqrt(0.5), xp))


def _gelu(z: Array, xp: Namespace) -> Array:
    return z * _normal_cdf(z, xp)


def _gelu_gradient(dy: Array, z: Array, xp: Namespace) -> Array:
    return dy * (_normal_cdf(z, xp) + z * xp.exp(-0.5 * z * z) * (1.0 / math.sqrt(2.0 * math.pi)))


def _tanh(z: Array, xp: Namespace) -> Array:
    return xp.tanh(z)


def _tanh_gradient(dy: Array, z: Array, xp: Namespace) -> Array:
    y = xp.tanh(z)
    return dy * (1.0 - y * y)


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(_relu, _relu_gradient, by_sign=True),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_gradient, by_sign=True),
    "silu": Activation(_silu, _silu_gradient),
    "gelu": Activation(_gelu, _gelu_gradient),
    "tanh": Activation(_tanh, _tanh_gradient),
    "sigmoid": Activation(_sigmoid, _sigmoid_gradient),
}


def activated(z: Array, name: str | None, xp: Namespace) -> Array:
    """Return act(z); z itself where `name` is None."""
    return z if name is None else ACTIVATIONS[name].function(z, xp)


def check_activation(activation: Any) -> None:
    """Raise unless `activation` is None or one of the names.

    relu: max(z, 0). leaky_relu: z, or 0.01·z below 0. silu: z·σ(z). gelu: z·Φ(z), exact. tanh. sigmoid: σ(z).

    Differs:
        Keras' leaky_relu falls with 0.2 unless told otherwise, torch's and this with 0.01.

    >>> check_activation("swish")
    Traceback (most recent call last):
    batchnorm.errors.ArgumentError: `activation` must be None, "relu", "leaky_relu", "silu", "gelu", "tanh" or \
"sigmoid", got 'swish' (apply any other one to the output)
    """
    if activation is not None and (not isinstance(activation, str) or activation not in ACTIVATIONS):
        *names, last = (f'"{name}"' for name in ACTIVATIONS)
        raise ArgumentError(
            f"`activation` must be None, {', '.join(names)} or {last}, got {activation!r} "
            "(apply any other one to the output)"
        )
