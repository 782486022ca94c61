"""What an exported model says of its quality: calibration, its own test, and baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neuromamba.checkpoints.io import CheckpointContents
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.result_files import PREDICTIONS
from neuromamba.evaluation.scores import SubjectScores, read_scores
from neuromamba.fmamba.baselines import RECORD, Baseline, read_baselines
from neuromamba.inference.calibration import (
    CALIBRATION_KEY,
    EVALUATION_KEY,
    calibration_of,
    evaluated_run,
    evaluation_of,
)

BASELINES_KEY = "baselines"  # in the evaluation
# Of evaluation.json; the rest is of the run's page.
_KEPT = ("metrics", "subjects", "confidence", "calibration", BASELINES_KEY)
_SAME_DATA = ("split_hash", "images_hash", "targets_hash")


def facts_of_run(checkpoint: Path, contents: CheckpointContents) -> dict[str, Any]:
    """Collect what the run of a checkpoint found on held-out subjects, without their names.

    Args:
        checkpoint: its path; of a run folder the evaluated one, others have no results.
        contents: its metadata, and its origin if it is an exported file itself.

    Returns:
        For the ``export`` of a file, in plain containers: ``calibration`` and ``evaluation``
        (metrics with intervals, number of test subjects, calibration error; ``baselines``, each
        with name, text, metrics and the paired ``difference`` of the main metric, model less
        baseline), as far as they are known. {} of a pre-trained backbone.
    """
    if "downstream" not in contents.metadata:
        return {}
    found: dict[str, Any] = {}
    calibration = calibration_of(checkpoint, contents.export)
    if calibration is not None:
        found[CALIBRATION_KEY] = calibration.plain()
    evaluation = evaluation_of(checkpoint, contents.export)
    if evaluation:
        kept = {name: evaluation[name] for name in _KEPT if name in evaluation}
        baselines = list(_baselines(checkpoint, contents.metadata["data"]))
        found[EVALUATION_KEY] = kept | ({BASELINES_KEY: baselines} if baselines else {})
    return found


def _baselines(checkpoint: Path, data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Compare the model with the baselines that ``neuromamba report`` left in the run folder."""
    run = evaluated_run(checkpoint)
    if run is None or not (run / PREDICTIONS["test"]).is_file():
        return
    try:
        scores = read_scores(run / PREDICTIONS["test"])
    except UserInputError:
        return  # a damaged file beside a good checkpoint
    for folder in (run / "baselines", run / "baselines" / "untrained"):
        for one in _of_same_data(folder, data):
            try:
                yield _compared(one, scores)
            except UserInputError:  # of other subjects: no baseline of this model
                continue


def _of_same_data(folder: Path, data: Mapping[str, Any]) -> list[Baseline]:
    """Read the baselines of a folder, if they are of the checkpoint's split, images and targets."""
    try:
        key = parse_json((folder / RECORD).read_text(encoding="utf-8"))["key"]
        same = all(key[name] == data[name] for name in _SAME_DATA)
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return (read_baselines(folder, key) or []) if same else []


def _compared(baseline: Baseline, model: SubjectScores) -> dict[str, Any]:
    metric = model.main_metric
    own = baseline.scores.in_order_of(model)
    return {
        "name": baseline.name,
        "text": baseline.text,
        "metrics": {name: _plain(own.interval(name)) for name in own.metric_names},
        "difference": _plain(model.difference(own, metric)),
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    values = interval._asdict()
    return {name: value if value == value else None for name, value in values.items()}
