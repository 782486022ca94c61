"""Blocks of the mixer: every token once, in order, within the limit, and few of them."""

from __future__ import annotations

import pytest

from neuromamba.layers.ssd.blocks import Block, capacity, chunks_of, walk
from neuromamba.layers.ssd.types import CHUNK

LIMIT = 4 * CHUNK


@pytest.mark.parametrize(
    "lengths",
    [
        (1,),
        (LIMIT,),
        (LIMIT + 1,),
        (3 * LIMIT,),
        (100,) * 32,
        (5, 130, 1, 700),
        (0, 3, 0),
        (700, 0, 2, 2, 900, CHUNK),
        tuple(range(1, 300, 7)),
    ],
)
def test_every_token_is_walked_once(lengths: tuple[int, ...]) -> None:
    blocks = [block for blocks in walk(lengths, LIMIT) for block in blocks]
    assert [block.first for block in blocks] == [0, *(block.last for block in blocks[:-1])]
    assert blocks[-1].last == sum(lengths)
    for block in blocks:
        assert block.last - block.first == sum(block.lengths) > 0
        assert sum(map(chunks_of, block.lengths)) * CHUNK <= capacity(lengths, LIMIT) <= LIMIT
    # Only what is longer than a block is cut, and nothing else is in the walk with it.
    pieces = [length for block in blocks for length in block.lengths]
    for blocks in walk(lengths, LIMIT):
        if len(blocks) > 1:
            assert all(len(block.lengths) == 1 for block in blocks)
            assert all(block.lengths[0] % CHUNK == 0 for block in blocks[:-1])
            assert sum(block.last - block.first for block in blocks) in lengths
    whole = [length for length in lengths if 0 < length <= LIMIT]
    assert [length for length in pieces if length in whole] == whole or max(lengths) > LIMIT


def test_short_sequences_share_blocks() -> None:
    assert walk((100,) * 5, LIMIT) == (
        (Block(0, 200, (100, 100)),),
        (Block(200, 400, (100, 100)),),
        (Block(400, 500, (100,)),),
    )
    assert capacity((10,), LIMIT) == CHUNK
    assert capacity((100,) * 5, LIMIT) == LIMIT


def test_nothing_is_no_walk() -> None:
    assert walk((), LIMIT) == walk((0, 0), LIMIT) == ()
    assert capacity((0,), LIMIT) == CHUNK
