"""Runs of a store as they go wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from neuromamba.data.store.reader import RunFile
from tests.helpers.corpus.bad_file import BadFile
from tests.helpers.tiny import write_tiny_run


def run(change: Callable[[h5py.File, Path], object]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        path = folder / "sub-01.h5"
        write_tiny_run(path, "sub-01", 0)
        with h5py.File(path, "r+") as file:
            change(file, folder)
        found = RunFile(path)
        try:
            return found.read([0]), found.vox
        finally:
            found.close()

    return read


def attribute(name: str, value: Any) -> Callable[[Path], object]:
    return run(lambda file, _: file.attrs.__setitem__(name, value))


def _external_raw(file: h5py.File, folder: Path) -> None:
    shape, dtype = file["bold"].shape, file["bold"].dtype
    (folder / "private").write_bytes(b"secret" * 100_000)
    del file["bold"]
    size = int(np.prod(shape)) * dtype.itemsize
    file.create_dataset("bold", shape, dtype, external=[(str(folder / "private"), 0, size)])


def _external_link(file: h5py.File, folder: Path) -> None:
    write_tiny_run(folder / "other.h5", "sub-02", 1)
    del file["bold"]
    file["bold"] = h5py.ExternalLink(str(folder / "other.h5"), "/bold")


def _virtual(file: h5py.File, folder: Path) -> None:
    write_tiny_run(folder / "other.h5", "sub-02", 1)
    shape = file["bold"].shape
    layout = h5py.VirtualLayout(shape=shape, dtype="<i2")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "bold", shape=shape)
    del file["bold"]
    file.create_virtual_dataset("bold", layout)


def _soft_link(file: h5py.File, _: Path) -> None:
    file.move("bold", "elsewhere")
    file["bold"] = h5py.SoftLink("/elsewhere")


def _without_bold(file: h5py.File, _: Path) -> None:
    del file["bold"]


def _disorder(file: h5py.File, _: Path) -> None:
    file["vox"][:] = file["vox"][:][::-1]


def raw(content: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "sub-01.h5").write_bytes(content)
        return RunFile(folder / "sub-01.h5").header

    return read


RUNS = (
    BadFile("external raw file", run(_external_raw), "not a file of this store"),
    BadFile("external link", run(_external_link), "not a file of this store"),
    BadFile("virtual data set", run(_virtual), "not a file of this store"),
    BadFile("soft link", run(_soft_link), "not a file of this store"),
    BadFile("run without data", run(_without_bold), "/bold is nothing"),
    BadFile("voxels in disorder", run(_disorder), "sub-01.h5"),
    BadFile("two billion frames", attribute("n_frames", 2_000_000_000), "/bold is"),
    BadFile("frames below 0", attribute("n_frames", -1), "sub-01.h5"),
    BadFile("grid of 10^18 voxels", attribute("grid", [10**6] * 3), "damaged"),
    BadFile("scale that is no number", attribute("scale", np.nan), "not finite: scale"),
    BadFile("mean that is infinite", attribute("mean", np.inf), "not finite: mean"),
    BadFile("subject with a folder", attribute("subject", "../../x"), "the character U+002F"),
    BadFile("subject with a line break", attribute("subject", "a\nb"), "the character U+000A"),
    BadFile("subject of 10,000 letters", attribute("subject", "x" * 10_000), "of 10000 bytes"),
    BadFile("subject without a name", attribute("subject", ""), "has no name"),
    BadFile("another version", attribute("format_version", 99), "format version 99"),
    BadFile("no HDF5", raw(b"<html>Login</html>"), "sub-01.h5"),
    BadFile("empty run", raw(b""), "sub-01.h5"),
)
