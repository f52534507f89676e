#!/usr/bin/env python3
"""torch.compile'd normalization layers on a GPU, timed as bench_gpu_vs_torch times its subjects, for the same table.

    bench_gpu_vs_torch --list | gpu_compiled.py [--samples N] [--seed N] [--json FILE] [--device cpu]

Reads a case a line ("batch_norm (32,256,56,56) bf16 NHWC"), each compiled for its shape. Rows go to standard output, and to
FILE, one JSON object a line, with the fields of bench_gpu_vs_torch --json. Exit status 1 where a result is wrong. With
--device cpu nothing is replayed: it tries the program, and its times say nothing.
"""

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch._functorch.config
import torch.nn.functional as F

EPS, MOMENTUM, GROUPS = 1e-5, 0.1, 32  # as in gpu_subjects.hpp
Call = Callable[[int], None]


class Case:
    """A line of --list."""

    def __init__(self, line: str) -> None:
        match = re.fullmatch(r"(batch|layer|rms|group)_norm \(([0-9,]+)\) (f32|bf16) (NCHW|NHWC|rows)", line.strip())
        if match is None:
            raise ValueError(f"{line.strip()!r} is no case, must be a line of bench_gpu_vs_torch --list")
        self.layer, self.dtype_name, self.order = f"{match[1]}_norm", match[3], match[4]
        self.shape = [int(extent) for extent in match[2].split(",")]
        self.dtype = torch.float32 if self.dtype_name == "f32" else torch.bfloat16
        self.bytes = math.prod(self.shape) * self.dtype.itemsize
        over = {"batch_norm": self.shape[1], "group_norm": self.shape[0] * GROUPS}.get(self.layer, self.shape[0])
        self.values = math.prod(self.shape) // over  # that share a mean

    def function(self, like: torch.Tensor) -> Callable[..., torch.Tensor]:
        """The layer in training, of x, weight and bias; running statistics, where it has them, in the type of `like`."""
        if self.layer == "batch_norm":
            mean, var = torch.zeros_like(like), torch.ones_like(like)
            return lambda x, w, b: F.batch_norm(x, mean, var, w, b, True, MOMENTUM, EPS)
        if self.layer == "layer_norm":
            return lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS)
        if self.layer == "rms_norm":
            return lambda x, w, b: F.rms_norm(x, w.shape, w, EPS)
        return lambda x, w, b: F.group_norm(x, GROUPS, w, b, EPS)


class Step:
    """A training step's halves on several sets of data; a set's y and gradients stay until its next call."""

    def __init__(self, case: Case, x: list[torch.Tensor], dy: list[torch.Tensor], weight: torch.Tensor,
                 bias: torch.Tensor, compiled: bool) -> None:
        function = case.function(weight.detach())
        self.layer = torch.compile(function, dynamic=False) if compiled else function
        self.x = [each.detach().requires_grad_() for each in x]
        self.dy = dy
        # batch_norm's parameters are f32, those of the others in the type of the data, as in a model converted to it
        own = weight.dtype if case.layer == "batch_norm" else x[0].dtype
        self.parameters = [each.detach().to(own).requires_grad_() for each in (weight, bias)]
        self.wanted = self.parameters[:1] if case.layer == "rms_norm" else self.parameters
        self.y: list[torch.Tensor] = [torch.empty(0)] * len(x)
        self.gradients: list[tuple[torch.Tensor, ...]] = [()] * len(x)

    def forward(self, i: int) -> None:
        self.y[i] = self.layer(self.x[i], *self.parameters)

    def backward(self, i: int) -> None:
        self.gradients[i] = torch.autograd.grad(self.y[i], [self.x[i], *self.wanted], self.dy[i], retain_graph=True)


class Gpu:
    """Microseconds of calls on a stream of its own: the default stream cannot be captured."""

    modes = ("eager", "graph")

    def __init__(self, samples: int) -> None:
        self.samples, self.stream = samples, torch.cuda.Stream()
        torch.cuda.set_stream(self.stream)
        self.cache = torch.cuda.get_device_properties(0).L2_cache_size

    def events(self, work: Call) -> float:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.samples)]
        for i, (start, end) in enumerate(pairs):
            start.record(self.stream)
            work(i)
            end.record(self.stream)
        self.stream.synchronize()
        return 1e3 * statistics.median(start.elapsed_time(end) for start, end in pairs)

    def time(self, mode: str, call: Call, sets: int) -> float:
        for i in range(sets + (10 if mode == "eager" else 0)):
            call(i % sets)
        if mode == "eager":
            return self.events(lambda i: call(i % sets))
        calls = (sets + 9) // sets * sets  # one per set, at least ten
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            for i in range(calls):
                call(i % sets)
        for _ in range(3):
            graph.replay()
        return self.events(lambda i: graph.replay()) / calls


class Cpu:
    modes = ("eager",)
    cache = 0

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def time(self, mode: str, call: Call, sets: int) -> float:
        times = []
        for i in range(self.samples):
            start = time.perf_counter()
            call(i % sets)
            times.append(time.perf_counter() - start)
        return 1e6 * statistics.median(times)


def laid_out(tensor: torch.Tensor, case: Case) -> torch.Tensor:
    last = case.order == "NHWC"
    return tensor.to(case.dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def tolerance(reference: torch.Tensor, case: Case) -> float:
    """Three roundings to the type of the data, and f32 sums before that: what bench_gpu_vs_torch allows torch."""
    unit = 2.0**-8 if case.dtype == torch.bfloat16 else 2.0**-24
    return (3 * unit + 2.0**-24 * math.sqrt(case.values)) * reference.abs().max().item()


def compare(case: Case, device: str, clock: Gpu | Cpu) -> list[dict[str, object]]:
    """The case's rows, as objects of --json."""
    def normal(shape: list[int]) -> torch.Tensor:
        return torch.randn(shape, device=device)
    sets = 2 * clock.cache // case.bytes + 1  # input and output of a round fill the L2 cache four times
    x = [laid_out(2 * normal(case.shape) + 0.5, case) for _ in range(sets)]
    dy = [laid_out(normal(case.shape), case) for _ in range(sets)]
    weight = (1 + 0.1 * normal(case.shape[1:2])).bfloat16().float()  # values that bf16 holds
    bias = (0.1 * normal(case.shape[1:2])).bfloat16().float()
    truth = Step(case, [x[0].double()], [dy[0].double()], weight.double(), bias.double(), False)
    truth.forward(0)
    truth.backward(0)
    copies = x[:]
    def copy(i: int) -> None:
        copies[i] = x[i].clone()
    rate = 2 * case.bytes / clock.time(clock.modes[-1], copy, sets) * 1e6
    copies.clear()
    step = Step(case, x, dy, weight, bias, True)
    rows = []
    for mode in clock.modes:
        row: dict[str, object] = {
            "layer": case.layer, "shape": case.shape, "dtype": case.dtype_name, "order": case.order,
            "what": "torch compiled", "mode": mode, "copy_gb_s": rate * 1e-9, "bytes": case.bytes}
        rows.append(row)
        try:
            for i in range(sets):  # backward has a graph of autograd for every set, none of them from a capture
                step.forward(i)
            step.backward(0)
            forward = clock.time(mode, step.forward, sets)
            for i in range(sets):
                step.forward(i)
            backward = clock.time(mode, step.backward, sets)
            for name, result, reference in (("error_y", step.y[0], truth.y[0]),
                                            ("error_dx", step.gradients[0][0], truth.gradients[0][0])):
                row[name] = (result.double() - reference).abs().max().item()
                if not row[name] <= tolerance(reference, case):  # NaN neither
                    row["failure"] = "wrong result"
            if "failure" not in row:
                row |= {"forward_us": forward, "backward_us": backward}
        except Exception as error:  # the compiler's, or a capture that is not possible: the row says why
            row["failure"] = str(error).strip().split("\n")[0]
            break
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=101)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    try:
        cases = [Case(line) for line in sys.stdin if line.strip()]
    except ValueError as error:
        parser.error(str(error))
    torch._functorch.config.donated_buffer = False  # a backward that is timed runs often on one forward
    torch.manual_seed(options.seed)
    torch.set_default_device(options.device)
    clock = Gpu(options.samples) if options.device == "cuda" else Cpu(options.samples)
    wrong = False
    for case in cases:
        torch.compiler.reset()
        for row in compare(case, options.device, clock):
            wrong = wrong or row.get("failure") == "wrong result"
            text = row.get("failure") or f"{row['forward_us']:.2f} | {row['backward_us']:.2f}"
            shape = ",".join(map(str, case.shape))
            print(f"| {case.layer} | ({shape}) | {case.dtype_name} | {case.order} | torch compiled | {row['mode']} | {text} |", flush=True)
            if options.json:
                with open(options.json, "a", encoding="utf-8") as file:
                    print(json.dumps(row), file=file)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
