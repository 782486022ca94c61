"""What a number of subjects can show: sentences for pages, beside the intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from neuromamba.evaluation.intervals import FEWEST, FEWEST_IN_CLASS
from neuromamba.evaluation.metrics import constant
from neuromamba.evaluation.scores import SubjectScores

ENOUGH = 10  # subjects of a class, or of a regression, below which nothing is decided


def decisive(scores: SubjectScores) -> bool:
    """Whether there are subjects enough to compare models: ten of each class, or ten in all."""
    return _smallest(scores) >= ENOUGH


def _smallest(scores: SubjectScores) -> int:
    if scores.task_type == "classification":
        return min(scores.units_per_class)
    return len(set(scores.resampling_unit or scores.subjects))


def evidence(scores: Mapping[str, SubjectScores], class_names: Sequence[str] = ()) -> list[str]:
    """Say what is not defined and why, and whether the subjects are too few to decide anything.

    Args:
        scores: model -> scores of the same subjects, one or more.
        class_names: in the order of the class index; none for a regression.

    Returns:
        Sentences; none where everything is defined and there are ten subjects of each class.
    """
    first = next(iter(scores.values()))
    if first.task_type == "classification":
        names = class_names or [f"class {label}" for label in range(first.score.shape[1])]
        said = [*_classes(first.units_per_class, names), *_one_class_alone(scores, names)]
    else:
        said = _values(scores)
    if not decisive(first):
        of = " of a class" if first.task_type == "classification" else ""
        said.append(
            f"With fewer than {ENOUGH} subjects{of} the data cannot decide whether a model is "
            f"better than chance, or than another."
        )
    return said


def _classes(counts: Sequence[int], names: Sequence[str]) -> list[str]:
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if absent:
        return [f"AUROC is not defined: no subject is {' or '.join(absent)}."]
    rare = [name for name, count in zip(names, counts, strict=True) if count < FEWEST_IN_CLASS]
    if rare:
        return [
            f"Intervals of AUROC and balanced accuracy are not defined: only one subject is "
            f"{' and one '.join(rare)}, and one does not show how much subjects differ."
        ]
    return []


def _one_class_alone(scores: Mapping[str, SubjectScores], names: Sequence[str]) -> list[str]:
    """Say which models find the same class most probable for everybody, and what follows."""
    first = next(iter(scores.values()))
    if not all(first.units_per_class):
        return []
    same: dict[str, list[str]] = {}
    for model, one in scores.items():
        decided = set(one.score.argmax(axis=1).tolist())
        if len(decided) == 1:
            same.setdefault(names[decided.pop()], []).append(model)
    return [
        f"For everybody {name} is the most probable class by {', '.join(models)}: so accuracy is "
        f"the share of that class, and balanced accuracy 1 / {len(names)}, whatever the model "
        f"knows. AUROC does not depend on such a threshold."
        for name, models in same.items()
    ]


def _values(scores: Mapping[str, SubjectScores]) -> list[str]:
    said = []
    first = next(iter(scores.values()))
    if len(first.target) < FEWEST:
        said.append(f"Intervals of fewer than {FEWEST} subjects are not defined.")
    if len(first.target) < FEWEST - 1:
        said.append("The Pearson r of two subjects is 1 or -1 whatever a model predicts.")
    if first.target.max() == first.target.min():
        said.append("Pearson r and R² are not defined: all subjects have the same value.")
    same = [name for name, one in scores.items() if constant(torch.from_numpy(one.score[:, 0]))]
    if same:
        said.append(
            f"Pearson r is not defined where all predictions are the same: {', '.join(same)}."
        )
    return said
