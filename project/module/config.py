"""Names and frozen configurations of the framework. Imports neither torch nor anything of ours.

Every name a user can type (data sets, heads, tasks, encodings ...) is declared here, so that the
command line can check it without importing a model; the registries that implement the names
(``DATASETS``, ``MODELS``, ``HEADS`` ...) assert at import that they agree with these lists.

Configurations are plain frozen dataclasses, validated once on construction. ``to_dict`` /
``from_dict`` turn them into containers that a checkpoint can hold under ``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

# --------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------


class UserInputError(ValueError):
    """A mistake the user can mend: a flag, a file or a label.

    The message names the flag or file, what was found, what was expected and the remedy. Entry
    points print it on one line and exit with status 2; it is never shown as a traceback.
    """


def look_up(name: str, options: Iterable[str], what: str) -> str:
    """Return ``name`` if it is one of ``options``, else raise with the nearest spelling.

    Args:
        name: what the user typed.
        options: the admissible names.
        what: how to call it in the message, usually the flag (``"--dataset_name"``).

    Raises:
        UserInputError: ``name`` is unknown.
    """
    known = list(options)
    if name in known:
        return name
    lowered = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f" Did you mean '{lowered[close[0]]}'?" if close else ""
    # A list longer than this (all flags, say) hides the hint instead of helping.
    listing = f" Known: {', '.join(known)}." if len(known) <= 20 or not hint else ""
    raise UserInputError(f"{what}: unknown name '{name}'.{hint}{listing}")


# --------------------------------------------------------------------------------------------
# Names
# --------------------------------------------------------------------------------------------

MODEL_NAMES = ("fmamba",)
DATASET_NAMES = (
    "S1200",
    "ABCD",
    "UKB",
    "HBN",
    "ABIDE",
    "ADHD200",
    "DevelopmentFMRI",
    "Own",
    "Dummy",
)
DATASET_ALIASES: Mapping[str, str] = {"HCP": "S1200"}
SPLIT_UNITS = ("subject", "session", "run")
CLASS_WEIGHTS = ("none", "balanced")
SCALING_METHODS = (
    "znorm_minback",
    "znorm_zeroback",
    "minmax_zeroback",
    "minmax_minback",
    "voxelnorm_zeroback",
)
RUN_SCALINGS = SCALING_METHODS[:4]  # one gain and one shift for all voxels of a run
LABEL_SCALING_METHODS = ("standardization", "minmax")
POSITIONAL_ENCODINGS = ("none", "ff", "nerf", "cpe")
HEAD_NAMES = ("linear", "mamba")
HEAD_ALIASES: Mapping[str, str] = {"v1": "linear"}
SSD_BACKENDS = ("auto", "reference", "cpu", "triton")
ALLOCATORS = ("auto", "default", "retain", "compact")
MASKING_TYPES = ("random", "tube", "temporal")
OBJECTIVES = ("autoregressive", "mim")
OPTIMIZER_NAMES = ("AdamW", "SGD")
LOGGER_NAMES = ("wandb", "tensorboard", "csv")
ORIENTATION = "LAS"  # voxel order of every store: that of HCP/FSL and of the released weights


@dataclass(frozen=True)
class TaskType:
    """What follows from a task being a classification or a regression.

    Attributes:
        loss: name in ``losses.LOSSES``.
        metrics: names of the subject-level metrics written as ``val/<name>`` and ``test/<name>``.
        monitor: validation metric that chooses the best checkpoint.
        monitor_mode: "max" or "min".
    """

    loss: str
    metrics: tuple[str, ...]
    monitor: str
    monitor_mode: str


TASK_TYPES: Mapping[str, TaskType] = {
    "classification": TaskType(
        loss="cross_entropy",
        metrics=("auroc", "accuracy", "balanced_accuracy"),
        # Cross entropy, because the AUROC of a few validation subjects ties at 1.
        monitor="val/loss",
        monitor_mode="min",
    ),
    "regression": TaskType(
        loss="mse",
        metrics=("mse", "mae", "pearson_r", "r2"),
        monitor="val/mse",
        monitor_mode="min",
    ),
}


@dataclass(frozen=True)
class Task:
    """A downstream target.

    Attributes:
        type: the key of ``TASK_TYPES`` used unless ``--downstream_task_type`` says otherwise.
        num_classes: classes of a classification.
        class_names: shown in reports, in the order of the class index.
        description: one line for ``--help``.
    """

    type: str
    num_classes: int = 2
    class_names: tuple[str, ...] = ()
    description: str = ""


TASKS: Mapping[str, Task] = {
    "sex": Task("classification", 2, ("female", "male"), "sex as recorded by the cohort"),
    "age": Task("regression", description="age in years"),
    "intelligence": Task("regression", description="the cohort's composite cognition score"),
    "diagnosis": Task("classification", 2, ("control", "patient"), "case or control"),
    "age_group": Task("classification", 2, ("child", "adult"), "child or adult"),
}


def canonical_dataset_name(name: str) -> str:
    """Resolve ``--dataset_name``, aliases included (``HCP`` is ``S1200``)."""
    if name in DATASET_ALIASES:
        return DATASET_ALIASES[name]
    found = look_up(name, (*DATASET_NAMES, *DATASET_ALIASES), "--dataset_name")
    return DATASET_ALIASES.get(found, found)


def canonical_head_name(name: str) -> str:
    """Resolve ``--clf_head_version``; ``v1`` is the reference's other name of ``linear``."""
    found = look_up(name, (*HEAD_NAMES, *HEAD_ALIASES), "--clf_head_version")
    return HEAD_ALIASES.get(found, found)


# --------------------------------------------------------------------------------------------
# Configurations
# --------------------------------------------------------------------------------------------

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain containers (tuples become lists), fit for YAML and checkpoints."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    return {key: plain(value) for key, value in dataclasses.asdict(config).items()}


def from_dict(cls: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Build a configuration from plain containers.

    Raises:
        UserInputError: an unknown key or a value of another type, naming ``source``.
    """
    hints = get_type_hints(cls)
    declared = {f.name: f.type for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in values.items():
        look_up(key, declared, source)
        if not _fits(value, hints[key]):
            raise UserInputError(f"{source}: {key}: got {value!r}, expected {declared[key]}.")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a file has the type of a field."""
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return isinstance(value, list | tuple) and all(_fits(v, item) for v in value)
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _positive(flag: str, value: float, *, strict: bool = True) -> None:
    if not math.isfinite(value) or value < 0 or (strict and value == 0):
        bound = "greater than 0" if strict else "0 or more"
        raise UserInputError(f"{flag}: got {value}, expected a number {bound}.")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the FMamba backbone (NeuroMamba paper, section 3 and Appendix B).

    ``d_state`` and ``headdim`` default to the paper's rule (D / 4 and D); 0 means "derive".
    ``background`` says how a dense input marks voxels outside the brain: "min" (the window's
    minimum, the ``*_minback`` scalings) or "zero" (``*_zeroback``).
    """

    model: str = "fmamba"
    img_size: tuple[int, ...] = (96, 96, 96, 20)
    patch_size: tuple[int, ...] = (6, 6, 6, 2)
    in_chans: int = 1
    embed_dim: int = 192
    depth: int = 12
    d_state: int = 0
    headdim: int = 0
    expand: int = 2
    ngroups: int = 1
    d_conv: int = 4
    dropout: float = 0.0
    mamba_pe_method: str = "nerf"
    keep_background: bool = False
    union_mask: bool = False
    background: str = "min"

    def __post_init__(self) -> None:
        look_up(self.model, MODEL_NAMES, "--model")
        look_up(self.mamba_pe_method, POSITIONAL_ENCODINGS, "--mamba_pe_method")
        look_up(self.background, ("min", "zero"), "background")
        for flag, values in (("--img_size", self.img_size), ("--patch_size", self.patch_size)):
            if len(values) != 4:
                raise UserInputError(f"{flag}: got {list(values)}, expected four numbers X Y Z T.")
            for value in values:
                _positive(flag, value)
        for axis, size, patch in zip("XYZT", self.img_size, self.patch_size, strict=True):
            if size % patch:
                below, above = size // patch * patch, -(-size // patch) * patch
                raise UserInputError(
                    f"--img_size: axis {axis} has {size}, which --patch_size {patch} does not "
                    f"divide. Use {f'{below} or ' if below else ''}{above}, or another patch size."
                )
        for flag, value in (
            ("--in_chans", self.in_chans),
            ("--embed_dim", self.embed_dim),
            ("--depth", self.depth),
            ("--expand", self.expand),
            ("--ngroups", self.ngroups),
            ("--d_conv", self.d_conv),
        ):
            _positive(flag, value)
        if not 0.0 <= self.dropout < 1.0:
            raise UserInputError(f"--dropout: got {self.dropout}, expected 0 <= p < 1.")
        if self.d_state == 0:
            if self.embed_dim % 4:
                raise UserInputError(
                    f"--embed_dim: got {self.embed_dim}, expected a multiple of 4, because the "
                    f"state size is embed_dim / 4; or set --d_state yourself."
                )
            object.__setattr__(self, "d_state", self.embed_dim // 4)
        if self.headdim == 0:
            object.__setattr__(self, "headdim", self.embed_dim)
        _positive("--d_state", self.d_state)
        _positive("--headdim", self.headdim)
        if self.d_inner % self.headdim:
            raise UserInputError(
                f"--embed_dim: the inner width expand * embed_dim = {self.d_inner} is not a "
                f"multiple of --headdim {self.headdim}."
            )
        if self.ngroups != 1:
            raise UserInputError(f"--ngroups: got {self.ngroups}; every published size uses 1.")
        if self.mamba_pe_method in ("ff", "cpe") and self.embed_dim % 8:
            raise UserInputError(
                f"--embed_dim: got {self.embed_dim}; --mamba_pe_method {self.mamba_pe_method} "
                f"needs a multiple of 8 (a sine and a cosine for each of four axes)."
            )

    @property
    def d_inner(self) -> int:
        """Width inside a block, expand * D."""
        return self.expand * self.embed_dim

    @property
    def nheads(self) -> int:
        """Heads of the state-space layer (2 in every published size)."""
        return self.d_inner // self.headdim

    @property
    def token_grid(self) -> tuple[int, int, int, int]:
        """Tokens along X, Y, Z, T."""
        gx, gy, gz, gt = (s // p for s, p in zip(self.img_size, self.patch_size, strict=True))
        return gx, gy, gz, gt

    @property
    def num_tokens(self) -> int:
        """Tokens of a window, background included."""
        return math.prod(self.token_grid)

    @property
    def token_dim(self) -> int:
        """Values in a token: voxels of a patch times channels (V)."""
        return math.prod(self.patch_size) * self.in_chans


@dataclass(frozen=True)
class HeadConfig:
    """A downstream head (paper, Appendix C). ``out_features``: classes, or 1 for a regression."""

    name: str = "linear"
    out_features: int = 2
    dropout: float = 0.0
    mamba_depth: int = 3

    def __post_init__(self) -> None:
        look_up(self.name, HEAD_NAMES, "--clf_head_version")
        _positive("out_features", self.out_features)
        _positive("mamba_depth", self.mamba_depth)
        if not 0.0 <= self.dropout < 1.0:
            raise UserInputError(f"--head_dropout: got {self.dropout}, expected 0 <= p < 1.")


@dataclass(frozen=True)
class DataConfig:
    """Which runs, which windows of them, how scaled and how split.

    ``img_size`` is (X, Y, Z); ``sequence_length`` counts frames of a window, taken every
    ``stride_within_seq`` frames; consecutive windows start ``stride_between_seq`` *
    (sequence_length * stride_within_seq) frames apart.

    ``group_by`` names what is split and scored as one (``SPLIT_UNITS``). Subjects of one value in
    ``family_column`` stay in one part; ``stratify_by`` are columns whose values every part gets in
    equal shares (empty: the cohort's own; ("none",): none). ``dataset_weights`` are the shares of
    the data sets in the training windows of an epoch. ``match_on`` are columns in which matched
    pairs of the two classes agree, within ``match_caliper`` standard deviations of the propensity
    score's logit.
    """

    dataset_name: tuple[str, ...] = ("S1200",)
    image_path: tuple[str, ...] = ()
    img_size: tuple[int, ...] = (96, 96, 96)
    sequence_length: int = 20
    stride_between_seq: float = 1.0
    stride_within_seq: int = 1
    input_scaling_method: str = "znorm_minback"
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
        for flag, value in (
            ("--sequence_length", self.sequence_length),
            ("--stride_between_seq", self.stride_between_seq),
            ("--stride_within_seq", self.stride_within_seq),
            ("--batch_size", self.batch_size),
        ):
            _positive(flag, value)
        if self.eval_batch_size == 0:
            object.__setattr__(self, "eval_batch_size", self.batch_size)
        _positive("--eval_batch_size", self.eval_batch_size)
        _positive("--num_workers", self.num_workers, strict=False)
        if not 0 <= self.seed < 2**32:
            raise UserInputError(f"--seed: got {self.seed}, expected 0 to {2**32 - 1}.")
        _positive("--prefetch_factor", self.prefetch_factor)
        if isinstance(self.window_cache, str):
            if self.window_cache != "auto":
                raise UserInputError(
                    f"--window_cache: got '{self.window_cache}', expected gigabytes or 'auto'."
                )
        else:
            _positive("--window_cache", self.window_cache, strict=False)
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
            _positive("--num_train_fMRI_segments", self.num_train_fMRI_segments)
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
            _positive("--dataset_weights", weight)
        _positive("--match_caliper", self.match_caliper)

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


@dataclass(frozen=True)
class PretrainConfig:
    """Objective of pre-training: next token (``autoregressive``) or masked tokens (``mim``)."""

    objective: str = "autoregressive"
    mask_ratio: float = 0.75
    masking_type: str = "random"

    def __post_init__(self) -> None:
        look_up(self.objective, OBJECTIVES, "objective")
        look_up(self.masking_type, MASKING_TYPES, "--masking_type")
        if not 0.0 < self.mask_ratio < 1.0:
            raise UserInputError(f"--mask_ratio: got {self.mask_ratio}, expected 0 < r < 1.")


@dataclass(frozen=True)
class DownstreamConfig:
    """A downstream task on top of the backbone.

    The targets are those that the cohort keeps for ``task`` (a key of ``TASKS``); or the column
    ``target_column`` of ``label_csv``, one value a subject; or of ``events``, one value an event.
    For the latter two ``task`` is the column's name and ``target_classes`` are its classes, in the
    order of the class index; empty for a regression. A ``lora_rank`` above 0 trains low-rank
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
            _positive("--shuffle_labels", self.shuffle_labels, strict=False)
        _positive("--lora_rank", self.lora_rank, strict=False)
        _positive("--lora_alpha", self.lora_alpha)
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

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the class index; empty for a regression."""
        return self.target_classes if self.has_own_targets else TASKS[self.task].class_names

    @property
    def out_features(self) -> int:
        """Outputs of the head: classes, or 1 for a regression."""
        return len(self.class_names) if self.task_type == "classification" else 1


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training windows: which kinds, how strong, and the seed of its draws.

    ``intensity`` is smoothing and noise. Amplitudes at ``strength`` 1 stand in ``utils.augment``.
    """

    affine: bool = True
    intensity: bool = True
    strength: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        _positive("--augment_strength", self.strength)
        if not self.affine and not self.intensity:
            raise UserInputError(
                "--augment_only_affine contradicts --augment_only_intensity; give one, or neither "
                "for both kinds."
            )

    def describe(self) -> str:
        """In a few words."""
        kinds = ("affine",) * self.affine + ("smoothing", "noise") * self.intensity
        return f"{', '.join(kinds)}; strength {self.strength:g}"


@dataclass(frozen=True)
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
        _positive("--learning_rate", self.learning_rate)
        _positive("--weight_decay", self.weight_decay, strict=False)
        _positive("--gamma", self.gamma)
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


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Read a YAML mapping; a missing, unreadable or malformed file is a ``UserInputError``."""
    try:
        with open(path, encoding="utf-8") as stream:
            values = yaml.safe_load(stream)
    except OSError as error:
        raise UserInputError(f"{what}: cannot read '{path}' ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).replace("\n", " ")
        raise UserInputError(f"{what}: '{path}' is not valid YAML ({first}).") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserInputError(f"{what}: '{path}' must hold 'flag: value' lines.")
    return values


# Published sizes (paper, Appendix B): embed_dim of each variant; the rest follows from it.
VARIANTS: Mapping[str, int] = {"small": 128, "base": 192, "medium": 256, "large": 384}
