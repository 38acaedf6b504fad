"""A batch in parts: with the hooks `merge` and `reduce` its parts give the outputs and gradients of the whole batch."""

from collections.abc import Callable
from functools import reduce as fold
from typing import Any, NamedTuple

import array_api_compat.torch
import numpy as np
import pytest
import torch

from batchnorm import statistics
from batchnorm.core import passes, step
from batchnorm.core.passes import NormInputs, Saved, Wanted
from batchnorm.core.plan import CallPlan, plan_call
from batchnorm.core.policy import Batch, BatchOrRunning, Policy, Renormalized, UseRunning
from batchnorm.core.spec import NormSpec
from batchnorm.core.step import BatchMoments
from batchnorm.kernels import Facts
from batchnorm.kernels.native.numpy import strides
from batchnorm.layout import axes_of
from batchnorm.renorm import Renorm
from batchnorm.statistics import Moments, Running
from batchnorm.torch.backends import plan_tensors
from choosing import with_backends
from namespaces import to_ml_dtypes, to_numpy, to_torch
from tolerance import IN_PARTS, assert_close

CUTS = [1, 7, 12]  # where the batch is cut along its first axis: parts of 1, 6, 5 and 8 samples
SHAPE, AXIS, FEATURES = (20, 3, 5), 1, 3
ROUNDINGS = 64.0  # of sums over 100 values, by several ways of adding


def _plan_arrays(spec: NormSpec, inputs: NormInputs, axes: Any) -> CallPlan:
    x, _, _, residual, weights = inputs
    facts = Facts(
        axes, x.shape, strides(x), x.dtype.name, residual=None if residual is None else x.dtype.name,
        weights=None if weights is None else weights.shape, activation=spec.activation, eps=spec.eps,
    )  # fmt: skip
    return plan_call(x, facts, np)


class Kind(NamedTuple):
    """The arrays of one framework."""

    xp: Any
    array: Callable[[np.ndarray, str], Any]
    plan: Callable[[NormSpec, NormInputs, Any], CallPlan]


KINDS = {"numpy": Kind(np, to_ml_dtypes, _plan_arrays), "torch": Kind(array_api_compat.torch, to_torch, plan_tensors)}


class Outcome(NamedTuple):
    """What a forward and a backward give, of the whole batch."""

    y: np.ndarray
    dx: np.ndarray
    dgamma: np.ndarray
    dbeta: np.ndarray
    dresidual: np.ndarray
    running: list[np.ndarray]


class Part(NamedTuple):
    plan: CallPlan
    inputs: NormInputs
    dy: Any
    saved: Saved | None = None


def draw(kind: Kind, dtype: str, *, weighted: bool) -> tuple[NormInputs, Any, Running]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPE) * [[[1.0], [0.1], [3.0]]] + [[[0.0], [1e3], [-5.0]]]
    residual, dy = rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    weights = rng.uniform(0.0, 2.0, (SHAPE[0], 1, SHAPE[2])) * (rng.uniform(size=(SHAPE[0], 1, 1)) > 0.3)
    numbers = (rng.normal(size=FEATURES) + 1.0 for _ in range(7))
    gamma, beta, *running = (kind.array(a, dtype) for a in numbers)
    arrays = (kind.array(a, dtype) for a in (x, residual, dy))
    x, residual, dy = arrays
    inputs = NormInputs(x, gamma, beta, residual, kind.array(weights, dtype) if weighted else None)
    mean, var, stddev, renorm_mean, renorm_stddev = running
    return inputs, dy, Running(mean, abs(var), abs(stddev) + 0.5, renorm_mean, abs(renorm_stddev) + 0.5)


def policy_of(name: str, running: Running) -> Policy:
    renormalized = Renormalized(running.renorm_mean, running.renorm_stddev, None, None, None)
    fallback = UseRunning(running.mean, running.var)
    return {
        "batch": Batch(),
        "running": fallback,
        "renormalized": renormalized,
        "batch or running": BatchOrRunning(Batch(), fallback, 0),
        "renormalized or running": BatchOrRunning(renormalized, fallback, 0),
    }[name]


def cut(inputs: NormInputs, dy: Any, kind: Kind, spec: NormSpec) -> list[Part]:
    begins = zip([0, *CUTS], [*CUTS, SHAPE[0]], strict=True)
    parts = []
    for first, last in begins:
        pieces = inputs._replace(
            x=inputs.x[first:last],
            residual=inputs.residual[first:last],  # pyright: ignore
            weights=None if inputs.weights is None else inputs.weights[first:last],
        )
        parts.append(Part(kind.plan(spec, pieces, axes_of(len(SHAPE), AXIS)), pieces, dy[first:last]))
    return parts


def in_parts(
    kind: Kind, spec: NormSpec, inputs: NormInputs, dy: Any, running: Running, policy: Policy, kernels: set[str]
) -> Outcome:
    """Run the parts as processes would: each knows its own samples, the hooks join what the others say."""
    xp, parts = kind.xp, cut(inputs, dy, kind, spec)
    kernels |= {part.plan.kernel.name for part in parts}
    own = [passes.moments_of(part.plan.kernel, part.plan, part.inputs) for part in parts]
    whole = fold(lambda a, b: statistics.merge(a, b, xp), own)
    ys, saved = [], []
    for part in parts:
        heard: list[Moments] = []

        def merge(moments: Moments, heard: list[Moments] = heard) -> Moments:
            heard.append(moments)
            return whole

        y, kept = passes.forward(part.plan, part.inputs, policy, merge=merge)
        assert len(heard) == policy.uses_moments
        ys.append(y)
        saved.append(kept)
    sums: list[tuple[Any, Any]] = []

    def collect(sum_dz: Any, sum_dz_centred: Any) -> tuple[Any, Any]:
        sums.append((sum_dz, sum_dz_centred))
        return sum_dz, sum_dz_centred

    def total(*_: Any) -> tuple[Any, Any]:
        return sum(s[0] for s in sums), sum(s[1] for s in sums)

    wanted = Wanted(residual=True)
    for part, kept in zip(parts, saved, strict=True):
        passes.backward(part.plan, part.dy, kept, wanted, reduce=collect)
    assert len(sums) == policy.uses_moments * len(parts)
    gradients = [
        passes.backward(part.plan, part.dy, kept, wanted, reduce=total) for part, kept in zip(parts, saved, strict=True)
    ]
    moments = saved[0].moments
    return Outcome(
        np.concatenate([to_numpy(y) for y in ys]),
        np.concatenate([to_numpy(g.x) for g in gradients]),
        np.sum([to_numpy(g.weight) for g in gradients], axis=0),
        np.sum([to_numpy(g.bias) for g in gradients], axis=0),
        np.concatenate([to_numpy(g.residual) for g in gradients]),
        [] if moments is None else updated(running, moments, spec, xp),
    )


def at_once(kind: Kind, spec: NormSpec, inputs: NormInputs, dy: Any, running: Running, policy: Policy) -> Outcome:
    call = kind.plan(spec, inputs, axes_of(len(SHAPE), AXIS))
    y, saved = passes.forward(call, inputs, policy)
    gradients = passes.backward(call, dy, saved, Wanted(residual=True))
    moved = [] if saved.moments is None else updated(running, saved.moments, spec, kind.xp)
    return Outcome(*map(to_numpy, (y, *gradients)), moved)


def updated(running: Running, moments: Moments, spec: NormSpec, xp: Any) -> list[np.ndarray]:
    count, *arrays = moments
    count = count if statistics.is_number(count) else xp.reshape(count, (1,))
    batch = BatchMoments(Moments(count, *(xp.reshape(a, (FEATURES,)) for a in arrays)), grouped=False)
    before = running if spec.renorm is not None else Running(running.mean, running.var)
    after, changed = step.update(before, batch, spec, 0.25, xp)
    assert bool(changed)
    return [to_numpy(a) for a in after if a is not None]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(
    ("name", "weighted"),
    [
        ("batch", False),
        ("batch", True),
        ("running", False),
        ("renormalized", False),
        ("batch or running", True),
        ("renormalized or running", True),
    ],
)
@pytest.mark.parametrize("kernel", ["native", "eager"])
@pytest.mark.parametrize("of", KINDS)
def test_parts_of_a_batch_give_what_the_whole_batch_gives(
    of: str, kernel: str, name: str, weighted: bool, activation: str | None, dtype: str
) -> None:
    kind = KINDS[of]
    spec = NormSpec(activation=activation, renorm=Renorm() if name.startswith("renorm") else None)
    inputs, dy, running = draw(kind, dtype, weighted=weighted)
    policy, ran = policy_of(name, running), set[str]()

    def both() -> tuple[Outcome, Outcome]:
        return in_parts(kind, spec, inputs, dy, running, policy, ran), at_once(kind, spec, inputs, dy, running, policy)

    if kernel == "eager":
        with with_backends(kind.xp):
            got, expected = both()
    else:
        got, expected = both()
    assert ran == {kernel}
    for field, a, b in zip(Outcome._fields[:5], got[:5], expected[:5], strict=True):
        if dtype == "float64":
            np.testing.assert_allclose(a, b, rtol=IN_PARTS, atol=IN_PARTS * (1.0 + np.abs(b).max()), err_msg=field)
        else:  # the mean of one feature is 10⁴ of its standard deviations
            assert_close(a, b, dtype, ROUNDINGS * (1.0 + np.abs(b).max()))
    for a, b in zip(got.running, expected.running, strict=True):
        assert_close(a, b, dtype, ROUNDINGS * (1.0 + np.abs(b)))
    assert bool(got.running) == policy.uses_moments


def test_gradients_of_parameters_are_those_of_the_part() -> None:
    inputs, dy, _ = draw(KINDS["numpy"], "float64", weighted=False)
    (part, *_) = cut(inputs, dy, KINDS["numpy"], NormSpec())
    _, saved = passes.forward(part.plan, part.inputs, Batch(), merge=lambda m: m)
    own = passes.backward(part.plan, part.dy, saved, Wanted(residual=True))
    doubled = passes.backward(part.plan, part.dy, saved, Wanted(residual=True), reduce=lambda a, b: (2.0 * a, 2.0 * b))
    np.testing.assert_array_equal(doubled.bias, own.bias)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(doubled.weight, own.weight, rtol=IN_PARTS)  # pyright: ignore[reportArgumentType]
    assert not np.allclose(doubled.x, own.x)  # pyright: ignore[reportArgumentType]


def test_torch_tensors_of_the_parts_are_left_alone() -> None:
    kind = KINDS["torch"]
    inputs, dy, running = draw(kind, "float32", weighted=True)
    before = [None if t is None else t.clone() for t in (*inputs, dy)]
    in_parts(kind, NormSpec(activation="relu"), inputs, dy, running, policy_of("batch or running", running), set())
    assert all(a is None or torch.equal(a, b) for a, b in zip((*inputs, dy), before, strict=True))
