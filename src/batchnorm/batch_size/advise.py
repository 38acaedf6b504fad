"""Measure four limits, and say which batch size follows from them."""

import copy
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from batchnorm.batch_size import ranks
from batchnorm.batch_size.advice import Advice
from batchnorm.batch_size.budget import Budget
from batchnorm.batch_size.course import Course
from batchnorm.batch_size.decision import Objective
from batchnorm.batch_size.gradient_noise import Aggregate
from batchnorm.batch_size.judge import Choice
from batchnorm.batch_size.memory import meter
from batchnorm.batch_size.training import Training
from batchnorm.batch_size.work import Samples, Work
from batchnorm.errors import ArgumentError
from batchnorm.models.preserve import preserved, training_mode

SEEDS_APART = 1_000_003  # of two processes, which are to draw other rows


def advise(
    model: nn.Module,
    loss: Any,
    dataset: Any,
    optimizer: Optimizer | None = None,
    *,
    objective: Objective = "time",
    candidates: Sequence[int] | None = None,
    group: int | None = None,
    device: Any = None,
    budget_s: float = 60.0,
    progress: bool = True,
    measure: bool | int = False,
    aggregate: Aggregate = "sum",
    seed: int = 0,
) -> Advice:
    """Return which batch size to train with, and how many samples to normalise together.

    Four limits are measured: the memory, the size from which on the machine is busy (Bhalf), the gradient noise scale
    (Bcrit = tr Σ/|G|²), and the noise of the batch statistics. Time to a target is T(B) ∝ (1 + Bcrit/B)·t(B), least at
    B* = √(Bcrit·Bhalf). Model, optimizer, gradients and random numbers are afterwards what they were, to the bit.

    Args:
        model: In the mode it is to be trained in; batch normalization in it is seen by itself.
        loss: `(output, target) -> mean loss`, or a `Loop` for any other forward pass.
        dataset: A Dataset of pairs (input, target), a DataLoader, or a tuple of arrays (inputs, targets).
        optimizer: Over the model's parameters, used at its learning rate; None: plain SGD at a rate that is looked for.
        objective: "time": the fastest to the target. "compute": B ≤ 0.2·Bcrit, so that few samples are wasted.
        candidates: Sizes over all processes to choose from; None: powers of two and such one and a half times.
        group: m, the samples normalised together, if that is fixed; None: recommended too.
        device: Where to measure; None: where the model is. Elsewhere a copy of the model is used.
        budget_s: Seconds this may take.
        progress: Whether to show on a terminal how it goes on.
        measure: Whether to train to a target at five or more sizes, each at a learning rate of its own, and print that
            beside the prediction; a number: with so many orders of the data. It takes what the budget leaves.
        aggregate: "sum" over all parameters, or "scale_invariant": each parameter's terms weighed by |w|².
        seed: Of everything drawn at random.

    Returns:
        An `Advice`. After Ctrl-C, what is known so far.

    Raises:
        ArgumentError: an argument out of range, or model, loss and data that do not go together.
        KeyboardInterrupt: if Ctrl-C comes before a single step was timed.

    Source: McCandlish et al. 2018 for the gradient noise scale and the steps to a target.

    Differs:
        The finders of PyTorch Lightning and accelerate look for one of these limits, the largest batch that fits.

    >>> x, y = torch.randn(200, 3), torch.randint(2, (200,))
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> advice = advise(net, nn.functional.cross_entropy, (x, y), budget_s=2, progress=False)
    >>> advice.batch_size <= 200, sorted(advice.limits)
    (True, ['gradient_noise', 'memory', 'statistics_noise', 'throughput'])
    """
    _check(
        model, objective=objective, candidates=candidates, group=group, budget_s=budget_s, measure=measure,
        aggregate=aggregate, seed=seed,
    )  # fmt: skip
    _check_optimizer(optimizer, model)
    model, optimizer, loss, where = _on_device(model, optimizer, loss, device)
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    samples = Samples(dataset, getattr(loss, "collate", None), next(dtypes, torch.float32))
    inner = getattr(model, "module", model) if ranks.processes() > 1 else model  # each process measures for itself
    sizes = sorted({int(c) for c in candidates}) if candidates is not None else None
    with (
        torch.enable_grad(),
        training_mode(inner),  # and only then taken down, for every new start goes back to that
        preserved(inner, optimizer, loss) as snapshot,
        Budget(budget_s, show=progress) as budget,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".* with inf or NaN", category=RuntimeWarning)  # high learning rates
        work = Work(inner, loss, samples, device=where, seed=seed + SEEDS_APART * ranks.rank())
        course = Course(work, Training(work, optimizer, snapshot), meter(inner, where), budget)
        course.found.about = _about(model, loss, dataset, optimizer, where, len(samples))
        with ranks.failing_together():
            course.prepare(Choice(objective, sizes, group), aggregate)
            course.run(int(measure))
        return course.answer()


def _about(
    model: nn.Module, loss: Any, dataset: Any, optimizer: Optimizer | None, device: torch.device, rows: int
) -> dict[str, str]:
    """Return what is measured, as the page says it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in parameters)
    dtypes = {str(p.dtype).removeprefix("torch.") for p in parameters}
    data = "arrays" if isinstance(dataset, tuple) else type(getattr(dataset, "dataset", dataset)).__name__
    rates = [f"{float(group['lr']):g}" for group in optimizer.param_groups] if optimizer is not None else []
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return {
        "data": f"{data} of {rows:,} rows",
        "network": f"{type(model).__name__} of {count:,} parameters in {', '.join(sorted(dtypes)) or 'no dtype'}",
        "loss": getattr(loss, "__name__", type(loss).__name__),
        "optimizer": (
            "plain SGD at a rate that is looked for" if optimizer is None
            else f"{type(optimizer).__name__} at {', '.join(dict.fromkeys(rates))}"
        ),
        "device": f"{device}{threads}",
    }  # fmt: skip


def _check_optimizer(optimizer: Any, model: nn.Module) -> None:
    if optimizer is None:
        return
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"`optimizer` must be None or a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ArgumentError("`optimizer` must step without a closure, got LBFGS: take None, or one that does")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ArgumentError("`optimizer` must hold parameters of the model, got one that holds none of them")


def _check(
    model: Any,
    *,
    objective: Any,
    candidates: Any,
    group: Any,
    budget_s: Any,
    measure: Any,
    aggregate: Any,
    seed: Any,
) -> None:
    _check_model(model)
    for name, value, allowed in (("objective", objective, Objective), ("aggregate", aggregate, Aggregate)):
        if value not in get_args(allowed):
            raise ArgumentError(f"`{name}` must be one of {', '.join(map(repr, get_args(allowed)))}, got {value!r}")
    if candidates is not None and not _are_sizes(candidates):
        raise ArgumentError(f"`candidates` must be ints ≥ 1, at least one, got {candidates!r}")
    if group is not None and (type(group) is not int or group < 2):
        raise ArgumentError(f"`group` must be None or an int ≥ 2, got {group!r}")
    if isinstance(budget_s, bool) or not isinstance(budget_s, int | float) or not 0 < budget_s < float("inf"):
        raise ArgumentError(f"`budget_s` must be a number of seconds > 0, got {budget_s!r}")
    if not isinstance(measure, int) or measure < 0:
        raise ArgumentError(f"`measure` must be a bool or an int ≥ 0, got {measure!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentError(f"`seed` must be an int, got {seed!r}")


def _are_sizes(candidates: Any) -> bool:
    given = list(candidates) if hasattr(candidates, "__iter__") else []
    return bool(given) and all(isinstance(c, Integral) and not isinstance(c, bool) and int(c) > 0 for c in given)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ArgumentError(f"`model` must know its shapes, {lazy[0]} has none yet: run one batch through it first")
    if ranks.processes() > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        raise ArgumentError(
            "`model` must not wait for other processes, of which each measures for itself: ask before "
            "convert_sync_batchnorm (synchronised, m is all of B)"
        )


def _on_device(
    model: nn.Module, optimizer: Optimizer | None, loss: Any, device: Any
) -> tuple[nn.Module, Optimizer | None, Any, torch.device]:
    """Return model, optimizer and loss on a device: themselves if they are there, else copies."""
    at = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        wanted = at if device is None else torch.device(device)
        if wanted.type == at.type and wanted.index in (None, at.index):
            return model, optimizer, loss, at
        model, optimizer, loss = copy.deepcopy((model, optimizer, loss))
        for part in (model, loss):
            if isinstance(part, nn.Module):
                part.to(wanted)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(f"`device` must be one that torch can use here, got {device!r}: {error}") from None
    if optimizer is not None:
        optimizer.load_state_dict(optimizer.state_dict())  # which takes its state to where the parameters are now
    return model, optimizer, loss, wanted
