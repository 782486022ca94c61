"""Small copies of public collections of region series: names, headers and tables as they come.

The names are those of the Preprocessed Connectomes Project as nilearn's ``fetch_abide_pcp`` leaves
them, of ADHD-200 (Athena), of XCP-D, and of the ``.npz`` files of ``shared/data``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

REGIONS = 12
LABELS = tuple(str(2001 + 101 * i) for i in range(REGIONS))


class Person(NamedTuple):
    """A row of a phenotype table: file (or ``no_filename``), site, diagnosis, sex, age, motion."""

    file: str
    site: str
    dx: str
    sex: str
    age: str
    fd: str

    @property
    def number(self) -> str:
        """SUB_ID: the table has no leading zeros."""
        return self.file.rpartition("_")[2].lstrip("0")


def people(count: int = 24) -> list[Person]:
    """People of three sites, with and without autism (1, 2), of both sexes (1, 2)."""
    sites = ("NYU", "UM_1", "CMU")
    files = {"NYU": "NYU", "UM_1": "UM_1", "CMU": "CMU_b"}
    return [
        Person(
            f"{files[sites[i % 3]]}_{50001 + i:07d}",
            sites[i % 3],
            str(1 + (i // 3) % 2),
            str(1 + (i % 5 == 0)),
            f"{8 + i}.25",
            f"0.{10 + i}",
        )
        for i in range(count)
    ]


def series(seed: int, frames: int = 40, regions: int = REGIONS) -> np.ndarray:
    """Series [frames, regions], smooth in time, in scanner units."""
    noise = np.random.default_rng(seed).standard_normal((frames + 2, regions))
    return 1000 + 20 * (noise[:-2] + noise[1:-1] + noise[2:])


def effect(values: np.ndarray, dx: str) -> np.ndarray:
    """Add a signal to regions 1 to 6 of people with dx 1: their correlation tells the classes."""
    common = series(int(abs(values[0, 0]) * 100) % 2**31, len(values), 1) - 1000
    changed = values.copy()
    if dx == "1":
        changed[:, :6] += 3 * common
    return changed


def write_1d(path: Path, values: np.ndarray, labels: Sequence[str] = LABELS) -> None:
    """``<FILE_ID>_rois_<atlas>.1D`` of PCP: ``#label`` in the first line, tabs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(f"#{label}" for label in labels)]
    lines += ["\t".join(f"{value:.6f}" for value in row) for row in values]
    path.write_text("\n".join(lines) + "\n")


def write_tcs(path: Path, values: np.ndarray, labels: Sequence[str] = LABELS) -> None:
    """``*_TCs.1D`` of Athena, written by AFNI's 3dROIstats: file, sub-brick, ``Mean_<label>``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = f"{path.name.partition('_session')[0]}_session_1_rest_1.nii.gz"
    lines = ["\t".join(["File", "Sub-brick", *(f"Mean_{label} " for label in labels)])]
    for frame, row in enumerate(values):
        lines.append("\t".join([image, f"{frame}[?]", *(f"{value:.6f}" for value in row), ""]))
    path.write_text("\n".join(lines) + "\n")


def write_nilearn_abide(root: Path, persons: Sequence[Person] | None = None) -> Path:
    """What ``fetch_abide_pcp(derivatives=["rois_cc200"])`` leaves: ABIDE_pcp with its table.

    Two rows have no file; the last person's file was not downloaded.
    """
    persons = people() if persons is None else persons
    folder = root / "ABIDE_pcp"
    for i, one in enumerate(persons[:-1]):
        values = effect(series(i, frames=36 + 4 * (i % 3)), one.dx)
        place = folder / "cpac" / "nofilt_noglobal"
        write_1d(place / f"{one.file}_rois_cc200.1D", values)
    columns = "SUB_ID,X,subject,SITE_ID,FILE_ID,DX_GROUP,AGE_AT_SCAN,SEX,FIQ,func_mean_fd,notes"
    lines = [f",Unnamed: 0,{columns}"]
    nobody = [Person("no_filename", "NYU", "1", "1", "9.5", ""), Person("no_filename", *"11111")]
    for i, one in enumerate([*persons, *nobody]):
        number = one.number if one.file != "no_filename" else str(50900 + i)
        iq = "-9999" if i % 4 == 0 else "101"
        cells = [i, i, number, i, number, one.site, one.file, one.dx, one.age, one.sex, iq, one.fd]
        lines.append(",".join([*map(str, cells), '"moved, a little"' if i == 0 else ""]))
    (folder / "Phenotypic_V1_0b_preprocessed1.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_athena(root: Path, count: int = 6) -> Path:
    """ADHD200_CC200_TCs: two sites, both versions of each scan, two runs of the first person."""
    for site, numbers in {"NYU": range(count // 2), "Peking_1": range(count // 2, count)}.items():
        rows = ["ScanDir ID,Site,Gender,Age,Handedness,DX,Secondary Dx ,Full4 IQ"]
        for i in numbers:
            who = f"{10001 + i:07d}"
            rows.append(f"{10001 + i},{5 if site == 'NYU' else 1},{i % 2},{9 + i},1,{i % 4},,-999")
            for rest in (1, 2) if i == 0 else (1,):
                for steps, seed in (("snwmrda", 100), ("sfnwmrda", 200)):
                    name = f"{steps}{who}_session_1_rest_{rest}_cc200_TCs.1D"
                    write_tcs(root / site / who / name, series(seed + 10 * rest + i))
        (root / site / f"{site}_phenotypic.csv").write_text("\n".join(rows) + "\n")
    return root


def write_npz(
    path: Path, scans: Sequence[np.ndarray], **arrays: Sequence[str] | Sequence[int]
) -> Path:
    """``ts`` float16 [sum of frames, regions], ``length``, and what says whose scans they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(one) for one in scans], dtype=np.int32)
    ts = np.concatenate(scans).astype(np.float16)
    np.savez_compressed(
        path, ts=ts, length=lengths, **{name: np.array(one) for name, one in arrays.items()}
    )
    return path


def write_abide_npz(root: Path, persons: Sequence[Person] | None = None) -> Path:
    """The shape of ``abide_roi``: ``file_id``, ``roi``, and a table with a TR for each person."""
    persons = people() if persons is None else persons
    scans = [effect(series(i), one.dx) for i, one in enumerate(persons)]
    path = write_npz(
        root / "abide_cc200_dev.npz",
        scans,
        file_id=[one.file for one in persons],
        roi=list(map(int, LABELS)),
    )
    rows = ["FILE_ID,SITE_ID,DX_GROUP,SEX,AGE_AT_SCAN,FIQ,func_mean_fd,TR_s"]
    for one in persons:
        tr = {"NYU": "2.0", "UM_1": "2.0", "CMU": "1.5"}[one.site]
        rows.append(f"{one.file},{one.site},{one.dx},{one.sex},{one.age},-9999,{one.fd},{tr}")
    (root / "abide_phenotypic_dev.csv").write_text("\n".join(rows) + "\n")
    return path
