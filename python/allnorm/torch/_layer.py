"""What modules of this package have in common: the text that says which layer they are, their place among ranks, calls."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor, nn

from allnorm.torch import _groups, _ops, _replay
from allnorm.torch._activation import Activation, activated, activation_attributes
from allnorm.torch._call import Parameters, State, alone, declined, normalized, ordered, ordered_as


class Layer(nn.Module):
    """A module that is a layer of the catalogue; stands in front of torch's class among the bases."""

    name: str
    activation: Activation
    nonfinite: str
    _row: ClassVar[str]  # its name in the catalogue
    # What its attributes are made of and may change.
    _may_change: ClassVar[operator.attrgetter[Any]] = operator.attrgetter("eps", "activation", "nonfinite")
    _of_channels = False  # its statistics are of channels, and so records of one length
    # What is of this process, and not of the layer's copies elsewhere.
    _fresh: ClassVar[dict[str, Any]] = {"_text": (None, "", None), "_place": None, "_age": -1, "_met": False}

    def _begin(self, name: str, sync: Any, activation: Activation = None, nonfinite: str = "propagate") -> None:
        """Before torch's own constructor."""
        self._sync = _groups.parse(sync)
        self._text: tuple[Optional[dict[str, Any]], str, Any]
        self._place: Optional[_groups.Place]
        self._age: int
        self.__dict__.update(self._fresh)
        self.name, self.activation, self.nonfinite = name, activation, nonfinite

    def _check_options(self) -> None:
        """After it. ValueError for what the catalogue does not know. Ranks find their groups."""
        self._layer()
        self._where(False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **self._fresh}

    def _keep_running_types(self, before: dict[str, Optional[Tensor]]) -> None:
        """Running statistics are never float16 or bfloat16; they keep the type they had, or are float32."""
        for name in ("running_mean", "running_var", "running_std"):
            own = self._buffers.get(name)
            if own is not None and own.dtype in (torch.float16, torch.bfloat16):
                kept = before.get(name)
                self._buffers[name] = own.float() if kept is None else kept.to(own.device)

    # ---- the layer as the core knows it ----

    def _channels(self) -> int:
        """Those of its inputs; 0 where it may be any number."""
        return 0

    def _attributes(self, dtype: torch.dtype) -> dict[str, Any]:
        """The catalogue's, as they are now, but for those of _options()."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        nonfinite = {} if self.nonfinite == "propagate" else {"nonfinite": self.nonfinite}
        return {**nonfinite, **activation_attributes(self.activation)}

    def options(self) -> dict[str, Any]:
        """Those beyond torch's, under the catalogue's names."""
        sync = self._sync.group if isinstance(self._sync, _groups.Shared) else self._sync
        return {**({} if sync is None else {"sync": sync}), **self._options()}

    def _layer(self, dtype: torch.dtype = torch.float32) -> str:
        """The catalogue's text of the layer as it is now, for inputs of that type."""
        compiling = torch.compiler.is_compiling()
        now = None if compiling else (dtype, self._may_change(self))
        if now is not None and self._text[2] == now:
            return self._text[1]
        attributes = {**self._attributes(dtype), **self._options()}
        text = self._text[1] if self._text[0] == attributes else _ops.text_of(self._row, attributes)
        if not compiling:
            _ops.check_layer(text, self._channels())
            self._text = attributes, text, now
        return text

    def _where(self, warn: bool = True) -> _groups.Place:
        """This rank's place, in the process group that there is now."""
        if self._sync is None:
            return _groups.ALONE
        if torch.compiler.is_compiling() and _groups.is_new_world():  # a graph cannot keep what it finds
            return _groups.place(self._sync) or _groups.ALONE
        if self._age != (age := _groups.age()):
            self._place, self._met, self._age = None, False, age
        if self._place is None:
            self._place = _groups.place(self._sync)
            if self._place is None and warn:
                _groups.warn_alone(self.name)
        return self._place or _groups.ALONE

    # ---- calls ----

    def _check_input(self, x: Tensor) -> None:
        """ValueError for what only this module knows to be wrong."""

    def _is_torchs(self) -> bool:
        """In evaluation on whole samples."""
        return not self.training and self._where().ranks == 1

    def _plain(self, x: Tensor) -> tuple[Optional[Tensor], ...]:
        """Running mean and variance, weight and bias as torch's operators take them beside x."""
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        given = (getattr(self, name) for name in ("running_mean", "running_var", "weight", "bias"))
        return tuple(None if tensor is None else tensor.to(dtype) for tensor in given)

    def _then(self, y: Tensor, residual: Optional[Tensor]) -> Tensor:
        """What follows the normalization, by torch's operators."""
        return activated(y if residual is None else y + residual, self.activation)

    def _call(
        self,
        x: Tensor,
        parameters: Parameters,
        *,
        state: State = State(),
        residual: Optional[Tensor] = None,
        conv: tuple[Optional[Tensor], ...] = (None, None),
        order: Callable[[Tensor], Tensor] = ordered,
    ) -> tuple[Tensor, Tensor]:
        """y and frame of a call on these statistics of the input."""
        where = self._where()
        compiling = torch.compiler.is_compiling()
        if not compiling and where.ranks == 1 and residual is None and conv[0] is None and not _replay.active.stack:
            self._check_input(x)
            try:
                return alone(self._layer(x.dtype), self.name, order(x), parameters, state)
            except NotImplementedError:  # on a device that the operators do not know
                _ops.expect_device(x, None, *parameters, None, None, *state)
                raise
        groups, meet = (self._channels(), not self._met) if self._of_channels else (0, True)
        try:
            self._check_input(x)
            _ops.expect_device(x, residual, *parameters, *conv, *state)
            layer, x = self._layer(x.dtype), order(x)
            if residual is not None:
                residual = ordered_as(residual, x)
            if conv[0] is not None:
                conv = (ordered_as(conv[0].to(x.dtype), x), conv[1])
        except Exception as error:  # peers wait, whatever it is
            if where.ranks == 1 or (not compiling and _replay.replays()):
                raise
            return declined(error, x, self._text[1], self.name, groups, where, meet)
        if where.ranks > 1:
            layer += ":sync=world"
        made = normalized(
            layer,
            self.name,
            x,
            parameters,
            state=state,
            residual=residual,
            conv=conv,
            where=where,
            groups=groups,
            meet=meet,
        )
        if not self._met:
            self._met = True
        return made

