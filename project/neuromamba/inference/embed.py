"""Embeddings of a scan: features of a layer, pooled over a subject, windows, regions or not at all.

At each place of a window (a spatial patch) the features of its tokens, one after the other in time,
have a mean, a standard deviation and a lag-1 difference, the root mean square of the change from
one token to the next. Their means over the places of a window, of a region, and over the windows of
a scan are the rows.

Shapes: B windows, L tokens, P places of the windows, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import EMBED_POOLS, EMBED_STATISTICS, LAST_LAYER
from neuromamba.data.regions.atlases import Atlas
from neuromamba.fmamba.layer_outputs import EMBEDDING, layer_output
from neuromamba.fmamba.pooling import deviation_over_time, group_mean, places_of
from neuromamba.fmamba.tokenizer import PackedTokens, in_raster_order
from neuromamba.inference.brief import Brief
from neuromamba.inference.model import TrainedModel
from neuromamba.inference.prepared import PreparedScan
from neuromamba.inference.regions import Regions, regions_on_grid

VALUE = "value"  # the statistic of single tokens
INDEX = ("scan", "subject", "session", "run", "window", "region", "statistic", "layer")
POSITION = ("x", "y", "z", "time")  # mm and seconds, of single tokens


@dataclass(frozen=True, kw_only=True, repr=False)
class Embedding(Brief):
    """Embeddings of a scan.

    Attributes:
        values: float32 [R, D].
        index: name -> R entries: those of ``INDEX``, and for single tokens ``POSITION``. ``window``
            is None for rows of the whole scan, ``region`` is "" for the whole brain.
        layer: name of the layer.
    """

    values: np.ndarray
    index: dict[str, list[Any]]
    layer: str

    @property
    def brief(self) -> str:
        """Its size and layer."""
        rows, width = self.values.shape
        return f"{rows} x {width} of the layer {self.layer}"

    def to_table(self) -> Any:
        """A pyarrow table: the index, then f0, f1 ..."""
        import pyarrow

        kinds = {"window": pyarrow.int32(), **dict.fromkeys(POSITION, pyarrow.float32())}
        columns = {
            name: pyarrow.array(entries, kinds.get(name, pyarrow.string()))
            for name, entries in self.index.items()
        }
        features = {f"f{i}": pyarrow.array(column) for i, column in enumerate(self.values.T)}
        return pyarrow.table(columns | features)

    def to_parquet(self, path: str | Path) -> None:
        """Write the table to a Parquet file."""
        import pyarrow.parquet

        pyarrow.parquet.write_table(self.to_table(), path)


def layer_name(number: int, depth: int) -> str:
    """Name of a layer by its number: 0 the embedding, 1 to ``depth`` the blocks, -1 the features.

    Features are the output of the last block after the final norm. Other negative numbers count
    back from there: -2 is block ``depth - 1``.

    Raises:
        UserInputError: there is no such layer.
    """
    if depth == 0 and number not in (0, -1):
        raise UserInputError(
            f"--layer: got {number}, but the tokens of this model's blocks are merged. Its layers "
            f"with a row per token are 0 (the embedding) and -1 (features after the final norm)."
        )
    if not -depth - 1 <= number <= depth:
        raise UserInputError(
            f"--layer: the model has no layer {number}. Its layers are 0 (the embedding), 1 to "
            f"{depth} (the blocks) and -1 (the features after the final norm), from which -2 to "
            f"{-depth - 1} count back."
        )
    if number == -1:
        return LAST_LAYER
    number = depth + 1 + number if number < 0 else number
    return EMBEDDING if number == 0 else f"block {number}"


def embed_scan(
    model: TrainedModel,
    scan: PreparedScan,
    *,
    layer: int = -1,
    pool: str = "subject",
    atlas: Atlas | str | Path | None = None,
    statistics: Sequence[str] = ("mean", "sd"),
) -> Embedding:
    """Embed a prepared scan.

    Args:
        model: any; a head is not used.
        scan: from ``TrainedModel.prepare``.
        layer: see ``layer_name``.
        pool: "subject" (all windows of the scan), "window", "region" (of an atlas or a coarse grid,
            all windows) or "token" (no pooling, no statistics).
        atlas: for "region": an image of labels in MNI space, the name of an atlas, or one that was
            read before; None takes the coarse grid of the pool "regions" (27 cells).
        statistics: of ``EMBED_STATISTICS``, over the tokens of a place.

    Raises:
        UserInputError: an unknown name; an atlas that does not fit.
    """
    look_up(pool, EMBED_POOLS, "--pool")
    statistics = [statistics] if isinstance(statistics, str) else list(statistics)
    if not statistics:
        raise UserInputError(
            f"--statistics: got none, expected one or more of {', '.join(EMBED_STATISTICS)}."
        )
    for name in statistics:
        look_up(name, EMBED_STATISTICS, "--statistics")
    if atlas is not None and pool != "region":
        raise UserInputError("--atlas: only used with --pool region.")
    name = layer_name(layer, model.contract.model.token_blocks)
    collected: list[tuple[dict[str, list[Any]], np.ndarray]] = []
    regions = regions_on_grid(model, scan, atlas) if pool == "region" else None
    totals = _Totals(len(scan.windows))
    for numbers, packed in model.batches(scan):
        features = layer_output(model.backbone, name, packed)
        if pool == "token":
            collected.append(_tokens(scan, numbers, features, packed, model))
            continue
        rows = _of_places(features, packed, model, statistics)
        if pool == "window":
            collected += [_windows(numbers, statistic, row) for statistic, row in rows.by_window()]
        else:
            totals.add(rows, regions)
    if pool in ("subject", "region"):
        collected = totals.rows(regions)
    index: dict[str, list[Any]] = {}
    for entries, _ in collected:
        for key, column in entries.items():
            index.setdefault(key, []).extend(column)
    count = len(index["window"])
    whole = {"scan": scan.name, "subject": scan.subject, "session": scan.session, "run": scan.run}
    named = {key: [value] * count for key, value in whole.items()}
    named |= {key: index[key] for key in ("window", "region", "statistic")}
    named["layer"] = [name] * count
    named |= {key: index[key] for key in POSITION if key in index}
    values = np.concatenate([rows for _, rows in collected]).astype(np.float32)
    return Embedding(values=values, index=named, layer=name)


@dataclass(frozen=True)
class _PlaceRows:
    """Statistics over time at each place of some windows.

    Attributes:
        statistics: name -> (P, D).
        window: (P,) the window of each place, counted from 0.
        patch: (P,) its spatial patch.
        windows: B.
    """

    statistics: dict[str, Tensor]
    window: Tensor
    patch: Tensor
    windows: int

    def by_window(self) -> list[tuple[str, np.ndarray]]:
        """Statistic -> mean over the places of each window [B, D]."""
        return [
            (name, group_mean(values, self.window, self.windows).cpu().numpy())
            for name, values in self.statistics.items()
        ]


def _of_places(
    features: Tensor, packed: PackedTokens, model: TrainedModel, statistics: Sequence[str]
) -> _PlaceRows:
    config = model.contract.model
    features = features.float()
    place, found = places_of(packed, config)
    spatial = math.prod(config.token_grid[:3])
    made: dict[str, Tensor] = {}
    for name in statistics:
        if name == "mean":
            made[name] = group_mean(features, place, len(found))
        elif name == "sd":
            made[name] = deviation_over_time(features, place, len(found))
        else:
            made[name] = _lag1(features, place, len(found), in_raster_order(packed, config))
    return _PlaceRows(made, found // spatial, found % spatial, len(packed.lengths))


def _lag1(features: Tensor, place: Tensor, places: int, order: Tensor | None) -> Tensor:
    """Root mean square of the change from a token to the next at each place, (P, D)."""
    if order is not None:  # in raster order the tokens of a place are neighbours, in time
        features, place = features[order], place[order]
    same = place[1:] == place[:-1]
    change = (features[1:] - features[:-1])[same]
    return group_mean(change.square(), place[1:][same], places).sqrt()


class _Totals:
    """Sums over the windows of a scan."""

    def __init__(self, windows: int) -> None:
        self.windows = windows
        self.sums: dict[str, np.ndarray] = {}
        self.counts: np.ndarray = np.zeros(0)

    def add(self, rows: _PlaceRows, regions: Regions | None) -> None:
        """Add windows: of the whole brain each counts alike, of a region each of its places."""
        if regions is None:
            for name, values in rows.by_window():
                self.sums[name] = self.sums.get(name, 0.0) + values.sum(0, dtype=np.float64)[None]
            return
        region = torch.from_numpy(regions.of_patch).to(rows.patch.device)[rows.patch]
        inside, count = region >= 0, len(regions.names)
        self.counts = self.counts if self.counts.size else np.zeros(count)
        self.counts += torch.bincount(region[inside], minlength=count).cpu().numpy()
        for name, at_places in rows.statistics.items():
            total = at_places.new_zeros(count, at_places.shape[1], dtype=torch.float64)
            total.index_add_(0, region[inside], at_places[inside].double())
            self.sums[name] = self.sums.get(name, 0.0) + total.cpu().numpy()

    def rows(self, regions: Regions | None) -> list[tuple[dict[str, list[Any]], np.ndarray]]:
        """Means of the scan; regions without a place are left out."""
        if regions is None:
            return [
                ({"window": [None], "region": [""], "statistic": [name]}, total / self.windows)
                for name, total in self.sums.items()
            ]
        there = np.flatnonzero(self.counts)
        names = [regions.names[i] for i in there]
        nothing = [None] * len(there)
        return [
            (
                {"window": nothing, "region": names, "statistic": [name] * len(there)},
                total[there] / self.counts[there, None],
            )
            for name, total in self.sums.items()
        ]


def _windows(
    numbers: range, statistic: str, rows: np.ndarray
) -> tuple[dict[str, list[Any]], np.ndarray]:
    count = len(numbers)
    return {
        "window": list(numbers),
        "region": [""] * count,
        "statistic": [statistic] * count,
    }, rows


def _tokens(
    scan: PreparedScan,
    numbers: range,
    features: Tensor,
    packed: PackedTokens,
    model: TrainedModel,
) -> tuple[dict[str, list[Any]], np.ndarray]:
    """Every token, with the centre of its patch in mm and of its frames in seconds."""
    config, data = model.contract.model, model.contract.data
    place = np.stack(np.unravel_index(packed.token_index.cpu().numpy(), config.token_grid), axis=1)
    patch = np.asarray(config.patch_size)
    centre = place * patch + (patch - 1) / 2
    millimetres = nibabel.affines.apply_affine(np.asarray(scan.header.affine), centre[:, :3])
    window = np.repeat(list(numbers), packed.lengths)
    starts = np.array([one.start for one in scan.windows.windows])
    seconds = (starts[window] + centre[:, 3] * data.stride_within_seq) * scan.header.tr
    index: dict[str, list[Any]] = {
        "window": window.tolist(),
        "region": [""] * len(window),
        "statistic": [VALUE] * len(window),
    }
    position = np.column_stack([millimetres, seconds])
    index |= {key: position[:, i].tolist() for i, key in enumerate(POSITION)}
    return index, features.float().cpu().numpy()
