"""Flags that every conversion into a store has."""

from __future__ import annotations

import argparse
from typing import Any

from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.ingest.options import StoreOptions
from neuromamba.data.store.header import COMPRESSIONS


def add_store_flags(parser: argparse.ArgumentParser, compression: str) -> None:
    """Add the flags of ``StoreOptions``, but that of the crop's offset, and the number of workers.

    Args:
        parser: gets the flags.
        compression: default of ``--compression``.
    """
    default, add = StoreOptions(), parser.add_argument
    add("--drop_first", type=int, default=0, metavar="N", help="leave out the first N frames")
    add(
        "--dataset_name",
        default="",
        metavar="NAME",
        help=f"cohort, which knows its folders and tables: {', '.join(DATASETS)}",
    )
    add("--voxel_norm", action="store_true", help="also store each voxel's mean and SD")
    add(
        "--compression",
        choices=COMPRESSIONS,
        default=compression,
        help="of the files; lz4: smaller, read a little more slowly",
    )
    add("--num_workers", type=int, metavar="N", help="processes (default: one per processor)")
    add(
        "--min_frames",
        type=int,
        default=default.min_frames,
        metavar="N",
        help="refuse shorter runs",
    )
    add("--overwrite", action="store_true", help="convert again what is up to date")
    add(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="read headers, report, write nothing",
    )


def store_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``StoreOptions`` by name: what the flags of ``add_store_flags`` say."""
    return {
        "drop_first": args.drop_first,
        "dataset": args.dataset_name,
        "compression": args.compression,
        "voxel_norm": args.voxel_norm,
        "min_frames": args.min_frames,
        "overwrite": args.overwrite,
        "dry_run": args.dry_run,
    }
