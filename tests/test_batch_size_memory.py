"""Memory: counts by hand, and a fake allocator that runs out of it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import batchnorm.torch as ours
import tolerance
from batchnorm.batch_size import memory
from batchnorm.batch_size.found import Found, together
from batchnorm.batch_size.memory import Allocator, Memory, SavedTensors

FLOAT = 4  # bytes

# Memory on a CPU: what is saved for the backward.


def saved(model: nn.Module, *shape: int) -> int:
    """Return the bytes that are saved in a step on an input of a shape."""
    return SavedTensors(model).bytes(lambda: model(torch.randn(shape)).sum().backward())


def mlp(layer: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), layer(30), nn.ReLU(), nn.Linear(30, 5))


def convnet(layer: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), layer(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))


LAYERS: dict[str, Any] = {"none": lambda _: nn.Identity(), "torch": nn.BatchNorm1d, "ours": ours.BatchNorm1d}
LAYERS2D: dict[str, Any] = {"none": lambda _: nn.Identity(), "torch": nn.BatchNorm2d, "ours": ours.BatchNorm2d}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_saved_bytes_are_a_line_in_the_batch_size(layer: str, network: str) -> None:
    model, shape = (mlp(LAYERS[layer]), (20,)) if network == "mlp" else (convnet(LAYERS2D[layer]), (3, 8, 8))
    counted = Memory("", 0, {size: saved(model, size, *shape) for size in (4, 8, 24)})
    assert counted.bytes[24] - counted.bytes[8] == 4 * (counted.bytes[8] - counted.bytes[4]) > 0
    assert counted.error == pytest.approx(0.0, abs=tolerance.EXACT_LINE["rel"])
    assert counted.line[1] == pytest.approx((counted.bytes[8] - counted.bytes[4]) / 4, **tolerance.EXACT_LINE)


@pytest.mark.parametrize("size", [1, 7])
def test_saved_bytes_are_those_counted_by_hand(size: int) -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU())
    assert saved(model, size, 20) == size * (20 + 30) * FLOAT  # the input of one, the output of the other


def test_a_storage_that_is_saved_twice_counts_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x), self.a(x), self.b(x[:, :3])], 1)  # the same input, and a view of it

    assert saved(Twice(), 5, 6) == 5 * 6 * FLOAT


def test_weights_and_buffers_are_there_anyway() -> None:
    model = nn.BatchNorm1d(1000, affine=True).eval()
    assert saved(model, 2, 1000) < 1000 * FLOAT * 3  # of what is saved, no more than the input


def test_what_a_control_group_leaves_free(tmp_path: Path) -> None:
    assert memory.free_in_cgroup(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert memory.free_in_cgroup(tmp_path) == 300.0
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert memory.free_in_cgroup(tmp_path) == 450.0
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_in_cgroup(tmp_path) == math.inf


# Memory on a GPU: the peaks of an allocator, which a fake one has too.


class FakeCuda:
    """Answers like torch.cuda; a step takes `needs(size)` bytes beside the model's."""

    def __init__(self, needs: Callable[[int], int], limit: int, model: int = 1000) -> None:
        self.needs, self.limit, self.allocated, self.cached = needs, limit, model, 500
        self.peak = 10 * limit  # of something earlier
        self.synchronized = 0
        self.ran: list[int] = []

    def step(self, size: int) -> None:
        taken = self.allocated + self.needs(size)
        if taken > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        self.peak = max(self.peak, taken)
        self.ran.append(size)

    def memory_allocated(self, _: Any) -> int:
        return self.allocated

    def max_memory_allocated(self, _: Any) -> int:
        return self.peak

    def reset_peak_memory_stats(self, _: Any) -> None:
        self.peak = self.allocated

    def memory_reserved(self, _: Any) -> int:
        return self.allocated + self.cached

    def empty_cache(self) -> None:
        self.cached = 0

    def mem_get_info(self, _: Any) -> tuple[int, int]:
        return self.limit - self.allocated - self.cached, self.limit

    def synchronize(self, _: Any) -> None:
        self.synchronized += 1


def test_an_allocator_is_read_for_what_a_step_adds() -> None:
    fake = FakeCuda(lambda size: 50 + 10 * size, 100_000)
    meter = Allocator(fake)
    assert meter.bytes(lambda: fake.step(8)) == 130
    assert meter.bytes(lambda: fake.step(4)) == 90  # not the peak of the step before
    assert meter.available() == 99_000
    assert fake.synchronized >= 4  # before and after each step


def explored(fake: FakeCuda, rows: int = 1 << 20, sizes: tuple[int, ...] = (4, 8, 16)) -> Memory:
    """Measure small sizes and look for the largest, as the course does."""
    meter = Allocator(fake)
    known = Memory(meter.source, meter.available())
    for size in sizes:

        def step(size: int = size) -> None:
            known.bytes[size] = meter.bytes(lambda: fake.step(size))

        if not known.attempt(size, step):
            break
    memory.verify(known, fake.step, most=rows, enough=lambda _: False)
    return known


def test_the_line_names_a_size_that_then_runs() -> None:
    fake = FakeCuda(lambda size: 300 + 100 * size, 101_000)
    known = explored(fake)
    assert known.line == (pytest.approx(300.0, **tolerance.EXACT_LINE), pytest.approx(100.0, **tolerance.EXACT_LINE))
    assert known.projected == pytest.approx((0.9 * 100_000 - 300) / 100, **tolerance.EXACT_LINE)
    assert known.largest == 768  # the largest friendly size up to 897
    assert known.failed is None
    assert fake.ran == [4, 8, 16, 768]


def test_where_the_line_promises_too_much_a_size_is_found_by_halving() -> None:
    fake = FakeCuda(lambda size: 300 + 100 * size + size * size, 101_000)
    known = explored(fake)
    assert known.largest == 256  # 91,436 bytes; at 384 it would be 186,000
    assert known.failed == 384
    assert known.ran == set(fake.ran)
    assert known.error > 0.0


def fits(fake: FakeCuda, size: int) -> bool:
    return fake.allocated + fake.needs(size) <= fake.limit


@given(
    limit=st.integers(3_000, 10_000_000),
    fixed=st.integers(0, 2_000),
    bend=st.floats(0.0, 20.0),
    rows=st.integers(16, 1 << 17),
)
def test_only_sizes_that_have_run_are_named(limit: int, fixed: int, bend: float, rows: int) -> None:
    fake = FakeCuda(lambda size: fixed + 100 * size + int(bend * size**1.5), limit)
    known = explored(fake, rows)
    assert known.ran == set(fake.ran)
    assert known.largest == max(fake.ran)
    assert known.largest <= rows
    if known.failed is not None:
        assert known.largest < known.failed
        assert not fits(fake, known.failed)
    wanted = min(rows, known.projected)
    friendly = [size for size in (memory.friendly(s) for s in range(1, 513)) if size <= wanted and fits(fake, size)]
    assert known.largest >= max(friendly)  # and none of those is given away


def test_no_step_is_tried_for_which_there_is_no_time() -> None:
    fake = FakeCuda(lambda size: 100 * size, 1_000_000)
    known = Memory("", fake.limit, {4: 400, 8: 800}, {4, 8})
    asked: list[int] = []

    def enough(size: int) -> bool:
        asked.append(size)
        return True

    memory.verify(known, fake.step, most=1 << 20, enough=enough)
    assert (asked, fake.ran, known.largest) == ([8192], [], 8)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    known = Memory("", 1000)

    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        known.attempt(8, broken)
    assert (known.failed, known.ran) == (None, set())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("HIP out of memory"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_lack_of_memory_is_known_by_what_it_says(error: Exception) -> None:
    known = Memory("", 1000)

    def fails() -> None:
        raise error

    assert not known.attempt(64, fails)
    assert not known.attempt(32, fails)
    assert not known.attempt(48, fails)
    assert known.failed == 32  # the smallest
    assert not known.fits(32)
    assert known.fits(31)


def test_several_processes_have_the_memory_of_the_poorest() -> None:
    rich, poor = (Found(100, Memory("", free, {4: needed}, {4, 8})) for free, needed in ((1000, 40), (500, 80)))
    rich.memory.ran.add(16)
    poor.memory.failed = 16
    for found in (rich, poor):
        found.seconds = {4: [0.1]}
    one = together([rich, poor])
    assert (one.memory.available, one.memory.bytes, one.memory.ran, one.memory.failed) == (500, {4: 80}, {4, 8}, 16)
