"""Run the command lines of the attack, two at a time; print a summary, and exit with 1 where a rule is broken.

PYTHONPATH=tests python -m attack [--group tables] [--only TEXT]
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from attack import files, options, own_code, surroundings, tables
from attack.attempt import Attempt, Outcome
from attack.running import run, warm
from attack.verdict import RULES, verdict

PARTS = (tables, own_code, options, files, surroundings)
SHOWN = 300  # characters of what was printed
PROCESSES = 2
MOST = 130  # command lines of a group, but for --all


def attempts() -> list[Attempt]:
    """Return every command line."""
    return [attempt for part in PARTS for attempt in part.attempts()]


def some() -> list[Attempt]:
    """Return so many of each group as fit into ten minutes, drawn at random, but the same each time."""
    drawn, found = random.Random(0), attempts()
    groups = {group: [a for a in found if a.group == group] for group in sorted({a.group for a in found})}
    return [a for of in groups.values() for a in (drawn.sample(of, MOST) if len(of) > MOST else of)]


def sample(count: int, seed: int = 0) -> list[Attempt]:
    """Return some of each group that take no more than moments, the same each time."""
    drawn = random.Random(seed)
    quick = [a for a in attempts() if "--budget" not in a.arguments and a.seconds <= 60 and not a.prepare]
    groups = {attempt.group for attempt in quick}
    of = {g: [a for a in quick if a.group == g] for g in sorted(groups)}
    return [a for g in of for a in drawn.sample(of[g], min(len(of[g]), count // len(groups)))]


def tried(chosen: Iterable[Attempt]) -> Iterable[tuple[Attempt, Outcome, dict[str, str]]]:
    """Run command lines one after the other, and judge them."""
    warm()
    for attempt in chosen:
        outcome = run(attempt)
        yield attempt, outcome, verdict(attempt, outcome)


def told(attempt: Attempt, outcome: Outcome, broken: dict[str, str]) -> str:
    """Return a failure in some lines: the command, the rules and what was printed."""
    lines = [f"FAILED {attempt.group}: {attempt.command}"]
    lines += [f"    {rule}: {fault}" for rule, fault in broken.items()]
    for name, stream in (("stdout", outcome.out), ("stderr", outcome.err)):
        lines += [f"    {name}: {stream[-SHOWN:]!r}"] if stream else []
    return "\n".join(lines)


def main(given: Sequence[str]) -> int:
    """Run what is asked for and print the summary; return the exit status."""
    parser = argparse.ArgumentParser(prog="attack", description=__doc__)
    parser.add_argument("--group", help="only this one")
    parser.add_argument("--only", help="only commands that hold this text")
    parser.add_argument("--all", action="store_true", help=f"every one, and not {MOST} of each group at most")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    if asked.part is not None:
        return _part(asked)
    start = time.monotonic()
    more = [word for name in ("group", "only") if (value := getattr(asked, name)) for word in (f"--{name}", value)]
    more += ["--all"] * asked.all
    parts = [
        subprocess.Popen(
            [sys.executable, "-m", "attack", "--part", f"{i}/{PROCESSES}", *more], stdout=subprocess.PIPE, text=True,
            errors="backslashreplace", env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        for i in range(PROCESSES)
    ]  # fmt: skip
    lines = [line for part in parts for line in (part.communicate()[0] or "").splitlines()]
    return _summary(lines, [part.returncode for part in parts], time.monotonic() - start)


def _part(asked: argparse.Namespace) -> int:
    """Run each so many-th command line; print a line for each, and failures."""
    index, parts = map(int, asked.part.split("/"))
    every = asked.all or asked.group or asked.only
    chosen = [
        a
        for a in (attempts() if every else some())
        if asked.group in (None, a.group) and (asked.only or "") in a.command
    ]
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for attempt, outcome, broken in tried(chosen[index::parts]):
        print(f"COUNT\t{attempt.group}\t{','.join(broken) or 'kept'}\t{outcome.seconds:.2f}", flush=True)
        if broken:
            print(told(attempt, outcome, broken), flush=True)
    return 0


def _summary(lines: Sequence[str], statuses: Sequence[int], seconds: float) -> int:
    rows = [line.split("\t")[1:] for line in lines if line.startswith("COUNT\t")]
    counts = Counter((group, rule) for group, rules, _ in rows for rule in rules.split(","))
    for line in lines:
        if not line.startswith("COUNT\t"):
            print(line)
    broken = [rule.__name__ for rule in RULES if any(name == rule.__name__ for _, name in counts)]
    print(f"\n{'group':<14}{'commands':>10}{'kept':>8}" + "".join(f"  {name}" for name in broken) + f"{'seconds':>10}")
    for group in sorted({row[0] for row in rows}):
        of_group = [row for row in rows if row[0] == group]
        cells = "".join(f"  {counts[group, name]:>{len(name)}}" for name in broken)
        took = sum(float(row[2]) for row in of_group)
        print(f"{group:<14}{len(of_group):>10}{counts[group, 'kept']:>8}{cells}{took:>10.0f}")
    kept = sum(row[1] == "kept" for row in rows)
    print(f"{len(rows)} command lines in {seconds:.0f} s: {kept} kept every rule, {len(rows) - kept} did not")
    return int(kept != len(rows) or not rows or any(statuses))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
