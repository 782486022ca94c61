"""Reading a run folder (``training/outputs.py`` says what is in it) for figures and reports."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.checkpoints.io import CheckpointContents, read_checkpoint
from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.csv_cells import csv_records
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.config.data import DataConfig
from neuromamba.config.model import ModelConfig
from neuromamba.config.serialise import from_dict, read_yaml
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.result_files import (
    CURVES,
    METRICS,
    PREDICTIONS,
    SUBJECTS,
    curve,
    metrics_from,
)
from neuromamba.evaluation.scores import SubjectScores, read_scores


@dataclass(frozen=True)
class RunFolder:
    """A finished run.

    Args:
        path: the folder that ``neuromamba train`` wrote.

    Raises:
        UserInputError: on access, what is missing or damaged.
    """

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.yaml``: every flag of the run."""
        if not (self.path / "config.yaml").is_file():
            raise UserInputError(
                f"{self.path}: no run folder, it has no config.yaml. Give the folder of a finished "
                f"run of neuromamba train."
            )
        found = read_yaml(self.path / "config.yaml", "run folder")
        if missing := {"seed", "embed_dim", "batch_size"} - set(found):
            raise UserInputError(
                f"{self.path / 'config.yaml'}: damaged, it lacks {', '.join(sorted(missing))}. "
                f"Restore it, or run again."
            )
        return found

    @cached_property
    def metrics(self) -> dict[str, float]:
        """``metrics.json``; NaN for what is not defined."""
        try:
            return metrics_from(self._json(METRICS))
        except (TypeError, ValueError) as error:
            if isinstance(error, UserInputError):
                raise
            raise self._damaged(METRICS) from None

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """``evaluation.json``; {} of a run without one."""
        if not (self.path / "evaluation.json").is_file():
            return {}
        return self._json("evaluation.json")

    @cached_property
    def checkpoint(self) -> Path:
        """``best.ckpt``, or ``last.ckpt`` of a run without validation subjects.

        Of a run that tested only, the checkpoint that it tested.
        """
        if self.config.get("test_ckpt_path"):
            return find_checkpoint(self.config["test_ckpt_path"], "run folder")
        if not (self.path / "checkpoints").is_dir():
            raise UserInputError(
                f"{self.path}: no checkpoint; the run has not finished. Start it again with "
                f"--output_dir {self.path} --resume_ckpt_path last, or give a finished run."
            )
        return find_checkpoint(self.path, "run folder")

    @cached_property
    def contents(self) -> CheckpointContents:
        """Weights and metadata of the checkpoint."""
        contents = read_checkpoint(self.checkpoint, "run folder")
        if not contents.metadata:
            raise UserInputError(f"{self.checkpoint}: it does not say how the model was trained.")
        return contents

    @property
    def model_config(self) -> ModelConfig:
        """Architecture of the backbone."""
        return from_dict(ModelConfig, self.contents.metadata["model"], str(self.checkpoint))

    @property
    def task(self) -> DownstreamConfig | None:
        """The downstream task; None for a pre-trained backbone."""
        task = self.contents.metadata.get("downstream")
        return from_dict(DownstreamConfig, task, str(self.checkpoint)) if task else None

    def data(self, image_path: Sequence[str] | None = None) -> RunData:
        """The data of the run, with the same split, windows and labels (shuffled ones too).

        Args:
            image_path: the stores, if they have moved.

        Raises:
            UserInputError: the data cannot be found, or have another split by now.
        """
        metadata = self.contents.metadata["data"]
        config = from_dict(DataConfig, metadata["config"], str(self.checkpoint))
        if self.config.get("test_ckpt_path"):  # may have tested on other data
            names = [f.name for f in dataclasses.fields(DataConfig) if f.name in self.config]
            given = {n: self.config[n] for n in names if n != "sequence_length"}
            given = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
            config = dataclasses.replace(config, **given)
        if image_path:
            if len(image_path) != len(config.image_path):
                raise UserInputError(
                    f"--image_path: got {len(image_path)} folder(s), the run has "
                    f"{len(config.image_path)} data set(s)."
                )
            config = dataclasses.replace(config, image_path=tuple(image_path))
        data = RunData(config, self.task, write_split=False)
        same_data = config.dataset_name == tuple(metadata["config"]["dataset_name"])
        if data.split_hash != metadata["split_hash"] and same_data:
            raise UserInputError(
                f"--image_path: the split of '{', '.join(config.image_path)}' is not that of "
                f"'{self.path}' any more (hash {data.split_hash}, then {metadata['split_hash']}). "
                f"Put the run's splits/ back into the store."
            )
        return data

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Optimiser steps [n] and values [n] of a quantity logged in training; empty if never."""
        try:
            steps, values = curve(self._text(str(CURVES)), name)
        except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
            if isinstance(error, UserInputError):
                raise
            raise self._damaged(CURVES) from None
        # After training the best weights are validated once more, under the step after the last.
        kept = steps <= self.metrics.get("train/steps", math.inf)
        return steps[kept], values[kept]

    def split_records(self) -> Mapping[str, Mapping[str, Any]]:
        """Data set -> its split as written by ``splits.split_record``."""
        found = sorted((self.path / "splits").glob("*/split_fixed_*.json"))
        return {p.parent.name: self._json(str(p.relative_to(self.path))) for p in found}

    def scores(self, part: str = "test") -> SubjectScores:
        """Scores of the test or validation ("val") subjects, averaged over each one's windows."""
        return read_scores(self.path / PREDICTIONS[part])

    def check_subjects(self) -> None:
        """Compare ``subjects.csv``, which people read beside a page, with the predictions.

        Raises:
            UserInputError: it is damaged, or of other subjects; a run without it is fine.
        """
        if not (self.path / SUBJECTS).is_file():
            return
        wanted = set(self.scores().subjects)
        try:
            # Not by lines of the text: a name in quotes may hold a line break.
            rows = list(csv_records(io.StringIO(self._text(SUBJECTS), newline="")))
            found = {row["subject"] for row in rows if row["part"] == "test"}
            for row in rows:
                float(row["target"])
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            if isinstance(error, UserInputError):
                raise
            raise self._damaged(SUBJECTS) from None
        if found != wanted:
            raise UserInputError(
                f"{self.path / SUBJECTS}: has {len(found)} test subjects, and "
                f"{PREDICTIONS['test']} beside it {len(wanted)}, {len(found & wanted)} of them the "
                f"same. Restore it, or run again."
            )

    def check_records(self) -> None:
        """Read what pages show of a run, so that nothing is drawn of one with a damaged file.

        Raises:
            UserInputError: a file is missing or damaged.
        """
        _ = self.metrics, self.evaluation
        if not self.config.get("test_only"):
            self.curve("train/loss")

    def has_scores(self, part: str) -> bool:
        """Whether there are predictions of a part."""
        return (self.path / PREDICTIONS[part]).is_file()

    def _json(self, name: str) -> dict[str, Any]:
        text = self._text(name)
        try:
            found = parse_json(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._damaged(name)
        return found

    def _damaged(self, name: str | Path) -> UserInputError:
        return UserInputError(f"{self.path / name}: damaged. Restore it, or run again.")

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise self._damaged(name) from None
        except OSError as error:
            raise UserInputError(
                f"{self.path / name}: cannot be read ({error.strerror}). Give the folder of a "
                f"finished run of neuromamba train."
            ) from None
