"""A callback for Lightning, of the package lightning or pytorch-lightning:

trainer = Trainer(callbacks=[AllNorm("sync_batch_norm", window=4)])
"""

from __future__ import annotations

from typing import Any, Optional

from allnorm.torch.conversion import Report, convert

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError("this callback needs lightning or pytorch-lightning, which are not installed") from error


class AllNorm(Callback):
    """Converts the batch norms of a module before the Trainer wraps it, as convert() with the same arguments. `report` says
    what was converted. The layers stay after training; their checkpoints are those of torch's layers."""

    def __init__(self, norm: str = "sync_batch_norm", **options: Any) -> None:
        super().__init__()
        self.norm, self.options = norm, options
        self.report: Optional[Report] = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """ValueError where the Trainer would replace the layers again."""
        if getattr(trainer.strategy, "_layer_sync", None) is not None:
            raise ValueError("sync_batchnorm of the Trainer is True, must be False: it would replace these layers")
        report = convert(pl_module, self.norm, **self.options)
        if self.report is None or report.converted:
            self.report = report
