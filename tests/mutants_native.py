"""Deliberate faults in what leads to the native kernel, and in who is served by which; see `mutants`."""

from mutants import Mutant

NATIVE = [
    Mutant("features in the order of memory", "kernels/native/memory.py", "if kept != sorted(kept):", "if False:"),
    Mutant("groups swallow what lies beside them", "kernels/native/memory.py", " or before == group_axis:", ":"),
    Mutant(
        "weights of any channel",
        "kernels/native/memory.py",
        "        if place != _CHANNELS:\n            weight_axes.add(i)",
        "        weight_axes.add(i)",
    ),
    Mutant(
        "gaps are read",
        "kernels/native/memory.py",
        "        if strides[i] != expected:",
        "        if strides[i] < expected:",
    ),
    Mutant("too few masks", "kernels/native/memory.py", "+ 2 * (inner % lanes > 0)", "+ (inner % lanes > 0)"),
    Mutant(
        "what lies otherwise is read as x lies",
        "kernels/native/calls.py",
        "array.dtype == x.dtype and self.strides(array) == self.strides(x)",
        "array.dtype == x.dtype",
    ),
    Mutant(
        "weights in the order of the axes",
        "kernels/native/calls.py",
        "self.xp.permute_dims(self.xp.broadcast_to(weights, shape), layout.order)",
        "self.xp.broadcast_to(weights, shape)",
    ),
    Mutant(
        "no bits after a residual",
        "kernels/native/calls.py",
        "is not None and ACTIVATIONS[activation].by_sign\n",
        "is not None and not ACTIVATIONS[activation].by_sign\n",
    ),
    Mutant(
        "running statistics differentiated as the batch's",
        "kernels/native/calls.py",
        "arrays, activation=activation, fixed=fixed)",
        "arrays, activation=activation, fixed=False)",
    ),
    Mutant(
        "a gradient that lies otherwise is read as x lies",
        "torch/fast_step.py",
        "x.stride() != strides or dy.stride() != strides or",
        "x.stride() != strides or",
    ),
    Mutant(
        "the other variance is remembered on the short way",
        "torch/fast_step.py",
        'unbiased=spec.estimator == "unbiased"',
        'unbiased=spec.estimator == "biased"',
    ),
    Mutant(
        "statistics move unseen", "torch/fast_step.py", "(mean, var) if batches is None else (mean, var, batches)", "()"
    ),
    Mutant(
        "a repeated forward is remembered",
        "torch/layers.py",
        "self.hold_depth or in_backward():",
        "self.hold_depth:",
        part="native",
    ),
    Mutant(
        "batches are not put aside", "torch/layers.py", "if self.accumulated is not None:", "if False:", part="native"
    ),
    Mutant(
        "one value trains on the short way",
        "torch/fast_step.py",
        "fast.plan.count > 1 and _is_count",
        "_is_count",
        part="torch",
    ),
    Mutant(
        "no gradient in inference",
        "torch/fast_step.py",
        "if torch.is_grad_enabled() and any(",
        "if False and any(",
    ),
    Mutant("an option is not checked again", "torch/fast_step.py", "last.spec is spec", "True", part="torch"),
    Mutant(  # of a larger input, a part: to go beyond a smaller one would break the process, not a test
        "a shape is not checked again",
        "torch/fast_step.py",
        "x.shape == last.shape",
        "x.numel() >= last.shape.numel()",
        part="torch",
    ),
    Mutant(
        "a tensor that moved is not checked again",
        "torch/fast_step.py",
        "tuple(map(_address, last.tensors)) == last.addresses",
        "True",
        part="torch",
    ),
    Mutant(
        "a tensor that was narrowed is not checked again",
        "torch/fast_step.py",
        "tuple(map(_elements, last.tensors)) == last.elements",
        "True",
        part="torch",
    ),
    Mutant("a bad batch leaves no count", "kernels/native/abi.py", "return changed == 1", "return True"),
    Mutant(
        "bits forgotten by who looks on",
        "torch/operators.py",
        "scale, shift, fixed, activation, residual, reserve, weights,",
        "scale, shift, fixed, activation, residual, None, weights,",
    ),
    Mutant(
        "an operator says that it is contiguous",
        "torch/operators.py",
        "torch.empty_like(x), *_numbers(x, reduced, 4)",
        "x.new_empty(x.shape), *_numbers(x, reduced, 4)",
    ),
    Mutant(
        "an operator returns what it was given",
        "torch/operators.py",
        "dz = None if activation is None else dz  # an",
        "dz = dz  # an",
    ),
    Mutant(
        "second derivatives by the native kernel",
        "core/passes.py",
        "kernel = plan.eager if differentiable else kernel or plan.kernel",
        "kernel = kernel or plan.kernel",
    ),
    Mutant(
        "sums of what is not yet activated",
        "core/passes.py",
        "kernel.backward_reduce(dz, inputs.x,",
        "kernel.backward_reduce(dy, inputs.x,",
        part="torch-eager",
    ),
    Mutant(
        "the eager kernel without the residual",
        "torch/autograd.py",
        'if not passes.reads_residual(call.plan, has_reserve="reserve" in ctx.names):',
        "if True:",
        part="torch-eager",
    ),
]
