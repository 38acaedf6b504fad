"""A model each of libraries that bring their own: inference, and a training step, with our layers in it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from check import CHECKS, Check, check, require, torch_first
from compare import Run, all_ours, ours, pictures, same_inference, same_step, small, stirred
from torch import Tensor, nn


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return stirred(make()).eval()


def _compared(make: Callable[[], nn.Module], run: Run) -> str:
    """Compare inference and a training step of a model with those in float64."""
    model = _made(make)
    with torch_first(), torch.no_grad():
        run(model, lambda x: x)
    other = ours(model)
    return f"{all_ours(other)} layers, {same_inference(model, other, run)}, {same_step(model, other, run)}"


def _calls(*shape: int) -> Run:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    return lambda model, cast: model(cast(x))


@check("speechbrain/ECAPA_TDNN", "speechbrain")
def ecapa() -> str:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    x, lengths = torch.randn(4, 40, 20), torch.tensor([1.0, 0.75, 0.5, 0.625])
    return _compared(
        lambda: ECAPA_TDNN(20, channels=[16, 16, 16, 16, 48], attention_channels=8, lin_neurons=8),
        lambda model, cast: model(cast(x), cast(lengths)),
    )


@check("speechbrain/its own BatchNorm1d and 2d", "speechbrain")
def wrapped() -> str:
    from speechbrain.nnet.normalization import BatchNorm1d, BatchNorm2d

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of_lines = BatchNorm1d(input_size=12)
            self.together = BatchNorm1d(input_size=12, combine_batch_time=True)
            self.of_pictures = BatchNorm2d(input_size=4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.together(self.of_lines(x).tanh())
            return self.of_pictures(x.reshape(x.shape[0], -1, 3, 4))

    return _compared(Block, _calls(4, 10, 12))


def _segmentation(kind: str) -> str:
    import segmentation_models_pytorch as smp

    make = getattr(smp, kind)
    return _compared(
        lambda: make("resnet18", encoder_weights=None, classes=2).requires_grad_(True), _calls(4, 3, 64, 64)
    )


for _kind in ("Unet", "DeepLabV3Plus", "Linknet"):
    CHECKS.append(
        Check(f"segmentation_models/{_kind}", partial(_segmentation, _kind), ("segmentation_models_pytorch",))
    )


@check("monai/UNet in 3D", "monai")
def monai_unet() -> str:
    from monai.networks.nets.unet import UNet

    return _compared(
        lambda: UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1, norm="batch", act="relu"),
        _calls(4, 1, 16, 16, 16),
    )


@check("monai/DenseNet121 in 3D", "monai")
def monai_densenet() -> str:
    from monai.networks.nets.densenet import DenseNet

    return _compared(
        lambda: DenseNet(3, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2, 2)), _calls(4, 1, 24, 24, 24)
    )


@check("torch_geometric/GIN", "torch_geometric")
def graphs() -> str:
    from torch_geometric.nn import GIN

    x, edges = torch.randn(40, 6), torch.randint(0, 40, (2, 120))
    return _compared(lambda: GIN(6, 8, 2, 3, norm="batch_norm"), lambda model, cast: model(cast(x), edges))


@check("torch_geometric/BatchNorm, a single node", "torch_geometric")
def single_node() -> str:
    from torch_geometric.nn import BatchNorm

    model = _made(lambda: BatchNorm(6, allow_single_element=True))
    other, x = ours(model), torch.randn(1, 6)
    all_ours(other)
    off = float((other.train()(x) - model.train()(x)).detach().abs().max())
    require(off < 1e-6, f"off by {off:.1e}")
    return f"off by {off:.1e}"


@check("ultralytics/YOLO11n", "ultralytics")
def yolo() -> str:
    from ultralytics.nn.tasks import ClassificationModel

    return _compared(
        lambda: ClassificationModel("yolo11n-cls.yaml", nc=4, verbose=False).requires_grad_(True), _calls(4, 3, 64, 64)
    )


@check("ultralytics/detection, fused by its own tool", "ultralytics")
def yolo_fused() -> str:
    import copy

    from ultralytics.nn.tasks import DetectionModel

    model = _made(lambda: DetectionModel("yolo11n.yaml", nc=2, verbose=False))
    other = ours(model)

    def run(one: nn.Module, cast: Callable[[Any], Any]) -> Any:
        return one(cast(pictures(2).repeat(1, 1, 8, 8)[:, :, :64, :64]))[0]

    count, told = all_ours(other), same_inference(model, other, run)
    with torch_first():
        copy.deepcopy(model).fuse(verbose=False)
    fused: Any = copy.deepcopy(other)
    fused.fuse(verbose=False)
    return f"{count} layers, {told}; fused: {same_inference(model, fused, run)}"


@check("torchvision/ResNet-18 and MobileNetV3", "torchvision")
def torchvision_nets() -> str:
    from torchvision import models

    makes: list[Callable[[], nn.Module]] = [
        lambda: models.resnet18(num_classes=4),
        lambda: models.mobilenet_v3_small(num_classes=4, dropout=0.0),
    ]
    return "; ".join(_compared(make, _calls(4, 3, 64, 64)) for make in makes)


@check("torch/small network")
def small_network() -> str:
    return _compared(small, lambda model, cast: model(cast(pictures())))
