"""Flags of a probe, and the configuration that they and the metadata of a checkpoint stand for.

Nothing here imports torch before the flags have been checked.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.cli import ExampleFormatter
from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.flag_parser import Parser, parse_arguments
from neuromamba.config.names import ORIENTATION, PROBE_POOLS
from neuromamba.fmamba.checkpoint_flags import flags_of_data, flags_of_task
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run_config import RunConfig, run_config

USUAL_POOLS = ("mean", "mean_sd", "regions")  # wide as "places" is, it has to be asked for
SIZES = (2, 4, 8, 16, 32)

# Flags of ``neuromamba train`` that a probe takes, by group; it has the others' effects from the
# checkpoint, or not at all.
_DATA_FLAGS = (
    "dataset_name",
    "image_path",
    "stride_between_seq",
    "dataset_split_num",
    "train_split",
    "val_split",
    "group_by",
    "family_column",
    "stratify_by",
    "match_on",
    "match_caliper",
    "limit_training_samples",
    "limit_validation_samples",
    "limit_test_samples",
    "bad_subj_path",
    "eval_batch_size",
)
_TASK_FLAGS = (
    "downstream_task",
    "shuffle_labels",
    "label_csv",
    "subject_column",
    "target_column",
    "target_classes",
    "downstream_task_type",
    "events",
    "event_delay",
)
_MACHINE_FLAGS = ("seed", "accelerator", "ssd_backend")
# Any of these names the labels; without one they are those of the checkpoint's own task.
_NAMES_A_TASK = {"downstream_task", "label_csv", "events"}


_NEUROSSM_WEIGHTS = "weights.safetensors"  # in the folder of a fit


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """What to probe.

    Attributes:
        checkpoint: the file or folder, found.
        metadata: of the checkpoint.
        config: data, task and flags, as of a run.
        blocks: how many blocks before the last one are probed.
        pools: of ``PROBE_POOLS``.
        sizes: labelled subjects a class.
        draws: of each of them.
        atlas: regions of FC; None for cubes.
    """

    checkpoint: Path
    metadata: Mapping[str, Any]
    config: RunConfig
    blocks: int
    pools: tuple[str, ...]
    sizes: tuple[int, ...]
    draws: int
    atlas: Path | None


def probe_parser(description: str | None = None) -> Parser:
    """Build the parser: flags of ``neuromamba train`` about data, labels and machine, and its own.

    Args:
        description: of the command, with an example.
    """
    parser = Parser(
        prog="neuromamba probe",
        usage="neuromamba probe RUN [--flag VALUE ...]",
        description=description,
        allow_abbrev=False,
        formatter_class=ExampleFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="run folder or checkpoint of neuromamba train")
    group = parser.add_argument_group("probe")
    add = group.add_argument
    add("--json", metavar="FILE", help="write the rows as JSON")
    add("--output", metavar="FILE", help="page to write; default: probe.html in the run folder")
    add("--blocks", type=int, default=3, help="blocks before the last to probe, evenly spaced")
    add(
        "--pools",
        nargs="+",
        default=list(USUAL_POOLS),
        metavar="NAME",
        help=f"what is read of a window's tokens, of {' '.join(PROBE_POOLS)}; default: "
        f"{' '.join(USUAL_POOLS)}",
    )
    add(
        "--labels",
        nargs="+",
        type=int,
        default=list(SIZES),
        metavar="N",
        help=f"labelled subjects a class, for the curve; default: {' '.join(map(str, SIZES))}",
    )
    add("--draws", type=int, default=10, help="draws of the labelled subjects, for each number")
    add(
        "--fc_atlas",
        metavar="FILE",
        help="image of labels in MNI space: regions of FC (default: cubes)",
    )
    known = build_parser().known_flags()
    for title, names, otherwise in (
        ("data", _DATA_FLAGS, "without a flag, as the run had it"),
        ("labels", _TASK_FLAGS, "without any, those of the run; sex for a pre-training"),
        ("machine", _MACHINE_FLAGS, "without --seed, the run's"),
    ):
        copied = parser.add_argument_group(f"{title}, as of neuromamba train", otherwise)
        for name in names:
            known[name].default = argparse.SUPPRESS  # what is not given is the checkpoint's
            copied._add_action(known[name])
    return parser


def parse_probe(
    argv: Sequence[str], description: str | None = None
) -> tuple[argparse.Namespace, frozenset[str]]:
    """Parse the command line, and check what needs no checkpoint.

    Returns:
        The namespace, and the names of the flags that were given.

    Raises:
        UserInputError: a mistake in the flags.
    """
    args, given = parse_arguments(probe_parser(description), argv)
    for name, least in (("blocks", 0), ("draws", 2)):
        if getattr(args, name) < least:
            raise UserInputError(f"--{name}: got {getattr(args, name)}, expected {least} or more.")
    for pool in args.pools:
        look_up(pool, PROBE_POOLS, "--pools")
    if min(args.labels) < 1:
        raise UserInputError(f"--labels: got {min(args.labels)}, expected 1 or more.")
    return args, given


def probe_request(args: argparse.Namespace, given: frozenset[str]) -> ProbeRequest:
    """Complete the flags from the metadata of the checkpoint.

    Model, scaling, data and split are the checkpoint's where no flag says otherwise; so is the
    task, if the checkpoint was trained for one and no flag names another.

    Args:
        args, given: from ``parse_probe``.

    Raises:
        UserInputError: no checkpoint, one without metadata, or flags that cannot be right.
    """
    path, metadata = _read(args.run)
    own = {"run", "json", "output", "blocks", "pools", "labels", "draws", "fc_atlas"}
    values = vars(build_parser().parse_args([]))
    values |= {name: value for name, value in vars(args).items() if name not in own}
    recorded = flags_of_data(metadata)
    if not given & _NAMES_A_TASK:
        recorded |= flags_of_task(metadata)
    values |= {name: value for name, value in recorded.items() if name not in given}
    return ProbeRequest(
        checkpoint=path,
        metadata=metadata,
        config=run_config(argparse.Namespace(**values), given - own),
        blocks=args.blocks,
        pools=tuple(dict.fromkeys(args.pools)),
        sizes=tuple(sorted(set(args.labels))),
        draws=args.draws,
        atlas=Path(args.fc_atlas) if args.fc_atlas else None,
    )


def _read(run: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that RUN means, and its metadata.

    Raises:
        UserInputError: there is none, or it does not say how it was trained.
    """
    if _is_neurossm(Path(run)):
        raise UserInputError(
            f"RUN: '{run}' holds results of NeuroSSM (neuromamba regions train); a probe reads "
            f"FMamba's features of voxels. Give a run folder of neuromamba train."
        )
    path = find_checkpoint(run, "RUN")
    # Imported here: torch takes seconds, and a missing file has been reported by now.
    from neuromamba.checkpoints.io import read_metadata

    metadata = read_metadata(path, "RUN")
    if not metadata:
        raise UserInputError(
            f"RUN: '{path}' does not say how it was trained (it has no metadata, as a released "
            f"file). Give a run folder of neuromamba train; of a released file, one is made by "
            f"neuromamba train --load_model_path FILE --freeze_feature_extractor --max_epochs 1."
        )
    if metadata["orientation"] != ORIENTATION:
        raise UserInputError(
            f"RUN: '{path}' was trained on {metadata['orientation']} data, stores are "
            f"{ORIENTATION}."
        )
    return path, metadata


def _is_neurossm(path: Path) -> bool:
    """Whether a path is of ``neuromamba regions train``: results, a model, a fit or its weights."""
    folder = path if path.is_dir() else path.parent
    weights = folder / _NEUROSSM_WEIGHTS
    # An exported file of this name has a JSON file beside it.
    if weights.is_file() and (folder / "metrics.json").is_file():
        return not weights.with_name(f"{weights.name}.json").exists()
    if not path.is_dir() or (folder / "checkpoints").exists():
        return False
    return any(
        next(folder.glob(f"{above}{_NEUROSSM_WEIGHTS}"), None) is not None
        for above in ("seed_*/*/", "*/seed_*/*/", "*/*/seed_*/*/")
    )
