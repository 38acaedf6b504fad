"""`advise` as its users meet it: what may be given, what comes back, and that nothing is changed by asking."""

import copy
import json
import random
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import batchnorm.torch as ours
import tolerance
from batchnorm.batch_size import Advice, Loop, advise
from batchnorm.batch_size.budget import Budget
from batchnorm.batch_size.work import Work
from batchnorm.errors import ArgumentError
from processes import LAYERS, PROCESSES, SECONDS, finish, in_advice, run, start

ROWS = 120
FIXED, PER_SAMPLE = 1e-3, 2e-5  # seconds of a step, on the clock of these tests
cross_entropy = nn.functional.cross_entropy


def rows_of(batch: Any) -> int:
    return len(next(iter(batch.values() if isinstance(batch, dict) else batch)))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let time go by with the work that is done, so that no test depends on how busy the machine is."""
    if "real_clock" in request.fixturenames:
        return
    now = 0.0
    computed = Work.loss

    def loss(self: Work, batch: Any) -> Tensor:
        nonlocal now
        now += FIXED + PER_SAMPLE * rows_of(batch)
        return computed(self, batch)

    monkeypatch.setattr(Work, "loss", loss)
    module = sys.modules["batchnorm.batch_size.advise"]  # whose name in the package is the function's
    monkeypatch.setattr(module, "Budget", partial(Budget, clock=lambda: now))


@pytest.fixture
def real_clock() -> None:
    """Let time go by as it does."""


def arrays(rows: int = ROWS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(dtype), (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long()


def network(norm: Any = nn.BatchNorm1d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), norm(8), nn.ReLU(), nn.Linear(8, 3))


def ask(model: Any = None, loss: Any = cross_entropy, dataset: Any = None, *given: Any, **options: Any) -> Advice:
    """Ask for little time about a small network, or whatever is given."""
    model = network() if model is None else model
    dataset = arrays() if dataset is None else dataset
    return advise(model, loss, dataset, *given, **{"budget_s": 0.6, "progress": False} | options)


# Nothing is changed by asking.


class Noting(nn.Module):
    """Notes things down as it runs, in all the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(4, 8), ours.BatchNorm1d(8)
        self.dropout, self.still, self.last = nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.calls, self.sizes, self.kinds = 0, [1], {1}
        self.by_size, self.ordered, self.recent = {1: 1}, OrderedDict(a=1), deque([1], maxlen=3)
        self.output: Tensor | None = None
        self.nested = {"sizes": [1]}
        self.total, self.array = torch.zeros(8), np.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sizes.append(len(x))
        self.kinds.add(len(x))
        self.by_size[len(x)] = self.calls
        self.ordered[str(len(x))] = self.calls
        self.recent.append(len(x))
        self.nested["sizes"].append(len(x))
        self.fresh = self.calls
        self.array += random.random() + np.random.random()
        self.steps += 1
        z = self.norm(self.first(x))
        self.total += z.detach().sum(0)
        self.output = self.last(self.dropout(torch.relu(self.still(z))))
        return self.output


def held(value: Any) -> Any:
    """Return a copy of whatever a model or an optimizer holds, modules aside."""
    if isinstance(value, dict):
        return {k: held(v) for k, v in value.items()}
    if isinstance(value, list | tuple | deque):
        return [held(v) for v in value]
    if isinstance(value, Tensor | np.ndarray):
        return torch.as_tensor(value).detach().clone()
    return copy.copy(value)


def assert_same(before: Any, after: Any, where: str = "") -> None:
    assert type(before) is type(after), where
    if isinstance(before, dict):
        assert list(before) == list(after), where
        for key in before:
            assert_same(before[key], after[key], f"{where}.{key}")
    elif isinstance(before, list):
        assert len(before) == len(after), where
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(before, Tensor):
        assert before.dtype == after.dtype, where
        assert torch.equal(before.nan_to_num(), after.nan_to_num()), where
        assert torch.equal(before.isnan(), after.isnan()), where
    else:
        assert before == after, where


def attributes(module: nn.Module) -> dict[str, Any]:
    own = {k: v for k, v in vars(module).items() if not k.startswith("_") or k in ("_step_count", "_hooks")}
    return held(own)


class Everything:
    """What must be the same to the bit afterwards."""

    def __init__(self, model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> None:
        self.parts = model, optimizer, scheduler
        self.gradients = [p.grad for p in model.parameters()]
        self.hooks = self.count_hooks()
        self.state = None if optimizer is None else optimizer.state
        self.before = self.now()

    def count_hooks(self) -> int:
        modules = list(self.parts[0].modules())
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks) for m in modules)

    def now(self) -> dict[str, Any]:
        model, optimizer, scheduler = self.parts
        return {
            "state": held(dict(model.state_dict())),
            "gradients": held([p.grad for p in model.parameters()]),
            "attributes": {name: attributes(module) for name, module in model.named_modules()},
            "optimizer": held(optimizer.state_dict()) if optimizer else None,
            "optimizer's own": {k: held(v) for k, v in vars(optimizer).items() if "opt" in k} if optimizer else None,
            "scheduler": held(scheduler.state_dict()) if scheduler else None,
            "torch": torch.get_rng_state(),
            "numpy": held(np.random.get_state()),
            "python": held(random.getstate()),
        }

    def assert_same(self) -> None:
        model, optimizer, _ = self.parts
        assert_same(self.before, self.now())
        assert all(a is b for a, b in zip(self.gradients, (p.grad for p in model.parameters()), strict=True))
        assert self.hooks == self.count_hooks()
        if optimizer is not None:
            assert optimizer.state is self.state


def trained(optimizer: str) -> tuple[nn.Module, Any, Any, Everything]:
    """Return a model in the middle of its training, with gradients and a part of it in eval."""
    model, (x, y) = Noting(), arrays()
    made: Any = {
        "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 0.01),
        "amsgrad": lambda p: torch.optim.AdamW(p, torch.tensor(0.01), amsgrad=True),
    }[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(made, 1, gamma=0.5)
    for _ in range(2):
        made.zero_grad()
        cross_entropy(model(x), y).backward()
        made.step()
        scheduler.step()
    model.still.eval()
    cross_entropy(model(x), y).backward()
    model.output = None
    return model, made, scheduler, Everything(model, made, scheduler)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "amsgrad"])
def test_everything_is_the_same_afterwards(optimizer: str) -> None:
    model, made, scheduler, everything = trained(optimizer)
    advice = ask(model, cross_entropy, arrays(), made)
    everything.assert_same()
    assert advice.limits["gradient_noise"].value is not None
    before = float(made.param_groups[0]["lr"])
    made.step()
    scheduler.step()  # which would warn if it were made to believe that the optimizer has not stepped
    assert float(made.param_groups[0]["lr"]) == before / 2


def failing(at: int, error: BaseException) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss that raises at its call number `at`."""
    calls = 0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return cross_entropy(output, target)

    return loss


@pytest.mark.parametrize("at", [2, 8, 30, 300])
def test_everything_is_the_same_after_an_error(at: int) -> None:
    model, made, _, everything = trained("sgd")
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        ask(model, failing(at, ZeroDivisionError("on purpose")), arrays(), made, budget_s=60)
    everything.assert_same()


@pytest.mark.parametrize("at", range(1, 7))  # one to see that all goes together, four for the memory, one more
def test_before_a_step_is_timed_an_interrupt_is_an_interrupt(at: int) -> None:
    model, made, _, everything = trained("adam")
    with pytest.raises(KeyboardInterrupt):
        ask(model, failing(at, KeyboardInterrupt()), arrays(), made)
    everything.assert_same()


PHASES = {7: "throughput", 60: "throughput", 140: "gradient noise", 330: "gradient noise"}  # at which call of the loss


@pytest.mark.parametrize(("at", "phase"), PHASES.items())
@pytest.mark.parametrize("own", [True, False])
def test_an_interrupt_leaves_what_is_known(at: int, phase: str, own: bool) -> None:
    model, made, _, everything = trained("adam")
    advice = ask(model, failing(at, KeyboardInterrupt()), arrays(), made if own else None)
    everything.assert_same()
    assert advice.interrupted == phase
    assert advice.confidence == "low"
    assert phase in advice.because
    assert advice.limits["throughput"].value is not None
    assert advice.limits["memory"].value >= 4
    assert 1 <= advice.batch_size <= ROWS
    assert json.loads(advice.to_json())["interrupted"] == phase
    assert "interrupted" in str(advice)
    assert (advice.limits["gradient_noise"].value is not None) == (at == max(PHASES))


def test_a_loss_that_learns_is_the_same_afterwards() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_weight = nn.Parameter(torch.zeros(3))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return cross_entropy(output * self.log_weight.exp(), target)

    model, loss = network(), Weighted()
    loss.log_weight.grad = torch.ones(3)
    made = torch.optim.SGD([*model.parameters(), *loss.parameters()], 0.1)
    of_model, of_loss = Everything(model, made), Everything(loss)
    ask(model, loss, arrays(), made)
    of_model.assert_same()
    of_loss.assert_same()


def test_the_generator_of_a_dataloader_is_the_same_afterwards() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*arrays()), batch_size=16, shuffle=True, generator=generator)
    before = generator.get_state()
    ask(None, cross_entropy, loader)
    assert torch.equal(before, generator.get_state())


def test_the_same_seed_draws_the_same_rows() -> None:
    def first(seed: int) -> tuple[float, float]:
        stage = ask(seed=seed, budget_s=1.0).details["gradient_noise"]["stages"][0]
        assert stage["blocks"] == 30
        return stage["signal"], stage["noise"]

    assert first(0) == first(0)
    assert first(0) != first(1)


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


def samples() -> list[tuple[Any, Any]]:
    return list(zip(*arrays(), strict=True))


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
NORMALIZES = {"no normalization", "frozen", "Embedding", "sparse", "GRU"}


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
    assert (advice.limits["statistics_noise"].value is None) == (form in NORMALIZES)
    if form in NORMALIZES:
        assert "nothing in this model normalises" in advice.limits["statistics_noise"].note
        assert advice.group_size == advice.batch_size
        assert advice.remedies == ()
    if form == "DataLoader":
        assert advice.current == 24
        assert any("DataLoader" in note for note in advice.notes)
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


class Slow(Dataset[Any]):
    """Takes its time for every row."""

    def __init__(self) -> None:
        self.rows = samples()

    def __getitem__(self, i: int) -> Any:
        spin = sum(range(30_000))  # some tenths of a millisecond
        return self.rows[i] if spin else None

    def __len__(self) -> int:
        return ROWS


@pytest.mark.usefixtures("real_clock")
def test_a_slow_dataset_is_said_to_be_one() -> None:
    advice = ask(None, cross_entropy, DataLoader(Slow(), batch_size=16), budget_s=1.0)
    assert any(note.startswith("input-bound: the DataLoader gives") for note in advice.notes)
    quick = DataLoader(TensorDataset(*arrays()), batch_size=None, sampler=range(0))
    assert not any("input-bound" in note for note in ask(None, cross_entropy, quick.dataset).notes)


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
    "large group": ({"group": 60}, r"`group` must be at most half the rows drawn from, 48, got 60"),
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


# What comes back.


def test_candidates_are_all_that_is_tried_and_chosen_from() -> None:
    advice = ask(candidates=[40, 10, 25])
    assert advice.batch_size in (10, 25, 40)
    assert set(advice.seconds) <= {10, 25, 40}
    assert set(advice.details["memory"]["ran"]) <= {10, 25, 40, advice.details["group"]}


def test_the_group_that_is_given_is_kept() -> None:
    advice = ask(group=12)
    assert advice.group_size == 12
    assert advice.details["group"] == 12
    assert "groups of 12" in advice.limits["gradient_noise"].note


def test_little_compute_is_a_fifth_of_the_noise_scale() -> None:
    x, y = arrays(2000)
    advice = ask(network(nn.Identity), cross_entropy, (x, y), objective="compute", budget_s=1.0)
    critical = advice.limits["gradient_noise"].value
    assert critical is not None
    assert advice.batch_size <= max(0.2 * critical, 4)
    assert advice.objective == "compute"
    assert "0.2·Bcrit" in str(advice)


def refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def test_json_holds_everything() -> None:
    advice = ask(budget_s=1.0)
    plain = json.loads(advice.to_json(), parse_constant=refuse)
    assert set(plain) == set(Advice.__dataclass_fields__)
    assert plain["batch_size"] == advice.batch_size
    assert set(plain["limits"]) == {"memory", "throughput", "gradient_noise", "statistics_noise"}
    for name, limit in advice.limits.items():
        assert plain["limits"][name]["value"] == limit.value
        assert set(plain["limits"][name]) == {"value", "low", "high", "is_bound", "note"}
    assert plain["details"]["rows"] == ROWS
    assert len(plain["details"]["gradient_noise"]["stages"]) >= 1
    assert plain["details"]["layers"][0]["name"] == "1"
    assert plain["momentum"] == {"0.1": advice.momentum[0.1]}
    assert {int(size) for size in plain["seconds"]} == {4, 8, 16, 32, 64}


@pytest.mark.parametrize("objective", ["time", "compute"])
def test_the_page_is_a_hundred_columns_wide(objective: Any) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_name_that_goes_on_and_on_and_on_for_quite_a_while_as_some_do_in_deep_networks = network()

        def forward(self, x: Tensor) -> Tensor:
            return next(self.children())(x)

    text = str(ask(Deep(), objective=objective))
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "Batch size B = ",
        "m = ",
        "memory",
        "throughput",
        "gradient noise",
        "statistics noise",
        "B* = " if objective == "time" else "0.2·Bcrit",
    ):
        assert part in text


class Narrow(nn.Module):
    """Has memory for no more than `most` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most = network(), most
        self.trained: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"no memory for {len(x)} rows")
        SIZES.add(len(x))
        return self.inner(x)


SIZES: set[int] = set()  # not an attribute of the model, which would be given back


@pytest.mark.parametrize("most", [5, 20, 50, 150])
def test_what_runs_out_of_memory_is_not_advised(most: int) -> None:
    SIZES.clear()
    model = Narrow(most)
    everything = Everything(model)
    advice = ask(model, cross_entropy, arrays(800), budget_s=1.0)
    everything.assert_same()
    limit = advice.limits["memory"]
    expected = {5: 4, 20: 16, 50: 48, 150: 128}[most]
    assert limit.value == expected
    assert most <= limit.high
    assert not limit.is_bound
    assert "ran out of memory" in limit.note
    assert advice.batch_size <= expected
    assert advice.batch_size in SIZES
    assert advice.limits["gradient_noise"].value is not None


def test_where_not_even_the_smallest_candidate_fits_it_is_said() -> None:
    model = Narrow(20)
    everything = Everything(model)
    with pytest.raises(ArgumentError, match=r"64.*memory|memory.*64"):
        ask(model, cross_entropy, arrays(800), candidates=[64, 128])
    everything.assert_same()


def test_candidates_above_what_fits_are_not_chosen() -> None:
    advice = ask(Narrow(20), cross_entropy, arrays(800), candidates=[8, 12, 64, 128])
    assert advice.batch_size in (8, 12)


# On a clock of its own, and in several processes.


class Sleepy(nn.Module):
    """Takes its time: so much a call, so much a row."""

    def __init__(self, call: float, row: float) -> None:
        super().__init__()
        self.inner, self._taken = network(), (call, row)

    def forward(self, x: Tensor) -> Tensor:
        call, row = self._taken
        time.sleep(call + row * len(x))
        return self.inner(x)


@pytest.mark.usefixtures("real_clock")
@pytest.mark.parametrize(("call", "row"), [(0.02, 0.0), (0.0, 0.001)])
def test_the_budget_is_kept(call: float, row: float) -> None:
    budget = 2.0
    start = time.perf_counter()
    advice = ask(Sleepy(call, row), cross_entropy, arrays(400), budget_s=budget)
    taken = time.perf_counter() - start
    step = call + row * advice.details["memory"]["ran"][-1]
    assert taken <= tolerance.OVERTIME * budget + step
    assert taken >= budget / 2  # and made use of
    assert advice.limits["gradient_noise"].value is not None


def test_two_processes_give_one_answer(tmp_path: Path) -> None:
    finish(start(run, [in_advice], tmp_path), SECONDS)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False)["in_advice"] for rank in range(PROCESSES))
    for layer in LAYERS:
        one, other = (found[layer]["advice"] for found in (first, second))
        assert one == other
        assert one["processes"] == PROCESSES
        assert one["batch_size"] % PROCESSES == 0
        assert one["group_size"] <= one["batch_size"] // PROCESSES
        assert one["limits"]["statistics_noise"]["value"] is not None
        assert any("each of 2 normalises its own" in note for note in one["notes"])
        assert first[layer]["unchanged"]
        assert second[layer]["unchanged"]
