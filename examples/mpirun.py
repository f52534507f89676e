#!/usr/bin/env python3
"""Batch normalization over the ranks of an MPI job:

    mpirun -n 2 python3 examples/mpirun.py

mpirun starts the processes and tells them who they are. PyTorch from PyPI has no MPI, and neither has the Python package
allnorm: the ranks meet over gloo. What exchanges over MPI itself is the program allnorm, and C++ (examples/training), of a
build by CMake."""

import os

import torch
import torch.distributed as dist

import allnorm.torch as an

# By launcher: names of the number of this process, and of how many there are.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
    ("SLURM_PROCID", "SLURM_NTASKS"),  # srun
)


def init_process_group() -> None:
    """torch's process group from what the launcher says. Where there are several hosts, MASTER_ADDR must name the one of rank
    0 (mpirun -x MASTER_ADDR=...)."""
    for rank, ranks in LAUNCHERS:
        if rank in os.environ:
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ.setdefault("MASTER_PORT", "29512")
            dist.init_process_group("gloo", rank=int(os.environ[rank]), world_size=int(os.environ[ranks]))
            return
    raise SystemExit(f"none of {', '.join(rank for rank, _ in LAUNCHERS)} is set: start this by mpirun or srun")


def main() -> None:
    init_process_group()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    own, whole = an.SyncBatchNorm(3), an.BatchNorm2d(3)
    x = torch.randn(2 * ranks, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # the batch of all ranks
    y = own(x[2 * rank : 2 * rank + 2])
    difference = (y - whole(x)[2 * rank : 2 * rank + 2]).abs().max().item()
    print(f"rank {rank} of {ranks}: differs from the whole batch by {difference:.1e}; {an.check(own)}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
