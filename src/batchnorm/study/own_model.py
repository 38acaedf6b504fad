"""A model of the user's own in a study: replicas side by side, with batch normalization put in or switched off."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.errors import BatchNormError
from batchnorm.study.arrays import split_columns
from batchnorm.study.data import MOST_EVALUATED, DataError, Dataset
from batchnorm.study.foreign import blaming, seeded
from batchnorm.study.networks import Placement
from batchnorm.surgery import insert
from batchnorm.surgery.factory import call_factory, named
from batchnorm.torch import BatchNorm

MOST_NUMBERS = 2**21  # of the inputs that a model predicts from together: its activations may be many times more
MOST_BYTES = 2**28  # of the rows on which the replicas that train together are evaluated
SPREAD = 0x9E3779B1  # neighbouring seeds times this, modulo 2³², lie far apart


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model has batch normalization of torch's or ours."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def together(data: Dataset) -> int:
    """Return how many replicas may train side by side: each holds its own validation and test rows in float32."""
    rows = 2 * min(MOST_EVALUATED, math.ceil(0.2 * len(data.x)))
    return max(1, MOST_BYTES // (4 * rows * data.x[0].size))


def factory_arguments(name: str, data: Dataset) -> dict[str, int]:
    """Return what the factory asks for by name: `inputs`, the numbers of a row of x, and `outputs`.

    For several inputs it is the first one whose numbers are counted.
    """
    factory = named("--model", name)
    try:
        declared = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # no function, or one that does not say
        return {}
    inputs = data.inputs[0].size if data.inputs else data.x[0].size
    known = {"inputs": int(inputs), "outputs": data.outputs}
    return {argument: value for argument, value in known.items() if argument in declared}


def made(name: str, data: Dataset) -> nn.Module:
    """Call the user's factory, and return its model on the CPU.

    Raises:
        DataError: in one line, if it fails or returns something else.
    """
    with blaming("--model", name, "failed"):
        arguments = factory_arguments(name, data)
        model = named("--model", name)(**arguments) if arguments else call_factory("--model", name)
        model = getattr(model, "_orig_mod", model)  # what torch.compile was given: layers are switched on and off
        if isinstance(model, nn.Module):
            return model.cpu()
    raise DataError(f"`--model {name}` must return a torch.nn.Module, got {type(model).__name__}")


class OwnModel(nn.Module):
    """The user's model as one of a study: rows of `Dataset.x` in, (N, outputs) in float32 out.

    It hands the model its inputs in the dtype of its parameters (or as the integers and masks that they are), always in
    a copy of its own, and tells in one line what goes wrong in it.
    """

    def __init__(self, name: str, model: nn.Module, data: Dataset) -> None:
        """Take the model, and the data that say what it is called with and must return."""
        super().__init__()
        self.model = model
        self.name, self.inputs, self.outputs = name, data.inputs, data.outputs
        self.logit = data.task == "classification" and data.outputs == 2  # one number does for two classes
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def arguments(self, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return what the model is called with."""
        return split_columns(x.clone(), self.inputs, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Run the model on its own batch."""
        rows = f"{len(x)} row{'s' if len(x) > 1 else ''}"
        return self.run(x, f"failed in {'training' if self.training else 'prediction'} on {rows}")

    def run(self, x: Tensor, failing: str) -> Tensor:
        """Run the model, and say of what it raises that it is `failing`."""
        arguments, keywords = self.arguments(x)
        with blaming("--model", self.name, failing):
            output: Any = self.model(*arguments, **keywords)
        output = getattr(output, "logits", output)  # of the models of Hugging Face
        if not isinstance(output, Tensor):
            raise DataError(f"`--model {self.name}` must return a tensor, got {type(output).__name__}")
        single = self.outputs == 1 or self.logit
        if single and output.shape in ((len(x),), (len(x), 1)):
            logit = output.reshape(len(x), 1).float()
            return torch.cat([torch.zeros_like(logit), logit], dim=1) if self.logit else logit
        if output.shape != (len(x), self.outputs):
            raise DataError(
                f"`--model {self.name}` must return shape {(len(x), self.outputs)}, got {tuple(output.shape)}"
                f"{': for any number of rows, so squeeze no axis but the last' if len(x) == 1 else ''}"
            )
        return output.float()


def build(name: str, example: Tensor, data: Dataset, *, placement: Placement, seed: int) -> OwnModel:
    """Return one model of the user's factory with batch normalization at `placement`.

    A model that brings its own batch normalization keeps it where it is. "none" has the same layers, switched off by
    `batch_norm_off` while it trains.

    Args:
        name: Of the factory.
        example: Rows of `data.x` to try it on.
        data: What it is to learn.
        placement: Where batch normalization is put.
        seed: Of the global random numbers while the model is made.

    Raises:
        DataError: in one line, if the factory's model does not fit the data.
    """
    with seeded(seed):
        own = OwnModel(name, made(name, data).eval(), data)
        shapes = ", ".join(str(tuple(part.shape)) for part in _parts(own, example))
        with torch.no_grad():
            own.run(example, f"does not take x of shape {shapes}")
        try:
            if not has_batch_norm(own.model):
                arguments, keywords = own.arguments(example)
                own.model = insert(
                    own.model, keywords or tuple(arguments), "after" if placement == "after" else "before"
                ).model
            _start_afresh(own.model)
        except BatchNormError as error:
            raise DataError(f"`--model {name}`: {error}; put batchnorm.torch.BatchNorm in where you want it") from None
    return own.train()


def _parts(own: OwnModel, example: Tensor) -> list[Tensor]:
    arguments, keywords = own.arguments(example)
    return [*arguments, *keywords.values()]


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
    """R models as one: (R, N, …) → (R, N, outputs). Slower than one batched computation, and right for any model.

    In training each model draws its random numbers (those of dropout) from a stream of its own, which follows from its
    seed and from the global random numbers: where those are seeded by the step, equal seeds drop the same units in the
    same step, whatever else is trained beside them.
    """

    def __init__(self, models: Sequence[nn.Module], outputs: int, seeds: Sequence[int] = ()) -> None:
        """Take the models, one a replica, how many numbers each puts out, and the seeds of their random numbers."""
        super().__init__()
        self.outputs, self.seeds = outputs, tuple(seeds)
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        """Run each model on its own batch."""
        if not (self.training and self.seeds):
            return torch.stack([self._one(model, batch) for model, batch in zip(self.models, x, strict=True)])
        drawn = int(torch.randint(2**32, ()))
        after = torch.get_rng_state()
        outputs: list[Tensor] = []
        for model, batch, seed in zip(self.models, x, self.seeds, strict=True):
            torch.default_generator.manual_seed((drawn + seed * SPREAD) % 2**32)
            outputs.append(self._one(model, batch))
        torch.set_rng_state(after)
        return torch.stack(outputs)

    def predict(self, x: Tensor) -> Tensor:
        """Run each model, as it is, on a part of the rows at a time."""
        rows = max(1, MOST_NUMBERS // max(1, x[0, 0].numel()))
        return torch.cat([self(part) for part in x.split(rows, dim=1)], dim=1)

    def _one(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).reshape(len(batch), self.outputs)
