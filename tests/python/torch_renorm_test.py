"""allnorm.torch: Batch Renormalization with schedules of its bounds, and with the paper's running deviation."""

import copy
import unittest

import torch
from torch import nn

import allnorm.torch as an

PAPER = an.RenormOptions(r_max=1.5, d_max=0.5, variant="paper")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x):
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


class Schedules(unittest.TestCase):
    options = an.RenormOptions(r_max=((1, 1), (3, 2)), d_max=[(0, 0), (4, 1)])

    def test_bounds(self):
        found = [self.options.bounds(call) for call in range(6)]
        self.assertEqual(found, [(1, 0), (1, 0.25), (1.5, 0.5), (2, 0.75), (2, 1), (2, 1)])
        self.assertEqual(an.RenormOptions().bounds(7), (3, 5))

    def test_calls_follow_them(self):
        own = an.BatchNorm2d(2, renorm=self.options, dtype=torch.float64)
        for call in range(6):
            own.reset_running_stats()  # the running deviation is 1 but for eps, the running mean 0
            own.num_batches_tracked.fill_(call)  # what counts the calls, in a state of torch's too
            own(10 * normal(4, 2, 5, 5, seed=call) + 10)
            r_max, d_max = self.options.bounds(call)
            frame = own.statistics()
            self.assertEqual((frame.r.tolist(), frame.d.tolist()), ([r_max] * 2, [d_max] * 2))

    def test_go_on_after_saving(self):
        for options in ({}, {"minibatches": 2}, {"window": 3}):
            own, x = an.BatchNorm2d(2, renorm=self.options, **options), normal(4, 2, 5, 5).float()
            for call in range(4):
                with self.subTest(options, call=call):
                    other = an.BatchNorm2d(2, renorm=self.options, **options)
                    other.load_state_dict(own.state_dict())
                    y = own(x * call + 3)
                    self.assertTrue(torch.equal(other(x * call + 3), y))

    def test_a_burn_in_goes_on_too(self):
        own, x = an.BatchNorm2d(2, window=2, burn_in=2), normal(4, 2, 5, 5).float()
        own(x)
        other = an.BatchNorm2d(2, window=2, burn_in=2)
        other.load_state_dict(own.state_dict())
        for call in range(4):
            self.assertTrue(torch.equal(other(x * call + 3), own(x * call + 3)))

    def test_clipped_shares(self):
        own = nn.Sequential(an.BatchNorm2d(2, renorm=an.RenormOptions(r_max=((0, 1), (4, 1e6)), d_max=1e6)))
        hook = an.statistics_hook(own, every=1)
        for call in range(3):
            own(1.1 * normal(4, 2, 5, 5, seed=call).float())
        self.assertEqual([value for _, value in hook.values["0/r_clipped"]], [1, 0, 0])

    def test_bad_input(self):
        for bound in (((3, 1), (1, 2)), ((0, 0.5),), ((-1, 2),), (), -1):
            with self.subTest(bound), self.assertRaisesRegex(ValueError, "attribute r_max is .*, must be a number of at least 1"):
                an.BatchNorm2d(2, renorm=an.RenormOptions(r_max=bound))
        with self.assertRaisesRegex(ValueError, "attribute variant is 'std', must be paper or var"):
            an.BatchNorm2d(2, renorm=an.RenormOptions(variant="std"))


class Paper(unittest.TestCase):
    def test_the_running_deviation_is_averaged(self):
        own = an.BatchNorm2d(3, renorm=PAPER, dtype=torch.float64)
        self.assertEqual(list(own.state_dict()), ["weight", "bias", "running_mean", "num_batches_tracked", "running_std"])
        mean, std = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        for step in range(3):
            x = normal(4, 3, 5, 5, seed=step) * (step + 1) + step
            m, v = moments(x)
            sigma = (v + own.eps).sqrt()
            r, d = (sigma / std).clamp(1 / 1.5, 1.5), ((m - mean) / std).clamp(-0.5, 0.5)
            expected = (x - m.view(1, 3, 1, 1)) / sigma.view(1, 3, 1, 1) * r.view(1, 3, 1, 1) + d.view(1, 3, 1, 1)
            torch.testing.assert_close(own(x), expected, rtol=1e-12, atol=1e-12)
            mean, std = 0.9 * mean + 0.1 * m, 0.9 * std + 0.1 * sigma
            torch.testing.assert_close([own.running_mean, own.running_std], [mean, std], rtol=1e-12, atol=1e-12)
        own.eval()
        expected = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        torch.testing.assert_close(own(x), expected, rtol=1e-12, atol=1e-12)

    def test_gradcheck(self):
        own = an.BatchNorm2d(2, renorm=PAPER, dtype=torch.float64)

        def call(x):
            own.reset_running_stats()
            return own(x)

        # r and d carry no gradient: where they are clipped they are constants.
        x = 10 * normal(3, 2, 3, 3) + 20
        self.assertTrue(torch.autograd.gradcheck(call, (x.requires_grad_(),)))

    def test_there_and_back(self):
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
        for step in range(3):
            plain(normal(2, 3, 6, 6, seed=step))
        own, x = copy.deepcopy(plain), normal(2, 3, 6, 6)
        an.convert(own, "batch_renorm", renorm=PAPER)
        self.assertNotIn("1.running_var", own.state_dict())
        torch.testing.assert_close(own[1].running_variance(), plain[1].running_var)
        torch.testing.assert_close(own.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)
        an.revert(own)
        self.assertEqual(list(own.state_dict()), list(plain.state_dict()))
        torch.testing.assert_close(own.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)

    def test_with_other_tools(self):
        own = nn.Sequential(an.BatchNorm2d(3, renorm=PAPER))
        x = normal(8, 3, 6, 6).float() * 2 + 1
        an.precise_statistics(own, [x])
        torch.testing.assert_close(own[0].running_std, (x.var((0, 2, 3)) + 1e-5).sqrt())
        own.train()
        torch.optim.swa_utils.update_bn([x], own)
        torch.testing.assert_close(own[0].running_std, (x.var((0, 2, 3), correction=0) + 1e-5).sqrt(), rtol=1e-2, atol=0)
        self.assertEqual(own.half()[0].running_std.dtype, torch.float32)
        with self.assertRaisesRegex(RuntimeError, "running_std"):
            own[0].load_state_dict(nn.BatchNorm2d(3).state_dict())
        untracked = an.BatchNorm2d(3, renorm=None, track_running_stats=False)
        self.assertIsNone(untracked.running_variance())

    def test_compiled(self):
        own, x = an.BatchNorm2d(3, renorm=PAPER), normal(4, 3, 5, 5).float()
        expected = copy.deepcopy(own)
        compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            self.assertTrue(torch.equal(compiled(x), expected(x)))
        self.assertTrue(torch.equal(own.running_std, expected.running_std))


if __name__ == "__main__":
    unittest.main()
