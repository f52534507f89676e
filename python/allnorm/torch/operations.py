"""The rows of the catalogue that are no plain norm, on one rank and without torch.compile: calls of the C interface."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from typing import Any, Optional, cast

import torch
from torch import Tensor, nn

from allnorm import _library
from allnorm._library import Error, Handle, expect, library
from allnorm.torch import _ops, _replay
from allnorm.torch._call import ordered, ordered_as

_TYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3, torch.int64: 4}
_DTYPES = {number: dtype for dtype, number in _TYPES.items()}
_lock = threading.Lock()  # a queue is used by one thread at a time
_queue = Handle(library.allnorm_queue_free)
expect(library.allnorm_queue_cpu(torch.get_num_threads(), ctypes.byref(_queue.value)))


class _Views:
    """An array of allnorm_tensor over tensors that it keeps."""

    def __init__(self, tensors: Mapping[str, Tensor], channels_last: frozenset[str] = frozenset()) -> None:
        self._kept = list(tensors.values()), [name.encode() for name in tensors]
        self._shapes = [(ctypes.c_int64 * max(tensor.dim(), 1))(*tensor.shape) for tensor in tensors.values()]
        self.size = len(tensors)
        self.array = (_library.Tensor * max(self.size, 1))(
            *(
                _library.Tensor(
                    slot, tensor.data_ptr(), shape, tensor.dim(), _TYPES[tensor.dtype], name in channels_last, -1
                )
                for (name, tensor), slot, shape in zip(tensors.items(), self._kept[1], self._shapes)
            )
        )
        self.given = self.array, self.size


class _Core:
    """The layer of one module. A copy of the module makes its own."""

    def __init__(self, layer: str, channels: int, name: str) -> None:
        self._operation = Handle(library.allnorm_operation_free)
        made = ctypes.byref(self._operation.value)
        expect(library.allnorm_operation_make(layer.encode(), channels, None, _queue.value, name.encode(), made))
        self._slots: dict[str, _library.Slot] = {}
        while library.allnorm_operation_slot(
            self._operation.value, len(self._slots), ctypes.byref(slot := _library.Slot())
        ):
            self._slots[slot.name.decode()] = slot

    def forward(
        self, given: dict[str, Tensor], training: bool
    ) -> tuple[Tensor, dict[str, Tensor], frozenset[str], Handle]:
        """The output, the tensors as they were used and which have their channels last, and the call."""
        x = given["input"] = ordered(given["input"].detach())
        last = not x.is_contiguous()
        for name, tensor in given.items():
            if name != "input":
                in_order = name in self._slots and self._slots[name].in_order and tensor.dim() > 2
                given[name] = ordered_as(tensor.detach(), x) if in_order else tensor.detach().contiguous()
                if not (tensor.is_floating_point() or tensor.is_complex()):
                    given[name] = given[name].long()
        channels_last = frozenset(name for name, tensor in given.items() if last and not tensor.is_contiguous()) | (
            {"output"} if last else frozenset()
        )
        for name, tensor in given.items():
            if tensor.device.type != "cpu":
                raise Error("unsupported", f"{name} is on {tensor.device}, must be on the CPU")
            if tensor.dtype not in _TYPES:
                raise ValueError(
                    f"{name} is of {tensor.dtype}, must be one of {', '.join(str(dtype) for dtype in _TYPES)}"
                )
        inputs, call = _Views(given, channels_last), Handle(library.allnorm_call_free)
        with _lock:
            library.allnorm_set_training(self._operation.value, training)
            shape, rank = (ctypes.c_int64 * 8)(), ctypes.c_int32()
            expect(
                library.allnorm_output_shape(
                    self._operation.value, inputs.array, inputs.size, shape, ctypes.byref(rank)
                )
            )
            same = tuple(shape[: rank.value]) == tuple(x.shape)
            output = torch.empty_like(x) if same else x.new_empty(tuple(shape[: rank.value]))
            outputs = _Views({"output": output}, channels_last)
            expect(
                library.allnorm_forward(
                    self._operation.value,
                    *inputs.given,
                    *outputs.given,
                    _queue.value,
                    ctypes.byref(call.value),
                )
            )
        return output, given, channels_last, call

    def backward(
        self, call: Handle, given: dict[str, Tensor], channels_last: frozenset[str], dy: Tensor, wanted: set[str]
    ) -> dict[str, Tensor]:
        dy = ordered_as(dy, given["input"]) if "output" in channels_last else dy.contiguous()
        inputs = _Views({"grad_output": dy}, frozenset({"grad_output"} if "output" in channels_last else ()))
        gradients = {"grad_" + name: torch.empty_like(tensor) for name, tensor in given.items() if name in wanted}
        outputs = _Views(gradients, frozenset("grad_" + name for name in channels_last))
        with _lock:
            expect(
                library.allnorm_backward(
                    self._operation.value,
                    call.value,
                    *inputs.given,
                    *outputs.given,
                    _queue.value,
                )
            )
        return gradients

    def state(self) -> dict[str, Tensor]:
        """Its tensors of the row; counters of calls and what says whose state it is are left out."""
        state, index, found = Handle(library.allnorm_state_free), 0, dict[str, Tensor]()
        with _lock:
            expect(library.allnorm_save(self._operation.value, _queue.value, ctypes.byref(state.value)))
            entry, per_rank = _library.Tensor(), ctypes.c_int32()
            while library.allnorm_state_entry(state.value, index, ctypes.byref(entry), ctypes.byref(per_rank)):
                index += 1
                if entry.slot.startswith(b"allnorm."):
                    continue
                values = torch.empty(tuple(entry.shape[: entry.rank]), dtype=_DTYPES[entry.dtype], device="cpu")
                ctypes.memmove(values.data_ptr(), entry.data, values.numel() * values.element_size())
                found[entry.slot.decode()] = values
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        entries = _Views({name: tensor.contiguous() for name, tensor in state.items()})
        with _lock:
            expect(library.allnorm_load(self._operation.value, entries.array, None, entries.size, 0, _queue.value))


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, core: _Core, training: bool, names: tuple[str, ...], *tensors: Tensor) -> Tensor:  # pylint: disable=arguments-differ
        output, ctx.given, ctx.last, ctx.call = core.forward(dict(zip(names, tensors)), training)
        ctx.core, ctx.names = core, names
        ctx.save_for_backward(*tensors)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:  # pylint: disable=arguments-differ
        ctx.saved_tensors  # pylint: disable=pointless-statement  # raises where one was changed in place since
        wanted = {name for name, want in zip(ctx.names, ctx.needs_input_grad[3:]) if want}
        gradients = ctx.core.backward(ctx.call, ctx.given, ctx.last, dy, wanted)
        return None, None, None, *(gradients.get("grad_" + name) for name in ctx.names)


class Operation(nn.Module):
    """Any row of the catalogue: forward(x, **tensors) with the row's tensors by name, as allnorm.numpy has it. What the
    layer keeps from call to call are buffers."""

    def __init__(self, layer: str, channels: int = 0) -> None:
        super().__init__()
        self.layer, self.channels = layer, channels
        self._core: Optional[_Core] = _Core(layer, channels, "")
        for name, values in self._core.state().items():
            self.register_buffer(name, values)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_core": None}

    @torch.compiler.disable  # type: ignore[misc]
    def call(self, x: Tensor, **tensors: Optional[Tensor]) -> Tensor:
        """The output, with gradients to all that is given."""
        if self._core is None:
            self._core = _Core(self.layer, self.channels, "")
        given = {"input": x, **{name: tensor for name, tensor in tensors.items() if tensor is not None}}
        state = dict(self.named_buffers(recurse=False))
        if state:
            self._core.load(state)
        y = cast(Tensor, _Call.apply(self._core, self.training, tuple(given), *given.values()))  # type: ignore[no-untyped-call]
        context = _replay.current()
        if state and self.training and not (context is not None and context.replays):
            for name, values in self._core.state().items():
                state[name].copy_(values)
        return y

    def forward(self, x: Tensor, **tensors: Optional[Tensor]) -> Tensor:
        y: Tensor = self.call(x, **tensors)
        return y

    def extra_repr(self) -> str:
        return self.layer


def _parameter(size: tuple[int, ...], start: float, options: dict[str, Any]) -> nn.Parameter:
    return nn.Parameter(torch.full(size, float(start), **options))


class SwitchableNorm2d(Operation):
    """Switchable Normalization (Luo et al. 2019): learned mixtures of instance, layer and batch statistics."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, **options: Any) -> None:
        super().__init__(_ops.text_of("switchable_norm", {"eps": eps, "momentum": momentum}), num_features)
        self.weight, self.bias = _parameter((num_features,), 1, options), _parameter((num_features,), 0, options)
        self.mean_logits, self.var_logits = _parameter((3,), 1, options), _parameter((3,), 1, options)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(
            x, weight=self.weight, bias=self.bias, mean_logits=self.mean_logits, var_logits=self.var_logits
        )
        return y


class _Conditional(Operation):
    def __init__(self, layer: str, rows: int, num_features: int, options: dict[str, Any]) -> None:
        super().__init__(layer, num_features)
        self.weight = _parameter((rows, num_features), 1, options)
        self.bias = _parameter((rows, num_features), 0, options)


class ConditionalBatchNorm2d(_Conditional):
    """Conditional BN: weight and bias are rows by each sample's label."""

    def __init__(
        self, num_features: int, num_classes: int, eps: float = 1e-5, momentum: float = 0.1, **options: Any
    ) -> None:
        layer = _ops.text_of("conditional_batch_norm", {"eps": eps, "momentum": momentum})
        super().__init__(layer, num_classes, num_features, options)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(x, weight=self.weight, bias=self.bias, labels=labels)
        return y


class ConditionalInstanceNorm2d(_Conditional):
    """Conditional IN (Dumoulin et al. 2017): weight and bias by each sample's style, an integer, or mixed by (N, styles)."""

    def __init__(self, num_features: int, num_styles: int, eps: float = 1e-5, **options: Any) -> None:
        super().__init__(_ops.text_of("conditional_instance_norm", {"eps": eps}), num_styles, num_features, options)

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(x, weight=self.weight, bias=self.bias, styles=styles)
        return y


class AdaIN(Operation):
    """Adaptive Instance Normalization (Huang and Belongie 2017): x with mean and deviation of style, channel by channel."""

    def __init__(self, eps: float = 1e-5, alpha: float = 1, unbiased: bool = False) -> None:
        super().__init__(_ops.text_of("adaptive_instance_norm", {"eps": eps, "alpha": alpha, "unbiased": unbiased}))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(x, style=style)
        return y


class SPADE2d(Operation):
    """The norm of SPADE (Park et al. 2019): norm(x) * (1 + gamma) + beta, which are maps like x."""

    def __init__(self, num_features: int, base: str = "batch_norm", eps: float = 1e-5) -> None:
        super().__init__(_ops.text_of("spade", {"base": base, "eps": eps}), num_features)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(x, gamma=gamma, beta=beta)
        return y


class MeanOnlyBatchNorm(Operation):
    """Mean-only Batch Normalization (Salimans and Kingma 2016): x without its channels' means, plus a bias; beside
    weight_norm(). For (N, C, space...)."""

    def __init__(self, num_features: int, momentum: float = 0.1, **options: Any) -> None:
        super().__init__(_ops.text_of("mean_only_batch_norm", {"momentum": momentum}), num_features)
        self.bias = _parameter((num_features,), 0, options)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(x, bias=self.bias)
        return y


class MomentShortcut(Operation):
    """Moment Shortcut (Li et al. 2019): x * gamma + beta, deviations and means (N, 1, space...) that Positional Normalization
    has taken away before."""

    def __init__(self) -> None:
        super().__init__("moment_shortcut")

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(x, gamma=gamma, beta=beta)
        return y


class LocalResponseNorm(Operation):
    """torch.nn.LocalResponseNorm, and the windows of "onnx", "caffe" and "alexnet" as `convention`."""

    def __init__(
        self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1, convention: str = "pytorch"
    ) -> None:
        attributes = {"size": size, "alpha": alpha, "beta": beta, "k": k, "convention": convention}
        super().__init__(_ops.text_of("local_response_norm", attributes))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(x)
        return y


class WeightStandardizedConv2d(nn.Conv2d):
    """A convolution whose weight's rows have mean 0 and variance 1 (Qiao et al. 2019), times a learned `gain` each."""

    def __init__(self, *arguments: Any, eps: float = 1e-5, gain: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.standardize = Operation(_ops.text_of("weight_standardization", {"eps": eps}))
        self.gain = nn.Parameter(torch.ones_like(self.weight[:, 0, 0, 0])) if gain else None

    def forward(self, input: Tensor) -> Tensor:  # pylint: disable=redefined-builtin
        weight: Tensor = self.standardize(self.weight, gain=self.gain)
        y: Tensor = self._conv_forward(input, weight, self.bias)
        return y


class CosineLinear(Operation):
    """The cosines of the angles between rows (N, in_features) and out_features vectors (Luo et al. 2017)."""

    def __init__(
        self, in_features: int, out_features: int, centred: bool = False, eps: float = 1e-8, **options: Any
    ) -> None:
        super().__init__(_ops.text_of("cosine_norm", {"centred": centred, "eps": eps}))
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **options))
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(x.flatten(0, -2), weight=self.weight).unflatten(0, x.shape[:-1])
        return y


class _Whitening(Operation):
    def __init__(self, layer: str, num_features: int, affine: bool, options: dict[str, Any]) -> None:
        super().__init__(layer, num_features)
        self.weight = _parameter((num_features,), 1, options) if affine else None
        self.bias = _parameter((num_features,), 0, options) if affine else None

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.call(x)
        if self.weight is None or self.bias is None:
            return y
        shape = (1, -1, *[1] * (x.dim() - 2))
        return y * self.weight.view(shape) + self.bias.view(shape)


class DecorrelatedBatchNorm(_Whitening):
    """Groups of channels whitened by the inverse root of their covariance (Huang et al. 2018)."""

    def __init__(
        self,
        num_features: int,
        group_size: int = 16,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        **options: Any,
    ) -> None:
        attributes = {"group_size": group_size, "eps": eps, "momentum": momentum}
        super().__init__(_ops.text_of("decorrelated_batch_norm", attributes), num_features, affine, options)


class IterNorm(_Whitening):
    """The same by some steps of Newton's method (Huang et al. 2019)."""

    def __init__(
        self,
        num_features: int,
        group_size: int = 16,
        iterations: int = 5,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        **options: Any,
    ) -> None:
        attributes = {"group_size": group_size, "iterations": iterations, "eps": eps, "momentum": momentum}
        super().__init__(_ops.text_of("iterative_norm", attributes), num_features, affine, options)
