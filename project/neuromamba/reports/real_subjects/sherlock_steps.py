r"""Steps of the table ``sherlock`` that are no commands of their own.

    python -m neuromamba.reports.real_subjects.sherlock_steps prepare DATA OUT
    python -m neuromamba.reports.real_subjects.sherlock_steps \
        connectivity DATA -o connectivity.json
    python -m neuromamba.reports.real_subjects.sherlock_steps \
        decode DATA PREPARED RUN --seed 0 -o F.json

``prepare`` writes the store, its splits and the files of events; ``connectivity`` scores FC on the
folds of the table; ``decode`` scores the frozen
features of a pre-training on the subjects that its split leaves out.

Exit status: 0; 2 if a flag or a file is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.json_text import read_json_record
from neuromamba.reports.real_subjects.step_commands import StepCommand, run_steps


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


def _prepare(args: argparse.Namespace) -> None:
    from neuromamba.reports.real_subjects.sherlock_data import prepare_sherlock

    prepare_sherlock(args.data, args.out)


def _connectivity(args: argparse.Namespace) -> dict[str, Any]:
    from neuromamba.reports.real_subjects.sherlock_data import load_sherlock
    from neuromamba.reports.real_subjects.sherlock_scores import connectivity_rows

    return {"auroc": connectivity_rows(load_sherlock(args.data), seed=0)}


def _decode(args: argparse.Namespace) -> dict[str, Any]:
    found = decoded(args.run, args.data, args.prepared, args.seed)
    metrics = read_json_record(args.run / "metrics.json", "Pre-train again.")
    return {"dynamic_skill": metrics["val/dynamic_skill"], **found}


STEPS = {
    "prepare": StepCommand(_prepare, ["data", "out"]),
    "connectivity": StepCommand(_connectivity, ["data"], finds="scores"),
    "decode": StepCommand(_decode, ["data", "prepared", "run"], seed=True, finds="scores"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_steps(__doc__, STEPS, argv)


if __name__ == "__main__":
    sys.exit(main())
