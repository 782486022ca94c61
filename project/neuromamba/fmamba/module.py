"""The LightningModule that pre-training (``pretrain``) and downstream tasks (``downstream``) share.

A batch is made by ``data.windows.dataset.collate_windows``: windows of brain voxels with their
masks. On the CPU, before the batch is moved to the device, the masks are turned into tables that
say where each voxel goes in the tokens. On the device the intensities are scaled, put on the grid
and cut into tokens. The augmentation of training batches is split in the same way: the masks are
moved on the CPU, the intensities are resampled on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from neuromamba.checkpoints.io import CHECKPOINT_KEY
from neuromamba.common.seeds import stream
from neuromamba.common.version import code_version
from neuromamba.config.data import AugmentConfig
from neuromamba.config.model import ModelConfig
from neuromamba.config.names import ORIENTATION
from neuromamba.config.serialise import to_dict
from neuromamba.config.training import OptimConfig
from neuromamba.data.windows.augment import AugmentPlan, augment_window, plan_augmentation
from neuromamba.data.windows.batch_reader import BatchReader
from neuromamba.data.windows.loader import WindowLoader
from neuromamba.evaluation.subject_keys import subject_key
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.optimizer import build_optimizer, matrices_of
from neuromamba.fmamba.tokenizer import PackedTokens, plan_compact
from neuromamba.fmamba.window_tokens import pack_batch
from neuromamba.training.lr_schedule import CosineAnnealingWarmUpRestarts

METADATA_FORMAT = 1  # of the metadata in a checkpoint
Batch = dict[str, Any]


class FMambaModule(LightningModule):
    """Backbone, tokens, optimiser and checkpoint metadata, common to both kinds of training.

    Args:
        model: architecture of the backbone.
        optim: optimiser and learning-rate schedule.
        total_steps: optimiser steps of the whole run, which the schedule spans.
        output_layer: whether the backbone has its next-token layer.
        ssd_backend: name of the scan backend, see ``layers.ssd.select_backend``.
        activation_checkpointing: recompute activations in the backward pass, see ``FMamba``.
        data_metadata: which data the model is trained on (scaling, split ...), in plain
            containers; stored in every checkpoint beside the configurations.
        augment: augmentation of training windows; None for none.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        optim: OptimConfig,
        total_steps: int,
        output_layer: bool,
        ssd_backend: str,
        activation_checkpointing: bool,
        data_metadata: Mapping[str, Any],
        augment: AugmentConfig | None,
    ) -> None:
        super().__init__()
        self.optim, self.total_steps = optim, total_steps
        self.data_metadata = dict(data_metadata)
        self.augment = augment
        self._matrices: frozenset[str] | None = None
        # Named so that our keys read as the released ones: model.<key>.
        self.model = build_model(model, output_layer, ssd_backend, activation_checkpointing)

    def add_lora(self) -> None:
        """Add LoRA's updates to a backbone whose weights have been loaded; here there are none."""

    # ------------------------------------------------------------------ batches

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Compute on the CPU where each voxel goes in the tokens, so that the device need not wait.

        The masks of an augmented training batch are moved first, and the random parameters of its
        intensities are drawn.
        """
        planned = {name: value for name, value in batch.items() if name != "vox"}
        planned |= self.plan_windows(batch)
        planned["is_padding"] = tuple(batch.get("is_padding", [False] * len(batch["subject"])))
        if "target" in batch:
            # int64 classes or float64 values; made here, after Lightning's cast to its precision.
            values = batch["target"]
            floating = any(isinstance(value, float) for value in values)
            dtype = torch.float64 if floating else torch.int64
            planned["target"] = torch.tensor(values, dtype=dtype)
        return planned

    def plan_windows(self, batch: Batch) -> dict[str, Any]:
        """Derive subject keys, augmentation and token plans from the masks and names of windows."""
        keys = list(map(subject_key, batch["sample_id"], map(int, batch["dataset"])))
        planned: dict[str, Any] = {"subject_key": torch.tensor(keys)}
        voxels = batch["vox"]
        if self.augment is not None and self.training:
            planned["augment"] = self._plan_augmentation(batch, keys)
            voxels = [plan.voxels for plan in planned["augment"]]
        planned["plans"] = plan_compact(voxels, self.model.config, batch["subject"])
        return planned

    def _plan_augmentation(self, batch: Batch, keys: list[int]) -> list[AugmentPlan]:
        """Draw the augmentation of each window from seed, epoch and window alone.

        The draws are therefore the same in a resumed run, for any batch size and number of devices.
        """
        assert self.augment is not None
        grid, windows = self.model.config.img_size[:3], map(int, batch["window"])
        return [
            plan_augmentation(
                voxels,
                grid,
                self.augment,
                stream(self.augment.seed, 3, self.current_epoch, key, window),
            )
            for voxels, key, window in zip(batch["vox"], keys, windows, strict=True)
        ]

    def pack(self, batch: Batch) -> PackedTokens:
        """Make the tokens of a batch on its device: augment if planned, scale, drop background."""
        config = self.model.config
        dtype = torch.promote_types(self.model.embedder.projection.dtype, torch.float32)
        if "augment" in batch:
            windows = zip(batch["bold"], batch["augment"], strict=True)
            augmented = [augment_window(q, plan, config.img_size[:3], dtype) for q, plan in windows]
            batch = batch | {"bold": augmented}
        return pack_batch(batch, config, dtype)

    # ------------------------------------------------------------------ optimisation

    def targets_in(self, reader: BatchReader, items: list[int]) -> int:
        """Count the targets of training windows, without reading their images."""
        raise NotImplementedError

    def step_loss(self, errors: Tensor, targets: int, batch_idx: int) -> Tensor:
        """Return a batch's part of the mean error over all targets of an optimiser step.

        A step accumulates gradients over several batches, on every rank, and each target has equal
        weight: the number of targets in the batches that follow is known from their masks. The
        strategy and the Trainer average over ranks and batches, so the part is multiplied by their
        number.

        Args:
            errors: error of each target of the batch; zero for padding windows.
            targets: number of targets that are not padding.
            batch_idx: number of the batch in its epoch.
        """
        trainer, error = self._trainer, errors.sum()
        if trainer is None:
            return error / max(1, targets)
        together = trainer.accumulate_grad_batches
        if batch_idx % together == 0:
            found = targets
            end = min(batch_idx + together, int(trainer.num_training_batches))
            if end > batch_idx + 1:
                loader = trainer.train_dataloader
                assert isinstance(loader, WindowLoader) and isinstance(loader.dataset, BatchReader)
                later = range(batch_idx + 1, end)
                found += sum(self.targets_in(loader.dataset, loader.items(i)) for i in later)
            self._step_targets: Any = max(1, found)
            if trainer.world_size > 1:
                # The strategy's ``reduce`` would let the host wait for the device, twice a step.
                count = torch.full((), found, device=self.device)
                torch.distributed.all_reduce(count)
                self._step_targets = count.clamp(min=1)
            self._step_error = torch.zeros_like(error)
        self._step_error += error.detach()
        return error * (together * trainer.world_size) / self._step_targets

    def setup(self, stage: str) -> None:
        """Note which parameters are matrices before a strategy flattens or shards them."""
        self._matrices = matrices_of(self)

    def configure_optimizers(self) -> Any:
        """Build the optimiser, and the cosine schedule, which advances at every step."""
        optimizer = build_optimizer(self, self.optim, self._matrices)
        if not self.optim.use_scheduler:
            return optimizer
        cycle = max(1, round(self.total_steps * self.optim.cycle))
        schedule = CosineAnnealingWarmUpRestarts(
            optimizer,
            cycle_steps=cycle,
            warmup_steps=int(cycle * self.optim.warmup),
            min_ratio=self.optim.min_lr_ratio,
            gamma=self.optim.gamma,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, and under FSDP by the norm over the shards of all ranks."""
        clip = getattr(self.trainer.model, "clip_grad_norm_", None)
        if clip is not None and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            clip(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the loss of the step, whose batches have all been computed."""
        self.log_training_loss()

    def log_training_loss(self) -> None:
        """Log a step's mean error over all its targets, and its learning rate.

        It is not logged with a batch, because after the backward pass the ranks are in step anyway.
        """
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._step_error)  # no host waits for its device
        self.log("train/loss", self._step_error / self._step_targets, prog_bar=True)
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        self.log("train/learning_rate", rate)

    # ------------------------------------------------------------------ checkpoints

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Describe what is needed to use the weights without the run's flags; plain containers."""
        return {
            "format": METADATA_FORMAT,
            "model": to_dict(self.model.config),
            "orientation": ORIENTATION,
            "data": self.data_metadata,
            "optim": to_dict(self.optim),
            "total_steps": self.total_steps,
        } | ({"augment": to_dict(self.augment)} if self.augment else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata, with the number of ranks and the version of the code that write it."""
        metadata = self.checkpoint_metadata()
        if self._trainer is not None:
            metadata["ranks"] = self._trainer.world_size
            if self._trainer.is_global_zero:  # the metadata of other ranks are never read
                metadata["code_version"] = code_version()
        checkpoint[CHECKPOINT_KEY] = metadata
