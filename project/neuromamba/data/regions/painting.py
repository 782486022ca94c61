"""Series of regions painted into the atlas that they were averaged over: 4D images to convert.

Each voxel of a region gets the region's series, so an image holds the signal of its regions and
nothing else: neighbours within a region are equal, and borders between regions are sharp. Such
images pass through everything that is meant for scans, which tests the whole way with a signal of
people, and say nothing of what voxels hold beyond their region.

Shapes: N regions, T frames.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from neuromamba.common.atomic_files import atomic_path, write_text_atomically
from neuromamba.common.csv_cells import CsvWriter
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.common.text import some_of
from neuromamba.data.regions.atlases import Atlas
from neuromamba.data.regions.scan import constant_regions, number_matrix
from neuromamba.data.regions.scan_files import RawScan, ScanFile

SPACE = "MNI152NLin6Asym"
_COMPRESSION = 1  # of gzip: equal voxels need little, and higher levels take several times as long
_MNI = 4  # code of the space in a NIfTI header


@dataclass(frozen=True)
class Painting:
    """How scans become images.

    Attributes:
        atlas: that the series were averaged over.
        ids: N labels of it, in the order of the series.
        tr: seconds, for scans that do not say theirs; None: there has to be one.
    """

    atlas: Atlas
    ids: tuple[int, ...]
    tr: float | None = None


def regions_of(scan_file: Path) -> tuple[str, ...]:
    """Names of the regions in the record beside a file of scans; () if there is none."""
    try:
        record = parse_json(scan_file.with_suffix(".json").read_text(encoding="utf-8"))
        return tuple(str(name) for name in record.get("regions", ()))
    except (OSError, ValueError, AttributeError):
        return ()


def matched_ids(atlas: Atlas, regions: Sequence[str], count: int) -> tuple[int, ...]:
    """The label of each region of the series.

    Args:
        atlas: to paint into.
        regions: names or labels of the series' regions; () if they are not known.
        count: N.

    Raises:
        UserInputError: another number of regions, or a region that the atlas does not have.
    """
    by_name = {str(one): one for one in atlas.ids} | dict(
        zip(atlas.regions, atlas.ids, strict=True)
    )
    plain = [re.sub(r"^#", "", name.strip()) for name in regions]
    if len(plain) == count and len(set(plain)) == count:
        lacking = [name for name in plain if name not in by_name]
        if not lacking:
            return tuple(by_name[name] for name in plain)
        if len(lacking) < count:
            raise UserInputError(
                f"--atlas: '{atlas.name}' has no region {some_of(lacking, 5)}, which the series "
                f"have; give the atlas that the series were averaged over."
            )
    if count != len(atlas.ids):
        raise UserInputError(
            f"--atlas: '{atlas.name}' has {len(atlas.ids)} regions, the series have {count}; give "
            f"the atlas that the series were averaged over."
        )
    return atlas.ids


def drawn(scans: Sequence[RawScan], count: int, columns: Sequence[str], seed: int) -> list[RawScan]:
    """The scans of some subjects, in their order; each combination of values has its share.

    Args:
        scans: all.
        count: of subjects.
        columns: of the scans' tables.
        seed: of the draw.

    Raises:
        UserInputError: fewer subjects than that, or a column that no scan has.
    """
    subjects = list(dict.fromkeys(scan.subject for scan in scans))
    if not 1 <= count <= len(subjects):
        raise UserInputError(
            f"--subjects: got {count}, expected 1 to {len(subjects)}, as many as the file has."
        )
    known = dict.fromkeys(key for scan in scans for key in scan.pheno)
    for column in columns:
        if column not in known:
            raise UserInputError(
                f"--stratify_by: the file has no column '{column}'; it has {some_of(known, 12)}."
            )
    stratum: dict[str, tuple[str, ...]] = {}
    for scan in scans:
        stratum.setdefault(scan.subject, tuple(str(scan.pheno.get(name, "")) for name in columns))
    kept = set(proportional_order(subjects, [stratum[one] for one in subjects], seed)[:count])
    return [scan for scan in scans if scan.subject in kept]


def proportional_order(
    names: Sequence[str], strata: Sequence[tuple[str, ...]], seed: int
) -> list[str]:
    """Names in a random order, any beginning of which has its share of every stratum."""
    rng = np.random.default_rng(seed)
    sizes, taken = Counter(strata), Counter[tuple[str, ...]]()
    place = {}
    for i in rng.permutation(len(names)):
        place[names[i]] = (taken[strata[i]] + rng.random()) / sizes[strata[i]]
        taken[strata[i]] += 1
    return sorted(names, key=lambda name: place[name])


def image_names(scans: Sequence[RawScan]) -> list[str]:
    """``sub-NAME[_ses-NAME]_task-rest[_run-N]`` of each scan, with letters and digits only.

    Raises:
        UserInputError: two subjects would have the same name.
    """
    subjects = {scan.subject: _label(scan.subject) for scan in scans}
    twice = [name for name, count in Counter(subjects.values()).items() if count > 1]
    if twice:
        same = [subject for subject, name in subjects.items() if name == twice[0]]
        raise UserInputError(
            f"--data_file: the subjects {some_of(same, 4)} would all be called "
            f"'sub-{twice[0]}'; names of files keep letters and digits only. Rename them."
        )
    names = []
    for scan in scans:
        parts = [f"sub-{subjects[scan.subject]}"]
        session = _label(str(scan.pheno.get("session") or ""))
        parts += [f"ses-{session}"] if session else []
        names.append("_".join([*parts, "task-rest"]))
    seen: Counter[str] = Counter()
    repeated = {name for name, count in Counter(names).items() if count > 1}
    for i, name in enumerate(names):
        if name in repeated:
            seen[name] += 1
            names[i] = f"{name}_run-{seen[name]}"
    return names


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", re.sub(r"^sub-", "", text))


def paint_scan(scan: RawScan, name: str, painting: Painting, folder: Path) -> dict[str, Any]:
    """Write a scan as ``FOLDER/sub-X/func/*_bold.nii.gz`` with sidecar and mask.

    One frame is in memory at a time. The mask has the regions with signal.

    Returns:
        ``image`` (path in the folder), ``frames``, ``tr`` and ``regions_without_signal``.

    Raises:
        UserInputError: no matrix of finite numbers, another number of regions, or no TR.
    """
    place = f"--data_file: the series of '{scan.subject}' are"
    series = number_matrix(scan.series, place).astype(np.float32)
    if len(series) != len(painting.ids):
        raise UserInputError(
            f"{place} of {len(series)} regions, those of other scans of {len(painting.ids)}."
        )
    if not np.isfinite(series).all():
        raise UserInputError(
            f"{place} not all finite. Import the file again (neuromamba regions import), which "
            f"deals with missing values, or leave the scan out."
        )
    tr = _repetition_time(scan, painting)
    constant = constant_regions(series)
    labels = painting.atlas.labels()
    # Row of the table of values for each voxel; row 0 is the background.
    rows = np.zeros(max(labels.max(), *painting.ids) + 1, dtype=np.int32)
    rows[list(painting.ids)] = np.arange(1, len(painting.ids) + 1)
    row = rows[labels].ravel(order="F")
    prefix = folder / name.partition("_")[0] / "func" / f"{name}_space-{SPACE}"
    prefix.parent.mkdir(parents=True, exist_ok=True)
    bold = prefix.with_name(f"{prefix.name}_desc-preproc_bold.nii.gz")
    frames = series.shape[1]
    header = _header((*labels.shape, frames), painting.atlas, np.float32, tr)
    _write(bold, header, (np.append(np.float32(0), series[:, t])[row] for t in range(frames)))
    sidecar = {"RepetitionTime": tr, "Description": "series of regions painted into an atlas"}
    write_text_atomically(bold.with_name(bold.name.replace(".nii.gz", ".json")), json_text(sidecar))
    seen = np.append(False, ~constant)[row].astype(np.uint8)
    mask = prefix.with_name(f"{prefix.name}_desc-brain_mask.nii.gz")
    _write(mask, _header(labels.shape, painting.atlas, np.uint8), [seen])
    return {
        "image": str(bold.relative_to(folder)),
        "frames": frames,
        "tr": tr,
        "regions_without_signal": [painting.ids[i] for i in np.flatnonzero(constant)],
    }


def _repetition_time(scan: RawScan, painting: Painting) -> float:
    try:
        tr = float(scan.pheno.get("tr") or painting.tr or "nan")
    except (TypeError, ValueError):
        tr = float("nan")
    if not 0 < tr < 100:
        raise UserInputError(
            f"--tr: the repetition time of '{scan.subject}' is not known; give it in seconds, or "
            f"import the file with --tr or --tr_table (neuromamba regions import)."
        )
    return tr


def _header(shape: Sequence[int], atlas: Atlas, dtype: Any, tr: float = 0.0) -> bytes:
    image = nib.Nifti1Image(np.zeros((1,) * len(shape), dtype), atlas.image.affine)
    header = image.header
    header.set_data_shape(tuple(shape))
    header.set_xyzt_units("mm", "sec")
    if len(shape) == 4:
        header["pixdim"][4] = tr
    header.set_sform(atlas.image.affine, code=_MNI)
    header.set_qform(atlas.image.affine, code=_MNI)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + b"\0" * 4  # no extension


def _write(path: Path, header: bytes, volumes: Iterator[np.ndarray] | list[np.ndarray]) -> None:
    """Write a header and flat volumes, one after the other."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile("", "wb", _COMPRESSION, raw, mtime=0) as stream,
    ):
        stream.write(header)
        for volume in volumes:
            stream.write(np.ascontiguousarray(volume).data)


def paint(
    file: ScanFile, scans: Sequence[RawScan], painting: Painting, folder: Path
) -> Iterator[dict[str, Any]]:
    """Paint scans one after the other into an empty folder, and write the tables beside them.

    Args:
        file: where the scans come from.
        scans: of it.
        painting: how.
        folder: of the images, arranged as fMRIPrep does.

    Yields:
        After each scan, its record (``paint_scan``).

    Raises:
        UserInputError: as ``image_names`` and ``paint_scan``.
    """
    names = image_names(scans)
    done = []
    for scan, name in zip(scans, names, strict=True):
        done.append(paint_scan(scan, name, painting, folder))
        yield done[-1]
    participants = _participants(scans, names)
    with (
        atomic_path(folder / "participants.tsv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        CsvWriter(stream, delimiter="\t").write_records(list(participants[0]), participants)
    about = {
        "Name": f"painted {file.path.name}",
        "BIDSVersion": "1.8.0",
        "DatasetType": "derivative",
    }
    about["GeneratedBy"] = [{"Name": "neuromamba regions paint"}]  # type: ignore[assignment]
    write_text_atomically(folder / "dataset_description.json", json_text(about))
    record = {"source": str(file.path), "atlas": painting.atlas.name, "scans": done}
    record["atlas_hash"] = painting.atlas.hash
    write_text_atomically(folder / "painted.json", json_text(record))


def _participants(scans: Sequence[RawScan], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each subject: its own name, and what the tables of its scans agree on."""
    named = ("subjectId", "scan", "session", "run")  # in the names of the images
    columns = [
        name
        for name in dict.fromkeys(key for scan in scans for key in scan.pheno)
        if name not in named
    ]
    rows: dict[str, dict[str, Any]] = {}
    for scan, name in zip(scans, names, strict=True):
        values = {column: scan.pheno.get(column, "") for column in columns}
        who = {"participant_id": name.partition("_")[0], "source_subject": scan.subject}
        row = rows.setdefault(scan.subject, who | values)
        for column, value in values.items():
            if row[column] != value:
                row[column] = ""  # differs between scans of the subject
    return list(rows.values())


def json_text(record: Mapping[str, Any]) -> str:
    """JSON with a line for each entry."""
    return json.dumps(record, indent=1) + "\n"
