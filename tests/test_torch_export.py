"""Leaving eager mode: torch.compile, torch.export and ONNX give what eager gives."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from batchnorm.torch import BatchNorm, BatchNorm2d
from namespaces import to_numpy
from tolerance import assert_close

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
quiet = [
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning"),  # by torch.compile itself
]


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4, **options), nn.ReLU(), nn.Flatten(), BatchNorm(64))
    for layer in (model[1], model[4]):
        nn.init.uniform_(layer.weight)
        nn.init.uniform_(layer.bias)
        nn.init.uniform_(layer.running_mean)
        nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return model


def images(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n))


def assert_equal_steps(compiled: nn.Module, eager: nn.Module, plain: nn.Module) -> None:
    """Run two steps of both; `plain` is the module inside of `compiled`."""
    for seed in range(2):
        x = images() + seed
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, y = eager(theirs), compiled(mine)
        assert_close(to_numpy(y), to_numpy(expected), "float32", 4.0)
        y.sigmoid().square().sum().backward()
        expected.sigmoid().square().sum().backward()
        assert_close(to_numpy(mine.grad), to_numpy(theirs.grad), "float32", 4.0)
    for got, wanted in zip(plain.parameters(), eager.parameters(), strict=True):
        largest = max(1.0, float(wanted.grad.abs().max()))
        assert_close(to_numpy(got.grad), to_numpy(wanted.grad), "float32", 4.0 * largest)
    for got, wanted in zip(plain.buffers(), eager.buffers(), strict=True):
        assert_close(to_numpy(got), to_numpy(wanted), "float32", 4.0)


def compare(backend: str, training: bool, momentum: float | None) -> int:
    """Compare compiled with eager; return how many graphs that took."""
    torch.compiler.reset()
    eager = network(momentum=momentum).train(training)
    plain = copy.deepcopy(eager)
    counter = CompileCounterWithBackend(backend)
    assert_equal_steps(torch.compile(plain, backend=counter, fullgraph=True), eager, plain)
    assert plain[1].num_batches_tracked == (2 if training else 0)
    return counter.frame_count


class TestCompiled:
    pytestmark = quiet

    @pytest.mark.parametrize("momentum", [0.1, None])
    @pytest.mark.parametrize("training", [True, False])
    def test_one_graph_serves_every_step_and_gives_what_eager_gives(
        self, training: bool, momentum: float | None
    ) -> None:
        assert compare("aot_eager", training, momentum) == 1

    def test_a_first_use_of_a_rank_compiles_once(self) -> None:
        torch.compiler.reset()
        counter, x = CompileCounterWithBackend("aot_eager"), torch.randn(2, 3, *[1] * 6)  # no other test has rank 8
        compiled = torch.compile(BatchNorm(3), backend=counter, fullgraph=True)
        for _ in range(2):
            compiled(x)
        assert counter.frame_count == 1

    @pytest.mark.skipif(COMPILER is None, reason="inductor compiles C++, and there is no compiler for it")
    @pytest.mark.parametrize("training", [True, False])
    def test_inductor_gives_what_eager_gives(
        self, training: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        assert compare("inductor", training, 0.1) == 1


class TestExported:
    pytestmark = quiet

    def test_a_program_of_one_size_gives_what_eager_gives(self) -> None:
        model = network().eval()
        program = torch.export.export(model, (images(),))
        assert_close(to_numpy(program.module()(images())), to_numpy(model(images())), "float32", 4.0)

    def test_a_program_of_any_batch_gives_what_eager_gives(self) -> None:
        model, batch = network().eval(), torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
        for n in (1, 2, 7):
            assert_close(to_numpy(program.module()(images(n))), to_numpy(model(images(n))), "float32", 4.0)

    def test_a_program_saved_and_loaded_holds_the_statistics(self, tmp_path: Path) -> None:
        model = network().eval()
        program = torch.export.export(model, (images(),))
        torch.export.save(program, tmp_path / "model.pt2")
        again = torch.export.load(tmp_path / "model.pt2")
        assert_close(to_numpy(again.module()(images())), to_numpy(model(images())), "float32", 4.0)
        assert torch.equal(again.state_dict["1.running_var"], model[1].running_var)

    def test_inference_leaves_no_write_to_the_statistics_in_the_program(self) -> None:
        program = torch.export.export(network().eval(), (images(),))
        assert dict(program.graph_signature.buffers_to_mutate) == {}

    def test_a_program_for_training_moves_the_statistics(self) -> None:
        program = torch.export.export(network().train(), (images(),)).run_decompositions({})
        written = set(program.graph_signature.buffers_to_mutate.values())
        assert {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")} <= written


class TestOnnx:
    pytestmark = quiet

    def test_the_runtime_gives_what_eager_gives_for_any_batch(self, tmp_path: Path) -> None:
        import onnxruntime

        model, path = network().eval(), tmp_path / "model.onnx"
        dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
        torch.onnx.export(
            model, (images(),), path, dynamo=True, dynamic_shapes=dynamic, input_names=["x"], verbose=False
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for n in (1, 5, 7):
            (y,) = session.run(None, {"x": images(n).numpy()})
            assert_close(y, to_numpy(model(images(n))), "float32", 4.0)
