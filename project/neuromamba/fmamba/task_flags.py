"""Flags of a downstream task: its labels, its head, and how the backbone takes part."""

from __future__ import annotations

import argparse

from neuromamba.config import names, tasks
from neuromamba.config.flag_parser import add_switch, default_of
from neuromamba.config.model import HeadConfig
from neuromamba.config.training import DownstreamConfig


def add_task_flags(group: argparse._ArgumentGroup) -> None:
    """Task, head, labels."""
    add = group.add_argument
    known = "; ".join(f"{name}: {task.description}" for name, task in tasks.TASKS.items())
    add(
        "--downstream_task",
        default=default_of(DownstreamConfig, "task"),
        metavar="NAME",
        help=f"what is predicted. {known}. With --label_csv or --events: none of "
        "these, the column is the task",
    )
    add(
        "--downstream_task_type",
        metavar="NAME",
        help=f"{', '.join(tasks.TASK_TYPES)}; default: the task's own",
    )
    add(
        "--clf_head_version",
        default="linear",
        metavar="NAME",
        help=f"head: {', '.join(names.HEAD_NAMES)}; v1 is linear",
    )
    add("--head_dropout", type=float, default=default_of(HeadConfig, "dropout"), help="dropout")
    add(
        "--pool",
        default=default_of(HeadConfig, "pool"),
        metavar="NAME",
        help="what the linear head reads of a window's tokens: mean (the paper's), mean_sd (also "
        "the standard deviation over time), regions (both in each cell of a coarse grid), "
        "attention (a learned weighted mean)",
    )
    add(
        "--head_norm",
        default=default_of(HeadConfig, "norm"),
        metavar="NAME",
        help="standardise what the linear head reads: none, batch (over the windows of a step, "
        "which trains a new head in fewer steps)",
    )
    add_switch(group, "freeze_feature_extractor", False, "train the head only")
    add(
        "--lora_rank",
        type=int,
        default=default_of(DownstreamConfig, "lora_rank"),
        help="train the head and updates of this rank of the backbone's projections (LoRA; needs "
        "the package peft); 0: all weights",
    )
    add(
        "--lora_alpha",
        type=float,
        default=default_of(DownstreamConfig, "lora_alpha"),
        help="the updates are multiplied by this / rank",
    )
    add(
        "--label_smoothing",
        type=float,
        default=default_of(DownstreamConfig, "label_smoothing"),
        help="share of a label that the cross entropy spreads over all classes",
    )
    add(
        "--label_scaling_method",
        default=default_of(DownstreamConfig, "label_scaling_method"),
        metavar="NAME",
        help=f"scaling of regression targets: {', '.join(names.LABEL_SCALING_METHODS)}",
    )
    add("--shuffle_labels", type=int, metavar="SEED", help="control: permute the labels")
    add(
        "--class_weights",
        default=default_of(DownstreamConfig, "class_weights"),
        metavar="NAME",
        help=f"weights of the classes in the loss: {', '.join(names.CLASS_WEIGHTS)}",
    )
    add(
        "--label_csv",
        metavar="FILE",
        help="your own table of labels: CSV or TSV, a row per subject",
    )
    add(
        "--subject_column",
        metavar="COLUMN",
        help="column of --label_csv with the subjects (default: found by its usual names)",
    )
    add(
        "--target_column",
        metavar="COLUMN",
        help="column of --label_csv, or of --events, with what is predicted",
    )
    add(
        "--target_classes",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="classes to use, in this order (default: all, sorted)",
    )
    add(
        "--missing_codes",
        nargs="+",
        default=[],
        metavar="CODE",
        help="labels that stand for a missing value (-9999 9): leave their subjects out",
    )
    add(
        "--events",
        metavar="PATH",
        help="labels of windows instead of subjects: file with onset, duration and trial_type, or "
        "folder of *_events.tsv",
    )
    add(
        "--event_delay",
        type=float,
        default=default_of(DownstreamConfig, "event_delay"),
        metavar="SECONDS",
        help="shift of the events, for the delay of the haemodynamic response",
    )
    add_switch(
        group,
        "adjust_thresh",
        False,
        "also decide between two classes at the threshold that is best on the validation subjects",
    )
    add(
        "--confounds",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="of the tables of subjects (age, site, motion): what they explain of the test scores",
    )
