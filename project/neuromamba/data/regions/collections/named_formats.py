"""Collections whose file names say what they are: Preprocessed Connectomes, and ADHD-200 (Athena).

Sources: http://preprocessed-connectomes-project.org/abide (Craddock et al. 2013), and
https://www.nitrc.org/plugins/mwiki/index.php/neurobureau:AthenaPipeline (Bellec et al. 2017).
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import PurePosixPath

from neuromamba.data.ingest.filenames import name_run
from neuromamba.data.ingest.sources import PassedOver
from neuromamba.data.ingest.versions import rank_of_steps
from neuromamba.data.regions.collections.found import Collection, FoundScan
from neuromamba.data.regions.collections.listing import (
    Listing,
    of_one_atlas,
    refuse_repeated,
    tables_near,
)
from neuromamba.data.regions.series_files import read_series_file

_PCP = re.compile(r"(?P<id>.+)_rois_(?P<atlas>[A-Za-z0-9-]+)\.1D", re.IGNORECASE)
_ATHENA = re.compile(
    r"(?P<steps>[a-z]*)(?P<scan>da\d+_session_\d+_rest_\d+)_(?P<atlas>.+)_TCs\.1D", re.IGNORECASE
)


def has_pcp(listing: Listing) -> bool:
    """Whether there is a file ``<FILE_ID>_rois_<atlas>.1D``."""
    return any(_PCP.fullmatch(path.name) for path in listing.series)


def find_pcp(listing: Listing, atlas: str | None) -> Collection:
    """The scans of a folder of the Preprocessed Connectomes Project, as nilearn leaves it, too.

    Raises:
        UserInputError: several atlases, or several versions of the scans.
    """
    by_atlas: dict[str, list[tuple[str, PurePosixPath]]] = {}
    passed = []
    for path in listing.series:
        if found := _PCP.fullmatch(path.name):
            by_atlas.setdefault(found["atlas"], []).append((found["id"], path))
        else:
            passed.append(PassedOver(str(path), "its name is not <FILE_ID>_rois_<atlas>.1D"))
    name, files = of_one_atlas(by_atlas, atlas, listing.root)
    refuse_repeated(files, listing.root)
    scans = tuple(
        FoundScan(
            name=scan,
            subject=scan,
            source=str(path),
            path=listing.root / path,
            read=partial(read_series_file, listing.root / path, absent=True),
        )
        for scan, path in sorted(files)
    )
    return Collection(
        format="pcp",
        root=listing.root,
        atlas=name,
        scans=scans,
        passed_over=tuple(passed),
        tables=tables_near(listing),
    )


def has_athena(listing: Listing) -> bool:
    """Whether there is a file ``<steps>da<subject>_session_<n>_rest_<n>_<atlas>_TCs.1D``."""
    return any(_ATHENA.fullmatch(path.name) for path in listing.series)


def find_athena(listing: Listing, atlas: str | None) -> Collection:
    """The scans of ADHD-200 (Athena), one version of each: snwmrda before the filtered sfnwmrda.

    Raises:
        UserInputError: several atlases.
    """
    by_atlas: dict[str, list[tuple[str, str, PurePosixPath]]] = {}
    passed = []
    for path in listing.series:
        if found := _ATHENA.fullmatch(path.name):
            one = (found["scan"].lower(), found["steps"].lower(), path)
            by_atlas.setdefault(found["atlas"], []).append(one)
        else:
            passed.append(PassedOver(str(path), "its name is not that of a *_TCs.1D of ADHD-200"))
    name, files = of_one_atlas(by_atlas, atlas, listing.root)
    versions: dict[str, list[tuple[str, PurePosixPath]]] = {}
    for scan, steps, path in files:
        versions.setdefault(scan, []).append((steps, path))
    scans = []
    for scan, found_ in sorted(versions.items()):
        (steps, path), *others = sorted(found_, key=lambda one: (*rank_of_steps(one[0]), one[1]))
        why = f"another version of the scan; {path.name} is used"
        passed += [PassedOver(str(other), why) for _, other in others]
        run = name_run(scan)
        scans.append(
            FoundScan(
                name=f"{run.subject}_session_{run.session}_rest_{run.run}",
                subject=run.subject,
                session=run.session,
                run=run.run,
                source=str(path),
                path=listing.root / path,
                read=partial(read_series_file, listing.root / path, absent=True),
                version=steps,
            )
        )
    kinds = Counter(one.version for one in scans)
    notes = []
    if len(kinds) > 1:
        counts = ", ".join(f"{steps}da ({count})" for steps, count in kinds.most_common())
        notes.append(
            f"the scans are of several versions of the preprocessing ({counts}; f is filtered, s "
            f"smoothed), which a model can take for an effect. Give a folder with one of them."
        )
    return Collection(
        format="athena",
        root=listing.root,
        atlas=name,
        scans=tuple(scans),
        passed_over=tuple(passed),
        tables=tables_near(listing),
        notes=tuple(notes),
    )
