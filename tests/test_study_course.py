"""The course of a study: what is undecided gets more seeds, and no run is trained twice or in two companies."""

import math
import zlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

import study_outcomes as made
from batchnorm.study.claims import batch_size, initialization, input_scaling, learning_rate, placement, score, speed
from batchnorm.study.course import Course
from batchnorm.study.design import Study
from batchnorm.study.findings import Claim, Effect, Finding
from batchnorm.study.training import Spec

CORE = [c.CLAIM for c in (speed, score, learning_rate, initialization, batch_size, placement, input_scaling)]


def course(how: made.Answer, *claims: Claim, **settings: Any) -> tuple[Course, Study]:
    study = made.study_of(made.Quick(**settings), how=how)
    held = Course(study, claims, None)
    held.run()
    return held, study


def seeds(study: Study) -> set[int]:
    return {s.seed for s in study.lab.outcomes}


def faster(opposite: int = 0, decided_from: int = 0) -> made.Answer:
    """With it at step 10, without at 41; in so many of the first seeds the other way round."""

    def arrival(spec: Spec) -> float:
        with_it = spec.placement != "none"
        turned = spec.seed < opposite or decided_from > spec.seed >= 6
        late = 41 if with_it == turned else 10
        return {0.32: late, 1.0: late}.get(spec.rate, 97)

    return made.arriving(arrival)


def test_six_seeds_are_enough_where_they_decide() -> None:
    held, study = course(faster(), speed.CLAIM)
    assert held.findings["speed"].verdict() == "holds"
    assert held.counts == {"speed": 6}
    assert seeds(study) == set(range(6))


def test_what_six_seeds_leave_open_is_decided_by_twelve() -> None:
    held, study = course(faster(opposite=1), speed.CLAIM)
    assert held.counts == {"speed": 12}
    assert held.findings["speed"].verdict() == "holds"  # eleven of twelve: rank 2 leaves one apart
    assert all(len(e.least) == 12 for e in held.findings["speed"].effects)
    assert seeds(study) == set(range(12))


def test_the_most_seeds_end_what_stays_undecided() -> None:
    held, study = course(faster(opposite=2), speed.CLAIM)
    assert held.counts == {"speed": 12}
    assert held.findings["speed"].verdict() == "undecided"
    held, study = course(faster(opposite=3), speed.CLAIM, seeds=20)
    assert held.counts == {"speed": 20}
    assert held.findings["speed"].verdict() == "holds"
    assert seeds(study) == set(range(20))


def test_few_seeds_are_looked_at_once_and_decide_nothing() -> None:
    held, study = course(faster(), speed.CLAIM, seeds=4)
    assert held.counts == {"speed": 4}
    assert held.findings["speed"].verdict() == "undecided"
    assert seeds(study) == set(range(4))


def test_no_seed_is_added_where_there_is_an_obstacle() -> None:
    """The best rate is the last one on the side without, however far the grid goes on."""

    def arrival(spec: Spec) -> float:
        if spec.placement == "none":
            return made.MARKS[-1 - max(0, round(math.log10(spec.rate)) + 6)]
        return (10 if spec.seed else 41) if spec.rate == 0.32 else 97

    held, _ = course(made.arriving(arrival), speed.CLAIM)
    assert all(e.obstacle.startswith("without it, the best learning rate") for e in held.findings["speed"].effects[:2])
    assert held.counts == {"speed": 6}
    assert held.findings["speed"].verdict() == "undecided"


def test_ranges_and_checks_take_the_first_seeds_alone() -> None:
    check = replace(
        speed.CLAIM, id="a check", check=True, adds_seeds=False,
        measure=lambda study: Finding((Effect.of("e", [1.0, -1.0] * 3, 0.0),)),
    )  # fmt: skip
    held, study = course(faster(opposite=1), learning_rate.CLAIM, check)
    assert held.counts == {"learning-rate": 6, "a check": 6}
    assert held.findings["a check"].check
    assert seeds(study) == set(range(6))


def mixed_up(spec: Spec) -> Any:
    """Runs of which no claim can make much: arrivals that go up and down with everything, some not at all."""
    traits = (spec.placement, spec.seed % 5, round(math.log10(spec.rate) * 2), spec.batch_size, spec.scaling)
    steps = [*made.MARKS[1:], made.NEVER]
    return made.jump(spec, steps[zlib.crc32(repr(traits).encode()) % len(steps)])


@pytest.mark.parametrize("how", [faster(opposite=2), mixed_up], ids=["open", "mixed up"])
def test_units_are_equal_or_disjoint_and_trained_once(how: made.Answer) -> None:
    """However the claims take turns; the lab made by hand checks it at each unit, and the real one does."""
    for claims in (CORE, CORE[::-1]):
        held, study = course(how, *claims, seeds=20)
        assert set(held.findings) == {c.id for c in claims}
        trained = Counter(spec for unit in study.lab.units for spec in unit)
        assert max(trained.values()) == 1
        assert 20 in held.counts.values()


def test_what_claims_say_does_not_depend_on_their_order() -> None:
    one, _ = course(mixed_up, *CORE)
    other, _ = course(mixed_up, *CORE[::-1])
    for claim in CORE:
        assert one.findings[claim.id].effects == other.findings[claim.id].effects
        assert one.findings[claim.id].notes == other.findings[claim.id].notes


def test_claims_that_need_the_base_network_are_skipped_for_a_model_of_ones_own() -> None:
    held, study = course(faster(), initialization.CLAIM, speed.CLAIM, model="m:f")
    assert held.findings["initialization"].verdict() == "not measured"
    assert "needs the base network" in held.findings["initialization"].skipped
    assert study.networks == ("own",)
    assert held.findings["speed"].effects[0].part == "your model"
