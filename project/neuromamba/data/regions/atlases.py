"""Atlases: which voxels are which region, by name, from the data folder or through nilearn."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import category, some_of
from neuromamba.config.names import ATLAS_NAMES
from neuromamba.data.cohorts.tables import read_table
from neuromamba.data.ingest.nifti import HIGHEST_LABEL, read_labels

DATA_DIR = Path("Dataset/Data")  # of NeuroSSM, as in the paper's README
FOLDER = "atlases"


@dataclass(frozen=True)
class Atlas:
    """A parcellation.

    Attributes:
        name: of the atlas.
        image: labels, in MNI space.
        ids: N values of the image, in the order of the regions; one may have no voxel.
        regions: N names.
    """

    name: str
    image: nib.Nifti1Image
    ids: tuple[int, ...]
    regions: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Hash of voxels and geometry."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(self.image.affine.tobytes() + repr(self.ids).encode())
        digest.update(self.labels().tobytes())
        return digest.hexdigest()

    def labels(self) -> np.ndarray:
        """int32 [X, Y, Z]."""
        return np.asanyarray(self.image.dataobj).astype(np.int32)

    def sizes(self) -> np.ndarray:
        """int [N] voxels of each region."""
        counts = np.bincount(self.labels().ravel(), minlength=max(self.ids) + 1)
        return counts[list(self.ids)]

    def centres(self) -> np.ndarray:
        """float [N, 3] centre of each region in mm; NaN for one without voxels."""
        from scipy.ndimage import center_of_mass

        labels = self.labels()
        found = np.full((len(self.ids), 3), np.nan)
        present = np.flatnonzero(self.sizes())
        places = center_of_mass(labels > 0, labels, [self.ids[i] for i in present])
        found[present] = nib.affines.apply_affine(self.image.affine, np.array(places))
        return found

    def image_of(self, values: np.ndarray, dtype: Any = np.float32) -> nib.Nifti1Image:
        """A volume whose regions have the values [N]; 0 elsewhere."""
        labels = self.labels()
        volume = np.zeros(labels.shape, dtype=dtype)
        for value, region in zip(values, self.ids, strict=True):
            volume[labels == region] = value
        image = nib.Nifti1Image(volume, self.image.affine)
        image.header.set_data_dtype(dtype)
        image.header.set_xyzt_units("mm")
        image.set_sform(self.image.affine, code=4)  # MNI
        image.set_qform(self.image.affine, code=4)
        return image


def _schaefer() -> Any:
    from nilearn.datasets import fetch_atlas_schaefer_2018

    return fetch_atlas_schaefer_2018(n_rois=400, yeo_networks=7, resolution_mm=2, verbose=0)


def _aal(version: str) -> Callable[[], Any]:
    def fetch() -> Any:
        from nilearn.datasets import fetch_atlas_aal

        return fetch_atlas_aal(version, verbose=0)

    return fetch


# Name -> nilearn's download.
ATLASES: Mapping[str, Callable[[], Any]] = {
    "Schaefer400": _schaefer,
    "AAL3v2": _aal("3v2"),
    "AAL116": _aal("SPM12"),
}
assert tuple(ATLASES) == ATLAS_NAMES


def spare_collections() -> None:
    """Leave what is in memory out of garbage collection.

    nilearn collects whenever it looks at an image, eight times to average one over regions; where
    torch has been imported, each takes a quarter of a second.
    """
    gc.freeze()


def find_atlas(
    name: str | None, rois: int | None, data_dir: Path, given: Path | None = None
) -> Atlas:
    """The atlas of a data set.

    Looked for in this order: ``--atlas FILE``; ``<data_dir>/atlases/<name>.nii.gz``; nilearn's
    download, kept in its own cache. Names of regions stand beside an image in ``<name>.csv`` with
    the columns ``index`` and ``name``; without it regions are the values of the image in order.

    Raises:
        UserInputError: it is nowhere, or has another number of regions.
    """
    local = given or data_dir / FOLDER / f"{name}.nii.gz"
    if local.is_file():
        atlas = read_atlas(local)
    elif given is not None:
        raise UserInputError(f"--atlas: '{given}' does not exist.")
    elif name is None or name not in ATLASES:
        known = ", ".join(ATLASES)
        found = f"'{name}' is no file and none of {known}" if name else "this data set names none"
        raise UserInputError(f"--atlas: {found}; give an image of labels.")
    else:
        atlas = _download(name, local)
    if rois is not None and len(atlas.ids) != rois:
        raise UserInputError(
            f"--atlas: '{atlas.name}' has {len(atlas.ids)} regions, the time series have {rois}."
        )
    return atlas


def chosen_atlas(name: str | Path, data_dir: Path = DATA_DIR) -> Atlas:
    """The atlas of ``--atlas``: one of ``ATLASES`` or of the data folder by name, or an image.

    Raises:
        UserInputError: there is no such atlas or file, or it cannot be downloaded.
    """
    path = Path(name)
    if str(name) in ATLASES:
        return find_atlas(str(name), None, data_dir)
    if path.is_file():
        return read_atlas(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        return find_atlas(str(name), None, data_dir)
    raise UserInputError(f"--atlas: '{name}' does not exist.")


def read_atlas(path: Path) -> Atlas:
    """An image of labels, with the table beside it.

    Raises:
        UserInputError: it cannot be read, or has no integer labels in three dimensions.
    """
    image = read_labels(path, "--atlas")
    present = [int(value) for value in np.unique(image.dataobj) if value]
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    table = path.with_name(name + ".csv")
    names = _names(table, present) if table.is_file() else {one: str(one) for one in present}
    return Atlas(name, image, tuple(names), tuple(names.values()))


def _names(path: Path, present: list[int]) -> dict[int, str]:
    """Label -> name of ``<name>.csv``, in its order, which may have more labels than the image."""
    table = read_table(path)
    if {"index", "name"} - set(table.columns):
        raise UserInputError(
            f"--atlas: '{path}' has the columns {some_of(table.columns)}, expected index and name."
        )
    found: dict[int, str] = {}
    for text, name in zip(table.column("index", ""), table.column("name", ""), strict=True):
        label = category(text)
        if label == "0" and name.lower() == "background":
            continue
        if not label.isdecimal() or not 0 < int(label) <= HIGHEST_LABEL or int(label) in found:
            raise UserInputError(
                f"--atlas: '{path}' has the index '{text}' ({name}); expected whole numbers from 1 "
                f"on, each once."
            )
        found[int(label)] = name
    nameless = [label for label in present if label not in found]
    if nameless:
        raise UserInputError(
            f"--atlas: '{path}' has no row of the image's labels {some_of(nameless)}. Add them, or "
            f"set those voxels to 0."
        )
    return found


def _download(name: str, local: Path) -> Atlas:
    try:
        found = ATLASES[name]()
    except Exception as error:  # requests, urllib and nilearn raise their own
        raise UserInputError(
            f"--atlas: {name} is not on this machine and could not be downloaded "
            f"({type(error).__name__}). Give an image of its labels, --atlas FILE.nii.gz, or put "
            f"one at '{local}'."
        ) from None
    image: Any = nib.load(found.maps) if isinstance(found.maps, str | Path) else found.maps
    data = np.asanyarray(image.dataobj).astype(np.int32)
    table = found.lut[found.lut["index"] != 0]
    ids = tuple(map(int, table["index"]))
    return Atlas(name, nib.Nifti1Image(data, image.affine), ids, tuple(map(str, table["name"])))
