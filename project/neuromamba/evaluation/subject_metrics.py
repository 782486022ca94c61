"""Metrics over subjects: the scores of a subject's windows are averaged first.

The states of a torchmetrics ``Metric`` are gathered from all ranks before anything is computed, so
that a value does not depend on the number of ranks or on the batch size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from neuromamba.config.tasks import TASK_TYPES
from neuromamba.evaluation.metrics import METRICS


class WindowScores(NamedTuple):
    """Scores of all windows, each once, ordered by subject and window.

    Attributes:
        subject: [W] ``subject_key`` of the subject.
        window: [W] index of the window within its subject.
        score: [W, classes] probabilities, or [W, 1] prediction in the target's units.
        target: [W] class index or value.
    """

    subject: Tensor
    window: Tensor
    score: Tensor
    target: Tensor


def first_occurrences(subject: Tensor, window: Tensor) -> Tensor:
    """Return the indices of distinct windows, ordered by subject and window.

    A window that several ranks have seen, as padding, is counted once, and the order does not
    depend on the ranks.
    """
    key = torch.stack([subject, window], dim=1)
    unique, inverse = key.unique(dim=0, return_inverse=True)
    return torch.full((len(unique),), len(key), device=key.device).scatter_reduce(
        0, inverse, torch.arange(len(key), device=key.device), reduce="amin"
    )


class SubjectMetrics(Metric):
    """Averages the scores of a subject's windows, then computes metrics over subjects.

    Args:
        task_type: key of ``TASK_TYPES``, which names the metrics.
    """

    full_state_update = False
    subject: list[Tensor]
    window: list[Tensor]
    score: list[Tensor]
    target: list[Tensor]

    def __init__(self, task_type: str) -> None:
        super().__init__()
        self.names = TASK_TYPES[task_type].metrics
        for state in ("subject", "window", "score", "target"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, subject: Tensor, window: Tensor, score: Tensor, target: Tensor) -> None:
        """Add windows: subject (B,), window (B,), score (B, classes or 1), target (B,)."""
        self.subject.append(subject)
        self.window.append(window)
        self.score.append(score.double())
        self.target.append(target)

    def all_windows(self) -> WindowScores:
        """Return the windows of all ranks together, on the CPU."""
        with self.sync_context():
            return WindowScores(*(tensor.cpu() for tensor in self.windows()))

    def windows(self) -> WindowScores:
        """Return the windows in the states, each once."""
        subject, window = dim_zero_cat(self.subject), dim_zero_cat(self.window)
        first = first_occurrences(subject, window)
        return WindowScores(
            subject[first],
            window[first],
            dim_zero_cat(self.score)[first],
            dim_zero_cat(self.target)[first],
        )

    def compute(self) -> dict[str, Tensor]:
        """Return metric name -> value over subjects."""
        seen = self.windows()
        subjects, index = seen.subject.unique(return_inverse=True)
        total = seen.score.new_zeros(len(subjects), seen.score.shape[1])
        mean = total.index_add(0, index, seen.score) / index.bincount()[:, None]
        target = seen.target.new_zeros(len(subjects)).index_copy(0, index, seen.target)
        if not torch.equal(target[index], seen.target):
            raise ValueError("the windows of a subject have different targets")
        if target.is_floating_point():
            target = target.double()
        return {name: METRICS[name](mean, target) for name in self.names}
