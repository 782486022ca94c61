"""Order of the training windows when groups of them are drawn in given proportions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuromamba.common.shares import largest_remainder


class GroupedOrder:
    """An order of windows for each epoch in which every group has its share.

    An epoch has as many windows as there are. A group that is larger than its share continues in
    the next epoch where it stopped in this one, so that each of its windows is drawn equally often;
    a smaller one is used several times in an epoch.

    Args:
        groups: indices of the windows of each group; none empty.
        shares: of the groups, in any unit.
        seed: of the orders.
    """

    def __init__(
        self, groups: Sequence[Sequence[int] | np.ndarray], shares: Sequence[float], seed: int
    ) -> None:
        self.groups = [np.asarray(group, dtype=np.int64) for group in groups]
        self.seed = seed
        self.size = sum(map(len, self.groups))
        self.counts = largest_remainder(self.size, shares)
        assert all(map(len, self.groups)) and len(shares) == len(groups)

    def __call__(self, epoch: int) -> np.ndarray:
        """Indices of an epoch's windows in their order, int64 [size]."""
        drawn = [self._draw(i, epoch) for i in range(len(self.groups))]
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return np.concatenate(drawn)[order]

    def _draw(self, number: int, epoch: int) -> np.ndarray:
        group, count = self.groups[number], self.counts[number]
        start = epoch * count
        rounds = range(start // len(group), -(-(start + count) // len(group)))
        rows = [
            np.random.default_rng([self.seed, number, turn]).permutation(group) for turn in rounds
        ]
        skipped = start - rounds.start * len(group)
        return np.concatenate([*rows, group[:0]])[skipped : skipped + count]
