"""Configurations of NeuroSSM: architecture, training, attribution, and a whole evaluation.

No torch here: a wrong flag is refused before it is loaded, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.registry import DatasetDetails

SIGNALS = ("raw", "diff")
SECOND_ORDER = "second_order"
HARMONISED = ("FC", "PartialCorrelation", "Tangent")  # baselines that --harmonise adds rows of
COMBAT = "-ComBat"  # ends the names of these rows
# Defaults of flags. "paper" is for a thousand long scans; "robust" for some hundreds of any length,
# chosen on ABIDE (docs/results.md).
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "signals": SIGNALS,
        "scales": (1, 2, 4),
        "embed_dim": 128,
        "depth": 2,
        "dropout": 0.1,
        "region_dropout": 0.0,
        "members": 1,
        "second_order": "off",
        "learning_rate": 2e-4,
        "max_learning_rate": 4e-4,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
    },
    "robust": {
        "signals": ("raw",),
        "scales": (2,),
        "embed_dim": 32,
        "depth": 1,
        "dropout": 0.3,
        "region_dropout": 0.2,
        "members": 5,
        "second_order": "on",
        "learning_rate": 8e-5,
        "max_learning_rate": 2e-3,
        "weight_decay": 1e-2,
        "label_smoothing": 0.1,
    },
}


@dataclass(frozen=True, kw_only=True)
class NeuroSSMConfig:
    """The architecture; the defaults have 1,665,170 parameters for 400 regions and two classes.

    Attributes:
        rois: N.
        classes: number of logits; 1 for a regression, whose target is standardised.
        signals: of ``SIGNALS``.
        scales: frames that are averaged; a pathway for each signal and scale.
        embed_dim: D.
        depth: Mamba2 layers of a pathway.
        d_state, d_conv, expand, headdim: of the Mamba2 layers.
        dropout: on the output of each of them.
        region_dropout: share of the regions that a training step does not see.
        members: models with weights of their own, whose logits are averaged.
        second_order: add a pathway that reads the correlations of the whole scan.
        ssd_backend: see ``ssd.select_backend``.

    Raises:
        UserInputError: values that fit no model.
    """

    rois: int
    classes: int
    signals: tuple[str, ...] = SIGNALS
    scales: tuple[int, ...] = (1, 2, 4)
    embed_dim: int = 128
    depth: int = 2
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    headdim: int = 64
    dropout: float = 0.1
    region_dropout: float = 0.0
    members: int = 1
    second_order: bool = False
    ssd_backend: str = "auto"

    def __post_init__(self) -> None:
        if not self.signals or set(self.signals) - set(SIGNALS):
            raise UserInputError(f"--signals: got {self.signals}, expected some of {SIGNALS}.")
        for name, values in (("--signals", self.signals), ("--scales", self.scales)):
            if len(set(values)) < len(values):
                raise UserInputError(f"{name}: got {values}, with one of them twice.")
        if not self.scales or min(self.scales) < 1:
            raise UserInputError(f"--scales: got {self.scales}, expected numbers from 1 on.")
        for name in ("embed_dim", "depth", "headdim", "members"):
            if getattr(self, name) < 1:
                raise UserInputError(f"--{name}: got {getattr(self, name)}, expected 1 or more.")
        if self.expand * self.embed_dim % self.headdim:
            raise UserInputError(
                f"--embed_dim: {self.expand} x {self.embed_dim} channels cannot be cut into heads "
                f"of {self.headdim}; choose a multiple of {self.headdim // self.expand or 1}."
            )
        if self.second_order and self.classes > self.features:
            raise UserInputError(
                f"--second_order on: {self.classes} classes need an --embed_dim times --members of "
                f"as many, got {self.features}."
            )
        for name in ("dropout", "region_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserInputError(f"--{name}: got {getattr(self, name)}, expected 0 to below 1.")

    @property
    def pathways(self) -> tuple[str, ...]:
        """``raw_1``, ``raw_2``, ..., ``diff_1``, ...: the order of everything per pathway."""
        last = (SECOND_ORDER,) if self.second_order else ()
        return (*self.first_order, *last)

    @property
    def first_order(self) -> tuple[str, ...]:
        """Those that average features over time."""
        return tuple(f"{signal}_{scale}" for signal in self.signals for scale in self.scales)

    @property
    def is_regression(self) -> bool:
        """Whether a value is predicted."""
        return self.classes == 1

    @property
    def features(self) -> int:
        """M D: the width of a pathway's features."""
        return self.members * self.embed_dim

    @property
    def member(self) -> NeuroSSMConfig:
        """One of the members alone."""
        return replace(self, members=1, second_order=False)

    @property
    def shortest(self) -> int:
        """Fewest frames of a scan: two of them at the coarsest scale."""
        return 2 * max(self.scales)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The training of a model.

    Attributes:
        crop: frames of a training crop (``--dynamic_length``).
        epochs: over the training scans.
        batch_size, eval_batch_size: scans.
        learning_rate, max_learning_rate, min_learning_rate: begin, top and end of the cycle.
        warm_up: share of the steps until the top.
        weight_decay: of AdamW; with 0 it is Adam.
        label_smoothing: share of the target that is spread over all classes.

    Raises:
        UserInputError: a number that trains nothing.
    """

    crop: int
    epochs: int = 20
    batch_size: int = 32
    eval_batch_size: int = 16
    learning_rate: float = 2e-4
    max_learning_rate: float = 4e-4
    min_learning_rate: float = 2e-5
    warm_up: float = 0.3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.weight_decay < 0:
            raise UserInputError(f"--weight_decay: got {self.weight_decay}, expected 0 or more.")
        if not 0 <= self.label_smoothing < 1:
            raise UserInputError(
                f"--label_smoothing: got {self.label_smoothing}, expected 0 to below 1."
            )
        for flag in ("epochs", "batch_size"):
            if getattr(self, flag) < 1:
                raise UserInputError(f"--{flag}: got {getattr(self, flag)}, expected 1 or more.")
        if not self.min_learning_rate < self.learning_rate <= self.max_learning_rate:
            raise UserInputError(
                f"--learning_rate: got {self.learning_rate:g}, expected more than "
                f"{self.min_learning_rate:g}, where the cycle ends, and at most "
                f"--max_learning_rate {self.max_learning_rate:g}."
            )


@dataclass(frozen=True, kw_only=True)
class CPAConfig:
    """The computation of CPA.

    Attributes:
        ablation: ``mean`` or ``zero``: what takes the place of a pathway's features.
        gradient: ``integrated`` or ``single``.
        batch_size: scans at a time.
    """

    ablation: str = "mean"
    gradient: str = "integrated"
    batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The explanation of the holdouts' predictions.

    Attributes:
        cpa: how maps are computed.
        analysis_dir: receives them, below the name of the data set.
        atlas: image of labels, for pictures; None looks for the data set's own.
    """

    cpa: CPAConfig
    analysis_dir: Path
    atlas: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One call of ``neuromamba regions train`` (``tester.py``).

    Attributes:
        dataset: name of the data set.
        details: its entry, see ``data.regions.registry``.
        data_dir: folder of its files.
        data_file: scans, in place of the entry's file.
        group_column: whose values are not split between training and test.
        test_data: scans that no split has seen, tested by the models of the holdouts.
        confounds: columns that are compared with target and scores of the holdouts.
        drop_bad_scans: leave out scans that are not finite, instead of refusing them.
        missing_codes: labels that mean "not recorded"; their scans are left out.
        orientation: of ``ROI_ORIENTATIONS``.
        refuse_short_scans: refuse scans shorter than a crop, instead of taking them whole.
        model: name of the classifier that is evaluated.
        baselines: names of those on the same splits, that it is compared with.
        architecture: of NeuroSSM, fields of ``NeuroSSMConfig`` without ``rois`` and ``classes``.
        fit: how networks are trained.
        device: ``cpu``, or the number of a GPU.
        seeds: of splits and fits.
        folds: of the cross-validation.
        cross_validation: without it there are holdouts only.
        stratify_by: columns that holdout and folds have the same shares of, beside the class.
        leave_out: column whose values are left out in turn, in place of the folds.
        harmonise: column (site) whose differences are removed from the features of linear
            baselines, as rows of their own.
        keep: conditions that scans must meet.
        results_dir: receives results, below the name of the data set.
        explanation: of the holdouts' predictions; None for none.
        flags: as they were given, for the page.

    Raises:
        UserInputError: values that allow no evaluation.
    """

    dataset: str
    details: DatasetDetails
    data_dir: Path
    results_dir: Path
    fit: FitConfig
    model: str = "NeuroSSM"
    baselines: tuple[str, ...] = ()
    architecture: Mapping[str, Any] = field(default_factory=dict)
    data_file: Path | None = None
    test_data: Path | None = None
    group_column: str | None = None
    confounds: tuple[str, ...] = ()
    drop_bad_scans: bool = False
    missing_codes: tuple[str, ...] = ()
    orientation: str = "auto"
    refuse_short_scans: bool = False
    device: str = "0"
    seeds: tuple[int, ...] = (0,)
    folds: int = 5
    cross_validation: bool = True
    stratify_by: tuple[str, ...] = ()
    leave_out: str | None = None
    harmonise: str | None = None
    keep: tuple[str, ...] = ()
    explanation: Explanation | None = None
    flags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UserInputError(f"--folds: got {self.folds}, expected 2 or more.")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserInputError(
                f"--seeds: got {list(self.seeds)}, expected different numbers from 0 on."
            )
        if self.leave_out is not None and not self.cross_validation:
            raise UserInputError(
                "--leave_out: takes the place of the folds, which --skip_cross_validation leaves "
                "out. Give one of the two."
            )
        if "Confounds" in (self.model, *self.baselines) and not self.confounds:
            raise UserInputError(
                "--baselines Confounds: needs columns, such as --confounds age sex site motion."
            )
        if self.harmonise is not None and not {*self.baselines} & {*HARMONISED}:
            raise UserInputError(
                f"--harmonise: is of the features of {', '.join(HARMONISED)}; name one with "
                f"--baselines."
            )
        if self.explanation is not None and self.model != "NeuroSSM":
            raise UserInputError(f"--analysis: explains NeuroSSM, got --model {self.model}.")
        if self.explanation is not None and self.details.is_regression:
            raise UserInputError(
                "--analysis: compares the maps of classes, and a regression has none. Explain its "
                "predictions with neuromamba explain Results/.../holdout SCAN."
            )
        self.network(rois=1, classes=2)  # refuse a wrong architecture as early

    @property
    def models(self) -> tuple[str, ...]:
        """The model, then its baselines, each linear one beside itself after ``harmonise``."""
        found = [self.model]
        for name in self.baselines:
            found += [name]
            if self.harmonise is not None and name in HARMONISED:
                found += [name + COMBAT]
        return tuple(found)

    def network(self, *, rois: int, classes: int) -> NeuroSSMConfig:
        """The architecture for a data set."""
        return NeuroSSMConfig(rois=rois, classes=classes, **self.architecture)
