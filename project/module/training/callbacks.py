"""Callbacks: plain progress lines for logs, and the embeddings of test windows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor


class PlainProgress(Callback):
    """One line an epoch, and one every ``seconds`` within long epochs; for logs, not terminals."""

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._start = self._last = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._start = self._last = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Say where a long epoch is."""
        now = time.monotonic()
        if now - self._last >= self.seconds and trainer.is_global_zero:
            self._last = now
            loss = trainer.callback_metrics.get("train/loss", torch.tensor(float("nan")))
            print(
                f"epoch {trainer.current_epoch + 1}: batch {batch_idx + 1} of "
                f"{trainer.num_training_batches}, train/loss {float(loss):.4f}, "
                f"{(now - self._start) / (batch_idx + 1):.2f} s a batch",
                flush=True,
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the epoch came to."""
        if not trainer.is_global_zero:
            return
        shown = sorted(
            name for name in trainer.callback_metrics if name.startswith(("train/loss", "val/"))
        )
        values = ", ".join(f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in shown)
        print(
            f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step "
            f"{trainer.global_step}: {values} ({time.monotonic() - self._start:.1f} s)",
            flush=True,
        )


class EmbeddingWriter(Callback):
    """Writes ``embeddings.npz`` after testing: subject [W], window [W], embedding [W, D].

    An embedding is the mean of a window's final features.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._subjects: list[str] = []
        self._windows: list[Tensor] = []
        self._embeddings: list[Tensor] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch's embeddings."""
        self._subjects += batch["subject"]
        self._windows.append(batch["window"].cpu())
        self._embeddings.append(outputs["embedding"].float().cpu())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; every rank writes its own windows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        suffix = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        np.savez_compressed(
            self.folder / f"embeddings{suffix}.npz",
            subject=np.array(self._subjects),
            window=torch.cat(self._windows).numpy(),
            embedding=torch.cat(self._embeddings).numpy(),
        )
