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
                f"--{name}", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS
            )
        else:
            group.add_argument(
                f"--{name}",
                type=_convert(kinds),
                default=argparse.SUPPRESS,
                metavar="|".join(kind.__name__ for kind in kinds),
                **({"nargs": "?", "const": True} if bool in kinds else {}),  # type: ignore[arg-type]
            )
