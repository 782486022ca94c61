"""Files of results: metrics and predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from neuromamba.common.atomic_files import write_text_atomically

# Part of the split -> file of its predictions in a run folder.
PREDICTIONS = {"test": "predictions.csv", "val": "validation_predictions.csv"}


def write_metrics(metrics: Mapping[str, float], path: Path) -> None:
    """Write ``metrics.json``."""
    clean = {k: (v if math.isfinite(v) else None) for k, v in sorted(metrics.items())}
    write_text_atomically(path, json.dumps(clean, indent=1, allow_nan=False) + "\n")
