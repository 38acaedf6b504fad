"""The command `batchnorm batch-size`: its options, and what is printed."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from batchnorm.cli import Model, Optimizer, TableFile, Target, TaskName, app
from batchnorm.cli.running import Terminal, in_a_line, only_results, shown, stopped


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
        typer.Option(
            metavar="MODULE:LOSS", help="Your loss (output, target) → mean, or what makes it. Default: as the data are."
        ),
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
    console = Terminal(stderr=as_json)
    left = "Interrupted before a single step was timed: nothing is known."
    with in_a_line(lambda: left, _asked(model, data, loss)), only_results():
        with Terminal(stderr=True).status("Loading PyTorch"):
            from batchnorm.batch_size import advise, command
        sizes = command.sizes(candidates)
        command.check_picture(out)
        asked = command.question(
            table, target=target, task=task.value if task else None, data=data, model=model, loss=loss
        )
        chosen = command.optimizer(optimizer.value if optimizer else None, rate, asked.model)
        advice = advise(
            asked.model, asked.loss, asked.dataset, chosen, objective=objective.value, candidates=sizes,
            group=group, device=device, budget_s=budget, measure=measure,
        )  # fmt: skip
    about = {**advice.measured_on, "data": f"{asked.name}, {advice.measured_on['data']}"}
    advice = replace(advice, measured_on=about)
    with shown(advice, console, as_json=as_json):
        if out is not None:
            with in_a_line(lambda: f"Interrupted: {out} is as it was before."):
                command.write_picture(advice, out)
            console.say(f"\nPicture: [bold]{escape(str(out))}[/]")
    if advice.interrupted:
        raise typer.Exit(stopped())


def _asked(model: str | None, data: str | None, loss: str | None) -> str:
    """Return what of the user's is tried, as it is written on the command line."""
    named = {"--model": model, "--data": data, "--loss": loss}
    given = [f"`{option} {name}`" for option, name in named.items() if name is not None]
    return " with ".join(given) or "the measurement"
