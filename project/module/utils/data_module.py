"""The LightningDataModule: stores -> subjects -> split -> windows -> batches.

``DATASETS`` is re-exported here: to add a cohort, add its entry in
``data_preprocess_and_load/datasets.py``.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import ConcatDataset

from project.module.config import (
    ORIENTATION,
    TASKS,
    DataConfig,
    DownstreamConfig,
    UserInputError,
    to_dict,
)
from project.module.utils.data_preprocess_and_load.datasets import DATASETS, read_labels
from project.module.utils.data_preprocess_and_load.datasets_hdf5 import WindowDataset
from project.module.utils.data_preprocess_and_load.hdf5_store import (
    RunHeader,
    list_runs,
    read_header,
)
from project.module.utils.data_preprocess_and_load.splits import (
    PARTS,
    Split,
    load_or_draw_split,
    names_for_message,
    split_record,
    write_split_files,
)
from project.module.utils.data_preprocess_and_load.window_cache import WindowCache, cache_bytes
from project.module.utils.data_preprocess_and_load.window_loader import (
    BatchReader,
    EpochSampler,
    window_loader,
)
from project.module.utils.metrics import subject_key

__all__ = ["DATASETS", "FMRIDataModule"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """One data set's runs and the split of its subjects.

    Attributes:
        dataset: key of ``DATASETS``.
        image_path: folder of the store.
        paths, headers: of every run, in the order of the file names.
        split: of the subjects in use, exclusions taken out.
        labels: subject -> target; None for pre-training.
    """

    dataset: str
    image_path: Path
    paths: tuple[Path, ...]
    headers: tuple[RunHeader, ...]
    split: Split
    labels: Mapping[str, int | float] | None

    def runs_of(self, subjects: Sequence[str]) -> tuple[list[Path], list[RunHeader]]:
        """Runs of these subjects, in the order of the file names."""
        wanted = set(subjects)
        chosen = [
            (p, h) for p, h in zip(self.paths, self.headers, strict=True) if h.subject in wanted
        ]
        return [p for p, _ in chosen], [h for _, h in chosen]


class FMRIDataModule(LightningDataModule):
    """Windows of one or several stores, split by subject.

    Everything is read and checked on construction, before a model is built; only headers are
    opened, no images.

    Args:
        config: which data, how windowed, scaled and split.
        task: the downstream task, or None for pre-training.
        write_split: keep a newly drawn split in the store (not in a dry run).

    Raises:
        UserInputError: no data, unusable runs, missing labels, a class absent from the training
            subjects, no subjects left.
    """

    def __init__(
        self, config: DataConfig, task: DownstreamConfig | None = None, write_split: bool = True
    ) -> None:
        super().__init__()
        self.config, self.task = config, task
        places = [Path(path).resolve() for path in config.image_path]
        if len(set(places)) < len(places):
            raise UserInputError("--image_path: the same folder is given twice.")
        self.stores = [
            self._open(name, path, write_split)
            for name, path in zip(config.dataset_name, config.image_path, strict=True)
        ]
        self.subjects = {part: self._subjects(part) for part in PARTS}
        if not any(self.subjects["train"]):
            raise UserInputError("--train_split: no training subject is left after exclusions.")
        self._refuse_leaks()
        self._compare_voxel_sizes()
        if task is not None:
            self._check_labels(task)
        self.parts = {part: self._windows(part) for part in PARTS}

    # ------------------------------------------------------------------ stores, subjects, labels

    def _open(self, dataset: str, image_path: str, write_split: bool) -> Store:
        paths = list_runs(image_path)
        headers = [read_header(path) for path in paths]
        everybody = sorted({header.subject for header in headers})
        _refuse_two_names(everybody, dataset, image_path)
        split = load_or_draw_split(
            image_path,
            dataset,
            everybody,
            self.config.dataset_split_num,
            self.config.train_split,
            self.config.val_split,
            write=write_split,
        ).restricted_to(self._admitted(everybody, dataset))
        labels = None
        if self.task is not None:
            labels = read_labels(DATASETS[dataset], image_path, self.task.task, split.subjects)
            if self.task.shuffle_labels is not None:
                labels = _shuffled(labels, split, self.task.shuffle_labels)
        return Store(dataset, Path(image_path), tuple(paths), tuple(headers), split, labels)

    def _admitted(self, everybody: Sequence[str], dataset: str) -> list[str]:
        """Subjects that ``--bad_subj_path`` does not exclude."""
        path = self.config.bad_subj_path
        if path is None:
            return list(everybody)
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise UserInputError(
                f"--bad_subj_path: cannot read '{path}' ({error.strerror})."
            ) from None
        key = DATASETS[dataset].key
        bad = {key(line) for line in lines if line.strip()}
        kept = [name for name in everybody if key(name) not in bad]
        logger.info("%s: %d subjects left out", path, len(everybody) - len(kept))
        return kept

    def _subjects(self, part: str) -> list[tuple[str, ...]]:
        """Subjects of a part in each store, ``--limit_*_samples`` applied."""
        limit = {
            "train": self.config.limit_training_samples,
            "val": self.config.limit_validation_samples,
            "test": self.config.limit_test_samples,
        }[part]
        chosen = []
        for store in self.stores:
            names: tuple[str, ...] = getattr(store.split, part)
            if self.config.include_valid_to_train and part != "test":
                # Nothing is validated then: it would be on subjects that were trained on.
                names = names + store.split.val if part == "train" else ()
            if limit is not None and names:
                count = int(limit) if limit > 1 else max(1, round(limit * len(names)))
                # One order for all limits: a smaller sample is part of a larger one.
                order = np.random.default_rng([self.config.seed, 0]).permutation(len(names))
                names = tuple(sorted(names)[i] for i in sorted(order[:count]))
            chosen.append(names)
        return chosen

    def person_keys(self, part: str) -> dict[int, str]:
        """Key of each person of a part -> name; the same person has it in every store and run.

        Compared by ``Cohort.key``, so that ``sub-100307`` and ``100307`` are one.
        """
        keys: dict[int, str] = {}
        for store, names in zip(self.stores, self.subjects[part], strict=True):
            key = DATASETS[store.dataset].key
            keys |= {subject_key(f"{store.dataset}/{key(name)}"): name for name in names}
        return keys

    def _compare_voxel_sizes(self) -> None:
        """Positions are indices: runs of another voxel size put other anatomy under them."""
        headers = [header for store in self.stores for header in store.headers]
        zooms = [np.linalg.norm(np.array(header.affine)[:3, :3], axis=0) for header in headers]
        spread = np.ptp(zooms, axis=0) / np.min(zooms, axis=0)
        if spread.max() > 0.01:
            low, high = np.min(zooms, axis=0).round(2), np.max(zooms, axis=0).round(2)
            logger.warning(
                "warning: --image_path: the runs have different voxel sizes, from %s to %s mm. "
                "Convert them with preprocessing.py --resample MM.",
                "x".join(map(str, low)),
                "x".join(map(str, high)),
            )

    def _refuse_leaks(self) -> None:
        """Stores of one cohort draw their splits apart: a person may be in two parts."""
        train = self.person_keys("train")
        held_out = self.person_keys("val") | self.person_keys("test")
        shared = [train[key] for key in train.keys() & held_out.keys()]
        if shared:
            raise UserInputError(
                f"--image_path: {len(shared)} subject(s) are for training in one store and held "
                f"out in another: {names_for_message(shared)}. Put the same split_fixed_N.txt into "
                f"splits/ of both stores, or exclude the subjects with --bad_subj_path FILE."
            )

    def _labels(self, part: str) -> list[int | float]:
        return [
            store.labels[name]
            for store, names in zip(self.stores, self.subjects[part], strict=True)
            if store.labels is not None
            for name in names
        ]

    def _check_labels(self, task: DownstreamConfig) -> None:
        if task.task_type == "regression":
            values = self._labels("train")
            if min(values) == max(values):
                raise UserInputError(
                    f"--downstream_task: all {len(values)} training subjects have the same "
                    f"{task.task}, {values[0]}; there is nothing to learn."
                )
            return
        counts = Counter(self._labels("train"))
        names = TASKS[task.task].class_names
        absent = [names[c] for c in range(TASKS[task.task].num_classes) if not counts[c]]
        if absent:
            found = ", ".join(f"{counts[c]} {name}" for c, name in enumerate(names))
            raise UserInputError(
                f"--downstream_task: the training subjects hold no '{', '.join(absent)}' "
                f"({found}). Use another --dataset_split_num, or more subjects."
            )

    def target_scaling(self) -> tuple[float, float]:
        """Centre and scale of a regression target over the training subjects."""
        assert self.task is not None
        values = np.asarray(self._labels("train"), dtype=np.float64)
        if self.task.label_scaling_method == "minmax":
            return float(values.min()), float(np.ptp(values))
        return float(values.mean()), float(values.std())

    # ------------------------------------------------------------------ windows and batches

    def _windows(self, part: str) -> ConcatDataset[dict[str, Any]] | None:
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
                        headers=headers,
                        dataset=number,
                        max_windows_per_run=segments,
                    )
                )
        return ConcatDataset(sets) if sets else None

    def windows_in(self, part: str) -> int:
        """Windows of a part."""
        windows = self.parts[part]
        return 0 if windows is None else len(windows)

    def batches_in(self, part: str, ranks: int = 1) -> int:
        """Batches of a part that each rank sees in an epoch."""
        size = self.config.batch_size if part == "train" else self.config.eval_batch_size
        return math.ceil(math.ceil(self.windows_in(part) / ranks) / size)

    def cache_bytes(self, processes: int = 1) -> int:
        """Bytes of the window cache of each training process of this machine; 0: none.

        Raises:
            UserInputError: ``--window_cache`` asks for more memory than is free.
        """
        windows = self.parts["train"]
        if windows is None or not self.config.window_cache:
            return 0
        largest = BatchReader(windows).largest()
        return cache_bytes(self.config.window_cache, len(windows), largest, processes)

    def _loader(self, part: str) -> Any:
        windows = self.parts[part]
        if windows is None:
            return []
        train, size, cache = part == "train", len(windows), None
        if train and self.config.window_cache:
            capacity = self.cache_bytes(getattr(self.trainer, "num_devices", 1))
            if capacity:
                cache = WindowCache(size, BatchReader(windows).largest(), capacity)
            places = cache.places if cache else 0
            logger.info("window cache: room for %d of %d training windows", places, size)
        return window_loader(
            windows,
            EpochSampler(size, self.config.seed) if train else None,
            self.config,
            self.config.batch_size if train else self.config.eval_batch_size,
            cache,
        )

    def train_dataloader(self) -> Any:
        """Shuffled training windows."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Validation windows in order; none if there are no validation subjects."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Test windows in order."""
        return self._loader("test")

    # ------------------------------------------------------------------ records

    @property
    def split_hash(self) -> str:
        """Hash of the splits of all stores."""
        joined = " ".join(store.split.hash for store in self.stores)
        return hashlib.sha256(joined.encode()).hexdigest()[:16]

    def card(self) -> dict[str, Any]:
        """What a checkpoint should remember of its data, in plain containers."""
        return {
            "config": to_dict(self.config),
            "orientation": ORIENTATION,
            "scaling": self.config.input_scaling_method,
            "split_hash": self.split_hash,
            "training_subjects": sorted(self.person_keys("train")),
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
            )
            name = store.dataset if len(self.stores) == 1 else f"{number}_{store.dataset}"
            write_split_files(folder / name, store.split, record)

    def subject_names(self, part: str) -> dict[int, str]:
        """``subject_key`` -> name of the subjects of a part; with several stores ``store/name``."""
        several = len(self.stores) > 1
        return {
            subject_key(name, number): f"{store.dataset}/{name}" if several else name
            for number, (store, names) in enumerate(
                zip(self.stores, self.subjects[part], strict=True)
            )
            for name in names
        }

    def describe(self) -> list[str]:
        """One line a store: subjects and windows of each part."""
        lines = []
        for number, store in enumerate(self.stores):
            counts = ", ".join(f"{part} {len(self.subjects[part][number])}" for part in PARTS)
            lines.append(
                f"{store.dataset} ({store.image_path}): {len(store.paths)} runs, subjects {counts}"
            )
        return lines


def _refuse_two_names(subjects: Sequence[str], dataset: str, image_path: str) -> None:
    """Two names of one person in a store could come into different parts of the split."""
    names: dict[str, list[str]] = {}
    for subject in subjects:
        names.setdefault(DATASETS[dataset].key(subject), []).append(subject)
    twice = [" and ".join(group) for group in names.values() if len(group) > 1]
    if twice:
        raise UserInputError(
            f"--image_path: in '{image_path}' {len(twice)} person(s) of {dataset} have several "
            f"names: {names_for_message(twice)}. Convert their runs under one subject "
            f"(sub-NAME_ses-1_task-rest_bold.nii.gz, sub-NAME_ses-2_...), so that a split keeps "
            f"them together."
        )


def _shuffled(labels: Mapping[str, int | float], split: Split, seed: int) -> dict[str, int | float]:
    """Labels permuted over the subjects of each part: the null of a permutation test.

    Permuting within the parts keeps their class proportions.
    """
    shuffled: dict[str, int | float] = {}
    for number, part in enumerate(PARTS):
        names = sorted(getattr(split, part))
        order = np.random.default_rng([seed, number]).permutation(len(names))
        shuffled |= {name: labels[names[i]] for name, i in zip(names, order, strict=True)}
    return shuffled
