"""A model of the user's own in a study: replicas side by side, with batch normalization put in or switched off."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.errors import BatchNormError
from batchnorm.study.data import DataError
from batchnorm.study.networks import Placement
from batchnorm.surgery import insert
from batchnorm.surgery.factory import call_factory
from batchnorm.torch import BatchNorm


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model has batch normalization of torch's or ours."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def build(name: str, example: Tensor, outputs: int, placement: Placement, seed: int) -> nn.Module:
    """Return one model of the user's factory with batch normalization at `placement`.

    A model that brings its own batch normalization keeps it where it is. "none" has the same layers, switched off by
    `batch_norm_off` while it trains.

    Raises:
        DataError: in one line, if the factory's model does not fit the data.
    """
    torch.manual_seed(seed)
    model = call_factory("--model", name)
    if not isinstance(model, nn.Module):
        raise DataError(f"`--model {name}` must return a torch.nn.Module, got {type(model).__name__}")
    try:
        with torch.no_grad():
            shape = tuple(model.eval()(example).shape)
        if not has_batch_norm(model):
            insert(model, example, "after" if placement == "after" else "before")
        _start_afresh(model)
    except BatchNormError as error:
        raise DataError(f"`--model {name}`: {error}") from None
    except Exception as error:
        raise DataError(f"`--model {name}` does not take x of shape {tuple(example.shape)}: {error}") from None
    if shape not in {(len(example), outputs)} | ({(len(example),)} if outputs == 1 else set()):
        raise DataError(f"`--model {name}` must return shape {(len(example), outputs)}, got {shape}")
    return model.train()


def _start_afresh(model: nn.Module) -> None:
    """Reset running statistics, so that a layer that is switched off is γ·x + β."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            if not module.track_running_stats:
                raise BatchNormError(f"layer {name!r} keeps no running statistics, which predictions need")
            module.reset_running_stats()
            if isinstance(module, BatchNorm):
                module.nonfinite = "propagate"  # too high a learning rate is part of the study, and no surprise


class SideBySide(nn.Module):
    """R models as one: (R, N, …) → (R, N, outputs). Slower than one batched computation, and right for any model."""

    def __init__(self, models: Sequence[nn.Module], outputs: int) -> None:
        """Take the models, one a replica, and how many numbers each puts out."""
        super().__init__()
        self.outputs = outputs
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        """Run each model on its own batch."""
        return torch.stack(
            [model(batch).reshape(len(batch), self.outputs) for model, batch in zip(self.models, x, strict=True)]
        )
