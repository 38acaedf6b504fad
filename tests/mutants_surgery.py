"""Deliberate faults in the tools: their tests must reject every one of them."""

from mutants import Mutant

SURGERY = [
    Mutant(
        "fold without epsilon",
        "surgery/folding.py",
        "layer.running_var.double() + epsilon(layer)",
        "layer.running_var.double()",
    ),
    Mutant(
        "fold forgets the mean",
        "surgery/folding.py",
        "shift = -layer.running_mean.double() * scale",
        "shift = 0 * scale",
    ),
    Mutant(
        "fold forgets gamma",
        "surgery/folding.py",
        "scale = scale * layer.weight.detach().double()",
        "scale = scale * 1.0",
    ),
    Mutant(
        "the bias is not scaled",
        "surgery/folding.py",
        "_bias_of(module, then.shift) * then.scale + then.shift",
        "_bias_of(module, then.shift) + then.shift",
    ),
    Mutant(
        "groups of a transposed convolution are mixed up",
        "surgery/folding.py",
        "shape = (groups, 1, -1) if outputs else (groups, -1, 1)",
        "shape = (1, 1, -1) if outputs else (groups, -1, 1)",
    ),
    Mutant(
        "zero padding is no matter",
        "surgery/fold.py",
        'return not padded or module.padding_mode != "zeros"',
        "return True",
    ),
    Mutant(
        "who else uses an output is not asked", "surgery/fold.py", "            if others:\n", "            if False:\n"
    ),
    Mutant("a fold is not proven", "surgery/fold.py", "if proof.excess > 1:", "if False:"),
    Mutant(
        "folded in training",
        "surgery/fold.py",
        'if module.training and not (getattr(module, "frozen", False) or is_frozen_class(module)):',
        "if False:",
    ),
    Mutant(
        "what layers hand on is not compared",
        "surgery/fold.py",
        "same = [key for key in folding.now if key not in folding.other]",
        "same = list[int]()",
    ),
    Mutant(
        "subclasses are tried on the example alone", "surgery/folding.py", "for factor in SIZES", "for factor in (1.0,)"
    ),
    Mutant("features are taken as they come", "surgery/fold.py", "then.at(become.to(then.scale.device))", "then"),
    Mutant(
        "a negative variance is folded",
        "surgery/fold.py",
        "if least + epsilon(layer) <= 0:",
        "if False:",
    ),
    Mutant("an insertion that nothing calls", "surgery/insert.py", "called.count(key) != 1", "False"),
    Mutant(
        "an insertion that others notice",
        "surgery/insert.py",
        "if _called(before, ()) != _called(now, surgery.layers):",
        "if False:",
    ),
    Mutant(
        "images without a batch",
        "surgery/insert.py",
        "if not linear and len(of_source) != source.module.weight.dim():",
        "if False:",
    ),
    Mutant("averaged over who knows what", "surgery/insert.py", "or of_source[1:].count(features) > 1", ""),
    Mutant("features that were turned around", "surgery/insert.py", "or functions & RESHAPING", ""),
    Mutant(
        "NaN is no difference", "surgery/fold.py", ".nan_to_num(torch.inf, torch.inf)", ".nan_to_num(0.0, torch.inf)"
    ),
    Mutant("a fold may lose digits", "surgery/fold.py", "WORSE * own.off", "math.inf"),
    Mutant("a batch of one shows all", "surgery/fold.py", "_twice(model, example_inputs)", "example_inputs"),
    Mutant(
        "judged by any dtype", "surgery/fold.py", "off / allowed > worst.off / worst.allowed", "allowed > worst.allowed"
    ),
    Mutant(
        "NaN statistics are folded",
        "surgery/fold.py",
        "torch.isfinite(layer.running_mean + layer.running_var)",
        "torch.ones(1)",
    ),
    Mutant("led past what was folded", "surgery/fold.py", "and len(now.of(new)) != 1:", "and False:"),
    Mutant(
        "a residual by its place",
        "surgery/flow.py",
        "for key in (*declared, *kwargs) if key in kwargs",
        "for key in kwargs",
    ),
    Mutant(
        "a frozen layer thaws",
        "surgery/folding.py",
        "requires_grad=layer.weight is not None and layer.weight.requires_grad",
        "requires_grad=True",
    ),
    Mutant(
        "the variance between batches is lost",
        "surgery/population.py",
        "self.moments = found if self.moments is None else merge(self.moments, found, xp)",
        "self.moments = found",
    ),
    Mutant(
        "the estimator is always unbiased",
        "surgery/population.py",
        'getattr(self.layer, "running_variance", TORCH.running_variance)',
        '"unbiased"',
    ),
    Mutant("a bad batch counts", "surgery/population.py", "torch.isfinite(found.mean + found.m2).all()", "True"),
    Mutant(
        "pooled in float32",
        "surgery/population.py",
        "part.double() if isinstance(part, Tensor)",
        "part.float() if isinstance(part, Tensor)",
    ),
    Mutant(
        "renormalization as it was told",
        "surgery/population.py",
        "is None else RENORM_ESTIMATOR",
        "is None else chosen",
    ),
    Mutant(
        "what is of no weight is data",
        "surgery/population.py",
        "if not bool(torch.as_tensor(found.count).any()):",
        "if False:",
    ),
    Mutant("left out at float32", "surgery/population.py", "if not _finite(found) and bool(", "if False and bool("),
    Mutant("left out, but counted", "surgery/population.py", "        self._share = 0\n", ""),
    Mutant(
        "infinite statistics",
        "surgery/population.py",
        "if not bool(value.to(buffer.dtype).isfinite().all()):",
        "if False:",
    ),
    Mutant("weights are not heard", "surgery/passes.py", 'named.get("weights")', "None"),
    Mutant("settled layers go on", "surgery/passes.py", "if population.layer not in settled and", "if"),
    Mutant(
        "the pass before is forgotten", "surgery/passes.py", "population.statistics(earlier)", "population.statistics()"
    ),
    Mutant(
        "the pass before counts in full",
        "surgery/population.py",
        "(whole.count - moments.count).clamp(min=0)",
        "(whole.count)",
    ),
    Mutant("each pass sees other data", "surgery/passes.py", "        held_generators(data),\n", ""),
    Mutant("gradients are on", "surgery/passes.py", "with torch.no_grad(), torch.autocast", "with torch.autocast"),
    Mutant(
        "compiled models stay so",
        "surgery/passes.py",
        "with preserved(model), uncompiled(model):",
        "with preserved(model):",
    ),
    Mutant(
        "16 bits are not heard",
        "surgery/passes.py",
        "torch.autocast(home.type, dtype) if how.autocast else",
        "nullcontext() if how.autocast else",
    ),
    Mutant(
        "half is written",
        "surgery/recalibrate.py",
        "    with all_or_none(one.layer for one in ready):\n",
        "    if True:\n",
    ),
    Mutant("one value has a variance", "surgery/recalibrate.py", "elif one.count() < least:", "elif False:"),
    Mutant("the worst variance is any", "surgery/recalibrate.py", "ratio.log().abs().argmax()", "0"),
    Mutant(
        "the last batch is not cut",
        "surgery/passes.py",
        "leaf[:keep] if leaf.ndim and leaf.shape[0] == size else leaf",
        "leaf",
    ),
    Mutant(
        "frozen layers are recalibrated",
        "surgery/recalibrate.py",
        'elif getattr(layer, "frozen", False):',
        "elif False:",
    ),
    Mutant(
        "layers frozen by eval are recalibrated",
        "surgery/recalibrate.py",
        "elif trains and not layer.training:",
        "elif False:",
    ),
    Mutant(
        "one pass for the sequence", "surgery/passes.py", "        return 2 * (len(found) + 1)\n", "        return 1\n"
    ),
    Mutant(
        "it stops where the unsettled stand still",
        "surgery/passes.py",
        "if fixed and max(moved)",
        "if moved and max(moved)",
    ),
    Mutant(
        "no data are no error",
        "surgery/passes.py",
        "    if before:\n        return before\n    raise",
        "    return before\n    raise",
    ),
    Mutant("dropout stays on", "surgery/passes.py", "        model.eval()\n", ""),
    Mutant("a mix that forgets the prior", "surgery/adapt.py", "one.samples / (prior + one.samples)", "1.0"),
    Mutant(
        "an adaptation that stays",
        "surgery/adapt.py",
        "        bring_back(self.before)\n",
        "",
    ),
    Mutant(
        "parameters are copied",
        "surgery/kinds.py",
        "        new.register_parameter(name, parameter)\n",
        "        pass\n",
    ),
    Mutant(
        "the mode is lost",
        "surgery/kinds.py",
        "parameter)\n    return new.train(old.training)",
        "parameter)\n    return new",
    ),
    Mutant(
        "options are lost in silence",
        "surgery/kinds.py",
        "    if gone and not lose:\n        return f\"{to}'s",
        "    if False:\n        return f\"{to}'s",
    ),
    Mutant(
        "options travel as notes",
        "surgery/kinds.py",
        "        if name not in theirs:",
        "        if name not in vars(new):",
    ),
    Mutant("inf in 16 bits", "surgery/kinds.py", "(held.isinf() & value.isfinite()).any()", "False"),
    Mutant("what others registered is lost", "surgery/convert.py", "    if registered(layer):", "    if False:"),
    Mutant(
        "the activation behind is forgotten", "surgery/convert.py", "            options |= _named(module[1])\n", ""
    ),
    Mutant(
        "the output layer is normalised",
        "surgery/insert.py",
        "kind(call) and _leads_to(flow, call, _weighted, through=True)",
        "kind(call)",
    ),
    Mutant(
        "features last are taken for first",
        "surgery/insert.py",
        "axis = -1 if linear else 1\n",
        "axis = 1\n",
    ),
    Mutant("what fails is left inside", "surgery/insert.py", "        surgery.undo()\n", ""),
    Mutant(
        "momentum is taken as it is",
        "surgery/frameworks.py",
        "return round(1.0 - (TORCH.momentum if momentum is None else momentum), DIGITS)",
        "return 0.1 if momentum is None else momentum",
    ),
    Mutant(
        "the variance is rescaled the other way",
        "surgery/transfer.py",
        '(count - 1) / count if wanted == "biased"',
        'count / (count - 1) if wanted == "biased"',
    ),
    Mutant(
        "batch renormalization is taken to remember the unbiased variance",
        "surgery/frameworks.py",
        'object.__setattr__(self, "estimator", RENORM_ESTIMATOR)',
        "pass",
    ),
]
