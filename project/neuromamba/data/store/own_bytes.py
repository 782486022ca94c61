"""HDF5 data that are in the file itself: links, raw files and virtual data sets lead elsewhere.

HDF5 can have a data set's bytes in any other file that the user can read, under names that the
file chooses. A store from somebody else could so show private files as images, and a training would
learn from data that no hash covers.
"""

from __future__ import annotations

import math
from typing import Any

_MOST_PACKED = 300  # times; Bitshuffle-LZ4 cannot pack more than 255 times
_LARGEST_GRID = 1 << 28  # voxels; at 0.5 mm a head has 58 million


def why_not_own(group: Any, name: str) -> str:
    """Why the data set of a group is not the file's own, whole and of its size; "" if it is.

    Args:
        group: h5py's file or group.
        name: of something in it.
    """
    link = type(group.get(name, getlink=True)).__name__
    if link != "HardLink":
        return f"/{name} is a {link}, which leads elsewhere"
    data = group[name]
    if not hasattr(data, "is_virtual"):
        return ""  # a group: what is in it is looked at by itself
    if data.external:
        return f"/{name} has its bytes in another file"
    if data.is_virtual:
        return f"/{name} is put together from other files"
    claimed, there = data.nbytes, data.id.get_storage_size()
    if claimed > (there if data.chunks is None else there * _MOST_PACKED):
        return f"/{name} of {data.shape} holds {there:,} bytes"
    return ""


def why_no_grid(grid: tuple[int, ...], voxels: int) -> str:
    """Why a grid cannot be one of images; "" if it can."""
    if min(grid) < 1 or math.prod(grid) > _LARGEST_GRID or not 0 < voxels <= math.prod(grid):
        return f"a grid of {grid} with {voxels} voxels"
    return ""
