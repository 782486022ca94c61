"""Write a report of one or several finished runs: one HTML file that needs no network.

    neuromamba report output/project/run [output/project/other ...]

It writes report/report.html into the first run's folder (or into --output), and each figure as PNG
and PDF into figures/ beside it. The first run is shown in full: results with intervals beside
baselines fitted on exactly its subjects, ROC, precision and recall, confusion, calibration or
scatter, every test subject, curves, data, model, configuration. Other runs of the same task are
compared with it, paired where they were tested on the same subjects.

Exit status: 0; 2 if a flag or a file is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.errors import UserInputError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba report",
        description=__doc__,
        formatter_class=ExampleFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_DIR", help="folders that neuromamba train wrote")
    add("--output", metavar="DIR", help="default: report/ in the first run's folder")
    add(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fit the baselines; kept in the run folder once they are (default: yes)",
    )
    add(
        "--fc_atlas",
        metavar="FILE",
        help="image of labels in MNI space: regions of the FC baseline (default: cubes)",
    )
    add("--image_path", nargs="+", metavar="DIR", help="the store(s), if they have moved")
    return parser


def require_run_folder(path: Path) -> None:
    """Refuse what ``neuromamba train`` has not written, before torch is imported.

    Raises:
        UserInputError: there is no config.yaml.
    """
    if not (path / "config.yaml").is_file():
        raise UserInputError(
            f"{path}: no run folder, it has no config.yaml. Give the folder of a finished run of "
            f"neuromamba train."
        )


def run(argv: Sequence[str]) -> Path:
    """Write the report; returns its path.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    args = build_parser().parse_args(argv)
    for name in args.runs:
        require_run_folder(Path(name))
    # Imported here: torch and scikit-learn take seconds, and a wrong flag need not wait for them.
    from neuromamba.common.atomic_files import make_folder, write_text_atomically
    from neuromamba.fmamba.baselines import baselines_of_data
    from neuromamba.fmamba.run_folder import RunFolder
    from neuromamba.fmamba.untrained_baseline import untrained_baseline
    from neuromamba.pages.page import render
    from neuromamba.reports.run_report import run_report

    runs = [RunFolder(Path(name)) for name in args.runs]
    first = runs[0]
    output = Path(args.output) if args.output else first.path / "report"
    data = first.data(args.image_path)
    make_folder(output, "--output")
    atlas = Path(args.fc_atlas) if args.fc_atlas else None
    baselines = []
    if args.baselines and first.task is not None:
        baselines = baselines_of_data(data, first.path / "baselines", atlas=atlas)
        folder = first.path / "baselines" / "untrained"
        baselines += untrained_baseline(first.model_config, data, folder)
    page = output / "report.html"
    write_text_atomically(page, render(run_report(runs, baselines, data, output / "figures")))
    print(f"report: {page}", flush=True)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""

    def work() -> None:
        run(sys.argv[1:] if argv is None else argv)

    return run_command(work, "call again; baselines that were fitted are kept.")


if __name__ == "__main__":
    sys.exit(main())
