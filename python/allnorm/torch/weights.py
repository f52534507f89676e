"""Weight Normalization of other modules' weights."""

from __future__ import annotations

from typing import Optional, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from allnorm.torch import _ops
from allnorm.torch.operations import Operation

Module = TypeVar("Module", bound=nn.Module)


class _WeightNorm(nn.Module):
    """w = g v/|v|, as a parametrization: `original0` is g, `original1` v, as torch's has them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.operation = Operation(_ops.text_of("weight_norm", {"dim": dim}))

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return self.operation(v, g=g)  # type: ignore[no-any-return]

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        others = [axis for axis in range(weight.dim()) if axis != self.dim]
        return torch.linalg.vector_norm(weight, dim=others, keepdim=True), weight


def weight_norm(module: Module, name: str = "weight", dim: int = 0, data: Optional[Tensor] = None) -> Module:
    """Weight Normalization (Salimans and Kingma 2016): the parameter `name` of the module is from now on g v/|v|, a length g
    for each index of axis `dim` and a direction v: torch.nn.utils.parametrizations.weight_norm, with its state.

    data: a batch that the module reads. g, and a bias, then start so that the module's outputs have mean 0 and variance 1
        over the batch, channel by channel. ValueError where a channel has no variance.

    Returns the module. torch.nn.utils.parametrize.remove_parametrizations(module, name) ends it."""
    parametrize.register_parametrization(module, name, _WeightNorm(dim % getattr(module, name).dim()))
    if data is not None:
        _start(module, name, data)
    return module


@torch.no_grad()
def _start(module: nn.Module, name: str, data: Tensor) -> None:
    parametrizations = cast(nn.ModuleDict, module.parametrizations)
    g, bias = cast(Tensor, parametrizations[name].original0), cast(Optional[Tensor], getattr(module, "bias", None))
    g.fill_(1)
    if bias is not None:
        bias.zero_()
    y = module(data).double().movedim(1, 0).flatten(1)
    var, mean = torch.var_mean(y, 1, correction=0)
    for channel, value in enumerate(var.tolist()):
        if not 0 < value < float("inf"):
            raise ValueError(f"variance of channel {channel} of the data's outputs is {value}, must be finite and above 0")
    g.copy_(var.rsqrt().view_as(g))
    if bias is not None:
        bias.copy_(-mean * var.rsqrt())
