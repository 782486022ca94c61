"""Association maps of terms, and their means over regions."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import resample_to_img

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.atlases import Atlas, read_atlas
from neuromamba.data.synthetic.regions import write_atlas
from neuromamba.neurossm.neurosynth import FILES, FOLDER, Database, database
from neuromamba.neurossm.reference_maps import region_means
from tests.helpers.neurosynth_files import needs_nimare, write_database

pytestmark = needs_nimare
TERMS = ("motor", "theory mind")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="module")
def places(folder: Path) -> dict[str, np.ndarray]:
    return write_database(folder, TERMS)


@pytest.fixture(scope="module")
def base(folder: Path, places: dict[str, np.ndarray]) -> Database:
    return database(folder)


@pytest.mark.parametrize("term", TERMS)
def test_a_map_is_highest_where_the_studies_about_it_report(
    base: Database, places: dict[str, np.ndarray], term: str
) -> None:
    image = base.z_map(term)
    values = np.asanyarray(image.dataobj)
    for other, place in places.items():
        at = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), place)).astype(int)
        z = values[tuple(at)]
        assert z > 3 if other == term else z < 0, (other, z)


@pytest.mark.parametrize("term", TERMS)
def test_means_over_regions(base: Database, tmp_path: Path, term: str) -> None:
    """By hand on the atlas's grid; a region without voxels is 0."""
    write_atlas(tmp_path / "a.nii.gz", 30)
    atlas = read_atlas(tmp_path / "a.nii.gz")
    atlas = Atlas(atlas.name, atlas.image, (*atlas.ids, 99), (*atlas.regions, "nowhere"))
    image = base.z_map(term)
    moved = resample_to_img(image, atlas.image, copy_header=True, force_resample=True)
    labels, values = atlas.labels(), np.asanyarray(moved.dataobj)
    wanted = [values[labels == i].mean() for i in atlas.ids[:-1]]
    found = region_means(image, atlas)
    np.testing.assert_allclose(found, [*wanted, 0], atol=1e-4)
    assert atlas.sizes()[-1] == 0 and np.isnan(atlas.centres()[-1]).all()


def test_terms_that_it_does_not_have(base: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert base.known(["motor", "motr"], "X, A") == ["motor"]
    assert "'motr' is not in the vocabulary; it has motor" in capsys.readouterr().out
    with pytest.raises(UserInputError, match=r"^--terms: X, A: none of motr"):
        base.known(["motr"], "X, A")


def test_files_that_are_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("nimare.extract.fetch_neurosynth", unreachable)
    with pytest.raises(UserInputError, match=r"^--data_dir: Neurosynth could not be downloaded"):
        database(tmp_path)
    write_database(tmp_path, TERMS)
    (tmp_path / FOLDER / FILES["features"]).unlink()
    with pytest.raises(UserInputError, match=r"^--data_dir: .* lacks .*features.npz. Copy all"):
        database(tmp_path)
    write_database(tmp_path, TERMS)
    (tmp_path / FOLDER / FILES["coordinates"]).write_bytes(b"\x1f\x8bno")
    with pytest.raises(UserInputError, match=r"^--data_dir: .* cannot be read"):
        _ = database(tmp_path).dataset
