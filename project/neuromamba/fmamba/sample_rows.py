"""Windows read one after the other, and rows of features averaged over the windows of a sample.

A sample is what a prediction counts for: a subject, or a session, run or event.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from neuromamba.data.windows.dataset import WindowDataset
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.probe_rows import Samples
from neuromamba.evaluation.subject_keys import subject_key

Rows = dict[tuple[str, str], np.ndarray]  # (layer, pool) -> [windows or samples, D]


class Origin(NamedTuple):
    """What a window belongs to.

    Attributes:
        name: of its sample, as in predictions.
        unit: family or person, of whom several samples are not independent.
        target: class index or value.
    """

    name: str
    unit: str
    target: Any


def windows_of(
    data: RunData, part: str, batch_size: int, what: str
) -> Iterator[tuple[list[Origin], list[dict[str, Any]]]]:
    """Read every window of a part once, in batches, with a progress bar.

    Args:
        data: made for a downstream task.
        part: "train", "val" or "test".
        batch_size: windows of a batch; the last one of a store may be smaller.
        what: is done, for the bar.
    """
    names = data.sample_names(part)
    with tqdm(
        total=data.windows_in(part), desc=f"{what}, {part}", unit="window", disable=None
    ) as bar:
        for dataset in data.window_sets(part):
            for begin in range(0, len(dataset), batch_size):
                numbers = range(begin, min(begin + batch_size, len(dataset)))
                items = [dataset[i] for i in numbers]
                found = zip(numbers, items, strict=True)
                yield [_origin(data, dataset, names, i, item) for i, item in found], items
                bar.update(len(items))


def _origin(
    data: RunData,
    dataset: WindowDataset,
    names: Mapping[int, str],
    number: int,
    item: Mapping[str, Any],
) -> Origin:
    name = names[subject_key(item["sample_id"], item["dataset"])]
    return Origin(name, _unit(data, dataset, number), item["target"])


def _unit(data: RunData, dataset: WindowDataset, number: int) -> str:
    """Family or person of a window."""
    store, header = data.stores[dataset.dataset], dataset.headers[dataset.windows[number].run]
    family = store.grouping.family.get(store.split_unit_of(header))
    unit = f"subject {header.subject}" if family is None else f"family {family}"
    return f"{dataset.dataset}/{unit}"


def units_of(data: RunData, part: str) -> dict[str, str]:
    """Sample, as in predictions -> family or person; no window is read."""
    names = data.sample_names(part)
    return {
        names[subject_key(window.sample_id, dataset.dataset)]: _unit(data, dataset, number)
        for dataset in data.window_sets(part)
        for number, window in enumerate(dataset.windows)
    }


class SampleMeans:
    """Rows of windows, averaged over the windows of each sample."""

    def __init__(self) -> None:
        self._origin: dict[str, Origin] = {}
        self._windows: dict[str, int] = {}
        self._sums: dict[str, Rows] = {}

    def add(self, origins: Sequence[Origin], rows: Mapping[tuple[str, str], np.ndarray]) -> None:
        """Add windows: their origins [B] and rows [B, D] of each kind."""
        for i, origin in enumerate(origins):
            self._origin.setdefault(origin.name, origin)
            sums = self._sums.setdefault(origin.name, {})
            self._windows[origin.name] = self._windows.get(origin.name, 0) + 1
            for kind, values in rows.items():
                row = values[i].astype(np.float64)
                sums[kind] = sums[kind] + row if kind in sums else row

    @property
    def samples(self) -> Samples:
        """The samples, in the order they came."""
        origins = self._origin.values()
        return Samples(
            tuple(one.name for one in origins),
            np.array([one.target for one in origins]),
            tuple(one.unit for one in origins),
        )

    @property
    def rows(self) -> Rows:
        """Kind -> float32 [S, D], means over the windows of each sample."""
        kinds = next(iter(self._sums.values()))
        return {
            kind: np.stack(
                [sums[kind] / self._windows[name] for name, sums in self._sums.items()]
            ).astype(np.float32)
            for kind in kinds
        }
