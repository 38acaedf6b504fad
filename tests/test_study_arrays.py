"""What a `--data` factory may return, and what a study reads from it: arrays, tensors, datasets, loaders."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import own_models
import tolerance
from batchnorm.study import Settings, arrays, runner
from batchnorm.study.data import DataError, Dataset
from batchnorm.study.training import Problem, Rows
from own_studies import prepared


def of(x: Any, y: Any) -> Dataset:
    return arrays.from_arrays("my:make", (x, y))


FORMS = {
    "pair of a tuple": lambda x, m, y: ((x, m), y),
    "pair of a list": lambda x, m, y: ([x, m], y),
    "triple": lambda x, m, y: (x, m, y),
    "dictionary": lambda x, m, y: ({"ids": x, "mask": m}, y),
    "one dictionary": lambda x, m, y: {"ids": x, "mask": m, "labels": y},
    "dataset": lambda x, m, y: TensorDataset(x, m, y),
    "loader": lambda x, m, y: DataLoader(TensorDataset(x, m, y), batch_size=50, shuffle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_several_inputs_are_told_from_targets(form: str) -> None:
    (ids, mask), y = own_models.sequences()
    data = arrays.from_arrays("my:make", FORMS[form](ids, mask, y))
    names = ("ids", "mask") if "dictionary" in form else ("", "")
    assert [(part.name, part.shape, part.kind) for part in data.inputs] == [
        (names[0], (own_models.LENGTH,), "integers"),
        (names[1], (own_models.LENGTH,), "mask"),
    ]
    assert np.array_equal(data.x, torch.cat([ids, mask], dim=1).numpy())
    assert np.array_equal(data.y, y.numpy())
    assert (data.task, data.classes) == ("classification", ("0", "1"))
    assert "not scaled" in data.notes[0]


def test_a_list_of_rows_is_one_input() -> None:
    rows = [np.full(3, i, float) for i in range(40)]
    data = of(rows, np.arange(40) % 2)
    assert (data.x.shape, data.inputs) == ((40, 3), ())


def test_numbers_stay_as_precise_as_they_come() -> None:
    x = 1e9 + np.arange(40.0).reshape(20, 2)
    y = np.arange(20) % 2
    assert np.array_equal(of(x, y).x, x)
    assert of((x - 1e9).astype(np.float16), y).x.dtype == np.float32
    assert of(torch.ones(20, 2, dtype=torch.bfloat16), y).x.dtype == np.float32
    pixels = of(np.arange(40, dtype=np.uint8).reshape(20, 2), y)  # unsigned: numbers, and scaled
    assert (pixels.x.dtype, pixels.inputs) == (np.float32, ())


@pytest.mark.parametrize(
    ("y", "task", "outputs"),
    [
        (np.arange(30) % 3, "classification", 3),
        ((np.arange(30) % 3)[:, None], "classification", 3),
        (np.arange(30) % 2 == 0, "classification", 2),
        (np.eye(3)[np.arange(30) % 3], "classification", 3),
        (np.linspace(0, 1, 30), "regression", 1),
        (np.linspace(0, 1, 30)[:, None], "regression", 1),
        (np.linspace(0, 1, 60).reshape(30, 2), "regression", 2),
        (np.stack([np.arange(30) % 2, np.arange(30) % 3 > 0], axis=1), "labels", 2),
        (np.stack([np.arange(30) % 2, np.arange(30) % 3 > 0], axis=1).astype(float), "labels", 2),
    ],
)
def test_what_targets_are(y: Any, task: str, outputs: int) -> None:
    data = of(np.arange(60.0).reshape(30, 2), y)
    assert (data.task, data.outputs) == (task, outputs)


def test_ids_are_scaled_for_the_base_network_only() -> None:
    data = arrays.from_factory("own_models:lengths")
    problem, spec = prepared("lengths", "Recurrent")
    x, _ = Rows.of(problem.datasets["main"], [spec]).part("validation")
    assert torch.equal(x, x.round())
    scaled, _ = Rows.of(data, [replace(spec, activation="relu")]).part("train")
    assert scaled.mean().abs() < tolerance.PROJECT_BOUND
    single = of(np.arange(40).reshape(20, 2), np.arange(20) % 2)  # ids of one input, to a network of numbers
    assert [part.kind for part in single.inputs] == ["integers"]


def test_a_mask_of_floats_stays_as_it_is() -> None:
    mask = (np.arange(60).reshape(30, 2) % 3 > 0).astype(np.float32)
    data = of((np.arange(60.0).reshape(30, 2), mask), np.arange(30) % 2)
    assert [part.kind for part in data.inputs] == ["values", "unscaled"]


def test_a_loader_is_read_once_in_order_to_its_end() -> None:
    data = arrays.from_factory("own_models:shuffled_loader")
    x, y = own_models.binary()
    assert np.array_equal(data.x, x)
    assert np.array_equal(data.y, y)
    assert data.notes == ("batch size 32, as that of the DataLoader, unless --batch-size says otherwise",)
    _, spec = prepared("shuffled_loader", "mlp")
    assert spec.batch_size == 32
    settings = Settings(batch_size=40)
    assert runner.fitting(settings, Problem({"main": data})) == settings


def test_a_loader_with_a_sampler_of_its_own_is_read_as_it_is() -> None:
    x, y = (torch.from_numpy(part) for part in own_models.binary())
    loader = DataLoader(TensorDataset(x, y), batch_size=16, sampler=SubsetRandomSampler(range(64)))
    data = arrays.from_arrays("my:make", loader)
    assert sorted(map(tuple, data.x.tolist())) == sorted(map(tuple, x[:64].tolist()))
    assert arrays.from_arrays("my:make", own_models.Stream()).x.shape == x.shape
    assert arrays.from_arrays("my:make", DataLoader(own_models.Stream(), batch_size=16)).batch_size == 16


def test_no_example_of_a_weighted_loader_is_read_twice() -> None:
    x, y = (torch.from_numpy(part) for part in own_models.binary())
    sampler = WeightedRandomSampler([0.1] * 60 + [0.9] * 60, len(x), replacement=True)
    data = arrays.from_arrays("my:make", DataLoader(TensorDataset(x, y), batch_size=16, sampler=sampler))
    assert np.array_equal(data.x, x)
    assert "the weights of the DataLoader's sampler are left out" in data.notes[0]


def test_batches_padded_to_different_lengths_are_padded_to_one() -> None:
    data = arrays.from_factory("own_models:padded_loader")
    ids, mask = data.x[:, :5], data.x[:, 5:]
    assert np.array_equal(ids > 0, mask)
    assert np.array_equal(mask.sum(1), 1 + np.arange(own_models.ROWS) % 5)
    assert data.notes[:2] == tuple(f"input {i} padded with 0 to shape (5,), that of the longest batch" for i in (1, 2))


def test_what_leaves_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = own_models.binary()
    monkeypatch.setattr(arrays, "available", lambda: arrays.SHARE * x.nbytes)
    assert arrays.from_factory("own_models:shuffled_loader").x.nbytes == x.nbytes
    monkeypatch.setattr(arrays, "available", lambda: arrays.SHARE * (x.nbytes - 1))
    for make in (lambda: of(x, y), lambda: arrays.from_factory("own_models:shuffled_loader")):
        with pytest.raises(DataError, match=r"holds more than .* GB, an eighth of the free memory.*Subset"):
            make()


X, Y = np.arange(60.0).reshape(30, 2), np.arange(30) % 2
BAD_DATA: dict[str, tuple[Any, str]] = {
    "number": (3, "must return a pair (x, y) of arrays, or a torch Dataset or DataLoader, got int"),
    "one": ((X,), "must return a pair (x, y) of arrays, or a torch Dataset or DataLoader, got 1 of them"),
    "flat": ((Y * 1.0, Y), "must return x of rank 2 or more, got shape (30,)"),
    "text": ((np.full((30, 2), "a"), Y), "must return arrays of numbers, got <U1 of shape (30, 2)"),
    "ragged": (([[1], [1, 2]] * 15, Y), "pad sequences to one length, and return ((x, lengths), y)"),
    "keys": ({"x": X}, "must hold inputs and \"labels\", got the keys 'x'"),
    "rows": ((X, Y[:-1]), "x and y must have one row an example each, got 30 and 29 rows"),
    "inputs": (((X, X[:9]), Y), "must return inputs of as many rows each, got 30 and 9"),
    "NaN": ((X * np.nan, Y), "holds NaN or infinite values"),
    "NaN target": ((X, X[:, 0] * np.nan), "returned y with NaN or infinite values"),
    "cube": ((X, np.ones((30, 2, 2))), "must return y of shape (N,), or (N, K) for several values or labels a row"),
    "no targets": ((X, np.ones((30, 0))), "must return y of shape (N,), or (N, K)"),
    "counts": ((X, np.arange(60).reshape(30, 2)), "return floats for several values a row, or only 0 and 1"),
    "rare": (
        (X, np.arange(30)),
        "30 classes of which the rarest has 1 rows, and each needs 5: return floats",
    ),
    "one class": ((X, 0 * Y), "has one class, '0'"),
    "constant": ((X, np.ones(30)), "returned y whose rows are all equal"),
    "huge ids": ((np.full((30, 2), 2**25), Y), "returns integers beyond ±16,777,216: number them from 0"),
    "empty": (TensorDataset(torch.zeros(0, 2), torch.zeros(0)), "returned an empty TensorDataset"),
    "unpadded": (own_models.Padded(), "return a DataLoader whose collate_fn pads them to one length"),
    "unpadded alone": (
        DataLoader(own_models.Padded(), batch_size=3, collate_fn=lambda items: own_models.collated(items)[::2]),
        "let collate_fn pad them, and return ((x, mask), y)",
    ),
    "list of examples": ([(X[0], 1)] * 30, "must return a pair (x, y) of arrays, or a torch Dataset or DataLoader"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_what_a_data_factory_may_not_return(case: str) -> None:
    returned, message = BAD_DATA[case]
    with pytest.raises(DataError) as caught:
        arrays.from_arrays("my:make", returned)
    assert message in str(caught.value)
    assert "my:make" in str(caught.value) or case == "rows"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("raises", "`--data own_models:raises` failed: RuntimeError: out of cheese (own_models.py"),
        ("exits", "`--data own_models:exits` failed: it called sys.exit(3); let it raise an exception, or return"),
        ("nothing", "`--data own_models:nothing` cannot be imported: AttributeError"),
        ("three", "`--data own_models:three` must return a pair (x, y)"),
    ],
)
def test_what_a_data_factory_raises_is_told_in_one_line(factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        arrays.from_factory(f"own_models:{factory}")
    assert "\n" not in str(caught.value)


def test_data_that_are_not_from_a_factory_are_not_said_to_be() -> None:
    with pytest.raises(DataError, match=r"^your data must return a pair \(x, y\) of arrays"):
        arrays.from_arrays("your data", 3)


def test_random_numbers_of_a_factory_are_seeded_and_brought_back() -> None:
    before = torch.get_rng_state()
    one, two = (arrays.from_factory("own_models:random_data") for _ in range(2))
    assert np.array_equal(one.x, two.x)
    assert torch.equal(torch.get_rng_state(), before)
