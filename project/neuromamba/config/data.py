"""Which runs and windows a model sees, how they are scaled, split and augmented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.bounds import require_positive
from neuromamba.config.names import (
    CHANNELS,
    SCALING_METHODS,
    SCALING_STATISTICS,
    SPLIT_UNITS,
    VOXEL_SCALINGS,
    canonical_dataset_name,
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which runs, which windows of them, how scaled and how split.

    ``grid`` is (X, Y, Z), the first three numbers of ``--img_size``; ``sequence_length``, the
    fourth, counts frames of a window, taken every ``stride_within_seq`` frames; consecutive windows
    start ``stride_between_seq`` * (sequence_length * stride_within_seq) frames apart.

    ``scaling_statistics`` says whether the scalings that differ from voxel to voxel take their
    statistics from the run or from the window. With them ``channels`` may name "anatomy" beside
    "dynamics", the signal: the mean image that they take out is then read too.

    ``group_by`` names what is split and scored as one (``SPLIT_UNITS``). Subjects of one value in
    ``family_column`` stay in one part; ``stratify_by`` are columns whose values every part gets in
    equal shares (empty: the cohort's own; ("none",): none). ``dataset_weights`` are the shares of
    the data sets in the training windows of an epoch. ``match_on`` are columns in which matched
    pairs of the two classes agree, within ``match_caliper`` standard deviations of the propensity
    score's logit.
    """

    dataset_name: tuple[str, ...] = ("S1200",)
    image_path: tuple[str, ...] = ()
    grid: tuple[int, ...] = (96, 96, 96)
    sequence_length: int = 20
    stride_between_seq: float = 1.0
    stride_within_seq: int = 1
    input_scaling_method: str = "znorm_minback"
    scaling_statistics: str = "run"
    channels: tuple[str, ...] = ("dynamics",)
    dataset_split_num: int = 1
    train_split: float = 0.8
    val_split: float = 0.1
    seed: int = 1234
    batch_size: int = 4
    eval_batch_size: int = 0
    num_workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = True
    prefetch_factor: int = 2
    window_cache: float | str = 0.0
    limit_training_samples: float | None = None
    limit_validation_samples: float | None = None
    limit_test_samples: float | None = None
    num_train_fMRI_segments: int | None = None
    bad_subj_path: str | None = None
    shuffle_time_sequence: bool = False
    include_valid_to_train: bool = False
    group_by: str = "subject"
    family_column: str | None = None
    stratify_by: tuple[str, ...] = ()
    dataset_weights: tuple[float, ...] = ()
    balanced_sampling: bool = False
    match_on: tuple[str, ...] = ()
    match_caliper: float = 0.2

    # Field -> its key in files, which all versions share.
    FILE_KEYS: ClassVar[Mapping[str, str]] = {"grid": "img_size"}

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "dataset_name", tuple(canonical_dataset_name(n) for n in self.dataset_name)
        )
        if len(self.image_path) != len(self.dataset_name):
            raise UserInputError(
                f"--image_path: got {len(self.image_path)} folder(s) for "
                f"{len(self.dataset_name)} data set(s) in --dataset_name; give one folder each."
            )
        look_up(self.input_scaling_method, SCALING_METHODS, "--input_scaling_method")
        look_up(self.scaling_statistics, SCALING_STATISTICS, "--scaling_statistics")
        self._check_channels()
        for flag, value in (
            ("--sequence_length", self.sequence_length),
            ("--stride_between_seq", self.stride_between_seq),
            ("--stride_within_seq", self.stride_within_seq),
            ("--batch_size", self.batch_size),
        ):
            require_positive(flag, value)
        if self.eval_batch_size == 0:
            object.__setattr__(self, "eval_batch_size", self.batch_size)
        require_positive("--eval_batch_size", self.eval_batch_size)
        require_positive("--num_workers", self.num_workers, strict=False)
        if not 0 <= self.seed < 2**32:
            raise UserInputError(f"--seed: got {self.seed}, expected 0 to {2**32 - 1}.")
        require_positive("--prefetch_factor", self.prefetch_factor)
        if isinstance(self.window_cache, str):
            if self.window_cache != "auto":
                raise UserInputError(
                    f"--window_cache: got '{self.window_cache}', expected gigabytes or 'auto'."
                )
        else:
            require_positive("--window_cache", self.window_cache, strict=False)
        if not 0 < self.train_split < 1 or not 0 <= self.val_split < 1:
            raise UserInputError(
                f"--train_split/--val_split: got {self.train_split} and {self.val_split}, "
                f"expected fractions between 0 and 1."
            )
        if self.train_split + self.val_split > 1 + 1e-9:
            raise UserInputError(
                f"--train_split + --val_split: got {self.train_split + self.val_split:g}, "
                f"expected at most 1; the rest is the test set."
            )
        for flag, limit in (
            ("--limit_training_samples", self.limit_training_samples),
            ("--limit_validation_samples", self.limit_validation_samples),
            ("--limit_test_samples", self.limit_test_samples),
        ):
            if limit is not None and not (0 < limit <= 1 or (limit > 1 and limit % 1 == 0)):
                raise UserInputError(
                    f"{flag}: got {limit}, expected a fraction in (0, 1] or a number of subjects."
                )
        if self.num_train_fMRI_segments is not None:
            require_positive("--num_train_fMRI_segments", self.num_train_fMRI_segments)
        look_up(self.group_by, SPLIT_UNITS, "--group_by")
        if self.family_column is not None and self.group_by != "subject":
            raise UserInputError(
                f"--family_column: keeps subjects together, so it cannot be combined with "
                f"--group_by {self.group_by}."
            )
        if self.dataset_weights and len(self.dataset_weights) != len(self.dataset_name):
            raise UserInputError(
                f"--dataset_weights: got {len(self.dataset_weights)} number(s) for "
                f"{len(self.dataset_name)} data set(s) in --dataset_name; give one each."
            )
        for weight in self.dataset_weights:
            require_positive("--dataset_weights", weight)
        require_positive("--match_caliper", self.match_caliper)

    def _check_channels(self) -> None:
        for name in self.channels:
            look_up(name, CHANNELS, "--channels")
        chosen = tuple(name for name in CHANNELS if name in self.channels)
        if "dynamics" not in chosen or len(chosen) < len(self.channels):
            raise UserInputError(
                f"--channels: got '{' '.join(self.channels)}', expected 'dynamics' or 'anatomy "
                f"dynamics'. For the mean image with the signal in one channel, use "
                f"--input_scaling_method znorm_minback without --channels."
            )
        if "anatomy" in chosen and self.input_scaling_method not in VOXEL_SCALINGS:
            raise UserInputError(
                f"--channels: anatomy needs --input_scaling_method {' or '.join(VOXEL_SCALINGS)}, "
                f"got {self.input_scaling_method}, which leaves the mean image in the signal."
            )
        object.__setattr__(self, "channels", chosen)

    @property
    def anatomy(self) -> bool:
        """Whether windows come with the mean image."""
        return "anatomy" in self.channels

    @property
    def window_span(self) -> int:
        """Frames of a run that one window covers, first to last."""
        return (self.sequence_length - 1) * self.stride_within_seq + 1

    @property
    def window_step(self) -> int:
        """Frames between the starts of consecutive windows (at least 1)."""
        return max(
            1, round(self.stride_between_seq * self.sequence_length * self.stride_within_seq)
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training windows: which kinds, how strong, and the seed of its draws.

    ``intensity`` is smoothing and noise. ``data.windows.augment`` has the amplitudes at a
    ``strength`` of 1.
    """

    affine: bool = True
    intensity: bool = True
    strength: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        require_positive("--augment_strength", self.strength)
        if not self.affine and not self.intensity:
            raise UserInputError(
                "--augment_only_affine contradicts --augment_only_intensity; give one, or neither "
                "for both kinds."
            )

    def describe(self) -> str:
        """Summarise the augmentation in a few words."""
        kinds = ("affine",) * self.affine + ("smoothing", "noise") * self.intensity
        return f"{', '.join(kinds)}; strength {self.strength:g}"
