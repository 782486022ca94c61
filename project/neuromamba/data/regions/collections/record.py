"""What an import prints, and the record of it beside the file of scans."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.text import number, some_of
from neuromamba.common.version import code_version
from neuromamba.data.cohorts.suspicious import probable_codes
from neuromamba.data.ingest.nifti import file_sha256
from neuromamba.data.regions.collections.columns import counted
from neuromamba.data.regions.collections.importing import (
    OWN_KEYS,
    Imported,
    rates_by_site,
    sites_of,
)

_SOME = 5
_CROP = 100  # frames of a training crop that most public scans have


def write_record(output: Path, found: Imported) -> None:
    """Write ``<output>.json``; the next call knows its own files by it."""
    text = json.dumps(record_of(found), indent=1) + "\n"
    write_text_atomically(output.with_suffix(".json"), text)


def record_of(found: Imported) -> dict[str, Any]:
    """Sources with their hashes, what was done, and what was left out; plain containers."""
    collection, labels = found.collection, found.labels
    hashes = {path: file_sha256(path) for path in dict.fromkeys(s.found.path for s in found.scans)}
    constant = {
        scan.found.name: [found.regions[i] for i in np.flatnonzero(scan.constant)]
        for scan in found.scans
    }
    return {
        "command": "neuromamba regions import",
        "version": code_version(),
        "source": str(found.options.source),
        "format": collection.format,
        "cohort": labels.cohort.name,
        "atlas": collection.atlas or None,
        "atlas_hash": None,
        "regions": list(found.regions) if found.named else None,
        # How the collection was cleaned is not known here; see neuromamba.neurossm.model_file.
        "confounds": None,
        "low_pass": None,
        "high_pass": None,
        "constant_regions": {
            "choice": found.options.constant_regions,
            "share": found.options.constant_share,
            "dropped": dict(found.dropped_regions),
        },
        "columns": dict(found.roles),
        "labels": {path.name: file_sha256(path) for path in labels.tables},
        "missing": missing_of(found),
        "tr_source": found.rates.source,
        "tr_by_site": rates_by_site(found.pheno),
        "runs": [
            {
                "name": scan.found.name,
                "subject": pheno["subjectId"],
                "session": pheno["session"],
                "run": pheno["run"],
                "frames": scan.series.shape[1],
                "tr": pheno["tr"],
                "site": pheno.get("site", ""),
                "source": scan.found.source,
                "sha256": hashes[scan.found.path],
                "regions_without_signal": constant[scan.found.name],
            }
            for scan, pheno in zip(found.scans, found.pheno, strict=True)
        ],
        "duplicates": [
            {
                "kept": one.kept,
                "copy": one.dropped,
                "dropped": found.options.drop_duplicates,
                "exact": one.exact,
                "same_subject": one.same_subject,
                "columns_that_differ": list(one.differ),
            }
            for one in found.duplicates
        ],
        "left_out": dict(found.left_out),
        "rows_without_scan": list(labels.without_scan),
        "passed_over": {one.name: one.why for one in collection.passed_over},
        "tables_not_used": [str(path) for path in labels.unused],
        "notes": list(found.notes),
    }


def missing_of(found: Imported) -> dict[str, int]:
    """Column -> number of the written scans that have no value in it."""
    counts = {
        name: sum(not pheno.get(name) for pheno in found.pheno)
        for name in found.labels.columns
        if name not in OWN_KEYS
    }
    return {name: count for name, count in counts.items() if count}


def summary_of(found: Imported, output: Path) -> list[str]:
    """What a user should see, a line each."""
    scans, pheno, labels = found.scans, found.pheno, found.labels
    frames = [scan.series.shape[1] for scan in scans]
    subjects = len({one["subjectId"] for one in pheno})
    hint = f"all in {output.with_suffix('.json').name}"
    atlas = f" of {found.collection.atlas}" if found.collection.atlas else ""
    lines = [
        f"{found.options.source}: format {found.collection.format}, cohort {labels.cohort.name}",
        f"{len(scans)} scans of {subjects} subjects, {len(found.regions)} regions{atlas}, "
        f"{some_of(sorted({min(frames), max(frames)})).replace(', ', ' to ')} frames",
    ]
    if "site" in found.roles:
        sites = sites_of(pheno)
        count = len(set(sites) - {""})
        lines.append(f"{count} sites ({found.roles['site']}): {counted(sites)}")
    lines.append(f"TR ({found.rates.source}): {_rates(pheno)}")
    if labels.tables:
        names = ", ".join(path.name for path in labels.tables)
        lines.append(f"labels: {names}, columns {some_of(labels.columns, 12, hint)}")
        same = ", ".join(f"{role} is {column}" for role, column in found.roles.items())
        added = [task for task in labels.cohort.targets if task in pheno[0]]
        lines.append(
            f"  under common names: {same or 'none'}"
            + (f"; targets: {', '.join(added)}" if added else "")
        )
        if missing := missing_of(found):
            columns = some_of((f"{name} {count}" for name, count in missing.items()), 8, hint)
            lines.append(f"  without a value: {columns} (of {len(scans)} scans)")
    else:
        lines.append("labels: none found; --labels FILE names a table of the subjects")
    lines += [f"note: {note}" for note in (*found.notes, *_codes(found))]
    lines += _constant(found, hint)
    lines += _listed(found, hint)
    return lines


def next_command(found: Imported, output: Path) -> str:
    """The command that trains on the file."""
    crop = min(_CROP, *(scan.series.shape[1] for scan in found.scans))
    target = "diagnosis" if "diagnosis" in found.pheno[0] else "COLUMN"
    return (
        f"neuromamba regions train --dataset Own --data_file {shlex.quote(str(output))} --target "
        f"{target} --dynamic_length {crop}"
    )


def _rates(pheno: Sequence[Mapping[str, Any]]) -> str:
    by_rate: dict[str, list[str]] = {}
    for site, rates in rates_by_site(pheno).items():
        for tr, count in rates.items():
            by_rate.setdefault(tr, []).append(f"{site} {count}" if site else f"{count} scans")
    ordered = sorted(by_rate.items(), key=lambda item: (number(item[0]) is None, item[0]))
    return "; ".join(
        f"{tr}{'' if tr == 'unknown' else ' s'} in {some_of(sites, 25)}" for tr, sites in ordered
    )


def _codes(found: Imported) -> list[str]:
    """Columns that hold what is probably a code for a missing value."""
    notes = []
    for name in found.labels.columns:
        values = [number(str(one[name])) for one in found.pheno if one.get(name)]
        known = [value for value in values if value is not None]
        if codes := probable_codes(known) if len(set(known)) > 2 else []:
            listed = some_of((f"{code:g}" for code in codes), 3)
            notes.append(
                f"'{name}' holds {listed}, probably a code for a missing value; "
                f"--missing_codes '{name}={codes[0]:g}' empties such cells."
            )
    return notes


def _constant(found: Imported, hint: str) -> list[str]:
    lines = []
    counts = Counter(int(i) for scan in found.scans for i in np.flatnonzero(scan.constant))
    concerned = [int(scan.constant.sum()) for scan in found.scans if scan.constant.any()]
    if found.dropped_regions:
        names = some_of((f"{n} ({s:.0%})" for n, s in found.dropped_regions.items()), 10, hint)
        lines.append(
            f"regions dropped, constant in more than {found.options.constant_share:.0%} of the "
            f"scans: {len(found.dropped_regions)}: {names}"
        )
    if counts:
        often = some_of((f"{found.regions[i]} ({n})" for i, n in counts.most_common()), 8, hint)
        lines.append(
            f"constant regions kept (zeros in training): {len(counts)} regions in "
            f"{len(concerned)} scans, up to {max(concerned)} of {len(found.regions)}; regions "
            f"(scans): {often}"
        )
    return lines


def _listed(found: Imported, hint: str) -> list[str]:
    lines = []
    for one in found.duplicates:
        what = "is dropped" if found.options.drop_duplicates else "is kept"
        differ = ""
        if one.differ:
            differ = (
                f"; their rows differ in {some_of(one.differ, _SOME)}, so it is unknown whose "
                f"scan it is"
            )
        lines.append(f"copy: {one.dropped} has the values of {one.kept} and {what}{differ}")
    if found.labels.without_scan:
        rows = some_of(found.labels.without_scan, _SOME, hint)
        lines.append(f"rows without a scan: {len(found.labels.without_scan)}: {rows}")
    if found.collection.passed_over:
        files = (f"{one.name} ({one.why})" for one in found.collection.passed_over)
        listed = some_of(files, _SOME, hint)
        lines.append(f"files passed over: {len(found.collection.passed_over)}: {listed}")
    if found.labels.unused:
        tables = some_of((path.name for path in found.labels.unused), _SOME)
        lines.append(f"tables that name none of the scans: {tables}")
    return lines
