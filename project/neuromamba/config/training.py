"""What a model is trained for, and by which optimiser and schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.bounds import require_positive
from neuromamba.config.names import (
    CLASS_WEIGHTS,
    LABEL_SCALING_METHODS,
    LOSS_TARGETS,
    MASKING_TYPES,
    OBJECTIVES,
    OPTIMIZER_NAMES,
    PREDICTIONS,
)
from neuromamba.config.tasks import TASK_TYPES, TASKS

# How the backbone takes part in a downstream task.
MODE_NAMES: Mapping[str, str] = {
    "scratch": "from scratch",
    "full": "full fine-tuning",
    "frozen": "frozen backbone",
    "lora": "LoRA",
}
PRETRAIN_EPOCHS, DOWNSTREAM_EPOCHS = 40, 30  # paper, Appendix B
EFFECTIVE_BATCH = 1152  # windows of an optimiser step; paper, Appendix B
# Batches of a profile that do not count: memory is mapped, kernels are compiled and chosen.
WARM_UP_BATCHES = 5


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Objective of pre-training: next token (``autoregressive``) or masked tokens (``mim``).

    An autoregressive model predicts, from the features of a token, the following token of the
    sequence (``predict`` "next_token"), or the token ``predict_ahead`` tokens later at the same
    place ("same_place"). For the latter, ``loss_on`` says whether the output is compared with that
    token or with its difference from the token that the prediction is made from.
    """

    objective: str = "autoregressive"
    mask_ratio: float = 0.75
    masking_type: str = "random"
    predict: str = "next_token"
    predict_ahead: int = 1
    loss_on: str = "token"

    def __post_init__(self) -> None:
        look_up(self.objective, OBJECTIVES, "objective")
        look_up(self.masking_type, MASKING_TYPES, "--masking_type")
        if not 0.0 < self.mask_ratio < 1.0:
            raise UserInputError(f"--mask_ratio: got {self.mask_ratio}, expected 0 < r < 1.")
        look_up(self.predict, PREDICTIONS, "--predict")
        look_up(self.loss_on, LOSS_TARGETS, "--loss_on")
        require_positive("--predict_ahead", self.predict_ahead)
        if self.predict == "same_place" and self.objective != "autoregressive":
            raise UserInputError("--predict: only used with --pretraining --use_autoregressive.")
        for flag, value, usual in (
            ("--predict_ahead", self.predict_ahead, 1),
            ("--loss_on", self.loss_on, "token"),
        ):
            if value != usual and self.predict != "same_place":
                raise UserInputError(f"{flag}: only used with --predict same_place.")

    def check_window(self, time_patches: int) -> None:
        """Make sure that a window has tokens to predict.

        Args:
            time_patches: tokens of a place in a window.

        Raises:
            UserInputError: all tokens of a place are fewer than ``predict_ahead`` later.
        """
        if self.predict == "same_place" and self.predict_ahead >= time_patches:
            raise UserInputError(
                f"--predict_ahead: got {self.predict_ahead}, but a window has {time_patches} "
                f"tokens of a place (frames of --img_size / frames of --patch_size), so at most "
                f"{time_patches - 1} can be predicted ahead; longer windows have more."
            )

    def predicted_share(self, time_patches: int) -> float | None:
        """Share of the tokens that are predicted, where these are gathered; None for next token.

        Args:
            time_patches: tokens of a place in a window.
        """
        if self.objective == "mim":
            return self.mask_ratio
        if self.predict == "same_place":
            return (time_patches - self.predict_ahead) / time_patches
        return None

    @property
    def description(self) -> str:
        """The objective in a few words."""
        if self.objective == "mim":
            return f"masked tokens ({self.masking_type}, {self.mask_ratio})"
        if self.predict == "next_token":
            return "next token"
        what = "difference" if self.loss_on == "difference" else "token"
        return f"{what} at the same place, {self.predict_ahead} ahead"


@dataclass(frozen=True, kw_only=True)
class DownstreamConfig:
    """A downstream task on top of the backbone.

    The targets are those that the cohort keeps for ``task`` (a key of ``TASKS``); or the column
    ``target_column`` of ``label_csv``, one value a subject; or of ``events``, one value an event.
    For the latter two ``task`` is the column's name and ``target_classes`` are its classes, in the
    order of the class index; empty for a regression. ``missing_codes`` are labels that mean "not
    recorded" (-9999, 9); their subjects are left out. A ``lora_rank`` above 0 trains low-rank
    updates of the backbone's projections, times ``lora_alpha / lora_rank``, instead of its weights.
    """

    task: str = "sex"
    task_type: str = ""
    freeze_feature_extractor: bool = False
    label_smoothing: float = 0.1
    label_scaling_method: str = "standardization"
    shuffle_labels: int | None = None
    class_weights: str = "none"
    label_csv: str | None = None
    subject_column: str | None = None
    target_column: str | None = None
    target_classes: tuple[str, ...] = ()
    missing_codes: tuple[str, ...] = ()
    events: str | None = None
    event_delay: float = 0.0
    lora_rank: int = 0
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        if self.has_own_targets:
            self._check_own_targets()
        else:
            look_up(self.task, TASKS, "--downstream_task")
            if not self.task_type:
                object.__setattr__(self, "task_type", TASKS[self.task].type)
            look_up(self.task_type, TASK_TYPES, "--downstream_task_type")
            if self.task_type != TASKS[self.task].type:
                raise UserInputError(
                    f"--downstream_task_type: got '{self.task_type}', but the task '{self.task}' "
                    f"is a {TASKS[self.task].type}; leave the flag out or choose another task."
                )
        look_up(self.label_scaling_method, LABEL_SCALING_METHODS, "--label_scaling_method")
        look_up(self.class_weights, CLASS_WEIGHTS, "--class_weights")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserInputError(
                f"--label_smoothing: got {self.label_smoothing}, expected 0 <= s < 1."
            )
        if self.shuffle_labels is not None:
            require_positive("--shuffle_labels", self.shuffle_labels, strict=False)
        require_positive("--lora_rank", self.lora_rank, strict=False)
        require_positive("--lora_alpha", self.lora_alpha)
        if self.lora_rank and self.freeze_feature_extractor:
            raise UserInputError(
                "--lora_rank: trains the backbone, and --freeze_feature_extractor does not."
            )
        if self.class_weights != "none" and self.task_type != "classification":
            raise UserInputError("--class_weights: only used with a classification.")

    def _check_own_targets(self) -> None:
        assert self.label_csv is None or self.events is None
        look_up(self.task_type, TASK_TYPES, "--downstream_task_type")
        if not math.isfinite(self.event_delay):
            raise UserInputError(f"--event_delay: got {self.event_delay}, expected seconds.")
        classes = self.target_classes
        if self.task_type == "classification" and (len(set(classes)) < 2 or "" in classes):
            found = ", ".join(classes) or "none"
            raise UserInputError(
                f"--target_classes: a classification needs two or more classes, found: {found}."
            )
        if len(set(classes)) < len(classes):
            raise UserInputError(f"--target_classes: a class is named twice: {', '.join(classes)}.")
        if self.task_type == "regression" and classes:
            raise UserInputError("--target_classes: only used with a classification.")

    @property
    def has_own_targets(self) -> bool:
        """Whether the targets come from a file of the user's instead of the cohort's."""
        return self.label_csv is not None or self.events is not None

    def mode(self, pretrained: bool) -> str:
        """Say how the backbone takes part (``MODE_NAMES``).

        Args:
            pretrained: whether it starts from the weights of a checkpoint.
        """
        if self.freeze_feature_extractor:
            return MODE_NAMES["frozen"]
        if self.lora_rank:
            return f"{MODE_NAMES['lora']} of rank {self.lora_rank}"
        return MODE_NAMES["full" if pretrained else "scratch"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the class index; empty for a regression."""
        return self.target_classes if self.has_own_targets else TASKS[self.task].class_names

    @property
    def unit(self) -> str:
        """Unit of the values of a regression; "" where none is known."""
        return "" if self.has_own_targets else TASKS[self.task].unit

    @property
    def out_features(self) -> int:
        """Outputs of the head: classes, or 1 for a regression."""
        return len(self.class_names) if self.task_type == "classification" else 1


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule; defaults are the paper's (Appendix B).

    ``warmup`` is the fraction of a cycle spent warming up, ``cycle`` the fraction of the run that
    one cosine cycle takes, ``gamma`` the factor on the peak from cycle to cycle, ``min_lr_ratio``
    the floor as a fraction of the peak, ``layer_decay`` the factor on the rate from a layer to the
    one below it (1 for the head).
    """

    optimizer: str = "AdamW"
    learning_rate: float = 1e-4
    lr_scaling: bool = False
    weight_decay: float = 1e-2
    momentum: float = 0.9
    use_scheduler: bool = True
    warmup: float = 0.05
    gamma: float = 1.0
    cycle: float = 1.0
    min_lr_ratio: float = 0.01
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        look_up(self.optimizer, OPTIMIZER_NAMES, "--optimizer")
        require_positive("--learning_rate", self.learning_rate)
        require_positive("--weight_decay", self.weight_decay, strict=False)
        require_positive("--gamma", self.gamma)
        if not 0.0 <= self.warmup < 1.0:
            raise UserInputError(f"--warmup: got {self.warmup}, expected a fraction 0 <= w < 1.")
        if not 0.0 < self.cycle <= 1.0:
            raise UserInputError(f"--cycle: got {self.cycle}, expected a fraction 0 < c <= 1.")
        if not 0.0 <= self.min_lr_ratio < 1.0:
            raise UserInputError(
                f"--min_lr_ratio: got {self.min_lr_ratio}, expected a fraction 0 <= r < 1."
            )
        if not 0.0 <= self.momentum < 1.0:
            raise UserInputError(f"--momentum: got {self.momentum}, expected 0 <= m < 1.")
        if not 0.0 < self.layer_decay <= 1.0:
            raise UserInputError(f"--layer_decay: got {self.layer_decay}, expected 0 < d <= 1.")
