"""What is worth knowing about a table beside its columns: leaks, outliers, near-duplicates."""

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchnorm.study.data import Task
from batchnorm.study.tables.columns import Cells
from batchnorm.study.tables.layout import printable
from batchnorm.study.tables.recipe import Column

LEAK = 0.99  # of the way from guessing to a perfect prediction, on rows that were not fitted to
LEAK_ROWS = 5000
WIDE = 100  # columns
COPIES = 0.05  # the share of rows from which copies are worth a word
FAR = 10.0  # robust standard deviations
NINE_TENTHS = 3.29  # standard deviations that the middle nine tenths of a normal distribution spread
CODES = (-9, -99, -999, -9999, -99999, 99, 999, 9999, 99999, 999999)  # that stand for missing in many tables
MOST_NAMED = 5
MOST_SPELLINGS = 2000


def leaks(columns: Sequence[Column], x: NDArray[np.float64], y: NDArray[Any], task: Task) -> list[str]:
    """Return warnings of columns each of which alone predicts the target nearly perfectly.

    A small decision tree is fitted to each half of the rows (of 5,000 at most) and scored on the other half.
    """
    most = LEAK_ROWS if len(columns) <= WIDE else LEAK_ROWS // 5
    rows = np.random.default_rng(0).permutation(len(y))[:most]
    ranks = _ranks(y[rows]) if task == "regression" else y[rows]
    skills: dict[str, float] = {}
    start = 0
    for column in columns:
        block = [_ranks(x[rows, i]) for i in range(start, start + column.width)]
        start += column.width
        if not block or (len(block) == 1 and not _may_lead(block[0], ranks, task)):
            continue
        skill = _skill(np.stack(block, axis=1), ranks, task)
        if skill > LEAK:
            skills[column.name] = skill
    perfect = [name for name, skill in skills.items() if skill == 1.0]
    nearly = [f"{name} ({np.floor(1000 * skill) / 10:g} %)" for name, skill in skills.items() if skill < 1.0]
    drop = " ".join(f"--drop {shlex.quote(name)}" for name in perfect[:MOST_NAMED])
    lines: list[str] = []
    if perfect:
        lines.append(
            f"{listed(perfect)} alone predicts the target perfectly: if it is known only together with the target, "
            f"no score means anything, so leave it out ({drop})"
        )
    if nearly:
        lines.append(f"alone predicts the target nearly perfectly: {listed(nearly)}; is it known before the target is?")
    return lines


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value: trees see nothing else, and read their inputs as float32."""
    return np.unique(values, return_inverse=True)[1].astype(np.float64)


def _may_lead(values: NDArray[np.float64], y: NDArray[Any], task: Task) -> bool:
    """Return whether one column may predict the target nearly perfectly: from y in the order of the column.

    Where it does, classes come in few runs (a wrong row adds two at most), and values differ little from the next.
    """
    ordered = y[np.lexsort((y, values))]
    steps = np.diff(ordered)
    if task == "classification":
        return int(np.count_nonzero(steps)) <= len(np.unique(y)) + 2 + 2 * (1 - LEAK) * len(y)
    return float(np.square(steps).mean()) < 0.2 * float(ordered.var())


def _skill(block: NDArray[np.float64], y: NDArray[Any], task: Task) -> float:
    """Return how far one column brings a prediction from guessing (0) to perfect (1)."""
    even, odd = slice(None, None, 2), slice(1, None, 2)
    trees = [_tree_skill(block, y, task, halves) for halves in ((even, odd), (odd, even))]
    if task == "classification" or block.shape[1] > 1 or np.ptp(block) == 0 or np.ptp(y) == 0:
        return min(trees)
    return max(min(trees), float(np.corrcoef(block[:, 0], y)[0, 1] ** 2))  # few rows show a smooth rise too


def _tree_skill(block: NDArray[np.float64], y: NDArray[Any], task: Task, halves: tuple[slice, slice]) -> float:
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    fit, check = halves
    if task == "classification":
        classes, counts = np.unique(y[fit], return_counts=True)
        tree = DecisionTreeClassifier(max_leaf_nodes=len(classes) + 2, random_state=0).fit(block[fit], y[fit])
        wrong, guess = (tree.predict(block[check]) != y[check]).mean(), (classes[counts.argmax()] != y[check]).mean()
    else:
        tree = DecisionTreeRegressor(random_state=0).fit(block[fit], y[fit])
        wrong = np.square(tree.predict(block[check]) - y[check]).mean()
        guess = np.square(y[fit].mean() - y[check]).mean()
    return float(1 - wrong / guess) if guess > 0 else 0.0


def outliers(columns: Sequence[tuple[Cells, Column]]) -> list[str]:
    """Return a line that names the columns with values far from the rest, or with codes for missing, if there are any.

    Far is more than ten robust standard deviations from the median: 1.4826 times the median absolute deviation, or what
    the middle nine tenths of the values spread, whichever is more.
    """
    said: list[str] = []
    for cells, column in columns:
        if column.kind != "number":
            continue
        values = cells.numbers[~np.isnan(cells.numbers)]
        median = np.median(values)
        away = np.abs(values - median)
        deviation = 1.4826 * float(np.median(away))
        low, high = np.quantile(values, [0.05, 0.95])
        far = away > FAR * max(deviation, float(high - low) / NINE_TENTHS)
        codes = np.isin(values, CODES) & (away > FAR * deviation)
        if deviation > 0 and codes.sum() > 1:
            said.append(f"{column.name} ({codes.sum()} of {values[codes][0]:g}: does that stand for missing?)")
        elif deviation > 0 and far.any():
            said.append(f"{column.name} ({far.sum()}, the farthest {values[away.argmax()]:.6g})")
    return [f"values more than {FAR:.0f} robust standard deviations from the median: {listed(said)}"] if said else []


def alike(cells: Cells) -> list[str]:
    """Return a line that names texts that differ only in capitals, spaces, points or hyphens, if there are any."""
    groups: dict[str, list[str]] = defaultdict(list)
    for text in sorted(cells.counts)[:MOST_SPELLINGS]:
        if re.search(r"[^\W\d_]", text) and text not in cells.missing:
            groups[re.sub(r"[\s.]|(?<=\w)[-_](?=\w)", "", text.casefold())].append(printable(text, 20))
    said = [" and ".join(f'"{text}"' for text in group) for group in groups.values() if len(group) > 1]
    return [f"{cells.name}: are these one category each? {listed(said)}"] if said else []


def repeated(columns: Sequence[Cells], target: str) -> list[str]:
    """Return lines that name columns with the same cells, the target aside, and how many rows come more than once."""
    hashes = {cells.name: pd.util.hash_pandas_object(cells.values, index=False).to_numpy() for cells in columns}
    same: dict[bytes, list[str]] = defaultdict(list)
    for name, hashed in hashes.items():
        same[hashed.tobytes()] += [name] if name != target else []
    said = [" and ".join(names) for names in same.values() if len(names) > 1]
    lines = [f"columns with the same cells: {listed(said)}"] if said else []
    rows = pd.DataFrame(hashes).duplicated() if len(hashes) > 1 else np.zeros(1, dtype=bool)
    if rows.mean() > COPIES:
        lines.append(f"copies of other rows: {rows.sum():,}; the same row may be trained on and tested on")
    return lines


def listed(names: Sequence[str]) -> str:
    """Return names with commas, at most five of them.

    >>> listed(list("abcdefgh"))
    'a, b, c, d, e and 3 more'
    """
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
