"""Probes of a checkpoint's frozen features, beside an untrained backbone and the raw signal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from neuromamba.checkpoints.io import load_backbone
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.config.names import LAST_LAYER
from neuromamba.config.serialise import from_dict
from neuromamba.data.cohorts.leak_guards import (
    refuse_trained_subjects,
    trained_subjects,
    warn_of_unknown_subjects,
)
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.probe_rows import (
    PRETRAINED,
    RAW,
    UNTRAINED,
    FeatureTable,
    ProbeRow,
    ProbeStudy,
    Samples,
)
from neuromamba.fmamba.frozen_features import frozen_features, untrained_backbone
from neuromamba.fmamba.layer_outputs import layer_names
from neuromamba.fmamba.probe_flags import ProbeRequest
from neuromamba.fmamba.raw_features import CONNECTIVITY, DEVIATION, MEAN_IMAGE, raw_features
from neuromamba.fmamba.stores import check_cohorts_have_target, locate_data
from neuromamba.fmamba.weights import check_space
from neuromamba.layers.ssd import select_backend
from neuromamba.layers.ssd_native.build import build_for_run
from neuromamba.training.strategies import resolve_hardware

FITTED = ("train", "val")
WIDE = ("regions", "places")  # pools
LEAST = 2  # samples of a class, fitted or tested
LEAST_OF_VALUES = 5  # samples of a regression, fitted or tested


class ProbeResult(NamedTuple):
    """What a probe found.

    Attributes:
        rows: of all features, and of few labels.
        notes: what was left out, and why.
        task: name of the target.
        class_names: of a classification; empty for a regression.
        fitted, tested: samples of each class, or one number of all.
        layers, pools: that were probed, in order.
        supervised: whether the checkpoint had seen labels.
    """

    rows: tuple[ProbeRow, ...]
    notes: tuple[str, ...]
    task: str
    class_names: tuple[str, ...]
    fitted: tuple[int, ...]
    tested: tuple[int, ...]
    layers: tuple[str, ...]
    pools: tuple[str, ...]
    supervised: bool


def probe(request: ProbeRequest) -> ProbeResult:
    """Read features of all subjects, and score what simple models read from them.

    Probes are fitted on the training and validation samples of the split, and scored once on its
    test samples. Nothing is written, a Dummy store without ``--image_path`` excepted.

    Raises:
        UserInputError: data, labels or hardware are missing, a class is, or subjects are too few;
            a model of a task that was trained on subjects who are held out here.
    """
    config = request.config
    assert config.downstream is not None
    hardware = resolve_hardware({**config.trainer, "devices": 1})
    hardware.require()
    device = torch.device(hardware.accelerator)
    check_cohorts_have_target(config)
    data = RunData(locate_data(config, make_dummy=True), config.downstream, write_split=False)
    supervised = "downstream" in request.metadata
    _refuse_leaks(request, data, supervised)
    classes = config.downstream.out_features
    _refuse_too_few(data, classes)

    backend = config.flags["ssd_backend"]
    build_for_run(hardware.accelerator, backend, print)
    select_backend(backend, device)
    seed = config.flags["seed"]
    model_config = from_dict(ModelConfig, request.metadata["model"], str(request.checkpoint))
    pretrained = untrained_backbone(model_config, seed, backend)
    load_backbone(pretrained, request.checkpoint, "RUN")
    models = {
        PRETRAINED: pretrained,
        UNTRAINED: untrained_backbone(model_config, seed, backend),
    }
    layers = layer_names(model_config.token_blocks, request.blocks)
    settings: dict[str, Any] = {"layers": layers, "pools": request.pools, "device": device}
    fitted, of_fitted = frozen_features(models, data, FITTED, **settings)
    tested, of_tested = frozen_features(models, data, ("test",), **settings)
    tables = [
        FeatureTable(layer, pool, name, of_fitted[name][layer, pool], of_tested[name][layer, pool])
        for layer in layers
        for pool in request.pools
        for name in models
    ]
    raw = raw_features(data, FITTED, patch=model_config.patch_size, atlas=request.atlas)
    tables += [FeatureTable(RAW, name, RAW, *both) for name, both in raw.items()]

    training = set(data.sample_names("train").values())
    study = ProbeStudy(fitted, tested, classes, seed, training)
    rows = study.all_labels(tables, _with_bar)
    sizes, notes = study.possible_sizes(request.sizes)
    rows += study.few_labels(_of_few_labels(tables), sizes, request.draws, _with_bar)
    return ProbeResult(
        rows=tuple(rows),
        notes=tuple(notes),
        task=config.downstream.task,
        class_names=config.downstream.class_names,
        fitted=_counts(fitted, classes),
        tested=_counts(tested, classes),
        layers=tuple(layers),
        pools=request.pools,
        supervised=supervised,
    )


def _of_few_labels(tables: Sequence[FeatureTable]) -> list[FeatureTable]:
    """The last features of both backbones (no wide pools), FC, raw SD and mean image."""
    return [
        table
        for table in tables
        if (table.layer == LAST_LAYER and table.pool not in WIDE)
        or table.pool in (CONNECTIVITY, DEVIATION, MEAN_IMAGE)
    ]


def _with_bar(items: Iterable[Any], what: str) -> Iterable[Any]:
    yield from tqdm(items, desc=what, unit="probe", disable=None)


def _counts(samples: Samples, classes: int) -> tuple[int, ...]:
    if classes == 1:
        return (len(samples.names),)
    return tuple(np.bincount(samples.target, minlength=classes).tolist())


def _refuse_leaks(request: ProbeRequest, data: RunData, supervised: bool) -> None:
    """Refuse what a training would refuse of a checkpoint; see ``weights.load_weights``."""
    check_space(request.metadata, data, "RUN", supervised=supervised)
    shared = trained_subjects(
        request.metadata["data"], data.stores, data.subjects, data.config.group_by
    )
    refuse_trained_subjects(shared, "RUN", str(request.checkpoint), supervised=supervised)
    warn_of_unknown_subjects(request.metadata["data"], "RUN", str(request.checkpoint))


def _refuse_too_few(data: RunData, classes: int) -> None:
    """Refuse parts of the split in which a probe cannot be fitted or its score is not defined."""
    assert data.task is not None
    for parts, name in ((FITTED, "training and validation"), (("test",), "test")):
        found = [value for part in parts for value in data.targets_of_samples(part)]
        remedy = "Use another --dataset_split_num, --train_split or --val_split, or more subjects."
        if classes == 1:
            if len(found) < LEAST_OF_VALUES or min(found) == max(found):
                raise UserInputError(
                    f"--downstream_task: the {name} set has {len(found)} subjects with "
                    f"{len(set(found))} different values of {data.task.task}, expected "
                    f"{LEAST_OF_VALUES} or more subjects and two values. {remedy}"
                )
            continue
        counts = [found.count(label) for label in range(classes)]
        if min(counts) < LEAST:
            names = zip(data.task.class_names, counts, strict=True)
            listed = ", ".join(f"{count} {name}" for name, count in names)
            raise UserInputError(
                f"--downstream_task: the {name} set has {listed}, expected {LEAST} or more of "
                f"each class. {remedy}"
            )
