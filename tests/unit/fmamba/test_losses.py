"""Losses against loops over tokens and numbers written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.config.training import PretrainConfig
from neuromamba.fmamba import losses
from neuromamba.fmamba.losses import (
    LOSSES,
    masked_token_errors,
    next_token_errors,
    next_token_targets,
    same_place_errors,
    same_place_pairs,
    target_pairs,
)
from neuromamba.fmamba.tokenizer import PackedTokens

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


# ------------------------------------------------------------------------------ same place

TIMES = 4
PLACES = ((0, 2, 5), (3,), (1, 2))  # kept places of three samples


def token_index(order: str) -> tuple[Tensor, tuple[int, ...]]:
    """Tokens of whole places, in raster order or all places of a time together."""
    index = [
        [place * TIMES + time for place in places for time in range(TIMES)]
        if order == "raster"
        else [place * TIMES + time for time in range(TIMES) for place in places]
        for places in PLACES
    ]
    return torch.tensor([i for one in index for i in one]), tuple(map(len, index))


def pairs_by_loops(index: list[int], lengths: tuple[int, ...], ahead: int) -> list[tuple[int, int]]:
    """Every pair of rows of a sample whose tokens are at one place, ``ahead`` apart in time."""
    found, start = [], 0
    for length in lengths:
        rows = range(start, start + length)
        for target in rows:
            for source in rows:
                same = index[source] // TIMES == index[target] // TIMES
                if same and index[target] % TIMES - index[source] % TIMES == ahead:
                    found.append((source, target))
        start += length
    return found


@pytest.mark.parametrize("ahead", [1, 2, 3])
@pytest.mark.parametrize("order", ["raster", "space_first"])
def test_same_place_pairs(order: str, ahead: int) -> None:
    index, lengths = token_index(order)
    sources, targets = same_place_pairs(index, lengths, TIMES, ahead)
    expected = pairs_by_loops(index.tolist(), lengths, ahead)
    assert list(zip(sources.tolist(), targets.tolist(), strict=True)) == expected
    assert len(expected) == 6 * (TIMES - ahead)
    if order == "raster":  # one ahead is the following token, jumps excluded
        assert torch.equal(targets - sources, torch.full_like(targets, ahead))
    config = ModelConfig(img_size=(6, 1, 1, TIMES), patch_size=(1, 1, 1, 1), token_order=order)
    objective = PretrainConfig(predict="same_place", predict_ahead=ahead)
    packed = PackedTokens(torch.empty(len(index), 1), index, lengths)
    assert all(map(torch.equal, target_pairs(objective, packed, config), (sources, targets)))


def test_same_place_pairs_of_incomplete_places() -> None:
    """A token whose predecessor is not there, as in dense data without a mask, is no target."""
    index = torch.tensor([0, 1, 3, 6, 7])
    sources, targets = same_place_pairs(index, (5,), TIMES, 1)
    assert sources.tolist() == [0, 3] and targets.tolist() == [1, 4]
    sources, targets = same_place_pairs(index, (5,), TIMES, 2)
    assert sources.tolist() == [1] and targets.tolist() == [2]


@pytest.mark.parametrize("rows", [2, 1000])
@pytest.mark.parametrize("loss_on", ["token", "difference"])
@pytest.mark.parametrize("order", ["raster", "space_first"])
def test_same_place_errors(
    monkeypatch: pytest.MonkeyPatch, order: str, loss_on: str, rows: int
) -> None:
    """Values by loops; gradients as autograd's own of the whole prediction."""
    monkeypatch.setitem(losses.BLOCK_ROWS, "cpu", rows)
    index, lengths = token_index(order)
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(3, 5, dtype=torch.float64)
    x = torch.randn(24, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    tokens = torch.randn(24, 5, dtype=torch.float64, generator=generator)
    sources, targets = same_place_pairs(index, lengths, TIMES, 2)
    errors = same_place_errors(x, tokens, sources, targets, layer, loss_on)
    output = layer(x)
    for error, source, target in zip(errors, sources.tolist(), targets.tolist(), strict=True):
        wanted = tokens[target] - (tokens[source] if loss_on == "difference" else 0)
        expected = sum((output[source, v] - wanted[v]).item() ** 2 for v in range(5)) / 5
        assert error.item() == pytest.approx(expected, rel=1e-12)
    shift = tokens[sources] if loss_on == "difference" else 0
    whole = (output[sources] + shift - tokens[targets]).square().mean(1).sum()
    wanted_by = (x, layer.weight)
    for one, other in zip(
        torch.autograd.grad(errors.sum(), wanted_by),
        torch.autograd.grad(whole, wanted_by),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_window_too_short_to_predict_ahead() -> None:
    objective = PretrainConfig(predict="same_place", predict_ahead=3)
    objective.check_window(4)
    with pytest.raises(UserInputError, match=r"--predict_ahead: got 3, .* 3 tokens .* at most 2"):
        objective.check_window(3)
    assert objective.predicted_share(4) == 0.25
    assert PretrainConfig().predicted_share(4) is None
    assert PretrainConfig(objective="mim", mask_ratio=0.3).predicted_share(4) == 0.3


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
