"""CPA of the holdout scans of every seed, with the check by random weights, and pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from neuromamba.common.atomic_files import make_folder, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import seed_run
from neuromamba.data.regions.atlases import Atlas, find_atlas, spare_collections
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.holdout import HOLDOUT_NAME
from neuromamba.data.regions.scan import Scan
from neuromamba.neurossm.attribution import Attribution, attribute, mean_features
from neuromamba.neurossm.attribution_files import (
    RANDOMISED,
    SCHEMA_VERSION,
    ScanMap,
    check_names,
    write_arrays,
    write_scan_map,
)
from neuromamba.neurossm.attribution_report import write_pages
from neuromamba.neurossm.classifiers import NetworkClassifier
from neuromamba.neurossm.config import CPAConfig, Explanation
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.protocol import Protocol

_log = logging.getLogger(__name__)
RANDOM_SEED = 10_000  # added to a seed: weights that no fit began with


class Plan(NamedTuple):
    """Everything that an explanation needs except the model.

    Attributes:
        config: of the attribution.
        folder: ``--analysis_dir``/<DATASET>.
        atlas: None where it cannot be had: maps do not need it, pictures of brains do.
    """

    config: CPAConfig
    folder: Path
    atlas: Atlas | None


def plan(protocol: Protocol, explanation: Explanation, data_dir: Path) -> Plan:
    """Check what can be checked before hours of fits.

    Args:
        protocol: that is to be run.
        explanation: how, and where maps go.
        data_dir: may have the atlas.

    Raises:
        UserInputError: an atlas that does not fit, a folder that cannot be written, or scans whose
            files would have the same name.
    """
    cohort, folder = protocol.cohort, explanation.analysis_dir / protocol.cohort.name
    for splits in protocol.splits().values():
        held = (cohort.scans[i].scan for i in splits[-1].test)
        check_names(held, cohort.details.classes)
    atlas = _atlas(cohort, explanation.atlas, data_dir)
    make_folder(folder, "--analysis_dir")
    return Plan(explanation.cpa, folder, atlas)


def explain_holdouts(protocol: Protocol, classifier: NetworkClassifier, plan: Plan) -> list[Path]:
    """Write maps and pages of every seed's holdout; returns the folders.

    Args:
        protocol: that has been run.
        classifier: NeuroSSM.
        plan: of this protocol.
    """
    cohort, config = protocol.cohort, plan.config
    spare_collections()
    folders = []
    for seed, splits in protocol.splits().items():
        split = splits[-1]
        fit = protocol.folder(classifier) / f"seed_{seed}" / HOLDOUT_NAME
        model = classifier.load(fit)
        assert isinstance(model, NeuroSSM) and split.name == HOLDOUT_NAME
        train, test = ([cohort.scans[i] for i in part] for part in (split.train, split.test))
        print(f"CPA, seed {seed}: {len(test)} holdout scans", flush=True)
        folder = plan.folder / f"seed_{seed}"
        make_folder(folder, "--analysis_dir")
        found = attribute(model, test, mean_features(model, train), config)
        maps = scan_maps(cohort, model, test, found, config, plan.atlas)
        for old in folder.glob("subj_*.npz"):  # of an earlier call
            old.unlink()
        for one in maps:
            write_scan_map(folder, one)
        random = randomised(classifier, train, test, config, seed)
        write_arrays(
            folder / RANDOMISED,
            {
                "scan_id": [scan.scan for scan in test],
                "cpa": random.cpa.astype(np.float32),
                "dominant": random.dominant.astype(np.int16),
            },
        )
        _write_settings(folder, protocol, config, fit)
        undecided = int((found.weights.sum(1) == 0).sum())
        if undecided:
            print(f"note: in {undecided} scans no pathway's ablation lowers the logit.")
        pages = write_pages(folder / "figures", cohort, maps, random, plan.atlas)
        print(f"CPA maps in {folder}, pages {', '.join(page.name for page in pages)}", flush=True)
        folders.append(folder)
    return folders


def _atlas(cohort: Cohort, given: Path | None, data_dir: Path) -> Atlas | None:
    try:
        return find_atlas(cohort.details.atlas, cohort.rois, data_dir, given)
    except UserInputError as error:
        if given is not None:
            raise
        _log.warning("note: no pictures of brains. %s", error)
        return None


def scan_maps(
    cohort: Cohort,
    model: NeuroSSM,
    scans: Sequence[Scan],
    found: Attribution,
    config: CPAConfig,
    atlas: Atlas | None,
) -> list[ScanMap]:
    """The contents of the files."""
    ids = np.arange(1, cohort.rois + 1) if atlas is None else np.array(atlas.ids)
    probabilities = softmax(found.logits.astype(np.float64), axis=1)
    return [
        ScanMap(
            subject_id=scan.subject,
            scan_id=scan.scan,
            label=int(scan.label),
            pred=int(found.logits[i].argmax()),
            target=int(found.target[i]),
            probs=probabilities[i].astype(np.float32),
            logits=found.logits[i],
            pathways=np.array(model.config.pathways),
            path_maps=found.path_maps[i].astype(np.float32),
            drops=found.drops[i].astype(np.float32),
            weights=found.weights[i].astype(np.float32),
            cpa=found.cpa[i].astype(np.float32),
            dominant=found.dominant[i].astype(np.int16),
            atlas=(cohort.details.atlas or "") if atlas is None else atlas.name,
            roi_ids=ids,
            ablation=config.ablation,
            gradient=config.gradient,
            classes=np.array(cohort.details.classes),
        )
        for i, scan in enumerate(scans)
    ]


def randomised(
    classifier: NetworkClassifier,
    train: Sequence[Scan],
    test: Sequence[Scan],
    config: CPAConfig,
    seed: int,
) -> Attribution:
    """Explain with random weights (Adebayo et al. 2018), which shows the data alone."""
    seed_run(RANDOM_SEED + seed)
    model = classifier.build().eval().to(classifier.device)
    assert isinstance(model, NeuroSSM)
    return attribute(model, test, mean_features(model, train), config)


def _write_settings(folder: Path, protocol: Protocol, config: CPAConfig, fit: Path) -> None:
    settings = {
        "schema_version": SCHEMA_VERSION,
        "dataset": protocol.cohort.name,
        "data_hash": protocol.cohort.hash,
        "fit": str(fit),
        "ablation": config.ablation,
        "gradient": config.gradient,
    }
    write_text_atomically(folder / "settings.json", json.dumps(settings, indent=1) + "\n")
