"""Explain the prediction of a regional series: the part of each region, beside random weights.

``region_attribution`` says what the parts are. Beside them stands Calibrated Pathway Attribution
(CPA) as ``neurossm.attribution`` defines it, and always the parts of a model of the same
architecture with random weights (Adebayo et al. 2018, NeurIPS), for the class that it predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import PATHWAY_ABLATIONS
from neuromamba.data.regions.atlases import Atlas
from neuromamba.data.regions.batches import z_scored
from neuromamba.evaluation.target_scaling import TargetScaling
from neuromamba.inference.attribution import Objective
from neuromamba.inference.predict import Prediction
from neuromamba.inference.region_attribution import (
    PathwayAttribution,
    attribute_pathways,
    attribute_regions,
    randomised_model,
)
from neuromamba.inference.region_series import PreparedSeries, SourceGrid
from neuromamba.inference.score_map import ScoreMap, ScoreOptions, target_index, unit_of_class
from neuromamba.inference.source_space import region_image
from neuromamba.layers.packing import pack
from neuromamba.neurossm.model import NeuroSSM


@dataclass(frozen=True, kw_only=True)
class RegionExplainOptions(ScoreOptions):
    """How to explain; see ``ScoreOptions`` for the other attributes.

    Attributes:
        ablation: of CPA: "mean" replaces the features of a pathway by their mean over the training,
            "zero" by 0.

    Raises:
        UserInputError: a value out of range; names the flag.
    """

    ablation: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        look_up(self.ablation, PATHWAY_ABLATIONS, "--ablation")

    @property
    def gradient(self) -> str:
        """Gradient of CPA's maps: that of the method; integrated with "occlusion"."""
        return "single" if self.method == "gradxinput" else "integrated"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RegionExplanation(ScoreMap):
    """The explanation of a scan; N regions, P pathways. See ``ScoreMap`` for other attributes.

    Attributes:
        options: how it was made.
        regions: N names, in the order of the model.
        pathways: P names.
        pathway_values: float64 [P, N], the parts of each region in each pathway.
        pathway: Calibrated Pathway Attribution.
        grid: voxels of the NIfTI file; None of a file of series.
        atlas: None where the call names none.
    """

    options: RegionExplainOptions
    regions: tuple[str, ...]
    pathways: tuple[str, ...]
    pathway_values: np.ndarray
    pathway: PathwayAttribution
    grid: SourceGrid | None = None
    atlas: Atlas | None = None

    @property
    def image(self) -> nibabel.Nifti1Image:
        """The map: each voxel of a region has the region's value, 0 outside.

        With shape and affine of the scan's NIfTI file; of a file of series, those of the atlas.

        Raises:
            UserInputError: there is no atlas.
        """
        return self._image(self.values)

    @property
    def randomised(self) -> nibabel.Nifti1Image:
        """The map of random weights, likewise."""
        return self._image(self.randomised_values)

    def _image(self, values: np.ndarray) -> nibabel.Nifti1Image:
        if self.atlas is None:
            raise UserInputError(
                f"{self.scan}: an image needs the atlas of the regions. Give it with --atlas (in "
                f"Python: model.with_atlas)."
            )
        return region_image(values, self.atlas, self.grid)

    def record(self) -> dict[str, Any]:
        """The numbers in plain containers; null where not defined."""
        found = self.pathway
        return super().record() | {
            "regions": len(self.regions),
            "pathways": {
                name: {"drop": float(drop), "weight": float(weight)}
                for name, drop, weight in zip(
                    self.pathways, found.drops, found.weights, strict=True
                )
            },
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of ``rows``."""
        parts = tuple(f"value_{name}" for name in self.pathways)
        return ("region", "value", "random", *parts, "cpa", "dominant_pathway")

    def rows(self) -> Iterator[tuple[str | float, ...]]:
        """One row per region: its name, its parts, and its CPA."""
        for i, name in enumerate(self.regions):
            number = int(self.pathway.dominant[i])
            yield (
                name,
                float(self.values[i]),
                float(self.randomised_values[i]),
                *map(float, self.pathway_values[:, i]),
                float(self.pathway.cpa[i]),
                self.pathways[number - 1] if number else "",
            )


@dataclass(frozen=True, kw_only=True)
class RegionsToExplain:
    """A model of regions as far as explanations need it.

    Attributes:
        model: in evaluation mode.
        device: that computes.
        class_names: in order; none of a regression.
        scaling: of a regression's target.
        unit: of its values.
        regions: names, or "region 1" ... where the file does not name them.
        means: [P, D] of the training; None if the file holds none.
        path: of the file, for messages.
        atlas: None where none is given.
    """

    model: NeuroSSM
    device: torch.device
    class_names: tuple[str, ...]
    scaling: TargetScaling
    unit: str
    regions: tuple[str, ...]
    means: Tensor | None
    path: str
    atlas: Atlas | None

    def replacement(self, ablation: str) -> Tensor:
        """[P, D], what the features of an ablated pathway are replaced by.

        Raises:
            UserInputError: the means of the training, and the file holds none.
        """
        config = self.model.config
        if ablation == "zero":
            return torch.zeros(len(config.pathways), config.features)
        if self.means is None:
            raise UserInputError(
                f"MODEL: '{self.path}' was written before model files held the means of the "
                f"training, by which pathways are replaced. Give the command of neuromamba regions "
                f"train again (finished fits are kept, and the file is written anew), or replace "
                f"them by zeros with --ablation zero."
            )
        return self.means


def explain_series(
    known: RegionsToExplain,
    scan: PreparedSeries,
    prediction: Prediction,
    options: RegionExplainOptions,
) -> RegionExplanation:
    """Explain the prediction of a prepared scan.

    Args:
        known: the model.
        scan: prepared for it.
        prediction: of the scan.
        options: how.

    Raises:
        UserInputError: a class that the model does not know; no means of the training; a map that
            is not finite.
    """
    replacement = known.replacement(options.ablation)
    target = target_index(known.class_names, options.target or prediction.value)
    inputs = known.model.inputs(pack([z_scored(scan.series).to(known.device)]))
    random = randomised_model(known.model.config, options.seed, known.device)
    random_target = target
    if target is not None and not options.target:
        with torch.inference_mode():
            random_target = int(random.fuse(random.encode(inputs)).argmax())
    own, other = (
        attribute_regions(
            model,
            inputs,
            Objective(target=t, center=known.scaling.center, scale=known.scaling.scale),
            options.method,
            steps=options.steps,
        )
        for model, t in ((known.model, target), (random, random_target))
    )
    if not np.isfinite(own.values).all():
        raise UserInputError(
            f"{scan.source}: the map has values that are not finite. Check the scan for extreme "
            f"values, and the model by a scan of its training."
        )
    change = own.score - own.baseline_score
    name, random_name = ("" if t is None else known.class_names[t] for t in (target, random_target))
    pathway = attribute_pathways(known.model, inputs, target or 0, replacement, options.gradient)
    if target is None:  # of the standardised value
        pathway = pathway._replace(drops=pathway.drops * known.scaling.scale)
    missed = abs(float(own.values.sum()) - change)
    return RegionExplanation(
        scan=scan.name,
        subject=scan.subject,
        target=name,
        randomised_target=random_name,
        unit=unit_of_class(name) if name else known.unit,
        prediction=prediction,
        values=own.values,
        randomised_values=other.values,
        score=own.score,
        baseline_score=own.baseline_score,
        completeness_error=missed / abs(change) if options.method == "ig" and change else np.nan,
        options=options,
        regions=known.regions,
        pathways=known.model.config.pathways,
        pathway_values=own.by_pathway,
        pathway=pathway,
        grid=scan.grid,
        atlas=known.atlas,
    )
