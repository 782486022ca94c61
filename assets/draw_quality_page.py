"""Draws quality_page.png: the quality page of a synthetic store with planted faults.

    python assets/draw_quality_page.py

needs Chromium for the screenshot; the page itself is made without it. Sixteen synthetic subjects
are converted as usual. The template's two sides are alike, so a made-up receive coil makes the
left front of every brain brighter; then five runs are spoilt.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from neuromamba.data.ingest.convert import ConversionOptions
from neuromamba.data.ingest.folder import convert_folder
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.reader import RunFile
from neuromamba.data.store.writer import write_run
from neuromamba.data.synthetic.runs import write_nifti_dataset
from neuromamba.data.synthetic.spec import SyntheticSpec
from neuromamba.reports.quality.request import QualityRequest
from neuromamba.reports.quality.store_page import quality

GRID = (48, 54, 48)
FRAMES = 60
WIDTH, HEIGHT = 1280, 2150
COLOURS = 128  # of the PNG, which would be three times as large in full colour

Spoil = Callable[[np.ndarray], np.ndarray]


def moved(volumes: np.ndarray, shift: tuple[int, int, int]) -> np.ndarray:
    """Volumes [X, Y, Z, T] moved by whole voxels; what leaves on one side enters on the other."""
    return np.roll(volumes, shift, axis=(0, 1, 2))


def jolted(volumes: np.ndarray) -> np.ndarray:
    """The head nods between two frames."""
    out = volumes.copy()
    out[..., 40] = moved(volumes, (0, 0, 1))[..., 40] * (volumes[..., 40] > 0)
    return out


FAULTS: dict[int, tuple[Spoil, float]] = {
    3: (lambda v: v[::-1], 2.0),  # left and right exchanged
    6: (lambda v: moved(v, (0, 3, 2)), 2.0),  # registered badly
    9: (jolted, 2.0),
    12: (lambda v: v[..., :34], 2.0),  # stopped early
    14: (lambda v: v, 2.5),  # another TR
}


def spoil(path: Path, number: int, coil: np.ndarray) -> None:
    """Write a run again with the coil's profile and, if it is one of ``FAULTS``, its fault."""
    run = RunFile(path)
    header = run.header
    frames = run.read(range(header.n_frames)) * header.scale + header.offset
    volumes = np.zeros((*GRID, header.n_frames), dtype=np.float32)
    volumes.reshape(-1, header.n_frames)[run.vox] = frames.T
    run.close()
    change, tr = FAULTS.get(number, (lambda v: v, header.tr))
    volumes = change(volumes * coil[..., None])
    mask = (volumes > 0).any(axis=-1)
    write_run(
        path,
        np.ascontiguousarray(volumes[mask].T),
        np.flatnonzero(mask),
        grid=GRID,
        affine=header.affine,
        source=RunSource(
            subject=header.subject,
            task=header.task,
            tr=tr,
            mask_source=header.mask_source,
            space="MNI152NLin2009aSym",
        ),
    )


def screenshot(page: Path, picture: Path) -> None:
    """Let Chromium draw the upper part of a page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit(f"error: no chromium for the screenshot; the page is {page}")
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update"]
        flags += ["--disable-sync", "--hide-scrollbars", "--virtual-time-budget=5000"]
        flags += [f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"]
        command = [browser, *flags, f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)


def main() -> None:
    """Make store, page and picture."""
    place = (np.indices(GRID).T / (np.array(GRID) - 1)).T - 0.5
    coil = 1 + 0.25 * place[0] + 0.15 * place[1]  # LAS: brighter to the left and front
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "demo_store"
        spec = SyntheticSpec(subjects=16, frames=FRAMES, grid=GRID, effect_size=0.5, tsnr=60)
        write_nifti_dataset(spec, Path(folder) / "nifti")
        convert_folder(Path(folder) / "nifti", store, ConversionOptions(img_size=GRID))
        for number, path in enumerate(sorted((store / "hdf5").glob("*.h5"))):
            spoil(path, number, coil)
        page = Path(folder) / "quality.html"
        quality(QualityRequest(image_path=str(store), output=str(page)))
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(f"{folder}/", ""), encoding="utf-8")
        screenshot(page, Path(__file__).with_name("quality_page.png"))


if __name__ == "__main__":
    main()
