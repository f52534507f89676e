#!/usr/bin/env python3
"""allnorm.torch.SyncBatchNorm on CPUs and torch.nn.SyncBatchNorm on a GPU, two ranks each, against torch in float64.

    gpu_sync.py [--device cpu]

The ranks are processes that share the GPU; each tells NCCL that it is on a host of its own (NCCL_HOSTID). Prints the largest errors
of both. Exit status 1 where one of allnorm's is beyond its tolerance: a rounding to f32, and f32 sums of the samples. With --device cpu
torch's layer, which needs a GPU, is left out.
"""

import argparse
import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

import allnorm.torch as an

RANKS, CHANNELS = 2, 24
NAMES = ("y", "dx", "dweight", "dbias", "running_mean", "running_var")


def step(layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """What NAMES says, of one training call; dweight and dbias are this rank's share."""
    x = x.detach().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)
    return [each.detach().double().cpu() for each in (y, *gradients, layer.running_mean, layer.running_var)]


def reference(rank: int, x: list[torch.Tensor], dy: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same of rank's share, from all ranks' samples at once."""
    begin = sum(len(each) for each in x[:rank])
    own = slice(begin, begin + len(x[rank]))
    whole, gradient = torch.cat(x).double().requires_grad_(), torch.cat(dy).double()
    mean, var = torch.zeros(CHANNELS).double(), torch.ones(CHANNELS).double()
    y = F.batch_norm(whole, mean, var, None, None, True)
    dx = torch.autograd.grad(y, whole, gradient)[0]
    y = y.detach()
    axes = (0, 2, 3)
    return [y[own], dx[own], (gradient * y)[own].sum(axes), gradient[own].sum(axes), mean, var]


def worker(rank: int, meeting: str, device: str) -> None:
    os.environ["NCCL_HOSTID"] = f"rank{rank}"
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    generator = torch.Generator().manual_seed(1)
    shapes = [(4 + r, CHANNELS, 9, 9) for r in range(RANKS)]
    x = [3 + 2 * torch.randn(shape, generator=generator) for shape in shapes]
    dy = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = reference(rank, x, dy)
    layers = {"allnorm": step(an.SyncBatchNorm(CHANNELS), x[rank], dy[rank])}
    if device != "cpu":
        layers["torch"] = step(torch.nn.SyncBatchNorm(CHANNELS).to(device), x[rank].to(device), dy[rank].to(device))
    values = sum(len(each) for each in x) * 81
    bad = False
    for i, name in enumerate(NAMES):
        errors = {who: (results[i] - expected[i]).abs().max().item() for who, results in layers.items()}
        allowed = 2.0**-24 * (1 + values**0.5) * max(1.0, expected[i].abs().max().item())
        bad = bad or not errors["allnorm"] <= allowed
        text = ", ".join(f"{who} {error:.1e}" for who, error in errors.items())
        print(f"rank {rank}, {name}: {text} (allowed {allowed:.1e})", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    if bad:
        sys.exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(worker, (os.path.join(folder, "meeting"), device), RANKS)
        except mp.ProcessExitedException as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
