"""Draws rooms.png: the rooms of the package and which of them imports which.

    python assets/draw_rooms.py

The rows are the layers of the import contracts in pyproject.toml: a room may import only from rows
below its own. The arrows are the imports that the code really has (grimp's graph). An arrow that
follows from others (A to B and B to C imply that A may use C) is left out, to keep the picture
legible.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "neuromamba"
DATA = f"{PACKAGE}.data"
Arrow = tuple[str, str]


def layers(container: str) -> list[list[str]]:
    """Read the rows of rooms below a package from its layers contract, highest row first."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        contracts = tomllib.load(stream)["tool"]["importlinter"]["contracts"]
    (found,) = (
        c["layers"] for c in contracts if c["type"] == "layers" and c["containers"] == [container]
    )
    return [[room.strip() for room in row.split("|")] for row in found]


@cache
def imports(container: str) -> dict[Arrow, int]:
    """Count the imports, (importing room, imported room) -> lines, between rooms of a package."""
    import grimp

    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    depth = container.count(".") + 1
    counts: dict[Arrow, int] = {}
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            pair = importer.split("."), imported.split(".")
            if all(".".join(name[:depth]) == container and len(name) > depth for name in pair):
                arrow = pair[0][depth], pair[1][depth]
                if arrow[0] != arrow[1]:
                    counts[arrow] = counts.get(arrow, 0) + 1
    return counts


def reachable(arrows: Iterable[Arrow], start: str) -> set[str]:
    """Find the rooms that can be reached along the arrows."""
    arrows = set(arrows)
    found: set[str] = set()
    waiting = [start]
    while waiting:
        room = waiting.pop()
        new = {b for a, b in arrows if a == room} - found
        found |= new
        waiting += new
    return found


def drawn(container: str) -> list[Arrow]:
    """Choose the arrows that imply all others (the transitive reduction; there are no circles)."""
    arrows = set(imports(container))
    return sorted(a for a in arrows if a[1] not in reachable(arrows - {a}, a[0]))


def purpose(room: str) -> str:
    """Take the first sentence of a room's docstring: what is in it."""
    path = ROOT / "project" / PACKAGE / room
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".").replace("``", "")


# Inches, at 200 dpi; half of the pixels are legible on a page. The rows give the height.
WIDTH = 9.4
ROW, BOX, GAP = 0.9, 0.55, 0.25  # distance of rows, height of boxes, gap inside a row
INK, LINE, FILL, INNER = "#1f3a5f", "#6f88a8", "#e9eff7", "#fdf3e3"
# Imported by its name when it is called, so that grimp does not see it.
BY_NAME = (("__main__", "commands"),)
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A room's place in the picture, in inches; ``row`` counts from the top."""

    left: float
    bottom: float
    width: float
    row: int

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def top(self) -> float:
        return self.bottom + BOX

    @property
    def centre(self) -> float:
        return self.left + self.width / 2


def row_boxes(rows: list[list[str]], left: float, top: float, width: float) -> dict[str, Box]:
    """Place the rooms: one row below another, the rooms of a row side by side."""
    boxes = {}
    for number, row in enumerate(rows):
        each = (width - GAP * (len(row) - 1)) / len(row)
        for column, room in enumerate(row):
            boxes[room] = Box(left + column * (each + GAP), top - number * ROW, each, number)
    return boxes


def route(start: Box, end: Box, edges: Point, lanes: Counter[str]) -> list[Point]:
    """Choose the corners of an arrow; one that passes other rows runs beside the boxes.

    Args:
        start, end: where it starts and ends; ``end`` is in a lower row.
        edges: x of the left and right edge of all rows.
        lanes: parallel lines beside the boxes so far, by side; one more is counted.
    """
    if end.row == start.row + 1:
        low, high = max(start.left, end.left), min(start.right, end.right)
        if low < high:
            return [((low + high) / 2, start.bottom), ((low + high) / 2, end.top)]
        return [(start.centre, start.bottom), (end.centre, end.top)]
    middle = sum(edges) / 2
    narrow = [box for box in (start, end) if abs(box.centre - middle) > 0.1]
    side = "left" if not narrow or narrow[0].centre < middle else "right"
    lanes[side] += 1
    away = 0.06 + 0.11 * lanes[side]
    x, near = (edges[0] - away, start.left) if side == "left" else (edges[1] + away, start.right)
    above, inside = end.top + 0.08 + 0.06 * (lanes[side] % 4), end.left + 0.12 + 0.1 * lanes[side]
    if side == "right":
        inside = end.right - 0.12 - 0.1 * lanes[side]
    out = start.bottom + BOX * 0.4
    return [(near, out), (x, out), (x, above), (inside, above), (inside, end.top)]


def draw(path: Path) -> None:
    """Draw the picture with matplotlib."""
    height = 1.9 + ROW * (len(layers(PACKAGE)) - 1)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    figure, axes = plt.subplots(figsize=(WIDTH, height))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)

    def frame(left: float, bottom: float, width: float, height: float, **style: Any) -> None:
        shape = "round,pad=0,rounding_size=0.08"
        axes.add_patch(FancyBboxPatch((left, bottom), width, height, shape, lw=1, **style))

    def write(x: float, y: float, text: str, size: float, **style: Any) -> None:
        axes.text(x, y, text, va="top", fontsize=size, **{"color": INK, "zorder": 4, **style})

    def rooms(container: str, left: float, top: float, width: float, fill: str) -> None:
        boxes = row_boxes(layers(container), left, top, width)
        for room, box in boxes.items():
            frame(box.left, box.bottom, box.width, BOX, fc=fill, ec=INK, zorder=3)
            write(box.centre, box.top - 0.06, room, 10, ha="center", fontweight="bold")
            inside = "/".join([*container.split(".")[1:], room])
            lines = textwrap.wrap(purpose(inside), int(box.width * 17))
            if len(lines) > 2:  # the enumeration after the colon is in docs/architecture.md
                lines = textwrap.wrap(purpose(inside).split(":")[0], int(box.width * 17))[:2]
            text = "\n".join(lines)
            write(box.centre, box.top - 0.23, text, 7, ha="center", color="#333333")
        lanes: Counter[str] = Counter()
        by_name = [a for a in BY_NAME if set(a) <= boxes.keys()]
        for start, end in [*drawn(container), *by_name]:
            corners = route(boxes[start], boxes[end], (left, left + width), lanes)
            style = "--" if (start, end) in by_name else "-"
            xs, ys = zip(*corners, strict=True)
            axes.plot(xs, ys, style, color=LINE, lw=1.2, zorder=2)
            axes.annotate(
                "",
                corners[-1],
                corners[-2],
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": LINE,
                    "lw": 0,
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
                zorder=2,
            )

    write(0.3, height - 0.2, "Subpackages of neuromamba", 13, fontweight="bold")
    caption = (
        "Each imports only from rows below its own. Arrows: imports in the code (dashed: by "
        "name, when called);\nthose that follow from others are left out."
    )
    write(0.3, height - 0.5, caption, 8, color="black")
    rooms(PACKAGE, 1.05, height - 1.5, 4.5, FILL)
    frame(6.3, height - 7.6, 2.9, 4.95, fc="white", ec=LINE, ls="--", zorder=0)
    write(6.42, height - 2.75, "inside data", 10, fontweight="bold")
    rooms(DATA, 6.6, height - 3.7, 2.3, INNER)
    figure.savefig(path, dpi=200)


if __name__ == "__main__":
    draw(Path(__file__).with_name("rooms.png"))
