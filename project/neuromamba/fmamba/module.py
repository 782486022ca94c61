"""LightningModules: pre-training of the backbone, and downstream tasks on top of it.

A batch is what ``datasets_hdf5.collate_windows`` makes: compact windows with their masks. The
scatter plan is made from the masks on the CPU before the batch travels; scaling, scatter and
patchify happen on the device. So it is with the augmentation of training batches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from neuromamba.checkpoints.io import CHECKPOINT_KEY
from neuromamba.common.seeds import stream
from neuromamba.common.version import code_version
from neuromamba.config.data import AugmentConfig
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.names import OPTIMIZER_NAMES, ORIENTATION
from neuromamba.config.serialise import to_dict
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.config.training import DownstreamConfig, OptimConfig, PretrainConfig
from neuromamba.data.windows.augment import AugmentPlan, augment_window, plan_augmentation
from neuromamba.data.windows.batch_reader import BatchReader
from neuromamba.data.windows.loader import WindowLoader
from neuromamba.evaluation.metrics import (
    FeatureMetrics,
    MeanLoss,
    SubjectMetrics,
    TokenMetrics,
    WindowScores,
    subject_key,
)
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.losses import (
    LOSSES,
    masked_token_errors,
    next_token_errors,
    next_token_targets,
)
from neuromamba.fmamba.masking import hidden_tokens
from neuromamba.fmamba.tokenizer import PackedTokens, pack_compact, plan_compact, token_places
from neuromamba.layers.lora import add_lora
from neuromamba.training.lr_schedule import CosineAnnealingWarmUpRestarts

CARD_FORMAT = 1
Batch = dict[str, Any]


class TargetScaling(NamedTuple):
    """How a regression target is scaled, from the training subjects: (y - center) / scale."""

    center: float
    scale: float


UNSCALED = TargetScaling(0.0, 1.0)


class FMambaModule(LightningModule):
    """What pre-training and downstream share: backbone, packing, optimiser, checkpoint card.

    Args:
        model: architecture.
        optim: optimiser and schedule.
        total_steps: optimiser steps of the whole run, for the schedule.
        output_layer: whether the backbone has its next-token layer.
        ssd_backend: see ``ssd.select_backend``.
        activation_checkpointing: see ``FMamba``.
        data_card: plain containers that say what data the model saw (scaling, split ...); stored
            in every checkpoint beside the configurations.
        augment: what is done to training windows; None for nothing.
    """

    def __init__(
        self,
        model: ModelConfig,
        optim: OptimConfig,
        total_steps: int,
        output_layer: bool,
        ssd_backend: str,
        activation_checkpointing: bool,
        data_card: Mapping[str, Any],
        augment: AugmentConfig | None,
    ) -> None:
        super().__init__()
        self.optim, self.total_steps, self.data_card = optim, total_steps, dict(data_card)
        self.augment = augment
        self._matrices: frozenset[str] | None = None
        # Named so that our keys read as the released ones: model.<key>.
        self.model = build_model(model, output_layer, ssd_backend, activation_checkpointing)

    def adapt(self) -> None:
        """What a training changes about a backbone whose weights have been loaded: nothing."""

    # ------------------------------------------------------------------ batches

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Plan the scatter from the masks, on the CPU, so that the device need not wait.

        A training batch is augmented here as well: its masks move before the plan is made, and
        what is to happen to its intensities is drawn.
        """
        planned = {name: value for name, value in batch.items() if name != "vox"}
        planned |= self.plan_windows(batch)
        planned["real"] = tuple(batch.get("real", [True] * len(batch["subject"])))
        if "target" in batch:
            # int64 classes or float64 values; made here, after Lightning's cast to its precision.
            values = batch["target"]
            real = any(isinstance(value, float) for value in values)
            planned["target"] = torch.tensor(values, dtype=torch.float64 if real else torch.int64)
        return planned

    def plan_windows(self, batch: Batch) -> dict[str, Any]:
        """What follows from the masks of windows and from who they are."""
        keys = list(map(subject_key, batch["unit"], map(int, batch["dataset"])))
        planned: dict[str, Any] = {"subject_key": torch.tensor(keys)}
        voxels = batch["vox"]
        if self.augment is not None and self.training:
            planned["augment"] = self._plan_augmentation(batch, keys)
            voxels = [plan.voxels for plan in planned["augment"]]
        planned["plans"] = plan_compact(voxels, self.model.config, batch["subject"])
        return planned

    def _plan_augmentation(self, batch: Batch, keys: list[int]) -> list[AugmentPlan]:
        """Draws that depend on seed, epoch and window alone.

        So they are the same in a resumed run, and whatever the batch size and number of devices.
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
        """The batch's tokens to keep, augmented if so planned, scaled, on the device."""
        config = self.model.config
        dtype = torch.promote_types(self.model.embedder.projection.dtype, torch.float32)
        if "augment" in batch:
            windows = zip(batch["bold"], batch["augment"], strict=True)
            augmented = [augment_window(q, plan, config.img_size[:3], dtype) for q, plan in windows]
            batch = batch | {"bold": augmented}
        return pack_batch(batch, config, dtype)

    # ------------------------------------------------------------------ optimisation

    def targets_in(self, reader: BatchReader, items: list[int]) -> int:
        """Targets that training windows have, known without their images."""
        raise NotImplementedError

    def step_loss(self, errors: Tensor, targets: int, batch_idx: int) -> Tensor:
        """A batch's part of the mean error over all targets of an optimiser step.

        A step takes as many batches as gradients are accumulated of, on every rank, and each target
        counts once: the targets of the batches to come are known from their masks. Ranks and
        batches are averaged by the strategy and the Trainer, so their number is multiplied with.

        Args:
            errors: of the batch's targets; zero for windows that are there for padding.
            targets: how many count.
            batch_idx: of the batch in its epoch.
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
        """Before a strategy flattens or spreads the parameters."""
        self._matrices = matrices_of(self)

    def configure_optimizers(self) -> Any:
        """AdamW or SGD on what is trainable, and the cosine schedule stepped every step."""
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
        """As Lightning, and for FSDP too, where a norm is the sum over the ranks' shards."""
        clip = getattr(self.trainer.model, "clip_grad_norm_", None)
        if clip is not None and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            clip(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """All batches of the step have been computed."""
        self.log_training_loss()

    def log_training_loss(self) -> None:
        """Log a step's mean error over all its targets, and the learning rate it is taken with.

        Here and not with a batch: behind the backward pass the ranks have met already.
        """
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._step_error)  # no host waits for its device
        self.log("train/loss", self._step_error / self._step_targets, prog_bar=True)
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        self.log("train/learning_rate", rate)

    # ------------------------------------------------------------------ checkpoints

    def card(self) -> dict[str, Any]:
        """What is needed to use the weights without the flags of the run, in plain containers."""
        return {
            "format": CARD_FORMAT,
            "model": to_dict(self.model.config),
            "orientation": ORIENTATION,
            "data": self.data_card,
            "optim": to_dict(self.optim),
            "total_steps": self.total_steps,
        } | ({"augment": to_dict(self.augment)} if self.augment else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card, and what wrote it: how many processes, which version of the code."""
        card = self.card()
        if self._trainer is not None:
            card["ranks"] = self._trainer.world_size
            if self._trainer.is_global_zero:  # the other ranks' cards are not read
                card["code_version"] = code_version()
        checkpoint[CHECKPOINT_KEY] = card


def pack_batch(
    batch: Batch, config: ModelConfig, dtype: torch.dtype = torch.float32
) -> PackedTokens:
    """Tokens to keep of a batch with its ``plans``, scaled, on the batch's device."""
    return pack_compact(
        batch["bold"],
        batch["plans"],
        batch["gain"],
        batch["shift"],
        batch["background"],
        config,
        dtype,
    )


def matrices_of(module: torch.nn.Module) -> frozenset[str]:
    """Names of the parameters with more than one axis."""
    return frozenset(name for name, p in module.named_parameters() if p.dim() > 1)


_LAYER = re.compile(r"(?:^|\.)mamba_layers\.(\d+)\.")


def _layer(name: str) -> int | None:
    """Number of the Mamba2 layer of the backbone that a parameter is in."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def height(name: str, depth: int) -> int:
    """How far a parameter is below the head (0): the last layer is 1, the embedding depth + 1.

    Of the backbone's final norm and of what follows it the height is 0 (Bao et al. 2022, BEiT).
    """
    layer = _layer(name)
    if layer is not None:
        return depth - layer
    return depth + 1 if "embedder." in name else 0


def build_optimizer(
    module: torch.nn.Module, config: OptimConfig, matrices: frozenset[str] | None = None
) -> Optimizer:
    """The optimiser over the trainable parameters of ``module``.

    Vectors (biases, norms, A_log, D, dt_bias) are not decayed: for them 0 means something. With
    ``layer_decay`` the rate falls from the head down (see ``height``).

    Args:
        module: what is trained.
        config: optimiser and rates.
        matrices: names of the parameters to decay, where their shapes do not tell any more (FSDP
            flattens them).
    """
    matrices = matrices_of(module) if matrices is None else matrices
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    depth = 1 + max((_layer(name) or 0 for name, _ in module.named_parameters()), default=0)
    heights = {name: height(name, depth) for name, _ in trainable}
    groups = []
    # The head first, whose rate is the one that is shown.
    for level in sorted({0, *heights.values()} if config.layer_decay < 1 else {0}):
        own = [(n, p) for n, p in trainable if config.layer_decay == 1 or heights[n] == level]
        rate = config.learning_rate * config.layer_decay**level
        for decayed, factor in ((True, config.weight_decay), (False, 0.0)):
            if chosen := [p for name, p in own if (name in matrices) == decayed]:
                groups.append({"params": chosen, "weight_decay": factor, "lr": rate})
    assert config.optimizer in OPTIMIZER_NAMES
    if config.optimizer == "SGD":
        return SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    # One pass over the parameters instead of one for each operation of the update.
    optimizer = AdamW(groups, lr=config.learning_rate, fused=True)
    # A fused step could undo a loss scaling by itself, and Lightning then refuses --grad_clip, with
    # and without scaling. It is left to the scaler, as for every other optimiser.
    optimizer._step_supports_amp_scaling = False
    return optimizer


class PretrainModule(FMambaModule):
    """Next-token prediction (paper, section 3.3) or masked-token reconstruction.

    Args:
        model, optim, total_steps, ssd_backend, data_card, activation_checkpointing, augment: as in
            ``FMambaModule``.
        objective: which of the two, and the masking.
        seed: of the masks.
        watched: subject key -> class of validation subjects, and the task's name, for the nearest
            neighbours of the features.
    """

    def __init__(
        self,
        model: ModelConfig,
        objective: PretrainConfig,
        optim: OptimConfig,
        total_steps: int,
        seed: int = 0,
        ssd_backend: str = "auto",
        data_card: Mapping[str, Any] | None = None,
        activation_checkpointing: bool = False,
        augment: AugmentConfig | None = None,
        watched: tuple[Mapping[int, int], str] = ({}, ""),
    ) -> None:
        super().__init__(
            model,
            optim,
            total_steps,
            True,
            ssd_backend,
            activation_checkpointing,
            data_card or {},
            augment,
        )
        self.objective, self.seed = objective, seed
        self._targets_of_run: dict[str, int] = {}
        self.validation = TokenMetrics(model.token_dim)
        self.features = FeatureMetrics(*watched)

    def plan_windows(self, batch: Batch) -> dict[str, Any]:
        """Adds the rows of the target tokens, which sample each belongs to, and what is hidden.

        What is hidden depends on seed, epoch and window alone; in validation not on the epoch.
        """
        planned = super().plan_windows(batch)
        index, lengths = token_places(planned["plans"], self.model.config)
        if self.objective.objective == "mim":
            when = (0, self.current_epoch) if self.training else (1,)
            windows = zip(planned["subject_key"].tolist(), map(int, batch["window"]), strict=True)
            planned["hidden"] = hidden_tokens(
                index,
                lengths,
                self.model.config.token_grid[3],
                self.objective.mask_ratio,
                self.objective.masking_type,
                [stream(self.seed, *when, *window) for window in windows],
            )
            planned["target_rows"] = planned["hidden"].nonzero()[:, 0]
        else:
            planned["target_rows"] = next_token_targets(lengths)
        ends = torch.tensor(lengths).cumsum(0)
        planned["target_sample"] = torch.bucketize(planned["target_rows"], ends, right=True)
        return planned

    def targets_in(self, reader: BatchReader, items: list[int]) -> int:
        """Target tokens; counted once for a run where all its windows have as many."""
        if self.augment or self.model.config.union_mask or self.objective.objective == "mim":
            return len(self.plan_windows(reader.masks(items))["target_rows"]) if items else 0
        for item in items:
            if reader.path(item) not in self._targets_of_run:
                count = len(self.plan_windows(reader.masks([item]))["target_rows"])
                self._targets_of_run[reader.path(item)] = count
        return sum(self._targets_of_run[reader.path(item)] for item in items)

    def predict_tokens(self, batch: Batch) -> tuple[PackedTokens, Tensor, Tensor]:
        """Run the objective on a batch: its tokens, each target's error, what encodes them."""
        packed, rows, hidden = self.pack(batch), batch["target_rows"], batch.get("hidden")
        errors_of = next_token_errors if hidden is None else masked_token_errors
        x = self.model.encode(packed, hidden)
        return packed, errors_of(x, packed.tokens, rows, self.model.predict), x

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean error over the target tokens of a step, every token of equal weight."""
        _, errors, _ = self.predict_tokens(batch)
        targets = len(errors)
        if not all(batch["real"]):
            counts = torch.tensor(batch["real"], device=errors.device)[batch["target_sample"]]
            errors, targets = errors * counts, int(counts.sum())
        return self.step_loss(errors, targets, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to the loss and its controls; masks are the same in every epoch."""
        packed, errors, x = self.predict_tokens(batch)
        windows = self.model.norm(x).split(packed.lengths)
        features = torch.stack([window.mean(0) for window in windows])
        self.features.update(batch["subject_key"], batch["window"], features)
        rows = batch["target_rows"]
        if not all(batch["real"]):
            counts = torch.tensor(batch["real"], device=errors.device)[batch["target_sample"]]
            errors, rows = errors[counts], rows[counts]
        self.validation.update(errors, packed.tokens, rows)

    def on_validation_epoch_end(self) -> None:
        """Log the loss, its controls and the skill, and what the features are worth."""
        values = self.validation.compute() | self.features.compute()
        self.features.reset()
        self.log_dict({f"val/{name}": value.float() for name, value in values.items()})
        self.validation.reset()

    def card(self) -> dict[str, Any]:
        """Adds the objective."""
        return super().card() | {"pretrain": to_dict(self.objective)}


class DownstreamModule(FMambaModule):
    """Backbone and head on a classification or regression of subjects.

    Args:
        model, optim, total_steps, ssd_backend, data_card, activation_checkpointing, augment: as in
            ``FMambaModule``.
        head: which head.
        task: target, loss and whether the backbone is frozen.
        target_scaling: of a regression, from the training subjects.
        class_weights: of a classification's loss; None weighs all classes alike.
    """

    def __init__(
        self,
        model: ModelConfig,
        head: HeadConfig,
        task: DownstreamConfig,
        optim: OptimConfig,
        total_steps: int,
        target_scaling: TargetScaling = UNSCALED,
        ssd_backend: str = "auto",
        data_card: Mapping[str, Any] | None = None,
        activation_checkpointing: bool = False,
        augment: AugmentConfig | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            model,
            optim,
            total_steps,
            False,
            ssd_backend,
            activation_checkpointing,
            data_card or {},
            augment,
        )
        self.head_config, self.task, self.target_scaling = head, task, target_scaling
        self.head = build_head(head, model, ssd_backend)
        if task.freeze_feature_extractor:
            self.model.requires_grad_(False).eval()  # Lightning keeps the mode it finds
        self.loss = LOSSES[TASK_TYPES[task.task_type].loss]
        self.class_weights = class_weights
        self.validation = SubjectMetrics(task.task_type)
        self.test = SubjectMetrics(task.task_type)
        self.losses = MeanLoss()  # of the windows of either
        self.seen: dict[str, WindowScores] = {}

    def adapt(self) -> None:
        """Once the backbone has its weights: put LoRA's updates beside them, if so configured."""
        if self.task.lora_rank:
            add_lora(self.model, self.task.lora_rank, self.task.lora_alpha)

    def train(self, mode: bool = True) -> DownstreamModule:
        """A frozen backbone stays in evaluation mode: no dropout in fixed features."""
        super().train(mode)
        if self.task.freeze_feature_extractor:
            self.model.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (B, outputs), and the features (L, D) of each window."""
        packed = self.pack(batch)
        frozen = self.task.freeze_feature_extractor
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.model.forward_tokens(packed).features
        return self.head(features, packed.lengths), features.split(packed.lengths)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The task's loss, every window of equal weight."""
        logits, _ = self(batch)
        errors = self.loss(
            logits, self.scaled_target(batch), self.task.label_smoothing, self.class_weights
        )
        targets = sum(batch["real"])
        errors = errors * torch.tensor(batch["real"], device=errors.device)
        return self.step_loss(errors, targets, batch_idx)

    def targets_in(self, reader: BatchReader, items: list[int]) -> int:
        """One a window."""
        return len(items)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's windows to the subjects' scores."""
        self._evaluate(batch, self.validation, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """As in validation; returns the mean features for ``--save_embedding``."""
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
        """Class indices as they are; values scaled by the training subjects' statistics."""
        target = batch["target"]
        if self.task.task_type == "classification":
            return target
        return (target - self.target_scaling.center) / self.target_scaling.scale

    def scores(self, logits: Tensor) -> Tensor:
        """Class probabilities (B, classes), or predictions (B, 1) in the target's units."""
        if self.task.task_type == "classification":
            return logits.double().softmax(-1)
        return logits.double() * self.target_scaling.scale + self.target_scaling.center

    def _evaluate(self, batch: Batch, metric: SubjectMetrics, part: str) -> tuple[Tensor, ...]:
        logits, features = self(batch)
        errors = self.loss(logits, self.scaled_target(batch), 0.0, self.class_weights)
        self.losses.update(errors[[i for i, real in enumerate(batch["real"]) if real]])
        metric.update(batch["subject_key"], batch["window"], self.scores(logits), batch["target"])
        return features

    def _log_metrics(self, metric: SubjectMetrics, part: str) -> None:
        values = {"loss": self.losses.compute()} | metric.compute()
        self.log_dict({f"{part}/{name}": value.float() for name, value in values.items()})
        metric.reset()
        self.losses.reset()

    def card(self) -> dict[str, Any]:
        """Adds the head, the task and the scaling of the target."""
        return super().card() | {
            "head": to_dict(self.head_config),
            "downstream": to_dict(self.task),
            "target_scaling": list(self.target_scaling),
        }
