"""What the frameworks call differently, and the rules of the options."""

import math
from fractions import Fraction

import numpy as np
import pytest

from batchnorm.conventions import FLAX, KERAS, TORCH, check_epsilon, check_momentum, check_running_variance
from batchnorm.errors import ArgumentError


@pytest.mark.parametrize(
    ("convention", "axis", "epsilon", "weight_of_new", "estimator"),
    [
        (TORCH, 1, 1e-5, 0.1, "unbiased"),
        (KERAS, -1, 1e-3, 0.01, "biased"),
        (FLAX, -1, 1e-5, 0.01, "biased"),
    ],
)
def test_defaults_of_the_frameworks(
    convention, axis: int, epsilon: float, weight_of_new: float, estimator: str
) -> None:
    assert (convention.axis, convention.epsilon, convention.running_variance) == (axis, epsilon, estimator)
    assert convention.weight_of_new() == pytest.approx(weight_of_new)


def test_a_momentum_is_read_in_its_own_convention() -> None:
    assert TORCH.weight_of_new(0.25) == 0.25
    assert KERAS.weight_of_new(0.25) == 0.75
    assert FLAX.weight_of_new(0.0) == 1.0


@pytest.mark.parametrize("momentum", [0, 0.0, 0.1, 1, 1.0, None, np.float32(0.5), Fraction(1, 3)])
def test_momentum_in_the_unit_interval_or_none_passes(momentum) -> None:
    assert check_momentum(momentum) is None


@pytest.mark.parametrize("momentum", [1.5, -0.1, math.nan, math.inf, "0.1", 1j, [0.1], np.nextafter(1.0, 2.0)])
def test_any_other_momentum_is_refused(momentum) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_momentum(momentum)
    expected = f"`momentum` must lie in [0, 1] or be None, got {momentum!r} (Keras' 0.99 is 0.01 here)"
    assert str(caught.value) == expected


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 1, 5e-324])
def test_a_positive_epsilon_passes(epsilon: float) -> None:
    assert check_epsilon(epsilon) is None


@pytest.mark.parametrize("epsilon", [0, 0.0, -1e-5, math.nan, math.inf, "1e-5", None])
def test_any_other_epsilon_is_refused(epsilon) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_epsilon(epsilon)
    expected = f"`eps` must be a positive finite number, got {epsilon!r} (torch uses 1e-5, Keras 1e-3)"
    assert str(caught.value) == expected


@pytest.mark.parametrize("estimator", ["population", "", None, True, "Unbiased"])
def test_an_unknown_estimator_is_refused(estimator) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_running_variance(estimator)
    message = str(caught.value)
    assert message.startswith('`running_variance` must be "unbiased" (σ²·N/(N−1), torch) or "biased" (σ², Keras')
    assert message.endswith(f"got {estimator!r}")
