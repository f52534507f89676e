"""Every layer of the catalogue on NumPy arrays, and on what has __dlpack__ in the CPU's memory.

    from allnorm.numpy import Layer
    layer = Layer("batch_norm:eps=1e-3", channels=64)
    y = layer.forward(x, weight=gamma, bias=beta)
    gradients = layer.backward(dy)          # gradients["input"], ["weight"], ["bias"]

Arrays are (N, C, space...) of type float64, float32, float16, or bfloat16 of ml_dtypes. One whose memory has the channels
last (a transposed view of (N, space..., C)) is taken as it lies, and so is what comes back; others are copied where they
are not dense. Parameters may be float64, float32 or float16 whatever the input is.

Ranks as threads of this process share statistics: run(4, function) calls function(group) in four of them.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from allnorm import _library
from allnorm._library import Error, Handle, Tensor, expect, library

__all__ = ["Error", "Group", "Layer", "run", "threads"]

Array = npt.NDArray[Any]
T = TypeVar("T")

_TYPES = {"float64": 0, "float32": 1, "float16": 2, "bfloat16": 3, "int64": 4}
_NAMES = {number: name for name, number in _TYPES.items()}


class Group:
    """One rank's place among ranks that are threads of this process."""

    def __init__(self, handle: ctypes.c_void_p, rank: int, size: int) -> None:
        self._handle = Handle(library.allnorm_group_free)
        self._handle.value = handle
        self.rank, self.size = rank, size


def threads(ranks: int, timeout: float = 120) -> list[Group]:
    """Groups for as many threads, [r] for the one that is rank r. A rank that waits longer than `timeout` seconds for
    another fails with an Error of code "timeout" that names it."""
    made = (ctypes.c_void_p * max(ranks, 1))()
    expect(library.allnorm_threads(ranks, timeout, made))
    return [Group(ctypes.c_void_p(handle), rank, ranks) for rank, handle in enumerate(made)]


def run(ranks: int, function: Callable[[Group], T], timeout: float = 120) -> list[T]:
    """Calls function(group) in a thread per rank, and returns what it returned, by rank. Raises the first rank's error
    that is not another's consequence."""
    results: list[Any] = [None] * ranks
    errors: list[BaseException | None] = [None] * ranks

    def work(group: Group) -> None:
        try:
            results[group.rank] = function(group)
        except BaseException as error:  # pylint: disable=broad-exception-caught
            errors[group.rank] = error

    workers = [threading.Thread(target=work, args=(group,)) for group in threads(ranks, timeout)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = [error for error in errors if error is not None]
    if failed:
        raise min(failed, key=lambda error: isinstance(error, Error))
    return results


def _dense(array: Any, name: str) -> tuple[Array, bool]:
    """The array, dense, and whether its channels are last in memory."""
    if not isinstance(array, np.ndarray):
        array = np.from_dlpack(array) if hasattr(array, "__dlpack__") else np.asarray(array)
    if array.dtype.name not in _TYPES:
        raise ValueError(f"dtype of {name} is {array.dtype.name}, must be one of {', '.join(_TYPES)}")
    if array.flags.c_contiguous:
        return array, False
    if array.ndim > 2 and np.moveaxis(array, 1, -1).flags.c_contiguous:
        return array, True
    return np.ascontiguousarray(array), False


def _in_order(array: Array, channels_last: bool) -> Array:
    """The array with its memory in that order, copied where it is in another."""
    if not channels_last:
        return np.ascontiguousarray(array)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def _empty(shape: tuple[int, ...], dtype: Any, channels_last: bool) -> Array:
    if not channels_last or len(shape) < 3:
        return np.empty(shape, dtype)
    return np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), dtype), -1, 1)


class _Views:
    """An array of allnorm_tensor over arrays that it keeps."""

    def __init__(self, slots: Mapping[str, tuple[Array, bool]]) -> None:
        self._kept = (slots, [name.encode() for name in slots])
        self._shapes = [(ctypes.c_int64 * max(array.ndim, 1))(*array.shape) for array, _ in slots.values()]
        self.array = (Tensor * max(len(slots), 1))(
            *(
                Tensor(name, array.ctypes.data, shape, array.ndim, _TYPES[array.dtype.name], last, -1)
                for name, (array, last), shape in zip(self._kept[1], slots.values(), self._shapes)
            )
        )
        self.size = len(slots)
        self.given = self.array, self.size


class Layer:
    """A layer object: "NAME[:attribute=value...]" for C channels. `threads`: of the CPU; `group`: this rank's place among
    ranks that share statistics; `name`: the same on all of them. ValueError for what the catalogue does not know.

    slots() says which tensors there are and what they mean.
    """

    def __init__(
        self, layer: str, channels: int, *, threads: int = 1, group: Group | None = None, name: str = ""
    ) -> None:
        self._group = group
        self._queue = Handle(library.allnorm_queue_free)
        expect(library.allnorm_queue_cpu(threads, ctypes.byref(self._queue.value)))
        self._operation = Handle(library.allnorm_operation_free)
        place = group._handle.value if group is not None else None
        expect(
            library.allnorm_operation_make(
                layer.encode(), channels, place, self._queue.value, name.encode(), ctypes.byref(self._operation.value)
            )
        )
        self._slots = self._read_slots()
        self._call: Handle | None = None
        self._given: dict[str, tuple[Array, bool]] = {}

    def _read_slots(self) -> dict[str, _library.Slot]:
        found: dict[str, _library.Slot] = {}
        index = 0
        while library.allnorm_operation_slot(self._operation.value, index, ctypes.byref(slot := _library.Slot())):
            found[slot.name.decode()] = slot
            index += 1
        return found

    def slots(self) -> dict[str, str]:
        """What each tensor of the layer is, by its name."""
        return {name: slot.help.decode() for name, slot in self._slots.items()}

    def _of_kind(self, kind: int) -> list[str]:
        return [name for name, slot in self._slots.items() if slot.kind == kind]

    def shape(self, slot: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a slot for an input of that shape. An Error of code "unsupported" where it is the caller's
        choice."""
        extents = (ctypes.c_int64 * max(len(input_shape), 1))(*input_shape)
        found, rank = (ctypes.c_int64 * 8)(), ctypes.c_int32()
        expect(
            library.allnorm_slot_shape(
                self._operation.value, slot.encode(), extents, len(input_shape), found, ctypes.byref(rank)
            )
        )
        return tuple(found[: rank.value])

    def train(self, training: bool = True) -> None:
        """Training uses and advances statistics; evaluation uses the running ones."""
        library.allnorm_set_training(self._operation.value, training)

    def forward(self, input: Any, **tensors: Any) -> Array:  # pylint: disable=redefined-builtin
        """The output for an input (N, C, space...), with other tensors by their names, those that are None left out."""
        given = {name: _dense(array, name) for name, array in {"input": input, **tensors}.items() if array is not None}
        array, last = given["input"]
        for name, (own, own_last) in given.items():
            if own_last != last and own.ndim > 2 and name in self._slots:
                to_last = last and bool(self._slots[name].in_order)
                given[name] = (_in_order(own, to_last), to_last)
        inputs = _Views(given)
        extents, rank = (ctypes.c_int64 * 8)(), ctypes.c_int32()
        expect(
            library.allnorm_output_shape(
                self._operation.value, inputs.array, inputs.size, extents, ctypes.byref(rank)
            )
        )
        output = _empty(tuple(extents[: rank.value]), array.dtype, last)
        outputs = _Views({"output": (output, last)})
        call = Handle(library.allnorm_call_free)
        expect(
            library.allnorm_forward(
                self._operation.value,
                *inputs.given,
                *outputs.given,
                self._queue.value,
                ctypes.byref(call.value),
            )
        )
        self._call, self._given, self._kept = call, given, (inputs, outputs)
        return output

    __call__ = forward

    def backward(self, grad_output: Any = None, **upstream: Any) -> dict[str, Array]:
        """Gradients of sum(grad_output * output) for the last forward call, by the names of what was given with it
        ("input" among them); `upstream`: gradients of statistics, such as grad_mean."""
        if self._call is None:
            raise ValueError("there is no forward call, must be one before backward")
        array, last = self._given["input"]
        inputs: dict[str, tuple[Array, bool]] = {}
        if grad_output is not None:
            inputs["grad_output"] = (_in_order(_dense(grad_output, "grad_output")[0], last), last)
        for name, values in upstream.items():
            inputs[name] = (np.asarray(_dense(values, name)[0], order="C"), False)
        gradients = {}
        have_gradients = self._of_kind(_library.GRADIENT)
        for name, (own, own_last) in self._given.items():
            if name == "input" or "grad_" + name in have_gradients:
                gradients["grad_" + name] = (_empty(own.shape, own.dtype, own_last), own_last)
        views, outputs = _Views(inputs), _Views(gradients)
        expect(
            library.allnorm_backward(
                self._operation.value,
                self._call.value,
                *views.given,
                *outputs.given,
                self._queue.value,
            )
        )
        return {name.removeprefix("grad_"): own for name, (own, _) in gradients.items()}

    def statistics(self) -> dict[str, Array]:
        """What the last forward call normalized with, as float64."""
        if self._call is None:
            raise ValueError("there is no forward call, must be one before statistics")
        found = {}
        for name in self._of_kind(_library.STATISTIC):
            count = ctypes.c_size_t()
            call = (self._call.value, name.encode(), self._queue.value)
            expect(library.allnorm_statistic(*call, None, 0, ctypes.byref(count)))
            values = np.empty(count.value)
            pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
            expect(library.allnorm_statistic(*call, pointer, values.size, ctypes.byref(count)))
            if values.size:
                found[name] = values.reshape(self.shape(name, self._given["input"][0].shape))
        return found

    def state(self) -> dict[str, Array]:
        """Everything that the next call depends on: PyTorch's names where it has them, the rest under "allnorm.". An entry
        that holds this rank's share of a sum has a name that begins with "per_rank/"."""
        state = Handle(library.allnorm_state_free)
        expect(library.allnorm_save(self._operation.value, self._queue.value, ctypes.byref(state.value)))
        found: dict[str, Array] = {}
        entry, per_rank = Tensor(), ctypes.c_int32()
        while library.allnorm_state_entry(state.value, len(found), ctypes.byref(entry), ctypes.byref(per_rank)):
            shape = tuple(entry.shape[: entry.rank])
            values = np.empty(shape, _NAMES[entry.dtype])
            if values.nbytes:
                ctypes.memmove(values.ctypes.data, entry.data, values.nbytes)
            found[("per_rank/" if per_rank.value else "") + entry.slot.decode()] = values
        return found

    def load_state(self, state: Mapping[str, Any], *, drop_window: bool = False) -> None:
        """Sets what state() gave. ValueError for what does not fit, and then nothing is changed. `drop_window`: a window
        and an open batch start anew, so that a state of another number of ranks loads."""
        entries = {
            name.removeprefix("per_rank/"): (np.asarray(_dense(values, name)[0], order="C"), False)
            for name, values in state.items()
        }
        per_rank = (ctypes.c_int32 * max(len(state), 1))(*(name.startswith("per_rank/") for name in state))
        views = _Views(entries)
        expect(
            library.allnorm_load(
                self._operation.value, views.array, per_rank, views.size, drop_window, self._queue.value
            )
        )
