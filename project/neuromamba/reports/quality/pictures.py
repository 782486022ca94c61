"""The pictures of a run on the quality page, small enough for a thousand runs in one file.

A run's slices of the temporal mean and of the temporal standard deviation lie in one grey WebP
image (the atlas), its carpet plot in a second one. What is drawn over the slices (outline of the
mask, dropped patches) travels as SVG paths in voxels, which stay sharp at any size; curves and the
histogram travel as numbers.
"""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from neuromamba.data.store.header import RunHeader, Triple
from neuromamba.pages.slices import slice_image, slice_letters
from neuromamba.reports.quality.measure import RunMeasured

# Slices by axis, at these shares of the grid: the same for all runs, so that runs compare.
SLICES = ((0, 0.5), (1, 0.5), (2, 0.35), (2, 0.5), (2, 0.65))
CURVE_POINTS = 200  # at most; longer runs are binned
_QUALITY, _CARPET_QUALITY = 60, 45


class Tile(NamedTuple):
    """A slice in the atlas.

    Attributes:
        axis, plane: of the slice; letters: at its left, right, bottom and top edge.
        x: left edge in the atlas; width, height: in the atlas, where pixels are square.
        columns, rows: voxels across and up.
    """

    axis: int
    plane: int
    letters: tuple[str, str, str, str]
    x: int
    width: int
    height: int
    columns: int
    rows: int


def tiles_of(header: RunHeader) -> list[Tile]:
    """Lay out the slices of a run in its atlas: side by side, at the top of their row.

    The smallest voxel edge is one pixel; longer edges are stretched, so that shapes are right.
    """
    voxel = voxel_size(header)
    tiles, x = [], 0
    for axis, share in SLICES:
        across, up = (i for i in range(3) if i != axis)
        columns, rows = header.grid[across], header.grid[up]
        width, height = (
            round(n * voxel[i] / min(voxel)) for n, i in ((columns, across), (rows, up))
        )
        index = min(int(header.grid[axis] * share), header.grid[axis] - 1)
        tiles.append(Tile(axis, index, slice_letters(axis), x, width, height, columns, rows))
        x += width
    return tiles


def voxel_size(header: RunHeader) -> tuple[float, float, float]:
    """Edges of a voxel in mm."""
    x, y, z = np.linalg.norm(np.array(header.affine)[:3, :3], axis=0)
    return float(x), float(y), float(z)


def grey_levels(volume: np.ndarray, mask: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 levels of a volume: ``low`` becomes 0, ``high`` 255, outside the mask 0."""
    span = high - low if high > low else 1.0
    scaled = ((volume - low) / span * 255).clip(0, 255)
    return np.where(mask, scaled, 0).astype(np.uint8)


def atlas(measured: RunMeasured, tiles: list[Tile]) -> Image.Image:
    """Mean (upper row) and standard deviation (lower row) of all tiles, superior or anterior up.

    The mean is shown from a little below its first percentile, so that brain is never black, to
    its 99th; the standard deviation from 0 to its 98th percentile.
    """
    mask = measured.mask
    first, last = np.percentile(measured.mean[mask], [1, 99])
    most = float(np.percentile(measured.std[mask], 98))
    volumes = (
        grey_levels(measured.mean, mask, first - 0.25 * (last - first), last),
        grey_levels(measured.std, mask, 0.0, most),
    )
    row = max(tile.height for tile in tiles)
    width = max(tile.x + tile.width for tile in tiles)
    sheet = Image.new("L", (width, 2 * row))
    for number, volume in enumerate(volumes):
        for tile in tiles:
            pixels = np.ascontiguousarray(slice_image(volume, tile.axis, tile.plane)[::-1])
            image = Image.fromarray(pixels)
            if image.size != (tile.width, tile.height):
                image = image.resize((tile.width, tile.height), Image.Resampling.BILINEAR)
            sheet.paste(image, (tile.x, number * row))
    return sheet


def outline(shape: np.ndarray) -> str:
    """The border of a shape as closed SVG paths along the edges of its pixels.

    Args:
        shape: bool [rows, columns], row 0 on top.
    """
    padded = np.pad(shape, 1)
    below, above = padded[1:, 1:-1], padded[:-1, 1:-1]
    right, left = padded[1:-1, 1:].T, padded[1:-1, :-1].T
    # Clockwise: with the shape below an edge leads right, with the shape above it left.
    leaving: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for letter, forward, edges in (
        ("h", True, below & ~above),
        ("h", False, above & ~below),
        ("v", False, right & ~left),
        ("v", True, left & ~right),
    ):
        for line, start, length in _stretches(edges):
            place = start if forward else start + length
            corner = (place, line) if letter == "h" else (line, place)
            leaving.setdefault(corner, []).append((letter, length if forward else -length))
    parts: list[str] = []
    while leaving:
        first = x, y = min(leaving)
        parts.append(f"M{x} {y}")
        while (x, y) in leaving:
            letter, length = leaving[x, y].pop()
            if not leaving[x, y]:
                del leaving[x, y]
            x, y = (x + length, y) if letter == "h" else (x, y + length)
            if (x, y) == first:
                parts.append("z")  # draws the last edge
                break
            parts.append(f"{letter}{length}")
    return "".join(parts)


def rectangles(shape: np.ndarray, width: int, height: int) -> str:
    """Cells of a coarse shape [rows, columns], each ``width`` x ``height``, as an SVG path."""
    return "".join(
        f"M{start * width} {line * height}h{length * width}v{height}h{-length * width}z"
        for line, start, length in _stretches(shape)
    )


def _stretches(lines: np.ndarray) -> list[tuple[int, int, int]]:
    """Line, start and length of the stretches of True in the rows of [lines, places]."""
    steps = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [
        (int(line), int(start), int(end - start))
        for (line, start), (_, end) in zip(starts, ends, strict=True)
    ]


def webp(image: Image.Image, quality: int) -> str:
    """An image as WebP in base64."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=5)
    return base64.b64encode(stream.getvalue()).decode()


def binned(values: np.ndarray, points: int = CURVE_POINTS) -> np.ndarray:
    """A curve [T] on at most ``points`` points; each takes the value furthest from the median.

    So a single frame that sticks out stays visible, however long the run.
    """
    if values.size <= points:
        return values
    distance = np.abs(values - np.median(values))
    edges = np.linspace(0, values.size, points + 1).astype(np.int64)
    chosen = [a + int(distance[a:b].argmax()) for a, b in pairwise(edges)]
    return values[chosen]


def carpet_image(carpet: np.ndarray) -> Image.Image:
    """A carpet [G, T]: each row less its mean; grey 0 to 255 is -2 to 2 standard deviations.

    The standard deviation is a robust one (of the middle half), so that a spike does not hide
    the rest.
    """
    change = carpet - carpet.mean(axis=1, keepdims=True)
    if carpet.shape[1] > CURVE_POINTS:
        change = np.apply_along_axis(binned, 1, change)
    low, high = np.percentile(change, [25, 75])
    spread = (high - low) / 1.349 or 1.0
    return Image.fromarray(((change / spread + 2) / 4 * 255).clip(0, 255).astype(np.uint8))


def _rounded(values: np.ndarray, digits: int = 3) -> list[float]:
    """Numbers with a few significant digits: a page holds many."""
    return [float(f"{value:.{digits}g}") for value in values]


def picture_of(header: RunHeader, measured: RunMeasured, patch: Triple) -> dict[str, Any]:
    """Everything the page draws of a run, ready for JSON.

    Keys: ``atlas`` and ``carpet`` (WebP, base64), ``height`` of a row of the atlas, ``tiles`` (with
    ``mask``, ``dropped`` paths and ``patch`` in voxels), ``global`` and ``difference`` (curves),
    ``histogram`` (low, high, shares) or None.
    """
    tiles = tiles_of(header)
    found = measured.statistics
    drawn = []
    for tile in tiles:
        across, up = (i for i in range(3) if i != tile.axis)
        flat = slice_image(measured.mask, tile.axis, tile.plane)[::-1]
        entry: dict[str, Any] = tile._asdict() | {"mask": outline(flat)}
        if measured.kept is not None:
            place = tile.plane // patch[tile.axis]
            dropped = ~slice_image(measured.kept, tile.axis, place)[::-1]
            entry["dropped"] = rectangles(dropped, patch[across], patch[up])
            entry["patch"] = [patch[across], patch[up]]
        drawn.append(entry)
    usual = float(np.median(found.difference)) if found.difference.size else 0.0
    spread = header.std or 1.0
    histogram = measured.histogram
    return {
        "atlas": webp(atlas(measured, tiles), _QUALITY),
        "carpet": webp(carpet_image(found.carpet), _CARPET_QUALITY),
        "height": max(tile.height for tile in tiles),
        "tiles": drawn,
        "global": _rounded(binned((found.global_signal - header.mean) / spread)),
        "difference": _rounded(binned(found.difference / (usual or 1.0))),
        "histogram": None
        if histogram is None
        else {
            "low": histogram.low,
            "high": histogram.high,
            "shares": _rounded(histogram.shares),
        },
    }
