"""Files of results that both model families write: metrics, predictions, subjects, curves.

- ``metrics.json``: flat ``{"test/auroc": 0.8, ...}``; null for a value that is not defined.
- ``predictions.csv``: one row per sample (a window of a run, or a scan), with the columns
  ``subject``, ``window`` or ``scan``, ``target``, and ``prob_0``, ``prob_1``, ... or
  ``prediction``.
- ``evaluation.json``: see ``evaluation.summary``.
- ``subjects.csv``: one row per subject: its part, target, scores and decision.
- ``logs/metrics.csv``: values logged in training, by optimiser step.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from neuromamba.common.atomic_files import atomic_path, write_text_atomically
from neuromamba.common.csv_cells import CsvWriter, csv_records
from neuromamba.common.errors import UserInputError

ValueT = TypeVar("ValueT")
METRICS, EVALUATION, SUBJECTS = "metrics.json", "evaluation.json", "subjects.csv"
# Part of the split -> file of its predictions.
PREDICTIONS = {"test": "predictions.csv", "val": "validation_predictions.csv"}
CURVES = Path("logs") / "metrics.csv"


class Predictions(NamedTuple):
    """Scores of S samples: windows or scans.

    Attributes:
        subject: S names of subjects (sessions, runs, events).
        sample: S numbers or names: the window within its subject, or the scan.
        target: int [S], the true class; or float [S], the true value.
        score: float [S, classes], probabilities; or [S, 1], predicted values.
    """

    subject: Sequence[str]
    sample: Sequence[int | str]
    target: np.ndarray
    score: np.ndarray


_EXPECTED = "the columns subject, target and prob_0, prob_1 ... or prediction, with numbers"
_AGAIN = "Restore it, or evaluate again (neuromamba train --test_only)."


def score_columns(target: np.ndarray, score: np.ndarray) -> list[str]:
    """Name the columns of scores: ``prob_0``, ... of classes, ``prediction`` of a regression."""
    if target.dtype.kind in "iu":
        return [f"prob_{i}" for i in range(score.shape[1])]
    return ["prediction"]


@contextmanager
def _csv_writer(path: Path) -> Iterator[CsvWriter]:
    """Open a CSV file for writing atomically."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        yield CsvWriter(stream)


def write_predictions(found: Predictions, path: Path, sample: str = "window") -> None:
    """Write a file of predictions in the order given; ``sample`` names the second column."""
    with _csv_writer(path) as writer:
        writer.writerow(["subject", sample, "target", *score_columns(found.target, found.score)])
        rows = zip(found.subject, found.sample, found.target.tolist(), found.score, strict=True)
        for subject, number, target, score in rows:
            writer.writerow([subject, number, target, *map(float, score)])


def read_predictions(path: Path, remedy: str) -> Predictions:
    """Read a file of predictions; ``sample`` is empty text where the file has no such column.

    Args:
        path: the file.
        remedy: what to do about a file that is not there, a sentence.

    Raises:
        UserInputError: it cannot be read, is damaged, or holds no predictions.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv_records(stream))
    except OSError as error:
        raise UserInputError(f"{path}: cannot be read ({error.strerror}). {remedy}") from None
    except (csv.Error, UnicodeDecodeError):
        raise _damaged(path) from None
    columns = [n for n in rows[0] if _is_score(n)] if rows else []
    try:
        subjects = [row["subject"] for row in rows]
        kind = float if columns == ["prediction"] else int
        target = np.array([kind(row["target"]) for row in rows])
        score = np.array([[float(row[name]) for name in columns] for row in rows])
    except (KeyError, TypeError, ValueError):
        raise _damaged(path) from None
    if not columns:
        raise UserInputError(f"{path}: no predictions in it, expected {_EXPECTED}. {_AGAIN}")
    sample = next((name for name in ("window", "scan") if name in rows[0]), None)
    samples = ["" if sample is None else row[sample] for row in rows]
    return Predictions(subjects, samples, target, score)


def _is_score(name: str | None) -> bool:
    return name is not None and (name.startswith("prob_") or name == "prediction")


def _damaged(path: Path) -> UserInputError:
    return UserInputError(
        f"{path}: damaged, or no file of predictions: expected {_EXPECTED}. {_AGAIN}"
    )


def write_metrics(metrics: Mapping[str, float], path: Path) -> None:
    """Write ``metrics.json``."""
    clean = {k: (v if math.isfinite(v) else None) for k, v in sorted(metrics.items())}
    write_text_atomically(path, json.dumps(clean, indent=1, allow_nan=False) + "\n")


def metrics_from(record: Mapping[str, float | None]) -> dict[str, float]:
    """The values of a ``metrics.json`` under the names of today, NaN for null."""
    found = {k: math.nan if v is None else float(v) for k, v in record.items()}
    return under_current_names(found)


def under_current_names(record: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Rename what earlier versions called ``val/skill``: it is ``val/sequence_skill`` now.

    A record that holds both names is one of today.
    """
    old, new = "val/skill", "val/sequence_skill"
    renamed = old in record and new not in record
    return {new if renamed and name == old else name: value for name, value in record.items()}


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file; null stands for numbers that are not defined."""
    write_text_atomically(path, json.dumps(_plain(record), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Containers for JSON; null for what is not defined."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_rows(header: Sequence[str], rows: Iterable[Sequence[Any]], path: Path) -> None:
    """Write a table, such as ``subjects.csv``."""
    with _csv_writer(path) as writer:
        writer.writerow(header)
        writer.writerows(rows)


def curve(text: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one quantity of ``logs/metrics.csv``.

    Args:
        text: content of the file.
        name: of the column.

    Returns:
        Optimiser steps int [n] and values float [n]; empty if it was never logged.
    """
    points = [
        (int(row["step"]) + 1, float(row[name]))
        for row in map(under_current_names, csv_records(text.splitlines()))
        if row.get(name)
    ]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, dtype=int), np.array(values, dtype=float)
