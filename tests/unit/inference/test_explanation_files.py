"""Groups of maps: who is in which, runs of a subject are averaged, and where there are none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.normalisation import scaling_of
from neuromamba.data.store.reader import RunFile
from neuromamba.inference.attribution import baseline_value
from neuromamba.inference.explanation_files import group_name, members, write_groups
from tests.helpers.tiny import write_tiny_run

GRID, AFFINE = (2, 2, 3), np.diag([-2.0, 2.0, 2.0, 1.0])


def record(scan: str, subject: str, target: str | None) -> dict[str, Any]:
    return {"scan": scan, "subject": subject, "result": {"target": target}}


def test_groups_are_of_classes_and_of_all() -> None:
    records = [record(f"s{i}", f"sub-{i}", "FM"[i % 2]) for i in range(5)]
    found = members(records, "")
    assert {name: sorted(group) for name, group in found.items()} == {
        "predicted": [f"sub-{i}" for i in range(5)],
        "F": ["sub-0", "sub-2", "sub-4"],
        "M": ["sub-1", "sub-3"],
    }
    assert set(members(records[::2], "")) == {"F"}  # all subjects are in it
    assert set(members([*records[::2], records[1]], "")) == {"predicted", "F"}  # M is one subject
    assert set(members(records[:2], "F")) == set()
    assert set(members([record(f"s{i}", f"sub-{i}", "F") for i in range(2)], "F")) == {"F"}
    values = [record("a", "sub-1", None), record("b", "sub-1", None), record("c", "", None)]
    assert members(values, "") == {"value": {"sub-1": ["a", "b"], "c": ["c"]}}
    assert group_name("long covid / x") == "long_covid_x"


def keep(
    folder: Path, name: str, values: list[float], vox: list[int], affine: Any = AFFINE
) -> None:
    (folder / "scans").mkdir(exist_ok=True)
    np.savez(
        folder / "scans" / f"{name}.npz",
        values=np.array(values, np.float32),
        random=np.zeros(len(values), np.float32),
        vox=np.array(vox),
        grid=np.array(GRID),
        affine=affine,
        space=np.array("MNI152NLin6Asym"),
    )


def groups_of(folder: Path, records: list[dict[str, Any]], native: bool = False) -> Any:
    output: Any = SimpleNamespace(path=folder)
    return write_groups(output, records, wanted="", native=native, permutations=100, seed=0)


def test_runs_of_a_subject_count_once(tmp_path: Path) -> None:
    keep(tmp_path, "a1", [1, 2, 3], [0, 4, 7])
    keep(tmp_path, "a2", [3, 9, 5], [0, 5, 7])
    keep(tmp_path, "b", [10, 20, 30, 40], [0, 4, 5, 7])
    records = [record("a1", "a", None), record("a2", "a", None), record("b", "b", None)]
    (group,), why = groups_of(tmp_path, records)
    assert why == ""
    assert group.found.vox.tolist() == [0, 7]
    image = nibabel.load(tmp_path / "group_value_mean.nii.gz")
    np.testing.assert_allclose(image.affine, AFFINE)
    assert int(image.header["sform_code"]) == 4
    volume = np.asarray(image.dataobj).ravel()
    np.testing.assert_allclose(volume[[0, 7]], [(2 + 10) / 2, (4 + 40) / 2])
    assert np.count_nonzero(volume) == 2
    assert group.record()["rank_correlation_with_random_weights"] is None  # a constant


def test_scans_that_do_not_correspond_have_no_group(tmp_path: Path) -> None:
    keep(tmp_path, "a", [1.0], [0])
    keep(tmp_path, "c", [1.0], [0], np.diag([-3.0, 3.0, 3.0, 1.0]))
    both = [record("a", "a", "F"), record("c", "c", "F")]
    assert groups_of(tmp_path, both) == (
        [],
        "the scans lie on different grids, so their voxels do not correspond",
    )
    assert "native space" in groups_of(tmp_path, both, native=True)[1]
    assert "two subjects" in groups_of(tmp_path, both[:1])[1]
    assert not list(tmp_path.glob("group_*"))


@pytest.mark.parametrize(
    "method", ["znorm_minback", "znorm_zeroback", "minmax_zeroback", "voxelnorm_zeroback"]
)
def test_the_baseline_is_the_mean_of_the_scaled_run(tmp_path: Path, method: str) -> None:
    write_tiny_run(tmp_path / "run.h5", "sub-1", 0)
    file = RunFile(tmp_path / "run.h5")
    header: RunHeader = file.header
    found = baseline_value(header, method)
    if method.startswith("voxel"):
        assert found == 0
        return
    scaling = scaling_of(header, method)
    scaled = file.read(range(header.n_frames)) * scaling.gain + scaling.shift
    assert found == pytest.approx(scaled.mean(), abs=1e-4)
    assert (abs(found) < 1e-4) == method.startswith("znorm")
