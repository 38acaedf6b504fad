"""Deliberate faults in what a study chooses, compares and says; see `mutants`."""

from mutants import Mutant

WATCHED, SIZES = "study-watched", "study-batch-size"

STUDY = [
    Mutant("what earlier looks spent forgotten", "study/intervals.py", "spent += _decided(survivors, rank)", "pass"),
    Mutant(
        "the level of one side for that of two",
        "study/intervals.py",
        "if above < rank or above > last - rank",
        "if above < rank",
    ),
    Mutant(
        "a second look taken for the first",
        "study/intervals.py",
        "upto = tuple(look for look in schedule if look < count)",
        "upto = ()",
    ),
    Mutant(
        "an interval of the least alone", "study/intervals.py", "sorted(most)[count - rank]", "sorted(least)[-rank]"
    ),
    Mutant(
        "a verdict for either side", "study/findings.py", 'if above == (self.side == "above") else', "if above else"
    ),
    Mutant(
        "obstacles decide", "study/findings.py", "if self.obstacle or not (above or below)", "if not (above or below)"
    ),
    Mutant(
        "a bound taken for the value",
        "study/findings.py",
        "return budgets[0] / max(divisor, 1.0), math.inf",
        "return (budgets[0] / max(divisor, 1.0),) * 2",
    ),
    Mutant(
        "two runs that never arrive are equally fast",
        "study/findings.py",
        "if late and early:\n        return 0.0, math.inf",
        "if late and early:\n        return 1.0, 1.0",
    ),
    Mutant("parts that disagree hold", "study/findings.py", 'return "mixed" if', 'return "holds" if'),
    Mutant("half the steps are half as many fewer", "study/findings.py", "over = effect.value() < 1.0", "over = False"),
    Mutant("one decades", "study/findings.py", 'unit.removesuffix("s")', "unit"),
    Mutant(
        "a range that reaches the end of the grid ends there",
        "study/usable.py",
        "math.inf if b else stride * len(u)",
        "stride * len(u)",
    ),
    Mutant("learning rates that fail are counted", "study/usable.py", "end >= goal for", "end < goal for"),
    Mutant("touching the goal is arriving", "study/training.py", "not scores[-1] >= goal", "not max(scores) >= goal"),
    Mutant("the best step chosen on test rows", "study/training.py", "lambda pair: pair[0]", "lambda pair: pair[1]"),
    Mutant(
        "noise in the targets of all rows",
        "study/training.py",
        "random.permutation(part.train)",
        "random.permutation(len(self.data.x))",
    ),
    Mutant("scaling learned from all rows", "study/training.py", "learn(data.x[part.train])", "learn(data.x)"),
    Mutant(
        "rows drawn with replacement",
        "study/training.py",
        "rng.permutation(self.splits[0].train.size)",
        "rng.integers(0, self.splits[0].train.size, self.splits[0].train.size)",
    ),
    Mutant("batch normalization left on", "study/training.py", "            module.eval()\n", "            pass\n"),
    Mutant("virtual batches reach no layer", "study/training.py", "=spec.virtual_batch_size,", "=None,"),
    Mutant("RMSprop forgets faster", "study/optimizers.py", "mul_(0.99)", "mul_(0.9)"),
    Mutant("learning rates chosen on test rows", "study/tuning.py", 'part="validation"', 'part="test"'),
    Mutant("rates at which runs diverge win", "study/tuning.py", "diverges = math.isinf(end)", "diverges = False"),
    Mutant("grids are continued twice", "study/tuning.py", "and high < most:", "and high + 1 < most:"),
    Mutant(
        "a best rate at the edge is none",
        "study/tuning.py",
        '"" if len(rates) < 2 else {',
        '"" if len(rates) < 99 else {',
    ),
    Mutant(
        "runs that stand are made longer",
        "study/tuning.py",
        "2 * late > len(outcomes)) and self._rising(outcomes)",
        "2 * late > len(outcomes))",
    ),
    Mutant("runs that have not arrived count little", "study/tuning.py", "NEVER = 10.0", "NEVER = 1.0"),
    Mutant("scores that rise are no obstacle", "study/tuning.py", 'self.by == "score" and self._rising(last)', "False"),
    Mutant("equal scores whatever the score", "study/tuning.py", "return diverges, -best,", "return diverges, 0.0,"),
    Mutant(
        "the edge before runs were longer",
        "study/tuning.py",
        'rates[-1]: "high"}.get(best, "")',
        'rates[-1]: "high"}.get(self._best_of(rates, self.sweep.spec.steps), "")',
    ),
    Mutant("a setting where nothing is learned", "study/answer.py", "math.isinf(study.goal()) or min", "min"),
    Mutant("goals for validation rows from test rows", "study/design.py", "getattr(r, part)", "r.test"),
    Mutant("goals where nothing is learned", "study/design.py", ">= LEAST_WAY else math.inf", ">= -9.0 else math.inf"),
    Mutant(
        "seeds added to what takes none",
        "study/course.py",
        "claim.adds_seeds and later and finding",
        "later and finding",
    ),
    Mutant("seeds added to what is decided", "study/course.py", "later and finding.open:", "later:"),
    Mutant("ties in a ranking win", "study/scores.py", "(below + upto + 1) / 2", "below + 1"),
    Mutant("classes without rows count", "study/scores.py", "(rows > 0).sum(-1)", "rows.shape[-1]"),
    Mutant("a diverged replica scores zero", "study/scores.py", "score if ok else math.nan", "score if ok else 0.0"),
    Mutant(
        "references see the test rows",
        "study/references.py",
        "model.fit(x[train], data.y[train])",
        "model.fit(x, data.y)",
    ),
    Mutant(
        "a setting that fails for some seeds",
        "study/answer.py",
        "[c for c in every if c.late == min(c.late for c in every)]",
        "every",
    ),
    Mutant("the setting chosen on test rows", "study/answer.py", 'part="validation"', 'part="test"'),
    Mutant(
        "no setting without it is considered", "study/answer.py", '("none", "before", "after")', '("before", "after")'
    ),
    Mutant("longer runs are no candidates", "study/answer.py", ", tuning.rate: tuning.outcomes}", "}"),
    Mutant(
        "speed upside down",
        "study/claims/speed.py",
        'for side in ("none", "before")]',
        'for side in ("before", "none")]',
    ),
    Mutant("seconds multiplied by their cost", "study/claims/speed.py", "value / cost", "value * cost"),
    Mutant("the last score for the best", "study/claims/score.py", "outcome.peak()[1]", "outcome.test[-1]"),
    Mutant(
        "placement upside down",
        "study/claims/placement.py",
        'steps["after"], steps["before"], **more',
        'steps["before"], steps["after"], **more',
    ),
    Mutant(
        "the batch size by the inverse law",
        "study/claims/batch_size.py",
        "left = measured - np.log1p(searched[:, None] / size)",
        "left = measured + np.log1p(searched[:, None] / size)",
        SIZES,
    ),
    Mutant(
        "batch sizes that never arrive decide",
        "study/claims/batch_size.py",
        "if not (late or at_least or law.end):",
        "if not (at_least or law.end):",
        SIZES,
    ),
    Mutant(
        "gradient noise of a batch for that of a row",
        "study/noise_probe.py",
        "per_group = group * ",
        "per_group = ",
        SIZES,
    ),
    Mutant(
        "regularization upside down",
        "study/claims/regularization.py",
        "[a / b for a, b in zip(ends",
        "[b / a for a, b in zip(ends",
        WATCHED,
    ),
    Mutant("any slope is a law", "study/claims/noise_law.py", "abs(s - LAW)", "0.0 * s", WATCHED),
    Mutant(
        "recalibrated in virtual batches",
        "study/statistics_probe.py",
        "with _training(network, None):",
        "with _training(network, 4):",
        WATCHED,
    ),
    Mutant(
        "variance over other groups than the layer's",
        "study/statistics_probe.py",
        "unflatten(1, (-1, groups))\n",
        "unflatten(1, (groups, -1)).transpose(1, 2)\n",
        WATCHED,
    ),
]
