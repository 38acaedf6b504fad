"""One training step: virtual batches, adjustment, and what the running statistics take in. All pure."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple, Protocol

from batchnorm import statistics
from batchnorm.activations import activated
from batchnorm.core.passes import NormInputs
from batchnorm.core.plan import CallPlan, working_dtype
from batchnorm.core.policy import BatchOrRunning, Policy, UseRunning
from batchnorm.core.spec import NormSpec
from batchnorm.errors import ArgumentError, NonFiniteError, ShapeError
from batchnorm.layout import Axes, broadcasts
from batchnorm.statistics import Array, Moments, Namespace, Observed, Running, is_number, sizes


class Frontend(Protocol):
    """How a framework takes part in a step: `FRONTEND` of torch/autograd.py, and `OpsFrontend` of keras/backend.py."""

    @property
    def xp(self) -> Namespace:
        """Return its array namespace."""
        ...

    def plan(self, spec: NormSpec, inputs: NormInputs, axes: Axes) -> CallPlan:
        """Return the plan of a call."""
        ...

    def normalize(self, plan: CallPlan, inputs: NormInputs, policy: Policy) -> tuple[Array, Moments | None]:
        """Run `passes.forward` under the framework's autograd; return the output and the moments, as constants."""
        ...


class BatchMoments(NamedTuple):
    """The moments of a training batch, for the running statistics: in the parameters' shape.

    Of virtual batches they have an axis more, the first, and are `grouped`. The count is a number, or an array that
    broadcasts against the mean.
    """

    moments: Moments
    grouped: bool


def train(
    frontend: Frontend, spec: NormSpec, plan: CallPlan, inputs: NormInputs, policy: Policy, running: Running | None
) -> tuple[Array, BatchMoments | None]:
    """Normalise by the batch; return the output, and the moments for the running statistics, None for no update.

    Args:
        frontend: The framework.
        spec: The options of the layer.
        plan: Of the call.
        inputs: The arrays.
        policy: Which statistics normalise.
        running: The running statistics, for small_batch="running"; None without.

    Raises:
        ShapeError: where there is one value per feature, and `small_batch` says to raise.
        NonFiniteError: where the batch holds inf or NaN, and `nonfinite` says to raise.
    """
    xp, shape = frontend.xp, sizes(inputs.x, frontend.xp)
    axes, empty = plan.axes, any(is_number(n) and n == 0 for n in shape)
    groups = _groups(spec, shape[axes.batch_axis], xp)
    if spec.small_batch != "allow" and not empty and _sees_one_value(axes, shape, groups):
        if spec.small_batch == "running":
            if running is None:
                raise ArgumentError('small_batch="running" needs `running_mean` and `running_var`, got None')
            return frontend.normalize(plan, inputs, UseRunning(running.mean, running.var))[0], None
        raise ShapeError(
            f"Expected more than 1 value per channel when training, got input size {tuple(shape)}"
            f"{f' in {groups} virtual batches' if groups > 1 else ''} (use a larger batch, drop the last partial "
            'one, call `.eval()`, or choose small_batch="running" or "allow")'
        )
    grouped = False
    if empty or (spec.adjustment is None and is_number(groups) and groups == 1):
        y, moments = frontend.normalize(plan, inputs, policy)
    elif spec.adjustment is not None:
        y, moments = _normalize_adjusted(frontend, spec, inputs, policy, axes)
    else:
        y, moments = _normalize_virtual_batches(frontend, spec, inputs, policy, (axes, groups))
        grouped = True
    if moments is None:
        raise ArgumentError("a training step needs a policy that uses the moments of the batch")
    if spec.nonfinite == "raise" and not xp.all(xp.isfinite(moments.m2)):
        raise NonFiniteError(
            f'`input` of shape {tuple(shape)} holds inf or NaN, or its variance overflows (nonfinite="skip" leaves '
            "the running statistics untouched and goes on)"
        )
    batch = _in_parameters_shape(moments, axes, shape, grouped=grouped, xp=xp)
    if isinstance(policy, BatchOrRunning) and policy.max_fallback_count and not is_number(batch.moments.count):
        # Groups normalised by the running statistics do not update them.
        batch = keep_if(batch.moments.count > policy.max_fallback_count, batch, xp)
    return y, batch


def _groups(spec: NormSpec, size: Any, xp: Namespace) -> Any:
    """Return how many virtual batches there are: max(1, ⌊B/v⌋)."""
    if spec.virtual_batch_size is None:
        return 1
    groups = size // spec.virtual_batch_size
    return max(1, groups) if is_number(groups) else xp.maximum(1, groups)


def _sees_one_value(axes: Axes, shape: Sequence[Any], groups: Any) -> bool:
    """Return whether each feature, in some group, is seen once."""
    size = shape[axes.batch_axis]
    return (axes.count(shape) // size) * (size // groups) == 1


def zero_masked(x: Array, weights: Array, xp: Namespace) -> Array:
    """Return x with 0 for inf and NaN where the weight is zero: padding must not reach a gradient."""
    return xp.where((weights > 0) | xp.isfinite(x), x, xp.zeros_like(x))


def _normalize_virtual_batches(
    frontend: Frontend, spec: NormSpec, inputs: NormInputs, policy: Policy, into: tuple[Axes, Any]
) -> tuple[Array, Moments | None]:
    """Normalise each of the groups by its own statistics: sample i of the batch belongs to group i mod G.

    The batch axis becomes (rows, groups), a view. Where the last row is incomplete, samples of weight zero fill it. The
    moments are those of the grouped axes.
    """
    (axes, groups), xp = into, frontend.xp
    axis, shape = axes.batch_axis, sizes(inputs.x, xp)
    size = shape[axis]
    rows = -(-size // groups)
    missing = rows * groups - size
    ragged = not is_number(missing) or missing != 0  # a size that only the run will tell may leave a remainder
    device: Any = getattr(inputs.x, "device", None)
    weights = inputs.weights

    def split(a: Array | None) -> Array | None:
        if a is None:
            return None
        own = sizes(a, xp)
        if is_number(own[axis]) and own[axis] == 1:
            return xp.expand_dims(a, axis=axis)
        if ragged and a is not real:
            more = (*own[:axis], missing, *own[axis + 1 :])
            a = xp.concat([a, xp.zeros(more, dtype=a.dtype, device=device)], axis=axis)
        return xp.reshape(a, (*own[:axis], rows, groups, *own[axis + 1 :]))

    real = None
    if ragged and (weights is None or weights.shape[axis] == 1):
        real = xp.astype(xp.arange(rows * groups, device=device) < size, working_dtype(inputs.x.dtype, xp))
        real = xp.reshape(real, tuple(-1 if i == axis else 1 for i in range(len(shape))))
        weights = real = real if weights is None else weights * real
    grouped = inputs._replace(x=split(inputs.x), residual=split(inputs.residual), weights=split(weights))
    y, moments = frontend.normalize(frontend.plan(spec, grouped, axes.grouped()), grouped, policy)
    y = xp.reshape(y, (*shape[:axis], rows * groups, *shape[axis + 1 :]))
    return (y[(slice(None),) * axis + (slice(0, size),)] if ragged else y), moments


def _normalize_adjusted(
    frontend: Frontend, spec: NormSpec, inputs: NormInputs, policy: Policy, axes: Axes
) -> tuple[Array, Moments | None]:
    """Normalise x by its own statistics, and scale and shift x̂ as `adjustment` says, before γ and β do."""
    x, xp = inputs.x, frontend.xp
    precise = working_dtype(x.dtype, xp)
    plain = NormInputs(xp.astype(x, precise, copy=False), weights=inputs.weights)
    call = frontend.plan(replace(spec, activation=None), plain, axes)
    z, moments = frontend.normalize(call, plain, policy)
    adjustment: Any = spec.adjustment
    pair = adjustment(sizes(x, xp))
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ArgumentError(f"`adjustment` must return (scale, shift), got {pair!r}")
    convert = xp.as_tensor if hasattr(xp, "as_tensor") else xp.asarray  # torch's own lets a gradient through
    scale, shift = (convert(a, dtype=precise, device=getattr(x, "device", None)) for a in pair)
    for name, value in (("scale", scale), ("shift", shift)):
        if not broadcasts(value.shape, x.shape):
            raise ShapeError(
                f"`adjustment` must return a {name} that broadcasts to the input's shape {tuple(x.shape)}, "
                f"got shape {tuple(value.shape)}"
            )
    z = z * scale + shift
    gamma, beta = call.to_features(inputs.weight), call.to_features(inputs.bias)
    z = z if gamma is None else z * gamma
    z = z if beta is None else z + beta
    z = z if inputs.residual is None else z + xp.astype(inputs.residual, precise, copy=False)
    return xp.astype(activated(z, spec.activation, xp), x.dtype, copy=False), moments


def _in_parameters_shape(
    moments: Moments, axes: Axes, shape: Sequence[Any], *, grouped: bool, xp: Namespace
) -> BatchMoments:
    features = axes.parameter_shape(shape)

    def reshape(a: Array, *features: Any) -> Array:
        if not grouped:
            return xp.reshape(a, features)
        group_axis = axes.batch_axis + 1
        a = xp.permute_dims(a, (group_axis, *(i for i in range(len(a.shape)) if i != group_axis)))
        return xp.reshape(a, (sizes(a, xp)[0], *features))

    count, *arrays = moments
    if not is_number(count) and len(count.shape):
        each = tuple(count.shape) == tuple(moments.mean.shape)  # replicas that were merged count for each feature
        count = reshape(count, *(features if each else (1 for _ in features)))
    return BatchMoments(Moments(count, *(reshape(a, *features) for a in arrays)), grouped)


def keep_if(condition: Array, batch: BatchMoments, xp: Namespace) -> BatchMoments:
    """Return the moments as they are where the condition is true, and as those of no data elsewhere."""
    count, *arrays = batch.moments
    mean, m2, mean_low = (xp.where(condition, a, xp.zeros_like(a)) for a in arrays)
    if is_number(count):
        count = xp.full((1,) * mean.ndim, count, dtype=mean.dtype, device=mean.device)
    return BatchMoments(Moments(count * condition, mean, m2, mean_low), batch.grouped)


def is_finite(batch: BatchMoments, dtype: Any, xp: Namespace) -> Array:
    """Return whether a batch can update statistics of a dtype; m2 is finite only where the mean is."""
    return xp.all(xp.isfinite(xp.astype(batch.moments.m2, dtype, copy=False)))


def merged(batches: Sequence[BatchMoments], xp: Namespace) -> BatchMoments:
    """Return the moments of several batches taken together: merged, or all their groups one after another."""
    if not any(batch.grouped for batch in batches):
        return BatchMoments(
            reduce(lambda a, b: statistics.merge(a, b, xp), (b.moments for b in batches)), grouped=False
        )
    moments = [_by_group(batch, xp) for batch in batches]
    return BatchMoments(Moments(*(xp.concat(list(arrays)) for arrays in zip(*moments, strict=True))), grouped=True)


def _by_group(batch: BatchMoments, xp: Namespace) -> Moments:
    """Return moments with an axis of groups, the first, and a count for each; one batch is one group."""
    count, mean, m2, mean_low = (
        batch.moments if batch.grouped else (a if is_number(a) else a[None] for a in batch.moments)
    )
    each = (len(mean),) + (1,) * (mean.ndim - 1)
    if is_number(count):
        return Moments(xp.full(each, count, dtype=mean.dtype, device=mean.device), mean, m2, mean_low)
    return Moments(xp.broadcast_to(count, each), mean, m2, mean_low)


def update(
    running: Running, batch: BatchMoments, spec: NormSpec, momentum: Array, xp: Namespace, *, valid: Array | None = None
) -> tuple[Running, Array | bool]:
    """Return the running statistics after a batch, and whether they have changed.

    Args:
        running: The statistics before it, in the parameters' shape.
        batch: Its moments; without data they change nothing.
        spec: The options of the layer.
        momentum: α of this update.
        xp: The array namespace.
        valid: Whether the batch may update them, such as `is_finite`; None for yes.
    """
    observed = _observed(batch, spec, xp)
    if not is_number(observed.count):
        has_data = xp.all(observed.count > 0)
        valid = has_data if valid is None else xp.logical_and(valid, has_data)
    elif observed.count == 0:
        return running, False
    renorm = None if spec.renorm is None else (spec.renorm.momentum, spec.eps)
    after = statistics.remembered(running, observed, momentum, xp, renorm=renorm)
    pairs = zip(running, after, strict=True)
    if valid is None:
        return Running(*(None if old is None else new for old, new in pairs)), True
    kept = (old if old is None else xp.where(valid, xp.astype(new, old.dtype), old) for old, new in pairs)
    return Running(*kept), valid


def _observed(batch: BatchMoments, spec: NormSpec, xp: Namespace) -> Observed:
    """Return what the running statistics take in, in the parameters' shape."""
    observed = statistics.observed(batch.moments, spec.observed_estimator, xp, 0 if batch.grouped else None)
    return Observed(*(a if is_number(a) else a[0] for a in observed)) if batch.grouped else observed
