"""Scans as the models take them: z-scored, cropped in training, packed.

Shapes: N regions, T frames, L packed frames, B scans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import stream
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.scan import ROUNDING, Scan
from neuromamba.layers.packing import pack


def z_scored(series: np.ndarray) -> Tensor:
    """float32 [N, T] with mean 0 and standard deviation 1 of each region; a constant one is 0."""
    wide = torch.from_numpy(series).double()
    centred = wide - wide.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    # Rounding of single precision leaves a constant region a deviation that is not quite 0.
    floor = ROUNDING * wide.abs().amax(1, keepdim=True)
    return torch.where(deviation > floor, centred / deviation, 0.0).float()


class ScanDataset(Dataset[dict[str, Any]]):
    """Scans of a split.

    A crop's place depends on the seed, the epoch and the scan alone, so that neither the number of
    loading processes nor an earlier fit changes it.

    Args:
        scans: of the split.
        crop: frames of a crop; None takes scans whole.
        seed: of the crops.
    """

    def __init__(self, scans: Sequence[Scan], crop: int | None = None, seed: int = 0) -> None:
        self.scans, self.crop, self.seed = scans, crop, seed
        self.epoch = 0
        self._series = [z_scored(scan.series) for scan in scans]

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scan, series = self.scans[index], self._series[index]
        frames = series.shape[1]
        if self.crop is not None and frames > self.crop:
            places = stream(self.seed, 3, self.epoch, index)
            first = int(torch.randint(frames - self.crop + 1, (), generator=places))
            series = series[:, first : first + self.crop]
        return {"series": series, "label": scan.label, "scan": scan.scan, "number": index}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: ``frames`` [L, N] and ``lengths`` of the packed scans, ``label`` [B].

    ``subject``, the scans' names, and ``window``, their numbers, are what messages about a batch
    name (``training.fault_tolerance``).
    """
    packed = pack([item["series"] for item in items])
    return {
        "frames": packed.frames,
        "lengths": packed.lengths,
        "label": torch.tensor([item["label"] for item in items]),
        "subject": [item["scan"] for item in items],
        "window": torch.tensor([item["number"] for item in items]),
    }


class ScanLoader(DataLoader[dict[str, Any]]):
    """Batches of a ``ScanDataset``; in training in an order that depends on seed and epoch."""

    def __init__(self, data: ScanDataset, batch_size: int, shuffle: bool = False) -> None:
        order = _Order(data, shuffle)
        super().__init__(data, batch_size=batch_size, sampler=order, collate_fn=collate)


class _Order(Sampler[int]):
    """Indices of an epoch.

    Lightning calls ``set_epoch`` of a loader's ``sampler``, and of a ``batch_sampler`` only that of
    a sampler within it: without the call every epoch would have the first one's order and crops.
    """

    def __init__(self, data: ScanDataset, shuffle: bool) -> None:
        self.data, self.shuffle = data, shuffle

    def set_epoch(self, epoch: int) -> None:
        self.data.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        order = torch.arange(len(self.data))
        if self.shuffle:
            places = stream(self.data.seed, 4, self.data.epoch)
            order = torch.randperm(len(self.data), generator=places)
        return iter(order.tolist())


def check_lengths(cohort: Cohort, crop: int, shortest: int, *, refuse: bool) -> int:
    """Count the scans that have fewer frames than a crop.

    Raises:
        UserInputError: there are some, and they are to be refused; or one is too short for the
            model whatever is done.
    """
    if crop < shortest:
        raise UserInputError(
            f"--dynamic_length: got {crop}, expected {shortest} frames or more, twice the coarsest "
            f"of --scales."
        )
    frames = {scan.scan: scan.series.shape[1] for scan in cohort.scans}
    tiny = [name for name, count in frames.items() if count < shortest]
    if tiny:
        raise UserInputError(
            f"--data_dir: scan {tiny[0]} has {frames[tiny[0]]} frames; the model needs {shortest} "
            f"or more, twice the coarsest of --scales."
        )
    short = [name for name, count in frames.items() if count < crop]
    if short and refuse:
        raise UserInputError(
            f"--short_scans refuse: {len(short)} scans have fewer than --dynamic_length {crop} "
            f"frames, e.g. {short[0]} with {frames[short[0]]}. Lower the length, or take them "
            f"whole with --short_scans pad."
        )
    return len(short)
