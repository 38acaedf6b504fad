"""Hold the answers of `batchnorm study` against an independent check, on many tables.

    python benchmarks/study_tables.py [--quick] [--jobs N] [--out FOLDER] [TABLE.csv=TARGET ...]

Without arguments: the tables that ship with scikit-learn, the example table of this project, and generated tables with
traits of their own, on two of which batch normalization has nothing to give. The check shares no code with the study
but the reading of tables: it has its own splits, its own loop and torch's own layers, one model at a time.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn

from batchnorm.errors import BatchNormError
from batchnorm.study import Settings, run
from batchnorm.study.claims import chosen_claims
from batchnorm.study.data import Dataset
from batchnorm.study.tables import from_frame, table

ROOT = Path(__file__).parents[1]
CLAIMS = "speed,score,learning-rate,placement,batch-size"
RATES = (0.03, 0.3, 1.0, 3.0)
STEPS = {"relu": 400, "sigmoid": 500}
SEEDS = 3
LOOKS = [*range(20), *range(20, 501, 10)]  # the steps after which runs are scored
SHARE = 0.9


def shipped() -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yield the tables of scikit-learn; breast cancer also with its columns on scales from 1e-6 to 1e6."""
    for name in ("wine", "breast_cancer", "iris", "diabetes"):
        frame: Any = getattr(datasets, f"load_{name}")(as_frame=True).frame
        yield name, frame, "target"
        if name == "breast_cancer":
            scaled = frame.copy()
            columns = [c for c in frame.columns if c != "target"]
            scaled[columns] = frame[columns] * np.logspace(-6, 6, len(columns))
            yield "breast_cancer_scaled", scaled, "target"
    bunch: Any = datasets.load_linnerud(as_frame=True)
    yield "linnerud", pd.concat([bunch.data, bunch.target[["Weight"]]], axis=1), "Weight"


def generated() -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yield generated tables, each with a trait of its own."""
    random = np.random.default_rng(0)

    def frame(x: Any, y: Any) -> pd.DataFrame:
        return pd.DataFrame(x, columns=[f"v{i}" for i in range(x.shape[1])]).assign(y=y)

    x = random.normal(size=(600, 8))
    yield "parity", frame(x[:, :3], np.where(np.prod(np.sign(x[:, :3]), axis=1) > 0, "odd", "even")), "y"
    wide = random.normal(size=(300, 200))
    yield "wide", frame(wide, (wide[:, :5].sum(1) > 0).astype(int)), "y"
    centres = random.normal(size=(12, 8)) * 1.5
    kinds = random.choice(12, size=1200, p=np.r_[0.35, np.full(11, 0.65 / 11)])
    yield "twelve_uneven_classes", frame(centres[kinds] + random.normal(size=(1200, 8)), kinds), "y"
    y = np.exp(x[:, 0] + 0.5 * x[:, 1]) + 0.1 * random.normal(size=600)
    yield "skewed_target", frame(x, y), "y"
    few = random.normal(size=(60, 4))
    yield "sixty_rows", frame(few, (few[:, 0] + 0.3 * random.normal(size=60) > 0).astype(int)), "y"
    counts = random.poisson(np.exp(1.5 + 0.6 * x[:, 0]))
    yield "counts", frame(x, counts), "y"
    # Nothing to give: a linear rule on inputs of one scale, which any network learns in a few steps.
    plain = random.normal(size=(2000, 4))
    yield "planted_nothing", frame(plain, 3.0 * plain[:, 0] - 2.0 * plain[:, 1] + 0.2 * random.normal(size=2000)), "y"
    # Something to lose: few rows whose values are far out now and then, so that a batch says little about the next.
    heavy = random.standard_t(1.5, size=(240, 6))
    noise = 0.5 * random.normal(size=240)
    yield "heavy_tails", frame(heavy, np.tanh(heavy[:, 0]) + np.tanh(heavy[:, 1]) + noise), "y"
    # Something to lose: eight regions with sharp borders, which the noise of batch statistics blurs.
    cube = random.normal(size=(3000, 3))
    yield "planted_hurts", frame(cube, np.where(np.prod(np.sign(cube), axis=1) > 0, "odd", "even")), "y"


def network(inputs: int, outputs: int, activation: str, *, normalized: bool) -> nn.Module:
    """Return three hidden layers of 100 units with torch's own layers; all weights start as the study's do."""
    layers: list[nn.Module] = []
    sizes = [inputs, 100, 100, 100]

    def linear(a: int, b: int) -> nn.Linear:
        made = nn.Linear(a, b)
        nn.init.normal_(made.weight, std=(2.0 / a) ** 0.5 if activation == "relu" else 0.1)
        nn.init.zeros_(made.bias)
        return made

    for a, b in pairwise(sizes):
        layers += [
            linear(a, b),
            *([nn.BatchNorm1d(b)] if normalized else []),
            nn.ReLU() if activation == "relu" else nn.Sigmoid(),
        ]
    return nn.Sequential(*layers, linear(100, outputs))


@dataclass
class Run:
    """Scores of one run at the steps of `LOOKS`, on validation and on test rows."""

    validation: list[float]
    test: list[float]


def score(data: Dataset, output: torch.Tensor, y: Any) -> float:
    """Return the score by scikit-learn's functions; minus infinity where the output is not finite."""
    if not (output.abs() < 1e6).all():  # diverged, as NaN has
        return -np.inf
    if data.task == "regression":
        return float(r2_score(y, output[:, 0].numpy()))
    if data.metric == "auc":
        return float(roc_auc_score(y, (output[:, 1] - output[:, 0]).numpy()))
    if data.metric == "balanced-accuracy":
        return float(balanced_accuracy_score(y, output.argmax(1).numpy()))
    return float((output.argmax(1).numpy() == y).mean())


def trained(data: Dataset, activation: str, rate: float, seed: int, *, normalized: bool) -> Run:
    """Train one network by plain SGD in batches of 60 and return its scores."""
    strata = data.y if data.task == "classification" else None
    rows = np.arange(len(data.x))
    train, rest = train_test_split(rows, test_size=0.4, random_state=seed, stratify=strata)
    held, test = train_test_split(
        rest, test_size=0.5, random_state=seed, stratify=None if strata is None else strata[rest]
    )
    x = data.x.reshape(len(data.x), -1).astype(np.float64)
    spread = x[train].std(0)
    inputs = torch.from_numpy(((x - x[train].mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32))
    y: Any = data.y
    if data.task == "regression":
        y = ((y - y[train].mean()) / y[train].std()).astype(np.float32)
    torch.manual_seed(seed)
    model = network(inputs.shape[1], data.outputs, activation, normalized=normalized)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    loss = nn.MSELoss() if data.task == "regression" else nn.CrossEntropyLoss()
    random, made, size = np.random.default_rng(seed), Run([], []), min(60, len(train))
    order: Any = np.array([], dtype=int)
    for step in range(STEPS[activation] + 1):
        if step in LOOKS:
            with torch.no_grad():
                model.eval()
                made.validation.append(score(data, model(inputs[held]), y[held]))
                made.test.append(score(data, model(inputs[test]), y[test]))
                model.train()
        if len(order) < size:
            order = random.permutation(train)
        batch, order = order[:size], order[size:]
        optimizer.zero_grad()
        target = torch.from_numpy(np.asarray(y[batch]))
        output = model(inputs[batch])
        loss(output[:, 0] if data.task == "regression" else output, target).backward()
        optimizer.step()
    return made


def arrival(made: Run, goal: float, part: str) -> float:
    """Return the first step at the goal of a run that ends there too."""
    scores = getattr(made, part)
    if scores[-1] < goal:
        return np.inf
    return LOOKS[next(i for i, s in enumerate(scores) if s >= goal)]


def independent(data: Dataset, activation: str) -> str:
    """Return what the check finds in one network: steps without and with, and the best test scores."""
    torch.set_num_threads(1)
    runs = {
        (normalized, rate): [trained(data, activation, rate, s, normalized=normalized) for s in range(100, 100 + SEEDS)]
        for normalized in (False, True)
        for rate in RATES
    }
    guess = {"regression": 0.0}.get(data.task, 0.5 if data.metric == "auc" else 1 / max(data.outputs, 1))
    if data.metric == "accuracy":
        guess = np.bincount(data.y).max() / len(data.y)
    best = [
        max((max(zip(r[s].validation, r[s].test, strict=True)) for r in runs.values()), key=lambda p: p[0])
        for s in range(SEEDS)
    ]
    goals = {part: [guess + SHARE * (b[i] - guess) for b in best] for i, part in enumerate(("validation", "test"))}

    def late(normalized: bool, rate: float) -> float:
        steps = [arrival(r, g, "validation") for r, g in zip(runs[normalized, rate], goals["validation"], strict=True)]
        return float(np.mean(np.log(np.clip(steps, 1, 2 * STEPS[activation]))))

    words: list[str] = []
    for normalized in (False, True):
        rate = min(RATES, key=lambda r: late(normalized, r))
        steps = [arrival(r, g, "test") for r, g in zip(runs[normalized, rate], goals["test"], strict=True)]
        top = max(RATES, key=lambda r: statistics.median(max(x.validation) for x in runs[normalized, r]))
        ends = [max(zip(r.validation, r.test, strict=True))[1] for r in runs[normalized, top]]
        counted = ", ".join("never" if np.isinf(s) else f"{s:.0f}" for s in steps)
        words.append(
            f"{'with' if normalized else 'without'}: steps {counted} (rate {rate:g}), "
            f"best test score {statistics.median(ends):.3f} (rate {top:g})"
        )
    return f"{activation}: " + "; ".join(words)


def report(name: str, data: Dataset, settings: Settings, folder: Path, jobs: int | None) -> None:
    """Print what the study answers, its verdicts, and what the check finds."""
    print(f"\n## {name}: {len(data.x):,} rows, {data.x[0].size} features, {data.task}", flush=True)
    claims = chosen_claims(CLAIMS)
    try:
        results = run(data, settings=settings, claims=claims, out=folder / name, jobs=jobs, overwrite=True).reproducible
    except BatchNormError as error:
        print(f"refused: {error}", flush=True)
        return
    for sentence in results["answer"]:
        print(f"- {sentence}")
    for claim in results["claims"]:
        parts = "; ".join(f"{e['part']}: {e['text']} {e['verdict']}" for e in claim["effects"] if e["decides"])
        print(f"  {claim['id']}: {claim['verdict']} ({parts})")
    found = results["data"]
    models = ", ".join(f"{k} {v:.3f}" for k, v in found["references"].items())
    print(f"  {found['score']}: guessing {found['guess']:.3f}, {models}, networks {found['reach']:.3f}")
    scored = Dataset(data.name, data.source, data.x, data.y, data.task, data.classes, metric=found["metric"])
    for activation in STEPS:
        print(f"  check, {independent(scored, activation)}", flush=True)


def main() -> None:
    """Run the study and the check on every table that is named, or on all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE=TARGET")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp())
    settings = Settings(quick=options.quick)
    for named in options.tables:
        path, _, target = named.rpartition("=")
        try:
            report(Path(path).stem, table(Path(path), target), settings, folder, options.jobs)
        except BatchNormError as error:
            print(f"\n## {Path(path).stem}\nrefused: {error}", flush=True)
    if not options.tables:
        for name, frame, target in (*shipped(), *generated()):
            report(name, from_frame(frame, target, name=name), settings, folder, options.jobs)
        report("placements", table(ROOT / "examples" / "placements.csv", "placed"), settings, folder, options.jobs)


if __name__ == "__main__":
    main()
