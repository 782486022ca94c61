"""Slices of LAS volumes, the way every picture of this project shows them; numpy only.

Neurological convention: the subject's left is on the left side of coronal and axial slices.
"""

from __future__ import annotations

import numpy as np

# Image left, right, bottom, top of a slice perpendicular to X (sagittal), Y (coronal), Z (axial).
_LETTERS = (("P", "A", "I", "S"), ("L", "R", "I", "S"), ("L", "R", "P", "A"))


def slice_image(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice of an LAS volume [X, Y, Z] as image rows [height, width] for ``origin="lower"``.

    Args:
        volume: [X, Y, Z].
        axis: 0 sagittal (posterior left, anterior right), 1 coronal, 2 axial (both with the
            subject's left on the left side); superior, or anterior in an axial slice, is up.
        index: of the slice.
    """
    image = np.take(volume, index, axis=axis).T
    return image if axis == 0 else image[:, ::-1]


def slice_letters(axis: int) -> tuple[str, str, str, str]:
    """Directions at the left, right, bottom and top edge of ``slice_image``."""
    return _LETTERS[axis]
