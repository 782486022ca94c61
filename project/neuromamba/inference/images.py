"""Scans in memory: nibabel images and arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.inference.sources import ScanFile, scan_of, source_of_file


@contextmanager
def scan_of_image(image: Any, affine: Any, tr: float | None) -> Iterator[ScanFile]:
    """Make a file of an image or array for as long as it is prepared.

    Args:
        image: nibabel image, or array [X, Y, Z, T] of real numbers.
        affine: [4, 4] of an array; None for an image.
        tr: repetition time in seconds; needed for an array.

    Raises:
        UserInputError: something else; an array without affine or repetition time.
    """
    if isinstance(image, nibabel.spatialimages.SpatialImage):
        name = Path(image.get_filename() or "image.nii").name
    else:
        image, name = _image_of_array(image, affine, tr), "array.nii"
    for suffix in (".nii.gz", ".nii"):
        name = name.removesuffix(suffix)
    with TemporaryDirectory(prefix="neuromamba-") as folder:
        path = Path(folder) / f"{name}.nii"
        nibabel.save(image, path)
        yield scan_of(source_of_file(path))


def _image_of_array(values: Any, affine: Any, tr: float | None) -> nibabel.Nifti1Image:
    array = np.asarray(values)
    if array.ndim != 4 or array.dtype.kind not in "iuf":
        raise UserInputError(
            f"prepare: got {type(values).__name__} of shape {array.shape} and type {array.dtype}, "
            f"expected a path, a nibabel image or an array [X, Y, Z, T] of real numbers."
        )
    matrix = None if affine is None else np.asarray(affine, dtype=np.float64)
    if matrix is None or matrix.shape != (4, 4) or tr is None:
        raise UserInputError(
            "prepare: an array needs affine=[4, 4] (voxel indices -> mm) and tr=SECONDS, because "
            "orientation and time are not in it."
        )
    if array.dtype.itemsize > 4 or array.dtype == np.float16:
        array = array.astype(np.float32)
    image = nibabel.Nifti1Image(array, matrix)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = tr
    return image
