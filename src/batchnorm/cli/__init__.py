"""The command `batchnorm`: parses, calls the library, prints."""

import codecs
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout, suppress
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from inspect import cleandoc
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from batchnorm import __version__
from batchnorm.errors import BatchNormError, MissingExtraError
from batchnorm.outputs import printable

WRONG = 1
BAD_INPUT = 2
INTERRUPTED = 130
TERMINATED = 143
STDOUT, STDERR = 1, 2
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's, of which typer has brought its own copy since 0.26
PLAINLY = str.maketrans("×÷−–•…✓✗≠²→μσ", "x/--*.+x!2>us")  # for a terminal that has no such characters


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return for characters that a terminal cannot show others that look alike, and escapes for the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAINLY)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


class Commands(TyperGroup):
    """Says what is wrong with a command line in one line, and prints on any terminal."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the options ahead of the command."""
        codecs.register_error("plainly", _plainly)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="plainly")
        with _usage_in_a_line():
            return super().make_context(*args, **kwargs)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; its help has no broken lines, and no type beside an option that takes no value."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            paragraphs = cleandoc(command.help or "").split("\n\n")
            command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
            for option in command.get_params(ctx):
                if getattr(option, "is_flag", False):
                    option.metavar = ""
        return command

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's own options, and run it."""
        with _usage_in_a_line():
            return super().invoke(ctx)


@contextmanager
def _usage_in_a_line() -> Generator[None]:
    try:
        yield
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # which is no error to whoever asks for help
            raise
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        fail(BatchNormError(f"{error.format_message().rstrip('.')}{hint}"))


app = typer.Typer(
    name="batchnorm",
    cls=Commands,
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


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM: what Ctrl-C does, with another exit status."""


def fail(error: Exception) -> NoReturn:
    """Print an error in one line, and end with the status of bad input."""
    line = printable(" ".join(str(error).split()))
    Console(stderr=True).print(f"[red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
    raise typer.Exit(BAD_INPUT)


@contextmanager
def in_a_line(left: Callable[[], str] = lambda: "Interrupted.") -> Generator[None]:
    """End in one line and a status whatever goes wrong; let SIGTERM interrupt as Ctrl-C does.

    Args:
        left: Says what an interruption leaves.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        yield
    except (BatchNormError, MissingExtraError) as error:
        fail(error)
    except KeyboardInterrupt as interruption:
        Console(stderr=True).print(f"\n{escape(printable(left()))}", highlight=False, soft_wrap=True)
        raise typer.Exit(TERMINATED if isinstance(interruption, Terminated) else INTERRUPTED) from None
    except SystemExit as end:  # not this package's own, which end with `typer.Exit`
        fail(BatchNormError(f"your code has called sys.exit({end.code!r})"))
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


@contextmanager
def only_results(wanted: bool) -> Generator[None]:
    """Send what is printed meanwhile, by the user's code and by what that starts, to stderr: stdout is for results."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    stdout = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, STDOUT)
        os.close(stdout)


def echo_json(text: str) -> None:
    """Print JSON, its other characters as escapes where the terminal cannot show them."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(json.loads(text), indent=1) + "\n"
    typer.echo(text, nl=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"batchnorm {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Batch normalization: what it is, and what it does on your data."""


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
        typer.echo(json.dumps(facts, indent=1))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        if name != "kernels":
            table.add_row(name, value or "[dim]not installed[/]")
    for kernel in facts["kernels"]:
        table.add_row("kernel", f"{kernel['name']}: {kernel['reason']}")
    Console().print(table)


from batchnorm.cli import models, study  # noqa: E402  # which add their commands

__all__ = ["app", "models", "study"]
