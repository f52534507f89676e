"""Over which ranks a layer's statistics are: process groups of torch.distributed by what `sync` says."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, Optional, Union

import torch
import torch.distributed as dist


class Place(NamedTuple):
    """This rank's place in a group, whose name torch's functional collectives take."""

    rank: int
    ranks: int
    group: str


ALONE = Place(0, 1, "")


class Shared:
    """A process group that copies of a layer share."""

    def __init__(self, group: Any) -> None:
        self.group, self.age = group, age()

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self

    def __reduce__(self) -> Any:
        raise ValueError(
            "sync of a layer is a process group, which no other process has; must be None, 'world' or a number"
        )


Sync = Union[None, str, int, Shared]
_groups_of: dict[int, Any] = {}  # this rank's, by their size
_world: Any = None
_age = 0
_warned = False


def is_new_world() -> bool:
    """There is another default process group than age() has seen last."""
    return (dist.group.WORLD if dist.is_available() else None) is not _world


def age() -> int:
    """Which default process group this is of those that the process has had. Places are of one; a world that is made anew
    has the old one's name."""
    global _world, _age
    if is_new_world():
        _world = dist.group.WORLD
        _age += 1
        _groups_of.clear()
    return _age


def parse(sync: Any) -> Sync:
    """What a layer keeps of its argument `sync`: None, "world", a number of ranks, a ProcessGroup or (DeviceMesh, dim)."""
    if sync is None or sync == "world" or isinstance(sync, Shared):
        return sync  # type: ignore[no-any-return]
    if dist.is_available() and sync is dist.GroupMember.NON_GROUP_MEMBER:  # what new_group() gives to others
        raise ValueError("sync is a process group without this rank, must be one that has it")
    if isinstance(sync, int) and not isinstance(sync, bool) and sync >= 1:
        return None if sync == 1 else sync
    if isinstance(sync, tuple) and len(sync) == 2 and hasattr(sync[0], "get_group"):
        return Shared(sync[0].get_group(sync[1]))
    if dist.is_available() and isinstance(sync, dist.ProcessGroup):
        return Shared(sync)
    raise ValueError(
        f"sync is {sync!r}, must be None, 'world', a number of ranks of at least 1, a ProcessGroup or (DeviceMesh, dim)"
    )


def _of_size(ranks: int) -> Any:
    """This rank's group of that many consecutive ranks of the world; the last one has what is left. All ranks make all
    groups, as torch.distributed wants it."""
    if ranks not in _groups_of:
        size, own = dist.get_world_size(), dist.get_rank()
        for first in range(0, size, ranks):
            members = list(range(first, min(first + ranks, size)))
            group = dist.new_group(members)
            if own in members:
                _groups_of[ranks] = group
    return _groups_of[ranks]


def place(sync: Sync) -> Optional[Place]:
    """This rank's place; None as long as there is no default process group to ask."""
    if sync is None:
        return ALONE
    if isinstance(sync, Shared):
        if sync.age != age():
            raise ValueError("sync is a process group of a world that was destroyed, must be one of the present world")
        group = sync.group
    elif not (dist.is_available() and dist.is_initialized()):
        return None
    else:
        group = _of_size(sync) if isinstance(sync, int) else dist.group.WORLD
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("sync is a process group without this rank, must be one that has it")
    return Place(rank, ranks, group.group_name) if ranks > 1 else ALONE


def warn_alone(name: str) -> None:
    """Once in a process."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"{name} is to share its statistics with other ranks, but torch.distributed.init_process_group was not "
            "called: this rank is alone",
            stacklevel=2,
        )


def gathered(record: torch.Tensor, where: Place) -> torch.Tensor:
    """The records (ranks, bytes) of all ranks of the group, whose own are equally long."""
    if where.ranks == 1:
        return record.view(1, -1)
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_gather_into_tensor(record, where.ranks, where.group)).view(where.ranks, -1)  # type: ignore[no-any-return]
