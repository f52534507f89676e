"""Norms whose statistics are of single samples. In evaluation those that torch has are torch's."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from allnorm.torch import _ops
from allnorm.torch._activation import Activation, activated, activation_attributes
from allnorm.torch._call import Parameters, State, normalized, ordered


def _options(activation: Activation, nonfinite: str) -> dict[str, Any]:
    return activation_attributes(activation) | ({} if nonfinite == "propagate" else {"nonfinite": nonfinite})


class GroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm, with an activation and a residual in the same pass."""

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: Activation = None,
        nonfinite: str = "propagate",
        name: str = "group_norm",
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self.activation, self.name = activation, name
        self._layer = _ops.text_of("group_norm", {"groups": num_groups, "eps": eps, **_options(activation, nonfinite)})
        _ops.check_layer(self._layer, num_channels)

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # pylint: disable=arguments-differ
        if not self.training:
            y = super().forward(x)
            return activated(y if residual is None else y + residual, self.activation)
        return normalized(self._layer, self.name, ordered(x), Parameters(self.weight, self.bias), residual=residual)[0]


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm, with an activation and a residual in the same pass."""

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: Activation = None,
        nonfinite: str = "propagate",
        name: str = "layer_norm",
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.activation, self.name = activation, name
        attributes = {"normalized_shape": self.normalized_shape, "eps": eps, **_options(activation, nonfinite)}
        self._layer = _ops.text_of("layer_norm", attributes)
        _ops.check_layer(self._layer, 0)

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # pylint: disable=arguments-differ
        if not self.training:
            y = super().forward(x)
            return activated(y if residual is None else y + residual, self.activation)
        parameters = Parameters(self.weight, self.bias)
        return normalized(self._layer, self.name, x.contiguous(), parameters, residual=residual)[0]


class RMSNorm(nn.RMSNorm):
    """torch.nn.RMSNorm, with an activation and a residual in the same pass."""

    def __init__(
        self,
        normalized_shape: Any,
        eps: Optional[float] = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: Activation = None,
        nonfinite: str = "propagate",
        name: str = "rms_norm",
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.activation, self.name = activation, name
        self._attributes = {"normalized_shape": self.normalized_shape, **_options(activation, nonfinite)}
        _ops.check_layer(self._layer(torch.float32), 0)

    def _layer(self, dtype: torch.dtype) -> str:
        eps = torch.finfo(dtype).eps if self.eps is None else self.eps
        return _ops.text_of("rms_norm", {"eps": eps, **self._attributes})

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # pylint: disable=arguments-differ
        if not self.training:
            y = super().forward(x)
            return activated(y if residual is None else y + residual, self.activation)
        return normalized(self._layer(x.dtype), self.name, x.contiguous(), Parameters(self.weight), residual=residual)[
            0
        ]


class _Instance(_InstanceNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: Activation = None,
        nonfinite: str = "propagate",
        name: str = "instance_norm",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.activation, self.name = activation, name
        attributes = {"eps": eps, **_options(activation, nonfinite)}
        if track_running_stats:
            attributes |= {"track": True, "momentum": momentum}
        self._layer = _ops.text_of("instance_norm", attributes)
        _ops.check_layer(self._layer, num_features)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:  # pylint: disable=redefined-builtin
        if not self.training:
            return activated(super()._apply_instance_norm(input), self.activation)  # type: ignore[no-untyped-call]
        state = State(None, self.running_mean, self.running_var, self.num_batches_tracked)
        return normalized(self._layer, self.name, ordered(input), Parameters(self.weight, self.bias), state=state)[0]


class InstanceNorm1d(_Instance, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d, with an activation in the same pass."""


class InstanceNorm2d(_Instance, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, with an activation in the same pass."""


class InstanceNorm3d(_Instance, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d, with an activation in the same pass."""


class FilterResponseNorm2d(nn.Module):
    """Filter Response Normalization with thresholds (Singh and Krishnan 2019): max(weight * x / sqrt(mean of x² over the
    space + eps + |eps_learned|) + bias, tau), for (N, C, H, W). `learn_eps`: for maps of a single pixel or few."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        *,
        threshold: bool = True,
        learn_eps: bool = False,
        nonfinite: str = "propagate",
        name: str = "filter_response_norm",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.name = num_features, eps, name

        def parameter(exists: bool) -> Optional[nn.Parameter]:
            return nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if exists else None

        self.weight, self.bias = parameter(True), parameter(True)
        self.tau, self.eps_learned = parameter(threshold), parameter(learn_eps)
        self._layer = _ops.text_of("filter_response_norm", {"eps": eps, **_options(None, nonfinite)})
        _ops.check_layer(self._layer, num_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter, start in ((self.weight, 1.0), (self.bias, 0.0), (self.tau, 0.0), (self.eps_learned, 1e-4)):
            if parameter is not None:
                nn.init.constant_(parameter, start)

    def forward(self, x: Tensor) -> Tensor:
        parameters = Parameters(self.weight, self.bias, self.tau, self.eps_learned)
        return normalized(self._layer, self.name, ordered(x), parameters)[0]

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, threshold={self.tau is not None}, learn_eps={self.eps_learned is not None}"


class PositionalNorm2d(nn.Module):
    """Positional Normalization (Li et al. 2019): every position of (N, C, H, W) by mean and deviation of its channels."""

    def __init__(self, eps: float = 1e-5, *, nonfinite: str = "propagate", name: str = "positional_norm") -> None:
        super().__init__()
        self.eps, self.name = eps, name
        self._layer = _ops.text_of("positional_norm", {"eps": eps, **_options(None, nonfinite)})
        _ops.check_layer(self._layer, 0)

    def forward(self, x: Tensor) -> Tensor:
        return normalized(self._layer, self.name, ordered(x), Parameters())[0]

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
