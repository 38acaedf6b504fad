"""How each side comes to its best learning rate, and how goals come about, on runs made by hand."""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import study_outcomes as made
import tolerance
from batchnorm.study.design import Settings, Study
from batchnorm.study.training import Outcome, Problem, Spec, evaluated_steps
from batchnorm.study.tuning import Tuning, obstacles

GRID = [0.0032, 0.032, 0.32, 3.2]
BUDGET = 120
TOP, BOTTOM = [32.0, 320.0, 3200.0], [0.00032, 3.2e-05, 3.2e-06]


def tuned(how: made.Answer, placement: Any = "before", count: int = 0, **choices: Any) -> tuple[Study, Tuning]:
    """Return one side of the main network when it is settled, and its study."""
    study = made.answer(made.study_of(count=count), how, lambda s: s.tune(placement, **choices).units)
    tuning = study.tune(placement, **choices)
    assert tuning.settled
    return study, tuning


def by_rate(arrival: Callable[[float], float]) -> made.Answer:
    return made.arriving(lambda spec: arrival(spec.rate) if spec.activation == "relu" else 33)


def test_the_best_rate_of_a_grid_takes_the_fewest_steps() -> None:
    study, tuning = tuned(by_rate(lambda rate: 10 if rate == 0.32 else 33))
    assert study.settings.rates("relu") == GRID
    assert (tuning.rate, tuning.edge, tuning.obstacle, tuning.budget) == (0.32, "", "", BUDGET)
    assert list(tuning.by_rate) == GRID
    assert study.arrivals(tuning.outcomes) == [10.0] * 6


@pytest.mark.parametrize(
    ("best", "rates", "edge"),
    [
        (3.2, [*GRID, TOP[0]], ""),
        (32.0, [*GRID, *TOP[:2]], ""),
        (320.0, [*GRID, *TOP], ""),
        (3200.0, [*GRID, *TOP], "high"),
        (1e5, [*GRID, *TOP], "high"),
        (0.0032, [BOTTOM[0], *GRID], ""),
        (3.2e-05, [*BOTTOM[::-1], *GRID], ""),
        (3.2e-06, [*BOTTOM[::-1], *GRID], "low"),
    ],
)
def test_a_grid_whose_best_is_last_is_continued_thrice_at_the_most(best: float, rates: list[float], edge: str) -> None:
    _, tuning = tuned(by_rate(lambda rate: made.MARKS[1 + round(2 * abs(math.log10(rate / best)))]))
    assert len(tuning.by_rate) <= len(GRID) + made.QUICK.extensions
    assert list(tuning.by_rate) == rates
    assert tuning.edge == edge
    where = {"high": "3200, is the highest that was tried", "low": "3.2e-06, is the lowest that was tried"}
    assert tuning.obstacle == (f"the best learning rate, {where[edge]}" if edge else "")


def test_a_single_rate_is_not_continued() -> None:
    _, tuning = tuned(by_rate(lambda _: 10), rates=(0.1,))
    assert (tuning.rate, tuning.edge) == (0.1, "")


def test_a_run_that_has_not_arrived_counts_as_ten_times_its_budget() -> None:
    def seeds(early: float) -> made.Answer:
        def arrival(spec: Spec) -> float:
            if spec.rate == 0.32:
                return early if spec.seed else made.NEVER
            return 12 if spec.rate == 0.032 else 97

        return made.arriving(arrival)

    _, tuning = tuned(seeds(7))
    assert tuning.rate == 0.032  # (7⁵·1200)^⅙ = 16.5 steps against 12
    _, tuning = tuned(seeds(4))
    assert tuning.rate == 0.32  # (4⁵·1200)^⅙ = 10.3 against 12


def test_where_nothing_arrives_the_final_score_decides() -> None:
    def how(spec: Spec) -> Outcome:
        if spec.placement == "before" and spec.activation == "relu":
            return made.jump(spec, 5, high=0.6 + (0.1 if spec.rate == 0.032 else 0.0))
        return made.jump(spec, 5)

    study, tuning = tuned(how)
    assert tuning.rate == 0.032
    assert study.arrivals(tuning.outcomes) == [math.inf] * 6


@pytest.mark.parametrize("by", ["steps", "score"])
@pytest.mark.parametrize("share", [6, 3])
def test_a_rate_whose_runs_diverge_is_never_best(by: Any, share: int) -> None:
    """All of them, or half: however early they touch the goal, and however high."""

    def how(spec: Spec) -> Outcome:
        if spec.rate != 3.2 or spec.activation != "relu":
            return made.jump(spec, 33)
        touching = made.jump(spec, 1, high=1.0)
        return made.diverged(touching, after=8) if spec.seed < share else touching

    study, tuning = tuned(how, by=by)
    assert tuning.rate != 3.2
    assert not any(math.isnan(o.test[-1]) for o in tuning.outcomes)
    assert study.arrivals(tuning.outcomes) == [33.0] * 6


def test_where_every_rate_diverges_nothing_arrives() -> None:
    study, tuning = tuned(
        lambda s: made.diverged(made.jump(s, 1), after=8) if s.placement == "before" else made.jump(s, 33)
    )
    assert study.arrivals(tuning.outcomes) == [math.inf] * 6


def test_touching_the_goal_is_no_arrival_and_chooses_no_rate() -> None:
    def how(spec: Spec) -> Outcome:
        run = made.jump(spec, 33)
        if spec.rate == 0.32:  # at the goal from step 2 to 97, and below it in the end
            scores = [made.HIGH if 2 <= at <= 97 else 0.8 for at in run.steps]
            return replace(run, validation=scores, test=scores)
        return run

    study, tuning = tuned(how)
    assert tuning.rate != 0.32
    assert study.arrivals(tuning.outcomes) == [33.0] * 6
    assert study.arrivals(study.outcomes(study.sweep("before").at(study, 0.32))) == [math.inf] * 6


def test_the_rate_is_chosen_on_validation_rows_and_reported_on_test_rows() -> None:
    def how(spec: Spec) -> Outcome:
        run = made.jump(spec, 33)
        early, late = made.jump(spec, 5).test, made.jump(spec, 51).test
        if spec.rate == 0.032:
            return replace(run, validation=early, test=late)
        return replace(run, validation=late, test=early) if spec.rate == 0.32 else run

    study, tuning = tuned(how)
    assert tuning.rate == 0.032
    assert study.arrivals(tuning.outcomes) == [51.0] * 6


def test_the_highest_score_is_chosen_on_validation_rows_too() -> None:
    def how(spec: Spec) -> Outcome:
        run = made.jump(spec, 33)
        higher, lower = ([min(score, top) for score in run.test] for top in (0.95, 0.9))
        if spec.rate == 0.032:
            return replace(run, validation=higher, test=lower)
        return replace(run, validation=lower, test=higher)

    _, tuning = tuned(how, by="score")
    assert tuning.rate == 0.032
    assert [o.peak() for o in tuning.outcomes] == [(0.95, 0.9)] * 6


def rising(spec: Spec, needed: float, top: float = made.HIGH) -> Outcome:
    """A run whose score rises along a straight line until the step that it needs to reach the top."""
    steps = evaluated_steps(spec.steps)
    scores = [made.LOW + (top - made.LOW) * min(1.0, step / needed) for step in steps]
    return Outcome(steps, scores, list(scores))


def without_rises(needed: float, top: float = made.HIGH) -> made.Answer:
    """The main network without batch normalization rises slowly, best at 0.32; everything else arrives."""

    def how(spec: Spec) -> Outcome:
        if spec.placement == "none" and spec.activation == "relu":
            return rising(spec, needed * (1 + abs(math.log10(spec.rate / 0.32)) / 3), top)
        return made.jump(spec, 10)

    return how


def test_runs_that_are_late_and_still_rise_are_trained_for_longer() -> None:
    study, tuning = tuned(without_rises(300), "none")
    assert (tuning.rate, tuning.budget) == (0.32, made.QUICK.longer * BUDGET)
    arrived = study.arrivals(tuning.outcomes)
    assert arrived == [min(s for s in evaluated_steps(480) if s >= 0.9 * 300)] * 6
    longer = {s.rate for s in study.lab.outcomes if s.steps == made.QUICK.longer * BUDGET and s.activation == "relu"}
    assert longer == {0.032, 0.32, 3.2}  # the best and its neighbours
    assert all(o.steps[-1] == BUDGET for outcomes in tuning.by_rate.values() for o in outcomes)


@pytest.mark.parametrize(
    "how",
    [
        without_rises(110),  # has arrived
        without_rises(10, top=0.7),  # stands: no longer training would help
        made.arriving(lambda s: 10 if s.placement != "none" or s.seed < 3 else made.NEVER),  # half have arrived
    ],
    ids=["arrived", "standing", "half"],
)
def test_other_runs_are_not(how: made.Answer) -> None:
    study, tuning = tuned(how, "none")
    assert tuning.budget == BUDGET
    assert max(s.steps for s in study.lab.outcomes if s.activation == "relu") == BUDGET


@pytest.mark.parametrize(
    ("rising_until", "budget", "obstacle"),
    [
        (30, BUDGET, ""),
        (150, made.QUICK.longer * BUDGET, ""),
        (2000, made.QUICK.longer * BUDGET, "scores still rise after 480 steps"),
    ],
)
def test_a_search_by_score_is_made_longer_where_scores_rise(rising_until: int, budget: int, obstacle: str) -> None:
    _, tuning = tuned(without_rises(rising_until), "none", by="score")
    assert (tuning.budget, tuning.obstacle) == (budget, obstacle)
    assert tuned(without_rises(rising_until), "none")[1].obstacle == ""  # steps are compared as bounds


@pytest.mark.parametrize("how", [by_rate(lambda rate: 10 if rate == 0.32 else 33), without_rises(300)])
def test_seeds_that_are_added_run_at_the_best_rate_alone(how: made.Answer) -> None:
    study, tuning = tuned(how, "none", count=12)
    first, later = (
        {s for s in study.lab.outcomes if (s.seed < 6) == early and s.placement == "none" and s.activation == "relu"}
        for early in (True, False)
    )
    assert {s.rate for s in first} == set(GRID)
    assert {(s.rate, s.steps) for s in later} == {(0.32, tuning.budget)}
    assert [s.seed for s in sorted(later, key=lambda s: s.seed)] == list(range(6, 12))
    assert len(tuning.outcomes) == 12
    assert all(len(outcomes) == 6 for outcomes in tuning.by_rate.values())
    assert all(math.isfinite(a) for a in study.arrivals(tuning.outcomes))


def test_the_seeds_of_each_look_are_a_unit_of_their_own() -> None:
    study = made.study_of(made.Quick(seeds=25), how=made.arriving(lambda _: 10))
    assert study.settings.schedule == (6, 12, 20, 25)
    for count in (6, 12, 20, 25):
        study = made.answer(study.at(count), study.lab.how, lambda s: s.tune("before").units)
        assert len(study.tune("before").outcomes) == count
    later = [u for u in study.lab.units if u[0].seed >= 6 and (u[0].placement, u[0].activation) == ("before", "relu")]
    assert [[s.seed for s in unit] for unit in later] == [[*range(6, 12)], [*range(12, 20)], [*range(20, 25)]]


def test_added_seeds_do_not_move_the_choice() -> None:
    def arrival(spec: Spec) -> float:
        return (10 if spec.rate == 0.32 else 33) if spec.seed < 6 else (made.NEVER if spec.rate == 0.32 else 1)

    study, tuning = tuned(made.arriving(arrival), count=12)
    assert tuning.rate == 0.32
    assert study.arrivals(tuning.outcomes) == [10.0] * 6 + [math.inf] * 6


def test_the_first_seed_is_the_one_asked_for() -> None:
    study = made.study_of(made.Quick(seed=100, seeds=3))
    assert [s.seed for s in study.seeds(study.spec())] == [100, 101, 102]
    assert {s.seed for unit in study.tune("before").units for s in unit} == {100, 101, 102}


def reaching(spec: Spec) -> Outcome:
    """Each seed's best run is ReLU's at 0.32: 0.80, 0.82, … on validation rows and a little less on test rows."""
    best = spec.rate == 0.32 and spec.placement == "before" and spec.activation == "relu"
    top = 0.8 + 0.02 * spec.seed if best else 0.7
    run = made.jump(spec, 10, high=top)
    return replace(run, test=[score - 0.04 if score == top else score for score in run.test])


def test_goals_follow_what_each_seed_reaches() -> None:
    study, _ = tuned(reaching)
    reach = [0.8 + 0.02 * seed for seed in range(6)]
    assert study.goals("goal", "validation") == pytest.approx(
        [0.5 + 0.9 * (r - 0.5) for r in reach], **tolerance.EXACT_LINE
    )
    assert study.goals("goal") == pytest.approx([0.5 + 0.9 * (r - 0.04 - 0.5) for r in reach], **tolerance.EXACT_LINE)
    assert study.goals("near") == pytest.approx([0.5 + 0.8 * (r - 0.04 - 0.5) for r in reach], **tolerance.EXACT_LINE)
    assert study.reach() == pytest.approx(0.81, **tolerance.EXACT_LINE)
    assert study.goal() == pytest.approx(statistics.median(study.goals()), **tolerance.EXACT_LINE)


def test_goals_of_added_seeds_follow_the_runs_at_the_chosen_rates() -> None:
    study, tuning = tuned(reaching, count=12)
    assert tuning.rate == 0.32
    assert study.goals("goal", "validation")[6:] == pytest.approx(
        [0.5 + 0.9 * (0.3 + 0.02 * seed) for seed in range(6, 12)], **tolerance.EXACT_LINE
    )
    assert study.goal() == statistics.median(study.goals()[:6])


def test_a_step_with_a_higher_test_score_does_not_raise_the_goal() -> None:
    """The reach is the test score at the best validation score, not the best test score."""

    def how(spec: Spec) -> Outcome:
        run = made.jump(spec, 10, high=0.9)
        spikes = [0.99 if at == 22 else score for at, score in zip(run.steps, run.test, strict=True)]
        dips = [0.85 if at == 22 else score for at, score in zip(run.steps, run.validation, strict=True)]
        return replace(run, validation=dips, test=spikes)

    study, _ = tuned(how)
    assert study.goals() == pytest.approx([0.5 + 0.9 * 0.4] * 6, **tolerance.EXACT_LINE)


@pytest.mark.parametrize("top", [0.5, 0.515, math.nan])
def test_where_nothing_is_learned_the_goal_is_out_of_reach(top: float) -> None:
    """Seed 2 learns nothing, whatever the run."""

    def how(spec: Spec) -> Outcome:
        return made.jump(spec, 10, high=top) if spec.seed == 2 else made.jump(spec, 10)

    study, tuning = tuned(how)
    assert [math.isinf(goal) for goal in study.goals()] == [seed == 2 for seed in range(6)]
    assert [math.isinf(a) for a in study.arrivals(tuning.outcomes)] == [seed == 2 for seed in range(6)]
    assert math.isfinite(study.goal())


def test_fixed_goals_do_not_follow_anything() -> None:
    problem = Problem({"main": made.table(fixed_goals=(0.90, 0.95))})
    study = made.answer(made.study_of(problem=problem), made.arriving(lambda _: 10), lambda s: s.tune("none").units)
    assert (study.goals("near"), study.goals("goal", "validation")) == ([0.90] * 6, [0.95] * 6)


def test_the_mean_share_of_the_way_is_an_area_over_log_steps() -> None:
    study, _ = tuned(made.arriving(lambda _: 10))

    def share(scores: Callable[[int], float]) -> float:
        steps = evaluated_steps(BUDGET)
        run = Outcome(steps, [], [scores(step) for step in steps])
        return study.shares([run])[0]

    way = made.HIGH - made.LOW
    assert share(lambda _: made.HIGH) == pytest.approx(1.0, **tolerance.EXACT_LINE)
    assert share(lambda _: made.LOW) == share(lambda _: 0.1) == share(lambda _: math.nan) == 0.0
    straight = share(lambda step: made.LOW + way * math.log(max(step, 1)) / math.log(BUDGET))
    assert straight == pytest.approx(0.5, **tolerance.EXACT_LINE)
    assert share(lambda step: made.LOW + 2 * way * (step >= 1)) == pytest.approx(2.0, **tolerance.EXACT_LINE)


def test_the_edge_is_that_of_the_runs_that_were_made_longer() -> None:
    """At first 0.032 is best; in longer runs the lowest rate of the grid wins."""

    def how(spec: Spec) -> Outcome:
        if spec.placement == "none" and spec.activation == "relu":
            slow = (
                {0.0032: 1.0, 0.032: 1.2}.get(spec.rate, 9.0) if spec.steps > BUDGET else 1.0 + abs(spec.rate - 0.032)
            )
            return rising(spec, 300 * slow)
        return made.jump(spec, 10)

    _, tuning = tuned(how, "none")
    assert (tuning.rate, tuning.budget, tuning.edge) == (0.0032, made.QUICK.longer * BUDGET, "low")
    assert tuning.obstacle == "the best learning rate, 0.0032, is the lowest that was tried"


def test_quick_studies_are_shorter() -> None:
    quick, full = Settings(quick=True), Settings()
    assert (quick.extensions, quick.longer, quick.schedule) == (2, 1, (6,))
    assert (full.extensions, full.longer, full.schedule) == (3, 4, (6, 12))
    assert Settings(quick=True, seeds=3).schedule == (3,)
    for network in ("relu", "sigmoid", "own"):
        assert set(quick.rates(network)) < set(full.rates(network))
    assert (quick.steps, quick.short_steps) == (200, 120)
    assert (full.steps, full.short_steps) == (500, 400)


def test_squared_errors_have_lower_rates_in_the_sigmoid_network() -> None:
    data = made.table()
    values = replace(data, task="regression", y=data.x[:, 0], classes=(), metric="r2")
    assert made.study_of().rates("sigmoid") == made.QUICK.rates("sigmoid")
    assert made.study_of(problem=Problem({"main": values})).rates("sigmoid") == made.QUICK.rates("relu")


def test_one_obstacle_on_both_sides_is_said_once() -> None:
    rising_on = Tuning([], settled=True, budget=120, rising=True)
    assert obstacles({"without it": rising_on, "with it": rising_on}) == (
        "without it and with it, scores still rise after 120 steps"
    )
    assert obstacles({"without it": Tuning([]), "with it": rising_on}) == "with it, scores still rise after 120 steps"


def test_a_search_by_score_takes_the_highest_and_of_equal_ones_the_fastest() -> None:
    def how(spec: Spec) -> Outcome:
        if spec.placement == "none" and spec.activation == "relu":
            arrival, high = {0.32: (10, 0.94), 0.032: (33, 0.95), 3.2: (22, 0.95)}.get(spec.rate, (50, 0.93))
            return made.jump(spec, arrival, high=high)
        return made.jump(spec, 10, high=0.95)

    assert tuned(how, "none")[1].rate == 0.32
    assert tuned(how, "none", by="score")[1].rate == 3.2
