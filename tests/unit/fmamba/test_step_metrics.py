"""Skill at steps within a place and over time, against loops in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from neuromamba.config.model import ModelConfig
from neuromamba.fmamba import step_metrics
from neuromamba.fmamba.dynamic_skill import missing_dynamics
from neuromamba.fmamba.step_metrics import AnatomyShare, StepMetrics
from neuromamba.fmamba.tokenizer import PackedTokens
from tests.helpers.metric_states import gather

GRID, FRAMES = 5, 2  # tokens of a place, frames of a token
CONFIG = ModelConfig(img_size=(6, 6, 6, 10), patch_size=(3, 3, 1, 2), embed_dim=16)


class Batch(NamedTuple):
    """Windows of several places each; ``predicted[i]`` is the prediction of token i."""

    tokens: np.ndarray
    predicted: np.ndarray
    index: np.ndarray
    lengths: tuple[int, ...]
    padding: tuple[bool, ...]

    def add(self, metric: StepMetrics | AnatomyShare) -> None:
        packed = PackedTokens(
            torch.from_numpy(self.tokens), torch.from_numpy(self.index), self.lengths
        )
        if isinstance(metric, AnatomyShare):
            metric.update(packed, self.padding)
            return
        x = torch.from_numpy(np.roll(self.predicted, -1, axis=0))  # row i predicts token i + 1
        metric.update(packed, x, torch.clone, self.padding)


def make(places: Sequence[int], seed: int, *, offset: float = 0.0, padding: int = -1) -> Batch:
    """A level for each voxel, slow and fast signals, and predictions with errors of both kinds."""
    rng = np.random.default_rng(seed)
    size = CONFIG.token_dim
    tokens, predicted, index = [], [], []
    for count in places:
        level = rng.normal(offset, 3, (count, 1, size // FRAMES, 1))
        shape = (count, GRID, size // FRAMES, FRAMES)
        signal = level + np.cumsum(rng.normal(0, 0.6, shape), axis=1) + rng.normal(0, 0.3, shape)
        guess = signal + rng.normal(0, 0.5, (count, 1, size // FRAMES, 1))
        guess = guess + rng.normal(0, 0.4, shape)
        tokens.append(signal.reshape(-1, size))
        predicted.append(guess.reshape(-1, size))
        chosen = np.sort(rng.permutation(12)[:count])
        index.append((chosen[:, None] * GRID + np.arange(GRID)).ravel())
    return Batch(
        np.concatenate(tokens).astype(np.float32),
        np.concatenate(predicted).astype(np.float32),
        np.concatenate(index),
        tuple(count * GRID for count in places),
        tuple(number == padding for number in range(len(places))),
    )


def by_loops(batches: Sequence[Batch]) -> dict[str, float]:
    """Every value by the formulas of docs/pretraining.md, voxel after voxel."""
    step: list[float] = []
    copy: list[float] = []
    mean: list[float] = []
    dynamic, dynamic_copy, dynamic_mean = 0.0, 0.0, 0.0
    jump: list[float] = []
    jump_copy: list[float] = []
    values: list[float] = []
    within = 0.0
    for batch in batches:
        start = 0
        for length, padding in zip(batch.lengths, batch.padding, strict=True):
            rows = range(start, start + length)
            start += length
            if padding:
                continue
            tokens, guess = batch.tokens.astype(float), batch.predicted.astype(float)
            for i in rows:
                if i == rows[0]:
                    continue
                same = batch.index[i] // GRID == batch.index[i - 1] // GRID
                (step if same else jump).extend((guess[i] - tokens[i]) ** 2)
                (copy if same else jump_copy).extend((tokens[i - 1] - tokens[i]) ** 2)
            for first in rows[::GRID]:
                for voxel in range(CONFIG.token_dim // FRAMES):
                    columns = slice(voxel * FRAMES, (voxel + 1) * FRAMES)
                    course = tokens[first : first + GRID, columns]
                    values.extend(course.ravel())
                    within += ((course - course.mean()) ** 2).sum()
                    mean.extend(((course[1:] - course.mean()) ** 2).ravel())
                    wrong = guess[first + 1 : first + GRID, columns] - course[1:]
                    change = course[:-1] - course[1:]
                    dynamic += wrong.size * wrong.var()
                    dynamic_copy += change.size * change.var()
                    dynamic_mean += course[1:].size * course[1:].var()
    return {
        "skill": 1 - np.sum(step) / min(np.sum(copy), np.sum(mean)),
        "dynamic_skill": 1 - dynamic / min(dynamic_copy, dynamic_mean),
        "step_loss": float(np.mean(step)),
        "step_persistence_loss": float(np.mean(copy)),
        "step_mean_loss": float(np.mean(mean)),
        "jump_loss": float(np.mean(jump)),
        "jump_persistence_loss": float(np.mean(jump_copy)),
        "anatomy_share": 1 - within / (np.var(values) * len(values)),
    }


def found_in(batches: Sequence[Batch]) -> dict[str, float]:
    steps, anatomy = StepMetrics(CONFIG), AnatomyShare(CONFIG)
    for batch in batches:
        batch.add(steps)
        batch.add(anatomy)
    values: dict[str, Tensor] = steps.compute() | anatomy.compute()
    return {name: value.item() for name, value in values.items()}


BATCHES = [make((3, 1, 4), 0), make((2,), 1), make((6, 5), 2, padding=1)]


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("rows", [4096, 2 * GRID, 1])
def test_against_loops(offset: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batches, the level of the data, and the blocks in which they are computed."""
    monkeypatch.setattr(step_metrics, "_BLOCK_ROWS", rows)
    batches = [
        make([n // GRID for n in b.lengths], i, offset=offset, padding=b.padding.index(True))
        if True in b.padding
        else make([n // GRID for n in b.lengths], i, offset=offset)
        for i, b in enumerate(BATCHES)
    ]
    assert found_in(batches) == pytest.approx(by_loops(batches), rel=1e-5)


def test_persistence_and_the_mean_both_are_controls() -> None:
    """Slow signals make persistence the better control, fast ones the voxel's mean."""
    values = by_loops(BATCHES)
    assert values["step_persistence_loss"] < values["step_mean_loss"]
    rng = np.random.default_rng(3)
    noise = BATCHES[0]._replace(tokens=rng.normal(size=BATCHES[0].tokens.shape).astype(np.float32))
    values = by_loops([noise])
    assert values["step_persistence_loss"] > values["step_mean_loss"]
    assert found_in([noise]) == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("of_difference", [False, True])
def test_tokens_of_a_time_together(of_difference: bool) -> None:
    """Space first, from the features of the same place; and with the change as the output."""
    config = replace(CONFIG, token_order="space_first")
    steps = StepMetrics(config, jumps=False, of_difference=of_difference)
    anatomy = AnatomyShare(config)
    for batch in BATCHES:
        tokens, outputs, rows, start = batch.tokens, np.full_like(batch.tokens, np.nan), [], 0
        for i in range(len(tokens) - 1):
            if batch.index[i] // GRID == batch.index[i + 1] // GRID:
                outputs[i] = batch.predicted[i + 1] - (tokens[i] if of_difference else 0)
        for length in batch.lengths:
            rows += [start + p * GRID + t for t in range(GRID) for p in range(length // GRID)]
            start += length
        outputs[np.isnan(outputs)] = 1e3  # is not looked at
        packed = PackedTokens(
            torch.from_numpy(tokens[rows]), torch.from_numpy(batch.index[rows]), batch.lengths
        )
        steps.update(packed, torch.from_numpy(outputs[rows]), torch.clone, batch.padding)
        anatomy.update(packed, batch.padding)
    values: dict[str, Tensor] = steps.compute() | anatomy.compute()
    expected = {k: v for k, v in by_loops(BATCHES).items() if not k.startswith("jump")}
    found = {name: value.item() for name, value in values.items()}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("way", ["merge", "gather"])
def test_two_ranks(way: str) -> None:
    for kind in (StepMetrics, AnatomyShare):
        ranks = [kind(CONFIG), kind(CONFIG)]
        BATCHES[0].add(ranks[0])
        for batch in BATCHES[1:]:
            batch.add(ranks[1])
        if way == "merge":
            ranks[0].merge_state(ranks[1])
        else:
            gather(ranks[0], ranks[1], list(ranks[0]._reductions))
        values = by_loops(BATCHES)
        for name, value in ranks[0].compute().items():
            assert value.item() == pytest.approx(values[name], rel=1e-6), name


def test_controls_have_no_skill() -> None:
    """Predicting a control exactly; and a level for each voxel, known only in hindsight."""
    batch = BATCHES[0]
    copied = batch._replace(predicted=np.roll(batch.tokens, 1, axis=0))
    assert found_in([copied])["skill"] == pytest.approx(0.0, abs=1e-6)
    assert found_in([copied])["dynamic_skill"] == pytest.approx(0.0, abs=1e-6)
    noise = np.random.default_rng(1).normal(size=batch.tokens.shape).astype(np.float32)
    places = noise.reshape(-1, GRID, CONFIG.token_dim // FRAMES, FRAMES)
    level = np.broadcast_to(places.mean((1, 3), keepdims=True), places.shape).reshape(noise.shape)
    constant = batch._replace(tokens=noise, predicted=level.copy())
    assert found_in([constant])["skill"] == pytest.approx(0.0, abs=1e-6)
    assert found_in([constant])["dynamic_skill"] == pytest.approx(0.0, abs=1e-6)


def test_a_wrong_level_costs_skill_and_no_dynamic_skill() -> None:
    batch = BATCHES[0]
    exact = batch._replace(predicted=batch.tokens)
    assert found_in([exact])["skill"] == found_in([exact])["dynamic_skill"] == 1
    shifted = found_in([batch._replace(predicted=batch.tokens + np.float32(50))])
    assert shifted["skill"] < -100 and shifted["dynamic_skill"] == pytest.approx(1, abs=1e-6)


def test_anatomy_is_not_skill() -> None:
    """The case that the former skill rewarded: right about anatomy, worse than copying at steps."""
    rng = np.random.default_rng(0)
    shape = (30, GRID, CONFIG.token_dim // FRAMES, FRAMES)
    places = rng.normal(0, 2, (30, 1, 1, 1)) + rng.normal(0, 0.1, shape)
    tokens = places.reshape(-1, CONFIG.token_dim).astype(np.float32)
    predicted = tokens + rng.normal(0, 0.4, tokens.shape).astype(np.float32)
    batch = Batch(tokens, predicted, np.arange(len(tokens)), (len(tokens),), (False,))
    found = found_in([batch])
    copied = np.mean((tokens[1:] - tokens[:-1]) ** 2)
    assert 1 - np.mean((predicted - tokens)[1:] ** 2) / copied > 0.5
    assert found["skill"] < -10 and found["dynamic_skill"] < -10
    assert found["jump_loss"] < 0.2 * found["jump_persistence_loss"]
    assert found["anatomy_share"] > 0.95


def test_not_defined() -> None:
    """Constant data, and windows of one token in time, have no steps to predict."""
    still = BATCHES[0]._replace(tokens=np.ones_like(BATCHES[0].tokens))
    found = found_in([still])
    assert all(np.isnan(found[name]) for name in ("skill", "dynamic_skill", "anatomy_share"))
    short = ModelConfig(img_size=(6, 6, 6, 2), patch_size=(3, 3, 1, 2), embed_dim=16)
    metric = StepMetrics(short)
    x = torch.rand(4, short.token_dim)
    metric.update(PackedTokens(x, torch.arange(4), (4,)), x, torch.clone, (False,))
    found = {name: value.item() for name, value in metric.compute().items()}
    assert np.isnan(found["skill"]) and np.isnan(found["dynamic_skill"])
    assert np.isnan(found["step_loss"]) and found["jump_loss"] > 0


def test_incomplete_places_are_refused() -> None:
    batch = BATCHES[1]
    for index in (batch.index + 1, batch.index[::-1].copy()):
        with pytest.raises(ValueError, match="all tokens of a place"):
            batch._replace(index=index).add(StepMetrics(CONFIG))


def test_sums_stay_wide_in_a_bf16_module() -> None:
    module = torch.nn.ModuleDict({"metric": StepMetrics(CONFIG)}).to(torch.bfloat16)
    assert {value.dtype for value in module["metric"].metric_state.values()} == {torch.float64}


@pytest.mark.parametrize("skill", [None, float("nan"), 0.0, 0.3])
def test_nothing_to_say(skill: float | None) -> None:
    assert missing_dynamics(skill, "znorm_minback") is None


def test_the_sentence_names_a_remedy_that_is_new() -> None:
    text = missing_dynamics(-4.0, "znorm_minback")
    assert text is not None and text.count(". ") == text.count(". See docs/") == 1
    assert "-4.00" in text and "--input_scaling_method voxelnorm_zeroback" in text
    text = missing_dynamics(-0.5, "voxelnorm_zeroback")
    assert text is not None and "voxelnorm" not in text and "train for more steps" in text
