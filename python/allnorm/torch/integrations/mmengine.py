"""Names for the configurations of mmengine, and for mmcv's build_norm_layer:

    register()
    model = dict(backbone=dict(type="ResNet", depth=50, norm_cfg=dict(type="AllNormSyncBN", window=4)))
"""

from __future__ import annotations

from mmengine.registry import MODELS

from allnorm.torch.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm

NAMES = {
    "AllNormBN": BatchNorm2d,  # as mmcv's "BN"
    "AllNormBN1d": BatchNorm1d,
    "AllNormBN2d": BatchNorm2d,
    "AllNormBN3d": BatchNorm3d,
    "AllNormSyncBN": SyncBatchNorm,
}


def register() -> None:
    """Adds the names to the registry of models; what stands beside `type` in a configuration are the options of the layer.
    Calling it again changes nothing. `sync_bn` of a Runner must not be set: it would replace the layers."""
    for name, layer in NAMES.items():
        MODELS.register_module(name=name, module=layer, force=True)
