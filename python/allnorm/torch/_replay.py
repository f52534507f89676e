"""Activation checkpointing: what a layer does when torch.utils.checkpoint computes a segment again."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Optional

import torch


class _Tape:
    """The frames of the calls within one checkpointed segment, in their order."""

    def __init__(self) -> None:
        self.frames: list[torch.Tensor] = []


class Context:
    """Within it, calls leave their frames on the tape, or take them from it."""

    def __init__(self, tape: _Tape, replays: bool) -> None:
        self.tape, self.replays, self.next = tape, replays, 0

    def __enter__(self) -> None:
        self.next = 0
        if not self.replays:
            self.tape.frames.clear()
        active.stack = [*active.stack, self]

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        active.stack = active.stack[:-1]

    def frame(self) -> Optional[torch.Tensor]:
        """The frame of the call that is made again; None where calls are made for the first time."""
        if not self.replays:
            return None
        self.next += 1
        if self.next > len(self.tape.frames):
            raise ValueError(
                f"a checkpointed segment makes call {self.next} of normalization layers when it is computed again, "
                f"must make {len(self.tape.frames)} as before"
            )
        return self.tape.frames[self.next - 1]

    def keep(self, frame: torch.Tensor) -> None:
        if not self.replays:
            self.tape.frames.append(frame.detach())


class _Active(threading.local):
    stack: list[Context] = []  # of this thread; a list is never changed


active = _Active()


def current() -> Optional[Context]:
    stack = active.stack
    return stack[-1] if stack else None


def replays() -> bool:
    """Calls are made again, and exchange nothing."""
    context = current()
    return context is not None and context.replays


def checkpoint_context() -> tuple[Context, Context]:
    """For torch.utils.checkpoint.checkpoint(..., use_reentrant=False, context_fn=checkpoint_context): when the segment
    is computed again, layers of this package use the statistics of the first time. They exchange nothing and change no
    state."""
    tape = _Tape()
    return Context(tape, False), Context(tape, True)
