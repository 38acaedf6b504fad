"""User code that fails in every way, in every place where a command calls it."""

from collections.abc import Iterator

from attack.attempt import BAD_INPUT, FINE, Attempt, may

INTERRUPTED = 130
KINDS = {
    "value": "raise ValueError('out of\\n cheese')",
    "exit": "sys.exit(0)",
    "exit 3": "sys.exit(3)",
    "exit text": "sys.exit('bye')",
    "interrupt": "raise KeyboardInterrupt",
    "memory": "raise MemoryError",
    "recursion": "f = lambda: f(); f()",
    "disk": "raise OSError(28, 'No space left on device', 'their/file')",
    "pipe": "raise BrokenPipeError(32, 'Broken pipe')",
    "end": "raise EOFError",
    "generator": "raise GeneratorExit",
    "own": "raise type('Theirs', (BaseException,), {})('theirs')",
    "silent": "raise type('Silent', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "acts": "raise RuntimeError('\\x1b]0;owned\\x07 \\x1b[31mred [/red]x [bold]b \\x9b31m')",
    "circle": "exec('try:\\n raise ValueError(1)\\nexcept ValueError as error:\\n raise error from error')",
    "text": "raise UnicodeError('\\udcff half a character')",
    "assertion": "assert False",
}
PRINTS = "print('{'); os.write(1, b'[from C\\n'); subprocess.run(['echo', '}'])"
THEIRS = """
import os, subprocess, sys
import torch
from torch import nn

def at(place):
    if place == {place!r}:
        {what}

at("import")
torch.manual_seed(0)
X, Y = torch.randn(80, 3), torch.randint(2, (80,))

class Hook(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        at("backward")
        return gradient

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        at("forward")
        if len(x) > 4:
            at("large batch")
        if not self.training:
            at("inference")
        x = self.b(torch.relu(self.norm(self.a(x))))
        return Hook.apply(x) if x.requires_grad and not torch.compiler.is_exporting() else x

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        at("length")
        return 80

    def __getitem__(self, i):
        at("row")
        return X[i], Y[i]

def model():
    at("model")
    return Net()

def data():
    at("data")
    return Rows()

def loader():
    return torch.utils.data.DataLoader(Rows(), batch_size=8, num_workers=2)

def batches():
    at("data")
    for part in X.split(20):
        at("batch")
        yield part

def inputs():
    at("inputs")
    return X[:4]

def call(model, batch):
    at("call")
    return model(batch)

def loss():
    at("loss")
    def of(output, target):
        at("computing the loss")
        return nn.functional.cross_entropy(output, target)
    return of
"""
BATCH_SIZE = ("batch-size", "--model", "theirs:model", "--data", "theirs:data", "--loss", "theirs:loss")
COMMANDS = {
    (*BATCH_SIZE, "--budget", "0.5"): (
        "import", "model", "data", "length", "row", "forward", "backward", "loss", "computing the loss", "large batch",
        "inference",
    ),
    ("recalibrate", "--model", "theirs:model", "--data", "theirs:batches", "--call", "theirs:call", "--out", "old.pt"):
        ("import", "model", "data", "batch", "forward", "call", "large batch"),
    ("fold", "--model", "theirs:model", "--inputs", "theirs:inputs", "--out", "old.safetensors"):
        ("import", "model", "inputs", "forward", "inference"),
}  # fmt: skip
MODELS = {  # in place of Net, and what may come of them with `batch-size`
    "nothing to learn": ("nn.Flatten()", may(BAD_INPUT)),
    "frozen": ("Net().requires_grad_(False)", may(BAD_INPUT)),
    "no module": ("3", may(BAD_INPUT)),
    "nothing": ("None", may(BAD_INPUT)),
    "the class": ("Net", may(BAD_INPUT)),
    "lazy": ("nn.LazyLinear(2)", may(BAD_INPUT)),
    "half": ("Net().half()", may(FINE, BAD_INPUT)),
    "double": ("Net().double()", may(FINE, BAD_INPUT)),
    "meta": ("Net().to('meta')", may(BAD_INPUT)),
    "no weights": ("torch.nn.utils.skip_init(nn.Linear, 3, 2)", may(FINE, BAD_INPUT)),
    "in inference": ("Net().eval()", may(FINE)),
    "one unit": ("nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1), nn.Linear(1, 2))", may(FINE)),
    "too few outputs": ("nn.Sequential(nn.Linear(3, 1))", may(BAD_INPUT)),
    "wrong inputs": ("nn.Sequential(nn.Linear(4, 2))", may(BAD_INPUT)),
    "two outputs": ("type('Two', (Net,), {'forward': lambda s, x: (Net.forward(s, x),) * 2})()", may(BAD_INPUT)),
    "dropout": ("nn.Sequential(Net(), nn.Dropout(0.99))", may(FINE)),
    "huge weights": ("nn.Sequential(nn.Linear(3, 2), nn.Softplus(1e-9))", may(FINE, BAD_INPUT)),
}
LOSSES = {
    "nan": ("lambda o, t: o.sum() * float('nan')", may(BAD_INPUT)),
    "inf": ("lambda o, t: o.sum() * float('inf')", may(BAD_INPUT)),
    "rows": ("nn.CrossEntropyLoss(reduction='none')", may(BAD_INPUT)),
    "number": ("lambda o, t: 1.0", may(BAD_INPUT)),
    "nothing": ("lambda o, t: None", may(BAD_INPUT)),
    "no gradient": ("lambda o, t: o.detach().sum()", may(BAD_INPUT)),
    "class": ("nn.CrossEntropyLoss", may(BAD_INPUT)),
    "three": ("3", may(BAD_INPUT)),
    "one argument": ("lambda o: o.sum()", may(BAD_INPUT)),
    "nan later": ("lambda o, t, n=[0]: n.append(0) or o.sum() * (float('nan') if len(n) > 5 else 1)", may(FINE, 2)),
    "rows later": ("lambda o, t, n=[0]: n.append(0) or (o.sum() if len(n) < 5 else o)", may(FINE, BAD_INPUT)),
    "explodes": ("lambda o, t: (o * 1e18).pow(2).sum()", may(FINE, BAD_INPUT)),
    "zero": ("lambda o, t: o.sum() * 0", may(FINE)),
    "negative": ("lambda o, t: -o.pow(2).sum()", may(FINE)),
    "integers": ("lambda o, t: o.sum().long()", may(BAD_INPUT)),
    "complex": ("lambda o, t: o.sum() * 1j", may(BAD_INPUT)),
    "a pair": ("lambda o, t: (o.sum(), o.sum())", may(BAD_INPUT)),
}
DATA = {
    "endless": ("range(10**9)", may(BAD_INPUT)),
    "very long": (
        "type('Long', (Rows,), {'__len__': lambda s: 10**9, '__getitem__': lambda s, i: (X[i % 80], Y[i % 80])})()",
        may(FINE),
    ),
    "very long, shuffled": (
        "torch.utils.data.DataLoader(type('Long', (Rows,), {'__len__': lambda s: 10**9, '__getitem__': "
        "lambda s, i: (X[i % 80], Y[i % 80])})(), batch_size=8, shuffle=True)",
        may(FINE),
    ),
    "too long": ("type('Long', (Rows,), {'__len__': lambda s: 2**70})()", may(BAD_INPUT)),
    "none": ("[]", may(BAD_INPUT)),
    "nothing": ("None", may(BAD_INPUT)),
    "one row": ("[(X[0], Y[0])]", may(BAD_INPUT)),
    "three parts": ("type('Three', (Rows,), {'__getitem__': lambda s, i: (X[i], Y[i], 1)})()", may(BAD_INPUT)),
    "ragged": ("type('Ragged', (Rows,), {'__getitem__': lambda s, i: (X[i][: i % 3 + 1], Y[i])})()", may(BAD_INPUT)),
    "texts": ("type('Texts', (Rows,), {'__getitem__': lambda s, i: ('x', Y[i])})()", may(BAD_INPUT)),
    "nan": ("type('NaN', (Rows,), {'__getitem__': lambda s, i: (X[i] * float('nan'), Y[i])})()", may(BAD_INPUT)),
    "a stream": ("iter(Rows())", may(BAD_INPUT)),
    "workers killed": (
        "torch.utils.data.DataLoader(type('Kills', (Rows,), {'__getitem__': lambda s, i: os.getpid() == MAIN and "
        "(X[i], Y[i]) or os.kill(os.getpid(), 9)})(), batch_size=8, num_workers=1)",
        may(BAD_INPUT),
    ),
    "workers that raise": (
        "torch.utils.data.DataLoader(type('Kills', (Rows,), {'__getitem__': lambda s, i: (X[i], Y[i]) if "
        "os.getpid() == MAIN else 1 / 0})(), batch_size=8, num_workers=1)",
        may(BAD_INPUT),
    ),
    "slow": (
        "type('Slow', (Rows,), {'__getitem__': lambda s, i: __import__('time').sleep(0.02) or (X[i], Y[i])})()",
        may(FINE),
    ),
    "classes that are not there": ("type('Y', (Rows,), {'__getitem__': lambda s, i: (X[i], Y[i] + 5)})()", may(2)),
}


def attempts() -> Iterator[Attempt]:
    """Yield every kind of failure in every place, twice: for people and as JSON; then odd models, losses and data."""
    for command, places in COMMANDS.items():
        for place in places:
            for kind, what in KINDS.items():
                yield _attempt(command, place, kind, what, as_json=hash_of(place, kind) % 2 == 0)
            yield _attempt(command, place, "prints", PRINTS, as_json=True)
    for option, odd in (("model", MODELS), ("loss", LOSSES), ("data", DATA)):
        for place, (value, statuses) in odd.items():
            for as_json in (False, True):
                yield Attempt(
                    "own code", (*BATCH_SIZE, "--budget", "1", *["--json"] * as_json), statuses,
                    {"theirs.py": odd_module(option, value)}, seconds=40,
                )  # fmt: skip
            if option == "model" and place not in ("too few outputs", "two outputs", "dropout"):
                yield from _surgery(value)


def hash_of(*words: str) -> int:
    """Return a number of some words, the same in each run."""
    return sum(map(ord, "".join(words)))


def module(place: str, what: str) -> bytes:
    """Return the user's module, which does something in a place."""
    return THEIRS.replace("{place!r}", repr(place)).replace("{what}", what).encode("utf-8", "surrogatepass")


def odd_module(option: str, value: str) -> bytes:
    """Return the user's module, one of whose factories returns something odd."""
    odd = f"\nMAIN = os.getpid()\nODD = {value}\ndef {option}():\n    return ODD\n"
    return module("nowhere", "pass") + odd.encode()


def _attempt(command: tuple[str, ...], place: str, kind: str, what: str, *, as_json: bool) -> Attempt:
    statuses = may(INTERRUPTED) if kind == "interrupt" else may(BAD_INPUT)
    if kind == "prints":
        statuses = may(FINE)
    elif place in ("large batch", "inference") and command[0] == "batch-size":
        statuses = statuses | {FINE}  # advice among what runs
    elif kind == "generator" and place == "batch":
        statuses = may(BAD_INPUT, FINE)
    if kind == "interrupt" and place != "import":
        statuses = statuses | {BAD_INPUT}
    out = command[-1]
    old = {out: OLD} if out.startswith("old") else {}
    return Attempt(
        "own code", (*command, *["--json"] * as_json), statuses, {"theirs.py": module(place, what), **old},
        outputs=list(old), seconds=40,
    )  # fmt: skip


OLD = b"what was there before"


def _surgery(value: str) -> Iterator[Attempt]:
    for command in list(COMMANDS)[1:]:
        yield Attempt(
            "own code", command, may(FINE, BAD_INPUT), {"theirs.py": odd_module("model", value), command[-1]: OLD},
            outputs=[command[-1]], seconds=40,
        )  # fmt: skip
