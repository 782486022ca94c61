"""The models of ``--model`` and ``--baselines``: fitted on scans, they score others.

They predict classes, or, of a regression, values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import seed_run
from neuromamba.data.regions.batches import ScanDataset, ScanLoader
from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.target_scaling import TargetScaling, standardising
from neuromamba.layers.packing import Packed
from neuromamba.neurossm.config import COMBAT, FitConfig, NeuroSSMConfig
from neuromamba.neurossm.first_order_share import best_share, left_out_parts, logits_of_left_out
from neuromamba.neurossm.linear import (
    MEASURES,
    LinearClassifier,
    Measured,
    Scorer,
    fit_linear,
    fit_second_order,
)
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.module import score
from neuromamba.neurossm.networks import TRAINED, WEIGHTS
from neuromamba.neurossm.other_baselines import (
    CONFOUNDS,
    MLP,
    ConfoundClassifier,
    MLPOnFC,
    Shared,
)
from neuromamba.neurossm.results import BASELINES
from neuromamba.neurossm.second_order import SecondOrder
from neuromamba.neurossm.train import train
from neuromamba.training.strategies import Hardware

UNTRAINED = "Untrained"
# Than the first results.
LATER = {"region_dropout", "members", "second_order", "weight_decay", "label_smoothing"}
NAMES = (*TRAINED, *MEASURES, UNTRAINED, CONFOUNDS, MLP)
assert {*MEASURES, UNTRAINED, CONFOUNDS, MLP} == BASELINES


class Classifier(Protocol):
    """A way to classify scans."""

    @property
    def name(self) -> str:
        """One of ``NAMES``."""

    def settings(self) -> dict[str, Any]:
        """Everything that its numbers depend on, except data and splits."""

    def fit(self, train_scans: Sequence[Scan], seed: int, folder: Path) -> Scorer:
        """Fit; files of the fit go to ``folder``.

        Returns:
            What gives the scores of other scans.
        """


@dataclass(frozen=True)
class NetworkClassifier:
    """A network.

    Attributes:
        name: of ``TRAINED``.
        model: architecture; the GRU takes its sizes from there.
        training: how it is fitted.
        hardware: one device.
        measured: correlations that the baselines have computed, too.
    """

    name: str
    model: NeuroSSMConfig
    training: FitConfig
    hardware: Hardware
    measured: Measured = field(default_factory=Measured, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """The device that it is trained and scored on."""
        kind = self.hardware.accelerator
        if kind == "cpu":
            return torch.device(kind)
        return torch.device(kind, int(self.hardware.device_request.rstrip(",")))

    def build(self) -> nn.Module:
        """Freshly initialised."""
        return TRAINED[self.name](self.model)

    def settings(self) -> dict[str, Any]:
        """Architecture and training; the backend of the scan changes no more than rounding.

        What came later is named only where it is used, so that older results can be continued.
        """
        model, fit = dataclasses.asdict(self.model), dataclasses.asdict(self.training)
        del model["ssd_backend"]
        for record, one in ((model, self.model), (fit, self.training)):
            for name in LATER & record.keys():
                if record[name] == type(one).__dataclass_fields__[name].default:
                    del record[name]
        if self._second_order:
            fit["first_order_share"] = "chosen on scans that were left out"  # before it was fixed
        if self.name != "NeuroSSM":
            model = {key: model[key] for key in ("rois", "classes", "embed_dim", "dropout")}
        if self.model.is_regression:
            fit.pop("label_smoothing", None)  # there are no labels to smooth
        return {"model": model, "training": fit}

    def scaling(self, train_scans: Sequence[Scan]) -> TargetScaling | None:
        """How a regression's target is standardised by the training; None of a classification."""
        if not self.model.is_regression:
            return None
        return standardising(np.array([scan.label for scan in train_scans]))

    def fit(self, train_scans: Sequence[Scan], seed: int, folder: Path) -> Scorer:
        """Train, write the weights."""
        scaling = self.scaling(train_scans)
        parts = None
        if self._second_order:
            parts = left_out_parts(train_scans, self.model.members, seed)
        model = train(
            build=self.build,
            scans=train_scans,
            fit=self.training,
            hardware=self.hardware,
            seed=seed,
            folder=folder,
            scaling=scaling,
            parts=parts,
        )
        if isinstance(model, NeuroSSM) and model.second_order is not None:
            self._fit_second_order(model, model.second_order, train_scans, parts, seed)
        state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(state, temporary)
        return self._scorer(model, scaling)

    def _scorer(self, model: nn.Module, scaling: TargetScaling | None) -> Scorer:
        def scores(scans: Sequence[Scan]) -> np.ndarray:
            return score(model, scans, self.training.eval_batch_size, self.device).scaled(scaling)

        return scores

    @property
    def _second_order(self) -> bool:
        return self.name == "NeuroSSM" and self.model.second_order

    def _fit_second_order(
        self,
        model: NeuroSSM,
        pathway: SecondOrder,
        scans: Sequence[Scan],
        parts: np.ndarray | None,
        seed: int,
    ) -> None:
        second = fit_second_order(pathway, scans, seed, parts, self.measured)
        if parts is None or second is None:
            return
        batch = self.training.eval_batch_size
        first = logits_of_left_out(model, scans, parts, batch, self.device)
        labels, scaling = np.array([scan.label for scan in scans]), self.scaling(scans)
        if scaling is not None:
            labels = (labels - scaling.center) / scaling.scale
        pathway.share.fill_(best_share(second, first, labels))

    def finished(self, train_scans: Sequence[Scan], folder: Path) -> Scorer:
        """What ``fit`` gave for these scans, from the weights that it wrote.

        Raises:
            UserInputError: see ``load``.
        """
        return self._scorer(self.load(folder), self.scaling(train_scans))

    def load(self, folder: Path) -> nn.Module:
        """The model of a finished fit, on its device and in evaluation mode.

        Raises:
            UserInputError: its weights are not there, damaged or another model's.
        """
        model = self.build()
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserInputError(
                f"--results_dir: '{folder / WEIGHTS}' cannot be read "
                f"({' '.join(str(error).split())[:200]}). Remove '{folder}' to do that fit again."
            ) from None
        return model.eval().to(self.device)


@dataclass(frozen=True)
class UntrainedClassifier:
    """Logistic or ridge regression on what NeuroSSM's pathways give with random weights.

    What a trained NeuroSSM gains over it was learned.

    Attributes:
        network: NeuroSSM as it would be trained.
    """

    network: NetworkClassifier
    name: str = UNTRAINED

    def settings(self) -> dict[str, Any]:
        """The architecture; of the training only what the random weights depend on: nothing."""
        return {"features": self.name, "model": self.network.settings()["model"]}

    def fit(self, train_scans: Sequence[Scan], seed: int, folder: Path) -> Scorer:
        """Draw the weights by the seed, as a training does, and fit what reads them."""
        seed_run(seed)
        model = self.network.build()
        assert isinstance(model, NeuroSSM)
        batch, device = self.network.training.eval_batch_size, self.network.device
        predict = fit_linear(_encoded(model, train_scans, batch, device), train_scans, seed)
        return lambda scans: predict(_encoded(model, scans, batch, device))


@torch.no_grad()
def _encoded(
    model: NeuroSSM, scans: Sequence[Scan], batch_size: int, device: torch.device
) -> np.ndarray:
    """What the pathways give for whole scans, float32 [scans, P D]: all of z, side by side."""
    model = model.eval().to(device)
    found = []
    for batch in ScanLoader(ScanDataset(scans), batch_size):
        packed = Packed(batch["frames"].to(device), batch["lengths"])
        found.append(model.encode(model.inputs(packed)).flatten(1).float().cpu())
    return torch.cat(found).numpy()


def classifier(
    name: str,
    model: NeuroSSMConfig,
    fit: FitConfig,
    hardware: Hardware,
    shared: Shared | None = None,
) -> Classifier:
    """The classifier of a name in ``NAMES``, or of a linear one with ``COMBAT`` at its end.

    Args:
        name: which.
        model: architecture of NeuroSSM.
        fit: how networks are trained.
        hardware: one device.
        shared: what the models of a run share.
    """
    shared = shared or Shared()
    if name == UNTRAINED:
        # Of the second-order pathway, nothing but the fitted weights could be left out.
        model = dataclasses.replace(model, second_order=False)
        return UntrainedClassifier(NetworkClassifier("NeuroSSM", model, fit, hardware))
    if name in TRAINED:
        return NetworkClassifier(name, model, fit, hardware, shared.measured)
    if name == CONFOUNDS:
        return ConfoundClassifier(shared.confounds, shared.texts)
    if name == MLP:
        return MLPOnFC(shared.measured)
    if name.endswith(COMBAT):
        return LinearClassifier(name, shared.measured, shared.column, shared.sites)
    return LinearClassifier(name, shared.measured)
