"""Evaluate a finished run from its predictions, and from the tables of its stores for confounds.

It can be done again at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.confounds import confound_report
from neuromamba.evaluation.result_files import EVALUATION, SUBJECTS, write_record, write_rows
from neuromamba.evaluation.summary import (
    Evaluation,
    evaluate_scores,
    subject_header,
    subject_rows,
)
from neuromamba.fmamba.run_folder import RunFolder


def evaluate_run(
    run: RunFolder,
    data: RunData,
    confounds: Sequence[str] = (),
    adjust_threshold: bool = False,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a run and write ``evaluation.json`` and ``subjects.csv``.

    Args:
        run: a finished one, of a downstream task.
        data: of the run.
        confounds: columns of the store's tables.
        adjust_threshold: choose the threshold on the validation subjects.
        seed: of the bootstrap.

    Raises:
        UserInputError: no predictions; no validation subjects of both classes to choose a
            threshold on; a confound that no table has.
    """
    test = run.scores("test")
    validation = run.scores("val") if run.has_scores("val") else None
    report = None
    if confounds:
        fitted = data.named_targets("train", "val")
        report = confound_report(fitted, test, data.confounds(confounds), seed)
    found = evaluate_scores(
        test,
        validation=validation,
        adjust_threshold=adjust_threshold,
        confounds=report,
        seed=seed,
    )
    parts = {"test": test} if validation is None else {"val": validation, "test": test}
    unit = "" if data.task is None else data.task.unit
    rows = [
        row for part, one in parts.items() for row in subject_rows(part, one, found.threshold, unit)
    ]
    write_rows(subject_header(test, unit), rows, run.path / SUBJECTS)
    write_record(found.record(seed), run.path / EVALUATION)
    return found
