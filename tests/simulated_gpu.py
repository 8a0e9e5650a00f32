"""A GPU that is not there: tensors that say they lie on one, while the CPU computes their numbers.

What a real one refuses is refused: operands on two devices, numpy of what lies there, float64 on Apple's. Where the
host would wait for it is written down.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators.cpu import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import one_hot
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._pytree import tree_flatten, tree_map_only

HOST = torch.device("cpu")
MAY_MIX = ("copy_", "index.Tensor", "index_put", "_index_put_impl_", "set_")  # with operands on the host
WAITS = ("_local_scalar_dense", "nonzero", "unique", "_unique", "masked_select", "equal")


class OnGPU(Tensor):
    """A tensor in the host's memory that says it lies on the GPU."""

    kind = "cuda"
    device = property(lambda self: torch.device(OnGPU.kind, 0))  # type: ignore[assignment]
    is_cuda = property(lambda self: OnGPU.kind == "cuda")  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func).removeprefix("aten."), dict(kwargs or {})
        operands = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if any(x.ndim and not isinstance(x, OnGPU) for x in operands) and not name.startswith(MAY_MIX):
            where = ", ".join(f"{tuple(x.shape)} {x.device}" for x in operands)
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {where}")
        copied_back = name.startswith("copy_") and not isinstance(args[0], OnGPU)
        by_mask = name.startswith("index.Tensor") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if copied_back or by_mask or name.startswith(WAITS):
            _waits(name)
        if "device" in kwargs:
            kwargs["device"] = HOST
        with torch._C._DisableTorchDispatch():
            made = func(*args, **kwargs)
        own = {id(x): x for x in operands}  # of what works in place
        return tree_map_only(Tensor, lambda x: own[id(x)] if id(x) in own else there(x), made)

    def record_stream(self, s: Any) -> None: ...

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({here(self)})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return here(self).__reduce_ex__(protocol)


def there(x: Tensor) -> Tensor:
    if OnGPU.kind == "mps" and x.dtype == torch.float64:
        raise TypeError("an MPS tensor has no float64")
    return x if isinstance(x, OnGPU) else Tensor._make_subclass(OnGPU, x)


def here(x: Tensor) -> Tensor:
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunctionSubclass():
        return Tensor._make_subclass(Tensor, x.detach()).clone()


class _ToGPU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return there(x.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return here(grads[0])


class _ToHost(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return here(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return there(grads[0].clone())


WAITED: list[str] = []


def _waits(why: str) -> None:
    frame: FrameType | None = sys._getframe()
    while frame is not None and "/colocate/" not in frame.f_code.co_filename:
        frame = frame.f_back
    WAITED.append(f"{why}: {frame.f_code.co_filename}:{frame.f_lineno}" if frame else why)


class _Moves(TorchFunctionMode):
    """What names a device, or takes numbers out of a tensor without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return _moved(func, *args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], OnGPU):
            raise TypeError("can't convert a tensor on a GPU to numpy")
        if func is Tensor.tolist and isinstance(args[0], OnGPU):
            _waits("tolist")
            return here(args[0]).tolist()
        if func is Tensor.pin_memory:
            made = args[0].clone()
            made.pinned = True
            return made
        if func is Tensor.new_tensor and isinstance(args[0], OnGPU):
            _waits("made from numbers")
            return there(func(here(args[0]), *args[1:], **kwargs))
        if func is one_hot and isinstance(args[0], OnGPU):  # whose parts C++ puts on the host
            return there(func(here(args[0]), *args[1:], **kwargs))
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = torch.device(kwargs["device"])
        if device.type == OnGPU.kind and func in (torch.tensor, torch.as_tensor):
            _waits("made from numbers")
        learns = kwargs.pop("requires_grad", False)
        made = func(*args, **kwargs | {"device": HOST})
        made = there(made) if device.type == OnGPU.kind else here(made) if isinstance(made, OnGPU) else made
        return made.requires_grad_(learns) if learns else made


def _moved(func: Any, x: Tensor, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    """As `Tensor.to`, `cuda` and `cpu`."""
    device = {Tensor.cuda: "cuda", Tensor.cpu: "cpu"}.get(func, kwargs.pop("device", None))
    rest: list[Any] = []
    for given in args:
        if isinstance(given, Tensor):
            device, rest = given.device, [given.dtype]
        elif isinstance(given, str | torch.device):
            device = given
        elif not isinstance(given, bool):
            rest.append(given)
    if (is_pinned := getattr(x, "pinned", False)) or rest or kwargs:
        x = Tensor.to(x, *rest, **kwargs)
    learns = x.requires_grad and torch.is_grad_enabled()
    if device is None or (torch.device(device).type != "cpu") == isinstance(x, OnGPU):
        return x
    if isinstance(x, OnGPU):
        _waits("to the host")
        return _ToHost.apply(x) if learns else here(x)  # type: ignore[no-any-return]
    if not (non_blocking and is_pinned):
        _waits("copy from memory that is not pinned")
    return _ToGPU.apply(x) if learns else there(x.detach().clone())  # type: ignore[no-any-return]


def _move_model(self: Fabric, model: Any, optimizers: list[Any]) -> Any:
    """Parameters that move become other objects here; on a real GPU they stay the same."""
    before = list(model.parameters())
    new = dict(zip(before, model.to(OnGPU.kind).parameters(), strict=True))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["params"] = [new[old] for old in group["params"]]
    return model


def _grouped(tensors: Any, with_indices: bool = False) -> Any:
    """torch's own, in C++, sees through us."""
    groups = _group_tensors_by_device_and_dtype(tensors, with_indices)
    device = tensors[0][0].device
    return {(device, kind): group for (_, kind), group in groups.items()}


class _Stream:
    def __init__(self, *_: Any) -> None: ...

    def record_event(self) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@contextmanager
def simulated_gpu(kind: str = "cuda") -> Iterator[list[str]]:
    """Have torch know a GPU (of Apple's: mps), and Fabric take it; gives the places where the host waits for it."""
    WAITED.clear()
    OnGPU.kind = kind
    with ExitStack() as changed:
        for owner, name, value in (
            (SingleDeviceStrategy, "root_device", property(lambda self: torch.device(kind, 0))),
            (CPUAccelerator, "setup_device", lambda self, device: None),
            (Fabric, "_move_model_to_device", _move_model),
            (clip_grad, "_group_tensors_by_device_and_dtype", _grouped),
            (torch.cuda, "Stream", _Stream),
            (torch.cuda, "stream", lambda stream: stream),
            (torch.cuda, "current_stream", _Stream),
        ):
            changed.enter_context(patch.object(owner, name, value))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        changed.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        changed.enter_context(_Moves())
        yield WAITED
