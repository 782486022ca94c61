"""Errors of a user, and the look-up of names that suggests the nearest spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserInputError(ValueError):
    """A mistake that the user can correct: a flag, a file or a label.

    The message names the flag or file, what was found, what was expected and the remedy. Entry
    points print it on one line and exit with status 2; it is never shown as a traceback.
    """


# Anchors of docs/troubleshooting.md, which explains the messages that users meet most.
TOPICS = frozenset(
    {
        "mni-space",
        "qform-sform",
        "truncated",
        "nan-values",
        "boxes",
        "mask-volume",
        "tr-placeholder",
        "not-fetched",
        "no-label",
        "missing-codes",
        "classes-by-case",
        "classes-or-values",
        "one-subject",
        "copies",
        "trained-on",
        "turned-matrices",
        "events",
        "patch-size",
        "grid",
        "trained-with",
        "weights-only",
        "dynamic-skill",
        "memory",
        "holds-a-run",
        "holds-results",
        "strict",
    }
)


def see(topic: str) -> str:
    """Return the sentence at the end of a message that says where its cause is explained.

    Args:
        topic: an anchor of docs/troubleshooting.md, of ``TOPICS``.
    """
    assert topic in TOPICS, topic
    return f"See docs/troubleshooting.md#{topic}."


def look_up(name: str, options: Iterable[str], what: str) -> str:
    """Return ``name`` if it is one of ``options``, else raise with the nearest spelling.

    Args:
        name: what the user typed.
        options: the admissible names.
        what: how to call it in the message, usually the flag (``"--dataset_name"``).

    Raises:
        UserInputError: ``name`` is unknown.
    """
    known = list(options)
    if name in known:
        return name
    lowered = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f" Did you mean '{lowered[close[0]]}'?" if close else ""
    # A list longer than this (all flags, say) hides the hint instead of helping.
    listing = f" Known: {', '.join(known)}." if len(known) <= 20 or not hint else ""
    raise UserInputError(f"{what}: unknown name '{name}'.{hint}{listing}")
