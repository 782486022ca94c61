"""The LightningModule of a model of regional time series, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from neuromamba.data.regions.batches import ScanDataset, ScanLoader
from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.target_scaling import UNSCALED, TargetScaling, scores_of
from neuromamba.layers.packing import Packed
from neuromamba.neurossm.config import FitConfig


class ROIModule(LightningModule):
    """A model of packed scans with AdamW and one learning-rate cycle.

    Args:
        model: gives logits of packed scans, and by ``each`` those of its members [M, B, classes].
        fit: how it is trained.
        steps: of the whole training.
        parts: int [training scans], the member that is trained without each of them; None trains
            every member on all.
        scaling: of the target of a regression, whose loss is the squared error; None of a
            classification, by cross entropy.
    """

    def __init__(
        self,
        model: nn.Module,
        fit: FitConfig,
        steps: int,
        parts: np.ndarray | None = None,
        scaling: TargetScaling | None = None,
    ) -> None:
        super().__init__()
        self.model, self.fit, self.steps, self.scaling = model, fit, steps, scaling
        self._parts = None if parts is None else torch.from_numpy(parts)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits [B, classes]."""
        logits: Tensor = self.model(Packed(batch["frames"], batch["lengths"]))
        return logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean loss of a batch; each member of a model has its own."""
        packed, labels = Packed(batch["frames"], batch["lengths"]), batch["label"]
        logits: Tensor = self.model.each(packed)  # type: ignore[operator]  # [M, B, classes]
        labels = labels.expand(len(logits), -1)
        if self._parts is not None:
            numbers = torch.arange(len(logits))[:, None]
            seen = (self._parts[batch["window"]] != numbers).to(logits.device)
            logits, labels = logits[seen], labels[seen]
        if self.scaling is None:
            loss = nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]),
                labels.reshape(-1),
                label_smoothing=self.fit.label_smoothing,
            )
        else:
            wanted = ((labels - self.scaling.center) / self.scaling.scale).to(logits.dtype)
            loss = nn.functional.mse_loss(logits[..., 0], wanted)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW (Adam without weight decay); the rate rises to its top and falls, every step."""
        fit = self.fit
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=fit.max_learning_rate,
            total_steps=self.steps,
            pct_start=fit.warm_up,
            div_factor=fit.max_learning_rate / fit.learning_rate,
            final_div_factor=fit.learning_rate / fit.min_learning_rate,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Scores(NamedTuple):
    """Scores of test scans.

    Attributes:
        label: [S], classes or values.
        logits: float32 [S, classes].
    """

    label: np.ndarray
    logits: np.ndarray

    def scaled(self, scaling: TargetScaling | None) -> np.ndarray:
        """Probabilities float64 [S, classes]; or [S, 1] in the target's units."""
        kind = "classification" if scaling is None else "regression"
        return scores_of(torch.from_numpy(self.logits), kind, scaling or UNSCALED).numpy()


@torch.no_grad()
def score(model: nn.Module, scans: Sequence[Scan], batch_size: int, device: torch.device) -> Scores:
    """Logits of whole scans."""
    model = model.eval().to(device)
    found = []
    for batch in ScanLoader(ScanDataset(scans), batch_size):
        packed = Packed(batch["frames"].to(device), batch["lengths"])
        found.append(model(packed).float().cpu())
    return Scores(np.array([scan.label for scan in scans]), torch.cat(found).numpy())
