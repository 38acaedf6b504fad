"""Which runs train together depends on what is asked for, never on when; and every run is trained once."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from batchnorm.errors import BatchNormError
from batchnorm.study import lab as of
from batchnorm.study.lab import MOST_TOGETHER, WORK, Lab, chunks, weight
from batchnorm.study.shipped import digits
from batchnorm.study.training import Outcome, Problem, Spec

SPEC = Spec("main", "before", "relu", "minmax", "sgd", 60, 1000, "", None, 0.1, 0)
DATA = digits()
PROBLEM = Problem({"main": DATA})
RATES = (0.1, 0.3, 1.0)


def unit(placement: str = "before", seeds: int = 6, rates: Sequence[float] = RATES, **more: Any) -> list[Spec]:
    spec = replace(SPEC, placement=placement, **more)
    return [replace(spec, rate=rate, seed=seed) for rate in rates for seed in range(seeds)]


class Later:
    """Workers that answer in the reverse order."""

    name = "processes"
    jobs, room = 1, 3

    def __init__(self) -> None:
        self.chunks: list[list[Spec]] = []
        self._waiting: list[tuple[Future[Any], list[Spec]]] = []

    def share(self, value: Any) -> Any:
        return value

    def submit(self, _: Any, chunk: list[Spec], problem: Problem) -> "Future[Any]":
        assert problem is PROBLEM
        future: Future[Any] = Future()
        self.chunks.append(chunk)
        future.set_result([Outcome([0, 1], [0.5, spec.rate], [0.5, float(spec.seed)]) for spec in chunk])
        return future

    def close(self) -> None:
        pass


def test_chunks_take_some_seconds_at_most() -> None:
    for steps, hidden in ((1000, (100,) * 3), (120, (100,) * 3), (400, (2000, 2000)), (4000, (100,)), (50_000, (100,))):
        specs = unit(seeds=20, steps=steps, hidden=hidden)
        parts = list(chunks(specs, partial(weight, data=DATA)))
        assert sorted(s for part in parts for s in part) == sorted(specs)
        for part in parts:
            work = sum(spec.steps * weight(spec, DATA) for spec in part)
            assert len(part) == 1 or (len(part) <= MOST_TOGETHER and work <= WORK)
    assert weight(SPEC, DATA) == 1.0
    assert weight(replace(SPEC, hidden=(1000, 1000)), DATA) > 30


def test_chunks_do_not_depend_on_what_was_asked_for_before(tmp_path: Path) -> None:
    units = [unit("none"), unit("before"), unit("after", rates=(0.1,))]
    composed: list[set[tuple[Spec, ...]]] = []
    for order in (units, units[::-1], [units[1], units[1], units[0], units[2], units[0]]):
        workers = Later()
        lab = Lab(PROBLEM, tmp_path, workers=workers)
        for asked in order:
            lab.ask(asked)
        lab.train(lambda _: None)
        composed.append({tuple(chunk) for chunk in workers.chunks})
        assert len(lab.outcomes) == sum(map(len, units))
        assert sum(map(len, workers.chunks)) == sum(map(len, units))
    assert composed[0] == composed[1] == composed[2]


def test_units_that_overlap_in_part_are_an_error(tmp_path: Path) -> None:
    lab = Lab(PROBLEM, tmp_path)
    lab.ask(unit(rates=(0.1, 0.3)))
    with pytest.raises(ValueError, match=r"units must be equal or disjoint, and two share \d+ runs"):
        lab.ask(unit(rates=(0.3, 1.0)))


def test_what_is_asked_for_meanwhile_comes_first(tmp_path: Path) -> None:
    workers = Later()
    lab = Lab(PROBLEM, tmp_path, workers=workers)
    for rate in range(1, 9):
        lab.ask(unit(rates=(float(rate),), seeds=2))
    urgent = unit("none", rates=(0.1,), seeds=2)
    lab.train(lambda chunk: None if urgent[0] in lab.outcomes else lab.ask(urgent))
    assert workers.chunks.index(urgent) == workers.room


def failing(chunk: Sequence[Spec], problem: Problem) -> list[Outcome]:
    raise MemoryError("no room")


def test_what_is_finished_is_kept_when_something_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(PROBLEM, tmp_path, workers=Later())
    asked = [unit(rates=(float(rate),), seeds=2) for rate in range(1, 4)]
    for each in asked:
        lab.ask(each)
    finished: list[Sequence[Spec]] = []

    def stop(chunk: Sequence[Spec]) -> None:
        finished.append(chunk)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.train(stop)
    assert len(finished) == 1
    assert all(lab.kept.file(each).exists() for each in asked)
    monkeypatch.setattr(of, "train", failing)
    resumed = Lab(PROBLEM, tmp_path, resume=True)
    for each in asked:
        resumed.ask(each)
    resumed.train(lambda _: None)
    assert len(resumed.outcomes) == 6


def test_what_goes_wrong_in_a_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of, "train", failing)
    with pytest.raises(MemoryError):
        of._trained(unit(), PROBLEM)
    with pytest.raises(BatchNormError, match=r"`--model a:b` failed in training: MemoryError: no room"):
        of._trained(unit(), replace(PROBLEM, model="a:b"))


def test_the_time_is_told_from_a_trial(tmp_path: Path) -> None:
    lab = Lab(PROBLEM, tmp_path)
    assert lab.seconds() == 0.0
    lab.ask(unit(steps=100))
    seconds = lab.seconds()
    assert seconds > 0.0
    lab.ask(unit("none", steps=300))
    assert lab.seconds() == pytest.approx(4 * seconds)
