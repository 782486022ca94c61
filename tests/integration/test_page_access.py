"""Every page of the product can be read on a phone and a laptop, light and dark, by everyone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.chromium import CHROMIUM, layout
from tests.helpers.page_access import access, inches_on_a_phone
from tests.helpers.product_pages import PAGES, write_pages
from tests.helpers.trained_model import Trained
from tests.helpers.trained_regions import TrainedRegions

WIDTHS = (390, 1280)
# Of 362 pixels, so that 10 points are 8 pixels or more.
WIDEST = 6.3  # inches

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def pages(
    trained: Trained, trained_regions: TrainedRegions, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    found = write_pages(tmp_path_factory.mktemp("pages"), trained, trained_regions)
    assert set(found) == set(PAGES)
    return {name: path.read_text(encoding="utf-8") for name, path in found.items()}


@needs_chromium
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_hinders_nobody(pages: dict[str, str], name: str, tmp_path: Path) -> None:
    for width in WIDTHS:
        for dark in (False, True):
            found = access(pages[name], width, dark, tmp_path)
            assert found.letters > 200
            assert found.ground < 0.1 if dark else found.ground > 0.9
            assert found.hindrances == [], (width, dark)


@needs_chromium
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits(pages: dict[str, str], name: str, tmp_path: Path) -> None:
    for width in WIDTHS:
        found = layout(pages[name], width, tmp_path)
        assert found.width <= width and found.cut == [], width
        assert found.unmarked == [] and found.narrow == [], width


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_figures_are_large_enough_on_a_phone(pages: dict[str, str]) -> None:
    found = {name: inches_on_a_phone(page) for name, page in pages.items()}
    assert sum(map(len, found.values())) > 25
    assert {n: widths for n, widths in found.items() if max(widths, default=0) > WIDEST} == {}


@needs_chromium
def test_the_measure_sees_what_hinders(tmp_path: Path) -> None:
    page = """<style>:focus { outline: none } pre { overflow: auto; width: 90px; height: 20px }
    </style><h1>A</h1><h3>B</h3><p style="color: #999">pale</p>
    <p style="background: rgba(0, 0, 0, .9)">dark on dark</p><img src="data:,"><svg></svg>
    <table><thead><tr><th>a</th><th scope="col">b</th></tr></thead>
    <tbody><tr><td>row</td><td>1</td></tr></tbody></table>
    <pre>a very long line that has to be scrolled</pre><button></button><input>"""
    found = access(page, 390, False, tmp_path)
    assert [one.rsplit(" ", 1)[0] for one in found.pale] == ["pale", "dark on dark"]
    assert len(found.silent) == 2
    assert found.tables == ["no name", "a", "row"]
    assert found.unreached == ["PRE"]
    assert len(found.unnamed) == 2 and len(found.unfocused) == 2
    assert found.levels == [1, 3] and found.language == ""
    assert len(found.hindrances) == 14


@needs_chromium
def test_the_measure_is_content_with_a_plain_page(tmp_path: Path) -> None:
    page = """<html lang="en"><style>:focus-visible { outline: 3px solid } </style><h1>A</h1>
    <p style="color: #666">grey</p><h2>B</h2><p><a href="#a">a link</a></p></html>"""
    found = access(page, 1280, False, tmp_path)
    assert found.hindrances == [] and found.letters == 12 and found.ground == 1
