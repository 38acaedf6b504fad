"""Deliberate faults in what advises on a batch size; see `mutants`."""

from mutants import Mutant

BATCH_SIZE = [
    Mutant(
        "the signal with its noise",
        "batch_size/gradient_noise.py",
        "(groups * square_of_mean - square) / (groups - 1)",
        "square_of_mean",
    ),
    Mutant(
        "rows drawn without replacement not put right",
        "batch_size/gradient_noise.py",
        "return (rows - 1) / (rows - group)",
        "return 1.0 + 0.0 * (rows - group)",
    ),
    Mutant("the signal taken to be exact", "batch_size/gradient_noise.py", "+ var_signal / signal**2 - 2", "- 2"),
    Mutant(
        "a bound with an upper end",
        "batch_size/gradient_noise.py",
        "NoiseScale(bound, bound, math.inf, True",
        "NoiseScale(bound, bound, bound, True",
    ),
    Mutant(
        "the scale of the weights counts",
        "batch_size/gradient_noise.py",
        'if self.aggregate == "scale_invariant" else 1.0',
        'if self.aggregate == "no such" else 1.0',
    ),
    Mutant(
        "16-bit gradients added up in 16 bits",
        "batch_size/gradient_noise.py",
        "gradient.to(wide, copy=True)",
        "gradient.clone()",
    ),
    Mutant(
        "virtual batches put right as whole ones",
        "batch_size/statistics_noise.py",
        "* together * correction(self._rows, together)",
        "* together * correction(self._rows, group)",
    ),
    Mutant(
        "padding is heard",
        "batch_size/statistics_noise.py",
        "mean = (w * x).sum(reduced, keepdim=True) / count",
        "mean = x.mean(reduced, keepdim=True)",
    ),
    Mutant("frozen layers are heard", "batch_size/statistics_noise.py", ' and not getattr(layer, "frozen", False)', ""),
    Mutant(
        "weights counted as saved",
        "batch_size/memory.py",
        "if storage.data_ptr() not in own:",
        "if storage.data_ptr():",
    ),
    Mutant(
        "storages counted as often as saved",
        "batch_size/memory.py",
        "saved[storage.data_ptr()] = storage.nbytes()",
        "saved[len(saved)] = storage.nbytes()",
    ),
    Mutant(
        "a size that failed has run",
        "batch_size/memory.py",
        "            self.failed = size if",
        "            self.ran.add(size)\n            self.failed = size if",
    ),
    Mutant("no memory is spared", "batch_size/memory.py", "(1 - SPARED) * self.available", "self.available"),
    Mutant(
        "the peak of an earlier step",
        "batch_size/memory.py",
        "        self.memory.reset_peak_memory_stats(self._device)\n",
        "",
    ),
    Mutant("busy from the best size on", "batch_size/throughput.py", "cost <= 2 * cost.min()", "cost <= cost.min()"),
    Mutant(
        "steps to a target upside down",
        "batch_size/decision.py",
        "(1.0 + critical / size) * seconds(",
        "(1.0 + size / critical) * seconds(",
    ),
    Mutant(
        "Adam's learning rate in proportion",
        "batch_size/decision.py",
        "return math.sqrt(factor) if adaptive else factor",
        "return factor",
    ),
    Mutant(
        "groups larger than the batch", "batch_size/decision.py", "return min(per_process, max(", "return max(0, max("
    ),
    Mutant(
        "little compute without its share",
        "batch_size/judge.py",
        "decision.COMPUTE_SHARE * setting.critical",
        "setting.critical",
    ),
    Mutant(
        "the richest process's memory",
        "batch_size/found.py",
        "min(m.available for m in memories)",
        "max(m.available for m in memories)",
    ),
    Mutant(
        "gradients are gone afterwards",
        "models/preserve.py",
        "            parameter.grad = gradient\n",
        "            pass\n",
    ),
    Mutant("python's random numbers go on", "models/preserve.py", "                random.setstate(python)\n", ""),
    Mutant(
        "what is noted down stays",
        "models/preserve.py",
        "        for put_back in self._insides:\n            put_back()\n",
        "",
    ),
    Mutant(
        "inference asked about as it is",
        "batch_size/advise.py",
        "        training_mode(inner),",
        "        training_mode(nn.Identity()),",
    ),
    Mutant(
        "held-out rows are trained on",
        "batch_size/work.py",
        "self.held_out, self._train = order[:aside], order[aside:]",
        "self.held_out, self._train = order[:aside], order",
    ),
    Mutant(
        "all held-out rows at once",
        "batch_size/course.py",
        "        self._work.at_once = self.found.memory.largest\n",
        "",
    ),
]
