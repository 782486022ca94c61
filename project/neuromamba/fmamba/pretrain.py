"""Pre-training of the backbone: prediction of later tokens, or of masked ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from neuromamba.checkpoints.io import CHECKPOINT_KEY
from neuromamba.common.seeds import stream
from neuromamba.config.data import AugmentConfig
from neuromamba.config.model import ModelConfig
from neuromamba.config.serialise import to_dict
from neuromamba.config.training import OptimConfig, PretrainConfig
from neuromamba.data.windows.batch_reader import BatchReader
from neuromamba.evaluation.known_facts import Fact
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.dynamic_skill import METADATA_KEY
from neuromamba.fmamba.losses import (
    masked_token_errors,
    next_token_errors,
    next_token_targets,
    same_place_errors,
    same_place_pairs,
)
from neuromamba.fmamba.masking import hidden_tokens
from neuromamba.fmamba.module import Batch, FMambaModule
from neuromamba.fmamba.pooling import mean, mean_sd
from neuromamba.fmamba.pretraining_metrics import FeatureMetrics, TokenMetrics
from neuromamba.fmamba.step_metrics import AnatomyShare, StepMetrics
from neuromamba.fmamba.tokenizer import PackedTokens, token_places


class PretrainModule(FMambaModule):
    """Next-token prediction (paper, section 3.3), its variants, or masked-token reconstruction.

    Args:
        model, optim, total_steps, ssd_backend, data_metadata, activation_checkpointing, augment:
            as in ``FMambaModule``.
        objective: which of them.
        seed: seed of the random masks.
        facts: known facts of the validation subjects, by name, for ``FeatureMetrics``.

    Attributes:
        dynamic_skill: ``val/dynamic_skill`` of the last validation; None before the first, and
            where it is not defined, as with masked tokens.

    Raises:
        UserInputError: no token of a window is as far ahead as the objective predicts.
    """

    model: FMamba

    def __init__(
        self,
        *,
        model: ModelConfig,
        objective: PretrainConfig,
        optim: OptimConfig,
        total_steps: int,
        seed: int = 0,
        ssd_backend: str = "auto",
        data_metadata: Mapping[str, Any] | None = None,
        activation_checkpointing: bool = False,
        augment: AugmentConfig | None = None,
        facts: Mapping[str, Fact] | None = None,
    ) -> None:
        super().__init__(
            model=model,
            optim=optim,
            total_steps=total_steps,
            output_layer=True,
            ssd_backend=ssd_backend,
            activation_checkpointing=activation_checkpointing,
            data_metadata=data_metadata or {},
            augment=augment,
        )
        objective.check_window(model.token_grid[3])
        self.objective, self.seed = objective, seed
        self._targets_of_run: dict[str, int] = {}
        self.validation = TokenMetrics(model.token_dim)
        in_sequence = objective.predict == "next_token"
        self.steps = StepMetrics(
            model, jumps=in_sequence, of_difference=objective.loss_on == "difference"
        )
        # Whether predictions are of the same place one token later: at steps of a raster, or all.
        self.has_steps = objective.objective == "autoregressive" and (
            model.token_order == "raster" if in_sequence else objective.predict_ahead == 1
        )
        self.anatomy = AnatomyShare(model)
        self.features = FeatureMetrics(facts)
        self.dynamic_skill: float | None = None

    def plan_windows(self, batch: Batch) -> dict[str, Any]:
        """Add the rows of target tokens, the sample of each, their sources, or what is hidden.

        The hidden tokens depend on seed, epoch and window alone; in validation not on the epoch.
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
        elif self.objective.predict == "same_place":
            planned["source_rows"], planned["target_rows"] = same_place_pairs(
                index, lengths, self.model.config.token_grid[3], self.objective.predict_ahead
            )
        else:
            planned["target_rows"] = next_token_targets(lengths)
        ends = torch.tensor(lengths).cumsum(0)
        planned["target_sample"] = torch.bucketize(planned["target_rows"], ends, right=True)
        return planned

    def targets_in(self, reader: BatchReader, items: list[int]) -> int:
        """Count target tokens; once per run where all windows of a run have the same number."""
        if self.augment or self.model.config.union_mask or self.objective.objective == "mim":
            return len(self.plan_windows(reader.masks(items))["target_rows"]) if items else 0
        for item in items:
            if reader.path(item) not in self._targets_of_run:
                count = len(self.plan_windows(reader.masks([item]))["target_rows"])
                self._targets_of_run[reader.path(item)] = count
        return sum(self._targets_of_run[reader.path(item)] for item in items)

    def predict_tokens(self, batch: Batch) -> tuple[PackedTokens, Tensor, Tensor]:
        """Return a batch's tokens, the error of each target (targets,), and the encoding (L, D)."""
        packed, rows, hidden = self.pack(batch), batch["target_rows"], batch.get("hidden")
        x, predict = self.model.encode(packed, hidden), self.model.predict
        if "source_rows" in batch:
            pairs = batch["source_rows"], rows
            errors = same_place_errors(x, packed.tokens, *pairs, predict, self.objective.loss_on)
        else:
            errors_of = next_token_errors if hidden is None else masked_token_errors
            errors = errors_of(x, packed.tokens, rows, predict)
        return packed, errors, x

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's part of the mean error over a step's target tokens."""
        _, errors, _ = self.predict_tokens(batch)
        targets = len(errors)
        if any(batch["is_padding"]):
            counts = self._counts(batch, errors)
            errors, targets = errors * counts, int(counts.sum())
        return self.step_loss(errors, targets, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to the loss and its controls; the masks are the same in every epoch."""
        packed, errors, x = self.predict_tokens(batch)
        features = self.model.norm(x)
        pooled = mean(features, packed, self.model.config)
        if self.features.facts:
            pooled = mean_sd(features, packed, self.model.config)
        self.features.update(batch["subject_key"], batch["window"], pooled)
        rows = batch["target_rows"]
        sources = batch.get("source_rows", rows - 1)
        if any(batch["is_padding"]):
            counts = self._counts(batch, errors)
            errors, rows, sources = errors[counts], rows[counts], sources[counts]
        self.validation.update(errors, packed.tokens, rows, sources)
        self.anatomy.update(packed, batch["is_padding"])
        if self.has_steps:  # not masked tokens: a hidden one may have a hidden one before it
            self.steps.update(packed, x, self.model.predict, batch["is_padding"])

    def on_validation_epoch_end(self) -> None:
        """Log the loss, its controls, the skills, and the metrics of the features."""
        used: list[Metric] = [self.validation, self.anatomy, self.features]
        if self.has_steps:
            used.append(self.steps)
        values: dict[str, Tensor] = {}
        for metric in used:
            values |= metric.compute()
            metric.reset()
        if "dynamic_skill" in values and not self.trainer.sanity_checking:
            found = values["dynamic_skill"].item()
            self.dynamic_skill = None if math.isnan(found) else found
        self.log_dict({f"val/{name}": value.float() for name, value in values.items()})

    @staticmethod
    def _counts(batch: Batch, errors: Tensor) -> Tensor:
        """Whether each target token counts, bool (targets,): not those of padding windows."""
        padding = torch.tensor(batch["is_padding"], device=errors.device)
        return ~padding[batch["target_sample"]]

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Add the objective, and the dynamic skill of the last validation."""
        return super().checkpoint_metadata() | {
            "pretrain": to_dict(self.objective),
            METADATA_KEY: self.dynamic_skill,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the dynamic skill of a resumed run until it is validated again."""
        self.dynamic_skill = checkpoint.get(CHECKPOINT_KEY, {}).get(METADATA_KEY)
