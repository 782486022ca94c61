"""Metrics of pre-training: the token loss with its controls, and the quality of the features.

States are gathered from all ranks before anything is computed, as in ``subject_metrics``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from neuromamba.evaluation.mean_loss import keep_fp64
from neuromamba.evaluation.metrics import balanced_accuracy
from neuromamba.evaluation.subject_metrics import first_occurrences

_BLOCK_ROWS = 4096
_NEIGHBOURS = 5  # of kNN over subjects


class FeatureMetrics(Metric):
    """The quality of frozen features without a head: rank, spread, nearest neighbours.

    A window's feature is the mean over its tokens. ``feature_rank`` is their effective rank
    (RankMe; Garrido et al. 2023, ICML; here of centred features, so that constant ones have none),
    ``feature_std`` the mean standard deviation over windows; ``knn_subject`` the share of windows
    whose most similar other window (cosine) is of the same subject, of subjects with several;
    ``knn_<task>`` the balanced accuracy of the 5 most similar other subjects' majority.

    Args:
        labels: subject key -> class; empty for no ``knn_<task>``.
        task: its name.
    """

    full_state_update = False
    subject: list[Tensor]
    window: list[Tensor]
    feature: list[Tensor]

    def __init__(self, labels: Mapping[int, int] | None = None, task: str = "") -> None:
        super().__init__()
        self.labels, self.task = dict(labels or {}), task
        for state in ("subject", "window", "feature"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, subject: Tensor, window: Tensor, feature: Tensor) -> None:
        """Add windows: subject (B,), window (B,), feature (B, D)."""
        self.subject.append(subject)
        self.window.append(window)
        self.feature.append(feature.float())

    def compute(self) -> dict[str, Tensor]:
        """Return name -> value; NaN where it is not defined."""
        subject, window = dim_zero_cat(self.subject), dim_zero_cat(self.window)
        first = first_occurrences(subject, window)
        subject, x = subject[first], dim_zero_cat(self.feature)[first].double()
        x = x - x.mean(0)
        found = {
            "feature_rank": effective_rank(x),
            "feature_std": x.std(0, unbiased=False).mean(),
            "knn_subject": _same_subject(x, subject),
        }
        if self.labels:
            found[f"knn_{self.task}"] = self._knn(x, subject)
        return found

    def _knn(self, x: Tensor, subject: Tensor) -> Tensor:
        names, index = subject.unique(return_inverse=True)
        mean = x.new_zeros(len(names), x.shape[1]).index_add(0, index, x)
        mean = mean / index.bincount()[:, None]
        known = [i for i, name in enumerate(names.tolist()) if name in self.labels]
        target = torch.tensor([self.labels[int(names[i])] for i in known], device=x.device)
        if len(known) <= _NEIGHBOURS:
            return x.new_tensor(float("nan"))
        rows = torch.nn.functional.normalize(mean[known])
        similarity = (rows @ rows.T).fill_diagonal_(-torch.inf)
        near = target[similarity.topk(_NEIGHBOURS, dim=1).indices]
        votes = torch.nn.functional.one_hot(near, int(target.max()) + 1).sum(1)
        return balanced_accuracy(votes.double(), target)


def effective_rank(x: Tensor) -> Tensor:
    """Return exp of the entropy of the singular values of x (W, D); 0 if they are all 0."""
    values = torch.linalg.svdvals(x)
    if not values.sum() > 0:
        return x.new_tensor(0.0)
    share = values / values.sum()
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


def _same_subject(x: Tensor, subject: Tensor) -> Tensor:
    """Compute ``knn_subject`` of ``FeatureMetrics``."""
    _, index, count = subject.unique(return_inverse=True, return_counts=True)
    several = (count > 1)[index]
    if not several.any() or len(count) < 2:
        return x.new_tensor(float("nan"))
    rows, hits = torch.nn.functional.normalize(x), []
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = torch.arange(start, min(start + _BLOCK_ROWS, len(rows)), device=x.device)
        similarity = rows[block] @ rows.T
        similarity[torch.arange(len(block), device=x.device), block] = -torch.inf
        hits.append(subject[similarity.argmax(1)] == subject[block])
    return torch.cat(hits)[several].double().mean()


class TokenMetrics(Metric):
    """The loss of token prediction and of two controls, over all target tokens.

    ``persistence_loss`` repeats the token that the prediction is made from: the one before the
    target in the sequence, or an earlier one of the same place (``--predict``). ``mean_token_loss``
    predicts the mean target token, the best constant in hindsight; ``sequence_skill`` is
    1 - loss / persistence_loss. One target in several is the first token of a new place, and there
    repeating the token before errs by anatomy: ``step_metrics`` compares like with like.
    """

    full_state_update = False
    loss_sum: Tensor
    persistence_sum: Tensor
    token_sum: Tensor
    square_sum: Tensor
    count: Tensor

    def __init__(self, token_dim: int) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        for state in ("loss_sum", "persistence_sum", "square_sum", "count"):
            self.add_state(state, default=zero.clone(), dist_reduce_fx="sum")
        self.add_state(
            "token_sum", default=torch.zeros(token_dim, dtype=torch.float64), dist_reduce_fx="sum"
        )

    _apply = keep_fp64

    def update(
        self, errors: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor | None = None
    ) -> None:
        """Add a batch: errors of the targets, all tokens (L, V), rows of the targets.

        ``sources`` are the rows that ``persistence_loss`` repeats, by default those before the
        targets. No target may then be the first token of its sample. The caller leaves out padding
        windows.
        """
        self.loss_sum += errors.double().sum()
        sources = targets - 1 if sources is None else sources
        # Blocks keep the fp64 copies small.
        for rows, earlier in zip(
            targets.split(_BLOCK_ROWS), sources.split(_BLOCK_ROWS), strict=True
        ):
            wanted = tokens[rows].double()
            before = tokens[earlier].double()
            self.persistence_sum += (wanted - before).square().mean(-1).sum()
            self.token_sum += wanted.sum(0)
            self.square_sum += wanted.square().mean(-1).sum()
        self.count += len(targets)

    def compute(self) -> dict[str, Tensor]:
        """Return loss, persistence_loss, mean_token_loss and sequence_skill."""
        loss = self.loss_sum / self.count
        persistence = self.persistence_sum / self.count
        constant = self.square_sum / self.count - (self.token_sum / self.count).square().mean()
        return {
            "loss": loss,
            "persistence_loss": persistence,
            "mean_token_loss": constant,
            "sequence_skill": 1 - loss / persistence,
        }
