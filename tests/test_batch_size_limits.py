"""Throughput and the decision: a clock that follows a line, closed forms, and measurements that are given."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import tolerance
from batchnorm.batch_size import decision, memory
from batchnorm.batch_size.budget import Budget
from batchnorm.batch_size.course import Course
from batchnorm.batch_size.found import Found
from batchnorm.batch_size.gradient_noise import Block
from batchnorm.batch_size.judge import Choice, judge
from batchnorm.batch_size.memory import Memory, SavedTensors
from batchnorm.batch_size.statistics_noise import LayerNoise
from batchnorm.batch_size.throughput import fit, monotone
from batchnorm.batch_size.training import Pilot, Stage, Training
from batchnorm.batch_size.work import Samples, Work
from batchnorm.models.preserve import preserved

CPU = torch.device("cpu")

# Throughput: a clock that goes as it is told.


class Clock:
    """Goes on only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(nn.Module):
    """A layer whose step takes t₀ + B/φ on a clock."""

    def __init__(self, clock: Clock, fixed: float, per_sample: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self._taken = clock, fixed, per_sample

    def forward(self, x: Tensor) -> Tensor:
        clock, fixed, per_sample = self._taken
        clock.now += fixed + len(x) * per_sample
        return self.layer(x)


@pytest.mark.parametrize(("fixed", "per_sample"), [(1e-3, 1e-5), (2e-3, 1e-3), (0.0, 1e-4)])
def test_a_clock_that_follows_the_line_gives_bhalf_back(fixed: float, per_sample: float) -> None:
    clock = Clock()
    torch.manual_seed(0)
    model = Timed(clock, fixed, per_sample)
    x = torch.randn(400, 3)
    with torch.random.fork_rng(), preserved(model) as snapshot:
        work = Work(model, nn.functional.cross_entropy, Samples((x, (x[:, 0] > 0).long())), device=CPU, seed=0)
        budget = Budget(25 * (fixed + 256 * per_sample), show=False, clock=clock)
        course = Course(work, Training(work, None, snapshot), SavedTensors(model), budget)
        course.prepare(Choice(), "sum")
        course.run(0)
        advice = course.answer()
    limit = advice.limits["throughput"]
    for value in (limit.value, limit.low, limit.high):
        assert value == pytest.approx(
            fixed / per_sample, rel=tolerance.EXACT_LINE["rel"], abs=tolerance.EXACT_LINE["rel"]
        )
    assert advice.seconds == {
        size: pytest.approx(fixed + size * per_sample, **tolerance.EXACT_LINE) for size in (4, 8, 16, 32, 64, 128, 256)
    }
    assert budget.spent == clock.now


def test_times_that_would_start_below_zero_go_through_the_origin() -> None:
    line = fit({4: [0.7], 8: [1.6], 16: [3.3]})
    assert line.fixed == 0.0
    assert line.half == 0.0
    assert line.is_line
    assert line(8) == pytest.approx(1.6, rel=line.error + tolerance.EXACT_LINE["rel"])


@pytest.mark.parametrize("times", [(1.0, 1.0, 1.0), (1.1, 1.05, 1.0)])
def test_times_that_do_not_grow_are_flat(times: tuple[float, ...]) -> None:
    line = fit({size: [t] for size, t in zip((4, 8, 16), times, strict=True)})
    assert line.is_line
    assert line.half > 1000 * 16  # the machine is far from busy
    assert line(16) == pytest.approx(line(4), **tolerance.ON_A_GRID)


def test_the_least_time_of_a_size_counts() -> None:
    assert fit({8: [3.0, 2.0, 90.0], 4: [5.0, 1.0]}).seconds == (1.0, 2.0)


def test_a_step_up_is_interpolated() -> None:
    times = {4: [1.0], 8: [1.0], 16: [1.0], 32: [10.0], 64: [9.0], 128: [40.0]}
    speed = fit(times)
    assert speed.error > 0.20
    assert not speed.is_line
    assert speed(4) == speed(12) == 1.0
    assert speed(32) == speed(64) == 9.5  # made monotone: neighbours in the wrong order share their mean
    assert speed(24) == pytest.approx((1.0 + 9.5) / 2, **tolerance.EXACT_LINE)
    assert speed(256) == 80.0  # beyond, in proportion
    # the least a sample costs is 1/16 s, at 16: half of that speed is reached at 8
    assert speed.half == pytest.approx(8.0, **tolerance.ON_A_GRID)


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=9))
def test_monotone_values_never_fall_and_keep_their_sum(values: list[float]) -> None:
    made = monotone(values)
    assert all(a <= b for a, b in itertools.pairwise(made))
    assert sum(made) == pytest.approx(sum(values), **tolerance.EXACT_LINE)
    assert made == values or sorted(values) != values


# The decision.

POSITIVE = st.floats(1.0, 1e5)


@given(critical=POSITIVE, half=POSITIVE)
def test_the_plateau_is_that_of_the_closed_form(critical: float, half: float) -> None:
    best = decision.fastest(critical, half)
    a = math.sqrt(critical / half)
    # (1 + a² + a(x + 1/x)) = 1.05·(1 + a)²
    sum_of_both = (1.05 * (1 + a) ** 2 - 1 - a * a) / a
    x = (sum_of_both + math.sqrt(sum_of_both**2 - 4)) / 2
    reach = 1.1 * x
    found = decision.plateau(critical, lambda b: 1.0 + b / half, best / reach, best * reach)
    step = reach ** (2 / 3999) * (1 + tolerance.EXACT_LINE["rel"])
    for value, exact in ((found.best, best), (found.low, best / x), (found.high, best * x)):
        assert 1 / step <= value / exact <= step
    assert decision.excess(best * x, critical, half) == pytest.approx(1.05, **tolerance.EXACT_LINE)
    assert decision.excess(best, critical, half) == pytest.approx(1.0, **tolerance.EXACT_LINE)


@given(st.floats(1.0, 1e6))
def test_friendly_sizes_are_powers_of_two_or_half_as_much_again(size: float) -> None:
    found = memory.friendly(size)
    assert found <= size
    odd = found // (found & -found)
    assert odd == 1 or (odd == 3 and found >= 24)
    larger = next(
        n
        for n in range(found + 1, 2 * found + 1)
        if n & (n - 1) == 0 or (n >= 24 and n % 3 == 0 and (n // 3) & (n // 3 - 1) == 0)
    )
    assert size < larger


@given(
    low=st.floats(1.0, 1e4),
    width=st.floats(1.0, 30.0),
    candidates=st.lists(st.integers(1, 10_000), min_size=1, max_size=6, unique=True),
)
def test_a_candidate_is_picked_inside_or_else_the_nearest(low: float, width: float, candidates: list[int]) -> None:
    high = low * width
    picked = decision.pick(low, high, candidates)
    assert picked in candidates
    inside = [c for c in candidates if low <= c <= high]
    if inside:
        assert picked == max(inside)
    else:
        middle = math.sqrt(low * high)
        assert all(max(picked / middle, middle / picked) <= max(c / middle, middle / c) for c in candidates)
    assert decision.pick(low, high, None) == memory.friendly(high)


SIZE = st.integers(1, 1 << 16)


@given(before=SIZE, after=SIZE, critical=st.floats(0.1, 1e6), adaptive=st.booleans())
def test_learning_rates_follow_the_batch_below_the_noise_scale_only(
    before: int, after: int, critical: float, adaptive: bool
) -> None:
    def factor(a: int, b: int) -> float:
        return decision.rate_factor(a, b, critical, adaptive=adaptive)

    power = 0.5 if adaptive else 1.0
    assert factor(before, after) * factor(after, before) == pytest.approx(1.0, **tolerance.EXACT_LINE)
    assert factor(before, before) == 1.0
    expected = (max(min(after, critical), 1e-9) / max(min(before, critical), 1e-9)) ** power
    if min(before, after) <= critical:
        assert factor(before, after) == pytest.approx(expected, **tolerance.EXACT_LINE)
    else:
        assert factor(before, after) == 1.0


@given(momentum=st.floats(0.001, 0.999), before=SIZE, after=SIZE)
def test_running_statistics_forget_as_many_samples_ago(momentum: float, before: int, after: int) -> None:
    changed = decision.momentum_for(momentum, before, after)
    expected = -math.expm1(math.log1p(-momentum) * after / before)  # what is left after as many samples is the same
    assert changed == pytest.approx(expected, abs=tolerance.EPS["float64"], rel=0.0)
    assert decision.momentum_for(momentum, before, before) == pytest.approx(momentum, **tolerance.EXACT_LINE)


@given(per_process=SIZE, fewest=st.integers(1, 5000))
@example(per_process=130, fewest=129)
def test_groups_are_whole_or_of_the_usual_size(per_process: int, fewest: int) -> None:
    group = decision.group_size(per_process, fewest)
    assert 1 <= group <= per_process
    assert group >= min(fewest, per_process)
    assert group == per_process or group % 16 == 0
    if per_process <= 128:
        assert group == per_process


# What is judged from measurements that are given.


def found(
    critical: float, half: float, *, rows: int = 1 << 20, largest: int = 1 << 16, worth: float | None = None
) -> Found:
    """Return measurements that leave no doubt: a line, a noise scale, memory for `largest`."""
    sizes = [1 << i for i in range(2, 17) if 1 << i <= largest]
    room = Memory("", 1 << 40, {size: 100 * size for size in sizes[:3]}, {*sizes, largest})
    room.failed = None if largest == 1 << 16 else largest + 1
    made = Found(rows, room, {size: [(half + size) * 1e-4] for size in sizes})
    made.pilot = Pilot(1.0, [Stage(0, 1.0, (Block(1.0, critical),) * 3)])
    made.group = 64
    if worth is not None:
        made.normalizes = True
        made.layers = [LayerNoise("bn", worth, worth, worth, 3.0, 1.0, 0.1)]
    return made


@given(critical=st.floats(1.0, 1e4), half=st.floats(1.0, 1e4))
def test_the_advised_size_is_the_largest_friendly_one_of_the_plateau(critical: float, half: float) -> None:
    advice = judge(found(critical, half), Choice())
    assert advice.batch_size == memory.friendly(advice.plateau[1])
    assert advice.best == pytest.approx(max(math.sqrt(critical * half), 4.0), **tolerance.ON_A_GRID)
    if critical != pytest.approx(half, **tolerance.TO_ONE_IN_A_MILLION):
        assert advice.binding == ("gradient_noise" if critical < half else "throughput")
    assert advice.limits["gradient_noise"].value == pytest.approx(critical, **tolerance.EXACT_LINE)
    assert advice.limits["throughput"].value == pytest.approx(half, **tolerance.TO_ONE_IN_A_MILLION)


@given(critical=st.floats(1.0, 100.0), worth=st.floats(0.05, 100.0), processes=st.sampled_from([1, 2, 4]))
@example(critical=1.0, worth=16 / 5, processes=1)
@example(critical=1.0, worth=16 / 17, processes=1)
@example(critical=16.5, worth=16 / 17, processes=1)
def test_no_fewer_samples_are_advised_than_the_statistics_need(critical: float, worth: float, processes: int) -> None:
    measured = found(critical, 1.0, worth=worth)
    advice = judge(measured, Choice(processes=processes))
    assert advice.batch_size >= measured.layers[0].fewest() * processes
    assert advice.group_size >= measured.layers[0].fewest()
    assert advice.remedies == ()


@pytest.mark.parametrize(("candidates", "expected"), [([4, 8, 64, 128], 64), ([4, 8], 8), ([4, 16, 32], 16)])
def test_the_statistics_need_the_smallest_candidate_that_is_enough(candidates: list[int], expected: int) -> None:
    advice = judge(found(1.0, 1.0, worth=1.0), Choice(candidates=candidates))
    assert (advice.batch_size, advice.binding) == (expected, "statistics_noise")


@given(
    largest=st.integers(4, 5000), critical=st.floats(1.0, 1e6), half=st.floats(1.0, 1e4), worth=st.floats(0.01, 10.0)
)
def test_no_size_above_the_largest_that_ran_is_advised(
    largest: int, critical: float, half: float, worth: float
) -> None:
    advice = judge(found(critical, half, largest=largest, worth=worth), Choice())
    assert advice.batch_size <= largest
    assert advice.group_size <= advice.batch_size


def test_memory_or_the_data_decide_where_there_is_no_more() -> None:
    full = judge(found(1e6, 1e3, largest=256), Choice())
    assert (full.batch_size, full.binding) == (256, "memory")
    assert full.limits["memory"].high == 256.0
    few = judge(found(1e6, 1e3, rows=300), Choice())
    assert (few.batch_size, few.binding) == (256, "data")


@given(
    critical=st.floats(10.0, 1e5),
    half=st.floats(1.0, 1e4),
    candidates=st.none() | st.lists(st.sampled_from([4, 8, 16, 32, 64, 256, 1024, 4096]), min_size=1, unique=True),
)
@example(critical=200.0, half=200.0, candidates=[8, 64])
def test_little_compute_means_a_fifth_of_the_noise_scale(
    critical: float, half: float, candidates: list[int] | None
) -> None:
    advice = judge(found(critical, half), Choice("compute", sorted(candidates) if candidates else None))
    smallest = min(candidates) if candidates else 4
    assert advice.batch_size <= max(0.2 * critical, smallest) * (1 + tolerance.EXACT_LINE["rel"])
    assert advice.binding == "gradient_noise"
    if candidates:
        assert advice.batch_size in candidates


@pytest.mark.parametrize(("processes", "first"), [(1, "a larger batch"), (2, "normalise over all processes")])
def test_remedies_come_in_order(processes: int, first: str) -> None:
    advice = judge(found(50.0, 50.0, largest=8, worth=1.0), Choice(processes=processes))
    assert advice.remedies[0].startswith("m = 8 is below m_min = 16")
    assert f"first things first: {first}" in advice.remedies[0]
    assert [r.split(" ")[1] for r in advice.remedies[-2:]] == ["batch", "group"]
    assert judge(found(50.0, 50.0, worth=1.0), Choice(processes=processes)).remedies == ()


def test_a_noise_scale_that_was_not_measured_is_no_reason_to_be_sure() -> None:
    measured = found(50.0, 200.0)
    measured.pilot = None
    advice = judge(measured, Choice())
    assert advice.limits["gradient_noise"].value is None
    assert advice.confidence == "low"
    assert advice.best == pytest.approx(200.0, **tolerance.ON_A_GRID)  # Bcrit taken to be Bhalf


# What an answer rests on: no limit decides that was not measured, and the first line says why it is not sure.


def test_a_limit_that_was_not_measured_decides_nothing() -> None:
    measured = found(50.0, 200.0, worth=1.0)
    measured.pilot, measured.layers, measured.seconds = None, [], {4: [0.02]}
    advice = judge(measured, Choice())
    assert all(advice.limits[name].value is None for name in ("throughput", "gradient_noise", "statistics_noise"))
    assert advice.binding == "budget"
    first, *rest = str(advice).splitlines()
    assert first.startswith(f"Batch size B = {advice.batch_size} ")
    assert "confidence low: not enough time, neither the noise of gradients" in first
    assert "a budget of 120 seconds may do" in " ".join(str(advice).split())
    assert not any("heard" in line or "decided by statistics" in line for line in rest)


def test_the_samples_normalised_together_decide_where_no_noise_was_to_be_measured() -> None:
    unheard, plain = found(2.0, 2.0, worth=1.0), found(2.0, 2.0)
    unheard.layers, unheard.listened, unheard.compiled = [], True, True
    plain.layers, plain.normalizes = [], False
    for advice in (judge(unheard, Choice()), judge(plain, Choice(group=64))):
        assert advice.binding == "group"
        assert "decided by the samples that are normalised together" in " ".join(str(advice).split())
        assert "time to try" not in str(advice)


def test_an_interruption_is_no_lack_of_time() -> None:
    measured = found(50.0, 200.0)
    measured.pilot, measured.interrupted = None, "the gradient noise"
    advice = judge(measured, Choice())
    assert advice.doubts[0].startswith("interrupted while measuring")
    assert not any("not enough time" in doubt for doubt in advice.doubts)


def test_a_larger_budget_than_the_last_is_proposed() -> None:
    measured = found(50.0, 200.0)
    measured.pilot, measured.budget_s = None, 300.0
    assert judge(measured, Choice()).doubts[0].endswith("was not measured: a budget of 600 seconds may do")


def test_on_a_busy_machine_the_least_times_count_and_the_first_line_says_so() -> None:
    idle, busy = found(50.0, 200.0), found(50.0, 200.0)
    for size, (least,) in idle.seconds.items():
        busy.seconds[size] = [least * slow for slow in (3.0, 1.0, 2.9, 3.3, 2.5, 1.4)]
    quiet, loud = judge(idle, Choice()), judge(busy, Choice())
    assert (loud.batch_size, loud.limits["throughput"].value) == (quiet.batch_size, quiet.limits["throughput"].value)
    assert (quiet.confidence, loud.confidence) == ("medium", "low")
    assert "confidence low: the same step took 3.0 times as long at other times" in " ".join(str(loud).split())


def test_where_no_line_fits_nobody_is_sure() -> None:
    measured = found(50.0, 200.0)
    measured.seconds = {4: [1.0], 8: [1.0], 16: [1.0], 32: [10.0], 64: [9.0], 128: [40.0]}
    advice = judge(measured, Choice())
    assert advice.confidence == "low"
    assert advice.doubts[0].startswith("no line fits the seconds of a step, the best is off by ")


def test_the_sizes_that_follow_from_all_that_was_measured_are_a_range() -> None:
    measured = found(50.0, 200.0)
    assert measured.pilot is not None
    measured.pilot.stages = [Stage(0, 1.0, (Block(1.0, 10.0), Block(1.0, 50.0), Block(1.0, 400.0)))]
    advice = judge(measured, Choice())
    low, high = advice.between
    assert low < advice.batch_size < high
    assert f"B = {advice.batch_size} ({low} to {high})" in str(advice)
    assert json.loads(advice.to_json())["between"] == [low, high]


@pytest.mark.parametrize(
    ("compiled", "why"), [(True, "before torch.compile"), (False, "the training steps of the model do not call any")]
)
def test_why_no_layer_was_heard_is_true(compiled: bool, why: str) -> None:
    measured = found(50.0, 200.0, worth=1.0)
    measured.layers, measured.listened, measured.compiled = [], True, compiled
    (note,) = (note for note in judge(measured, Choice()).notes if "heard" in note)
    assert note.endswith(why)
