"""Load the weights that a run starts from or tests, and check that they may be used on its data."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from neuromamba.checkpoints.io import (
    load_backbone,
    load_strictly,
    names_in_module,
    read_checkpoint,
)
from neuromamba.common.errors import UserInputError
from neuromamba.data.cohorts.leak_guards import (
    refuse_trained_subjects,
    trained_subjects,
    warn_of_unknown_subjects,
)
from neuromamba.data.ingest.repetition_time import differs, nearest_tr
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.target_scaling import TargetScaling
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.dynamic_skill import METADATA_KEY, missing_dynamics
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.training.job import is_first_rank

logger = logging.getLogger(__name__)
TESTED, STARTED_FROM = "test_ckpt_path", "load_model_path"  # flags that name a checkpoint


def load_weights(module: FMambaModule, config: RunConfig, data: RunData) -> None:
    """Load the checkpoint of ``--test_ckpt_path`` or ``--load_model_path``, if one is given.

    LoRA's updates, if the task asks for them, are added to the weights of a backbone.

    Raises:
        UserInputError: it cannot be read, does not fit the module or the space of the data, or was
            trained on subjects who are held out here.
    """
    for name in (TESTED, STARTED_FROM):
        path = config.flags[name]
        if not path:
            continue
        flag, tested = f"--{name}", name == TESTED
        if tested:
            metadata = load_model(module, path, flag)
        else:
            metadata = load_backbone(module.model, path, flag)
            module.add_lora()
        check_space(metadata, data, flag, supervised=tested)
        warn_of_other_repetition_times(metadata, data, flag)
        if metadata:
            group_by = config.data.group_by
            shared = trained_subjects(metadata["data"], data.stores, data.subjects, group_by)
            refuse_trained_subjects(shared, flag, path, supervised=tested)
            warn_of_unknown_subjects(metadata["data"], flag, path)
        if config.downstream is not None and not tested:
            note = missing_dynamics(metadata.get(METADATA_KEY), config.data.input_scaling_method)
            if note and is_first_rank():
                logger.warning("warning: %s '%s': %s", flag, path, note)
        return


def load_model(module: FMambaModule, path: str, flag: str) -> dict[str, Any]:
    """Load backbone and head from a checkpoint of this framework; return its metadata."""
    contents = read_checkpoint(path, flag)
    load_strictly(module, names_in_module(contents.state_dict), path, flag=flag)
    if isinstance(module, DownstreamModule) and "target_scaling" in contents.metadata:
        module.target_scaling = TargetScaling(*contents.metadata["target_scaling"])
    return contents.metadata


def check_space(metadata: Mapping[str, Any], data: RunData, flag: str, *, supervised: bool) -> None:
    """Compare native and standard space of a model and of the data: positions differ.

    A model of the task is refused. A backbone may be moved on purpose, so a warning is logged.

    Raises:
        UserInputError: the model is of another space.
    """
    spaces = metadata.get("data", {}).get("spaces", [])  # absent in older checkpoints
    there = "native" in spaces
    here = any(header.space == "native" for store in data.stores for header in store.headers)
    if not spaces or there == here:
        return
    native, other = ("model", "store") if there else ("store", "model")
    message = (
        f"{flag}: the {native} is of native space and the {other} is not, so positions differ. "
        f"Use a store of the model's space."
    )
    if supervised:
        raise UserInputError(message)
    logger.warning("warning: %s", message)


def warn_of_other_repetition_times(metadata: Mapping[str, Any], data: RunData, flag: str) -> None:
    """Log a warning where runs have repetition times that the model has not been trained on.

    A store is not resampled, so the model reads its signals faster or slower than it has learned.
    """
    # Unknown ones (NaN, or 0 in files of other programs) cannot be compared.
    known = [tr for tr in metadata.get("data", {}).get("tr") or () if 0 < tr < math.inf]
    times = {round(header.tr, 4) for store in data.stores for header in store.headers}
    here = [tr for tr in times if 0 < tr < math.inf]
    others = sorted(tr for tr in here if known and differs(tr, nearest_tr(tr, known)))
    if others and is_first_rank():
        logger.warning(
            "warning: %s: the model was trained with a repetition time of %s s, and there are runs "
            "of %s s. They are not resampled, so it sees their signals faster or slower than those "
            "it has learned. docs/repetition_time.md says what can be done.",
            flag,
            " and ".join(f"{tr:g}" for tr in known),
            " and ".join(f"{tr:g}" for tr in others),
        )
