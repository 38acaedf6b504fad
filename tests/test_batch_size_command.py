"""`batchnorm batch-size` as its users meet it: data and models by name, the page, the picture, refusals, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from batchnorm.batch_size import Advice, Limit
from batchnorm.batch_size.page import DECIDES, text
from batchnorm.cli import app

TABLE = str(Path(__file__).parents[1] / "examples" / "placements.csv")
SHORT = ("--budget", "2")
MINE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from batchnorm.batch_size import Loop

generator = torch.Generator().manual_seed(0)
x = torch.randn(120, 6, generator=generator)

def values():
    return x.numpy(), x[:, 0].numpy() * 3.0 + 7.0

def loader():
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=24)

def values_loader():
    return DataLoader(TensorDataset(x, x[:, 0]), batch_size=24)

def own_loss(output, target):
    return nn.functional.cross_entropy(output, target)

loop = Loop(lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))

def flat():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

def two():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

def loss():
    return nn.CrossEntropyLoss()

def three():
    return 3

class Small(nn.Sequential):
    def forward(self, x):
        if len(x) > 8:
            raise RuntimeError("room for eight")
        return super().forward(x)

def small():
    return Small(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

def leaves():
    raise SystemExit(0)

class Long(torch.utils.data.Dataset):
    def __len__(self):
        return 10**9

    def __getitem__(self, i):
        return x[i % 120], int(x[i % 120, 0] > 0)

def long():
    return DataLoader(Long(), batch_size=8, shuffle=True)

def frozen():
    return two().requires_grad_(False)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module with factories, in the working directory."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["batch-size", *(str(a) for a in arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_page_names_the_answer_and_the_four_limits() -> None:
    code, out, _ = invoke("--budget", "5")  # time enough on a busy machine too
    assert code == 0
    for said in ("Batch size B = ", "memory", "Bhalf", "Bcrit", "m_min", "decided by", "learning rate ×", "1,797 rows"):
        assert said in out


def test_json_holds_the_numbers_and_nothing_else() -> None:
    code, out, _ = invoke(TABLE, "--target", "placed", "--json", *SHORT)
    found = json.loads(out)
    assert code == 0
    assert found["details"]["rows"] == 1000
    assert found["batch_size"] in found["details"]["memory"]["ran"]
    assert set(found["limits"]) == {"memory", "throughput", "gradient_noise", "statistics_noise"}


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_the_picture_is_written(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{ending}"
    code, out, _ = invoke("--out", path, "--candidates", "16,32,64", *SHORT)
    assert code == 0
    assert str(path.name) in out.replace("\n", "")
    assert path.stat().st_size > 5_000
    if ending == "svg":
        assert {"memory", "time ÷ least"} <= set(texts(path.read_text("utf-8")))


def texts(svg: str) -> list[str]:
    """Return the texts of an SVG."""
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_values_to_predict_are_scaled(mine: str) -> None:
    code, out, _ = invoke("--data", f"{mine}:values", "--model", f"{mine}:flat", "--json", *SHORT)
    assert code == 0
    start = json.loads(out)["details"]["gradient_noise"]["stages"][0]["loss"]
    assert start < 10  # the mean square of what has mean 7 and deviation 3 would be 58


def test_a_loader_brings_its_batch_size(mine: str) -> None:
    names = ("--data", f"{mine}:loader", "--model", f"{mine}:two", "--loss", f"{mine}:loss")
    code, out, _ = invoke(*names, "--optimizer", "adam", "--rate", "0.01", "--json", "--budget", "5")
    found = json.loads(out)
    assert code == 0
    assert found["current"] == 24
    assert found["details"]["gradient_noise"]["rate"] == 1.0  # times that of the optimizer
    assert found["limits"]["statistics_noise"]["value"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.csv",), "nowhere.csv cannot be read"),
        ((TABLE,), "name the column to predict with --target"),
        ((TABLE, "--data", "a:b"), "name a table or --data, not both"),
        (("--optimizer", "adam"), "`--optimizer adam` needs its learning rate: --rate"),
        (("--rate", "-1"), "`--rate` must be > 0, got -1.0"),
        (("--candidates", "8,x"), "`--candidates` must be ints with commas between"),
        (("--candidates", "8,4000"), "`candidates` must be at most 1797"),
        (("--group", "1"), "`group` must be None or an int ≥ 2, got 1"),
        (("--budget", "0"), "`budget_s` must be a number of seconds > 0, got 0.0"),
        (("--device", "nowhere"), "`device` must be one that torch can use here, got 'nowhere'"),
        (("--out", "picture.txt"), "`--out` must end in .svg, .png or .pdf, got picture.txt"),
        (("--out", "no/folder.svg"), "`--out` must lie in a folder that exists"),
        (("--model", "nowhere:model"), "`--model nowhere:model` cannot be imported"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    code, out, error = invoke(*arguments)
    assert code == 2
    assert out == ""
    assert said in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "{}:loader"), "is a DataLoader: name --model for it too"),
        (("--data", "{}:values_loader", "--model", "{}:flat"), "gives no pairs of an input and a class: name --loss"),
        (("--model", "{}:three"), "must return a torch.nn.Module, got int"),
        (("--model", "{}:leaves"), "failed: it called sys.exit(0); let it raise an exception, or return"),
        (("--model", "{}:frozen"), "must have parameters that learn, Sequential has none"),
        (("--model", "{}:frozen", "--rate", "0.1"), "must have parameters that learn, Sequential has none"),
        (("--loss", "{}:three"), "must return a function (output, target) or a Loop, got int"),
        (("--model", "{}:flat"), "model, loss and data do not go together"),
    ],
)
def test_bad_factories_are_one_line(arguments: tuple[str, ...], said: str, mine: str) -> None:
    code, _, error = invoke(*(a.format(mine) for a in arguments))
    assert code == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_a_model_that_fails_in_larger_batches_is_advised_among_the_smaller(mine: str) -> None:
    names = ("--data", f"{mine}:loader", "--model", f"{mine}:small", "--loss", f"{mine}:loss")
    code, out, err = invoke(*names, "--json", *SHORT)
    assert code == 0, err
    found = json.loads(out)
    assert found["batch_size"] <= 8
    assert found["details"]["memory"]["failed"] > 8
    assert any("failed: RuntimeError: room for eight" in note for note in found["notes"])


def test_very_many_rows_take_neither_time_nor_memory(mine: str) -> None:
    names = ("--data", f"{mine}:long", "--model", f"{mine}:two", "--loss", f"{mine}:loss")
    start = time.monotonic()
    code, out, err = invoke(*names, "--json", *SHORT)
    assert code == 0, err
    assert json.loads(out)["details"]["rows"] == 10**9
    assert any("would shuffle 1,000,000,000 rows at once" in note for note in json.loads(out)["notes"])
    assert time.monotonic() - start < 60


def test_ctrl_c_answers_with_what_is_known() -> None:
    program = "from batchnorm.cli import app; app(['batch-size', '--measure', '--budget', '200', '--json'])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    if out:  # else not a step was timed on a busy machine, which is said
        assert json.loads(out)["interrupted"] != ""
        assert json.loads(out)["confidence"] == "low"
    else:
        assert "before a single step was timed" in error


@pytest.mark.parametrize("binding", DECIDES)
def test_each_limit_has_its_sentence(binding: str) -> None:
    none = Limit(None, None, None, False, "not measured")
    limits = dict.fromkeys(("memory", "throughput", "gradient_noise", "statistics_noise"), none)
    advice = Advice(64, 64, binding, limits, "time", 60.0, (40.0, 90.0), "low", "nothing is known", 32, 2.0)
    page = text(advice)
    assert DECIDES[binding].split(":")[0] in page
    assert "learning rate × 2" in page
    assert repr(advice) == f"<Advice: B = 64, m = 64, by {binding}, confidence low>"


@pytest.mark.parametrize(
    "loss",
    [
        (),
        ("--loss", "torch.nn.functional:cross_entropy"),
        ("--loss", "torch.nn:CrossEntropyLoss"),
        ("--loss", "{}:loss"),
        ("--loss", "{}:own_loss"),
        ("--loss", "{}:loop"),
    ],
    ids=lambda loss: " ".join(loss) or "none",
)
def test_a_loss_is_a_function_or_what_makes_one_or_follows_from_the_classes(loss: tuple[str, ...], mine: str) -> None:
    given = ("--data", "{}:loader", "--model", "{}:two", *loss)
    code, out, error = invoke(*(part.format(mine) for part in given), *SHORT, "--json")
    assert (code, error) == (0, "")
    told = json.loads(out)["measured_on"]["loss"]
    names = {
        "torch.nn:CrossEntropyLoss": "CrossEntropyLoss",
        "{}:loss": "CrossEntropyLoss",
        "{}:own_loss": "own_loss",
        "{}:loop": "Loop",
    }
    assert told == names.get(loss[1] if loss else "", "cross_entropy")


def test_a_table_may_come_through_a_pipe() -> None:
    command = [sys.executable, "-m", "batchnorm", "batch-size", "/dev/stdin", "--target", "placed", *SHORT, "--json"]
    done = subprocess.run(command, input=Path(TABLE).read_bytes(), capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["measured_on"]["data"] == "stdin, arrays of 1,000 rows"
