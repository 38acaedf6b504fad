"""Tools that take layers out of a model, or read them without calling them: timm's, torch's, and functional calls."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from check import check, may_refuse, require, torch_first
from compare import alike, all_ours, flat, fused, ours, pictures, small
from torch import nn
from torch.nn.utils import fusion

from batchnorm.torch import BatchNorm


def _kept(other: nn.Module, tool: Callable[[nn.Module], nn.Module]) -> str:
    """Require that a tool which keeps the outputs of torch's model keeps them of ours, or that it is refused."""
    x = pictures()
    with torch.no_grad():
        with torch_first():
            model = small()
            alike(tool(copy.deepcopy(model)).eval()(x), model(x), "torch's own output")
        before = other.eval()(x)
        with may_refuse(other):
            after = tool(copy.deepcopy(other)).eval()(x)
        return alike(after, before, "output")


def _frozen(model: nn.Module) -> nn.Module:
    from timm.layers import freeze_batch_norm_2d

    return freeze_batch_norm_2d(model)


def _split(model: nn.Module) -> nn.Module:
    from timm.layers import convert_splitbn_model

    return convert_splitbn_model(model, num_splits=2)


def _folded(model: nn.Module) -> nn.Module:
    parts: Any = [*model]
    pairs = [(a, b) for a, b in pairwise(parts) if isinstance(b, nn.BatchNorm2d)]
    for conv, norm in pairs:
        parts[parts.index(conv)] = fusion.fuse_conv_bn_eval(conv, norm)
        parts.remove(norm)
    return nn.Sequential(*parts)


@check("timm tools/freeze_batch_norm_2d/plain", "timm")
def freeze_plain() -> str:
    return _kept(ours(small()), _frozen)


@check("timm tools/freeze_batch_norm_2d/with activation", "timm")
def freeze_fused() -> str:
    return _kept(fused(small()), _frozen)


@check("timm tools/freeze_batch_norm_2d/and back", "timm")
def freeze_back() -> str:
    from timm.layers import unfreeze_batch_norm_2d

    return _kept(ours(small()), lambda model: unfreeze_batch_norm_2d(_frozen(model)))


@check("timm tools/convert_splitbn_model/plain", "timm")
def split_plain() -> str:
    return _kept(ours(small()), _split)


@check("timm tools/convert_splitbn_model/with activation", "timm")
def split_fused() -> str:
    return _kept(fused(small()), _split)


@check("torch/fuse_conv_bn_eval/plain")
def fold_plain() -> str:
    return _kept(ours(small()), _folded)


@check("torch/fuse_conv_bn_eval/with activation")
def fold_fused() -> str:
    return _kept(fused(small()), _folded)


@check("torch/fx fuse/plain")
def fx_fuse() -> str:
    from torch.fx.experimental.optimization import fuse

    return _kept(ours(small()), lambda model: fuse(model.eval()))


@check("torch/fx fuse/with activation")
def fx_fuse_fused() -> str:
    from torch.fx.experimental.optimization import fuse

    return _kept(fused(small()), lambda model: fuse(model.eval()))


@check("torch/convert_sync_batchnorm/plain")
def sync_plain() -> str:
    return _kept(ours(small()), nn.SyncBatchNorm.convert_sync_batchnorm)


@check("torch/convert_sync_batchnorm/with activation")
def sync_fused() -> str:
    return _kept(fused(small()), nn.SyncBatchNorm.convert_sync_batchnorm)


@check("torch/functional_call/strict")
def functional() -> str:
    model = small()
    other = ours(model).train()
    x, state = pictures(), {name: value.clone() for name, value in model.state_dict().items()}
    with torch_first():
        torchs = torch.func.functional_call(copy.deepcopy(model).train(), state, x, strict=True)
    mine = torch.func.functional_call(other, {n: v.clone() for n, v in model.state_dict().items()}, x, strict=True)
    return alike(mine, torchs, "output")


@check("torch/load_state_dict/strict, assign, to_empty")
def loading() -> str:
    model = small()
    with torch.device("meta"):
        empty = ours(small())
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)
    other = ours(small()).to_empty(device="cpu")
    other.load_state_dict(model.state_dict(), strict=True)
    for one in (empty, other):
        told = [repr(layer) for layer in one.modules() if isinstance(layer, BatchNorm) and "nonfinite" in repr(layer)]
        require(not told, f"{told[:1]}")
        alike(one.eval()(pictures()), model(pictures()), "output")
    return f"{all_ours(other)} layers, off by 0"


def _traced(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.jit.trace(model, x, check_trace=False)(x)


def _scripted(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.jit.script(model)(x)


def _jit(compiled: Callable[[nn.Module, torch.Tensor], torch.Tensor], training: bool) -> str:
    x, model = pictures(), small().train(training)
    other = ours(model)
    with torch_first():
        compiled(copy.deepcopy(model), x)
    right = copy.deepcopy(model)(x)
    with may_refuse(other):
        mine = compiled(copy.deepcopy(other), x)
    require(flat(mine).numel() > 0, "no output")
    return alike(mine, right, "output")


@check("torch/jit.trace/inference")
def trace_inference() -> str:
    return _jit(_traced, training=False)


@check("torch/jit.trace/training")
def trace_training() -> str:
    return _jit(_traced, training=True)


@check("torch/jit.script/inference")
def script_inference() -> str:
    return _jit(_scripted, training=False)


@check("torch/jit.script/training")
def script_training() -> str:
    return _jit(_scripted, training=True)
