"""Deliberate faults, one a line of the source: the suite must reject every one of them."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """`old`, exactly once in `file` under src/batchnorm, becomes `new`; `part` of the suite must see it."""

    name: str
    file: str
    old: str
    new: str
    part: str = ""


MUTANTS = [
    Mutant("biased for unbiased", "statistics.py", 'estimator == "biased"', 'estimator == "unbiased"'),
    Mutant("never unbiased", "statistics.py", "(count - 1 if count > 1", "(count if count > 1"),
    Mutant(
        "epsilon outside the root in training",
        "statistics.py",
        "xp.sqrt(variance(moments, xp) + eps)",
        "(xp.sqrt(variance(moments, xp)) + eps)",
    ),
    Mutant(
        "epsilon outside the root in inference",
        "statistics.py",
        "xp.sqrt(running_var + eps)",
        "(xp.sqrt(running_var) + eps)",
    ),
    Mutant(
        "momentum flipped",
        "statistics.py",
        "return running + momentum * change if momentum < 0.5",
        "return observed - momentum * change if momentum < 0.5",
    ),
    Mutant("dx without the gradient through the mean", "statistics.py", "-per_value * sum_dy\n", "0.0 * sum_dy\n"),
    Mutant(
        "dx without the gradient through the variance",
        "statistics.py",
        "-per_value * statistics.inv_std * statistics.inv_std",
        "0.0 * statistics.inv_std",
    ),
    Mutant(
        "gamma's gradient from x not normalised",
        "statistics.py",
        "gradient = sum_dy_centred * forward_scale(statistics, None)",
        "gradient = sum_dy_centred",
    ),
    Mutant("merge ignores the counts", "statistics.py", "share = b.count / divisor(count, xp)", "share = 0.5"),
    Mutant("merge forgets the spread between", "statistics.py", " + delta * delta * (a.count * share)", ""),
    Mutant("merge drops the low part", "statistics.py", "(a.mean_low + delta_low * share) + ", "0.0 * delta_low + "),
    Mutant(
        "count without height and width",
        "layout.py",
        "math.prod([shape[i] for i in self.reduced])",
        "shape[self.reduced[0]]",
    ),
    Mutant("wrong axis for negatives", "layout.py", "sorted(a % rank for a in axes)", "sorted(abs(a) for a in axes)"),
    Mutant(
        "E[x²] − E[x]²",
        "kernels/eager.py",
        "total(centred * centred)",
        "total(shifted * shifted) - divisor(count, xp) * rest * rest",
    ),
    Mutant(
        "mean_low dropped",
        "kernels/eager.py",
        "total(centred * centred), rest\n",
        "total(centred * centred), 0.0 * rest\n",
    ),
    Mutant(
        "an outlier may be the shift",
        "kernels/eager.py",
        "xp.maximum(xp.minimum(a, b), xp.minimum(xp.maximum(a, b), c))",
        "a",
    ),
    Mutant(
        "a shift that is not finite",
        "kernels/eager.py",
        "xp.where(xp.isfinite(median), median, xp.zeros_like(median))",
        "median",
    ),
    Mutant("many values added one after another", "kernels/eager.py", "size <= BLOCK", "size >= 0"),
    Mutant("the last block left out", "kernels/eager.py", "else total + xp.sum(", "else total + 0.0 * xp.sum("),
    Mutant("centred once", "kernels/eager.py", "else high - mean_low", "else high"),
    Mutant(
        "mean folded into the shift",
        "kernels/eager.py",
        "_centred(x, mean, mean_low, self._xp) * scale + shift",
        "working(x, self._xp) * scale + (shift - (mean if mean_low is None else mean + mean_low) * scale)",
    ),
    Mutant("sums in 16 bits", "kernels/eager.py", "xp.astype(x, xp.float32) if bits_of(x.dtype, xp) < 32 else x", "x"),
    Mutant(
        "Σdy·x for Σdy·(x−μ)",
        "kernels/eager.py",
        "xp.sum(grad * _centred(x, mean, mean_low, xp)",
        "xp.sum(grad * working(x, xp)",
    ),
    Mutant(
        "inference by the batch",
        "torch/layers.py",
        "return FRONTEND.normalize(plan, inputs, chosen)[0]",
        "return step.train(FRONTEND, spec, plan, inputs, policy.Batch(), running)[0]",
        part="torch-eager",
    ),
    Mutant(
        "statistics updated in inference",
        "torch/layers.py",
        "            return FRONTEND.normalize(plan, inputs, chosen)[0]\n",
        "            self.update(step.train(FRONTEND, spec, plan, inputs, policy.Batch(), running)[1])\n"
        "            return FRONTEND.normalize(plan, inputs, chosen)[0]\n",
        part="torch-eager",
    ),
    Mutant(
        "training formula in the backward of inference",
        "statistics.py",
        "return Statistics(running_mean, 0.0, 1.0 / xp.sqrt(running_var + eps))",
        "return Statistics(running_mean, 0.0, 1.0 / xp.sqrt(running_var + eps), 0.125)",
    ),
    Mutant(
        "second derivative with constant moments",
        "core/passes.py",
        "_statistics_of(plan, saved, kernel if differentiable else None)",
        "_statistics_of(plan, saved, None)",
    ),
    Mutant("one value per channel trains", "core/step.py", "(size // groups) == 1", "(size // groups) == -1"),
    Mutant(
        "momentum set later unchecked",
        "core/spec.py",
        "        check_momentum(self.momentum)\n",
        "",
    ),
    Mutant(
        "momentum NaN passes",
        "conventions.py",
        "0.0 <= float(momentum) <= 1.0",
        "not (momentum < 0.0 or momentum > 1.0)",
    ),
    Mutant("Keras' momentum taken for torch's", "conventions.py", "1.0 - written", "written"),
    Mutant(
        "running statistics rounded to 16 bits",
        "torch/state.py",
        "self._keep_precision(before)",
        "self._keep_precision(self._statistics())",
    ),
    Mutant(
        "counted before a failure",
        "torch/layers.py",
        "        inputs, axes = check_call(",
        "        if self.training and self.num_batches_tracked is not None:\n"
        "            self.num_batches_tracked.add_(1)\n"
        "        inputs, axes = check_call(",
    ),
    Mutant(
        "empty batch counted",
        "core/step.py",
        "return running, False",
        "return running, True",
    ),
    Mutant(
        "weights left out of the sums", "kernels/eager.py", "values if weights is None else values * weights", "values"
    ),
    Mutant(
        "padding reaches the moments",
        "kernels/eager.py",
        "_where_weighted(weights, values - pivot, xp)",
        "values - pivot",
    ),
    Mutant(
        "weights counted in the mask's own shape",
        "core/plan.py",
        "self.xp.sum(self.xp.broadcast_to(weights, shape)",
        "self.xp.sum(weights",
    ),
    Mutant("dx without the weights", "kernels/eager.py", "through_moments * weights", "through_moments"),
    Mutant(
        "residual forgotten",
        "kernels/eager.py",
        "return z if residual is None else z + working(residual, self._xp)",
        "return z",
    ),
    Mutant("GELU by its tanh", "activations.py", "return z * _normal_cdf(z, xp)", "return z * _sigmoid(1.702 * z, xp)"),
    Mutant("SiLU's gradient without its second term", "activations.py", "(1.0 + z * (1.0 - s))", "1.0"),
    Mutant(
        "no weight at all is data",
        "statistics.py",
        "has_data = count > max_fallback_count",
        "has_data = count >= max_fallback_count",
    ),
    Mutant(
        "groups without data are averaged in",
        "statistics.py",
        "share = has_data / divisor(",
        "share = 1.0 / mean.shape[group_axis] + 0.0 * divisor(",
    ),
    Mutant(
        "r without its lower bound",
        "statistics.py",
        "r if rmin is None else",
        "r if rmax is None else r if rmin is None or True else",
    ),
    Mutant("d bounded on one side", "statistics.py", "xp.minimum(xp.maximum(d, -dmax), dmax)", "xp.minimum(d, dmax)"),
    Mutant("renormalization keeps ε in the variance", "statistics.py", "stddev * stddev - eps", "stddev * stddev"),
    Mutant(
        "renormalization moves by the layer's momentum",
        "statistics.py",
        "alpha, eps = renorm",
        "alpha, eps = momentum, renorm[1]",
    ),
    Mutant("gamma's gradient without d", "statistics.py", "else gradient + sum_dy * statistics.d", "else gradient"),
    Mutant(
        "shift without d",
        "statistics.py",
        "shift if beta is None else shift + beta",
        "0.0 * shift if beta is None else beta",
    ),
    Mutant(
        "larger virtual batches",
        "core/step.py",
        "groups = size // spec.virtual_batch_size",
        "groups = size // (spec.virtual_batch_size + 1)",
    ),
    Mutant(
        "virtual batches of neighbours",
        "core/step.py",
        "xp.reshape(a, (*own[:axis], rows, groups, *own[axis + 1 :]))",
        "xp.reshape(a, (*own[:axis], groups, rows, *own[axis + 1 :])).swapaxes(axis, axis + 1)",
    ),
    Mutant(
        "padding counted in the last row of groups",
        "core/step.py",
        "if ragged and (weights is None or",
        "if ragged and (weights is not None and",
    ),
    Mutant(
        "NaN in padding reaches the gradient",
        "core/step.py",
        "return xp.where((weights > 0) | xp.isfinite(x), x, xp.zeros_like(x))",
        "return x",
    ),
    Mutant(
        "renormalization by what is already moved",
        "torch/autograd.py",
        "for a in (mean, var, renorm_mean, renorm_stddev)] + clips",
        "for a in (mean, var)] + [renorm_mean, renorm_stddev, *clips]",
    ),
    Mutant(
        "a batch with inf is remembered",
        "torch/state.py",
        "xp, valid=valid)",
        "xp, valid=first)",
    ),
    Mutant("a skipped batch is counted", "torch/state.py", "add_(changed)", "add_(1)"),
    Mutant(
        "counted again in the backward",
        "torch/tracing.py",
        "return torch._C._current_graph_task_id() != -1",
        "return False and torch._C._current_graph_task_id() != -1",
    ),
    Mutant(
        "what is held moves",
        "torch/state.py",
        " or self.use_running_depth or self.hold_depth",
        " or self.use_running_depth",
    ),
    Mutant(
        "the mode thaws",
        "torch/state.py",
        "        super().train(mode)\n",
        "        super().train(mode)\n        self.thaw()\n",
    ),
    Mutant(
        "accumulation keeps the last batch",
        "torch/state.py",
        "self.update(step.merged(batches, xp))",
        "self.update(batches[-1])",
    ),
    Mutant(
        "a failed block stays",
        "torch/control.py",
        "        if kind is not None:\n            self.rollback()\n",
        "        return\n",
    ),
    Mutant("gradient of the reference without the mean", "reference.py", " + grad_mean / f.count", ""),
    Mutant("the old statistics weighed as the new", "keras/layer.py", "1.0 - self.momentum, xp", "self.momentum, xp"),
    Mutant(
        "not trainable, and yet trains", "keras/layer.py", "if not (training and self.trainable)", "if not training"
    ),
    Mutant(
        "what is not finite is remembered",
        "core/step.py",
        "return xp.all(xp.isfinite(",
        "return xp.any(xp.isfinite(",
        part="keras",
    ),
    Mutant("fused remembers the biased variance", "keras/layer.py", '"unbiased" if self.fused else', "None or"),
    Mutant(
        "the mask reaches no statistics",
        "keras/layer.py",
        "_value(self.beta), None, weights)",
        "_value(self.beta), None, None)",
    ),
    Mutant("masks of features taken for masks of samples", "keras/masks.py", "or any(i in layout.kept", "or any(False"),
    Mutant(
        "groups of the batch axis forgotten", "core/step.py", "        grouped = True\n", "        pass\n", part="keras"
    ),
    Mutant(
        "what is copied has moved", "torch/autograd.py", "else snapshot(a) for a in", "else a for a in", part="keras"
    ),
    Mutant("renorm without its momentum", "keras/arguments.py", "momentum=1.0 - momentum", "momentum=0.5"),
    Mutant(
        "a repeated forward by what has moved",
        "keras/layer.py",
        "backend.first_forward(self, x, running, count)",
        "running, count",
    ),
    Mutant(
        "renorm remembers the unbiased variance",
        "core/spec.py",
        "is None else RENORM_ESTIMATOR",
        "is None else self.estimator",
        part="keras",
    ),
    Mutant(
        "a schedule counts every batch",
        "keras/layer.py",
        "self.step + ops.cast(changed, self.step.dtype)",
        "self.step + 1",
    ),
    Mutant("axes of classic groups not counted back", "keras/configuration.py", "[a - 1 for a in axes]", "axes"),
    Mutant("calls of inner models not counted back", "keras/legacy.py", "tensor[1] -= tensor[0] in inner", "pass"),
]
