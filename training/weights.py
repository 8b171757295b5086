"""The weights of a module and the tensors of a file: one put into the other, checked, uncopied."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, no_type_check

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)
MODULES_PER_TENSOR, FEWEST_MODULES = 10, 1000  # generously: there are modules without a tensor
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # that weights may be stored in


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made in this block have parameters of a shape and no memory; buffers are real."""
    twins: dict[int, tuple[Tensor, nn.Parameter]] = {}  # keeps the originals, lest ids come again
    thread = threading.get_ident()  # the hook is everybody's

    def replace(module: nn.Module, name: str, parameter: Tensor) -> nn.Parameter | None:
        if threading.get_ident() != thread:
            return None
        if id(parameter) not in twins:
            twins[id(parameter)] = parameter, nn.Parameter(parameter.detach().to("meta"))
        return twins[id(parameter)][1]

    # its annotation forgets that what a hook returns takes the place of the parameter
    hook = register_module_parameter_registration_hook(replace)  # type: ignore[arg-type]
    try:
        with _WithoutFilling():
            yield
    finally:
        hook.remove()


@contextmanager
def _limited(most: int) -> Iterator[None]:
    """No more modules than that are made in this block; ValueError at the next one."""
    thread, count = threading.get_ident(), 0

    def take(module: nn.Module, name: str, part: nn.Module | None) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > most:
            raise ValueError(f"more than {most:,} layers, for which the file has too few tensors")

    hook = register_module_module_registration_hook(take)
    try:
        yield
    finally:
        hook.remove()


class _WithoutFilling(TorchFunctionMode):
    """Leaves what has no memory as it is: to fill it, torch would load its compiler for seconds."""

    FILLS = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_")

    @no_type_check  # run-time checks at every step of torch would take half of a load
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in self.FILLS:
            tensor = given["tensor"] if "tensor" in given else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)


# What building raises of sizes that pass as settings, and are absurd.
_IMPOSSIBLE = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


def built(build: Callable[[], Module], *, num_tensors: int, where: Path) -> Module:
    """A module for `filled`; ValueError where nothing can be built of its sizes.

    Nor of a depth for which the file has far too few tensors: a million layers would be built
    before the first was missed.
    """
    try:
        with without_memory(), _limited(MODULES_PER_TENSOR * num_tensors + FEWEST_MODULES):
            return build()
    except _IMPOSSIBLE as error:
        raise ValueError(f"{where}: nothing can be built of these sizes ({error})") from error


def filled(
    module: Module,
    tensors: Mapping[str, Tensor],
    *,
    where: Path,
    dtype: torch.dtype = torch.float32,
) -> Module:
    """A module that was `built`, with the weights of a file, frozen.

    Saved buffers are believed as they are, weights become of one dtype.

    Raises:
        ValueError: the tensors are not those of the module, or not usable; names file and tensor.
    """
    targets = module.state_dict(keep_vars=True)
    given = {id(targets[name]) for name in tensors if name in targets}
    unknown = sorted(set(tensors) - set(targets))
    missing = sorted(name for name, target in targets.items() if id(target) not in given)
    if unknown and not given:
        raise ValueError(
            f"{where}: a checkpoint of another architecture: it holds {unknown[0]!r}, "
            f"expected such as {missing[0]!r}"
        )
    if unknown or missing:
        what = f"unexpected tensor {unknown[0]!r}" if unknown else f"no tensor {missing[0]!r}"
        raise ValueError(f"{where}: {what}")
    weights: dict[int, tuple[Tensor, nn.Parameter]] = {}
    for name, tensor in tensors.items():
        target = targets[name]
        _check_tensor(name, tensor, target, where=where)
        if not isinstance(target, nn.Parameter):
            target.data = tensor.to(target.dtype)
        elif id(target) not in weights:
            weights[id(target)] = tensor, nn.Parameter(tensor.to(dtype), requires_grad=False)
        elif not torch.equal(weights[id(target)][0], tensor):
            raise ValueError(f"{where}: {name} differs from the tensor that it should share")
    for part in module.modules():
        for name, empty in list(part.named_parameters(recurse=False)):
            setattr(part, name, weights[id(empty)][1])
    return module.eval()


def _check_tensor(name: str, tensor: Tensor, target: Tensor, *, where: Path) -> None:
    if tensor.shape != target.shape:
        raise ValueError(
            f"{where}: {name} has shape {tuple(tensor.shape)}, "
            f"its configuration asks for {tuple(target.shape)}"
        )
    expected = (target.dtype, *(FLOATS if target.is_floating_point() else ()))
    if tensor.dtype not in expected:
        names = " or ".join(str(each) for each in dict.fromkeys(expected))
        raise ValueError(f"{where}: {name} is {tensor.dtype}, expected {names}")
    # released reservoirs may hold NaN, which no code reads; a weight that is NaN spoils all
    if isinstance(target, nn.Parameter) and tensor.numel():
        lowest, highest = torch.aminmax(tensor)
        if not (torch.isfinite(lowest) and torch.isfinite(highest)):
            raise ValueError(f"{where}: {name} holds values that are not finite")


def stored_state(module: nn.Module, *, half: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to store, and of one tensor with two names (a modality vector) the name left out."""
    tensors: dict[str, Tensor] = {}
    stored: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if id(tensor) in stored:
            aliases[name] = stored[id(tensor)]
            continue
        stored[id(tensor)] = name
        halved = half and isinstance(tensor, nn.Parameter) and tensor.ndim > 1
        tensors[name] = tensor.half() if halved else tensor
    return tensors, aliases
