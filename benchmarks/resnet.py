"""ResNet-50 in plain torch, which takes the layer that normalises: after it, after it with ReLU, after it with both.

Source: He, Zhang, Ren and Sun 2015, https://arxiv.org/abs/1512.03385, with the stride in the 3×3 convolution.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from batchnorm.torch import BatchNorm, BatchNorm2d

BLOCKS, EXPANSION, CLASSES = (3, 4, 6, 3), 4, 1000


class Separate(nn.Module):
    """A layer that normalises, then an addition, then ReLU, each where asked for, as torchvision writes them."""

    def __init__(self, norm: Callable[[int], nn.Module], features: int, *, relu: bool) -> None:
        super().__init__()
        self.norm, self.relu = norm(features), relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        if residual is not None:
            y += residual
        return torch.relu_(y) if self.relu else y


class Fused(nn.Module):
    """Our layer, which adds and applies ReLU itself."""

    def __init__(self, features: int, *, relu: bool) -> None:
        super().__init__()
        self.norm = BatchNorm(features, activation="relu" if relu else None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.norm(x, residual)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1: relu(bn(·)) twice, then relu(bn(·) + shortcut)."""

    def __init__(self, normalised: Callable[..., nn.Module], inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = width * EXPANSION
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = normalised(width, relu=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = normalised(width, relu=True)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.bn3 = normalised(outside, relu=True)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.bn_shortcut = normalised(outside, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        residual = x if self.shortcut is None else self.bn_shortcut(self.shortcut(x))
        return self.bn3(self.conv3(y), residual)


class ResNet50(nn.Module):
    """The network; `normalised(features, relu=...)` makes each layer that normalises."""

    def __init__(self, normalised: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = normalised(64, relu=True)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        blocks: list[nn.Module] = []
        inside = 64
        for stage, many in enumerate(BLOCKS):
            width = 64 * 2**stage
            for block in range(many):
                blocks.append(Bottleneck(normalised, inside, width, 2 if block == 0 and stage > 0 else 1))
                inside = width * EXPANSION
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(inside, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(self.pool(self.bn1(self.conv1(x))))
        return self.classify(features.mean((2, 3)))


def with_torch() -> ResNet50:
    """torch.nn.BatchNorm2d."""
    return ResNet50(lambda features, relu: Separate(nn.BatchNorm2d, features, relu=relu))


def swapped() -> ResNet50:
    """batchnorm.torch.BatchNorm2d in its place, nothing else changed."""
    return ResNet50(lambda features, relu: Separate(BatchNorm2d, features, relu=relu))


def fused() -> ResNet50:
    """batchnorm.torch.BatchNorm, with the addition and ReLU in the layer."""
    return ResNet50(Fused)


def bare() -> ResNet50:
    """No layer that normalises at all: what a step costs without any."""
    return ResNet50(lambda features, relu: Separate(lambda _: nn.Identity(), features, relu=relu))
