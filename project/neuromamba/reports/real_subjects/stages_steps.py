r"""Steps of the table ``stages`` that are no commands of their own.

    python -m neuromamba.reports.real_subjects.stages_steps divide SCANS OUT --seed 0
    python -m neuromamba.reports.real_subjects.stages_steps \
        identify SCANS PARTS --embeddings DIR ... -o F

``divide`` writes the series of people who were scanned twice, one file per scan, divides these
people into parts, and writes for each part the scans of everybody else: what a model is trained on
that embeds the part. ``identify`` finds the second scan of each person among all second scans, by
embeddings and by connectivity.

Shapes: P people, D features.

Exit status: 0; 2 if a flag or a file is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import read_json_record
from neuromamba.data.regions.scan_files import RawScan, ScanFile, read_scans
from neuromamba.reports.real_subjects.real_table import Row
from neuromamba.reports.real_subjects.step_commands import StepCommand, run_steps

PARTS = 4
OWN = "NeuroSSM, all pathways"
DIRECTIONS = ("first_to_second", "second_to_first")


def twice_scanned(scans: Sequence[RawScan]) -> dict[str, tuple[RawScan, RawScan]]:
    """Subject -> the scans of the two sessions, of people with exactly two.

    Raises:
        UserInputError: there are fewer than two such people.
    """
    by_subject: dict[str, list[RawScan]] = {}
    for scan in scans:
        by_subject.setdefault(scan.subject, []).append(scan)
    found = {}
    for name in sorted(by_subject):
        own = sorted(by_subject[name], key=lambda one: str(one.pheno.get("session", "")))
        if len({str(one.pheno.get("session", "")) for one in own}) == len(own) == 2:
            found[name] = (own[0], own[1])
    if len(found) < PARTS:
        raise UserInputError(
            f"SCANS: {len(found)} people have two sessions, expected {PARTS} or more."
        )
    return found


def divide(source: Path, out: Path, seed: int) -> None:
    """Write series, parts and the scans to train on; see the module."""
    from neuromamba.data.regions.scan_output import write_scan_file

    scans = read_scans(ScanFile(source, "SCANS"), None)
    twice = twice_scanned(scans)
    (out / "series").mkdir(parents=True, exist_ok=True)
    for name, pair in twice.items():
        for session, scan in enumerate(pair, start=1):
            values = np.asarray(scan.series, dtype=np.float32)
            np.save(out / "series" / f"{name}_ses-{session}.npy", values)
    names = np.array(sorted(twice))
    order = np.random.default_rng(seed).permutation(len(names))
    parts = {str(i + 1): names[np.sort(order[i::PARTS])].tolist() for i in range(PARTS)}
    write_text_atomically(out / "parts.json", json.dumps(parts, indent=1) + "\n")
    for part, left_out in parts.items():
        others = [
            {"roiTimeseries": scan.series, "pheno": dict(scan.pheno)}
            for scan in scans
            if scan.subject not in left_out
        ]
        write_scan_file(out / f"without_{part}.pickle", others)


def identified(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether each row of ``one`` correlates best with its own row of ``other``, bool [P].

    Args:
        one, other: [P, D].
    """
    rows = []
    for x in (one, other):
        centred = x - x.mean(axis=1, keepdims=True)
        rows.append(centred / np.linalg.norm(centred, axis=1, keepdims=True))
    return (rows[0] @ rows[1].T).argmax(axis=1) == np.arange(len(one))


def identify(source: Path, parts: Path, embeddings: Sequence[Path]) -> dict[str, Any]:
    """Who is identified, by each kind of features and in both directions.

    Args:
        source: file of scans.
        parts: folder of ``divide``.
        embeddings: folders of ``neuromamba embed``, of the model that was trained without each
            part, in their order.

    Raises:
        UserInputError: files do not fit.
    """
    from neuromamba.evaluation.connectivity import connectivity, partial_correlation, standardised

    twice = twice_scanned(read_scans(ScanFile(source, "SCANS"), None))
    names = sorted(twice)
    divided = read_json_record(parts / "parts.json", "Divide the scans again.")
    found: dict[str, dict[str, list[bool]]] = {}
    for part, folder in zip(divided, embeddings, strict=True):
        tested = np.isin(names, divided[part])
        for kind, (one, other) in _embedded(folder, names).items():
            for direction, pair in zip(DIRECTIONS, ((one, other), (other, one)), strict=True):
                row = found.setdefault(kind, {}).setdefault(direction, [False] * len(names))
                hits = identified(*pair)
                for i in np.flatnonzero(tested):
                    row[i] = bool(hits[i])
    series = [
        [standardised(np.asarray(scan.series, dtype=np.float64).T) for scan in pair]
        for pair in (twice[name] for name in names)
    ]
    kinds = {"FC, correlation": connectivity, "FC, partial correlation": partial_correlation}
    seconds = {}
    for kind, measure in kinds.items():
        began = time.monotonic()
        one, other = (np.stack([measure(pair[i]) for pair in series]) for i in (0, 1))
        found[kind] = {
            direction: identified(*pair).tolist()
            for direction, pair in zip(DIRECTIONS, ((one, other), (other, one)), strict=True)
        }
        seconds[kind] = time.monotonic() - began
    return {
        "subjects": names,
        "parts": list(divided.values()),
        "identified": found,
        "seconds": seconds,
    }


def _embedded(folder: Path, names: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kind of embedding -> [P, D] of the first and of the second session."""
    import pandas as pd

    table = pd.read_parquet(folder / "embeddings.parquet")
    columns = [name for name in table.columns if name[0] == "f" and name[1:].isdigit()]
    layers = list(dict.fromkeys(table["layer"]))
    found: dict[str, list[list[np.ndarray]]] = {}
    for session in (1, 2):
        for kind in (OWN, *(f"NeuroSSM, {layer}" for layer in layers)):
            found.setdefault(kind, []).append([])
        for name in names:
            own = table[table["scan"].map(lambda scan, n=f"{name}_ses-{session}": n in str(scan))]
            if len(own) != len(layers):
                raise UserInputError(
                    f"--embeddings: '{folder}' has {len(own)} rows of '{name}', session {session}, "
                    f"expected {len(layers)}. Embed the series again."
                )
            rows = {
                row["layer"]: row[columns].dropna().to_numpy(float) for _, row in own.iterrows()
            }
            for layer, values in rows.items():
                found[f"NeuroSSM, {layer}"][session - 1].append(values)
            found[OWN][session - 1].append(np.concatenate([rows[layer] for layer in layers]))
    return {kind: (np.stack(one), np.stack(other)) for kind, (one, other) in found.items()}


def rows_of(found: Mapping[str, Any], seconds_a_fit: float) -> list[Row]:
    """Rows of the table, with exact intervals.

    Args:
        found: of ``identify``.
        seconds_a_fit: of a model whose embeddings were used, the median.
    """
    from neuromamba.evaluation.exact_intervals import proportion_bounds
    from neuromamba.evaluation.intervals import CONFIDENCE, Interval
    from neuromamba.reports.real_subjects.subject_rows import interval_of_mean

    rows = []
    own = found["identified"][OWN][DIRECTIONS[0]]
    for model, by_direction in found["identified"].items():
        values, counts = {}, []
        for direction in DIRECTIONS:
            hits = by_direction[direction]
            bounds = proportion_bounds(sum(hits), len(hits), CONFIDENCE)
            values[direction] = Interval(sum(hits) / len(hits), *bounds)
            counts.append(f"{sum(hits)}")
        less = None
        if model != OWN:
            pairs = zip(found["subjects"], own, by_direction[DIRECTIONS[0]], strict=True)
            less = interval_of_mean({name: float(a) - float(b) for name, a, b in pairs})
        note = f"{' and '.join(counts)} of {len(found['subjects'])}"
        seconds = found["seconds"].get(model, seconds_a_fit)
        rows.append(Row(model, values, less, seconds, note))
    return rows


def _embeddings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--embeddings", nargs="+", type=Path, required=True)


STEPS = {
    "divide": StepCommand(
        lambda args: divide(args.scans, args.out, args.seed), ["scans", "out"], seed=True
    ),
    "identify": StepCommand(
        lambda args: identify(args.scans, args.parts, args.embeddings),
        ["scans", "parts"],
        finds="identified",
        more=_embeddings,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_steps(__doc__, STEPS, argv)


if __name__ == "__main__":
    sys.exit(main())
