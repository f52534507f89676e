"""Convolutions that take over the batch norms behind them, for evaluation."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Optional

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from allnorm.torch._activation import activated
from allnorm.torch._graph import calls_of
from allnorm.torch._pairs import InFront
from allnorm.torch.batch_norm import BatchNorm, ConvBatchNorm2d
from allnorm.torch.conversion import BatchNormAct2d, is_plain, put_in_place, refuse_wrapped

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class _Activation(nn.Module):
    """What is left of a layer with an activation."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return activated(x, self.activation)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks) or not all(
        isinstance(hook, InFront) for hook in module._forward_pre_hooks.values()
    )


def _fused(conv: nn.Module, norm: nn.Module) -> Optional[nn.Module]:
    """The convolution with the norm in it; None where that would be something else than one behind the other."""
    transposed = type(conv) in _TRANSPOSED
    if type(conv) not in _CONVOLUTIONS and not (transposed and getattr(conv, "groups") == 1):
        return None
    if not isinstance(norm, _BatchNorm) or not (isinstance(norm, BatchNorm) or is_plain(norm)):
        return None
    if conv.training or norm.training or _hooked(conv) or _hooked(norm):
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    if isinstance(norm, BatchNorm):
        norm.follow(None)
    return fuse_conv_bn_eval(conv, norm, transposed)  # type: ignore[type-var]


def _rest(norm: nn.Module) -> nn.Module:
    """What a norm does behind its statistics."""
    if isinstance(norm, BatchNormAct2d):
        return nn.Sequential(norm.drop, norm.act).eval()
    activation = norm.activation if isinstance(norm, BatchNorm) else None
    return (nn.Identity() if activation is None else _Activation(activation)).eval()


def fuse(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The model, which must be in evaluation, with batch norms of this package and of torch taken into the convolutions in
    front of them: the same outputs but for rounding, and nothing of this package where a norm has been taken in. What is
    behind what is read from the model's graph, so torch.fx must be able to trace it. Layers stay whose convolution or
    norm is called more than once, has hooks, is of a class of its own, or has another reader."""
    refuse_wrapped(model, "fuse")
    if model.training:
        raise ValueError("the model is in training, must be in evaluation: model.eval()")
    model = model if inplace else copy.deepcopy(model)
    calls = calls_of(model)
    done: dict[nn.Module, nn.Module] = {}
    for node, norm in calls.once.items():
        if node.target in calls.read:
            continue
        if isinstance(norm, ConvBatchNorm2d):
            both = _fused(norm.conv, norm.norm)
            if both is not None and len(node.args) == 1 and not node.kwargs and not _hooked(norm):
                done[norm] = nn.Sequential(both, _rest(norm.norm)).eval()
            continue
        before = calls.before(node)
        if before is None or len(before.users) > 1 or before.target in calls.read:
            continue
        conv = calls.once[before]
        both = _fused(conv, norm)
        if both is not None:
            done |= {conv: both, norm: _rest(norm)}
    if not done:
        warnings.warn("the model has no batch norm that a convolution could take over", stacklevel=2)
    return put_in_place(model, done)
