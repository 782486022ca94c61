"""Export a model file of regions: the same file in a folder or under a name, with its metadata.

A model file names no subject and no folder, so it travels as it is: its bytes, and with them its
predictions, stay the same.
"""

from __future__ import annotations

import json
from pathlib import Path

from neuromamba.common.atomic_files import atomic_path, make_folder, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import SAFETENSORS
from neuromamba.neurossm.model_file import METADATA_KEY, RegionModelFile


def export_model_file(found: RegionModelFile, weights: Path, metadata: Path) -> list[str]:
    """Write a model file and its metadata elsewhere; returns lines for people.

    Args:
        found: the model.
        weights: file to write, ``.safetensors``.
        metadata: JSON file to write.

    Raises:
        UserInputError: another kind of file; it cannot be written.
    """
    if weights.suffix != SAFETENSORS:
        raise UserInputError(
            f"OUTPUT: got '{weights}', but a model of regions has no released layout. Name a "
            f"folder, or a file that ends in {SAFETENSORS}."
        )
    if weights.exists() and weights.samefile(found.path):
        raise UserInputError("OUTPUT: is the model file itself; choose another name.")
    make_folder(weights.parent, "OUTPUT")
    with atomic_path(weights) as temporary:
        temporary.write_bytes(found.path.read_bytes())
    text = json.dumps({METADATA_KEY: dict(found.metadata)}, indent=1)
    write_text_atomically(metadata, text + "\n")
    parameters = sum(one.numel() for one in found.model.parameters())
    size = weights.stat().st_size / 1e6
    return [
        f"read    {found.path} ({found.metadata['name']})",
        f"wrote   {weights} ({size:.1f} MB): {parameters:,} parameters, with its metadata",
        f"wrote   {metadata}",
    ]
