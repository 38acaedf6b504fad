"""The layer in the hands of other libraries and of torch's own tools: the same comes out as with torch's layer."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import batchnorm.torch
from namespaces import to_numpy
from tolerance import assert_close

LAYERS: dict[str, Any] = {"ours": batchnorm.torch.BatchNorm2d, "torch": nn.BatchNorm2d}


def network(layer: Callable[[int], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), layer(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def images(seed: int = 0, size: int = 8) -> torch.Tensor:
    return torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(seed)) + seed


def fit(model: nn.Module, after_step: Callable[[], object] = lambda: None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for seed in range(3):
        optimizer.zero_grad()
        model(images(seed)).square().mean().backward()
        optimizer.step()
        after_step()


def assert_same_state(ours: nn.Module, torchs: nn.Module, scale: float = 4.0) -> None:
    mine, expected = ours.state_dict(), torchs.state_dict()
    assert list(mine) == list(expected)
    for name, value in expected.items():
        assert_close(to_numpy(mine[name]), to_numpy(value), "float32", scale)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_averaged_model_averages_the_layer_as_it_averages_torchs(use_buffers: bool) -> None:
    averages = {}
    for name, layer in LAYERS.items():
        model = network(layer)
        averages[name] = AveragedModel(model, use_buffers=use_buffers)
        fit(model, partial(averages[name].update_parameters, model))
        moved = model[1].running_mean
        assert torch.equal(averages[name].module[1].running_mean, moved) != use_buffers
    assert_same_state(averages["ours"], averages["torch"])


def test_update_bn_gives_the_mean_of_all_batches_and_the_momentum_back() -> None:
    models = {name: AveragedModel(network(layer)) for name, layer in LAYERS.items()}
    batches = [images(seed) for seed in range(3)]
    for model in models.values():
        fit(model)
        update_bn(batches, model)
    ours = models["ours"].module
    means = [ours[0](x).mean((0, 2, 3)) for x in batches]
    assert_close(to_numpy(ours[1].running_mean), to_numpy(sum(means) / 3), "float32", 4.0)
    assert (ours[1].momentum, int(ours[1].num_batches_tracked)) == (0.1, 3)
    assert_same_state(models["ours"], models["torch"])


def step_in_bfloat16(model: nn.Module, x: torch.Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Take a scaled step; return the dtypes that the layer was given and has given."""
    seen: list[torch.dtype] = []
    hook = model[1].register_forward_hook(lambda _, inputs, y: seen.extend((inputs[0].dtype, y.dtype)))
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), 0.1)
    with torch.amp.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    hook.remove()
    return seen[0], seen[1]


@pytest.mark.parametrize("training", [True, False])
def test_autocast_and_a_scaler_treat_the_layer_as_they_treat_torchs(training: bool) -> None:
    models = {name: network(layer).train(training) for name, layer in LAYERS.items()}
    dtypes = {name: step_in_bfloat16(model, images()) for name, model in models.items()}
    assert dtypes["ours"] == dtypes["torch"] == (torch.bfloat16, torch.bfloat16)
    ours, torchs = (model[1] for model in models.values())
    for name, expected in torchs.named_buffers():
        assert getattr(ours, name).dtype == expected.dtype
        assert_close(to_numpy(getattr(ours, name)), to_numpy(expected), "float32", 4.0)
    for name, parameter in torchs.named_parameters():
        assert getattr(ours, name).grad.dtype == torch.float32
        assert_close(to_numpy(getattr(ours, name).grad), to_numpy(parameter.grad), "bfloat16", 16.0)
    assert bool(torch.equal(ours.running_mean, torch.zeros(4))) != training


def test_a_step_that_the_scaler_skips_leaves_the_parameters() -> None:
    model = network(LAYERS["ours"])
    before = copy.deepcopy(model)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=2.0**16), torch.optim.SGD(model.parameters(), 0.1)
    scaler.scale(model(images()).sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not model[1].weight.grad.isfinite().all()
    assert scaler.get_scale() == 2.0**15
    for name, parameter in before.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


@pytest.mark.usefixtures("torchvision")
class TestTimm:
    def resnet(self, layer: Any) -> nn.Module:
        from timm.models.resnet import BasicBlock, ResNet

        torch.manual_seed(0)
        channels = {"stem_width": 8, "channels": (8, 8, 16, 16)}
        return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, norm_layer=layer, zero_init_last=False, **channels)

    def pair(self) -> tuple[nn.Module, nn.Module]:
        return self.resnet(LAYERS["ours"]), self.resnet(LAYERS["torch"])

    def test_a_resnet_is_built_of_the_layer_alone(self) -> None:
        ours, torchs = self.pair()
        kinds = {type(m) for m in ours.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        assert kinds == {LAYERS["ours"]}
        assert list(ours.state_dict()) == list(torchs.state_dict())

    def test_a_resnet_trains_as_with_torchs_layer(self) -> None:
        ours, torchs = (model.double() for model in self.pair())
        x = images(size=32).double()
        for model in (ours, torchs):
            model(x).square().sum().backward()
        for (name, mine), expected in zip(ours.named_parameters(), torchs.parameters(), strict=True):
            largest = max(1.0, float(expected.grad.abs().max()))
            assert mine.grad is not None, name
            assert_close(to_numpy(mine.grad), to_numpy(expected.grad), "float64", 100.0 * largest)
        assert float(ours.bn1.weight.grad.abs().max()) > 0

    def test_a_resnet_loads_the_checkpoint_of_one_with_torchs_layer(self) -> None:
        ours, torchs = self.pair()
        for seed in range(2):
            torchs(images(seed, 32))
        nn.init.uniform_(torchs.bn1.weight)
        ours.load_state_dict(torchs.state_dict())
        x = images(3, 32)
        with torch.no_grad():
            y, expected = ours.eval()(x), torchs.eval()(x)
        assert_close(to_numpy(y), to_numpy(expected), "float32", 4.0 * float(expected.abs().max()))

    def test_options_come_through_a_partial(self) -> None:
        model = self.resnet(partial(LAYERS["ours"], momentum=None, running_variance="biased"))
        assert (model.bn1.momentum, model.bn1.running_variance) == (None, "biased")

    def test_where_timm_fuses_norm_and_activation_it_takes_a_layer_of_its_own(self) -> None:
        """By the class's name; whoever hands ours to such a model gets timm's."""
        from timm.layers import BatchNormAct2d, get_norm_act_layer

        assert get_norm_act_layer(LAYERS["ours"]).func is BatchNormAct2d

    def test_a_function_puts_the_layer_where_timm_fuses_norm_and_activation(self) -> None:
        from timm.layers import create_conv2d, get_norm_act_layer

        def layer(channels: int, apply_act: bool = True, act_layer: Any = nn.ReLU, **_: Any) -> nn.Module:
            norm = LAYERS["ours"](channels)
            return nn.Sequential(norm, act_layer()) if apply_act and act_layer is not None else norm

        assert get_norm_act_layer(layer) is layer
        model = nn.Sequential(create_conv2d(3, 4, 3), get_norm_act_layer(layer, nn.ReLU)(4))
        expected = torch.relu(nn.BatchNorm2d(4)(model[0](images())))
        assert_close(to_numpy(model(images())), to_numpy(expected), "float32", 4.0)


@pytest.mark.usefixtures("torchvision")
class TestLightning:
    def fitted(self, layer: Any, folder: Path) -> nn.Module:
        import pytorch_lightning as lightning

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = network(layer)

            def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
                return self.model(batch[0]).square().mean()

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), 0.1)

        data = torch.utils.data.TensorDataset(torch.cat([images(0), images(1)]))
        quiet = {f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")}
        trainer = lightning.Trainer(accelerator="cpu", max_steps=2, logger=False, default_root_dir=folder, **quiet)
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=6))
        assert trainer.global_step == 2
        return module.model

    @pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning")
    def test_a_trainer_fits_the_layer_as_it_fits_torchs(self, tmp_path: Path) -> None:
        ours, torchs = (self.fitted(layer, tmp_path) for layer in LAYERS.values())
        assert ours[1].num_batches_tracked == 2
        assert not torch.equal(ours[1].running_mean, torch.zeros(4))
        assert_same_state(ours, torchs)
