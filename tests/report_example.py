"""Results as a study leaves them in results.json, for the tests of the report: a good case, a hard one, a bare one."""

import math
from typing import Any

HOSTILE = "<script>alert(1)</script>\"'&$x$ \x01{{ 7 * 7 }}"
STEPS = [1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 86, 115, 154, 205, 274, 365, 487, 650, 866, 1000]
SOURCES = {
    "speed": "Ioffe & Szegedy 2015, section 4.2",
    "learning-rate": "Ioffe & Szegedy 2015, section 3.3; Bjorck et al. 2018, section 3",
    "placement": "Ioffe & Szegedy 2015, section 3.2",
    "alternatives": "Ba, Kiros & Hinton 2016; Wu & He 2018; Zhu et al. 2025",
}


def curve(middle: float, low: float, high: float, *, width: float = 0.16) -> dict[str, Any]:
    """Return a score that rises from `low` to `high` around step `middle`."""
    rise = [1 / (1 + math.exp(-(math.log10(step) - math.log10(middle)) / width)) for step in STEPS]
    return {"steps": STEPS, "median": [round(low + (high - low) * share, 4) for share in rise]}


def effect(text: str, value: float | None, verdict: str, **changed: Any) -> dict[str, Any]:
    """Return an effect of six seeds, exactly known unless said otherwise."""
    around = (None, None) if value is None else (round(value * 0.7, 3), round(value * 1.3, 3))
    samples = [[s, s] for s in (0.7, 0.8, 0.95, 1.05, 1.2, 1.3)]
    plain: dict[str, Any] = {
        "name": "steps to the goal, without ÷ with", "part": "", "unit": "×", "side": "above", "threshold": 1.5,
        "decides": True, "value": value, "bound": "unknown" if value is None else "exact", "low": around[0],
        "high": around[1], "text": text, "samples": [[round(a * (value or 1), 3), round(b * (value or 1), 3)]
        for a, b in samples], "obstacle": "", "verdict": verdict,
    }  # fmt: skip
    return plain | changed


def claim(name: str, title: str, verdict: str, *effects: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """Return a claim with its effects."""
    plain: dict[str, Any] = {
        "id": name, "title": title, "statement": f"{title}: so it is claimed.", "check": False, "verdict": verdict,
        "source": SOURCES.get(name, "Santurkar et al. 2018, section 3.1"),
        "method": "The same network with and without batch normalization, the same weights at the start and the same "
        "order of the data, each at the learning rate that is best on validation data.",
        "caption": "Test score while training, each side at its best learning rate: median, and range over seeds.",
        "summary": "The summary says it in one plain sentence with one number.", "effects": list(effects),
        "notes": [], "skipped": "", "rerun": f"batchnorm study --claims {name}", "numbers": {},
    }  # fmt: skip
    return plain | changed


NEVER = effect(
    "at least 42× (30× or more)", 42.0, "holds", part="sigmoid network", bound="at least", low=30.0, high=None,
    samples=[[30.0, None], [41.7, None], [42.0, 42.0], [0.0, None], [55.0, None], [0.0, 61.0]],
)  # fmt: skip
OPEN = effect(
    "unknown", None, "undecided", part="sigmoid network", samples=[[0.0, None]] * 6,
    obstacle="the best learning rate lies at the edge of the grid, also after it was extended",
)  # fmt: skip
UNIT = {"unit": " decades", "threshold": 0.5, "name": "range of usable learning rates, with − without"}
POINTS = {"unit": " points", "threshold": 0.5, "name": "final test accuracy, after − before", "side": "below"}


def claims() -> list[dict[str, Any]]:
    """Return claims with every verdict, parts, bounds, obstacles and gaps."""
    relu = effect("4.6× (3.1 to 6.3)", 4.6, "holds", part="ReLU network", low=3.1, high=6.3)
    seconds = effect("3.9× (2.6 to 5.4)", 3.9, "holds", name="seconds to the goal, without ÷ with", decides=False)
    wider = effect("1.5 decades (1 to 2)", 1.5, "holds", part="ReLU network", low=1.0, high=2.0, **UNIT)
    after = effect("−0.4 points (−1.1 to 0.2)", -0.4, "holds", part="ReLU network", low=-1.1, high=0.2, **POINTS)
    before = effect(
        "2.1 points (1.4 to 2.9)", 2.1, "does not hold", part="sigmoid network", low=1.4, high=2.9, **POINTS
    )
    near = effect("1.3× (0.7 to 1.6)", 1.3, "undecided", low=0.7, high=1.6, name="steps, layer norm ÷ batch norm")
    worse = effect("0.2× (0.1× or less)", 0.2, "does not hold", bound="at most", low=None, high=0.25)
    few = effect("1.9×", 1.9, "undecided", low=None, high=None, samples=[[1.7, 1.7], [1.9, 1.9], [2.4, 2.4]])
    right = effect("2·10⁻⁷", 2e-7, "holds", unit="", threshold=1e-5, side="below", name="largest difference")
    off = effect("0.4", 0.4, "does not hold", unit="", threshold=1e-3, side="below", name="distance to the identity")
    return [
        claim("speed", "Training is faster", "holds", relu, NEVER, seconds, notes=[
            "Best learning rates: 0.32 without, 1 with.", f"Measured on {HOSTILE}."],
            summary="The ReLU network reaches accuracy 0.95 in 4.6 times fewer steps with batch normalization."),
        claim("learning-rate", "Higher learning rates work", "undecided", wider, OPEN | UNIT | {"threshold": 0.5},
              summary="Learning rates over 1.5 more decades work with batch normalization than without."),
        claim("placement", "Before the activation", "mixed", after, before,
              summary="For ReLU it makes 0.4 points of accuracy, for sigmoid 2.1 points the other way."),
        claim("alternatives", "Nothing else does as well", "undecided", near,
              summary="Layer normalization needs 1.3 times as many steps as batch normalization."),
        claim("landscape", "The loss is smoother", "does not hold", worse, notes=[f"Column {HOSTILE} stays."],
              summary="Gradients predict the loss over at most a fifth of the distance."),
        claim("batch-size", "The noise names the batch size", "undecided", few,
              summary="The advised size takes 1.9 times as long as the best one."),
        claim("own", "Not on your model", "not measured", skipped="needs the base network", summary="", caption=""),
        claim("train-predict", "Training and prediction agree", "passes", right, check=True,
              summary="A row alone and in a batch differ by 2·10⁻⁷ in prediction."),
        claim("scale-shift", "γ and β undo it", "fails", off, check=True,
              summary="Adam leaves the identity by 0.4."),
    ]  # fmt: skip


def explore(goal: float, guess: float, high: float) -> dict[str, Any]:
    """Return the curves at every learning rate: better with batch normalization, none without at high rates."""
    rates = [0.01, 0.032, 0.1, 0.32, 1.0, 3.2, 10.0]
    none = {f"{r:g}": curve(30 / r**0.6, guess, high if r < 1 else guess + 0.1) for r in rates if r < 10}
    before = {f"{r:g}": curve(9 / r**0.6, guess, high + 0.01) for r in rates}
    none["3.2"] = {"steps": STEPS, "median": [guess, *[None] * (len(STEPS) - 1)]}
    slow = {f"{r:g}": curve(400 / r**0.5, guess, high - 0.1) for r in rates}
    sides = {"none": none, "before": before}
    both = {"rates": rates, "goal": goal, "guess": guess}
    chosen = {
        side: curves[rate] | {"low": [v - 0.03 for v in curves[rate]["median"]], "high": curves[rate]["median"]}
        for side, curves, rate in (("none", none, "0.32"), ("before", before, "1"))
    }
    best = {"none": 0.32, "before": 1.0}
    return {
        "relu": {"name": "ReLU network", "sides": sides, "best": best, "chosen": chosen, **both},
        "sigmoid": {"sides": {**sides, "none": slow}, **both},
    }


def results() -> dict[str, Any]:
    """Return the results of a classification with two networks and names that want to break the page."""
    return {
        "version": "0.1.0",
        "command": f"batchnorm study table.csv --target '{HOSTILE}'",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "platform": "linux x86_64"},
        "settings": {
            "seeds": 12, "steps": 1000, "batch_size": 60, "quick": True, "model": None, "hidden": [100, 100, 100],
            "optimizer": "sgd", "grid": {"low": 0.1},
        },
        "data": {
            "name": HOSTILE, "source": f"1,797 rows of {HOSTILE}.csv", "rows": 1797, "features": 64,
            "task": "classification", "classes": [HOSTILE, *map(str, range(40))], "scaling": "standard",
            "notes": [f"Column {HOSTILE} was dropped: it is constant."], "metric": "accuracy", "score": "accuracy",
            "profile": [
                {"column": HOSTILE, "kind": "number", "note": "3 values “?” read as missing"},
                {"column": "city", "kind": "category (12)", "note": ""},
                {"column": "id", "kind": "dropped", "note": "an identifier: every row has a value of its own"},
            ],
            "guess": 0.102, "references": {"linear model": 0.961, "forest": 0.972, "nearest neighbours": None},
            "reach": 0.988, "goals": {"near": 0.9, "goal": 0.95},
        },
        "answer": [
            "Yes: on the digits, batch normalization takes a ReLU network to accuracy 0.95 in 4.6 times fewer steps "
            "(3.1 to 6.3) and 3.9 times fewer seconds, and the final accuracy is the same: 0.976 with, 0.974 without.",
            "For the sigmoid network of the paper the gain is at least 42 times.",
            f"Put it before the activation of {HOSTILE}, with SGD at a learning rate of 1 and batches of 60.",
        ],
        "recommended": {"placement": "before", "activation": "relu", "rate": 1.0},
        "scripts": {
            "PyTorch": f'"""Train on {HOSTILE}."""\nimport torch\nfrom torch import nn\n\nmodel = nn.Sequential(\n'
            "    nn.Linear(64, 100), BatchNorm1d(100), nn.ReLU(),\n    nn.Linear(100, 10),\n)  # <b>\n",
            "Keras": "import keras\n",
        },
        "multiplicity": "Of 9 claims, chance alone decides at most 0.45 wrongly on average.",
        "claims": claims(),
        "explore": explore(0.95, 0.102, 0.975),
        "explore_sizes": {
            "sizes": [8, 15, 30, 60, 120, 240, 480], "steps": [None, 160.0, 92.0, 74.0, 52.0, 41.0, 33.0],
            "seconds": [None, 0.071, 0.043, 0.036, 0.031, 0.038, 0.045],
        },
        "timings": {"seconds": 87.24, "step_seconds": {"none": 0.0012, "before": 0.0014}},
    }  # fmt: skip


def regression() -> dict[str, Any]:
    """Return the results of a regression in which neither side reaches the goal and some runs diverge."""
    missed = {"0.01": curve(30, -13.0, 0.40), "0.1": {"steps": STEPS, "median": [-2.0, *[None] * (len(STEPS) - 1)]}}
    sides = {"none": missed, "before": {"0.01": curve(20, -1.2, 0.38), "0.1": curve(8, -0.2, 0.41)}}
    own = {"rates": [0.01, 0.1], "sides": sides, "goal": 0.45, "guess": 0.0}
    whole = results()
    data = whole["data"] | {
        "task": "regression", "classes": [], "score": "R²", "metric": "r2", "guess": 0.0, "goals": {"goal": 0.45},
        "references": {}, "profile": [], "notes": [],
    }  # fmt: skip
    none = effect("unknown", None, "undecided", samples=[[0.0, None]] * 6)
    return whole | {
        "data": data, "explore": {"own": own}, "explore_sizes": None, "scripts": {}, "recommended": None,
        "claims": [claim("speed", "Training is faster", "undecided", none, summary="No run reached R² 0.45.")],
        "answer": ["Undecided: no run reached the goal.", "R² is 0.40 without and 0.41 with.", "Train longer."],
    }  # fmt: skip


def bare() -> dict[str, Any]:
    """Return results with everything left out that can be."""
    whole = results()
    data = {k: whole["data"][k] for k in ("name", "source", "rows", "features", "task", "score")}
    return {
        **{k: whole[k] for k in ("version", "command", "versions", "settings", "answer")},
        "data": data, "claims": [], "scripts": {}, "recommended": None,
    }  # fmt: skip
