"""Expressions of the project's former private vocabulary do not come back into its documentation.

Each pattern is chosen so that it does not match honest uses of its words; if it does nevertheless,
narrow the pattern instead of removing it.

``found_in`` takes lines of any text: ``prose`` gives those of the documents, ``code_strings`` the
string literals of Python files, docstrings and messages included.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import PACKAGE, ROOT

# Pattern (case is ignored) -> what to write instead.
AVOIDED = {
    r"(?<!model )\bcards?\b(?! (?:game|reader))": "'checkpoint metadata' (or 'GPU' for hardware)",
    r"\btold from\b": "'distinguishable from'",
    r"\btell\w* apart\b": "'distinguish', 'classify'",
    r"\beverybody alike\b": "'predicts the same class for everyone'",
    r"\bby heart\b": "'overfits', 'memorises'",
    r"\b(?:a )?surviv(?:es|ing|al)\b": "'fault tolerance', 'is unaffected by'",
    r"\b(?:steps?|tokens?|layers?|frames?|epochs?|batch(?:es)?|norm|released names|same one"
    r"|have it|training|the next one) behind\b": "'after', 'before', or 'with the prefix'",
    r"\bwritten whole\b|\bare whole\b": "'written atomically'",
    r"\blikeness\b": "'similarity'",
    r"\bas it stands(?: there)?\b|\bas they stand\b": "'unchanged', 'as they are'",
    r"\bmisses nothing\b|\bno riddle": "a plain statement",
    r"\b(?:is|are) told (?:of|by)\b": "'is reported', 'is recognised by'",
    r"\bby itself alone\b|\bfor ever\b": "'separately', 'indefinitely'",
    r"\bcalls? all subjects\b": "'predicts the same class for all subjects'",
    r"\bit must be said\b|\bwhich is said\b|\band says so, too\b": "'and reports this'",
    r"\bgo(?:es|ing)? on\b": "'continue'",
    r"\b(?:one|a) (?:line|file|row|process|name|tensor|number|folder|page) an? \w": "'per'",
    r"\bspoilt\b|\btorn\b": "'corrupted', 'incomplete'",
    r"\bbooks? (?:every|each|the)\b|\bbooked on\b": "'assigns', 'assigned to'",
    r"\b(?:mend|mends|mended)\b": "'correct', 'corrected'",
    r"\bbatch-mates?\b": "'the rest of the batch'",
    r"\bwho(?:so)?ever\b": "a sentence with a subject",
    r"\btold apart\b|\btells? (?:\w+ ){1,5}apart\b(?! from)": "'distinguish'",
    r"\bfeatures (?:\w+ )?tell\b|\bhow well they tell\b": "'predict', 'show'",
    r"\btells? of (?:an? |this |it\b)|\b(?:header|file) tells of\b": "'names', 'gives', 'is about'",
    r"\bthe very (?!(?:end|first|last|least)\b)": "'exactly the', 'the same'",
    r"\bsisters?\b|\brivals?\b": "the name of what is meant",
    r"\ba wrong call\b": "'an error in the command line'",
    r"\bis said to be\b|\bis said of\b|\bis missing is said\b": "'is reported', 'is known'",
    r"(?<!are )\ball the same\b": "'nevertheless', 'too'",
    r"\bis yours to decide\b|\bof yours\b(?! (?:that|instead))": "'your own'",
}


def prose() -> Iterator[tuple[str, int, str]]:
    """File, number of its line, and text, for every line of Markdown outside of code blocks."""
    for path in sorted(ROOT.rglob("*.md")):
        parts = path.relative_to(ROOT).parts
        if any(part.startswith(".") for part in parts) or parts[0] in {"output", "shared"}:
            continue
        if "results" in parts or parts[:2] == ("paper", "synthetic"):
            continue  # written by programs
        fenced = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif not fenced:
                yield "/".join(parts), number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)


def code_strings(files: Iterable[Path]) -> Iterator[tuple[str, int, str]]:
    """File, number of its line, and text, for every line of a string literal in Python files."""
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for number, line in enumerate(node.value.splitlines(), start=node.lineno):
                    yield path.as_posix(), number, re.sub(r"``.*?``", "", line)


def found_in(lines: Iterable[tuple[str, int, str]]) -> list[str]:
    """A message for each avoided expression."""
    return [
        f"{name}:{number}: '{match[0]}': write {instead}"
        for name, number, line in lines
        for pattern, instead in AVOIDED.items()
        if (match := re.search(pattern, line, re.IGNORECASE))
    ]


def test_documents_use_plain_words() -> None:
    found = found_in(prose())
    assert not found, "private vocabulary in the documentation:\n" + "\n".join(found)


def test_code_uses_plain_words() -> None:
    """Messages, help texts and docstrings of the package."""
    found = found_in(code_strings(sorted(PACKAGE.rglob("*.py"))))
    assert not found, "private vocabulary in the code:\n" + "\n".join(found)


def test_docstrings_begin_with_a_sentence() -> None:
    """The imperative, or what the thing is; not a preposition that lacks its noun."""
    found = [
        f"{path.relative_to(ROOT)}: {docstring.splitlines()[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (docstring := ast.get_docstring(node))
        and re.match(r"(?:Of|As|In|By|On|For|To|From|With|At) ", docstring)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "hits"),
    [
        ("The card of a checkpoint", 1),
        ("It cannot be told from chance.", 1),
        ("It learns the scans by heart", 1),
        ("stop behind the same step, two steps behind it", 1),
        ("one line a run, a file a subject", 1),
        ("the idea behind the method; 3.6 on cardinality", 0),
        ("a discarded batch", 0),
        ("Runs are told apart by it: it tells two such runs apart", 1),
        ("which the features tell; all the same, a wrong call", 3),
        ("predictions that are all the same, at the very end; tells torch what", 0),
        ("the model card of the hub", 0),
    ],
)
def test_patterns(line: str, hits: int) -> None:
    assert len(found_in([("page.md", 1, line)])) == hits


def test_strings_of_code_are_found(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text('"""A module.\n\nIts card.\n"""\nx = f"told from {1}"\ny = "fine"\n')
    assert [message.split(":")[1] for message in found_in(code_strings([file]))] == ["3", "5"]
