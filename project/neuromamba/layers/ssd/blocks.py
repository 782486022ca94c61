"""How packed sequences are cut into the blocks that the mixer walks.

A sequence longer than a block is walked in several, which hand on the state. Shorter ones share
blocks, each with chunks of its own: a block costs dozens of calls, whatever it holds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from neuromamba.layers.ssd.types import CHUNK


class Block(NamedTuple):
    """Packed tokens that are walked together.

    Attributes:
        first, last: its first token, and the one past its last.
        lengths: tokens of each whole sequence in it, or of its one piece of a longer sequence.
    """

    first: int
    last: int
    lengths: tuple[int, ...]


def chunks_of(length: int) -> int:
    """Chunks of a sequence; its last one may not be full."""
    return -(-length // CHUNK)


@lru_cache(maxsize=64)
def walk(lengths: tuple[int, ...], limit: int) -> tuple[tuple[Block, ...], ...]:
    """Cut sequences into blocks, in order.

    Args:
        lengths: tokens of each sequence.
        limit: tokens of a block, those that fill up chunks included; a multiple of ``CHUNK``.

    Returns:
        Walks: a long sequence's blocks, which continue each other, or one block of whole sequences.
    """
    walks: list[tuple[Block, ...]] = []
    whole: list[int] = []
    start = 0  # of what is not in a block yet

    def close() -> None:
        nonlocal start
        if whole:
            end = start + sum(whole)
            walks.append((Block(start, end, tuple(whole)),))
            whole.clear()
            start = end

    for length in lengths:
        if sum(map(chunks_of, (*whole, length))) * CHUNK > limit:
            close()
        if length > limit:
            ends = [*range(start + limit, start + length, limit), start + length]
            pieces = zip([start, *ends[:-1]], ends, strict=True)
            walks.append(tuple(Block(one, end, (end - one,)) for one, end in pieces))
            start += length
        elif length:
            whole.append(length)
    close()
    return tuple(walks)


def capacity(lengths: tuple[int, ...], limit: int) -> int:
    """Tokens of the largest block of ``walk``, those that fill up chunks included."""
    blocks = [block for blocks in walk(lengths, limit) for block in blocks]
    return max((sum(map(chunks_of, block.lengths)) for block in blocks), default=1) * CHUNK
