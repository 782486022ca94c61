"""Files, classes and lists of arguments stay small enough to be read at one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import PACKAGE

FILE_LINES, CLASS_LINES, POSITIONAL = 400, 250, 8
# A longer file says why in its first lines, with these words.
REASON, FIRST_LINES = "Longer than 400 lines because", 20

ALLOWED = {
    # torch.autograd finds gradients only for tensors that are arguments of their own.
    "layers/ssd/blockwise.py: _Blockwise.forward",
}


def definitions(tree: ast.AST, above: str = "") -> Iterator[tuple[str, ast.AST]]:
    """All classes and functions of a module under their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{above}{node.name}", node
            yield from definitions(node, f"{above}{node.name}.")
        else:
            yield from definitions(node, above)


def too_large(source: str) -> Iterator[str]:
    """Names of what exceeds a limit; "" is the file itself."""
    lines = source.splitlines()
    if len(lines) > FILE_LINES and REASON not in "\n".join(lines[:FIRST_LINES]):
        yield ""
    for name, node in definitions(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > CLASS_LINES:
                yield name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
            if len([arg for arg in names if arg not in ("self", "cls")]) > POSITIONAL:
                yield name


def offenders() -> set[str]:
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        for name in too_large(Path(path).read_text(encoding="utf-8")):
            found.add(f"{file}: {name}" if name else file)
    return found


def test_files_classes_and_arguments_are_few() -> None:
    new = offenders() - ALLOWED
    assert not new, (
        f"more than {FILE_LINES} lines in a file, {CLASS_LINES} in a class or {POSITIONAL} "
        f"positional parameters: {sorted(new)}"
    )


def test_exceptions_are_needed() -> None:
    assert not ALLOWED - offenders(), "remove these from the lists above"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n" * 400, []),
        ("x = 1\n" * 401, [""]),
        (f'"""{REASON} it is a table."""\n' + "x = 1\n" * 401, []),
        ("class A:\n" + "    x = 1\n" * 249, []),
        ("class A:\n" + "    x = 1\n" * 250, ["A"]),
        ("def f(a, b, c, d, e, f, g, h): ...", []),
        ("def f(a, b, c, d, e, f, g, h, i): ...", ["f"]),
        ("def f(a, b, c, d, e, f, g, h, *, i, j): ...", []),
        ("class A:\n    def f(self, a, b, c, d, e, f, g, h): ...", []),
        ("class A:\n    if x:\n        def f(self, a, b, c, d, e, f, g, h, i): ...", ["A.f"]),
    ],
)
def test_limits(source: str, expected: list[str]) -> None:
    assert list(too_large(source)) == expected
