"""Time series of regions of every run in a folder, as the file that NeuroSSM reads."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.text import some_of
from neuromamba.data.cohorts.registry import DATASETS as COHORTS
from neuromamba.data.ingest.sources import Source
from neuromamba.data.regions.atlases import Atlas, spare_collections
from neuromamba.data.regions.extraction import Extracted, Extraction, extract
from neuromamba.data.regions.scan_output import write_scan_file
from neuromamba.data.regions.subjects import read_subjects

OWN_PHENO = ("subjectId", "session", "task")  # what a run's name says


def subject_name(name: str) -> str:
    """The form in which subjects of runs and of a table are compared (docs/data_format.md)."""
    return COHORTS["Own"].key(name)


def label_table(path: Path, sources: Sequence[Source]) -> pd.DataFrame:
    """Read the table of ``--label_csv``, indexed by ``subject_name``; refused before hours of work.

    Raises:
        UserInputError: a subject is not in it, or in it twice.
    """
    table = read_subjects(path, "--label_csv")
    written = table.index
    table.index = table.index.map(subject_name)
    twice = written[table.index.duplicated(keep=False)]
    if len(twice):
        raise UserInputError(
            f"--label_csv: '{path}' has the rows {some_of(twice)}, which are one subject. Keep one "
            f"of them."
        )
    own = [name for name in OWN_PHENO if name in table]
    if own:
        print(f"note: --label_csv: {', '.join(own)} is as the run's name says.", file=sys.stderr)
        table = table.drop(columns=own)
    unknown = {one.subject for one in sources if subject_name(one.subject) not in table.index}
    if unknown:
        raise UserInputError(
            f"--label_csv: '{path}' has no row of {some_of(sorted(unknown))}. Complete it; a row "
            f"without a label will do."
        )
    return table


def write_scans(output: Path, runs: Sequence[Extracted], table: pd.DataFrame | None) -> None:
    """The list of scans that tester.py reads."""
    scans: list[dict[str, Any]] = []
    for one in runs:
        source = one.source
        said = (source.subject, source.session, source.task)
        pheno = dict(zip(OWN_PHENO, said, strict=True))
        if table is not None:
            pheno |= table.loc[subject_name(source.subject)].to_dict()
        scans.append({"roiTimeseries": one.series, "pheno": pheno})
    write_scan_file(output, scans)


class ExtractedFolder(NamedTuple):
    """Everything extracted from a folder of runs.

    Attributes:
        runs: those that can be used.
        refused: why the others cannot, a line each.
        atlas, extraction: by which.
        table: labels of the subjects, if any.
    """

    runs: list[Extracted]
    refused: list[str]
    atlas: Atlas
    extraction: Extraction
    table: pd.DataFrame | None


def extract_folder(
    sources: Sequence[Source], atlas: Atlas, extraction: Extraction, table: pd.DataFrame | None
) -> ExtractedFolder:
    """Extract the series of all runs; says on stderr which cannot be used.

    Raises:
        UserInputError: none can be used.
    """
    spare_collections()
    runs: list[Extracted] = []
    refused: list[str] = []
    for source in tqdm(sources, unit="run", disable=not sys.stderr.isatty()):
        try:
            if source.error:
                raise UserInputError(source.error)
            runs.append(extract(source, atlas, extraction))
            continue
        except UserInputError as error:
            refused.append(f"{source.name}: {error}")
        except Exception as error:  # one odd file must not end hours of work
            refused.append(f"{source.name}: unexpected {type(error).__name__}: {error}")
        print(f"left out: {refused[-1]}", file=sys.stderr, flush=True)
    if not runs:
        raise UserInputError(f"--input: none of {len(sources)} runs can be used.")
    for note, count in Counter(note for one in runs for note in one.notes).items():
        print(f"note: {note} ({count} of {len(runs)} runs)", file=sys.stderr, flush=True)
    return ExtractedFolder(runs, refused, atlas, extraction, table)


def write_record(output: Path, found: ExtractedFolder) -> None:
    """Write beside the output what was done; the next call recognises its own files by it."""
    record = _record(found.runs, found.refused, found.atlas, found.extraction)
    write_text_atomically(output.with_suffix(".json"), json.dumps(record, indent=1) + "\n")


def _record(
    runs: Sequence[Extracted], refused: Sequence[str], atlas: Atlas, extraction: Extraction
) -> dict[str, Any]:
    return {
        "atlas": atlas.name,
        "atlas_hash": atlas.hash,
        "region_ids": list(atlas.ids),
        "regions": list(atlas.regions),
        "confounds": extraction.confounds,
        "low_pass": extraction.low_pass,
        "high_pass": extraction.high_pass,
        "min_dof": extraction.min_dof,
        "runs": [
            {
                "name": one.source.name,
                "subject": one.source.subject,
                "frames": one.series.shape[1],
                "tr": one.tr if np.isfinite(one.tr) else None,
                "confounds": one.confounds,
                "residual_dof": round(one.dof, 1),
                "notes": list(one.notes),
                "regions_without_signal": [atlas.ids[i] for i in np.flatnonzero(one.coverage == 0)],
            }
            for one in runs
        ],
        "left_out": list(refused),
    }
