"""What an export is made of; read by the command line, so nothing slow is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.config.names import CONV_NAMES

_OUTPUTS = (".pt", ".safetensors")


@dataclass(frozen=True)
class ExportRequest:
    """A call of the command; the fields are its arguments.

    Raises:
        UserInputError: an output of another kind, or one that is there already.
    """

    checkpoint: str
    output: str
    backbone_only: bool = False
    conv_name: str = CONV_NAMES[0]
    dtype: str = "fp32"
    force: bool = False

    def __post_init__(self) -> None:
        if self.path.suffix not in _OUTPUTS:
            raise UserInputError(
                f"OUTPUT: got '{self.output}', expected a name that ends in "
                f"{' or '.join(_OUTPUTS)}."
            )
        for path in (self.path, self.metadata_path):
            if path.is_dir() or (path.exists() and not self.force):
                raise UserInputError(
                    f"OUTPUT: '{path}' is there already. Choose another name, or add --force to "
                    f"replace it."
                )

    @property
    def path(self) -> Path:
        """The file to write."""
        return Path(self.output)

    @property
    def metadata_path(self) -> Path:
        """The JSON file beside it, with the metadata."""
        return self.path.with_name(f"{self.path.name}.json")
