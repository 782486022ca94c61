"""Scores of frozen features of people who see and retell a film, beside raw voxels.

Every function returns, for a row (a kind of features), one value a subject who was left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from neuromamba.evaluation.connectivity import connectivity, standardised
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.probe_rows import PRETRAINED, UNTRAINED
from neuromamba.evaluation.probes import linear_probe
from neuromamba.fmamba.raw_features import lag1_autocorrelation
from neuromamba.reports.real_subjects.frozen_samples import Samples
from neuromamba.reports.real_subjects.sherlock_data import (
    RECALL,
    SEGMENT,
    Sherlock,
    scene_frames,
    segment_series,
    segments,
    sherlock_splits,
)
from neuromamba.reports.real_subjects.subject_rows import interval_of_mean

PLACES = {
    "frozen, pre-trained, by place": (PRETRAINED, "places"),
    "frozen, untrained, by place": (UNTRAINED, "places"),
}
POOLED = {"frozen, pre-trained, mean over tokens": (PRETRAINED, "mean")}
POOLS = ("places", "mean")
RAW, SHUFFLED = "raw voxels", "frozen, pre-trained, by place, labels shuffled"
RAW_STANDARDISED = "raw voxels, standardised"
RAW_LEVEL = "raw voxels, standardised, cosine"
DEVIATION, AUTOCORRELATION = "temporal SD of voxels", "lag-1 autocorrelation of voxels"
Values = dict[str, dict[str, float]]  # row -> unit -> value


def standardised_scenes(patterns: np.ndarray) -> np.ndarray:
    """Each feature minus its mean, over its standard deviation, over a subject's scenes.

    Args:
        patterns: [subjects, scenes, D]. A constant feature becomes 0.
    """
    centred = patterns - patterns.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    moves = spread > 1e-7 * np.abs(patterns).mean(axis=1, keepdims=True)
    return np.where(moves, centred / np.where(moves, spread, 1), 0)


def identified(pattern: np.ndarray, template: np.ndarray, *, centre: bool = True) -> float:
    """Share of scenes whose pattern correlates best with the same scene of the template.

    Args:
        pattern, template: [scenes, D].
        centre: by Pearson's r, which takes no notice of a pattern's mean over its features; else by
            the cosine, which does.
    """
    if centre:
        pattern, template = (x - x.mean(axis=1, keepdims=True) for x in (pattern, template))
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (pattern, template))
    return float(((one @ other.T).argmax(axis=1) == np.arange(len(one))).mean())


def identify(patterns: np.ndarray, held_out: np.ndarray, *, centre: bool = True) -> list[float]:
    """Accuracy of each held-out subject against the mean of the others.

    Args:
        patterns: [subjects, scenes, D].
        held_out: bool [subjects].
        centre: as in ``identified``.
    """
    template = patterns[~held_out].mean(axis=0)
    return [identified(pattern, template, centre=centre) for pattern in patterns[held_out]]


def scene_rows(samples: Samples, sherlock: Sherlock) -> Values:
    """Which of 50 scenes a held-out subject sees, by the scenes of the other subjects."""
    subject = samples.subjects
    held = np.array([samples.held_out[subject == name].any() for name in sherlock.subjects])
    names = [name for name, out in zip(sherlock.subjects, held, strict=True) if out]

    def by_subject(x: np.ndarray) -> np.ndarray:
        # Classes are the scenes in their order, so sorting by target is the order of the film.
        found = []
        for name in sherlock.subjects:
            rows = np.flatnonzero(subject == name)
            found.append(x[rows[np.argsort(samples.target[rows])]])
        return np.stack(found).astype(np.float64)

    found = {
        name: identify(standardised_scenes(by_subject(samples.features[kind])), held)
        for name, kind in (PLACES | POOLED).items()
    }
    found[RAW] = identify(scene_patterns(sherlock), held)
    volume = standardised_scenes(by_subject(samples.volume))
    found[RAW_STANDARDISED] = identify(volume, held)
    found[RAW_LEVEL] = identify(volume, held, centre=False)
    return {name: dict(zip(names, values, strict=True)) for name, values in found.items()}


def scene_patterns(sherlock: Sherlock) -> np.ndarray:
    """Mean of each voxel over the frames of each scene, [subjects, scenes, N]."""
    frames = scene_frames(sherlock)
    return np.stack(
        [
            [sherlock.runs[name, "movie"][first:end].mean(axis=0) for first, end in frames]
            for name in sherlock.subjects
        ]
    ).astype(np.float64)


def state_rows(samples: Samples, sherlock: Sherlock, seed: int) -> dict[str, Values]:
    """Film or recall, of segments of 45 s of held-out subjects; metric -> rows.

    An L2 logistic regression of the other subjects' segments; its C is chosen in inner folds over
    these subjects.
    """
    state = _is_recall(samples)
    fitted, subject = ~samples.held_out, samples.subjects
    series = [segment_series(sherlock, name) for name in samples.names]
    tables = {name: samples.features[kind] for name, kind in (PLACES | POOLED).items()} | {
        RAW: np.stack([one.mean(axis=0) for one in series]),
        DEVIATION: np.stack([one.std(axis=0) for one in series]),
        AUTOCORRELATION: np.stack([lag1_autocorrelation(one) for one in series]),
    }
    labels = dict.fromkeys(tables, state)
    tables[SHUFFLED] = samples.features[PRETRAINED, "places"]
    labels[SHUFFLED] = np.random.default_rng(seed).permutation(state)
    found: dict[str, Values] = {"auroc": {}, "balanced_accuracy": {}}
    unit = np.unique(subject, return_inverse=True)[1]
    for name, x in tables.items():
        probe = linear_probe(
            x[fitted],
            labels[name][fitted],
            x[samples.held_out],
            classes=2,
            unit=unit[fitted],
            seed=seed,
        )
        score, true = probe.score[:, 1], state[samples.held_out]
        for who in np.unique(subject[samples.held_out]):
            own = subject[samples.held_out] == who
            values = {
                "auroc": roc_auc_score(true[own], score[own]),
                "balanced_accuracy": balanced_accuracy_score(true[own], score[own] > 0.5),
            }
            for metric, value in values.items():
                found[metric].setdefault(name, {})[str(who)] = float(value)
    return found


def _is_recall(samples: Samples) -> np.ndarray:
    """int [S]: 1 for recall; also where the classes are numbered otherwise."""
    return np.array([name.split("#")[0].endswith(f"task-{RECALL}") for name in samples.names], int)


def merged(parts: list[Values]) -> Values:
    """Rows of several seeds and folds: the mean over the seeds for each unit."""
    lists: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        for row, values in part.items():
            for unit, value in values.items():
                lists.setdefault(row, {}).setdefault(unit, []).append(value)
    return {
        row: {unit: float(np.mean(found)) for unit, found in sorted(units.items())}
        for row, units in lists.items()
    }


def interval(values: Mapping[str, float], less: Mapping[str, float] | None = None) -> Interval:
    """Mean over units, or the mean of paired differences; units are drawn."""
    return interval_of_mean(
        {unit: value - (0 if less is None else less[unit]) for unit, value in values.items()}
    )


def auroc_within_subjects(scores: Mapping[str, float]) -> dict[str, float]:
    """AUROC of the segments of each subject, recall against film.

    Args:
        scores: name of a segment, ``SUBJECT_task-TASK#NUMBER`` -> score.
    """
    found = {}
    for who in sorted({name.split("_")[0] for name in scores}):
        own = [name for name in scores if name.split("_")[0] == who]
        true = [name.split("#")[0].endswith(f"task-{RECALL}") for name in own]
        found[who] = float(roc_auc_score(true, [scores[name] for name in own]))
    return found


def connectivity_rows(sherlock: Sherlock, seed: int) -> dict[str, float]:
    """AUROC of film or recall by FC between patches of 3 x 3 x 3 voxels, of subjects left out.

    An L2 logistic regression, as in ``state_rows``, on the same four folds.
    """
    patch = np.unique(sherlock.voxel_ijk // 3, axis=0, return_inverse=True)[1].ravel()
    size = np.bincount(patch)
    rows, names = [], []
    for subject, task in sherlock.runs:
        for number, first in enumerate(segments(sherlock, task, subject), start=1):
            one = sherlock.runs[subject, task][first : first + SEGMENT]
            mean = np.stack([np.bincount(patch, frame) / size for frame in one])
            rows.append(connectivity(standardised(mean)))
            names.append(f"{subject}_task-{task}#{number}")
    x = np.stack(rows)
    who = np.array([name.split("_")[0] for name in names])
    recall = np.array([f"task-{RECALL}" in name for name in names], int)
    unit = np.unique(who, return_inverse=True)[1]
    found: dict[str, float] = {}
    for parts in sherlock_splits(sherlock.subjects).values():
        tested = np.isin(who, parts["test"])
        probe = linear_probe(
            x[~tested], recall[~tested], x[tested], classes=2, unit=unit[~tested], seed=seed
        )
        own = [name for name, out in zip(names, tested, strict=True) if out]
        found |= auroc_within_subjects(dict(zip(own, probe.score[:, 1].tolist(), strict=True)))
    return found
