"""One model as one file: the weights of a holdout's fit, with what is needed to use them.

``Results/<DATASET>/<MODEL>/seed_<S>/holdout/model.safetensors`` holds, beside the weights, under
``METADATA_KEY`` the architecture, classes, regions and atlas, the measures of the training's scans,
the means of their pathways, and the holdout's results. It names no subject and no folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from neuromamba.checkpoints.files import damaged, read_safetensors_entries, why_unread
from neuromamba.checkpoints.io import REGIONS_KEY
from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.common.version import code_version
from neuromamba.config.names import SAFETENSORS
from neuromamba.config.serialise import from_dict
from neuromamba.data.regions.atlases import FOLDER, read_atlas
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.holdout import HOLDOUT_NAME
from neuromamba.data.regions.scan import Scan
from neuromamba.data.regions.series_measures import measures_of_scans
from neuromamba.evaluation.target_scaling import TargetScaling
from neuromamba.neurossm.attribution import mean_features
from neuromamba.neurossm.classifiers import TRAINED, WEIGHTS, NetworkClassifier
from neuromamba.neurossm.config import EvaluateConfig, NeuroSSMConfig
from neuromamba.neurossm.holdouts import BOOTSTRAP_SEED, Holdout, HoldoutReport
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.protocol import Protocol

METADATA_KEY = REGIONS_KEY
MODEL = "model.safetensors"
# Of the record of neuromamba regions extract: what was done to the series.
_EXTRACTION = ("confounds", "low_pass", "high_pass")
_MEASURED = 200  # scans at most
MEANS = "pathway_means"  # of the training; not in files that were written before they were kept


class RegionModelFile(NamedTuple):
    """A model file.

    Attributes:
        path: of it.
        metadata: plain containers, see ``write_model_files``.
        model: in evaluation mode, on the CPU.
        config: its architecture.
        means: float32 [P, D] of the training (``attribution.mean_features``); None if the file
            holds none.
    """

    path: Path
    metadata: Mapping[str, Any]
    model: nn.Module
    config: NeuroSSMConfig
    means: torch.Tensor | None


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


def _read_means(values: Any, config: NeuroSSMConfig) -> torch.Tensor | None:
    """``_pathway_means`` as a tensor; a ValueError says that they do not fit the model."""
    if values is None:
        return None
    found = torch.tensor(values, dtype=torch.float32)
    if found.shape != (len(config.pathways), config.features) or not found.isfinite().all():
        raise ValueError("the means of the pathways do not fit the model")
    return found


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


def find_model_file(path: Path, flag: str = "MODEL") -> Path | None:
    """The model file that a path means: itself, in a fit's folder, or in one of results.

    Args:
        path: what the user gave.
        flag: that it was given to.

    Returns:
        None if the path is no model of regions.

    Raises:
        UserInputError: results of several seeds, of which none is named.
    """
    if path.is_file():
        return path if path.suffix == SAFETENSORS and _has_metadata(path) else None
    if (path / MODEL).is_file():
        return path / MODEL if _has_metadata(path / MODEL) else None
    found = sorted(path.glob(f"seed_*/{HOLDOUT_NAME}/{MODEL}")) if path.is_dir() else []
    if len(found) > 1:
        listed = ", ".join(str(one.parent) for one in found[:4])
        raise UserInputError(f"{flag}: '{path}' holds the models of several seeds; name {listed}.")
    if not found and path.is_dir() and next(path.glob(f"seed_*/*/{WEIGHTS}"), None) is not None:
        raise UserInputError(
            f"{flag}: '{path}' was written before models were kept in one file. Give the command "
            f"of neuromamba regions train again: finished fits are kept, and {MODEL} is added."
        )
    return found[0] if found else None


def _has_metadata(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read_model_file(path: Path, ssd_backend: str = "auto") -> RegionModelFile:
    """Read a model file; no code of it is executed.

    Raises:
        UserInputError: damaged.
    """
    metadata = read_safetensors_entries(path, "MODEL").get(METADATA_KEY)
    try:
        if not isinstance(metadata, dict):
            raise ValueError("no metadata")
        config = from_dict(
            NeuroSSMConfig, {**metadata["model"], "ssd_backend": ssd_backend}, str(path)
        )
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and replaced below
            model = TRAINED[metadata["name"]](config)
        model.load_state_dict(load_file(path))
        names = 0 if config.is_regression else config.classes
        if len(metadata["classes"]) != names or metadata["target"] is None:
            raise ValueError("the classes do not fit the model")
        scaling = metadata.get("target_scaling")
        if (scaling is None) == config.is_regression:
            raise ValueError("the scaling of the target does not fit the model")
        if scaling is not None and not all(np.isfinite(TargetScaling(*map(float, scaling)))):
            raise ValueError("the scaling of the target is not finite")
        means = metadata["training"].get(MEANS)
        if means is not None:
            means = torch.tensor(means, dtype=torch.float32)
            if means.shape != (len(config.pathways), config.features) or not means.isfinite().all():
                raise ValueError("the means of the pathways do not fit the model")
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, "MODEL", why_unread(error)) from None
    return RegionModelFile(path, metadata, model.eval(), config, means)
