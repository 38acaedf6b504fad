"""Programs that train: Lightning, Opacus, FSDP2."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from check import CHECKS, Check, WrongError, check, may_refuse, require, torch_first
from compare import alike, layers, ours, pictures, plain, renorm, same_step, small
from torch import nn


def _states(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def _frozen(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> str:
    """Freeze by Lightning, train, and thaw; torch's layer normalises by the batch then, and so should ours."""
    from pytorch_lightning.callbacks import BaseFinetuning

    def frozen(one: nn.Module) -> nn.Module:
        BaseFinetuning.freeze(one, train_bn=False)
        return one.train()

    x, other = pictures(), make(model)
    never, before = copy.deepcopy(other).train(), _states(other)
    right = frozen(copy.deepcopy(model))(x)
    with may_refuse(other):
        mine = frozen(other)(x)
    require(all(torch.equal(a, b) for a, b in zip(before, _states(other), strict=True)), "the state has moved")
    require(not any(p.requires_grad for layer in layers(other) for p in layer.parameters()), "it still learns")
    told = alike(mine, right, "frozen output") if make is plain else "nothing moves while frozen"
    require(bool(mine.isfinite().all()), "the output is not finite")
    alike(other.eval()(x), never.eval()(x), "frozen output in inference")
    BaseFinetuning.make_trainable(other)
    thawed, untouched = other.train()(x), never.train()(x)
    alike(_states(other), _states(never), "state after thawing")
    return f"{told}, {alike(thawed, untouched, 'thawed output')}"


@check("lightning/BaseFinetuning.freeze/plain", "pytorch_lightning")
def freeze_plain() -> str:
    return _frozen(small(), plain)


@check("lightning/BaseFinetuning.freeze/renorm", "pytorch_lightning")
def freeze_renorm() -> str:
    return _frozen(small(), renorm)


def _finetuned(model: nn.Module, train_bn: bool) -> nn.Module:
    """Train for four epochs of a batch, the backbone frozen in the first two."""
    import pytorch_lightning as lightning
    from pytorch_lightning.callbacks import BackboneFinetuning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            parts = [*copy.deepcopy(model).children()]
            self.backbone, self.head = nn.Sequential(*parts[:-1]), parts[-1]

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.head(self.backbone(batch)).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.head.parameters(), 0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10)]

    module = Module().train()
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_lr=1e-3, train_bn=train_bn)],
    )
    trainer.fit(module, torch.utils.data.DataLoader(pictures(), batch_size=8))
    return module.eval()


def _counts(model: nn.Module) -> list[int]:
    return [int(layer.num_batches_tracked) for layer in layers(model) if layer.num_batches_tracked is not None]


def _finetuning(make: Callable[[nn.Module], nn.Module], train_bn: bool) -> str:
    """Fine-tune: as many batches are counted as by torch's layer, and a plain layer's state is the same."""
    model = small()
    with torch_first():
        right = _finetuned(model, train_bn)
    mine = _finetuned(make(model), train_bn)
    require(_counts(mine) == _counts(right), f"{_counts(mine)} batches were counted for {_counts(right)}")
    require(all(t.isfinite().all() for t in _states(mine)), "the state is not finite")
    told = f"{_counts(mine)} batches counted"
    return f"{told}, {alike(_states(mine), _states(right), 'state after four epochs', 1e-4)}" if make is plain else told


for _make in (plain, renorm):
    for _train_bn in (False, True):
        CHECKS.append(
            Check(
                f"lightning/BackboneFinetuning/{_make.__name__}, train_bn={_train_bn}",
                partial(_finetuning, _make, _train_bn),
                ("pytorch_lightning",),
            )
        )


@check("opacus/ModuleValidator", "opacus")
def validator() -> str:
    """The validator knows torch's classes alone: where it passes ours, the training that follows must be refused."""
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    model = small().train()
    for layer in layers(model):  # Opacus itself refuses what has buffers
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    other = ours(model)
    with torch_first():
        require(len(ModuleValidator.validate(model, strict=False)) == 2, "it does not refuse torch's")
    found = ModuleValidator.validate(other, strict=False)
    if found:
        return f"it finds {len(found)}: {found[0]}"
    return _refused_by_opacus(other, lambda: GradSampleModule(other)(pictures()).square().mean().backward())


def _refused_by_opacus(other: nn.Module, run: Callable[[], Any]) -> str:
    """Require that it is refused, by Opacus or by us: a batch's samples are mixed in each sample's gradient."""
    try:
        with may_refuse(other):
            run()
    except NotImplementedError as error:
        require("BatchNorm" in str(error), f"it is refused without a name: {error}")
        return f"Opacus refuses: {error}"
    raise WrongError("gradients of single samples pass through a layer that mixes samples, without a word")


@check("opacus/GradSampleModule", "opacus")
def grad_samples() -> str:
    from opacus import GradSampleModule

    other = ours(small()).train()
    return _refused_by_opacus(other, lambda: GradSampleModule(other)(pictures()).square().mean().backward())


@check("opacus/PrivacyEngine", "opacus")
def privacy() -> str:
    from opacus import PrivacyEngine

    other = ours(small()).train()

    def private() -> None:
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pictures()), batch_size=4)
        optimizer = torch.optim.SGD(other.parameters(), 0.1)
        made = PrivacyEngine().make_private(
            module=other, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0
        )
        made[0](pictures()).square().mean().backward()

    return _refused_by_opacus(other, private)


def _group() -> None:
    """Make a group of this process alone."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def _sharded(other: nn.Module) -> str:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    _group()
    x = pictures()

    def trained(model: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            y = model(x)
            y.square().mean().backward()
            optimizer.step()
        values = model.state_dict().values()
        return y, [v.full_tensor() if isinstance(v, DTensor) else v for v in values]

    right = trained(copy.deepcopy(other).train())
    fully_shard(other.train())
    mine = trained(other)
    return f"{alike(mine[0], right[0], 'output')}, {alike(mine[1], right[1], 'state after two steps')}"


@check("torch/fully_shard/plain")
def fsdp_plain() -> str:
    return _sharded(plain(small()))


@check("torch/fully_shard/renorm")
def fsdp_renorm() -> str:
    return _sharded(renorm(small()))


@check("torch/compile/training step")
def compiled() -> str:
    model = small()
    other = ours(model)
    with torch_first():
        torch.compile(copy.deepcopy(model), backend="aot_eager")(pictures())
    return same_step(model, other, lambda one, cast: torch.compile(one, backend="aot_eager")(cast(pictures())))
