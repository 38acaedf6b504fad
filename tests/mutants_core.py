"""Deliberate faults at the seams of the core: the hooks, who serves, what is planned once; see `mutants`."""

from mutants import Mutant

_CACHED = """    plan = plans.get(facts)
    if plan is None:
        if len(plans) >= _REMEMBERED:
            plans.clear()
        plan = plans[facts] = _bind(x, facts, xp)
"""


def _planned_without(name: str, value: str, part: str = "") -> Mutant:
    """Return the fault that a plan serves calls that differ in a fact."""
    key = f"facts._replace({name}={value})"
    cached = _CACHED.replace("(facts)", f"({key})").replace("[facts]", f"[{key}]")
    return Mutant(f"a plan for every {name}", "core/plan.py", _CACHED, cached, part)


CORE = [
    Mutant(
        "each part by its own moments",
        "core/passes.py",
        "moments = moments if merge is None else merge(moments)",
        "moments = moments",
        part="core",
    ),
    Mutant(
        "one call for a part of a batch",
        "core/passes.py",
        "if whole is not None and merge is None:",
        "if whole is not None:",
        part="core",
    ),
    Mutant("dx by the sums of a part", "core/passes.py", "else reduce(*sums)", "else sums", part="core"),
    Mutant(
        "one call for the backward of a part",
        "core/passes.py",
        "if whole is not None and reduce is None and",
        "if whole is not None and",
        part="core",
    ),
    Mutant(
        "gradients of parameters of the whole batch",
        "core/passes.py",
        "            total = sums if reduce is None",
        "            sums = total = sums if reduce is None",
        part="core",
    ),
    Mutant(
        "sums of constants are asked for",
        "core/passes.py",
        " or not saved.policy.uses_moments else",
        " else",
        part="core",
    ),
    Mutant(
        "no residual for the backward",
        "core/passes.py",
        "if not reads_residual(plan, has_reserve=saved.reserve is not None):",
        "if True:",
        part="core",
    ),
    Mutant(
        "the slowest backend first", "kernels/dispatch.py", "in kernels.backends:", "in reversed(kernels.backends):"
    ),
    Mutant("a refusal is ignored", "kernels/dispatch.py", "if refusal is None:", "if True:"),
    Mutant(
        "the last reason is told",
        "kernels/dispatch.py",
        "Choice(kernels.eager, refusals[0] if",
        "Choice(kernels.eager, refusals[-1] if",
    ),
    Mutant("a backend of another device", "kernels/dispatch.py", "if backend.device == facts.device:", "if True:"),
    _planned_without("eps", "0.0"),
    _planned_without("activation", "None"),
    _planned_without("dtype", '"float32"', part="torch-eager"),
    _planned_without("strides", "()", part="native"),
    _planned_without("is_plain", "True", part="torch"),
    Mutant(
        "a batch without data is remembered",
        "core/step.py",
        "xp.all(observed.count > 0)",
        "xp.all(observed.count >= 0)",
    ),
    Mutant(
        "a batch without data is remembered where it is finite",
        "core/step.py",
        "xp.logical_and(valid, has_data)",
        "valid",
        part="keras",
    ),
    Mutant("a weighted batch with inf is remembered", "core/step.py", "xp.logical_and(valid, has_data)", "has_data"),
    Mutant(
        "a feature that is finite is enough", "core/step.py", "return xp.all(xp.isfinite(", "return xp.any(xp.isfinite("
    ),
    Mutant("the first group alone is remembered", "core/step.py", "xp, 0 if batch.grouped else None)", "xp, None)"),
    Mutant(
        "groups that the running statistics normalise are remembered",
        "core/step.py",
        "batch.moments.count > policy.max_fallback_count, batch, xp",
        "batch.moments.count >= 0, batch, xp",
    ),
    Mutant(
        "a batch that the running statistics normalise is counted",
        "torch/layers.py",
        "        if batch is not None and running is not None and",
        "        if batch is None and self.num_batches_tracked is not None:\n"
        "            self.num_batches_tracked.add_(1)\n"
        "        if batch is not None and running is not None and",
    ),
    Mutant(
        "the arrays of renormalization are not exchanged",
        "core/policy.py",
        "return Renormalized(*arrays[2:]) if isinstance(policy, Renormalized) else policy",
        "return policy",
    ),
    Mutant(
        "the arrays of renormalization are not exchanged under weights",
        "core/policy.py",
        "batch: Any = with_arrays(policy.batch, arrays)",
        "batch: Any = policy.batch",
    ),
    Mutant("one sample by weight is enough", "core/policy.py", "fallback, spec.max_fallback_count)", "fallback, 0)"),
    Mutant(
        "inference by the batch on the short way",
        "torch/layers.py",
        "if not self.training or self.frozen or self.use_running_depth:",
        "if self.frozen or self.use_running_depth:",
    ),
    Mutant(
        "the function remembers nothing on the short way",
        "torch/functional.py",
        "        fast_step.update(ready, numbers)",
        "        pass",
        part="native",
    ),
    Mutant(
        "the options are read once",
        "torch/state.py",
        "        if name in _SPEC:",
        '        if name == "eps":',
    ),
    Mutant(
        "nobody looks on", "torch/tracing.py", "if _modes() or _includes(_PRE_DISPATCH):", "if False:", part="native"
    ),
    Mutant(
        "tangents of the native kernel",
        "torch/tracing.py",
        "        return Mode.FORWARD_AD\n",
        "        return Mode.EAGER\n",
    ),
    Mutant(
        "a gradient that stands for another is read as it lies",
        "torch/autograd.py",
        "if under is not Mode.COMPILE and not is_plain_tensor(dy):",
        "if False:",
    ),
]
