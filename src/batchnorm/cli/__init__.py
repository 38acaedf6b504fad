"""The command `batchnorm`: parses, calls the library, prints."""

import json
import sys
from contextlib import redirect_stdout, suppress
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from batchnorm import __version__, kernels
from batchnorm.errors import BatchNormError, MissingExtraError

WRONG = 1
BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="batchnorm",
    help="Batch normalization: what it is, and what it does on your data.",
    no_args_is_help=True,
    add_completion=False,
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


def fail(error: Exception) -> NoReturn:
    """Print an error in one line, and end with the status of bad input."""
    Console(stderr=True).print(
        f"[red]error:[/] {escape(' '.join(str(error).split()))}", highlight=False, soft_wrap=True
    )
    raise typer.Exit(BAD_INPUT)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"batchnorm {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Batch normalization: what it is, and what it does on your data."""


@app.command()
def study(
    table: TableFile = None,
    target: Target = None,
    task: TaskName = None,
    data: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="A function that returns arrays (x, y).")
    ] = None,
    model: Model = None,
    claims: Annotated[
        str | None,
        typer.Option(help="Which claims to measure, with commas between: speed,learning-rate. Default: all."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=3, max=100, help="Paired repetitions. Default: 5, or 3 with --quick.")
    ] = None,
    optimizer: Annotated[Optimizer, typer.Option(help="The optimizer of every run.")] = Optimizer.sgd,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows a training step.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder for index.html, results.json and the finished runs.")] = Path(
        "report"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A coarser study in a third of the time.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes. Default: one a core.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the runs an interrupted study finished.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of a table.")] = False,
) -> None:
    """Measure the claims about batch normalization on your data, and write a report.

    Should you use batch normalization here, where, with which learning rate, and what does it buy you? Networks are
    trained with and without it, each side at its own best learning rate; every claim gets a verdict with its interval.
    """
    console = Console(stderr=as_json)
    try:
        with console.status("Loading PyTorch and scikit-learn"):
            from batchnorm.study import Settings, run, screen
            from batchnorm.study.claims import chosen_claims
            from batchnorm.study.sources import chosen_data
        chosen = chosen_claims(claims)
        settings = Settings(seeds or (3 if quick else 5), optimizer.value, batch_size, quick, model)
        dataset = chosen_data(table, target, task.value if task else None, data)
        with screen.Screen(console, chosen) as watcher:
            results = run(
                dataset, settings=settings, claims=chosen, out=out, jobs=jobs, resume=resume, watcher=watcher,
                command=["batchnorm", *sys.argv[1:]],
            )  # fmt: skip
    except (BatchNormError, MissingExtraError) as error:
        fail(error)
    except KeyboardInterrupt:
        console.print(
            f"\nInterrupted. What is finished is kept in {out}/runs: go on with --resume."
            if any((out / "runs").glob("*.json"))
            else "\nInterrupted before any run was finished: nothing is kept.",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo((out / "results.json").read_text(encoding="utf-8"), nl=False)
    else:
        screen.show(results, console)


class Objective(StrEnum):
    """What a batch size is chosen for."""

    time = "time"
    compute = "compute"


@app.command("batch-size")
def batch_size(
    table: TableFile = None,
    target: Target = None,
    task: TaskName = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY", help="A function that returns arrays (x, y), a Dataset or a DataLoader."
        ),
    ] = None,
    model: Model = None,
    loss: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FACTORY", help="A function that returns your loss (output, target) → mean."),
    ] = None,
    optimizer: Annotated[
        Optimizer | None, typer.Option(help="The optimizer, with --rate. Default: SGD at a rate that is looked for.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="The optimizer's learning rate.")] = None,
    objective: Annotated[Objective, typer.Option(help="The least time, or little compute.")] = Objective.time,
    candidates: Annotated[
        str | None, typer.Option(help="Sizes to choose from, with commas between: 32,64,128.")
    ] = None,
    group: Annotated[int | None, typer.Option(help="The samples normalised together, if that is fixed.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to measure: cpu, cuda. Default: where the model is.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds this may take.")] = 60.0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train to a target at five or more sizes, beside the prediction.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A file for the picture: .svg, .png or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of the page.")] = False,
) -> None:
    """Say which batch size to train with, and why: four limits measured on your data and machine.

    Memory, throughput, gradient noise and the noise of batch statistics; B, the samples of a step, and m, those
    normalised together, are answered apart.
    """
    console = Console(stderr=as_json)
    try:
        with console.status("Loading PyTorch"):
            from batchnorm.batch_size import advise, command
        sizes = command.sizes(candidates)
        asked = command.question(
            table, target=target, task=task.value if task else None, data=data, model=model, loss=loss
        )
        chosen = command.optimizer(optimizer.value if optimizer else None, rate, asked.model)
        command.check_picture(out)
        with redirect_stdout(sys.stderr):  # whatever a model prints is not the answer
            advice = advise(
                asked.model, asked.loss, asked.dataset, chosen, objective=objective.value, candidates=sizes,
                group=group, device=device, budget_s=budget, measure=measure,
            )  # fmt: skip
    except (BatchNormError, MissingExtraError) as error:
        fail(error)
    except KeyboardInterrupt:
        console.print("\nInterrupted before a single step was timed: nothing is known.")
        raise typer.Exit(INTERRUPTED) from None
    if out is not None:
        command.write_picture(advice, out)
    if as_json:
        typer.echo(advice.to_json())
    else:
        console.print(advice)
        if out is not None:
            console.print(f"\nPicture: [bold]{escape(str(out))}[/]", highlight=False)
    if advice.interrupted:
        raise typer.Exit(INTERRUPTED)


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
    console = Console(stderr=True)
    try:
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
        if out is not None:
            command.write(results, out)
        if as_json:
            typer.echo(results.to_json(), nl=False)
        else:
            command.show(results)
        if chart is not None:
            command.draw(results, chart)
    except (BatchNormError, MissingExtraError) as error:
        fail(error)
    except KeyboardInterrupt:
        console.print("\nInterrupted before anything was timed.")
        raise typer.Exit(INTERRUPTED) from None
    if not results.finished and not read:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(WRONG if command.wrong(results) else 0)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _facts() -> dict[str, Any]:
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
        typer.echo(json.dumps(facts, indent=1))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        if name != "kernels":
            table.add_row(name, value or "[dim]not installed[/]")
    for kernel in facts["kernels"]:
        table.add_row("kernel", f"{kernel['name']}: {kernel['reason']}")
    Console().print(table)


from batchnorm.cli import models  # noqa: E402  # which adds its commands

__all__ = ["app", "models"]
