"""Open a store: read its headers, draw its split, find its targets; no image is opened."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.class_balance import with_all_classes
from neuromamba.data.cohorts.cohort_store import Store, split_unit_name
from neuromamba.data.cohorts.events import LabelledEvent, label_runs
from neuromamba.data.cohorts.grouping import matched_split, read_grouping
from neuromamba.data.cohorts.labels import read_labels, read_own_labels
from neuromamba.data.cohorts.leak_guards import refuse_copies, refuse_two_names
from neuromamba.data.cohorts.registry import DATASETS, Cohort
from neuromamba.data.cohorts.split_files import has_split, load_or_draw_split
from neuromamba.data.cohorts.splits import PARTS, Split
from neuromamba.data.store.header_cache import read_headers
from neuromamba.data.store.reader import list_runs

logger = logging.getLogger(__name__)


def open_store(
    dataset: str,
    image_path: str,
    *,
    config: DataConfig,
    task: DownstreamConfig | None,
    write_split: bool,
) -> Store:
    """Read the headers, the split and the targets of a store.

    Args:
        dataset: a name of ``DATASETS``.
        image_path: the store's folder.
        config: how the data are split, and who is left out.
        task: the downstream task, or None for pre-training.
        write_split: keep a newly drawn split, and the headers.

    Raises:
        UserInputError: no runs, two names of one person, a split or targets that cannot be used.
    """
    cohort = DATASETS[dataset]
    paths = list_runs(image_path)
    found, errors = read_headers(image_path, paths, write=write_split)
    if errors:
        raise errors[0]
    headers = list(found.values())
    refuse_two_names({header.subject for header in headers}, cohort, image_path)
    subject_of = {split_unit_name(header, config.group_by): header.subject for header in headers}
    grouping = read_grouping(cohort, image_path, config, task, subject_of)
    admitted = _admitted(subject_of, cohort, config.bad_subj_path)
    if not has_split(image_path, config.dataset_split_num, grouping):
        kept = {subject_of[name] for name in admitted}
        runs = [i for i, header in enumerate(headers) if header.subject in kept]
        refuse_copies([paths[i] for i in runs], [headers[i] for i in runs], cohort)
    labels = _labels(admitted, cohort, image_path, task, subject_of)
    classes = {name: int(value) for name, value in labels.items()}
    classified = task if task is not None and task.task_type == "classification" else None
    if classified is not None and classes:
        grouping = with_all_classes(grouping, image_path, subject_of, classes, config, classified)
    split = load_or_draw_split(
        image_path,
        dataset,
        subject_of,
        config.dataset_split_num,
        config.train_split,
        config.val_split,
        grouping=grouping,
        write=write_split,
    ).restricted_to(admitted)
    store = Store(dataset, Path(image_path), tuple(paths), tuple(headers), grouping, split)
    return store if task is None else _with_targets(store, cohort, config, task, labels)


def _admitted(subject_of: Mapping[str, str], cohort: Cohort, path: str | None) -> list[str]:
    """Units that ``--bad_subj_path`` does not exclude, by their own or their subject's name."""
    if path is None:
        return list(subject_of)
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        raise UserInputError(f"--bad_subj_path: cannot read '{path}' ({reason}).") from None
    bad = {cohort.key(line) for line in lines if line.strip()}
    kept = [
        name
        for name, subject in subject_of.items()
        if cohort.key(subject) not in bad and cohort.key(name) not in bad
    ]
    logger.info("%s: %d of %d left out", path, len(subject_of) - len(kept), len(subject_of))
    return kept


# ---------------------------------------------------------------------------------------- targets


def _labels(
    units: Sequence[str],
    cohort: Cohort,
    image_path: str,
    task: DownstreamConfig | None,
    subject_of: Mapping[str, str],
) -> dict[str, int | float]:
    """Split unit -> target; nothing for a pre-training, or where events have the targets."""
    if task is None or task.events is not None:
        return {}
    names = [subject_of[name] for name in units]
    if task.label_csv is not None:
        of_subject = read_own_labels(cohort, task, names)
    else:
        of_subject = read_labels(cohort, Path(image_path), task.task, names, task.missing_codes)
    return {name: of_subject[subject_of[name]] for name in units if subject_of[name] in of_subject}


def _with_targets(
    store: Store,
    cohort: Cohort,
    config: DataConfig,
    task: DownstreamConfig,
    labels: dict[str, int | float],
) -> Store:
    """The store with its targets, and its split without the split units that have none."""
    if task.events is not None:
        if config.match_on:
            raise UserInputError("--match_on: pairs subjects; it cannot be used with --events.")
        chosen = set(store.split.subjects)
        headers = [header for header in store.headers if store.split_unit_of(header) in chosen]
        events = label_runs(headers, cohort.key, config, task)
        kept = [store.split_unit_of(header) for header in headers if header.label in events]
        if task.shuffle_labels is not None:
            events = _shuffled_events(events, task.shuffle_labels)
        return dataclasses.replace(store, split=store.split.restricted_to(kept), events=events)
    store = dataclasses.replace(store, split=store.split.restricted_to(labels), labels=labels)
    if config.match_on:
        subject_of = {store.split_unit_of(header): header.subject for header in store.headers}
        matched = matched_split(
            store.split, labels, cohort, store.image_path, config, task, subject_of
        )
        store = dataclasses.replace(store, split=matched)
    if task.shuffle_labels is not None:
        shuffled = _shuffled(labels, store.split, task.shuffle_labels)
        store = dataclasses.replace(store, labels=labels | shuffled)
    return store


def _shuffled(labels: Mapping[str, int | float], split: Split, seed: int) -> dict[str, int | float]:
    """Labels permuted over the split units of each part: the null of a permutation test.

    Permuting within the parts keeps their class proportions.
    """
    shuffled: dict[str, int | float] = {}
    for place, part in enumerate(PARTS):
        names = sorted(getattr(split, part))
        order = np.random.default_rng([seed, place]).permutation(len(names))
        shuffled |= {name: labels[names[i]] for name, i in zip(names, order, strict=True)}
    return shuffled


def _shuffled_events(
    events: Mapping[str, tuple[LabelledEvent, ...]], seed: int
) -> dict[str, tuple[LabelledEvent, ...]]:
    """Targets permuted over the events of each run."""
    shuffled = {}
    for place, run in enumerate(sorted(events)):
        targets = [event.target for event in events[run]]
        order = np.random.default_rng([seed, place]).permutation(len(targets))
        shuffled[run] = tuple(
            LabelledEvent(event.number, event.starts, targets[i])
            for event, i in zip(events[run], order, strict=True)
        )
    return shuffled
