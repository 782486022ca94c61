"""Classes in every part of a split: without both, AUROC has no value, nor can one be chosen by it.

A new draw whose parts would lack a class is replaced by one stratified by the target. Splits that a
store already has stay as they are; ``RunData`` warns of a part that lacks a class.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from neuromamba.config.data import DataConfig
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.split_files import has_split
from neuromamba.data.cohorts.splits import PARTS, Grouping, absent_classes, draw_split

logger = logging.getLogger(__name__)


def with_all_classes(
    grouping: Grouping,
    image_path: str | Path,
    names: Mapping[str, str],
    classes: Mapping[str, int],
    config: DataConfig,
    task: DownstreamConfig,
) -> Grouping:
    """The grouping, with the target as a stratum where a new draw would lack a class in a part.

    Args:
        grouping: asked for.
        image_path: the store's folder; a split that it has is used whatever it lacks.
        names: split unit -> subject, all of the store.
        classes: split unit -> class, of those that have one.
        config: number and fractions of the split.
        task: names the target and its classes.
    """
    if has_split(image_path, config.dataset_split_num, grouping):
        return grouping
    drawn = (config.dataset_split_num, config.train_split, config.val_split)
    split = draw_split(names, *drawn, grouping)
    absent = absent_classes(split, classes)
    parts = sum(bool(getattr(split, part)) for part in PARTS)
    if not absent or min(Counter(classes.values()).values()) < parts:
        return grouping  # a class too rare to be in all parts
    logger.warning(
        "warning: --dataset_split_num %d: %s; the split is drawn stratified by %s instead",
        config.dataset_split_num,
        _said(absent, task),
        task.task,
    )
    return replace(grouping, target=task.task, classes=classes)


def _said(absent: Mapping[str, set[int]], task: DownstreamConfig) -> str:
    """``val has no subject of male``, for each part."""

    def name(label: int) -> str:
        return task.class_names[label] if task.class_names else f"class {label}"

    return ", ".join(
        f"{part} has no subject of {' or '.join(map(name, sorted(found)))}"
        for part, found in absent.items()
    )
