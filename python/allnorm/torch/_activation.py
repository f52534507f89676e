"""What a layer applies after weight, bias and residual."""

from __future__ import annotations

from typing import Any, Union

import torch.nn.functional as F
from torch import Tensor

Activation = Union[None, str, tuple[str, float]]
_SLOPE = 0.01


def activation_attributes(activation: Activation) -> dict[str, Any]:
    """The catalogue's attributes."""
    if activation is None:
        return {}
    if isinstance(activation, str):
        return {"activation": activation}
    return {"activation": activation[0], "slope": activation[1]}


def activated(y: Tensor, activation: Activation) -> Tensor:
    """The same by torch's operators."""
    if activation is None:
        return y
    if activation == "relu":
        return F.relu(y)
    return F.leaky_relu(y, _SLOPE if isinstance(activation, str) else activation[1])
