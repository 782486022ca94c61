"""What runs are called in the store, from the names of their files or folders alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


def _bids(stem: str) -> RunName | None:
    if not stem.startswith("sub-"):
        return None
    entities = dict(re.findall(r"(?:^|_)(ses|task|run)-([^_]+)", stem))
    short = stem.partition("_")[0]
    return RunName(short, *(entities.get(key, "") for key in ("ses", "task", "run")))


def _uk_biobank(stem: str) -> RunName | None:
    return RunName(stem) if _UK_BIOBANK.fullmatch(stem) else None


def _adhd_200(stem: str) -> RunName | None:
    found = _ATHENA.fullmatch(stem)
    return found and RunName(found[2], session=found[3], task="rest", run=found[4])


def _number_first(stem: str) -> RunName | None:
    short = stem.partition("_")[0]
    if not _has_digit(short) or _kind(short, first=True) is not None:
        return None
    return _split_at_first(stem)


def _entities(stem: str) -> RunName | None:
    parts, found = _without_entities(stem.split("_"))
    if not found:
        return None
    subject = re.sub(r"_bold$", "", "_".join(parts))
    run = "-".join(found[name] for name in ("scanner", "run") if name in found)
    return RunName(subject, session=found.get("session", ""), run=run)


def _any(stem: str) -> RunName:
    return _split_at_first(stem) if _has_digit(stem.partition("_")[0]) else RunName(stem)


def _split_at_first(stem: str) -> RunName:
    short, _, rest = stem.partition("_")
    return RunName(short, run=re.sub(r"(^|_)bold$", "", rest).replace("_", "-"))


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


class NamePattern(NamedTuple):
    """One way in which runs are named.

    Attributes:
        what: whose way, or what is recognised.
        read: stem -> name; None if the stem is not named in this way.
        examples: stem -> name.
    """

    what: str
    read: Callable[[str], RunName | None]
    examples: Mapping[str, RunName]


# The first that fits a name is taken.
PATTERNS = (
    NamePattern(
        "BIDS: entities after sub- at the start",
        _bids,
        {
            "sub-01_ses-2_task-rest_run-1_bold": RunName("sub-01", "2", "rest", "1"),
            "sub-01_bold": RunName("sub-01"),
        },
    ),
    NamePattern(
        "UK Biobank: <eid>_20227_<instance>_0 is one subject, as in the reference's splits",
        _uk_biobank,
        {"1000011_20227_2_0": RunName("1000011_20227_2_0")},
    ),
    NamePattern(
        "ADHD-200: letters of the steps, which are versions of one scan, then the three numbers",
        _adhd_200,
        {
            "snwmrda0010042_session_1_rest_2": RunName("0010042", "1", "rest", "2"),
            "da0010042_session_1_rest_1": RunName("0010042", "1", "rest", "1"),
        },
    ),
    NamePattern(
        "a first part with a digit is the subject, and the rest the run: several runs of one "
        "person must not look like several people",
        _number_first,
        {
            "100307_rfMRI_REST1_LR": RunName("100307", run="rfMRI-REST1-LR"),
            "A01_bold": RunName("A01"),
        },
    ),
    NamePattern(
        "parts that name a session, run or scanner are taken out, and what is left is the subject",
        _entities,
        {
            "r02_alpha": RunName("alpha", run="02"),
            "7T_alpha": RunName("alpha", run="7T"),
            "alpha_run2": RunName("alpha", run="2"),
            "alpha_ses-pre_run-3": RunName("alpha", session="pre", run="3"),
        },
    ),
    NamePattern(
        "any other name is the subject as a whole",
        _any,
        {"scan_1": RunName("scan_1"), "alpha_beta": RunName("alpha_beta")},
    ),
)


def name_run(stem: str) -> RunName:
    """The name of a run from the name of its file (or folder) without suffix; see ``PATTERNS``.

    It depends on nothing else: a run keeps its name when others are added to the folder. A
    ``_bold`` at the end says nothing and is left out.
    """
    return next(found for pattern in PATTERNS if (found := pattern.read(stem)) is not None)


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
