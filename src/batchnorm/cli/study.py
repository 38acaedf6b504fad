"""The command `batchnorm study`: its options, and what is printed."""

import os
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from batchnorm.cli import Optimizer, Task, app
from batchnorm.cli.running import BAD_INPUT, Terminal, echo_json, in_a_line, only_results

DATA, NETWORK, STUDY, REPORT, RUN = "Data", "Network", "Study", "Report", "Run"
FACTORY = "MODULE:FACTORY"


class Metric(StrEnum):
    """How good predictions are; higher is better."""

    accuracy = "accuracy"
    balanced_accuracy = "balanced-accuracy"
    auc = "auc"
    skill = "skill"
    r2 = "r2"
    loss = "loss"


class Activation(StrEnum):
    """The activations that the main network can have."""

    relu = "relu"
    sigmoid = "sigmoid"
    tanh = "tanh"
    gelu = "gelu"
    silu = "silu"
    leaky_relu = "leaky-relu"
    elu = "elu"


class Backend(StrEnum):
    """Where runs are trained."""

    processes = "processes"
    ray = "ray"
    dask = "dask"


def _configured(context: typer.Context, file: Path | None) -> Path | None:
    """Make what a TOML file sets the defaults of the other options."""
    if file is not None:
        from batchnorm.study.options import from_toml

        with in_a_line():
            names = {"json": "as_json", "open": "open_report"}
            context.default_map = {names.get(name, name): value for name, value in from_toml(file).items()}
    return file


@app.command()
def study(
    table: Annotated[
        Path | None,
        typer.Argument(
            help="A table to study: CSV, TSV, Excel, Parquet or Feather, compressed or not. Without a table, the "
            "study runs on the handwritten digits that come with scikit-learn.",
            rich_help_panel=DATA,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The column to predict, by name or place.", rich_help_panel=DATA),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(help="What the target is. Default: decided by its values.", rich_help_panel=DATA),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column to leave out. May be repeated.", rich_help_panel=DATA),
    ] = None,
    no_header: Annotated[
        bool,
        typer.Option("--no-header", help="The first row of the table holds no names.", rich_help_panel=DATA),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Print how each column of the table is read, and train nothing.", rich_help_panel=DATA
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar=FACTORY, help="A function that returns arrays (x, y), in place of a table.", rich_help_panel=DATA
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar=FACTORY,
            help="A function that returns your torch model. Default: the study's own network.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Your loss, a function (output, target) → mean, or one that returns it.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    activation: Annotated[
        Activation | None,
        typer.Option(help="The activation of the main network. Default: relu.", rich_help_panel=NETWORK),
    ] = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHS",
            help="The widths of the hidden layers, with commas between. Default: 100,100,100.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    optimizer: Annotated[
        Optimizer, typer.Option(help="The optimizer of every run.", rich_help_panel=NETWORK)
    ] = Optimizer.sgd,
    batch_size: Annotated[
        int, typer.Option(min=2, metavar="ROWS", help="The rows of a training step.", rich_help_panel=NETWORK)
    ] = 60,
    claims: Annotated[
        str | None,
        typer.Option(
            metavar="IDS",
            help="The claims to measure, with commas between: speed,score. See --list. Default: all.",
            rich_help_panel=STUDY,
        ),
    ] = None,
    list_claims: Annotated[
        bool,
        typer.Option(
            "--list", help="Print the claims, their statements and their cost, and train nothing.",
            rich_help_panel=STUDY,
        ),
    ] = False,
    metric: Annotated[
        Metric | None,
        typer.Option(help="The score of predictions. Default: one that suits the data.", rich_help_panel=STUDY),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=3, max=100, help="The most repetitions of a comparison. With --quick, six at the most.",
            rich_help_panel=STUDY,
        ),
    ] = 12,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31, help="The first seed. The others follow it.", rich_help_panel=STUDY)
    ] = 0,
    quick: Annotated[
        bool, typer.Option(
            "--quick", help="Measure the claims that the answer rests on, on shorter grids, in fewer steps.",
            rich_help_panel=STUDY,
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The folder of the report.", rich_help_panel=REPORT)
    ] = Path("report"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the report of other data.", rich_help_panel=REPORT)
    ] = False,
    open_report: Annotated[
        bool, typer.Option("--open", help="Open the report in the browser.", rich_help_panel=REPORT)
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write curves and effects for TensorBoard too.", rich_help_panel=REPORT
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON.", rich_help_panel=REPORT)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the runs that an interrupted study has finished.", rich_help_panel=RUN
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="How many runs train at a time. Default: one a core.", rich_help_panel=RUN),
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="Where they train.", rich_help_panel=RUN)
    ] = Backend.processes,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", is_eager=True, callback=_configured,
            help="A TOML file with any of these options. The command line has the last word.", rich_help_panel=RUN,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Measure on your data what batch normalization does, and write a report.

    Should you use batch normalization here, where, with which learning rate, and what does it gain you? Networks are
    trained with and without it, each at its own best learning rate, and every claim gets a verdict with its interval.
    """
    console = Terminal(stderr=as_json)
    known = os.path.isdir(out)  # which takes names that are too long, too
    with in_a_line(lambda: _left(out, keep=known)):
        from batchnorm.study import command
        from batchnorm.study.options import Options

        options = Options(
            table, target, task, drop or (), no_header, data, model, loss, activation, hidden, claims, metric, seeds,
            seed, optimizer, batch_size, quick, out, overwrite, resume, tensorboard, jobs, backend, check, list_claims,
        ).checked()  # fmt: skip
        with only_results(as_json):
            answer = command.answer(options, console)
        if open_report:
            command.open_report(out)
    if as_json:
        echo_json(answer.json)
    else:
        console.print(answer.shown, highlight=False)
    if answer.refused:
        raise typer.Exit(BAD_INPUT)


def _left(out: Path, *, keep: bool) -> str:
    """Return what an interruption leaves; folders with nothing in them it does not, unless that was there before."""
    if any((out / "runs").glob("*.json")):
        return f"Interrupted. What is finished is kept in {out}/runs: go on with --resume."
    with suppress(OSError):  # where there is something else
        (out / "runs").rmdir()
        if not keep:
            out.rmdir()
    return "Interrupted before any run was finished: nothing is kept."
