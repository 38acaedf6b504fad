"""Problems of one's own, as a study prepares them, for the tests."""

import math
from dataclasses import replace
from pathlib import Path

from batchnorm.study import Settings, arrays, runner, training
from batchnorm.study.design import Study
from batchnorm.study.lab import Lab
from batchnorm.study.training import Outcome, Problem, Spec


def named(name: str | None) -> str | None:
    return name and (name if ":" in name else f"own_models:{name}")


def prepared(data: str, model: str | None, loss: str | None = None, metric: str | None = None) -> tuple[Problem, Spec]:
    """Return a problem as a study prepares it, and the run that its settings describe."""
    settings = Settings(model=named(model), loss=named(loss), metric=metric)
    problem = runner.prepare(settings, arrays.from_factory(f"own_models:{data}"))
    settings = runner.fitting(settings, problem)
    return problem, replace(Study(settings, Lab(problem, Path())).spec(), rate=0.1, steps=4)


def trained(problem: Problem, spec: Spec, *more: Spec) -> list[Outcome]:
    outcomes = training.train([spec, *more], problem)
    assert all(map(math.isfinite, outcomes[0].test))
    return outcomes
