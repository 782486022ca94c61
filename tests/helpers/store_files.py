"""Files of the store from the fields of a header, for tests that vary some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.data.store.header import RunHeader, RunSource, WriteOptions
from neuromamba.data.store.writer import write_run

_OPTIONS = {field.name for field in dataclasses.fields(WriteOptions)}


def write_store_file(
    path: Path,
    frames: Iterable[np.ndarray],
    voxels: np.ndarray,
    *,
    grid: Sequence[int],
    affine: Any,
    **fields: Any,
) -> RunHeader:
    """Call ``write_run``; ``fields`` are those of ``RunSource`` and of ``WriteOptions`` together.

    ``options`` is the header's name of ``WriteOptions.options_digest``.
    """
    if "options" in fields:
        fields["options_digest"] = fields.pop("options")
    options = {name: fields.pop(name) for name in _OPTIONS & fields.keys()}
    return write_run(
        path,
        frames,
        voxels,
        grid=grid,
        affine=affine,
        source=RunSource(**fields),
        options=WriteOptions(**options),
    )
