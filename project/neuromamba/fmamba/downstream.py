"""Downstream tasks: a head on the backbone predicts a class or a value of each subject or event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from neuromamba.config.data import AugmentConfig
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.serialise import to_dict
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.config.training import DownstreamConfig, OptimConfig
from neuromamba.data.windows.batch_reader import BatchReader
from neuromamba.evaluation.mean_loss import MeanLoss
from neuromamba.evaluation.subject_metrics import SubjectMetrics, WindowScores
from neuromamba.evaluation.target_scaling import UNSCALED, TargetScaling, scores_of
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.losses import LOSSES
from neuromamba.fmamba.module import Batch, FMambaModule
from neuromamba.layers.lora import add_lora


class DownstreamModule(FMambaModule):
    """Backbone and head on a classification or regression of subjects.

    Args:
        model, optim, total_steps, ssd_backend, data_metadata, activation_checkpointing, augment:
            as in ``FMambaModule``.
        head: architecture of the head.
        task: target, loss, and whether the backbone is frozen or gets LoRA's updates.
        target_scaling: scaling of a regression's target, from the training subjects.
        class_weights: weight of each class in a classification's loss; None for equal weights.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        head: HeadConfig,
        task: DownstreamConfig,
        optim: OptimConfig,
        total_steps: int,
        target_scaling: TargetScaling = UNSCALED,
        ssd_backend: str = "auto",
        data_metadata: Mapping[str, Any] | None = None,
        activation_checkpointing: bool = False,
        augment: AugmentConfig | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            model=model,
            optim=optim,
            total_steps=total_steps,
            output_layer=False,
            ssd_backend=ssd_backend,
            activation_checkpointing=activation_checkpointing,
            data_metadata=data_metadata or {},
            augment=augment,
        )
        self.head_config, self.task, self.target_scaling = head, task, target_scaling
        self.head = build_head(head, model, ssd_backend)
        if task.freeze_feature_extractor:
            self.model.requires_grad_(False).eval()  # Lightning keeps the mode it finds
        self.loss = LOSSES[TASK_TYPES[task.task_type].loss]
        self.class_weights = class_weights
        self.validation = SubjectMetrics(task.task_type)
        self.test = SubjectMetrics(task.task_type)
        self.losses = MeanLoss()  # of validation or test windows
        self.seen: dict[str, WindowScores] = {}

    def add_lora(self) -> None:
        """Add LoRA's updates to the loaded weights of the backbone, if the task asks for them."""
        if self.task.lora_rank:
            add_lora(self.model, self.task.lora_rank, self.task.lora_alpha)

    def train(self, mode: bool = True) -> DownstreamModule:
        """Switch the mode; a frozen backbone stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.task.freeze_feature_extractor:
            self.model.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (B, outputs), and the features (L, D) of each window."""
        packed = self.pack(batch)
        frozen = self.task.freeze_feature_extractor
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.model.forward_tokens(packed).features
        return self.head(features, packed), features.split(packed.lengths)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's part of the mean loss over a step's windows."""
        logits, _ = self(batch)
        errors = self.loss(
            logits, self.scaled_target(batch), self.task.label_smoothing, self.class_weights
        )
        counts = [not padding for padding in batch["is_padding"]]
        errors = errors * torch.tensor(counts, device=errors.device)
        return self.step_loss(errors, sum(counts), batch_idx)

    def targets_in(self, reader: BatchReader, items: list[int]) -> int:
        """Count the windows: each has one target."""
        return len(items)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's windows to the subjects' scores."""
        self._evaluate(batch, self.validation, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add the batch as in validation; return mean features (B, D) for ``--save_embedding``."""
        features = self._evaluate(batch, self.test, "test")
        return {"embedding": torch.stack([window.mean(0) for window in features])}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over validation subjects; after training, keep the windows' scores."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.seen["val"] = self.validation.all_windows()
        self._log_metrics(self.validation, "val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics over test subjects and keep the windows' scores."""
        self.seen["test"] = self.test.all_windows()
        self._log_metrics(self.test, "test")

    def scaled_target(self, batch: Batch) -> Tensor:
        """Return class indices unchanged, and values scaled by the target scaling."""
        target = batch["target"]
        if self.task.task_type == "classification":
            return target
        return (target - self.target_scaling.center) / self.target_scaling.scale

    def scores(self, logits: Tensor) -> Tensor:
        """Return what ``target_scaling.scores_of`` makes of logits."""
        return scores_of(logits, self.task.task_type, self.target_scaling)

    def _evaluate(self, batch: Batch, metric: SubjectMetrics, part: str) -> tuple[Tensor, ...]:
        logits, features = self(batch)
        errors = self.loss(logits, self.scaled_target(batch), 0.0, self.class_weights)
        self.losses.update(errors[[i for i, p in enumerate(batch["is_padding"]) if not p]])
        metric.update(batch["subject_key"], batch["window"], self.scores(logits), batch["target"])
        return features

    def _log_metrics(self, metric: SubjectMetrics, part: str) -> None:
        values = {"loss": self.losses.compute()} | metric.compute()
        self.log_dict({f"{part}/{name}": value.float() for name, value in values.items()})
        metric.reset()
        self.losses.reset()

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Add the head, the task and the scaling of the target."""
        return super().checkpoint_metadata() | {
            "head": to_dict(self.head_config),
            "downstream": to_dict(self.task),
            "target_scaling": list(self.target_scaling),
        }
