"""Scans in memory: nibabel images and arrays."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.inference.prepared import PreparedScan
from neuromamba.inference.sources import ScanFile, scan_of, source_of_file


def prepare_in_memory(
    image: Any, affine: Any, tr: float | None, prepare: Callable[[ScanFile], PreparedScan]
) -> PreparedScan:
    """Prepare an image or array, which is a file for as long as that takes.

    Args:
        image: nibabel image, or array [X, Y, Z, T] of real numbers.
        affine: [4, 4] of an array; None for an image.
        tr: repetition time in seconds; needed for an array.
        prepare: of a file.

    Raises:
        UserInputError: something else; an array without affine or repetition time; what
            ``prepare`` raises, without the file, of which the user knows nothing.
    """
    if isinstance(image, nibabel.spatialimages.SpatialImage):
        name = Path(image.get_filename() or "").name
        what = f"image in memory ({name})" if name else "image in memory"
        # ``save`` would give the user's own image the name of the temporary file.
        image = type(image)(image.dataobj, image.affine, image.header)
    else:
        image, name, what = _image_of_array(image, affine, tr), "array", "array in memory"
    stem = name.removesuffix(".gz").removesuffix(".nii") or "image"
    with TemporaryDirectory(prefix="neuromamba-") as folder:
        path = Path(folder) / f"{stem}.nii"
        nibabel.save(image, path)
        try:
            prepared = prepare(scan_of(source_of_file(path)))
        except UserInputError as error:
            named = f"{re.escape(str(path))}|{re.escape(path.name)}"
            raise UserInputError(re.sub(named, lambda _: what, str(error))) from None
    return dataclasses.replace(prepared, source=what)


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
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise UserInputError(
            "prepare: affine has numbers that are not finite, or no inverse, so places in mm are "
            "not defined. Give the affine of the image that the array came from (image.affine)."
        )
    if isinstance(tr, str):
        raise UserInputError(f"prepare: tr is the text '{tr}', expected seconds as a number.")
    if array.dtype.itemsize > 4 or array.dtype == np.float16:
        array = array.astype(np.float32)
    image = nibabel.Nifti1Image(array, matrix)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = tr
    return image
