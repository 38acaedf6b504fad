"""Run a part of the suite on another copy of the package, in a process of its own that has the frameworks loaded."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[1]
# The definition is tried on one array namespace; what a front-end hands to the core, and the choice of a kernel, by
# themselves; the torch layer by what its users see, on the native kernel and, as on a GPU, on the eager one; the study
# by its judgements.
TORCH = [
    "torch_state",
    "torch_layer",
    "torch_gradients",
    "torch_options",
    "torch_renorm",
    "torch_combinations",
    "torch_recompute",
    "torch_edges",
    "torch_control",
    "torch_robust",
]
PARTS = {
    "definition": ["conventions", "layout", "reference", "statistics", "activations", "kernel_options", "contract"],
    "core": ["core_hooks", "dispatch"],
    "torch": TORCH,
    "torch-eager": TORCH,
    "native": ["native_arrangement", "native_statistics", "native_torch", "native_operators", "native"],
    "keras": [
        "keras_backend/test_conformance",
        "keras_backend/test_masks",
        "keras_backend/test_unusual_inputs",
        "keras_backend/test_classic",
        "keras_backend/test_models",
        "keras_backend/test_legacy",
    ],
    "batch_size": [
        "batch_size_noise",
        "batch_size_statistics",
        "batch_size_memory",
        "batch_size_limits",
        "batch_size_inputs",
        "batch_size_unchanged",
        "batch_size_training",
        "batch_size_advise",
    ],
    "surgery": [
        "surgery_insert",
        "surgery_insert_refusals",
        "surgery_convert",
        "surgery_kinds",
        "surgery_fold",
        "surgery_fold_proof",
        "surgery_fold_paths",
        "surgery_recalibrate",
        "surgery_passes",
        "surgery_settling",
        "surgery_adapt",
        "surgery_transfer",
    ],
    "study": [
        "study_intervals",
        "study_findings",
        "study_tuning",
        "study_course",
        "study_checks",
        "study_claims",
        "study_answer",
        "study_setting",
        "study_scores",
        "study_training",
        "study_references",
    ],
    "study-batch-size": ["study_batch_size"],
    "study-watched": ["study_regularization"],
}
NATIVE = [
    "kernels/native/abi.py",
    "kernels/native/calls.py",
    "kernels/native/memory.py",
    "kernels/native/numpy.py",
    "torch/backends.py",
    "torch/fast_step.py",
    "torch/operators.py",
]
DESELECTED = [
    "strict", "readonly", "numpy", "torch-layer", "torch-function", "1e_5", "meta", "one_graph", "replicas",
    "two_processes_agree", "between_frameworks", "onnx", "timms", "todays_tool",
]  # fmt: skip

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "pytest",
        "hypothesis",
        "torch",
        "torch._dynamo",  # which the first optimizer loads
        "array_api_compat.numpy",
        "array_api_compat.torch",
        "array_api_strict",
        "sklearn.ensemble",
        "sklearn.linear_model",
        "scipy.stats",
        "matplotlib.figure",
        "joblib",
    ]
)


def part_of(file: str) -> str:
    """Return the part that tries a file of the package."""
    if file in NATIVE:
        return "native"
    if file == "models/preserve.py":
        return "batch_size"  # whose tests look after every bit
    if file == "kernels/dispatch.py":
        return "core"
    folder = file.partition("/")[0]
    if folder == "core":
        return "torch"  # by the layer that users see; the part of that name tries what no layer asks for
    return folder if folder in PARTS else "definition"


class Outcome(NamedTuple):
    code: int | None
    output: str


def _run(part: str, source: Path, files: list[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    for name in [n for n in os.environ if n.startswith("PYTEST_")]:
        del os.environ[name]
    torch.set_num_threads(1)
    if part == "keras":
        os.environ["KERAS_BACKEND"] = "torch"  # loaded already, so the quickest
    if part == "torch-eager":
        os.environ["BATCHNORM_KERNEL"] = "eager"
    os.chdir(ROOT)
    sys.path.insert(0, str(source))
    options = ["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    sys.exit(pytest.main([*options, "-k", " and ".join(f"not {name}" for name in DESELECTED), *files]))


def run(part: str, source: Path, changed: str = "", only: str = "") -> Outcome:
    """Run one part of the suite, up to its first failure, on the package that lies in `source`.

    Args:
        part: One of `PARTS`.
        source: The folder that the package lies in.
        changed: The file of the package that differs: the tests that are named like it come first.
        only: A test, as "test_layout.py::test_plan", to run in place of all.
    """
    log, stem = source / "log.txt", Path(changed).stem
    names = sorted(PARTS[part], key=lambda name: not stem or stem not in name)
    files = [f"tests/{name}.py" if "/" in name else f"tests/test_{name}.py" for name in names]
    process = _processes.Process(target=_run, args=(part, source, [f"tests/{only}"] if only else files, log))
    process.start()
    process.join()
    return Outcome(process.exitcode, log.read_text("utf-8"))
