"""Pictures of attribution maps: slices, glass brain, and an interactive view."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
from matplotlib.figure import Figure

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.text import visible
from neuromamba.inference.explanation_files import ATTRIBUTION, MEAN
from neuromamba.inference.output_folder import SCANS
from neuromamba.pages.figures import styled
from neuromamba.pages.policy import with_policy

VIEW = "_view.html"
SHOWN = 90  # percentile of absolute values from which the glass brain shows them


@contextmanager
def _without_remarks() -> Iterator[None]:
    """nilearn remarks on its own defaults, and on maps of a constant.

    It also collects garbage for every image it draws. What is there before is left out of that, or
    it would take most of the time.
    """
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.unfreeze()


def _limit(image: nibabel.Nifti1Image) -> tuple[float, float]:
    """End of the colours, and from where on the largest tenth of the map lies."""
    values = np.abs(np.asarray(image.dataobj))
    inside = values[values > 0]
    if not inside.size:
        return 1.0, 0.5
    end, shown = np.percentile(inside, [99.5, SHOWN])
    return float(end), float(min(shown, 0.99 * end))


def _percent(image: nibabel.Nifti1Image) -> tuple[nibabel.Nifti1Image, float, float]:
    """A map in percent of the end of its colours, that end, and from where on it is shown."""
    end, shown = _limit(image)
    values = np.asarray(image.dataobj) * (100 / end)
    return nibabel.Nifti1Image(values.astype(np.float32), image.affine), 100.0, 100 * shown / end


def _load(path: Path) -> nibabel.Nifti1Image:
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Nifti1Image)
    return image


def map_figures(
    own: Path, random: Path, title: str, background: Path | None
) -> tuple[Figure, Figure]:
    """Slices and glass brain of a map, and those of random weights at the same place.

    They are two figures so that a phone shows one below the other.

    Args:
        own, random: NIfTI files of the maps.
        title: of the own one.
        background: mean image of a scan in native space, then without a glass brain; None for MNI.
    """
    from nilearn import plotting

    image = _load(own)
    with _without_remarks():
        cut = plotting.find_xyz_cut_coords(image)
    return (
        _map_figure(image, title, cut, background),
        _map_figure(_load(random), "random weights", cut, background),
    )


@styled
def _map_figure(
    image: nibabel.Nifti1Image, title: str, cut: Sequence[float], background: Path | None
) -> Figure:
    from nilearn import plotting

    rows = 2 if background is None else 1
    figure = Figure(figsize=(6.0, 3.0 * rows))
    end, shown = _limit(image)
    with _without_remarks():
        below = {} if background is None else {"bg_img": nibabel.load(background)}
        plotting.plot_stat_map(
            image,
            cut_coords=cut,
            threshold=end * 1e-3,
            vmax=end,
            cmap="RdBu_r",
            title=title,
            figure=figure,
            axes=(0, 1 - 1 / rows, 0.98, 0.97 / rows),
            draw_cross=False,
            symmetric_cbar=True,  # a map of one sign keeps red for and blue against
            alpha=0.8,
            **below,
        )
        if background is None:
            plotting.plot_glass_brain(
                image,
                display_mode="lyrz",
                threshold=shown,
                vmax=end,
                cmap="RdBu_r",
                plot_abs=False,
                colorbar=False,
                symmetric_cbar=True,
                figure=figure,
                axes=(0, 0, 0.98, 0.97 / rows),
            )
    return figure


def _title(name: str) -> str:
    """A name as nilearn may put it into its page: nothing in it can end or begin an element."""
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", visible(name))


def write_view(folder: Path, scan: str, native: bool = False) -> None:
    """Write the interactive page of a scan unless it is there; it needs no network.

    Args:
        folder: of the call.
        scan: whose map it shows.
        native: whether the scan is in native space, and lies on its own mean image.
    """
    from nilearn import plotting

    path, own = folder / f"{scan}{VIEW}", folder / f"{scan}{ATTRIBUTION}"
    if path.is_file() and path.stat().st_mtime >= own.stat().st_mtime:
        return
    image, end, shown = _percent(_load(own))
    below = {"bg_img": nibabel.load(folder / SCANS / f"{scan}{MEAN}")} if native else {}
    with _without_remarks():
        view = plotting.view_img(
            image,
            threshold=shown,
            vmax=end,
            cmap="RdBu_r",
            symmetric_cmap=True,
            title=_title(scan),
            **below,
        )
        with atomic_path(path) as temporary:
            temporary.write_text(with_policy(view.get_standalone()), encoding="utf-8")
