"""A watched run: what the noise of its gradients says about the batch size, replica by replica."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from batchnorm.batch_size import gradient_noise
from batchnorm.batch_size.gradient_noise import Block, GroupGradients, NoiseScale
from batchnorm.batch_size.judge import along
from batchnorm.batch_size.training import FIRST, Pilot, Stage
from batchnorm.models.preserve import held_buffers
from batchnorm.study.own_model import SideBySide
from batchnorm.study.training import Rows, evaluated_steps, losses, predict, train_mode


def stages(steps: int) -> list[int]:
    """Return the evaluated steps at which the noise is measured: the first from 0, 8, 16, 32, … on each.

    >>> stages(40)
    [0, 8, 18, 33]
    """
    marks = evaluated_steps(steps)
    wanted = [0, *(FIRST << i for i in range(steps.bit_length()))]
    return sorted({min(m for m in marks if m >= w) for w in wanted if w <= steps})


def probe(network: nn.Module, rows: Rows, step: int) -> list[dict[str, Any]]:
    """Measure each replica's gradient noise at some of the steps, and its losses: in validation, and in training."""
    spec = rows.specs[0]
    if step not in stages(spec.steps):
        return [{} for _ in rows.specs]
    x, y = rows.part("validation")
    held_out = losses(predict(network, x), y, rows.data).tolist()
    with held_buffers(network), torch.random.fork_rng(devices=[]):
        train_mode(network, spec.placement)
        blocks, trained = _blocks(network, rows, step)
    seen = zip(held_out, trained, blocks, strict=True)
    return [{"loss": loss, "trained": in_training, "blocks": found} for loss, in_training, found in seen]


def _blocks(network: nn.Module, rows: Rows, step: int) -> tuple[list[list[Block]], list[float]]:
    """Return what groups of the study's batch size, or of half the rows, say; and their mean loss."""
    count = rows.splits[0].train.size
    group = min(rows.specs[0].batch_size, count // 2)
    per_group = group * gradient_noise.correction(count, group)
    random = [np.random.default_rng([s.seed, step]) for s in rows.specs]
    whole = [nn.Parameter(torch.empty(0)) for _ in rows.specs]
    replicas = [GroupGradients([p]) for p in whole]
    blocks: list[list[Block]] = [[] for _ in rows.specs]
    total, draws = torch.zeros(len(rows.specs)), gradient_noise.BLOCKS * gradient_noise.GROUPS
    for drawn in range(draws):
        pairs = zip(rows.splits, random, strict=True)
        x, y = rows.take(np.stack([part.train[r.permutation(count)[:group]] for part, r in pairs]))
        loss = losses(network(x), y, rows.data)
        loss.sum().backward()
        total += loss.detach()
        for found, replica, parameter, gradient in zip(blocks, replicas, whole, _gradients(network), strict=True):
            parameter.data, parameter.grad = gradient, gradient
            replica.take()
            if drawn % gradient_noise.GROUPS == gradient_noise.GROUPS - 1 and (made := replica.block(per_group)):
                found.append(made)
    return blocks, (total / draws).tolist()


def _gradients(network: nn.Module) -> torch.Tensor:
    """Return the gradients that a backward has left, all of a replica in one row, and clear them."""
    if isinstance(network, SideBySide):
        parts = [[p.grad.flatten() for p in model.parameters() if p.grad is not None] for model in network.models]
        found = torch.stack([torch.cat(of_model) for of_model in parts])
    else:
        found = torch.cat([p.grad.flatten(1) for p in network.parameters() if p.grad is not None], dim=1)
    network.zero_grad()
    return found


def predicted(rate: float, probed: Sequence[Mapping[str, Any]]) -> NoiseScale | None:
    """Return the noise scale along a watched run: the median, weighed by how much the loss fell."""
    looks = [Stage(s["step"], s["loss"], tuple(Block(*b) for b in s["blocks"]), trained=s["trained"]) for s in probed]
    seen = [stage for stage in looks if len(stage.blocks) > 1 and math.isfinite(stage.loss + stage.trained)]
    return along(Pilot(rate, seen)) if seen else None
