"""A cohort that no split has seen: read as the data set is, and checked for leaks against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.common.text import some_of
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.leaks import check_copies, check_spellings
from neuromamba.data.regions.scan_files import ScanFile

FLAG = "--test_data"


def load_external(
    cohort: Cohort,
    path: Path,
    beside: Path,
    *,
    drop_bad_scans: bool = False,
    missing_codes: Sequence[str] = (),
    orientation: str = "auto",
    keep: Sequence[str] = (),
) -> Cohort:
    """Read scans that are only tested.

    Their labels are in the file, under the same key, and of the same classes.

    Args:
        cohort: that is trained on.
        path: of the scans; any format of ``load_cohort``.
        beside: file of the data set; names of regions in records beside both files must agree.
        drop_bad_scans, missing_codes, orientation, keep: of ``load_cohort``.

    Raises:
        UserInputError: of ``load_cohort``; other regions or classes; a person or a scan of the data
            set is among them.
    """
    own_names, names = (_region_names(file) for file in (beside, path))
    if own_names and names and own_names != names:
        pairs = enumerate(zip(own_names, names, strict=False))
        place = next((i for i, (own, other) in pairs if own != other), None)
        what = f"{len(names)} regions, expected {len(own_names)}"
        if place is not None:
            what = f"'{names[place]}' as region {place + 1}, expected '{own_names[place]}'"
        raise UserInputError(
            f"{FLAG}: '{path}' has {what} (by '{path.with_suffix('.json')}'): another atlas, or "
            f"another order. Make it with the atlas of '{beside}'."
        )
    details = replace(
        cohort.details,
        rois=cohort.rois,
        frames=(),
        pheno_file=None,
        pheno_target=None,
        pheno_keep={},
    )
    found = load_cohort(
        cohort.name,
        details,
        path.parent,
        data_file=path,
        file_flag=FLAG,
        drop_bad_scans=drop_bad_scans,
        missing_codes=missing_codes,
        orientation=orientation,
        keep=keep,
    )
    both = sorted({s.subject for s in cohort.scans} & {s.subject for s in found.scans})
    if both:
        raise UserInputError(
            f"{FLAG}: '{path}' has scans of {len(both)} subjects that are in the data set, too "
            f"({some_of(both)}), and would be trained on and tested. Take them out of one of the "
            f"two; if they are others of the same name, rename them."
        )
    # A scan's group is its own here, so that a copy in the other cohort is never let through.
    own = [scan._replace(group=f"tested {scan.group}") for scan in found.scans]
    file = ScanFile(path, FLAG)
    check_spellings([*cohort.scans, *own], file)
    check_copies([*cohort.scans, *own], file)
    return found


def _region_names(file: Path) -> list[str] | None:
    """Names in the record of ``neuromamba regions extract`` or ``import``; None without one."""
    try:
        names = parse_json(file.with_suffix(".json").read_text(encoding="utf-8"))["regions"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
