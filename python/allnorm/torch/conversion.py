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

from allnorm.torch._graph import calls_of
from allnorm.torch._pairs import obstacle
from allnorm.torch.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from allnorm.torch.renorm import RenormOptions


class Entry(NamedTuple):
    """One layer: its name in the model, what it was, what it is, and why it was left as it was, or in part."""

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
        lines = [
            f"{entry.name or '(the model)'}: {entry.before} -> {entry.after}" + (f": {entry.why}" if entry.why else "")
            for entry in self.converted
        ]
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
    if isinstance(old, BatchNorm):
        old.follow(None)
    _settle_spread(new, old)


def _settle_spread(new: nn.Module, old: nn.Module) -> None:
    """Where one keeps a running deviation and the other a variance, the new one's from the old one's."""
    if isinstance(old, BatchNorm) and new._buffers.pop("running_std", None) is not None:
        new._buffers["running_var"] = old.running_variance()
    if isinstance(new, BatchNorm):
        new.keep_spread()


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


def _in_front_of_norms(model: nn.Module) -> dict[nn.Module, Union[nn.Module, str]]:
    """The convolution or linear layer whose output a norm reads, or why its statistics cannot be moved."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    found: dict[nn.Module, Union[nn.Module, str]] = {}
    try:
        calls = calls_of(model)
    except ValueError as error:
        return {norm: str(error).split("\n", 1)[0] for norm in norms}
    for node, norm in calls.once.items():
        before = calls.before(node)
        if not isinstance(norm, _BatchNorm) or before is None:
            continue
        conv = calls.once[before]
        if type(conv) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear):
            found[norm] = f"the {type(conv).__name__} in front has {obstacle(conv)}" if obstacle(conv) else conv
    return found


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
    replaced: Callable[[str, nn.Module], Union[_BatchNorm, tuple[_BatchNorm, str], str, None]],
) -> Report:
    """Every batch norm by what `replaced` gives: a module, also with what is to be said of it, or why there is none (None: it
    is not spoken of)."""
    report = Report(model)
    done: dict[nn.Module, nn.Module] = {}  # a module under several names is replaced by one
    for name, module in list(report.model.named_modules()):
        if not isinstance(module, _BatchNorm) and not _is_frozen_kind(module):
            continue
        new, kind = replaced(name, module), type(module).__name__
        new, why = new if isinstance(new, tuple) else (new, "")
        if isinstance(new, nn.Module):
            done[module] = new
            report.converted.append(Entry(name, kind, f"{type(new).__name__}({new.extra_repr()})", why))
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
    pair_convs: Union[bool, str] = "auto",
    process_group: Any = None,
    inplace: bool = True,
    **options: Any,
) -> Report:
    """Replaces torch's batch norms in `model` by those of this package, with the same parameters, buffers, hooks and mode.

    norm: "batch_norm", "sync_batch_norm", "batch_renorm", "cross_iteration_batch_norm" or "cross_mini_batch_norm";
        `options` are those of BatchNorm beside it, as window=4. eps and momentum stay each layer's own.
    pair_convs: with a window: whether past statistics are moved to the present weights of the convolution or linear layer in
        front. "auto": where torch.fx can trace the model and finds one, called once, without bias and with zeros around it;
        the Report says where not. True: other layers stay as they were. False: nowhere.
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
    if pair_convs not in (True, False, "auto"):
        raise ValueError(f"pair_convs is {pair_convs!r}, must be True, False or 'auto'")
    pairs = chosen.get("window", 1) != 1 and pair_convs is not False and "compensate" not in options
    included, excluded = _chooser(include, True), _chooser(exclude, False)
    model = model if inplace else copy.deepcopy(model)
    in_front = _in_front_of_norms(model) if pairs else {}

    def replaced(name: str, module: nn.Module) -> Union[_BatchNorm, tuple[_BatchNorm, str], str, None]:
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
        made = {"name": name or "batch_norm", **chosen, **of_layer}
        if not pairs:
            return _made(own, module, **made)
        conv = in_front.get(module, "no convolution in front was found in the model's graph")
        if isinstance(conv, str):
            return conv if pair_convs is True else (_made(own, module, **made), f"past statistics stay as they are: {conv}")
        new = _made(own, module, compensate=conv, **made)
        assert isinstance(new, BatchNorm)
        new.follow(conv)
        return new

    report = _replace(model, replaced)
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

    return _replace(model if inplace else copy.deepcopy(model), replaced)
