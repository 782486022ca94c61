"""Errors of a user, and the look-up of names that suggests the nearest spelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_ALIKE = 0.55  # share of letters that two spellings have in common


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


def look_up(name: str, options: Iterable[str], what: str, listed_by: str = "") -> str:
    """Return ``name`` if it is one of ``options``, else raise with the nearest spelling.

    Args:
        name: what the user typed.
        options: the admissible names.
        what: how to call it in the message, usually the flag (``"--dataset_name"``).
        listed_by: where a reader finds more names than a message can hold (``"--help"``).

    Raises:
        UserInputError: ``name`` is unknown.
    """
    known = list(options)
    if name in known:
        return name
    nearest = " or ".join(f"'{option}'" for option in _nearest(name, known))
    hint = f" Did you mean {nearest}?" if nearest else ""
    # A list longer than this (all flags, say) hides the hint instead of helping.
    if len(known) > 20 and (hint or listed_by):
        listing = f" {listed_by} lists all {len(known)}." if listed_by else ""
    else:
        listing = f" Known: {', '.join(known)}."
    raise UserInputError(f"{what}: unknown name '{name}'.{hint}{listing}")


def _nearest(name: str, options: Iterable[str]) -> list[str]:
    """The options that a name probably stands for; dashes in front and case say nothing.

    Those with the name as one of their words ("task" of "downstream_task"), at most three; else the
    one that is spelt most like it, if any is.
    """
    bare = {option.lstrip("-").lower(): option for option in options}
    typed = name.lstrip("-").lower()
    with_word = [one for one in bare if typed in re.split("[-_]", one) and typed not in bare]
    if with_word:
        close = difflib.get_close_matches(typed, with_word, n=3, cutoff=0.0)
    else:
        close = difflib.get_close_matches(typed, bare, n=1, cutoff=_ALIKE)
    return [bare[one] for one in close]
