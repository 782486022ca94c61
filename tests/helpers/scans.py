"""Small NIfTI runs over the field of view of MNI space, and folders of the usual layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from neuromamba.data.store.header_cache import CACHE
from neuromamba.data.store.reader import list_runs

SHAPE = (12, 14, 12)
# Voxels of 16 mm over x -96..96, y -130..94, z -78..114 mm, LAS as the data of FSL and HCP.
LAS = np.array([[-16.0, 0, 0, 88], [0, 16, 0, -122], [0, 0, 16, -70], [0, 0, 0, 1]])
RAS = LAS @ np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
GRID = ["--img_size", "12", "12", "12"]


def brain(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """An ellipsoid over two thirds of each axis, bool [X, Y, Z]."""
    axes = [(np.arange(n) - (n - 1) / 2) / (n / 3) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < 1


def scan(seed: int = 0, frames: int = 24, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A run with zeros around the brain, int16 [X, Y, Z, T]; each seed gives another one."""
    rng = np.random.default_rng(seed)
    values = rng.normal(1000, 100, (*shape, frames)).clip(1, 3000)
    return (values * brain(shape)[..., None]).astype(np.int16)


def save(
    path: Path, values: np.ndarray, affine: Any = LAS, *, tr: float = 2.0, code: int = 4
) -> Path:
    """Write an image; ``code`` says its space (4: MNI152, 1: scanner, 0: none)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim == 4:
        image.header["pixdim"][4] = tr
    nibabel.save(image, path)
    return path


def save_mask(path: Path, affine: Any = LAS) -> Path:
    """The brain's mask."""
    return save(path, brain().astype(np.uint8), affine)


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store by its name: two stores are the same if these are."""
    # The cache of headers holds times of change, which differ.
    paths = [path for path in store.rglob("*") if path.is_file() and path.name != CACHE]
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in paths}


def names_in(store: Path) -> list[str]:
    """Runs of a store."""
    return [path.name.removesuffix(".h5") for path in list_runs(store)]
