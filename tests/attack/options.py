"""Options of every command: each value alone, then values drawn together."""

import random
from collections.abc import Iterator, Mapping

from attack.attempt import BAD_INPUT, FINE, Attempt, may
from attack.files import FOLD, OWN, RECALIBRATE
from attack.own_code import BATCH_SIZE

ODD = ("", " ", "x", "-1", "0", "1e9", "nan", "inf", "-inf", "99999999999999999999999", "\x1b[31m", "[/red]x", "\udcff")
Options = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
# For each option values that are right; all of ODD are wrong, but for those named second.
ASKED = {
    "--candidates": (("8,16", "16"), ()),
    "--group": (("4", "8"), ()),
    "--budget": (("0.3",), ("1e9", "99999999999999999999999")),
    "--device": (("cpu",), ()),
    "--objective": (("time", "compute"), ()),
    "--optimizer": (("sgd",), ()),
    "--rate": (("0.01", "10"), ("1e9", "99999999999999999999999")),
    "--task": ((), ()),
    "--model": (("theirs:model",), ()),
    "--loss": (("theirs:loss",), ()),
    "--data": (("theirs:data",), ()),
    "--nowhere": ((), ()),
}
OF_SURGERY = {
    "--max-samples": (("10",), ("99999999999999999999999", "1e9")),
    "--layers": (("norm", "*"), ("", " ")),
    "--call": (("theirs:call",), ()),
    "--device": (("cpu",), ()),
    "--model": (("theirs:model",), ()),
    "--data": (("theirs:batches",), ()),
}
OF_BENCH = {
    "--shapes": ((), ()), "--ops": ((), ()), "--dtypes": ((), ()), "--contenders": ((), ()), "--rounds": ((), ()),
    "--threads": ((), ()), "--memory": ((), ()), "--chart": ((), ()), "--from": ((), ()),
}  # fmt: skip
OF_STUDY = {
    "--seeds": ((), ()), "--batch-size": ((), ()), "--hidden": ((), ()), "--claims": ((), ()), "--metric": ((), ()),
    "--optimizer": ((), ()), "--jobs": ((), ()), "--backend": ((), ()), "--config": ((), ()), "--data": ((), ()),
    "--model": ((), ()), "--loss": ((), ()), "--activation": ((), ()),
}  # fmt: skip
ENDLESS = {("--rounds", "99999999999999999999999")}
BARE = (
    (), ("--help",), ("--version",), ("nowhere",), ("--nowhere",), ("info",), ("info", "--json"), ("info", "x"),
    ("study", "--list"), ("study", "--list", "--json"), ("study", "--check"), ("bench", "--help"),
    ("batch-size", "--help"), ("fold", "--help"), ("recalibrate", "--help"), ("study", "--help"), ("fold",),
    ("recalibrate",), ("fold", "--model"), ("\x1b[31m",), ("info", "--json", "--json"), ("[/red]",), ("-",), ("--",),
    ("batch-size", "a", "b"), ("batch-size", "--", "--json"), ("study", "x", "y"), ("\udcff",), ("info", "\x9b31m"),
)  # fmt: skip
RIGHT = {"--help", "--version", "info", "--list"}


def attempts() -> Iterator[Attempt]:
    """Yield each wrong value alone; and of those for `batch-size` and `recalibrate` many drawn together."""
    for arguments in BARE:
        right = bool(RIGHT & {*arguments}) and len({*arguments} - RIGHT - {"--json"}) <= ("info" not in arguments)
        yield Attempt("options", arguments, may(FINE) if right else may(BAD_INPUT))
    files = {"theirs.py": OWN}
    commands = (
        ((*BATCH_SIZE, "--budget", "0.3"), ASKED), ((*RECALIBRATE, "--out", "x.pt"), OF_SURGERY),
        (("bench",), OF_BENCH), (("study",), OF_STUDY),
    )  # fmt: skip
    for command, options in commands:
        for option, (right, perhaps) in options.items():
            for value in (*ODD, *right):
                if value in perhaps or (option, value) in ENDLESS:
                    continue
                statuses = may(FINE) if value in right else may(BAD_INPUT)
                outputs = ["x.pt"] if "x.pt" in command else []
                if command == ("study",) and value == "0" and option in ("--claims",):
                    continue
                yield Attempt("options", (*command, option, value), statuses, files, outputs, seconds=30)
    drawn = random.Random(0)
    for _ in range(60):
        yield _together(drawn, (*BATCH_SIZE, "--budget", "0.3", "--json"), ASKED)
        yield _together(drawn, (*RECALIBRATE, "--out", "x.pt", "--json"), OF_SURGERY)
    for ending in ("gif", "PT", "onnx ", "", "pt.bak"):
        right = ending == "PT"
        name = f"x.{ending}"
        yield Attempt(
            "options", (*FOLD, "--out", name), may(FINE) if right else may(BAD_INPUT), files, [name] if right else []
        )


def _together(drawn: random.Random, command: tuple[str, ...], options: Options) -> Attempt:
    """Return a command with three options, which is right if all of them are."""
    words, statuses = list(command), may(FINE, BAD_INPUT)
    for option in drawn.sample(list(options), 3):
        right, perhaps = options[option]
        value = drawn.choice((*ODD, *right * 5))
        words += [option, value]
        if value not in right and value not in perhaps:
            statuses = may(BAD_INPUT)
    outputs = ["x.pt"] if "x.pt" in words else []
    return Attempt("options", tuple(words), statuses, {"theirs.py": OWN}, outputs, seconds=30)
