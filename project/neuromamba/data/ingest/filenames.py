"""What runs are called in the store, from the names of their files or folders alone."""

from __future__ import annotations

import re
from typing import NamedTuple

_UK_BIOBANK = re.compile(r"\d+_20227_\d+_\d+")


class RunName(NamedTuple):
    """See ``RunHeader``; fields but ``subject`` may be ""."""

    subject: str
    session: str = ""
    task: str = ""
    run: str = ""


def name_run(stem: str) -> RunName:
    """The name of a run from the name of its file (or folder) without suffix.

    It depends on nothing else: a run keeps its name when others are added to the folder.

    - A BIDS ``sub-`` entity at the start gives subject ("sub-01"), session, task and run.
    - UK Biobank's ``<eid>_20227_<instance>_0`` is a subject's name as a whole, as in the
      reference's splits.
    - If the part up to the first "_" holds a digit, it is the subject, and the rest names the run
      (``100307_rfMRI_REST1_LR``): several runs of one person must not look like several people. A
      ``_bold`` at the end says nothing and is left out.
    - Any other name (``scan_1``) is the subject's as a whole.
    """
    short, _, rest = stem.partition("_")
    if stem.startswith("sub-"):
        entities = dict(re.findall(r"(?:^|_)(ses|task|run)-([^_]+)", stem))
        return RunName(short, *(entities.get(key, "") for key in ("ses", "task", "run")))
    if _UK_BIOBANK.fullmatch(stem) or not any(map(str.isdigit, short)):
        return RunName(stem)
    rest = re.sub(r"(^|_)bold$", "", rest)
    return RunName(short, run=rest.replace("_", "-"))
