"""Flags from the metadata of a checkpoint: those not given are filled, those that differ refused.

A model can thus be used without remembering how it was trained, and never with other settings by
accident.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.errors import UserInputError, see
from neuromamba.config import names
from neuromamba.config.data import DataConfig
from neuromamba.config.model import HeadConfig
from neuromamba.config.names import ORIENTATION
from neuromamba.config.serialise import from_dict
from neuromamba.config.training import DownstreamConfig
from neuromamba.training.job import is_first_rank

_MODEL_FLAGS = ("model", "img_size", "patch_size", "in_chans", "embed_dim", "keep_background")
_FLAGS_OF_MODEL = {
    "fmamba": ("depth", "d_state", "headdim", "mamba_pe_method", "union_mask", "token_order"),
    "swift": ("swin_depths", "swin_heads", "swin_window"),
}
assert set(_FLAGS_OF_MODEL) == set(names.MODEL_NAMES)
_SPLIT_FLAGS = (
    "dataset_split_num",
    "train_split",
    "val_split",
    "group_by",
    "family_column",
    "stratify_by",
)
# Where targets of the user's own are; the classes among them belong to the model.
_LABEL_FLAGS = ("label_csv", "subject_column", "target_column", "events", "event_delay")
# What of the data is tested, unless flags say otherwise.
_TEST_FLAGS = (
    "dataset_name",
    "image_path",
    "bad_subj_path",
    "limit_test_samples",
    "stride_between_seq",
    "stride_within_seq",
    "shuffle_time_sequence",
    "match_on",
    "seed",
)


def flags_of_metadata(metadata: Mapping[str, Any], whole_run: bool) -> dict[str, Any]:
    """Return the flags that the metadata of a checkpoint stand for.

    Args:
        metadata: from ``checkpoints.io.read_metadata``.
        whole_run: also task, head, data and split (to test a model), not only what its weights
            depend on (to start from them).
    """
    model, data = metadata["model"], metadata["data"]
    known = (*_MODEL_FLAGS, *_FLAGS_OF_MODEL.get(model["model"], ()))
    flags = {name: model[name] for name in known if name in model}
    if model["model"] == "fmamba":
        flags.setdefault("token_order", "raster")  # older checkpoints know no other
    flags["input_scaling_method"] = data["scaling"]
    if data["scaling"] in names.VOXEL_SCALINGS:  # older checkpoints used those of the run
        flags["scaling_statistics"] = data["config"].get("scaling_statistics", "run")
        flags["channels"] = data["config"].get("channels", ["dynamics"])
    if whole_run and "downstream" in metadata:
        task = from_dict(DownstreamConfig, metadata["downstream"], "checkpoint")
        config = from_dict(DataConfig, data["config"], "checkpoint")
        head = from_dict(HeadConfig, metadata["head"], "checkpoint")
        flags |= {"clf_head_version": head.name, "pool": head.pool, "head_norm": head.norm}
        flags |= _flags_of(config, (*_SPLIT_FLAGS, *_TEST_FLAGS))
        if config.match_on:
            flags["match_caliper"] = config.match_caliper
        flags["shuffle_labels"] = task.shuffle_labels
        flags["missing_codes"] = task.missing_codes
        if task.has_own_targets:
            flags |= {name: getattr(task, name) for name in _LABEL_FLAGS}
            flags["target_classes"] = task.target_classes
            flags["downstream_task_type"] = task.task_type
        else:
            flags["downstream_task"] = task.task
    # As the parser would have them.
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flags.items()}


def _flags_of(config: DataConfig, chosen: Iterable[str]) -> dict[str, Any]:
    """Return the values of flags, without ``image_path`` where the checkpoint does not name it."""
    flags = {name: getattr(config, name) for name in chosen}
    if not all(config.image_path):
        del flags["image_path"]
    return flags


def flags_of_task(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of the task that a checkpoint was trained for; {} of a pre-training."""
    if "downstream" not in metadata:
        return {}
    whole = flags_of_metadata(metadata, True)
    names_of_task = ("downstream_task", "downstream_task_type", "target_classes", "shuffle_labels")
    chosen = (*names_of_task, *_LABEL_FLAGS, "missing_codes", "match_on", "match_caliper")
    return {name: whole[name] for name in chosen if name in whole}


def flags_of_data(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of model, data and split of any checkpoint, a pre-training's too."""
    config = from_dict(DataConfig, metadata["data"]["config"], "checkpoint")
    flags = flags_of_metadata(metadata, False)
    chosen = (*_SPLIT_FLAGS, *_TEST_FLAGS)
    flags |= _flags_of(config, [name for name in chosen if name != "match_on"])
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flags.items()}


def apply_checkpoint(
    args: argparse.Namespace, given: frozenset[str], path: str | Path, flag: str, whole_run: bool
) -> tuple[argparse.Namespace, frozenset[str]]:
    """Fill the flags that were not given from the checkpoint's metadata.

    Args:
        args, given: from ``parser.parse_arguments``.
        path: checkpoint, or a folder with one, in which case its path is printed; one without
            metadata (a released file) changes nothing else.
        flag: the flag that named it.
        whole_run: see ``flags_of_metadata``.

    Returns:
        The flags completed, and the names now settled.

    Raises:
        UserInputError: a flag was given that contradicts the metadata; another orientation.
    """
    found = find_checkpoint(path, flag)
    values = dict(vars(args)) | {flag.removeprefix("--"): str(found)}
    if found != Path(path) and is_first_rank():
        print(f"{flag}: taking {found}", flush=True)
    # Imported here: torch takes seconds, and a missing file has been reported by now.
    from neuromamba.checkpoints.io import read_metadata

    path, metadata = found, read_metadata(found, flag)
    if not metadata:
        return argparse.Namespace(**values), given
    if whole_run and "downstream" not in metadata:
        raise UserInputError(
            f"{flag}: '{path}' is a pre-trained backbone without a task; fine-tune it first with "
            f"--load_model_path."
        )
    if metadata["orientation"] != ORIENTATION:
        raise UserInputError(
            f"{flag}: '{path}' was trained on {metadata['orientation']} data, stores are "
            f"{ORIENTATION}."
        )
    free = {*_TEST_FLAGS, *_LABEL_FLAGS, "missing_codes", "match_caliper", "shuffle_labels"}
    contradicted = {}
    for name, recorded in flags_of_metadata(metadata, whole_run).items():
        if name not in given:
            values[name] = recorded
        elif name not in free and not _same(name, values[name], recorded):
            contradicted[name] = recorded
    if contradicted:
        got = ", ".join(f"--{name}: got {values[name]}" for name in contradicted)
        flags = " and ".join(f"--{name}" for name in contradicted)
        of_flags = ", ".join(f"{value} (--{name})" for name, value in contradicted.items())
        recorded = of_flags if len(contradicted) > 1 else next(iter(contradicted.values()))
        raise UserInputError(
            f"{got}, but '{path}' was trained with {recorded}. Leave {flags} out to use the "
            f"checkpoint's, or choose another checkpoint. {see('trained-with')}"
        )
    return argparse.Namespace(**values), given | set(flags_of_metadata(metadata, whole_run))


def _same(name: str, value: Any, recorded: Any) -> bool:
    if name in ("d_state", "headdim") and value == 0:
        return True  # 0 asks for the rule, which the recorded embed_dim has applied
    if name == "channels":
        return sorted(value) == sorted(recorded)
    if name == "clf_head_version":
        return names.HEAD_ALIASES.get(value, value) == recorded
    return value == recorded
