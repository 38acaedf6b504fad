"""The commands for models that exist: `batchnorm recalibrate` and `batchnorm fold`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from batchnorm.cli import INTERRUPTED, app, fail
from batchnorm.errors import BatchNormError, MissingExtraError
from batchnorm.outputs import check_file

Weights = Annotated[
    Path | None, typer.Option(help="Weights to load into the model: .safetensors, or a .pt that holds a state_dict.")
]
NeededModel = Annotated[str, typer.Option(metavar="MODULE:FACTORY", help="A function that returns your torch model.")]


@app.command()
def recalibrate(
    model: NeededModel,
    data: Annotated[
        str,
        typer.Option(metavar="MODULE:FACTORY", help="A function that returns batches, a DataLoader or alike."),
    ],
    out: Annotated[Path, typer.Option(help="Where the weights go: .safetensors or .pt.")],
    weights: Weights = None,
    layers: Annotated[str | None, typer.Option(help="Which, with commas between; * and ? are wildcards.")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Go over the data until nothing moves: exact for every layer.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
) -> None:
    """Replace the running statistics of a model by those of your data, pooled over all of its batches.

    For averaged weights, before fine-tuning on other data, before export. The report says how far they were off.
    """
    console = Console(stderr=True)
    try:
        with console.status("Loading PyTorch"):
            from batchnorm import surgery
            from batchnorm.surgery import factory
        check_file("--out", out, factory.WEIGHTS)
        made, batches = factory.made_model(model, weights), factory.call_factory("--data", data)
        named = None if layers is None else [name.strip() for name in layers.split(",")]
        report = surgery.recalibrate(made.eval(), batches, layers=named, max_samples=max_samples, sequential=sequential)
        factory.write(made, out)
    except (BatchNormError, MissingExtraError, RuntimeError) as error:  # the last: a model that does not take the data
        fail(error)
    except KeyboardInterrupt:
        console.print("\nInterrupted: nothing is written.")
        raise typer.Exit(INTERRUPTED) from None
    _report(report, as_json)


@app.command()
def fold(
    model: NeededModel,
    inputs: Annotated[
        str,
        typer.Option(metavar="MODULE:FACTORY", help="A function that returns example inputs."),
    ],
    out: Annotated[
        Path,
        typer.Option(help="The folded model: a program, .onnx or .pt2, or its weights, .safetensors or .pt."),
    ],
    weights: Weights = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
) -> None:
    """Make batch normalization part of the layers beside it, for inference, and prove that nothing changed.

    The report tells what became of each layer, and the largest difference of the outputs on the example inputs.
    """
    console = Console(stderr=True)
    try:
        with console.status("Loading PyTorch"):
            from batchnorm import surgery
            from batchnorm.surgery import factory
        check_file("--out", out, factory.WEIGHTS + factory.PROGRAMS)
        made, example = factory.made_model(model, weights), factory.call_factory("--inputs", inputs)
        report = surgery.fold(made.eval(), example)
        factory.write(report.model, out, example)
    except (BatchNormError, MissingExtraError, RuntimeError) as error:  # the last: a model that does not take them
        fail(error)
    _report(report, as_json)


def _report(report: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(report.to_json())
    else:
        Console().print(report)
