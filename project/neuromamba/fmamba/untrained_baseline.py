"""A linear model of the frozen features of random weights: what an architecture gives for nothing.

A random backbone is a filter of the signal too; what a trained model gains over it was learned.
"""

from __future__ import annotations

from pathlib import Path

import torch

from neuromamba.config.model import ModelConfig
from neuromamba.config.names import LAST_LAYER
from neuromamba.config.serialise import to_dict
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.fmamba.baselines import Baseline, data_key, read_baselines, write_baselines

UNTRAINED = "untrained backbone"
POOL = "mean_sd"  # holds more than the mean


def untrained_baseline(
    model: ModelConfig, data: RunData, folder: Path, seed: int = 0
) -> list[Baseline]:
    """Fit it on training and validation subjects and score it on the test subjects.

    Computed on a GPU where there is one. Kept in the folder, and read from there if it was fitted
    on the same data, split, targets and architecture.

    Args:
        model: architecture of the backbone.
        data: made for a downstream task, test subjects included.
        folder: of its files.
        seed: of the random weights, and of the inner folds that choose the penalty.

    Returns:
        The one baseline.

    Raises:
        UserInputError: a run cannot be read, there is one class only, or the folder cannot be
            written.
    """
    key = data_key(data) | {"seed": seed, "model": to_dict(model)}
    if (found := read_baselines(folder, key)) is not None:
        return found
    # Imported here: the baseline is kept, and scikit-learn takes seconds to load.
    from neuromamba.evaluation.linear_models import fit_linear
    from neuromamba.fmamba.frozen_features import frozen_features, untrained_backbone

    assert data.task is not None
    parts = ("train",) if data.config.include_valid_to_train else ("train", "val")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {UNTRAINED: untrained_backbone(model, seed)}
    rows, place = [], (LAST_LAYER, POOL)
    for chosen in (parts, ("test",)):
        samples, features = frozen_features(
            models, data, chosen, layers=[LAST_LAYER], pools=[POOL], device=device
        )
        rows.append((samples, features[UNTRAINED][place]))
    (fitted, x), (tested, new) = rows
    classes = max(1, len(data.task.class_names))
    fit = fit_linear(x, fitted.target, seed, classes)
    kind = "Ridge regression" if classes == 1 else "L2 logistic regression"
    text = (
        f"{kind} on the frozen features of random weights (mean and standard deviation over "
        f"time), penalty C = {fit.penalty:g} chosen in inner folds; fitted on "
        f"{len(fitted.names)} subjects."
    )
    scores = SubjectScores(tested.names, tested.target, fit.score(new))
    made = [Baseline(UNTRAINED, scores, text)]
    write_baselines(folder, made, key)
    return made
