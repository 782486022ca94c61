"""How the files of a store are checked; read by the command line, so nothing slow is imported."""

from __future__ import annotations

from dataclasses import dataclass

from neuromamba.common.errors import UserInputError


@dataclass(frozen=True)
class CheckOptions:
    """How files are checked.

    Attributes:
        sample: share of the frames whose statistics are computed again; at least 10 frames. 1
            checks all, and the statistics of single voxels too.
    """

    sample: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise UserInputError(f"--sample: got {self.sample:g}, expected more than 0, up to 1.")
