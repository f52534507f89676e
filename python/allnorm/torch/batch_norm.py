"""Batch Normalization over ranks, iterations and mini-batches, as modules that stand where torch.nn's stood."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Optional, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from allnorm.torch import _groups, _ops
from allnorm.torch._activation import Activation
from allnorm.torch._call import Parameters, State
from allnorm.torch._layer import Layer
from allnorm.torch._pairs import InFront, convolution
from allnorm.torch.renorm import RenormOptions


class Frame(NamedTuple):
    """What a call normalized with, one value per channel as float64: y = weight * ((x - mean) / sqrt(var + eps) * r + d)
    + bias, r = 1 and d = 0 without renorm."""

    mean: Tensor
    var: Tensor
    r: Tensor
    d: Tensor


class BatchNorm(Layer, _BatchNorm):
    """torch.nn.BatchNorm1d, 2d or 3d, for inputs (N, C, space...) of any number of axes, and what these lack.

    sync: whose samples the statistics are of: this rank's (None), all ranks' ("world"), those of groups of k consecutive
        ranks, of a ProcessGroup, or of (DeviceMesh, dim). Ranks may have batches of different sizes, and empty ones.
    renorm: RenormOptions of Batch Renormalization.
    window: iterations in the statistics, this one included (Cross-Iteration BN). `burn_in`: first training calls that use
        their own statistics alone. `compensate`: the convolution or linear layer in front, without bias, to whose present
        weights past statistics are moved; forward() then needs what it read and its weight: ConvBatchNorm2d gives them, and
        follow() has them brought.
        `guard`: "clamp" or "drop", what a past variance below 0 counts as; `running_source`: "current" or "window", what
        the running statistics follow.
    minibatches: calls of one batch that share statistics (CmBN), weighted "uniform"ly or by "count".
    activation: "relu", "leaky_relu" or ("leaky_relu", slope), applied after weight, bias and residual.
    nonfinite: what input that is not finite does: "propagate", "fail" or "skip_update" (docs/cli.md).
    name: what errors call the layer, the same on all ranks.

    Running statistics stay float32 or float64, whatever the module is cast to; weight and bias may be float16 and bfloat16.
    In evaluation a layer is torch.nn.functional.batch_norm. ValueError for what the catalogue does not know.
    """

    _version = 2
    _row = "batch_norm"
    _may_change = operator.attrgetter("eps", "momentum", "activation", "nonfinite")
    _of_channels = True
    _fresh = {**Layer._fresh, "_last": None, "_conv_input": None}
    _followed: Optional[nn.Module] = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: Optional[float] = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        sync: Any = None,
        renorm: Optional[RenormOptions] = None,
        window: int = 1,
        burn_in: int = 0,
        compensate: Optional[nn.Module] = None,
        guard: str = "clamp",
        running_source: str = "current",
        minibatches: int = 1,
        weighting: str = "uniform",
        activation: Activation = None,
        nonfinite: str = "propagate",
        name: str = "batch_norm",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self._begin(name, sync, activation, nonfinite)
        self._last: Optional[tuple[Tensor, torch.Size]]
        self._history: dict[str, Any] = {}
        if not (renorm is None or isinstance(renorm, RenormOptions)):
            raise ValueError(f"renorm is {renorm!r}, must be RenormOptions or None")
        if not (compensate is None or isinstance(getattr(compensate, "weight", None), Tensor)):
            raise ValueError(f"compensate is {compensate!r}, must be a convolution or linear layer, or None")
        self.renorm = renorm
        if renorm is not None:
            self._history |= renorm.attributes()
        if window != 1:
            self._history |= {"window": window, "guard": guard, "running_source": running_source}
            self._history |= {"compensate": False} if compensate is None else convolution(compensate)
        if burn_in != 0:
            self._history["burn_in"] = burn_in
        if minibatches != 1:
            self._history |= {"minibatches": minibatches, "weighting": weighting}
        self._past: Optional[Tensor] = None
        self._conv_input: Optional[Tensor]
        self._conv_shape = () if compensate is None else tuple(cast(Tensor, compensate.weight).shape)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if self._keeps_std():
            self.keep_spread()
            self.reset_running_stats()
        self._keep_running_types({})
        self._check_options()
        if not track_running_stats and self._has_past():
            raise ValueError("track_running_stats is False, must be True with a window or mini-batches")
        self.reset_past()

    def _channels(self) -> int:
        return self.num_features

    def _attributes(self, dtype: torch.dtype) -> dict[str, Any]:
        momentum = "cumulative" if self.momentum is None else self.momentum
        return {"eps": self.eps, "momentum": momentum, **self._history}

    def options(self) -> dict[str, Any]:
        return {**self._history, **super().options()}

    @property
    def past(self) -> Optional[Tensor]:
        """Window and open batch as bytes; None where the layer has neither."""
        return self._past

    def _keeps_std(self) -> bool:
        return self.renorm is not None and self.renorm.variant == "paper"

    def _spread(self) -> Optional[Tensor]:
        """running_var, or running_std in its place."""
        return self._buffers.get("running_std") if self._keeps_std() else self.running_var

    def keep_spread(self) -> None:
        """running_std in place of running_var, as renorm says."""
        if self._keeps_std() and self.running_var is not None:
            self.register_buffer("running_std", (self.running_var + self.eps).sqrt())
            self.running_var = None

    def running_variance(self) -> Optional[Tensor]:
        """running_var (C), or what it would be where running_std is kept; None without running statistics."""
        if self.running_var is not None or self._spread() is None:
            return self.running_var
        return cast(Tensor, self._spread()).square() - self.eps

    def set_running_variance(self, var: Tensor) -> None:
        """Sets running_var, or running_std where that is kept, to the variances (C)."""
        spread = self._spread()
        assert spread is not None
        spread.copy_((var + self.eps).sqrt() if self._keeps_std() else var)

    def _has_past(self) -> bool:
        return "window" in self._history or "minibatches" in self._history

    def reset_past(self) -> None:
        """An empty window and no open batch. They are no buffer: DistributedDataParallel would give all ranks those of
        rank 0."""
        if self._has_past():
            self._past = self._fresh_past()

    def _fresh_past(self) -> Tensor:
        assert self.running_mean is not None
        wide = self.running_mean.dtype == torch.float64
        past = _ops.fresh_history(self._layer(), self.num_features, self._conv_shape, wide)
        return cast(Tensor, past).to(self.running_mean.device)

    def _past_is_open(self) -> bool:
        """There is something that a layer which began anew would not have."""
        if self._past is None or self._past.is_meta:
            return False
        counts_calls = "burn_in" in self._history or (self.renorm is not None and self.renorm.has_schedule)
        if counts_calls and not torch.equal(self._past, self._fresh_past()):
            return True
        return _ops.has_entries(self._layer(), self.num_features, self._past)

    # ---- what modules do ----

    def _check_input_dim(self, input: Tensor) -> None:  # pylint: disable=redefined-builtin
        if input.dim() < 2:
            raise ValueError(f"input has {input.dim()} axes, must have at least 2")

    def forward(  # pylint: disable=arguments-differ
        self,
        x: Tensor,
        residual: Optional[Tensor] = None,
        *,
        conv_input: Optional[Tensor] = None,
        conv_weight: Optional[Tensor] = None,
    ) -> Tensor:
        if not self.training:
            self._check_input(x)
            return self._infer(x, residual)
        own = self._parameters  # at once, where they are no parametrizations
        y, frame = self._call(
            x,
            Parameters(
                own["weight"] if "weight" in own else self.weight, own["bias"] if "bias" in own else self.bias
            ),
            state=self._state(),
            residual=residual,
            conv=self._conv(conv_input, conv_weight),
        )
        if not torch.compiler.is_compiling():
            self.__dict__["_last"] = (frame, x.shape)  # without nn.Module's looking for parameters in it
        return y

    def _check_input(self, x: Tensor) -> None:
        self._check_input_dim(x)
        if x.size(1) != self.num_features:
            raise ValueError(f"input has {x.size(1)} channels, must have {self.num_features}")

    def _state(self) -> State:
        if not self.track_running_stats:
            return State()
        own = self._buffers
        spread = own["running_std" if self._keeps_std() else "running_var"]
        return State(self._past, own["running_mean"], spread, own["num_batches_tracked"])

    def follow(self, conv: Optional[nn.Module]) -> None:
        """From now on a hook of `conv`, the module that `compensate` was and whose output is all that this layer reads,
        brings what forward() needs of it. None: no more. A weight that fully_shard has taken apart is gathered again."""
        if self._followed is not None:
            hooks = self._followed._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if isinstance(hook, InFront) and hook.norm is self]:
                del hooks[key]
        self.__dict__["_followed"] = conv  # not a module of this one
        if conv is not None:
            conv.register_forward_pre_hook(InFront(self))

    def _conv(self, conv_input: Optional[Tensor], conv_weight: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
        if "conv_stride" not in self._history:
            return None, None
        if conv_input is None and self._followed is not None:
            conv_input, self._conv_input = self._conv_input, None
            conv_weight = cast(Tensor, self._followed.weight)
        if conv_input is None or conv_weight is None:
            return None, None  # the core says what is missing
        whole = getattr(conv_weight, "full_tensor", None)  # of what fully_shard has taken apart
        weight = (conv_weight if whole is None else whole()).detach().contiguous()
        return conv_input.detach(), weight if weight.dtype == torch.float64 else weight.float()

    def _infer(self, x: Tensor, residual: Optional[Tensor]) -> Tensor:
        """As torch does it, so that exported graphs have its operators alone and fusing works."""
        mean, var, weight, bias = self._plain(x)
        eps = self.eps
        if var is None and mean is not None:  # the deviation has eps in it
            var, eps = cast(Tensor, self._spread()).to(mean.dtype).square(), torch.finfo(mean.dtype).tiny
        y = F.batch_norm(x, mean, var, weight, bias, mean is None, 0.0, eps)
        return self._then(y, residual)

    def statistics(self) -> Frame:
        """What the last training call normalized with. ValueError where there was none, or it was compiled."""
        if self._last is None:
            raise ValueError(f"{self.name}: there is no training call to ask, must be one that was not compiled")
        parts = _ops.frame_parts(self._layer(), *self._last)
        one = torch.ones_like(parts["mean"])
        return Frame(parts["mean"], parts["var"], parts.get("r", one), parts.get("d", one - 1))

    def begin_batch(self) -> None:
        """Starts a new batch of mini-batches before the current one is complete."""
        if "minibatches" in self._history:
            _ops.begin_batch(*self._state(), self._layer(), self.name)

    def reset_running_stats(self) -> None:
        if self._buffers.get("running_std") is None:
            super().reset_running_stats()
        else:  # torch's looks for running_var
            for tensor, start in ((self.running_mean, 0), (self._spread(), 1), (self.num_batches_tracked, 0)):
                cast(Tensor, tensor).fill_(start)
        if self._past is not None:
            self._past.copy_(self._fresh_past())

    # ---- casts, copies, files ----

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BatchNorm:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._keep_running_types(before)
        if self._past is not None:
            self._past = fn(self._past)
            if self._past.shape != (fresh := self._fresh_past()).shape:  # derivatives are of another type now
                self._past = fresh
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._past is not None and self._past_is_open():
            destination[prefix + _PAST] = self._past if keep_vars else self._past.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        past: Optional[Tensor] = state_dict.pop(prefix + _PAST, None) if self._past is not None else None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if self._past is None or self.running_mean is None or self.running_mean.is_meta:
            return
        if self._past.is_meta:  # assign=True has given the layer its memory
            self._past = self._fresh_past()
        if past is None:
            past = self._fresh_past()
        if past.dtype != torch.uint8 or past.shape != self._past.shape:
            error_msgs.append(
                f"{prefix + _PAST} has {past.numel()} values of {past.dtype}, must have {self._past.numel()} of torch.uint8: "
                "it is of a layer with another window, other mini-batches or channels"
            )
            return
        self._past.copy_(past)

    def extra_repr(self) -> str:
        of_torch: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return ", ".join([of_torch, *(f"{name}={value}" for name, value in self.options().items())])


_PAST = "allnorm_past"


class BatchNorm1d(BatchNorm):
    """BatchNorm for (N, C) and (N, C, L)."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 3):
            raise ValueError(f"input has {input.dim()} axes, must have 2 or 3")


class BatchNorm2d(BatchNorm):
    """BatchNorm for (N, C, H, W)."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"input has {input.dim()} axes, must have 4")


class BatchNorm3d(BatchNorm):
    """BatchNorm for (N, C, D, H, W)."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 5:
            raise ValueError(f"input has {input.dim()} axes, must have 5")


class SyncBatchNorm(BatchNorm):
    """BatchNorm with the statistics of all ranks, or of those of `process_group`: torch.nn.SyncBatchNorm on CPUs too."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: Optional[float] = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        options.setdefault("sync", "world" if process_group is None else process_group)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )


class ConvBatchNorm2d(nn.Module):
    """A convolution without bias and a BatchNorm2d behind it, whose window's statistics are moved to the convolution's
    present weights: Cross-Iteration BN. `conv` is a Conv2d; other arguments are BatchNorm2d's."""

    def __init__(self, conv: nn.Conv2d, **options: Any) -> None:
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm2d(conv.out_channels, compensate=conv, **options)

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:
        y: Tensor = self.norm(self.conv(x), residual, conv_input=x, conv_weight=self.conv.weight)
        return y
