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
from allnorm.torch._error import call
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
    if x.is_contiguous():
        return x
    if x.dim() > 2 and x.stride(1) == 1:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def ordered_as(x: Tensor, other: Tensor) -> Tensor:
    """x, dense, in the order of `other`."""
    if other.is_contiguous():
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


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
            record = call(_ops.forward_local, *inputs, *layer_name, rank, ranks)
            if meet:  # before records are exchanged, whose lengths may be unequal
                heads = gathered(record[: _ops.HEAD], where)
                call(_ops.check_heads, heads, *layer_name, rank)
            y, frame, mask = call(_ops.forward_finish, *inputs, gathered(record, where), *layer_name, rank, ranks)
        ctx.save_for_backward(x, *affine, frame, mask)
        ctx.layer_name, ctx.where = layer_name, where
        ctx.mark_non_differentiable(frame)
        return y, frame

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> Any:  # pylint: disable=arguments-differ
        x, *rest = ctx.saved_tensors
        given = (ordered_as(dy, x), x, *rest)
        wanted, where = list(ctx.needs_input_grad[:6]), ctx.where
        if where.ranks == 1:
            gradients = call(_ops.backward, *given, wanted, *ctx.layer_name)
        else:
            place = (*ctx.layer_name, where.rank, where.ranks)
            record, *of_parameters = call(_ops.backward_local, *given, wanted, *place)
            of_inputs = call(_ops.backward_finish, *given, gathered(record, where), wanted, *place)
            gradients = (*of_inputs, *of_parameters)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph
            gradients = _Once.apply(ctx.layer_name[1], dy, x, *gradients)  # type: ignore[no-untyped-call]
        return (*(gradient if want else None for gradient, want in zip(gradients, wanted)), *[None] * 13)


class _Once(torch.autograd.Function):
    """Gradients as they are, whose own gradients are refused."""

    @staticmethod
    def forward(ctx: Any, name: str, dy: Tensor, x: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:  # pylint: disable=arguments-differ
        ctx.name = name
        return tuple(gradient.view_as(gradient) for gradient in gradients)

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
    meet: bool = False,
) -> tuple[Tensor, Tensor]:
    """y and frame of a training call of a layer on `x`, which is ordered(). `meet`: it is the first one that its ranks
    make together."""
    residual = None if residual is None else ordered_as(residual, x)
    context = None if torch.compiler.is_compiling() else _replay.current()
    earlier = None if context is None else context.frame()
    y, frame = _Call.apply(x, residual, *parameters, *conv, *state, earlier, layer, name, *where, meet)  # type: ignore[no-untyped-call]
    if context is not None:
        context.keep(frame)
    return y, frame
