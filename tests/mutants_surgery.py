"""Deliberate faults in the tools: their tests must reject every one of them."""

from mutants import Mutant

SURGERY = [
    Mutant(
        "fold without epsilon",
        "surgery/folding.py",
        "layer.running_var.double() + layer.eps",
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
    Mutant("a fold is not proven", "surgery/fold.py", "if not off <= allowed:", "if False:"),
    Mutant(
        "folded in training",
        "surgery/fold.py",
        'if place.module.training and not getattr(place.module, "frozen", False):',
        "if False:",
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
        'getattr(self.layer, "running_variance", "unbiased")',
        '"unbiased"',
    ),
    Mutant("a bad batch counts", "surgery/population.py", "torch.isfinite(found.mean + found.m2).all()", "True"),
    Mutant("weights are not heard", "surgery/population.py", 'named.get("weights")', "None"),
    Mutant(
        "the last batch is not cut",
        "surgery/population.py",
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
        "elif model.training and not layer.training:",
        "elif False:",
    ),
    Mutant(
        "one pass for the sequence", "surgery/recalibrate.py", "range(len(found) + 1 if sequential else 1)", "range(1)"
    ),
    Mutant("no data are no error", "surgery/recalibrate.py", "            _require_data(populations)\n", ""),
    Mutant("dropout stays on", "surgery/recalibrate.py", "        model.eval()\n", ""),
    Mutant("a mix that forgets the prior", "surgery/adapt.py", "one.samples / (prior + one.samples)", "1.0"),
    Mutant(
        "an adaptation that stays",
        "surgery/adapt.py",
        "                layer.get_buffer(name).copy_(value)\n",
        "                pass\n",
    ),
    Mutant(
        "parameters are copied",
        "surgery/convert.py",
        "        new.register_parameter(name, parameter)\n",
        "        pass\n",
    ),
    Mutant("the mode is lost", "surgery/convert.py", "    return new.train(old.training)", "    return new"),
    Mutant(
        "options are lost in silence",
        "surgery/convert.py",
        "    if lost and not lose:\n        return f\"torch's",
        "    if False:\n        return f\"torch's",
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
        "axis = -1 if isinstance(source.module, nn.Linear) else 1",
        "axis = 1",
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
        'object.__setattr__(self, "estimator", REMEMBERED)',
        "pass",
    ),
]
