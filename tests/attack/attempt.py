"""One command line: what lies in its folder before, what happens to it meanwhile, and how it may end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FINE, WRONG, BAD_INPUT, NOBODY_READS = 0, 1, 2, 141
OUTPUTS = ("pipes", "terminal", "closed", "full", "broken")


@dataclass(frozen=True)
class Attempt:
    """A command line to try.

    Attributes:
        group: What is attacked.
        arguments: Behind `batchnorm`.
        statuses: Those that it may end with.
        files: In its folder, by name, before it starts; a trailing slash makes a folder, a trailing | a pipe, and
            name@ a link to what it holds.
        outputs: Names of files that it may write: each must be its old self afterwards, or a new one that is whole;
            with a trailing slash, those of a folder.
        signal: That it is sent; None for none.
        after: Seconds until then.
        largest: Bytes that a file may have: a disk that fills up; None for no limit.
        output: Where stdout goes.
        encoding: Of stdout and stderr.
        environment: Further variables.
        seconds: That it may take.
        prepare: Python that runs ahead of it in its process, to make things hard or fast.
        renewed: Names of outputs that it must have written.
        says: What stderr must hold.
    """

    group: str
    arguments: tuple[str, ...]
    statuses: frozenset[int]
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    outputs: Sequence[str] = ()
    signal: int | None = None
    after: float = 0.0
    largest: int | None = None
    output: str = "pipes"
    encoding: str = "utf-8"
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: float = 60.0
    prepare: str = ""
    renewed: Sequence[str] = ()
    says: bytes = b""

    @property
    def command(self) -> str:
        """The command as it could be typed, with what else makes it what it is."""
        words = ["batchnorm", *(repr(w) if not w.replace("-", "").isalnum() else w for w in self.arguments)]
        told = {
            "signal": self.signal, "largest file": self.largest, "files": ", ".join(self.files) or None,
            "stdout": None if self.output == "pipes" else self.output,
            "encoding": None if self.encoding == "utf-8" else self.encoding,
        }  # fmt: skip
        return " ".join(words) + "".join(f"  [{name}: {value}]" for name, value in told.items() if value is not None)


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        status: As the shell says it, but a signal's number below zero where that has ended it.
        out: Stdout.
        err: Stderr.
        before: The files of its folder before.
        after: And afterwards.
        hung: Whether it had to be killed.
        peak: The most bytes it held.
        left: Processes that outlived it.
        seconds: It took.
    """

    status: int
    out: bytes
    err: bytes
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]
    hung: bool = False
    peak: int = 0
    left: int = 0
    seconds: float = 0.0


def may(*statuses: int) -> frozenset[int]:
    """Return the statuses that a command may end with."""
    return frozenset(statuses)
