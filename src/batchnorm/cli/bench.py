"""The command `batchnorm bench`: its options, and what is printed."""

import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from batchnorm.cli import app
from batchnorm.cli.running import WRONG, Terminal, echo_json, in_a_line, printed, stopped


class Memory(StrEnum):
    """How freed memory is treated."""

    kept = "kept"
    default = "default"
    both = "both"


@app.command()
def bench(
    shapes: Annotated[
        str | None,
        typer.Option(help="Shapes, with commas between: 64x3,32x64x56x56:NHWC. Default: ResNet-50's and more."),
    ] = None,
    ops: Annotated[
        str | None,
        typer.Option(
            help="inference, inference+relu, forward, backward, train (both), train+relu, train+add+relu. Default: all "
            "but train+relu."
        ),
    ] = None,
    dtypes: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. Default: the first two.")] = None,
    contenders: Annotated[
        str | None, typer.Option(help="torch in place, torch.compile, keras, flax. Default: all that is installed.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Samples of each. Default: 15, or 7 with --quick.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of every contender. Default: one a processor.")] = None,
    memory: Annotated[
        Memory, typer.Option(help="Whether freed memory is kept, or as the C library does.")
    ] = Memory.kept,
    quick: Annotated[bool, typer.Option("--quick", help="A few shapes, in about a minute.")] = False,
    read: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: show what --out has written to this .json.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table to OUT.txt and the numbers to OUT.json.")] = None,
    chart: Annotated[Path | None, typer.Option(help="A file for the chart: .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of the table.")] = False,
) -> None:
    """Time the layer beside torch's, Keras' and Flax' own on a CPU, and against what memory allows.

    Contenders are checked against float64, then timed in turn with the same number of threads. Exit status 1 if this
    layer computed something else than float64 does.
    """
    console = Terminal(stderr=True)
    with in_a_line(lambda: "Interrupted before anything was timed."):
        with console.status("Loading PyTorch"):
            from batchnorm.bench import command
            from batchnorm.bench.measure import measure
            from batchnorm.bench.results import Results
            from batchnorm.bench.screen import Screen
        asked = {"shapes": shapes, "ops": ops, "dtypes": dtypes, "contenders": contenders, "rounds": rounds}
        command.check_read(read, {**asked, "threads": threads, "quick": quick or None})
        cases = command.chosen_cases(shapes, dtypes, ops, quick=quick)
        chosen = command.settings(contenders, threads=threads, rounds=rounds, memory=memory.value, quick=quick)
        command.check_files(out, chart, None if read else cases)
        results = Results.read(read) if read else command.empty_results(chosen, ["batchnorm", *sys.argv[1:]])
        if not read:
            with suppress(KeyboardInterrupt), Screen(console, cases, len(chosen.modes)) as watcher:
                measure(cases, chosen, into=results, watcher=watcher)
    if not results.rows and not read:
        console.say("\nInterrupted before anything was timed.")
        raise typer.Exit(stopped())
    with (
        in_a_line(lambda: "Interrupted: a file that is not written is as it was before."),
        printed(lambda: echo_json(results.to_json()) if as_json else command.show(results, Terminal())),
    ):
        text, numbers = command.files(out) if out is not None else (None, None)
        if numbers is not None and numbers.exists() and not (results.finished or read):
            console.say(escape(f"Interrupted: {numbers} is as it was before."))  # that may be whole
        elif out is not None:
            command.write(results, out)
            console.say(escape(f"wrote {text} and {numbers}"))
        if chart is not None:
            command.draw(results, chart)
    if not results.finished and not read:
        raise typer.Exit(stopped())
    raise typer.Exit(WRONG if command.wrong(results) else 0)
