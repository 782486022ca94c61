"""Images of labels and the names beside them."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.atlases import ATLASES, chosen_atlas, read_atlas

BAD_NAMES = {
    "index,name\n1,a\n1,b\n2,c\n": "has the index '1' (b); expected whole numbers from 1 on, each",
    "index,name\n0,a\n1,b\n2,c\n": "has the index '0' (a)",
    "index,name\n-1,a\n1,b\n2,c\n": "has the index '-1' (a)",
    "index,name\n1.5,a\n1,b\n2,c\n": "has the index '1.5' (a)",
    "index,name\n,a\n1,b\n2,c\n": "has the index '' (a)",
    "index,name\n1,a\n": "has no row of the image's labels 2",
    "number,name\n1,a\n": "has the columns number, name, expected index and name",
    "": "the file is empty",
}


@pytest.mark.parametrize("text", BAD_NAMES)
def test_names_of_regions_that_do_not_fit(tmp_path: Path, text: str) -> None:
    nib.save(nib.Nifti1Image(np.arange(3, dtype=np.int16).reshape(3, 1, 1), np.eye(4)),
             tmp_path / "a.nii.gz")  # fmt: skip
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserInputError, match=re.escape(BAD_NAMES[text])):
        read_atlas(tmp_path / "a.nii.gz")


def test_names_of_regions(tmp_path: Path) -> None:
    """Semicolons, a background row, 2.0 for 2, and a label without voxels."""
    nib.save(nib.Nifti1Image(np.arange(3, dtype=np.int16).reshape(3, 1, 1), np.eye(4)),
             tmp_path / "a.nii.gz")  # fmt: skip
    (tmp_path / "a.csv").write_text("index;name\n0;Background\n2.0;b\n7;none\n1;a\n")
    atlas = read_atlas(tmp_path / "a.nii.gz")
    assert (atlas.ids, atlas.regions) == ((2, 7, 1), ("b", "none", "a"))


BAD_ATLASES = {
    "zeros": (np.zeros((3, 3, 3), np.int16), "has no region"),
    "negative": (np.full((3, 3, 3), -1, np.int16), "expected one volume of whole numbers"),
    "huge": (np.full((3, 3, 3), 2**30, np.int32), "expected one volume of whole numbers up to"),
    "NaN": (np.full((3, 3, 3), np.nan, np.float32), "expected one volume of whole numbers"),
    "truncated": (np.random.default_rng(0).integers(0, 9, (30, 30, 30)).astype(np.int16),
                  "truncated or corrupt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ATLASES)
def test_images_that_are_no_atlas(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.nii.gz"
    values, message = BAD_ATLASES[name]
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserInputError, match=f"^--atlas: .*{message}"):
        read_atlas(path)


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy at which nobody listens, and an empty cache of nilearn."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn"))


@pytest.mark.parametrize("name", ATLASES)
def test_no_network(
    name: str, no_network: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    remedy = r"Give an image of its labels, --atlas FILE\.nii\.gz, or put one at '"
    with pytest.raises(UserInputError, match=f"^--atlas: {name} is not on .*{remedy}"):
        chosen_atlas(name, tmp_path)
    assert capfd.readouterr() == ("", "")  # nilearn tells what it tries unless asked not to


def test_an_atlas_by_name_or_file(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="'Talairach' is no file and none of Schaefer400, AA"):
        chosen_atlas("Talairach", tmp_path)
    with pytest.raises(UserInputError, match=r"'gone\.nii' does not exist"):
        chosen_atlas("gone.nii", tmp_path)
    (tmp_path / "atlases").mkdir()
    nib.save(nib.Nifti1Image(np.arange(3, dtype=np.int16).reshape(3, 1, 1), np.eye(4)),
             tmp_path / "atlases" / "AAL116.nii.gz")  # fmt: skip
    assert chosen_atlas("AAL116", tmp_path).name == "AAL116"
    assert chosen_atlas(tmp_path / "atlases" / "AAL116.nii.gz", tmp_path).name == "AAL116"
