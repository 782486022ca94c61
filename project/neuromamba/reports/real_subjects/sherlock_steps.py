r"""Steps of the table ``sherlock`` that are no commands of their own.

    python -m neuromamba.reports.real_subjects.sherlock_steps prepare DATA OUT
    python -m neuromamba.reports.real_subjects.sherlock_steps \
        connectivity DATA -o connectivity.json
    python -m neuromamba.reports.real_subjects.sherlock_steps \
        decode DATA PREPARED RUN --seed 0 -o F.json

``prepare`` writes the store, its splits and the files of events; ``connectivity`` scores FC on the
folds of the table; ``decode`` scores the frozen
features of a pre-training on the subjects that its split leaves out.

Exit status: 0; 2 with one line for a user's mistake.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.cli import run_command
from neuromamba.common.json_text import read_json_record


def decoded(run: Path, data: Path, prepared: Path, seed: int) -> dict[str, Any]:
    """Scores of scenes, and of film or recall, of the subjects left out.

    Args:
        run: folder of the pre-training.
        data: folder of the recordings.
        prepared: of ``prepare_sherlock``.
        seed: of the untrained backbone and of shuffled labels.
    """
    from neuromamba.reports.real_subjects.frozen_samples import Samples, read_samples
    from neuromamba.reports.real_subjects.sherlock_data import load_sherlock
    from neuromamba.reports.real_subjects.sherlock_scores import POOLS, scene_rows, state_rows

    sherlock = load_sherlock(data)

    def samples(events: str, stride: str) -> Samples:
        task = ["--events", str(prepared / events), "--event_delay", "0"]
        task += ["--stride_between_seq", stride, "--eval_batch_size", "32"]
        return read_samples(run, seed, task, POOLS, volume=True)

    return {
        "scene": scene_rows(samples("scenes.tsv", "0.5"), sherlock),
        "state": state_rows(samples("segments.tsv", "1"), sherlock, seed),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    one = steps.add_parser("prepare")
    one.add_argument("data", type=Path)
    one.add_argument("out", type=Path)
    one = steps.add_parser("connectivity")
    one.add_argument("data", type=Path)
    one.add_argument("-o", "--output", type=Path, required=True)
    one = steps.add_parser("decode")
    for name in ("data", "prepared", "run"):
        one.add_argument(name, type=Path)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("-o", "--output", type=Path, required=True)
    return parser


def run(argv: Sequence[str]) -> None:
    """Do a step.

    Raises:
        UserInputError: files are missing or do not fit.
    """
    args = build_parser().parse_args(argv)
    if args.step == "prepare":
        from neuromamba.reports.real_subjects.sherlock_data import prepare_sherlock

        prepare_sherlock(args.data, args.out)
        return
    if args.step == "connectivity":
        from neuromamba.reports.real_subjects.sherlock_data import load_sherlock
        from neuromamba.reports.real_subjects.sherlock_scores import connectivity_rows

        auroc = connectivity_rows(load_sherlock(args.data), seed=0)
        write_text_atomically(args.output, json.dumps({"auroc": auroc}, indent=1) + "\n")
        return
    found = decoded(args.run, args.data, args.prepared, args.seed)
    metrics = read_json_record(args.run / "metrics.json", "Pre-train again.")
    found = {"dynamic_skill": metrics["val/dynamic_skill"], **found}
    write_text_atomically(args.output, json.dumps(found, indent=1) + "\n")
    print(f"scores: {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: run(sys.argv[1:] if argv is None else argv), "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
