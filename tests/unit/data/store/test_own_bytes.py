"""Run files whose data are elsewhere, or that claim more than they hold, are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.reference.hdf5 import FrameFile
from neuromamba.data.store.reader import RunFile, read_header
from neuromamba.reports.quality.request import QualityRequest
from neuromamba.reports.quality.store_page import quality
from tests.helpers.store_files import write_store_file

GRID = (6, 6, 6)
LAS = np.array([[-3.0, 0, 0, 9], [0, 3, 0, -6], [0, 0, 3, 1], [0, 0, 0, 1]])
FRAMES, VOXELS = 20, 31
Change = Callable[[h5py.File], None]


def make_run(path: Path, seed: int = 1) -> None:
    frames = np.random.default_rng(seed).normal(8000, 900, (FRAMES, VOXELS)).astype(np.float32)
    write_store_file(
        path, frames, np.arange(3, 3 + VOXELS), subject=path.stem, grid=GRID, affine=LAS, tr=0.72
    )


def other_file(file: h5py.File) -> Path:
    """A private file of another format beside the run, larger than the run's arrays."""
    path = Path(file.filename).with_name("private.bin")
    path.write_bytes(b"secret" * 1000)
    return path


def external_raw(name: str) -> Change:
    def change(file: h5py.File) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        size = int(np.prod(shape)) * dtype.itemsize
        file.create_dataset(name, shape, dtype, external=[(str(other_file(file)), 0, size)])

    return change


def external_link(file: h5py.File) -> None:
    path = Path(file.filename).with_name("other.h5")
    make_run(path, seed=2)
    del file["bold"]
    file["bold"] = h5py.ExternalLink(str(path), "/bold")


def soft_link(file: h5py.File) -> None:
    file.move("bold", "elsewhere")
    file["bold"] = h5py.SoftLink("/elsewhere")


def virtual(file: h5py.File) -> None:
    path = Path(file.filename).with_name("other.h5")
    make_run(path, seed=2)
    layout = h5py.VirtualLayout(shape=(FRAMES, VOXELS), dtype="<i2")
    layout[:] = h5py.VirtualSource(str(path), "bold", shape=(FRAMES, VOXELS))
    del file["bold"]
    file.create_virtual_dataset("bold", layout)


def statistics_elsewhere(file: h5py.File) -> None:
    file["voxel_mean"] = np.zeros(VOXELS, "<f4")
    size = 4 * VOXELS
    file.create_dataset("voxel_std", (VOXELS,), "<f4", external=[(str(other_file(file)), 0, size)])


def endless(chunks: tuple[int, int] | None) -> Change:
    def change(file: h5py.File) -> None:
        del file["bold"]
        n_frames = 2_000_000_000
        file.create_dataset("bold", (n_frames, VOXELS), "<i2", chunks=chunks)
        file.attrs["n_frames"] = n_frames

    return change


def attribute(name: str, value: object) -> Change:
    return lambda file: file.attrs.__setitem__(name, value)


ELSEWHERE: dict[str, Change] = {
    "bytes of another file": external_raw("bold"),
    "mask of another file": external_raw("vox"),
    "external link": external_link,
    "soft link": soft_link,
    "virtual": virtual,
    "statistics": statistics_elsewhere,
}
CLAIMED: dict[str, Change] = {
    "frames": endless(None),
    "frames in chunks": endless((4, VOXELS)),
    "grid": attribute("grid", np.array([10**5] * 3)),
    "no grid": attribute("grid", np.array([0, 6, 6])),
    "negative grid": attribute("grid", np.array([-6, -6, 6])),
    "scale": attribute("scale", np.nan),
    "offset": attribute("offset", np.inf),
    "mean": attribute("mean", np.nan),
}


@pytest.mark.parametrize("name", sorted(ELSEWHERE | CLAIMED))
def test_run_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "sub-1.h5"
    make_run(path)
    assert RunFile(path).raw_layout() is not None
    with h5py.File(path, "r+") as file:
        (ELSEWHERE | CLAIMED)[name](file)
    for call in (read_header, lambda p: RunFile(p).raw_layout(), lambda p: RunFile(p).read([0])):
        with pytest.raises(UserInputError, match=r"not a file of this store|is damaged"):
            call(path)


@pytest.mark.parametrize("kind", ["bytes", "link", "virtual"])
def test_files_of_the_reference_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(6 * 5 * 4 * 8, dtype="f4").reshape(8, 6, 5, 4)
        shape, dtype = file["data"].shape, file["data"].dtype
        del file["data"]
        if kind == "bytes":
            private = [(str(other_file(file)), 0, 3840)]
            file.create_dataset("data", shape, dtype, external=private)
        elif kind == "link":
            file["data"] = h5py.ExternalLink("other.h5", "/data")
        else:
            layout = h5py.VirtualLayout(shape=shape, dtype=dtype)
            layout[:] = h5py.VirtualSource("other.h5", "data", shape=shape)
            file.create_virtual_dataset("data", layout)
    with pytest.raises(UserInputError, match=r"another file|other files|no frames"):
        FrameFile(path, "first", None)


def test_quality_compares_hashes_when_asked(tmp_path: Path) -> None:
    (tmp_path / "hdf5").mkdir()
    for name in ("sub-1", "sub-2"):
        make_run(tmp_path / "hdf5" / f"{name}.h5", seed=int(name[-1]))
    with h5py.File(tmp_path / "hdf5" / "sub-2.h5", "r+") as file:
        file["bold"][3, 3] += 1
    said: list[str] = []

    def flags(**more: bool) -> dict[str, list[str]]:
        said.clear()
        request = QualityRequest(
            image_path=str(tmp_path),
            patch_size=(6, 6, 6, 2),
            sequence_length=4,
            num_workers=1,
            **more,  # type: ignore[arg-type]
        )
        rows = quality(request, said.append)
        return {row.run.path.stem: [flag.name for flag in row.flags] for row in rows}

    assert all("content" not in found for found in flags().values())
    assert any("--check_content" in line for line in said)
    page = (tmp_path / "quality" / "quality.html").read_text()
    assert "were not compared with the hashes" in page
    found = flags(check_content=True)  # though the numbers come from the cache
    assert "content" in found["sub-2"] and "content" not in found["sub-1"]
    assert any("of 1 runs are those of their hashes, of 1 not" in line for line in said)
