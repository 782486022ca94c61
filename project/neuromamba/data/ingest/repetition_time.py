"""The repetition time of a run: flag, JSON sidecar, header, or the protocol of a cohort."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from neuromamba.common.errors import UserInputError, see
from neuromamba.common.json_text import parse_json

SAME_TR = 0.1  # relative difference of repetition times that is left alone
_LONGEST_TR, _SHORTEST_TR = 30.0, 0.05  # seconds; outside, a TR is not believed
_SECONDS = {"msec": 1e-3, "usec": 1e-6}  # of NIfTI's units


def nearest_tr(tr: float, known: Iterable[float]) -> float:
    """The one of the ``known`` repetition times with the smallest ratio to ``tr``; seconds."""
    return min(known, key=lambda one: abs(math.log(one / tr)))


def differs(tr: float, other: float) -> bool:
    """Whether models see a difference between the repetition times; see ``SAME_TR``."""
    return abs(tr / other - 1) > SAME_TR


def check_tr(flag_tr: float | None) -> None:
    """Refuse a ``--tr`` that is no repetition time in seconds.

    Raises:
        UserInputError: it is not.
    """
    if flag_tr is not None and not _SHORTEST_TR <= flag_tr <= _LONGEST_TR:
        raise UserInputError(
            f"--tr: got {flag_tr:g}, expected seconds from {_SHORTEST_TR:g} to {_LONGEST_TR:g}."
        )


def read_sidecar_tr(file: Path | None) -> float | None:
    """``RepetitionTime`` of a JSON sidecar (BIDS, seconds), if it is there.

    Raises:
        UserInputError: not JSON, or not a number.
    """
    if file is None:
        return None
    try:
        value = parse_json(file.read_text(encoding="utf-8")).get("RepetitionTime")
        return None if value is None else float(value)
    except FileNotFoundError:
        raise UserInputError(
            f"{file}: a link to '{os.readlink(file)}', which is not there. Fetch the file (datalad "
            f"get, git annex get) or remove the link and give --tr SECONDS. {see('not-fetched')}"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserInputError(
            f"{file}: not a JSON sidecar with a numeric RepetitionTime ({error}). Correct or "
            f"remove it, and give --tr SECONDS if need be."
        ) from None


def resolve_tr(
    header_tr: float,
    unit: str,
    sidecar_tr: float | None,
    flag_tr: float | None,
    layout_tr: float | None = None,
) -> tuple[float, str, str]:
    """Repetition time in seconds, where it comes from, and a note ("" if there is nothing to say).

    ``--tr`` wins over the JSON sidecar (BIDS: in seconds), which wins over the header. A header's
    number that can only be of the other unit is converted; one that is absurd in either, or
    absent, gives NaN and a note: the run is still usable, for only physical frequencies need TR.
    ``layout_tr``, the protocol of a cohort, steps in where the header has no TR or 1 s, which some
    tools write into every file.
    """
    if flag_tr is not None:
        return flag_tr, "--tr", ""
    if sidecar_tr is not None:
        if _SHORTEST_TR <= sidecar_tr <= _LONGEST_TR:
            return sidecar_tr, "sidecar", _contradiction(header_tr, unit, sidecar_tr)
        return math.nan, "unknown", f"TR of the JSON sidecar is {sidecar_tr:g} s; give --tr SECONDS"
    if layout_tr is not None and (not math.isfinite(header_tr) or header_tr in (0.0, 1.0)):
        note = f"TR of the header is {header_tr:g}; the cohort's protocol says {layout_tr:g} s"
        return layout_tr, "layout", note
    tr = header_tr * _SECONDS.get(unit, 1.0)
    if not math.isfinite(tr) or tr <= 0:
        return math.nan, "unknown", f"TR of the header is {header_tr:g}; give --tr SECONDS"
    if _SHORTEST_TR <= tr <= _LONGEST_TR:
        placeholder = (
            f"TR of the header is 1 s, often a placeholder; check it. {see('tr-placeholder')}"
        )
        note = placeholder if tr == 1 else ""
        return tr, "header", note
    for other, converted in (("msec", header_tr * 1e-3), ("sec", header_tr)):
        if _SHORTEST_TR <= converted <= _LONGEST_TR:
            note = f"TR of the header is {header_tr:g} {unit}; taken as {other}: {converted:g} s"
            return converted, f"header, read as {other}", note
    return math.nan, "unknown", f"TR of the header is {header_tr:g} {unit}; give --tr SECONDS"


def _contradiction(header_tr: float, unit: str, sidecar_tr: float) -> str:
    """A note if the header has a TR of its own; 1 is what many tools write without knowing."""
    in_seconds = header_tr * _SECONDS.get(unit, 1.0)
    if in_seconds == 1 or not _SHORTEST_TR <= in_seconds <= _LONGEST_TR:  # NaN is not, either
        return ""
    if math.isclose(in_seconds, sidecar_tr, rel_tol=0.01):
        return ""
    return f"TR of the header is {in_seconds:g} s, of the sidecar {sidecar_tr:g} s, which is used"
