"""allnorm.torch with timm, mmengine and mmcv, and Lightning as they are. Run by `.ci/more zoo`."""

import copy
import tempfile
import unittest
import warnings

import mmcv.cnn
import pytorch_lightning as pl
import timm.layers
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

import allnorm.torch as an
from allnorm.torch.integrations import mmengine
from allnorm.torch.integrations.lightning import AllNorm


class Timm(unittest.TestCase):
    def test_activation_and_drop_stay(self):
        torch.manual_seed(0)
        drop = lambda: timm.layers.DropBlock2d(0.5, block_size=2)  # noqa: E731
        own = nn.Sequential(
            timm.layers.create_norm_act_layer("batchnorm2d", 4, act_layer="leaky_relu"),
            timm.layers.create_norm_act_layer("batchnorm2d", 4, act_layer="silu", drop_layer=drop),
            timm.layers.create_norm_act_layer("batchnorm2d", 4, apply_act=False),
        ).double()
        plain, x = copy.deepcopy(own), torch.randn(4, 4, 6, 6, dtype=torch.float64)
        an.convert(own, "batch_norm")
        self.assertTrue(all(isinstance(layer, an.BatchNorm2d) for layer in own))
        self.assertEqual(list(own.state_dict()), list(plain.state_dict()))
        found = []
        for model in (own, plain):
            torch.manual_seed(1)
            inputs = x.clone().requires_grad_()
            y = model(inputs)
            found.append([y, *torch.autograd.grad(y.square().sum(), [inputs, *model.parameters()])])
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
        an.revert(own)
        self.assertEqual([type(layer) for layer in own], [timm.layers.BatchNormAct2d] * 3)
        self.assertTrue(torch.equal(own.eval()(x), an.convert(own, "batch_norm").model.eval()(x)))

    def test_what_timm_has_synchronized_or_frozen(self):
        make = lambda: nn.Sequential(timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU), nn.BatchNorm2d(4))  # noqa: E731
        synced, x = timm.layers.convert_sync_batchnorm(make()), torch.randn(4, 4, 6, 6)
        expected = make()(x)
        report = an.convert(synced, "batch_norm")
        self.assertEqual([entry.before for entry in report.converted], ["SyncBatchNormAct", "SyncBatchNorm"])
        torch.testing.assert_close(synced(x), expected)
        self.assertEqual(type(an.revert(synced).model[0]), timm.layers.SyncBatchNormAct)
        with self.assertWarnsRegex(UserWarning, "no batch norm"):
            frozen = an.convert(timm.layers.freeze_batch_norm_2d(make()))
        self.assertEqual([entry.why for entry in frozen.skipped], ["it is frozen"] * 2)


class Mmengine(unittest.TestCase):
    def test_names(self):
        for _ in range(2):
            mmengine.register()
        config = {"type": "AllNormSyncBN", "window": 4, "momentum": 0.03, "requires_grad": False}
        name, layer = mmcv.cnn.build_norm_layer(config, 8, postfix=1)
        self.assertEqual((name, type(layer), layer.momentum), ("bn1", an.SyncBatchNorm, 0.03))
        self.assertEqual(layer.options()["window"], 4)
        self.assertFalse(layer.weight.requires_grad)
        for name, kind in mmengine.NAMES.items():
            self.assertIs(MODELS.get(name), kind)

    def test_in_a_block(self):
        mmengine.register()
        block = mmcv.cnn.ConvModule(3, 4, 3, norm_cfg={"type": "AllNormBN", "renorm": an.RenormOptions()})
        self.assertIsInstance(block.norm, an.BatchNorm2d)
        self.assertIsNone(block.conv.bias)
        block(torch.randn(2, 3, 6, 6)).sum().backward()

    def test_bad_option(self):
        mmengine.register()
        with self.assertRaisesRegex(ValueError, "window"):
            mmcv.cnn.build_norm_layer({"type": "AllNormBN", "window": 0}, 8)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))

    def training_step(self, batch, index):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Agrees(pl.Callback):
    """Whether the running statistics of the ranks are equal at the end."""

    def on_train_end(self, trainer, pl_module):
        assert trainer.world_size == 2
        assert an.check(pl_module), str(an.check(pl_module))


def fitted(callbacks, **options):
    torch.manual_seed(0)
    module = Module()
    x, y = torch.randn(16, 1, 6, 6), torch.arange(16) % 2
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=callbacks,
            **options,
        )
        trainer.fit(module, loader)
    return module


class Lightning(unittest.TestCase):
    def test_callback(self):
        callback = AllNorm("batch_norm", window=2)
        module = fitted([callback])
        self.assertEqual([entry.name for entry in callback.report.converted], ["model.1"])
        self.assertEqual(module.model[1].options(), {"window": 2, "guard": "clamp", "running_source": "current", "compensate": False})
        self.assertEqual(int(module.model[1].num_batches_tracked), 8)

    def test_before_the_module_is_distributed(self):
        fitted([AllNorm("sync_batch_norm"), Agrees()], devices=2, strategy="ddp_fork")

    def test_another_synchronization_is_refused(self):
        trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", sync_batchnorm=True, logger=False)
        with self.assertRaisesRegex(ValueError, "sync_batchnorm of the Trainer is True, must be False"):
            AllNorm("batch_norm").setup(trainer, Module(), "fit")


if __name__ == "__main__":
    unittest.main()
