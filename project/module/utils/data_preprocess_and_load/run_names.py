"""What runs are called in the store, from the names of their files or folders alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_UK_BIOBANK = re.compile(r"\d+_20227_\d+_\d+")


class RunName(NamedTuple):
    """See ``RunHeader``; fields but ``subject`` may be ""."""

    subject: str
    session: str = ""
    task: str = ""
    run: str = ""


def name_runs(stems: Sequence[str]) -> list[RunName]:
    """The names of runs whose files (or folders) are called so, without suffix.

    A name that starts with a BIDS ``sub-`` entity gives subject ("sub-01"), session, task and run.
    UK Biobank's ``<eid>_20227_<instance>_0`` is a subject's name as a whole, as in the reference's
    splits. Of any other name the part up to the first "_" is the subject. Where several share
    that, it is one subject and the rest names the run, if it holds a digit
    (``100307_rfMRI_REST1_LR``); else (``scan_1``) the whole name is the subject.
    """
    shorts = Counter(stem.split("_")[0] for stem in stems)
    names = []
    for stem in stems:
        short, _, rest = stem.partition("_")
        if stem.startswith("sub-"):
            entities = dict(re.findall(r"(?:^|_)(ses|task|run)-([^_]+)", stem))
            names.append(RunName(short, *(entities.get(key, "") for key in ("ses", "task", "run"))))
        elif _UK_BIOBANK.fullmatch(stem):
            names.append(RunName(stem))
        elif shorts[short] > 1 and any(map(str.isdigit, short)):
            # Several runs of one subject (100307_rfMRI_REST1_LR): one subject, or a split could
            # put one person into training and test.
            names.append(RunName(short, run=rest.replace("_", "-")))
        else:
            unique = short and shorts[short] == 1
            names.append(RunName(short if unique else stem))
    return names
