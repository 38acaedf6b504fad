"""What is timed: a shape in a layout, a dtype and an operation, and the bytes that memory must move for it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from batchnorm.errors import ArgumentError

LAYOUTS = {2: ("NC",), 3: ("NLC", "NCL"), 4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}  # of each rank
FEATURES_LAST = ("NC", "NLC", "NHWC", "NDHWC")
PERMUTED = ("NHWC", "NDHWC")  # features are axis 1 of the shape, and last in memory
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
Shape = tuple[int, ...]

RESNET50: tuple[Shape, ...] = (
    (32, 64, 112, 112),
    (32, 64, 56, 56),
    (32, 256, 56, 56),
    (32, 128, 28, 28),
    (32, 512, 28, 28),
    (32, 256, 14, 14),
    (32, 1024, 14, 14),
    (32, 512, 7, 7),
    (32, 2048, 7, 7),
)
SHAPES: tuple[Shape, ...] = (*RESNET50, (4096, 1024), (256, 512), (64, 3), (16, 512, 256), (4, 32, 16, 64, 64))
QUICK_SHAPES: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 256, 14, 14), (256, 512), (64, 3))


@dataclass(frozen=True)
class Op:
    """An operation.

    Attributes:
        training: By the statistics of the batch, which are remembered; else by the running ones.
        forward: Whether the forward pass is timed.
        backward: Whether the backward pass is.
        add: Whether a residual is added before the activation.
        relu: Whether a ReLU follows.
        moved: Arrays that memory must read or write, if a channel stays in the cache between two sweeps.
        bits: Bits an element beside them: which outputs are alive.
    """

    training: bool
    forward: bool
    backward: bool
    moved: int
    add: bool = False
    relu: bool = False
    bits: int = 0


OPS = {
    "inference": Op(training=False, forward=True, backward=False, moved=2),
    "inference+relu": Op(training=False, forward=True, backward=False, moved=2, relu=True),
    "forward": Op(training=True, forward=True, backward=False, moved=2),
    "backward": Op(training=True, forward=False, backward=True, moved=3),
    "train": Op(training=True, forward=True, backward=True, moved=5),
    "train+relu": Op(training=True, forward=True, backward=True, moved=5, relu=True),
    "train+add+relu": Op(training=True, forward=True, backward=True, moved=7, add=True, relu=True, bits=2),
}
DEFAULT_OPS = ("inference", "inference+relu", "forward", "backward", "train", "train+add+relu")
QUICK_OPS = ("inference", "train", "train+add+relu")


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        shape: As it is written in torch: features are axis 1, but for NLC where they are last.
        layout: How it lies in memory.
        dtype: Of input, output and their gradients; parameters and statistics are float32.
        op: One of `OPS`.

    >>> case = Case((32, 64, 56, 56), "NHWC", "float32", "train")
    >>> case.in_memory, case.features, case.axis_in_memory, case.name
    ((32, 56, 56, 64), 64, 3, '32×64×56×56 NHWC float32 train')
    """

    shape: Shape
    layout: str
    dtype: str
    op: str

    @property
    def operation(self) -> Op:
        """The operation, with what it does."""
        return OPS[self.op]

    @property
    def in_memory(self) -> Shape:
        """The shape in the order of memory."""
        n, c, *rest = self.shape
        return (n, *rest, c) if self.layout in PERMUTED else self.shape

    @property
    def axis_in_memory(self) -> int:
        """The axis of features, in the order of memory."""
        return len(self.shape) - 1 if self.layout in FEATURES_LAST else 1

    @property
    def features(self) -> int:
        """C."""
        return self.in_memory[self.axis_in_memory]

    @property
    def array_bytes(self) -> int:
        """Bytes of the input."""
        return math.prod(self.shape) * BYTES[self.dtype]

    @property
    def least_bytes(self) -> float:
        """Bytes that memory must move: each array once, as where a channel stays in the cache between two sweeps.

        >>> Case((1, 8), "NC", "float32", "train+add+relu").least_bytes  # 8 × (7 × 4 bytes + 2 bits)
        226.0
        """
        op = self.operation
        return math.prod(self.shape) * (op.moved * BYTES[self.dtype] + op.bits / 8)

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{written(self.shape)} {self.layout} {self.dtype} {self.op}"

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Case":
        """Return the case that `as_dict` has told of."""
        return cls(tuple(found["shape"]), found["layout"], found["dtype"], found["op"])


def written(shape: Sequence[int]) -> str:
    """Return a shape as it is written: 32×64.

    >>> written((32, 64))
    '32×64'
    """
    return "×".join(map(str, shape))


def cases(
    shapes: Sequence[tuple[Shape, str]], dtypes: Sequence[str] = ("float32",), ops: Sequence[str] = DEFAULT_OPS
) -> list[Case]:
    """Return all cases, those of one array next to each other: it is made once."""
    return [Case(shape, layout, dtype, op) for shape, layout in shapes for dtype in dtypes for op in ops]


def in_layouts(shapes: Sequence[Shape]) -> list[tuple[Shape, str]]:
    """Return every shape with each layout of its rank."""
    return [(shape, layout) for shape in shapes for layout in LAYOUTS[len(shape)]]


def parsed_shapes(text: str) -> list[tuple[Shape, str]]:
    """Return the shapes and layouts that a list with commas names.

    Args:
        text: `32x64x56x56` in every layout of its rank, or `32x64x56x56:NHWC` in one.

    Raises:
        ArgumentError: for what is no shape, or a layout that does not go with it.

    >>> parsed_shapes("64x3, 16x512x256:NLC")
    [((64, 3), 'NC'), ((16, 512, 256), 'NLC')]
    """
    found: list[tuple[Shape, str]] = []
    for part in text.split(","):
        sizes, _, layout = part.strip().partition(":")
        try:
            shape = tuple(int(n) for n in sizes.replace("×", "x").split("x"))
        except ValueError:
            shape = ()
        if len(shape) not in LAYOUTS or min(shape) < 1 or math.prod(shape[:1] + shape[2:]) < 2:
            raise ArgumentError(
                f"`--shapes` must be sizes like 64x3 or 32x64x56x56:NHWC with commas between, of rank 2 to 5 and more "
                f"than one value a feature, got {part.strip()!r}"
            )
        layouts = LAYOUTS[len(shape)]
        if layout and layout.upper() not in layouts:
            raise ArgumentError(f"`--shapes {part.strip()}`: the layout must be {' or '.join(layouts)}, got {layout!r}")
        found += [(shape, layout.upper())] if layout else [(shape, every) for every in layouts]
    return list(dict.fromkeys(found))
