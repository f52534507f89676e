"""One call of a layer: two operators with the exchange between them, in each direction.

forward    forward_local ─▶ all_gather ─▶ forward_finish ─▶ y, frame
backward   backward_local ─▶ all_gather ─▶ backward_finish ─▶ dx
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from allnorm._library import Error
from allnorm.torch import _ops, _replay
from allnorm.torch._error import call, raise_translated
from allnorm.torch._groups import ALONE, Place, gathered


class State(NamedTuple):
    """What a layer keeps from call to call, which a training call changes in place."""

    past: Optional[Tensor] = None  # window, open batch and their counters, as the core lays them out
    mean: Optional[Tensor] = None
    var: Optional[Tensor] = None
    tracked: Optional[Tensor] = None


class Parameters(NamedTuple):
    """What a layer learns."""

    weight: Optional[Tensor] = None
    bias: Optional[Tensor] = None
    tau: Optional[Tensor] = None
    eps_learned: Optional[Tensor] = None


def ordered(x: Tensor) -> Tensor:
    """x, dense, its channels first or last in memory as they are."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    if x.dim() > 2 and x.stride(1) == 1:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def ordered_as(x: Tensor, other: Tensor) -> Tensor:
    """x, dense, in the order of `other`."""
    if other.is_contiguous() or x.dim() != other.dim():
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def exchanged(record: Tensor, where: Place, name: str, direction: int, tracked: Optional[Tensor] = None) -> Tensor:
    """gathered(), whose failure is an Error that says in which call: a rank that has left or does not come is the process
    group's to tell, after its timeout."""
    if torch.compiler.is_compiling():
        return gathered(record, where)
    try:
        return gathered(record, where)
    except RuntimeError as error:
        number = "" if tracked is None else f", call {int(tracked)}"
        what = f"{name}{number}, {'backward' if direction else 'forward'}"
        code = "timeout" if "timed out" in str(error).lower() else "transport"
        why = str(error).split("\n", 1)[0]
        raise Error(code, f"{what}: not all {where.ranks} ranks of the group have answered: {why}", layer=name) from error


def declined(
    error: Exception,
    x: Any,
    layer: str,
    name: str,
    groups: int,
    where: Place,
    meet: bool,
    direction: int = 0,
) -> tuple[Tensor, Tensor]:
    """Raises `error`, when the ranks that wait for this one's record know of it. `direction`: 0 forward, 1 backward.
    Within torch.compile the graph raises it, and tensors stand for what it would return."""
    like = x if isinstance(x, Tensor) and x.device.type == "cpu" else torch.empty(0)
    why = str(error.args[0]) if error.args else type(error).__name__
    record = _ops.decline(like, direction, groups, why.split("\n", 1)[0], layer, name, where.rank, where.ranks)
    heads = exchanged(record[: _ops.HEAD] if meet else record, where, name, direction)
    if torch.compiler.is_compiling():
        _ops.check_heads(heads, layer, name, where.rank)
        return torch.empty_like(x), torch.empty(0, dtype=torch.float64)
    try:
        call(_ops.check_heads, heads, layer, name, where.rank)
    except Error:  # that this rank has declined
        pass
    raise error


def _first_half(
    half: Any, given: tuple[Any, ...], x: Tensor, groups: int, where: Place, meet: bool, direction: int
) -> Any:
    """half(*given). An operator tells in its record what is wrong; for what keeps torch from calling it, that is done
    here."""
    if torch.compiler.is_compiling():
        return half(*given)
    try:
        return call(half, *given)
    except Exception as error:
        layer, name = given[-4:-2]
        return declined(error, x, layer, name, groups, where, meet, direction)


def _check_heads(heads: Tensor, layer_name: tuple[str, str], rank: int) -> None:
    """Raises what the ranks' heads say; what this rank has declined is a ValueError here, as at any later call."""
    if torch.compiler.is_compiling():
        _ops.check_heads(heads, *layer_name, rank)
        return
    try:
        call(_ops.check_heads, heads, *layer_name, rank)
    except Error as error:
        own = f"rank {rank} failed: "
        if error.code == "aborted" and str(error).startswith(own):
            raise ValueError(str(error).removeprefix(own)) from None
        raise


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(  # pylint: disable=arguments-differ,too-many-arguments
        ctx: Any,
        x: Tensor,
        residual: Optional[Tensor],
        weight: Optional[Tensor],
        bias: Optional[Tensor],
        tau: Optional[Tensor],
        eps_learned: Optional[Tensor],
        conv_input: Optional[Tensor],
        conv_weight: Optional[Tensor],
        past: Optional[Tensor],
        mean: Optional[Tensor],
        var: Optional[Tensor],
        tracked: Optional[Tensor],
        earlier: Optional[Tensor],
        layer: str,
        name: str,
        rank: int,
        ranks: int,
        group: str,
        groups: int,
        meet: bool,
    ) -> tuple[Tensor, Tensor]:
        where, layer_name = Place(rank, ranks, group), (layer, name)
        affine = (weight, bias, tau, eps_learned)
        inputs = (x, residual, *affine, conv_input, conv_weight, past, mean, var, tracked)
        if earlier is not None:
            y, mask = call(_ops.replay, x, residual, *affine, earlier, *layer_name)
            frame = earlier.clone()
        elif ranks == 1:
            y, frame, mask = call(_ops.forward, *inputs, *layer_name)
        else:
            record = _first_half(_ops.forward_local, (*inputs, *layer_name, rank, ranks), x, groups, where, meet, 0)
            if meet:  # before records are exchanged, whose lengths may be unequal
                _check_heads(exchanged(record[: _ops.HEAD], where, name, 0, tracked), layer_name, rank)
            records = exchanged(record, where, name, 0, tracked)
            y, frame, mask = call(_ops.forward_finish, *inputs, records, *layer_name, rank, ranks)
        ctx.save_for_backward(x, *affine, frame, mask)
        ctx.layer_name, ctx.where, ctx.shape = layer_name, where, x.shape
        ctx.mark_non_differentiable(frame)
        return y, frame

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> Any:  # pylint: disable=arguments-differ
        wanted, where = list(ctx.needs_input_grad[:6]), ctx.where
        try:
            x, *rest = ctx.saved_tensors
        except RuntimeError as error:  # one was written to since
            if where.ranks > 1:
                layer, name = ctx.layer_name
                declined(error, dy, layer, name, _ops.groups(layer, ctx.shape), where, False, 1)
            raise
        given = (ordered_as(dy, x), x, *rest)
        if where.ranks == 1:
            gradients = call(_ops.backward, *given, wanted, *ctx.layer_name)
        else:
            place = (*ctx.layer_name, where.rank, where.ranks)
            groups = _ops.groups(ctx.layer_name[0], ctx.shape)
            made = _first_half(_ops.backward_local, (*given, wanted, *place), x, groups, where, False, 1)
            record, *of_parameters = made
            records = exchanged(record, where, ctx.layer_name[1], 1)
            of_inputs = call(_ops.backward_finish, *given, records, wanted, *place)
            gradients = (*of_inputs, *of_parameters)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph
            gradients = _Once.apply(ctx.layer_name[1], dy, x, *gradients)  # type: ignore[no-untyped-call]
        return (*gradients, *[None] * 14)


class _LoneCall(NamedTuple):
    """What _Alone takes beside tensors with gradients, and gives beside y."""

    state: State
    layer: str
    name: str
    frames: list[Tensor]


class _Alone(torch.autograd.Function):
    """A call of one rank without residual and convolution, outside of torch.compile. What a small input costs is Python's
    time for the most part, so that this has no argument and no saved tensor more than it must."""

    @staticmethod
    def forward(  # pylint: disable=arguments-differ
        ctx: Any,
        x: Tensor,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
        tau: Optional[Tensor],
        eps_learned: Optional[Tensor],
        lone: _LoneCall,
    ) -> Tensor:
        state, layer, name, frames = lone
        try:
            y, frame, _ = _ops.forward_now(x, None, weight, bias, tau, eps_learned, None, None, *state, layer, name)
        except RuntimeError as error:
            raise_translated(error)
        ctx.save_for_backward(x, weight, bias, tau, eps_learned, frame)
        ctx.layer_name = layer, name
        frames.append(frame)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pylint: disable=arguments-differ
        x, *rest = ctx.saved_tensors
        want_x, *wanted, _ = ctx.needs_input_grad
        if dy.stride() != x.stride():
            dy = ordered_as(dy, x)
        try:
            dx, _, *made = _ops.backward_now(dy, x, *rest, _NO_MASK, [want_x, False, *wanted], *ctx.layer_name)
        except RuntimeError as error:
            raise_translated(error)
        if torch.is_grad_enabled():  # create_graph
            dx, *made = _Once.apply(ctx.layer_name[1], dy, x, dx, *made)  # type: ignore[no-untyped-call]
        return (dx, *made, None)


_NO_MASK = torch.empty(0, dtype=torch.uint8, device="cpu")  # of calls without a residual


def alone(layer: str, name: str, x: Tensor, parameters: Parameters, state: State) -> tuple[Tensor, Tensor]:
    """y and frame of a call of a lone rank on `x`, which is ordered()."""
    lone = _LoneCall(state, layer, name, [])
    y = _Alone.apply(x, *parameters, lone)  # type: ignore[no-untyped-call]
    return y, lone.frames[0]


class _Once(torch.autograd.Function):
    """Gradients as they are, whose own gradients are refused."""

    @staticmethod
    def forward(  # pylint: disable=arguments-differ
        ctx: Any, name: str, dy: Tensor, x: Tensor, *gradients: Optional[Tensor]
    ) -> tuple[Optional[Tensor], ...]:
        ctx.name = name
        return tuple(None if gradient is None else gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise Error(
            "unsupported",
            f"{ctx.name}: the gradient of a gradient is asked for, must be the first alone",
            layer=ctx.name,
        )


def normalized(
    layer: str,
    name: str,
    x: Tensor,
    parameters: Parameters,
    *,
    state: State = State(),
    residual: Optional[Tensor] = None,
    conv: tuple[Optional[Tensor], ...] = (None, None),
    where: Place = ALONE,
    groups: int = 0,
    meet: bool = False,
) -> tuple[Tensor, Tensor]:
    """y and frame of a call of a layer on `x`, which is ordered(), as are others of its order. `meet`: lengths of the
    ranks' records may differ, which are otherwise those of `groups`."""
    context = None if torch.compiler.is_compiling() else _replay.current()
    earlier = None if context is None else context.frame()
    y, frame = _Call.apply(x, residual, *parameters, *conv, *state, earlier, layer, name, *where, groups, meet)  # type: ignore[no-untyped-call]
    if context is not None:
        context.keep(frame)
    return y, frame
