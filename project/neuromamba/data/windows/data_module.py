"""The LightningDataModule: stores -> subjects -> split -> windows -> batches.

``DATASETS`` is re-exported here: to add a cohort, add its entry in
``data_preprocess_and_load/datasets.py``.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import ConcatDataset

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import names_for_message
from neuromamba.config.data import DataConfig
from neuromamba.config.names import ORIENTATION
from neuromamba.config.serialise import to_dict
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.cohort_store import open_store
from neuromamba.data.cohorts.grouping import column_of_units
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.cohorts.split_files import split_record, write_split_files
from neuromamba.data.cohorts.splits import PARTS
from neuromamba.data.windows.cache import WindowCache, cache_bytes
from neuromamba.data.windows.dataset import WindowDataset, event_name
from neuromamba.data.windows.loader import BatchReader, EpochSampler, in_order, window_loader
from neuromamba.data.windows.sampling import GroupedOrder
from neuromamba.evaluation.confound_columns import check_confounds
from neuromamba.evaluation.metrics import subject_key

__all__ = ["DATASETS", "FMRIDataModule"]
logger = logging.getLogger(__name__)


class FMRIDataModule(LightningDataModule):
    """Windows of one or several stores, split by subject (session or run: ``--group_by``).

    Everything is read and checked on construction, before a model is built; only headers are
    opened, no images. ``subjects`` are the names of what is split, for each part and store.

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
            open_store(name, path, config, task, write_split)
            for name, path in zip(config.dataset_name, config.image_path, strict=True)
        ]
        self.subjects = {part: self._subjects(part) for part in PARTS}
        if not any(self.subjects["train"]):
            raise UserInputError("--train_split: no training subject is left after exclusions.")
        self._refuse_leaks()
        self._compare_spaces()
        self.parts = {part: self._windows(part) for part in PARTS}
        if task is not None:
            self._check_targets(task)

    # ------------------------------------------------------------------ subjects and targets

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

    def unit_keys(self, part: str) -> dict[int, str]:
        """Key of what is split -> name; a subject has the same one in every store and run.

        Compared by ``Cohort.key``, so that ``sub-100307`` and ``100307`` are one.
        """
        keys: dict[int, str] = {}
        for store, names in zip(self.stores, self.subjects[part], strict=True):
            keys |= {person_key(store.dataset, name): name for name in names}
        return keys

    def person_keys(self, part: str) -> dict[int, str]:
        """As ``unit_keys``, of the subjects, whatever is split."""
        keys: dict[int, str] = {}
        for store, names in zip(self.stores, self.subjects[part], strict=True):
            subjects = {header.subject for header in store.runs_of(names)[1]}
            keys |= {person_key(store.dataset, name): name for name in subjects}
        return keys

    def run_contents(self, part: str) -> dict[int, str]:
        """Hash of the values of every run of a part -> its subject; whatever the run is called."""
        return {
            int(header.content_sha256[:15], 16): header.subject
            for store, names in zip(self.stores, self.subjects[part], strict=True)
            for header in store.runs_of(names)[1]
            if header.content_sha256
        }

    def _compare_spaces(self) -> None:
        """Positions are indices: other spaces and voxel sizes put other anatomy under them."""
        headers = [header for store in self.stores for header in store.headers]
        native = [header.label for header in headers if header.space == "native"]
        if native and len(native) < len(headers):
            raise UserInputError(
                f"--image_path: {len(native)} of {len(headers)} runs are in native space, the "
                f"others are not: {names_for_message(native)}. Register them too, or train on one "
                f"space at a time."
            )
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
        train = self.unit_keys("train")
        held_out = self.unit_keys("val") | self.unit_keys("test")
        shared = [train[key] for key in train.keys() & held_out.keys()]
        if shared:
            raise UserInputError(
                f"--image_path: {len(shared)} subject(s) are for training in one store and held "
                f"out in another: {names_for_message(shared)}. Put the same split_fixed_N.txt into "
                f"splits/ of both stores, or exclude the subjects with --bad_subj_path FILE."
            )

    def _window_sets(self, part: str) -> list[WindowDataset]:
        windows = self.parts[part]
        return [] if windows is None else list(windows.datasets)  # type: ignore[arg-type]

    def targets_of_units(self, part: str) -> list[int | float]:
        """Target of every subject (session, run) or event of a part that has windows."""
        found = [{w.unit: w.target for w in data.windows} for data in self._window_sets(part)]
        return [t for targets in found for t in targets.values() if t is not None]

    def _check_targets(self, task: DownstreamConfig) -> None:
        found = self.targets_of_units("train")
        if task.task_type == "regression":
            if min(found) == max(found):
                raise UserInputError(
                    f"--downstream_task: all {len(found)} training subjects have the same "
                    f"{task.task}, {found[0]}; there is nothing to learn."
                )
            return
        for part in ("val", "test"):
            there = set(self.targets_of_units(part))
            if there and len(there) < len(task.class_names):
                names = [n for c, n in enumerate(task.class_names) if c not in there]
                logger.warning(
                    "warning: the %s set holds no '%s': its AUROC is not defined (nan).",
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

    def target_scaling(self) -> tuple[float, float]:
        """Centre and scale of a regression target over the training subjects."""
        assert self.task is not None
        values = np.asarray(self.targets_of_units("train"), dtype=np.float64)
        if self.task.label_scaling_method == "minmax":
            return float(values.min()), float(np.ptp(values))
        return float(values.mean()), float(values.std())

    def class_weights(self) -> tuple[float, ...] | None:
        """Weight of each class in the loss; their mean over the training windows is 1."""
        assert self.task is not None
        if self.task.class_weights == "none":
            return None
        counts = Counter(w.target for data in self._window_sets("train") for w in data.windows)
        classes = range(len(self.task.class_names))
        return tuple(sum(counts.values()) / (len(classes) * counts[c]) for c in classes)

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
                        events=store.events,
                        unit_of=store.unit,
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

    def _order(self) -> GroupedOrder | None:
        """The order of training windows, if data sets or classes have set shares."""
        config = self.config
        if not (config.dataset_weights or config.balanced_sampling):
            return None
        groups: dict[tuple[int, float | None], list[int]] = {}
        place = 0
        for data in self._window_sets("train"):
            for window in data.windows:
                label = window.target if config.balanced_sampling else None
                groups.setdefault((data.dataset, label), []).append(place)
                place += 1
        sizes: Counter[int] = Counter()
        for (number, _), members in groups.items():
            sizes[number] += len(members)
        weights = config.dataset_weights or tuple(float(sizes[n]) for n in range(len(self.stores)))
        classes = Counter(number for number, _ in groups)
        shares = [weights[number] / classes[number] for number, _ in groups]
        return GroupedOrder(list(groups.values()), shares, config.seed)

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
        order = self._order() if train else in_order(size)
        rank = getattr(self.trainer, "global_rank", 0)
        ranks = getattr(self.trainer, "world_size", 1)
        return window_loader(
            windows,
            EpochSampler(size, self.config.seed, order, rank, ranks),
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

    @staticmethod
    def _hash(facts: Iterable[tuple[Any, ...]]) -> str:
        digest = hashlib.sha256()
        for fact in facts:
            digest.update(repr(fact).encode())
        return digest.hexdigest()[:16]

    def card(self) -> dict[str, Any]:
        """What a checkpoint should remember of its data, in plain containers."""
        return {
            "config": to_dict(self.config),
            "orientation": ORIENTATION,
            "scaling": self.config.input_scaling_method,
            "split_hash": self.split_hash,
            "images_hash": self._hash(
                (h.label, h.content_sha256, h.source_sha256) for s in self.stores for h in s.headers
            ),
            "targets_hash": self._hash(
                (part, w.unit, w.start, w.target)
                for part in PARTS
                for data in self._window_sets(part)
                for w in data.windows
            ),
            "training_subjects": sorted(self.person_keys("train")),
            "training_units": sorted(self.unit_keys("train")),
            "training_contents": sorted(self.run_contents("train")),
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

    def unit_names(self, part: str) -> dict[int, str]:
        """``subject_key`` -> name of what the predictions of a part are for.

        These are subjects (sessions, runs), or events; with several stores ``dataset/name``.
        """
        several = len(self.stores) > 1
        names: dict[int, str] = {}
        for number, (store, chosen) in enumerate(
            zip(self.stores, self.subjects[part], strict=True)
        ):
            units: Iterable[str] = chosen
            if store.events is not None:
                units = [
                    event_name(header, event.number)
                    for header in store.runs_of(chosen)[1]
                    for event in store.events.get(header.label, ())
                ]
            names |= {
                subject_key(unit, number): f"{store.dataset}/{unit}" if several else unit
                for unit in units
            }
        return names

    def named_targets(self, *parts: str) -> dict[str, int | float]:
        """Target of every unit of the parts, by the names of the predictions; not with events."""
        several = len(self.stores) > 1
        found: dict[str, int | float] = {}
        for part in parts:
            for store, names in zip(self.stores, self.subjects[part], strict=True):
                prefix = f"{store.dataset}/" if several else ""
                found |= {f"{prefix}{name}": (store.labels or {})[name] for name in names}
        return found

    def confounds(self, columns: Sequence[str]) -> dict[str, dict[str, str]]:
        """Columns of the stores' tables: name -> unit, by the names of the predictions -> text.

        Units without a value are absent.

        Raises:
            UserInputError: no table has a column; it is the target; or see ``check_confounds``.
        """
        several = len(self.stores) > 1
        columns = list(dict.fromkeys(columns))
        self._refuse_target(columns)
        found: dict[str, dict[str, str]] = {name: {} for name in columns}
        for number, store in enumerate(self.stores):
            units = {name for part in PARTS for name in self.subjects[part][number]}
            subject_of = {store.unit(h): h.subject for h in store.headers if store.unit(h) in units}
            prefix = f"{store.dataset}/" if several else ""
            for name in columns:
                values = column_of_units(
                    "--confounds",
                    name,
                    DATASETS[store.dataset],
                    store.image_path,
                    self.task,
                    subject_of,
                )
                found[name] |= {f"{prefix}{unit}": text for unit, text in values.items()}
        check_confounds(
            found,
            {
                "training and validation": list(self.named_targets("train", "val")),
                "test": list(self.named_targets("test")),
            },
        )
        return found

    def _refuse_target(self, columns: Sequence[str]) -> None:
        """The target explains itself."""
        assert self.task is not None
        targets = {self.task.task, self.task.target_column}
        for store in self.stores:
            targets |= set(DATASETS[store.dataset].columns_of(self.task.task))
        for name in columns:
            if name in targets:
                raise UserInputError(f"--confounds: '{name}' is the target itself; leave it out.")

    def describe(self) -> list[str]:
        """One line a store: subjects and windows of each part."""
        lines = []
        for number, store in enumerate(self.stores):
            counts = ", ".join(f"{part} {len(self.subjects[part][number])}" for part in PARTS)
            lines.append(
                f"{store.dataset} ({store.image_path}): {len(store.paths)} runs, "
                f"{store.grouping.unit}s {counts}"
            )
        return lines


def person_key(dataset: str, name: str) -> int:
    """Key of a subject, session or run of a cohort; the same in every store."""
    return subject_key(f"{dataset}/{DATASETS[dataset].key(name)}")
