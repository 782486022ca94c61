"""A data set of ROI time series in memory; ``dataset`` reads one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from neuromamba.data.regions.registry import DatasetDetails
from neuromamba.data.regions.scan import Scan


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
    """

    name: str
    details: DatasetDetails
    scans: tuple[Scan, ...]
    notes: tuple[str, ...] = ()
    group_column: str | None = None
    confounds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def rois(self) -> int:
        """N."""
        return self.scans[0].series.shape[0]

    @property
    def labels(self) -> np.ndarray:
        """int [scans]."""
        return np.array([scan.label for scan in self.scans])

    @property
    def groups(self) -> np.ndarray:
        """str [scans]."""
        return np.array([scan.group for scan in self.scans])

    @property
    def hash(self) -> str:
        """Hash of all that training and testing see."""
        digest = hashlib.blake2b(digest_size=16)
        for scan in self.scans:
            digest.update(repr((*scan[:3], scan.group, scan.series.shape)).encode())
            digest.update(scan.series.tobytes())
        return digest.hexdigest()
