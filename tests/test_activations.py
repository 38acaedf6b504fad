"""The activations in every array namespace that has what they need: values, derivatives, extremes."""

import math

import numpy as np
import pytest

from batchnorm.activations import ACTIVATIONS, LEAKY_SLOPE, activated, check_activation
from batchnorm.errors import ArgumentError
from namespaces import NAMESPACES, Namespace, to_numpy
from tolerance import DIFFERENCE_ROUNDINGS, DIFFERENCE_STEP, assert_close

everywhere = pytest.mark.parametrize("namespace", NAMESPACES, ids=lambda n: n.name)
POINTS = np.array([-90.0, -20.0, -3.0, -1.5, -0.5, 0.25, 1.0, 2.0, 5.0, 30.0, 90.0])
TRUTH = {
    "relu": lambda z: max(z, 0.0),
    "leaky_relu": lambda z: z if z > 0 else LEAKY_SLOPE * z,
    "silu": lambda z: z * TRUTH["sigmoid"](z),
    "gelu": lambda z: 0.5 * z * math.erfc(-z / math.sqrt(2.0)),
    "tanh": math.tanh,
    "sigmoid": lambda z: 1.0 / (1.0 + math.exp(-z)),
}


def reach(namespace: Namespace, name: str) -> None:
    if name == "gelu" and not hasattr(namespace.xp, "erf"):
        pytest.skip(f"{namespace.name} has no erf")


@everywhere
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_are_those_of_the_definition(namespace: Namespace, name: str) -> None:
    reach(namespace, name)
    y = to_numpy(activated(namespace.array(POINTS, "float64"), name, namespace.xp))
    expected = np.array([TRUTH[name](z) for z in POINTS])
    assert_close(y, expected, "float64", 1.0 + np.abs(POINTS))


@everywhere
@pytest.mark.parametrize("name", ["silu", "sigmoid"])
def test_small_values_keep_their_digits(namespace: Namespace, name: str) -> None:
    z = np.array([-80.0, -40.0, -20.0])
    y = to_numpy(activated(namespace.array(z, "float64"), name, namespace.xp))
    expected = np.array([TRUTH[name](v) for v in z])
    assert_close(y / expected, np.ones(3), "float64")


@everywhere
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_are_the_central_differences(namespace: Namespace, name: str) -> None:
    reach(namespace, name)
    dy = np.linspace(-2.0, 3.0, POINTS.size)
    arrays = (namespace.array(a, "float64") for a in (dy, POINTS))
    slope = to_numpy(ACTIVATIONS[name].gradient(*arrays, namespace.xp))
    up, down = (np.array([TRUTH[name](z + h) for z in POINTS]) for h in (DIFFERENCE_STEP, -DIFFERENCE_STEP))
    numeric = (up - down) / (2.0 * DIFFERENCE_STEP)
    assert_close(slope, dy * numeric, "float64", 1.0 + np.abs(POINTS), roundings=DIFFERENCE_ROUNDINGS)


@everywhere
@pytest.mark.parametrize("name", [n for n, a in ACTIVATIONS.items() if a.by_sign])
def test_the_output_tells_the_derivative_where_its_sign_does(namespace: Namespace, name: str) -> None:
    z = namespace.array(POINTS, "float64")
    y, gradient = activated(z, name, namespace.xp), ACTIVATIONS[name].gradient
    np.testing.assert_array_equal(to_numpy(gradient(z, y, namespace.xp)), to_numpy(gradient(z, z, namespace.xp)))


@everywhere
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_stays_nan(namespace: Namespace, name: str) -> None:
    reach(namespace, name)
    y = activated(namespace.array(np.array([math.nan]), "float64"), name, namespace.xp)
    assert np.isnan(to_numpy(y)).all()


def test_no_activation_is_the_identity() -> None:
    assert activated(3.0, None, np) == 3.0
    check_activation(None)


@pytest.mark.parametrize("name", ["none", "ReLU", "", 3, max, ["relu"]])
def test_any_other_activation_is_refused_with_its_value(name: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_activation(name)
    assert f"got {name!r}" in str(caught.value)
