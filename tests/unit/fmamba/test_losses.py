"""Losses against loops over tokens and numbers written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from neuromamba.config.tasks import TASK_TYPES
from neuromamba.fmamba import losses
from neuromamba.fmamba.losses import (
    LOSSES,
    masked_token_errors,
    next_token_errors,
    next_token_targets,
)

CPU = torch.device("cpu")
LENGTHS = (4, 1, 3, 2)


def given(rows: Tensor) -> Tensor:
    """A prediction that is what it is made from."""
    return rows


@pytest.mark.parametrize(
    ("lengths", "targets"),
    [
        ((4, 1, 3, 2), [1, 2, 3, 6, 7, 9]),
        ((3,), [1, 2]),
        ((1,), []),
        ((1, 1, 2), [3]),
        ((2, 1), [1]),
    ],
)
def test_targets(lengths: tuple[int, ...], targets: list[int]) -> None:
    found = next_token_targets(lengths)
    assert found.tolist() == targets and found.dtype == torch.int64


def test_no_pair_crosses_a_border() -> None:
    """Every sample has a constant of its own, predicted perfectly: a cross pair would show."""
    constants = torch.tensor([1.0, 1e3, -1e5, 1e7])
    tokens = constants.repeat_interleave(torch.tensor(LENGTHS))[:, None].repeat(1, 6)
    errors = next_token_errors(tokens, tokens, next_token_targets(LENGTHS), given)
    assert errors.tolist() == [0.0] * (sum(LENGTHS) - len(LENGTHS))
    # The same tokens taken as one sample: the three borders do show.
    everything = next_token_targets((sum(LENGTHS),))
    as_one = next_token_errors(tokens, tokens, everything, given)
    assert (as_one > 0).sum() == 3


def test_gradient_stays_off_the_last_prediction_of_a_sample() -> None:
    prediction = torch.zeros(10, 2, requires_grad=True)
    tokens = torch.ones(10, 2)
    targets = next_token_targets(LENGTHS)
    next_token_errors(prediction, tokens, targets, given).sum().backward()
    assert prediction.grad is not None
    touched = prediction.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == [0, 1, 2, 5, 6, 8]


def test_next_token_errors_weigh_every_token_alike() -> None:
    """The mean is over tokens: a sample counts by its length, one of one token not at all."""
    rng = np.random.default_rng(0)
    prediction, tokens = rng.normal(size=(2, 10, 5))
    expected, start = [], 0
    for length in LENGTHS:
        for i in range(start, start + length - 1):
            squares = [(prediction[i][v] - tokens[i + 1][v]) ** 2 for v in range(5)]
            expected.append(sum(squares) / 5)
        start += length
    errors = next_token_errors(
        torch.from_numpy(prediction).float(),
        torch.from_numpy(tokens).float(),
        next_token_targets(LENGTHS),
        given,
    )
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-5)
    assert errors.mean().item() == pytest.approx(sum(expected) / len(expected), rel=1e-6)
    by_sample = np.mean([np.mean(expected[:3]), np.mean(expected[3:5]), expected[5]])
    assert abs(errors.mean().item() - by_sample) > 1e-2


def test_masked_errors_compare_each_token_with_itself() -> None:
    prediction = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    tokens = torch.tensor([[9.0, 9.0], [0.0, 4.0], [6.0, 9.0]])
    errors = masked_token_errors(prediction, tokens, torch.tensor([1, 2]), given)
    assert errors.tolist() == [4.5, 5.0]  # (9 + 0) / 2, (1 + 9) / 2


@pytest.mark.parametrize("targets", [[1, 4, 5, 9], [3], []])
def test_only_hidden_tokens_are_predicted(
    monkeypatch: pytest.MonkeyPatch, targets: list[int]
) -> None:
    """At a small mask ratio most rows are not asked for; they are not computed either."""
    monkeypatch.setitem(losses.BLOCK_ROWS, "cpu", 3)
    x = torch.arange(20.0).view(10, 2).requires_grad_()
    predicted: list[list[float]] = []

    def predict(rows: Tensor) -> Tensor:
        predicted.extend(rows.tolist())
        return rows

    errors = masked_token_errors(x, torch.zeros(10, 2), torch.tensor(targets, dtype=int), predict)
    assert predicted == x[targets].tolist()
    assert errors.shape == (len(targets),)
    errors.sum().backward()
    assert x.grad is not None
    expected = torch.zeros(10, 2)
    expected[targets] = x.detach()[targets]  # d/dx of (x0^2 + x1^2) / 2
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("errors_of", [next_token_errors, masked_token_errors])
def test_errors_are_wide_under_half_precision(errors_of: Callable[..., Tensor]) -> None:
    prediction = torch.full((3, 4), 1.0, dtype=torch.bfloat16)
    tokens = torch.full((3, 4), 1.0 + 2**-12)
    errors = errors_of(prediction, tokens, torch.tensor([1, 2]), given)
    assert errors.dtype == torch.float32
    assert errors.tolist() == [2.0**-24] * 2
    assert errors_of(prediction, prediction, torch.tensor([1]), given).dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 3, 9, 10, 1000])
@pytest.mark.parametrize("kind", ["next", "masked"])
def test_blocks_change_neither_errors_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, rows: int, kind: str
) -> None:
    """Against the whole prediction at once, with autograd's own gradients, in float64."""
    monkeypatch.setitem(losses.BLOCK_ROWS, "cpu", rows)
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(3, 5, dtype=torch.float64)
    x = torch.randn(10, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    tokens = torch.randn(10, 5, dtype=torch.float64, generator=generator)
    weights = torch.randn(6, dtype=torch.float64, generator=generator)
    targets = next_token_targets(LENGTHS)
    if kind == "next":
        errors, pairs = next_token_errors(x, tokens, targets, layer), targets - 1
    else:
        errors, pairs = masked_token_errors(x, tokens, targets, layer), targets
    expected = (layer(x)[pairs] - tokens[targets]).square().mean(1)
    torch.testing.assert_close(errors, expected, rtol=1e-14, atol=0)
    wanted = (x, layer.weight, layer.bias)
    found = torch.autograd.grad((errors * weights).sum(), wanted)
    for one, other in zip(
        found, torch.autograd.grad((expected * weights).sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        without = (next_token_errors if kind == "next" else masked_token_errors)(
            x, tokens, targets, layer
        )
    assert torch.equal(without, errors)


# ------------------------------------------------------------------------------ downstream


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy(smoothing: float) -> None:
    """Target distribution: (1 - s) on the class plus s / K on each class."""
    rng = np.random.default_rng(1)
    logits, target = rng.normal(size=(6, 3)) * 3, rng.integers(0, 3, 6)
    total = 0.0
    for row, label in zip(logits, target, strict=True):
        normaliser = math.log(sum(math.exp(v) for v in row))
        for k, value in enumerate(row):
            share = smoothing / 3 + (1 - smoothing) * (k == label)
            total -= share * (value - normaliser)
    found = LOSSES["cross_entropy"](
        torch.from_numpy(logits).float(), torch.from_numpy(target), smoothing
    )
    assert found.shape == (6,)
    assert found.mean().item() == pytest.approx(total / 6, rel=1e-6)


def test_cross_entropy_by_hand() -> None:
    """Even logits: log 2 whatever the label and the smoothing."""
    for smoothing in (0.0, 0.1):
        found = LOSSES["cross_entropy"](torch.zeros(3, 2), torch.tensor([0, 1, 1]), smoothing)
        assert found.tolist() == pytest.approx([math.log(2)] * 3)


def test_mse() -> None:
    output, target = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([0.0, 2.0, 3.0])
    for smoothing in (0.0, 0.1):  # nothing to smooth
        assert LOSSES["mse"](output, target, smoothing).tolist() == [1.0, 0.0, 16.0]


def test_losses_are_wide_under_half_precision() -> None:
    logits = torch.tensor([[1.0, 1.5]], dtype=torch.bfloat16)
    assert LOSSES["cross_entropy"](logits, torch.tensor([1]), 0.0).dtype == torch.float32
    assert LOSSES["mse"](logits[:, :1], torch.tensor([1.0]), 0.0).dtype == torch.float32


def test_every_task_has_its_loss() -> None:
    assert {name: task.loss for name, task in TASK_TYPES.items()} == {
        "classification": "cross_entropy",
        "regression": "mse",
    }
