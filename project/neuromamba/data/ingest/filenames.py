"""What runs are called in the store, from the names of their files or folders alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_UK_BIOBANK = re.compile(r"\d+_20227_\d+_\d+")
# ADHD-200 (Athena): letters of the steps that were done, then subject, session and run.
_ATHENA = re.compile(r"([a-z]*)da(\d+)_session_(\d+)_rest_(\d+)")
# Parts that name a session, a run or a scanner, before or after the subject.
_SESSION = re.compile(r"(?:ses|sess|session|visit|wave|tp|timepoint)-?(\w+)", re.IGNORECASE)
_RUN = re.compile(r"(?:run|scan|r)-?(\d+)", re.IGNORECASE)
_SCANNER = re.compile(r"\d+(?:\.\d+)?T", re.IGNORECASE)
# Names that say what a file is and not whose: of them the folder's name is taken.
_GENERIC = re.compile(
    r"filtered|clean(ed)?|denoised|preproc(essed)?|func(tional)?|rest(ing)?|bold|epi|r?fmri|data|"
    r"(4d)?volume|4d|normali[sz]ed|smoothed|mni|standard|space|\dmm|s?w?r?a?f?(func|rest|bold|epi)",
    re.IGNORECASE,
)


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
    - ADHD-200's ``<steps>da<subject>_session_<n>_rest_<n>`` gives all three; the letters of the
      steps (``snwmr``) are versions of one scan.
    - If the part up to the first "_" holds a digit, it is the subject, and the rest names the run
      (``100307_rfMRI_REST1_LR``): several runs of one person must not look like several people. A
      ``_bold`` at the end says nothing and is left out.
    - Not so if that part names a run, session or scanner (``r02_alpha``, ``7T_alpha``), or if only
      later parts do (``alpha_run2``): they are taken out, and what is left is the subject.
    - Any other name (``scan_1``) is the subject's as a whole.
    """
    if stem.startswith("sub-"):
        entities = dict(re.findall(r"(?:^|_)(ses|task|run)-([^_]+)", stem))
        short = stem.partition("_")[0]
        return RunName(short, *(entities.get(key, "") for key in ("ses", "task", "run")))
    if _UK_BIOBANK.fullmatch(stem):
        return RunName(stem)
    if athena := _ATHENA.fullmatch(stem):
        return RunName(athena[2], session=athena[3], task="rest", run=athena[4])
    short, _, rest = stem.partition("_")
    if any(map(str.isdigit, short)) and _kind(short, first=True) is None:
        rest = re.sub(r"(^|_)bold$", "", rest)
        return RunName(short, run=rest.replace("_", "-"))
    parts, found = _without_entities(stem.split("_"))
    if not found:
        if not any(map(str.isdigit, short)):
            return RunName(stem)
        return RunName(short, run=re.sub(r"(^|_)bold$", "", rest).replace("_", "-"))
    subject = re.sub(r"_bold$", "", "_".join(parts))
    run = "-".join(found[name] for name in ("scanner", "run") if name in found)
    return RunName(subject, session=found.get("session", ""), run=run)


def _without_entities(parts: list[str]) -> tuple[list[str], Mapping[str, str]]:
    """Take session, run and scanner out of the parts of a name, if a subject's name is left."""
    kept: list[str] = []
    found: dict[str, str] = {}
    for i, part in enumerate(parts):
        others = [one for one in parts[:i] + parts[i + 1 :] if not is_generic(one)]
        kind = _kind(part, first=i == 0)
        if kind is None or kind[0] in found or not others:
            kept.append(part)
        else:
            found[kind[0]] = kind[1]
    if not kept or all(is_generic(part) for part in kept):
        return parts, {}
    return kept, found


def _kind(part: str, first: bool) -> tuple[str, str] | None:
    """What a part names, and the value; ``r02`` and ``7T`` only at the start of a name."""
    if match := _SESSION.fullmatch(part):
        return "session", match[1]
    if match := _RUN.fullmatch(part):
        return ("run", match[1]) if first or not re.fullmatch(r"r\d+", part) else None
    if first and _SCANNER.fullmatch(part):
        return "scanner", part
    return None


def is_generic(stem: str) -> bool:
    """Whether a name says what a file is (``Filtered_4DVolume``) and not whose it is."""
    return all(_GENERIC.fullmatch(part) for part in stem.split("_"))
