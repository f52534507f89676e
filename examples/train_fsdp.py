#!/usr/bin/env python3
"""Trains a small network on the digits with its parameters sharded over the ranks (fully_shard, "FSDP2"):

    torchrun --nproc-per-node 2 examples/train_fsdp.py               # on CPUs, over gloo

Batch norms take the statistics of all ranks. In the end rank 0 puts the parameters together and evaluates them in a model of
torch's layers alone. A line for every epoch."""

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import allnorm.torch as an
from train_ddp import TRAINING, digits


def network() -> nn.Sequential:
    def block(inputs: int, outputs: int) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

    return nn.Sequential(block(1, 16), block(16, 32), nn.Flatten(), nn.Linear(128, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="images a rank and step")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    images, labels = digits()

    model = network()
    an.convert(model, "sync_batch_norm")  # before it is sharded
    mesh = init_device_mesh("cpu", (ranks,))
    for block in model[:2]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), options.rate, momentum=0.9)
    steps = TRAINING // (ranks * options.batch)
    for epoch in range(1, options.epochs + 1):
        order, losses = torch.randperm(TRAINING, generator=torch.Generator().manual_seed(epoch)), torch.zeros(())
        for step in range(steps):
            first = (step * ranks + rank) * options.batch
            own = order[first : first + options.batch]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[own]), labels[own])
            loss.backward()
            optimizer.step()
            losses += loss.detach()
        agreement = an.check(model)
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if rank == 0:
            plain = network().eval()
            plain.load_state_dict(whole)
            with torch.no_grad():
                wrong = (plain(images[TRAINING:]).argmax(1) != labels[TRAINING:]).float().mean()
            print(
                f"epoch {epoch:2}  loss {losses.item() / steps:6.3f}  test error {100 * wrong.item():6.2f} %  {agreement}",
                flush=True,
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
