"""The native kernel on arrays of NumPy: the same bits however it runs, however they lie, and what it refuses."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from batchnorm import kernels
from batchnorm.activations import ACTIVATIONS
from batchnorm.kernels import Facts
from batchnorm.kernels.native import abi, numpy
from batchnorm.layout import axes_of
from batchnorm.statistics import Statistics
from choosing import counting
from implementations import Array, dense, lies_apart
from kernel_calls import Called, Wanted
from namespaces import TORCH_DTYPES, to_ml_dtypes
from regimes import CASES, Case, data
from tolerance import assert_close, working

LIBRARY = abi.load()
KERNEL = Called(numpy.KERNEL, np)
pytestmark = pytest.mark.skipif(isinstance(LIBRARY, str), reason=f"no native kernel: {LIBRARY}")
SECONDS = 60.0
# More than a thread is worth waking for, in every way to cut: whole planes, their parts, rows, and few channels.
LARGE = [((6, 5, 60, 61), 1), ((2, 3, 40001), 1), ((9001, 17), 1), ((20011, 3), 1), ((40, 30, 70), -1), ((70001, 1), 1)]


def drawn(seed: int, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return to_ml_dtypes(np.random.default_rng(seed).standard_normal(shape), dtype)


def selected(x: Any, axis: int | tuple[int, ...], residual: str | None = None) -> kernels.Choice:
    """Return the kernel that serves an array, and why no faster one does."""
    dtype = x.dtype.name if x.dtype.isnative else str(x.dtype)
    return kernels.select(Facts(axes_of(x.ndim, axis), x.shape, numpy.strides(x), dtype, residual=residual), np)


def everything(
    shape: tuple[int, ...],
    axis: int,
    dtype: str = "float32",
    activation: str | None = "relu",
    *,
    weighted: bool = False,
) -> list[bytes]:
    """Return the bytes of all that the kernel gives of a step: forward and backward in one call, and in pieces."""
    layout = axes_of(len(shape), axis)
    kept, precise = layout.kept_shape(shape), working(dtype)
    x, residual, dy = (drawn(i, shape, dtype) for i in range(3))
    gamma, beta = drawn(3, kept, precise), drawn(4, kept, precise)
    along = tuple(1 if i in layout.kept else n for i, n in enumerate(shape))
    weights = np.abs(drawn(5, along, precise)) if weighted else None
    given: dict[str, Any] = {"activation": activation, "residual": residual}
    y, moments, inv_std, bits = KERNEL.forward(x, layout, gamma, beta, eps=1e-5, weights=weights, **given)
    count = np.broadcast_to(np.asarray(moments.count, precise), kept)
    using = Statistics(moments.mean, moments.mean_low, inv_std, 1.0 / count)
    wants = Wanted(dx=True, dz=True, sums=True)
    gradients = KERNEL.backward(
        dy, x, using, gamma * inv_std, beta, reserve=bits, weights=weights, wants=wants, **given
    )
    pieces = KERNEL.moments(x, layout, weights)[1:], KERNEL.affine(x, using, gamma * inv_std, beta, **given)
    reduced = KERNEL.backward_reduce(dy, x, layout, using)
    found = y, *moments[1:], inv_std, *gradients, *pieces[0], pieces[1], *reduced  # of the bits a few are unused
    return [a.tobytes() for a in found]


@pytest.fixture
def handle() -> Iterator[Any]:
    """Yield the library, and leave it as it was."""
    assert not isinstance(LIBRARY, str)
    threads, instructions = LIBRARY.threads, LIBRARY.instruction_set
    yield LIBRARY.handle
    LIBRARY.handle.bn_use_threads(threads)
    LIBRARY.handle.bn_use_instruction_set(instructions.encode())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_native_kernel_serves_what_is_dense(case: Case) -> None:
    x = to_ml_dtypes(dense(case), case.dtype)
    chosen = selected(x, case.axis)
    assert (chosen.kernel.name, chosen.reason) == ("native", "")
    assert lies_apart(case) == (dense(case) is not data(case).x)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "axis"), LARGE)
def test_any_number_of_threads_gives_the_same_bits(
    shape: tuple[int, ...], axis: int, weighted: bool, handle: Any
) -> None:
    found = []
    for threads in (1, 2, 3, 4):
        handle.bn_use_threads(threads)
        assert abi.Library({}, handle).threads == threads
        found.append(everything(shape, axis, weighted=weighted))
    assert all(bits == found[0] for bits in found)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("activation", abi.ACTIVATIONS)
def test_any_instruction_set_gives_the_same_bits(activation: str | None, dtype: str, handle: Any) -> None:
    shapes = [((3, 5, 37), 1), ((67, 21), 1), ((29, 3), 1), ((5, 7, 33), -1)]
    found, sets = [], [n for n in (b"portable", b"avx2", b"avx512") if handle.bn_use_instruction_set(n) == 0]
    smooth = activation is not None and not ACTIVATIONS[activation].by_sign
    for name in sets[1:] or sets if smooth else sets:  # on x86, portable code rounds twice where the others round once
        assert handle.bn_use_instruction_set(name) == 0
        assert abi.Library({}, handle).instruction_set == name.decode()
        found.append([everything(*shape, dtype, activation) for shape in shapes])
    assert handle.bn_use_instruction_set(b"mmx") == 1
    assert found
    assert all(bits == found[0] for bits in found)


def _after_fork(outcome: Any) -> None:
    outcome.put([everything(*case) for case in LARGE[:3]])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # that is what is tried
def test_a_process_forked_after_use_has_threads_of_its_own(handle: Any) -> None:
    handle.bn_use_threads(3)
    before = [everything(*case) for case in LARGE[:3]]
    context = multiprocessing.get_context("fork")
    outcome = context.SimpleQueue()
    child = context.Process(target=_after_fork, args=(outcome,))
    child.start()
    try:
        assert outcome._reader.poll(SECONDS), "the forked process hangs"
        assert outcome.get() == before
    finally:
        child.kill()
        child.join()
    assert [everything(*case) for case in LARGE[:3]] == before


def test_threads_of_python_may_call_at_once(handle: Any) -> None:
    handle.bn_use_threads(2)
    alone = [everything(*case) for case in LARGE]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda case: everything(*case), LARGE * 3)) == alone * 3


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("offset", [1, 3, 5])
def test_an_array_may_begin_anywhere(offset: int, dtype: str) -> None:
    for shape, axis in (((3, 4, 19), 1), ((37, 5), 1), ((2, 40001), 1)):
        x, layout = drawn(0, shape, dtype), axes_of(len(shape), axis)
        shifted = np.empty(offset + x.size, x.dtype)[offset:].reshape(shape)
        shifted[...] = x
        assert selected(shifted, axis).kernel is KERNEL.kernel
        for a, b in zip(KERNEL.moments(x, layout), KERNEL.moments(shifted, layout), strict=True):
            np.testing.assert_array_equal(a, b)


def other_ways_to_lie(array: Array) -> Iterator[Array]:
    """Yield equal arrays: in every order of the axes, with gaps, reversed in memory, and in another place."""
    for order in permutations(range(array.ndim)):
        yield np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
    yield np.repeat(array, 2, axis=-1)[..., ::2]
    yield np.ascontiguousarray(array[::-1])[::-1]
    yield np.append(0 * array.ravel()[:1], array)[1:].reshape(array.shape)


@pytest.mark.parametrize("memory", ["contiguous", "channels-last"])
def test_what_comes_with_x_may_lie_otherwise(memory: str) -> None:
    layout = axes_of(3, 1)
    x, dy, residual = (drawn(i, (5, 3, 7)) for i in range(3))
    x = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) if memory == "channels-last" else x
    using = Statistics(*(drawn(i, (1, 3, 1)) for i in range(3, 7)))
    scale, shift = drawn(7, (1, 3, 1)), drawn(8, (1, 3, 1))
    wants = Wanted(dx=True, dz=True, sums=True)
    for function in (
        lambda other: [KERNEL.affine(x, using, scale, shift, residual=other(residual))],
        lambda other: KERNEL.backward_reduce(other(dy), x, layout, using),
        lambda other: KERNEL.backward(
            other(dy), x, using, scale, shift, activation="silu", residual=other(residual), wants=wants
        ),
    ):
        expected = function(lambda a: a)
        for i, _ in enumerate(other_ways_to_lie(dy)):
            got = function(lambda a, i=i: list(other_ways_to_lie(a))[i])
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_one_gradient_for_all_is_spread() -> None:
    x, layout, using = drawn(0, (6, 3, 4)), axes_of(3, 1), Statistics(*(drawn(i, (1, 3, 1)) for i in range(4)))
    one = np.broadcast_to(np.float32(0.5), x.shape)
    spread = KERNEL.backward_reduce(one, x, layout, using)
    for a, b in zip(spread, KERNEL.backward_reduce(one.copy(), x, layout, using), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 13, 17, 31, 37, 61, 127, 131])
def test_primes_and_ones(size: int) -> None:
    for shape in ((2, 3, size), (2, size, 3), (size, 2, 3), (size, 5), (5, size), (2, 1, size), (3, size, 1, 1)):
        x, layout = drawn(0, shape), axes_of(len(shape), 1)
        got = KERNEL.moments(x, layout)
        centre = x.mean(layout.reduced, keepdims=True, dtype=np.float64)
        m2 = np.square(x - centre).sum(layout.reduced, keepdims=True)
        assert_close(got.mean.astype(np.float64) + got.mean_low, centre, "float32", 1.0)
        assert_close(got.m2, m2, "float32", 1.0 + m2)


NOT_SERVED: dict[str, tuple[Callable[[], Any], int | tuple[int, ...], str]] = {
    "gaps": (lambda: np.zeros((4, 6))[:, ::2], 1, "not dense in memory"),
    "reversed": (lambda: np.zeros((4, 6))[::-1], 1, "not dense in memory"),
    "spread": (lambda: np.broadcast_to(0.0, (4, 6)), 1, "not dense in memory"),
    "nothing": (lambda: np.zeros((0, 6)), 1, "the input is empty"),
    "order": (lambda: np.zeros((2, 3, 4)).transpose(2, 1, 0), (0, 2), "another order in memory"),
    "places": (lambda: np.zeros((2, 3, 4, 5, 6)), (0, 2, 4), "more than two places"),
    "integers": (lambda: np.zeros((4, 6), np.int32), 1, "has no int32"),
    "other bytes": (lambda: np.zeros((4, 6), ">f4"), 1, "has no >f4"),
    "not aligned": (lambda: np.frombuffer(b"\0" * 97, np.float32, 24, 1).reshape(4, 6), 1, "not aligned"),
}


@pytest.mark.parametrize("kind", NOT_SERVED)
def test_what_is_not_served_says_why(kind: str) -> None:
    make, axis, reason = NOT_SERVED[kind]
    x = make()
    chosen = selected(x, axis)
    assert chosen.kernel.name == "eager"
    assert reason in chosen.reason
    if kind not in ("integers", "other bytes", "not aligned"):
        with pytest.raises(NotImplementedError, match=reason):
            KERNEL.moments(x, axes_of(x.ndim, axis))


def test_a_residual_of_another_dtype_is_not_served() -> None:
    x = drawn(0, (4, 3))
    chosen = selected(x, 1, residual="float64")
    assert (chosen.kernel.name, chosen.reason) == ("eager", "the residual is float64, the input float32")


def test_what_comes_with_x_need_not_be_aligned() -> None:
    x, layout, using = drawn(0, (6, 4)), axes_of(2, 1), Statistics(*(drawn(i, (1, 4)) for i in range(1, 4)))

    def shifted(array: Any) -> Any:
        array = np.asarray(array)
        return np.frombuffer(b"\0" + array.tobytes(), array.dtype, array.size, 1).reshape(array.shape)

    dy = drawn(5, (6, 4))
    assert not shifted(dy).flags.aligned
    moved = Statistics(*(shifted(a) for a in using[:3]))
    for a, b in zip(
        KERNEL.backward_reduce(shifted(dy), x, layout, moved), KERNEL.backward_reduce(dy, x, layout, using), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_wrong_bytes_are_refused_by_the_library() -> None:
    with pytest.raises(ValueError, match="the native kernel refused moments: bad shape"):
        abi.loaded().run("moments", abi.Call(outer=-1, groups=1, rows=1, channels=1, inner=1, x=8, mean=8, m2=8))
    with pytest.raises(ValueError, match="the native kernel refused moments: null pointer"):
        abi.loaded().run("moments", abi.Call(outer=1, groups=1, rows=1, channels=1, inner=1))


def test_one_call_each_for_forward_and_backward() -> None:
    functions = LIBRARY.functions  # pyright: ignore[reportAttributeAccessIssue]
    with counting(functions, "forward") as forwards, counting(functions, "backward") as backwards:
        everything((4, 3, 5), 1)
    assert (len(forwards), len(backwards)) == (1, 1)


def said(**environment: str) -> str:
    code = "from batchnorm.kernels import available; print(available()['native'])"
    given = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True).stdout


def test_the_environment_switches_it_off() -> None:
    assert said(BATCHNORM_KERNEL="eager").strip() == 'missing: the environment says BATCHNORM_KERNEL="eager"'
    assert said(BATCHNORM_KERNEL="").startswith("C++ on a CPU, ")
    assert said(BATCHNORM_KERNEL="native").startswith("C++ on a CPU, ")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        said(BATCHNORM_KERNEL="EAGER")
    assert 'BATCHNORM_KERNEL must be "native" or "eager", got \'EAGER\'' in failed.value.stderr


@pytest.mark.parametrize(("found", "reason"), [("nothing", "there is no native library"), ("text", "does not load")])
def test_a_library_that_cannot_be_used_is_named(found: str, reason: str, tmp_path: Any) -> None:
    path = tmp_path / "library.so"
    if found == "text":
        path.write_text("not a library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(abi, "LIBRARY", path)
        assert reason in str(abi.load.__wrapped__())
        patch.setattr(abi, "load", abi.load.__wrapped__)
        chosen = selected(drawn(0, (4, 3)), 1)
        assert chosen.kernel.name == "eager"
        assert reason in chosen.reason
        assert reason in kernels.available()["native"]
        with pytest.raises(ValueError, match="the native kernel cannot run"):
            abi.loaded()


def test_a_library_of_another_interface_is_refused() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(abi, "INTERFACE", abi.INTERFACE + 1)
        assert "has interface" in str(abi.load.__wrapped__())
