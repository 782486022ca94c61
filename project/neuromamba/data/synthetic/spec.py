"""What synthetic data sets can hold; read by the command line, so nothing slow is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass

from neuromamba.common.errors import UserInputError, look_up

EFFECTS = ("dynamics", "spatial", "correlations")
MADE = ("HCP_REST", "HCP_TASK", "PPMI")  # data sets of regions that are made
_BRAIN_EXTENT_MM = (146.0, 180.0, 156.0)  # bounding box of nilearn's MNI152 brain mask


@dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """What to generate; a subject depends on every field but ``subjects``.

    The defaults make an easy data set, which a small model learns on a CPU in a minute. For a hard
    one take a tSNR of 40 to 100, as at 3 T, an effect size of 1 and a radius of 22.

    Attributes:
        subjects: number of subjects, half of them in each class.
        frames: length T of a run.
        grid: (X, Y, Z) of the volumes.
        effect_size: amplitude of the planted oscillation at the network's centres relative to the
            standard deviation of the noise there; 0 plants nothing.
        seed: seed of everything.
        tr: repetition time, seconds.
        tsnr: temporal signal-to-noise ratio, baseline over the standard deviation of the noise.
        voxel_size: mm; 0 chooses the size at which the brain fills the grid.
        network_radius: mm around the centres of the planted network's regions; 45 reaches half of
            the brain's voxels, 22 a fifth.
        orientation: "RAS" as fMRIPrep writes it, or "LAS".
        ar1: lag-one autocorrelation of the smooth noise.
        smoothness: full width at half maximum of the smooth noise, mm.
        effect: what differs between the classes, of ``EFFECTS``.

    Raises:
        UserInputError: a value out of range, naming the flag.
    """

    subjects: int = 60
    frames: int = 40
    grid: tuple[int, ...] = (30, 36, 30)
    effect_size: float = 3.0
    seed: int = 0
    tr: float = 2.0
    tsnr: float = 10.0
    voxel_size: float = 0.0
    network_radius: float = 45.0
    orientation: str = "RAS"
    ar1: float = 0.4
    smoothness: float = 12.0
    effect: str = "dynamics"

    def __post_init__(self) -> None:
        look_up(self.orientation, ("RAS", "LAS"), "--orientation")
        look_up(self.effect, EFFECTS, "--effect")
        if len(self.grid) != 3 or min(self.grid) < 8:
            raise UserInputError(
                f"--grid: got {list(self.grid)}, expected three numbers X Y Z of 8 or more."
            )
        # 12 frames are one slow cycle; below a tSNR of 8 a voxel could fall to 0, the background.
        for flag, value, least in (
            ("subjects", self.subjects, 1),
            ("frames", self.frames, 12),
            ("effect_size", self.effect_size, 0),
            ("seed", self.seed, 0),
            ("tr", self.tr, 0.01),
            ("tsnr", self.tsnr, 8),
            ("voxel_size", self.voxel_size, 0),
            ("network_radius", self.network_radius, 1),
            ("ar1", self.ar1, 0),
            ("smoothness", self.smoothness, 0),
        ):
            if not math.isfinite(value) or value < least:
                raise UserInputError(f"--{flag}: got {value}, expected a number >= {least}.")
        if self.ar1 >= 1:
            raise UserInputError(f"--ar1: got {self.ar1}, expected a number below 1.")

    @property
    def voxel_mm(self) -> float:
        """Edge of a voxel, mm: 2.0 for 96x96x96, 5.8 for 30x36x30 unless ``voxel_size`` is set."""
        if self.voxel_size:
            return self.voxel_size
        needed = [1.04 * mm / (n - 2) for mm, n in zip(_BRAIN_EXTENT_MM, self.grid, strict=True)]
        return math.ceil(10 * max(needed)) / 10
