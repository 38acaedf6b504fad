"""Which batch size for a loop of your own? Here: sequences of different lengths, padded, weighted and clipped.

    python examples/batch_size_loop.py

`advise` needs the forward pass alone, as a `Loop`: how a batch is made of samples, and its mean loss. The data are
generated: is a sequence of numbers rising or falling on the whole?
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from batchnorm.batch_size import Loop, advise
from batchnorm.torch import BatchNorm

SAMPLES, FEATURES = 600, 16


class Tagger(nn.Module):
    """A layer for each step of a sequence, normalised as if the padding were not there, and the mean over the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(2, FEATURES), BatchNorm(FEATURES, axis=-1), nn.Linear(FEATURES, 2)

    def forward(self, steps: Tensor, real: Tensor) -> Tensor:
        hidden = self.norm(self.into(steps), weights=real).relu()  # (N, L, C), mask (N, L)
        return self.out((hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True))


def generated() -> list[dict[str, Any]]:
    """Return samples of 5 to 30 steps: the value and its change, whether it rises, and how much the sample weighs."""
    found: list[dict[str, Any]] = []
    for _ in range(SAMPLES):
        rises = int(torch.randint(2, ()))
        change = torch.randn(int(torch.randint(5, 31, ()))) + (0.4 if rises else -0.4)
        steps = torch.stack([change.cumsum(0), change], 1)
        found.append({"steps": steps, "label": rises, "weight": 1.0 + 0.5 * rises})
    return found


def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    lengths = torch.tensor([len(s["steps"]) for s in samples])
    return {
        "steps": pad_sequence([s["steps"] for s in samples], batch_first=True),
        "real": torch.arange(int(lengths.max())) < lengths[:, None],
        "label": torch.tensor([s["label"] for s in samples]),
        "weight": torch.tensor([s["weight"] for s in samples]),
    }


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    each = nn.functional.cross_entropy(model(batch["steps"], batch["real"]), batch["label"], reduction="none")
    return (batch["weight"] * each).mean()


def main() -> None:
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    advice = advise(model, Loop(loss, collate), generated(), optimizer, budget_s=20)
    print(advice)
    print(f"\nSo: DataLoader(…, batch_size={advice.batch_size}), lr × {advice.learning_rate_factor:.2g} from 32.")


if __name__ == "__main__":
    main()
