"""What the statistics of a training do, as curves."""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from allnorm.torch.batch_norm import BatchNorm

Curves = dict[str, list[tuple[int, float]]]


class StatisticsHook:
    """Hooks of the layers of a model. `values`: what was measured where there is no writer; remove() ends it."""

    def __init__(self, model: nn.Module, every: int, writer: Any) -> None:
        self.values: Curves = writer if isinstance(writer, dict) else {}
        self._writer = None if isinstance(writer, dict) else writer
        self._every = every
        self._before: dict[BatchNorm, tuple[int, Tensor, Tensor]] = {}
        self._names = {module: name for name, module in model.named_modules() if isinstance(module, BatchNorm)}
        self._handles = [module.register_forward_pre_hook(self._keep) for module in self._names]
        self._handles += [module.register_forward_hook(self._measure) for module in self._names]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, layer: nn.Module, _: Any) -> None:
        """Running statistics as they are before a call that is due."""
        if torch.compiler.is_compiling() or not layer.training:
            return
        assert isinstance(layer, BatchNorm)
        mean, var, tracked = layer.running_mean, layer.running_variance(), layer.num_batches_tracked
        if mean is None or var is None or tracked is None:
            return
        step = int(tracked) + 1
        if step % self._every == 0:
            self._before[layer] = step, mean.to(torch.float64, copy=True), var.to(torch.float64, copy=True)

    def _measure(self, layer: nn.Module, _: Any, __: Any) -> None:
        if torch.compiler.is_compiling():
            return
        assert isinstance(layer, BatchNorm)
        step, mean, var = self._before.pop(layer, (0, None, None))
        if mean is None or var is None or layer.num_batches_tracked != step:  # replayed, or a batch that is open
            return
        frame, renorm = layer.statistics(), layer.renorm
        found = {
            "mean_drift": ((frame.mean - mean) / (var + layer.eps).sqrt()).abs().mean(),
            "var_drift": ((frame.var + layer.eps) / (var + layer.eps)).log().abs().mean(),
        }
        # A schedule counts calls, which are num_batches_tracked where there is no history.
        if renorm is not None and not (renorm.has_schedule and layer.past is not None):
            r_max, d_max = renorm.bounds(step - 1)
            found["r_clipped"] = ((frame.r >= r_max) | (frame.r <= 1 / r_max)).double().mean()
            found["d_clipped"] = (frame.d.abs() >= d_max).double().mean()
        for name, value in found.items():
            self._write(f"{self._names[layer] or layer.name}/{name}", float(value), step)

    def _write(self, tag: str, value: float, step: int) -> None:
        if self._writer is None:
            self.values.setdefault(tag, []).append((step, value))
        else:
            self._writer.add_scalar(tag, value, step)


def statistics_hook(
    model: nn.Module, every: int = 100, writer: Optional[Union[Curves, Any]] = None
) -> StatisticsHook:
    """Measures, in every `every`-th batch of a training, how far the statistics that a layer of this package normalized with
    are from its running ones of before, on an average over the channels:

    mean_drift: |mean - running mean| in running deviations; var_drift: |ln(var / running var)|;
    r_clipped, d_clipped: with renorm, the share of channels whose r and d were at their bounds; not with a schedule of these
        beside a window or mini-batches.

    writer: what has add_scalar(tag, value, step), as torch.utils.tensorboard's SummaryWriter, or a dict, to which lists of
        (step, value) are added; None: the result's `values`. Steps are num_batches_tracked.

    Calls in compiled graphs, and those that checkpointing makes again, are not measured. ValueError for every < 1."""
    if every < 1:
        raise ValueError(f"every is {every}, must be at least 1")
    return StatisticsHook(model, every, writer)
