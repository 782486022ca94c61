"""The runs that a model is trained and tested on: stores, subjects, targets and windows.

Reports, baselines and plans read the data of a run through ``RunData``; only a training needs the
LightningDataModule on top of it (``data_module``).
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import names_for_message
from neuromamba.config.data import DataConfig
from neuromamba.config.names import ORIENTATION, VOXEL_SCALINGS
from neuromamba.config.serialise import to_dict
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.cohort_store import Store
from neuromamba.data.cohorts.grouping import column_by_split_unit
from neuromamba.data.cohorts.leak_guards import (
    person_keys,
    refuse_shared_subjects,
    refuse_target_as_confound,
    run_contents,
    split_unit_keys,
)
from neuromamba.data.cohorts.open_store import open_store
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.cohorts.split_files import split_record, write_split_files
from neuromamba.data.cohorts.splits import PARTS
from neuromamba.data.windows.dataset import WindowDataset, event_name
from neuromamba.evaluation.confound_columns import check_confounds
from neuromamba.evaluation.subject_keys import subject_key

logger = logging.getLogger(__name__)
_LARGEST_SPREAD = 0.01  # relative difference of voxel sizes that is not worth a warning


class RunData:
    """Runs of one or several stores, split by subject (session or run: ``--group_by``), in windows.

    Everything is read and checked on construction, before a model is built; only headers are
    opened, no images.

    Args:
        config: which data, how windowed, scaled and split.
        task: the downstream task, or None for pre-training.
        write_split: keep a newly drawn split in the store (not in a dry run).

    Attributes:
        stores: the stores, in the order of ``config.image_path``.
        subjects: names of the split units of each part ("train", "val", "test") and store.
        parts: windows of each part, one ``WindowDataset`` a store; None where there are none.

    Raises:
        UserInputError: no data, unusable runs, missing labels, a class absent from the training
            subjects, no subjects left.
    """

    def __init__(
        self, config: DataConfig, task: DownstreamConfig | None = None, *, write_split: bool = True
    ) -> None:
        self.config, self.task = config, task
        folders = [Path(path).resolve() for path in config.image_path]
        if len(set(folders)) < len(folders):
            raise UserInputError("--image_path: the same folder is given twice.")
        self.stores = [
            open_store(name, path, config=config, task=task, write_split=write_split)
            for name, path in zip(config.dataset_name, config.image_path, strict=True)
        ]
        self.subjects = {part: self._subjects(part) for part in PARTS}
        if not any(self.subjects["train"]):
            raise UserInputError("--train_split: no training subject is left after exclusions.")
        refuse_shared_subjects(self.stores, self.subjects)
        _compare_spaces(self.stores)
        self.parts = {part: self.make_windows(part) for part in PARTS}
        if task is not None:
            _check_targets(self, task)

    def _subjects(self, part: str) -> list[tuple[str, ...]]:
        """Return the subjects of a part in each store, ``--limit_*_samples`` applied."""
        limit = {
            "train": self.config.limit_training_samples,
            "val": self.config.limit_validation_samples,
            "test": self.config.limit_test_samples,
        }[part]
        chosen = []
        for store in self.stores:
            names: tuple[str, ...] = getattr(store.split, part)
            if self.config.include_valid_to_train and part != "test":
                # Then nothing is validated, since it would be on training subjects.
                names = names + store.split.val if part == "train" else ()
            if limit is not None and names:
                count = int(limit) if limit > 1 else max(1, round(limit * len(names)))
                # One order for all limits: a smaller sample is a subset of a larger one.
                order = np.random.default_rng([self.config.seed, 0]).permutation(len(names))
                names = tuple(sorted(names)[i] for i in sorted(order[:count]))
            chosen.append(names)
        return chosen

    def make_windows(self, part: str) -> ConcatDataset[dict[str, Any]] | None:
        segments = self.config.num_train_fMRI_segments if part == "train" else None
        sets = []
        for number, (store, names) in enumerate(zip(self.stores, self.subjects[part], strict=True)):
            paths, headers = store.runs_of(names)
            if paths:
                sets.append(
                    WindowDataset(
                        paths,
                        self.config,
                        labels=store.labels,
                        events=store.events,
                        sample_id_of=store.split_unit_of,
                        headers=headers,
                        dataset=number,
                        max_windows_per_run=segments,
                    )
                )
        return ConcatDataset(sets) if sets else None

    def window_sets(self, part: str) -> list[WindowDataset]:
        """Return the windows of a part, one data set a store that has some."""
        windows = self.parts[part]
        return [] if windows is None else list(windows.datasets)  # type: ignore[arg-type]

    def windows_in(self, part: str) -> int:
        """Count the windows of a part."""
        windows = self.parts[part]
        return 0 if windows is None else len(windows)

    def batches_in(self, part: str, ranks: int = 1) -> int:
        """Count the batches of a part that each rank sees in an epoch."""
        size = self.config.batch_size if part == "train" else self.config.eval_batch_size
        return math.ceil(math.ceil(self.windows_in(part) / ranks) / size)

    # ------------------------------------------------------------------ targets and names

    def targets_of_samples(self, part: str) -> list[int | float]:
        """Return the target of every subject (session, run) or event of a part that has windows."""
        found = [{w.sample_id: w.target for w in data.windows} for data in self.window_sets(part)]
        return [t for targets in found for t in targets.values() if t is not None]

    def target_scaling(self) -> tuple[float, float]:
        """Return centre and scale of a regression target over the training subjects."""
        assert self.task is not None
        values = np.asarray(self.targets_of_samples("train"), dtype=np.float64)
        if self.task.label_scaling_method == "minmax":
            return float(values.min()), float(np.ptp(values))
        return float(values.mean()), float(values.std())

    def class_weights(self) -> tuple[float, ...] | None:
        """Return the weight of each class in the loss; their mean over training windows is 1."""
        assert self.task is not None
        if self.task.class_weights == "none":
            return None
        counts = Counter(w.target for data in self.window_sets("train") for w in data.windows)
        classes = range(len(self.task.class_names))
        return tuple(sum(counts.values()) / (len(classes) * counts[c]) for c in classes)

    def sample_names(self, part: str) -> dict[int, str]:
        """Return ``subject_key`` -> name of what the predictions of a part are for.

        These are subjects (sessions, runs) or events; with several stores ``dataset/name``.
        """
        several = len(self.stores) > 1
        names: dict[int, str] = {}
        for number, (store, chosen) in enumerate(
            zip(self.stores, self.subjects[part], strict=True)
        ):
            sample_ids: Iterable[str] = chosen
            if store.events is not None:
                sample_ids = [
                    event_name(header, event.number)
                    for header in store.runs_of(chosen)[1]
                    for event in store.events.get(header.label, ())
                ]
            names |= {
                subject_key(one, number): f"{store.dataset}/{one}" if several else one
                for one in sample_ids
            }
        return names

    def named_targets(self, *parts: str) -> dict[str, int | float]:
        """Return the target of each sample of the parts, named as in predictions; no events."""
        several = len(self.stores) > 1
        found: dict[str, int | float] = {}
        for part in parts:
            for store, names in zip(self.stores, self.subjects[part], strict=True):
                prefix = f"{store.dataset}/" if several else ""
                found |= {f"{prefix}{name}": (store.labels or {})[name] for name in names}
        return found

    def confounds(self, columns: Sequence[str]) -> dict[str, dict[str, str]]:
        """Read columns of the stores' tables: column -> name in the predictions -> text.

        Units without a value are absent.

        Raises:
            UserInputError: no table has a column; it is the target; or see ``check_confounds``.
        """
        several = len(self.stores) > 1
        columns = list(dict.fromkeys(columns))
        assert self.task is not None
        refuse_target_as_confound(columns, self.task, self.stores)
        found: dict[str, dict[str, str]] = {name: {} for name in columns}
        for number, store in enumerate(self.stores):
            chosen = {name for part in PARTS for name in self.subjects[part][number]}
            owners = [(store.split_unit_of(h), h.subject) for h in store.headers]
            subject_of = {one: subject for one, subject in owners if one in chosen}
            prefix = f"{store.dataset}/" if several else ""
            for name in columns:
                values = column_by_split_unit(
                    "--confounds",
                    name,
                    DATASETS[store.dataset],
                    store.image_path,
                    self.task,
                    subject_of,
                )
                found[name] |= {f"{prefix}{key}": text for key, text in values.items()}
        check_confounds(
            found,
            {
                "training and validation": list(self.named_targets("train", "val")),
                "test": list(self.named_targets("test")),
            },
        )
        return found

    # ------------------------------------------------------------------ records

    @property
    def split_hash(self) -> str:
        """Hash of the splits of all stores."""
        joined = " ".join(store.split.hash for store in self.stores)
        return hashlib.sha256(joined.encode()).hexdigest()[:16]

    def metadata(self) -> dict[str, Any]:
        """Describe the data for a checkpoint, in plain containers."""
        return {
            "config": _recorded(self.config),
            "orientation": ORIENTATION,
            "scaling": self.config.input_scaling_method,
            "split_hash": self.split_hash,
            "images_hash": _hash(
                (h.label, h.content_sha256, h.source_sha256) for s in self.stores for h in s.headers
            ),
            "targets_hash": _hash(
                (part, w.sample_id, w.start, w.target)
                for part in PARTS
                for data in self.window_sets(part)
                for w in data.windows
            ),
            "training_subjects": sorted(person_keys(self.stores, self.subjects["train"])),
            "training_units": sorted(split_unit_keys(self.stores, self.subjects["train"])),
            "training_contents": sorted(run_contents(self.stores, self.subjects["train"])),
            "spaces": sorted({header.space for s in self.stores for header in s.headers}),
            "subjects": {part: sum(map(len, self.subjects[part])) for part in PARTS},
            "windows": {part: self.windows_in(part) for part in PARTS},
            "tr": sorted({round(h.tr, 4) for s in self.stores for h in s.headers}),
        }

    def write_splits(self, folder: Path) -> None:
        """Write the split of every store into a run's folder."""
        for number, store in enumerate(self.stores):
            record = split_record(
                store.split,
                store.dataset,
                self.config.dataset_split_num,
                self.config.train_split,
                self.config.val_split,
                store.grouping,
            )
            name = store.dataset if len(self.stores) == 1 else f"{number}_{store.dataset}"
            write_split_files(folder / name, store.split, record)


def _recorded(config: DataConfig) -> dict[str, Any]:
    """A configuration without a setting that has no effect on it, as in earlier versions."""
    found = to_dict(config)
    if config.input_scaling_method not in VOXEL_SCALINGS:
        del found["scaling_statistics"]
    if not config.anatomy:
        del found["channels"]
    return found


def _hash(facts: Iterable[tuple[Any, ...]]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(repr(fact).encode())
    return digest.hexdigest()[:16]


def with_training_subjects(data: RunData, names: Collection[str]) -> RunData:
    """Return the same data with some of the training subjects only.

    Args:
        data: of a run; it stays as it is.
        names: of training subjects, as in ``RunData.sample_names``.
    """
    several = len(data.stores) > 1
    kept = []
    for store, chosen in zip(data.stores, data.subjects["train"], strict=True):
        prefix = f"{store.dataset}/" if several else ""
        kept.append(tuple(name for name in chosen if f"{prefix}{name}" in names))
    fewer = copy.copy(data)
    fewer.subjects = data.subjects | {"train": kept}
    fewer.parts = data.parts | {"train": fewer.make_windows("train")}
    return fewer


def _compare_spaces(stores: Sequence[Store]) -> None:
    """Refuse a mixture of native and standard space; warn of different voxel sizes.

    Positions are indices into the grid: in another space they have another anatomy.
    """
    headers = [header for store in stores for header in store.headers]
    native = [header.label for header in headers if header.space == "native"]
    if native and len(native) < len(headers):
        raise UserInputError(
            f"--image_path: {len(native)} of {len(headers)} runs are in native space, the "
            f"others are not: {names_for_message(native)}. Register them too, or train on one "
            f"space at a time."
        )
    zooms = [np.linalg.norm(np.array(header.affine)[:3, :3], axis=0) for header in headers]
    spread = np.ptp(zooms, axis=0) / np.min(zooms, axis=0)
    if spread.max() > _LARGEST_SPREAD:
        low, high = np.min(zooms, axis=0).round(2), np.max(zooms, axis=0).round(2)
        logger.warning(
            "warning: --image_path: the runs have different voxel sizes, from %s to %s mm. "
            "Convert them with preprocessing.py --resample MM.",
            "x".join(map(str, low)),
            "x".join(map(str, high)),
        )


def _check_targets(data: RunData, task: DownstreamConfig) -> None:
    """Refuse training targets that are all equal or lack a class; warn of held-out ones."""
    found = data.targets_of_samples("train")
    if task.task_type == "regression":
        if min(found) == max(found):
            raise UserInputError(
                f"--downstream_task: all {len(found)} training subjects have the same "
                f"{task.task}, {found[0]}; there is nothing to learn."
            )
        return
    for part in ("val", "test"):
        there = set(data.targets_of_samples(part))
        if there and len(there) < len(task.class_names):
            names = [n for c, n in enumerate(task.class_names) if c not in there]
            logger.warning(
                "warning: the %s set holds no '%s': its AUROC is not defined. "
                "Another --dataset_split_num is drawn with all classes in all parts, if there are "
                "subjects enough.",
                {"val": "validation", "test": "test"}[part],
                ", ".join(names),
            )
    counts = Counter(found)
    absent = [name for c, name in enumerate(task.class_names) if not counts[c]]
    if absent:
        listed = ", ".join(f"{counts[c]} {name}" for c, name in enumerate(task.class_names))
        raise UserInputError(
            f"--downstream_task: the training subjects hold no '{', '.join(absent)}' "
            f"({listed}). Use another --dataset_split_num, or more subjects."
        )
