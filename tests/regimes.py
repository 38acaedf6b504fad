"""The cases every implementation must pass: named regimes, combined so that every two of them meet in some case."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchnorm import reference
from tolerance import working

EPSILON = 1e-5

LAYOUTS: dict[str, tuple[tuple[int, ...], int | tuple[int, ...]]] = {
    "NC": ((12, 5), 1),
    "N=2": ((2, 7), 1),
    "N=3": ((3, 4), -1),
    "C=1": ((9, 1), 1),
    "NCL": ((4, 3, 6), 1),
    "NLC": ((4, 6, 3), -1),
    "NCHW": ((3, 4, 5, 2), 1),
    "NHWC": ((3, 5, 2, 4), -1),
    "NCDHW": ((2, 3, 2, 3, 2), 1),
    "NDHWC": ((2, 2, 3, 2, 3), -1),
    "primes": ((7, 11, 13), 1),
    "channels-first": ((5, 8, 3), 0),
    "axes-1-3": ((5, 3, 4, 2), (1, -1)),
    "axes-2-0": ((2, 6, 3), (2, 0)),
}
INFERENCE_LAYOUTS: dict[str, tuple[tuple[int, ...], int | tuple[int, ...]]] = {
    "N=1": ((1, 5), 1),
    "empty": ((0, 3, 4), 1),
    "empty-NLC": ((4, 0, 3), -1),
}
VALUES = ("standard", "mean-1e2", "mean-1e4", "mean-1e6", "tiny-variance", "constant-channel", "outlier")
DTYPES = ("float32", "float64", "float16", "bfloat16")
OPTIONS: dict[str, Sequence[Any]] = {
    "memory": ("contiguous", "strided", "channels-last"),
    "parameters": ("scale+shift", "scale", "shift", "none"),
    "estimator": ("unbiased", "biased"),
    "momentum": (0.1, 0.5, 1.0, 0.0),
}


@dataclass(frozen=True)
class Case:
    """One combination, by the names of its regimes."""

    layout: str
    values: str
    dtype: str
    memory: str = "contiguous"
    parameters: str = "none"
    estimator: str = "unbiased"
    momentum: float = 0.1

    @property
    def axis(self) -> int | tuple[int, ...]:
        return (LAYOUTS | INFERENCE_LAYOUTS)[self.layout][1]

    def __str__(self) -> str:
        return "_".join(map(str, vars(self).values()))


class Data(NamedTuple):
    """x and dy hold values of the case's dtype, in float32 where NumPy lacks it; the rest has the parameters' shape."""

    x: NDArray[Any]
    dy: NDArray[Any]
    gamma: NDArray[np.float64] | None
    beta: NDArray[np.float64] | None
    running_mean: NDArray[np.float64]
    running_var: NDArray[np.float64]


def possible(case: Mapping[str, Any]) -> bool:
    return not (case["values"] == "mean-1e6" and case["dtype"] == "float16")  # beyond what float16 holds


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return combinations in which every possible pair of values occurs, found greedily."""
    names = list(factors)
    pairs = {((a, u), (b, v)) for a, b in combinations(names, 2) for u, v in product(factors[a], factors[b])} - {
        (("values", "mean-1e6"), ("dtype", "float16"))
    }
    chosen: list[dict[str, Any]] = []
    for first in product(*(factors[name] for name in names[:2])):
        case = dict(zip(names[:2], first, strict=True))
        for name in names[2:]:
            gains = {
                value: sum(((b, case[b]), (name, value)) in pairs for b in case)
                for value in factors[name]
                if possible({"dtype": None, **case, name: value})
            }
            turn = len(chosen) % len(factors[name])  # ties go round, so that no value is favoured
            case[name] = max([*factors[name][turn:], *factors[name][:turn]], key=lambda v: gains.get(v, -1))
        pairs -= set(combinations(case.items(), 2))
        chosen.append(case)
    return chosen


CASES = [Case(**c) for c in pairwise({"layout": list(LAYOUTS), "values": VALUES, "dtype": DTYPES, **OPTIONS})]
INFERENCE_CASES = [Case(layout, "standard", dtype) for layout, dtype in product(INFERENCE_LAYOUTS, DTYPES)]


def rounded(array: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Return the values rounded to `dtype`; bfloat16 has 8 significant bits and is held in float32."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(mantissa * 2.0**8) / 2.0**8, exponent).astype(np.float32)


def laid_out(array: NDArray[Any], memory: str) -> NDArray[Any]:
    """Return an equal array that lies otherwise in memory."""
    if memory == "strided":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if memory == "channels-last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    return array


def parameter_shape(shape: tuple[int, ...], axis: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return (C,) for one axis, the rank of x with 1 on reduced axes for several."""
    if isinstance(axis, int):
        return (shape[axis],)
    kept = {a % len(shape) for a in axis}
    return tuple(n if i in kept else 1 for i, n in enumerate(shape))


def _raw(values: str, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[NDArray[np.float64], float, float]:
    """Return x with the mean and standard deviation it was drawn with."""
    mean = {"mean-1e2": 1e2, "mean-1e4": 1e4, "mean-1e6": 1e6, "constant-channel": 3.3}.get(values, 0.0)
    std = {"tiny-variance": 2.0**-10, "constant-channel": 0.0}.get(values, 1.0)
    x = mean + std * rng.standard_normal(shape)
    if values == "outlier":
        x.flat[0] = 1000.0
    return x, mean, std or 1.0


@cache
def data(case: Case) -> Data:
    """Return the arrays of a case, the same at every call."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    shape, axis = (LAYOUTS | INFERENCE_LAYOUTS)[case.layout]
    features, precise = parameter_shape(shape, axis), working(case.dtype)
    x, mean, std = _raw(case.values, shape, rng)
    gamma, beta = rng.uniform(0.5, 2.0, features) * rng.choice((-1.0, 1.0), features), rng.standard_normal(features)
    running_mean = mean + std * rng.standard_normal(features)
    running_var = std**2 * rng.uniform(0.5, 2.0, features)
    return Data(
        laid_out(rounded(x, case.dtype), case.memory),
        rounded(rng.standard_normal(shape), case.dtype),
        rounded(gamma, case.dtype).astype(np.float64) if "scale" in case.parameters else None,
        rounded(beta, case.dtype).astype(np.float64) if "shift" in case.parameters else None,
        rounded(running_mean, precise).astype(np.float64),
        rounded(running_var, precise).astype(np.float64),
    )


def forward(case: Case, *, training: bool) -> reference.Forward:
    """Return what the reference makes of a case."""
    d = data(case)
    if training:
        return reference.train(d.x, d.gamma, d.beta, eps=EPSILON, axis=case.axis)
    return reference.infer(d.x, d.running_mean, d.running_var, d.gamma, d.beta, eps=EPSILON, axis=case.axis)
