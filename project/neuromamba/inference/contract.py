"""What a model expects of a scan, from the metadata of its checkpoint."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.model import ModelConfig
from neuromamba.config.names import ORIENTATION, VOXEL_SCALINGS
from neuromamba.config.serialise import from_dict
from neuromamba.data.cohorts.leak_guards import knows_training_subjects
from neuromamba.data.store.header import Affine
from neuromamba.fmamba.training_inputs import METADATA_KEY

_NOT_RECOGNISED = "not recognised: the file does not hold their keys"


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """What scans the model was trained on, and so what a new one has to be brought to.

    Attributes:
        model: architecture: grid, patch size, background rule.
        data: windows (length, strides) and scaling; no store belongs to it.
        native: whether the training runs were in native space.
        grid_affine: of the training runs' grid, voxel indices -> mm; None where none is recorded,
            then a scan is centred on the grid.
        tr: repetition times of the training runs, seconds, those that are known.
        inputs: measures of the training runs (``fmamba.training_inputs``); {} in checkpoints that
            were written before they were recorded.
        contents: hashes of the training runs' values.
        supervised: whether it was trained on labels of the training subjects.
        knows_training: whether the checkpoint holds keys of its training subjects, so that their
            scans are recognised; not in exports that were made to be shared.
    """

    model: ModelConfig
    data: DataConfig
    native: bool
    grid_affine: Affine | None
    tr: tuple[float, ...]
    inputs: Mapping[str, Any]
    contents: frozenset[int]
    supervised: bool
    knows_training: bool = True

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], source: str) -> InputContract:
        """Read the contract; ``source`` names the checkpoint in messages.

        Raises:
            UserInputError: the metadata are damaged.
        """
        data = metadata["data"]
        config = from_dict(DataConfig, data["config"], source)
        inputs = data.get(METADATA_KEY) or {}
        model = from_dict(ModelConfig, metadata["model"], source)
        if wrong := _why_damaged(inputs, model):
            raise UserInputError(
                f"{source}: its measures of the training's scans are damaged "
                f"({wrong}). Use another checkpoint."
            )
        affine = inputs.get("grid_affine")
        return cls(
            model=model,
            data=dataclasses.replace(
                config, dataset_name=("Own",), image_path=("",), dataset_weights=(), num_workers=0
            ),
            native="native" in (data.get("spaces") or ()),
            grid_affine=affine and tuple(tuple(map(float, row)) for row in affine),
            tr=tuple(tr for tr in data.get("tr") or () if np.isfinite(tr)),
            inputs=inputs,
            contents=frozenset(data.get("training_contents") or ()),
            supervised="downstream" in metadata,
            knows_training=knows_training_subjects(data),
        )

    def describe(self) -> list[tuple[str, str]]:
        """Name and value of each part, for people."""
        data, times = self.data, self.inputs.get("measures", {}).get("tr")
        grid = " x ".join(map(str, self.model.img_size[:3]))
        size = ""
        if self.grid_affine is not None:
            edges = np.linalg.norm(np.asarray(self.grid_affine)[:3, :3], axis=0)
            size = f", voxels of {' x '.join(f'{edge:.3g}' for edge in edges)} mm"
        tr = "not recorded"
        if self.tr:
            ends = sorted({min(self.tr), max(self.tr)})
            tr = f"{' to '.join(f'{one:g}' for one in ends)} s"
        elif times and times[1] is not None:
            tr = f"{times[1]:g} s"
        return [
            ("space", "native" if self.native else "MNI"),
            ("grid", f"{grid}{size}, {ORIENTATION}"),
            ("repetition time", tr),
            ("window", f"{data.sequence_length} frames, every {data.stride_within_seq}"),
            ("windows start", f"every {data.window_step} frames"),
            ("scaling", self.scaling),
            ("background", "kept" if self.model.keep_background else "tokens dropped"),
            *(() if self.knows_training else [("training scans", _NOT_RECOGNISED)]),
        ]

    @property
    def scaling(self) -> str:
        """Scaling of the intensities, with its statistics where they can be chosen."""
        method = self.data.input_scaling_method
        return f"{method} ({self.data.scaling_statistics} statistics)" if self.by_voxel else method

    @property
    def by_voxel(self) -> bool:
        """Whether the scaling takes the mean image out."""
        return self.data.input_scaling_method in VOXEL_SCALINGS


def _why_damaged(inputs: Any, model: ModelConfig) -> str:
    """What is wrong with ``inputs`` of the metadata (``fmamba.training_inputs``); "" if nothing."""
    if not isinstance(inputs, Mapping):
        return f"inputs are {type(inputs).__name__}"
    measures = inputs.get("measures") or {}
    if not isinstance(measures, Mapping) or not all(
        _are_numbers(three, 3, or_none=True) for three in measures.values()
    ):
        return "measures are not three numbers each"
    affine = inputs.get("grid_affine")
    if affine is not None:
        rows = isinstance(affine, list | tuple) and len(affine) == 4
        if not rows or not all(_are_numbers(row, 4) for row in affine):
            return "grid_affine is not 4 x 4 numbers"
        if abs(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3])) < 1e-12:
            return "grid_affine has no inverse"
    gain = inputs.get("mirror_gain")
    if gain is not None and not _are_numbers(gain, 3):
        return "mirror_gain is not three numbers"
    mean = inputs.get("mean")
    if mean is not None:
        patches = math.prod(model.token_grid[:3])
        if not isinstance(mean, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * patches}}}", mean):
            return f"mean is not {patches} bytes"
    return ""


def _are_numbers(values: Any, count: int, or_none: bool = False) -> bool:
    if not isinstance(values, list | tuple) or len(values) != count:
        return False
    return all(
        (value is None and or_none)
        or (isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value))
        for value in values
    )


def described(metadata: Mapping[str, Any]) -> str:
    """What a checkpoint is, in a few words: its task, or its objective."""
    if "target" in metadata:
        return f"{metadata['name']}, model of {metadata['target']}"
    if "downstream" in metadata:
        return f"model of {metadata['downstream']['task']}"
    return "pre-trained backbone"
