"""Options of a conversion of runs in the reference's layouts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.bounds import require_positive
from neuromamba.data.ingest.options import StoreOptions, digest_of
from neuromamba.data.store.header import FORMAT_VERSION, Triple

BACKGROUNDS = ("auto", "zero", "min")
TIME_AXES = ("first", "last")
# Centre of the field of view of MNI152 at 2 mm (91 x 109 x 91 in FSL and HCP), in mm. A centred
# crop or padding leaves it where it is, to within half a voxel.
MNI_CENTRE = (0.0, -18.0, 18.0)
_AXES = ("LR", "PA", "IS")


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(StoreOptions):
    """Options of a conversion of runs in the reference's layouts.

    Attributes:
        tr: repetition time in seconds.
        img_size: X, Y, Z of the target grid; None keeps that of the frames.
        orientation: axis codes of the frames' three axes, such as "LAS".
        voxel_size: mm, one number or one for each axis of the frames.
        background: value of voxels outside the brain: "zero", "min" (the run's minimum), or "auto",
            see ``background_mask``.
        time_axis: of a data set of four dimensions: "first", "last", or None to find it.
        space: name of the images' space, recorded.
        others: as in ``StoreOptions``.
    """

    tr: float
    img_size: Triple | None = None
    orientation: str = "LAS"
    voxel_size: tuple[float, ...] = (2.0,)
    background: str = "auto"
    time_axis: str | None = None
    space: str = ""
    compression: str = "lz4"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("--tr", self.tr)
        require_positive("--img_size", *(self.img_size or ()))
        require_positive("--voxel_size", *self.voxel_size)
        if len(self.voxel_size) not in (1, 3):
            raise UserInputError(
                f"--voxel_size: got {len(self.voxel_size)} numbers, expected 1, or 3 in the order "
                f"of the frames' axes."
            )
        code = self.orientation.upper()
        axes = sorted(axis for c in code for axis, pair in enumerate(_AXES) if c in pair)
        if len(code) != 3 or axes != [0, 1, 2]:
            raise UserInputError(
                f"--orientation: got '{self.orientation}', expected one letter each of L or R, P "
                f"or A, I or S, such as LAS or RAS: where the frames' axes point to."
            )
        object.__setattr__(self, "orientation", code)
        look_up(self.background, BACKGROUNDS, "--background")
        if self.time_axis is not None:
            look_up(self.time_axis, TIME_AXES, "--time_axis")

    def digest(self) -> str:
        """Hash of everything but the source that determines the stored file."""
        facts = {
            "format": FORMAT_VERSION,
            "layout": "reference",
            "tr": self.tr,
            "img_size": self.img_size and list(self.img_size),
            "orientation": self.orientation,
            "voxel_size": list(self.voxel_size),
            "background": self.background,
            "time_axis": self.time_axis,
            "space": self.space,
            "drop_first": self.drop_first,
            "crop_offset": self.crop_offset and list(self.crop_offset),
            "dataset": self.dataset,
            "compression": self.compression,
            "voxel_norm": self.voxel_norm,
        }
        return digest_of(facts)

    def affine(self, shape: Triple) -> np.ndarray:
        """[4, 4] of frames of this shape, voxel indices -> mm; their centre is ``MNI_CENTRE``."""
        from nibabel import orientations  # half a second, which --help need not wait for

        affine = np.eye(4)
        affine[:3, :3] = 0
        sizes = np.broadcast_to(self.voxel_size, 3)
        for axis, (world, sign) in enumerate(orientations.axcodes2ornt(self.orientation)):
            affine[int(world), axis] = sign * sizes[axis]
        affine[:3, 3] = MNI_CENTRE - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
        return affine
