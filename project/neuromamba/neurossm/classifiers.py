"""What ``--model`` and ``--baselines`` can name: each is fitted on scans and scores others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.scan import Scan
from neuromamba.neurossm.config import FitConfig, NeuroSSMConfig
from neuromamba.neurossm.gru import GRUClassifier
from neuromamba.neurossm.linear import FEATURES, fit_and_predict
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.module import score
from neuromamba.neurossm.train import train
from neuromamba.training.strategies import Hardware

WEIGHTS = "weights.safetensors"
TRAINED: Mapping[str, Callable[[NeuroSSMConfig], nn.Module]] = {
    "NeuroSSM": NeuroSSM,
    "GRU": lambda config: GRUClassifier(
        config.rois, config.classes, config.embed_dim, config.dropout
    ),
}
NAMES = (*TRAINED, *FEATURES)


class Classifier(Protocol):
    """A way to classify scans."""

    @property
    def name(self) -> str:
        """One of ``NAMES``."""

    def settings(self) -> dict[str, Any]:
        """What its numbers depend on, beside data and splits."""

    def fit_and_score(
        self, train_scans: Sequence[Scan], test_scans: Sequence[Scan], seed: int, folder: Path
    ) -> np.ndarray:
        """Probabilities [test scans, classes]; files of the fit go to ``folder``."""


@dataclass(frozen=True)
class NetworkClassifier:
    """A network.

    Attributes:
        name: of ``TRAINED``.
        model: architecture; the GRU takes its sizes from there.
        fit: training.
        hardware: one device.
    """

    name: str
    model: NeuroSSMConfig
    fit: FitConfig
    hardware: Hardware

    @property
    def device(self) -> torch.device:
        """Where it is trained and scored."""
        kind = self.hardware.accelerator
        if kind == "cpu":
            return torch.device(kind)
        return torch.device(kind, int(self.hardware.device_request.rstrip(",")))

    def build(self) -> nn.Module:
        """Freshly initialised."""
        return TRAINED[self.name](self.model)

    def settings(self) -> dict[str, Any]:
        """Architecture and training; the backend of the scan changes no more than rounding."""
        model = dataclasses.asdict(self.model)
        del model["ssd_backend"]
        if self.name != "NeuroSSM":
            model = {key: model[key] for key in ("rois", "classes", "embed_dim", "dropout")}
        return {"model": model, "training": dataclasses.asdict(self.fit)}

    def fit_and_score(
        self, train_scans: Sequence[Scan], test_scans: Sequence[Scan], seed: int, folder: Path
    ) -> np.ndarray:
        """Train, write the weights, score."""
        model = train(
            build=self.build,
            scans=train_scans,
            fit=self.fit,
            hardware=self.hardware,
            seed=seed,
            folder=folder,
        )
        state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(state, temporary)
        return score(model, test_scans, self.fit.eval_batch_size, self.device).probability

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
class LinearClassifier:
    """Logistic regression on features of a scan; ``name`` of ``FEATURES``."""

    name: str

    def settings(self) -> dict[str, Any]:
        """Nothing to choose."""
        return {"features": self.name}

    def fit_and_score(
        self, train_scans: Sequence[Scan], test_scans: Sequence[Scan], seed: int, folder: Path
    ) -> np.ndarray:
        """Fit and score."""
        return fit_and_predict(self.name, train_scans, test_scans, seed)[0]


def classifier(name: str, model: NeuroSSMConfig, fit: FitConfig, hardware: Hardware) -> Classifier:
    """The classifier of a name in ``NAMES``."""
    return (
        NetworkClassifier(name, model, fit, hardware) if name in TRAINED else LinearClassifier(name)
    )
