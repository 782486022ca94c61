"""Finds and opens runs in the layouts of the reference; reads the one with a file per frame.

    img/<subject>/frame_<t>.pt, global_stats.pt    torch tensors [X, Y, Z] or [X, Y, Z, 1]
    hdf5/<subject>.h5                              see reference_hdf5.py

Neither holds TR, orientation or affine.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.filenames import name_run
from neuromamba.data.ingest.nifti import file_sha256
from neuromamba.data.ingest.reference.hdf5 import FrameFile, is_store_file
from neuromamba.data.ingest.reference.run import (
    ReferenceRun,
    damaged_source,
    known_statistics,
    refuse_gaps,
    size_of,
    volume_shape,
)
from neuromamba.data.ingest.sources import Source, refuse_shared_names
from neuromamba.data.store.header import Triple

_FRAME = re.compile(r"frame_(\d+)\.pt")
_HDF5_SUFFIXES = (".h5", ".hdf5")


def find_runs(folder: str | Path, store: str | Path) -> list[Source]:
    """All runs of the reference's layouts below a folder, sorted by path.

    Args:
        folder: searched recursively for folders with ``frame_<t>.pt``, and for ``*.h5``.
        store: the run files of the store to write; its own files are no input.

    Raises:
        UserInputError: no such folder, nothing in it, or the store would replace the input.
    """
    root, own = Path(folder), Path(store).resolve()
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise UserInputError(f"--input: '{root}' {found}; expected a folder of the reference's.")
    stems: dict[Path, str] = {}
    for parent, folders, files in os.walk(root, onerror=_refuse_folder):
        folders.sort()
        here = Path(parent)
        if any(map(_FRAME.fullmatch, files)):
            stems[here] = here.absolute().name
        for name in sorted(files):
            if name.startswith(".") or not name.endswith(_HDF5_SUFFIXES):
                continue
            if here.resolve() != own:
                stems[here / name] = here.joinpath(name).stem
            elif not is_store_file(here / name):
                raise UserInputError(
                    f"--output: '{here}' holds the input '{name}', whose place the store's file "
                    f"would take. Choose another folder."
                )
    if not stems:
        raise UserInputError(
            f"--input: neither folders with frame_<t>.pt nor *.h5 in '{root}' or below. NIfTI "
            f"files are converted by neuromamba preprocess."
        )
    if root in stems:  # it is one run itself; a Source is named relative to a folder above it
        stems = {path.absolute(): stem for path, stem in stems.items()}
        root = root.absolute().parent
    paths = sorted(stems)
    return refuse_shared_names(
        [
            Source(path=p, name=p.relative_to(root).as_posix(), **name_run(stems[p])._asdict())
            for p in paths
        ]
    )


def _refuse_folder(error: OSError) -> None:
    raise UserInputError(f"--input: '{error.filename}' cannot be read ({error.strerror}).")


def open_run(path: Path, time_axis: str | None = None, grid: Triple | None = None) -> ReferenceRun:
    """The run in a folder of frames or in an HDF5 file; see the classes."""
    return FrameFolder(path) if path.is_dir() else FrameFile(path, time_axis, grid)


class FrameFolder:
    """``<subject>/frame_<t>.pt``; only the first frame is read yet.

    Raises:
        UserInputError: gaps in t, no frames, a first frame that is damaged or none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            names = [match for item in path.iterdir() if (match := _FRAME.fullmatch(item.name))]
        except OSError as error:
            raise damaged_source(path, error) from None
        names.sort(key=lambda match: int(match[1]))  # by number: frame_2 before frame_10
        refuse_gaps([int(match[1]) for match in names], path)
        self._files = [path / match[0] for match in names]
        self.n_frames = len(names)
        frame = _load_frame(self._files[0])
        self.shape: Triple = (frame.shape[0], frame.shape[1], frame.shape[2])

    def frames(self, first: int = 0) -> Iterator[np.ndarray]:
        """See ``ReferenceRun``."""
        for file in self._files[first:]:
            frame = _load_frame(file)
            if frame.shape != self.shape:
                raise UserInputError(
                    f"{file}: a frame of {size_of(frame.shape)}, expected {size_of(self.shape)} as "
                    f"in {self._files[0].name}. Write the run's frames again."
                )
            yield frame

    def sha256(self) -> str:
        """See ``ReferenceRun``; the files in the order of t."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(bytes.fromhex(file_sha256(file)))
        return digest.hexdigest()

    def statistics(self) -> dict[str, float]:
        """See ``ReferenceRun``; of ``global_stats.pt``."""
        file = self.path / "global_stats.pt"
        if not file.is_file():
            return {}
        values = _load_pt(file)
        if not isinstance(values, Mapping):
            raise UserInputError(f"{file}: a {type(values).__name__}, expected a dict of numbers.")
        return known_statistics(values)


def _load_pt(path: Path) -> Any:
    """Tensors and plain containers of a file; nothing else is unpickled.

    Raises:
        UserInputError: a damaged file, or one that would run code.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints; what matters is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        offender = re.search(r"GLOBAL (\w[\w.]*)", str(error))
        if offender is None:
            raise damaged_source(path, ValueError("not a file of torch.save")) from None
        raise UserInputError(
            f"{path}: holds an object of type {offender[1]}, and loading it would run code from "
            f"the file. Only tensors are read; write the file again with torch.save(tensor, ...)."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        raise damaged_source(path, error) from None


def _load_frame(path: Path) -> np.ndarray:
    """A frame as float32 [X, Y, Z]."""
    import torch

    tensor = _load_pt(path)
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise UserInputError(f"{path}: holds a {type(tensor).__name__}, expected a dense tensor.")
    shape = volume_shape(tensor.shape)
    if shape is None or tensor.is_complex() or tensor.is_quantized:
        raise UserInputError(
            f"{path}: a tensor {size_of(tensor.shape)} of {tensor.dtype}, expected a frame of real "
            f"numbers [X, Y, Z] or [X, Y, Z, 1]."
        )
    return np.asarray(tensor.detach().to(torch.float32).reshape(shape).numpy())
