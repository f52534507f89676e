"""allnorm.torch: models of timm, torchvision and segmentation-models-pytorch converted, trained for a step, and reverted. Run by
`.ci/more zoo`; prints what each took."""

import pathlib
import sys
import time
import unittest

import segmentation_models_pytorch as smp
import timm
import torchvision

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from torch_zoo_test import Passes  # noqa: E402

TIMM = (
    "cs3darknet_s",
    "densenet121",
    "dla46x_c",
    "ese_vovnet19b_slim_dw",
    "efficientnet_lite0",
    "fbnetc_100",
    "gernet_s",
    "ghostnet_050",
    "lcnet_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "regnety_002",
    "repvgg_a0",
    "resnet10t",
    "selecsls42",
    "tf_efficientnetv2_b0",
)
TORCHVISION = (
    "densenet121",
    "efficientnet_b0",
    "mnasnet0_5",
    "mobilenet_v2",
    "regnet_x_400mf",
    "shufflenet_v2_x1_0",
)
SEGMENTATION = (
    ("Unet", "resnet18"),
    ("UnetPlusPlus", "mobilenet_v2"),
    ("FPN", "resnet18"),
    ("Linknet", "mobilenet_v2"),
    ("PSPNet", "resnet18"),
    ("DeepLabV3Plus", "mobilenet_v2"),
)


def models():
    """Name, what makes it, and the shape of its input."""
    image = (2, 3, 64, 64)
    for name in TIMM:
        yield f"timm {name}", lambda name=name: timm.create_model(name, num_classes=10), image
    for name in TORCHVISION:
        yield f"torchvision {name}", lambda name=name: getattr(torchvision.models, name)(num_classes=10), image
    yield (
        "torchvision lraspp_mobilenet_v3_large",
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3),
        image,
    )
    for name, encoder in SEGMENTATION:
        make = getattr(smp, name)
        yield f"smp {name} {encoder}", lambda make=make, encoder=encoder: make(encoder, encoder_weights=None), image


class Zoo(Passes):
    def test_there_and_back(self):
        for name, make, shape in models():
            with self.subTest(name):
                start = time.process_time()
                layers = self.there_and_back(make, shape)
                print(f"{name}: {layers} layers, {time.process_time() - start:.1f} s of CPU", flush=True)


if __name__ == "__main__":
    unittest.main()
