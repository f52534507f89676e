"""allnorm.torch over ranks: processes of this machine in a gloo group, against one rank on the whole batch."""

import contextlib
import io
import pathlib
import tempfile
import time
import unittest

import torch
import torch.distributed as dist
from torch import nn

import allnorm.torch as an

F64 = torch.float64
UNEVEN = (slice(0, 2), slice(2, 2), slice(2, 7))  # one of three ranks has no sample


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def step(module, x, dy):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    y.backward(dy)
    return y.detach(), x.grad


class Ranks(unittest.TestCase):
    def close(self, found, expected, tolerance=1e-12):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)

    def test_equal_one_rank_with_the_whole_batch(self):
        x, dy = normal(7, 3, 4, 4) * 3 + 1, normal(7, 3, 4, 4, seed=1)

        def work(rank):
            module = an.SyncBatchNorm(3, activation="relu", dtype=F64)
            cut = UNEVEN[rank]
            found = [step(module, x[cut] + call, dy[cut]) for call in range(2)]
            return found, [p.grad for p in module.parameters()], list(module.buffers())

        parts = an.emulate(work, 3)
        whole = an.BatchNorm2d(3, activation="relu", dtype=F64)
        for call in range(2):
            y, dx = step(whole, x + call, dy)
            self.close(torch.cat([found[call][0] for found, _, _ in parts]), y)
            self.close(torch.cat([found[call][1] for found, _, _ in parts]), dx)
        for index, parameter in enumerate(whole.parameters()):
            self.close(sum(of_rank[index] for _, of_rank, _ in parts), parameter.grad)
        for _, _, buffers in parts:
            self.assertTrue(all(torch.equal(own, first) for own, first in zip(buffers, parts[0][2])))
            for own, of_whole in zip(buffers, whole.buffers()):
                self.close(own, of_whole)

    def test_all_options_at_once(self):
        x, dy = normal(6, 3, 4, 4), normal(6, 3, 4, 4, seed=1)
        options = {"window": 3, "minibatches": 2, "renorm": an.RenormOptions(), "dtype": F64}

        def work(rank):
            module, cut = an.BatchNorm2d(3, sync="world", **options), slice(3 * rank, 3 * rank + 3)
            return [step(module, x[cut] * (call + 1) + call, dy[cut]) for call in range(5)], module.running_var

        parts, whole = an.emulate(work, 2), an.BatchNorm2d(3, **options)
        for call in range(5):
            y, dx = step(whole, x * (call + 1) + call, dy)
            self.close(torch.cat([found[call][0] for found, _ in parts]), y, 1e-11)
            self.close(torch.cat([found[call][1] for found, _ in parts]), dx, 1e-11)
        for _, var in parts:
            self.close(var, whole.running_var, 1e-11)

    def test_groups(self):
        x = normal(4, 3, 4, 4)

        def work(rank):
            of_two = an.BatchNorm2d(3, sync=2, dtype=F64)
            evens = dist.new_group([0, 2])
            given = an.SyncBatchNorm(3, process_group=evens, dtype=F64) if rank % 2 == 0 else None
            own = x[rank : rank + 1]
            with_missing = None
            if rank == 1:
                try:
                    an.SyncBatchNorm(3, process_group=evens)
                except ValueError as error:
                    with_missing = str(error)
            return of_two(own), given(own) if given else None, with_missing

        parts = an.emulate(work, 3)
        one = lambda cut: an.BatchNorm2d(3, dtype=F64)(x[cut])  # noqa: E731
        self.close(torch.cat([parts[0][0], parts[1][0]]), one(slice(0, 2)))
        self.close(parts[2][0], one(slice(2, 3)))  # the last group has what is left
        self.close(torch.cat([parts[0][1], parts[2][1]]), one([0, 2]))
        self.assertIn("without this rank", parts[1][2])

    def test_a_difference_is_named_on_all_ranks_at_once(self):
        def work(rank, options):
            module = an.SyncBatchNorm(**{name: values[rank] for name, values in options.items()}, name="stem")
            start = time.monotonic()
            try:
                module(torch.ones(2, module.num_features, 4, 4))
            except an.Error as error:
                return error.code, error.rank, error.field, error.layer, str(error), time.monotonic() - start
            return None

        for field, options in (
            ("eps", {"num_features": (3, 3), "eps": (1e-5, 1e-3)}),
            ("number of channels", {"num_features": (3, 4)}),
            ("window", {"num_features": (3, 3), "window": (1, 2)}),
        ):
            with self.subTest(field):
                for told in an.emulate(work, 2, options):
                    self.assertIsNotNone(told)
                    self.assertEqual(told[:4], ("mismatch", 1, field, "stem"), told)
                    self.assertLess(told[5], 5)

    def test_a_rank_whose_input_is_wrong_is_named(self):
        def work(rank):
            module = an.SyncBatchNorm(3, name="stem")
            module(torch.ones(2, 3, 4, 4))
            try:
                module(torch.ones(2, 3 + rank, 4, 4))
            except (an.Error, ValueError) as error:
                told = type(error).__name__, str(error)
            module(torch.ones(2, 3, 4, 4))  # the group goes on
            return told

        first, second = an.emulate(work, 2)
        self.assertIn("rank 1", first[1])
        self.assertEqual(first[0], "Error")
        self.assertIn("3", second[1])

    def test_under_torch_compile(self):
        x, dy = normal(4, 3, 4, 4), normal(4, 3, 4, 4, seed=1)

        def work(rank):
            found = []
            for backend in (None, "aot_eager"):
                module = an.SyncBatchNorm(3, dtype=F64)
                function = module if backend is None else torch.compile(module, backend=backend, fullgraph=True)
                cut = slice(2 * rank, 2 * rank + 2)
                found.append([step(function, x[cut] + call, dy[cut]) for call in range(2)] + [module.running_var])
            return found

        for plain, compiled in an.emulate(work, 2):
            for one, other in zip(plain, compiled):
                torch.testing.assert_close(one, other, rtol=0, atol=0)

    def test_under_distributed_data_parallel(self):
        x = normal(4, 2, 6, 6, dtype=torch.float32)

        def make():
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)
            )

        def work(rank):
            model = make()
            an.convert(model, "sync_batch_norm", window=2)
            parallel = nn.parallel.DistributedDataParallel(model)
            optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
            for _ in range(3):
                optimizer.zero_grad()
                parallel(x[2 * rank : 2 * rank + 2]).square().mean().backward()
                optimizer.step()
            return model.state_dict()

        parts, whole = an.emulate(work, 2), make()
        an.convert(whole, "batch_norm", window=2)
        optimizer = torch.optim.SGD(whole.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            whole(x).square().mean().backward()
            optimizer.step()
        for state in parts:
            for name, value in whole.state_dict().items():
                if name.endswith("allnorm_past"):
                    continue
                self.close(state[name], value, 1e-5)

    def test_windows_of_ranks_stay_their_own_under_ddp(self):
        def work(rank):
            model = nn.Sequential(an.BatchNorm2d(3, window=2, dtype=F64))
            parallel = nn.parallel.DistributedDataParallel(model)
            xs = [normal(2, 3, 4, 4, seed=10 * rank + call) for call in range(2)]
            for x in xs:
                parallel(x)
            return model[0].statistics().mean - torch.cat(xs).mean((0, 2, 3))

        for difference in an.emulate(work, 2):
            self.close(difference, torch.zeros(3, dtype=F64))

    def test_checkpointing_exchanges_nothing_again(self):
        def work(rank):
            module = an.SyncBatchNorm(3, dtype=F64)
            x = normal(2, 3, 4, 4, seed=rank).requires_grad_()
            y = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False, context_fn=an.checkpoint_context)
            y.square().sum().backward()
            return int(module.num_batches_tracked), x.grad

        for rank, (calls, dx) in enumerate(an.emulate(work, 2)):
            self.assertEqual(calls, 1)
            x = torch.cat([normal(2, 3, 4, 4, seed=r) for r in range(2)]).requires_grad_()
            an.BatchNorm2d(3, dtype=F64)(x).square().sum().backward()
            self.close(dx, x.grad[2 * rank : 2 * rank + 2])

    def test_agreement(self):
        def work(rank):
            model = nn.Sequential(an.BatchNorm2d(3), nn.BatchNorm2d(3))
            same = an.check(model)
            model[0].eps = 1e-5 * (rank + 1)
            model[1].running_mean += rank
            return bool(same), str(same), str(an.check(model))

        for same, text, different in an.emulate(work, 2):
            self.assertTrue(same)
            self.assertEqual(text, "2 layers are the same on 2 ranks")
            self.assertRegex(different, "rank 1: 0: eps is 2e-05, must be 1e-05 as on rank 0")
            self.assertRegex(different, "rank 1: 1: hash of running_mean is")
            self.assertEqual(len(different.splitlines()), 2)

    def test_a_process_group_is_the_same_on_its_ranks_and_stays(self):
        def work(rank):
            group = dist.new_group([0, 1])
            model = nn.Sequential(nn.SyncBatchNorm(3, process_group=group))
            an.convert(model)
            same = an.check(model)
            an.revert(model)
            return bool(same), model[0].process_group is group

        self.assertEqual(an.emulate(work, 2), [(True, True)] * 2)

    def test_groups_of_a_world_that_is_made_anew(self):
        def work(rank, store):
            for world in range(2):
                if world:
                    dist.barrier()
                    dist.destroy_process_group()
                    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
                y = an.BatchNorm2d(3, sync=2)(torch.full((2, 3, 4, 4), float(rank)))
            return y[0, 0, 0, 0].item()

        with tempfile.TemporaryDirectory() as folder:
            low, high = an.emulate(work, 2, folder + "/store", timeout=20)
        self.assertAlmostEqual(low, -1, places=3)
        self.assertAlmostEqual(high, 1, places=3)

    def test_averaged_running_statistics(self):
        def work(rank):
            model = nn.Sequential(nn.BatchNorm2d(3))
            model[0].running_mean += rank
            an.average_running_stats(model)
            return model[0].running_mean

        for mean in an.emulate(work, 2):
            self.close(mean, torch.full((3,), 0.5))

    def test_precise_statistics(self):
        batches = [normal(size, 3, 4, 4, seed=size) * size for size in (2, 3, 4, 5)]

        def work(rank):
            model = nn.Sequential(an.BatchNorm2d(3, window=2, dtype=F64)).eval()
            an.precise_statistics(model, batches[2 * rank : 2 * rank + 2])
            return model[0].running_mean, model[0].running_var, model[0].training, list(model.state_dict())

        whole = torch.cat(batches)
        for mean, var, training, names in an.emulate(work, 2):
            self.close([mean, var], [whole.mean((0, 2, 3)), whole.var((0, 2, 3))])
            self.assertFalse(training)
            self.assertNotIn("0.allnorm_past", names)

    def test_the_first_error_is_raised(self):
        def work(rank):
            if rank == 1:
                raise KeyError("mine")
            dist.barrier()

        with self.assertRaisesRegex(KeyError, "mine"):
            an.emulate(work, 2, timeout=20)


class Readme(unittest.TestCase):
    def test_the_example_runs(self):
        text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
        example = "import torch\n" + text.split("```python\nimport torch\n", 1)[1].split("```", 1)[0]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example, "README.md", "exec"), {})
        self.assertRegex(
            printed.getvalue(), r"^1: BatchNorm2d -> BatchNorm2d\(8, .*window=2.*sync=world\)\nlayers converted: 1"
        )


if __name__ == "__main__":
    unittest.main()
