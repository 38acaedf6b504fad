"""Which statistics normalise a call: those of the batch, the running ones, or a mixture of both."""

from dataclasses import dataclass
from typing import Any

from batchnorm import statistics
from batchnorm.core.plan import CallPlan
from batchnorm.core.spec import NormSpec
from batchnorm.errors import ArgumentError
from batchnorm.statistics import Array, Moments, Running, Statistics


@dataclass(frozen=True)
class Batch:
    """The statistics of the batch."""

    uses_moments = True

    def statistics(self, plan: CallPlan, moments: Moments) -> Statistics:
        """Return what normalises a batch of these moments."""
        return statistics.of_batch(moments, plan.eps, plan.xp)


@dataclass(frozen=True)
class UseRunning:
    """The running statistics: an affine map.

    Attributes:
        mean: Running mean, in the parameters' shape.
        var: Running variance, likewise.
    """

    mean: Array
    var: Array
    uses_moments = False

    def statistics(self, plan: CallPlan, moments: Moments | None = None) -> Statistics:
        """Return what normalises any input."""
        return statistics.of_running(plan.to_features(self.mean), plan.to_features(self.var), plan.eps, plan.xp)


@dataclass(frozen=True)
class Renormalized:
    """The statistics of the batch, corrected towards the running ones by r and d, which are constants for the gradient.

    Attributes:
        mean: M of renormalization, in the parameters' shape.
        stddev: S, likewise.
        rmin: 0-d, or None for no bound.
        rmax: Likewise.
        dmax: Likewise.
    """

    mean: Array
    stddev: Array
    rmin: Array | None
    rmax: Array | None
    dmax: Array | None
    uses_moments = True

    def statistics(self, plan: CallPlan, moments: Moments) -> Statistics:
        """Return what normalises a batch of these moments."""
        xp = plan.xp
        fixed = Moments(*(statistics.constant(a, xp) for a in moments))
        r, d = statistics.correction(
            statistics.observed(fixed, "biased", xp, plan.axes.group_axis),
            (plan.to_features(self.mean), plan.to_features(self.stddev)),
            (self.rmin, self.rmax, self.dmax),
            eps=plan.eps,
            xp=xp,
        )
        return statistics.of_batch(moments, plan.eps, xp)._replace(r=r, d=d)


@dataclass(frozen=True)
class BatchOrRunning:
    """The statistics of the batch; the running ones for groups with weights of at most `max_fallback_count` in all."""

    batch: Batch | Renormalized
    running: UseRunning
    max_fallback_count: int
    uses_moments = True

    def statistics(self, plan: CallPlan, moments: Moments) -> Statistics:
        """Return what normalises a batch of these moments."""
        return statistics.with_fallback(
            self.batch.statistics(plan, moments),
            moments.count,
            self.running.statistics(plan),
            max_fallback_count=self.max_fallback_count,
            xp=plan.xp,
        )


Policy = Batch | UseRunning | Renormalized | BatchOrRunning
ARRAYS = ("mean", "var", "renorm_mean", "renorm_stddev", "rmin", "rmax", "dmax")  # of all policies together


def choose(
    spec: NormSpec,
    running: Running | None,
    *,
    by_batch: bool,
    weighted: bool = False,
    clips: tuple[Array | None, ...] = (),
) -> Policy:
    """Return which statistics normalise a call.

    Args:
        spec: The options of the layer.
        running: The running statistics, as they are before the call; None without.
        by_batch: Whether the call normalises by the batch: training, or a layer without running statistics.
        weighted: Whether samples have weights.
        clips: rmin, rmax and dmax at this step, where the layer renormalizes in training.

    Raises:
        ArgumentError: if there are no running statistics, and the call is not to normalise by the batch.
    """
    fallback = None if running is None else UseRunning(running.mean, running.var)
    if not by_batch:
        if fallback is None:
            raise ArgumentError("`running_mean` and `running_var` must be given in inference, got None")
        return fallback
    batch: Batch | Renormalized = Batch()
    if clips and running is not None:
        batch = Renormalized(running.renorm_mean, running.renorm_stddev, *clips)
    if fallback is not None and weighted:  # a group whose weights are all zero has no statistics of its own
        return BatchOrRunning(batch, fallback, spec.max_fallback_count)
    return batch


def arrays_of(policy: Policy) -> tuple[Any, ...]:
    """Return the arrays that a policy holds, in the order of `ARRAYS`, None for those of others."""
    if isinstance(policy, BatchOrRunning):
        return (policy.running.mean, policy.running.var, *arrays_of(policy.batch)[2:])
    if isinstance(policy, UseRunning):
        return policy.mean, policy.var, None, None, None, None, None
    if isinstance(policy, Renormalized):
        return None, None, policy.mean, policy.stddev, policy.rmin, policy.rmax, policy.dmax
    return (None,) * len(ARRAYS)


def with_arrays(policy: Policy, arrays: tuple[Any, ...]) -> Policy:
    """Return the same policy with other arrays, in the order of `ARRAYS`."""
    if isinstance(policy, BatchOrRunning):
        batch: Any = with_arrays(policy.batch, arrays)
        return BatchOrRunning(batch, UseRunning(*arrays[:2]), policy.max_fallback_count)
    if isinstance(policy, UseRunning):
        return UseRunning(*arrays[:2])
    return Renormalized(*arrays[2:]) if isinstance(policy, Renormalized) else policy
