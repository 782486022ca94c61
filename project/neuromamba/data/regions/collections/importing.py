"""A public collection becomes the file of scans that ``neuromamba regions train`` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError, see
from neuromamba.common.text import some_of
from neuromamba.data.cohorts.registry import Cohort
from neuromamba.data.regions.collections.checks import ReadScan, ReadScans, read_all
from neuromamba.data.regions.collections.columns import added_columns, roles_of
from neuromamba.data.regions.collections.formats import find_collection
from neuromamba.data.regions.collections.found import Collection
from neuromamba.data.regions.collections.labels import Labels, read_labels
from neuromamba.data.regions.collections.listing import FLAG
from neuromamba.data.regions.collections.rates import RateFlags, Rates, rates_of
from neuromamba.data.regions.leaks import check_spellings, find_copies
from neuromamba.data.regions.scan import Scan
from neuromamba.data.regions.scan_files import ScanFile

OWN_KEYS = ("subjectId", "scan", "session", "run", "tr")  # keys of pheno that are ours


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """One call of ``neuromamba regions import``; the attributes are its flags.

    ``output`` is no scan if it lies among them.

    Raises:
        UserInputError: a share that is none.
    """

    source: Path
    format: str = "auto"
    atlas: str | None = None
    labels: tuple[Path, ...] = ()
    subject_column: str | None = None
    dataset_name: str | None = None
    columns: tuple[str, ...] = ()
    missing_codes: tuple[str, ...] = ()
    orientation: str = "auto"
    constant_regions: str = "keep"
    constant_share: float = 0.05
    drop_duplicates: bool = False
    rates: RateFlags = field(default_factory=RateFlags)
    output: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.constant_share < 1:
            raise UserInputError(
                f"--constant_share: got {self.constant_share:g}, expected 0 to below 1."
            )


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A scan that is a copy of another.

    Attributes:
        kept, dropped: names of the scans.
        exact: whether the values are equal; else offset and unit of regions differ.
        same_subject: whether the two are of one subject.
        differ: columns in which their rows differ, so that it is unknown whose scan it is.
    """

    kept: str
    dropped: str
    exact: bool
    same_subject: bool
    differ: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A collection that can be written.

    Attributes:
        options: of the call.
        collection: what was found.
        labels: what the tables say.
        roles: name in the file -> column.
        rates: repetition times; of all scans of the collection.
        scans: those that are written.
        pheno: of each of them.
        regions: names, in the order of the series.
        named: whether the collection names its regions.
        dropped_regions: name -> share of the scans in which it is constant.
        duplicates: copies; those dropped only with ``--drop_duplicates``.
        left_out: name of a scan -> why it is not written.
        notes: what a user should know, a sentence each.
    """

    options: ImportOptions
    collection: Collection
    labels: Labels
    roles: Mapping[str, str]
    rates: Rates
    scans: tuple[ReadScan, ...]
    pheno: tuple[Mapping[str, Any], ...]
    regions: tuple[str, ...]
    named: bool
    dropped_regions: Mapping[str, float]
    duplicates: tuple[Duplicate, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]

    def entries(self) -> list[dict[str, Any]]:
        """The scans as the file has them."""
        return [
            {"roiTimeseries": scan.series, "pheno": pheno}
            for scan, pheno in zip(self.scans, self.pheno, strict=True)
        ]


def import_collection(options: ImportOptions) -> Imported:
    """Find, read, label and check the scans of a collection.

    Raises:
        UserInputError: a mistake in flags or tables, or nothing that can be used.
    """
    exclude = () if options.output is None else (options.output,)
    collection = find_collection(
        options.source, options.format, options.atlas, (*options.labels, *exclude)
    )
    labels = read_labels(
        collection,
        options.labels,
        dataset_name=options.dataset_name,
        subject_column=options.subject_column,
        missing_codes=options.missing_codes,
    )
    if labels.names:
        collection = _named(collection, labels.names)
    roles = roles_of(labels, options.columns)
    rates = rates_of(collection.scans, labels, roles, options.rates)
    read = read_all(collection, options.orientation)
    left_out = dict(read.refused)
    without = {collection.scans[place].name for place in labels.without_row}
    left_out |= dict.fromkeys(sorted(without - set(left_out)), "no row in the table of labels")
    place_of = {scan.name: place for place, scan in enumerate(collection.scans)}
    scans = [scan for scan in read.scans if scan.found.name not in without]
    if not scans:
        raise UserInputError(
            f"{FLAG}: none of {len(collection.scans)} scans of '{options.source}' can be used "
            f"({some_of((f'{name}: {why}' for name, why in left_out.items()), 2)})."
        )
    subjects = _subjects(collection, labels.cohort)
    check_spellings(
        [
            Scan(subjects[s.found.name], s.found.name, 0, s.series, subjects[s.found.name])
            for s in scans
        ],
        ScanFile(options.source, FLAG),
    )
    notes = [*collection.notes, *rates.notes, *read.notes]
    duplicates = _duplicates(scans, subjects, [labels.rows[place_of[s.found.name]] for s in scans])
    if duplicates and options.drop_duplicates:
        gone = {one.dropped: f"a copy of {one.kept}" for one in duplicates}
        left_out |= gone
        scans = [scan for scan in scans if scan.found.name not in gone]
    elif any(not one.same_subject for one in duplicates):
        raise _refused_duplicates(duplicates)
    scans, dropped = _without_constant(scans, read, options)
    regions = tuple(name for name in read.regions if name not in dropped)
    places = [place_of[scan.found.name] for scan in scans]
    clash = [name for name in OWN_KEYS if name in labels.columns and collection.format != "list"]
    clash = [name for name in clash if name not in collection.scans[0].columns]
    if clash:
        notes.append(f"{', '.join(clash)} of the table is kept as the scans' names say it.")
    pheno = tuple(
        {
            **labels.rows[place],
            **added_columns(labels.rows[place], roles, labels.cohort),
            "subjectId": subjects[collection.scans[place].name],
            "scan": collection.scans[place].name,
            "session": collection.scans[place].session,
            "run": collection.scans[place].run,
            "tr": rates.seconds[place],
        }
        for place in places
    )
    return Imported(
        options=options,
        collection=collection,
        labels=labels,
        roles=roles,
        rates=rates,
        scans=tuple(scans),
        pheno=pheno,
        regions=regions,
        named=read.named,
        dropped_regions=dropped,
        duplicates=tuple(duplicates),
        left_out=left_out,
        notes=tuple(notes),
    )


def _named(collection: Collection, names: Sequence[str]) -> Collection:
    """The collection with the names of the table, whose rows are the scans."""
    scans = tuple(
        replace(scan, name=name, subject=name)
        for scan, name in zip(collection.scans, names, strict=True)
    )
    return replace(collection, scans=scans)


def _subjects(collection: Collection, cohort: Cohort) -> dict[str, str]:
    """Scan -> subject, one spelling for each by the cohort's rule of identity."""
    first: dict[str, str] = {}
    return {
        scan.name: first.setdefault(cohort.key(scan.subject), scan.subject)
        for scan in collection.scans
    }


def _duplicates(
    scans: Sequence[ReadScan], subjects: Mapping[str, str], rows: Sequence[Mapping[str, str]]
) -> list[Duplicate]:
    # What differs in every row names a scan or subject, and says nothing of a pair.
    names = {name for name in rows[0] if len({row.get(name, "") for row in rows}) == len(rows) > 2}
    found = []
    for copy in find_copies([scan.series for scan in scans]):
        kept, dropped = scans[copy.first].found.name, scans[copy.second].found.name
        one, other = rows[copy.first], rows[copy.second]
        found.append(
            Duplicate(
                kept=kept,
                dropped=dropped,
                exact=copy.exact,
                same_subject=subjects[kept] == subjects[dropped],
                differ=tuple(
                    name for name in one if name not in names and one[name] != other.get(name, "")
                ),
            )
        )
    return found


def _refused_duplicates(duplicates: Sequence[Duplicate]) -> UserInputError:
    pairs = some_of(
        (f"{one.kept} and {one.dropped}" for one in duplicates if not one.same_subject), 5
    )
    return UserInputError(
        f"{FLAG}: a scan of one subject has the same values as one of another: {pairs}. One of "
        f"them would be trained on and the other tested. Give --drop_duplicates to import the "
        f"first of them only. {see('copies')}"
    )


def _without_constant(
    scans: list[ReadScan], read: ReadScans, options: ImportOptions
) -> tuple[list[ReadScan], dict[str, float]]:
    """What ``--constant_regions`` says; the scans, and the regions that were dropped.

    Raises:
        UserInputError: there is one, and they are to be refused; or none would be left.
    """
    share = np.mean([scan.constant for scan in scans], axis=0)
    there = np.flatnonzero(share)
    if options.constant_regions == "refuse" and len(there):
        some = [scan.found.name for scan in scans if scan.constant.any()]
        raise UserInputError(
            f"--constant_regions refuse: {len(there)} regions have no signal in some of the scans "
            f"({some_of((read.regions[i] for i in there), 8)}), such as {some_of(some, 3)}. Give "
            f"keep, or drop with a --constant_share."
        )
    if options.constant_regions != "drop":
        return scans, {}
    drop = share > options.constant_share
    if drop.all():
        raise UserInputError(
            f"--constant_share: every region is constant in more than {options.constant_share:g} "
            f"of the scans. Give a larger share."
        )
    kept = [
        ReadScan(found=s.found, series=s.series[~drop], constant=s.constant[~drop]) for s in scans
    ]
    dropped = {read.regions[i]: round(float(share[i]), 4) for i in np.flatnonzero(drop)}
    return kept, dropped


def sites_of(pheno: Sequence[Mapping[str, Any]]) -> list[str]:
    """The site of each scan, "" where none is known."""
    return [str(one.get("site", "")) for one in pheno]


def rates_by_site(pheno: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Site -> repetition time, as text -> number of scans."""
    found: dict[str, Counter[str]] = {}
    for site, one in zip(sites_of(pheno), pheno, strict=True):
        tr = "unknown" if one["tr"] is None else f"{one['tr']:g}"
        found.setdefault(site, Counter())[tr] += 1
    return {site: dict(counts) for site, counts in sorted(found.items())}
