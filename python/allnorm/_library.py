"""The C interface (allnorm.h) by ctypes: declarations, and errors as exceptions."""

from __future__ import annotations

import ctypes
import os
import pathlib
from typing import Any

CODES = (
    "",
    "invalid argument",
    "invalid input",
    "unsupported",
    "device",
    "transport",
    "mismatch",
    "timeout",
    "aborted",
    "non-finite",
)
USAGE = CODES[1:3]  # wrong is what was asked for


class Error(RuntimeError):
    """A call failed: the message is one line that names the thing, what it was and what it must be; `code` says of
    which kind ("unsupported", "device", "transport", "mismatch", "timeout", "aborted", "non-finite"). allnorm.torch says too
    which `rank` it was, which `field` differed and in which `layer`, each None where it is not known.

    What is wrong with the call itself, its attributes, shapes or values, is a ValueError.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        rank: int | None = None,
        field: str | None = None,
        layer: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.rank, self.field, self.layer = code, rank, field, layer


class Tensor(ctypes.Structure):
    """allnorm_tensor."""

    _fields_ = [
        ("slot", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("channels_last", ctypes.c_int32),
        ("gpu", ctypes.c_int32),
    ]


class Slot(ctypes.Structure):
    """allnorm_slot."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("help", ctypes.c_char_p),
        ("kind", ctypes.c_int32),
        ("in_order", ctypes.c_int32),
    ]


INPUT, UPSTREAM, GRADIENT, STATISTIC, STATE = range(5)


def _find() -> pathlib.Path:
    """ALLNORM_LIBRARY, or the library that was installed with this package."""
    told = os.environ.get("ALLNORM_LIBRARY")
    if told:
        return pathlib.Path(told)
    folder = pathlib.Path(__file__).parent / "lib"
    found = sorted(folder.glob("liballnorm.so*"))
    if not found:
        raise ImportError(f"{folder} has no liballnorm.so; install the package, or set ALLNORM_LIBRARY to its path")
    return found[0]


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_find()))
    handle, text, size, count = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t)
    tensors, extents, number = ctypes.POINTER(Tensor), ctypes.POINTER(ctypes.c_int64), ctypes.c_int32
    made, numbers = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int32)
    doubles = ctypes.POINTER(ctypes.c_double)
    call = [handle, tensors, size, tensors, size, handle]
    for name, result, arguments in (
        ("version", text, []),
        ("error", text, []),
        ("layer_name", text, [size]),
        ("layer_summary", text, [size]),
        ("queue_cpu", number, [number, made]),
        ("queue_free", None, [handle]),
        ("threads", number, [number, ctypes.c_double, made]),
        ("group_free", None, [handle]),
        ("operation_make", number, [text, ctypes.c_int64, handle, handle, text, made]),
        ("operation_free", None, [handle]),
        ("set_training", None, [handle, number]),
        ("operation_slot", number, [handle, size, ctypes.POINTER(Slot)]),
        ("slot_shape", number, [handle, text, extents, number, extents, numbers]),
        ("output_shape", number, [handle, tensors, size, extents, numbers]),
        ("forward", number, [*call, made]),
        ("infer", number, call),
        ("replay", number, [handle, handle, *call[1:], made]),
        ("backward", number, [handle, handle, *call[1:]]),
        ("call_free", None, [handle]),
        ("statistic", number, [handle, text, handle, doubles, size, count]),
        ("save", number, [handle, handle, made]),
        ("state_entry", number, [handle, size, tensors, numbers]),
        ("state_free", None, [handle]),
        ("load", number, [handle, tensors, numbers, size, number, handle]),
    ):
        function = getattr(library, "allnorm_" + name)
        function.restype, function.argtypes = result, arguments
    return library


library = _load()


def expect(status: int) -> None:
    """Raises what a function's status says."""
    if status == 0:
        return
    message = library.allnorm_error().decode()
    code = CODES[status]
    raise ValueError(message) if code in USAGE else Error(code, message)


class Handle:
    """Owner of a handle, released by `free`."""

    def __init__(self, free: Any) -> None:
        self.value = ctypes.c_void_p()
        self._free = free

    def __del__(self) -> None:
        if self.value:
            self._free(self.value)


def layers() -> dict[str, str]:
    """Names and one-line summaries of all layers, in the order of the catalogue."""
    found: dict[str, str] = {}
    while (name := library.allnorm_layer_name(len(found))) is not None:
        found[name.decode()] = library.allnorm_layer_summary(len(found)).decode()
    return found


version: str = library.allnorm_version().decode()
