"""Score what simple models read from the frozen features of a backbone.

    neuromamba probe output/PROJECT/RUN --downstream_task sex --json probe.json

RUN is a run folder or checkpoint of neuromamba train. Linear and nearest-neighbour probes are
fitted on the features of several layers of the backbone, pooled in several ways, of the training
and validation subjects, and scored on the test subjects of the same split; beside them, on the same
subjects, an untrained backbone of the same configuration and features of the raw signal. A curve
shows the scores for few labelled subjects. Data, split and, after a fine-tuning, the labels are
those of the run unless flags say otherwise. docs/probes.md explains every row.

Exit status: 0; 2 if a flag or a file is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.fmamba.probe_flags import parse_probe, probe_request

if TYPE_CHECKING:
    from neuromamba.fmamba.probing import ProbeResult


def page_path(output: str | None, checkpoint: Path) -> Path:
    """The page: ``--output``, or ``probe.html`` in the run folder (beside a lone checkpoint)."""
    if output is not None:
        return Path(output)
    folder = checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "probe.html"


def _check_folder(flag: str, path: str | None, suffix: str) -> None:
    """Refuse, before anything is computed, a file that could not be written after it."""
    if path is None:
        return
    if not path.endswith(suffix):
        raise UserInputError(f"{flag}: got '{path}', expected a name that ends in {suffix}.")
    if Path(path).is_dir():
        raise UserInputError(f"{flag}: '{path}' is a folder, expected a file to write.")
    if not Path(path).resolve().parent.is_dir():
        raise UserInputError(f"{flag}: there is no folder '{Path(path).parent}' to write to.")


def run(argv: Sequence[str]) -> ProbeResult:
    """Probe, print and write; returns what was found.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    args, given = parse_probe(argv, __doc__)
    _check_folder("--json", args.json, ".json")
    _check_folder("--output", args.output, ".html")
    request = probe_request(args, given)
    # Imported here: torch and scikit-learn take seconds, and flags have been checked by now.
    from neuromamba.training.lightning import load_lightning

    load_lightning()
    from neuromamba.common.atomic_files import write_text_atomically
    from neuromamba.fmamba.probing import probe
    from neuromamba.reports.probe_page import result_lines, write_page

    found = probe(request)
    print("\n".join(result_lines(found)), flush=True)
    if args.json is not None:
        text = json.dumps([row.plain() for row in found.rows], indent=1)
        write_text_atomically(Path(args.json), text + "\n")
    page = page_path(args.output, request.checkpoint)
    write_page(found, page, str(args.run), " ".join(["neuromamba probe", *argv]))
    print(f"page: {page}", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""

    def work() -> None:
        run(sys.argv[1:] if argv is None else argv)

    return run_command(work, "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
