"""The picture of the rooms, assets/rooms.png, is drawn from the contracts and the real imports."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.helpers.paths import PACKAGE, PROJECT, ROOT

CONTAINERS = ("neuromamba", "neuromamba.data")


@pytest.fixture(scope="module")
def draw_rooms() -> ModuleType:
    pytest.importorskip("grimp", reason="comes with import-linter, of requirements-dev.txt")
    name = "draw_rooms"
    spec = importlib.util.spec_from_file_location(name, ROOT / "assets" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_folder_is_a_room_of_the_picture(draw_rooms: ModuleType, container: str) -> None:
    rooms = {room for row in draw_rooms.layers(container) for room in row}
    folder = PROJECT / container.replace(".", "/")
    folders = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert folders == rooms - {"__main__"}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_import_points_down(draw_rooms: ModuleType, container: str) -> None:
    row_of = {
        room: number for number, row in enumerate(draw_rooms.layers(container)) for room in row
    }
    arrows = draw_rooms.imports(container)
    assert len(arrows) >= len(row_of) - 1
    inside = {arrow: n for arrow, n in arrows.items() if row_of[arrow[0]] >= row_of[arrow[1]]}
    assert not inside


@pytest.mark.parametrize("container", CONTAINERS)
def test_arrows_that_are_left_out_follow_from_others(
    draw_rooms: ModuleType, container: str
) -> None:
    drawn = draw_rooms.drawn(container)
    for importer, imported in draw_rooms.imports(container):
        assert imported in draw_rooms.reachable(drawn, importer)
    for arrow in drawn:
        others = [other for other in drawn if other != arrow]
        assert arrow[1] not in draw_rooms.reachable(others, arrow[0]), f"{arrow} could be left out"


def test_every_room_says_what_it_is(draw_rooms: ModuleType) -> None:
    names = [path.parent.relative_to(PACKAGE) for path in PACKAGE.glob("*/__init__.py")]
    names += [path.parent.relative_to(PACKAGE) for path in PACKAGE.glob("data/*/__init__.py")]
    silent = [str(name) for name in names if not draw_rooms.purpose(str(name))]
    assert not silent
