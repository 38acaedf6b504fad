"""The batch size of the script that trains the recommended setting: what `advise` names on this machine."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchnorm.batch_size import advise
from batchnorm.errors import BatchNormError
from batchnorm.study.design import Study
from batchnorm.study.networks import ACTIVATIONS
from batchnorm.study.script import Setting
from batchnorm.study.training import Rows, losses
from batchnorm.torch import BatchNorm

BUDGET_S = 5.0


def network(study: Study, setting: Setting) -> nn.Sequential:
    """Return the recommended network with plain layers; what else normalises costs about as much as layer norm."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise((study.data.x[0].size, *setting.hidden)):
        activation = ACTIVATIONS[setting.activation].module()
        norm = BatchNorm(outputs) if setting.norm == "batch" else nn.LayerNorm(outputs)
        placed = {"none": [activation], "before": [norm, activation], "after": [activation, norm]}
        layers += [nn.Linear(inputs, outputs), *placed[setting.placement]]
    return nn.Sequential(*layers, nn.Linear(setting.hidden[-1], study.data.outputs))


def advised(study: Study, setting: Setting) -> Setting:
    """Return the setting with the batch size that `advise` names, and the learning rate that goes with it.

    The study's batch size stays for a model of the user's own, in a quick study, and where confidence is low.
    """
    if setting.activation == "own" or study.settings.quick:
        return setting
    spec = study.seeds(study.spec(setting.activation, placement="before"), 0, 1)[0]
    (x, *_), (y, *_) = Rows.of(study.data, [spec]).part("train")
    torch.manual_seed(spec.seed)
    model = network(study, setting)
    optimizers: dict[str, Any] = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
    momentum = {"momentum": 0.9} if setting.optimizer == "momentum" else {}
    optimizer = optimizers.get(setting.optimizer, torch.optim.SGD)(model.parameters(), lr=setting.rate, **momentum)
    loader = DataLoader(TensorDataset(x, y), batch_size=min(setting.batch_size, len(x)))

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return losses(output[None], target[None], study.data)[0]

    try:
        advice = advise(model, loss, loader, optimizer, budget_s=BUDGET_S, progress=False)
    except BatchNormError:
        return setting
    if advice.confidence == "low":
        return setting
    rate = float(f"{setting.rate * (advice.learning_rate_factor or 1.0):.2g}")
    reason = (
        f"batches of {advice.batch_size}: advised for this machine with {advice.confidence} confidence",
        f"learning rate {rate:g}: {setting.rate:g} was the best one tried in batches of {setting.batch_size}",
    )
    return replace(setting, batch_size=advice.batch_size, rate=rate, reason=(*setting.reason, *reason))
