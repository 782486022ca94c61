"""``logs/metrics.csv``, which a resumed run continues, whenever the one before was killed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.csv_cells import CsvWriter, csv_records, csv_rows
from neuromamba.evaluation.result_files import under_current_names

FILE = "metrics.csv"
Row = dict[str, Any]


class _Writer(ExperimentWriter):
    """Lightning's, but a new column does not put the rows before it at risk."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        write_rows(path, read_rows(path), fieldnames)

    def _check_log_dir_exists(self) -> None:
        """Continue with the rows of an earlier run, if there are any (see ``curve_logger``)."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as stream:
                self.metrics_keys = next(csv_rows(stream), [])


class CurveLogger(CSVLogger):
    """Lightning's logger with the writer above."""

    @property
    def experiment(self) -> Any:
        """The writer; only the first rank writes."""
        if self._experiment is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return super().experiment


def curve_logger(run_dir: Path, taken: Mapping[str, Any] | None = None) -> CSVLogger:
    """The logger of a run.

    Args:
        run_dir: of the run.
        taken: of a resumed run: the steps it took before, ``global_step``, and what its checkpoint
            says about its curves (``fault_tolerance.RUN_KEY``). Later rows are dropped, because
            they are written again.
    """
    path = run_dir / "logs" / FILE
    if rank_zero_only.rank == 0 and path.is_file():  # type: ignore[attr-defined]
        rows = [] if taken is None else kept_rows(read_rows(path), taken)
        if rows:
            write_rows(path, rows, sorted(set().union(*rows)))
        else:
            path.unlink()
    return CurveLogger(save_dir=run_dir, name="", version="logs")


def kept_rows(rows: Iterable[Row], taken: Mapping[str, Any]) -> list[Row]:
    """Rows of the steps before a checkpoint.

    A validation that comes again is left out. The row of the last step was perhaps not written any
    more; the checkpoint holds it.
    """
    steps, due = taken["global_step"], taken.get("validation_due", False)
    kept = []
    for row in rows:
        step, validation = int(row["step"]), any(name.startswith("val/") for name in row)
        if step < steps and not (due and validation and step == steps - 1):
            kept.append(row)
    last = under_current_names(taken.get("row") or {})
    if last and not any(int(row["step"]) == last["step"] and set(last) <= set(row) for row in kept):
        kept.append(last)
    return kept


def read_rows(path: Path) -> list[Row]:
    """Read rows without their empty cells, numbers as text; an incomplete last line is left out."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [
        under_current_names({name: value for name, value in row.items() if value})
        for row in csv_records(whole.splitlines())
        if row.get("step")
    ]


def write_rows(path: Path, rows: Iterable[Row], columns: list[str]) -> None:
    """Write the file whole or not at all."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        CsvWriter(stream, lineterminator="\r\n").write_records(columns, rows)
