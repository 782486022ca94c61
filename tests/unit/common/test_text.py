"""What cannot be seen in a name is shown."""

from __future__ import annotations

import pytest

from neuromamba.common.text import some_of, visible

MARKS = ["\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"]
JOINERS = ["\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u2060", "\ufeff", "\xad", "\u061c"]
CONTROLS = ["\x00", "\x07", "\x08", "\t", "\n", "\r", "\x1b", "\x7f", "\x80", "\x9b", "\u2028"]
HALVES = ["\udcff", "\ud800"]


@pytest.mark.parametrize("character", [*MARKS, *JOINERS, *CONTROLS, *HALVES])
def test_a_code_stands_for_the_character(character: str) -> None:
    assert visible(f"a{character}b") == f"a\\u{ord(character):04x}b"
    assert some_of([f"a{character}b"]) == visible(f"a{character}b")


def test_characters_beyond_four_digits() -> None:
    assert visible("a\U000e0041") == "a\\U000e0041"


@pytest.mark.parametrize("text", ["sub-01", "Müller", "被験者", "نوح", "é", "a b\xa0c", "😀", ""])
def test_letters_of_all_scripts_stay(text: str) -> None:
    assert visible(text) == text


def test_what_is_kept() -> None:
    assert visible("a\nb\tc", keep="\n") == "a\nb\\u0009c"
