"""A scan of regional time series."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Scan(NamedTuple):
    """A scan.

    Attributes:
        subject: name.
        scan: name, no other scan has it.
        label: index of its class.
        series: float32 [N, T], unchanged from the file.
        group: what may not be split: the subject, or its family.
    """

    subject: str
    scan: str
    label: int
    series: np.ndarray
    group: str
