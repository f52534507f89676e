"""allnorm.torch: what helps around a training: convolutions that take norms over, and curves of the statistics."""

import unittest

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import allnorm.torch as an


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Pairs that can be fused (conv, up and both), and those that cannot."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), an.BatchNorm2d(4, activation="relu")
        self.both = an.ConvBatchNorm2d(nn.Conv2d(4, 4, 1, bias=False), window=2)
        self.up, self.after = nn.ConvTranspose2d(4, 4, 2, 2), nn.BatchNorm2d(4)
        self.branch, self.branch_norm = nn.Conv2d(4, 4, 1), an.BatchNorm2d(4)  # branch has another reader
        self.added, self.added_norm = nn.Conv2d(4, 4, 1), an.BatchNorm2d(4)  # with a residual
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 1), an.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = self.after(self.up(self.both(x)))
        y = self.branch(x)
        x = self.branch_norm(y) + y
        x = self.added_norm(self.added(x), x)
        for _ in range(2):
            x = self.twice_norm(self.twice(x))
        return x


class Fuse(unittest.TestCase):
    def trained(self, model):
        for seed in range(3):
            model(normal(4, 3, 6, 6, seed=seed) * 3 + 1)
        return model.eval()

    def test_outputs_stay(self):
        own, x = self.trained(Net()), normal(2, 3, 6, 6)
        fused = an.fuse(own)
        self.assertIsInstance(fused, Net)
        torch.testing.assert_close(fused(x), own(x), rtol=1e-4, atol=1e-4)
        left = {name for name, module in fused.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
        self.assertEqual(left, {"branch_norm", "added_norm", "twice_norm"})
        self.assertIsInstance(own.norm, an.BatchNorm2d)  # a copy was fused
        self.assertIs(an.fuse(own, inplace=True), own)

    def test_activation_behind_the_norm_stays(self):
        class BatchNormAct2d(nn.BatchNorm2d):  # as in timm
            def __init__(self, channels):
                super().__init__(channels)
                self.drop, self.act = nn.Identity(), nn.LeakyReLU(0.3)

            def forward(self, x):
                return self.act(self.drop(super().forward(x)))

        own = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4))
        an.convert(own, "batch_norm")
        self.trained(own)
        fused, x = an.fuse(own), normal(2, 3, 6, 6)
        torch.testing.assert_close(fused(x), own(x), rtol=1e-5, atol=1e-5)
        self.assertFalse(any(isinstance(module, an.BatchNorm) for module in fused.modules()))

    def test_what_stays_as_it_is(self):
        class Doubled(nn.Conv2d):
            def forward(self, x):
                return 2 * super().forward(x)

        class ReadsWeight(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 4, 1), an.BatchNorm2d(4)

            def forward(self, x):
                return self.norm(self.conv(x)) + self.conv.weight.sum()

        hooked = nn.Sequential(nn.Conv2d(3, 4, 1), an.BatchNorm2d(4))
        hooked[1].register_forward_hook(lambda module, inputs, y: y + 1)
        grouped = nn.Sequential(nn.ConvTranspose2d(3, 3, 2, groups=3), an.BatchNorm2d(3))
        untracked = nn.Sequential(nn.Conv2d(3, 4, 1), an.BatchNorm2d(4, track_running_stats=False))
        for own in (nn.Sequential(Doubled(3, 4, 1), an.BatchNorm2d(4)), ReadsWeight(), hooked, grouped, untracked):
            self.trained(own)
            with self.assertWarnsRegex(UserWarning, "no batch norm that a convolution could take over"):
                fused = an.fuse(own)
            self.assertTrue(torch.equal(fused(normal(2, 3, 6, 6)), own(normal(2, 3, 6, 6))))

    def test_bad_input(self):
        class Branches(nn.Module):
            def forward(self, x):
                return x if x.sum() > 0 else -x

        with self.assertRaisesRegex(ValueError, "in training, must be in evaluation"):
            an.fuse(Net())
        with self.assertRaisesRegex(ValueError, "Branches cannot be traced by torch.fx"):
            an.fuse(Branches().eval())
        with self.assertRaisesRegex(ValueError, "OptimizedModule"):
            an.fuse(torch.compile(Net().eval()))


class Statistics(unittest.TestCase):
    def test_drift_is_from_the_statistics_before(self):
        own, curves = nn.Sequential(an.BatchNorm2d(3)), {}
        hook = an.statistics_hook(own, every=2, writer=curves)
        for step in range(1, 6):
            x = normal(4, 3, 5, 5, seed=step) * step + step
            mean, var = own[0].running_mean.clone(), own[0].running_var.clone()
            own(x)
            if step % 2:
                continue
            found, deviation = {name: curves[name][-1] for name in curves}, (var + 1e-5).sqrt()
            drift = ((x.mean((0, 2, 3)) - mean) / deviation).abs().mean()
            ratio = ((x.var((0, 2, 3), unbiased=False) + 1e-5) / (var + 1e-5)).log().abs().mean()
            self.assertEqual({at for at, _ in found.values()}, {step})
            self.assertAlmostEqual(found["0/mean_drift"][1], drift.item(), places=5)
            self.assertAlmostEqual(found["0/var_drift"][1], ratio.item(), places=5)
        self.assertEqual([at for at, _ in curves["0/mean_drift"]], [2, 4])
        own.eval()(x)
        hook.remove()
        own.train()(x)
        self.assertEqual(len(curves["0/mean_drift"]), 2)
        self.assertEqual(set(curves), {"0/mean_drift", "0/var_drift"})

    def test_share_of_clipped_channels(self):
        class Writer:
            values = {}

            def add_scalar(self, tag, value, step):
                self.values[tag, step] = value

        writer = Writer()
        own = nn.Sequential(an.BatchNorm1d(4, renorm=an.RenormOptions(r_max=1.5, d_max=0.5)))
        an.statistics_hook(own, every=1, writer=writer)
        unit = torch.tensor([-1.0, 1.0]).repeat(50)  # mean 0, variance 1, as running statistics are at first
        own(torch.stack([unit, unit * 2, unit / 4, unit + 1], 1))
        self.assertEqual(writer.values["0/r_clipped", 1], 0.5)
        self.assertEqual(writer.values["0/d_clipped", 1], 0.25)

    def test_only_calls_that_change_the_statistics(self):
        own = nn.Sequential(an.BatchNorm2d(3, minibatches=2), an.BatchNorm2d(3, track_running_stats=False))
        hook = an.statistics_hook(own, every=1)
        for call in range(4):
            x = normal(2, 3, 4, 4, seed=call).requires_grad_()
            y = checkpoint(own, x, use_reentrant=False, context_fn=an.checkpoint_context)
            F.relu(y).sum().backward()
        steps = [at for at, _ in hook.values["0/mean_drift"]]
        self.assertEqual(steps, sorted(set(steps)))
        self.assertEqual(steps[-1], own[0].num_batches_tracked)
        self.assertEqual(set(hook.values), {"0/mean_drift", "0/var_drift"})

    def test_bad_input(self):
        with self.assertRaisesRegex(ValueError, "every is 0, must be at least 1"):
            an.statistics_hook(nn.Sequential(), 0)


if __name__ == "__main__":
    unittest.main()
