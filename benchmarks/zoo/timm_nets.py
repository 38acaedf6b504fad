"""timm's nets: inference, there and back, a training step, and what is exported."""

import copy
from collections import Counter
from functools import lru_cache, partial
from typing import Any

import torch
from check import CHECKS, Check, require, torch_first
from compare import all_ours, flat, ours, same_inference, same_step, stirred
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.surgery import convert

SIZES = {"levit_128s": 224, "levit_conv_128s": 224, "efficientformer_l1": 224, "inception_v3": 96}
SIZE = 64  # of the images of all others
NETS = (
    "resnet18", "resnet26d", "resnest14d", "skresnet18", "ecaresnet26t", "res2net50_14w_8s", "efficientnet_b0",
    "tf_efficientnetv2_b0", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv4_conv_small", "densenet121",
    "dpn48b", "regnetx_002", "regnety_002", "hrnet_w18_small", "ese_vovnet19b_dw", "repvgg_a0", "inception_v3",
    "legacy_xception", "levit_128s", "levit_conv_128s", "ghostnet_050", "repghostnet_050", "mixnet_s",
    "selecsls42", "dla46_c", "efficientformer_l1", "fbnetc_100", "fbnetv3_b", "tinynet_e", "cspresnet50",
    "hardcorenas_a", "mnasnet_small", "lcnet_050", "rexnet_100", "hgnetv2_b0", "starnet_s1", "repvit_m0_9",
    "mobilevit_xxs",
)  # fmt: skip
BATCH = 4
BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")


@lru_cache(1)
def net(name: str) -> nn.Module:
    """Return timm's net with random weights, and statistics that are not where they start; it is not to be changed."""
    import timm

    torch.manual_seed(0)
    return stirred(timm.create_model(name, num_classes=10)).eval()


def images(name: str, batch: int = BATCH) -> torch.Tensor:
    """Return images of a size that suits it."""
    size = SIZES.get(name, SIZE)
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def _calls(x: torch.Tensor) -> Any:
    return lambda model, cast: model(cast(x))


def inference(name: str) -> str:
    """Compare outputs in inference with those in float64."""
    model = net(name)
    other = ours(model)
    count = all_ours(other)
    return f"{count} layers, {same_inference(model, other, _calls(images(name, 2)))}"


def back(model: nn.Module, like: nn.Module) -> nn.Module:
    """Return the model with the classes of the layers that it had, timm's and torch's."""
    timms = [n for n, m in like.named_modules() if isinstance(m, _BatchNorm) and type(m).__module__.startswith("timm")]
    if timms:
        model = convert(model, "timm", layers=lambda n, _: n in timms).model
    if len(timms) < sum(isinstance(m, _BatchNorm) for m in like.modules()):
        model = convert(model, "torch", layers=lambda n, _: n not in timms).model
    return model


def there_and_back(name: str) -> str:
    """Compare modules, their descriptions and the outputs with those before `convert` and back."""
    model = net(name)
    again = back(ours(model), model)
    kinds = [[(n, type(m)) for n, m in one.named_modules()] for one in (model, again)]
    differ = [f"{a} for {b}" for a, b in zip(kinds[1], kinds[0], strict=False) if a != b]
    require(not differ and len(kinds[0]) == len(kinds[1]), f"other modules: {differ[:1] or [*map(len, kinds)]}")
    lines = [repr(one).splitlines() for one in (model, again)]
    differ = [f"{a.strip()} for {b.strip()}" for a, b in zip(lines[1], lines[0], strict=True) if a != b]
    require(not differ, f"{len(differ)} modules are described otherwise: {differ[:1]}")
    states = [one.state_dict() for one in (model, again)]
    require([*states[0]] == [*states[1]], "the state_dict has other names")
    require(all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True)), "other states")
    x = images(name, 2)
    with torch.no_grad():
        off = float((flat(model(x)) - flat(again(x))).abs().max())
    require(off == 0.0, f"the outputs are off by {off:.1e}")
    return f"{len(kinds[0])} modules alike, outputs off by {off:.0f}"


def training(name: str) -> str:
    """Compare outputs, gradients and running statistics of a training step with those in float64."""
    model = net(name)
    return same_step(model, ours(model), _calls(images(name)))


def nodes(model: nn.Module, x: torch.Tensor) -> tuple[Counter[str], Any]:
    """Return how many nodes of each kind the exported model has, and the model."""
    program = torch.export.export(model, (x,))
    called = (n for n in program.graph.nodes if n.op == "call_function")
    return Counter(str(n.target).split(".")[1] for n in called if "." in str(n.target)), program.module()


def exported(name: str) -> str:
    """Compare the exported graph with that of torch's layers, and its outputs with those in float64."""
    model, x = net(name), images(name, 2)
    other = ours(model)
    with torch_first():
        theirs, _ = nodes(copy.deepcopy(model), x)
    mine, program = nodes(other, x)
    counts = [sum(found[kind] for kind in BATCH_NORMS) for found in (mine, theirs)]
    told = f"{mine.total()} nodes for {theirs.total()}, batch norms {counts[0]} for {counts[1]}"
    require(mine.total() <= theirs.total() and counts[0] == counts[1], told)
    with torch.no_grad():
        eager, graph = flat(other(x)), flat(program(x))
    off = float((eager - graph).norm() / eager.norm())
    require(off < 1e-5, f"exported and eager outputs differ by {off:.1e}; {told}")
    return f"{told}, exported and eager outputs differ by {off:.1e}"


for _name in NETS:
    for _what in (inference, there_and_back, training, exported):
        CHECKS.append(Check(f"timm/{_name}/{_what.__name__}", partial(_what, _name), ("timm",)))
