"""Pre-train, fine-tune and test FMamba, the NeuroMamba backbone.

    neuromamba train --dataset_name Dummy --downstream_task sex --img_size 24 24 24 8 \\
        --embed_dim 32 --depth 2 --accelerator cpu --max_epochs 2

Without --pretraining it trains for --downstream_task, from scratch or from --load_model_path. With
--dry_run it checks everything, prints the plan and stops. docs/fault_tolerance.md explains the exit
statuses.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence


def run(argv: Sequence[str]) -> dict[str, float]:
    """Do what the flags say.

    Returns:
        The metrics written to ``metrics.json``; {} for a dry run.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    # Read when torch is imported. Of a lost rank it would print a page of C++ frames, as a warning;
    # its errors are shown.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Imported here: every loading process imports this file, and needs none of it.
    from neuromamba.fmamba.command_line import configured_run
    from neuromamba.fmamba.flags import build_parser
    from neuromamba.fmamba.remarks import remarks
    from neuromamba.training.job import is_first_rank

    args, config = configured_run(build_parser(description=__doc__), argv)
    for remark in remarks(config) if is_first_rank() else ():
        print(f"warning: {remark}", flush=True)
    if args.dry_run:
        from neuromamba.fmamba.dry_run import describe_plan, refuse_absent_checkpoints
        from neuromamba.fmamba.planned import PlannedRun

        print(describe_plan(PlannedRun(config)), flush=True)
        refuse_absent_checkpoints(config)
        return {}
    # Torch and Lightning take seconds: flags have been checked by now.
    from neuromamba.training.lightning import load_lightning

    load_lightning()
    from neuromamba.fmamba.run import Run
    from neuromamba.layers.ssd_native.build import build_for_run
    from neuromamba.training.launch import find_launcher

    planned = Run(config)
    logging.basicConfig(format="%(message)s")
    first = find_launcher().rank == 0
    logging.getLogger("neuromamba").setLevel(logging.INFO if first else logging.WARNING)
    planned.allocator.apply()
    report = print if first else lambda line: None
    build_for_run(planned.hardware.accelerator, config.flags["ssd_backend"], report)
    metrics = planned.execute()
    if planned.evaluated is None:
        return metrics
    # Imported here: scipy and scikit-learn take seconds to load, and training needs neither.
    from neuromamba.evaluation.result_files import write_metrics
    from neuromamba.fmamba.evaluation import evaluate_run
    from neuromamba.fmamba.run_folder import RunFolder

    run_dir, data = planned.evaluated
    found = evaluate_run(RunFolder(run_dir), data, args.confounds, args.adjust_thresh)
    metrics |= found.flat()
    write_metrics(metrics, run_dir / "metrics.json")
    print("\n".join(found.lines()), flush=True)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 on success, 2 if a flag or a file is wrong, 130 after Ctrl-C.

    ``docs/fault_tolerance.md`` lists all exit statuses.
    """
    # Imported here: every loading process imports this file, and needs none of it.
    from neuromamba.training.stopping import run_training

    words = sys.argv[1:] if argv is None else argv
    return run_training(lambda: run(words))


if __name__ == "__main__":
    sys.exit(main())
