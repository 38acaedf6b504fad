"""Two models to study with `batchnorm study`, each with its data: a ConvNet, and a classifier of padded sequences.

Both data sets are generated here. From the folder of this file:

    batchnorm study --data study_own_model:images --model study_own_model:conv_net --quick
    batchnorm study --data study_own_model:sequences --model study_own_model:masked_classifier --quick
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchnorm.torch import BatchNorm

TOKENS, LONGEST, CLASSES = 40, 16, 4


def images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return 600 noisy images of 12×12 pixels, (N, C, H, W), and what is on each: —, |, a square, or nothing."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, 600)
    x = rng.normal(0.0, 0.6, (600, 1, 12, 12)).astype(np.float32)
    for image, kind in zip(x[:, 0], y, strict=True):
        row, column = rng.integers(0, 8, 2)
        height, width = ((1, 5), (5, 1), (3, 3), (0, 0))[kind]
        image[row : row + height, column : column + width] += 1.5
    return x, y


def conv_net(outputs: int) -> nn.Module:
    """Return a ConvNet without batch normalization: the study puts it in. `outputs` comes from the study."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(144, outputs),
    )  # fmt: skip


def sequences() -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return ((ids, mask), y): 600 sequences of 5 to 16 tokens, padded with noise, and the group they are rich in."""
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(TOKENS, (600, LONGEST), generator=source)  # int64: handed to the model as it is
    lengths = torch.randint(5, LONGEST + 1, (600,), generator=source)
    mask = torch.arange(LONGEST) < lengths[:, None]
    y = torch.randint(CLASSES, (600,), generator=source)
    rich = torch.rand(600, LONGEST, generator=source) < 0.4
    group = TOKENS // CLASSES
    marked = y[:, None] * group + torch.randint(group, (600, LONGEST), generator=source)
    return (torch.where(rich & mask, marked, ids), mask), y


class MaskedClassifier(nn.Module):
    """Embeds tokens, and averages what is real of a sequence; the layer of batch normalization sees nothing else."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 16)
        self.hidden = nn.Linear(16, 32, bias=False)
        self.norm = BatchNorm(32, axis=-1)  # (N, L, C), nothing transposed
        self.output = nn.Linear(32, outputs)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.hidden(self.embedding(ids)), weights=mask))
        real = mask[..., None].to(x.dtype)
        return self.output((x * real).sum(1) / real.sum(1))


def masked_classifier(outputs: int) -> nn.Module:
    """Return the classifier with batch normalization of its own, which the study switches off for comparison."""
    return MaskedClassifier(outputs)


def main() -> None:
    x, y = images()
    print(f"images {x.shape}, classes {np.bincount(y)}: logits {tuple(conv_net(CLASSES)(torch.from_numpy(x)).shape)}")
    (ids, mask), y = sequences()
    logits = masked_classifier(CLASSES)(ids, mask)
    print(f"sequences {tuple(ids.shape)}, classes {y.bincount().numpy()}: logits {tuple(logits.shape)}")
    print(__doc__.split("\n\n", 2)[2].rstrip())


if __name__ == "__main__":
    main()
