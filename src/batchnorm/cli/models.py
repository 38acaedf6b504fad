"""The commands for models that exist: `batchnorm recalibrate` and `batchnorm fold`."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from batchnorm.cli import app
from batchnorm.cli.running import Terminal, in_a_line, only_results, shown
from batchnorm.outputs import check_file

Weights = Annotated[
    Path | None,
    typer.Option(help="Weights to load into the model: .safetensors, or a .pt or .ckpt that holds a state_dict."),
]
Key = Annotated[
    str | None, typer.Option(help="Of the state_dict in --weights, if there are several: state_dict_ema, ema.module.")
]
Prefix = Annotated[
    str | None, typer.Option(help="With which the names in --weights begin, backbone. say; others are left out.")
]
NeededModel = Annotated[
    str, typer.Option(metavar="MODULE:FACTORY", help="Your torch model, or a function that returns it.")
]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="It is right to find nothing to change.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")]


@app.command()
def recalibrate(
    model: NeededModel,
    data: Annotated[
        str,
        typer.Option(metavar="MODULE:FACTORY", help="Batches, a DataLoader or alike, or a function that returns them."),
    ],
    out: Annotated[Path, typer.Option(help="Where the weights go: .safetensors or .pt.")],
    weights: Weights = None,
    key: Key = None,
    prefix: Prefix = None,
    layers: Annotated[str | None, typer.Option(help="Which, with commas between; * and ? are wildcards.")] = None,
    call: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="How to run a batch: a function of model and batch."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda:0. Default: where the model is.")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Go over the data until nothing moves: exact for every layer.")
    ] = False,
    allow_empty: AllowEmpty = False,
    as_json: AsJson = False,
) -> None:
    """Replace the running statistics of a model by those of your data, pooled over all of its batches.

    For averaged weights, before fine-tuning on other data, before export. The report says how far they were off.
    """
    with _running(f"`--model {model}` on `--data {data}`", out):
        from batchnorm import surgery
        from batchnorm.surgery import factory

        check_file("--out", out, factory.WEIGHTS)
        run = None if call is None else factory.load_factory("--call", call)
        made = factory.made_model(model, weights, device, key=key, prefix=prefix)
        batches = factory.call_factory("--data", data)
        named = None if layers is None else [name.strip() for name in layers.split(",")]
        report = surgery.recalibrate(
            made, batches, call=run, layers=named, max_samples=max_samples, sequential=sequential,
            allow_empty=allow_empty,
        )  # fmt: skip
    with shown(report, Terminal(), as_json=as_json), _running(f"`--model {model}`", out):
        _wrote(factory.write(made, out))


@app.command()
def fold(
    model: NeededModel,
    inputs: Annotated[
        str,
        typer.Option(metavar="MODULE:FACTORY", help="Example inputs, or a function that returns them."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The folded model: a program, .onnx or .pt2, or its weights, .safetensors or .pt. These fit the "
            "folded model alone: fold(model().eval(), example()).model.load_state_dict(...) is the way back."
        ),
    ],
    weights: Weights = None,
    key: Key = None,
    prefix: Prefix = None,
    allow_empty: AllowEmpty = False,
    as_json: AsJson = False,
) -> None:
    """Make batch normalization part of the layers beside it, for inference, and prove that nothing changed.

    The report tells what became of each layer, and the largest difference of the outputs on the example inputs.
    """
    with _running(f"`--model {model}` on `--inputs {inputs}`", out):
        from batchnorm import surgery
        from batchnorm.surgery import factory

        check_file("--out", out, factory.WEIGHTS + factory.PROGRAMS)
        factory.check_exporter(out)
        made = factory.made_model(model, weights, key=key, prefix=prefix)
        example = factory.call_factory("--inputs", inputs)
        report = surgery.fold(made.eval(), example, allow_empty=allow_empty)
    with shown(report, Terminal(), as_json=as_json), _running(f"`--model {model}`", out):
        _wrote(factory.write(report.model, out, example))


@contextmanager
def _running(run: str, out: Path) -> Generator[None]:
    """Load PyTorch, keep what a model prints off stdout, and end in one line and a status whatever goes wrong."""
    with in_a_line(lambda: f"Interrupted: nothing is written, {out} is as it was before.", run), only_results():
        with Terminal(stderr=True).status("Loading PyTorch"):
            import_module("batchnorm.surgery.factory")
        yield


def _wrote(lines: Sequence[str]) -> None:
    for line in lines:
        Terminal(stderr=True).say(escape(line))
