"""What a model computes with what, seen in one run: which call has made a tensor, and which calls use it.

Modules of PyTorch, normalizations of whoever, and modules that torch.fx would not look into are one call; whatever
else runs is seen operation by operation. Unlike a symbolic trace it follows any Python, along the path that the example
inputs take.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from batchnorm.surgery.folding import weighted
from batchnorm.surgery.places import places, require_numbers, uncompiled
from batchnorm.torch.preserve import preserved

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.DataParallel, nn.parallel.DistributedDataParallel)
READS = {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"}  # uses that make no tensor
IN_PLACE = {"__setitem__", "copy_"}


class Call(NamedTuple):
    """One call of a module or a function.

    Attributes:
        name: Of the module in the model, or of the function.
        module: None where it is a function.
        inputs: The values it takes.
        outputs: The values it makes.
    """

    name: str
    module: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Flow:
    """The calls of one run, in their order; tensors are numbered as they appear."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.calls: list[Call] = []
        self.shapes: list[tuple[int, ...]] = []
        self.results: frozenset[int] = frozenset()  # what the model returns
        self.result: Any = None
        self.outside: set[int] = set()  # ids of parameters that something else than their module uses
        self._makers: dict[int, Call] = {}
        self._users: defaultdict[int, list[Call]] = defaultdict(list)
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no id is taken twice

    def number(self, tensor: Tensor, *, new: bool = False) -> int:
        """Return the number of a tensor; a new one where it was made, or changed in place."""
        if new or id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self.shapes)
            self.shapes.append(tuple(tensor.shape))
            self._alive.append(tensor)
        return self._numbers[id(tensor)]

    def note(self, name: str, module: nn.Module | None, given: Any, made: Any) -> None:
        """Add a call."""
        taken = tensors_in(given)
        inputs = tuple(self.number(leaf) for leaf in taken)
        tensors = tensors_in(made)
        if name in IN_PLACE and taken:
            tensors = taken[:1]
        if inputs and (tensors or name in READS):
            if module is None:
                self.outside |= {id(leaf) for leaf in taken if isinstance(leaf, nn.Parameter)}
            call = Call(name, module, inputs, tuple(self.number(one, new=True) for one in tensors))
            self.calls.append(call)
            self._makers |= dict.fromkeys(call.outputs, call)
            for value in dict.fromkeys(inputs):
                self._users[value].append(call)

    def maker(self, value: int) -> Call | None:
        """Return the call that has made a value; None where it came from outside."""
        return self._makers.get(value)

    def users(self, value: int) -> list[Call]:
        """Return the calls that use a value."""
        return self._users.get(value, [])

    def of(self, module: nn.Module) -> list[Call]:
        """Return the calls of a module."""
        return [call for call in self.calls if call.module is module]

    def upstream(self, call: Call, passes: Callable[[Call], bool]) -> Iterator[Call]:
        """Walk from what a call takes back to what made it, on through calls that `passes`; the first input each."""
        made = self.maker(call.inputs[0])
        while made is not None:
            yield made
            if not passes(made):
                return
            made = self.maker(made.inputs[0])


class _Recorder(TorchFunctionMode):
    """Notes the functions that run outside of modules that are one call."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow, self.inside = flow, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # a property, such as .mT
            name = getattr(func.__self__, "__name__", name)
        if self.inside == 0:
            self.flow.note(name, None, (args, kwargs), made)
        return made


def tensors_in(value: Any, seen: tuple[int, ...] = ()) -> list[Tensor]:
    """Return the tensors in a value: in tuples, lists, mappings, and objects with attributes, dataclasses say.

    >>> import torch
    >>> len(tensors_in({"y": (torch.ones(1), 2), "more": [torch.zeros(1)]}))
    2
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, type | nn.Module) or id(value) in seen:
        return []
    if isinstance(value, Mapping):
        parts: Any = value.values()
    elif isinstance(value, tuple | list | set):
        parts = value
    else:
        parts = vars(value).values() if hasattr(value, "__dict__") else ()
    return [tensor for part in parts for tensor in tensors_in(part, (*seen, id(value)))]


def is_one_call(module: nn.Module) -> bool:
    """Return whether a module counts as one call, whatever runs inside."""
    if isinstance(module, CONTAINERS):
        return False
    return isinstance(module, _BatchNorm) or type(module).__module__.startswith("torch.nn") or weighted(module)


def record(model: nn.Module, example_inputs: Any) -> Flow:
    """Run the model once, in inference and without gradients, and return what was called with what.

    Args:
        model: Left as it is, with its modes and buffers, and the random numbers too.
        example_inputs: A tensor, a tuple or list of arguments, or a dict of keyword arguments.

    Raises:
        BatchNormError: if it cannot run yet.
    """
    require_numbers(model)
    flow, handles = Flow(), list[Any]()
    recorder = _Recorder(flow)

    def enter(*_: Any) -> None:
        recorder.inside += 1

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        recorder.inside -= 1
        if recorder.inside == 0:
            declared = signature(module.forward).parameters
            given = args, {key: kwargs[key] for key in (*declared, *kwargs) if key in kwargs}  # in the order declared
            flow.note(name, module, given, made)

    try:
        for place in places(model, is_one_call):
            hook = partial(leave, place.name)
            handles.append(place.module.register_forward_pre_hook(enter))
            handles.append(place.module.register_forward_hook(hook, with_kwargs=True))
        with preserved(model), uncompiled(model):
            flow.result = run(model.eval(), example_inputs, recorder)
    finally:
        for handle in handles:
            handle.remove()
    flow.results = frozenset(flow.number(leaf) for leaf in tensors_in(flow.result))
    return flow


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how inputs are handed over: a tuple or list as arguments, a dict by name, anything else as the one."""
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def run(model: nn.Module, inputs: Any, watched: Any = None) -> Any:
    """Call a model on copies of the inputs, without gradients."""
    copied: Any = tree_map(_copied, inputs)
    args, kwargs = arguments(copied)
    with torch.no_grad(), watched or nullcontext():
        return model(*args, **kwargs)
