#!/usr/bin/env python3
"""Trains a small network on the digits under DistributedDataParallel, few images a rank, once with each normalization:

    torchrun --nproc-per-node 2 examples/train_ddp.py                # on CPUs, over gloo

batch_norm sees its rank's images alone. sync_batch_norm takes those of all ranks, window those of the last four
iterations too. A line for every epoch."""

import argparse
import csv
import gzip
import pathlib
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import allnorm.torch as an

DATA = pathlib.Path(__file__).parent.parent / "data/digits/digits.csv.gz"
NORMS = ("batch_norm", "sync_batch_norm", "window")
TRAINING = 1280  # of the 1797 images; the others are the test


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 1, 8, 8) in 0 to 1, and their labels."""
    with gzip.open(DATA, "rt") as file:
        rows = torch.tensor([[int(value) for value in row] for row in csv.reader(file)])
    return rows[:, :-1].float().view(-1, 1, 8, 8) / 16, rows[:, -1]


def block(inputs: int, outputs: int, norm: str, burn_in: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    if norm == "window":  # the convolution belongs to it: past statistics are moved to its present weights
        return an.ConvBatchNorm2d(conv, window=4, burn_in=burn_in, sync="world", activation="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def network(norm: str, burn_in: int) -> nn.Module:
    model = nn.Sequential(
        block(1, 16, norm, burn_in),
        nn.MaxPool2d(2),
        block(16, 32, norm, burn_in),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    if norm != "window":
        an.convert(model, norm)
    return model


def train(norm: str, options: argparse.Namespace) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(options.seed)
    images, labels = digits()
    steps = TRAINING // (ranks * options.batch)
    model = network(norm, options.epochs * steps // 2)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), options.rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    for epoch in range(1, options.epochs + 1):
        start, losses = time.monotonic(), torch.zeros(())
        order = torch.randperm(TRAINING, generator=torch.Generator().manual_seed(1000 * options.seed + epoch))
        model.train()
        for step in range(steps):
            first = (step * ranks + rank) * options.batch
            own = order[first : first + options.batch]
            optimizer.zero_grad()
            loss = F.cross_entropy(parallel(images[own]), labels[own])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += loss.detach()
        an.average_running_stats(model)  # of batch_norm, whose ranks have statistics of their own
        model.eval()
        with torch.no_grad():
            wrong = (model(images[TRAINING:]).argmax(1) != labels[TRAINING:]).float().mean()
        if rank == 0:
            print(
                f"{norm:16} epoch {epoch:2}  loss {losses.item() / steps:6.3f}  test error {100 * wrong.item():6.2f} %"
                f"  {time.monotonic() - start:5.1f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", nargs="+", choices=NORMS, default=NORMS)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1, help="images a rank and step")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for norm in options.norm:
        train(norm, options)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
