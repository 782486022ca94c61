"""Downstream tasks, and what follows from their being a classification or a regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskType:
    """What follows from a task being a classification or a regression.

    Attributes:
        loss: name in ``losses.LOSSES``.
        metrics: names of the subject-level metrics written as ``val/<name>`` and ``test/<name>``.
        main_metric: the one of ``metrics`` that models are compared by.
        monitor: validation metric that chooses the best checkpoint.
        monitor_mode: "max" or "min".
    """

    loss: str
    metrics: tuple[str, ...]
    main_metric: str
    monitor: str
    monitor_mode: str


TASK_TYPES: Mapping[str, TaskType] = {
    "classification": TaskType(
        loss="cross_entropy",
        metrics=("auroc", "accuracy", "balanced_accuracy"),
        main_metric="auroc",
        # Cross entropy, because the AUROC of a few validation subjects ties at 1.
        monitor="val/loss",
        monitor_mode="min",
    ),
    "regression": TaskType(
        loss="mse",
        metrics=("mse", "mae", "pearson_r", "r2"),
        main_metric="pearson_r",
        monitor="val/mse",
        monitor_mode="min",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A downstream target.

    Attributes:
        type: the key of ``TASK_TYPES`` used unless ``--downstream_task_type`` says otherwise.
        num_classes: classes of a classification.
        class_names: shown in reports, in the order of the class index.
        unit: of the values of a regression; "" for a score without one.
        description: one line for ``--help``.
    """

    type: str
    num_classes: int = 2
    class_names: tuple[str, ...] = ()
    unit: str = ""
    description: str = ""


TASKS: Mapping[str, Task] = {
    "sex": Task(
        type="classification",
        num_classes=2,
        class_names=("female", "male"),
        description="sex as recorded by the cohort",
    ),
    "age": Task(type="regression", unit="years", description="age in years"),
    "intelligence": Task(type="regression", description="the cohort's composite cognition score"),
    "diagnosis": Task(
        type="classification",
        num_classes=2,
        class_names=("control", "patient"),
        description="case or control",
    ),
    "age_group": Task(
        type="classification",
        num_classes=2,
        class_names=("child", "adult"),
        description="child or adult",
    ),
}
