"""The networks that ``neuromamba regions train`` fits, by name; built without what trains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from neuromamba.neurossm.config import NeuroSSMConfig
from neuromamba.neurossm.gru import GRUClassifier
from neuromamba.neurossm.model import NeuroSSM

WEIGHTS = "weights.safetensors"
TRAINED: Mapping[str, Callable[[NeuroSSMConfig], nn.Module]] = {
    "NeuroSSM": NeuroSSM,
    "GRU": lambda config: GRUClassifier(
        config.rois, config.classes, config.embed_dim, config.dropout
    ),
}
