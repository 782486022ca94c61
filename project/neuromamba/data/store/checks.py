"""What can be wrong with a store: each file by itself, and the files with each other.

Statistics are compared without false alarms. Let n of the T frames be read, f = n / T, m their
mean and e the root mean square of y - mean, ``mean`` being the stored one. Quantisation moves each
value by at most h = scale / 2, hence a mean by at most h and a root mean square by at most h (the
triangle inequality). The frames that were not read lie in [min, max]. Therefore, within rounding,

    f (m - h) + (1 - f) min  <=  mean  <=  f (m + h) + (1 - f) max
    f (e - h)^2  <=  std^2  <=  f (e + h)^2 + (1 - f) max(max - mean, mean - min)^2

With all frames (f = 1) mean and std are thus confirmed to within half a step of the quantisation;
with a sample these are bounds that a sound file never leaves.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.config.names import ORIENTATION
from neuromamba.data.store.check_options import CheckOptions
from neuromamba.data.store.header import RunHeader, run_file_name
from neuromamba.data.store.manifest import MANIFEST, manifest_row, read_manifest
from neuromamba.data.store.normalisation import StatisticsOfFrames
from neuromamba.data.store.reader import RunFile

FEWEST_FRAMES = 10  # of a sample
MANY_CONSTANT = 0.01  # share of constant voxels that is worth a warning
STALE_AFTER = 600.0  # seconds; a younger temporary file may belong to a running conversion
_ROUNDING = 1e-6  # relative, for sums and the float32 of voxel statistics
_LARGEST = 32767  # see hdf5_store


@dataclass(kw_only=True)
class CheckedRun:
    """What was found in a file of a store.

    Attributes:
        path: the file.
        status: "ok", "bad", or "failed" if it could not be checked.
        message: all reasons why it is bad, or why it could not be checked.
        notes: oddities that do not make it bad.
        header: of the file, if it could be read.
    """

    path: Path
    status: str
    message: str = ""
    notes: list[str] = field(default_factory=list)
    header: RunHeader | None = None

    @property
    def name(self) -> str:
        """The file as the manifest names it."""
        return f"hdf5/{self.path.name}"


# A file by itself ----------------------------------------------------------------------------


def check_run(path: Path, options: CheckOptions) -> CheckedRun:
    """Check a file without changing it.

    Returns:
        "ok"; "bad" with all reasons found; or "failed" if the file may not be read. Notes are
        oddities that do not make it bad.
    """
    if path.is_file() and not os.access(path, os.R_OK):
        return CheckedRun(
            path=path, status="failed", message="not checked: no permission to read it"
        )
    run, header = RunFile(path), None
    notes: list[str] = []
    try:
        header = run.header
        reasons = [*_of_header(header), *_of_name(header, path, notes)]
        if not reasons:
            reasons += _of_content(run, options, notes)
    except UserInputError as error:
        reasons = [str(error).removeprefix(f"{path}: ")]
    except MemoryError:
        return CheckedRun(
            path=path,
            status="failed",
            message="not checked: out of memory. Use fewer --num_workers",
        )
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        first = (str(error).splitlines() or [""])[0]
        reasons = [f"cannot be read ({type(error).__name__}: {first[:200]})"]
    finally:
        run.close()
    status = "bad" if reasons else "ok"
    return CheckedRun(
        path=path, status=status, message="; ".join(reasons), notes=notes, header=header
    )


def _of_header(header: RunHeader) -> Iterator[str]:
    """What attributes must fulfil by themselves and among each other."""
    numbers = {
        field.name: getattr(header, field.name)
        for field in dataclasses.fields(header)
        if field.type in ("float", "Affine") and field.name != "tr"
    }
    infinite = [name for name, value in numbers.items() if not np.isfinite(value).all()]
    if infinite:
        yield f"not finite: {', '.join(infinite)}"
        return
    unknown_tr = math.isnan(header.tr) and header.tr_source in ("", "unknown")
    if not (unknown_tr or 0 < header.tr < math.inf):
        yield f"tr is {header.tr:g} (from {header.tr_source or 'nowhere'})"
    if min(header.grid) < 1 or header.n_frames < 1 or header.n_voxels < 1:
        yield f"{header.n_frames} frames of {header.n_voxels} voxels on the grid {header.grid}"
    axes = np.asarray(header.affine)
    if np.linalg.matrix_rank(axes[:3, :3]) < 3 or axes[3].tolist() != [0, 0, 0, 1]:
        yield "the affine is not invertible"
    elif "".join(map(str, nibabel.aff2axcodes(axes))) != header.orientation:
        yield f"orientation is {header.orientation}, the affine says otherwise"
    elif header.orientation != ORIENTATION:
        yield f"orientation is {header.orientation}, expected {ORIENTATION}"
    if not header.min <= header.mean <= header.max or header.std <= 0 or header.scale <= 0:
        yield (
            f"mean {header.mean:g}, std {header.std:g}, min {header.min:g}, max {header.max:g} and "
            f"scale {header.scale:g} do not belong to a run that varies"
        )
        return
    slack = _ROUNDING * (header.max - header.min)
    for value, bound in ((-_LARGEST, header.min), (_LARGEST, header.max)):
        if abs(value * header.scale + header.offset - bound) > slack:
            yield f"scale and offset do not lead to the {'min' if value < 0 else 'max'}"


def _of_name(header: RunHeader, path: Path, notes: list[str]) -> Iterator[str]:
    try:
        expected = run_file_name(header.subject, header.session, header.task, header.run)
    except ValueError as error:
        yield str(error)
        return
    if path.name != expected:
        notes.append(f"its header makes it {expected}")


def _of_content(run: RunFile, options: CheckOptions, notes: list[str]) -> Iterator[str]:
    """Hash, and the statistics of a sample of frames."""
    header = run.header
    content = run.content_sha256()  # reads /vox, which refuses disorder, and all of /bold
    if not header.content_sha256:
        notes.append("no hash (written by an older version): only statistics were checked")
    elif content != header.content_sha256:
        yield "the content is not what was written (hash)"
    whole = options.sample >= 1
    n = min(header.n_frames, max(FEWEST_FRAMES, math.ceil(options.sample * header.n_frames)))
    chosen = np.unique(np.linspace(0, header.n_frames - 1, n).round().astype(int))
    of_voxels = run.voxel_statistics()
    found = StatisticsOfFrames(per_voxel=whole and of_voxels is not None)
    first = run.read([0])[0]
    constant = np.ones(first.shape, bool)
    outside = 0
    for frame in chosen:
        stored = run.read([frame])[0]
        outside += int(np.count_nonzero(stored < -_LARGEST))
        constant &= stored == first
        found.add(stored * header.scale + header.offset)
    if outside:
        yield f"{outside} values lie below the min"
    yield from _of_statistics(header, found, len(chosen))
    if of_voxels is not None:
        yield from _of_voxel_statistics(header, found if whole else None, of_voxels)
    share = np.count_nonzero(constant) / constant.size
    if share > MANY_CONSTANT:
        among = "" if whole else f" in the {len(chosen)} frames read"
        notes.append(f"{np.count_nonzero(constant)} voxels ({share:.1%}) are constant{among}")


def _of_statistics(header: RunHeader, found: StatisticsOfFrames, n: int) -> Iterator[str]:
    """The inequalities of the module's description."""
    result = found.result()
    f = n / header.n_frames
    slack = _ROUNDING * (header.max - header.min)
    h = header.scale / 2 + slack
    e = math.hypot(result.std, result.mean - header.mean)
    far = max(header.max - header.mean, header.mean - header.min)
    low = f * (result.mean - h) + (1 - f) * header.min
    high = f * (result.mean + h) + (1 - f) * header.max
    if not low - slack <= header.mean <= high + slack:
        yield f"mean {header.mean:g} is stored, the frames give {result.mean:g}"
    low = math.sqrt(f) * max(0.0, e - h)
    high = math.sqrt(f * (e + h) ** 2 + (1 - f) * far**2)
    if not low - slack <= header.std <= high + slack:
        yield f"std {header.std:g} is stored, the frames give {result.std:g}"
    if n == header.n_frames:
        for name in ("min", "max"):
            stored, again = getattr(header, name), getattr(result, name)
            if abs(stored - again) > slack:
                yield f"{name} {stored:g} is stored, the frames give {again:g}"


def _of_voxel_statistics(
    header: RunHeader, found: StatisticsOfFrames | None, given: Sequence[np.ndarray]
) -> Iterator[str]:
    for position, (name, values) in enumerate(zip(("voxel_mean", "voxel_std"), given, strict=True)):
        if values.shape != (header.n_voxels,) or not np.isfinite(values).all():
            yield f"/{name} is not {header.n_voxels} finite numbers"
        elif found is not None:
            size = max(abs(header.min), abs(header.max))
            error = np.abs(values - found.of_voxels()[position]).max()
            if error > header.scale / 2 + _ROUNDING * size:
                yield f"/{name} differs from the frames by up to {error:g}"


# The files with each other -------------------------------------------------------------------


def mark_duplicates(outcomes: Iterable[CheckedRun]) -> None:
    """Make sound files bad whose content, or whose source, is there under two names.

    Of one subject's the first name stays. Of several subjects' none does: which of them the data
    belong to cannot be determined from the files.
    """
    for name, what in (("content_sha256", "content"), ("source_sha256", "source")):
        same: dict[str, list[CheckedRun]] = defaultdict(list)
        for outcome in outcomes:
            if outcome.status == "ok" and outcome.header and getattr(outcome.header, name):
                same[getattr(outcome.header, name)].append(outcome)
        for group in same.values():
            subjects = {outcome.header.subject for outcome in group if outcome.header}
            for outcome in group if len(subjects) > 1 else group[1:]:
                others = [other.name for other in group if other is not outcome]
                outcome.status = "bad"
                outcome.message = f"the same {what} as {', '.join(others)}"


def leftovers(folder: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """What lies beside the run files in ``hdf5/`` and does not belong there, with reasons.

    Hidden files are left out. Temporary files younger than ten minutes, which a conversion may be
    writing, are warnings.
    """
    found, warnings = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix == ".h5":
            continue
        if path.suffix != ".tmp":
            found.append((path, "no file of the store"))
        elif time.time() - path.lstat().st_mtime < STALE_AFTER:
            warnings.append(f"{path.name}: a conversion may be writing this temporary file")
        else:
            found.append((path, "left by an interrupted conversion"))
    return found, warnings


def manifest_problems(
    image_path: Path, outcomes: Iterable[CheckedRun]
) -> tuple[list[str], list[str]]:
    """Problems and warnings: lines missing, of files that are not there, or with other values."""
    if not (image_path / MANIFEST).exists():
        return [], [f"no {MANIFEST}; --clean writes it"]
    try:
        lines = {row.file: row for row in read_manifest(image_path)}
    except UserInputError as error:
        return [str(error)], []
    problems = []
    present = set()
    for outcome in outcomes:
        name = outcome.name
        present.add(name)
        if outcome.header is None:
            continue
        row = manifest_row(name, outcome.header)
        if name not in lines:
            problems.append(f"{MANIFEST}: no line of {name}")
        elif differing := [
            key
            for key, value in dataclasses.asdict(row).items()
            if repr(value) != repr(getattr(lines[name], key))  # NaN is NaN here
        ]:
            problems.append(f"{MANIFEST}: {name} differs in {', '.join(differing)}")
    problems += [f"{MANIFEST}: {name} is not there" for name in sorted(lines.keys() - present)]
    return problems, []


def _place_in_mni(header: RunHeader) -> tuple[float, ...] | None:
    """Where the first voxel of the grid lies in standard space; None in native space."""
    if header.space in ("", "native"):
        return None
    return tuple(float(value) + 0.0 for value in np.round(np.array(header.affine)[:3, 3], 1))


def mixtures(outcomes: Iterable[CheckedRun]) -> tuple[list[str], list[str]]:
    """Problems (grid, orientation, size, space, place) and warnings (TR) of runs that differ."""
    headers = [o.header for o in outcomes if o.status == "ok" and o.header]
    facts: dict[str, Callable[[RunHeader], object]] = {
        "grids": lambda header: header.grid,
        "orientations": lambda header: header.orientation,
        "voxel sizes": lambda header: tuple(
            round(float(size), 2) for size in nibabel.affines.voxel_sizes(np.asarray(header.affine))
        ),
        "spaces": lambda header: header.space or None,  # None: unknown
        "places of the grid, in mm": _place_in_mni,
        "TRs": lambda header: None if math.isnan(header.tr) else round(header.tr, 4),
    }
    problems: list[str] = []
    warnings: list[str] = []
    for name, fact in facts.items():
        counts = Counter(value for header in headers if (value := fact(header)) is not None)
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({count})" for value, count in counts.most_common(5))
            (warnings if name == "TRs" else problems).append(f"several {name}: {listed}")
    return problems, warnings
