"""What a model computes with what, seen in one run: which call has made a tensor, and which calls use it.

Modules of PyTorch, subclasses of its linear layers and convolutions, and normalizations of whoever are one call;
whatever else runs is seen function by function, and what runs where no function of torch is called (TorchScript, an
autograd function) operator by operator. Unlike a symbolic trace it follows any Python, along the path that the example
inputs take.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from batchnorm.models.preserve import preserved
from batchnorm.surgery.folding import WEIGHTED, weighted
from batchnorm.surgery.places import is_normalization, places, require_numbers, uncompiled

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.DataParallel, nn.parallel.DistributedDataParallel)
READS = {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"}  # uses that make no tensor
IN_PLACE = {"__setitem__", "copy_"}
SHAPED_LIKE = {"reshape_as", "view_as", "expand_as"}  # of the second tensor they take the shape alone
ONLY_SHAPED_LIKE = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"} | {
    f"new_{kind}" for kind in ("zeros", "ones", "empty", "full", "tensor")
}  # of the first they take the shape or the dtype alone


class Call(NamedTuple):
    """One call of a module or a function.

    Attributes:
        name: Of the module in the model, or of the function.
        module: None where it is a function.
        inputs: The values it takes.
        outputs: The values it makes.
        again: The same on another tensor in the place of the first; None where the first argument is no tensor.
    """

    name: str
    module: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    again: Callable[[Tensor], Any] | None = None


class Returned(NamedTuple):
    """What a module that is made of others has returned.

    Attributes:
        values: The values.
        alone: Whether it was called with one argument, and no more.
    """

    values: tuple[int, ...]
    alone: bool


class Flow:
    """The calls of one run, in their order; tensors are numbered as they appear."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.calls: list[Call] = []
        self.shapes: list[tuple[int, ...]] = []
        self.results: frozenset[int] = frozenset()  # what the model returns
        self.result: Any = None
        self.outside: set[int] = set()  # ids of parameters that something else than their module uses
        self.returned: defaultdict[int, list[Returned]] = defaultdict(list)  # by modules of several calls, by id
        self.kept: dict[int, list[Tensor]] = {}  # copies of what the modules returned that are asked for, by id
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

    def tensor(self, value: int) -> Tensor:
        """Return a value's tensor, as it is now: what came later may have changed it in place."""
        return self._alive[value]

    def note(
        self,
        name: str,
        module: nn.Module | None,
        given: Any,
        made: Any,
        again: Callable[[Tensor], Any] | None = None,
    ) -> None:
        """Add a call."""
        taken = tensors_in(given)
        if name in SHAPED_LIKE | ONLY_SHAPED_LIKE:
            taken = taken[:1] if name in SHAPED_LIKE else taken[1:]
        inputs = tuple(self.number(leaf) for leaf in taken)
        tensors = tensors_in(made)
        if name in IN_PLACE and taken:
            tensors = taken[:1]
        if inputs and (tensors or name in READS):
            if module is None:
                self.outside |= {id(leaf) for leaf in taken if isinstance(leaf, nn.Parameter)}
            call = Call(name, module, inputs, tuple(self.number(one, new=True) for one in tensors), again)
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


def _again(function: Any, others: tuple[Any, ...], kwargs: dict[str, Any], first: Tensor) -> Any:
    return function(first, *others, **kwargs)


class _Recorder(TorchFunctionMode):
    """Notes the functions that run outside of modules that are one call."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow, self.inside, self.functions = flow, list[nn.Module](), 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions += 1
        try:
            made = func(*args, **(kwargs or {}))
        finally:
            self.functions -= 1
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # a property, such as .mT
            name = getattr(func.__self__, "__name__", name)
        if not self.inside:
            of_tensor = bool(args) and isinstance(args[0], Tensor)
            again = partial(_again, func, args[1:], kwargs or {}) if of_tensor else None
            self.flow.note(name, None, (args, kwargs), made, again)
        return made

    def enter(self, module: nn.Module, *_: Any) -> None:
        """Begin a module that is one call."""
        self.inside.append(module)

    def leave(self, module: nn.Module) -> bool:
        """End it, by an exception too; return whether it was the outermost."""
        if not self.inside or self.inside[-1] is not module:  # a hook ahead of ours has raised
            return False
        self.inside.pop()
        return not self.inside


class _Operators(TorchDispatchMode):
    """Notes the operators that no function of torch has called: those of TorchScript and of autograd functions."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not self.recorder.inside and not self.recorder.functions:
            self.recorder.flow.note(func.overloadpacket.__name__, None, (args, kwargs), made)
        return made


def tensors_in(value: Any, seen: set[int] | None = None) -> list[Tensor]:
    """Return the tensors in a value: in tuples, lists, mappings, and objects with attributes, dataclasses say.

    >>> import torch
    >>> len(tensors_in({"y": (torch.ones(1), 2), "more": [torch.zeros(1)]}))
    2
    """
    if isinstance(value, Tensor):
        return [value]
    seen = set() if seen is None else seen
    if isinstance(value, type | nn.Module) or id(value) in seen:
        return []
    if isinstance(value, Mapping):
        parts: Any = value.values()
    elif isinstance(value, tuple | list | set):
        parts = value
    else:
        parts = vars(value).values() if hasattr(value, "__dict__") else ()
    seen.add(id(value))
    return [tensor for part in parts for tensor in tensors_in(part, seen)]


def is_one_call(module: nn.Module) -> bool:
    """Return whether a module counts as one call, whatever runs inside."""
    if isinstance(module, CONTAINERS):
        return False
    if isinstance(module, WEIGHTED):
        return weighted(module) or not any(module.children())
    return is_normalization(module) or type(module).__module__.startswith("torch.nn")


def record(model: nn.Module, example_inputs: Any, keep: Collection[nn.Module] = ()) -> Flow:
    """Run the model once, in inference and without gradients, and return what was called with what.

    Args:
        model: Left as it is, with its modes and buffers, and the random numbers too.
        example_inputs: A tensor, a tuple or list of arguments, or a dict of keyword arguments.
        keep: Modules whose outputs are kept; each counts as one call.

    Raises:
        BatchNormError: if it cannot run yet.
    """
    require_numbers(model)
    flow, handles, kept = Flow(), list[Any](), {id(module) for module in keep}
    recorder = _Recorder(flow)

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        if recorder.leave(module):
            declared = signature(module.forward).parameters
            given = args, {key: kwargs[key] for key in (*declared, *kwargs) if key in kwargs}  # in the order declared
            flow.note(name, module, given, made, module)
        if id(module) in kept:
            flow.kept[id(module)] = [one.clone() for one in tensors_in(made)]

    def returned(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        if not recorder.inside:
            values = tuple(flow.number(one) for one in tensors_in(made))
            flow.returned[id(module)].append(Returned(values, len(args) + len(kwargs) == 1))

    try:
        for place in places(model):
            module = place.module
            if isinstance(module, torch.jit.ScriptModule):  # which takes no hooks; its operators are seen
                continue
            if is_one_call(module) or id(module) in kept:
                handles.append(module.register_forward_pre_hook(recorder.enter))
                hook = partial(leave, place.name)
                handles.append(module.register_forward_hook(hook, with_kwargs=True, always_call=True))
            else:
                handles.append(module.register_forward_hook(returned, with_kwargs=True))
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


def run(model: nn.Module, inputs: Any, recorder: _Recorder | None = None) -> Any:
    """Call a model on copies of the inputs, without gradients."""
    copied: Any = tree_map(_copied, inputs)
    args, kwargs = arguments(copied)
    with torch.no_grad(), ExitStack() as modes:
        if recorder is not None:
            modes.enter_context(_Operators(recorder))
            modes.enter_context(recorder)
        return model(*args, **kwargs)
