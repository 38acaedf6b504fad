"""Who is timed, and which process each runs in."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from batchnorm.bench.cases import FEATURES_LAST, Case
from batchnorm.errors import ArgumentError

OURS, BASELINE = "batchnorm", "torch"


@dataclass(frozen=True)
class Contender:
    """One way to compute an operation.

    Attributes:
        process: The module in this package that knows it; contenders of one module share a process.
        needs: The packages it needs.
        says: What it is.
        compiled: By torch.compile: seconds a case before it can be timed, so the rarer operations go without.
        in_place: Differs from its neighbour only where something follows the layer.
        elsewhere: A framework of its own: float32 with features last, as it has them.
    """

    process: str
    needs: tuple[str, ...]
    says: str
    compiled: bool = False
    in_place: bool = False
    elsewhere: bool = False

    def serves(self, case: Case) -> bool:
        """Return whether it takes part in a case."""
        op = case.operation
        if self.in_place:
            return op.relu or op.add
        if self.compiled:
            return case.op in ("inference+relu", "train", "train+relu", "train+add+relu")
        if self.elsewhere:
            return case.dtype == "float32" and case.layout in FEATURES_LAST and op.forward
        return True


CONTENDERS = {
    OURS: Contender("by_torch", ("torch",), "batchnorm.torch.BatchNorm, activation and residual in the layer"),
    BASELINE: Contender("by_torch", ("torch",), "torch.nn.BatchNorm*, torch.relu(norm(x) + residual)"),
    "torch in place": Contender(
        "by_torch", ("torch",), "the same as torchvision writes it: y = norm(x); y += residual; relu_(y)", in_place=True
    ),
    "torch.compile": Contender("by_torch", ("torch",), "torch.compile of `torch`, fullgraph", compiled=True),
    "keras": Contender(
        "by_keras",
        ("keras", "tensorflow"),
        "keras.layers.BatchNormalization on TensorFlow, in a tf.function without XLA",
        elsewhere=True,
    ),
    "flax": Contender("by_flax", ("jax", "flax"), "flax.nnx.BatchNorm in jax.jit", elsewhere=True),
}
QUICK_CONTENDERS = (OURS, BASELINE, "torch in place")


def available() -> list[str]:
    """Return the contenders whose packages are installed."""
    return [name for name, c in CONTENDERS.items() if all(find_spec(package) for package in c.needs)]


def parsed_contenders(text: str | None, otherwise: Sequence[str]) -> list[str]:
    """Return the contenders that a list with commas names, ours and the one that ratios are to always among them.

    Raises:
        ArgumentError: for one that is not known, or whose packages are not installed.

    >>> parsed_contenders("torch.compile", ())
    ['batchnorm', 'torch', 'torch.compile']
    """
    here = available()
    if text is None:
        return [name for name in CONTENDERS if name in otherwise and name in here]
    named = [part.strip() for part in text.split(",")]
    for name in named:
        if name not in CONTENDERS:
            raise ArgumentError(f"`--contenders` must be of {', '.join(CONTENDERS)}, got {name!r}")
        if name not in here:
            raise ArgumentError(f"`--contenders {name}` needs {' and '.join(CONTENDERS[name].needs)} to be installed")
    return [name for name in CONTENDERS if name in {OURS, BASELINE, *named}]
