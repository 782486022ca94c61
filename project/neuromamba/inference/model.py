"""A trained model in memory: weights, and what it expects of a scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from neuromamba.checkpoints.io import CheckpointContents
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import SCALING_METHODS
from neuromamba.config.training import DownstreamConfig
from neuromamba.evaluation.target_scaling import TargetScaling
from neuromamba.fmamba.backbone import Backbone
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.fmamba.window_tokens import pack_windows
from neuromamba.inference.brief import Brief
from neuromamba.inference.calibration import Calibration
from neuromamba.inference.contract import InputContract, described
from neuromamba.inference.prepared import PreparedScan

ModelT = TypeVar("ModelT", bound="TrainedModel")
# Tokens computed at once: windows of a small model go together, one of a large model by itself.
_TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrainedModel(Brief):
    """Backbone, head and what they expect of a scan.

    Attributes:
        path: the checkpoint.
        contents: its metadata and origin, without the weights.
        contract: what it expects of a scan.
        backbone: in evaluation mode, on ``device``.
        head: of a downstream model; None of a pre-trained backbone.
        task: of a downstream model.
        target_scaling: of a regression.
        device: that computes.
        calibration: from the validation subjects of the run; None where none is known, and for an
            input scaling that the model was not trained with.
        evaluation: the run's own test, ``evaluation.json``; {} where none is known.
    """

    path: Path
    contents: CheckpointContents
    contract: InputContract
    backbone: Backbone
    head: nn.Module | None
    task: DownstreamConfig | None
    target_scaling: TargetScaling
    device: torch.device
    calibration: Calibration | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def brief(self) -> str:
        """What it is, and where."""
        return f"{described(self.contents.metadata)}, {self.path} on {self.device}"

    def with_scaling(self: ModelT, method: str) -> ModelT:
        """The model with another scaling of the input than it was trained with: an experiment.

        Args:
            method: of ``config.names.SCALING_METHODS``.
        """
        if method not in SCALING_METHODS:
            raise UserInputError(
                f"--scaling: got '{method}', expected one of {', '.join(SCALING_METHODS)}."
            )
        data = dataclasses.replace(self.contract.data, input_scaling_method=method)
        # Measures of the training describe the input under its own scaling.
        contract = dataclasses.replace(self.contract, data=data, inputs={})
        return dataclasses.replace(self, contract=contract, calibration=None, evaluation={})

    def batches(self, scan: PreparedScan) -> Iterator[tuple[range, PackedTokens]]:
        """Yield the numbers and tokens of a scan's windows, some at a time, on the device."""
        windows, begin, size = scan.windows, 0, 1
        while begin < len(windows):
            numbers = range(begin, min(begin + size, len(windows)))
            packed = pack_windows([windows[i] for i in numbers], self.contract.model, self.device)
            yield numbers, packed
            begin = numbers.stop
            size = max(1, _TOKENS_AT_ONCE // max(packed.lengths))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in order; () of a regression or a pre-trained backbone."""
        return () if self.task is None else tuple(self.task.class_names)

    @property
    def unit(self) -> str:
        """Unit of the predicted values, such as "years"; "" where none is known."""
        return "" if self.task is None else self.task.unit
