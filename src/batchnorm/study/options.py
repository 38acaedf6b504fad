"""What `batchnorm study` is asked, checked before anything heavy is imported: names, files, numbers, a TOML file."""

import pkgutil
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchnorm.errors import ArgumentError, MissingExtraError
from batchnorm.study.folder import check_folder, check_writable
from batchnorm.study.workers import check_jobs

CLAIMS = Path(__file__).with_name("claims")
MOST_LAYERS, MOST_UNITS = 20, 4096
MOST_BYTES = 2**20  # of a TOML file
FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
BACKENDS = {"ray": "ray", "dask": "distributed"}  # and what they need
# What the options are in a TOML file; the others are texts.
TRUTHS = ("no_header", "quick", "overwrite", "resume", "check", "json", "open")
INTEGERS = ("seeds", "seed", "batch_size", "jobs")
LISTS = ("drop", "claims", "hidden")  # or texts, as on the command line
SAID = 300  # characters of a message


@dataclass(frozen=True)
class Options:
    """What a command line says. The names are those of its options; None, or an empty list, where it says nothing."""

    table: Path | None = None
    target: str | None = None
    task: str | None = None
    drop: Sequence[str] = ()
    no_header: bool = False
    data: str | None = None
    model: str | None = None
    loss: str | None = None
    activation: str | None = None
    hidden: str | None = None
    claims: str | None = None
    metric: str | None = None
    seeds: int | None = None
    seed: int | None = None
    optimizer: str | None = None
    batch_size: int | None = None
    quick: bool = False
    out: Path = Path("report")
    overwrite: bool = False
    resume: bool = False
    tensorboard: Path | None = None
    jobs: int | None = None
    backend: str = "processes"
    check: bool = False
    list_claims: bool = False

    def checked(self) -> "Options":
        """Return the options if there is nothing against them.

        Raises:
            ArgumentError: in one line, if there is.
            MissingExtraError: if they need a library that is not installed.
        """
        self._check_data()
        for option, name in (("--data", self.data), ("--model", self.model), ("--loss", self.loss)):
            if name is not None:
                check_factory(option, name)
        if self.model is not None and (self.hidden is not None or self.activation is not None):
            raise ArgumentError("--hidden and --activation are of the study's own network: leave them out with --model")
        chosen_names(self.claims)
        widths(self.hidden)
        if self.check or self.list_claims:
            return self
        check_jobs(self.jobs, self.backend)
        if self.backend in BACKENDS and find_spec(BACKENDS[self.backend]) is None:
            raise MissingExtraError(f"--backend {self.backend}", BACKENDS[self.backend], "cluster")
        if self.tensorboard is not None:
            check_tensorboard(self.tensorboard)
        check_folder(self.out)
        return self

    def _check_data(self) -> None:
        """Refuse options for a table where there is none, two sources of data, and a file that is not there."""
        if self.table is None:
            belonging = {
                "--target": self.target, "--task": self.task, "--drop": self.drop, "--no-header": self.no_header,
                "--check": self.check,
            }  # fmt: skip
            names = [option for option, value in belonging.items() if value]
            if names:
                raise ArgumentError(f"{names[0]} is for a table: name its file too, TABLE.csv --target COLUMN")
            return
        if self.data is not None:
            raise ArgumentError(f"name a table or --data, not both: got {self.table} and {self.data}")
        try:
            if self.table.stat() and self.table.is_dir():
                raise ArgumentError(f"{self.table} is a folder; name a file")
        except (OSError, ValueError) as error:
            if isinstance(error, ArgumentError):
                raise
            raise ArgumentError(f"{str(self.table)[:SAID]} cannot be read: {_reason(error)}") from None


def check_factory(option: str, name: str) -> None:
    """Refuse a factory that is not written `package.module:factory`, or whose module is not there.

    Raises:
        ArgumentError: in one line. What the module does when it is imported, nobody knows before.
    """
    module, _, attribute = name.partition(":")
    if module.endswith(".py"):
        dotted = ".".join(Path(module).with_suffix("").parts)
        right = f"{dotted}:{attribute or 'factory'}"
        raise ArgumentError(f"`{option}` names a module, not its file: write {right}, got {name!r}")
    if not FACTORY.fullmatch(name):
        raise ArgumentError(f"`{option}` must be written package.module:factory, got {name!r}")
    top = module.partition(".")[0]
    if top not in sys.modules and _spec(top) is None:
        raise ArgumentError(f"`{option} {name}` cannot be imported: there is no module {top!r}, here or installed")


def _spec(module: str) -> Any:
    """Return where a module would be imported from, the working directory last."""
    here = str(Path.cwd())
    path = [entry for entry in sys.path if entry not in ("", here)]
    before, sys.path[:] = list(sys.path), [*path, here]
    try:
        return find_spec(module)
    except (ImportError, ValueError):
        return None
    finally:
        sys.path[:] = before


def claim_names() -> list[str]:
    """Return the claims there are, by the names of their files, which are not imported."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules([str(CLAIMS)]))


def chosen_names(text: str | None) -> list[str] | None:
    """Return the claims that a comma-separated list names; None if there is no list, or it is "all".

    Raises:
        ArgumentError: if there is no such claim, or none is named.
    """
    if text is None or text.strip() == "all":
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = claim_names()
    for name in names:
        if name not in known:
            raise ArgumentError(f"there is no claim {name!r}; there are: {', '.join(known)}")
    if not names:
        raise ArgumentError(f"--claims names no claim; there are: {', '.join(known)}")
    return names


def widths(text: str | None) -> tuple[int, ...] | None:
    """Return the widths of hidden layers from a list with commas.

    >>> widths("100,50"), widths(None)
    ((100, 50), None)

    Raises:
        ArgumentError: if it is no such list, or they are more, or wider, than the study is made for.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ArgumentError(f"--hidden must be widths with commas between, such as 100,100,100, got {text!r}")
    sizes = tuple(int(part[:9]) for part in parts)
    if len(sizes) > MOST_LAYERS or not all(1 <= size <= MOST_UNITS for size in sizes):
        raise ArgumentError(
            f"--hidden must be 1 to {MOST_LAYERS} layers of 1 to {MOST_UNITS:,} units each, got {text[:60]!r}"
        )
    return sizes


def check_tensorboard(folder: Path) -> None:
    """Refuse a folder for TensorBoard that is none, and TensorBoard where it is not installed.

    Raises:
        ArgumentError: if something else is in the folder's place.
        MissingExtraError: if TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise MissingExtraError("--tensorboard", "tensorboard", "tensorboard")
    try:
        place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if place.is_dir():
            return check_writable(place)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--tensorboard {str(folder)[:SAID]} cannot be written: {_reason(error)}") from None
    raise ArgumentError(f"--tensorboard {folder} cannot be a folder, as {place} is a file")


def from_toml(path: Path) -> dict[str, Any]:
    """Return the options that a TOML file sets, under [study] or at the top.

    Its keys are the options' names, with hyphens or underscores. The paths in it are relative to the working directory,
    as they are on the command line.

    Raises:
        ArgumentError: in one line, if it cannot be read, has a key that is no option, or a value of another kind.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(f"--config {path} cannot be read: {_reason(error)}") from None
    section = content.pop("study", {})
    if not isinstance(section, dict):
        raise ArgumentError(f"--config {path}: study must be a table, [study], got {section!r}"[:SAID])
    known = dict.fromkeys([*(field.name for field in fields(Options) if field.name != "list_claims"), *TRUTHS])
    options: dict[str, Any] = {}
    for key, value in (*content.items(), *section.items()):
        name = key.replace("-", "_")
        if name not in known:
            names = ", ".join(known).replace("_", "-")
            raise ArgumentError(f"--config {path}: there is no option {key[:SAID]!r}; there are: {names}")
        if name in options:
            raise ArgumentError(f"--config {path}: {key} is set twice")
        options[name] = _of_kind(value, name, f"--config {path}: {key}")
    return options


def _of_kind(value: Any, name: str, what: str) -> Any:
    """Return a value of a TOML file as the command line has it, if it is of the option's kind."""
    if name in LISTS:
        parts: list[Any] = value if isinstance(value, list) else [value]
        if all(type(part) in (str, int) for part in parts):
            texts = [str(part) for part in parts]
            return texts if name == "drop" else ",".join(texts)
        raise ArgumentError(f"{what} must be a list, or a text, got {value!r}"[:SAID])
    kind = bool if name in TRUTHS else int if name in INTEGERS else str
    words = {bool: "true or false", int: "an integer", str: "a text"}[kind]
    if type(value) is not kind:
        raise ArgumentError(f"{what} must be {words}, got {value!r}"[:SAID])
    return value


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
