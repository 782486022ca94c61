"""Metrics of pre-training against numpy, whatever the batches and the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score

from neuromamba.evaluation.known_facts import Fact
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
    sex = Fact({i: int(kind[i]) for i in range(30)}, classes=2, named=True)
    both = np.tile(x, 2)  # with the deviation over time, which is not used here
    found = features(both, subject, facts={"sex": sex})
    assert found["knn_subject"] == 1.0 and found["knn_sex"] > 0.9
    assert found["knn_subject_chance"] == pytest.approx(3 / 119)
    noise = features(rng.normal(size=(120, 32)), subject, facts={"sex": sex})
    assert noise["knn_subject"] < 0.3 and 0.2 < noise["knn_sex"] < 0.8
    assert np.isnan(features(x[::4], subject[::4])["knn_subject"])  # one window a subject
    assert np.isnan(features(x[::4], subject[::4])["knn_subject_chance"])
    assert np.isnan(features(both[:16], subject[:16], facts={"sex": sex})["knn_sex"])


def watched(seed: int = 3) -> tuple[np.ndarray, np.ndarray, dict[str, Fact]]:
    """Windows of 40 subjects whose deviation over time, not mean, tells kind and age."""
    rng = np.random.default_rng(seed)
    subject, kind = np.repeat(np.arange(40), 3), np.arange(40) % 2
    age = rng.normal(size=40)
    x = rng.normal(size=(120, 16))
    x[:, 8] += 4 * kind[subject]
    x[:, 9] += 4 * age[subject]
    facts = {
        "kind": Fact({i: int(kind[i]) for i in range(38)}, classes=2),
        "age": Fact({i: float(age[i]) for i in range(40)}),
        "few": Fact({i: float(i) for i in range(9)}),
    }
    return x, subject, facts


def left_out_predictions(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Ridge of scikit-learn on the other subjects, standardised over all; above their mean."""
    z = (x - x.mean(0)) / x.std(0)
    found = []
    for i in range(len(z)):
        others = np.arange(len(z)) != i
        # The intercept is the mean of the values, as the features are centred over all.
        centre = y[others].mean()
        ridge = Ridge(alpha=z.shape[1], fit_intercept=False)
        ridge.fit(z[others], y[others] - centre)
        found.append(ridge.predict(z[[i]])[0])
    return np.array(found)


def test_known_facts_against_scikit_learn() -> None:
    """Leaving out in closed form is leaving out, for numbers and for classes."""
    x, subject, facts = watched()
    found = features(x, subject, facts=facts)
    means = np.stack([x[subject == i].mean(0) for i in range(40)])
    age = np.array([facts["age"].values[i] for i in range(40)])
    r = np.corrcoef(left_out_predictions(means, age), age)[0, 1]
    assert found["watch_age"] == pytest.approx(r, rel=1e-9) and r > 0.5
    kind = np.arange(38) % 2
    guess = left_out_predictions(means[:38], kind.astype(float)) > 0
    wanted = balanced_accuracy_score(kind, guess)
    assert found["watch_kind"] == pytest.approx(wanted, rel=1e-9) and wanted > 0.8
    alone = left_out_predictions(means[:38, :8], kind.astype(float)) > 0
    assert found["watch_kind_mean"] == pytest.approx(balanced_accuracy_score(kind, alone), rel=1e-9)
    assert found["watch_kind_mean"] < found["watch_kind_limit"] < found["watch_kind"]
    ends = ("", "_chance", "_limit", "_mean")
    assert all(np.isnan(found[f"watch_few{end}"]) for end in ends)


def test_the_level_of_chance_holds_without_an_effect() -> None:
    """Over many data sets of noise, values scatter around it and seldom pass the limit."""
    rows = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = {i: float(v) for i, v in enumerate(rng.normal(size=24))}
        kinds = {i: int(i < 8) for i in range(24)}
        facts = {"age": Fact(values), "kind": Fact(kinds, classes=2)}
        rows.append(features(rng.normal(size=(24, 16)), np.arange(24), facts=facts))
    for name, chance in (("age", 0.0), ("kind", 0.5)):
        got = np.array([[row[f"watch_{name}{end}"] for end in ("", "_chance")] for row in rows])
        assert got.mean(0) == pytest.approx([chance, chance], abs=0.06)
        passed = np.mean([row[f"watch_{name}"] > row[f"watch_{name}_limit"] for row in rows])
        assert passed <= 0.05


def test_known_facts_that_cannot_be_told() -> None:
    x, subject, facts = watched()
    one_each = Fact({i: min(i, 1) for i in range(20)}, classes=2)  # a class with one subject
    equal = Fact(dict.fromkeys(range(20), 3.0))
    same = features(np.ones_like(x), subject, facts=facts)
    assert np.isnan(same["watch_kind"]) and np.isnan(same["watch_age_limit"])
    found = features(x, subject, facts={"one": one_each, "equal": equal})
    assert np.isnan(found["watch_one"]) and np.isnan(found["watch_equal_chance"])


def test_known_facts_of_two_ranks() -> None:
    """The second rank repeats a window as padding."""
    x, subject, facts = watched()
    single = features(x, subject, facts=facts)
    ranks = [FeatureMetrics(facts), FeatureMetrics(facts)]
    for rank, part in enumerate((np.arange(0, 120, 2), np.array([*range(1, 120, 2), 0]))):
        ranks[rank].update(*map(torch.from_numpy, (subject[part], part, x[part])))
    gather(ranks[0], ranks[1], list(ranks[0]._reductions))
    found = {name: value.item() for name, value in ranks[0].compute().items()}
    assert found == pytest.approx(single, rel=1e-9, nan_ok=True)


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
