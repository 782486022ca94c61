"""Read any checkpoint and write it as one file, with its configuration beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from neuromamba.checkpoints.files import first_line, why_unwritten
from neuromamba.checkpoints.io import (
    CHECKPOINT_KEY,
    EXPORT_KEY,
    CheckpointContents,
    read_checkpoint,
)
from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.atomic_files import atomic_path, make_folder, write_text_atomically
from neuromamba.common.errors import UserInputError, see
from neuromamba.common.json_text import read_json_record
from neuromamba.common.version import code_version
from neuromamba.fmamba.export import (
    DTYPES,
    HEAD_PARTS,
    check_weights,
    released_state,
    safetensors_entries,
)
from neuromamba.fmamba.export_request import ExportRequest
from neuromamba.fmamba.shareable import shareable_metadata, shareable_origin

# What is known of a checkpoint beside its weights and metadata, for its exports.
Facts = Callable[[Path, CheckpointContents], Mapping[str, Any]]


def export_checkpoint(request: ExportRequest, facts: Facts | None = None) -> list[str]:
    """Read, check, write, read back; returns the lines to print.

    Args:
        request: what to export.
        facts: gives what else the file says of a model with its head, see
            ``inference.sharing.facts_of_run``.

    Raises:
        UserInputError: the checkpoint is not readable or of another model, or does not fit its
            metadata; a folder is to be made of weights without metadata; the output cannot be
            written.
    """
    source = find_checkpoint(request.checkpoint, "CHECKPOINT")
    if request.path.exists() and request.path.samefile(source):
        raise UserInputError("OUTPUT: is the checkpoint itself; choose another name.")
    contents = read_checkpoint(source, "CHECKPOINT")
    state, metadata = contents.state_dict, dict(contents.metadata)
    if request.backbone_only:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
        metadata = {name: part for name, part in metadata.items() if name not in HEAD_PARTS}
    if metadata:
        check_weights(state, metadata, str(source))
    elif request.folder is not None:
        raise UserInputError(
            f"CHECKPOINT: '{source}' holds weights only, it does not say how the model was "
            f"trained, which a folder is to tell. Name an OUTPUT that ends in .pt or .safetensors. "
            f"{see('weights-only')}"
        )
    released = released_state(state, str(source), request.conv_name, DTYPES[request.dtype])
    origin = origin_of(source, contents, request)
    if facts is not None and not request.backbone_only:
        origin |= facts(source, contents)
    if not request.keep_subject_keys:
        metadata, origin = shareable_metadata(metadata), shareable_origin(origin)
    make_folder(request.path.parent, "OUTPUT")
    write_weights(request.path, released, safetensors_entries(metadata, origin))
    text = json.dumps({CHECKPOINT_KEY: metadata, EXPORT_KEY: origin}, indent=1)
    with _refusing(request.metadata_path):
        write_text_atomically(request.metadata_path, text + "\n")
    parameters = sum(
        tensor.numel() for name, tensor in released.items() if "embedder.pos" not in name
    )
    size = request.path.stat().st_size / 1e6
    place = ", ".join(f"{name} {value}" for name, value in contents.progress.items())
    described = "" if request.path.suffix == ".pt" else ", with its metadata"
    return [
        f"read    {source} ({contents.origin}{', ' if place else ''}{place})",
        f"wrote   {request.path} ({size:.1f} MB): {len(released)} tensors, {parameters:,} "
        f"parameters, {request.dtype}{described}",
        f"wrote   {request.metadata_path}{'' if metadata else ' (the checkpoint has no metadata)'}",
    ]


def origin_of(source: Path, contents: CheckpointContents, request: ExportRequest) -> dict[str, Any]:
    """Where exported weights come from, in plain containers."""
    origin: dict[str, Any] = {
        "source": str(source.resolve()),
        "kind": contents.origin,
        **contents.progress,
        "dtype": request.dtype,
        "backbone_only": request.backbone_only,
        "code_version": code_version(),
    }
    metrics = run_metrics(source)
    if metrics is not None:
        origin["metrics"] = metrics
    if contents.export:
        origin["source_export"] = dict(contents.export)
    return origin


def run_metrics(source: Path) -> Mapping[str, Any] | None:
    """``metrics.json`` of the run, where it is about this checkpoint and not of a better one."""
    run = source.resolve().parent.parent
    path = run / "metrics.json"
    if source.resolve().parent.name != "checkpoints" or not path.is_file():
        return None
    if find_checkpoint(run, "CHECKPOINT") != source.resolve():
        return None
    return read_json_record(path, "Remove it, or restore it; the export goes without metrics.")


def write_weights(path: Path, state: dict[str, Tensor], entries: dict[str, str]) -> None:
    """Write a file whole or not at all, and compare it with what it should hold.

    Raises:
        UserInputError: it cannot be written, or not read back as it was written.
    """
    with _refusing(path), atomic_path(path) as temporary:
        if path.suffix == ".pt":
            torch.save(state, temporary)
            again = torch.load(temporary, map_location="cpu", weights_only=True)
        else:
            # Not by its ``save_file``, whose files are readable for their owner only.
            temporary.write_bytes(save(state, entries))
            again = load_file(temporary)
        if set(again) != set(state) or any(
            again[name].dtype != tensor.dtype or not torch.equal(again[name], tensor)
            for name, tensor in state.items()
        ):
            raise OSError("what was read back differs")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Make a message of what the system has against writing a file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = why_unwritten(error) or first_line(error)
        raise UserInputError(
            f"OUTPUT: '{path}' cannot be written ({reason}). Make room if the disk is full, or "
            f"choose a folder that can be written."
        ) from None
