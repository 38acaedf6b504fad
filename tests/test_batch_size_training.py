"""The pilot, the race and the judgement: trainings that go as they are told, and measurements that are given."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchnorm.torch as ours
import tolerance
from asking import arrays, ask, cross_entropy, network
from batchnorm.batch_size import Advice, experiment, judge, training
from batchnorm.batch_size.experiment import Experiment, Race, chosen
from batchnorm.batch_size.gradient_noise import Block, GroupGradients
from batchnorm.batch_size.judge import Choice
from batchnorm.batch_size.training import Pilot, Stage, Training, tuned_rate
from batchnorm.batch_size.work import Samples, Work
from batchnorm.models.preserve import preserved
from test_batch_size_limits import found as measurements

HALF_DECADE, LINE = math.sqrt(10.0), tolerance.EXACT_LINE
CRITICAL, BEST, SIZES = 64.0, 0.1, [4, 8, 16, 32, 64, 128, 256]


@dataclass
class Run:
    """One training, from where it was begun."""

    rate: float
    repeat: int
    size: int = 0
    steps: int = 0
    normalised: tuple[int, int] = (0, 0)


Loss = Callable[[Run], float]


class Scripted:
    """A training, and its own work, whose losses are known functions of the run: held out, and in training."""

    def __init__(self, loss: Loss, trained: Loss | None = None, own: bool = False) -> None:
        self.held_out, self.trained, self.own = loss, trained or loss, own
        self.runs: list[Run] = []
        self.work: Any = self
        self.model, self.rows, self.seen = nn.Linear(1, 1), 1000, list[float]()

    def begin(self, rate: float, repeat: int = 0) -> None:
        self.runs.append(Run(rate, repeat))

    def normalise_as_advised(self, before: int, size: int) -> None:
        self.runs[-1].normalised = before, size

    def step(self, size: int) -> Tensor:
        run = self.runs[-1]
        run.size, run.steps = size, run.steps + 1
        return torch.tensor(self.trained(run), dtype=torch.float64)

    def backward(self, size: int) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.seen.append(self.trained(self.runs[-1]))

    def held_out_loss(self) -> float:
        return self.held_out(self.runs[-1])


def stage(loss: float, value: float, trained: float, spread: float = 0.0) -> Stage:
    """Return a stage whose noise scale is `value`, its interval a factor e^(2·spread) to either side."""
    return Stage(0, loss, (Block(1.0, value * (1 - spread)), Block(1.0, value * (1 + spread))), trained=trained)


def test_stages_weigh_what_the_loss_fell_by_in_training_before_nine_tenths_are_done() -> None:
    trained = (8.0, 7.0, 7.5, 2.5, 0.0)
    pilot = Pilot(1.0, list(map(stage, (4.0, 3.0, 3.5, 1.0, 0.9), (10.0, 20.0, 30.0, 40.0, 50.0), trained)))
    assert pilot.target == pytest.approx(4.0 - 0.9 * 3.1, **tolerance.FEW_ROUNDINGS)
    assert pilot.useful == pilot.stages[:3]  # the fourth is there
    assert [(n.value, fell) for n, fell in pilot.weighed] == [(10.0, 1.0), (30.0, 5.0)]
    nowhere = Pilot(1.0, [stage(loss, loss, 5.0 - loss) for loss in (4.0, 3.0, 2.0, 1.0)])
    assert [(n.value, weight) for n, weight in nowhere.weighed] == [(4.0, 1.0), (3.0, 1.0), (2.0, 1.0)]


def test_along_a_pilot_the_noise_scale_is_the_weighed_median() -> None:
    # the falls in training are 1, 3, 8, 1, 1: half of them is reached at 20; the plain median is 100, the mean 255
    values, trained = (100.0, 1000.0, 20.0, 300.0, 10.0, 1.0), (14.0, 13.0, 10.0, 2.0, 1.0, 0.0)
    losses, spreads = (9.0, 8.0, 7.0, 6.0, 5.0, 1.0), (0.1, 0.2, 0.1, 0.9, 0.5, 0.0)
    found = judge.along(Pilot(1.0, list(map(stage, losses, values, trained, spreads))))
    assert found.value == pytest.approx(20.0, **tolerance.FEW_ROUNDINGS)
    assert found.low == pytest.approx(10.0 * math.exp(-1.0), **LINE)
    assert found.high == pytest.approx(300.0 * math.exp(1.8), **LINE)

    weak = Stage(0, 3.0, (Block(3.0, 10.0), Block(-1.0, 10.0)), trained=10.0)  # |G|² = 1 ± 4, so that 2 is a bound
    for weight, value in ((1.0, 7.0), (9.0, 2.0)):
        found = judge.along(Pilot(1.0, [weak, stage(2.0, 7.0, 10.0 - weight), stage(1.0, 7.0, 5.0 - weight)]))
        assert (found.value, found.is_bound, found.low, found.high) == (value, value == 2.0, 2.0, math.inf)


def test_a_learning_rate_is_looked_for_where_there_is_one_to_find() -> None:
    for curvature, best in ((3.0, 0.32), (20.0, 0.032), (0.1, 10.0), (900.0, 0.001)):
        parabola = Scripted(lambda run, c=curvature: (1.0 - run.rate * c) ** (2 * run.steps))
        assert tuned_rate(parabola, 8, 10, bool) == best
        assert {(run.steps, run.size) for run in parabola.runs} == {(10, 8)}
    assert tuned_rate(Scripted(lambda run: -run.rate), 8, training.LAST_LOSSES - 1, bool) == 0.0
    own = Scripted(lambda run: -run.rate, own=True)
    assert (tuned_rate(own, 8, 40, bool), own.runs) == (1.0, [])
    for loss in (math.inf, math.nan):
        script = Scripted(lambda run, loss=loss: -run.rate if run.rate < 0.3 else loss)
        assert tuned_rate(script, 8, 6, bool) == 0.1
        assert [run.rate for run in script.runs] == [0.001, 0.0032, 0.01, 0.032, 0.1, 0.32]  # and no higher


def piloted(script: Any, *, rate: float = 0.0, sweep: int = 0, enough: Callable[[], bool] = bool) -> list[Pilot]:
    """Run a pilot, its first learning rate given if it is not to be looked for."""
    kept, settle, says = list[Pilot](), lambda _: None, lambda _: None
    looked, gradients = training.tuned_rate, GroupGradients(list(script.model.parameters()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "tuned_rate", lambda *given: rate or looked(*given))
        training.pilot(
            script, gradients, group=8, sweep=sweep, enough=enough, settle=settle, keep=kept.append, says=says
        )
    return kept


def steps(pilot: Pilot) -> list[int]:
    return [stage.step for stage in pilot.stages]


def steadily(run: Run) -> float:
    """Return a loss that falls by as much in each doubling of the steps."""
    return 2.0 - math.log2(1 + run.steps) / 10


def test_a_pilot_looks_at_every_doubling_of_the_steps_up_to_the_last() -> None:
    first, found = piloted(Scripted(steadily, own=True))
    assert (first.rate, found.rate, steps(found)) == (0.0, 1.0, [0, *(8 << i for i in range(8))])
    assert [s.loss for s in found.stages] == [steadily(Run(1.0, 0, 8, step)) for step in steps(found)]
    assert all(len(s.blocks) == 30 and s.trained == pytest.approx(s.loss, **LINE) for s in found.stages)
    done = Scripted(lambda run: 1.0 if run.steps < 8 else 0.5 if run.steps < 16 else 0.2, own=True)
    assert steps(piloted(done)[-1]) == [0, 8, 16, 32, 64]  # and no farther when it does not learn any more
    for kept in (piloted(Scripted(steadily), sweep=40, enough=lambda: True), piloted(Scripted(steadily), sweep=4)):
        assert [(pilot.rate, steps(pilot), bool(pilot.stages[0].blocks)) for pilot in kept] == [(0.0, [0], True)]


@pytest.mark.parametrize("wrong", [math.inf, 2.3, 1.99], ids=["diverges", "jumps", "learns nothing"])
def test_a_learning_rate_that_proves_too_high_is_lowered_by_half_a_decade(wrong: float) -> None:
    def loss(run: Run) -> float:
        return steadily(run) if run.rate < 0.2 or not run.steps else 2.0 if run.steps < 40 else wrong

    script, own = Scripted(loss), Scripted(loss, own=True)
    first, *tried, found = piloted(script, rate=10.0)
    rates = [pilot.rate for pilot in (*tried, found)]
    assert rates == [pytest.approx(10.0 / HALF_DECADE**i, **LINE) for i in range(5)]
    assert [run.rate for run in script.runs] == [0.0, *rates]  # each begun again
    assert steps(found)[-1] == 1024
    assert all(pilot.stages[0] is first.stages[0] for pilot in tried)
    assert [pilot.rate for pilot in piloted(own)] == [run.rate for run in own.runs] == [0.0, 1.0]  # as the user set it
    # but running statistics that lag are no reason to lower it
    lags = Scripted(lambda run: 9.0 if run.steps == 128 else steadily(run), steadily)
    assert [pilot.rate for pilot in piloted(lags, rate=0.1)] == [0.0, 0.1]


def test_every_training_begins_where_the_first_did() -> None:
    torch.manual_seed(0)
    momenta = (0.1, 0.3, None)
    layers = [nn.BatchNorm1d(8), ours.BatchNorm1d(8, momentum=0.3), nn.BatchNorm1d(8, momentum=None)]
    model = nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 3))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": [*model[1:].parameters()], "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    cross_entropy(model(arrays()[0]), arrays()[1]).backward()
    optimizer.step()

    def now() -> list[Tensor]:
        of_optimizer = [s["momentum_buffer"] for s in optimizer.state.values()]
        return [t.detach().clone() for t in (*of_optimizer, *model.state_dict().values())]

    with preserved(model, optimizer) as snapshot:
        work = Work(model, cross_entropy, Samples(arrays()), device=torch.device("cpu"), seed=0)
        again, start, seen = Training(work, optimizer, snapshot), now(), dict[Any, list[float]]()
        for rate, repeat, size in ((1.0, 0, 16), (3.0, 0, 16), (1.0, 1, 16), (1.0, 0, 48), (1.0, 0, 16)):
            again.begin(rate, repeat)
            assert all(map(torch.equal, start, now()))
            assert [g["lr"] for g in optimizer.param_groups] == [0.1 * rate, 0.02 * rate]
            assert tuple(layer.momentum for layer in layers) == momenta
            again.normalise_as_advised(32, size)
            changed = [m and pytest.approx(-math.expm1(size / 32 * math.log1p(-m)), **LINE) for m in momenta]
            assert [layer.momentum for layer in layers] == changed  # they forget as many samples ago
            losses = [float(again.step(size)) for _ in range(5)]
            assert not any(map(torch.equal, start[:1], now()[:1]))
            assert seen.setdefault((rate, repeat, size), losses) == losses
        assert seen[1.0, 0, 16][0] == seen[3.0, 0, 16][0] != seen[1.0, 1, 16][0]  # the same rows; another order
        assert seen[1.0, 0, 16][1] != seen[3.0, 0, 16][1]


def off(rate: float, size: int) -> float:
    """Return how many decades a learning rate lies from the best one, which follows the size below the noise scale."""
    return abs(math.log10(rate / (BEST * min(size / CRITICAL, 1.0))))


def needed(run: Run) -> float:
    """Return the steps that arrive: S(B) at the best learning rate, twice as many a third of a decade from it."""
    return 100 * (1 + CRITICAL / run.size) * (1 + 9 * off(run.rate, run.size) ** 2)


def race(takes: Loss = needed, sizes: Any = SIZES, repeats: int = 1, **given: Any) -> tuple[Experiment, list[Run]]:
    """Run a race from 64 on; return what it found, and all its trainings."""
    enough = given.pop("enough", lambda _: False)
    script = Scripted(lambda run: float(run.steps < takes(run)), lambda run: math.nan if takes(run) == 0 else 0.0)
    found = Experiment(0.5, repeats)
    options = {"rate": BEST, "most": 10_000, "critical": CRITICAL, "start": 64, "says": lambda *_: None} | given
    Race(script, found, 32, lambda: enough(script.runs)).run(sizes, **options)
    return found, script.runs


@pytest.mark.parametrize("guess", [BEST, BEST * HALF_DECADE**3, BEST / HALF_DECADE**3, BEST * 1.5])
def test_every_size_is_raced_at_its_best_learning_rate(guess: float) -> None:
    found, runs = race(rate=guess)
    assert (found.complete, sorted(found.steps)) == (True, SIZES)
    for size, rate in found.rates.items():
        assert off(rate, size) <= 0.25 + LINE["rel"]  # of half a decade, half
        takes = needed(Run(rate, 0, size))
        assert takes <= found.steps[size] <= max(experiment.APART * takes, takes + 1) + 1
    assert all(run.normalised == (32, run.size) for run in runs)
    firsts = {run.size: run for run in reversed(runs)}
    assert (list(firsts)[-1], next(iter(firsts))) == (64, 4)  # outwards; the guess is that of the nearest size
    assert all(off(run.rate, size) < 0.5 for size, run in firsts.items() if size != 64)


@pytest.mark.parametrize(("factors", "middle"), [((1, 3, 2), 2.0), ((2, 1, math.inf), 2.0), ((1, 1, 4), 1.0)])
def test_the_median_order_of_the_data_counts(factors: tuple[float, ...], middle: float) -> None:
    found, runs = race(lambda run: 100 * factors[run.repeat] if run.rate == BEST else math.inf, [64], 3)
    assert 100 * middle <= found.steps[64] <= experiment.APART * 100 * middle + 1
    assert [run.repeat for run in runs if run.rate == BEST] == [0, 1, 2]
    assert {run.repeat for run in runs if run.rate != BEST} == {0, 1}  # given up as two of three orders are lost


@pytest.mark.parametrize("lost", [math.inf, 0.0])  # 0: the loss is not finite
def test_a_size_that_never_arrives_takes_for_ever(lost: float) -> None:
    found, runs = race(lambda run: lost if run.size == 128 else needed(run), [32, 64, 128, 256])
    assert found.complete
    assert [math.isinf(found.steps[size]) for size in (32, 64, 128, 256)] == [False, False, True, False]
    times = found.times(lambda size: size / 4)
    assert list(times.items()) == [(size, found.steps[size] * size / 4) for size in (32, 64, 128, 256)]
    assert lost or all(run.steps == 1 for run in runs if run.size == 128)


def test_no_training_is_longer_than_it_may() -> None:
    found, runs = race(lambda _: math.inf, [64, 128], most=70)
    assert (set(found.steps.values()), {run.steps for run in runs}) == ({math.inf}, {70})
    found, runs = race(lambda run: 200 if run.size == 64 and run.rate == BEST else math.inf, [16, 64, 128])
    assert all(run.steps <= 1.2 * found.steps[64] + 1 for run in runs if run.size == 64 and run.rate != BEST)
    for size, least in ((16, 64 / 16), (128, 1.0)):  # twice the steps that see as many samples, or as many steps
        assert max(run.steps for run in runs if run.size == size) == 2 * found.steps[64] * least + 50


def test_a_race_that_is_cut_short_keeps_what_is_finished() -> None:
    whole, runs = race()
    order = list(dict.fromkeys(run.size for run in runs))
    found, _ = race(enough=lambda runs: runs[-1].size == order[3] and runs[-1].steps > 5)
    assert (found.complete, found.steps) == (False, {size: whole.steps[size] for size in order[:3]})


@pytest.mark.parametrize("count", range(1, 18))
def test_five_sizes_are_raced_where_there_are_five(count: int) -> None:
    sizes = [1 << i for i in range(count)]
    assert 96 in chosen(sizes, 96) == sorted({*chosen(sizes, 96)})
    assert len({*chosen(sizes, 1)} & {*sizes}) == len(chosen(sizes, 1)) >= min(5, count)


def test_two_processes_share_the_samples_of_a_step() -> None:
    found = measurements(3200.0, 100.0, worth=1.0)
    found.current = 24
    advice = judge.judge(found, Choice(processes=2))
    assert advice.best == pytest.approx(800.0, **tolerance.ON_A_GRID)  # √(3200·200)
    assert (advice.batch_size, advice.group_size, advice.current) == (1024, 64, 48)
    assert advice.limits["throughput"].value == pytest.approx(200.0, **LINE)
    assert [advice.limits[name].value for name in ("memory", "gradient_noise")] == [2 << 16, 3200.0]
    assert set(advice.predicted) == {2 * size for size in advice.seconds} == {8 << i for i in range(15)}
    few = judge.judge(measurements(1.0, 1.0, worth=1.0), Choice(processes=2))
    assert (few.batch_size, few.group_size, few.binding) == (48, 24, "statistics_noise")


def raced(steps: dict[int, float], **given: Any) -> Advice:
    """Return advice with a race at sizes whose steps take 3, 2, 5 and 12 seconds in the median, which is no line."""
    found = measurements(100.0, 1600.0, largest=32)
    found.seconds = {4: [1.0, 3.0, 90.0], 8: [2.0, 2.0, 3.0], 16: [5.0, 5.0, 4.0], 32: [12.0]}
    found.experiment = Experiment(0.1, 1, steps, dict.fromkeys(steps, 0.1), True)
    return judge.judge(found, Choice(**given))


@pytest.mark.parametrize("processes", [1, 2])
def test_measured_times_are_by_the_least_of_a_step_relative_to_the_least(processes: int) -> None:
    advice = raced({16: math.inf, 32: 20.0, 8: 75.0, 4: 300.0}, processes=processes)
    expected = {4: 300 / 150, 8: 1.0, 16: math.inf, 32: 240 / 150}
    assert advice.measured == {size * processes: pytest.approx(ratio, **LINE) for size, ratio in expected.items()}
    assert list(advice.measured) == sorted(set(advice.predicted) & set(advice.measured))


def test_where_no_size_arrives_nothing_is_made_up() -> None:
    assert "nan" not in str(raced({4: math.inf, 8: math.inf}))


@pytest.mark.usefixtures("clock_of_work")
@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm1d])
def test_what_is_measured_stands_beside_what_is_predicted(norm: Any) -> None:
    advice = ask(network(norm), cross_entropy, arrays(), budget_s=15.0, measure=True)
    assert advice.details["experiment"]["target"] == advice.details["gradient_noise"]["target"]
    assert set(advice.measured) == {4, 8, 16, 32, 64, advice.batch_size} <= set(advice.predicted)  # of 120 rows
    assert min(advice.measured.values()) == min(advice.predicted.values()) == 1.0
    assert labels(advice) == ["predicted", "measured"]
    assert "measured time to the target ÷ least, beside the predicted:" in str(advice)


def labels(advice: Advice) -> list[str]:
    """Draw the advice; return what its legend names."""
    made = advice.plot()
    made.canvas.draw()
    return [text.get_text() for text in getattr(made.axes[0].get_legend(), "texts", [])]


def test_every_advice_can_be_drawn() -> None:
    assert labels(raced({4: math.inf, 8: 10.0, 16: 20.0})) == ["predicted", "measured"]
    assert labels(raced({4: math.inf, 8: math.inf})) == []
    assert labels(judge.judge(measurements(100.0, 1600.0), Choice())) == []
    single = measurements(100.0, 1600.0, largest=40)
    single.seconds, single.memory.ran, single.pilot = {40: [1.0]}, {40}, None
    assert labels(judge.judge(single, Choice(candidates=[40]))) == []
