"""What a quality page is made of; read by the command line, so nothing slow is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class QualityRequest:
    """A call of the command; the fields are its flags.

    Raises:
        UserInputError: a value out of range.
    """

    image_path: str
    output: str = ""
    patch_size: tuple[int, ...] = ModelConfig.patch_size
    input_scaling_method: str = DataConfig.input_scaling_method
    sequence_length: int = DataConfig.sequence_length
    frames: int = 0
    limit: int = 0
    check_content: bool = False
    num_workers: int | None = None

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--frames", self.frames, 3 if self.frames else 0),
            ("--limit", self.limit, 0),
            ("--num_workers", self.num_workers, 1),
        ):
            if value is not None and value < least:
                or_all = ", or 0 for all" if flag == "--frames" else ""
                raise UserInputError(f"{flag}: got {value}, expected {least} or more{or_all}.")
        if not self.page.name.endswith((".html", ".htm")):
            raise UserInputError(f"--output: got '{self.output}', expected a file FILE.html.")
        for value in (*self.patch_size, self.sequence_length):
            if value < 1:
                flag = "--patch_size" if value in self.patch_size else "--sequence_length"
                raise UserInputError(f"{flag}: got {value}, expected 1 or more.")
        self.check_fit("--sequence_length", "T", self.sequence_length, self.patch_size[3])

    @property
    def page(self) -> Path:
        """The HTML file to write."""
        return Path(self.output) if self.output else Path(self.image_path, "quality/quality.html")

    @property
    def data(self) -> DataConfig:
        """The windows that training would take."""
        return DataConfig(
            dataset_name=("Dummy",),
            image_path=(self.image_path,),
            sequence_length=self.sequence_length,
            input_scaling_method=self.input_scaling_method,
        )

    def check_grid(self, grid: Sequence[int]) -> None:
        """Refuse a patch that does not divide the grid of the store."""
        for axis, length, patch in zip("XYZ", grid, self.patch_size[:3], strict=True):
            self.check_fit("the store's grid", axis, length, patch)

    @staticmethod
    def check_fit(what: str, axis: str, length: int, patch: int) -> None:
        """Refuse a patch that does not divide a length."""
        if length % patch:
            fitting = [n for n in range(1, length + 1) if length % n == 0]
            raise UserInputError(
                f"--patch_size: {patch} does not divide the {length} of {what} along {axis}; "
                f"expected one of {', '.join(map(str, fitting))}."
            )
