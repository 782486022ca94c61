"""No page is wider than a phone's or a small laptop's screen, as Chromium lays it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from neuromamba.commands import embed, predict
from neuromamba.commands import quality as quality_command
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.pages.page import FileLink, Page, Picture, Section, Table, render
from neuromamba.pages.score_sections import prediction_figures, subject_cells, subjects_table
from neuromamba.pages.tables import metrics_table, time_table, version_table
from tests.helpers.chromium import CHROMIUM, Layout, layout
from tests.helpers.quality_store import write_brain, write_store
from tests.helpers.trained_model import Trained

WIDTHS = (390, 1280)
LONG = "sub-a_very_long_name_without_a_break_" * 4

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def scores(classes: int, subjects: int = 24) -> SubjectScores:
    rng = np.random.default_rng(classes)
    names = tuple(f"sub-{i:02d}{LONG if i == 3 else ''}" for i in range(subjects))
    if not classes:
        target = rng.normal(31_000, 900, subjects)
        return SubjectScores(names, target, (target + rng.normal(0, 500, subjects))[:, None])
    target = np.arange(subjects) % classes
    score = rng.random((subjects, classes)) + np.eye(classes)[target]
    return SubjectScores(names, target, score / score.sum(axis=1, keepdims=True))


@pytest.fixture(scope="module", params=["sex", "age", "six kinds"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Results, figures and subjects, as the pages of runs of both families have them."""
    folder = tmp_path_factory.mktemp("page")
    names = {"sex": ("female", "male"), "age": (), "six kinds": tuple("abcdef")}[request.param]
    first, other = scores(len(names)), scores(len(names))._replace()
    others = {f"logistic regression of {i} correlations": other for i in range(3)}
    shown = {"a_run_with_a_rather_long_name": first, **others}
    unit = "" if names else "years"
    cells = [(name, *subject_cells(first, i, names)) for i, name in enumerate(first.subjects)]
    return render(
        Page(
            f"{request.param}: {LONG}",
            ("A summary.", LONG),
            (
                Section("Results", (LONG,), [metrics_table(shown, names, unit=unit)]),
                prediction_figures("Prediction of age", shown, names, folder, unit),
                Section("Subjects", tables=[subjects_table(cells, names, "", unit=unit)]),
                Section(
                    "Versions", tables=(version_table(), time_table({"a": 1})), side_by_side=True
                ),
            ),
            "A notice.",
        )
    )


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that a page can hold, each too wide."""
    folder = tmp_path_factory.mktemp("page")
    path = folder / "wide.png"
    Figure(figsize=(20, 4)).savefig(path)
    rows = [[LONG, *(f"{i}.123 [{i}.001, {i}.999]" for i in range(14))] for _ in range(3)]
    head = ["region", *(f"measure number {i}" for i in range(14))]
    link = [[FileLink(LONG, "a.html"), "1"]]
    return render(
        Page(
            "A page",
            (),
            (
                Section(
                    "Tables",
                    tables=[
                        Table(rows, head, LONG, LONG, numbers=range(1, 15), strong=0),
                        Table(rows, head, sortable=True),
                        Table(link, ("file", "number")),
                        Table([("property", LONG)]),
                        Table([(LONG, LONG, "none")] * 2, ("scan", "what was done", "doubts")),
                    ],
                    side_by_side=True,
                ),
                Section("Picture", pictures=[Picture(path, LONG, "wide", wide=True)]),
                Section("Code", code=LONG * 3),
            ),
        )
    )


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a store's quality, which has a template of its own; runs have every fault."""
    store = tmp_path_factory.mktemp("quality") / "store"
    write_store(store)
    write_brain(store, LONG, 90)
    (store / "hdf5" / "sub-broken.h5").write_bytes(b"no HDF5")
    assert quality_command.main(["--image_path", str(store), "--num_workers", "1"]) == 1
    return (store / "quality" / "quality.html").read_text(encoding="utf-8")


def fits(page: str, width: int, folder: Path) -> Layout:
    found = layout(page, width, folder)
    assert found.width <= width and found.cut == []
    assert found.unmarked == [] and found.narrow == []
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_results_are_seen_without_scrolling(results: str, width: int, tmp_path: Path) -> None:
    """Tables too: what has to be scrolled sideways is overlooked."""
    found = fits(results, width, tmp_path)
    assert [name for name in found.scrolled if name != "scroll tall"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_whatever_a_page_holds(everything: str, width: int, tmp_path: Path) -> None:
    found = fits(everything, width, tmp_path)
    if width == 390:  # a list of cells, and a picture as wide as the screen
        assert set(found.scrolled) <= {"PRE"}


def test_the_measure_sees_what_is_too_wide(tmp_path: Path) -> None:
    page = "<body style='margin:0'><div style='width:900px'>a</div></body>"
    found = layout(page, 390, tmp_path)
    assert found.width == 900 and found.cut == ["DIV a"]
    assert layout(page, 1280, tmp_path).cut == []
    inside = f"<div style='overflow-x:auto'>{page}</div>"
    found = layout(inside, 390, tmp_path)
    assert found.width == 390 and found.cut == [] and len(found.scrolled) == 1
    assert found.unmarked == ["DIV"]
    cell = f"<td style='overflow-wrap:anywhere'>{'word ' * 9}</td>"
    table = f"<table width=380><tr><td style='min-width:350px'>a</td>{cell}</tr></table>"
    assert len(layout(table, 390, tmp_path).narrow) == 1


@pytest.fixture(scope="module")
def used(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages of predict and embed."""
    folder = tmp_path_factory.mktemp("used")
    scans = ["-o", str(folder / "predict")]
    assert predict.main([str(trained.age), str(trained.nifti), *scans]) == 0
    scans = ["-o", str(folder / "embed")]
    assert embed.main([str(trained.backbone), str(trained.nifti), *scans]) == 0
    return {path.parent.name: path.read_text("utf-8") for path in folder.glob("*/report.html")}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["predict", "embed"])
def test_pages_of_a_model_in_use(
    used: dict[str, str], command: str, width: int, tmp_path: Path
) -> None:
    """What was done to the scans had a column of three letters' width."""
    assert set(fits(used[command], width, tmp_path).scrolled) <= {"PRE"}


@pytest.mark.parametrize("width", WIDTHS)
def test_quality_of_a_store(quality: str, width: int, tmp_path: Path) -> None:
    """On a laptop the table has all its columns in view; on a phone it scrolls in its own frame."""
    found = fits(quality, width, tmp_path)
    assert set(found.scrolled) <= ({"scroll"} if width == 390 else set())
