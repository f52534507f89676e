"""allnorm.torch against torch's own layers, on one rank."""

import copy
import io
import pickle
import subprocess
import sys
import unittest

import torch
import torch.nn.functional as F
from torch import nn

import allnorm.torch as an
from allnorm.torch import _ops

F64 = torch.float64
PAIRS = (  # ours, torch's, shape of the input
    (an.BatchNorm1d, nn.BatchNorm1d, (6, 3)),
    (an.BatchNorm1d, nn.BatchNorm1d, (4, 3, 5)),
    (an.BatchNorm2d, nn.BatchNorm2d, (2, 3, 4, 5)),
    (an.BatchNorm3d, nn.BatchNorm3d, (2, 3, 2, 3, 4)),
)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def randomize(module, seed=7):
    """Parameters and running statistics that are not those of a fresh layer."""
    with torch.no_grad():
        for index, (name, tensor) in enumerate(module.state_dict().items()):
            if tensor.is_floating_point():
                values = normal(*tensor.shape, seed=seed + index)
                tensor.copy_(values.abs() + 0.5 if name.endswith("var") else values)


def gradients(module, x, dy, *more):
    """y, and the gradients of x, of `more` and of the parameters."""
    inputs = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in (x, *more)]
    y = module(*inputs)
    found = torch.autograd.grad(y, [*inputs, *module.parameters()], dy)
    return [y.detach(), *found]


class Case(unittest.TestCase):
    def same(self, found, expected, tolerance=1e-12):
        self.assertEqual(len(found), len(expected))
        for own, other in zip(found, expected):
            self.assertEqual(own.dtype, other.dtype)
            torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)

    def same_layers(self, own, other, x, *more, tolerance=1e-12):
        randomize(other)
        own.load_state_dict(other.state_dict())
        for step in range(3):
            xs, dy = x + step, normal(*x.shape, seed=step + 1, dtype=x.dtype)
            self.same(gradients(own, xs, dy, *more), gradients(other, xs, dy, *more), tolerance)
        self.same(list(own.buffers()), list(other.buffers()), tolerance)


class BatchNorm(Case):
    def test_is_torchs(self):
        for ours, torchs, shape in PAIRS:
            for options in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}):
                with self.subTest(ours.__name__, shape=shape, **options):
                    own, other = ours(3, dtype=F64, **options), torchs(3, dtype=F64, **options)
                    self.same_layers(own, other, normal(*shape))
                    x = normal(*shape, seed=9)
                    self.same([own.eval()(x)], [other.eval()(x)])

    def test_state_is_torchs_both_ways(self):
        own, other = an.BatchNorm2d(3), nn.BatchNorm2d(3)
        other(normal(2, 3, 4, 4, dtype=torch.float32))
        own.load_state_dict(other.state_dict())
        self.assertTrue(all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), other.state_dict().values())))
        other.load_state_dict(own.state_dict())
        self.assertEqual(list(own.state_dict()), list(other.state_dict()))
        self.assertEqual([name for name, _ in own.named_buffers()], [name for name, _ in other.named_buffers()])

    def test_in_evaluation_is_torchs_to_the_bit(self):
        own, other = an.BatchNorm2d(3).eval(), nn.BatchNorm2d(3).eval()
        randomize(other)
        own.load_state_dict(other.state_dict())
        x = normal(2, 3, 4, 4, dtype=torch.float32)
        self.assertTrue(torch.equal(own(x), other(x)))
        exported = torch.export.export(own, (x,))
        targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        self.assertTrue(all(target.startswith("aten.") for target in targets), targets)

    def test_activation_and_residual(self):
        x, residual, dy = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
        for activation, function in (
            (None, lambda y: y),
            ("relu", F.relu),
            ("leaky_relu", F.leaky_relu),
            (("leaky_relu", 0.2), lambda y: F.leaky_relu(y, 0.2)),
        ):
            own, other = an.BatchNorm2d(3, activation=activation, dtype=F64), nn.BatchNorm2d(3, dtype=F64)
            randomize(other)
            own.load_state_dict(other.state_dict())
            with self.subTest(activation):
                self.same(gradients(own, x, dy), gradients(nn.Sequential(other, _Then(function)), x, dy))
                together = _WithResidual(other, function)
                self.same(gradients(own, x, dy, residual), gradients(together, x, dy, residual))
                own.eval(), other.eval()
                self.same(gradients(own, x, dy, residual), gradients(together, x, dy, residual))

    def test_memory_format_is_kept(self):
        own, other = an.BatchNorm2d(3, dtype=F64), nn.BatchNorm2d(3, dtype=F64)
        x = normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
        self.same_layers(own, other, x)
        y, dx, *_ = gradients(own, x, normal(2, 3, 4, 5))
        for tensor in (y, dx):
            self.assertTrue(tensor.is_contiguous(memory_format=torch.channels_last))
        dense = normal(2, 6, 4, 5)[:, ::2]
        self.same([own(dense)], [other(dense)])

    def test_types(self):
        for x_type, own_type in (
            (torch.float32, torch.float32),
            (torch.float16, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.bfloat16, torch.bfloat16),
        ):
            own = an.BatchNorm2d(3).to(own_type)
            x, dy = normal(8, 3, 4, 5, dtype=x_type), normal(8, 3, 4, 5, seed=1, dtype=x_type)
            y, dx, dweight, dbias = gradients(own, x, dy)
            self.assertEqual((y.dtype, dx.dtype, dweight.dtype, dbias.dtype), (x_type, x_type, own_type, own_type))
            self.assertEqual(own.running_mean.dtype, torch.float32)
            reference = nn.BatchNorm2d(3, dtype=F64)
            expected = gradients(reference, x.double(), dy.double())
            # Rounded once to their type, from values of f32: of terms below 8, in gradients of parameters 160 of these.
            for found, exact, terms in zip((y, dx, dweight, dbias), expected, (1, 1, 160, 160)):
                rtol, atol = 0.5 * torch.finfo(found.dtype).eps, 8 * terms * torch.finfo(torch.float32).eps
                torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=atol)
            self.same([own.running_mean, own.running_var], [b.float() for b in list(reference.buffers())[:2]], 1e-6)
            y, expected = own.eval()(x), reference.eval()(x.double())
            self.assertEqual(y.dtype, x_type)
            torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(x_type).eps, atol=1e-5)

    def test_under_autocast(self):
        own = an.BatchNorm2d(3)
        with torch.autocast("cpu", torch.bfloat16):
            x = F.conv2d(normal(2, 3, 5, 5, dtype=torch.float32), torch.ones(3, 3, 1, 1))
            self.assertEqual((x.dtype, own(x).dtype), (torch.bfloat16, torch.bfloat16))
        self.assertEqual(own.running_var.dtype, torch.float32)

    def test_gradcheck(self):
        own = an.BatchNorm2d(3, activation="leaky_relu", dtype=F64)
        randomize(own)
        residual = normal(3, 3, 2, 2, seed=1).requires_grad_()

        def function(x, residual, weight, bias):
            return torch.func.functional_call(own, {"weight": weight, "bias": bias}, (x, residual))

        x = normal(3, 3, 2, 2).requires_grad_()
        self.assertTrue(torch.autograd.gradcheck(function, (x, residual, own.weight, own.bias)))

    def test_a_second_gradient_is_refused_by_name(self):
        own = an.BatchNorm2d(3, name="stem")
        x = normal(2, 3, 4, 4, dtype=torch.float32).requires_grad_()
        (dx,) = torch.autograd.grad(own(x).square().sum(), x, create_graph=True)
        with self.assertRaisesRegex(an.Error, "stem.*gradient of a gradient") as caught:
            dx.sum().backward()
        self.assertEqual((caught.exception.code, caught.exception.layer), ("unsupported", "stem"))

    def test_statistics(self):
        own, x = an.BatchNorm2d(3), normal(4, 3, 5, 5, dtype=torch.float32)
        with self.assertRaisesRegex(ValueError, "no training call"):
            own.statistics()
        own(x)
        frame = own.statistics()
        self.same([frame.mean, frame.var], [x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)])
        self.assertTrue(
            torch.equal(frame.r, torch.ones(3, dtype=F64)) and torch.equal(frame.d, torch.zeros(3, dtype=F64))
        )

    def test_copies(self):
        own, x = an.BatchNorm2d(3, dtype=F64), normal(2, 3, 4, 4)
        own(x)
        for copied in (copy.deepcopy(own), pickle.loads(pickle.dumps(own)), _saved_and_loaded(own)):
            kept = own.running_mean.clone()
            copied(x + 1)
            self.assertTrue(torch.equal(own.running_mean, kept))
            self.assertEqual(int(copied.num_batches_tracked), 2)

    def test_starts_on_meta(self):
        with torch.device("meta"):
            own = an.BatchNorm2d(3, window=4, dtype=F64)
        own = own.to_empty(device="cpu")
        own.reset_parameters()
        x = normal(2, 3, 4, 4)
        self.same([own(x)], [nn.BatchNorm2d(3, dtype=F64)(x)])

    def test_loads_into_meta(self):
        own, x = an.BatchNorm2d(3, window=3, dtype=F64), normal(2, 3, 4, 4)
        own(x)
        with torch.device("meta"):
            other = an.BatchNorm2d(3, window=3, dtype=F64)
        other.load_state_dict(own.state_dict(), assign=True)
        self.assertIn("allnorm_past", other.state_dict())
        other = copy.deepcopy(other)  # assigned tensors are own's
        for call in range(1, 4):
            self.same([other(x + call)], [own(x + call)], 0)
        self.assertFalse(torch.equal(other(x), an.BatchNorm2d(3, window=3, dtype=F64)(x)))
        self.assertEqual(list(other.state_dict()), list(own.state_dict()))
        own(x)
        self.same(list(other.state_dict().values()), list(own.state_dict().values()), 0)

    def test_bad_input(self):
        x = normal(2, 4, 5, 5, dtype=torch.float32)
        one, three = an.BatchNorm1d(4), an.BatchNorm3d(4)
        for module, axes in ((one, "2 or 3"), (three, "5"), (copy.deepcopy(one).eval(), "2 or 3")):
            with self.assertRaisesRegex(ValueError, f"^input has 4 axes, must have {axes}$"):
                module(x)
        for options in ({}, {"track_running_stats": False}, {"affine": False, "track_running_stats": False}):
            with self.assertRaisesRegex(ValueError, "^input has 4 channels, must have 3$"):
                an.BatchNorm2d(3, **options)(x)
        with self.assertRaisesRegex(ValueError, "input is of torch's type Int, must be float64, .* or bfloat16$"):
            an.BatchNorm2d(4)(x.int())
        for module in (an.BatchNorm2d(3).eval(), an.GroupNorm(1, 3)):
            with self.assertRaisesRegex(ValueError, "^input has 4 channels, must have 3$"):
                module(x)
        for options, text in (
            ({"renorm": True}, "^renorm is True, must be RenormOptions or None$"),
            ({"window": 2, "compensate": True}, "^compensate is True, must be a convolution or linear layer, or None$"),
        ):
            with self.assertRaisesRegex(ValueError, text):
                an.BatchNorm2d(3, **options)
        with self.assertRaisesRegex(ValueError, "eps"):
            an.BatchNorm2d(3, eps=-1)
        with self.assertRaisesRegex(ValueError, "sync is 'all'"):
            an.BatchNorm2d(3, sync="all")
        with self.assertRaisesRegex(ValueError, "track_running_stats"):
            an.BatchNorm2d(3, window=2, track_running_stats=False)
        with self.assertWarnsRegex(UserWarning, "init_process_group was not called"):
            an.SyncBatchNorm(4)(x)


    def test_devices_that_are_mixed(self):
        x = normal(2, 4, 5, 5, dtype=torch.float32)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            own = an.BatchNorm2d(4)
            moved = getattr(own, name).to("meta")
            setattr(own, name, nn.Parameter(moved) if name in ("weight", "bias") else moved)
            with self.subTest(name), self.assertRaisesRegex(ValueError, f"^{name} is on meta, must be on cpu as input$"):
                own(x)
        with self.assertRaisesRegex(ValueError, "^weight is on cpu, must be on meta as input$"):
            an.BatchNorm2d(4)(x.to("meta"))
        self.assertTrue(an.BatchNorm2d(4, device="meta")(x.to("meta")).is_meta)

    def test_states_of_other_layers(self):
        window = an.BatchNorm2d(4, window=3)
        window(normal(2, 4, 5, 5, dtype=torch.float32))
        for own, state, text in (
            (an.BatchNorm2d(4), an.BatchNorm2d(5).state_dict(), "size mismatch for running_mean"),
            (an.BatchNorm2d(4), an.GroupNorm(1, 4).state_dict(), 'Missing key.*"running_mean"'),
            (an.BatchNorm2d(4), window.state_dict(), 'Unexpected key.*"allnorm_past"'),
            (an.BatchNorm2d(4, window=5), window.state_dict(), "it is of a layer with another window"),
        ):
            with self.subTest(text), self.assertRaisesRegex(RuntimeError, text):
                own.load_state_dict(state)


class History(Case):
    def test_a_window_averages_iterations(self):
        own = an.BatchNorm2d(3, window=3, dtype=F64)
        xs = [normal(2, 3, 4, 4, seed=seed) * (seed + 1) for seed in range(4)]
        for x in xs:
            own(x)
        moments = [(x.mean((0, 2, 3)), x.square().mean((0, 2, 3))) for x in xs[-3:]]
        mean = sum(m for m, _ in moments) / 3
        # A past second moment below its squared mean counts as equal to it; here none is.
        var = sum(s for _, s in moments) / 3 - mean.square()
        self.same([own.statistics().mean, own.statistics().var], [mean, var], 1e-11)

    def test_minibatches_share_statistics(self):
        own = an.BatchNorm2d(3, minibatches=2, dtype=F64)
        first, second, third = (normal(2, 3, 4, 4, seed=seed) + seed for seed in range(3))
        own(first), own(second)

        def expect_statistics_of(*batches):
            frame, each = own.statistics(), [(b.mean((0, 2, 3)), b.square().mean((0, 2, 3))) for b in batches]
            mean, square = (sum(parts) / len(batches) for parts in zip(*each))
            self.same([frame.mean, frame.var], [mean, square - mean.square()], 1e-11)

        expect_statistics_of(first, second)
        own(third)  # of a new batch
        expect_statistics_of(third)
        own.begin_batch()  # which is not complete
        own(first)
        expect_statistics_of(first)
        own(third)
        expect_statistics_of(first, third)

    def test_renorm(self):
        own, x = an.BatchNorm2d(3, renorm=an.RenormOptions(r_max=2, d_max=1), dtype=F64), normal(4, 3, 4, 4) * 1.5 + 0.3
        y = own(x)
        frame = own.statistics()
        sigma = (frame.var + own.eps).sqrt()
        r = sigma.clamp(0.5, 2)  # the running sigma was 1, the running mean 0
        d = frame.mean.clamp(-1, 1)
        shape = (1, 3, 1, 1)
        expected = (x - frame.mean.view(shape)) / sigma.view(shape) * r.view(shape) + d.view(shape)
        self.same([frame.r, frame.d, y.detach()], [r, d, expected], 1e-4)

    def test_goes_on_after_saving(self):
        for options in ({"window": 3}, {"minibatches": 3, "weighting": "count"}):
            one, x = an.BatchNorm2d(3, **options), normal(2, 3, 4, 4, dtype=torch.float32)
            one(x)
            state = one.state_dict()
            self.assertIn("allnorm_past", state)
            other = an.BatchNorm2d(3, **options)
            other.load_state_dict(state)
            for step in range(3):
                self.assertTrue(torch.equal(one(x * step + 1), other(x * step + 1)))
            self.assertTrue(torch.equal(one.running_var, other.running_var))
            other.load_state_dict(nn.BatchNorm2d(3).state_dict())  # begins anew
            self.assertEqual(set(other.state_dict()), set(nn.BatchNorm2d(3).state_dict()))
            with self.assertRaisesRegex(RuntimeError, "another window"):
                an.BatchNorm2d(3, window=7).load_state_dict(state)

    def test_a_window_follows_the_convolution(self):
        torch.manual_seed(0)
        conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        own = an.ConvBatchNorm2d(conv, window=2).double()
        x = normal(4, 2, 6, 6)
        own(x)
        change = 1e-4 * normal(*conv.weight.shape, seed=3)
        with torch.no_grad():
            conv.weight += change
        own(x)  # the past entry, moved to these weights, is what this call has itself but for the second order
        y = conv(x)
        self.assertLess((own.norm.statistics().mean - y.mean((0, 2, 3))).abs().max(), 1e-12)
        self.assertLess((own.norm.statistics().var - y.var((0, 2, 3), correction=0)).abs().max(), 1e-6)
        half = an.ConvBatchNorm2d(nn.Conv2d(2, 3, 3, bias=False), window=2).bfloat16()
        for _ in range(2):
            self.assertEqual(half(x.bfloat16()).dtype, torch.bfloat16)
        with self.assertRaisesRegex(ValueError, "bias"):
            an.ConvBatchNorm2d(nn.Conv2d(2, 3, 3), window=2)

    def test_layers_of_one_name_follow_convolutions_of_other_sizes(self):
        # Both are one layer to the operators, whose scratch depends on the convolution: 8 MB more behind the second.
        layers = [an.ConvBatchNorm2d(nn.Conv2d(n, 256, 1, bias=False), window=2) for n in (8, 2048)]
        for _ in range(2):
            for layer in layers:
                y = layer(normal(2, layer.conv.in_channels, 4, 4, dtype=torch.float32))
                self.assertTrue(y.isfinite().all())
                y.sum().backward()


class Samples(Case):
    def test_are_torchs(self):
        x = normal(3, 6, 4, 5)
        for own, other in (
            (an.GroupNorm(3, 6, dtype=F64), nn.GroupNorm(3, 6, dtype=F64)),
            (an.GroupNorm(3, 6, affine=False), nn.GroupNorm(3, 6, affine=False)),
            (an.LayerNorm((4, 5), dtype=F64), nn.LayerNorm((4, 5), dtype=F64)),
            (an.LayerNorm(5, bias=False, dtype=F64), nn.LayerNorm(5, bias=False, dtype=F64)),
            (an.RMSNorm(5, dtype=F64), nn.RMSNorm(5, dtype=F64)),
            (an.RMSNorm((4, 5), eps=1e-3, dtype=F64), nn.RMSNorm((4, 5), eps=1e-3, dtype=F64)),
            (an.InstanceNorm2d(6), nn.InstanceNorm2d(6)),
            (
                an.InstanceNorm2d(6, affine=True, track_running_stats=True, dtype=F64),
                nn.InstanceNorm2d(6, affine=True, track_running_stats=True, dtype=F64),
            ),
        ):
            with self.subTest(str(own)):
                self.assertEqual(list(own.state_dict()), list(other.state_dict()))
                randomize(other)
                own.load_state_dict(other.state_dict())
                for mode in (True, False):
                    own.train(mode), other.train(mode)
                    dy = normal(*x.shape, seed=1)
                    self.same(gradients(own, x, dy), gradients(other, x, dy))
                    self.same(list(own.buffers()), list(other.buffers()))

    def test_options_may_change_later(self):
        x, dy = normal(3, 6, 4, 5), normal(3, 6, 4, 5, seed=1)
        for own, other, changes in (
            (an.GroupNorm(3, 6), nn.GroupNorm(3, 6), [("eps", 0.5), ("num_groups", 2)]),
            (an.LayerNorm(5), nn.LayerNorm(5), [("eps", 0.5)]),
            (an.RMSNorm(5), nn.RMSNorm(5), [("eps", 0.5)]),
            (
                an.InstanceNorm2d(6, track_running_stats=True),
                nn.InstanceNorm2d(6, track_running_stats=True),
                [("eps", 0.5), ("momentum", 0.7), ("momentum", None)],
            ),
        ):
            own, other = own.double(), other.double()
            for name, value in [("training", True), *changes]:
                setattr(own, name, value), setattr(other, name, value)
                with self.subTest(str(own), name=name):
                    self.same(gradients(own, x, dy), gradients(other, x, dy))
                    self.same(list(own.buffers()), list(other.buffers()))
        with self.assertRaisesRegex(ValueError, "eps"):
            setattr(own, "eps", -1), own(x)
        layer = an.FilterResponseNorm2d(6, dtype=F64)
        y = layer(x)
        layer.eps = 0.5
        expected = torch.relu(x / (x.square().mean((2, 3), keepdim=True) + 0.5).sqrt())
        self.same([layer(x)], [expected])
        self.assertFalse(torch.equal(y, expected))
        layer = an.GroupNorm(3, 6, dtype=F64)
        layer.activation = "relu"
        self.same([layer(x)], [torch.relu(nn.GroupNorm(3, 6, dtype=F64)(x))])

    def test_running_statistics_of_instance_norm_keep_their_type(self):
        x = normal(3, 6, 4, 5, dtype=torch.float32)
        for type_ in (torch.float16, torch.bfloat16):
            own = an.InstanceNorm2d(6, affine=True, track_running_stats=True).to(type_)
            self.assertEqual((own.weight.dtype, own.running_mean.dtype), (type_, torch.float32))
            own(x.to(type_))
            expected = 0.9 + 0.1 * x.to(type_).double().var((2, 3)).mean(0)
            torch.testing.assert_close(own.running_var.double(), expected, rtol=1e-6, atol=0)
            y = own.eval()(x.to(type_))
            self.assertEqual(y.dtype, type_)
            mean, var = (b.double().view(1, 6, 1, 1) for b in (own.running_mean, own.running_var))
            exact = (x.to(type_).double() - mean) / (var + own.eps).sqrt()
            torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(type_).eps, atol=1e-5)

    def test_what_layers_were_once_is_not_kept_for_ever(self):
        from allnorm.torch import _ops as ops

        self.assertIsNotNone(ops._halves.cache_info().maxsize)
        self.assertIsNotNone(ops.sizes.cache_info().maxsize)

    def test_instance_norm_without_a_batch(self):
        x = normal(6, 4, 5)
        self.same([an.InstanceNorm2d(6)(x)], [nn.InstanceNorm2d(6)(x)])
        self.same([an.InstanceNorm1d(6)(x[:, 0])], [nn.InstanceNorm1d(6)(x[:, 0])])
        self.same([an.InstanceNorm3d(6)(x[:, None])], [nn.InstanceNorm3d(6)(x[:, None])])

    def test_filter_response_norm(self):
        own, x = an.FilterResponseNorm2d(3, learn_eps=True, dtype=F64), normal(2, 3, 4, 5)
        randomize(own)
        shape = (1, 3, 1, 1)
        w, b, tau, e = (tensor.view(shape) for tensor in (own.weight, own.bias, own.tau, own.eps_learned))
        expected = torch.maximum(w * x / (x.square().mean((2, 3), keepdim=True) + own.eps + e.abs()).sqrt() + b, tau)
        self.same([own(x)], [expected])
        inputs = (x.requires_grad_(), own.weight, own.bias, own.tau, own.eps_learned)
        names = ("weight", "bias", "tau", "eps_learned")

        def function(x, *parameters):
            return torch.func.functional_call(own, dict(zip(names, parameters)), (x,))

        self.assertTrue(torch.autograd.gradcheck(function, inputs))

    def test_positional_norm(self):
        own, x = an.PositionalNorm2d(), normal(2, 3, 4, 5).requires_grad_()
        expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + own.eps).sqrt()
        dy = normal(2, 3, 4, 5, seed=1)
        self.same([own(x), *torch.autograd.grad(own(x), x, dy)], [expected, *torch.autograd.grad(expected, x, dy)])

    def test_activation_and_residual(self):
        x, residual, dy = normal(2, 6, 4, 4), normal(2, 6, 4, 4, seed=1), normal(2, 6, 4, 4, seed=2)
        own, other = an.GroupNorm(2, 6, activation="relu", dtype=F64), nn.GroupNorm(2, 6, dtype=F64)
        together = _WithResidual(other, F.relu)
        self.same(gradients(own, x, dy, residual), gradients(together, x, dy, residual))
        self.same(gradients(own.eval(), x, dy, residual), gradients(together, x, dy, residual))

    def test_bad_options(self):
        for make in (
            lambda: an.GroupNorm(4, 6),
            lambda: an.LayerNorm(4, eps=-1),
            lambda: an.RMSNorm(4, activation="gelu"),
        ):
            with self.assertRaises(ValueError):
                make()


class Compiled(Case):
    def test_whole_graphs(self):
        x, dy = normal(2, 3, 4, 5, dtype=torch.float32), normal(2, 3, 4, 5, seed=1, dtype=torch.float32)
        for make in (
            lambda: an.BatchNorm2d(3, activation="relu"),
            lambda: an.BatchNorm2d(3, window=2),
            lambda: an.GroupNorm(1, 3),
            lambda: an.LayerNorm(5),
        ):
            expected = gradients(plain := make(), x, dy)
            for backend in ("eager", "aot_eager"):
                own = make()
                with self.subTest(type(own).__name__, backend=backend):
                    compiled = torch.compile(own, backend=backend, fullgraph=True)
                    self.same(gradients(compiled, x, dy), expected, 0)
                    self.same(list(own.buffers()), list(plain.buffers()), 0)

    def test_any_batch_size(self):
        for own, other in ((an.BatchNorm2d(3), nn.BatchNorm2d(3)), (an.GroupNorm(1, 3), nn.GroupNorm(1, 3))):
            compiled = torch.compile(own, backend="aot_eager", fullgraph=True, dynamic=True)
            for size in (2, 5):
                x = normal(size, 3, 4, 4, dtype=torch.float32)
                self.same([compiled(x)], [other(x)], 1e-5)

    def test_inductor(self):
        x, dy = normal(2, 3, 4, 5, dtype=torch.float32), normal(2, 3, 4, 5, seed=1, dtype=torch.float32)
        own, other = an.BatchNorm2d(3), an.BatchNorm2d(3)
        self.same(gradients(torch.compile(own, fullgraph=True), x, dy), gradients(other, x, dy), 0)
        self.assertTrue(torch.equal(own.running_var, other.running_var))

    def test_operators(self):
        x = normal(2, 3, 4, 5, dtype=torch.float32)
        weight, bias, mean, var = torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3)
        state = (mean, var, torch.tensor(0))
        layer = "batch_norm:eps=1e-05:activation=relu"
        for residual in (None, x.flip(0)):
            inputs = (x, residual, weight, bias, None, None, None, None)
            y, frame, mask = _ops.forward(*inputs, None, *state, layer, "bn")
            given = (
                x,
                x,
                weight,
                bias,
                None,
                None,
                frame,
                mask,
                [True, residual is not None, True, True, False, False],
            )
            for op, arguments in (
                (_ops.forward, (*inputs, None, *state, layer, "bn")),
                (_ops.replay, (x, residual, weight, bias, None, None, frame, layer, "bn")),
                (_ops.backward, (*given, layer, "bn")),
                (_ops.forward_local, (*inputs, None, *state, layer + ":sync=world", "bn", 0, 2)),
                (_ops.backward_local, (*given, layer + ":sync=world", "bn", 0, 2)),
            ):
                with self.subTest(str(op), residual=residual is not None):
                    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


class Operators(Case):
    """Called by hand: what is not as the modules give it is refused, whatever memory it is."""

    def setUp(self):
        self.x, self.layer = normal(2, 3, 4, 5, dtype=torch.float32), ("batch_norm:activation=relu", "bn")
        self.inputs = (self.x, self.x, None, None, None, None, None, None)
        _, self.frame, self.mask = _ops.forward(*self.inputs, None, None, None, None, *self.layer)

    def test_frames_and_masks_are_looked_at(self):
        def replay(frame):
            return _ops.replay(self.x, self.x, None, None, None, None, frame, *self.layer)

        def backward(frame, mask):
            wanted = [True, True, False, False, False, False]
            return _ops.backward(self.x, self.x, None, None, None, None, frame, mask, wanted, *self.layer)

        size = self.frame.numel()
        replay(self.frame), backward(self.frame, self.mask)
        for frame in (
            self.frame[:-1],
            self.frame.new_empty(0),
            self.frame.float(),
            torch.cat([self.frame, self.frame])[::2],
            torch.empty(0, dtype=F64),
        ):
            for call in (lambda: replay(frame), lambda: backward(frame, self.mask)):
                text = rf"frame is .*, must be {size} contiguous values of Double on the CPU \[allnorm: code=1"
                with self.subTest(shape=frame.shape), self.assertRaisesRegex(RuntimeError, text):
                    call()
        for mask in (self.mask[:-1], self.mask.to(torch.int16), torch.cat([self.mask, self.mask])[::2]):
            with self.assertRaisesRegex(RuntimeError, "mask is .*, must be 15 contiguous values of Byte on the CPU"):
                backward(self.frame, mask)

    def test_heads_are_looked_at(self):
        for heads, text in (
            (torch.zeros((), dtype=torch.uint8), "heads have 0 axes, must have 2"),
            (torch.zeros(1000, dtype=torch.uint8), "heads have 1 axes, must have 2"),
            (torch.zeros(2, 8, dtype=torch.uint8), f"heads have 8 bytes each, must have at least {_ops.HEAD}"),
            (torch.zeros(2, _ops.HEAD + 1, dtype=torch.uint8), "and a multiple of 8"),
            (torch.zeros(2, _ops.HEAD), "heads is .* values of Float on the CPU, must be .* of Byte"),
        ):
            with self.assertRaisesRegex(RuntimeError, text):
                _ops.check_heads(heads, "batch_norm:sync=world", "bn", 0)

    def test_a_first_half_that_cannot_begin_declines(self):
        x = self.x
        for layer, given, text in (
            ("batch_norm:eps=-1", x, "eps"),
            ("layer_norm:normalized_shape=7", x, "normalized_shape"),
            ("batch_norm", x[0, 0, 0], "axes"),
        ):
            inputs = (given, None, None, None, None, None, None, None, None, None, None, None)
            record = _ops.forward_local(*inputs, layer + ":sync=world", "bn", 1, 2)
            heads = torch.stack([record[: _ops.HEAD]] * 2)
            with self.assertRaisesRegex(RuntimeError, f"rank 0 failed: .*{text}"):
                _ops.check_heads(heads, "batch_norm:sync=world", "bn", 1)
            wanted = [True, False, False, False, False, False]
            gradients = (given, given, None, None, None, None, self.frame, self.mask, wanted)
            record, *_ = _ops.backward_local(*gradients, layer + ":sync=world", "bn", 1, 2)
            heads = torch.stack([record[: _ops.HEAD]] * 2)
            with self.assertRaisesRegex(RuntimeError, f"rank 0 failed: .*{text}"):
                _ops.check_heads(heads, "batch_norm:sync=world", "bn", 1)

    def test_declining(self):
        for direction in (0, 1):
            arguments = (self.x, direction, 3, "no time", "batch_norm:sync=world", "bn", 0, 2)
            torch.library.opcheck(_ops.decline, arguments, test_utils=("test_schema", "test_faketensor"))
            records = torch.stack([_ops.decline(*arguments)] * 2)
            with self.assertRaisesRegex(RuntimeError, "rank 0 failed: no time"):
                _ops.check_heads(records, "batch_norm:sync=world", "bn", 0)


class Checkpointing(Case):
    def test_the_second_time_replays(self):
        torch.manual_seed(0)
        make = lambda: nn.Sequential(  # noqa: E731
            nn.Conv2d(2, 3, 3), an.BatchNorm2d(3, activation="relu"), nn.Conv2d(3, 3, 1), an.BatchNorm2d(3, window=2)
        )
        plain = make()
        checkpointed = copy.deepcopy(plain)
        x = normal(2, 2, 6, 6, dtype=torch.float32)
        for _ in range(2):
            found = []
            for model, function in (
                (plain, plain),
                (
                    checkpointed,
                    lambda x: torch.utils.checkpoint.checkpoint(
                        checkpointed, x, use_reentrant=False, context_fn=an.checkpoint_context
                    ),
                ),
            ):
                inputs = x.clone().requires_grad_()
                y = function(inputs)
                found.append([y, *torch.autograd.grad(y.square().sum(), [inputs, *model.parameters()])])
            self.same(*found, 0)
        self.same(list(checkpointed.state_dict().values()), list(plain.state_dict().values()), 0)


class Importing(unittest.TestCase):
    def test_says_what_is_missing(self):
        for prepare, text in (
            ("sys.modules['torch'] = None", "allnorm.torch needs torch >= 2.10, which is not installed"),
            (
                "sys.modules['torch'] = types.SimpleNamespace(__version__='2.9.1+cpu')",
                "torch is 2.9.1.cpu, must be at least 2.10",
            ),
            ("os.environ['ALLNORM_TORCH_LIBRARY'] = '/nowhere.so'", "/nowhere.so is not there"),
        ):
            program = f"import os, sys, types; {prepare}; import allnorm.torch"
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
            self.assertRegex(done.stderr, "ImportError: " + text)


class _Then(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class _WithResidual(nn.Module):
    def __init__(self, norm, function):
        super().__init__()
        self.norm, self.function = norm, function

    def forward(self, x, residual):
        return self.function(self.norm(x) + residual)


def _saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


if __name__ == "__main__":
    unittest.main()
