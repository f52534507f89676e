"""The operators of liballnorm_torch.so: loaded, with what torch.compile must know of them, their results' shapes."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Optional, TypeVar, cast

import torch
from torch import Tensor

from allnorm import _library
from allnorm._library import Handle, expect, library

Function = TypeVar("Function", bound=Callable[..., Any])


def _load() -> None:
    """ALLNORM_TORCH_LIBRARY, or the library that was installed with this package."""
    told = os.environ.get("ALLNORM_TORCH_LIBRARY")
    path = pathlib.Path(told) if told else pathlib.Path(_library.__file__).parent / "lib" / "liballnorm_torch.so"
    if not path.exists():
        raise ImportError(f"{path} is not there: this package was installed without the operators for PyTorch")
    torch.ops.load_library(str(path))


_load()
_ops = torch.ops.allnorm
forward = _ops.forward.default
forward_local = _ops.forward_local.default
forward_finish = _ops.forward_finish.default
replay = _ops.replay.default
backward = _ops.backward.default
backward_local = _ops.backward_local.default
backward_finish = _ops.backward_finish.default
# They run within an autograd.Function, which has their gradients: torch's own fallback for operators that have none would
# only look through all arguments.
_autograd = torch.library.Library("allnorm", "IMPL")
for _operator in ("forward", "forward_local", "forward_finish", "replay", "backward", "backward_local", "backward_finish"):
    _autograd.impl(_operator, torch.library.fallthrough_kernel, "Autograd")
forward_now, backward_now = forward._op, backward._op  # without what torch.compile needs around them
check_heads = _ops.check_heads.default
decline = _ops.decline.default
begin_batch = _ops.begin_batch.default
torch.fx.node.has_side_effect(check_heads)  # it has no result, and throws


class Length(ctypes.Structure):
    """allnorm_length."""

    _fields_ = [("fixed", ctypes.c_int64), ("each", ctypes.c_int64)]

    def of(self, groups: Any) -> Any:
        """Of so many groups, which may be a symbol."""
        return self.fixed + self.each * groups


class Sizes(ctypes.Structure):
    """allnorm_halves_sizes."""

    _fields_ = [
        ("exchanges", ctypes.c_int64),
        ("of_channels", ctypes.c_int64),
        ("keeps_running", ctypes.c_int64),
        ("gates", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("forward_record", Length),
        ("backward_record", Length),
        ("frame", Length),
        ("r", ctypes.c_int64),
        ("d", ctypes.c_int64),
        ("std", ctypes.c_int64),
    ]


_handle, _text, _number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
_tensor, _numbers = ctypes.POINTER(_library.Tensor), ctypes.POINTER(ctypes.c_int64)
for _name, _result, _arguments in (
    ("make", _number, [_text, ctypes.c_int64, _number, _number, _text, _handle, ctypes.POINTER(_handle)]),
    ("free", None, [_handle]),
    ("sizes_of", _number, [_handle, ctypes.POINTER(Sizes)]),
    ("history", _number, [_handle, _tensor, _number, _numbers]),
    ("start", _number, [_handle, _tensor, _number, ctypes.c_void_p, ctypes.c_int64, _handle]),
    ("has_entries", _number, [_handle, ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(_number)]),
):
    _function = getattr(library, "allnorm_halves_" + _name)
    _function.restype, _function.argtypes = _result, _arguments
_CACHED = 4096  # as many layers as the operators keep
_queue = Handle(library.allnorm_queue_free)
expect(library.allnorm_queue_cpu(1, ctypes.byref(_queue.value)))


def text_of(layer: str, attributes: dict[str, Any]) -> str:
    """The catalogue's text of a layer: "batch_norm:eps=0.001:training=true"."""

    def value(given: Any) -> str:
        if isinstance(given, bool):
            return str(given).lower()
        if isinstance(given, (tuple, list, torch.Size)):
            return ",".join(str(part) for part in given)
        return repr(given) if isinstance(given, float) else str(given)

    return ":".join([layer, *(f"{name}={value(given)}" for name, given in attributes.items())])


@functools.lru_cache(maxsize=_CACHED)
def _halves(layer: str, channels: int, ranks: int) -> Handle:
    made = Handle(library.allnorm_halves_free)
    expect(library.allnorm_halves_make(layer.encode(), channels, 0, ranks, b"", _queue.value, ctypes.byref(made.value)))
    return made


def check_layer(layer: str, channels: int) -> None:
    """ValueError with the catalogue's text where it does not know such a layer."""
    _halves(layer, channels, 1)


@functools.lru_cache(maxsize=_CACHED)
def sizes(layer: str, channels: int, ranks: int = 1) -> Sizes:
    found = Sizes()
    expect(library.allnorm_halves_sizes_of(_halves(layer, channels, ranks).value, ctypes.byref(found)))
    return found


HEAD: int = sizes("batch_norm", 1).head  # bytes of every record's head


def fresh_history(layer: str, channels: int, conv_weight: Sequence[int] = (), wide: bool = False) -> Optional[Tensor]:
    """Window, open batch and counters of a layer before its first call; None for one that has neither. `conv_weight`: the
    shape of what a window that compensates is moved along; `wide`: derivatives are kept in float64."""
    given, shape = None, (ctypes.c_int64 * max(len(conv_weight), 1))(*conv_weight)
    if conv_weight:
        # float64 or float32; only the shape is looked at
        given = ctypes.byref(_library.Tensor(b"conv_weight", None, shape, len(conv_weight), 0 if wide else 1, 0, -1))
    size, handle = ctypes.c_int64(), _halves(layer, channels, 1).value
    expect(library.allnorm_halves_history(handle, given, wide, ctypes.byref(size)))
    if size.value == 0:
        return None
    history = torch.empty(size.value, dtype=torch.uint8, device="cpu")
    expect(library.allnorm_halves_start(handle, given, wide, history.data_ptr(), size.value, _queue.value))
    return history


def has_entries(layer: str, channels: int, history: Tensor) -> bool:
    """There are entries in the window, or a batch is open."""
    on_host, has = history.cpu(), ctypes.c_int32()
    handle = _halves(layer, channels, 1).value
    expect(library.allnorm_halves_has_entries(handle, on_host.data_ptr(), on_host.numel(), ctypes.byref(has)))
    return bool(has.value)


def _attribute(layer: str, name: str, otherwise: str) -> str:
    return next((part.split("=", 1)[1] for part in layer.split(":") if part.startswith(name + "=")), otherwise)


def groups(layer: str, shape: Sequence[Any]) -> Any:
    """How many means an input of that shape has, whose extents may be symbols."""
    name = layer.split(":", 1)[0]
    if name in ("layer_norm", "rms_norm"):
        given = _attribute(layer, "normalized_shape", "")
        return math.prod(shape[: len(shape) - len(given.split(",")) if given else 1])
    if name == "group_norm":
        return shape[0] * int(_attribute(layer, "groups", "32"))
    if name in ("instance_norm", "filter_response_norm"):
        return shape[0] * shape[1]
    if name == "positional_norm":
        return shape[0] * math.prod(shape[2:])
    return shape[1]


def _channels(layer: str, shape: Sequence[Any]) -> int:
    """Those that a layer is made with: of layers without statistics per channel any number will do."""
    return int(shape[1]) if sizes(layer, 0).of_channels or sizes(layer, 0).keeps_running else 0


def frame_parts(layer: str, frame: Tensor, shape: Sequence[int]) -> dict[str, Tensor]:
    """Views of a frame's arrays by their names."""
    own, each = sizes(layer, _channels(layer, shape)), groups(layer, shape)
    places = {"mean": 0, "var": 1, "rstd": 2, "share": 3, "r": own.r, "d": own.d, "std": own.std}
    return {name: frame[place * each : (place + 1) * each] for name, place in places.items() if place >= 0}


_INPUTS = (
    *("residual", "weight", "bias", "tau", "eps_learned", "conv_input", "conv_weight"),
    *("state", "running_mean", "running_var", "num_batches_tracked"),
)


def expect_device(x: Tensor, *inputs: Any) -> None:
    """ValueError where not all inputs of an operator are where x is; what follows them is not looked at."""
    for name, tensor in zip(_INPUTS, inputs):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, must be on {x.device} as input")


# ---- shapes for torch.compile --------------------------------------------------------------------------------------


def _frame(x: Tensor, layer: str) -> Tensor:
    doubles = sizes(layer, _channels(layer, x.shape)).frame.of(groups(layer, x.shape))
    return x.new_empty(doubles, dtype=torch.float64)


def _mask(x: Tensor, residual: Optional[Tensor], layer: str) -> Tensor:
    # Without a residual y's sign tells what the activation let pass.
    gated = residual is not None and sizes(layer, _channels(layer, x.shape)).gates
    return x.new_empty((x.numel() + 7) // 8 if gated else 0, dtype=torch.uint8)


def _like(tensor: Optional[Tensor], want: bool) -> Optional[Tensor]:
    return torch.empty_like(tensor) if want and tensor is not None else None


def _fake(operator: str) -> Callable[[Function], Function]:
    return cast(Callable[[Function], Function], torch.library.register_fake("allnorm::" + operator))


# Arguments of which no shape depends are in `rest`, the layer's text among its last ones.


@_fake("forward")
def _(x: Tensor, residual: Optional[Tensor], *rest: Any) -> Any:
    expect_device(x, residual, *rest)  # what is on meta comes here too
    layer = rest[-2]
    return torch.empty_like(x), _frame(x, layer), _mask(x, residual, layer)


@_fake("forward_local")
def _(x: Tensor, *rest: Any) -> Any:
    *_, layer, _, _, ranks = rest
    length = sizes(layer, _channels(layer, x.shape), ranks).forward_record
    return x.new_empty(length.of(groups(layer, x.shape)), dtype=torch.uint8)


@_fake("forward_finish")
def _(x: Tensor, residual: Optional[Tensor], *rest: Any) -> Any:
    layer = rest[-4]
    return torch.empty_like(x), _frame(x, layer), _mask(x, residual, layer)


@_fake("replay")
def _(x: Tensor, residual: Optional[Tensor], *rest: Any) -> Any:
    return torch.empty_like(x), _mask(x, residual, rest[-2])


def _of_inputs(x: Tensor, wanted: Sequence[bool]) -> tuple[Optional[Tensor], ...]:
    return tuple(_like(x, want) for want in wanted[:2])


def _of_parameters(parameters: Sequence[Optional[Tensor]], wanted: Sequence[bool]) -> tuple[Optional[Tensor], ...]:
    return tuple(_like(tensor, want) for tensor, want in zip(parameters, wanted[2:]))


@_fake("backward")
def _(dy: Tensor, x: Tensor, *rest: Any) -> Any:
    *parameters, _frame, _mask, wanted, _layer, _name = rest
    return *_of_inputs(x, wanted), *_of_parameters(parameters, wanted)


@_fake("backward_local")
def _(dy: Tensor, x: Tensor, *rest: Any) -> Any:
    *parameters, _frame, _mask, wanted, layer, _name, _rank, ranks = rest
    length = sizes(layer, _channels(layer, x.shape), ranks).backward_record
    record = x.new_empty(length.of(groups(layer, x.shape)), dtype=torch.uint8)
    return record, *_of_parameters(parameters, wanted)


@_fake("backward_finish")
def _(dy: Tensor, x: Tensor, *rest: Any) -> Any:
    return _of_inputs(x, rest[-5])


@_fake("check_heads")
def _(heads: Tensor, *rest: Any) -> None:
    return None


@_fake("decline")
def _(like: Tensor, direction: int, groups: int, *rest: Any) -> Tensor:
    *_, layer, _name, _rank, ranks = rest
    own = sizes(layer, groups, ranks)
    return like.new_empty((own.backward_record if direction else own.forward_record).of(groups), dtype=torch.uint8)


@_fake("begin_batch")
def _(*arguments: Any) -> None:
    return None
