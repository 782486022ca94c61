"""Write the model of every holdout's fit as one file, see ``model_file``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import nn

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.common.version import code_version
from neuromamba.data.regions.atlases import FOLDER, read_atlas
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.holdout import HOLDOUT_NAME
from neuromamba.data.regions.scan import Scan
from neuromamba.data.regions.series_measures import measures_of_scans
from neuromamba.neurossm.attribution import mean_features
from neuromamba.neurossm.classifiers import NetworkClassifier
from neuromamba.neurossm.config import EvaluateConfig
from neuromamba.neurossm.holdouts import BOOTSTRAP_SEED, Holdout, HoldoutReport
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.model_file import MEANS, METADATA_KEY, MODEL
from neuromamba.neurossm.protocol import Protocol

# Of the record of neuromamba regions extract: what was done to the series.
_EXTRACTION = ("confounds", "low_pass", "high_pass")
_MEASURED = 200  # scans at most


def write_model_files(
    config: EvaluateConfig,
    protocol: Protocol,
    classifier: NetworkClassifier,
    found: HoldoutReport,
) -> list[Path]:
    """Write the model of every holdout's fit; returns the paths.

    Args:
        config: of the evaluation.
        protocol: data and splits.
        classifier: that was fitted.
        found: results of the holdouts.
    """
    cohort, folder = protocol.cohort, protocol.folder(classifier)
    regions = _regions(config, cohort)
    results = {one.seed: one for one in found.holdouts}
    written = []
    for seed, splits in protocol.splits().items():
        split = next(one for one in splits if one.name == HOLDOUT_NAME)
        place = folder / f"seed_{seed}" / HOLDOUT_NAME
        train = [cohort.scans[i] for i in split.train]
        scaling = classifier.scaling(train)
        try:
            fitted = classifier.load(place)
        except UserInputError as error:  # results are complete without them
            print(f"note: no {MODEL} of seed {seed}: {error}")
            continue
        step = max(1, -(-len(train) // _MEASURED))
        model = dataclasses.asdict(classifier.model)
        del model["ssd_backend"]
        metadata = {
            "format": 1,
            "name": classifier.name,
            "model": model,
            "dataset": cohort.name,
            "target": cohort.details.target,
            "classes": list(cohort.details.classes),
            "target_scaling": None if scaling is None else list(scaling),
            "unit": cohort.details.unit,
            **regions,
            "normalisation": "z-score of each region over the scan",
            "crop": config.fit.crop,
            "first_order_share": getattr(fitted, "first_order_share", None),
            "shortest": classifier.model.shortest,
            "training": {
                "scans": len(train),
                "subjects": len({scan.subject for scan in train}),
                "measures": measures_of_scans(scan.series for scan in train[::step]),
                "measured": len(train[::step]),
                MEANS: _pathway_means(fitted, train),
            },
            "evaluation": _evaluation(results[seed]),
            "seed": seed,
            "code_version": code_version(),
        }
        weights = fitted.state_dict()
        state = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
        text = json.dumps(json.loads(json.dumps(metadata)))
        with atomic_path(place / MODEL) as temporary:
            temporary.write_bytes(save(state, {"format": "pt", METADATA_KEY: text}))
        written.append(place / MODEL)
    return written


def _pathway_means(model: nn.Module, train: Sequence[Scan]) -> list[list[float]] | None:
    """[P, D] means over the training scans, which pathways are ablated to; None of a GRU."""
    return mean_features(model, train).tolist() if isinstance(model, NeuroSSM) else None


def _evaluation(one: Holdout) -> dict[str, Any]:
    record = one.evaluation.record(BOOTSTRAP_SEED)
    plain = {name: record[name] for name in ("metrics", "subjects", "confidence", "calibration")}
    baselines = {
        name: {m: one.scores[name].interval(m, BOOTSTRAP_SEED)._asdict() for m in of}
        for name, of in one.differences.items()
    }
    differences = {
        name: {metric: interval._asdict() for metric, interval in of.items()}
        for name, of in one.differences.items()
    }
    cleaned: dict[str, Any] = _nulls({**plain, "baselines": baselines, "differences": differences})
    return cleaned


def _nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _nulls(part) for name, part in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _regions(config: EvaluateConfig, cohort: Cohort) -> dict[str, Any]:
    """Names of the regions, atlas and repetition times, as far as files beside the data say so."""
    found: dict[str, Any] = {
        "atlas": cohort.details.atlas,
        "atlas_hash": None,
        "regions": None,
        "tr": sorted({round(float(tr), 4) for tr in cohort.tr if np.isfinite(tr)}),
        "extraction": None,
    }
    file = config.data_file or config.data_dir / cohort.details.file
    try:
        record = parse_json(file.with_suffix(".json").read_text(encoding="utf-8"))
        if record["regions"] is None or len(record["regions"]) == cohort.rois:
            times = {round(run["tr"], 4) for run in record["runs"] if run["tr"] is not None}
            return {
                "atlas": record["atlas"],
                "atlas_hash": record["atlas_hash"],
                "regions": record["regions"],
                "tr": sorted(times),
                # An import does not know how its collection was cleaned.
                "extraction": None
                if record["confounds"] is None
                else {name: record[name] for name in _EXTRACTION},
            }
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no record of neuromamba regions extract or import
    local = config.data_dir / FOLDER / f"{cohort.details.atlas}.nii.gz"
    if local.is_file():
        atlas = read_atlas(local)
        if len(atlas.ids) == cohort.rois:
            found |= {"atlas_hash": atlas.hash, "regions": list(atlas.regions)}
    return found
