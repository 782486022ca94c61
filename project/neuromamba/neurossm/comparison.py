"""The model less each baseline, paired by split, with the corrected resampled t interval.

The bootstrap of ``holdouts`` draws test subjects of finished fits. This one treats splits as the
sample, and so covers the choice of training subjects and seeds, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromamba.data.regions.holdout import EXTERNAL
from neuromamba.evaluation.corrected_t import (
    FEWEST_SPLITS,
    corrected_interval,
    why_no_interval,
)
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.result_files import write_record
from neuromamba.neurossm.results import COMPARED, PARTS, FitResult, Results, task_type_of
from neuromamba.pages.tables import metric_label

COMPARISON = "comparison.json"


class Comparison(NamedTuple):
    """Differences over the splits of a part.

    Attributes:
        part: of ``PARTS``.
        splits: number of them.
        ratio: tested over fitted scans, the mean over splits.
        differences: baseline -> metric -> mean difference with its interval. Metrics are those of
            subjects, where some have several scans.
        reasons: sentences, why intervals are not defined.
    """

    part: str
    splits: int
    ratio: float
    differences: Mapping[str, Mapping[str, Interval]]
    reasons: tuple[str, ...] = ()


def compare_splits(results: Results) -> list[Comparison]:
    """Compare the first model with all others, in each part with two splits or more.

    Scans of another file are the same in all splits, for which the interval does not hold.
    """
    own, *others = results.values()
    found = []
    for part in (part for part in PARTS if part != EXTERNAL):
        of_part = [fit for fit in own if fit.part == part]
        if len(of_part) < 2 or not others:
            continue
        ratio = float(
            np.mean([fit.metrics["scans_tested"] / fit.metrics["scans_fitted"] for fit in of_part])
        )
        metrics = COMPARED[task_type_of(results)]
        values = {
            name: {metric: _differences(of_part, fits, metric) for metric in metrics}
            for name, fits in zip(list(results)[1:], others, strict=True)
        }
        differences = {
            name: {metric: corrected_interval(one, ratio) for metric, one in of.items()}
            for name, of in values.items()
        }
        reasons: dict[str, list[str]] = {}
        for name, of in values.items():
            for metric, one in of.items():
                if why := why_no_interval(one):
                    reasons.setdefault(why, []).append(f"{metric_label(metric)} less {name}")
        said = [f"Not defined, {why}: {', '.join(what)}." for why, what in reasons.items()]
        if len(of_part) < FEWEST_SPLITS:
            said = [f"Not defined: {why}." for why in reasons]
        found.append(Comparison(part, len(of_part), ratio, differences, tuple(said)))
    return found


def _differences(own: Sequence[FitResult], other: Sequence[FitResult], metric: str) -> list[float]:
    """The model's metric less the baseline's, of each split."""
    by_split = {(fit.seed, fit.split): fit for fit in other}
    pairs = [(fit, by_split[fit.seed, fit.split]) for fit in own]
    return [_value(fit, metric) - _value(same, metric) for fit, same in pairs]


def _value(fit: FitResult, metric: str) -> float:
    return fit.metrics.get(f"subject/{metric}", fit.metrics[metric])


def record(found: Sequence[Comparison]) -> dict[str, Any]:
    """Plain containers for ``comparison.json``."""
    return {
        one.part: {
            "splits": one.splits,
            "tested_over_fitted": one.ratio,
            "interval": "corrected resampled t (Nadeau and Bengio 2003)",
            "differences": {
                name: {metric: interval._asdict() for metric, interval in of.items()}
                for name, of in one.differences.items()
            },
            "not_defined": list(one.reasons),
        }
        for one in found
    }


def write_comparison(found: Sequence[Comparison], folder: Path) -> None:
    """Write ``comparison.json``."""
    write_record(record(found), folder / COMPARISON)


def lines(found: Sequence[Comparison], model: str) -> list[str]:
    """Lines for the end of a run."""
    said = []
    for one in found:
        where = one.part.replace("_", "-")
        metric = next(iter(next(iter(one.differences.values()))))
        said.append(
            f"{model} less the baselines over {one.splits} splits ({where}), "
            f"{metric_label(metric)}:"
        )
        said += [f"  {name:<24}{of[metric]}" for name, of in one.differences.items()]
        said += [f"  {reason}" for reason in one.reasons]
    return said
