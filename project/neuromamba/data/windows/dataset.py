"""Windows of runs as a torch data set: compact (brain voxels only), raw int16, scaled later.

A sample carries the window as stored and the three numbers that scale it (z = q * gain + shift,
background elsewhere), because scattering to the grid and cutting into tokens is cheaper on the
device and moves a quarter of the bytes. Letters in shapes: T frames of a window, N brain voxels of
a run, B windows of a batch.
"""

from __future__ import annotations

import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from neuromamba.common.errors import UserInputError, see
from neuromamba.common.text import names_for_message
from neuromamba.config.data import DataConfig
from neuromamba.config.names import ORIENTATION, VOXEL_SCALINGS
from neuromamba.data.cohorts.events import LabelledEvent
from neuromamba.data.store.normalisation import Scaling, scaling_of
from neuromamba.data.store.raw_run import FileChangedError, RawLayout, RawRun
from neuromamba.data.store.reader import RunFile, RunHeader, read_header
from neuromamba.data.store.voxel_scaling import (
    VoxelScaling,
    WindowVoxelScaling,
    anatomy_of,
    voxel_scaling_of,
)
from neuromamba.data.store.voxel_statistics import voxel_statistics_of

# Fields of a header that change with what is in the file.
_CONTENT = ("grid", "n_frames", "n_voxels", "scale", "offset", "mean", "std", "content_sha256")
_LAST_IS_ANATOMY = "last_is_anatomy"  # key of a window's facts
_OPEN_RUNS = 64  # files kept open in a process, far below the usual limit of 1,024


def windows_of(n_frames: int, config: DataConfig) -> list[int]:
    """First frames of a run's windows; only whole windows, so none if the run is too short."""
    return list(range(0, n_frames - config.window_span + 1, config.window_step))


@dataclass(frozen=True, kw_only=True)
class Window:
    """Origin of a sample: run, frames and target.

    Attributes:
        run: position in the list of runs.
        start: first frame.
        sample_id: what its prediction counts for: the name of a subject (session, run) or event.
        index: counts the windows of ``sample_id``, over all of its runs.
        target: class index or value; None for pre-training.
    """

    run: int
    start: int
    sample_id: str
    index: int
    target: int | float | None = None


def event_name(header: RunHeader, number: int) -> str:
    """Name an event by the run and the event's number in it, from 1."""
    return f"{header.label}#{number + 1}"


class OpenRun(NamedTuple):
    """A run's open file, its scaling voxel by voxel and its mean image, if they are asked for.

    ``anatomy`` is int16 [N] (``anatomy_of``); None also if it is that of each window.
    """

    file: RunFile | RawRun
    voxel_scaling: VoxelScaling | WindowVoxelScaling | None
    anatomy: np.ndarray | None


class WindowDataset(Dataset[dict[str, Any]]):
    """The windows of the given runs, in the order of the runs and of time.

    It can be pickled and forked: every process opens the files itself (``RunFile``), when needed.

    Args:
        run_paths: HDF5 files of the store.
        config: windowing, ``grid``, ``input_scaling_method`` and ``scaling_statistics``.
        labels: sample_id -> target; None for pre-training.
        events: label of a run -> its events, which have targets of their own; then only windows
            within events are used.
        sample_id_of: sample_id of a run; default: its subject.
        headers: of the runs, if they were read before.
        dataset: number of this data set among several, handed through to the batch.
        max_windows_per_run: keep the first so many windows of each run.

    Raises:
        UserInputError: no runs; a run of another grid or orientation; runs shorter than a window.
    """

    def __init__(
        self,
        run_paths: Sequence[str | Path],
        config: DataConfig,
        *,
        labels: Mapping[str, int | float] | None = None,
        events: Mapping[str, Sequence[LabelledEvent]] | None = None,
        sample_id_of: Callable[[RunHeader], str] = lambda header: header.subject,
        headers: Sequence[RunHeader] | None = None,
        dataset: int = 0,
        max_windows_per_run: int | None = None,
    ) -> None:
        self.paths = [Path(path) for path in run_paths]
        self.headers = list(headers) if headers else [read_header(path) for path in self.paths]
        if not self.paths:
            raise UserInputError("--image_path: there are no runs for this part of the split.")
        if len(self.headers) != len(self.paths):
            raise ValueError(f"{len(self.headers)} headers for {len(self.paths)} runs")
        self.config = config
        self.dataset = dataset
        _check_runs(self.paths, self.headers, config)
        samples = {sample_id_of(header) for header in self.headers}
        if labels is not None and (missing := samples - set(labels)):
            raise ValueError(f"no target for {names_for_message(missing)}")
        self.scalings: list[Scaling] = [
            scaling_of(header, config.input_scaling_method) for header in self.headers
        ]
        self.windows: list[Window] = []
        counts: Counter[str] = Counter()
        for run, header in enumerate(self.headers):
            found: list[tuple[int, str, int | float | None]]
            if events is not None:
                found = [
                    (start, event_name(header, event.number), event.target)
                    for event in events.get(header.label, ())
                    for start in event.starts
                ]
            else:
                sample_id = sample_id_of(header)
                target = None if labels is None else labels[sample_id]
                found = [
                    (start, sample_id, target) for start in windows_of(header.n_frames, config)
                ]
            for start, sample_id, target in found[:max_windows_per_run]:
                self.windows.append(
                    Window(
                        run=run,
                        start=start,
                        sample_id=sample_id,
                        index=counts[sample_id],
                        target=target,
                    )
                )
                counts[sample_id] += 1
        self._by_voxel = config.input_scaling_method in VOXEL_SCALINGS
        self._open_runs: OrderedDict[int, OpenRun] = OrderedDict()
        self._layouts: dict[int, RawLayout] = {}

    @property
    def subjects(self) -> list[str]:
        """Subject of every window, in the order of the windows."""
        return [self.headers[window.run].subject for window in self.windows]

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be pickled, and layouts belong to them.
        return {**self.__dict__, "_open_runs": OrderedDict(), "_layouts": {}}

    def _run(self, run: int) -> OpenRun:
        """The open file of a run; the least recently used one gives way."""
        if run not in self._open_runs:
            if len(self._open_runs) >= _OPEN_RUNS:
                self._open_runs.popitem(last=False)[1].file.close()
            scaling, anatomy = self._voxel_scaling(run) if self._by_voxel else (None, None)
            self._open_runs[run] = OpenRun(self._opened(run), scaling, anatomy)
        self._open_runs.move_to_end(run)
        return self._open_runs[run]

    def _voxel_scaling(
        self, run: int
    ) -> tuple[VoxelScaling | WindowVoxelScaling, np.ndarray | None]:
        """The scaling of a run's voxels, and its anatomy; see ``OpenRun``.

        The statistics of voxels are computed if the store does not have them.

        Raises:
            UserInputError: the file cannot be read.
        """
        header, method = self.headers[run], self.config.input_scaling_method
        if self.config.scaling_statistics == "window":
            return WindowVoxelScaling(header, method), None
        mean, std = voxel_statistics_of(self.paths[run])
        anatomy = anatomy_of(mean) if self.config.anatomy else None
        return voxel_scaling_of(header, method, mean, std), anatomy

    def _opened(self, run: int) -> RunFile | RawRun:
        """A run opened past HDF5 if it is unfiltered; HDF5 is asked once where its arrays are."""
        path = self.paths[run]
        if run in self._layouts:
            try:
                return RawRun(path, self._layouts[run])
            except FileChangedError:
                del self._layouts[run]
        file = RunFile(path)
        self._check_unchanged(run, file)
        layout = file.raw_layout()
        if layout is None:
            return file
        file.close()
        self._layouts[run] = layout
        try:
            return RawRun(path, layout)
        except FileChangedError:  # between the two lines
            raise self._changed(run) from None

    def _check_unchanged(self, run: int, file: RunFile) -> None:
        """A file that was converted again has other voxels and another scaling.

        Raises:
            UserInputError: names the file.
        """
        _ = file.vox  # refuses damaged ones
        found, known = file.header, self.headers[run]
        if any(getattr(found, name) != getattr(known, name) for name in _CONTENT):
            raise self._changed(run)

    def _changed(self, run: int) -> UserInputError:
        return UserInputError(
            f"{self.paths[run]}: the file has changed since this run was started; start again, and "
            f"do not convert into a store that is being trained on."
        )

    def frames_of(self, window: Window) -> np.ndarray:
        """Frame numbers of a window, int64 [T], in the order they are delivered."""
        stride = self.config.stride_within_seq
        frames = window.start + stride * np.arange(self.config.sequence_length)
        if self.config.shuffle_time_sequence:
            # One fixed order for each window: a control experiment must be repeatable.
            number = zlib.crc32(window.sample_id.encode())
            rng = np.random.default_rng([self.config.seed, number, window.index])
            frames = rng.permutation(frames)
        return frames

    def facts(self, item: int) -> dict[str, Any]:
        """A window without its arrays: see ``__getitem__``. No file is touched."""
        window = self.windows[item]
        scaling = self.scalings[window.run]
        facts = {
            "gain": scaling.gain,
            "shift": scaling.shift,
            "background": scaling.background,
            "subject": self.headers[window.run].subject,
            "sample_id": window.sample_id,
            "window": window.index,
            "dataset": self.dataset,
        }
        if window.target is not None:
            facts["target"] = window.target
        if self.config.anatomy:
            facts[_LAST_IS_ANATOMY] = True
        return facts

    def shape(self, item: int) -> tuple[int, int]:
        """Rows and brain voxels of a window, (T or T + 1, N); see ``read_into``."""
        return self.rows, self.headers[self.windows[item].run].n_voxels

    @property
    def rows(self) -> int:
        """Rows of a window as it is read: its frames, and one for the mean image if there is."""
        return self.config.sequence_length + self.config.anatomy

    def path(self, item: int) -> Path:
        """The file that a window is in."""
        return self.paths[self.windows[item].run]

    def voxels(self, item: int) -> np.ndarray:
        """int32 [N], the brain voxels of a window's run; no image is read.

        Raises:
            UserInputError: as ``read_into``.
        """
        return self._run(self.windows[item].run).file.vox

    def read_into(self, item: int, bold: np.ndarray, vox: np.ndarray) -> None:
        """Read a window into memory that is there already: int16 [T, N], int32 [N], contiguous.

        With the channel of the anatomy, ``bold`` has one row more, the last, for it.

        Raises:
            UserInputError: the file cannot be read, or is not the one it was.
        """
        run = self._run(self.windows[item].run)
        frames = bold[: self.config.sequence_length]
        run.file.read_into(self.frames_of(self.windows[item]), frames)
        if self.config.anatomy:
            of_run = run.anatomy
            bold[-1] = anatomy_of(frames.mean(axis=0)) if of_run is None else of_run
        if run.voxel_scaling is not None:
            run.voxel_scaling.apply(frames)
        vox[:] = run.file.vox

    def __getitem__(self, item: int) -> dict[str, Any]:
        """One window.

        Returns:
            bold: int16 [T, N], values as stored (``VOXEL_SCALINGS``: z as integers).
            vox: int32 [N], flat C-order indices of the brain voxels in the grid.
            anatomy: int16 [N], the mean image (``anatomy_of``), only if the channel is asked for.
            gain, shift, background: floats of the scaling, z = bold * gain + shift.
            subject: name; sample_id: what the prediction counts for; window: its number among the
            sample's windows; dataset: number.
            target: int or float, only if the data set has targets.
        """
        rows, voxels = self.shape(item)
        bold, vox = np.empty((rows, voxels), np.int16), np.empty(voxels, np.int32)
        self.read_into(item, bold, vox)
        return window_sample(torch.from_numpy(bold), torch.from_numpy(vox), self.facts(item))


def _check_runs(paths: Sequence[Path], headers: Sequence[RunHeader], config: DataConfig) -> None:
    """Refuse runs that do not fit the windows; see ``WindowDataset``."""
    size = tuple(config.grid)
    span = config.window_span
    short = []
    for path, header in zip(paths, headers, strict=True):
        if tuple(header.grid) != size:
            found = " ".join(str(n) for n in header.grid)
            raise UserInputError(
                f"--img_size: the run '{path}' has the grid {found}, expected "
                f"{' '.join(str(n) for n in size)}. Give --img_size {found} "
                f"{config.sequence_length}, or convert the data to the other grid. {see('grid')}"
            )
        if header.orientation != ORIENTATION:
            raise UserInputError(
                f"--image_path: the run '{path}' has the orientation {header.orientation}, "
                f"expected {ORIENTATION}. Convert it again with neuromamba preprocess."
            )
        if header.n_frames < span:
            short.append(f"{path.name} ({header.n_frames} frames)")
    if short:
        raise UserInputError(
            f"--sequence_length: {len(short)} run(s) have fewer than the {span} frames that a "
            f"window spans (--sequence_length {config.sequence_length}, "
            f"--stride_within_seq {config.stride_within_seq}): "
            f"{names_for_message(short)}. Shorten the window, or exclude the subjects with "
            f"--bad_subj_path FILE."
        )


def window_sample(rows: Tensor, vox: Tensor, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A window, see ``WindowDataset.__getitem__``, from what ``read_into`` and ``facts`` give.

    Args:
        rows: int16 [T, N], or [T + 1, N] if ``facts`` say that the last one is the anatomy.
        vox: int32 [N].
        facts: of the window.
    """
    own = {name: value for name, value in facts.items() if name != _LAST_IS_ANATOMY}
    if not facts.get(_LAST_IS_ANATOMY):
        return {"bold": rows, "vox": vox, **own}
    return {"bold": rows[:-1], "vox": vox, "anatomy": rows[-1], **own}


def collate_windows(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of windows; runs differ in their voxels, so ``bold`` and ``vox`` stay lists.

    Returns:
        bold: B tensors int16 [T, N_b]; vox: B tensors int32 [N_b]; gain, shift, background: B
        floats; subject, sample_id: B names; window, dataset: int64 [B]; target, if the samples
        have one: B numbers, int for classes and float for a regression; anatomy, if they have it:
        B tensors int16 [N_b].
    """
    columns = {key: [sample[key] for sample in samples] for key in samples[0]}
    # Numbers, not tensors: Lightning would cast floating-point tensors to the run's precision.
    numbers = ("gain", "shift", "background", "target")
    plain = ("bold", "vox", "anatomy", "subject", "sample_id", *numbers)
    batch: dict[str, Any] = {key: columns[key] for key in plain if key in columns}
    for key in ("window", "dataset"):
        batch[key] = torch.tensor(columns[key], dtype=torch.int64)
    return batch
