"""Deliberate faults in what leads to the native kernel, and in who is served by which; see `mutants`."""

from mutants import Mutant

NATIVE = [
    Mutant("features in the order of memory", "kernels/native.py", "if kept != sorted(kept):", "if False:"),
    Mutant("groups swallow what lies beside them", "kernels/native.py", " or before == apart:", ":"),
    Mutant(
        "weights of any channel",
        "kernels/native.py",
        "        if place != _CHANNELS:\n            weighed.add(i)",
        "        weighed.add(i)",
    ),
    Mutant(
        "gaps are read", "kernels/native.py", "        if strides[i] != expected:", "        if strides[i] < expected:"
    ),
    Mutant("too few masks", "kernels/native.py", "+ 2 * (inner % lanes > 0)", "+ (inner % lanes > 0)"),
    Mutant(
        "what lies otherwise is read as x lies",
        "kernels/dense.py",
        "array.dtype == x.dtype and self.strides(array) == self.strides(x)",
        "array.dtype == x.dtype",
    ),
    Mutant(
        "weights in the order of the axes",
        "kernels/dense.py",
        "self.xp.permute_dims(self.xp.broadcast_to(weights, shape), lies.order)",
        "self.xp.broadcast_to(weights, shape)",
    ),
    Mutant(
        "no bits after a residual",
        "kernels/dense.py",
        "is not None and ACTIVATIONS[activation].by_sign:",
        "is not None and not ACTIVATIONS[activation].by_sign:",
    ),
    Mutant(
        "running statistics differentiated as the batch's",
        "kernels/dense.py",
        "isinstance(statistics.per_count, float) and not statistics.per_count\n",
        "False\n",
    ),
    Mutant(
        "a gradient that lies otherwise is read as x lies",
        "torch/direct.py",
        "x.stride() != lies[0] or dy.stride() != lies[0] or",
        "x.stride() != lies[0] or",
    ),
    Mutant(
        "the other variance is remembered on the short way",
        "torch/direct.py",
        'estimator == "unbiased", skip',
        'estimator == "biased", skip',
    ),
    Mutant(
        "statistics move unseen", "torch/direct.py", "(mean, var) if batches is None else (mean, var, batches)", "()"
    ),
    Mutant("a repeated forward is remembered", "torch/direct.py", "layer.held or in_backward():", "layer.held:"),
    Mutant("batches are not put aside", "torch/direct.py", "if layer.collected is not None:", "if False:"),
    Mutant("one value trains on the short way", "torch/direct.py", "ready.size > 1 and counts", "counts", part="torch"),
    Mutant(
        "no gradient in inference",
        "torch/direct.py",
        "if torch.is_grad_enabled():\n",
        "if False:\n",
    ),
    Mutant(
        "an option is not checked again", "torch/direct.py", "_options(layer) == last.options", "True", part="torch"
    ),
    Mutant(  # of a larger input, a part: to go beyond a smaller one would break the process, not a test
        "a shape is not checked again",
        "torch/direct.py",
        "x.shape == last.shape",
        "x.numel() >= last.shape.numel()",
        part="torch",
    ),
    Mutant(
        "a tensor that moved is not checked again",
        "torch/direct.py",
        "tuple(map(_address, last.tensors)) == last.addresses",
        "True",
        part="torch",
    ),
    Mutant(
        "a tensor that was narrowed is not checked again",
        "torch/direct.py",
        "tuple(map(_elements, last.tensors)) == last.elements",
        "True",
        part="torch",
    ),
    Mutant("a bad batch leaves no count", "torch/direct.py", "return moved == 1", "return True"),
    Mutant("bits forgotten by who looks on", "torch/operators.py", 'list(wants), options.get("bits"))', "list(wants))"),
    Mutant(
        "an operator says that it is contiguous",
        "torch/operators.py",
        "torch.empty_like(x), *_numbers(x, features, 4)",
        "x.new_empty(x.shape), *_numbers(x, features, 4)",
    ),
    Mutant(
        "an operator returns what it was given",
        "torch/operators.py",
        "if activation is None:  # an",
        "if False:  # an",
    ),
    Mutant(
        "second derivatives by the native kernel",
        "torch/normalize.py",
        "if not again and not many and y is None:",
        "if not many and y is None:",
    ),
    Mutant(
        "sums of what is not yet activated",
        "torch/normalize.py",
        "kernel.backward_reduce(dz, x, plan, using)",
        "kernel.backward_reduce(dy, x, plan, using)",
        part="torch-eager",
    ),
    Mutant(
        "the eager kernel without the residual",
        "torch/normalize.py",
        "if activation is None or ctx.signs.y or kept_bits:",
        "if True:",
        part="torch-eager",
    ),
]
