"""Ranks of torch.distributed on one machine, for tests."""

from __future__ import annotations

import datetime
import multiprocessing
import multiprocessing.connection
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def _send(pipe: Any, failed: bool, value: Any) -> None:
    try:
        pipe.send_bytes(pickle.dumps((failed, value)))
    except Exception as error:  # pylint: disable=broad-exception-caught  # what cannot be pickled
        pipe.send_bytes(pickle.dumps((True, RuntimeError(f"{type(value).__name__}: {value} ({error})"))))


def _work(rank: int, ranks: int, store: str, timeout: float, pipe: Any, function: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=ranks,
            timeout=datetime.timedelta(seconds=timeout),
        )
        _send(pipe, False, function(rank, *arguments))
        dist.barrier()  # who leaves early would be an error to the others
        dist.destroy_process_group()
    except BaseException as error:  # pylint: disable=broad-exception-caught
        error.add_note(f"rank {rank}:\n{traceback.format_exc()}") if hasattr(error, "add_note") else None
        _send(pipe, True, error)
    finally:
        pipe.close()
        sys.stdout.flush()
        os._exit(0)  # a copy of the parent has nothing of its own to tidy up


def emulate(
    function: Callable[..., Any], ranks: int = 4, *arguments: Any, timeout: float = 60, method: str = "fork"
) -> list[Any]:
    """Calls function(rank, *arguments) in as many processes, which share a gloo group and run one thread each, and returns
    what it returned, by rank; results are pickled. Raises the first error that a rank had.

    Processes are forked, so that `function` may be any function. Where this one has threads of autograd, as after using a
    GPU or torch.compile, torch refuses the backward pass of a fork: `method` "spawn" starts processes anew, and `function`
    and arguments must be ones that can be pickled."""
    context = multiprocessing.get_context(method)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = {}, []
        for rank in range(ranks):
            receiver, sender = context.Pipe(duplex=False)
            job = (rank, ranks, os.path.join(folder, "store"), timeout, sender, function, arguments)
            process = context.Process(target=_work, args=job, daemon=True)  # type: ignore[attr-defined]
            process.start()
            sender.close()
            pipes[receiver] = rank
            processes.append(process)
        results: list[Any] = [None] * ranks
        try:
            while pipes:
                for pipe in multiprocessing.connection.wait(list(pipes)):
                    rank = pipes.pop(pipe)  # type: ignore[arg-type]
                    try:
                        failed, value = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                    except EOFError:
                        failed, value = True, RuntimeError(f"rank {rank} ended without a word")
                    if failed:
                        raise value
                    results[rank] = value
        finally:
            for process in processes:
                process.join(0 if pipes else timeout)
                process.kill()
    return results
