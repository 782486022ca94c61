"""Collections of any names: a file for each scan, one ``.npz``, or a file of a list of scans."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from neuromamba.common.errors import UserInputError
from neuromamba.common.files import without_leftovers
from neuromamba.common.json_text import parse_json
from neuromamba.common.text import some_of
from neuromamba.data.ingest.bids import KNOWN_OUTPUTS, BidsName, parse
from neuromamba.data.ingest.filenames import is_generic, name_run
from neuromamba.data.ingest.sources import PassedOver
from neuromamba.data.regions.collections.found import Collection, FoundScan
from neuromamba.data.regions.collections.listing import (
    FLAG,
    Listing,
    is_label_table,
    of_one_atlas,
    refuse_repeated,
    tables_near,
    tokens,
)
from neuromamba.data.regions.concatenated import read_concatenated
from neuromamba.data.regions.scan import number_matrix
from neuromamba.data.regions.scan_files import ScanFile, read_scans
from neuromamba.data.regions.scan_tables import SUFFIXES as TABLES
from neuromamba.data.regions.series_files import SeriesFile, read_series_file

# What else pipelines write as tables: the last part of a file's name.
_OTHER = re.compile(
    r".*(confounds?|regressors?|motion|events|physio|outliers?|relmat|correlations?|connectivity|"
    r"scans|sessions|channels|dseg|coverage|alff|reho|mask)"
)
# Names that say what a file is and not whose, besides those of images.
_SERIES = re.compile(r"rois?|ts|tcs?|timeseries|timecourses?|series|signals?|cc\d+|aal\d*|ho")
_ATLAS_ENTITIES = ("seg", "atlas", "parc")
_NOT_RUN = {"sub", "ses", "task", "run", "space", "res", "den", "desc", "cohort", "stat"}
# Arrays that say whose scans those of an .npz file are, best first, and which of several.
_NAMES = ("file_id", "scan", "scan_id")
_SUBJECTS = ("subject", "subject_id", "subjectid", "participant_id", "sub_id", "subj", "id")
_SUBJECT_CELLS = {"file_id", "scandir id", "participant_id", *_SUBJECTS} - {"id"}
_SESSIONS, _RUNS = ("session", "session_id", "ses"), ("run", "run_id")
_ATLASES = {"cc200", "cc400", "ho", "aal", "ez", "tt", "dosenbach160"}  # of PCP, in file names


def has_files(listing: Listing) -> bool:
    """Whether there is a file that may be the series of a scan."""
    return any(not _why_no_series(path, parse(PurePosixPath(path.stem))) for path in listing.series)


def find_files(listing: Listing, atlas: str | None) -> Collection:
    """A folder with a file for each scan, called after the subject, or in the subject's folder.

    Raises:
        UserInputError: several atlases.
    """
    passed: list[PassedOver] = []
    tables: list[Path] = []
    by_atlas: dict[str, list[PurePosixPath]] = {}
    for path in listing.series:
        name = parse(PurePosixPath(path.stem))
        if why := _why_no_series(path, name):
            passed.append(PassedOver(str(path), why))
            continue
        if _names_subjects(listing.root / path):
            tables.append(listing.root / path)
            continue
        own = next((name.get(key) for key in _ATLAS_ENTITIES if name and name.get(key)), "")
        if not own and atlas is not None and atlas.lower() in tokens(path.stem):
            own = atlas
        by_atlas.setdefault(own, []).append(path)
    if not by_atlas:
        listed = some_of((str(path.relative_to(listing.root)) for path in tables), 3)
        raise UserInputError(
            f"{FLAG}: '{listing.root}' has tables of subjects ({listed}) and no series of scans. "
            f"If such a table holds the frames of all scans, give the file itself."
        )
    chosen, files = of_one_atlas(by_atlas, atlas, listing.root)
    versions: dict[tuple[str, ...], list[PurePosixPath]] = {}
    for path in files:
        versions.setdefault(_identity(path), []).append(path)
    scans = []
    _refuse_kinds(versions.values(), listing.root)
    for (subject, session, run), found in versions.items():
        refuse_repeated(((path.name, path) for path in found), listing.root)
        path, *others = sorted(found, key=_preference)
        if others and _differ_in_more(found):
            taken = {path: path.stem, **{other: other.stem for other in others}}
        else:
            taken = {path: "_".join(part for part in (subject, session, run) if part)}
            why = f"another version of the scan; {path.name} is used"
            passed += [PassedOver(str(other), why) for other in others]
        scans += [
            FoundScan(
                name=name,
                subject=subject,
                session=session,
                run=run,
                source=str(one),
                path=listing.root / one,
                read=partial(read_series_file, listing.root / one, absent=True),
            )
            for one, name in taken.items()
        ]
    return Collection(
        format="files",
        root=listing.root,
        atlas=chosen,
        scans=tuple(sorted(scans, key=lambda scan: scan.name)),
        passed_over=tuple(passed),
        tables=(*tables, *tables_near(listing)),
    )


def _names_subjects(path: Path) -> bool:
    """Whether a file is a table with a column of subjects, and not the series of a scan."""
    if path.suffix.lower() not in TABLES or not path.is_file():
        return False
    with open(path, encoding="utf-8-sig", errors="replace") as stream:
        cells = re.split(r"[,;\t|]", stream.readline(1 << 16).strip().lower())
    return any(cell.strip().strip('"') in _SUBJECT_CELLS for cell in cells)


def _refuse_kinds(scans: Iterable[Sequence[PurePosixPath]], root: Path) -> None:
    """Refuse series of one scan that differ in the last part of their name: cc200, aal.

    Raises:
        UserInputError: names the parts and the remedy.
    """
    kinds: Counter[str] = Counter()
    for paths in scans:
        names = [parse(PurePosixPath(path.stem)) for path in paths]
        ends = {"_".join([*name.others, name.suffix]) for name in names if name is not None}
        if len(ends) > 1:
            kinds.update(ends)
    if kinds:
        counts = some_of(
            f"{kind or 'no such part'} ({count} files)" for kind, count in kinds.items()
        )
        raise UserInputError(
            f"--atlas: '{root}' has several series of one scan, which differ in a part of their "
            f"name: {counts}. Name one of them."
        )


def _why_no_series(path: PurePosixPath, name: BidsName | None) -> str:
    """Why a file is no series of a scan, as far as its name says; "" if it may be."""
    last = path.stem.lower().split("_")[-1]
    if name is not None and name.get("desc") == "confounds":
        return "a table of confounds"
    if name is not None and name.get("stat") not in ("", "mean"):
        return f"another statistic than the mean of regions: {name.get('stat')}"
    if _OTHER.fullmatch(last):
        return f"no series of regions by its name ({last})"
    return ""


def _identity(path: PurePosixPath) -> tuple[str, str, str]:
    """Subject, session and run that a file's name says, or its folder's."""
    name = parse(PurePosixPath(path.stem))
    if name is not None:
        extra = [
            f"{key}-{value}"
            for key, value in name.entities.items()
            if key not in _NOT_RUN and key not in _ATLAS_ENTITIES
        ]
        run = "-".join(one for one in (name.get("task"), name.get("run"), *extra) if one)
        return f"sub-{name.get('sub')}", name.get("ses"), run
    stem = path.stem
    parts = [part for part in re.split(r"[_-]", stem.lower()) if part]
    if path.parent.name and all(_SERIES.fullmatch(part) or is_generic(part) for part in parts):
        stem = path.parent.name
    found = name_run(stem)
    return found.subject, found.session, "-".join(one for one in (found.task, found.run) if one)


def _preference(path: PurePosixPath) -> tuple[int, str]:
    name = parse(PurePosixPath(path.stem))
    output = "" if name is None else name.output
    known = output in KNOWN_OUTPUTS
    return KNOWN_OUTPUTS.index(output) if known else len(KNOWN_OUTPUTS), str(path)


def _differ_in_more(paths: list[PurePosixPath]) -> bool:
    """Whether files of one subject, session and run are other scans, for all that is known."""
    return any(parse(PurePosixPath(path.stem)) is None for path in paths) and len(
        {path.stem for path in paths}
    ) == len(paths)


# ------------------------------------------------------------------------------ one file


def find_concatenated(path: Path, atlas: str | None) -> Collection:
    """The scans of an ``.npz`` file; tables of labels are the CSV and TSV files beside it.

    Raises:
        UserInputError: see ``read_concatenated``.
    """
    content = read_concatenated(path, FLAG, atlas)
    count = len(content.lengths)
    lower = {name.lower(): values for name, values in content.columns.items()}

    def column(names: tuple[str, ...]) -> tuple[str, ...]:
        return next((lower[name] for name in names if name in lower), ("",) * count)

    names, subjects = column(_NAMES), column(_SUBJECTS)
    sessions, runs = column(_SESSIONS), column(_RUNS)
    in_order = not any(names) and not any(subjects)
    scans = []
    for i, series in enumerate(content.scans()):
        parts = [part for part in (subjects[i], sessions[i], runs[i]) if part]
        name = names[i] or "_".join(parts) or str(i + 1)
        scans.append(
            FoundScan(
                name=name,
                subject=subjects[i] or name,
                session=sessions[i],
                run=runs[i],
                source=f"{path.name}, scan {i + 1}",
                path=path,
                read=partial(SeriesFile, series, content.labels),
                columns={key: values[i] for key, values in content.columns.items()},
            )
        )
    if twice := [name for name, times in Counter(one.name for one in scans).items() if times > 1]:
        raise UserInputError(
            f"{FLAG}: '{path}' has several scans called {some_of(twice, 3)}. Distinguish them by "
            f"an array 'session' or 'run' of their lengths."
        )
    named = atlas or (content.array if content.array != "ts" else "")
    guessed = sorted(_ATLASES & tokens(path.stem))
    beside = [p for p in without_leftovers(path.parent.iterdir()) if p.suffix.lower() in TABLES]
    return Collection(
        format="npz",
        root=path.parent,
        atlas=named or (guessed[0] if len(guessed) == 1 else ""),
        scans=tuple(scans),
        tables=tuple(beside),
        in_order=in_order,
        fixed_axes=True,
    )


def npz_of(listing: Listing, atlas: str | None) -> tuple[Path, str | None]:
    """The ``.npz`` file of a folder, and the array that is wanted of it.

    Raises:
        UserInputError: there are several.
    """
    files = listing.concatenated
    if atlas is not None:
        named = [path for path in files if atlas.lower() in tokens(path.stem)]
        if len(named) == 1:
            return listing.root / named[0], atlas
    if len(files) > 1:
        raise UserInputError(
            f"{FLAG}: '{listing.root}' has several files of scans ({some_of(files, 6)}). Give one "
            f"of them, or --atlas with a part of its name."
        )
    return listing.root / files[0], atlas


def find_list(path: Path) -> Collection:
    """The scans of a file that ``neuromamba regions train`` reads already.

    Raises:
        UserInputError: see ``read_scans``.
    """
    raw = read_scans(ScanFile(path, FLAG), None)
    names = _recorded_regions(path)
    seen: dict[str, int] = {}
    scans = []
    for i, item in enumerate(raw):
        said: Mapping[str, Any] = item.pheno
        session, run = (str(said.get(key) or "") for key in ("session", "run"))
        parts = [part for part in (item.subject, session, run) if part]
        name = str(said.get("scan") or "_".join(parts))
        seen[name] = seen.get(name, 0) + 1
        scans.append(
            FoundScan(
                name=name if seen[name] == 1 else f"{name}_{seen[name]}",
                subject=item.subject,
                session=session,
                run=run,
                source=f"{path.name}, scan {i + 1}",
                path=path,
                read=partial(_matrix, path, i, item.series, names),
                columns={str(key): value for key, value in said.items()},
            )
        )
    beside = [
        p for p in without_leftovers(path.parent.iterdir()) if p.name.lower().endswith(TABLES)
    ]
    tables = tuple(one for one in beside if one != path and is_label_table(one.name))
    return Collection(format="list", root=path.parent, atlas="", scans=tuple(scans), tables=tables)


def _recorded_regions(path: Path) -> tuple[str, ...] | None:
    """Names of the regions in the record beside a file of scans, if there is one."""
    try:
        found = parse_json(path.with_suffix(".json").read_text(encoding="utf-8"))["regions"]
        return tuple(map(str, found)) if isinstance(found, list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _matrix(path: Path, number: int, series: Any, names: tuple[str, ...] | None) -> SeriesFile:
    found = number_matrix(series, f"{path}: holds as scan {number + 1}")
    known = names if names is not None and len(names) == len(found) else None
    return SeriesFile(found.T, known, by_row=True)
