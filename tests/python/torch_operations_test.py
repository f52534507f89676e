"""allnorm.torch: the modules over the C interface, against what their papers say in torch's operators."""

import copy
import unittest

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import allnorm.torch as an

F64 = torch.float64
LABELS = torch.tensor([0, 2, 1, 2])
SHAPE = (4, 6, 3, 2)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def shaken(module):
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter += 0.3 * normal(*parameter.shape, seed=20 + index)
    return module


def rows(tensor):
    return tensor[LABELS][:, :, None, None]


def instance(x, correction=0):
    mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=correction)
    return mean, (var + 1e-5).sqrt()


def switched(module, x):
    means = [x.mean(axes, keepdim=True) for axes in ((2, 3), (1, 2, 3), (0, 2, 3))]
    variances = [x.var(axes, keepdim=True, correction=0) for axes in ((2, 3), (1, 2, 3), (0, 2, 3))]
    mean = sum(w * m for w, m in zip(module.mean_logits.softmax(0), means))
    var = sum(w * v for w, v in zip(module.var_logits.softmax(0), variances))
    shape = (1, -1, 1, 1)
    return (x - mean) / (var + 1e-5).sqrt() * module.weight.view(shape) + module.bias.view(shape)


def adaptive(module, x, style):
    (mean, sigma), (style_mean, style_sigma) = instance(x), instance(style)
    return (x - mean) / sigma * style_sigma + style_mean


def standardized(module, x):
    weight = module.weight
    mean, var = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True, correction=0)
    return F.conv2d(x, (weight - mean) / (var + 1e-5).sqrt() * module.gain.view(-1, 1, 1, 1), module.bias)


CASES = {  # name: module, inputs beside x, definition
    "switchable": (an.SwitchableNorm2d(6, dtype=F64), (), switched),
    "conditional batch": (
        an.ConditionalBatchNorm2d(6, 3, dtype=F64),
        (LABELS,),
        lambda m, x, _: F.batch_norm(x, None, None, training=True) * rows(m.weight) + rows(m.bias),
    ),
    "conditional instance": (
        an.ConditionalInstanceNorm2d(6, 3, dtype=F64),
        (LABELS,),
        lambda m, x, _: F.instance_norm(x) * rows(m.weight) + rows(m.bias),
    ),
    "adaptive": (an.AdaIN(), (normal(4, 6, 2, 5, seed=3),), adaptive),
    "spade": (
        an.SPADE2d(6),
        (normal(*SHAPE, seed=4), normal(*SHAPE, seed=5)),
        lambda m, x, gamma, beta: F.batch_norm(x, None, None, training=True) * (1 + gamma) + beta,
    ),
    "spade on instances": (
        an.SPADE2d(6, base="instance_norm"),
        (normal(*SHAPE, seed=4), normal(*SHAPE, seed=5)),
        lambda m, x, gamma, beta: F.instance_norm(x) * (1 + gamma) + beta,
    ),
    "mean only": (
        an.MeanOnlyBatchNorm(6, dtype=F64),
        (),
        lambda m, x: x - x.mean((0, 2, 3), keepdim=True) + m.bias.view(1, -1, 1, 1),
    ),
    "moments": (
        an.MomentShortcut(),
        (normal(4, 1, *SHAPE[2:], seed=4), normal(4, 1, *SHAPE[2:], seed=5)),
        lambda m, x, gamma, beta: x * gamma + beta,
    ),
    "local response": (an.LocalResponseNorm(3, alpha=0.5), (), lambda m, x: F.local_response_norm(x, 3, 0.5)),
    "weight standardization": (an.WeightStandardizedConv2d(6, 2, 2, gain=True, dtype=F64), (), standardized),
}


class Operations(unittest.TestCase):
    def close(self, found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)

    def test_are_what_papers_say(self):
        for name, (module, more, definition) in CASES.items():
            for last in (False, True):
                with self.subTest(name, channels_last=last):
                    own, x = shaken(copy.deepcopy(module)), normal(*SHAPE)
                    x = x.contiguous(memory_format=torch.channels_last) if last else x
                    inputs = [x, *more]
                    found = []
                    for function in (own, lambda *given: definition(own, *given)):
                        given = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
                        y = function(*given)
                        leaves = [*(t for t in given if t.requires_grad), *own.parameters()]
                        dy = normal(*y.shape, seed=9)
                        found.append([y.detach(), *torch.autograd.grad(y, leaves, dy)])
                    self.close(*found)

    def test_cosines(self):
        own, x = an.CosineLinear(5, 3, eps=0, dtype=F64), normal(4, 2, 5).requires_grad_()
        expected = F.cosine_similarity(x[..., None, :], own.weight, dim=-1)
        dy = normal(4, 2, 3, seed=1)
        leaves = (x, own.weight)
        self.close(
            [own(x), *torch.autograd.grad(own(x), leaves, dy)], [expected, *torch.autograd.grad(expected, leaves, dy)]
        )

    def test_whitening(self):
        x = normal(64, 4, 2, 2)
        x[:, 1] += 0.5 * x[:, 0]
        for own, tolerance in (
            (an.DecorrelatedBatchNorm(4, 2, dtype=F64), 1e-4),
            (an.IterNorm(4, 2, 9, dtype=F64), 1e-3),
        ):
            y = own(x).detach().movedim(1, 0).reshape(4, -1)
            for group in (y[:2], y[2:]):
                self.assertLess((torch.cov(group, correction=0) - torch.eye(2, dtype=F64)).abs().max(), tolerance)
            self.assertTrue(torch.autograd.gradcheck(own, (normal(5, 4, 1, 2).requires_grad_(),)))

    def test_state(self):
        x = normal(*SHAPE)
        for own, more in (
            (an.SwitchableNorm2d(6, dtype=F64), ()),
            (an.ConditionalBatchNorm2d(6, 3, dtype=F64), (LABELS,)),
            (an.IterNorm(6, 3, dtype=F64), ()),
        ):
            with self.subTest(type(own).__name__):
                before = {name: value.clone() for name, value in own.named_buffers()}
                own(x, *more)
                self.assertFalse(torch.equal(own.running_mean, before["running_mean"]))
                other = copy.deepcopy(own)
                kept = {name: value.clone() for name, value in own.named_buffers()}
                other(x + 1, *more)
                self.assertTrue(all(torch.equal(value, kept[name]) for name, value in own.named_buffers()))
                other.load_state_dict(own.state_dict())
                self.assertTrue(torch.equal(own.eval()(x, *more), other.eval()(x, *more)))
                self.assertTrue(all(torch.equal(value, kept[name]) for name, value in own.named_buffers()))

    def test_checkpointing_changes_no_state_twice(self):
        own, x = torch.nn.Sequential(an.SwitchableNorm2d(6, dtype=F64), torch.nn.Sigmoid()), normal(*SHAPE)
        context = an.checkpoint_context
        y = torch.utils.checkpoint.checkpoint(own, x.requires_grad_(), use_reentrant=False, context_fn=context)
        kept = own[0].running_mean.clone()
        y.sum().backward()
        self.assertTrue(torch.equal(own[0].running_mean, kept))

    def test_an_input_that_was_changed_is_refused(self):
        x = normal(*SHAPE).requires_grad_() * 1
        y = an.AdaIN()(x, normal(*SHAPE, seed=1))
        x.mul_(0)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            y.sum().backward()

    def test_labels_of_any_integer_type(self):
        own, x = shaken(an.ConditionalBatchNorm2d(6, 3, dtype=F64)), normal(*SHAPE)
        self.close(own(x, LABELS.int()), own(x, LABELS))

    def test_any_row(self):
        own, x = an.Operation("group_norm:groups=2"), normal(*SHAPE)
        self.close(own(x, weight=torch.ones(6)), F.group_norm(x, 2))

    def test_weight_norm_is_torchs(self):
        x = normal(4, 6, 5, 5)
        for make, dim in ((lambda: nn.Conv2d(6, 3, 3), 0), (lambda: nn.ConvTranspose2d(6, 3, 3), 1)):
            torch.manual_seed(0)
            own, plain = make().double(), make().double()
            before = own.weight.detach().clone()
            own, plain = an.weight_norm(own, dim=dim), parametrizations.weight_norm(plain, dim=dim)
            self.close(own.weight.detach(), before)
            self.assertEqual(list(own.state_dict()), list(plain.state_dict()))
            plain.load_state_dict({name: value * 1.5 for name, value in own.state_dict().items()})
            own.load_state_dict(plain.state_dict())
            own = copy.deepcopy(own)
            found = [[m(x), *torch.autograd.grad(m(x).square().sum(), list(m.parameters()))] for m in (own, plain)]
            self.close(*found)
            parametrize.remove_parametrizations(own, "weight")
            self.close(own(x), found[0][0])

    def test_weight_norm_started_from_data(self):
        x = normal(16, 6, 5, 5) * 3 + 1
        for make in (nn.Conv2d, nn.ConvTranspose2d):
            own = make(6, 3, 3).double()
            y = an.weight_norm(own, dim=int(make is nn.ConvTranspose2d), data=x)(x)
            var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
            self.close([var, mean], [torch.ones(3, dtype=F64), torch.zeros(3, dtype=F64)])
        with self.assertRaisesRegex(ValueError, "variance of channel 0 of the data's outputs is 0.0, must be finite and above 0"):
            an.weight_norm(nn.Conv2d(6, 3, 3), data=torch.zeros(2, 6, 5, 5))

    def test_bad_input(self):
        with self.assertRaisesRegex(ValueError, "size"):
            an.LocalResponseNorm(0)
        with self.assertRaises(ValueError):
            an.ConditionalBatchNorm2d(6, 3)(normal(*SHAPE), torch.tensor([0, 1, 2, 3]))
        with self.assertRaisesRegex(ValueError, "complex128"):
            an.LocalResponseNorm(3)(normal(*SHAPE).to(torch.complex128))
        with self.assertRaisesRegex(an.Error, "meta"):
            an.AdaIN()(normal(*SHAPE), torch.empty(4, 6, 2, 2, device="meta"))


if __name__ == "__main__":
    unittest.main()
