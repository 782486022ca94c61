"""Frozen features of samples, of a pre-trained backbone and of an untrained one beside it.

Shapes: S samples (subjects or events), N voxels, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from neuromamba.checkpoints.io import load_backbone
from neuromamba.config.model import ModelConfig
from neuromamba.config.serialise import from_dict
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.probe_rows import LAST_LAYER, PRETRAINED, UNTRAINED
from neuromamba.fmamba.frozen_features import frozen_features, untrained_backbone
from neuromamba.fmamba.probe_flags import parse_probe, probe_request
from neuromamba.fmamba.stores import locate_data
from neuromamba.fmamba.subject_features import grid_parcellation, subject_features, union_of_masks

PARTS = ("train", "val", "test")
_CPU = torch.device("cpu")


class Samples(NamedTuple):
    """Samples with their features.

    Attributes:
        names: S.
        target: int [S].
        held_out: bool [S], of the test part of the split.
        features: (model, pool) -> float32 [S, D], averaged over a sample's windows.
        volume: float32 [S, N], the mean over the same frames of each voxel as the model sees it;
            [S, 0] if it was not asked for.
    """

    names: tuple[str, ...]
    target: np.ndarray
    held_out: np.ndarray
    features: dict[tuple[str, str], np.ndarray]
    volume: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        """The run of each event, [S]."""
        return np.array([name.split("#")[0] for name in self.names])

    @property
    def subjects(self) -> np.ndarray:
        """The subject of each sample, [S]."""
        return np.array([name.split("_")[0] for name in self.names])


def read_samples(
    run: Path, seed: int, flags: Sequence[str], pools: Sequence[str], *, volume: bool = False
) -> Samples:
    """Features of all samples, of a checkpoint and of an untrained backbone of its architecture.

    Args:
        run: folder of a pre-training; data and split are its own.
        seed: of the untrained backbone.
        flags: further ones of ``neuromamba probe``, which say what the samples are.
        pools: of the tokens of a window.
        volume: read the voxels too.

    Raises:
        UserInputError: data, labels, events or checkpoint cannot be used.
    """
    words = [str(run), "--seed", str(seed), *flags]
    request = probe_request(*parse_probe(words))
    config = request.config
    data = RunData(locate_data(config, make_dummy=False), config.downstream, write_split=False)
    model = from_dict(ModelConfig, request.metadata["model"], str(request.checkpoint))
    models = {name: untrained_backbone(model, seed) for name in (PRETRAINED, UNTRAINED)}
    load_backbone(models[PRETRAINED], request.checkpoint, "RUN")
    samples, rows = frozen_features(
        models, data, PARTS, layers=[LAST_LAYER], pools=pools, device=_CPU
    )
    values = np.zeros((len(samples.names), 0), np.float32)
    if volume:
        voxels = union_of_masks(data, PARTS)
        raw = subject_features(data, PARTS, voxels, grid_parcellation(config.data.grid, voxels))
        assert raw.subjects == samples.names
        values = raw.volume
    tested = set(data.sample_names("test").values())
    return Samples(
        samples.names,
        samples.target,
        np.array([name in tested for name in samples.names]),
        {(name, pool): rows[name][LAST_LAYER, pool] for name in models for pool in pools},
        values,
    )
