"""The LightningDataModule: stores -> subjects -> split -> windows -> batches.

``DATASETS`` is re-exported here: to add a cohort, add its entry in
``data_preprocess_and_load/datasets.py``.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import ConcatDataset, DataLoader, Sampler

from project.module.config import (
    ORIENTATION,
    TASKS,
    DataConfig,
    DownstreamConfig,
    UserInputError,
    to_dict,
)
from project.module.utils.data_preprocess_and_load.datasets import DATASETS, read_labels
from project.module.utils.data_preprocess_and_load.datasets_hdf5 import (
    WindowDataset,
    collate_windows,
)
from project.module.utils.data_preprocess_and_load.hdf5_store import (
    RunHeader,
    list_runs,
    read_header,
)
from project.module.utils.data_preprocess_and_load.splits import (
    PARTS,
    Split,
    load_or_draw_split,
    split_record,
    write_split_files,
)
from project.module.utils.metrics import subject_key

__all__ = ["DATASETS", "EpochSampler", "FMRIDataModule"]
logger = logging.getLogger(__name__)


class EpochSampler(Sampler[int]):
    """A new order in every epoch, which depends on the seed and the epoch alone.

    Lightning calls ``set_epoch``, so that a resumed run sees the orders it would have seen.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return iter(order.tolist())


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
        self.stores = [
            self._open(name, path, write_split)
            for name, path in zip(config.dataset_name, config.image_path, strict=True)
        ]
        self.subjects = {part: self._subjects(part) for part in PARTS}
        if not any(self.subjects["train"]):
            raise UserInputError("--train_split: no training subject is left after exclusions.")
        if task is not None:
            self._check_labels(task)
        self.parts = {part: self._windows(part) for part in PARTS}

    # ------------------------------------------------------------------ stores, subjects, labels

    def _open(self, dataset: str, image_path: str, write_split: bool) -> Store:
        paths = list_runs(image_path)
        headers = [read_header(path) for path in paths]
        everybody = sorted({header.subject for header in headers})
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
            if part == "train" and self.config.include_valid_to_train:
                names = names + store.split.val
            if limit is not None and names:
                count = int(limit) if limit > 1 else max(1, round(limit * len(names)))
                # One order for all limits: a smaller sample is part of a larger one.
                order = np.random.default_rng([self.config.seed, 0]).permutation(len(names))
                names = tuple(sorted(names)[i] for i in sorted(order[:count]))
            chosen.append(names)
        return chosen

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

    def _loader(self, part: str) -> Any:
        windows = self.parts[part]
        if windows is None:
            return []
        train = part == "train"
        workers = self.config.num_workers
        return DataLoader(
            windows,
            batch_size=self.config.batch_size if train else self.config.eval_batch_size,
            sampler=EpochSampler(len(windows), self.config.seed) if train else None,
            collate_fn=collate_windows,
            num_workers=workers,
            pin_memory=self.config.pin_memory,
            persistent_workers=self.config.persistent_workers,
            # Forking a process that holds OpenMP threads or HDF5 locks can hang.
            multiprocessing_context="spawn" if workers else None,
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
