"""allnorm.torch: models converted and reverted."""

import copy
import importlib
import io
import json
import sys
import unittest
import unittest.mock

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import allnorm.torch as an


def model():
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), shared, nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), shared, nn.ReLU()),
        nn.Flatten(),
        nn.Linear(256, 5),
        nn.BatchNorm1d(5, affine=False, momentum=None),
    )


class BatchNormAct2d(nn.BatchNorm2d):  # as in timm
    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.LeakyReLU(0.3)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class NaiveSyncBatchNorm(nn.BatchNorm2d):  # as in detectron2, without its exchange
    def __init__(self, *arguments, stats_mode="", **options):
        super().__init__(*arguments, **options)
        self._stats_mode = stats_mode

    def forward(self, x):
        if self.training:
            raise AssertionError("its own exchange")
        return super().forward(x)


class FrozenBatchNorm2d(nn.Module):  # as in detectron2 and torchvision: four buffers
    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))


class Peculiar(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Convert(unittest.TestCase):
    def test_there_and_back(self):
        own, x = model(), torch.randn(3, 3, 8, 8)
        reference = copy.deepcopy(own)
        parameters, buffers = list(own.parameters()), list(own.buffers())
        calls = []
        own[4].register_forward_hook(lambda *_: calls.append(1))
        report = an.convert(own, "batch_norm", activation=None)
        self.assertEqual([entry.name for entry in report.converted], ["0.1", "4"])
        self.assertIsInstance(own[0][1], an.BatchNorm2d)
        self.assertIs(own[0][1], own[1][1])  # one layer under two names stays one
        self.assertEqual((own[4].momentum, own[4].affine, own[0][1].name), (None, False, "0.1"))
        self.assertTrue(all(a is b for a, b in zip(own.parameters(), parameters)))
        self.assertTrue(all(a is b for a, b in zip(own.buffers(), buffers)))
        for _ in range(2):
            torch.testing.assert_close(own(x), reference(x))
        self.assertEqual(len(calls), 2)
        again = an.convert(own, "batch_norm")
        self.assertFalse(again.converted)
        self.assertIn("already", again.text())
        an.revert(own)
        self.assertEqual([type(module) for module in own.modules()], [type(module) for module in reference.modules()])
        self.assertEqual(own[4].momentum, None)
        torch.testing.assert_close(own.eval()(x), reference.eval()(x))
        self.assertTrue(all(a is b for a, b in zip(own.parameters(), parameters)))

    def test_hooks_of_the_backward_pass_stay(self):
        own, calls = nn.Sequential(nn.BatchNorm2d(3)), []
        own[0].register_full_backward_hook(lambda *_: calls.append(1))
        an.convert(own, "batch_norm")
        own(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
        self.assertEqual(len(calls), 1)

    def test_running_statistics_of_a_model_that_was_cast(self):
        own = nn.Sequential(nn.BatchNorm2d(3)).half()
        an.convert(own, "batch_norm")
        self.assertEqual((own[0].weight.dtype, own[0].running_var.dtype), (torch.float16, torch.float32))

    def test_report(self):
        own = nn.ModuleDict(
            {"a": nn.BatchNorm2d(3), "b": Peculiar(3), "c": nn.LazyBatchNorm2d(), "d": nn.BatchNorm2d(3)}
        )
        own["d"].eval().requires_grad_(False)
        report = an.convert(own, window=4)
        text = report.text()
        self.assertRegex(text, r"a: BatchNorm2d -> BatchNorm2d\(3, .*window=4.*sync=world")
        for reason in (
            "b: Peculiar stays: Peculiar may do more",
            "c: LazyBatchNorm2d stays: it does not know",
            "frozen",
        ):
            self.assertIn(reason, text)
        self.assertTrue(text.endswith("layers converted: 1, left as they were: 3"))
        self.assertEqual(len(json.loads(report.as_json())["skipped"]), 3)

    def test_norm_and_activation(self):
        own, x = nn.Sequential(BatchNormAct2d(3)), torch.randn(2, 3, 4, 4)
        reference = copy.deepcopy(own)
        an.convert(own, "batch_norm")
        self.assertIsInstance(own[0], an.BatchNorm2d)
        torch.testing.assert_close(own(x), reference(x))
        self.assertEqual(list(own.state_dict()), list(reference.state_dict()))

    def test_layers_of_other_packages_come_back(self):
        own, x = nn.Sequential(BatchNormAct2d(3), NaiveSyncBatchNorm(3, stats_mode="N", momentum=0.2)), torch.randn(2, 3, 4, 4)
        reference = copy.deepcopy(own).eval()
        before = list(own.parameters())
        an.convert(own, "batch_norm")
        own(x)
        own[1].momentum = 0.3
        expected = own.eval()(x)
        own = copy.deepcopy(an.revert(copy.deepcopy(own)).model)
        self.assertEqual([type(layer) for layer in own], [BatchNormAct2d, NaiveSyncBatchNorm])
        self.assertEqual((own[1]._stats_mode, own[1].momentum, own[1].training), ("N", 0.3, False))
        self.assertTrue(torch.equal(own(x), expected))
        self.assertEqual(list(own.state_dict()), list(reference.state_dict()))
        self.assertEqual(len(list(own.parameters())), len(before))

    def test_as_in_detectron2(self):
        x = torch.randn(4, 3, 4, 4)

        def work(rank):
            own = nn.Sequential(NaiveSyncBatchNorm(3, momentum=0.2))
            report = an.convert(own, "sync_batch_norm")
            return own(x[3 * rank : 3 * rank + 3 - 2 * rank]), own[0].running_mean, report.text()

        whole = nn.BatchNorm2d(3, momentum=0.2)
        y, parts = whole(x), an.emulate(work, 2)
        torch.testing.assert_close(torch.cat([part[0] for part in parts]), y)
        torch.testing.assert_close(parts[1][1], whole.running_mean)
        self.assertRegex(parts[0][2], "0: NaiveSyncBatchNorm -> BatchNorm2d.*sync=world")

        own = nn.Sequential(FrozenBatchNorm2d(3), nn.BatchNorm2d(3))
        report = an.convert(own, "batch_norm")
        self.assertIn("0: FrozenBatchNorm2d stays: it is frozen", report.text())
        self.assertEqual([type(layer) for layer in own], [FrozenBatchNorm2d, an.BatchNorm2d])
        self.assertEqual(len(an.revert(own).skipped), 0)

    def test_some_of_them(self):
        own = model()
        report = an.convert(own, "batch_norm", include=["0"], inplace=False)
        self.assertEqual([entry.name for entry in report.converted], ["0.1"])
        self.assertIsInstance(own[0][1], nn.BatchNorm2d)  # a copy was converted
        self.assertIsInstance(report.model[0][1], an.BatchNorm2d)
        an.convert(own, "batch_norm", exclude=lambda name, module: module.num_features == 4)
        self.assertNotIsInstance(own[0][1], an.BatchNorm)
        self.assertIsInstance(own[4], an.BatchNorm1d)

    def test_then_sharded(self):
        """fully_shard on two ranks trains as one process on the whole batch."""
        torch.manual_seed(0)
        plain = nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()),
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)),
        ).double()
        x = torch.randn(4, 2, 6, 6, dtype=torch.float64)

        def trained(model, x):
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()

        def work(rank):
            own = copy.deepcopy(plain)
            an.convert(own, "sync_batch_norm")
            mesh = init_device_mesh("cpu", (2,))
            for part in (*own, own):
                fully_shard(part, mesh=mesh)
            trained(own, x[2 * rank : 2 * rank + 2])
            self.assertTrue(an.check(own), str(an.check(own)))
            with self.assertRaisesRegex(ValueError, "FSDP"):
                an.convert(own)
            return get_model_state_dict(own, options=StateDictOptions(full_state_dict=True))

        found = an.emulate(work, 2)[0]
        trained(plain, x)
        self.assertEqual(list(found), list(plain.state_dict()))
        for tensor, expected in zip(found.values(), plain.state_dict().values()):
            torch.testing.assert_close(tensor, expected, rtol=1e-10, atol=1e-10)

    def test_a_model_that_is_a_layer(self):
        report = an.convert(nn.SyncBatchNorm(3), "batch_norm")
        self.assertIsInstance(report.model, an.SyncBatchNorm)
        self.assertEqual(report.model.options(), {})
        self.assertIsInstance(an.revert(an.SyncBatchNorm(3)).model, nn.SyncBatchNorm)
        for sync in (None, 2):  # torch's would have the statistics of all ranks
            reverted = an.revert(an.SyncBatchNorm(3, sync=sync))
            self.assertIsInstance(reverted.model, an.SyncBatchNorm)
            self.assertIn("torch's shares statistics with all ranks or those of a process group", reverted.text())

    def test_an_activation_of_its_own_stays(self):
        own = nn.Sequential(an.BatchNorm2d(3, activation="relu"))
        self.assertIn("torch's has no activation", an.revert(own).text())

    def test_fusing_by_torch(self):
        torch.manual_seed(0)
        conv, norm = nn.Conv2d(2, 3, 3), an.BatchNorm2d(3)
        norm(torch.randn(2, 3, 4, 4))
        x = torch.randn(2, 2, 6, 6)
        fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())
        torch.testing.assert_close(fused(x), norm(conv(x)))

    def test_update_bn_of_torch(self):
        own, other, x = nn.Sequential(an.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3)), torch.randn(4, 2, 3, 4, 4)
        for module in (own, other):
            torch.optim.swa_utils.update_bn(x, module)
        torch.testing.assert_close(own[0].running_var, other[0].running_var)

    def test_integrations_say_what_they_need(self):
        missing = {"lightning": None, "lightning.pytorch": None, "pytorch_lightning": None, "mmengine": None}
        with unittest.mock.patch.dict(sys.modules, missing):
            for name, text in (("lightning", "needs lightning or pytorch-lightning"), ("mmengine", "mmengine")):
                with self.assertRaisesRegex(ImportError, text):
                    importlib.import_module("allnorm.torch.integrations." + name)

    def test_bad_input(self):
        with self.assertRaisesRegex(ValueError, "norm is 'group_norm', must be one of batch_norm"):
            an.convert(model(), "group_norm")
        with self.assertRaisesRegex(ValueError, "OptimizedModule"):
            an.convert(torch.compile(model()))
        self.assertEqual(
            an.emulate(_converted_after_wrapping, 1)[0],
            "the model has a DistributedDataParallel, must not: convert it before it is wrapped or compiled",
        )
        with self.assertWarnsRegex(UserWarning, "no batch norm"):
            an.convert(nn.Linear(2, 2))
        with self.assertRaisesRegex(ValueError, "window"):
            an.convert(model(), "cross_iteration_batch_norm", window=0)


class Paired(unittest.TestCase):
    """Convolutions and the norms behind them, which convert() pairs for the window's compensation."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.biased, self.second = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.grouped, self.third = nn.Conv2d(4, 4, (3, 1), groups=2, bias=False), nn.BatchNorm2d(4)
            self.linear, self.last = nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)

        def forward(self, x):
            x = self.norm(self.stem(x)).relu()
            x = self.third(self.grouped(self.second(self.biased(x)).relu()))
            return self.last(self.linear(x.mean((2, 3))))

    def model(self):
        torch.manual_seed(0)
        return self.Net().double()

    def inputs(self, step, *shape):
        return torch.randn(*(shape or (4, 3, 12, 12)), generator=torch.Generator().manual_seed(step), dtype=torch.float64)

    def test_is_what_the_pair_by_hand_is(self):
        own, plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).double(), None
        plain = an.ConvBatchNorm2d(copy.deepcopy(own[0]), window=3).double()
        plain.norm.load_state_dict(own[1].state_dict())
        report = an.convert(own, "cross_iteration_batch_norm", sync=None, window=3)
        self.assertIn("compensate=True", report.converted[0].after)
        self.assertEqual(list(own.state_dict()), ["0.weight", *("1." + name for name in nn.BatchNorm2d(4).state_dict())])
        for model in (own, plain):
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for step in range(4):
                optimizer.zero_grad()
                y = model(self.inputs(step))
                y.square().mul(self.inputs(9, *y.shape)).sum().backward()
                optimizer.step()
        self.assertTrue(torch.equal(own(self.inputs(5)), plain(self.inputs(5))))

    def test_which_are_paired(self):
        report = an.convert(self.model(), "cross_iteration_batch_norm")
        self.assertEqual({entry.name: "compensate=True" in entry.after for entry in report.converted},
                         {"norm": True, "second": False, "third": True, "last": True})
        self.assertRegex(report.text(), r"second: .*: past statistics stay as they are: the Conv2d in front has a bias")
        strict = an.convert(self.model(), "cross_iteration_batch_norm", pair_convs=True)
        self.assertEqual([entry.name for entry in strict.skipped], ["second"])
        none = an.convert(self.model(), "cross_iteration_batch_norm", pair_convs=False)
        self.assertFalse(any("compensate=True" in entry.after or entry.why for entry in none.converted))
        self.assertFalse(an.convert(self.model(), "batch_renorm").model.stem._forward_pre_hooks)

        class Branches(nn.Sequential):
            def forward(self, x):
                return super().forward(x) if x.sum() > 0 else x

        branches = an.convert(Branches(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), "batch_norm", window=2)
        self.assertRegex(branches.text(), "past statistics stay as they are: Branches cannot be traced by torch.fx")
        with self.assertRaisesRegex(ValueError, "pair_convs is 'all', must be True, False or 'auto'"):
            an.convert(self.model(), pair_convs="all")

    def test_train_copies_and_back(self):
        own = an.convert(self.model(), "cross_iteration_batch_norm", sync=None, window=3).model
        for step in range(3):
            own(self.inputs(step)).sum().backward()
        self.assertIsNone(own.norm._conv_input)  # what a convolution read is not kept
        copies = [copy.deepcopy(own), torch.load(_stored(own), weights_only=False)]
        y = own(self.inputs(7))
        for other in copies:
            self.assertTrue(torch.equal(other(self.inputs(7)), y))
            self.assertIs(other.norm._followed, other.stem)
        own.eval()
        expected = own(self.inputs(8))
        self.assertIsNone(own.norm._conv_input)
        fused = an.fuse(own)
        torch.testing.assert_close(fused(self.inputs(8)), expected)
        self.assertFalse(any(isinstance(module, an.BatchNorm) and module.num_features == 4 for module in fused.modules()))
        an.revert(own)
        self.assertFalse(own.stem._forward_pre_hooks)
        self.assertEqual(type(own.norm), nn.BatchNorm2d)
        torch.testing.assert_close(own(self.inputs(8)), expected, rtol=0, atol=0)

    def test_compiled(self):
        own = an.convert(self.model(), "cross_iteration_batch_norm", sync=None, window=2).model
        expected = copy.deepcopy(own)
        compiled = torch.compile(own, backend="aot_eager", fullgraph=True)
        for step in range(3):
            self.assertTrue(torch.equal(compiled(self.inputs(step)), expected(self.inputs(step))))

    def test_sharded(self):
        for own, plain in an.emulate(_sharded, 2):
            torch.testing.assert_close(own, plain)

    def test_checkpointed(self):
        own = an.convert(self.model(), "cross_iteration_batch_norm", sync=None, window=2).model
        expected, found = copy.deepcopy(own), []
        for step in range(3):
            x = self.inputs(step).requires_grad_()
            y = checkpoint(own, x, use_reentrant=False, context_fn=an.checkpoint_context)
            found.append(torch.autograd.grad(y.square().sum(), x)[0])
            plain = expected(x)
            torch.testing.assert_close([y, found[-1]], [plain, torch.autograd.grad(plain.square().sum(), x)[0]], rtol=0, atol=0)


def _sharded(_):
    """Differences of a paired window's outputs, sharded and not."""
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4))
    an.convert(own, "cross_iteration_batch_norm", sync=None, window=2)
    plain, x, found = copy.deepcopy(own), torch.randn(2, 3, 8, 8), []
    for part in (own[0], own[2], own):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    for model in (own, plain):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):  # the same inputs on both ranks, whose gradients are averaged
            optimizer.zero_grad()
            y = model(x)
            y.square().sum().backward()
            optimizer.step()
        found.append(y.detach())
    return found


def _converted_after_wrapping(_):
    try:
        an.convert(nn.parallel.DistributedDataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))
    except ValueError as error:
        return str(error)
    return ""


def _stored(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


if __name__ == "__main__":
    unittest.main()
