"""Masked-token reconstruction: what is hidden, and how many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from neuromamba.common.seeds import stream
from neuromamba.config.names import MASKING_TYPES
from neuromamba.fmamba.masking import hidden_tokens

TIMES = 5


def index_of(patches: list[int]) -> Tensor:
    """Tokens of these spatial patches at all times, T fastest."""
    return torch.tensor([p * TIMES + t for p in patches for t in range(TIMES)])


def draw(
    index: Tensor, lengths: tuple[int, ...], ratio: float, kind: str, seed: int = 0
) -> tuple[Tensor, ...]:
    streams = [stream(seed, number) for number in range(len(lengths))]
    hidden = hidden_tokens(index, lengths, TIMES, ratio, kind, streams)
    assert hidden.dtype == torch.bool and hidden.shape == index.shape
    return hidden.split(lengths)


def three_samples() -> tuple[Tensor, tuple[int, ...]]:
    rng = np.random.default_rng(0)
    parts = [index_of(sorted(rng.choice(300, n, replace=False).tolist())) for n in (40, 8, 100)]
    return torch.cat(parts), tuple(len(part) for part in parts)


@pytest.mark.parametrize("kind", MASKING_TYPES)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.75, 0.95])
@pytest.mark.parametrize("seed", range(5))
def test_share_of_each_sample(kind: str, ratio: float, seed: int) -> None:
    """The share holds for each sample by itself, in the units that the kind hides."""
    index, lengths = three_samples()
    for sample, length in zip(draw(index, lengths, ratio, kind, seed), lengths, strict=True):
        units = {"random": length, "tube": length // TIMES, "temporal": TIMES}[kind]
        count = min(max(1, round(ratio * units)), units - 1)
        wanted = count * length // units
        # One less if the first token was drawn, which is never hidden.
        assert wanted - 1 <= int(sample.sum()) <= wanted


@pytest.mark.parametrize("kind", MASKING_TYPES)
@pytest.mark.parametrize("seed", range(20))
def test_first_token_of_a_sample_is_never_hidden(kind: str, seed: int) -> None:
    index, lengths = three_samples()
    for sample in draw(index, lengths, 0.95, kind, seed):
        assert not sample[0] and sample.any()


@pytest.mark.parametrize("seed", range(10))
def test_tube_hides_patches_at_all_times(seed: int) -> None:
    index, lengths = three_samples()
    for sample in draw(index, lengths, 0.5, "tube", seed):
        by_patch = sample.reshape(-1, TIMES)
        assert (by_patch[1:] == by_patch[1:, :1]).all()
        assert by_patch[0, 1:].all() == by_patch[0, 1:].any()
        assert 0 < by_patch[1:].any(1).sum() < len(by_patch) - 1


@pytest.mark.parametrize("kind", MASKING_TYPES)
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_tokens_changes_nothing_but_the_first(seed: int, kind: str) -> None:
    """With all places at a time together, the same places or times are hidden."""
    index, lengths = three_samples()
    parts = [part.view(-1, TIMES).T.flatten() for part in index.split(lengths)]
    space_first = draw(torch.cat(parts), lengths, 0.5, kind, seed)
    for raster, moved in zip(draw(index, lengths, 0.5, kind, seed), space_first, strict=True):
        back = moved.view(TIMES, -1).T.flatten()
        assert torch.equal(back[1:], raster[1:]) and not moved[0]


@pytest.mark.parametrize("seed", range(10))
def test_temporal_hides_whole_time_patches(seed: int) -> None:
    index, lengths = three_samples()
    for sample in draw(index, lengths, 0.4, "temporal", seed):
        rest = sample.reshape(-1, TIMES)[1:]
        assert (rest == rest[:1]).all()
        assert rest[0].sum() == 2  # 0.4 of five
        assert (sample[1:TIMES] == rest[0, 1:]).all()


def test_tube_follows_the_grid_and_not_the_rank() -> None:
    """Tokens of a patch that the mask cut apart in time still belong together."""
    index = torch.tensor([0, 3 * TIMES + 1, 3 * TIMES + 4, 7 * TIMES, 7 * TIMES + 2, 9 * TIMES])
    for seed in range(20):
        (sample,) = draw(index, (6,), 0.5, "tube", seed)
        assert sample[1] == sample[2] and sample[3] == sample[4]


@pytest.mark.parametrize("kind", ["random", "tube"])
def test_every_later_token_is_hidden_equally_often(kind: str) -> None:
    index, draws = index_of(list(range(8))), 400
    counts = torch.zeros(len(index))
    for seed in range(draws):
        counts += draw(index, (len(index),), 0.5, kind, seed)[0]
    share = counts[TIMES:] / draws
    # Five standard deviations of a share of one half over 400 draws.
    assert (share - 0.5).abs().max() < 5 * 0.5 / draws**0.5


@pytest.mark.parametrize("kind", MASKING_TYPES)
def test_deterministic_in_the_generator(kind: str) -> None:
    index, lengths = three_samples()

    def whole(*keys: int) -> Tensor:
        streams = [stream(*keys, number) for number in range(len(lengths))]
        return hidden_tokens(index, lengths, TIMES, 0.5, kind, streams)

    torch.manual_seed(0)
    one = whole(1, 2, 3)
    torch.manual_seed(1)
    assert torch.equal(one, whole(1, 2, 3))
    others = [whole(1, 2, 4), whole(1, 3, 3), whole(2, 2, 3)]
    assert sum(torch.equal(one, other) for other in others) <= (kind == "temporal")


def test_samples_are_drawn_apart() -> None:
    """Two samples with the same tokens do not share their mask."""
    index = index_of(list(range(30)))
    one, other = draw(torch.cat([index, index]), (150, 150), 0.5, "random")
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", MASKING_TYPES)
@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("seed", range(6))
def test_tiny_samples(kind: str, ratio: float, seed: int) -> None:
    """One token: nothing to hide. Two: the second, whether or not they share patch or time."""
    pairs = [(0, 1), (0, TIMES), (3, TIMES + 1)]
    index = torch.tensor([7, *(i for pair in pairs for i in pair), 2])
    hidden = draw(index, (1, 2, 2, 2, 1), ratio, kind, seed)
    assert [sample.tolist() for sample in hidden] == [[False], *[[False, True]] * 3, [False]]


@pytest.mark.parametrize("kind", ["tube", "temporal"])
def test_a_single_unit_still_gives_a_task(kind: str) -> None:
    """One patch (tube) or one time (temporal): all of it but the first token."""
    index = index_of([4]) if kind == "tube" else torch.arange(5) * TIMES + 2
    assert draw(index, (5,), 0.3, kind)[0].tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("kind", ["tube", "temporal"])
def test_something_stays_visible_besides_the_first_token(kind: str) -> None:
    index, lengths = three_samples()
    for sample in draw(index, lengths, 0.999, kind):
        assert int((~sample).sum()) > 1
