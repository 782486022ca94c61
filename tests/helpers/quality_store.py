"""Small stores of made-up brains whose left and right differ, with whatever fault is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from neuromamba.data.store.reader import RunHeader
from tests.helpers.store_files import write_store_file

GRID = (24, 30, 24)
AFFINE = np.array([[-4.0, 0, 0, 46], [0, 4, 0, -58], [0, 0, 4, -46], [0, 0, 0, 1.0]])
# Bright and dark regions, none of which has its like on the other side: place, size, amplitude.
REGIONS = (
    ((15, 21, 13), 4, 500),
    ((9, 8, 15), 3, 400),
    ((17, 12, 8), 3, -400),
    ((8, 19, 9), 4, -300),
)


def brain(
    number: int, shift: tuple[int, int, int] = (0, 0, 0), larger: float = 1.0, flip: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Mask bool and mean image [X, Y, Z] of a subject.

    Args:
        number: the subject; masks and images differ a little between subjects.
        shift: of the brain in the grid, voxels.
        larger: volume of the mask relative to the usual one.
        flip: exchange left and right.
    """
    rng = np.random.default_rng([7, number])
    places = np.indices(GRID) - np.reshape(shift, (3, 1, 1, 1))
    centre = (np.reshape(GRID, (3, 1, 1, 1)) - 1) / 2
    radii = np.array([8.0, 10.0, 8.0]) * larger ** (1 / 3) * rng.uniform(0.98, 1.02, 3)
    mask = (((places - centre) / radii.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) <= 1
    field = ndimage.gaussian_filter(rng.standard_normal(GRID), 2)
    image = 3000 + 100 * field / field.std()
    for place, size, amplitude in REGIONS:
        distance = ((places - np.reshape(place, (3, 1, 1, 1))) ** 2).sum(axis=0)
        image += amplitude * np.exp(-distance / (2 * size**2))
    return (mask[::-1], image[::-1]) if flip else (mask, image)


def write_brain(
    folder: Path,
    subject: str,
    number: int,
    *,
    frames: int = 40,
    spike: int | None = None,
    noise: float = 60.0,
    constant: float = 0.0,
    name: str = "",
    shift: tuple[int, int, int] = (0, 0, 0),
    larger: float = 1.0,
    flip: bool = False,
    **fields: Any,
) -> RunHeader:
    """Write ``folder/hdf5/<subject>.h5``.

    Args:
        frames: length; spike: a frame that is 50 % brighter in half of the brain.
        noise: standard deviation in time.
        constant: share of the voxels that are 0 throughout.
        name: of the file instead of the subject's.
        shift, larger, flip: see ``brain``; fields: of ``write_run``.
    """
    (folder / "hdf5").mkdir(parents=True, exist_ok=True)
    mask, image = brain(number, shift, larger, flip)
    vox = np.flatnonzero(mask)
    rng = np.random.default_rng([8, number])
    bold = image.ravel()[vox] + noise * rng.standard_normal((frames, len(vox)))
    if spike is not None:
        bold[spike, ::2] *= 1.5
    bold[:, : int(constant * len(vox))] = 0
    settings: dict[str, Any] = {"grid": GRID, "affine": AFFINE, "tr": 2.0, "space": "made-up"}
    return write_store_file(
        folder / "hdf5" / f"{name or subject}.h5",
        bold.astype(np.float32),
        vox,
        subject=subject,
        **settings | fields,
    )


# What is wrong with a run -> how it is made, and the flag that must find it.
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "flipped": ({"flip": True}, "left-right flip"),
    "shifted": ({"shift": (0, 3, 2)}, "mask overlap"),
    "spike": ({"spike": 17}, "largest jump"),
    "short": ({"frames": 24}, "frames"),
    "slow": ({"tr": 3.0}, "TR"),
    "large": ({"larger": 2.0}, "kept tokens"),
    "noisy": ({"noise": 150.0}, "temporal SNR"),
    "dead": ({"constant": 0.05}, "constant voxels"),
    "native": ({"space": "native"}, "space"),
    "cropped": ({"cropped_voxels": 400}, "cropped"),
}
HEALTHY = 14


def write_store(folder: Path, faults: bool = True) -> None:
    """A store of 14 healthy runs and, if asked for, one run with each of ``FAULTS``."""
    for number in range(HEALTHY):
        write_brain(folder, f"sub-{number + 1:02d}", number)
    for number, (name, (changes, _)) in enumerate(FAULTS.items() if faults else ()):
        write_brain(folder, f"sub-{name}", 100 + number, **changes)
