"""The command neuromamba quality: page, table, cache, broken files, mistakes, a real browser."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from neuromamba.commands import quality as entry
from neuromamba.data.ingest.convert import ConversionOptions
from neuromamba.data.ingest.folder import convert_folder
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.reader import RunFile
from neuromamba.data.store.writer import write_run
from neuromamba.pages.policy import policy
from neuromamba.reports.quality import survey as store_survey
from tests.helpers.preloaded import preloaded_python
from tests.helpers.quality_store import FAULTS, HEALTHY, write_brain, write_store
from tests.helpers.shared_files import GIFT, linked

HOSTILE = "sub-<script>alert(1)<img src=x onerror=alert(2)>&'\""
VOID = {"meta", "link", "input", "br", "img", "hr"}
SHAPES = {"line", "path"}


class Document(HTMLParser):
    """Checks that elements are closed, and collects what the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.attributes.append((tag, values))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "script":
            self.scripts.append((values, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def pictures(self) -> dict[str, dict[str, Any]]:
        return {
            str(attributes["id"]): json.loads(text)
            for attributes, text in self.scripts
            if attributes.get("type") == "application/json"
        }


def run(store: Path, *flags: str) -> int:
    return entry.main(["--image_path", str(store), "--num_workers", "1", *flags])


def page_of(store: Path) -> Document:
    return Document((store / "quality" / "quality.html").read_text(encoding="utf-8"))


def table_of(store: Path) -> dict[str, dict[str, str]]:
    with open(store / "quality" / "quality.tsv", newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["file"]: row for row in rows}


def entries(store: Path) -> dict[str, int]:
    folder = store / "quality" / "quality_cache"
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with healthy runs, every fault, a hostile name and a broken file, and its page."""
    store = tmp_path_factory.mktemp("faults") / "store"
    write_store(store)
    write_brain(store, HOSTILE, 90)
    (store / "hdf5" / "sub-broken.h5").write_bytes(b"no HDF5")
    assert run(store) == 1
    return store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six healthy runs."""
    for number in range(6):
        write_brain(tmp_path / "store", f"sub-{number:02d}", number)
    return tmp_path / "store"


# --- what is written ----------------------------------------------------------------------------


def test_faults_are_flagged_and_healthy_runs_are_not(finished: Path) -> None:
    table = table_of(finished)
    assert len(table) == HEALTHY + len(FAULTS) + 2
    for name, (_, flag) in FAULTS.items():
        assert flag in table[f"sub-{name}.h5"]["flags"].split("; "), name
    flagged = {file for file, row in table.items() if row["flags"]}
    assert flagged == {f"sub-{name}.h5" for name in FAULTS} | {"sub-broken.h5"}
    assert table["sub-broken.h5"]["readable"] == "false"
    assert "not a readable HDF5 file" in table["sub-broken.h5"]["reasons"]
    assert table["sub-01.h5"]["windows"] == "2"
    assert table["sub-01.h5"]["space"] == "made-up"


def test_page_is_complete_and_stands_alone(finished: Path) -> None:
    page = page_of(finished)
    body = page.rows[1:]  # without the header
    assert len(body) == HEALTHY + len(FAULTS) + 2
    assert body[0][0] == "sub-broken"
    assert "cannot be read: not a readable HDF5 file" in body[0][1]
    counts = [bool(row[1]) for row in body]
    assert counts == sorted(counts, reverse=True)  # outliers first
    assert len(page.rows[0]) == len(body[0]) == len(body[-1])

    pictures = page.pictures
    assert set(pictures) == {f"p{place}" for place in range(1, len(body))}  # p0 is the broken one
    for picture in pictures.values():
        assert {"atlas", "carpet", "tiles", "global", "difference", "histogram"} <= set(picture)
    for tag, attributes in page.attributes:
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    text = (finished / "quality" / "quality.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "neurological convention" in text


def test_names_are_shown_and_not_run(finished: Path) -> None:
    page = page_of(finished)
    (row,) = [row for row in page.rows if row[0] == HOSTILE]
    assert row[1] == ""
    assert sum(attributes.get("type") is None for attributes, _ in page.scripts) == 1  # our own
    assert not any(tag == "img" for tag, _ in page.attributes)
    assert "<script>alert" not in (finished / "quality" / "quality.html").read_text()


def test_summary_lines(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(finished) == 1
    out = capsys.readouterr().out
    total = HEALTHY + len(FAULTS) + 2
    assert f"{total} runs ({total - 1} from the cache): {len(FAULTS)} flagged, 1 cannot be" in out
    assert "sub-broken.h5: cannot be read: not a readable HDF5 file" in out
    assert "  left-right flip: 1" in out


def test_flags_shape_the_page(store: Path, tmp_path: Path) -> None:
    output = tmp_path / "elsewhere" / "page.html"
    flags = ["--output", str(output), "--patch_size", "3", "5", "4", "1", "--limit", "4"]
    flags += ["--sequence_length", "10", "--input_scaling_method", "minmax_zeroback"]
    assert run(store, *flags, "--frames", "20") == 0
    assert not (store / "quality").exists()
    text = output.read_text(encoding="utf-8")
    assert "Only the first 4 of 6 runs" in text
    assert "at most 20 evenly spaced frames" in text
    assert "Runs are compared with each other in stores of 5 or more" in text
    command = re.search(r"<code>(.*)</code>", text)[1]  # type: ignore[index]
    again = entry.build_parser().parse_args(shlex.split(command)[2:])
    assert (again.output, again.patch_size) == (str(output), [3, 5, 4, 1])
    assert (again.limit, again.frames, again.sequence_length) == (4, 20, 10)
    assert again.input_scaling_method == "minmax_zeroback"
    pictures = Document(text).pictures
    assert len(pictures) == 4
    for picture in pictures.values():
        assert picture["patches"] == 8 * 6 * 6
        assert picture["histogram"]["high"] == 1.0
        assert picture["background"] == 0
        assert picture["step"] == 2
    with open(output.with_suffix(".tsv"), newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [row["windows"] for row in rows] == ["4"] * 4
    assert {row["frames_read"] for row in rows} == {"20"}


def test_run_of_another_grid_is_flagged_and_not_compared(store: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.normal(1000, 20, (40, 200)).astype(np.float32)
    affine = np.diag([-4.0, 4, 4, 1])
    write_run(
        store / "hdf5" / "sub-99.h5",
        frames,
        np.arange(200),
        grid=(10, 10, 10),
        affine=affine,
        source=RunSource(subject="sub-99", tr=2.0, space="made-up"),
    )
    assert run(store) == 0
    row = table_of(store)["sub-99.h5"]
    assert "grid" in row["flags"].split("; ")
    assert row["correlation"] == row["kept_fraction"] == "n/a"
    assert "10×10×10" not in row["grid"]
    assert row["grid"] == "10x10x10"


def test_copy_of_a_file_is_named(store: Path) -> None:
    shutil.copy(store / "hdf5" / "sub-02.h5", store / "hdf5" / "sub-02_copy.h5")
    assert run(store) == 0
    table = table_of(store)
    assert table["sub-02.h5"]["reasons"] == "the same data as sub-02_copy"
    assert table["sub-02_copy.h5"]["reasons"] == "the same data as sub-02"


def scaled(file: h5py.File) -> None:
    """Times 2 plus 5."""
    for name in ("scale", "offset", "min", "max", "mean", "std"):
        file.attrs[name] = file.attrs[name] * 2 + (5 if name not in ("scale", "std") else 0)


def moved(file: h5py.File) -> None:
    for name in ("offset", "min", "max", "mean"):
        file.attrs[name] = file.attrs[name] + 1e4


def rounded(file: h5py.File) -> None:
    file["bold"][:] = file["bold"][:] // 16 * 16


@pytest.mark.parametrize("change", [scaled, moved, rounded])
@pytest.mark.parametrize(("subject", "found"), [("sub-77", True), ("2", False)])
def test_a_near_copy_of_another_subject_is_flagged(
    store: Path, change: Callable[[h5py.File], None], subject: str, found: bool
) -> None:
    """As in a split; a second run of the same person is none."""
    other = store / "hdf5" / "other.h5"
    shutil.copy(store / "hdf5" / "sub-02.h5", other)
    with h5py.File(other, "r+") as file:
        file.attrs["subject"] = subject
        file.attrs["content_sha256"] = "0" * 64
        change(file)
    assert run(store) == 0
    table = table_of(store)
    flagged = {name for name, row in table.items() if "copy" in row["flags"].split("; ")}
    assert flagged == ({"other.h5", "sub-02.h5"} if found else set())
    if found:
        assert "the same scan as sub-77, of another subject" in table["sub-02.h5"]["reasons"]
        assert "the same scan as sub-02, of another subject" in table["other.h5"]["reasons"]


# --- cache --------------------------------------------------------------------------------------


def test_second_call_measures_new_and_changed_runs_only(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(store) == 0
    before, page = entries(store), (store / "quality" / "quality.html").read_bytes()
    seen: list[str] = []
    measure_run = store_survey.measure_run

    def noted(run_file: RunFile, *arguments: Any) -> Any:
        seen.append(run_file.path.stem)
        return measure_run(run_file, *arguments)

    monkeypatch.setattr(store_survey, "measure_run", noted)
    assert run(store) == 0
    assert seen == []
    assert entries(store) == before
    assert (store / "quality" / "quality.html").read_bytes() == page

    write_brain(store, "sub-01", 1, noise=61)  # other content
    write_brain(store, "sub-03", 3, tr=2.5)  # other header
    write_brain(store, "sub-77", 77)
    assert run(store) == 0
    assert seen == ["sub-01", "sub-03", "sub-77"]
    seen.clear()
    assert run(store, "--frames", "10") == 0
    assert len(seen) == 7


def test_damaged_entries_are_made_again(store: Path) -> None:
    assert run(store) == 0
    page = (store / "quality" / "quality.html").read_bytes()
    first, second, third, *_ = sorted((store / "quality" / "quality_cache").iterdir())
    first.write_bytes(first.read_bytes()[:-300])
    second.write_bytes(b"")
    damaged = bytearray(third.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    third.write_bytes(damaged)
    assert run(store) == 0
    assert (store / "quality" / "quality.html").read_bytes() == page


def test_interrupted_and_continued(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_run = store_survey.measure_run

    def interrupted(run_file: RunFile, *arguments: Any) -> Any:
        if run_file.path.stem == "sub-02":
            raise KeyboardInterrupt
        return measure_run(run_file, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store_survey, "measure_run", interrupted)
        assert run(store) == 130
    assert "call again to continue" in capsys.readouterr().err
    assert len(entries(store)) == 2
    assert not list(store.rglob("*.tmp"))
    assert run(store) == 0
    assert "6 runs (2 from the cache)" in capsys.readouterr().out


def test_several_processes_write_the_same_page(store: Path, tmp_path: Path) -> None:
    """As typed: another folder, no PYTHONPATH, plain lines in a log."""
    (store / "hdf5" / "broken.h5").write_bytes(b"")
    command = [preloaded_python(), "-m", "neuromamba", "quality", "--image_path", "store"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pages = []
    for workers in ("2", "1"):
        done = subprocess.run(
            [*command, "--num_workers", workers],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr == ""
        assert "measured 7 of 7 runs" in done.stdout
        pages.append((store / "quality" / "quality.html").read_bytes())
        shutil.rmtree(store / "quality")
    assert pages[0] == pages[1]


def test_ctrl_c_in_several_processes(store: Path) -> None:
    for number in range(6, 60):
        write_brain(store, f"sub-{number:02d}", number)
    command = [sys.executable, "-m", "neuromamba", "quality", "--image_path", str(store)]
    process = subprocess.Popen(
        [*command, "--num_workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    cache = store / "quality" / "quality_cache"
    limit = time.monotonic() + 60
    while not (cache.is_dir() and list(cache.glob("*.npz"))) and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("all runs were measured before the signal came")
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list(cache.glob("*.npz"))
    assert not list(store.rglob("*.tmp"))


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--patch_size", "5", "6", "6", "2"], "--patch_size: 5 does not divide the 24 of the st"),
        (["--patch_size", "6", "6", "6", "3"], "does not divide the 20 of --sequence_length"),
        (["--patch_size", "0", "6", "6", "2"], "--patch_size: got 0, expected 1 or more"),
        (["--sequence_length", "0"], "--sequence_length: got 0, expected 1 or more"),
        (["--input_scaling_method", "zscore"], "--input_scaling_method"),
        (["--frames", "2"], "--frames: got 2, expected 3 or more, or 0 for all"),
        (["--frames", "-1"], "--frames: got -1"),
        (["--limit", "-1"], "--limit: got -1, expected 0 or more"),
        (["--num_workers", "0"], "--num_workers: got 0, expected 1 or more"),
        (["--output", "page"], "--output: got 'page', expected a file FILE.html"),
        (["--output", "store/hdf5/sub-00.h5/page.html"], "--output: "),
        (["--image_path", "nowhere"], "--image_path: no folder 'nowhere'"),
    ],
)
def test_mistakes(
    flags: list[str],
    message: str,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(store.parent)
    assert entry.main(["--image_path", "store", "--num_workers", "1", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (store / "quality").exists()


def test_page_that_is_a_folder(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "quality" / "quality.html").mkdir(parents=True)
    assert run(store) == 2
    assert "error: --output: cannot write" in capsys.readouterr().err
    assert not list(store.rglob("*.tmp"))


def test_store_without_a_readable_run(tmp_path: Path) -> None:
    (tmp_path / "hdf5").mkdir()
    (tmp_path / "hdf5" / "a.h5").write_bytes(b"nothing")
    assert run(tmp_path) == 1
    page = page_of(tmp_path)
    assert [row[0] for row in page.rows[1:]] == ["a"]
    assert page.pictures == {}


# --- real data ----------------------------------------------------------------------------------


@pytest.mark.real_data
def test_flipped_copy_of_a_real_run_is_found(shared_data: Path, tmp_path: Path) -> None:
    """Four subjects and one of them with left and right exchanged."""
    convert_folder(
        linked(shared_data / "gift_mni_bold", GIFT, tmp_path / "in"),
        tmp_path,
        ConversionOptions(img_size=(30, 36, 30)),
        num_workers=1,
        report=lambda line: None,
    )
    source = RunFile(sorted((tmp_path / "hdf5").glob("*.h5"))[1])
    header = source.header
    frames = source.read(range(header.n_frames)) * header.scale + header.offset
    x, y, z = np.unravel_index(source.vox, header.grid)
    mirrored = np.ravel_multi_index((header.grid[0] - 1 - x, y, z), header.grid)
    order = np.argsort(mirrored)
    source.close()
    write_run(
        tmp_path / "hdf5" / "sub-flipped.h5",
        frames[:, order].astype(np.float32),
        mirrored[order],
        grid=header.grid,
        affine=header.affine,
        source=RunSource(subject="sub-flipped", tr=header.tr),
    )
    assert run(tmp_path) == 0
    table = table_of(tmp_path)
    flips = {file for file, row in table.items() if "left-right flip" in row["flags"]}
    assert flips == {"sub-flipped.h5"}
    assert {file for file, row in table.items() if row["flags"]} == flips
    for file, row in table.items():
        sides = float(row["correlation"]) - float(row["mirrored"])
        assert (sides < 0) == (file == "sub-flipped.h5")


# --- a browser ----------------------------------------------------------------------------------

# Looks at the page once it is drawn, then uses it: next page, filter, search, sort.
PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const find = (id) => document.getElementById(id);
  const names = () => [...document.querySelectorAll("#runs tbody th")].map((e) => e.textContent);
  const set = (id, value, kind) => {
    find(id).value = value;
    find(id).dispatchEvent(new Event(kind));
  };
  const seen = {
    names: names(),
    wide: document.documentElement.scrollWidth,
    view: innerWidth,
    cards: document.querySelectorAll("article").length,
    drawn: document.querySelectorAll("article .panels").length,
    where: find("where").textContent,
    images: document.querySelectorAll("img").length,
  };
  find("after").click();
  seen.second = names();
  set("filter", "TR", "change");
  seen.filtered = names();
  set("filter", "", "change");
  set("search", "ONERROR", "input");
  seen.searched = names();
  set("search", "", "input");
  const frames = [...document.querySelectorAll("#runs thead button")].find(
    (button) => button.textContent === "frames");
  frames.click();
  seen.up = names().slice(0, 2);
  frames.click();
  find("after").click();
  seen.down = names();
  console.log("PROBE " + btoa(unescape(encodeURIComponent(JSON.stringify(seen)))) + ".");
}, 500))</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(finished: Path, width: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine")
    text = (finished / "quality" / "quality.html").read_text(encoding="utf-8")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    # The page's policy admits its own scripts only.
    admitted = policy([], [PROBE.removeprefix("<script>").removesuffix("</script>")])
    (source,) = re.findall(r"script-src ('[^']*')", admitted)
    text = text.replace("script-src ", f"script-src {source} ")
    page.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    # A window has a least width; a frame in it has not.
    frame = f'<iframe src="page.html" style="border:0" width="{width}" height="3000"></iframe>'
    outer = tmp_path / "outer.html"
    outer.write_text(f'<!DOCTYPE html><body style="margin:0">{frame}</body>', encoding="utf-8")
    done = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", "--hide-scrollbars"),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},3000",
            f"--screenshot={picture}",
            outer.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    probes = [line for line in console if "PROBE" in line]
    assert console == probes  # no error, no warning
    match = re.search(r"PROBE (\S+)\.", probes[0])
    assert match is not None
    found = json.loads(base64.b64decode(match[1]))
    total = HEALTHY + len(FAULTS) + 2
    assert found["cards"] == len(found["names"]) == 25
    assert found["names"][0] == "sub-broken"
    assert found["where"] == f"1 to 25 of {total}"
    assert found["view"] == width
    assert found["wide"] <= width  # only the table itself scrolls sideways
    assert 1 <= found["drawn"] < 25  # those near the view only
    assert found["images"] == found["drawn"]  # carpets; the hostile name made none
    assert len(found["second"]) == total - 25
    assert not set(found["second"]) & set(found["names"])
    assert found["filtered"] == ["sub-slow"]
    assert found["searched"] == [HOSTILE]
    assert found["up"][0] == "sub-short"
    assert found["down"] == ["sub-broken"]  # undefined values come last, up and down
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (3000, width)
    assert pixels.std() > 10
