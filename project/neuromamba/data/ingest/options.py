"""How runs are converted."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import canonical_dataset_name
from neuromamba.data.ingest.repetition_time import check_tr
from neuromamba.data.store.header import COMPRESSIONS, FORMAT_VERSION, Triple

MASK_RULES = ("auto", "nonzero", "computed")


def require_positive(flag: str, values: Iterable[float]) -> None:
    """Refuse a number that is not finite and above 0.

    Raises:
        UserInputError: names the flag.
    """
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise UserInputError(f"{flag}: got {value}, expected a number greater than 0.")


@dataclass(frozen=True)
class ConversionOptions:
    """How runs are converted.

    Attributes:
        img_size: X, Y, Z of the target grid.
        mask: "auto", "nonzero", "computed" (see ``brain_grid.choose_mask``) or a mask image.
        tr: repetition time in seconds for all runs; None takes the sidecar's or the header's.
        drop_first: frames left out at the start (dummy scans).
        resample: voxel size in mm to resample to by the affine; None leaves the voxels alone.
        crop_offset: index in the target = index in the LAS source + crop_offset; None centres.
        dataset: cohort, a name of ``DATASET_NAMES``, or "".
        compression: "none" or "lz4".
        space: "" for MNI; "native" for a store of native images; or the name of a space, which
            also decides among the versions of a run.
        voxel_norm: also store the mean and standard deviation of every voxel.
        min_frames: a run with fewer frames is refused.
        overwrite: convert again what is up to date.
        dry_run: read headers only and write nothing.
    """

    img_size: Triple = (96, 96, 96)
    mask: str = "auto"
    tr: float | None = None
    drop_first: int = 0
    resample: float | None = None
    crop_offset: Triple | None = None
    dataset: str = ""
    compression: str = "none"
    space: str = ""
    voxel_norm: bool = False
    min_frames: int = 2
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        for flag, values in (
            ("--img_size", self.img_size),
            ("--min_frames", (self.min_frames,)),
            ("--resample", () if self.resample is None else (self.resample,)),
        ):
            require_positive(flag, values)
        check_tr(self.tr)
        if self.drop_first < 0:
            raise UserInputError(f"--drop_first: got {self.drop_first}, expected 0 or more.")
        if self.space and not re.fullmatch(r"[A-Za-z0-9]+([:+][A-Za-z0-9-]+)*", self.space):
            raise UserInputError(
                f"--space: '{self.space}' is no name of a space; expected native or a BIDS name "
                f"such as MNI152NLin6Asym."
            )
        look_up(self.compression, COMPRESSIONS, "--compression")
        if self.dataset:
            object.__setattr__(self, "dataset", canonical_dataset_name(self.dataset))
        if self.mask not in MASK_RULES and not Path(self.mask).is_file():
            raise UserInputError(
                f"--mask: '{self.mask}' is no file and none of {', '.join(MASK_RULES)}."
            )

    def digest(
        self, mask_sha256: str, sidecar_tr: float | None, layout_tr: float | None = None
    ) -> str:
        """Hash of everything but the source that determines the stored file."""
        facts: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "img_size": list(self.img_size),
            "mask": self.mask if self.mask in MASK_RULES else "file",
            "mask_sha256": mask_sha256,
            "tr": [self.tr, sidecar_tr],
            "drop_first": self.drop_first,
            "resample": self.resample,
            "crop_offset": self.crop_offset and list(self.crop_offset),
            "dataset": self.dataset,
            "compression": self.compression,
        }
        # Only where they are used, so that older stores stay up to date.
        more = {"space": self.space, "voxel_norm": self.voxel_norm, "layout_tr": layout_tr}
        facts |= {name: value for name, value in more.items() if value}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
