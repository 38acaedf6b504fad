"""The command `batchnorm`: parses, calls the library, prints."""

import json
import sys
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from batchnorm import __version__
from batchnorm.cli.running import Commands, Terminal, echo_json

app = typer.Typer(
    name="batchnorm",
    cls=Commands,
    help="Batch normalization: what it is, and what it does on your data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Optimizer(StrEnum):
    """The optimizers a study can use."""

    sgd = "sgd"
    momentum = "momentum"
    rmsprop = "rmsprop"
    adam = "adam"


class Task(StrEnum):
    """What the target of a table is."""

    classification = "classification"
    regression = "regression"


# What several commands take.
TableFile = Annotated[
    Path | None, typer.Argument(help="A CSV or Parquet file. Without one: scikit-learn's handwritten digits.")
]
Target = Annotated[str | None, typer.Option(help="The column of the table to predict.")]
TaskName = Annotated[Task | None, typer.Option(help="What the target is; inferred if not given.")]
Model = Annotated[str | None, typer.Option(metavar="MODULE:FACTORY", help="A function that returns your torch model.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"batchnorm {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Batch normalization: what it is, and what it does on your data."""


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _facts() -> dict[str, Any]:
    from batchnorm import kernels

    found: dict[str, Any] = {"batchnorm": __version__, "python": sys.version.split()[0]}
    for name in ("numpy", "torch", "keras", "tensorflow", "jax", "flax"):
        found[name] = _installed(name) or (_installed("tensorflow-cpu") if name == "tensorflow" else None)
    found["kernels"] = [{"name": name, "reason": reason} for name, reason in kernels.available().items()]
    return found


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Show versions, frameworks, and which kernel runs and why."""
    facts = _facts()
    if as_json:
        echo_json(json.dumps(facts, indent=1))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        if name != "kernels":
            table.add_row(name, value or "[dim]not installed[/]")
    for kernel in facts["kernels"]:
        table.add_row("kernel", f"{kernel['name']}: {kernel['reason']}")
    Terminal().print(table)


from batchnorm.cli import batch_size, bench, models, study  # noqa: E402  # which add their commands

__all__ = ["app", "batch_size", "bench", "models", "study"]
