"""Metrics of pre-training: the token loss with its controls, and the quality of the features.

States are gathered from all ranks before anything is computed, as in ``subject_metrics``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from neuromamba.evaluation.known_facts import (
    Fact,
    chosen_subjects,
    is_defined,
    leave_one_out_weights,
    level_of_chance,
    score_fact,
)
from neuromamba.evaluation.mean_loss import keep_fp64
from neuromamba.evaluation.metrics import balanced_accuracy
from neuromamba.evaluation.subject_metrics import first_occurrences

_BLOCK_ROWS = 4096
_NEIGHBOURS = 5  # of kNN over subjects


class FeatureMetrics(Metric):
    """The quality of frozen features without a head: rank, spread, and what they tell.

    Of the mean over a window's tokens: ``feature_rank`` is the effective rank (RankMe; Garrido et
    al. 2023, ICML; here of centred features, so that constant ones have none), ``feature_std`` the
    mean standard deviation over windows; ``knn_subject`` the share of windows whose most similar
    other window (cosine) is of the same subject, of subjects with several, and
    ``knn_subject_chance`` that of a window drawn at random; ``knn_<task>`` the balanced accuracy of
    the 5 most similar other subjects' majority, for facts with classes that were asked for.

    Of the mean and the standard deviation over time, averaged over a subject's windows:
    ``watch_<fact>``, how well a subject's fact is predicted from the other subjects (balanced
    accuracy, or Pearson's r of a number; see ``evaluation.known_facts``), with the mean
    (``_chance``) and the 99 % quantile (``_limit``) of the same with shuffled values;
    ``watch_<fact>_mean`` is the value of the mean over tokens alone.

    Args:
        facts: known facts of subjects, by name.
    """

    full_state_update = False
    subject: list[Tensor]
    window: list[Tensor]
    feature: list[Tensor]

    def __init__(self, facts: Mapping[str, Fact] | None = None) -> None:
        super().__init__()
        self.facts = dict(facts or {})
        for state in ("subject", "window", "feature"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, subject: Tensor, window: Tensor, feature: Tensor) -> None:
        """Add windows: subject (B,), window (B,), feature (B, D), or (B, 2 D) with facts.

        The second half is then the deviation over time, as of ``pooling.mean_sd``.
        """
        self.subject.append(subject)
        self.window.append(window)
        self.feature.append(feature.float())

    def compute(self) -> dict[str, Tensor]:
        """Return name -> value; NaN where it is not defined."""
        subject, window = dim_zero_cat(self.subject), dim_zero_cat(self.window)
        first = first_occurrences(subject, window)
        subject, pooled = subject[first], dim_zero_cat(self.feature)[first].double()
        width = pooled.shape[1] // (2 if self.facts else 1)
        x = pooled[:, :width] - pooled[:, :width].mean(0)
        found = {
            "feature_rank": effective_rank(x),
            "feature_std": x.std(0, unbiased=False).mean(),
            "knn_subject": _same_subject(x, subject),
            "knn_subject_chance": _same_subject_by_chance(subject),
        }
        if self.facts:
            found |= self._watched(pooled, x, subject)
        return found

    def _watched(self, pooled: Tensor, x: Tensor, subject: Tensor) -> dict[str, Tensor]:
        """Metrics of the facts, from mean and deviation (W, 2 D) and centred mean (W, D)."""
        keys, index = subject.unique(return_inverse=True)
        names, both, alone = keys.tolist(), _subject_means(pooled, index), _subject_means(x, index)
        solved: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # most facts have equal subjects
        found: dict[str, float | Tensor] = {}
        for name, fact in self.facts.items():
            known = [i for i, key in enumerate(names) if key in fact.values]
            kind = torch.int64 if fact.classes else torch.float64
            values = [fact.values[names[i]] for i in known]
            target = torch.tensor(values, dtype=torch.float64, device=x.device).to(kind)
            if fact.named and fact.classes:
                found[f"knn_{name}"] = self._knn(alone[known], target)
            kinds = (f"watch_{name}{end}" for end in ("", "_chance", "_limit", "_mean"))
            if not is_defined(target, fact.classes):
                found |= dict.fromkeys(kinds, math.nan)
                continue
            few = chosen_subjects(len(known))
            rows, target = tuple(known[i] for i in few.tolist()), target[few.to(x.device)]
            if rows not in solved:
                one, other = (leave_one_out_weights(f[list(rows)]) for f in (both, alone))
                solved[rows] = one, other
            weights, of_mean = solved[rows]
            value, mean = (
                score_fact(w, target[:, None], fact.classes)[0] for w in (weights, of_mean)
            )
            chance = level_of_chance(weights, target, fact.classes)
            found |= dict(zip(kinds, (value, *chance, mean), strict=True))
        return {
            name: value if isinstance(value, Tensor) else x.new_tensor(value)
            for name, value in found.items()
        }

    @staticmethod
    def _knn(x: Tensor, target: Tensor) -> Tensor:
        """Compute ``knn_<task>`` from the features of subjects."""
        if len(x) <= _NEIGHBOURS:
            return x.new_tensor(float("nan"))
        rows = torch.nn.functional.normalize(x)
        similarity = (rows @ rows.T).fill_diagonal_(-torch.inf)
        near = target[similarity.topk(_NEIGHBOURS, dim=1).indices]
        votes = torch.nn.functional.one_hot(near, int(target.max()) + 1).sum(1)
        return balanced_accuracy(votes.double(), target)


def _subject_means(x: Tensor, index: Tensor) -> Tensor:
    """Mean of the rows of x (W, F) of each subject, by its number ``index`` (W,)."""
    count = index.bincount()
    return x.new_zeros(len(count), x.shape[1]).index_add(0, index, x) / count[:, None]


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


def _same_subject_by_chance(subject: Tensor) -> Tensor:
    """Chance that another window, drawn at random, is of the same subject; as above."""
    count = subject.unique(return_counts=True)[1].double()
    several = count[count > 1]
    if not len(several) or len(count) < 2:
        return count.new_tensor(float("nan"))
    return (several * (several - 1)).sum() / several.sum() / (len(subject) - 1)


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
