"""Layers of torch in a model replaced by those of this package, and back."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional, Union

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from allnorm.torch.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, RenormOptions, SyncBatchNorm


class Entry(NamedTuple):
    """One layer: its name in the model, what it was, what it is, and why it was left as it was."""

    name: str
    before: str
    after: str
    why: str = ""


@dataclass
class Report:
    """What convert() or revert() did. `model` is the model: another object than before where it was copied, or where the
    model itself was the layer."""

    model: nn.Module
    converted: list[Entry] = field(default_factory=list)
    skipped: list[Entry] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{entry.name or '(the model)'}: {entry.before} -> {entry.after}" for entry in self.converted]
        lines += [f"{entry.name or '(the model)'}: {entry.before} stays: {entry.why}" for entry in self.skipped]
        return "\n".join([*lines, f"layers converted: {len(self.converted)}, left as they were: {len(self.skipped)}"])

    def as_json(self) -> str:
        return json.dumps(
            {kind: [entry._asdict() for entry in getattr(self, kind)] for kind in ("converted", "skipped")}, indent=1
        )

    __str__ = text


_CLASSES: dict[type[_BatchNorm], type[BatchNorm]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}
_TORCHS = {own: torchs for torchs, own in _CLASSES.items()}

# What each row of the batch norm family adds to a layer that keeps its own eps and momentum.
_NORMS: dict[str, dict[str, Any]] = {
    "batch_norm": {},
    "sync_batch_norm": {"sync": "world"},
    "batch_renorm": {"renorm": RenormOptions()},
    "cross_iteration_batch_norm": {"window": 4},
    "cross_mini_batch_norm": {"minibatches": 4},
}


def is_plain(module: nn.Module) -> bool:
    """One of torch's batch norms, and not of a class of its own."""
    return type(module) in _CLASSES


class BatchNormAct2d(BatchNorm2d):
    """A BatchNorm2d with the modules `drop` and `act` behind it, as timm has them."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:  # type: ignore[override]
        y: Tensor = self.act(self.drop(super().forward(x, *arguments, **named)))
        return y


def _is_frozen_kind(module: nn.Module) -> bool:
    """FrozenBatchNorm2d of torchvision and detectron2, or as timm's: no batch norm to torch."""
    return type(module).__name__.startswith("FrozenBatchNorm")


def _skips(module: nn.Module) -> str:
    """Why a layer cannot be replaced; empty where it can."""
    if not isinstance(module, _BatchNorm):
        return "it is frozen"
    if isinstance(module, BatchNorm):
        return "it is of allnorm already"
    if isinstance(module, _LazyNormBase):
        return "it does not know its number of channels yet"
    if _own_class(module) is None:
        return f"{type(module).__name__} may do more than a batch norm"
    parameters = [parameter for parameter in (module.weight, module.bias) if parameter is not None]
    if parameters and not module.training and not any(parameter.requires_grad for parameter in parameters):
        return "it is frozen"
    return ""


def _own_class(module: _BatchNorm) -> Optional[type[BatchNorm]]:
    """What stands in for a layer. timm's and detectron2's are known by what they have: neither is imported here."""
    name = type(module).__name__
    if type(module) in _CLASSES:
        return _CLASSES[type(module)]
    if name in ("BatchNormAct2d", "SyncBatchNormAct") and getattr(module, "aa", None) is None:
        behind = (getattr(module, "drop", None), getattr(module, "act", None))
        return BatchNormAct2d if all(isinstance(part, nn.Module) for part in behind) else None
    if name == "NaiveSyncBatchNorm" and isinstance(module, nn.BatchNorm2d):
        return BatchNorm2d
    return None


def _shell(module: _BatchNorm) -> _BatchNorm:
    """A copy without parameters, buffers and modules, which _take_over() gives it."""
    shell = copy.copy(module)
    shell._parameters, shell._buffers, shell._modules = {}, {}, {}
    return shell


def _take_over(new: nn.Module, old: nn.Module) -> None:
    """The same Parameter objects, buffers, submodules, hooks and mode."""
    new._parameters.update(old._parameters)
    new._buffers.update(old._buffers)
    new._modules.update(old._modules)
    for name, value in vars(old).items():
        if name.endswith("_hooks") or name.endswith("_hooks_with_kwargs") or name.endswith("_hooks_always_called"):
            setattr(new, name, value)
    new._is_full_backward_hook = old._is_full_backward_hook  # without it torch calls no hook of the backward pass
    new.training = old.training


def _made(own: type[_BatchNorm], old: _BatchNorm, **options: Any) -> _BatchNorm:
    new = own(
        old.num_features,
        old.eps,
        old.momentum,
        old.affine,
        old.track_running_stats,
        device="meta",
        **options,
    )
    _take_over(new, old)
    if isinstance(new, BatchNorm):
        new._keep_running_types({})  # those of a model that was cast before
        new.reset_past()
        if type(old) not in _CLASSES:
            new.__dict__[_WAS] = _shell(old)  # not a module of this one
    return new


def _as_it_was(module: BatchNorm) -> Optional[_BatchNorm]:
    """A layer of the class of another package that `module` stands for; None where it stands for none."""
    was = module.__dict__.get(_WAS)
    if was is None:
        return None
    new = _shell(was)
    new.eps, new.momentum = module.eps, module.momentum
    _take_over(new, module)
    return new


_WAS = "_allnorm_was"


def refuse_wrapped(model: nn.Module, what: str) -> None:
    for module in model.modules():
        kind = type(module)
        wrapped = kind.__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")
        if wrapped or any(base.__name__ == "FSDPModule" for base in kind.__mro__):
            raise ValueError(f"the model has a {kind.__name__}, must not: {what} it before it is wrapped or compiled")


def put_in_place(model: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The model with other modules in place of some, under all their names."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in done:
                parent._modules[name] = done[child]
    return done.get(model, model)


Names = Optional[Union[Iterable[str], Callable[[str, nn.Module], bool]]]


def _chooser(names: Names, otherwise: bool) -> Callable[[str, nn.Module], bool]:
    if names is None:
        return lambda name, module: otherwise
    if callable(names):
        return names
    known = [names] if isinstance(names, str) else list(names)
    return lambda name, module: any(name == part or name.startswith(part + ".") for part in known)


def _replace(
    model: nn.Module,
    replaced: Callable[[str, nn.Module], Union[_BatchNorm, str, None]],
    inplace: bool,
) -> Report:
    """Every batch norm by what `replaced` gives: a module, or why there is none (None: it is not spoken of)."""
    report = Report(model if inplace else copy.deepcopy(model))
    done: dict[nn.Module, nn.Module] = {}  # a module under several names is replaced by one
    for name, module in list(report.model.named_modules()):
        if not isinstance(module, _BatchNorm) and not _is_frozen_kind(module):
            continue
        new, kind = replaced(name, module), type(module).__name__
        if isinstance(new, nn.Module):
            done[module] = new
            report.converted.append(Entry(name, kind, f"{type(new).__name__}({new.extra_repr()})"))
        elif new is not None:
            report.skipped.append(Entry(name, kind, kind, new))
    report.model = put_in_place(report.model, done)
    return report


def convert(
    model: nn.Module,
    norm: str = "sync_batch_norm",
    *,
    include: Names = None,
    exclude: Names = None,
    process_group: Any = None,
    inplace: bool = True,
    **options: Any,
) -> Report:
    """Replaces torch's batch norms in `model` by those of this package, with the same parameters, buffers, hooks and mode.

    norm: "batch_norm", "sync_batch_norm", "batch_renorm", "cross_iteration_batch_norm" or "cross_mini_batch_norm";
        `options` are those of BatchNorm beside it, as window=4. eps and momentum stay each layer's own.
    include, exclude: names of layers or of modules that have them, or a function of name and module.
    process_group: of sync, in place of the world.

    timm's BatchNormAct2d and SyncBatchNormAct keep their activation and drop, and detectron2's NaiveSyncBatchNorm is taken
    for a BatchNorm2d. Frozen layers, lazy ones and other subclasses stay, and the Report says why. ValueError where the
    model is wrapped by DistributedDataParallel or FSDP, or compiled. Converting again changes nothing. torch's
    convert_sync_batchnorm must not follow: it would take these layers for its own."""
    refuse_wrapped(model, "convert")
    if norm not in _NORMS:
        raise ValueError(f"norm is {norm!r}, must be one of {', '.join(_NORMS)}")
    chosen = {"sync": None, **_NORMS[norm], **options}
    if process_group is not None:
        chosen["sync"] = process_group
    included, excluded = _chooser(include, True), _chooser(exclude, False)

    def replaced(name: str, module: nn.Module) -> Union[_BatchNorm, str, None]:
        if not included(name, module) or excluded(name, module):
            return "it was left out by include or exclude"
        why = _skips(module)
        if why:
            return why
        assert isinstance(module, _BatchNorm)
        own = _own_class(module)
        assert own is not None
        group = getattr(module, "process_group", None)  # of torch.nn.SyncBatchNorm
        of_layer = {"sync": group} if group is not None and chosen["sync"] == "world" else {}
        return _made(own, module, name=name or "batch_norm", **(chosen | of_layer))

    report = _replace(model, replaced, inplace)
    if not report.converted and not any(isinstance(module, BatchNorm) for module in report.model.modules()):
        warnings.warn("the model has no batch norm that could be converted", stacklevel=2)
    return report


def revert(model: nn.Module, *, inplace: bool = True) -> Report:
    """Replaces layers of this package by torch.nn.BatchNorm1d, 2d, 3d or SyncBatchNorm, or by what they were where convert()
    found a layer of timm or detectron2, with the same parameters, buffers, hooks and mode. Windows and open batches are
    lost. Layers with an activation of their own, and those that know no number of axes, stay."""
    refuse_wrapped(model, "revert")

    def replaced(_: str, module: nn.Module) -> Union[_BatchNorm, str, None]:
        if not isinstance(module, BatchNorm):
            return None
        if module.activation is not None:
            return "torch's has no activation"
        was = _as_it_was(module)
        if was is not None:
            return was
        if type(module) not in _TORCHS:
            return "torch has no such layer"
        sync = module.options().get("sync")  # torch's has the world or a process group
        if isinstance(module, SyncBatchNorm) and (sync is None or isinstance(sync, int)):
            return "torch's shares statistics with all ranks or those of a process group"
        own_group = isinstance(module, SyncBatchNorm) and not isinstance(sync, (str, int, type(None)))
        return _made(_TORCHS[type(module)], module, **({"process_group": sync} if own_group else {}))

    return _replace(model, replaced, inplace)
