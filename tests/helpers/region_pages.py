"""The page that compares attribution maps of NeuroSSM with Neurosynth's."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from neuromamba.commands import regions_explain_reference
from tests.helpers.neurosynth_files import write_database
from tests.helpers.trained_regions import TrainedRegions

REFERENCE_PAGES = (
    ("regions explain-reference",) if importlib.util.find_spec("nimare") is not None else ()
)
_TERMS = {"Control": "motor", "PD": "theory mind"}


def write_reference_pages(folder: Path, regions: TrainedRegions) -> dict[str, Path]:
    """Compare the maps of a model with a small data base in Neurosynth's format.

    Args:
        folder: of all that is written.
        regions: model with maps, whose folder stays unchanged.

    Returns:
        Name of ``REFERENCE_PAGES`` -> its file; nothing without NiMARE.
    """
    if not REFERENCE_PAGES:
        return {}
    shutil.copytree(regions.data / "atlases", folder / "data" / "atlases")
    write_database(folder / "data", list(_TERMS.values()))
    lines = [f"  {name}: [{term}]" for name, term in _TERMS.items()]
    terms = folder / "terms.yaml"
    terms.write_text("\n".join(["PPMI:", *lines]), encoding="utf-8")
    given = f"--root {regions.root / 'maps'} --out {folder / 'out'} --data_dir {folder / 'data'}"
    given += f" --terms {terms} --draws 50"
    assert regions_explain_reference.main(given.split()) == 0
    return {REFERENCE_PAGES[0]: folder / "out" / "reports" / "PPMI" / "report.html"}
