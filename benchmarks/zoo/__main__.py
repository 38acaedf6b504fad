"""Run other people's programs with our layer in them, and show that nothing is silently wrong.

    make zoo                                    everything, in an environment of its own: half an hour or so
    .venv-zoo/bin/python benchmarks/zoo --only 'timm/dpn*' --only captum    some of it
    .venv-zoo/bin/python benchmarks/zoo --list

A check ends in one of five ways. *ok*: with a figure. *refused*: by a message that names the layer and the way out.
*WRONG*: anything else; the exit status is 1 then. *torch fails*: at the same, so that it tells nothing of our layer.
*left out*: a package is not installed. Nothing is downloaded: weights are random, models are made from configurations.
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

STYLES = {"ok": "green", "refused": "cyan", "WRONG": "bold red", "torch fails": "yellow", "left out": "dim"}
SHOWN = (
    "torch", "timm", "torchvision", "transformers", "accelerate", "pytorch-lightning", "opacus", "captum", "torchao",
    "speechbrain", "segmentation-models-pytorch", "monai", "torch-geometric", "ultralytics", "onnx", "onnxruntime",
    "torch-pruning",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks/zoo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="names of checks, or parts; *")
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument("--out", type=Path, help="write the table as text")
    parser.add_argument("--json", type=Path, help="write the outcomes as JSON")
    return parser.parse_args()


def chosen(patterns: list[str]) -> list[Check]:
    return [c for c in CHECKS if not patterns or any(fnmatch.fnmatch(c.name, f"*{pattern}*") for pattern in patterns)]


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


def main() -> int:
    asked, outcomes = arguments(), list[Outcome]()
    checks = chosen(asked.only)
    if asked.list or not checks:
        print("\n".join(c.name for c in checks) or f"no check is called {' or '.join(asked.only)}; --list")
        return 0 if checks else 2
    progress = Console(stderr=True, highlight=False)
    for i, one in enumerate(checks, start=1):
        outcome = one.run()
        outcomes.append(outcome)
        line = f"{i}/{len(checks)} {outcome.name} ({outcome.seconds} s) "
        progress.print(Text(line).append(outcome.status, STYLES[outcome.status]), Text(outcome.figure))
    with Console(width=150, file=asked.out.open("w") if asked.out else sys.stdout) as console:
        console.print(Text(heading()), table(outcomes), Text(summary(outcomes)))
    if asked.json:
        asked.json.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=2, ensure_ascii=False) + "\n")
    return int(any(outcome.status == "WRONG" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
