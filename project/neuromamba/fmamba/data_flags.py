"""Flags of a training about its data, their split and their loading."""

from __future__ import annotations

import argparse

from neuromamba.config import names
from neuromamba.config.data import AugmentConfig, DataConfig
from neuromamba.config.flag_parser import add_switch, default_of
from neuromamba.config.model import ModelConfig


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Which data, which windows, how scaled and split."""
    group = parser.add_argument_group("data")
    add = group.add_argument

    def value(name: str, kind: type, text: str) -> None:
        add(f"--{name}", type=kind, default=default_of(DataConfig, name), help=text)

    add(
        "--dataset_name",
        nargs="+",
        default=list(default_of(DataConfig, "dataset_name")),
        metavar="NAME",
        help=f"cohort of each store: {', '.join(names.DATASET_NAMES)}. HCP is "
        "S1200; Own is any other; Dummy is synthetic",
    )
    add("--image_path", nargs="+", metavar="DIR", help="store of each data set")
    add(
        "--img_size",
        nargs="+",
        type=int,
        default=list(default_of(ModelConfig, "img_size")),
        metavar="N",
        help="voxels X Y Z and frames T of a window",
    )
    add("--sequence_length", type=int, help="frames of a window; default: T of --img_size")
    value("stride_between_seq", float, "from one window to the next, in window lengths")
    value("stride_within_seq", int, "read every N-th frame of a run")
    add(
        "--input_scaling_method",
        default=default_of(DataConfig, "input_scaling_method"),
        metavar="NAME",
        help=f"scaling of the intensities: {', '.join(names.SCALING_METHODS)}",
    )
    add(
        "--scaling_statistics",
        default=default_of(DataConfig, "scaling_statistics"),
        metavar="OF",
        help=f"{' or '.join(names.SCALING_STATISTICS)}: frames whose mean and deviation "
        f"{' and '.join(names.VOXEL_SCALINGS)} use",
    )
    add(
        "--channels",
        nargs="+",
        default=list(default_of(DataConfig, "channels")),
        metavar="NAME",
        help="dynamics; or anatomy dynamics: the mean image, which "
        f"{' and '.join(names.VOXEL_SCALINGS)} take out, is embedded too and added to the tokens "
        "of each place",
    )
    value("dataset_split_num", int, "number of the split of the subjects")
    value("train_split", float, "share of the subjects for training")
    value("val_split", float, "share for validation; the rest is for testing")
    add(
        "--group_by",
        default=default_of(DataConfig, "group_by"),
        metavar="UNIT",
        help=f"what is split and scored as one: {', '.join(names.SPLIT_UNITS)}",
    )
    value("family_column", str, "column of the table of subjects; a family stays in one part")
    add(
        "--stratify_by",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of the table of subjects whose values every part gets in equal shares; "
        "none: no stratification (default: the data set's own, SITE_ID for ABIDE)",
    )
    add(
        "--match_on",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="keep only pairs of the two classes that agree in these columns of the table of "
        "subjects (propensity matching)",
    )
    value("match_caliper", float, "largest distance of a pair, in SD of the propensity's logit")
    add(
        "--dataset_weights",
        nargs="+",
        type=float,
        default=[],
        metavar="W",
        help="share of each data set in the training windows of an epoch (default: its size)",
    )
    add_switch(group, "balanced_sampling", False, "draw training windows of all classes alike")
    value("batch_size", int, "windows per training batch and device")
    add("--eval_batch_size", type=int, help="the same of an evaluation; default: --batch_size")
    value("num_workers", int, "processes that load data")
    add_switch(group, "pin_memory", False, "batches in page-locked memory, for CUDA")
    add_switch(
        group,
        "persistent_workers",
        default_of(DataConfig, "persistent_workers"),
        "keep loading processes between epochs",
    )
    value("prefetch_factor", int, "batches that each loading process reads ahead")
    add(
        "--window_cache",
        type=_number_or_word,
        default=default_of(DataConfig, "window_cache"),
        metavar="GB",
        help="memory in which training windows are kept; auto: all of them, if they fit into a "
        "quarter of the free memory",
    )
    for part in ("training", "validation", "test"):
        value(
            f"limit_{part}_samples",
            float,
            f"use only this share (<= 1) or number of {part} subjects",
        )
    value("num_train_fMRI_segments", int, "at most N windows of each training run")
    value("bad_subj_path", str, "text file of subjects to leave out, one per line")
    add_switch(group, "shuffle_time_sequence", False, "control: shuffle the frames of each window")
    add_switch(group, "include_valid_to_train", False, "train on the validation subjects as well")
    add_switch(
        group,
        "augment_during_training",
        False,
        "augment training windows: move, smooth, add noise; all frames of a window alike",
    )
    add_switch(group, "augment_only_affine", False, "augment by moving only")
    add_switch(group, "augment_only_intensity", False, "augment by smoothing and noise only")
    add(
        "--augment_strength",
        type=float,
        default=default_of(AugmentConfig, "strength"),
        help="factor on the size of all augmentations",
    )
    group.add_argument("--dummy_subjects", type=int, default=40, help="synthetic subjects of Dummy")
    group.add_argument(
        "--dummy_effect_size", type=float, default=2.0, help="effect planted in Dummy"
    )


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
