"""allnorm.torch: a small model of every family of timm, torchvision and segmentation-models-pytorch that has batch norms, as
in models_test.py. Run by `.ci/more families`; prints what each took."""

import functools
import pathlib
import sys
import time
import unittest

import segmentation_models_pytorch as smp
import timm
import torchvision

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from torch_zoo_test import Passes  # noqa: E402

TIMM = """
halonet26t test_byobnet convmixer_768_32 cpubone_s0 cs3darknet_s cspnext_s densenet121 dla34 dpn68 efficientformer_l1
efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvit_b0 efficientvit_m0 fasternet_s fastvit_t8 ghostnet_050
hardcorenas_a hgnet_tiny hrnet_w18 iformer_s inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small
levit_384_s8 lowformer_b0 test_maxvit lcnet_035 mobilevit_s nasnetalarge nextvit_small pnasnet5large regnetv_040
repghostnet_050 repvit_m0_9 res2net50d resnest14d test_resnet resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 shvit_s1
skresnet18 starnet_s1 swiftformer_s tiny_vit_5m_224 tresnet_l visformer_tiny volo_d1_224 vovnet39a legacy_xception xception41
xcit_nano_12_p8_224
""".split()
TORCHVISION = """
densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf resnet18
resnext50_32x4d shufflenet_v2_x0_5 vgg11_bn wide_resnet50_2
""".split()
VIDEO = "mc3_18", "r2plus1d_18", "r3d_18", "s3d"
SCENES = "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large"
SEGMENTATION = "DeepLabV3", "DeepLabV3Plus", "FPN", "Linknet", "MAnet", "PAN", "PSPNet", "Segformer", "UPerNet", "Unet", "UnetPlusPlus"


OWN_SIZE = ("halonet26t",)  # beside those that timm says have a fixed one


def of_timm(name):
    config = timm.get_pretrained_cfg(name)
    return config.input_size if name in OWN_SIZE or (config is not None and config.fixed_input_size) else (3, 96, 96)


def models():
    """Name, what makes it, and the shape of its input."""
    for name in TIMM:
        yield f"timm {name}", functools.partial(timm.create_model, name, num_classes=10), (2, *of_timm(name))
    for name in TORCHVISION:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        make = functools.partial(getattr(torchvision.models, name), num_classes=10, **options)
        size = 299 if name == "inception_v3" else 128
        yield f"torchvision {name}", make, (2, 3, size, size)
    for name in VIDEO:
        make, size = functools.partial(getattr(torchvision.models.video, name), num_classes=10), 224 if name == "s3d" else 64
        yield f"torchvision {name}", make, (2, 3, 16, size, size)
    for name in SCENES:
        make = functools.partial(getattr(torchvision.models.segmentation, name), weights_backbone=None, num_classes=3)
        yield f"torchvision {name}", make, (2, 3, 64, 64)
    for name in SEGMENTATION:
        make, size = functools.partial(getattr(smp, name), "resnet18", encoder_weights=None), 128 if name == "PAN" else 64
        yield f"smp {name}", make, (2, 3, size, size)


class Families(Passes):
    def test_there_and_back(self):
        for name, make, shape in models():
            with self.subTest(name):
                if len(sys.argv) > 1 and name not in sys.argv[1:]:
                    continue
                start = time.process_time()
                layers = self.there_and_back(make, shape)
                print(f"{name}: {layers} layers, {time.process_time() - start:.1f} s of CPU", flush=True)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
