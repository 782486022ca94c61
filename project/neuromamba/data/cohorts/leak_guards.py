"""Rules against leaks: nobody is tested on who, or what, the model was trained on.

- In a store: two names of one person (``refuse_two_names``), and one scan under two names
  (``refuse_copies``).
- Between stores: a person for training in one and held out in another (``refuse_shared_subjects``).
- Between runs: a model or backbone that was trained on subjects who are held out here, by their
  names and by the content of their runs (``refuse_trained_subjects``).
- In the evaluation: the target among the confounds (``refuse_target_as_confound``).

Families that must stay in one part are a matter of the split (``splits``, ``grouping``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError, see
from neuromamba.common.text import names_for_message
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.cohort_store import Store
from neuromamba.data.cohorts.registry import DATASETS, Cohort
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.near_copies import near_copies
from neuromamba.evaluation.subject_keys import subject_key

logger = logging.getLogger(__name__)
# Part of the split -> names of its split units in each store.
Parts = Mapping[str, Sequence[Sequence[str]]]


def person_key(dataset: str, name: str) -> int:
    """Return the key of a subject, session or run of a cohort, the same in every store and run.

    Names are compared by ``Cohort.key``, so that ``sub-100307`` and ``100307`` are one.
    """
    return subject_key(f"{dataset}/{DATASETS[dataset].key(name)}")


def split_unit_keys(stores: Sequence[Store], names: Sequence[Sequence[str]]) -> dict[int, str]:
    """Return key -> name of the given split units of each store."""
    keys: dict[int, str] = {}
    for store, chosen in zip(stores, names, strict=True):
        keys |= {person_key(store.dataset, name): name for name in chosen}
    return keys


def person_keys(stores: Sequence[Store], names: Sequence[Sequence[str]]) -> dict[int, str]:
    """Return key -> name of the subjects of the split units, which may be sessions or runs."""
    keys: dict[int, str] = {}
    for store, chosen in zip(stores, names, strict=True):
        subjects = {header.subject for header in store.runs_of(chosen)[1]}
        keys |= {person_key(store.dataset, name): name for name in subjects}
    return keys


def run_contents(stores: Sequence[Store], names: Sequence[Sequence[str]]) -> dict[int, str]:
    """Return hash of the values -> subject of the split units' runs, whatever a run is called."""
    return {
        int(header.content_sha256[:15], 16): header.subject
        for store, chosen in zip(stores, names, strict=True)
        for header in store.runs_of(chosen)[1]
        if header.content_sha256
    }


def refuse_two_names(subjects: Iterable[str], cohort: Cohort, image_path: str) -> None:
    """Refuse a store with two names of one person, who could come into two parts of the split.

    Raises:
        UserInputError: lists the names.
    """
    names: dict[str, list[str]] = {}
    for subject in sorted(subjects):
        names.setdefault(cohort.key(subject), []).append(subject)
    several = [" and ".join(group) for group in names.values() if len(group) > 1]
    if several:
        raise UserInputError(
            f"--image_path: in '{image_path}' {len(several)} person(s) of {cohort.name} have "
            f"several names: {names_for_message(several)}. Convert their runs under one subject "
            f"(sub-NAME_ses-1_task-rest_bold.nii.gz, sub-NAME_ses-2_...), so that a split keeps "
            f"them together."
        )


def refuse_copies(paths: Sequence[Path], headers: Sequence[RunHeader], cohort: Cohort) -> None:
    """Refuse to draw a split where two people hold one scan (``data.store.near_copies``).

    Raises:
        UserInputError: lists the runs; or a run cannot be read.
    """
    copies = near_copies(paths, headers, cohort.key)
    if copies:
        listed = [f"{copy.one.label} and {copy.other.label}" for copy in copies]
        raise UserInputError(
            f"--image_path: {len(copies)} pair(s) of runs of different subjects hold the same scan "
            f"(but for offset or unit): {names_for_message(listed)}. One would be trained on and "
            f"the other tested. Leave one of each out with --bad_subj_path FILE, or convert them "
            f"under one subject."
        )


def refuse_shared_subjects(stores: Sequence[Store], parts: Parts) -> None:
    """Refuse a person in two parts: stores of one cohort draw their splits independently.

    Raises:
        UserInputError: lists the subjects that are for training in one store and held out in
            another.
    """
    train = split_unit_keys(stores, parts["train"])
    held_out = split_unit_keys(stores, parts["val"]) | split_unit_keys(stores, parts["test"])
    shared = [train[key] for key in train.keys() & held_out.keys()]
    if shared:
        raise UserInputError(
            f"--image_path: {len(shared)} subject(s) are for training in one store and held "
            f"out in another: {names_for_message(shared)}. Put the same split_fixed_N.txt into "
            f"splits/ of both stores, or exclude the subjects with --bad_subj_path FILE."
        )


def knows_training_subjects(data_metadata: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds the keys of its training subjects; exports for others do not."""
    return "training_subjects" in data_metadata


def warn_of_unknown_subjects(data_metadata: Mapping[str, Any], flag: str, path: str) -> None:
    """Log a warning about a checkpoint that does not say who it was trained on.

    Args:
        data_metadata: what the checkpoint says of its data.
        flag: the flag that named it.
        path: the checkpoint.
    """
    if not knows_training_subjects(data_metadata):
        logger.warning(
            "warning: %s: '%s' does not hold the keys of its training subjects (it was exported to "
            "be shared), so subjects held out here who were trained on there are not found. Make "
            "sure that the data are others.",
            flag,
            path,
        )


def trained_subjects(
    data_metadata: Mapping[str, Any], stores: Sequence[Store], parts: Parts, group_by: str
) -> list[str]:
    """Return the names of held-out split units that a checkpoint was trained on.

    None can be named where the checkpoint does not hold its training subjects
    (``warn_of_unknown_subjects``).

    Args:
        data_metadata: what the checkpoint says of its data (``RunData.metadata``).
        stores, parts: the data of this run.
        group_by: what is split in this run, a name of ``SPLIT_UNITS``.
    """
    if not knows_training_subjects(data_metadata):
        return []
    # Where sessions or runs are split, then and now, a subject is in several parts on purpose.
    then = data_metadata["config"].get("group_by", "subject")
    same_split_unit = then == group_by != "subject"
    trained = set(data_metadata["training_units" if same_split_unit else "training_subjects"])
    keys = split_unit_keys if same_split_unit else person_keys
    held_out = keys(stores, parts["val"]) | keys(stores, parts["test"])
    shared = [name for key, name in held_out.items() if key in trained]
    if shared or same_split_unit:
        return shared
    # Under another name: the same values of a run. Older checkpoints do not hold these hashes.
    contents = set(data_metadata.get("training_contents", ()))
    held = run_contents(stores, parts["val"]) | run_contents(stores, parts["test"])
    return sorted(
        f"{name} (by the contents of its run)" for key, name in held.items() if key in contents
    )


def refuse_trained_subjects(
    shared: Sequence[str], flag: str, path: str, *, supervised: bool
) -> None:
    """Refuse a supervised model that was trained on subjects who are held out in this run.

    A backbone has seen them without their labels; then a warning is logged.

    Args:
        shared: their names, from ``trained_subjects``.
        flag: the flag that named the checkpoint.
        path: the checkpoint.
        supervised: whether the checkpoint is a model of the task, not a backbone to start from.

    Raises:
        UserInputError: lists them.
    """
    if not shared:
        return
    message = (
        f"{flag}: {len(shared)} subject(s) held out here were trained on in '{path}': "
        f"{names_for_message(shared)}. Use its split (--dataset_split_num, --train_split, "
        f"--val_split), or exclude them with --bad_subj_path FILE. {see('trained-on')}"
    )
    if supervised:
        raise UserInputError(message)
    logger.warning("warning: %s", message)


def refuse_target_as_confound(
    columns: Iterable[str], task: DownstreamConfig, stores: Iterable[Store]
) -> None:
    """Refuse the target among the confounds: it would explain itself.

    Raises:
        UserInputError: names the column.
    """
    targets = {task.task, task.target_column}
    for store in stores:
        targets |= set(DATASETS[store.dataset].columns_of(task.task))
    for name in columns:
        if name in targets:
            raise UserInputError(f"--confounds: '{name}' is the target itself; leave it out.")
