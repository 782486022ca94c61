"""Whole numbers in given proportions."""

from __future__ import annotations

from collections.abc import Sequence


def largest_remainder(total: int, shares: Sequence[float]) -> list[int]:
    """Divide ``total`` into whole numbers in proportion to ``shares``."""
    exact = [total * share / sum(shares) for share in shares]
    sizes = [int(round(value, 9)) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (round(sizes[i] - exact[i], 9), i))
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    return sizes
