"""The LightningDataModule: loaders of the windows of a run's data."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from pytorch_lightning import LightningDataModule

from neuromamba.data.windows.cache import WindowCache, cache_bytes
from neuromamba.data.windows.loader import BatchReader, EpochSampler, in_order, window_loader
from neuromamba.data.windows.run_data import RunData
from neuromamba.data.windows.sampling import GroupedOrder

logger = logging.getLogger(__name__)


class FMRIDataModule(LightningDataModule):
    """Batches of windows for a Trainer.

    Args:
        data: stores, subjects and windows.
    """

    def __init__(self, data: RunData) -> None:
        super().__init__()
        self.data = data

    def cache_bytes(self, processes: int = 1) -> int:
        """Return the bytes of the window cache of each training process of this machine; 0: none.

        Raises:
            UserInputError: ``--window_cache`` asks for more memory than is free.
        """
        windows, wanted = self.data.parts["train"], self.data.config.window_cache
        if windows is None or not wanted:
            return 0
        return cache_bytes(wanted, len(windows), BatchReader(windows).largest(), processes)

    def _loader(self, part: str) -> Any:
        windows, config = self.data.parts[part], self.data.config
        if windows is None:
            return []
        train, size, cache = part == "train", len(windows), None
        if train and config.window_cache:
            capacity = self.cache_bytes(getattr(self.trainer, "num_devices", 1))
            if capacity:
                cache = WindowCache(size, BatchReader(windows).largest(), capacity)
            kept = cache.n_slots if cache else 0
            logger.info("window cache: room for %d of %d training windows", kept, size)
        order = training_order(self.data) if train else in_order(size)
        rank = getattr(self.trainer, "global_rank", 0)
        ranks = getattr(self.trainer, "world_size", 1)
        return window_loader(
            windows,
            EpochSampler(size, config.seed, order=order, rank=rank, ranks=ranks),
            config,
            config.batch_size if train else config.eval_batch_size,
            cache,
        )

    def train_dataloader(self) -> Any:
        """Return shuffled training windows."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Return validation windows in order; none if there are no validation subjects."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Return test windows in order."""
        return self._loader("test")


def training_order(data: RunData) -> GroupedOrder | None:
    """Return the order of training windows where data sets or classes have set shares."""
    config = data.config
    if not (config.dataset_weights or config.balanced_sampling):
        return None
    groups: dict[tuple[int, float | None], list[int]] = {}
    position = 0
    for windows in data.window_sets("train"):
        for window in windows.windows:
            label = window.target if config.balanced_sampling else None
            groups.setdefault((windows.dataset, label), []).append(position)
            position += 1
    sizes: Counter[int] = Counter()
    for (number, _), members in groups.items():
        sizes[number] += len(members)
    weights = config.dataset_weights or tuple(float(sizes[n]) for n in range(len(data.stores)))
    classes = Counter(number for number, _ in groups)
    shares = [weights[number] / classes[number] for number, _ in groups]
    return GroupedOrder(list(groups.values()), shares, config.seed)
