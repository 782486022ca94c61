"""What a model expects of a scan, from the metadata of its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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
        inputs = data.get(METADATA_KEY, {})
        affine = inputs.get("grid_affine")
        return cls(
            model=from_dict(ModelConfig, metadata["model"], source),
            data=dataclasses.replace(
                config, dataset_name=("Own",), image_path=("",), dataset_weights=(), num_workers=0
            ),
            native="native" in data.get("spaces", ()),
            grid_affine=affine and tuple(tuple(map(float, row)) for row in affine),
            tr=tuple(tr for tr in data.get("tr", ()) if np.isfinite(tr)),
            inputs=inputs,
            contents=frozenset(data.get("training_contents", ())),
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
