"""Checked configurations from parsed flags: what a run was asked to do."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.text import visible
from neuromamba.config import names, tasks
from neuromamba.config.data import AugmentConfig, DataConfig
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.training import DownstreamConfig, OptimConfig, PretrainConfig
from neuromamba.fmamba.model_flags import FLAGS_OF_MODEL, fill_defaults_of_model
from neuromamba.fmamba.trainer_flags import SYNONYMS, TRAINER_FLAGS
from neuromamba.training.hardware_flags import check_hardware_flags
from neuromamba.training.job import job_name

_LONGEST_NAME = 200  # of a folder; file systems allow 255 bytes
# Flags that only one kind of run uses.
AUGMENT_FLAGS = ("augment_only_affine", "augment_only_intensity", "augment_strength")
MASKING_FLAGS = ("mask_ratio", "masking_type")
PREDICTION_FLAGS = ("predict_ahead", "loss_on")
PRETRAINING_FLAGS = ("use_autoregressive", "use_mim", "watch_task")
DOWNSTREAM_FLAGS = (
    "freeze_feature_extractor",
    "shuffle_labels",
    "label_smoothing",
    "label_scaling_method",
    "head_dropout",
    "pool",
    "head_norm",
    "save_embedding",
    "test_only",
    "class_weights",
    "label_csv",
    "events",
    "balanced_sampling",
    "match_on",
    "adjust_thresh",
    "confounds",
    "lora_rank",
    "layer_decay",
)


@dataclass(frozen=True)
class RunConfig:
    """Everything a run was asked to do.

    Attributes:
        model, data, optim: always there.
        pretrain: set when pre-training; ``downstream`` and ``head`` otherwise.
        augment: set when training windows are augmented.
        flags: remaining flags by name, as parsed.
        given: names of the flags given on the command line or in ``--config``.
        trainer: Trainer arguments given.
    """

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    pretrain: PretrainConfig | None
    downstream: DownstreamConfig | None
    head: HeadConfig | None
    augment: AugmentConfig | None
    flags: Mapping[str, Any]
    given: frozenset[str]
    trainer: Mapping[str, Any]


def run_config(args: argparse.Namespace, given: frozenset[str]) -> RunConfig:
    """Check the flags against each other and build the configurations.

    Raises:
        UserInputError: as the configurations do, and for flags that contradict each other.
    """
    for theirs, ours in SYNONYMS.items():
        if theirs in given and ours in given:
            raise UserInputError(f"--{ours} and --{theirs} mean the same; give one of them.")
    values = dict(vars(args))
    fill_defaults_of_model(values, given)
    if len(values["img_size"]) != 4:
        raise UserInputError(
            f"--img_size: got {values['img_size']}, expected four numbers X Y Z T."
        )
    if values["sequence_length"] is not None and "img_size" not in given:
        values["img_size"] = [*values["img_size"][:3], values["sequence_length"]]
    frames = values["img_size"][3]
    if values["sequence_length"] not in (None, frames):
        raise UserInputError(
            f"--sequence_length: got {values['sequence_length']}, but --img_size ends with "
            f"{frames}; they are the same number, give it once."
        )
    if values["keep_background"] and values["calc_loss_without_background"]:
        raise UserInputError("--keep_background contradicts --calc_loss_without_background.")
    if values["keep_background"] and values["union_mask"]:
        raise UserInputError("--union_mask: has no effect with --keep_background; give one.")
    for name in ("project_name", "process_code"):
        _check_folder_name(f"--{name}", values[name])
    _at_least_one("--gradient_accumulation_steps", values["gradient_accumulation_steps"])
    _at_least_one("--accumulate_grad_batches", values.get("accumulate_grad_batches"))
    _at_least_one("--every_n_train_steps", values["every_n_train_steps"])
    _at_least_one("--early_stopping_patience", values["early_stopping_patience"])
    _at_least_one("--dummy_subjects", values["dummy_subjects"])
    for name in ("grad_clip", "gradient_clip_val"):
        if values.get(name) is not None and not values[name] > 0:
            raise UserInputError(f"--{name}: got {values[name]}, expected a number above 0.")
    if values["skip_bad_batches"] < 0:
        raise UserInputError(
            f"--skip_bad_batches: got {values['skip_bad_batches']}, expected 0 or more."
        )
    same_folder = values["output_dir"] or values["process_code"] or job_name()
    if values["resume_ckpt_path"] == "last" and not same_folder:
        raise UserInputError(
            "--resume_ckpt_path: last needs a folder that is the same every time; name it with "
            "--output_dir or --process_code (in a batch job it has the job's number)."
        )
    if not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", values.get("max_time", "00:00:00:00")):
        raise UserInputError(f"--max_time: got '{values['max_time']}', expected DD:HH:MM:SS.")
    look_up(values["loggername"], names.LOGGER_NAMES, "--loggername")
    look_up(values["ssd_backend"], names.SSD_BACKENDS, "--ssd_backend")
    look_up(values["allocator"], names.ALLOCATORS, "--allocator")
    if values["test_only"] and not values["test_ckpt_path"]:
        raise UserInputError("--test_only: needs --test_ckpt_path FILE, the model to evaluate.")
    for name, need in unused_flags(values).items():
        if name in given and values[name] not in (None, False, []):
            raise UserInputError(f"--{name}: only used with {need}.")

    model = _fill(
        ModelConfig,
        values,
        background=_background(values["input_scaling_method"]),
        anatomy="anatomy" in values["channels"],
    )
    data = _fill(
        DataConfig,
        values,
        grid=tuple(values["img_size"][:3]),
        sequence_length=frames,
        image_path=tuple(values["image_path"] or [""] * len(values["dataset_name"])),
        eval_batch_size=_at_least_one("--eval_batch_size", values["eval_batch_size"]),
    )
    if model.in_chans != 1:
        raise UserInputError(
            f"--in_chans: got {model.in_chans}, but a store holds one channel. Other values are "
            f"for models built in Python."
        )
    if data.anatomy and values["augment_during_training"]:
        raise UserInputError(
            "--augment_during_training: moves the signal, and not the mean image of --channels "
            "anatomy; leave one of them out."
        )
    pretrain, downstream, head = _objective(values)
    if pretrain is not None:
        pretrain.check_window(model.token_grid[3])
    if downstream and downstream.freeze_feature_extractor and values["layer_decay"] != 1:
        raise UserInputError(
            "--layer_decay: lowers the rates of the backbone, which --freeze_feature_extractor "
            "does not train; give one of them."
        )
    if downstream and downstream.lora_rank > model.embed_dim:
        raise UserInputError(
            f"--lora_rank: got {downstream.lora_rank}, expected at most the width of the model, "
            f"{model.embed_dim} (8 or 16 are usual)."
        )
    if downstream and downstream.lora_rank and not values["load_model_path"]:
        raise UserInputError("--lora_rank: adapts a pre-trained backbone; give --load_model_path.")
    two_classes = downstream and len(downstream.class_names) == 2
    if values["adjust_thresh"] and not two_classes:
        raise UserInputError(
            "--adjust_thresh: decides between two classes, and the task has not two; leave it out."
        )
    if values["confounds"] and values["events"]:
        raise UserInputError("--confounds: are of subjects; with --events leave the flag out.")
    if data.balanced_sampling and downstream and downstream.task_type != "classification":
        raise UserInputError("--balanced_sampling: only used with a classification.")
    trainer = {k: values[k] for k in TRAINER_FLAGS if k in values and k in given}
    check_hardware_flags(trainer, values["deepspeed_autocast"])
    return RunConfig(
        model=model,
        data=data,
        optim=_fill(OptimConfig, values),
        pretrain=pretrain,
        downstream=downstream,
        head=head,
        augment=_augment(values),
        flags=values,
        given=given,
        trainer=trainer,
    )


def describe_objective(config: RunConfig) -> str:
    """Say in a few words what a run trains or tests."""
    pretrain, task, head = config.pretrain, config.downstream, config.head
    if pretrain is not None:
        return f"pre-training, {pretrain.description}"
    assert task is not None and head is not None
    pretrained = bool(config.flags["load_model_path"])
    mode = "test only" if config.flags["test_only"] else task.mode(pretrained)
    return f"{task.task} ({task.task_type}), {head.name} head, {mode}"


def unused_flags(values: Mapping[str, Any]) -> dict[str, str]:
    """Flags without effect on the run that ``values`` describe -> what they need to have one.

    Given, they are refused; and they are left out of a run's ``config.yaml``.
    """
    pretraining, training = values["pretraining"], not values["test_only"]
    own_targets = values["label_csv"] or values["events"]
    needs = {
        "momentum": ("--optimizer SGD", values["optimizer"] == "SGD"),
        "early_stopping_patience": ("--use_early_stopping", values["use_early_stopping"]),
        "embedding_save_dir": ("--save_embedding", values["save_embedding"]),
        "test_ckpt_path": ("--test_only", values["test_only"]),
        "load_model_path": ("training, not with --test_only", training),
        "resume_ckpt_path": ("training, not with --test_only", training),
        "skip_bad_batches": ("training, not with --test_only", training),
        "subject_column": ("--label_csv", values["label_csv"]),
        "target_column": ("--label_csv or --events", own_targets),
        "target_classes": ("--label_csv or --events", own_targets),
        "event_delay": ("--events", values["events"]),
        "missing_codes": ("labels of subjects, not with --events", not values["events"]),
        "downstream_task": (
            "a task of the data set; with --label_csv and --events the column is the task",
            not own_targets,
        ),
        "match_caliper": ("--match_on", values["match_on"]),
        "lora_alpha": ("--lora_rank", values["lora_rank"]),
        "dataset_weights": ("several data sets", len(values["dataset_name"]) > 1),
        "augment_during_training": ("training, not with --test_only", training),
        "scalability_check": (
            "training with callbacks, not with --test_only or --barebones",
            training and not values.get("barebones"),
        ),
        "persistent_workers": ("--num_workers 1 or more", values["num_workers"] > 0),
        "prefetch_factor": ("--num_workers 1 or more", values["num_workers"] > 0),
        "scaling_statistics": (
            f"--input_scaling_method {' or '.join(names.VOXEL_SCALINGS)}",
            values["input_scaling_method"] in names.VOXEL_SCALINGS,
        ),
        "channels": (
            f"--input_scaling_method {' or '.join(names.VOXEL_SCALINGS)}",
            values["input_scaling_method"] in names.VOXEL_SCALINGS,
        ),
        "dummy_subjects": ("--dataset_name Dummy without --image_path", not values["image_path"]),
        "dummy_effect_size": (
            "--dataset_name Dummy without --image_path",
            not values["image_path"],
        ),
    }
    augments = ("--augment_during_training", values["augment_during_training"])
    needs |= dict.fromkeys(AUGMENT_FLAGS, augments)
    needs |= dict.fromkeys(PRETRAINING_FLAGS, ("--pretraining", pretraining))
    needs |= dict.fromkeys(MASKING_FLAGS, ("--pretraining --use_mim", values["use_mim"]))
    autoregressive = pretraining and values["use_autoregressive"]
    needs["predict"] = ("--pretraining --use_autoregressive", autoregressive)
    same_place = autoregressive and values["predict"] == "same_place"
    needs |= dict.fromkeys(PREDICTION_FLAGS, ("--predict same_place", same_place))
    needs |= dict.fromkeys(
        DOWNSTREAM_FLAGS, ("a downstream task, not with --pretraining", not pretraining)
    )
    for model, flags in FLAGS_OF_MODEL.items():
        if values["model"] != model:
            needs |= dict.fromkeys(flags, (f"--model {model}", False))
    return {name: need for name, (need, met) in needs.items() if not met}


def _objective(
    values: Mapping[str, Any],
) -> tuple[PretrainConfig | None, DownstreamConfig | None, HeadConfig | None]:
    both = values["use_autoregressive"] and values["use_mim"]
    if both or (
        values["pretraining"] and not values["use_autoregressive"] and not values["use_mim"]
    ):
        raise UserInputError(
            "--pretraining: give one objective, --use_autoregressive (next token) or --use_mim "
            "(masked tokens)."
        )
    if not values["pretraining"]:
        downstream = _fill(DownstreamConfig, values, **_task(values))
        head = HeadConfig(
            name=names.canonical_head_name(values["clf_head_version"]),
            out_features=downstream.out_features,
            dropout=values["head_dropout"],
            pool=values["pool"],
            norm=values["head_norm"],
        )
        return None, downstream, head
    return (
        _fill(PretrainConfig, values, objective="mim" if values["use_mim"] else "autoregressive"),
        None,
        None,
    )


def _task(values: Mapping[str, Any]) -> dict[str, Any]:
    """Task, its type and classes; for targets of the user's own, from the file that holds them."""
    task_type = values["downstream_task_type"] or ""
    if task_type:
        look_up(task_type, tasks.TASK_TYPES, "--downstream_task_type")
    column = values["target_column"]
    if values["events"] is not None and values["label_csv"] is not None:
        raise UserInputError(
            "--label_csv and --events: one gives a label to each subject, the other to each "
            "event; give one of them."
        )
    if values["events"] is not None:
        # Imported where they are needed: flags are checked before NumPy is loaded.
        from neuromamba.data.cohorts.events import LABEL_COLUMN, event_task

        column = column or LABEL_COLUMN
        classes = event_task(values["events"], column, task_type)
    elif values["label_csv"] is not None:
        if column is None:
            raise UserInputError("--label_csv: needs --target_column COLUMN, the target's column.")
        from neuromamba.data.cohorts.labels import own_classes

        classes = own_classes(
            task_type,
            values["label_csv"],
            column,
            values["missing_codes"],
            values["target_classes"],
        )
    else:
        return {"task": values["downstream_task"], "task_type": task_type, "target_classes": ()}
    chosen = tuple(values["target_classes"])
    if classes and not values["test_only"]:  # what is tested need not hold all classes
        for name in chosen:
            look_up(name, classes, "--target_classes")
    return {
        "task": column,
        "task_type": "classification" if classes else "regression",
        "target_column": column,
        "target_classes": chosen or classes,
    }


def _augment(values: Mapping[str, Any]) -> AugmentConfig | None:
    if not values["augment_during_training"]:
        return None
    return AugmentConfig(
        affine=not values["augment_only_intensity"],
        intensity=not values["augment_only_affine"],
        strength=values["augment_strength"],
        seed=values["seed"],
    )


def _background(scaling: str) -> str:
    look_up(scaling, names.SCALING_METHODS, "--input_scaling_method")
    return "zero" if scaling.endswith("zeroback") else "min"


def _check_folder_name(flag: str, name: str | None) -> None:
    """Refuse a name by which a run would be written outside of output/."""
    if name is None:
        return
    parts = name.split("/")
    if ".." in parts or name.startswith("/") or name != visible(name):
        raise UserInputError(
            f"{flag}: got '{name}', expected a name of a folder below output/, without '..'. "
            f"Another place is chosen with --output_dir DIR."
        )
    if not name.strip("/. ") or max(map(len, parts)) > _LONGEST_NAME:
        raise UserInputError(
            f"{flag}: got '{name[:40]}' ({len(name)} characters), expected a name of 1 to "
            f"{_LONGEST_NAME} characters."
        )


def _at_least_one(flag: str, value: int | None) -> int:
    if value is not None and value < 1:
        raise UserInputError(f"{flag}: got {value}, expected 1 or more.")
    return value or 0


def _fill(cls: Any, values: Mapping[str, Any], **overrides: Any) -> Any:
    """A configuration from the flags of its fields' names; ``overrides`` for the others."""
    chosen = {
        name: tuple(values[name]) if isinstance(values[name], list) else values[name]
        for name in cls.__dataclass_fields__
        if name in values
    }
    return cls(**(chosen | overrides))
