"""allnorm.torch: models of torchvision converted, trained for a step, and reverted, against torch itself. `.ci/more zoo` does
so for more of them (tests/python/zoo)."""

import copy
import unittest

import torch
import torch.distributed as dist
import torchvision
from torch.nn.modules.batchnorm import _BatchNorm

import allnorm.torch as an


def first(outputs):
    """The main tensor of what a model gives."""
    if isinstance(outputs, dict):
        return outputs["out"]
    return outputs if isinstance(outputs, torch.Tensor) else outputs[0]


def step(model, x):
    """One step of stochastic gradient descent; the loss. Random numbers, as of dropout, are the same every time."""
    torch.manual_seed(2)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss = first(model(x)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def outputs(model, x):
    return first(model.eval()(x))


class Passes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)  # layers are small, and threads that wait for a core cost more than they bring
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())

    @classmethod
    def tearDownClass(cls):
        dist.destroy_process_group()

    def there_and_back(self, make, shape=(2, 3, 64, 64), tolerance=1e-6):
        """The steps of a model with torch's layers and with these differ by rounding in float64, which its layers enlarge;
        `tolerance` is relative to the largest value of a tensor. Outputs in evaluation have the same bits before and after.
        Returns the number of layers that were converted."""
        torch.manual_seed(0)
        plain = make().double()
        x = torch.randn(*shape, dtype=torch.float64)
        step(plain, x)  # running statistics are not those of a fresh layer any more
        kinds = {name: type(module) for name, module in plain.named_modules()}
        own = copy.deepcopy(plain)

        before = outputs(own, x)
        report = an.convert(own.train(), "sync_batch_norm")
        norms = [module for module in plain.modules() if isinstance(module, _BatchNorm)]
        self.assertEqual((len(report.converted), report.skipped), (len(norms), []), report.text())
        self.assertTrue(torch.equal(outputs(own, x), before))

        self.assertAlmostEqual(step(own, x), step(plain, x), delta=1e-9 * before.abs().max().item())
        after = outputs(own, x)
        an.revert(own)
        self.assertEqual({name: type(module) for name, module in own.named_modules()}, kinds)
        self.assertTrue(torch.equal(outputs(own, x), after))
        self.assertEqual(list(own.state_dict()), list(plain.state_dict()))
        for (name, found), expected in zip(own.state_dict().items(), plain.state_dict().values()):
            bound = tolerance * max(1.0, expected.abs().max().item()) if expected.is_floating_point() else 0
            torch.testing.assert_close(found, expected, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")
        return len(report.converted)


class Torchvision(Passes):
    def test_there_and_back(self):
        for name, layers in (
            ("resnet18", 20),
            ("mobilenet_v3_small", 34),
            ("shufflenet_v2_x0_5", 56),
        ):
            with self.subTest(name):
                make = getattr(torchvision.models, name)
                self.assertEqual(self.there_and_back(lambda make=make: make(num_classes=10)), layers)

    def test_frozen_layers_stay(self):
        model = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
        with self.assertWarnsRegex(UserWarning, "no batch norm"):
            report = an.convert(model)
        self.assertEqual(len(report.skipped), 20)
        self.assertIn("bn1: FrozenBatchNorm2d stays: it is frozen", report.text())


if __name__ == "__main__":
    unittest.main()
