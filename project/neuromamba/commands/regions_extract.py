"""ROI time series from NIfTI runs.

    neuromamba regions extract --input derivatives/fmriprep --atlas Schaefer400 \\
        --label_csv participants.csv --output Dataset/Data/mine.pickle

writes the file that tester.py reads (--dataset Own --data_file ... --target ...), its quality page
(.html) and what it was made from (.json) beside it. Runs that cannot be used are named and left
out. Exit status: 0; 1 if runs were left out; 2 with one line for a user's mistake.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from neuromamba.common.atomic_files import atomic_path, make_folder, write_text_atomically
from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.data.cohorts.registry import DATASETS as COHORTS
from neuromamba.data.ingest.layouts import LAYOUTS, find_runs
from neuromamba.data.ingest.sources import Source
from neuromamba.data.regions.atlases import (
    ATLASES,
    Atlas,
    find_atlas,
    read_atlas,
    spare_collections,
)
from neuromamba.data.regions.extraction import CONFOUNDS, Extracted, Extraction, extract
from neuromamba.data.regions.scan_files import some
from neuromamba.data.regions.subjects import read_subjects
from neuromamba.reports.extraction_page import write_page

OWN_PHENO = ("subjectId", "session", "task")  # what a run's name says


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba regions extract",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", required=True, metavar="DIR", help="folder of runs in MNI space")
    add("--output", required=True, metavar="FILE", help=".pickle or .npy")
    add("--atlas", required=True, help=f"{', '.join(ATLASES)}, or an image of labels")
    add("--data_dir", default="Dataset/Data", metavar="DIR", help="has atlases/, if any")
    add("--layout", default="auto", help=f"auto, {', '.join(LAYOUTS)} (default: auto)")
    add(
        "--space",
        default="",
        metavar="NAME",
        help="of several versions of a run, this one; native: the atlas is in the runs' own space "
        "(default: MNI)",
    )
    add("--label_csv", metavar="FILE", help="table of subjects; all its columns go to pheno")
    add(
        "--confounds",
        choices=list(CONFOUNDS),
        default="none",
        help="fMRIPrep's: basic is 6 motion, white matter, CSF and cosines; full has their "
        "derivatives and squares (default: %(default)s)",
    )
    add("--low_pass", type=float, metavar="HZ", help="default: no filter")
    add("--high_pass", type=float, metavar="HZ", help="default: no filter")
    add("--tr", type=float, metavar="SECONDS", help="in place of what the files say")
    add(
        "--min_dof",
        type=float,
        default=40.0,
        metavar="N",
        help="refuse runs that keep fewer degrees of freedom (default: %(default)g)",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; the exit status.

    Raises:
        UserInputError: anything the user can mend.
    """
    args = build_parser().parse_args(argv)
    output = Path(args.output)
    _check_output(output)
    extraction = Extraction(
        args.confounds, args.low_pass, args.high_pass, args.tr, args.min_dof, args.space
    )
    found = find_runs(args.input, args.layout, args.space)
    table = None if args.label_csv is None else _label_table(Path(args.label_csv), found.sources)
    atlas = _atlas(args.atlas, Path(args.data_dir))
    make_folder(output.parent, "--output")
    spare_collections()
    runs: list[Extracted] = []
    refused: list[str] = []
    for source in tqdm(found.sources, unit="run", disable=not sys.stderr.isatty()):
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
        raise UserInputError(f"--input: none of {len(found.sources)} runs can be used.")
    for note, count in Counter(note for one in runs for note in one.notes).items():
        print(f"note: {note} ({count} of {len(runs)} runs)", file=sys.stderr, flush=True)
    # The record first: by it the next call knows that the files are its own.
    record = _record(runs, refused, atlas, extraction)
    write_text_atomically(output.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    page = output.with_suffix(".html")
    write_page(page, runs, refused, atlas, extraction)
    write_scans(output, runs, table)
    print(f"{len(runs)} of {len(found.sources)} runs in {output}, quality page {page}")
    return 1 if refused else 0


def _check_output(output: Path) -> None:
    """Refuse a name that cannot be written, or that others have.

    Raises:
        UserInputError: it is such a name.
    """
    if output.suffix not in (".pickle", ".npy"):
        raise UserInputError(f"--output: got '{output}', expected a name in .pickle or .npy.")
    files = [output, output.with_suffix(".json"), output.with_suffix(".html")]
    for path in files:
        if path.is_dir():
            raise UserInputError(f"--output: '{path}' is a folder. Choose another name.")
    there = next((path for path in files if path.exists()), None)
    if there is None:
        return
    try:
        record = json.loads(files[1].read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not (isinstance(record, dict) and "atlas_hash" in record and "left_out" in record):
        raise UserInputError(
            f"--output: '{there}' exists and was not written by this command. Choose another name, "
            f"or remove it."
        )


def subject_name(name: str) -> str:
    """The form in which subjects of runs and of a table are compared (docs/data_format.md)."""
    return COHORTS["Own"].key(name)


def _label_table(path: Path, sources: Sequence[Source]) -> pd.DataFrame:
    """Of ``--label_csv``, indexed by ``subject_name``; refused before hours of work.

    Raises:
        UserInputError: a subject is not in it, or in it twice.
    """
    table = read_subjects(path, "--label_csv")
    written = table.index
    table.index = table.index.map(subject_name)
    twice = written[table.index.duplicated(keep=False)]
    if len(twice):
        raise UserInputError(
            f"--label_csv: '{path}' has the rows {some(twice)}, which are one subject. Keep one of "
            f"them."
        )
    own = [name for name in OWN_PHENO if name in table]
    if own:
        print(f"note: --label_csv: {', '.join(own)} is as the run's name says.", file=sys.stderr)
        table = table.drop(columns=own)
    unknown = {one.subject for one in sources if subject_name(one.subject) not in table.index}
    if unknown:
        raise UserInputError(
            f"--label_csv: '{path}' has no row of {some(sorted(unknown))}. Complete it; a row "
            f"without a label will do."
        )
    return table


def _atlas(name: str, data_dir: Path) -> Atlas:
    if name in ATLASES or not name.endswith((".nii", ".nii.gz")):
        return find_atlas(name, None, data_dir)
    if not Path(name).is_file():
        raise UserInputError(f"--atlas: '{name}' does not exist.")
    return read_atlas(Path(name))


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
    with atomic_path(output) as temporary, open(temporary, "wb") as stream:
        if output.suffix == ".npy":
            array = np.empty(len(scans), dtype=object)
            array[:] = scans
            np.save(stream, array, allow_pickle=True)
        else:
            pickle.dump(scans, stream)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: run(sys.argv[1:] if argv is None else argv), "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
