"""What torch's operators raise, as the exceptions of this package."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

import torch

from allnorm._library import CODES, USAGE, Error

P = ParamSpec("P")
T = TypeVar("T")

# How the text of an operator of allnorm that failed ends, and what it says of the place.
_TEXT = re.compile(r"^(?P<message>.*) \[allnorm: code=(?P<code>\d+) layer=(?P<layer>.*)\]", re.MULTILINE)
_RANK = re.compile(r"^rank (\d+)\b")
_FIELD = re.compile(r"(?:^|: |; )([\w ]+?) is [^;]*, must be ")


def translated(error: RuntimeError) -> Exception:
    """ValueError where the call itself is wrong, Error with code, rank, field and layer for the rest of what allnorm's
    operators say, and the error itself where it is not theirs."""
    found = _TEXT.search(str(error))
    if found is None:
        return error
    message, code = found["message"], CODES[int(found["code"])]
    if code in USAGE:
        return ValueError(message)
    rank, field = _RANK.search(message), _FIELD.search(message)
    return Error(
        code, message, rank=int(rank[1]) if rank else None, field=field and field[1], layer=found["layer"] or None
    )


def raise_translated(error: RuntimeError) -> NoReturn:
    """Within the handler of what an operator raised."""
    told = translated(error)
    if told is error:
        raise error
    raise told from None


def call(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """function(...), its errors translated; within torch.compile, which has no such blocks in its graphs, as they are."""
    if torch.compiler.is_compiling():
        return function(*arguments, **named)
    try:
        return function(*arguments, **named)
    except RuntimeError as error:
        raise_translated(error)
