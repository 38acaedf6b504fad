"""Training for a while: to see how the gradient noise changes, and which batch size really is the fastest."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.optim import SGD, Optimizer

from batchnorm.batch_size import gradient_noise
from batchnorm.batch_size.decision import momentum_for
from batchnorm.batch_size.gradient_noise import Block, GroupGradients, NoiseScale
from batchnorm.batch_size.work import Work
from batchnorm.models.preserve import Snapshot, held_buffers

HALF_DECADE = math.sqrt(10.0)
RATES = tuple(float(f"{10.0 ** (-3 + i / 2):.2g}") for i in range(9))  # of plain SGD: 0.001 to 10
SWEEP_STEPS = 40  # at most, for each rate
LAST_LOSSES = 5
JUMPS = 0.1  # of the loss at the start, back up again: the learning rate is too high
DONE = 0.9  # of all the improvement seen: what a target asks for
STALLED = 0.05  # of all the improvement, in two doublings of the steps
LEARNT = 0.1  # of the loss at the start: less is no learning
FIRST, LAST = 8, 1024  # steps at which a pilot run is looked at: from the one on, doubled, to the other
FEW = 4  # looks before a pilot run is judged


class Training:
    """The model under its optimizer, begun again as often as needed, at any batch size and learning rate.

    Attributes:
        work: Draws batches and computes the loss.
        optimizer: The user's, or plain SGD.
        own: Whether it is the user's: its learning rate then is what `rate` multiplies.
    """

    def __init__(self, work: Work, optimizer: Optimizer | None, snapshot: Snapshot) -> None:
        """Take what `advise` was given; `snapshot` knows the optimizer too, if there is one."""
        self.work, self.own, self._snapshot = work, optimizer is not None, snapshot
        self.optimizer = SGD(work.parameters, lr=1.0) if optimizer is None else optimizer
        self._base = [group["lr"] for group in self.optimizer.param_groups]

    def begin(self, rate: float, repeat: int = 0) -> None:
        """Go back to the start, with a learning rate and an order of the data."""
        self._snapshot.rewind()
        self.work.restart(repeat)
        for group, base in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * rate

    def normalise_as_advised(self, before: int, size: int) -> None:
        """Let running statistics forget as many samples ago in batches of `size` as they do in batches of `before`."""
        for layer in self.work.model.modules():
            if isinstance(layer, _BatchNorm) and layer.momentum is not None:
                layer.momentum = momentum_for(layer.momentum, before, size)

    def step(self, size: int) -> torch.Tensor:
        """Take one step and return its loss, which has no gradient."""
        return self.step_on(self.work.draw(size))

    def step_on(self, batch: object) -> torch.Tensor:
        """Take one step on a batch and return its loss."""
        self.work.clear()
        loss = self.work.loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


@dataclass(frozen=True)
class Stage:
    """What a pilot run showed at one of its steps.

    Attributes:
        step: How many steps had been taken.
        loss: On the held-out rows, in inference.
        blocks: What groups of samples said there.
        dropped: Blocks left out because a gradient was not finite.
        trained: The loss of those groups, in training: running statistics have no part in it.
    """

    step: int
    loss: float
    blocks: Sequence[Block]
    dropped: int = 0
    trained: float = math.nan

    @property
    def noise(self) -> NoiseScale | None:
        """The gradient noise scale; None where hardly any gradient was finite."""
        return gradient_noise.noise_scale(self.blocks) if len(self.blocks) > 1 else None


@dataclass
class Pilot:
    """A short training at a fixed batch size.

    Attributes:
        rate: Its learning rate, or by what that of the user's optimizer was multiplied.
        stages: Where the noise was measured.
        failed: Whether the training diverged, or jumped about, at this learning rate.
    """

    rate: float
    stages: list[Stage]
    failed: bool = False

    @property
    def dropped(self) -> int:
        """Blocks left out because a gradient was not finite."""
        return sum(stage.dropped for stage in self.stages)

    @property
    def target(self) -> float:
        """The held-out loss that nine tenths of the improvement lead to."""
        losses = [stage.loss for stage in self.stages]
        return losses[0] + DONE * (min(losses) - losses[0])

    @property
    def useful(self) -> list[Stage]:
        """The stages up to the one that reaches the target: what comes later is polish."""
        arrived = next((i for i, stage in enumerate(self.stages) if stage.loss <= self.target), len(self.stages))
        return self.stages[: max(arrived, 1)]

    @property
    def weighed(self) -> list[tuple[NoiseScale, float]]:
        """The gradient noise scale of each useful stage, with how much the loss fell in it; 1 where it fell in none."""
        useful = self.useful
        after = [*self.stages[1 : len(useful) + 1], useful[-1]][: len(useful)]
        found = [
            (noise, max(stage.trained - then.trained, 0.0))
            for stage, then in zip(useful, after, strict=True)
            if (noise := stage.noise) is not None
        ]
        fell = [(noise, fall) for noise, fall in found if fall > 0]
        return fell or [(noise, 1.0) for noise, _ in found]


def tuned_rate(training: Training, size: int, steps: int, enough: Callable[[], bool]) -> float:
    """Return the learning rate of plain SGD that takes the loss down farthest in so many steps; 1 for the user's own.

    With fewer than 5 steps to look at none is found: 0, which leaves the weights as they are.
    """
    if training.own:
        return 1.0
    if steps < LAST_LOSSES:
        return 0.0
    found: dict[float, float] = {}
    for rate in RATES:
        training.begin(rate)
        losses = [float(training.step(size)) for _ in range(steps) if not enough()]
        last = fmean(losses[-LAST_LOSSES:]) if losses else math.inf
        found[rate] = last if math.isfinite(last) else math.inf
        if enough() or not math.isfinite(last):
            break
    return min(found, key=lambda rate: found[rate])


def pilot(
    training: Training,
    gradients: GroupGradients,
    *,
    group: int,
    sweep: int,
    enough: Callable[[], bool],
    settle: Callable[[int], None],
    keep: Callable[[Pilot], None],
    says: Callable[[str], None],
) -> None:
    """Train in batches of `group`, and measure the gradient noise at step 0, 8, 16, 32, …: until it stops learning.

    Args:
        training: What is trained.
        gradients: Takes the gradients for the measurement.
        group: m, fixed all along: the objective depends on it.
        sweep: Steps to try each learning rate for, where one is looked for.
        enough: Whether the time is up.
        settle: Told the group size after each block, for those who listen to the layers.
        keep: Given the pilot as it begins; its stages come one by one.
        says: Told how it goes on.
    """
    training.begin(0.0)
    look = partial(_look, training.work, gradients, group=group, enough=enough, settle=settle)
    blocks: list[Block] = []
    still = Pilot(0.0, [Stage(0, math.nan, blocks)])
    keep(still)
    still.stages[0] = first = look(0, blocks)
    says(f"step 0, held-out loss {first.loss:.3g}")
    rate = tuned_rate(training, group, min(sweep, SWEEP_STEPS), enough) if math.isfinite(first.loss) else 0.0
    while rate and not enough():
        found = Pilot(rate, [first])
        keep(found)
        training.begin(rate)
        found.failed = not _run(training, found, look, group=group, enough=enough, says=says)
        if not found.failed or training.own or rate <= RATES[0]:
            return
        rate /= HALF_DECADE  # it has diverged, or jumps about


def _look(
    work: Work,
    gradients: GroupGradients,
    step: int,
    blocks: list[Block] | None = None,
    *,
    group: int,
    enough: Callable[[], bool],
    settle: Callable[[int], None],
) -> Stage:
    """Measure the noise and the held-out loss at the weights as they are."""
    work.seen.clear()
    with held_buffers(work.model):
        blocks, dropped = gradient_noise.measure(
            work.backward, gradients, rows=work.rows, group=group, enough=enough, settle=settle, found=blocks
        )
    return Stage(step, work.held_out_loss(), tuple(blocks), dropped, fmean(work.seen))


def _run(
    training: Training,
    found: Pilot,
    look: Callable[[int], Stage],
    *,
    group: int,
    enough: Callable[[], bool],
    says: Callable[[str], None],
) -> bool:
    """Train, and look again whenever the steps have doubled; return False where the learning rate proves too high."""
    at = 0
    while not enough() and at < LAST:
        seen = [float(training.step(group)) for _ in range(at, max(FIRST, 2 * at)) if not enough()]
        at += len(seen)
        stage = look(at)
        if not math.isfinite(sum(seen) + stage.loss):
            return False
        says(f"step {at}, held-out loss {stage.loss:.3g}")
        found.stages.append(stage)
        losses = [stage.loss for stage in found.stages]
        trained = [stage.trained for stage in found.stages]
        if len(losses) < FEW:
            continue  # many a good learning rate makes things worse at first
        if trained[-1] > min(trained) + JUMPS * abs(trained[0]) and not training.own:
            return False
        if len(losses) > FEW and min(losses[:-2]) - min(losses[-2:]) < STALLED * (losses[0] - min(losses)):
            return losses[0] - min(losses) > LEARNT * abs(losses[0])
    return True
