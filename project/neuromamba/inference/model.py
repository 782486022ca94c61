"""A trained model, loaded once and used on many scans."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuromamba.checkpoints.io import CheckpointContents
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import SCALING_METHODS
from neuromamba.config.training import DownstreamConfig
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.target_scaling import TargetScaling
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.fmamba.window_tokens import pack_windows
from neuromamba.inference.contract import InputContract
from neuromamba.inference.images import scan_of_image
from neuromamba.inference.prepare import prepare_scan
from neuromamba.inference.prepared import PreparedScan
from neuromamba.inference.sources import ScanFile, find_scans

# Tokens computed at once: windows of a small model go together, one of a large model by itself.
_TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """Backbone, head and what they expect of a scan; ``neuromamba.load`` makes one.

    Attributes:
        path: the checkpoint.
        contents: its metadata and origin, without the weights.
        contract: what it expects of a scan.
        backbone: in evaluation mode, on ``device``.
        head: of a downstream model; None of a pre-trained backbone.
        task: of a downstream model.
        target_scaling: of a regression.
        device: that computes.
    """

    path: Path
    contents: CheckpointContents
    contract: InputContract
    backbone: FMamba
    head: nn.Module | None
    task: DownstreamConfig | None
    target_scaling: TargetScaling
    device: torch.device

    def prepare(
        self,
        bold: Any,
        tr: float | None = None,
        mask: str | Path | None = None,
        *,
        affine: Any = None,
        strict: bool = False,
    ) -> PreparedScan:
        """Bring a scan to what the model was trained on.

        Args:
            bold: path of a NIfTI file or of a run of a store; a nibabel image; or an array
                [X, Y, Z, T] with its ``affine``.
            tr: repetition time in seconds; needed for an array.
            mask: path of a mask image on the scan's grid, "nonzero" or "computed".
            affine: [4, 4], voxel indices -> mm; of an array only.
            strict: refuse a scan with any problem.

        Raises:
            UserInputError: it cannot be used; names the reason and a remedy.
        """
        if isinstance(bold, ScanFile):
            return prepare_scan(bold, self.contract, tr=tr, mask=mask, strict=strict)
        if isinstance(bold, str | Path):
            scans, _ = find_scans([bold], native=self.contract.native)
            if len(scans) != 1:
                raise UserInputError(
                    f"prepare: '{bold}' holds {len(scans)} scans, expected one; use predict_many."
                )
            return prepare_scan(scans[0], self.contract, tr=tr, mask=mask, strict=strict)
        with scan_of_image(bold, affine, tr) as scan:
            return prepare_scan(scan, self.contract, tr=tr, mask=mask, strict=strict)

    def with_scaling(self, method: str) -> TrainedModel:
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
        return dataclasses.replace(self, contract=contract)

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

    def predict(self, scan: PreparedScan) -> Any:
        """Predict of a prepared scan; see ``inference.predict.Prediction``."""
        from neuromamba.inference.predict import predict_scan

        return predict_scan(self, scan)

    def predict_many(self, bold: Sequence[Any], **options: Any) -> list[Any]:
        """Predict of many scans; see ``inference.many.predict_many``."""
        from neuromamba.inference.many import predict_many

        return predict_many(self, bold, **options)

    def embed(self, scan: PreparedScan, **options: Any) -> Any:
        """Embed a prepared scan; see ``inference.embed.embed_scan``."""
        from neuromamba.inference.embed import embed_scan

        return embed_scan(self, scan, **options)
