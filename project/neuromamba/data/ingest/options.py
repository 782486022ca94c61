"""Options of conversions into a store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.bounds import require_positive
from neuromamba.config.names import canonical_dataset_name
from neuromamba.data.ingest.repetition_time import check_tr
from neuromamba.data.ingest.sources import Source
from neuromamba.data.store.header import (
    COMPRESSIONS,
    FORMAT_VERSION,
    Affine,
    Triple,
    WriteOptions,
)

MASK_RULES = ("auto", "nonzero", "computed")


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Options of every conversion into a store.

    Attributes:
        drop_first: frames left out at the start (dummy scans).
        crop_offset: index in the target = index in the LAS source + crop_offset; None centres.
        dataset: cohort, a name of ``DATASET_NAMES``, or "".
        compression: "none" or "lz4".
        voxel_norm: also store the mean and standard deviation of every voxel.
        min_frames: a run with fewer frames is refused.
        overwrite: convert again what is up to date.
        dry_run: read headers only and write nothing.
    """

    drop_first: int = 0
    crop_offset: Triple | None = None
    dataset: str = ""
    compression: str = "none"
    voxel_norm: bool = False
    min_frames: int = 2
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        require_positive("--min_frames", self.min_frames)
        if self.drop_first < 0:
            raise UserInputError(f"--drop_first: got {self.drop_first}, expected 0 or more.")
        look_up(self.compression, COMPRESSIONS, "--compression")
        if self.dataset:
            object.__setattr__(self, "dataset", canonical_dataset_name(self.dataset))

    def kept_frames(self, path: Path, n_frames: int) -> int:
        """Count the frames that are left of a run of ``n_frames`` without the first ones.

        Raises:
            UserInputError: they are fewer than ``min_frames``; names the file.
        """
        kept = n_frames - self.drop_first
        if kept < self.min_frames:
            dropped = f" after --drop_first {self.drop_first}" if self.drop_first else ""
            raise UserInputError(
                f"{path}: {max(0, kept)} frame(s){dropped}, expected at least "
                f"{self.min_frames} (--min_frames of neuromamba preprocess). Leave the run out."
            )
        return kept

    def write_options(self, digest: str) -> WriteOptions:
        """Choose how a run is stored; ``digest`` identifies the conversion's options."""
        return WriteOptions(
            compression=self.compression,
            voxel_statistics=self.voxel_norm,
            options_digest=digest,
        )


def digest_of(facts: Mapping[str, Any]) -> str:
    """Hash facts in plain containers, 16 hexadecimal digits; their order does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(StoreOptions):
    """Options of a conversion of NIfTI images.

    Attributes:
        img_size: X, Y, Z of the target grid.
        mask: "auto", "nonzero", "computed" (see ``brain_grid.choose_mask``) or a mask image.
        tr: repetition time in seconds for all runs; None takes the sidecar's or the header's.
        resample: voxel size in mm to resample to by the affine; None leaves the voxels alone.
        onto: affine [4, 4] of the target grid, rows of it; the run is placed on that grid by its
            own affine, and resampled where voxels do not coincide. None goes by ``crop_offset``.
        space: "" for MNI; "native" for a store of native images; or the name of a space, which
            also decides among the versions of a run.
        desc: output of a pipeline to take (BIDS ``desc-``); "" takes the best there is.
        others: as in ``StoreOptions``.
    """

    img_size: Triple = (96, 96, 96)
    mask: str = "auto"
    tr: float | None = None
    resample: float | None = None
    onto: Affine | None = None
    space: str = ""
    desc: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("--img_size", *self.img_size)
        if self.resample is not None:
            require_positive("--resample", self.resample)
        check_tr(self.tr)
        if self.onto is not None and (self.resample is not None or self.crop_offset is not None):
            raise ValueError("onto says where voxels go; no resample or crop_offset beside it")
        if self.space and not re.fullmatch(r"[A-Za-z0-9]+([:+][A-Za-z0-9-]+)*", self.space):
            raise UserInputError(
                f"--space: '{self.space}' is no name of a space; expected native or a BIDS name "
                f"such as MNI152NLin6Asym."
            )
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
        more: dict[str, Any] = {
            "space": self.space,
            "voxel_norm": self.voxel_norm,
            "layout_tr": layout_tr,
            "onto": self.onto and [list(row) for row in self.onto],
        }
        facts |= {name: value for name, value in more.items() if value}
        return digest_of(facts)


def options_for(source: Source, options: ConversionOptions) -> ConversionOptions:
    """The options for one run: those of the conversion, but for where its voxels go."""
    if source.onto is None:
        return options
    return dataclasses.replace(options, onto=source.onto, resample=None, crop_offset=None)
