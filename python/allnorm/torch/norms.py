"""Norms whose statistics are of single samples, whole or, with `sync`, in parts on several ranks. In evaluation those that
torch has are torch's, but for samples in parts."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from allnorm.torch._activation import Activation
from allnorm.torch._call import Parameters, State, ordered
from allnorm.torch._layer import Layer


class GroupNorm(Layer, nn.GroupNorm):
    """torch.nn.GroupNorm, with an activation and a residual in the same pass. With `sync` ranks hold parts of the same
    samples: of their space, or of the channels of each group; num_channels are then this rank's."""

    _row = "group_norm"
    _may_change = operator.attrgetter("eps", "num_groups", "activation", "nonfinite")

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        sync: Any = None,
        activation: Activation = None,
        nonfinite: str = "propagate",
        name: str = "group_norm",
    ) -> None:
        self._begin(name, sync, activation, nonfinite)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self._check_options()

    def _channels(self) -> int:
        return self.num_channels

    def _attributes(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"groups": self.num_groups, "eps": self.eps}

    def _check_input(self, x: Tensor) -> None:
        if self.weight is not None and x.dim() > 1 and x.size(1) != self.num_channels:
            raise ValueError(f"input has {x.size(1)} channels, must have {self.num_channels}")

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # pylint: disable=arguments-differ
        if self._is_torchs():
            return self._then(super().forward(x), residual)
        return self._call(x, Parameters(self.weight, self.bias), residual=residual)[0]


class LayerNorm(Layer, nn.LayerNorm):
    """torch.nn.LayerNorm, with an activation and a residual in the same pass. With `sync` ranks hold parts of the axes that
    share statistics; normalized_shape is then this rank's part."""

    _row = "layer_norm"
    _may_change = operator.attrgetter("eps", "normalized_shape", "activation", "nonfinite")

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        sync: Any = None,
        activation: Activation = None,
        nonfinite: str = "propagate",
        name: str = "layer_norm",
    ) -> None:
        self._begin(name, sync, activation, nonfinite)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self._check_options()

    def _attributes(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"normalized_shape": self.normalized_shape, "eps": self.eps}

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # pylint: disable=arguments-differ
        if self._is_torchs():
            return self._then(super().forward(x), residual)
        return self._call(x, Parameters(self.weight, self.bias), residual=residual, order=Tensor.contiguous)[0]


class RMSNorm(Layer, nn.RMSNorm):
    """torch.nn.RMSNorm, with an activation and a residual in the same pass. `sync` as in LayerNorm."""

    _row = "rms_norm"
    _may_change = operator.attrgetter("eps", "normalized_shape", "activation", "nonfinite")

    def __init__(
        self,
        normalized_shape: Any,
        eps: Optional[float] = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        sync: Any = None,
        activation: Activation = None,
        nonfinite: str = "propagate",
        name: str = "rms_norm",
    ) -> None:
        self._begin(name, sync, activation, nonfinite)
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self._check_options()

    def _attributes(self, dtype: torch.dtype) -> dict[str, Any]:
        eps = torch.finfo(dtype).eps if self.eps is None else self.eps
        return {"normalized_shape": self.normalized_shape, "eps": eps}

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # pylint: disable=arguments-differ
        if self._is_torchs():
            return self._then(super().forward(x), residual)
        return self._call(x, Parameters(self.weight), residual=residual, order=Tensor.contiguous)[0]


class _Instance(Layer, _InstanceNorm):
    _row = "instance_norm"
    _may_change = operator.attrgetter("eps", "momentum", "track_running_stats", "activation", "nonfinite")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: Optional[float] = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        sync: Any = None,
        activation: Activation = None,
        nonfinite: str = "propagate",
        name: str = "instance_norm",
    ) -> None:
        self._begin(name, sync, activation, nonfinite)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)  # type: ignore[arg-type]
        self._keep_running_types({})
        self._check_options()

    def _channels(self) -> int:
        return self.num_features

    def _attributes(self, dtype: torch.dtype) -> dict[str, Any]:
        tracked = {"track": True, "momentum": self.momentum or 0.0} if self.track_running_stats else {}
        return {"eps": self.eps, **tracked}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Instance:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._keep_running_types(before)
        return self

    def _check_input(self, x: Tensor) -> None:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        axis: int = -self._get_no_batch_dim()  # type: ignore[no-untyped-call]
        channels = x.size(axis)
        if channels == self.num_features:
            return
        if self.affine or self.track_running_stats:
            raise ValueError(f"input has {channels} channels, must have {self.num_features}")
        warnings.warn(f"{self.name}: input has {channels} channels, not {self.num_features}", stacklevel=4)

    def _batched(self, x: Tensor) -> Tensor:
        return ordered(x.unsqueeze(0) if x.dim() == self._get_no_batch_dim() else x)  # type: ignore[no-untyped-call]

    def forward(self, input: Tensor) -> Tensor:  # pylint: disable=redefined-builtin
        if not self.training and (self.track_running_stats or self._where().ranks == 1):
            return self._then(super().forward(input), None)
        # torch counts no calls of this layer, and so num_batches_tracked stays.
        state = State(None, self.running_mean, self.running_var, None)
        y = self._call(input, Parameters(self.weight, self.bias), state=state, order=self._batched)[0]
        return y.squeeze(0) if y.dim() > input.dim() else y

    def _apply_instance_norm(self, input: Tensor) -> Tensor:  # pylint: disable=redefined-builtin
        mean, var, weight, bias = self._plain(input)
        return F.instance_norm(input, mean, var, weight, bias, mean is None, 0.0, self.eps)


class InstanceNorm1d(_Instance, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d, with an activation in the same pass. With `sync` ranks hold parts of the same samples'
    space."""


class InstanceNorm2d(_Instance, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, with an activation in the same pass. `sync` as in InstanceNorm1d."""


class InstanceNorm3d(_Instance, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d, with an activation in the same pass. `sync` as in InstanceNorm1d."""


class FilterResponseNorm2d(Layer):
    """Filter Response Normalization with thresholds (Singh and Krishnan 2019): max(weight * x / sqrt(mean of x² over the
    space + eps + |eps_learned|) + bias, tau), for (N, C, H, W). `learn_eps`: for maps of a single pixel or few.
    With `sync` ranks hold parts of the same samples' space."""

    _row = "filter_response_norm"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        *,
        threshold: bool = True,
        learn_eps: bool = False,
        sync: Any = None,
        nonfinite: str = "propagate",
        name: str = "filter_response_norm",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self._begin(name, sync, None, nonfinite)
        super().__init__()
        self.num_features, self.eps = num_features, eps

        def parameter(exists: bool) -> Optional[nn.Parameter]:
            return nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if exists else None

        self.weight, self.bias = parameter(True), parameter(True)
        self.tau, self.eps_learned = parameter(threshold), parameter(learn_eps)
        self._check_options()
        self.reset_parameters()

    def _channels(self) -> int:
        return self.num_features

    def _attributes(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"eps": self.eps}

    def reset_parameters(self) -> None:
        for parameter, start in ((self.weight, 1.0), (self.bias, 0.0), (self.tau, 0.0), (self.eps_learned, 1e-4)):
            if parameter is not None:
                nn.init.constant_(parameter, start)

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, Parameters(self.weight, self.bias, self.tau, self.eps_learned))[0]

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, threshold={self.tau is not None}, learn_eps={self.eps_learned is not None}"


class PositionalNorm2d(Layer):
    """Positional Normalization (Li et al. 2019): every position of (N, C, H, W) by mean and deviation of its channels. With
    `sync` ranks hold parts of these."""

    _row = "positional_norm"

    def __init__(
        self, eps: float = 1e-5, *, sync: Any = None, nonfinite: str = "propagate", name: str = "positional_norm"
    ) -> None:
        self._begin(name, sync, None, nonfinite)
        super().__init__()
        self.eps = eps
        self._check_options()

    def _attributes(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"eps": self.eps}

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, Parameters())[0]

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
