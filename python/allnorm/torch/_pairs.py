"""Convolutions in front of norms whose past statistics are moved to their present weights."""

from __future__ import annotations

from typing import Any

from torch import nn


def obstacle(module: nn.Module) -> str:
    """What of a convolution or linear layer keeps past statistics from being moved to its weights; empty where nothing."""
    if getattr(module, "bias", None) is not None:
        return "a bias"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return "padding that is not of zeros"
    padding = getattr(module, "padding", 0)
    return f"padding {padding!r}" if isinstance(padding, str) else ""


def convolution(module: nn.Module) -> dict[str, Any]:
    """The attributes of a convolution or linear layer in front of the norm."""
    if obstacle(module):
        raise ValueError(f"compensate is a module with {obstacle(module)}, must be one without")
    return {
        "compensate": True,
        "conv_stride": getattr(module, "stride", 1),
        "conv_padding": getattr(module, "padding", 0),
        "conv_dilation": getattr(module, "dilation", 1),
        "conv_groups": getattr(module, "groups", 1),
    }


class InFront:
    """A hook of a convolution or linear layer: what that reads in training is kept for the norm behind it."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.norm.training:
            self.norm._conv_input = inputs[0]
