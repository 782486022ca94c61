"""Tables of pages."""

from __future__ import annotations

import dataclasses
from collections.abc import MutableMapping
from typing import Any, cast

import numpy as np
import pytest
import torch

from neuromamba.config.tasks import TASK_TYPES
from neuromamba.evaluation.metrics import METRICS
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.pages.tables import metrics_table

NAME = "true_negative_rate"


def true_negative_rate(score: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (score.argmax(1)[target == 0] == 0).double().mean()


def test_a_new_metric_needs_its_function_and_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two places that docs/architecture.md names suffice for a column with an interval."""
    kind = TASK_TYPES["classification"]
    more = dataclasses.replace(kind, metrics=(*kind.metrics, NAME))
    monkeypatch.setitem(cast(MutableMapping[str, Any], TASK_TYPES), "classification", more)
    monkeypatch.setitem(cast(MutableMapping[str, Any], METRICS), NAME, true_negative_rate)
    target, positive = np.arange(20) % 2, np.random.default_rng(0).random(20)
    score = np.stack([1 - positive, positive], axis=1)
    subjects = tuple(map(str, range(20)))
    table = metrics_table({"model": SubjectScores(subjects, target, score)}, ("a", "b"))
    cell = str(table.rows[0][list(table.header).index("True negative rate")])
    assert cell.startswith(f"{(positive[target == 0] <= 0.5).mean():.3f} [")
