"""A trained model of regional time series in memory: NeuroSSM, or the GRU beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from neuromamba.checkpoints.io import CheckpointContents
from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.sources import PassedOver
from neuromamba.data.regions.atlases import Atlas, chosen_atlas
from neuromamba.data.regions.batches import z_scored
from neuromamba.evaluation.target_scaling import UNSCALED, TargetScaling, scores_of
from neuromamba.inference.brief import Brief
from neuromamba.inference.contract import described
from neuromamba.inference.embed import INDEX, Embedding
from neuromamba.inference.many import Outcome, each_scan
from neuromamba.inference.predict import Prediction
from neuromamba.inference.prepared import require_prepared
from neuromamba.inference.region_explain import (
    RegionExplainOptions,
    RegionExplanation,
    RegionsToExplain,
    explain_series,
)
from neuromamba.inference.region_series import (
    PreparedSeries,
    check_atlas,
    checked_tr,
    cleaning_of,
    find_series,
    prepare_series,
    prepared_of,
)
from neuromamba.inference.sources import Places, ScanFile, only_scan
from neuromamba.layers.packing import pack
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.model_file import read_model_file

FUSED = "fused"  # the layer after the pathways


@dataclass(frozen=True)
class RegionContract:
    """What a model of regions expects of a scan, from its metadata."""

    metadata: Mapping[str, Any]

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Measures of the training's scans."""
        found: Mapping[str, Any] = self.metadata["training"]
        return found

    def describe(self) -> list[tuple[str, str]]:
        """Name and value of each part, for people."""
        known = self.metadata
        names = known["regions"]
        atlas = known["atlas"] or "of an unknown atlas"
        order = f"{names[0]} ... {names[-1]}" if names else "not named: their order is not checked"
        times = [f"{tr:g}" for tr in known["tr"]]
        return [
            ("series", f"{known['model']['rois']} regions, {atlas}"),
            ("order of regions", order),
            ("repetition time", f"{', '.join(times)} s" if times else "not recorded"),
            ("frames", f"{known['shortest']} or more; crops of {known['crop']} in training"),
            ("cleaning", cleaning_of(known["extraction"])),
            ("normalisation", known["normalisation"]),
            ("training scans", "not recognised: the file does not hold their keys"),
        ]


@dataclass(frozen=True)
class RegionTask:
    """What is predicted: the name of the target."""

    task: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RegionModel(Brief):
    """A trained model of regional series, loaded once and used on many scans::

        model = neuromamba.load("Results/PPMI/NeuroSSM/seed_0/holdout")
        print(model.predict(model.prepare("sub-01_series.csv")))

    Attributes:
        path: the model file.
        metadata: see ``neurossm.model_file``.
        model: in evaluation mode, on ``device``.
        device: that computes.
        atlas: regions of NIfTI files; None where only series are used.
        means: float32 [P, D] of the training, for explanations; None if the file holds none.
    """

    path: Path
    metadata: Mapping[str, Any]
    model: nn.Module
    device: torch.device
    atlas: Atlas | None = None
    means: Tensor | None = None
    calibration: None = None

    @property
    def brief(self) -> str:
        """What it is, and where."""
        return f"{described(self.metadata)}, {self.path} on {self.device}"

    @property
    def contents(self) -> CheckpointContents:
        """Metadata as other checkpoints have them, without weights."""
        return CheckpointContents({}, dict(self.metadata), "safetensors")

    @property
    def contract(self) -> RegionContract:
        """What it expects of a scan."""
        return RegionContract(self.metadata)

    @property
    def task(self) -> RegionTask:
        """What is predicted."""
        return RegionTask(self.metadata["target"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in order; none of a regression."""
        return tuple(self.metadata["classes"])

    @property
    def unit(self) -> str:
        """The unit of a regression's values; "" where none is known, and of classes."""
        return str(self.metadata.get("unit", ""))

    @property
    def target_scaling(self) -> TargetScaling | None:
        """How a regression's target was standardised; None of a classification."""
        scaling = self.metadata.get("target_scaling")
        return None if scaling is None else TargetScaling(*scaling)

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """Results on the holdout: metrics with intervals, number of subjects."""
        found: Mapping[str, Any] = self.metadata["evaluation"]
        return found

    @property
    def neurossm(self) -> NeuroSSM:
        """The model, where it has pathways.

        Raises:
            UserInputError: it is another classifier.
        """
        if not isinstance(self.model, NeuroSSM):
            raise UserInputError(f"MODEL: '{self.path}' is a {self.metadata['name']}, no NeuroSSM.")
        return self.model

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions in their order, of the file, else of the atlas, else numbers."""
        if self.metadata["regions"]:
            return tuple(self.metadata["regions"])
        if self.atlas is not None:
            return self.atlas.regions
        return tuple(f"region {i + 1}" for i in range(self.metadata["model"]["rois"]))

    def with_atlas(self, atlas: str | Path | None) -> RegionModel:
        """Return the model for NIfTI files too.

        Args:
            atlas: an image of labels, or one of ``ATLAS_NAMES``; None changes nothing.

        Raises:
            UserInputError: no such atlas, or not that of the training.
        """
        if atlas is None:
            return self
        found = chosen_atlas(atlas)
        check_atlas(found, self.metadata)
        return dataclasses.replace(self, atlas=found)

    def find(self, places: Places) -> tuple[list[ScanFile], list[PassedOver]]:
        """List the scans of files and folders, see ``region_series.find_series``."""
        return find_series(places)

    def prepare(
        self,
        series: Any,
        tr: float | None = None,
        mask: str | Path | None = None,
        *,
        strict: bool = False,
    ) -> PreparedSeries:
        """Bring a scan to what the model was trained on.

        Args:
            series: path of a file of series or of a 4D NIfTI file (see ``with_atlas``); or an array
                [N, T], regions x time, in the model's order.
            tr: repetition time in seconds.
            mask: not used by models of regions, refused.
            strict: refuse a scan with any problem.

        Raises:
            UserInputError: it cannot be used; names the reason and a remedy.
        """
        if mask is not None:
            raise UserInputError("--mask: a model of regions takes series, or --atlas.")
        if isinstance(series, ScanFile):
            scan = series
        elif isinstance(series, str | Path):
            scan = only_scan(self.find([series])[0], series)
        else:
            return self._prepare_array(series, tr, strict)
        return prepare_series(scan, self.metadata, atlas=self.atlas, tr=tr, strict=strict)

    def _prepare_array(self, series: Any, tr: float | None, strict: bool) -> PreparedSeries:
        found = np.asarray(series)
        count = self.metadata["model"]["rois"]
        if found.ndim != 2 or found.shape[0] != count or found.dtype.kind not in "fiu":
            raise UserInputError(
                f"prepare: got {found.dtype} of shape {found.shape}, expected real numbers, "
                f"{count} regions x time."
            )
        return prepared_of(
            found.T.astype(np.float64),
            ScanFile(path=Path("array"), name="array", subject="array"),
            self.metadata,
            tr=checked_tr(tr),
            actions=["read from memory"],
            problems=[],
            strict=strict,
        )

    def predict(self, scan: PreparedSeries) -> Prediction:
        """Predict of a whole scan, as in the evaluation of the training.

        Raises:
            UserInputError: a prediction that is not finite.
        """
        require_prepared(scan, "predict", PreparedSeries)
        with torch.inference_mode():
            logits = self.model(pack([z_scored(scan.series).to(self.device)]))
            kind = "classification" if self.class_names else "regression"
            scores = scores_of(logits.float().cpu(), kind, self.target_scaling or UNSCALED).numpy()
        if not np.isfinite(scores).all():
            raise UserInputError(f"{scan.source}: the prediction is not finite.")
        names, found = self.class_names, scores[0].tolist()
        return Prediction(
            scan=scan.name,
            value=names[int(scores[0].argmax())] if names else found[0],
            probabilities=dict(zip(names, found, strict=True)) if names else {},
            windows=scores,
            starts=np.array([0]),
            spread=float("nan"),
            in_range=scan.in_range,
            problems=tuple(str(problem) for problem in scan.problems),
            unit=self.unit,
        )

    def predict_many(self, places: Places, **options: Any) -> list[Outcome[Prediction]]:
        """Predict of many scans; options as of ``many.each_scan``."""
        scans, _ = self.find(places)
        return list(each_scan(self, scans, self.predict, **options))

    def embed(self, scan: PreparedSeries) -> Embedding:
        """Return the features of each pathway, the mean over time, and the fused ones.

        Rows are ``layer`` raw_1, raw_2, ..., fused, each of the model's width,
        all its members side by side.

        Raises:
            UserInputError: the model has no pathways.
        """
        require_prepared(scan, "embed", PreparedSeries)
        model = self.neurossm
        with torch.inference_mode():
            packed = pack([z_scored(scan.series).to(self.device)])
            pathways = model.encode(model.inputs(packed))
            fused = model.fused(pathways)
            values = torch.cat([pathways[0], fused]).float().cpu().numpy()
        layers = [*model.config.pathways, FUSED]
        same = {"scan": scan.name, "subject": scan.subject, "session": scan.session}
        same |= {"run": scan.run, "region": "", "statistic": "mean"}
        index = {name: [same.get(name)] * len(layers) for name in INDEX} | {"layer": layers}
        return Embedding(values=values, index=index, layer=FUSED)

    def check_explains(self, options: RegionExplainOptions) -> None:
        """Refuse what cannot be explained, before any scan is read.

        Raises:
            UserInputError: a model without pathways, or without means that the options need.
        """
        self._to_explain().replacement(options.ablation)

    def _to_explain(self) -> RegionsToExplain:
        return RegionsToExplain(
            model=self.neurossm,
            device=self.device,
            class_names=self.class_names,
            scaling=self.target_scaling or UNSCALED,
            unit=self.unit,
            regions=self.regions,
            means=self.means,
            path=str(self.path),
            atlas=self.atlas,
        )

    def explain(self, scan: PreparedSeries, **options: Any) -> RegionExplanation:
        """Explain the prediction of a prepared scan.

        Args:
            scan: prepared.
            options: fields of ``region_explain.RegionExplainOptions``: method, target, steps ...

        Raises:
            UserInputError: a wrong option; a model without pathways, or without means.
        """
        require_prepared(scan, "explain", PreparedSeries)
        if "references" in options:
            raise UserInputError(
                "explain: references are for models of volumes; this one compares with its means."
            )
        how = RegionExplainOptions(**options)
        return explain_series(self._to_explain(), scan, self.predict(scan), how)

    def rollout(self, *_: Any, **__: Any) -> NoReturn:
        """Refused, by a ``UserInputError``."""
        raise UserInputError(
            "rollout: NeuroSSM predicts a label and generates no frames. Load an FMamba backbone "
            "that was pre-trained with --use_autoregressive."
        )


def load_region_model(path: Path, device: torch.device, ssd_backend: str = "auto") -> RegionModel:
    """Load a model file onto a device.

    Raises:
        UserInputError: damaged.
    """
    found = read_model_file(path, ssd_backend)
    return RegionModel(
        path=path,
        metadata=found.metadata,
        model=found.model.to(device),
        device=device,
        means=found.means,
    )
