"""Load a trained model from whatever holds one: run folder, checkpoint, exported folder, hub."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
from pathlib import Path

import torch

from neuromamba.checkpoints.io import (
    CheckpointContents,
    load_strictly,
    of_regions,
    read_checkpoint,
)
from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.errors import UserInputError, see
from neuromamba.common.similar_paths import did_you_mean
from neuromamba.config.model import HeadConfig
from neuromamba.config.names import ORIENTATION
from neuromamba.config.serialise import from_dict
from neuromamba.config.training import DownstreamConfig
from neuromamba.evaluation.target_scaling import UNSCALED, TargetScaling
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.heads import build_head
from neuromamba.inference.calibration import calibration_of, evaluation_of
from neuromamba.inference.contract import InputContract
from neuromamba.inference.loaded import LoadedModel
from neuromamba.neurossm.model_file import find_model_file

logger = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Of a repository on the hub: weights without code, and what describes them.
_HUB_FILES = ("*.safetensors", "*.json", "*.md")
_BLOCK = 1 << 20


def load(model: str | Path, device: str = "auto", *, ssd_backend: str = "auto") -> LoadedModel:
    """Load a trained model for use; no code of the file is executed.

    Args:
        model: a run folder (its best checkpoint), a checkpoint of any kind, an exported folder or
            file, or the id ``organisation/name`` of a model on the Hugging Face hub.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "xpu" ...
        ssd_backend: backend of the scan, see ``layers.ssd.select_backend``.

    Raises:
        UserInputError: nothing there; damaged; a file that does not say how the model was trained;
            a device that is absent.
    """
    path = _of_volumes(fetched(model))
    contents = read_checkpoint(path, "MODEL")
    metadata = contents.metadata
    if not metadata:
        raise UserInputError(
            f"MODEL: '{path}' holds weights only, it does not say how the model was trained (grid, "
            f"scaling, window). Give the run folder or a checkpoint of neuromamba train, or what "
            f"neuromamba export makes of it. {see('weights-only')}"
        )
    if metadata["orientation"] != ORIENTATION:
        raise UserInputError(
            f"MODEL: '{path}' was trained on {metadata['orientation']} data, scans are brought to "
            f"{ORIENTATION}."
        )
    where = choose_device(device)
    contract = InputContract.from_metadata(metadata, str(path))
    if not contract.knows_training:
        logger.warning(
            "warning: MODEL: '%s' does not hold the keys of its training subjects (it was exported "
            "to be shared), so a scan that it was trained on is not recognised as one.",
            path,
        )
    state = contents.state_dict
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and replaced below
        backbone = build_model(
            contract.model, "output_layer.weight" in state, ssd_backend=ssd_backend
        )
        head = None
        if "head" in metadata:
            config = from_dict(HeadConfig, metadata["head"], str(path))
            head = build_head(config, contract.model, ssd_backend)
    own = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    load_strictly(backbone, own, path, flag="MODEL")
    if head is not None:
        rest = {k.removeprefix("head."): w for k, w in state.items() if k.startswith("head.")}
        load_strictly(head, rest, path, flag="MODEL")
        head.to(where).eval()
    task = None
    if "downstream" in metadata:
        task = from_dict(DownstreamConfig, metadata["downstream"], str(path))
    return LoadedModel(
        path=path,
        contents=CheckpointContents({}, metadata, contents.origin, {}, contents.export),
        contract=contract,
        backbone=backbone.to(where).eval(),
        head=head,
        task=task,
        target_scaling=TargetScaling(*metadata.get("target_scaling", UNSCALED)),
        device=where,
        calibration=calibration_of(path, contents.export) if task is not None else None,
        evaluation=evaluation_of(path, contents.export) if task is not None else {},
    )


def fetched(model: str | Path) -> Path:
    """The path of a model; one on the hub is fetched first."""
    path = Path(model)
    if path.exists() or not _HUB_ID.fullmatch(str(model)):
        return path
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserInputError(
            f"MODEL: there is no file or folder '{model}'.{did_you_mean(path)} If it is a model on "
            f"the Hugging Face hub, install huggingface_hub (pip install huggingface_hub) and call "
            f"again."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # of its own kinds, and those of the network below it
        first = str(error).strip().split("\n")[0]
        raise UserInputError(
            f"MODEL: there is no file or folder '{model}', and the hub does not give a model of "
            f"this name ({type(error).__name__}: {first}).{did_you_mean(path)}"
        ) from None


def _of_volumes(place: Path) -> Path:
    """The checkpoint that a path means; a model of regions is refused.

    Raises:
        UserInputError: nothing there, or a NeuroSSM.
    """
    if find_model_file(place) is not None:
        raise of_regions(place, "MODEL")
    return find_checkpoint(place, "MODEL")


def choose_device(name: str) -> torch.device:
    """The device of ``--device``.

    Raises:
        UserInputError: it cannot be used here.
    """
    if name == "auto":
        kinds = [kind for kind in ("cuda", "xpu") if getattr(torch, kind).is_available()]
        return torch.device(kinds[0] if kinds else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).split("\n")[0]
        raise UserInputError(
            f"--device: '{name}' cannot be used here ({first}). Use auto or cpu."
        ) from None
    return device


def checkpoint_sha256(path: Path) -> str:
    """Hash of a checkpoint's files, in the order of their names."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
