"""Load a model of either family; the file's metadata say which it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.inference.loaded import LoadedModel
from neuromamba.inference.loading import choose_device, fetched
from neuromamba.inference.loading import load as load_volumes
from neuromamba.inference.region_model import RegionModel, load_region_model
from neuromamba.neurossm.model_file import find_model_file


def load(
    model: str | Path, device: str = "auto", *, ssd_backend: str = "auto"
) -> LoadedModel | RegionModel:
    """Load a trained model for use; no code of the file is executed.

    Args:
        model: of FMamba a run folder (its best checkpoint), a checkpoint of any kind, an exported
            folder or file, or the id ``organisation/name`` of a model on the Hugging Face hub; of
            NeuroSSM what ``neuromamba regions train`` writes: ``model.safetensors``, its folder, or
            the folder of results of one seed.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "xpu" ...
        ssd_backend: backend of the scan, see ``layers.ssd.select_backend``.

    Returns:
        A ``LoadedModel`` of volumes or a ``RegionModel`` of regional series; both have ``prepare``,
        ``predict`` and ``embed``.

    Raises:
        UserInputError: nothing there; damaged; a file that does not say how the model was trained;
            a device that is absent.
    """
    place = fetched(model)
    found = find_model_file(place)
    if found is not None:
        return load_region_model(found, choose_device(device), ssd_backend)
    return load_volumes(place, device, ssd_backend=ssd_backend)


def for_scans(args: argparse.Namespace) -> LoadedModel | RegionModel:
    """Load the model of a command line; refuse flags of the other family.

    Raises:
        UserInputError: as ``load``; names a flag that the model cannot use.
    """
    model = load(args.model, args.device)
    if isinstance(model, RegionModel):
        for flag in ("mask", "scaling"):
            if getattr(args, flag, None) is not None:
                raise UserInputError(f"--{flag}: of models of volumes; this one takes regions.")
        return model.with_atlas(args.atlas)
    if args.atlas is not None and not hasattr(args, "pool"):
        raise UserInputError("--atlas: of models of regions; this one takes volumes.")
    return model
