"""Data, models and losses of all kinds that a user may name, for `test_study_own_model.py` to study or see refused."""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from batchnorm.torch import BatchNorm

ROWS, TOKENS, LENGTH = 120, 20, 9


def images() -> Any:
    digits = load_digits()
    return digits.images[:300, None], digits.target[:300]


def sequences() -> Any:
    """Return ((ids, mask), y): y says whether the even tokens of a row are the more frequent ones."""
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(TOKENS, (ROWS, LENGTH), generator=source)
    mask = torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (ROWS, 1), generator=source)
    even = ((ids % 2 == 0) & mask).sum(1)
    return (ids, mask), (2 * even > mask.sum(1)).long()


def lengths() -> Any:
    (ids, mask), y = sequences()
    return {"ids": ids, "lengths": mask.sum(1)}, y


def binary() -> Any:
    x = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
    return x, (x[:, 0] > 0.0).astype(int)


def random_data() -> Any:
    return torch.randn(ROWS, 3), np.random.rand(ROWS)


def values() -> Any:
    x, _ = binary()
    return x, 100.0 + 20.0 * x[:, 0]


def several_values() -> Any:
    x, _ = binary()
    return x, np.stack([x[:, 0], x[:, 1] - x[:, 2], 5.0 * x[:, 3]], axis=1)


def labels() -> Any:
    x, _ = binary()
    return x, (x[:, :3] > 0.3).astype(np.int64)


class Padded(Dataset[Any]):
    """Sequences of different lengths, which a collate function has to pad."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> Any:
        return torch.full((1 + i % 5,), 1 + i), i % 2


def collated(items: list[Any]) -> Any:
    ids = nn.utils.rnn.pad_sequence([sequence for sequence, _ in items], batch_first=True)
    return ids, ids > 0, torch.tensor([label for _, label in items])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        x, y = binary()
        return zip(torch.from_numpy(x), torch.from_numpy(y), strict=True)


def shuffled_loader() -> Any:
    x, y = binary()
    return DataLoader(
        TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=32, shuffle=True, drop_last=True
    )


def padded_loader() -> Any:
    return DataLoader(Padded(), batch_size=3, collate_fn=collated)


def conv(outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(72, outputs)
    )


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))


def double(inputs: int, outputs: int) -> nn.Module:
    return mlp(inputs, outputs).double()


def lazy(outputs: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(outputs))


def own_norm(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


class Functional(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(inputs, 8), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.tanh(self.hidden(x)))


class Forked(nn.Module):
    """A model whose activation feeds two layers: normalization has a place before it, and none after it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.a, self.b = nn.Linear(inputs, 8), nn.Linear(8, outputs), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(x))
        return self.a(hidden) + self.b(hidden)


class Output(NamedTuple):
    """What a model of Hugging Face returns, but for a loss and hidden states."""

    logits: Tensor


class Wrapped(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.model = mlp(inputs, outputs)

    def forward(self, x: Tensor) -> Output:
        return Output(self.model(x))


class OneLogit(nn.Module):
    def __init__(self, inputs: int, outputs: int = 1) -> None:
        super().__init__()
        self.model = mlp(inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, 0]


class Masked(nn.Module):
    """Embedding, batch normalization of what is real, and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.output = nn.Embedding(TOKENS, 6), BatchNorm(6, axis=-1), nn.Linear(6, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
        x = torch.relu(self.norm(self.embedding(ids), weights=mask)) * mask[..., None]
        return self.output(x.sum(1) / mask.sum(1, keepdim=True))


class Recurrent(nn.Module):
    """A GRU over packed sequences; its arguments are called by their names."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(TOKENS, 6), nn.GRU(6, 8, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))

    def forward(self, *, lengths: Tensor, ids: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][0])


SHARED = mlp(6, 2)


def shared() -> nn.Module:
    return nn.Sequential(SHARED, nn.Identity())


def frozen() -> nn.Module:
    return mlp(6, 2).requires_grad_(False)


def exits() -> nn.Module:
    sys.exit(3)


def raises() -> nn.Module:
    raise RuntimeError("out of\ncheese")


def wants(width: int) -> nn.Module:
    return mlp(width, 2)


class Bad(nn.Module):
    """A model that goes wrong in one way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.model = kind, mlp(6, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.model(x)
        if self.kind == "training" and self.training:
            raise RuntimeError("not in training")
        if self.kind == "exit" and self.training:
            sys.exit("bye")
        ways = {
            "nan": lambda: y * torch.nan,
            "tuple": lambda: (y, x),
            "squeezed": lambda: y.squeeze(),
            "detached": lambda: y.detach(),
            "softmax": lambda: y.softmax(-1),
            "gradient": lambda: y + (y * 0.0).abs().sqrt(),
            "backward": lambda: Broken.apply(y),
        }
        return ways.get(self.kind, lambda: y)()


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("no way back")


class InPlace(nn.Module):
    """A model that writes on its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.mul_(0.5))


def nan() -> nn.Module:
    return Bad("nan")


def in_tuple() -> nn.Module:
    return Bad("tuple")


def squeezed() -> nn.Module:
    return Bad("squeezed")


def detached() -> nn.Module:
    return Bad("detached")


def softmax() -> nn.Module:
    return Bad("softmax")


def bad_gradient() -> nn.Module:
    return Bad("gradient")


def bad_backward() -> nn.Module:
    return Bad("backward")


def bad_training() -> nn.Module:
    return Bad("training")


def exits_in_training() -> nn.Module:
    return Bad("exit")


def sigmoid() -> nn.Module:
    return nn.Sequential(mlp(6, 1), nn.Sigmoid())


def three() -> int:
    return 3


def gaussian(output: Tensor, target: Tensor) -> Tensor:
    """Return the negative log-likelihood of a normal distribution whose mean and log-variance are put out."""
    mean, log_variance = output.unbind(1)
    return (log_variance + (target - mean).square() / log_variance.exp()).mean() / 2.0


def two_outputs(inputs: int) -> nn.Module:
    return mlp(inputs, 2)


def unreduced() -> nn.Module:
    return nn.CrossEntropyLoss(reduction="none")


def item(output: Tensor, target: Tensor) -> float:
    return nn.functional.cross_entropy(output, target).item()


def without_gradient(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.detach(), target)


def raising(output: Tensor, target: Tensor) -> Tensor:
    raise KeyError("target")
