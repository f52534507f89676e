"""What ranks do with the layers of a whole model: compare them, average and recompute their running statistics."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from allnorm.torch._layer import Layer
from allnorm.torch.batch_norm import BatchNorm
from allnorm.torch.operations import Operation


@dataclass(frozen=True)
class Difference:
    """What rank `rank` has in place of what rank 0 of the group has."""

    layer: str
    field: str
    rank: int
    value: str
    expected: str

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.layer}: {self.field} is {self.value}, must be {self.expected} as on rank 0"


@dataclass(frozen=True)
class Agreement:
    """Whether the ranks of a group have the same layers in the same state."""

    ranks: int
    layers: int
    differences: list[Difference] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        if self:
            return f"{self.layers} layers are the same on {self.ranks} ranks"
        return "\n".join(str(difference) for difference in self.differences)


_RUNNING = ("running_mean", "running_var", "running_std")


def _ranks(group: Any) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


# What is compared: of these modules their buffers, the options of this package, and these attributes, by their names here.
_COMPARED = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, Layer, Operation)
_ATTRIBUTES = {"num_features": "channels", "num_channels": "channels", "num_groups": "groups", "layer": "row"}
_ATTRIBUTES |= {name: name for name in ("normalized_shape", "eps", "momentum", "track_running_stats", "nonfinite", "activation")}
_OF_PARTS = ("num_channels", "normalized_shape")  # may differ where ranks hold parts of samples


def _norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm))


def _hash(tensor: Optional[Tensor]) -> str:
    if tensor is None:
        return "none"
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:12]


def _text(option: Any) -> str:
    """The same on all ranks that have the same: a process group's own text is its address."""
    if dist.is_available() and isinstance(option, dist.ProcessGroup):
        return f"a group of {dist.get_world_size(option)} ranks"
    return str(option)


def _description(module: nn.Module) -> dict[str, str]:
    found = {"kind": type(module).__name__, "mode": "training" if module.training else "evaluation"}
    options = module.options() if isinstance(module, Layer) else {}
    for attribute, name in _ATTRIBUTES.items():
        if hasattr(module, attribute) and not ("sync" in options and attribute in _OF_PARTS):
            found[name] = str(getattr(module, attribute))
    found |= {name: _text(value) for name, value in options.items()}
    return found | {"hash of " + name: _hash(tensor) for name, tensor in module._buffers.items()}


def check(model: nn.Module, group: Any = None) -> Agreement:
    """Compares options and running statistics of all norms of the model, of this package and of torch, over the ranks of
    `group` (the default group when None). All of them must call it. Layers of their own (sync=None) have other running
    statistics on every rank unless they are averaged."""
    own = {name: _description(module) for name, module in model.named_modules() if isinstance(module, _COMPARED)}
    everyone: list[Any] = [own]
    if _ranks(group) > 1:
        everyone = [None] * _ranks(group)
        dist.all_gather_object(everyone, own, group)
    first, differences = everyone[0], []
    for rank, other in enumerate(everyone):
        for layer in sorted(first.keys() | other.keys()):
            mine, theirs = first.get(layer, {"layer": "missing"}), other.get(layer, {"layer": "missing"})
            for name in [*mine, *(name for name in theirs if name not in mine)]:
                if mine.get(name, "missing") != theirs.get(name, "missing"):
                    differences.append(
                        Difference(layer, name, rank, theirs.get(name, "missing"), mine.get(name, "missing"))
                    )
    return Agreement(len(everyone), len(first), differences)


@torch.no_grad()
def average_running_stats(model: nn.Module, group: Any = None) -> None:
    """Sets running means and variances of all batch norms to their averages over the ranks of `group`, which all must
    call it: for layers whose ranks have statistics of their own, before a common evaluation or checkpoint."""
    ranks = _ranks(group)
    running = [
        tensor
        for _, module in _norms(model)
        for tensor in (module._buffers.get(name) for name in _RUNNING)
        if tensor is not None
    ]
    if ranks == 1 or not running:
        return
    packed = torch.cat([tensor.reshape(-1).double() for tensor in running])
    dist.all_reduce(packed, group=group)
    for tensor, mean in zip(running, (packed / ranks).split([tensor.numel() for tensor in running])):
        tensor.copy_(mean.view_as(tensor))


class _Population:
    """Number, mean and squared deviations of the values of each channel, batches and ranks merged."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if count == 0:
            return
        total, delta = self.count + count, mean - self.mean
        self.squares += squares + delta.square() * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    def add_values(self, x: Tensor) -> None:
        values = x.detach().double().movedim(1, 0).reshape(x.shape[1], -1)
        if values.shape[1] == 0:
            return
        mean = values.mean(1)
        self.add(values.shape[1], mean.cpu(), (values - mean[:, None]).square().sum(1).cpu())


@torch.no_grad()
def precise_statistics(model: nn.Module, loader: Iterable[Any], batches: int = 200, group: Any = None) -> None:
    """Sets the running statistics of all batch norms to those of the whole of the first `batches` batches of `loader`,
    over all ranks of `group`, which must all call it (with equally many batches where layers have `sync`): exact means and variances of what the layers read, every batch
    normalized by its own. `loader` gives inputs of the model, or tuples of which they are the first. Other modules
    are in the mode that they are in; nothing else of the layers changes."""
    norms = [(name, module) for name, module in _norms(model) if module.running_mean is not None]
    before = [(module.training, {n: b.clone() for n, b in _kept(module).items()}) for _, module in norms]
    found = {module: _Population(module.num_features) for _, module in norms}
    hooks = [
        module.register_forward_pre_hook(lambda own, inputs: found[own].add_values(inputs[0])) for _, module in norms
    ]
    try:
        for _, module in norms:
            module.training = True  # not train(): modules within, as timm's drop, keep their mode
        for batch in itertools.islice(loader, batches):
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    finally:
        for hook in hooks:
            hook.remove()
        for (_, module), (training, kept) in zip(norms, before):
            module.training = training
            for name, tensor in _kept(module).items():
                tensor.copy_(kept[name])
    parts: list[Any] = [[(p.count, p.mean, p.squares) for p in found.values()]]
    if _ranks(group) > 1:
        own, parts = parts[0], [None] * _ranks(group)
        dist.all_gather_object(parts, own, group)
    for index, (_, module) in enumerate(norms):
        population = _Population(module.num_features)
        for of_rank in parts:
            population.add(*of_rank[index])
        if population.count > 1:
            assert module.running_mean is not None
            module.running_mean.copy_(population.mean)
            var = population.squares / (population.count - 1)
            if isinstance(module, BatchNorm):
                module.set_running_variance(var)
            elif module.running_var is not None:
                module.running_var.copy_(var)


def _kept(module: _BatchNorm) -> dict[str, Tensor]:
    """What training calls change."""
    tensors: dict[str, Optional[Tensor]] = dict(module._buffers)
    if isinstance(module, BatchNorm):
        tensors["past"] = module.past
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
