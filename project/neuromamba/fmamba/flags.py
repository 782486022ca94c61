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
from neuromamba.config.model import ModelConfig
from neuromamba.config.training import (
    EFFECTIVE_BATCH,
    OptimConfig,
    PretrainConfig,
)
from neuromamba.fmamba.data_flags import add_data_flags
from neuromamba.fmamba.task_flags import add_task_flags
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
    add("--output_dir", metavar="DIR", help="run folder (default: output/PROJECT/RUN)")
    add(
        "--project_name", default="default", help="PROJECT: folder below output/, and wandb project"
    )
    add("--process_code", metavar="TAG", help="RUN: name of the run (default: task and time)")
    add(
        "--loggername",
        default="csv",
        metavar="{wandb,tensorboard,csv}",
        help="where curves go besides logs/metrics.csv",
    )
    add(
        "--load_model_path",
        metavar="FILE",
        help="checkpoint or run folder whose backbone to start from",
    )
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
    add_switch(group, "save_embedding", False, "write the mean features of every test window")
    add("--embedding_save_dir", metavar="DIR", help="default: embeddings/ in the run folder")
    add_switch(group, "use_early_stopping", False, "stop when the monitored value stops improving")
    add(
        "--early_stopping_patience",
        type=int,
        default=5,
        help="stop after N validations without improvement",
    )
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

    add(
        "--model",
        default=default_of(ModelConfig, "model"),
        help=f"backbone: {', '.join(names.MODEL_NAMES)}",
    )
    value("embed_dim", int, "width D")
    value("depth", int, "number of Mamba2 blocks")
    value("d_state", int, "state size; 0: embed_dim / 4")
    value("headdim", int, "width of a head of a block; 0: embed_dim")
    value("dropout", float, "dropout after each block")
    add(
        "--patch_size",
        nargs="+",
        type=int,
        default=list(default_of(ModelConfig, "patch_size")),
        metavar="N",
        help="X Y Z T of a patch",
    )
    value("in_chans", int, "channels of the input images")
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
    add_switch(group, "keep_background", False, "keep the tokens without brain, too")
    add_switch(
        group,
        "calc_loss_without_background",
        False,
        "drop background tokens: the default here; the reference's flag stays accepted",
    )
    add_switch(
        group,
        "union_mask",
        False,
        "keep tokens that hold brain in any sample of the batch, as the reference",
    )
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
    add_switch(group, "use_autoregressive", False, "pre-train by next-token prediction")
    add_switch(group, "use_mim", False, "pre-train by masked-token reconstruction")
    add(
        "--mask_ratio",
        type=float,
        default=default_of(PretrainConfig, "mask_ratio"),
        help="with --use_mim: share of the tokens that is hidden",
    )
    add(
        "--masking_type",
        default=default_of(PretrainConfig, "masking_type"),
        metavar="NAME",
        help=f"with --use_mim: {', '.join(names.MASKING_TYPES)}",
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
        help="during pre-training, score how well a simple model reads these from the features of "
        f"the validation subjects: {', '.join(tasks.TASKS)}, tr, dataset, site, motion, or columns "
        "of the tables of subjects (default: those that the store holds)",
    )
    add_task_flags(group)


def add_optim_flags(parser: argparse.ArgumentParser) -> None:
    """Optimiser and schedule."""
    group = parser.add_argument_group("optimisation")

    def value(name: str, kind: type, text: str) -> None:
        group.add_argument(f"--{name}", type=kind, default=default_of(OptimConfig, name), help=text)

    value("optimizer", str, " or ".join(names.OPTIMIZER_NAMES))
    value("learning_rate", float, "peak learning rate")
    add_switch(
        group,
        "lr_scaling",
        False,
        f"multiply the learning rate by effective batch / {EFFECTIVE_BATCH}, the paper's batch",
    )
    value("weight_decay", float, "decoupled weight decay")
    value("momentum", float, "momentum of SGD")
    add_switch(group, "use_scheduler", True, "cosine cycles with warm-up; off: constant rate")
    value("warmup", float, "share of a cycle spent warming up")
    value("gamma", float, "factor on the peak from cycle to cycle")
    value("cycle", float, "length of a cosine cycle as a share of the run")
    value("layer_decay", float, "factor on the rate from a layer to the one before it; 1: none")
    value("min_lr_ratio", float, "lowest learning rate, as a share of the peak")
    group.add_argument("--grad_clip", type=float, help="clip the gradient's norm to this")
    group.add_argument(
        "--gradient_accumulation_steps", type=int, default=1, help="batches per optimiser step"
    )
