"""PyTorch's own tests of Batch Normalization, case by case, for the layers of allnorm.torch.

Read: test/test_nn.py at 74f2fa66fe; of torch 2.11 the inputs and errors of BatchNorm1d, 2d and 3d for test_modules.py
(torch/testing/_internal/common_modules.py), and what distributed_test.py there has on SyncBatchNorm.

| PyTorch's | here |
|---|---|
| test_batchnorm_nhwc_cpu | Formats.test_channels_last |
| test_batchnorm_half_overflow | Formats.test_sums_beyond_float16 |
| test_batchnorm_non_contig_cpu | Formats.test_permuted_in_evaluation |
| test_batchnorm_raises_error_if_less_than_one_value_per_channel | Errors.test_a_single_value_per_channel |
| test_batchnorm_raises_error_if_{running_mean,running_var,weight,bias}_is_not_same_size_as_input | Errors.test_sizes |
| test_batchnorm_raises_error_if_running_var_or_running_mean_have_forward_grad | Errors.test_forward_derivatives |
| test_batchnorm_buffer_update_when_stats_are_not_tracked | State.test_tracking_that_was_turned_off |
| test_batchnorm_load_state_dict | State.test_number_of_batches |
| test_batchnorm_update_stats | State.test_training_alone_changes_it |
| test_batchnorm_simple_average, _mixed | State.test_cumulative_average |
| test_batchnorm_eval, _mixed | State.test_evaluation_repeats |
| test_batchnorm_affine, _mixed | Formats.test_weights_of_one |
| test_batchnorm_large_batch | Formats.test_many_samples_of_one_value |
| test_convert_sync_batchnorm | State.test_other_layers_stay |
| test_fuse_module_eval_numerics | State.test_fusing |
| test_batch_norm_update_stats (an empty input) | Formats.test_empty |
| inputs of modules: affine, 3d_input, simple_average, not_affine, not_tracking_stats | torch_test.BatchNorm.test_is_torchs |
| inputs of modules: momentum, zero_batch | State.test_other_momentum, Formats.test_empty |
| errors of modules: eps of -1 and 0 | Errors.test_eps |
| modules: gradients, second gradients, memory format, pickle, saving, meta | torch_test.BatchNorm |
| modules: repr, device and dtype, training and evaluation differ | State.test_as_a_module |
| test_DistributedDataParallel_SyncBatchNorm, _Channels_Last, _No_Affine, _2D_Input, _Single_Input_Per_Process, _half | Ranks |
| test_DistributedDataParallel_SyncBatchNorm_Diff_Input_Sizes_Running_Value, _gradient, test_SyncBatchNorm_process_group | torch_ranks_test.Ranks: test_equal_one_rank_with_the_whole_batch, test_groups |
| test_batchnorm (2D, 3D), _cudnn_nhwc, _cudnn_half, _nhwc_cuda, _nonaffine_cuda_half_input, _grad, test_sync_batchnorm_accuracy_cuda, test_sync_batchnorm_backward_elemt; modules on several devices | need a GPU, and kernels of torch's own |
"""

import itertools
import unittest

import torch
from torch.autograd import forward_ad
from torch import nn

import allnorm.torch as an

F64 = torch.float64
PAIRS = {1: (an.BatchNorm1d, nn.BatchNorm1d), 2: (an.BatchNorm2d, nn.BatchNorm2d), 3: (an.BatchNorm3d, nn.BatchNorm3d)}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def gradients(module, x, dy):
    """y, and the gradients of x and of the parameters."""
    inputs = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(inputs)
    return [y.detach(), *torch.autograd.grad(y, [inputs, *module.parameters()], dy)]


class Case(unittest.TestCase):
    def same(self, found, expected, **tolerances):
        self.assertEqual(len(found), len(expected))
        for own, other in zip(found, expected):
            torch.testing.assert_close(own, other, **tolerances)


class Formats(Case):
    def test_channels_last(self):
        shapes = [(4, 8, 10, 10), (4, 1, 9, 9), (4, 9, 1, 1)]
        shapes += [(4, 8, 2, 10, 10), (4, 1, 2, 9, 9), (4, 9, 1, 1, 1)]
        types = [(torch.float32, torch.float32)]
        types += [(half, own) for half in (torch.float16, torch.bfloat16) for own in (half, torch.float32)]
        for shape, (x_type, own_type) in itertools.product(shapes, types):
            own = PAIRS[len(shape) - 2][0](shape[1]).to(own_type)
            with torch.no_grad():
                own.weight.uniform_(), own.bias.uniform_()
            x, dy = normal(*shape, dtype=x_type), normal(*shape, seed=1, dtype=x_type)
            last = LAST[len(shape) - 2]
            with self.subTest(shape=shape, x=x_type, own=own_type):
                expected = gradients(own, x, dy)
                found = gradients(own, x.contiguous(memory_format=last), dy.contiguous(memory_format=last))
                self.assertTrue(found[0].is_contiguous(memory_format=last))
                self.assertTrue(expected[0].is_contiguous())
                self.same(found, expected)

    def test_sums_beyond_float16(self):
        for shape, own_type in (((2, 3, 300, 300), torch.float16), ((4, 2, 8, 60, 60), torch.float32)):
            make, last = PAIRS[len(shape) - 2][0], LAST[len(shape) - 2]
            own, reference = make(shape[1]).to(own_type), make(shape[1])
            x, dy = normal(*shape, dtype=torch.float16), normal(*shape, seed=1, dtype=torch.float16)
            y, dx, *_ = gradients(reference, x.float(), dy.float())
            for formats in itertools.product((torch.contiguous_format, last), repeat=2):
                found = gradients(
                    own, *(tensor.contiguous(memory_format=order) for tensor, order in zip((x, dy), formats))
                )
                self.assertTrue(found[0].isfinite().all() and found[1].isfinite().all())
                self.same(found[:2], [y.half(), dx.half()])

    def test_permuted_in_evaluation(self):
        for kind in (an.BatchNorm2d, an.SyncBatchNorm):
            own, other = kind(2).eval(), nn.BatchNorm2d(2).eval()
            with torch.no_grad():
                own.weight.uniform_(), own.bias.uniform_()
            other.load_state_dict(own.state_dict())
            x = torch.arange(6.0).reshape(1, 3, 2, 1).permute(0, 2, 1, 3)
            self.assertTrue(own(x).is_contiguous(memory_format=torch.channels_last))
            self.same([own(x)], [other(x.contiguous())])
            for dtype in (torch.bfloat16, torch.float16):
                x = torch.arange(24, dtype=dtype).reshape(1, 3, 2, 4).permute(0, 2, 1, 3)
                self.same([own(x)], [own(x.float()).to(dtype)])

    def test_weights_of_one(self):
        for shape, dtype in itertools.product(((3, 3), (3, 3, 3)), (torch.float32, torch.bfloat16)):
            x, dy = normal(*shape, dtype=dtype), torch.ones(shape, dtype=dtype)
            plain, affine = an.BatchNorm1d(3, affine=False), an.BatchNorm1d(3)
            self.same(gradients(plain, x, dy), gradients(affine, x, dy)[:2])

    def test_many_samples_of_one_value(self):
        for dtype in (torch.float32, torch.float16):
            x = torch.rand(880801, 1, 1, 1, dtype=dtype)
            y, dx, *_ = gradients(an.BatchNorm2d(1).to(dtype), x, torch.ones_like(x))
            self.assertTrue(y.isfinite().all() and dx.isfinite().all())

    def test_empty(self):
        shapes = ((0, 3), (0, 3, 9), (0, 3, 4, 4), (2, 3, 0, 4), (0, 3, 2, 2, 2))
        for shape, affine in itertools.product(shapes, (True, False)):
            own = an.BatchNorm(3, affine=affine)
            before = [tensor.clone() for tensor in own.buffers()][:2]
            y, *found = gradients(own, torch.empty(shape), torch.empty(shape))
            self.assertEqual(y.shape, shape)
            self.same(found, [torch.zeros_like(tensor) for tensor in found])
            self.same([own.running_mean, own.running_var], before, rtol=0, atol=0)


class Errors(Case):
    def test_a_single_value_per_channel(self):
        """An error of torch's, and none of these layers (docs/equations.md): a rank may have one, and the window more."""
        for own, x in ((an.BatchNorm1d(10), normal(1, 10, 1)), (an.BatchNorm2d(3), normal(1, 3, 1, 1))):
            with torch.no_grad():
                own.bias.uniform_()
            y, dx, dweight, dbias = gradients(own, x, torch.ones_like(x))
            found = [y, dx, dweight, dbias, own.running_mean, own.running_var]
            mean = 0.1 * x.reshape(-1)
            zero, one = torch.zeros_like(mean), torch.ones_like(mean)
            self.same(found, [own.bias.detach().view_as(x), torch.zeros_like(x), zero, one, mean, 0.9 * one])

    def test_eps(self):
        """torch's is refused at the first call, and one of 0 too, with which these layers divide by the deviation itself."""
        with self.assertRaisesRegex(ValueError, "eps"):
            an.BatchNorm1d(10, eps=-1)
        x = normal(5, 10, dtype=F64)
        var, mean = torch.var_mean(x, 0, correction=0)
        self.same([an.BatchNorm1d(10, eps=0, dtype=F64)(x)], [(x - mean) / var.sqrt()], rtol=1e-12, atol=1e-12)

    def test_sizes(self):
        for name, size in itertools.product(("running_mean", "running_var", "weight", "bias"), (9, 11)):
            own = an.BatchNorm1d(10)
            wrong = torch.rand(size)
            setattr(own, name, nn.Parameter(wrong) if name in ("weight", "bias") else wrong)
            for mode in (True, False):
                with self.subTest(name, size=size, training=mode), self.assertRaises((ValueError, RuntimeError)):
                    own.train(mode)(normal(2, 10))

    def test_forward_derivatives(self):
        x, tangent = normal(3, 2, 5), normal(3, 2, 5, seed=1)
        own, other = an.BatchNorm1d(2).eval(), nn.BatchNorm1d(2).eval()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, tangent)
            self.same(forward_ad.unpack_dual(own(dual))[:2], forward_ad.unpack_dual(other(dual))[:2])
            own.running_mean = forward_ad.make_dual(own.running_mean, torch.ones(2))
            with self.assertRaisesRegex(RuntimeError, "not differentiable wrt running_mean"):
                own(dual)
            with self.assertRaises(RuntimeError):  # of training calls there are gradients, and no such derivatives
                an.BatchNorm1d(2)(dual)


class State(Case):
    def test_tracking_that_was_turned_off(self):
        own, other, x = an.BatchNorm1d(4), nn.BatchNorm1d(4), normal(32, 4) + 3
        before = [tensor.clone() for tensor in own.buffers()]
        own.track_running_stats = other.track_running_stats = False
        self.same([own(x), own.eval()(x)], [other(x), other.eval()(x)])
        self.same(list(own.buffers()), before, rtol=0, atol=0)

    def test_number_of_batches(self):
        own = an.BatchNorm2d(3)
        self.assertEqual(own.state_dict()["num_batches_tracked"], 0)
        own.num_batches_tracked = torch.tensor(10)
        own.load_state_dict({}, strict=False)
        self.assertEqual(own.state_dict()["num_batches_tracked"], 10)
        with torch.device("meta"):
            other = an.BatchNorm2d(3)
        self.assertTrue(other.num_batches_tracked.is_meta)
        other.load_state_dict({}, assign=True, strict=False)
        self.assertEqual(other.state_dict()["num_batches_tracked"], 0)

    def test_training_alone_changes_it(self):
        own, x = an.BatchNorm1d(3), normal(4, 3) + 1
        own(x)
        self.assertEqual(int(own.num_batches_tracked), 1)
        self.assertFalse(own.running_mean.eq(0).any() or own.running_var.eq(1).any())
        kept = [tensor.clone() for tensor in own.buffers()]
        own.eval()(x)
        self.same(list(own.buffers()), kept, rtol=0, atol=0)

    def test_cumulative_average(self):
        for dtype in (torch.float32, torch.bfloat16):
            own, xs = an.BatchNorm1d(3, momentum=None), [normal(4, 3, seed=seed, dtype=dtype) for seed in range(2)]
            alone = []
            for x in xs:
                own.reset_running_stats()
                self.same(list(own.buffers()), [torch.zeros(3), torch.ones(3), torch.tensor(0)], rtol=0, atol=0)
                own(x)
                alone.append([own.running_mean.clone(), own.running_var.clone()])
            own.reset_running_stats()
            for x in xs:
                own(x)
            self.same([own.running_mean, own.running_var], [(one + two) / 2 for one, two in zip(*alone)])

    def test_other_momentum(self):
        for axes, (own_kind, other_kind) in PAIRS.items():
            own, other = (kind(3, 1e-3, 0.8, dtype=F64) for kind in (own_kind, other_kind))
            for seed in range(2):
                x = normal(2, 3, *[4] * axes, seed=seed, dtype=F64)
                self.same([own(x)], [other(x)], rtol=1e-12, atol=1e-12)
            self.same(list(own.buffers()), list(other.buffers()), rtol=1e-12, atol=1e-12)

    def test_evaluation_repeats(self):
        for shape, dtype in itertools.product(((3, 3), (3, 3, 3)), (torch.float32, torch.bfloat16, torch.float16)):
            x, dy = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
            own = an.BatchNorm1d(3).eval()
            self.same(gradients(own, x, dy), gradients(own, x, dy), rtol=0, atol=0)
            own = an.BatchNorm1d(3, track_running_stats=False)  # training and evaluation are one
            self.same(gradients(own, x, dy), gradients(own.eval(), x, dy))

    def test_other_layers_stay(self):
        own = nn.Sequential(nn.BatchNorm1d(100), nn.InstanceNorm1d(100))
        before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
        an.convert(own, "sync_batch_norm")
        self.assertEqual([type(layer) for layer in own], [an.BatchNorm1d, nn.InstanceNorm1d])
        self.assertEqual(list(own.state_dict()), list(before))
        self.same(list(own.state_dict().values()), list(before.values()), rtol=0, atol=0)

    def test_fusing(self):
        for affine in (True, False):
            conv, norm = nn.Conv2d(3, 6, 3, dtype=F64), an.BatchNorm2d(6, affine=affine, dtype=F64)
            norm.running_mean, norm.running_var = normal(6, dtype=F64), normal(6, seed=1, dtype=F64).square()
            conv.eval(), norm.eval()
            x = normal(5, 3, 5, 5, dtype=F64)
            self.same([nn.utils.fusion.fuse_conv_bn_eval(conv, norm)(x)], [norm(conv(x))])

    def test_as_a_module(self):
        for axes, (own_kind, other_kind) in PAIRS.items():
            own = own_kind(3, device="cpu", dtype=F64)
            self.assertEqual(str(own), str(other_kind(3)))
            self.assertTrue(all(tensor.dtype == F64 for tensor in own.state_dict().values() if tensor.dim()))
            x = normal(4, 3, *[2] * axes, dtype=F64)
            self.assertFalse(torch.allclose(own(x), own.eval()(x)))
            for parameter in own.requires_grad_(False).parameters():
                self.assertFalse(parameter.requires_grad)


class Ranks(Case):
    def test_are_one_with_the_whole_batch(self):
        cases = [  # input, whether there are weights, and the tolerance: of float64, and of a sum of float16
            (normal(4, 3, 4, 4, dtype=F64).contiguous(memory_format=torch.channels_last), True, 1e-12),
            (normal(4, 3, 4, 4, dtype=F64), False, 1e-12),
            (normal(4, 3, dtype=F64), True, 1e-12),
            (normal(2, 3, dtype=F64), True, 1e-12),  # one of each rank
            (normal(4, 3, 4, 4, dtype=torch.float16), True, 2e-3),
        ]

        def layer(kind, x, affine):
            own = kind(3, affine=affine)
            return own.double() if x.dtype == F64 else own

        def work(rank):
            found = []
            for x, affine, _ in cases:
                own, half = layer(an.SyncBatchNorm, x, affine), len(x) // 2
                cut = slice(rank * half, rank * half + half)
                found.append([*gradients(own, x[cut], x[cut].square()), *own.buffers()])
            return found

        first, second = an.emulate(work, 2)
        for (x, affine, tolerance), one, two in zip(cases, first, second):
            whole = layer(an.BatchNorm, x, affine)
            y, dx, *of_parameters = gradients(whole, x, x.square())
            found = [torch.cat(parts) for parts in zip(one[:2], two[:2])]
            found += [own + other for own, other in zip(one[2:-3], two[2:-3])]
            self.same([*found, *one[-3:]], [y, dx, *of_parameters, *whole.buffers()], rtol=tolerance, atol=tolerance)
            self.same(one[-3:], two[-3:], rtol=0, atol=0)


if __name__ == "__main__":
    unittest.main()
