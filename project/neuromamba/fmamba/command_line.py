"""Turn a command line into a checked configuration; torch is not needed for it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.config.flag_parser import Parser, parse_arguments
from neuromamba.data.store.no_store import no_store
from neuromamba.fmamba.checkpoint_flags import apply_checkpoint
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run_config import RunConfig, run_config


def configured_run(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, RunConfig]:
    """Parse the flags of a training, complete them from the checkpoint they name, and check them.

    Args:
        parser: with the flags of a training, or with some of them and others of its own; those
            that it lacks have their defaults.
        argv: the command line.

    Returns:
        All flags, and the configuration.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    args, given = parse_arguments(parser, argv)
    args = argparse.Namespace(**(vars(build_parser().parse_args([])) | vars(args)))
    if args.test_ckpt_path:
        args, given = apply_checkpoint(args, given, args.test_ckpt_path, "--test_ckpt_path", True)
    elif args.load_model_path and not (args.dry_run and not Path(args.load_model_path).exists()):
        args, given = apply_checkpoint(
            args, given, args.load_model_path, "--load_model_path", False
        )
    config = run_config(args, given)
    if not args.dry_run:
        _require_paths(config)
    return args, config


def _require_paths(config: RunConfig) -> None:
    """Refuse paths that are not there while it costs no time: a dry run lists them.

    Raises:
        UserInputError: names the flag and the path.
    """
    for path in filter(None, config.data.image_path):
        if not Path(path).exists():
            raise no_store(path)
    resumed = config.flags["resume_ckpt_path"]
    if resumed and resumed != "last" and not Path(resumed).exists():
        raise UserInputError(f"--resume_ckpt_path: there is no file '{resumed}'.")
