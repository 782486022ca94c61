"""Metrics of pre-training against numpy, whatever the batches and the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch

from neuromamba.fmamba.pretraining_metrics import FeatureMetrics, TokenMetrics
from tests.helpers.metric_states import gather


class Tokens(NamedTuple):
    prediction: np.ndarray
    tokens: np.ndarray
    lengths: tuple[int, ...]

    def update(self, metric: TokenMetrics) -> None:
        starts = np.cumsum((0, *self.lengths[:-1]))
        targets = np.setdiff1d(np.arange(len(self.tokens)), starts)
        errors = ((self.prediction[targets - 1] - self.tokens[targets]) ** 2).mean(1)
        metric.update(*map(torch.from_numpy, (errors, self.tokens, targets)))

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(prediction, token before, token) of every target, in float64."""
        found, start = [], 0
        for length in self.lengths:
            for i in range(start + 1, start + length):
                row = (self.prediction[i - 1], self.tokens[i - 1], self.tokens[i])
                found.append(tuple(value.astype(np.float64) for value in row))
            start += length
        return found


def token_batch(lengths: tuple[int, ...], seed: int, offset: float = 0.0) -> Tokens:
    rng = np.random.default_rng(seed)
    prediction, tokens = rng.normal(size=(2, sum(lengths), 6)).astype(np.float32)
    return Tokens(prediction + np.float32(offset), tokens + np.float32(offset), lengths)


def token_values(batches: Sequence[Tokens]) -> dict[str, float]:
    pairs = [pair for batch in batches for pair in batch.pairs()]
    mean = np.mean([token for _, _, token in pairs], axis=0)
    loss = np.mean([(guess - token) ** 2 for guess, _, token in pairs])
    persistence = np.mean([(before - token) ** 2 for _, before, token in pairs])
    return {
        "loss": loss,
        "persistence_loss": persistence,
        "mean_token_loss": np.mean([(mean - token) ** 2 for _, _, token in pairs]),
        "sequence_skill": 1 - loss / persistence,
    }


BATCHES = [token_batch((5, 1, 9), 0), token_batch((2,), 1), token_batch((30, 4), 2)]


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_token_metrics_against_numpy(offset: float) -> None:
    """Every target token weighs alike, in whatever batch it came."""
    batches = [token_batch(b.lengths, i, offset) for i, b in enumerate(BATCHES)]
    metric = TokenMetrics(6)
    for batch in batches:
        batch.update(metric)
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == pytest.approx(token_values(batches), rel=1e-5)


@pytest.mark.parametrize("way", ["merge", "gather"])
def test_token_metrics_of_two_ranks(way: str) -> None:
    ranks = [TokenMetrics(6), TokenMetrics(6)]
    BATCHES[0].update(ranks[0])
    for batch in BATCHES[1:]:
        batch.update(ranks[1])
    if way == "merge":
        ranks[0].merge_state(ranks[1])
    else:
        gather(ranks[0], ranks[1], list(ranks[0]._reductions))
    found = {name: value.item() for name, value in ranks[0].compute().items()}
    assert found == pytest.approx(token_values(BATCHES), rel=1e-6)


def test_controls_by_hand() -> None:
    """Tokens 0, 2, 4 of one value: persistence errs by 2, the mean of (2, 4) by 1."""
    metric = TokenMetrics(1)
    tokens = torch.tensor([[0.0], [2.0], [4.0]])
    metric.update(torch.tensor([1.0, 0.0]), tokens, torch.tensor([1, 2]))
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "loss": 0.5,
        "persistence_loss": 4.0,
        "mean_token_loss": 1.0,
        "sequence_skill": 0.875,
    }


def test_repeating_the_token_before_has_no_skill() -> None:
    batch = token_batch((12, 7), 4)
    metric = TokenMetrics(6)
    batch._replace(prediction=batch.tokens).update(metric)
    assert metric.compute()["sequence_skill"].item() == pytest.approx(0.0, abs=1e-6)


def test_sums_of_tokens_stay_wide_in_a_bf16_module() -> None:
    """``--precision bf16-true`` casts the module; in bf16, 256 + 1 is 256."""
    module = torch.nn.ModuleDict({"metric": TokenMetrics(2)}).to(torch.bfloat16)
    metric = module["metric"]
    tokens = torch.zeros(1001, 2)
    for _ in range(3):
        metric.update(torch.ones(1000), tokens, torch.arange(1, 1001))
    assert metric.count == 3000 and metric.count.dtype == torch.float64


# ------------------------------------------------------------------------------ features


def features(x: np.ndarray, subject: np.ndarray, **given: object) -> dict[str, float]:
    metric = FeatureMetrics(**given)  # type: ignore[arg-type]
    window = torch.arange(len(x))
    for part in torch.arange(len(x)).split(7):
        metric.update(torch.from_numpy(subject)[part], window[part], torch.from_numpy(x)[part])
    return {name: value.item() for name, value in metric.compute().items()}


def test_effective_rank() -> None:
    """Directions of equal strength count one each; constant features have none."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    left, _ = np.linalg.qr(rng.normal(size=(200, 40)) - 0.0)
    for rank in (1, 3, 10):
        x = left[:, :rank] @ basis[:rank] + 5
        found = features(x - x.mean(0) + 5, np.arange(200))
        assert found["feature_rank"] == pytest.approx(rank, rel=0.02)
    assert features(np.ones((20, 4)), np.arange(20))["feature_rank"] == 0
    assert features(np.ones((20, 4)), np.arange(20))["feature_std"] == 0


def test_nearest_neighbours_tell_subjects_and_classes() -> None:
    rng = np.random.default_rng(1)
    subject = np.repeat(np.arange(30), 4)
    own, kind = rng.normal(size=(30, 16)), np.arange(30) % 2
    x = (3 * own + 8 * kind[:, None] * np.eye(16)[0])[subject] + 0.3 * rng.normal(size=(120, 16))
    labels = {i: int(kind[i]) for i in range(30)}
    found = features(x, subject, labels=labels, task="sex")
    assert found["knn_subject"] == 1.0 and found["knn_sex"] > 0.9
    noise = features(rng.normal(size=(120, 16)), subject, labels=labels, task="sex")
    assert noise["knn_subject"] < 0.3 and 0.2 < noise["knn_sex"] < 0.8
    assert np.isnan(features(x[::4], subject[::4])["knn_subject"])  # one window a subject
    assert np.isnan(features(x[:16], subject[:16], labels=labels, task="sex")["knn_sex"])


def test_features_do_not_depend_on_padding_or_order() -> None:
    rng = np.random.default_rng(2)
    x, subject, window = rng.normal(size=(12, 5)), np.arange(12) // 3, np.arange(12)
    one, other = FeatureMetrics(), FeatureMetrics()
    one.update(*map(torch.from_numpy, (subject, window, x)))
    turned = [*rng.permutation(12), 3, 7]
    other.update(*(torch.from_numpy(part[turned]) for part in (subject, window, x)))
    found, wanted = (
        {name: value.item() for name, value in metric.compute().items()} for metric in (other, one)
    )
    assert found == pytest.approx(wanted, rel=1e-9)
