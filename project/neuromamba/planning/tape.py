"""A record of what a step allocates and frees, in order, and the most that is there at one time."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

# Groups of tensors, in the order in which they are reported.
GROUPS = (
    "tokens",
    "residual stream",
    "kept by the blocks",
    "kept by the output layer or head",
    "buffers of the scan",
    "working memory",
    "batch",
)


class Peak(NamedTuple):
    """Peak memory of a step.

    Attributes:
        total: bytes.
        groups: group of tensors -> bytes at that time.
        moment: when that is.
    """

    total: int
    groups: dict[str, int]
    moment: str


class Tape:
    """Record of allocations in the order of a step's operations."""

    def __init__(self) -> None:
        self._now: Counter[str] = Counter()
        self.peak = Peak(0, {}, "")

    def take(self, group: str, nbytes: float, moment: str) -> None:
        """Record that tensors of a group are allocated."""
        assert group in GROUPS, group
        self._now[group] += round(nbytes)
        total = sum(self._now.values())
        if total > self.peak.total:
            self.peak = Peak(total, dict(self._now), moment)

    def drop(self, group: str, nbytes: float) -> None:
        """Record that tensors of a group are freed."""
        self._now[group] -= round(nbytes)
        assert self._now[group] >= 0, (group, self._now)

    def work(self, nbytes: float, moment: str) -> None:
        """Record memory that is allocated and freed within an operation."""
        self.take("working memory", nbytes, moment)
        self.drop("working memory", nbytes)
