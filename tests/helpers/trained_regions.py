"""A small NeuroSSM that was trained on synthetic series, and scans to use it on."""

from __future__ import annotations

import csv
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel
import numpy as np

import neuromamba
from neuromamba.commands.regions_synthetic import run as make_data
from neuromamba.commands.regions_train import main as train
from neuromamba.data.regions.atlases import Atlas, read_atlas
from neuromamba.inference.region_model import RegionModel

REGIONS = 166
TRAINING = "--dataset PPMI --dynamic_length 40 --embed_dim 32 --depth 1 --device cpu"


@dataclass(frozen=True)
class TrainedRegions:
    """Folders of the model and of its data.

    Attributes:
        root: of everything.
    """

    root: Path

    @property
    def data(self) -> Path:
        """Synthetic PPMI: 40 subjects, 60 frames, with its atlas."""
        return self.root / "data"

    @property
    def results(self) -> Path:
        """Of the model: one seed, without cross-validation."""
        return self.root / "results" / "PPMI" / "NeuroSSM"

    @property
    def fit(self) -> Path:
        """The fit of the holdout."""
        return self.results / "seed_0" / "holdout"

    @property
    def maps(self) -> Path:
        """Of its scans, by ``--analysis``."""
        return self.root / "maps" / "PPMI" / "seed_0"

    @property
    def atlas_file(self) -> Path:
        """Of the regions."""
        return self.data / "atlases" / "AAL3v2.nii.gz"

    @cached_property
    def atlas(self) -> Atlas:
        """The same, read."""
        return read_atlas(self.atlas_file)

    @cached_property
    def model(self) -> RegionModel:
        """Loaded once."""
        loaded = neuromamba.load(self.fit, device="cpu")
        assert isinstance(loaded, RegionModel)
        return loaded

    @cached_property
    def scans(self) -> dict[str, np.ndarray]:
        """Series [N, T] of all subjects, by name."""
        with open(next(self.data.glob("*.pickle")), "rb") as stream:
            everything = pickle.load(stream)
        found = {}
        for one in everything:
            series = np.asarray(one["roiTimeseries"])  # some are time x regions
            turned = series if len(series) == REGIONS else series.T
            found[str(one["pheno"]["subjectId"])] = turned
        return found

    @cached_property
    def held_out(self) -> dict[str, np.ndarray]:
        """Those of the holdout."""
        return {row["scan"]: self.scans[row["scan"]] for row in rows(self.fit / "predictions.csv")}


def train_regions(root: Path) -> TrainedRegions:
    """Write the data and train; some seconds."""
    found = TrainedRegions(root)
    make_data(f"--dataset PPMI --output {found.data} --subjects 40 --frames 60".split())
    flags = (
        f"{TRAINING} --epochs 2 --learning_rate 1e-3 --max_learning_rate 2e-3 "
        f"--data_dir {found.data} --results_dir {root / 'results'} --skip_cross_validation "
        f"--analysis --analysis_dir {root / 'maps'}"
    )
    assert train(flags.split()) == 0
    return found


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def volumes_of(atlas: Atlas) -> tuple[nibabel.Nifti1Image, np.ndarray]:
    """A run of 20 frames of 2 s in MNI space, and its series [N, T], one for each region."""
    labels = atlas.labels()
    rng = np.random.default_rng(5)
    series = (100 + rng.normal(size=(len(atlas.ids), 20)).cumsum(axis=1)).astype(np.float32)
    volume = np.zeros((*labels.shape, 20), np.float32)
    for value, region in zip(series, atlas.ids, strict=True):
        volume[labels == region] = value
    image = nibabel.Nifti1Image(volume, atlas.image.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.0
    image.set_sform(atlas.image.affine, 4)
    image.set_qform(atlas.image.affine, 4)
    return image, series
