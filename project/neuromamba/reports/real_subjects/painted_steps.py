r"""Steps of the table ``painted`` that are no commands of their own.

    python -m neuromamba.reports.real_subjects.painted_steps splits STORE --seed 0
    python -m neuromamba.reports.real_subjects.painted_steps \
        scores RUN --series FILE --labels NAME -o F.json

``splits`` writes two splits of a store: each subject is tested in one of them, and sites and
diagnoses are divided evenly. ``scores`` fits linear models on the training and validation subjects
of a pre-training's split, and scores its test subjects: its frozen features, an untrained
backbone's, FC of the series that were painted, and the site alone.

Exit status: 0; 2 if a flag or a file is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.csv_cells import csv_records
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import read_json_record
from neuromamba.common.text import some_of
from neuromamba.reports.real_subjects.step_commands import StepCommand, run_steps

STRATA = ("site", "diagnosis")
_VALIDATED = 10  # one in ten of the subjects that are not tested
POOLS = ("mean_sd", "places")


def read_table(store: Path) -> dict[str, dict[str, str]]:
    """Subject -> its row of the store's table."""
    path = store / "metadata" / "participants.tsv"
    with open(path, newline="", encoding="utf-8") as stream:
        return {row["participant_id"]: row for row in csv_records(stream, "\t")}


def two_folds(table: Mapping[str, Mapping[str, str]], seed: int) -> list[dict[str, list[str]]]:
    """Two splits that exchange their subjects; every stratum is divided evenly, up to one."""
    rng = np.random.default_rng(seed)
    names = sorted(table)
    rng.shuffle(names)
    ordered = sorted(names, key=lambda name: [table[name].get(column, "") for column in STRATA])
    halves = [ordered[0::2], ordered[1::2]]
    found = []
    for tested, others in (halves, halves[::-1]):
        val = others[_VALIDATED // 2 :: _VALIDATED]
        train = [name for name in others if name not in val]
        found.append({"train": train, "val": val, "test": tested})
    return found


def write_splits(store: Path, seed: int) -> None:
    """Write both splits into a store."""
    from neuromamba.reports.real_subjects.sherlock_data import write_split

    for number, parts in enumerate(two_folds(read_table(store), seed), start=1):
        write_split(store, number, parts)


def connectivity_of(series: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Fisher z of the correlations of regions over all frames, the upper triangle.

    Args:
        series: file of scans.
        names: subject in the file -> key of the result.
    """
    from neuromamba.data.regions.scan_files import ScanFile, read_scans
    from neuromamba.evaluation.connectivity import connectivity, standardised

    found = {}
    for scan in read_scans(ScanFile(series, "--series"), None):
        if scan.subject in names:
            z = standardised(np.asarray(scan.series, dtype=np.float64).T)
            found[names[scan.subject]] = connectivity(z)
    missing = [name for name in names if names[name] not in found]
    if missing:
        raise UserInputError(f"--series: '{series}' lacks the scans of {some_of(missing, 5)}.")
    return found


def scored(run: Path, series: Path, labels: Sequence[str], seed: int) -> dict[str, Any]:
    """Scores of the test subjects for each label; see the module.

    Raises:
        UserInputError: a label has not two values, or files do not fit.
    """
    from neuromamba.evaluation.probe_rows import PRETRAINED, UNTRAINED
    from neuromamba.evaluation.probes import linear_probe
    from neuromamba.reports.real_subjects.frozen_samples import read_samples

    config = read_json_record(run / "metrics.json", "Pre-train again.")
    store = store_of(run)
    table = read_table(store)
    path = str(store / "metadata" / "participants.tsv")
    task = ["--label_csv", path, "--target_column", labels[0]]
    task += ["--downstream_task_type", "classification"]  # numbers may be codes of classes
    samples = read_samples(run, seed, task, POOLS)
    names = samples.subjects
    fc = connectivity_of(series, {table[name]["source_subject"]: name for name in names})
    sites = sorted({table[name]["site"] for name in names})
    shown = {PRETRAINED: "pre-trained", UNTRAINED: "untrained"}
    pools = {"mean_sd": "mean and SD over time", "places": "by place"}
    tables = {
        f"FMamba, {shown[model]}, frozen, {pools[pool]}": x
        for (model, pool), x in samples.features.items()
    }
    tables["FC of the series"] = np.stack([fc[name] for name in names])
    tables["site alone"] = np.array([[table[n]["site"] == s for s in sites] for n in names], float)
    fitted, tested = ~samples.held_out, samples.held_out
    found: dict[str, Any] = {}
    for label in labels:
        values = [table[name].get(label, "") for name in names]
        kinds = sorted(set(values))
        if len(kinds) != 2:
            raise UserInputError(
                f"--labels: {label} has the values {some_of(kinds)}, expected two."
            )
        y = np.array([kinds.index(value) for value in values])
        rows = {}
        for name, x in tables.items():
            probe = linear_probe(
                x[fitted], y[fitted], x[tested], classes=2, unit=np.arange(fitted.sum()), seed=seed
            )
            rows[name] = dict(zip(names[tested].tolist(), probe.score[:, 1].tolist(), strict=True))
        truth = dict(zip(names[tested].tolist(), y[tested].tolist(), strict=True))
        found[label] = {"positive": kinds[1], "truth": truth, "scores": rows}
    return {"dynamic_skill": config["val/dynamic_skill"], "labels": found}


def store_of(run: Path) -> Path:
    """The store that a run was trained on."""
    from neuromamba.config.serialise import read_yaml

    (path,) = read_yaml(run / "config.yaml", "RUN")["image_path"]
    return Path(path)


def _labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", required=True)


STEPS = {
    "splits": StepCommand(lambda args: write_splits(args.store, args.seed), ["store"], seed=True),
    "scores": StepCommand(
        lambda args: scored(args.run, args.series, args.labels, args.seed),
        ["run"],
        seed=True,
        finds="scores",
        more=_labels,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_steps(__doc__, STEPS, argv)


if __name__ == "__main__":
    sys.exit(main())
