"""Run other people's programs with our layer in them, and show that nothing is silently wrong.

    make zoo                                    everything, in an environment of its own: half an hour or so
    .venv-zoo/bin/python benchmarks/zoo --only 'timm/dpn*' --only captum    some of it
    .venv-zoo/bin/python benchmarks/zoo --list

A check ends in one of six ways. *ok*: with a figure. *refused*: by a message that names the layer and the way out.
*fails*: with another error. *WRONG*: without an error, and with other numbers than torch's. *torch fails*: at the same,
so that it tells nothing of our layer. *left out*: a package is not installed. The exit status is 1 where something
fails or is wrong. Nothing is downloaded: weights are random, models are made from configurations.
"""

import argparse
import fnmatch
import json
import os
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "1", "WANDB_DISABLED": "1", "TQDM_DISABLE": "1"}

import packages

packages.prepare()

import deployment  # noqa: E402, F401
import explaining  # noqa: E402, F401
import hub  # noqa: E402, F401
import libraries  # noqa: E402, F401
import pruning  # noqa: E402, F401
import swapping  # noqa: E402, F401
import timm_nets  # noqa: E402, F401
import training  # noqa: E402, F401
from check import CHECKS, Check, Outcome  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from rich.text import Text  # noqa: E402

STYLES = {
    "ok": "green",
    "refused": "cyan",
    "fails": "red",
    "WRONG": "bold red",
    "torch fails": "yellow",
    "left out": "dim",
}
SHOWN = (
    "torch", "timm", "torchvision", "transformers", "accelerate", "pytorch-lightning", "opacus", "captum", "torchao",
    "speechbrain", "segmentation-models-pytorch", "monai", "torch-geometric", "ultralytics", "onnx", "onnxruntime",
    "torch-pruning",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks/zoo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="names of checks, or parts; *")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="names of checks to leave out")
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument("--out", type=Path, help="write the table as text")
    parser.add_argument("--json", type=Path, help="write the outcomes as JSON")
    return parser.parse_args()


def chosen(only: list[str], skip: list[str]) -> list[Check]:
    def named(check: Check, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatch(check.name, f"*{pattern}*") for pattern in patterns)

    return [c for c in CHECKS if (not only or named(c, only)) and not named(c, skip)]


def heading() -> str:
    found = []
    for package in SHOWN:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def table(outcomes: list[Outcome]) -> Table:
    made = Table("check", "outcome", "figure, or why", title="zoo", title_justify="left")
    for outcome in outcomes:
        made.add_row(outcome.name, Text(outcome.status, STYLES[outcome.status]), Text(outcome.figure))
    return made


def summary(outcomes: list[Outcome]) -> str:
    counts = Counter(outcome.status for outcome in outcomes)
    return f"{len(outcomes)} checks: " + ", ".join(f"{counts[status]} {status}" for status in STYLES if counts[status])


def run(checks: list[Check]) -> list[Outcome]:
    """Run the checks, and show each outcome when it is there; Ctrl-C ends with those that are."""
    outcomes, progress = list[Outcome](), Console(stderr=True, highlight=False)
    try:
        for i, one in enumerate(checks, start=1):
            outcomes.append(outcome := one.run())
            line = f"{i}/{len(checks)} {outcome.name} ({outcome.seconds} s) "
            progress.print(Text(line).append(outcome.status, STYLES[outcome.status]), Text(outcome.figure))
    except KeyboardInterrupt:
        progress.print(f"stopped after {len(outcomes)} of {len(checks)}")
    return outcomes


def main() -> int:
    asked = arguments()
    checks = chosen(asked.only, asked.skip)
    if asked.list or not checks:
        print("\n".join(c.name for c in checks) or f"no check is called {' or '.join(asked.only)}; --list")
        return 0 if checks else 2
    outcomes = run(checks)
    console = Console(width=150, file=asked.out.open("w") if asked.out else sys.stdout)
    console.print(Text(heading()), table(outcomes), Text(summary(outcomes)), sep="\n")
    if asked.json:
        asked.json.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=2, ensure_ascii=False) + "\n")
    return int(len(outcomes) < len(checks) or any(outcome.status in ("fails", "WRONG") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
