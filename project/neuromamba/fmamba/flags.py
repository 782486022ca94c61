"""Flags of a training run and their defaults; ``run_config`` makes configurations of them.

Flags keep the reference's names. A default lives in one place: the dataclasses of ``config`` for
what they describe, this file for the rest. Nothing here imports torch, so that ``--help`` and a
wrong flag are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from neuromamba.common.cli import ExampleFormatter
from neuromamba.config import names, tasks
from neuromamba.config.data import DataConfig
from neuromamba.config.flag_parser import Parser, add_switch, default_of
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.training import (
    EFFECTIVE_BATCH,
    DownstreamConfig,
    OptimConfig,
    PretrainConfig,
)
from neuromamba.fmamba.data_flags import add_data_flags
from neuromamba.fmamba.trainer_flags import add_trainer_flags


def build_parser(
    prog: str = "neuromamba train",
    description: str | None = None,
    own: Callable[[Parser], None] | None = None,
) -> Parser:
    """Build the parser of a training; commands about trainings add flags of their own to it.

    Args:
        prog: the command, as ``--help`` calls it.
        description: of the command, with an example.
        own: adds the command's own flags, which ``--help`` then shows first.
    """
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--config FILE] [--flag VALUE ...]",
        description=description,
        allow_abbrev=False,
        formatter_class=ExampleFormatter,
    )
    if own is not None:
        own(parser)
    add_run_flags(parser)
    add_data_flags(parser)
    add_model_flags(parser)
    add_objective_flags(parser)
    add_optim_flags(parser)
    add_trainer_flags(parser)
    return parser


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Seeds, folders, checkpoints, logging."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--config", metavar="FILE", help="YAML file of 'flag: value' lines; flags override it")
    add("--seed", type=int, default=default_of(DataConfig, "seed"), help="seed of the run")
    add_switch(group, "dry_run", False, "check everything, print the plan and stop")
    add("--output_dir", metavar="DIR", help="run folder; default output/PROJECT/RUN")
    add("--project_name", default="default", help="folder below output/, and wandb project")
    add("--process_code", metavar="TAG", help="name of the run; default task and time")
    add(
        "--loggername",
        default="csv",
        metavar="{wandb,tensorboard,csv}",
        help="where curves go besides logs/metrics.csv",
    )
    add("--load_model_path", metavar="FILE", help="backbone weights to start from")
    add(
        "--resume_ckpt_path",
        metavar="PATH|last",
        help="continue this run's training; last: from its newest checkpoint, or anew without one",
    )
    add_switch(group, "test_only", False, "only evaluate --test_ckpt_path on the test subjects")
    add("--test_ckpt_path", metavar="FILE", help="checkpoint for --test_only")
    add(
        "--allocator",
        default="auto",
        metavar="NAME",
        help=f"{', '.join(names.ALLOCATORS)}; glibc only: retain keeps freed memory for the next "
        "step, the process never shrinks; compact gives it back at once, slower and smaller; auto "
        "retains on CPU runs with glibc",
    )
    add_switch(
        group,
        "deepspeed_autocast",
        False,
        "with DeepSpeed and --precision bf16: parameters and optimiser in fp32, computing in bf16 "
        "(without it DeepSpeed casts the parameters, as the reference does)",
    )
    add_switch(group, "save_embedding", False, "write the test windows' mean features")
    add("--embedding_save_dir", metavar="DIR", help="default: embeddings/ in the run folder")
    add_switch(group, "use_early_stopping", False, "stop when the monitored value stops improving")
    add("--early_stopping_patience", type=int, default=5, help="validations without improvement")
    add_switch(group, "save_every_checkpoints", False, "keep a checkpoint of every epoch")
    add("--every_n_train_steps", type=int, help="also keep a checkpoint every N steps")
    add_switch(
        group,
        "scalability_check",
        False,
        "measure some batches: time by phase, throughput of all ranks, efficiency; writes "
        "scalability.json",
    )
    add(
        "--skip_bad_batches",
        type=int,
        default=0,
        metavar="N",
        help="pass over up to N steps whose loss or gradient is not finite, instead of stopping",
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Architecture of the backbone."""
    group = parser.add_argument_group("model")
    add = group.add_argument

    def value(name: str, kind: type, text: str) -> None:
        add(f"--{name}", type=kind, default=default_of(ModelConfig, name), help=text)

    add("--model", default=default_of(ModelConfig, "model"), help=", ".join(names.MODEL_NAMES))
    value("embed_dim", int, "width D")
    value("depth", int, "number of Mamba2 blocks")
    value("d_state", int, "state size; 0: embed_dim / 4")
    value("headdim", int, "width of a head; 0: embed_dim")
    value("dropout", float, "dropout after each block")
    add(
        "--patch_size",
        nargs="+",
        type=int,
        default=list(default_of(ModelConfig, "patch_size")),
        metavar="N",
        help="X Y Z T of a patch",
    )
    value("in_chans", int, "channels of the input")
    for name, text in (
        ("swin_depths", "of --model swift: blocks of each stage"),
        ("swin_heads", "of --model swift: attention heads of each stage"),
        ("swin_window", "of --model swift: X Y Z T of a window of attention, in patches"),
    ):
        usual = list(default_of(ModelConfig, name))
        add(f"--{name}", nargs="+", type=int, default=usual, metavar="N", help=text)
    add(
        "--mamba_pe_method",
        default=default_of(ModelConfig, "mamba_pe_method"),
        metavar="NAME",
        help=f"positional encoding: {', '.join(names.POSITIONAL_ENCODINGS)}",
    )
    add(
        "--token_order",
        default=default_of(ModelConfig, "token_order"),
        metavar="NAME",
        help="raster: place after place, each with its tokens in time (the paper's); space_first: "
        "all places at a time, then all places at the next",
    )
    add_switch(group, "keep_background", False, "keep all tokens instead of the brain's only")
    add_switch(
        group,
        "calc_loss_without_background",
        False,
        "drop background tokens: the default here; the reference's flag stays accepted",
    )
    add_switch(group, "union_mask", False, "keep the union of the batch's brain tokens (reference)")
    add(
        "--ssd_backend",
        default="auto",
        metavar="NAME",
        help=f"state-space scan: {', '.join(names.SSD_BACKENDS)}",
    )
    add_switch(
        group,
        "activation_checkpointing",
        False,
        "keep only the input of each block and compute the rest again: less memory, more time",
    )


def add_objective_flags(parser: argparse.ArgumentParser) -> None:
    """Pre-training objective, or downstream task and head."""
    group = parser.add_argument_group("objective")
    add = group.add_argument
    add_switch(group, "pretraining", False, "pre-train; needs --use_autoregressive or --use_mim")
    add_switch(group, "use_autoregressive", False, "next-token prediction")
    add_switch(group, "use_mim", False, "masked-token reconstruction")
    add("--mask_ratio", type=float, default=default_of(PretrainConfig, "mask_ratio"), help="hidden")
    add(
        "--masking_type",
        default=default_of(PretrainConfig, "masking_type"),
        metavar="NAME",
        help=", ".join(names.MASKING_TYPES),
    )
    add(
        "--predict",
        default=default_of(PretrainConfig, "predict"),
        metavar="NAME",
        help="what is predicted from the features of a token: next_token, the next of the sequence "
        "(the paper's), or same_place, a later token of the same place",
    )
    add(
        "--predict_ahead",
        type=int,
        default=default_of(PretrainConfig, "predict_ahead"),
        metavar="K",
        help="with --predict same_place: how many tokens later",
    )
    add(
        "--loss_on",
        default=default_of(PretrainConfig, "loss_on"),
        metavar="NAME",
        help="with --predict same_place: predict the token, or its difference from the token that "
        "it is predicted from",
    )
    add(
        "--watch_task",
        nargs="+",
        default=[],
        metavar="NAME",
        help="known facts of the validation subjects that the features are watched to tell: "
        f"{', '.join(tasks.TASKS)}, tr, dataset, site, motion, or columns of the tables of "
        "subjects (default: those of them that the store holds)",
    )
    known = "; ".join(f"{name}: {task.description}" for name, task in tasks.TASKS.items())
    add("--downstream_task", default=default_of(DownstreamConfig, "task"), help=known)
    add("--downstream_task_type", help=f"{', '.join(tasks.TASK_TYPES)}; default: the task's own")
    add("--clf_head_version", default="linear", help=f"{', '.join(names.HEAD_NAMES)}; v1 is linear")
    add("--head_dropout", type=float, default=default_of(HeadConfig, "dropout"), help="in the head")
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
        help="of the cross entropy",
    )
    add(
        "--label_scaling_method",
        default=default_of(DownstreamConfig, "label_scaling_method"),
        metavar="NAME",
        help=f"of regression targets: {', '.join(names.LABEL_SCALING_METHODS)}",
    )
    add("--shuffle_labels", type=int, metavar="SEED", help="control: permute labels over subjects")
    add(
        "--class_weights",
        default=default_of(DownstreamConfig, "class_weights"),
        metavar="NAME",
        help=f"weights of the classes in the loss: {', '.join(names.CLASS_WEIGHTS)}",
    )
    add("--label_csv", metavar="FILE", help="targets of your own: CSV or TSV, one row per subject")
    add("--subject_column", metavar="COLUMN", help="its column of subjects (default: the usual)")
    add("--target_column", metavar="COLUMN", help="its column of the target; of --events too")
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
        help="labels that mean not recorded (-9999 9): leave their subjects out",
    )
    add(
        "--events",
        metavar="PATH",
        help="targets of windows: file with onset, duration and trial_type, or folder of "
        "*_events.tsv",
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


def add_optim_flags(parser: argparse.ArgumentParser) -> None:
    """Optimiser and schedule."""
    group = parser.add_argument_group("optimisation")

    def value(name: str, kind: type, text: str) -> None:
        group.add_argument(f"--{name}", type=kind, default=default_of(OptimConfig, name), help=text)

    value("optimizer", str, ", ".join(names.OPTIMIZER_NAMES))
    value("learning_rate", float, "peak learning rate")
    add_switch(
        group, "lr_scaling", False, f"times effective batch / {EFFECTIVE_BATCH}, the paper's"
    )
    value("weight_decay", float, "decoupled weight decay")
    value("momentum", float, "of SGD")
    add_switch(group, "use_scheduler", True, "CosineAnnealingWarmUpRestarts; off: constant rate")
    value("warmup", float, "share of a cycle spent warming up")
    value("gamma", float, "factor on the peak from cycle to cycle")
    value("cycle", float, "length of a cosine cycle as a share of the run")
    value("layer_decay", float, "factor on the rate from a layer to the one below; 1: one rate")
    value("min_lr_ratio", float, "floor as a share of the peak")
    group.add_argument("--grad_clip", type=float, help="clip the gradient's norm to this")
    group.add_argument(
        "--gradient_accumulation_steps", type=int, default=1, help="batches of an optimiser step"
    )
