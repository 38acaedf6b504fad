"""Each error can be caught as the framework's own, and says what to do."""

import pytest
import torch

from batchnorm.errors import ArgumentError, BatchNormError, DtypeError, MissingExtraError, ShapeError
from batchnorm.torch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, batch_norm


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (ArgumentError, (BatchNormError, ValueError)),
        (ShapeError, (BatchNormError, ValueError, RuntimeError)),
        (DtypeError, (BatchNormError, ValueError, TypeError)),
        (MissingExtraError, (ImportError,)),
    ],
)
def test_errors_are_caught_as_the_builtin_ones(error: type[Exception], also: tuple[type[Exception], ...]) -> None:
    assert all(issubclass(error, base) for base in also)


def test_a_missing_extra_is_named() -> None:
    message = str(MissingExtraError("batchnorm.keras", "Keras", "keras"))
    assert message == "`batchnorm.keras` needs Keras, which is not installed: pip install 'batchnorm[keras]'"


@pytest.mark.parametrize(
    ("layer", "x", "error", "said"),
    [
        (BatchNorm(3), torch.zeros(3), ShapeError, ("`input`", "rank ≥ 2", "(3,)", "unsqueeze")),
        (BatchNorm(3), torch.tensor(1.0), ShapeError, ("`input`", "rank ≥ 2", "()")),
        (BatchNorm(3, axis=2), torch.zeros(4, 3), ShapeError, ("`axis`", "[-2, 1]", "rank 2", "got 2")),
        (BatchNorm1d(3), torch.zeros(2, 3, 4, 5), ShapeError, ("2D or 3D", "4D", "(2, 3, 4, 5)", "BatchNorm")),
        (BatchNorm2d(3), torch.zeros(2, 3, 4), ShapeError, ("expected 4D", "3D", "(2, 3, 4)", "BatchNorm")),
        (BatchNorm3d(3), torch.zeros(2, 3, 4, 5), ShapeError, ("expected 5D", "4D", "(2, 3, 4, 5)", "BatchNorm")),
        (BatchNorm(3), torch.zeros(4, 5), ShapeError, ("num_features=3", "got 5", "(4, 5)", "axis=1", "expected 3")),
        (BatchNorm(6), torch.zeros(4, 10, 6), ShapeError, ("axis=1", "got 10", "axis=-1 has 6")),
        (BatchNorm(3, track_running_stats=False), torch.zeros(4, 5), ShapeError, ("num_features=3", "got 5")),
        (BatchNorm((1, 3, 4), axis=(1, 2)), torch.zeros(2, 3, 5), ShapeError, ("(1, 3, 5)", "got (1, 3, 4)")),
        (BatchNorm(3), torch.zeros(1, 3), ShapeError, ("more than 1 value per channel", "(1, 3)", "`.eval()`")),
        (BatchNorm(3), torch.zeros(4, 3, dtype=torch.int32), DtypeError, ("`input`", "torch.int32", "`.float()`")),
        (BatchNorm(3), torch.zeros(4, 3, dtype=torch.bool), DtypeError, ("`input`", "torch.bool", "`.float()`")),
        (BatchNorm(3), torch.zeros(4, 3, dtype=torch.complex64), DtypeError, ("`input`", "torch.complex64")),
        (BatchNorm(3), [[1.0, 2.0, 3.0]], DtypeError, ("`input`", "tensor", "got list")),
    ],
)
def test_a_call_that_does_not_fit_names_what_and_why(layer, x, error: type[Exception], said: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        layer(x)
    assert [part for part in said if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_features": -1}, ("`num_features`", "got -1")),
        ({"num_features": 3.5}, ("`num_features`", "got 3.5")),
        ({"num_features": None}, ("`num_features`", "got None")),
        ({"num_features": True}, ("`num_features`", "got True")),
        ({"num_features": "three"}, ("`num_features`", "got 'three'")),
        ({"num_features": (3,)}, ("`num_features`", "an int", "axis=1", "got (3,)")),
        ({"num_features": 3, "axis": (1, 2)}, ("`num_features`", "shape", "axis=(1, 2)", "got 3")),
        ({"num_features": 3, "axis": "channels"}, ("`axis`", "got 'channels'")),
        ({"num_features": 3, "momentum": 1.5}, ("`momentum`", "[0, 1]", "got 1.5", "0.99 is 0.01")),
        ({"num_features": 3, "eps": 0.0}, ("`eps`", "positive", "got 0.0")),
        ({"num_features": 3, "running_variance": "both"}, ("`running_variance`", "unbiased", "got 'both'")),
    ],
)
def test_an_option_that_is_none_is_refused_at_construction(options: dict[str, object], said: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError) as caught:
        BatchNorm(**options)
    assert [part for part in said if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"running_mean": None, "running_var": torch.ones(3)}, ("`running_mean`", "got None")),
        ({"running_mean": torch.zeros(3), "running_var": None}, ("`running_var`", "got None")),
        ({"running_mean": None, "running_var": None}, ("`running_mean` and `running_var`", "inference", "got None")),
        ({"training": True, "momentum": None}, ("`momentum`", "number", "got None", "1/(t+1)")),
        ({"training": True, "momentum": -0.5}, ("`momentum`", "got -0.5")),
        ({"training": True, "eps": -1.0}, ("`eps`", "got -1.0")),
        ({"training": True, "running_variance": 1}, ("`running_variance`", "got 1")),
        ({"weight": torch.ones(4)}, ("`weight`", "(3,)", "got (4,)")),
        ({"bias": torch.ones(1)}, ("`bias`", "(3,)", "got (1,)")),
    ],
)
def test_the_function_refuses_the_same(arguments: dict[str, object], said: tuple[str, ...]) -> None:
    statistics = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    with pytest.raises(BatchNormError) as caught:
        batch_norm(torch.randn(4, 3), **(statistics | arguments))
    assert [part for part in said if part not in str(caught.value)] == []
