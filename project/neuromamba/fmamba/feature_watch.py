"""Whether pre-training still helps: says so once, in words, when it seems not to."""

from __future__ import annotations

import logging
import math

from pytorch_lightning import Callback, LightningModule, Trainer

logger = logging.getLogger(__name__)
PATIENCE = 5  # validations without a lower loss
COLLAPSED = 0.25  # of the highest rank, or of the first spread
FORGOTTEN = 0.1  # of the kNN accuracies


class FeatureWatch(Callback):
    """Warns of collapsing features, of a loss that has stopped falling, of forgotten differences.

    It reads what ``PretrainModule`` logs at the end of a validation, and stops nothing.
    """

    def __init__(self) -> None:
        self._best: dict[str, float] = {}
        self._first_spread = math.nan
        self._since_lower = 0
        self._told: set[str] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the new values; not those of the sanity check, nor after the training."""
        if not trainer.training or trainer.sanity_checking:
            return
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        for kind, text in self.look(found).items():
            if kind not in self._told and trainer.is_global_zero:
                logger.warning("warning: epoch %d: %s", trainer.current_epoch + 1, text)
            self._told.add(kind)

    def look(self, found: dict[str, float]) -> dict[str, str]:
        """Kind of what is amiss after a validation -> a sentence.

        Args:
            found: ``val/loss``, ``val/feature_rank``, ``val/feature_std``, ``val/knn_*``.
        """
        amiss = {}
        loss, best = found["val/loss"], self._best.get("val/loss", math.inf)
        self._since_lower = 0 if loss < best else self._since_lower + 1
        if self._since_lower >= PATIENCE:
            amiss["stalled"] = (
                f"val/loss has not fallen below {best:.4g} for {self._since_lower} validations; "
                f"pre-training has stopped helping here. best.ckpt is the one to use."
            )
        rank, spread = (found.get(f"val/feature_{name}", math.nan) for name in ("rank", "std"))
        if math.isnan(self._first_spread):
            self._first_spread = spread
        highest = self._best.get("val/feature_rank", -math.inf)
        if rank < COLLAPSED * highest or spread < COLLAPSED * self._first_spread:
            amiss["collapse"] = (
                f"the features collapse: effective rank {rank:.1f}, at most {highest:.1f} before; "
                f"spread {spread:.3g}, {self._first_spread:.3g} at first. Lower --learning_rate."
            )
        for name, value in found.items():
            if name.startswith("val/knn_") and value < self._best.get(name, -math.inf) - FORGOTTEN:
                amiss[name] = (
                    f"{name} has fallen from {self._best[name]:.3f} to {value:.3f}: the features "
                    f"forget what tells {name.removeprefix('val/knn_')}s apart."
                )
        for name, value in found.items():
            better = min if name == "val/loss" else max
            if not math.isnan(value):
                self._best[name] = better(self._best.get(name, value), value)
        return amiss
