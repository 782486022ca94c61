"""A folder with scans for the commands of NeuroSSM, and what one flag changes there.

``Commands`` is what the fixture ``commands`` of the files of flags gives.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from neuromamba.commands import regions_train as tester
from neuromamba.neurossm import evaluate

ROIS, SUBJECTS = 6, 24
SMALL = "--epochs 2 --embed_dim 32 --depth 1 --folds 2 --dynamic_length 16 --device cpu"
OWN = f"--dataset Own --data_file mine.pickle --target group {SMALL} --skip_cross_validation"


class Commands:
    """Runs commands in a folder; ``said`` is what the last one printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.said = ""

    def __call__(self, main: Callable[[list[str]], int], flags: str) -> int:
        status = main(flags.split())
        printed = self._capsys.readouterr()
        self.said = (printed.out + printed.err).replace(str(self.folder), ".")
        return status

    def tester(self, flags: str) -> int:
        """Without results of an earlier call."""
        for name in ("Results", "elsewhere", "Analysis", "maps"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return self(tester.main, flags)


def commands_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Commands:
    """In a folder with data of its own, in several versions.

    The page is not written: nothing here looks at it, and its pictures take most of the time.
    """
    monkeypatch.setattr(evaluate, "write_report", lambda *_: tmp_path / "report.html")
    monkeypatch.chdir(tmp_path)
    write_scans(Path("mine.pickle"))
    write_scans(Path("other.pickle"), seed=1)
    write_scans(Path("nan.pickle"), bad=True)
    write_scans(Path("many.pickle"), subjects=60)
    write_scans(Path("turned.pickle"), turned=True)
    write_scans(Path("strangers.pickle"), seed=2, prefix="x")
    write_atlas(Path("six.nii.gz"))
    Path("data/atlases").mkdir(parents=True)
    shutil.copy("six.nii.gz", "data/atlases/AAL3v2.nii.gz")
    return Commands(tmp_path, capsys)


def write_scans(
    path: Path,
    seed: int = 0,
    bad: bool = False,
    subjects: int = SUBJECTS,
    turned: bool = False,
    prefix: str = "",
) -> None:
    """Two scans a subject; a planted difference, two labels that disagree, and families."""
    rng = np.random.default_rng(seed)
    scans = []
    for number in range(subjects):
        label = number % 2
        for _ in range(2):
            series = rng.standard_normal((ROIS, 24)).cumsum(1) if label else rng.random((ROIS, 24))
            pheno = {
                "subjectId": f"{prefix}{number:02d}",
                "group": "ab"[label],
                "code": label + 1,
                "half": "xy"[2 * number // subjects],
                "third": "pqz"[number % 3],
                "family": f"{number // 4}",
                "age": 20 + 7 * number % 50,
            }
            series = series.astype(np.float32)
            scans.append({"roiTimeseries": series.T if turned else series, "pheno": pheno})
    if bad:
        scans[5]["roiTimeseries"][2, 3] = np.nan  # type: ignore[index]
    path.write_bytes(pickle.dumps(scans))


def write_atlas(path: Path, size: int = 12) -> None:
    labels = np.zeros((size,) * 3, dtype=np.int16)
    for region in range(ROIS):
        labels[2 * region : 2 * region + 2, 2:10, 2:10] = region + 1
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    affine[:3, 3] = -66
    nib.save(nib.Nifti1Image(labels, affine), path)


_SEEN: dict[tuple[Callable[[Commands, str], Any], str], Any] = {}


def twice(observe: Callable[[Commands, str], Any], commands: Commands, flags: str) -> Any:
    """What two calls show alike, the second in the folder of the first; many flags share it."""
    if (observe, flags) not in _SEEN:
        before = observe(commands, flags)
        assert observe(commands, flags) == before, "not reproducible"
        assert str(commands.folder) not in repr(before), "other tests have other folders"
        _SEEN[observe, flags] = before
    return _SEEN[observe, flags]


def assert_frozen(
    parser: argparse.ArgumentParser, cases: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """That the flags of a command are those of ``cases``, and their defaults are ``defaults``."""
    actions = [a for a in parser._actions if a.option_strings and a.dest != "help"]
    found = {a.dest: a.default for a in actions}
    assert found == defaults, f"{found}, expected {defaults}"
    assert set(cases) == set(defaults), f"not in both: {sorted(set(cases) ^ set(defaults))}"
