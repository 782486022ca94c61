"""A data set of ROI time series in memory; ``dataset`` reads one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import number, some_of, spelling
from neuromamba.data.regions.registry import OWN, DatasetDetails
from neuromamba.data.regions.scan import Scan

# Columns that an import names so whatever the table called them (docs/region_series.md).
COMMON = ("diagnosis", "sex", "age", "site", "motion")


def strata_of(labels: np.ndarray) -> np.ndarray:
    """int [S]: the classes themselves, or the quarter of them that each value is in."""
    if labels.dtype.kind != "f":
        return labels
    edges = np.quantile(labels, (0.25, 0.5, 0.75))
    found: np.ndarray = np.searchsorted(edges, labels)
    return found


@dataclass(frozen=True)
class Cohort:
    """A data set.

    Attributes:
        name: ``--dataset``.
        details: its entry, classes filled in.
        scans: all of them.
        notes: what a user should know of them, a sentence each.
        group_column: whose values are not split; None if subjects are not.
        confounds: column -> subject -> text; subjects without a value are absent.
        rows: of each scan, what its pheno and the row of its subject in the table say.
    """

    name: str
    details: DatasetDetails
    scans: tuple[Scan, ...]
    notes: tuple[str, ...] = ()
    group_column: str | None = None
    confounds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """What a page calls it: its name, or the file's where the name says nothing."""
        return Path(self.details.file).name if self.name == OWN else self.name

    @property
    def rois(self) -> int:
        """N."""
        return self.scans[0].series.shape[0]

    @property
    def labels(self) -> np.ndarray:
        """[scans]: int, the class; or float, the value of a regression."""
        return np.array([scan.label for scan in self.scans])

    @property
    def strata(self) -> np.ndarray:
        """int [scans]: the class, or the quarter of the scans that a value is in."""
        return strata_of(self.labels)

    @property
    def groups(self) -> np.ndarray:
        """str [scans]."""
        return np.array([scan.group for scan in self.scans])

    @property
    def tr(self) -> np.ndarray:
        """Repetition times in seconds, float64 [scans], of the key ``tr``; NaN where unknown."""
        found = [number(spelling(row.get("tr"))) for row in self.rows]
        return np.array([np.nan if value is None else value for value in found])

    def column(self, name: str, flag: str) -> np.ndarray:
        """Texts of a column of the subject table, or of a key of ``pheno``.

        Args:
            name: of the column, such as ``site`` (docs/region_series.md lists the usual ones).
            flag: that named it.

        Returns:
            str [scans]; "" where a scan has no value.

        Raises:
            UserInputError: no scan has such a column.
        """
        if not any(name in row for row in self.rows):
            keys = dict.fromkeys(str(key) for row in self.rows for key in row)
            known = [*(key for key in COMMON if key in keys), *(k for k in keys if k not in COMMON)]
            raise UserInputError(
                f"{flag}: there is no column '{name}' in the subject table or the scans' pheno "
                f"({some_of(known, 12) or 'which have none'})."
            )
        return np.array([spelling(row.get(name)) for row in self.rows])

    @property
    def hash(self) -> str:
        """Hash of all that training and testing see."""
        digest = hashlib.blake2b(digest_size=16)
        for scan in self.scans:
            digest.update(repr((*scan[:3], scan.group, scan.series.shape)).encode())
            digest.update(scan.series.tobytes())
        return digest.hexdigest()
