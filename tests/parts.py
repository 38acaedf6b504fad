"""Which part of the project each file tests, and which tests are slow; as a program, it prints the files of a part."""

import sys
import tomllib
from pathlib import Path
from zlib import crc32

ROOT = Path(__file__).parents[1]

# How the names of a part's test files begin, after "test_"; a new file is found by its name.
PARTS: dict[str, tuple[str, ...]] = {
    "torch": ("torch", "compiled_by_inductor"),
    "keras": ("keras",),
    "native": ("native", "build"),
    "kernels": ("kernel", "contract", "cuda", "dispatch"),
    "core": (
        "core", "activations", "conventions", "errors", "imports", "layout", "numpy", "reference", "statistics",
        "parts",
    ),
    "surgery": ("surgery",),
    "study": ("study", "report", "pictures"),
    "batch_size": ("batch_size",),
    "bench": ("bench",),
    "cli": ("cli", "attack", "outputs"),
    "docs": ("docs", "readme"),
    "mutants": ("mutants",),
}  # fmt: skip

# What test_keras.py runs in a process for each backend, and pytest does not collect itself.
OF_KERAS = ("tests/keras_backend", "src/batchnorm/keras", "docs/keras.md")

# How the names of the slow tests begin. `make test` leaves them out, `make test-slow` runs them and no others.
SLOW = (
    "test_mutants.py",
    "test_keras.py::test_on_a_backend[slow",  # which runs those that follow
    "keras_backend/test_classic.py",
    "keras_backend/test_compiled.py",
    "keras_backend/test_distribution.py",
    "keras_backend/test_keras_facts.py",
    "keras_backend/test_legacy.py",
    "keras_backend/test_masks.py",
    "keras_backend/test_models.py",
    "keras_backend/test_precision.py",
    "keras_backend/test_readme_keras.py::test_the_script",
    "keras_backend/test_saving.py",
    "test_batch_size_budget.py",
    "test_build.py",
    "test_study_backends.py",
    "test_study_interruptions.py",
    "test_study_own_model.py::test_every_claim_is_measured_on_a_model_of_ones_own",
    "test_study_script.py::test_the_keras_script",
    "test_study_script.py::test_the_pytorch_script_learns",
    "test_surgery_transfer.py::test_between_frameworks",
    "test_torch_export.py::TestCompiled",
)
# Tests of many combinations: `make test` runs one in so many of them.
SAMPLED = {
    "test_bench.py::test_contenders_compute_what_they_are_timed_for": 8,
    "test_contract.py::test_inference[keras": 10,
    "test_contract.py::test_training[keras": 10,
    "test_contract.py::test_training_is_within_1e_5_of_float64_in_every_regime[keras": 10,
    "test_torch_compile.py::test_one_graph_holds_every_option": 3,
}


def is_slow(node_id: str) -> bool:
    """Tell whether a test, given by its node id, is slow; the node id alone decides which combinations are."""
    name = node_id.removeprefix("tests/")
    if name.startswith(SLOW):
        return True
    return any(name.startswith(start) and crc32(name.encode()) % of for start, of in SAMPLED.items())


def part_of(file: str) -> str:
    """Return the part that a file belongs to: a test file, one of the package with its examples, or a page of docs/."""
    folder, *below = Path(file).parts
    if folder == "docs":
        return "docs"
    if folder == "src":
        return next((name for name in reversed(below) if name in PARTS), "core")  # the innermost folder that is a part
    if below[0] == "keras_backend":
        return "keras"
    found = [part for part, starts in PARTS.items() if Path(file).stem.removeprefix("test_").startswith(starts)]
    if len(found) != 1:
        raise LookupError(f"{file} must belong to one part by its name, see tests/parts.py; it belongs to {found}")
    return found[0]


def files() -> list[str]:
    """Return every file that holds tests or may hold examples."""
    found = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def collected(part: str) -> list[str]:
    """Return the files of a part that pytest is to collect; of docs/, those that pyproject.toml names."""
    pages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]["testpaths"]
    return [
        file
        for file in files()
        if part_of(file) == part and not file.startswith(OF_KERAS) and (file in pages or not file.startswith("docs/"))
    ]


def main(part: str) -> None:
    if part not in PARTS:
        sys.exit(f"PART={part} is no part: the parts are {', '.join(PARTS)}")
    print(*collected(part))


if __name__ == "__main__":
    main(sys.argv[1])
