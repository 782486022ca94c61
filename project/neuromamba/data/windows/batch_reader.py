"""Reads whole batches of windows, and how they travel to the training process.

A loading process reads a batch into one piece of shared memory that is used again for later
batches, and sends only where it is. Letters in shapes: T frames of a window, N brain voxels of a
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, get_worker_info

from neuromamba.common.errors import UserInputError
from neuromamba.data.windows.cache import WindowCache
from neuromamba.data.windows.dataset import WindowDataset, collate_windows, window_sample
from neuromamba.data.windows.shared_memory import Slots, Ticket, round_up

_ALIGNED = 64  # bytes at which each array begins


@dataclass(kw_only=True)
class Delivery:
    """A batch under way.

    Attributes:
        facts: of each window, see ``WindowDataset.facts``.
        shapes: rows and voxels of each window, see ``WindowDataset.shape``.
        memory: the windows' bytes, uint8; on the way where they are.
        failure: what to tell the user instead.
    """

    facts: list[dict[str, Any]]
    shapes: list[tuple[int, int]]
    memory: Tensor | Ticket
    failure: str = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Received: taken in hand at once, so that the slot is free also if it is thrown away."""
        self.__dict__.update(state)
        if isinstance(self.memory, Ticket):
            self.memory = self.memory.bytes()

    def pin_memory(self) -> Delivery:
        """The same in page-locked memory; called by the DataLoader's thread."""
        assert isinstance(self.memory, Tensor)
        if not self.failure:
            self.memory = self.memory.pin_memory()
        return self

    def batch(self) -> dict[str, Any]:
        """The batch, as ``collate_windows`` makes it; its tensors are views of the memory.

        Raises:
            UserInputError: reading failed.
        """
        if self.failure:
            raise UserInputError(self.failure)
        memory, begin, samples = self.memory, 0, []
        assert isinstance(memory, Tensor)
        for facts, (frames, voxels) in zip(self.facts, self.shapes, strict=True):
            bold, vox, end = _byte_ranges(begin, frames, voxels)
            rows = memory[bold].view(torch.int16).view(frames, voxels)
            samples.append(window_sample(rows, memory[vox].view(torch.int32), facts))
            begin = end
        return collate_windows(samples)


def _byte_ranges(begin: int, frames: int, voxels: int) -> tuple[slice, slice, int]:
    """Byte ranges of a window's frames and voxels, and the offset of the next window."""
    bold = slice(begin, begin + 2 * frames * voxels)
    vox_at = round_up(bold.stop, _ALIGNED)
    vox = slice(vox_at, vox_at + 4 * voxels)
    return bold, vox, round_up(vox.stop, _ALIGNED)


class BatchReader(Dataset[Any]):
    """Reads the windows of a batch into one piece of memory.

    Args:
        windows: of one or several data sets.
        cache: shared by the loading processes.

    ``slots`` is set by the ``WindowLoader`` when it begins, or starts loading processes.
    """

    def __init__(
        self, windows: ConcatDataset[dict[str, Any]], cache: WindowCache | None = None
    ) -> None:
        self.windows, self.cache = windows, cache
        self.slots: Slots | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def _find(self, index: int) -> tuple[WindowDataset, int]:
        """The data set of a window and its number there."""
        number = int(np.searchsorted(self.windows.cumulative_sizes, index, side="right"))
        before = self.windows.cumulative_sizes[number - 1] if number else 0
        dataset = self.windows.datasets[number]
        assert isinstance(dataset, WindowDataset)
        return dataset, index - before

    def path(self, index: int) -> str:
        """The file that a window is in."""
        dataset, item = self._find(index)
        return str(dataset.path(item))

    def masks(self, indices: Sequence[int]) -> dict[str, Any]:
        """Windows as in a batch, but without their images.

        Raises:
            UserInputError: a file cannot be read.
        """
        found = [self._find(index) for index in indices]
        facts = [dataset.facts(item) for dataset, item in found]
        names = ("subject", "sample_id", "dataset", "window")
        return {
            "vox": [torch.from_numpy(np.array(dataset.voxels(item))) for dataset, item in found],
            **{name: [fact[name] for fact in facts] for name in names},
        }

    def largest(self) -> int:
        """Bytes of the largest window."""
        sizes = [
            _byte_ranges(0, dataset.rows, header.n_voxels)[2]
            for dataset in self.windows.datasets
            if isinstance(dataset, WindowDataset)
            for header in dataset.headers
        ]
        return max(sizes)

    def __getitem__(self, index: int) -> Delivery:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Delivery:
        """Read a batch; a mistake of the user travels as text, since torch would wrap it."""
        found = [self._find(index) for index in indices]
        facts = [dataset.facts(item) for dataset, item in found]
        shapes = [dataset.shape(item) for dataset, item in found]
        total = 0
        for frames, voxels in shapes:
            total = _byte_ranges(total, frames, voxels)[2]
        worker = get_worker_info()
        slot = None if self.slots is None else self.slots.take()
        memory: Tensor | Ticket
        if slot is not None and self.slots is not None:
            target, ticket = self.slots.memory(slot), self.slots.ticket(slot)
            memory = ticket.bytes() if worker is None else ticket
        else:
            # In a loading process: shared, so that it is not copied once more to be sent.
            memory = torch.empty(0 if worker else total, dtype=torch.uint8)
            if worker is not None:
                memory.set_(torch.UntypedStorage._new_shared(total))
            target = memory.numpy()
        begin = 0
        try:
            for index, (dataset, item), shape in zip(indices, found, shapes, strict=True):
                if worker is not None and self.slots is not None:
                    self.slots.reading[worker.id] = index
                bold, vox, end = _byte_ranges(begin, *shape)
                window = target[begin:end]
                if self.cache is None or not self.cache.get(index, window):
                    bold_TN = target[bold].view(np.int16).reshape(shape)
                    dataset.read_into(item, bold_TN, target[vox].view(np.int32))
                    if self.cache is not None:
                        self.cache.put(index, window)
                begin = end
        except UserInputError as error:
            return Delivery(facts=facts, shapes=shapes, memory=memory, failure=str(error))
        if worker is not None and self.slots is not None:
            self.slots.reading[worker.id] = -1
        return Delivery(facts=facts, shapes=shapes, memory=memory)
