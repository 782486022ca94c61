"""Tables of predictions, by scan and by window, from the records of scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuromamba.inference.output_folder import OutputFolder

PREDICTIONS, WINDOWS = "predictions.csv", "windows.csv"
_NAMES = ("scan", "subject", "session", "run")


def write_predictions(
    folder: OutputFolder, records: Sequence[Mapping[str, Any]], class_names: Sequence[str]
) -> Path:
    """Write one row per scan, whatever became of it, and one row per window.

    Args:
        folder: of the call.
        records: of its scans, in order.
        class_names: of a classification; () of a regression.

    Returns:
        The path of the table of scans.
    """
    classes = [f"prob_{name}" for name in class_names]
    header = (*_NAMES, "status", "reason", "windows", "prediction", "spread", "in_range", *classes)
    folder.write_table(PREDICTIONS, header, [_row(record, class_names) for record in records])
    rows = [
        (*(record[name] for name in _NAMES), number, start, *scores)
        for record in records
        if record["result"]
        for number, (start, scores) in enumerate(
            zip(record["result"]["starts"], record["result"]["windows"], strict=True)
        )
    ]
    folder.write_table(
        WINDOWS, (*_NAMES, "window", "first_frame", *(classes or ["prediction"])), rows
    )
    return folder.path / PREDICTIONS


def _row(record: Mapping[str, Any], class_names: Sequence[str]) -> list[Any]:
    names = [record[name] for name in (*_NAMES, "status", "reason")]
    result = record["result"]
    if not result:
        return names + [None] * (4 + len(class_names))
    inside = result["in_range"]
    return [
        *names,
        len(result["windows"]),
        result["value"],
        result["spread"],
        None if inside is None else str(inside).lower(),
        *(result["probabilities"][name] for name in class_names),
    ]
