"""Generated training scripts under test: tables with the world's traits, and how a script is run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchnorm.study.data import Dataset
from batchnorm.study.script import Setting

ROWS = 240
RULES = "E,F,W,I,B,C4,N,SIM,UP,PLE,S102,S307"  # of ruff, for scripts
SETTING = Setting(
    "before", "batch", "relu", (100, 100, 100), "sgd", 0.32, 60, 170, "accuracy",
    ("Learning rate 0.32: the best of 9 tried, from 0.0032 to 32.",),
)  # fmt: skip


def names_of(source: str, path: Path) -> dict[str, Any]:
    """Run a script up to its main part, and return its names."""
    path.write_text(source, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "script", "__file__": str(path)}
    exec(compile(source, str(path), "exec"), names)
    return names


def assert_same_data(source: str, path: Path, data: Dataset) -> None:
    x, y = names_of(source, path)["load"]()
    assert (x.dtype, y.dtype) == (data.x.dtype, data.y.dtype)
    np.testing.assert_array_equal(x, data.x, strict=True)
    np.testing.assert_array_equal(y, data.y, strict=True)


def finish(command: list[str], folder: Path | None = None, **environment: str) -> str:
    """Run a program to its end, in a folder, and return what it prints."""
    settings = os.environ | {"OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def assert_clean(folder: Path) -> None:
    """Assert that a linter finds nothing in the scripts of a folder."""
    options = ["--isolated", "--no-cache", "--line-length", "120", "--select", RULES, "--output-format", "concise"]
    finish([sys.executable, "-m", "ruff", "check", *options], folder=folder)


def last_score(printed: str, name: str) -> float:
    *_, last = printed.strip().splitlines()
    assert last.startswith(f"{name} on ")
    assert " test rows: " in last
    return float(last.rsplit(" ", 1)[1])


def messy(seed: int) -> dict[str, Any]:
    """Return the columns of a table with one trait of the world's tables each."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 3, ROWS)
    size = random.normal(size=ROWS) + 3 * kind
    when = pd.Timestamp("2021-03-04 05:06") + pd.to_timedelta(random.integers(0, 9000, ROWS), "h")
    columns: dict[str, Any] = {
        "size": size.round(3),
        "weight, kg": [f"{1000 * value:,.1f}" for value in random.normal(5, 2, ROWS)],
        "share %": [f"{value:.2f} %" for value in random.normal(40, 9, ROWS)],
        "preis €": [f"€{value:.2f}" for value in random.normal(40, 9, ROWS)],
        "komma": [f"{value:.2f}".replace(".", ",") for value in random.normal(40, 9, ROWS)],
        "year'd": random.integers(1990, 2020, ROWS),
        "colour": random.choice(['red"', "g'reen", "blau, hell", "", "\\n", "#"], ROWS),
        "town": random.choice([f"town {i}" for i in range(60)], ROWS, p=np.arange(1, 61) / 1830),
        "on": when.strftime("%Y-%m-%d %H:%M:%S"),
        "at": when.strftime("%H:%M"),
        "yes": random.choice(["yes", "no"], ROWS),
        "same": "x",
        "row": np.arange(ROWS),
    }
    frame = pd.DataFrame(columns).astype(object)
    for name in ("size", "weight, kg", "colour", "on", "at", "year'd", "yes"):
        frame.loc[random.choice(ROWS, 6, replace=False), name] = random.choice(["", "?", "n/a"])
    target = np.array(["a kind", "b's", 'c"'])[kind].astype(object)
    target[random.choice(ROWS, 3, replace=False)] = "rare"
    target[:4] = ""
    return {name: frame[name] for name in frame} | {
        "kind": target,
        "value": [f"{v:.2f}" if v > -2 else "" for v in size],
    }


def typed() -> pd.DataFrame:
    random = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "größe": random.normal(size=ROWS),
            "count": random.integers(0, 90, ROWS),
            "narrow": random.normal(size=ROWS).astype(np.float32),
            "sure": random.choice([True, False], ROWS),
            "colour": random.choice(["rot", "grün", "blau"], ROWS),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(random.integers(0, 500, ROWS), "D"),
        }
    )
    frame.loc[::7, "größe"] = np.nan
    frame.loc[3:5, "colour"] = None
    frame.loc[3:9, "when"] = pd.NaT
    return frame.assign(kind=np.where(frame["count"] > 40, "many", "few"))


def suited(data: Dataset) -> str:
    return "r2" if data.task == "regression" else "accuracy"
