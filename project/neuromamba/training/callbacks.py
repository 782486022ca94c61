"""Callbacks: plain progress lines for logs, checkpoints, and the embeddings of test windows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from neuromamba.common.atomic_files import atomic_path, new_temporary_folder
from neuromamba.common.seeds import stream

# What a line of progress shows, in this order, as far as it is there; logs/metrics.csv has it all.
_SHOWN = (
    "train/loss",
    "val/loss",
    *("val/auroc", "val/pearson_r"),  # of tasks
    *("val/skill", "val/dynamic_skill", "val/feature_rank", "val/knn_subject"),  # of pre-training
)
_WATCHED = "val/watch_"  # with others beside it, such as the level of chance


def names_to_show(metrics: Collection[str]) -> list[str]:
    """Choose the metrics of a line of progress: losses, the main metric, watched values."""
    watched = (n for n in metrics if n.startswith(_WATCHED) and f"{n}_chance" in metrics)
    return [*(name for name in _SHOWN if name in metrics), *sorted(watched)]


class PlainProgress(Callback):
    """Write one line per epoch, and one every ``seconds`` in long epochs; for logs, not terminals.

    Args:
        seconds: between lines within an epoch.
        every: epochs between lines; the last epoch has one in any case.
    """

    def __init__(self, seconds: float = 30.0, every: int = 1) -> None:
        self.seconds, self.every = seconds, every
        self._start = self._last = time.monotonic()  # resuming within an epoch does not start it

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
                f"{(now - self._start) / (batch_idx + 1):.2f} s per batch",
                flush=True,
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the epoch came to."""
        epoch = trainer.current_epoch + 1
        if not trainer.is_global_zero or (epoch % self.every and epoch != trainer.max_epochs):
            return
        shown = names_to_show(trainer.callback_metrics)
        values = ", ".join(f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in shown)
        print(
            f"epoch {epoch} of {trainer.max_epochs}, step "
            f"{trainer.global_step}: {values} ({time.monotonic() - self._start:.1f} s)",
            flush=True,
        )


class BatchSeed(Callback):
    """Seeds every training batch by its place, so that a resumed run draws the same dropout."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch's global generators on every device."""
        place = (2, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(stream(self.seed, *place).initial_seed())


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``, the weights with the best value of ``monitor``."""

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode=mode,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best so far; a run resumed in another folder takes its checkpoint along."""
        old = Path(state_dict["best_model_path"])
        if state_dict["dirpath"] != self.dirpath:
            # An empty path is that of a run which had no best yet, and Path("") is this folder.
            if not state_dict["best_model_path"] or not old.exists():
                return  # Nothing to compare with: the next validation is the best so far.
            assert self.dirpath is not None
            new = Path(self.dirpath) / old.name
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                _copy_whole(old, new)
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(new),
                "kth_best_model_path": str(new),
                "best_k_models": {str(new): state_dict["best_model_score"]},
            }
        super().load_state_dict(state_dict)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that ended before its first validation has no better weights than its last."""
        if not self.best_model_path and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            assert self.dirpath is not None
            self.best_model_path = str(Path(self.dirpath) / "best.ckpt")
            trainer.save_checkpoint(self.best_model_path)


def _copy_whole(old: Path, new: Path) -> None:
    """Copy a checkpoint, a file or (DeepSpeed's) a folder."""
    new.parent.mkdir(parents=True, exist_ok=True)
    if old.is_file():
        with atomic_path(new) as temporary:
            shutil.copyfile(old, temporary)
        return
    temporary = new_temporary_folder(new)
    shutil.copytree(old, temporary, dirs_exist_ok=True)
    if new.exists():
        shutil.rmtree(new)
    os.replace(temporary, new)


class RegularCheckpoint(ModelCheckpoint):
    """Checkpoints that do not depend on a metric; there is nothing to remember of them.

    Lightning's own ``save_last`` follows the best checkpoint: it leaves out epochs that did not
    improve.

    Args:
        folder: of the files.
        filename: may hold ``{epoch}`` and ``{step}``.
        steps: write every so many steps; None writes at the end of every epoch.
    """

    def __init__(self, folder: Path, filename: str, steps: int | None = None) -> None:
        self._named = filename
        super().__init__(
            dirpath=folder,
            filename=filename,
            save_top_k=-1 if "{" in filename else 1,
            every_n_train_steps=steps,
            save_on_train_epoch_end=steps is None,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """Several of them may write in one run."""
        return f"{super().state_key}{self._named}"

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a run may be resumed with other flags for these files."""
        return {}


class EmbeddingWriter(Callback):
    """Writes ``embeddings.npz`` after testing: subject, unit, window [W], embedding [W, D].

    An embedding is the mean of a window's final features; ``unit`` and ``window`` are those of the
    predictions.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._subjects: list[str] = []
        self._sample_ids: list[str] = []
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
        """Keep the embeddings of the batch's windows, without padding."""
        kept = [i for i, padding in enumerate(batch["is_padding"]) if not padding]
        self._subjects += [batch["subject"][i] for i in kept]
        self._sample_ids += [batch["sample_id"][i] for i in kept]
        self._windows.append(batch["window"].cpu()[kept])
        self._embeddings.append(outputs["embedding"].float().cpu()[kept])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; every rank writes its own windows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        suffix = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        np.savez_compressed(
            self.folder / f"embeddings{suffix}.npz",
            subject=np.array(self._subjects),
            unit=np.array(self._sample_ids),
            window=torch.cat(self._windows).numpy(),
            embedding=torch.cat(self._embeddings).numpy(),
        )
