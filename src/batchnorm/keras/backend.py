"""How a batch is normalised on the backend at hand: by keras.ops, or by the front-end made for the backend.

Both ways take the same inputs and give the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from batchnorm import kernels
from batchnorm.core import passes
from batchnorm.core.passes import Merge, NormInputs
from batchnorm.core.plan import CallPlan, plan_call
from batchnorm.core.policy import Policy
from batchnorm.core.spec import NormSpec
from batchnorm.core.step import Frontend
from batchnorm.keras import namespace as xp
from batchnorm.keras.namespace import ops
from batchnorm.keras.replicas import over_replicas
from batchnorm.kernels import Facts
from batchnorm.kernels.eager import working
from batchnorm.layout import Axes
from batchnorm.statistics import Array, Moments, Running, constant

kernels.register(xp, cascade=keras.backend.backend() != "tensorflow")  # TensorFlow adds one after another on a CPU


@dataclass(frozen=True)
class OpsFrontend:
    """How keras.ops takes part in a training step: the backend differentiates the eager kernel.

    Attributes:
        merge: Joins the moments of a batch with those of the other replicas; None where there are none.
    """

    merge: Merge | None = None
    xp = xp

    def plan(self, spec: NormSpec, inputs: NormInputs, axes: Axes) -> CallPlan:
        """Return the plan of a call."""
        x = inputs.x
        dtype = keras.backend.standardize_dtype(x.dtype)
        return plan_call(x, Facts(axes, tuple(x.shape), (), dtype, activation=spec.activation, eps=spec.eps), xp)

    def normalize(self, plan: CallPlan, inputs: NormInputs, policy: Policy) -> tuple[Array, Moments | None]:
        """Return the output and the moments; x is cast once, so that its gradient is rounded once."""
        if not policy.uses_moments:
            return passes.forward(plan, inputs, policy)[0], None
        y, saved = passes.forward(plan, inputs._replace(x=working(inputs.x, xp)), policy, merge=self.merge)
        moments: Any = saved.moments
        return xp.astype(y, inputs.x.dtype), Moments(*(constant(a, xp) for a in moments))


@dataclass(frozen=True)
class Backend:
    """What a layer needs of its backend.

    Attributes:
        name: Whose operations these are.
        frontend: How they take part in a training step.
        is_readable: Whether the values of a tensor can be looked at now, without waiting for a device.
        is_repeating: Whether a forward repeats one that has been counted, in the backward of a checkpointed part.
        first_forward: `(layer, x, running, step)` -> the statistics and the step before the forward that this repeats.
    """

    name: str
    frontend: Frontend
    is_readable: Callable[[Array], bool]
    is_repeating: Callable[[], bool] = lambda: False
    first_forward: Callable[[Any, Array, Running, Any], tuple[Running, Any]] = lambda _layer, _x, running, step: (
        running,
        step,
    )


def _is_eager(x: Array) -> bool:
    try:
        ops.convert_to_numpy(x)
    except Exception:  # what a tracer raises is its framework's own
        return False
    return True


def select_backend(*, fused: bool | None, synchronized: bool) -> Backend:
    """Return how a layer normalises: by the torch front-end where it may be, else by keras.ops."""
    backend = keras.backend.backend()
    if backend == "torch":
        from batchnorm.keras import by_torch

        frontend: Frontend = OpsFrontend() if fused is False else by_torch.FRONTEND
        return Backend(
            "keras.ops" if fused is False else "batchnorm.torch",
            by_torch.InOneProcess(frontend) if synchronized else frontend,
            by_torch.is_readable,
            by_torch.in_backward,
            by_torch.first_forward,
        )
    merge = over_replicas if backend == "tensorflow" and synchronized else None
    return Backend("keras.ops", OpsFrontend(merge), _is_eager)  # on JAX an array is that of all devices anyway
