"""allnorm.torch over ranks: processes of this machine in a gloo group, against one rank on the whole batch."""

import contextlib
import io
import os
import pathlib
import tempfile
import re
import time
import unittest

import torch
import torch._dynamo  # here, and not in every process that is forked
import torch.distributed as dist
from torch import nn

import allnorm.torch as an

F64 = torch.float64
CUTS = ((0, 4, 7), (0, 2, 2, 7), (0, 0, 1, 5, 7))  # of two, three and four ranks, of which one has no sample


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

        def work(rank, cuts):
            module = an.SyncBatchNorm(3, activation="relu", dtype=F64)
            cut = slice(*cuts[rank : rank + 2])
            found = [step(module, x[cut] + call, dy[cut]) for call in range(2)]
            return found, [p.grad for p in module.parameters()], list(module.buffers())

        for cuts in CUTS:
            with self.subTest(cuts):
                parts = an.emulate(work, len(cuts) - 1, cuts)
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
        x = torch.ones(2, 3, 4, 4)
        types = "float64, float32, float16 or bfloat16"
        wrongs = (
            ("input has 4 channels, must have 3", lambda module: module(torch.ones(2, 4, 4, 4))),
            ("input has 3 axes, must have 4", lambda module: module(torch.ones(2, 3, 4))),
            (f"input is of torch's type Int, must be {types}", lambda module: module(x.int())),
            ("residual has shape (3,), must have (2,3,4,4) as input", lambda module: module(x, torch.ones(3))),
            ("attribute eps is '-1', must be a number of at least 0", lambda module: _with_eps(module, -1)(x)),
            ("no input", lambda module: module(_Raises())),
        )

        def work(rank, tracks):
            told = []
            for index, (_, wrong) in enumerate(wrongs):
                for calls_before in range(2):
                    module = an.BatchNorm2d(3, track_running_stats=tracks, sync="world", name="stem")
                    for _ in range(calls_before):
                        module(x)
                    start = time.monotonic()
                    try:
                        wrong(module) if rank == 1 else module(x)
                    except (an.Error, ValueError, KeyError) as error:
                        code = error.code if isinstance(error, an.Error) else type(error).__name__
                        told.append((index, code, error.args[0], time.monotonic() - start))
                    _with_eps(module, 1e-5)(x)  # the group goes on
            return told

        for tracks in (True, False):
            first, second = an.emulate(work, 2, tracks)
            for own, of_other in zip(second, first, strict=True):
                text, kind = wrongs[own[0]][0], "KeyError" if own[0] == 5 else "ValueError"
                self.assertEqual(own[1:3], (kind, text))
                self.assertEqual(of_other[1:3], ("aborted", f"rank 1 failed: {text}"))
                self.assertLess(of_other[3], 5)  # of a timeout of 60
            self.assertEqual(len(first), 2 * len(wrongs))

    def test_a_rank_whose_backward_pass_is_wrong_is_named(self):
        def work(rank, make):
            module, x = make(), normal(2, 3, 4, 4).requires_grad_()
            own = x * 1
            y = module(own)
            if rank == 1:
                own.detach().zero_()
            try:
                y.sum().backward()
            except RuntimeError as error:
                return str(error)
            return ""

        for make in (lambda: an.SyncBatchNorm(3), lambda: an.GroupNorm(1, 3, sync="world")):
            first, second = an.emulate(work, 2, make, timeout=20)
            self.assertIn("modified by an inplace operation", second)
            self.assertIn("rank 1 failed: one of the variables needed for gradient computation has been mod", first)

    def test_a_rank_that_does_not_answer(self):
        """Its number is the process group's to tell, which gloo does not."""

        def work(rank, leaves, backward, folder):
            module, x = an.SyncBatchNorm(3, name="stem"), torch.ones(2, 3, 4, 4)
            y, start = module(x), time.monotonic()
            if rank == 3:
                if leaves:
                    dist.destroy_process_group()
                time.sleep(5)
                os._exit(0)
            try:
                y.sum().backward() if backward else module(x)
            except an.Error as error:
                text = f"{error.code}, {error.layer}, {time.monotonic() - start < 5}, {error}"
                (folder / str(rank)).write_text(text)
            time.sleep(10)  # until rank 3 ends this

        for leaves, backward in ((True, False), (False, True)):
            with self.subTest(leaves=leaves), tempfile.TemporaryDirectory() as name:
                folder = pathlib.Path(name)
                with self.assertRaisesRegex(RuntimeError, "rank 3 ended without a word"):
                    an.emulate(work, 4, leaves, backward, folder, timeout=2)
                call = "stem, backward" if backward else "stem, call 1, forward"
                for rank in range(3):
                    text = (folder / str(rank)).read_text()
                    of_all = f"^(timeout|transport), stem, True, {call}: not all 4 ranks of the group have answered: "
                    self.assertRegex(text, of_all)

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

    def test_wrong_axes_under_torch_compile(self):
        def work(rank):
            module = torch.compile(an.SyncBatchNorm(3, name="stem"), backend="aot_eager", fullgraph=True)
            wrong = torch.compile(an.BatchNorm2d(3, sync="world", name="stem"), backend="aot_eager", fullgraph=True)
            module(torch.ones(2, 3, 4, 4))
            try:
                wrong(torch.ones(2, 3, *[4] * (2 - rank)))
            except RuntimeError as error:
                return str(error)
            return ""

        for told in an.emulate(work, 2, timeout=60):
            self.assertIn("rank 1 failed: input has 3 axes, must have 4", told)

    def test_under_distributed_data_parallel(self):
        x = normal(4, 2, 6, 6)

        def make():
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)
            ).double()

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
                if name.endswith("allnorm_past"):  # a head of 9 words, 11 counters, moments, and what is of a rank's samples
                    self.assertTrue(torch.equal(state[name][:160], value[:160]))
                    self.close(state[name][160:416].view(F64), value[160:416].view(F64), 1e-9)
                else:
                    self.close(state[name], value, 1e-9)

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

    def test_agreement_of_other_norms(self):
        def work(rank):
            model = nn.Sequential(
                an.GroupNorm(2, 4 + 2 * rank, sync="world"),  # parts of the channels of both groups
                an.LayerNorm(4 + rank),
                nn.GroupNorm(2, 4, eps=1e-5 * (rank + 1)),
                an.InstanceNorm2d(3, track_running_stats=True),
                an.FilterResponseNorm2d(3, nonfinite="fail" if rank else "propagate"),
                an.IterNorm(4, group_size=2),
                an.LocalResponseNorm(3 + 2 * rank),
            )
            with torch.no_grad():
                model[3].running_var += rank
                model[5](normal(8, 4, 5, 5, seed=rank, dtype=torch.float32))
            return [str(difference) for difference in an.check(model).differences]

        for found in an.emulate(work, 2):
            told = [re.sub("is .*", "", text) for text in found]
            self.assertEqual(
                told,
                [
                    "rank 1: 1: normalized_shape ",
                    "rank 1: 2: eps ",
                    "rank 1: 3: hash of running_var ",
                    "rank 1: 4: nonfinite ",
                    *(text for text in told if text.startswith("rank 1: 5: hash of ")),
                    "rank 1: 6: row ",
                ],
            )
            self.assertGreaterEqual(len(told), 7)
            self.assertIn("rank 1: 6: row is local_response_norm:size=5:", found[-1])

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

    def test_a_layer_finds_its_place_in_a_world_that_is_made_anew(self):
        def work(rank, store):
            layers = [an.BatchNorm2d(3, sync="world"), an.LayerNorm(4, sync=2), an.LayerNorm(4, sync=dist.group.WORLD)]
            compiled = torch.compile(an.BatchNorm2d(3, sync="world"), backend="eager", fullgraph=True)
            layers.insert(0, compiled)  # before others look at the new world
            x = torch.full((2, 3, 4, 4), float(rank)) + torch.arange(4.0)
            for layer in layers:
                layer(x)
            dist.barrier()
            dist.destroy_process_group()
            dist.init_process_group("gloo", init_method=f"file://{store}{rank}", rank=0, world_size=1)
            alone = [an.BatchNorm2d(3)(x), an.BatchNorm2d(3)(x), an.LayerNorm(4)(x)]
            same = [torch.equal(layer(x), y) for layer, y in zip(layers, alone)]
            try:
                layers[3](x)
            except ValueError as error:
                return same, str(error)
            return same, ""

        with tempfile.TemporaryDirectory() as folder:
            for same, told in an.emulate(work, 2, folder + "/store", timeout=20):
                self.assertEqual(same, [True, True, True])
                self.assertIn("a world that was destroyed", told)

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


class Parts(unittest.TestCase):
    """Ranks with parts of the same samples, against one rank with these whole."""

    def test_equal_whole_samples(self):
        x, residual, dy = (normal(3, 6, 4, 8, seed=seed) * 2 + 1 for seed in range(3))
        # What is made, along which axis the parts lie, and how the whole's parameters are cut for them.
        cases = (
            ("group", lambda part, **o: an.GroupNorm(3, 6, activation="relu", dtype=F64, **o), 3, None),
            ("instance", lambda part, **o: an.InstanceNorm2d(6, affine=True, dtype=F64, **o), 3, None),
            (
                "tracked",
                lambda part, **o: an.InstanceNorm2d(6, affine=True, track_running_stats=True, dtype=F64, **o),
                3,
                None,
            ),
            ("layer", lambda part, **o: an.LayerNorm((4, part), activation="leaky_relu", dtype=F64, **o), 3, -1),
            ("rms", lambda part, **o: an.RMSNorm(part, dtype=F64, **o), 3, -1),
            ("response", lambda part, **o: an.FilterResponseNorm2d(6, learn_eps=True, dtype=F64, **o), 3, None),
            ("positional", lambda part, **o: an.PositionalNorm2d(**o), 1, None),
        )

        def cut(tensor, axis, ranks, rank):
            first = [0, 2, 5][:ranks] + [tensor.size(axis)]  # parts of other lengths
            return tensor.narrow(axis, first[rank], first[rank + 1] - first[rank])

        def step(module, x, residual, dy):
            x, residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
            takes = isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm))
            y = module(x, residual) if takes else module(x) + residual
            y.backward(dy)
            with torch.no_grad():
                inferred = module.eval()(x)
                module.train()
            gradients = [p.grad for p in module.parameters()]
            return [y.detach(), x.grad, residual.grad, inferred], gradients, [b.clone() for b in module.buffers()]

        def randomized(make, part, axis, ranks, rank, **options):
            module = make(part, **options)
            for index, parameter in enumerate(module.parameters()):
                shape = list(parameter.shape)
                if axis is not None:
                    shape[axis] = 8
                values = normal(*shape, seed=10 + index)
                parameter.data.copy_(values if axis is None else cut(values, axis, ranks, rank))
            return module

        def work(rank, ranks, make, axis, of_parameters):
            own = [cut(tensor, axis, ranks, rank) for tensor in (x, residual, dy)]
            module = randomized(make, own[0].size(-1), of_parameters, ranks, rank, sync="world")
            return [step(module, *own) for _ in range(2)][-1]

        for ranks in (2, 3):
            for name, make, axis, of_parameters in cases:
                with self.subTest(name, ranks=ranks):
                    parts = an.emulate(work, ranks, ranks, make, axis, of_parameters)
                    whole = randomized(make, 8, None, 1, 0)
                    expected, gradients, buffers = [step(whole, x, residual, dy) for _ in range(2)][-1]
                    for index, tensor in enumerate(expected):
                        self.close(torch.cat([part[0][index] for part in parts], axis), tensor)
                    for index, tensor in enumerate(gradients):
                        of_ranks = [part[1][index] for part in parts]
                        found = sum(of_ranks) if of_parameters is None else torch.cat(of_ranks, of_parameters)
                        self.close(found, tensor)
                    for part in parts:
                        self.close(part[2], buffers)
                    self.assertTrue(all(torch.equal(a, b) for part in parts for a, b in zip(part[2], parts[0][2])))

    def close(self, found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    def test_channels_of_groups(self):
        x, dy = normal(2, 12, 3, 3), normal(2, 12, 3, 3, seed=1)
        of_rank = [[0, 1, 6, 7], [2, 3, 4, 5, 8, 9, 10, 11]]  # of the two groups 0 to 5 and 6 to 11

        def work(rank):
            own = of_rank[rank]
            return step(an.GroupNorm(2, len(own), sync="world", dtype=F64), x[:, own], dy[:, own])

        for found, whole in zip(zip(*an.emulate(work, 2)), step(an.GroupNorm(2, 12, dtype=F64), x, dy)):
            for own, part in zip(of_rank, found):
                self.close(part, whole[:, own])

    def test_other_numbers_of_samples_are_named(self):
        def work(rank):
            module, told = an.GroupNorm(1, 3, sync="world", name="stem"), []
            for samples in (2, 2 + rank, 2):
                try:
                    module(torch.ones(samples, 3, 4, 4))
                except an.Error as error:
                    told.append((error.code, error.rank, str(error)))
            return told

        for told in an.emulate(work, 2, timeout=20):
            self.assertEqual(len(told), 1)
            self.assertEqual(told[0][:2], ("mismatch", 1))
            self.assertRegex(told[0][2], "groups.* is 3, must be 2 as on rank 0")

    def test_under_torch_compile(self):
        x, dy = normal(2, 4, 6), normal(2, 4, 6, seed=1)

        def work(rank):
            found = []
            for make in (lambda: an.LayerNorm((4, 3), sync="world"), lambda: an.InstanceNorm1d(4, sync="world")):
                for backend in (None, "aot_eager"):
                    module = make().double()
                    function = module if backend is None else torch.compile(module, backend=backend, fullgraph=True)
                    cut = (..., slice(3 * rank, 3 * rank + 3))
                    found.append(step(function, x[cut], dy[cut]))
            return found

        for one, compiled, other, other_compiled in an.emulate(work, 2):
            torch.testing.assert_close([one, other], [compiled, other_compiled], rtol=0, atol=0)


class _Raises:
    """No tensor: asked for anything, it says so in an error that is no ValueError."""

    def __getattr__(self, name):
        raise KeyError("no input")


def _with_eps(module, eps):
    module.eps = eps
    return module


class Readme(unittest.TestCase):
    def test_the_example_runs(self):
        text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
        example = "import torch\n" + text.split("```python\nimport torch\n", 1)[1].split("```", 1)[0]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example, "README.md", "exec"), {})
        self.assertRegex(
            printed.getvalue(), r"^1: BatchNorm2d -> BatchNorm2d\(8, .*window=2.*compensate=True.*sync=world\)\nlayers converted: 1"
        )


if __name__ == "__main__":
    unittest.main()
