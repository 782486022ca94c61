"""ROI time series from NIfTI runs.

    python project/neurossm/roi.py extract --input derivatives/fmriprep --atlas Schaefer400 \\
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make `project` importable without PYTHONPATH
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd
from tqdm import tqdm

from project.module.command_line import ended
from project.module.config import UserInputError
from project.module.utils.data_preprocess_and_load.layouts import LAYOUTS, find_runs
from project.module.utils.data_preprocess_and_load.sources import Source
from project.module.utils.data_preprocess_and_load.whole_files import (
    make_folder,
    write_text_whole,
    written_whole,
)
from project.neurossm.Dataset.atlases import (
    ATLASES,
    Atlas,
    find_atlas,
    read_atlas,
    spare_collections,
)
from project.neurossm.Dataset.roi_extraction import CONFOUNDS, Extracted, Extraction, extract
from project.neurossm.Dataset.roi_page import write_page
from project.neurossm.Dataset.scan_files import some
from project.neurossm.Dataset.subjects import read_subjects


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="roi.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    own = commands.add_parser("extract", allow_abbrev=False, help="NIfTI + atlas -> time series")
    add = own.add_argument
    add("--input", required=True, metavar="DIR", help="folder of runs in MNI space")
    add("--output", required=True, metavar="FILE", help=".pickle or .npy")
    add("--atlas", required=True, help=f"{', '.join(ATLASES)}, or an image of labels")
    add("--data_dir", default="Dataset/Data", metavar="DIR", help="has atlases/, if any")
    add("--layout", default="auto", help=f"auto, {', '.join(LAYOUTS)} (default: auto)")
    add("--space", default="", metavar="NAME", help="of several versions of a run, this one")
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
    if output.suffix not in (".pickle", ".npy"):
        raise UserInputError(f"--output: got '{output}', expected a name in .pickle or .npy.")
    extraction = Extraction(args.confounds, args.low_pass, args.high_pass, args.tr, args.min_dof)
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
        except UserInputError as error:
            refused.append(f"{source.name}: {error}")
            print(f"left out: {refused[-1]}", file=sys.stderr, flush=True)
    if not runs:
        raise UserInputError(f"--input: none of {len(found.sources)} runs can be used.")
    write_scans(output, runs, table)
    record = _record(runs, refused, atlas, extraction)
    name = output.name.removesuffix(output.suffix)
    write_text_whole(output.with_name(name + ".json"), json.dumps(record, indent=1) + "\n")
    page = output.with_name(name + ".html")
    write_page(page, runs, refused, atlas, extraction)
    print(f"{len(runs)} of {len(found.sources)} runs in {output}, quality page {page}")
    return 1 if refused else 0


def _label_table(path: Path, sources: Sequence[Source]) -> pd.DataFrame:
    """Of ``--label_csv``, indexed by subjects without ``sub-``; refused before hours of work.

    Raises:
        UserInputError: a subject is not in it.
    """
    table = read_subjects(path, "--label_csv")
    table.index = table.index.str.removeprefix("sub-")
    unknown = {
        one.subject for one in sources if one.subject.removeprefix("sub-") not in table.index
    }
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
        pheno = {"subjectId": source.subject, "session": source.session, "task": source.task}
        if table is not None:
            pheno |= table.loc[source.subject.removeprefix("sub-")].to_dict()
        scans.append({"roiTimeseries": one.series, "pheno": pheno})
    with written_whole(output) as temporary, open(temporary, "wb") as stream:
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
                "regions_without_signal": [atlas.ids[i] for i in np.flatnonzero(one.coverage == 0)],
            }
            for one in runs
        ],
        "left_out": list(refused),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return ended(lambda: run(sys.argv[1:] if argv is None else argv), "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
