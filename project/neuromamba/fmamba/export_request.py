"""What an export is made of; read by the command line, so nothing slow is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.config.names import CONV_NAMES

_OUTPUTS = (".pt", ".safetensors")
# The files of an exported folder.
FOLDER_WEIGHTS, FOLDER_METADATA, FOLDER_CARD = "model.safetensors", "config.json", "README.md"
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclass(frozen=True)
class ExportRequest:
    """A call of the command; the fields are its arguments.

    Raises:
        UserInputError: an output of another kind, or one that is there already; a licence that is
            no identifier, or that no file would hold.
    """

    checkpoint: str
    output: str
    backbone_only: bool = False
    conv_name: str = CONV_NAMES[0]
    dtype: str = "fp32"
    force: bool = False
    keep_subject_keys: bool = False
    license: str | None = None

    def __post_init__(self) -> None:
        if self.folder is None and self.path.suffix not in _OUTPUTS:
            raise UserInputError(
                f"OUTPUT: got '{self.output}', expected a name that ends in "
                f"{' or '.join(_OUTPUTS)}, or without an ending for a folder."
            )
        self._check_license()
        if self.folder is not None:
            self._check_folder(self.folder)
        for path in (self.path, self.metadata_path, *self.card_paths):
            if path.is_dir() or (path.exists() and not self.force):
                raise UserInputError(
                    f"OUTPUT: '{path}' is there already. Choose another name, or add --force to "
                    f"replace it."
                )

    def _check_license(self) -> None:
        if self.license is None:
            return
        if self.folder is None:
            raise UserInputError("--license: only used if OUTPUT is a folder, for its model card.")
        if not _LICENSE.fullmatch(self.license):
            raise UserInputError(
                f"--license: got '{self.license}', expected an identifier such as apache-2.0, "
                f"cc-by-nc-4.0 or other."
            )

    def _check_folder(self, folder: Path) -> None:
        """Refuse a folder from which another model would be loaded than the exported one."""
        if folder.exists() and not folder.is_dir():
            raise UserInputError(f"OUTPUT: '{folder}' is a file, expected a folder to write.")
        others = [
            path.name
            for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
            if path.name == "checkpoints"
            or (path.suffix in (".ckpt", ".safetensors") and path.name != FOLDER_WEIGHTS)
        ]
        if others:
            raise UserInputError(
                f"OUTPUT: '{folder}' holds another model ({others[0]}). Choose another folder."
            )

    @property
    def folder(self) -> Path | None:
        """The folder to write; None where a single file is."""
        path = Path(self.output)
        # "model-1.5" has no ending: one begins with a letter.
        ending = re.fullmatch(r"\.[A-Za-z]\w*", path.suffix)
        return None if ending else path

    @property
    def path(self) -> Path:
        """The file of weights to write."""
        return Path(self.output) if self.folder is None else self.folder / FOLDER_WEIGHTS

    @property
    def card_paths(self) -> tuple[Path, ...]:
        """The model card of a folder."""
        return () if self.folder is None else (self.folder / FOLDER_CARD,)

    @property
    def metadata_path(self) -> Path:
        """The JSON file with the metadata: ``config.json`` of a folder, else beside the file."""
        if self.folder is not None:
            return self.folder / FOLDER_METADATA
        return self.path.with_name(f"{self.path.name}.json")
