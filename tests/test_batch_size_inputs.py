"""What `advise` takes, and what it refuses in one line that names the way out."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import batchnorm.torch as ours
from asking import ROWS, Everything, arrays, ask, cross_entropy, network, samples
from batchnorm.batch_size import Loop, advise
from batchnorm.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("clock_of_work")


# What may be given.


class Rows(Dataset[Any]):
    """A dataset of one's own, which has to be asked for each row."""

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = arrays()
        return x[i], y[i]

    def __len__(self) -> int:
        return ROWS


class Last(nn.Module):
    """A GRU's last output, classified."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.last = nn.GRU(1, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gru(x[..., None])[0][:, -1])


class Shared(nn.Module):
    """One layer used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.b, self.again = self.a, self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.b(torch.relu(self.norm(self.a(x))))))


def frozen() -> nn.Module:
    model = network(ours.BatchNorm1d)
    model[1].freeze()
    return model


def words() -> tuple[Tensor, Tensor]:
    x = torch.randint(20, (ROWS, 4), generator=torch.Generator().manual_seed(0))
    return x, x[:, 0] % 3


def embedding(sparse: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(20, 3, sparse=sparse), nn.Flatten(), nn.Linear(12, 3))


def in_float64() -> tuple[Any, ...]:
    return network().double(), cross_entropy, arrays(dtype=torch.float64)


def in_bfloat16() -> tuple[Any, ...]:
    return network(ours.BatchNorm1d).bfloat16(), cross_entropy, arrays(dtype=torch.bfloat16)


def of_dicts() -> tuple[Any, ...]:
    x, y = arrays()
    return network(), Loop(lambda model, batch: cross_entropy(model(batch["x"]), batch["y"])), [
        {"x": x[i], "y": int(y[i])} for i in range(ROWS)
    ]  # fmt: skip


FORMS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "numpy": lambda: (network(), cross_entropy, (arrays()[0].double().numpy(), arrays()[1].numpy())),
    "numpy for float64": lambda: (network().double(), cross_entropy, tuple(part.numpy() for part in arrays())),
    "tensors": lambda: (network(), cross_entropy, arrays()),
    "TensorDataset": lambda: (network(), cross_entropy, TensorDataset(*arrays())),
    "list": lambda: (network(), cross_entropy, samples()),
    "Dataset": lambda: (network(), cross_entropy, Rows()),
    "DataLoader": lambda: (network(), cross_entropy, DataLoader(TensorDataset(*arrays()), batch_size=24)),
    "Loop": of_dicts,
    "module as loss": lambda: (network(), nn.CrossEntropyLoss(), arrays()),
    "ours": lambda: (network(ours.BatchNorm1d), cross_entropy, arrays()),
    "no normalization": lambda: (network(nn.Identity), cross_entropy, arrays()),
    "frozen": lambda: (frozen(), cross_entropy, arrays()),
    "Embedding": lambda: (embedding(False), cross_entropy, words()),
    "sparse": lambda: (embedding(True), cross_entropy, words()),
    "GRU": lambda: (Last(), cross_entropy, arrays()),
    "shared": lambda: (Shared(), cross_entropy, arrays()),
    "float64": in_float64,
    "bfloat16": in_bfloat16,
}
PLAIN = {"no normalization", "frozen", "Embedding", "sparse", "GRU"}


@pytest.mark.parametrize("form", FORMS)
def test_what_may_be_given(form: str) -> None:
    model, loss, dataset = FORMS[form]()
    everything = Everything(model)
    advice = ask(model, loss, dataset)
    everything.assert_same()
    assert 4 <= advice.batch_size <= ROWS
    assert advice.interrupted == ""
    for name in ("memory", "throughput", "gradient_noise"):
        assert advice.limits[name].value is not None, name
    assert (advice.limits["statistics_noise"].value is None) == (form in PLAIN)
    if form in PLAIN:
        assert "nothing in this model normalises" in advice.limits["statistics_noise"].note
        assert advice.group_size == advice.batch_size
        assert advice.remedies == ()
    if form == "DataLoader":
        assert advice.current == 24
        assert any("samples a second" in note for note in advice.notes)
    else:
        assert advice.current == 32


def test_a_model_in_inference_is_asked_about_in_training() -> None:
    model = network().eval()
    everything = Everything(model)
    modes: set[bool] = set()
    model[1].register_forward_hook(lambda module, *_: modes.add(module.training) or None)
    everything.hooks += 1
    advice = ask(model)
    everything.assert_same()
    assert modes == {True, False}  # to train, and to see what it has come to
    assert advice.limits["statistics_noise"].value is not None


def test_parts_in_inference_stay_there() -> None:
    model = network()
    model[1].eval()
    modes: set[bool] = set()
    model[1].register_forward_hook(lambda module, *_: modes.add(module.training) or None)
    advice = ask(model)
    assert modes == {False}
    assert advice.limits["statistics_noise"].value is None


# What may not.


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(samples())


def nan_weights() -> nn.Module:
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    return model


X, Y = arrays()
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "resnet"}, r"`model` must be a torch.nn.Module, got str"),
    "nothing to learn": ({"model": nn.ReLU()}, r"must have parameters that learn, ReLU has none"),
    "optimizer": ({"optimizer": "adam"}, r"`optimizer` must be None or a torch.optim.Optimizer, got str"),
    "another's optimizer": (
        {"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)},
        r"`optimizer` .*parameters",
    ),
    "loss": ({"loss": "mse"}, r"`loss` must be a function \(output, target\) or a Loop, got str"),
    "no scalar": (
        {"loss": lambda o, t: (o[:, 0] - t) ** 2},
        r"scalar tensor with a gradient, got \(4,\): return the.*mean",
    ),
    "no gradient": ({"loss": lambda o, t: o.sum().item()}, r"scalar tensor with a gradient, got float"),
    "detached": ({"loss": lambda o, t: o.sum().detach()}, r"scalar tensor with a gradient"),
    "NaN": ({"model": nan_weights()}, r"the loss of the first batch is nan: look for NaN in data or weights"),
    "shapes": ({"dataset": (X[:, :3], Y)}, r"do not go together: .*shapes cannot be multiplied.*\(in a batch of 4\)"),
    "stream": ({"dataset": Stream()}, r"must have a length .*got Stream; .*list\(itertools.islice"),
    "stream in a loader": ({"dataset": DataLoader(Stream())}, r"must have a length .*got Stream"),
    "number": ({"dataset": 7}, r"`dataset` must have a length .*got int"),
    "lengths": ({"dataset": (X, Y[:-1])}, r"arrays of equal length, got \[120, 119\]"),
    "text": ({"dataset": (["a"] * 9, ["b"] * 9)}, r"must hold arrays"),
    "few rows": ({"dataset": (X[:7], Y[:7])}, r"at least 8 rows, got 7"),
    "three parts": ({"dataset": (X, Y, Y)}, r"a pair \(input, target\), got 3 parts: .*Loop\(loss\)"),
    "objective": ({"objective": "speed"}, r"`objective` must be one of 'time', 'compute', got 'speed'"),
    "aggregate": ({"aggregate": "mean"}, r"`aggregate` must be one of 'sum', 'scale_invariant', got 'mean'"),
    "no candidates": ({"candidates": []}, r"`candidates` must be ints ≥ 1, at least one, got \[\]"),
    "candidate 0": ({"candidates": [8, 0]}, r"`candidates` must be ints ≥ 1.*got \[8, 0\]"),
    "candidate 1.5": ({"candidates": [1.5]}, r"`candidates` must be ints ≥ 1.*got \[1.5\]"),
    "a candidate": ({"candidates": 64}, r"`candidates` must be ints ≥ 1.*got 64"),
    "large candidate": ({"candidates": [8, 121]}, r"`candidates` must be at most 120.*got 121"),
    "group 1": ({"group": 1}, r"`group` must be None or an int ≥ 2, got 1"),
    "group 2.5": ({"group": 2.5}, r"`group` must be None or an int ≥ 2, got 2.5"),
    "large group": ({"group": 60}, r"`group` must be at most 48: half of the rows, and the largest batch; got 60"),
    "budget 0": ({"budget_s": 0}, r"`budget_s` must be a number of seconds > 0, got 0"),
    "budget NaN": ({"budget_s": float("nan")}, r"`budget_s` .*got nan"),
    "budget True": ({"budget_s": True}, r"`budget_s` .*got True"),
    "endless budget": ({"budget_s": float("inf")}, r"`budget_s` .*got inf"),
    "measure": ({"measure": -1}, r"`measure` must be a bool or an int ≥ 0, got -1"),
    "device": ({"device": "abacus"}, r"`device` .*abacus"),
    "seed": ({"seed": "lucky"}, r"`seed` must be an int.*got 'lucky'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_may_not_be_given(what: str) -> None:
    given, message = REFUSED[what]
    model = given.get("model", network())
    everything = Everything(model) if isinstance(model, nn.Module) else None
    arguments = {"model": model, "loss": cross_entropy, "dataset": (X, Y), "progress": False, "budget_s": 0.3} | given
    with pytest.raises(ArgumentError, match=message):
        advise(**arguments)
    if everything is not None:
        everything.assert_same()


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    model = network()
    with pytest.raises(ArgumentError, match="LBFGS"):
        ask(model, cross_entropy, arrays(), torch.optim.LBFGS(model.parameters()))
