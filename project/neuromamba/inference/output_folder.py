"""The folder that predict, embed and explain write: one record per scan, and tables made of them.

A record is written when its scan is done, so that an interrupted call continues where it stopped:
``scans/<name>.json`` holds what was computed, with a key of the model, the options and the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from neuromamba.checkpoints.io import CheckpointContents
from neuromamba.common.atomic_files import atomic_path, make_folder, write_text_atomically
from neuromamba.common.csv_cells import CsvWriter
from neuromamba.common.errors import UserInputError, see
from neuromamba.common.files import refuse_other_content
from neuromamba.common.json_text import parse_json
from neuromamba.common.version import VERSION, code_version
from neuromamba.inference.contract import described
from neuromamba.inference.loading import checkpoint_sha256
from neuromamba.inference.many import Outcome
from neuromamba.inference.sources import ScanFile

RUN = "run.json"
SCANS = "scans"


class Describable(Protocol):
    """A model of either family, as far as records describe it."""

    @property
    def path(self) -> Path:
        """Its file or folder."""

    @property
    def contents(self) -> CheckpointContents:
        """Metadata."""

    @property
    def contract(self) -> Any:
        """What it expects of a scan."""


class OutputFolder:
    """Where a call writes.

    Args:
        path: the folder; made if absent.
        model: that is used.
        command: name of the command, and its options that change a result.
        options: name -> value.

    Raises:
        UserInputError: it cannot be written, or holds something else: the results of another model,
            command, version or options, a training run, files of others.
    """

    def __init__(
        self, path: Path, model: Describable, command: str, options: Mapping[str, Any]
    ) -> None:
        self.path, self.command, self.options = path, command, dict(options)
        self.model = {
            "path": str(model.path),
            "sha256": checkpoint_sha256(model.path),
            "kind": described(model.contents.metadata),
            "expects": dict(model.contract.describe()),
            "code_version": model.contents.metadata.get("code_version", ""),
        }
        # With the version, so that a call goes on only with what the same computations gave.
        facts = [self.model["sha256"], command, self.options, VERSION]
        self.key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self._refuse_another()
        make_folder(path / SCANS, "-o")

    def _refuse_another(self) -> None:
        known = self.path / RUN
        # A call that was killed leaves its records of scans, without run.json.
        refuse_other_content(self.path, (RUN, SCANS), "-o")
        if not known.is_file():
            return
        try:
            before = parse_json(known.read_text(encoding="utf-8"))["key"]
        except (ValueError, KeyError, TypeError):
            before = ""
        if before != self.key:
            raise UserInputError(
                f"-o: '{self.path}' holds the results of another model, command or version of "
                f"neuromamba, or of other options. Choose another folder, or remove that one. "
                f"{see('holds-results')}"
            )

    def _file(self, scan: ScanFile) -> Path:
        return self.path / SCANS / f"{scan.name}.json"

    def _scan_key(self, scan: ScanFile) -> str:
        try:
            status = scan.path.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "absent"
        text = f"{self.key} {scan.path.absolute()} {state}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def finished(self, scan: ScanFile) -> dict[str, Any] | None:
        """The record of a scan that an earlier call has answered; None if it is to be done."""
        try:
            record = parse_json(self._file(scan).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        fits = isinstance(record, dict) and record.get("key") == self._scan_key(scan)
        return record if fits and record.get("status") != "refused" else None

    def keep(self, outcome: Outcome[Any], result: Mapping[str, Any] | None) -> dict[str, Any]:
        """Write the record of a scan; returns it.

        Args:
            outcome: of the scan.
            result: what was computed, in plain containers.
        """
        scan = outcome.scan
        record = {
            "key": self._scan_key(scan),
            "scan": scan.name,
            "subject": scan.subject,
            "session": scan.session,
            "run": scan.run,
            "source": str(scan.path),
            "status": outcome.status,
            "reason": outcome.reason,
            "prepared": outcome.record,
            "result": result,
        }
        write_text_atomically(self._file(scan), json.dumps(record, indent=1) + "\n")
        return record

    def write_run(self, records: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Write ``run.json``: model, options, and what was done to each scan."""
        found = {
            "key": self.key,
            "command": self.command,
            "options": self.options,
            "model": self.model,
            "code_version": code_version(),
            **more,
            "scans": [
                {name: value for name, value in record.items() if name not in ("key", "result")}
                for record in records
            ],
        }
        write_text_atomically(self.path / RUN, json.dumps(found, indent=1) + "\n")

    def write_table(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a CSV file; None becomes an empty cell, 20.470000000000002 is written as 20.47."""
        with (
            atomic_path(self.path / name) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as stream,
        ):
            writer = CsvWriter(stream)
            writer.writerow(header)
            writer.writerows([_short(cell) for cell in row] for row in rows)


def _short(cell: Any) -> Any:
    """A number with as many digits as single precision has, in which models compute."""
    return float(f"{cell:.9g}") if isinstance(cell, float) else cell
