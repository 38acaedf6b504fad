"""Data, models and losses of the user's own: what a study takes, makes of it, and refuses in one line."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import own_models
import tolerance
from batchnorm.cli import app
from batchnorm.study import Settings, arrays, own_model, run, runner, training
from batchnorm.study.claims import chosen_claims
from batchnorm.study.data import DataError
from batchnorm.study.design import Study
from batchnorm.study.lab import Lab
from batchnorm.study.training import Rows
from own_studies import named, prepared, trained

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "study" / "own-model.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread, as runs do: on tiny tensors two of them mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Models.


@pytest.mark.parametrize(
    ("data", "model", "score"),
    [
        ("images", "conv", "accuracy"),
        ("sequences", "Masked", "accuracy"),
        ("lengths", "Recurrent", "accuracy"),
        ("binary", "mlp", "accuracy"),
        ("binary", "OneLogit", "accuracy"),
        ("binary", "double", "accuracy"),
        ("binary", "lazy", "accuracy"),
        ("binary", "own_norm", "accuracy"),
        ("binary", "Functional", "accuracy"),
        ("binary", "Wrapped", "accuracy"),
        ("binary", "InPlace", "accuracy"),
        ("values", "mlp", "r2"),
        ("values", "OneLogit", "r2"),
        ("several_values", "mlp", "r2"),
        ("labels", "mlp", "auc"),
        ("shuffled_loader", "mlp", "accuracy"),
    ],
)
def test_models_of_all_kinds_learn_on_both_sides(data: str, model: str, score: str) -> None:
    problem, spec = prepared(data, model)
    assert problem.datasets["main"].metric == score
    for placement in ("before", "none"):
        run_of = replace(spec, placement=placement, steps=30)
        rows = Rows.of(problem.datasets["main"], [run_of])
        network = training.build(problem, rows)
        x, y = rows.part("train")
        start = training.losses(training.predict(network, x), y, rows.data).item()
        optimizer = training.ReplicaOptimizer("adam", network, [0.02])
        for _ in range(run_of.steps):
            training.train_mode(network, placement)
            training.losses(network(x), y, rows.data).sum().backward()
            optimizer.step()
        assert training.losses(training.predict(network, x), y, rows.data).item() < start


@pytest.mark.parametrize(
    ("model", "stays"), [("mlp", False), ("Functional", False), ("Forked", True), ("own_norm", True), ("lazy", False)]
)
def test_where_batch_normalization_can_be_put(model: str, stays: bool) -> None:
    assert prepared("binary", model)[0].own_normalizes is stays


def test_where_layers_that_are_put_in_see_padding_that_is_noted() -> None:
    note = "the layers that the study puts in take no mask: what is padding enters their statistics"
    assert prepared("lengths", "Recurrent")[0].datasets["main"].notes[-1] == note
    for data, model in (("sequences", "Masked"), ("binary", "mlp")):
        assert note not in prepared(data, model)[0].datasets["main"].notes


def test_a_mask_reaches_the_layers_that_a_model_hands_it_to() -> None:
    problem, spec = prepared("sequences", "Masked")
    rows = Rows.of(problem.datasets["main"], [spec])
    network = training.build(problem, rows)
    training.train_mode(network, "before")
    x, _ = rows.part("train")
    length = own_models.LENGTH
    padding = torch.cat([x[..., length:] == 0, torch.zeros_like(x[..., length:], dtype=torch.bool)], dim=-1)
    assert padding.any()
    with torch.no_grad():
        outputs = [network(x), network(x.masked_fill(padding, 1.0)), network(x.roll(1, -1))]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_one_logit_is_that_of_the_second_of_two_classes() -> None:
    problem, spec = prepared("binary", "OneLogit")
    rows = Rows.of(problem.datasets["main"], [spec])
    network = training.build(problem, rows)
    x, y = rows.part("train")
    with torch.no_grad():
        logit = network.models[0].model(x[0])
        loss = training.losses(network(x), y, rows.data)
    expected = nn.functional.binary_cross_entropy_with_logits(logit, y[0].float())
    tolerance.assert_close(loss, expected[None], "float32")


def test_a_models_writing_on_its_input_leaves_the_data_alone() -> None:
    problem, spec = prepared("binary", "InPlace")
    rows = Rows.of(problem.datasets["main"], [spec])
    x, _ = rows.part("test")
    before = x.clone()
    training.predict(training.build(problem, rows), x)
    assert torch.equal(x, before)


def test_dropout_depends_on_seed_and_step_and_on_nothing_beside_them() -> None:
    problem, spec = prepared("images", "conv")
    other = replace(spec, seed=1), replace(spec, rate=0.01)
    together = trained(problem, spec, *other)
    assert [together[0]] == training.train([spec], problem)
    assert [together[2], together[1]] == training.train(list(reversed(other)), problem)


def test_equal_seeds_drop_the_same_units_on_both_sides() -> None:
    x = torch.ones(1, 8, 50).repeat(3, 1, 1)
    sides = own_model.SideBySide([nn.Dropout(0.5) for _ in range(3)], 50, [4, 4, 5]).train()
    dropped = []
    for step in (0, 0, 1):
        torch.default_generator.manual_seed(step)
        dropped.append(sides(x))
    assert torch.equal(dropped[0], dropped[1])
    assert torch.equal(dropped[0][0], dropped[0][1])
    assert not torch.equal(dropped[0][0], dropped[0][2])
    assert not torch.equal(dropped[0], dropped[2])
    assert not torch.equal(sides(x), sides(x))


def test_replicas_of_large_rows_train_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, spec = prepared("binary", "own_norm")
    specs = [replace(spec, seed=seed) for seed in range(3)]
    whole = training.train(specs, problem)
    monkeypatch.setattr(own_model, "MOST_BYTES", 1)
    monkeypatch.setattr(own_model, "MOST_NUMBERS", 60)
    sizes: list[int] = []
    build = training.build
    monkeypatch.setattr(training, "build", lambda p, rows: sizes.append(len(rows.specs)) or build(p, rows))
    assert own_model.together(problem.datasets["main"]) == 1
    assert training.train(specs, problem) == whole
    assert sizes == [1, 1, 1]


def test_a_factory_is_told_what_it_asks_for() -> None:
    images, lengths = (arrays.from_factory(f"own_models:{name}") for name in ("images", "lengths"))
    assert own_model.factory_arguments("own_models:mlp", images) == {"inputs": 64, "outputs": 10}
    assert own_model.factory_arguments("own_models:Recurrent", lengths) == {"outputs": 2}
    assert own_model.factory_arguments("own_models:two_outputs", lengths) == {"inputs": own_models.LENGTH}
    assert own_model.factory_arguments("own_models:Masked", lengths) == {}


BAD_MODELS = {
    "three": "must return a torch.nn.Module, got int",
    "raises": "failed: RuntimeError: out of cheese (own_models.py",
    "exits": "failed: it called sys.exit(3); let it raise an exception",
    "wants": "failed: TypeError: wants() missing 1 required positional argument: 'width'",
    "SHARED": "must be a function that returns a new one in each call",
    "shared": "returns the same parameters in each call, and every run needs its own",
    "frozen": "has no parameters to train",
    "conv": "does not take x of shape (4, 6): RuntimeError",
    "in_tuple": "must return a tensor, got tuple",
    "squeezed": "must return shape (1, 2), got (2,): for any number of rows, so squeeze no axis but the last",
    "nan": "returns NaN or infinite values at its initial weights",
    "softmax": "returns probabilities, and the study's cross-entropy takes logits",
    "sigmoid": "returns probabilities, and the study's cross-entropy takes logits",
    "detached": "failed in the backward pass of 60 rows: RuntimeError: element 0 of tensors does not require grad",
    "bad_backward": "failed in the backward pass of 60 rows: RuntimeError: no way back",
    "bad_gradient": "has gradients that are NaN or infinite at its initial weights",
    "bad_training": "failed in training on 60 rows: RuntimeError: not in training",
    "exits_in_training": "failed in training on 60 rows: it called sys.exit('bye')",
    "two_outputs": "",
}


@pytest.mark.parametrize("model", BAD_MODELS)
def test_what_a_model_may_not_do(model: str) -> None:
    data = "several_values" if model == "two_outputs" else "binary"
    message = BAD_MODELS[model] or "must return shape (4, 3), got (4, 2)"
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        prepared(data, model)
    assert f"`--model own_models:{model}`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_fails_in_a_later_step_is_named() -> None:
    problem, spec = prepared("binary", "mlp")
    rows = Rows.of(problem.datasets["main"], [spec])
    network = training.build(replace(problem, model="own_models:bad_training"), rows)
    training.train_mode(network, "before")
    with pytest.raises(DataError, match="`--model own_models:bad_training` failed in training on 60 rows"):
        network(next(rows.batches())[0])


def test_several_inputs_need_a_model() -> None:
    with pytest.raises(DataError, match="`--data own_models:sequences` returns several inputs, which need a --model"):
        prepared("sequences", None)


# The whole study.


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every run short, and runs few: the machinery is tested here, not the claims."""
    monkeypatch.setattr(Settings, "steps", property(lambda _: 8))
    monkeypatch.setattr(Settings, "short_steps", property(lambda _: 8))
    monkeypatch.setattr(Settings, "rates", lambda *_: [0.03, 0.3])
    monkeypatch.setattr(Settings, "extensions", 0)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("data", "model", "loss"),
    [("sequences", "Masked", None), ("labels", "mlp", None), ("several_values", "mlp", "torch.nn:HuberLoss")],
)
def test_every_claim_is_measured_on_a_model_of_ones_own(
    data: str, model: str, loss: str | None, tmp_path: Path
) -> None:
    settings = Settings(seeds=3, quick=True, batch_size=16, model=named(model), loss=loss)
    results = run(arrays.from_factory(f"own_models:{data}"), settings=settings, out=tmp_path, jobs=1).reproducible
    for claim in results["claims"]:
        assert claim["skipped"] or claim["effects"]
    claims = {claim["id"]: claim for claim in results["claims"]}
    alone = claims["train-predict"]["effects"][0]
    assert alone["value"] < alone["threshold"]
    assert not claims["speed"]["skipped"]


# The guide.


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("command", re.findall(r"^    batchnorm (study .*study_own_model.*)$", GUIDE, flags=re.M))
def test_the_commands_of_the_guide_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")
    options = ["--quick", "--claims", "speed", "--seeds", "3", "--jobs", "1", "--out", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, [*command.split(), *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["claims"][0]["effects"]


def test_the_code_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert len(blocks) >= 4
    (tmp_path / "guide_module.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    pairs = re.findall(r"--data my_module:(\w+) --model my_module:(\w+)(?: --loss ([\w.:]+))?", GUIDE)
    assert len(pairs) >= 3
    for data, model, loss in pairs:
        settings = Settings(
            model=f"guide_module:{model}", loss=loss.replace("my_module", "guide_module") if loss else None
        )
        problem = runner.prepare(settings, arrays.from_factory(f"guide_module:{data}"))
        spec = Study(runner.fitting(settings, problem), Lab(problem, Path())).spec(rate=0.1, steps=2)
        trained(problem, spec)


def test_settings_are_asked_for_by_name() -> None:
    assert Settings().loss is None
    assert [claim.own_model for claim in chosen_claims("speed,score")] == [True, True]
