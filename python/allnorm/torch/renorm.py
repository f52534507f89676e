"""Options of Batch Renormalization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

Bound = Union[float, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class RenormOptions:
    """Batch Renormalization (Ioffe 2017): r is clipped to [1/r_max, r_max], d to [-d_max, d_max].

    r_max, d_max: numbers, or schedules: pairs (call, number) in ascending order, linear between them and constant before the
        first and after the last; `call` counts the training calls before. The paper's: r_max=((5000, 1), (40000, 3)),
        d_max=((5000, 0), (25000, 5)).
    variant: what the running statistics follow: "var", the variance as in torch's layers, or "paper", the deviation
        sqrt(var + eps), in a buffer `running_std` in place of `running_var`.
    """

    r_max: Bound = 3
    d_max: Bound = 5
    variant: str = "var"

    def attributes(self) -> dict[str, Any]:
        """The catalogue's."""

        def text(bound: Bound) -> Any:
            if isinstance(bound, (int, float)):
                return bound
            return ",".join(f"{float(value)!r}@{call}" for call, value in bound)

        return {"renorm": True, "variant": self.variant, "r_max": text(self.r_max), "d_max": text(self.d_max)}

    def bounds(self, call: int) -> tuple[float, float]:
        """r_max and d_max after so many training calls."""
        return _bound_at(self.r_max, call), _bound_at(self.d_max, call)

    @property
    def has_schedule(self) -> bool:
        """A bound depends on the number of calls."""
        return not all(isinstance(bound, (int, float)) for bound in (self.r_max, self.d_max))


def _bound_at(bound: Bound, call: int) -> float:
    if isinstance(bound, (int, float)):
        return bound
    before = [point for point in bound if point[0] <= call]
    if not before:
        return bound[0][1]
    if len(before) == len(bound):
        return bound[-1][1]
    (first, low), (last, high) = before[-1], bound[len(before)]
    return low + (high - low) * (call - first) / (last - first)
