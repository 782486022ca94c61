"""Flags of Lightning's Trainer, written down so that the parser need not import Lightning.

A test compares the table with ``Trainer.__init__``. Flags that are not given are not passed on:
the Trainer keeps its own defaults.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from neuromamba.config.training import DOWNSTREAM_EPOCHS, PRETRAIN_EPOCHS

# Argument of the Trainer -> the plain types that it takes.
TRAINER_FLAGS: Mapping[str, tuple[type, ...]] = {
    "accelerator": (str,),
    "strategy": (str,),
    "devices": (int, str),
    "num_nodes": (int,),
    "precision": (str, int),
    "fast_dev_run": (bool, int),
    "max_epochs": (int,),
    "min_epochs": (int,),
    "max_steps": (int,),
    "min_steps": (int,),
    "max_time": (str,),
    "limit_train_batches": (float, int),
    "limit_val_batches": (float, int),
    "limit_test_batches": (float, int),
    "limit_predict_batches": (float, int),
    "overfit_batches": (float, int),
    "val_check_interval": (str, float, int),
    "check_val_every_n_epoch": (int,),
    "num_sanity_val_steps": (int,),
    "log_every_n_steps": (int,),
    "enable_checkpointing": (bool,),
    "enable_progress_bar": (bool,),
    "enable_model_summary": (bool,),
    "accumulate_grad_batches": (int,),
    "gradient_clip_val": (float, int),
    "gradient_clip_algorithm": (str,),
    "deterministic": (str, bool),
    "benchmark": (bool,),
    "inference_mode": (bool,),
    "detect_anomaly": (bool,),
    "barebones": (bool,),
    "sync_batchnorm": (bool,),
    "reload_dataloaders_every_n_epochs": (int,),
    "enable_autolog_hparams": (bool,),
}
# What they mean, in short; Lightning's documentation has the rest.
MEANINGS: Mapping[str, str] = {
    "accelerator": "cpu, gpu, xpu or auto (a GPU where there is one)",
    "strategy": "auto, ddp, fsdp, deepspeed_stage_1 ...: how several devices share the work",
    "devices": "how many devices of each node, or which (0,2)",
    "num_nodes": "nodes",
    "precision": "32, bf16, 16 ...",
    "fast_dev_run": "run a batch (or N) of training, validation and test, and stop",
    "max_epochs": "epochs of the training",
    "min_epochs": "do not stop early before so many epochs",
    "max_steps": "optimiser steps of the training; -1: by the epochs",
    "min_steps": "do not stop early before so many steps",
    "max_time": "stop after this time, DD:HH:MM:SS",
    "limit_train_batches": "batches of an epoch: a number, or a share (0.1)",
    "limit_val_batches": "the same of a validation",
    "limit_test_batches": "the same of the test",
    "limit_predict_batches": "not used here",
    "overfit_batches": "train on so many batches alone, to see that the loss falls",
    "val_check_interval": "validate after so many batches, or this share of an epoch",
    "check_val_every_n_epoch": "validate after every N epochs",
    "num_sanity_val_steps": "validation batches before the training, as a trial",
    "log_every_n_steps": "write metrics of every N-th step",
    "enable_checkpointing": "write checkpoints",
    "enable_progress_bar": "show a progress bar",
    "enable_model_summary": "print the layers and their parameters",
    "accumulate_grad_batches": "as --gradient_accumulation_steps",
    "gradient_clip_val": "as --grad_clip",
    "gradient_clip_algorithm": "norm or value",
    "deterministic": "true: only deterministic operations, else an error; warn: else a warning",
    "benchmark": "let cuDNN search for the fastest kernels",
    "inference_mode": "evaluate without any record for gradients",
    "detect_anomaly": "say which operation made a gradient that is not a number; slow",
    "barebones": "without logs and checkpoints, to measure Lightning's own share of the time",
    "sync_batchnorm": "batch statistics of all devices together",
    "reload_dataloaders_every_n_epochs": "build the loaders anew every N epochs",
    "enable_autolog_hparams": "write the hyper-parameters into the logger",
}
# Trainer arguments that are not flags: objects, or decided by flags of ours.
NOT_FLAGS = (
    "logger",
    "callbacks",
    "plugins",
    "profiler",
    "model_registry",
    "use_distributed_sampler",
    "default_root_dir",
)
# Trainer flags that are another name of a flag of ours.
SYNONYMS: Mapping[str, str] = {
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "gradient_clip_val": "grad_clip",
}


def _convert(kinds: tuple[type, ...]) -> Any:
    """A converter to the first of bool, int, float, str that fits; 1 and 1.0 stay apart."""

    def convert(text: str) -> Any:
        if bool in kinds and text.lower() in ("true", "false"):
            return text.lower() == "true"
        for kind in (int, float):
            if kind in kinds:
                try:
                    return kind(text)
                except ValueError:
                    continue
        if str in kinds:
            return text
        raise argparse.ArgumentTypeError(
            f"got '{text}', expected {' or '.join(sorted(kind.__name__ for kind in kinds))}"
        )

    return convert


def _metavar(kinds: tuple[type, ...]) -> str:
    """``N`` of a number, ``NAME`` of a text, ``N|NAME`` where either is taken."""
    found = ["N"] if int in kinds or float in kinds else []
    return "|".join([*found, *(["NAME"] if str in kinds else [])])


def add_trainer_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each argument of ``TRAINER_FLAGS``; only those given reach the namespace."""
    group = parser.add_argument_group(
        "trainer",
        "Flags of Lightning's Trainer, with its defaults, but for the epochs: without --max_epochs "
        f"{PRETRAIN_EPOCHS} of pre-training and {DOWNSTREAM_EPOCHS} of a downstream task, as in "
        "the paper.",
    )
    for name, kinds in TRAINER_FLAGS.items():
        if kinds == (bool,):
            group.add_argument(
                f"--{name}",
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=MEANINGS[name],
            )
        else:
            group.add_argument(
                f"--{name}",
                type=_convert(kinds),
                default=argparse.SUPPRESS,
                metavar=_metavar(kinds),
                help=MEANINGS[name],
                **({"nargs": "?", "const": True} if bool in kinds else {}),  # type: ignore[arg-type]
            )
