"""allnorm for PyTorch: normalization layers as modules, over ranks, iterations and mini-batches.

    import allnorm.torch as an

    an.convert(model, "sync_batch_norm")                     # or layers by hand: an.BatchNorm2d(64, sync="world", window=4)

Layers take their statistics over the process groups of torch.distributed, on CPUs (gloo).
"""

import re as _re

_NEEDED = (2, 10)

try:
    import torch as _torch
except ImportError as _error:
    raise ImportError(f"allnorm.torch needs torch >= {_NEEDED[0]}.{_NEEDED[1]}, which is not installed") from _error
_found = tuple(int(_part) for _part in _re.findall(r"\d+", _torch.__version__)[:2])
if _found < _NEEDED:
    raise ImportError(f"torch is {_torch.__version__}, must be at least {_NEEDED[0]}.{_NEEDED[1]} for allnorm.torch")

from allnorm._library import Error, version  # noqa: E402
from allnorm.torch._replay import checkpoint_context  # noqa: E402
from allnorm.torch.batch_norm import (  # noqa: E402
    BatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    ConvBatchNorm2d,
    Frame,
    SyncBatchNorm,
)
from allnorm.torch.conversion import Report, convert, revert  # noqa: E402
from allnorm.torch.emulation import emulate  # noqa: E402
from allnorm.torch.fusion import fuse  # noqa: E402
from allnorm.torch.monitoring import StatisticsHook, statistics_hook  # noqa: E402
from allnorm.torch.norms import (  # noqa: E402
    FilterResponseNorm2d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    PositionalNorm2d,
    RMSNorm,
)
from allnorm.torch.operations import (  # noqa: E402
    AdaIN,
    ConditionalBatchNorm2d,
    ConditionalInstanceNorm2d,
    CosineLinear,
    DecorrelatedBatchNorm,
    IterNorm,
    LocalResponseNorm,
    MeanOnlyBatchNorm,
    MomentShortcut,
    Operation,
    SPADE2d,
    SwitchableNorm2d,
    WeightStandardizedConv2d,
)
from allnorm.torch.ranks import Agreement, Difference, average_running_stats, check, precise_statistics  # noqa: E402
from allnorm.torch.renorm import RenormOptions  # noqa: E402
from allnorm.torch.weights import weight_norm  # noqa: E402

__all__ = [
    "AdaIN",
    "Agreement",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConditionalBatchNorm2d",
    "ConditionalInstanceNorm2d",
    "ConvBatchNorm2d",
    "CosineLinear",
    "DecorrelatedBatchNorm",
    "Difference",
    "Error",
    "FilterResponseNorm2d",
    "Frame",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "IterNorm",
    "LayerNorm",
    "LocalResponseNorm",
    "MeanOnlyBatchNorm",
    "MomentShortcut",
    "Operation",
    "PositionalNorm2d",
    "RMSNorm",
    "RenormOptions",
    "Report",
    "SPADE2d",
    "StatisticsHook",
    "SwitchableNorm2d",
    "SyncBatchNorm",
    "WeightStandardizedConv2d",
    "average_running_stats",
    "check",
    "checkpoint_context",
    "convert",
    "emulate",
    "fuse",
    "precise_statistics",
    "revert",
    "statistics_hook",
    "version",
    "weight_norm",
]
