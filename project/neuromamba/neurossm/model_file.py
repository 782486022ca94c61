"""One model as one file: the weights of a holdout's fit, with what is needed to use them.

``Results/<DATASET>/<MODEL>/seed_<S>/holdout/model.safetensors`` holds, beside the weights, under
``METADATA_KEY`` the architecture, classes, regions and atlas, the measures of the training's scans,
the means of their pathways, and the holdout's results. It names no subject and no folder.
``model_file_writer`` writes it; here is what reads it, without what trains or evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from neuromamba.checkpoints.files import damaged, read_safetensors_entries, why_unread
from neuromamba.checkpoints.io import REGIONS_KEY
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import SAFETENSORS
from neuromamba.config.serialise import from_dict
from neuromamba.data.regions.holdout import HOLDOUT_NAME
from neuromamba.neurossm.config import NeuroSSMConfig
from neuromamba.neurossm.networks import TRAINED, WEIGHTS

METADATA_KEY = REGIONS_KEY
MODEL = "model.safetensors"
MEANS = "pathway_means"  # of the training; not in files that were written before they were kept


class RegionModelFile(NamedTuple):
    """A model file.

    Attributes:
        path: of it.
        metadata: plain containers, see ``write_model_files``.
        model: in evaluation mode, on the CPU.
        config: its architecture.
        means: float32 [P, D] of the training (``attribution.mean_features``); None if the file
            holds none.
    """

    path: Path
    metadata: Mapping[str, Any]
    model: nn.Module
    config: NeuroSSMConfig
    means: torch.Tensor | None


def find_model_file(path: Path, flag: str = "MODEL") -> Path | None:
    """The model file that a path means: itself, in a fit's folder, or in one of results.

    Args:
        path: what the user gave.
        flag: that it was given to.

    Returns:
        None if the path is no model of regions.

    Raises:
        UserInputError: results of several seeds, of which none is named.
    """
    if path.is_file():
        return path if path.suffix == SAFETENSORS and _has_metadata(path) else None
    if (path / MODEL).is_file():
        return path / MODEL if _has_metadata(path / MODEL) else None
    found = sorted(path.glob(f"seed_*/{HOLDOUT_NAME}/{MODEL}")) if path.is_dir() else []
    if len(found) > 1:
        listed = ", ".join(str(one.parent) for one in found[:4])
        raise UserInputError(f"{flag}: '{path}' holds the models of several seeds; name {listed}.")
    if not found and path.is_dir() and next(path.glob(f"seed_*/*/{WEIGHTS}"), None) is not None:
        raise UserInputError(
            f"{flag}: '{path}' was written before models were kept in one file. Give the command "
            f"of neuromamba regions train again: finished fits are kept, and {MODEL} is added."
        )
    return found[0] if found else None


def _has_metadata(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read_model_file(path: Path, ssd_backend: str = "auto") -> RegionModelFile:
    """Read a model file; no code of it is executed.

    Raises:
        UserInputError: damaged.
    """
    metadata = read_safetensors_entries(path, "MODEL").get(METADATA_KEY)
    try:
        if not isinstance(metadata, dict):
            raise ValueError("no metadata")
        config = from_dict(
            NeuroSSMConfig, {**metadata["model"], "ssd_backend": ssd_backend}, str(path)
        )
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and replaced below
            model = TRAINED[metadata["name"]](config)
        model.load_state_dict(load_file(path))
        names = 0 if config.is_regression else config.classes
        if len(metadata["classes"]) != names or metadata["target"] is None:
            raise ValueError("the classes do not fit the model")
        means = _read_means(metadata["training"].get(MEANS), config)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, "MODEL", why_unread(error)) from None
    return RegionModelFile(path, metadata, model.eval(), config, means)


def _read_means(values: Any, config: NeuroSSMConfig) -> torch.Tensor | None:
    """The means of a file as a tensor; a ValueError says that they do not fit the model."""
    if values is None:
        return None
    found = torch.tensor(values, dtype=torch.float32)
    if found.shape != (len(config.pathways), config.features) or not found.isfinite().all():
        raise ValueError("the means of the pathways do not fit the model")
    return found
