"""On the way to other runtimes: ONNX, and the quantization of torch and of torchao."""

import copy
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from check import CHECKS, Check, check, may_refuse, require, torch_first
from compare import alike, flat, fused, no_worse, off, ours, pictures, small
from timm_nets import images, net
from torch import Tensor, nn

from batchnorm.surgery import convert
from batchnorm.torch import BatchNorm

ONNX = (
    "resnet18", "efficientnet_b0", "mobilenetv3_small_100", "densenet121", "regnetx_002", "repvgg_a0",
    "ghostnet_050", "fbnetc_100", "dla46_c", "lcnet_050",
)  # fmt: skip
QUANTIZED = ("resnet18", "mobilenetv2_100", "regnetx_002", "dla46_c", "lcnet_050")


def _in_onnxruntime(model: nn.Module, x: Tensor) -> tuple[Counter[str], Tensor]:
    """Return how many nodes of each kind the ONNX model has, and what onnxruntime makes of the inputs."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.onnx")
        torch.onnx.export(model, (x,), file, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        result = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        kinds = Counter(node.op_type for node in onnx.load(file).graph.node)
    return kinds, torch.from_numpy(result)


def onnx_net(name: str) -> str:
    """Compare the ONNX model with that of torch's layers, and its outputs with those in float64."""
    return _onnx(net(name), images(name, 2))


def _onnx(model: nn.Module, x: Tensor, other: nn.Module | None = None) -> str:
    with torch_first():
        theirs, torchs = _in_onnxruntime(copy.deepcopy(model), x)
    with torch.no_grad():
        truth = flat(copy.deepcopy(model).double()(x.double()))
    mine, result = _in_onnxruntime(other or ours(model), x)
    kept = [f"{kind} {mine[kind]} for {theirs[kind]}" for kind in ("BatchNormalization", "Conv")]
    told = f"{mine.total()} nodes for {theirs.total()}, {', '.join(kept)}, " + no_worse(
        flat(result), flat(torchs), truth, "output"
    )
    require(mine.total() <= theirs.total(), told)
    return told


for _name in ONNX:
    CHECKS.append(Check(f"onnx/{_name}", partial(onnx_net, _name), ("timm", "onnx", "onnxruntime", "onnxscript")))


@check("onnx/with activation", "onnx", "onnxruntime", "onnxscript")
def onnx_fused() -> str:
    return _onnx(small(), pictures(), fused(small()))


def _example(x: Tensor) -> tuple[Tensor]:
    return (x,)


def _pt2e(model: nn.Module, x: Tensor) -> tuple[Tensor, Counter[str]]:
    """Quantize by torchao's PT2E with the quantizer for x86."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared: Any = prepare_pt2e(torch.export.export(model, _example(x)).module(), quantizer)
    prepared(x)
    done = convert_pt2e(prepared)
    return done(x), Counter(str(node.target) for node in done.graph.nodes if node.op == "call_function")


def _same_quantized(name: str, quantize: Callable[[nn.Module, Tensor], tuple[Tensor, Counter[str]]]) -> str:
    """Quantize with torch's layers and with ours: as many quantized nodes, as near to the float model."""
    model, x = net(name), images(name, 2)
    other = ours(model)
    with torch.no_grad():
        right = flat(model(x))
        with torch_first():
            torchs, theirs = quantize(copy.deepcopy(model), x)
        with may_refuse(other):
            mine, kinds = quantize(copy.deepcopy(other), x)
    errors = [off(flat(one), right) for one in (mine, torchs)]
    told = f"{kinds.total()} nodes for {theirs.total()}, off by {errors[0]:.3f} for {errors[1]:.3f} of the outputs"
    require(kinds == theirs, f"{told}: {dict((kinds - theirs).most_common(2))} too many")
    require(errors[0] <= 1.1 * errors[1] + 1e-3, told)
    return told


def _fx(model: nn.Module, x: Tensor, *, training: bool = False) -> tuple[Tensor, Counter[str]]:
    """Quantize by torch's FX mode."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

    prepare = prepare_qat_fx if training else prepare_fx
    mapping = (get_default_qat_qconfig_mapping if training else get_default_qconfig_mapping)("x86")
    prepared = prepare(model.train(training), mapping, _example(x))
    prepared(x)
    done = convert_fx(prepared.eval())
    modules = dict(done.named_modules())
    kinds = [type(modules[n.target]).__name__ for n in done.graph.nodes if n.op == "call_module"]
    return done(x), Counter(kinds)


for _name in QUANTIZED:
    CHECKS.append(Check(f"quantization/pt2e/{_name}", partial(_same_quantized, _name, _pt2e), ("timm", "torchao")))
    CHECKS.append(Check(f"quantization/prepare_fx/{_name}", partial(_same_quantized, _name, _fx), ("timm",)))
CHECKS.append(
    Check("quantization/prepare_qat_fx/resnet18", partial(_same_quantized, "resnet18", partial(_fx, training=True)))
)


@check("quantization/prepare_fx/converted back", "timm")
def fx_back() -> str:
    model, x = small(), pictures()
    again = convert(ours(model), "torch").model
    with torch.no_grad():
        (torchs, theirs), (mine, kinds) = _fx(copy.deepcopy(model), x), _fx(again, x)
    require(kinds == theirs, f"{dict(kinds)} for {dict(theirs)}")
    return alike(mine, torchs, "quantized output")


def _fused_modules(training: bool) -> str:
    from torch.ao.quantization import fuse_modules, fuse_modules_qat

    tool = fuse_modules_qat if training else fuse_modules
    names = [["0", "1", "2"], ["3", "4", "5"]]
    model = small().train(training)
    other = ours(model)
    with torch_first():
        tool(copy.deepcopy(model), names)
    with may_refuse(other):
        done = tool(copy.deepcopy(other), names)
    with torch.no_grad():
        told = alike(done.eval()(pictures()), model.eval()(pictures()), "output")
    left = sum(isinstance(layer, BatchNorm) for layer in done) if training else 0
    require(not left, f"{left} layers are not fused")
    return told


@check("quantization/fuse_modules")
def fuse_modules() -> str:
    return _fused_modules(training=False)


@check("quantization/fuse_modules_qat")
def fuse_modules_qat() -> str:
    return _fused_modules(training=True)


@check("torchao/move_exported_model_to_eval/exported in training", "torchao")
def moved() -> str:
    from torchao.quantization.pt2e import move_exported_model_to_eval

    model, x = small().train(), pictures()
    other = ours(model)

    def moved_to_eval(one: nn.Module) -> Tensor:
        program: Any = torch.export.export(copy.deepcopy(one), _example(x)).module()
        move_exported_model_to_eval(program)
        return program(x)

    right = copy.deepcopy(model).eval()(x)
    with torch_first():
        require(off(flat(moved_to_eval(model)), flat(right)) < 1e-5, "torch's own is not in inference")
    with may_refuse(other):
        mine = moved_to_eval(other)
    return alike(mine, right, "output")


@check("torch/export/training, a step")
def exported_training() -> str:
    model, x = small().train(), pictures()
    other = ours(model)
    right = copy.deepcopy(model)
    torchs = right(x)
    with may_refuse(other):
        program: Any = torch.export.export(copy.deepcopy(other), _example(x)).module()
        mine = program(x)
    told = alike(mine, torchs, "output")
    states = dict(right.named_buffers())
    moved = {n: b for n, b in program.named_buffers() if n.endswith(("running_mean", "running_var"))}
    require(bool(moved), "it has no running statistics")
    alike([*moved.values()], [states[name] for name in moved], "running statistics")
    return told
