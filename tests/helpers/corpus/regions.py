"""Files of series of regions as they go wrong, and hostile pickles."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.data.regions.collections.importing import ImportOptions, import_collection
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.registry import details_of
from tests.helpers.corpus.bad_file import BadFile, Call


def smooth(seed: int, regions: int = 12, frames: int = 40) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((regions, frames))
    for t in range(1, frames):
        noise[:, t] += 0.7 * noise[:, t - 1]
    return noise.astype(np.float32)


def scans(
    matrices: list[Any], names: list[Any] | None = None, labels: Iterable[Any] = "ab"
) -> Callable[[Path], object]:
    """``--dataset Own`` with ``--target dx``."""
    names = names or [f"p{i}" for i in range(len(matrices))]
    listed = list(labels)

    def read(folder: Path) -> object:
        path = folder / "mine.pickle"
        samples = [
            {"roiTimeseries": m, "pheno": {"subjectId": n, "dx": listed[i % len(listed)]}}
            for i, (m, n) in enumerate(zip(matrices, names, strict=True))
        ]
        path.write_bytes(pickle.dumps(samples))
        return _own(path)

    return read


def _own(path: Path) -> object:
    return load_cohort("Own", details_of("Own", str(path), "dx", 10), path.parent, data_file=path)


def regions_file(content: bytes, name: str = "mine.pickle") -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / name).write_bytes(content)
        return _own(folder / name)

    return read


def concatenated(lengths: list[int] | None, content: bytes = b"") -> Callable[[Path], object]:
    """``neuromamba regions import`` of an ``.npz`` file of two scans."""

    def read(folder: Path) -> object:
        path = folder / "mine.npz"
        if content:
            path.write_bytes(content)
        else:
            known = {} if lengths is None else {"length": lengths}
            np.savez(path, ts=np.concatenate([smooth(i).T for i in range(2)]), **known)
        return import_collection(ImportOptions(source=path))

    return read


def tables(matrices: list[Any], kinds: str = "") -> Callable[[Path], object]:
    """``neuromamba regions import`` of a folder with a CSV file for each scan."""

    def read(folder: Path) -> object:
        for i, matrix in enumerate(matrices):
            for kind in kinds or [""]:
                np.savetxt(folder / f"sub-{i}_{kind or 'bold'}.csv", matrix, delimiter=",")
        return import_collection(ImportOptions(source=folder))

    return read


SERIES = [smooth(i) for i in range(8)]
TWICE = [*SERIES[:7], SERIES[0] * 2 + 5]
REGIONS = (
    BadFile("time x regions", scans([s.T.copy() for s in SERIES]), "look like time x regions"),
    BadFile(
        "square time x regions",
        scans([smooth(i, 40, 40).T.copy() for i in range(8)]),
        "look like time x regions",
    ),
    BadFile("correlations", scans([np.corrcoef(s) for s in SERIES]), "correlation"),
    BadFile("covariances", scans([np.cov(s) for s in SERIES]), "symmetric"),
    BadFile("a copy of a scan", scans([*SERIES[:7], SERIES[0]]), "the same values"),
    BadFile("a scaled copy", scans(TWICE), "but for their offset and unit"),
    BadFile(
        "a negative unit",
        scans([*SERIES[:7], (SERIES[1] * 1e-3).astype(np.float64) + 1]),
        "the same values",
    ),
    BadFile("ids 1 and 1.0", scans(SERIES, ["1", "1.0", *"345678"]), "seem to be one subject"),
    BadFile("sub-0001 and 1", scans(SERIES, ["sub-0001", "1", *"345678"]), "seem to be one"),
    BadFile("ids that differ by case", scans(SERIES, ["a1", "A1", *"345678"]), "seem to be one"),
    BadFile("-9999 as a diagnosis", scans(SERIES, labels=[0, 1, -9999, 1]), "-9999"),
    BadFile("TRUE and True as diagnoses", scans(SERIES, labels=["TRUE", "True"]), "case"),
    BadFile("None as the only diagnosis", scans(SERIES, labels=["a", None]), "class"),
    BadFile("scans that are not finite", scans([s * np.nan for s in SERIES]), "finite"),
    BadFile("vectors", scans([s[0] for s in SERIES]), "expected a matrix"),
    BadFile("no scans", scans([]), "holds no scan"),
    BadFile("pickle that runs a program", regions_file(pickle.dumps([Call()])), "posix.mkdir"),
    BadFile("pickle cut off", regions_file(pickle.dumps(SERIES)[:99]), "mine.pickle"),
    BadFile("empty pickle", regions_file(b""), "mine.pickle"),
    BadFile("page of a login as pickle", regions_file(b"<html>Login</html>"), "mine.pickle"),
    BadFile("npz of other lengths", concatenated([40, 41]), "has 2 scans with 81 frames"),
    BadFile("npz without lengths", concatenated(None), "lacks the array 'length'"),
    BadFile("page of a login as npz", concatenated([], b"<html>Login</html>"), "is damaged"),
    BadFile("a folder of turned tables", tables(SERIES), "Give --orientation regions"),
    BadFile("a folder with a copy", tables([s.T for s in TWICE]), "Give --drop_duplicates"),
    BadFile("a folder of two atlases", tables([s.T for s in SERIES], "ab"), "Name one of them"),
    BadFile("an empty folder", tables([]), "has no series of regions"),
)
