"""Numbers, pictures and flags of the quality page, against slow and independent computations."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from PIL import Image
from scipy import ndimage

from neuromamba.config.model import ModelConfig
from neuromamba.data.store.reader import RunFile, RunHeader
from neuromamba.reports.brain_figures import kept_patches
from neuromamba.reports.quality import measure as store_quality
from neuromamba.reports.quality.measure import (
    QualityOptions,
    RunMeasured,
    depth_groups,
    frames_to_read,
    measure_run,
    patches_with_brain,
    reduced_image,
)
from neuromamba.reports.quality.outliers import (
    LEAST_RUNS,
    MEASURES,
    RunSummary,
    asymmetries,
    flag_runs,
    number,
    robust_scores,
)
from neuromamba.reports.quality.page import embedded, strip
from neuromamba.reports.quality.pictures import (
    CURVE_POINTS,
    binned,
    carpet_image,
    outline,
    picture_of,
    rectangles,
    tiles_of,
)
from neuromamba.reports.quality.similarity import compare_images
from neuromamba.reports.quality.survey import Surveyed
from neuromamba.reports.quality.table import make_rows, write_tsv
from tests.helpers.quality_store import AFFINE, FAULTS, GRID, HEALTHY, brain, write_brain
from tests.helpers.store_files import write_store_file

OPTIONS = QualityOptions()
SMALL = (8, 6, 7)


def write_small(path: Path, frames: np.ndarray, vox: np.ndarray, **fields: Any) -> RunHeader:
    settings: dict[str, Any] = {"grid": SMALL, "affine": AFFINE, "tr": 2.0, "subject": "sub-01"}
    return write_store_file(path, frames.astype(np.float32), vox, **settings | fields)


def measure(path: Path, options: QualityOptions = OPTIONS) -> tuple[RunHeader, RunMeasured]:
    run = RunFile(path)
    try:
        return run.header, measure_run(run, options)
    finally:
        run.close()


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A run of 37 frames with constant voxels, zeros, a spike and a repeated frame: path, the
    values that the file holds [T, N], voxels [N]."""
    rng = np.random.default_rng(0)
    vox = np.flatnonzero(rng.random(SMALL) < 0.6)
    frames = 500 + 100 * rng.random(len(vox)) + 5 * rng.standard_normal((37, len(vox)))
    frames[20] += 40
    frames[31] = frames[30]
    frames[:, 3] = 640
    frames[:, [5, 9]] = 0
    header = write_small(tmp_path / "sub-01.h5", frames, vox)
    run = RunFile(tmp_path / "sub-01.h5")
    held = run.read(range(37)) * header.scale + header.offset
    run.close()
    return tmp_path / "sub-01.h5", held, vox


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_numbers_agree_with_numpy(
    small: tuple[Path, np.ndarray, np.ndarray], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of the blocks."""
    monkeypatch.setattr(store_quality, "_ROWS_AT_ONCE", rows)
    path, held, vox = small
    header, measured = measure(path)
    numbers, found = measured.numbers, measured.statistics

    np.testing.assert_allclose(found.mean, held.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.std, held.std(axis=0), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.global_signal, held.mean(axis=1), rtol=1e-6)
    difference = np.sqrt((np.diff(held, axis=0) ** 2).mean(axis=1))
    np.testing.assert_allclose(found.difference, difference, rtol=1e-5, atol=1e-9)

    varies = held.std(axis=0) > 1e-9
    snr = held.mean(axis=0)[varies] / held.std(axis=0)[varies]
    assert numbers.tsnr == pytest.approx(float(np.median(snr)), rel=1e-4)
    assert numbers.jump == pytest.approx(float(difference.max() / np.median(difference)), rel=1e-4)
    assert numbers.jump_frame in (20, 21)
    assert difference[numbers.jump_frame - 1] == difference.max()
    assert numbers.repeated_frames == 1
    assert (numbers.constant_voxels, numbers.zero_voxels) == (3, 2)
    assert numbers.mean_std_ratio == pytest.approx(held.mean() / held.std(), rel=1e-3)
    assert (numbers.frames_read, numbers.frame_step) == (37, 1)
    assert measured.mask.sum() == len(vox)
    np.testing.assert_allclose(measured.mean[measured.mask], found.mean)
    assert numbers.background == pytest.approx(-header.mean / header.std)


def test_evenly_spaced_frames(small: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, held, _ = small
    _, measured = measure(path, QualityOptions(frames=10))
    chosen = held[::4]
    assert (measured.numbers.frames_read, measured.numbers.frame_step) == (10, 4)
    np.testing.assert_allclose(measured.statistics.global_signal, chosen.mean(axis=1), rtol=1e-6)
    difference = np.sqrt((np.diff(chosen, axis=0) ** 2).mean(axis=1))
    assert measured.numbers.jump_frame == 4 * (difference.argmax() + 1)


@pytest.mark.parametrize(
    ("frames", "limit", "read"),
    [(10, 0, 10), (10, 10, 10), (10, 9, 5), (11, 5, 4), (1200, 100, 100), (2, 100, 2)],
)
def test_frames_to_read(frames: int, limit: int, read: int) -> None:
    chosen = frames_to_read(frames, limit)
    assert len(chosen) == read
    assert chosen[0] == 0
    assert chosen[-1] < frames


@pytest.mark.parametrize("method", ["znorm_minback", "znorm_zeroback", "minmax_minback"])
def test_histogram_of_scaled_values(
    small: tuple[Path, np.ndarray, np.ndarray], method: str
) -> None:
    path, held, _ = small
    header, measured = measure(path, QualityOptions(scaling=method))
    found = measured.histogram
    assert found is not None
    scaled = held / header.max if method == "minmax_minback" else (held - header.mean) / header.std
    # 37 frames: every second one is counted.
    inside = np.clip(scaled[::2], found.low + 1e-9, found.high - 1e-9)
    counts, edges = np.histogram(inside, len(found.shares), (found.low, found.high))
    # A value on an edge may fall on either side.
    near = np.isclose(scaled[::2, :, None], edges, atol=1e-9).sum() + 2
    assert np.abs(found.shares * counts.sum() - counts).sum() <= 2 * near
    assert found.shares.sum() == pytest.approx(1)


def test_run_that_cannot_be_scaled(tmp_path: Path) -> None:
    vox = np.arange(50)
    write_small(tmp_path / "sub-01.h5", np.full((12, 50), 7.0), vox)
    header, measured = measure(tmp_path / "sub-01.h5")
    assert "standard deviation 0" in measured.numbers.unscalable
    assert measured.histogram is None
    assert measured.numbers.tsnr is None
    assert measured.numbers.jump is None
    picture = picture_of(header, measured, (2, 2, 7))
    assert picture["histogram"] is None
    assert np.all(measured.reduced == 0)


def test_kept_patches_are_those_of_the_model() -> None:
    mask, _ = brain(3)
    patch = (6, 6, 6)
    config = ModelConfig(img_size=(*GRID, 20), patch_size=(*patch, 2))
    kept = patches_with_brain(mask, patch)
    assert kept is not None
    np.testing.assert_array_equal(kept.ravel(), kept_patches(np.flatnonzero(mask), config))
    assert patches_with_brain(mask, (5, 6, 6)) is None


def test_groups_by_depth() -> None:
    mask, _ = brain(0)
    order, starts = depth_groups(mask, 10)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1][mask][order]
    assert np.all(np.diff(depth) >= 0)
    sizes = np.diff([*starts, mask.sum()])
    assert sizes.max() - sizes.min() <= 1
    assert sorted(order) == list(range(mask.sum()))
    assert len(depth_groups(np.ones((1, 1, 3), bool), 10)[1]) == 3


def test_reduced_image() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((90, 100, 30)) < 0.5
    mean = rng.normal(1000, 50, mask.shape)
    reduced = reduced_image(mean, mask, 0.0)
    assert reduced.shape == (30, 34, 10)  # blocks of 3
    scaled = np.where(mask, (mean - mean[mask].mean()) / mean[mask].std(), -1e9).clip(-2.5, 2.5)
    assert reduced[4, 5, 6] == pytest.approx(scaled[12:15, 15:18, 18:21].mean(), abs=2e-3)
    np.testing.assert_array_equal(reduced, reduced_image(7 * mean, mask, 0.0))  # unit-free
    assert not reduced_image(np.ones((4, 4, 4)), np.ones((4, 4, 4), bool), 0.0).any()


# --- pictures -----------------------------------------------------------------------------------


def polygons(path: str) -> list[np.ndarray]:
    """Corners of every closed part of an SVG path of M, h, v and z."""
    found: list[np.ndarray] = []
    for part in re.findall(r"M[^Mz]*z", path):
        x, y = map(float, re.match(r"M(\d+) (\d+)", part).groups())  # type: ignore[union-attr]
        corners = [(x, y)]
        for letter, text in re.findall(r"([hv])(-?\d+)", part):
            x, y = (x + float(text), y) if letter == "h" else (x, y + float(text))
            corners.append((x, y))
        found.append(np.array(corners))
    return found


def filled(path: str, rows: int, columns: int) -> np.ndarray:
    """Pixels inside a path, by the even-odd rule at their centres."""
    y, x = np.indices((rows, columns)) + 0.5
    centres = np.column_stack([x.ravel(), y.ravel()])
    inside = np.zeros(rows * columns, dtype=bool)
    for corners in polygons(path):
        closed = np.vstack([corners, corners[:1]])
        inside ^= Polygon(closed).contains_points(centres)
    return inside.reshape(rows, columns)


@pytest.mark.parametrize("seed", range(6))
def test_outline_encloses_the_shape(seed: int) -> None:
    """Shapes with holes, islands and pixels that touch at a corner only."""
    shape = np.random.default_rng(seed).random((9, 12)) < 0.3 + 0.08 * seed
    np.testing.assert_array_equal(filled(outline(shape), 9, 12), shape)
    assert outline(np.zeros((3, 3), bool)) == ""


def test_rectangles_cover_the_cells() -> None:
    cells = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], bool)
    covered = cells.repeat(2, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(filled(rectangles(cells, 3, 2), 6, 12), covered)


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L"), dtype=int)


def test_left_is_left_and_up_is_up(tmp_path: Path) -> None:
    """A brighter left front upper quarter appears left and up where the letters say so."""
    side = 32
    grid = (side, side, side)
    mask = np.ones(grid, dtype=bool)
    x, y, z = np.indices(grid)
    # LAS: the first index grows to the left, the second to the front, the third upwards.
    image = 500.0 + 400 * ((x > 15) & (y > 15) & (z > 15))
    rng = np.random.default_rng(0)
    frames = image.ravel() + rng.normal(0, 5, (6, side**3))
    affine = np.diag([-3.0, 3, 3, 1])
    write_small(tmp_path / "a.h5", frames, np.flatnonzero(mask), grid=grid, affine=affine)
    header, measured = measure(tmp_path / "a.h5", QualityOptions(patch_size=(8, 8, 8)))
    picture = picture_of(header, measured, (8, 8, 8))
    sheet = decoded(picture["atlas"])
    seen = set()
    for tile in picture["tiles"]:
        left, right, bottom, top = tile["letters"]
        seen.add((tile["axis"], left + right + bottom + top))
        view = sheet[: tile["height"], tile["x"] : tile["x"] + tile["width"]]
        half = side // 2
        bright = {
            ("left", "top"): view[2 : half - 2, 2 : half - 2],
            ("right", "top"): view[2 : half - 2, half + 2 : -2],
            ("left", "bottom"): view[half + 2 : -2, 2 : half - 2],
        }
        expected = ("right", "top") if tile["axis"] == 0 else ("left", "top")
        if tile["plane"] <= 15:
            continue  # below the bright quarter
        brightest = max(bright, key=lambda place: bright[place].mean())
        assert brightest == expected, tile
    assert seen == {(0, "PAIS"), (1, "LRIS"), (2, "LRPA")}


def test_tiles_of_long_voxels(tmp_path: Path) -> None:
    affine = np.diag([-2.0, 2, 4, 1])
    vox = np.arange(100)
    rng = np.random.default_rng(0)
    header = write_small(tmp_path / "a.h5", rng.random((12, 100)), vox, affine=affine)
    tiles = tiles_of(header)
    assert [(t.columns, t.rows) for t in tiles[:3]] == [(6, 7), (8, 7), (8, 6)]
    assert [(t.width, t.height) for t in tiles[:3]] == [(6, 14), (8, 14), (8, 6)]
    _, measured = measure(tmp_path / "a.h5")
    picture = picture_of(header, measured, (6, 6, 6))
    assert decoded(picture["atlas"]).shape == (28, sum(tile.width for tile in tiles))
    assert "dropped" not in picture["tiles"][0]  # the patch does not fit this grid


def test_dropped_patches_and_mask_of_a_slice(tmp_path: Path) -> None:
    header = write_brain(tmp_path, "sub-01", 1)
    _, measured = measure(tmp_path / "hdf5" / "sub-01.h5")
    picture = picture_of(header, measured, (6, 6, 6))
    mask, _ = brain(1)
    for tile in picture["tiles"]:
        flat = np.take(mask, tile["plane"], axis=tile["axis"]).T
        flat = flat if tile["axis"] == 0 else flat[:, ::-1]
        rows, columns = tile["rows"], tile["columns"]
        np.testing.assert_array_equal(filled(tile["mask"], rows, columns), flat[::-1])
        dropped = filled(tile["dropped"], rows, columns)
        assert not (dropped & flat[::-1]).any()  # no brain is dropped
    assert len(json.dumps(picture)) < 25_000


def test_binned_curves_keep_a_spike() -> None:
    values = np.zeros(1200)
    values[777] = 9
    short = binned(values)
    assert len(short) == CURVE_POINTS
    assert short.max() == 9
    assert binned(values[:50]).size == 50
    assert carpet_image(np.ones((4, 1200))).size == (CURVE_POINTS, 4)


# --- similarity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [3, 4, 9, 10])
def test_likeness_is_that_to_the_other_runs(runs: int) -> None:
    """Against medians of the others, computed one run at a time; with ties."""
    rng = np.random.default_rng(runs)
    usual = ndimage.gaussian_filter(rng.standard_normal((12, 10, 8)), 1.5) * 6
    images = usual + rng.normal(0, 0.4, (runs, 12, 10, 8))
    images = np.round(images * 4).clip(-10, 10) / 4
    images[:, :2] = images[:, -2:] = -2.5
    images = images.astype(np.float16)
    masks = [rng.random(960) < 0.9 for _ in range(runs)]
    found = compare_images(images, lambda: iter(masks))
    for index, similarity in enumerate(found):
        one = images[index].astype(float)
        others = np.median(np.delete(images, index, axis=0).astype(float), axis=0)
        flipped = others[::-1]  # the brain's planes lie symmetric about the middle
        used = (one > -2.499) | (others > -2.499) | (flipped > -2.499) | (one[::-1] > -2.499)
        correlation = np.corrcoef(one[used], others[used])[0, 1]
        assert similarity.correlation == pytest.approx(correlation, abs=1e-5)
        assert similarity.mirrored == pytest.approx(
            np.corrcoef(one[used], flipped[used])[0, 1], abs=1e-5
        )
        sides = np.corrcoef((one - one[::-1])[used], (others - flipped)[used])[0, 1]
        assert similarity.asymmetry == pytest.approx(sides, abs=1e-5)
        most = np.delete(masks, index, axis=0).mean(axis=0) > 0.5
        both = (masks[index] & most).sum()
        assert similarity.dice == pytest.approx(2 * both / (masks[index].sum() + most.sum()))


def test_two_runs_are_not_compared() -> None:
    images = np.zeros((2, 4, 4, 4), dtype=np.float16)
    found = compare_images(images, lambda: iter([np.ones(64, bool)] * 2))
    assert all(math.isnan(value) for similarity in found for value in similarity)


# --- flags --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RunHeader, RunMeasured]]:
    folder = tmp_path_factory.mktemp("healthy")
    for index in range(HEALTHY):
        write_brain(folder, f"sub-{index:02d}", index)
    return {path.stem: measure(path) for path in sorted((folder / "hdf5").glob("*.h5"))}


def summaries_of(
    healthy: dict[str, tuple[RunHeader, RunMeasured]],
    *more: tuple[RunHeader, RunMeasured],
) -> list[RunSummary]:
    everything = [*healthy.values(), *more]
    images = np.stack([one.reduced for _, one in everything])
    found = compare_images(images, lambda: (one.mask.ravel() for _, one in everything))
    return [
        RunSummary(
            name=header.label,
            header=header,
            numbers=one.numbers,
            windows=header.n_frames // 20,
            similarity=similarity,
        )
        for (header, one), similarity in zip(everything, found, strict=True)
    ]


def test_healthy_runs_are_not_flagged(
    healthy: dict[str, tuple[RunHeader, RunMeasured]],
) -> None:
    summaries = summaries_of(healthy)
    flags, scores = flag_runs(summaries)
    assert flags == [[]] * HEALTHY
    assert asymmetries(summaries) is not None
    for found in scores.values():
        assert np.abs(found.z).max() < 5


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(
    fault: str, healthy: dict[str, tuple[RunHeader, RunMeasured]], tmp_path: Path
) -> None:
    changes, name = FAULTS[fault]
    write_brain(tmp_path, "sub-bad", 50, **changes)
    summaries = summaries_of(healthy, measure(tmp_path / "hdf5" / "sub-bad.h5"))
    flags, _ = flag_runs(summaries)
    assert flags[:-1] == [[]] * HEALTHY
    assert name in [flag.name for flag in flags[-1]]
    assert ("left-right flip" in [flag.name for flag in flags[-1]]) == (fault == "flipped")
    if fault == "spike":
        (jump,) = [flag.reason for flag in flags[-1] if flag.name == name]
        assert "at frame 18" in jump or "at frame 19" in jump


def changed(
    summaries: list[RunSummary], index: int, numbers: Any = None, **header: Any
) -> list[RunSummary]:
    one = summaries[index]
    new = dataclasses.replace(
        one,
        header=dataclasses.replace(one.header, **header),
        numbers=dataclasses.replace(one.numbers, **(numbers or {})),
    )
    return [*summaries[:index], new, *summaries[index + 1 :]]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda f: changed(f, 2, tr=math.nan), "TR unknown"),
        (lambda f: changed(f, 2, grid=(30, 30, 30)), "grid"),
        (lambda f: changed(f, 2, affine=tuple(map(tuple, AFFINE * 1.1))), "voxel size"),
        (lambda f: changed(f, 2, {"repeated_frames": 3}), "repeated frames"),
        (lambda f: changed(f, 2, {"unscalable": "constant"}), "not scalable"),
        (lambda f: [*f[:2], dataclasses.replace(f[2], windows=0), *f[3:]], "too short"),
    ],
)
def test_other_flags(
    change: Callable[[list[RunSummary]], list[RunSummary]],
    name: str,
    healthy: dict[str, tuple[RunHeader, RunMeasured]],
) -> None:
    flags, _ = flag_runs(change(summaries_of(healthy)))
    assert [flag.name for flag in flags[2]] == [name]
    assert flags[:2] + flags[3:] == [[]] * (HEALTHY - 1)


def test_duplicates_name_each_other(healthy: dict[str, tuple[RunHeader, RunMeasured]]) -> None:
    summaries = summaries_of(healthy)
    summaries = changed(summaries, 4, content_sha256=summaries[1].header.content_sha256)
    flags, _ = flag_runs(summaries)
    assert [len(mine) for mine in flags] == [1 if i in (1, 4) else 0 for i in range(HEALTHY)]
    assert flags[1][0].reason == "the same data as sub-04"
    assert flags[4][0].reason == "the same data as sub-01"


def test_symmetric_brains_cannot_be_flipped(
    healthy: dict[str, tuple[RunHeader, RunMeasured]],
) -> None:
    """Sides are told by chance only: the store says so and flags none."""
    rng = np.random.default_rng(0)
    summaries = [
        dataclasses.replace(
            one,
            similarity=one.similarity._replace(
                mirrored=one.similarity.correlation + 0.01, asymmetry=float(rng.normal(0, 0.1))
            ),
        )
        for one in summaries_of(healthy)
    ]
    assert asymmetries(summaries) is None
    assert flag_runs(summaries)[0] == [[]] * HEALTHY


def test_robust_z_and_its_floor(healthy: dict[str, tuple[RunHeader, RunMeasured]]) -> None:
    summaries = summaries_of(healthy)[:7]
    measure_of = {one.key: one for one in MEASURES}
    snr = measure_of["tsnr"]
    values = [30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 300.0]
    summaries = [
        dataclasses.replace(one, numbers=dataclasses.replace(one.numbers, tsnr=value))
        for one, value in zip(summaries, values, strict=True)
    ]
    found = robust_scores(snr, summaries)
    assert found.median == 60
    assert found.spread == pytest.approx(1.4826 * 20)
    np.testing.assert_allclose(found.z, (np.array(values) - 60) / (1.4826 * 20))
    same = robust_scores(measure_of["n_frames"], summaries)
    assert same.spread == pytest.approx(0.02 * 40)  # the floor: all runs are equally long
    assert not same.z.any()
    few = robust_scores(snr, summaries[: LEAST_RUNS - 1])
    assert np.isnan(few.z).all()
    assert few.median == 45


def test_jumps_below_the_median_are_not_flagged(
    healthy: dict[str, tuple[RunHeader, RunMeasured]],
) -> None:
    summaries = [changed([one], 0, {"jump": 9.0})[0] for one in summaries_of(healthy)]
    flags, _ = flag_runs(changed(summaries, 3, {"jump": 1.0}))
    assert flags[3] == []


# --- table and page -----------------------------------------------------------------------------


def test_tsv_and_order(healthy: dict[str, tuple[RunHeader, RunMeasured]], tmp_path: Path) -> None:
    summaries = changed(summaries_of(healthy)[:6], 4, {"repeated_frames": 2}, source="a\tb\nc")
    runs = [
        Surveyed(path=Path(f"/x/{one.header.label}.h5"), header=one.header, numbers=one.numbers)
        for one in summaries
    ]
    runs.insert(2, Surveyed(path=Path("/x/zz.h5"), error="truncated\tfile"))
    flags, scores = flag_runs(summaries)
    rows = make_rows(runs, summaries, flags, scores)
    assert [row.name for row in rows][:3] == ["zz", "sub-04", "sub-00"]

    write_tsv(tmp_path / "quality.tsv", rows)
    lines = (tmp_path / "quality.tsv").read_text(encoding="utf-8").splitlines()
    header = lines[0].split("\t")
    table = [dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:]]
    assert [line["file"] for line in table] == [f"sub-0{i}.h5" for i in range(6)] + ["zz.h5"]
    assert table[4]["flags"] == "repeated frames"
    assert table[4]["source"] == "a b c"
    assert float(table[0]["tsnr"]) == pytest.approx(summaries[0].numbers.tsnr, rel=1e-5)
    assert float(table[0]["z_tsnr"]) == pytest.approx(scores["tsnr"].z[0], rel=1e-4)
    assert table[6]["readable"] == "false"
    assert table[6]["reasons"] == "truncated file"
    assert table[6]["tsnr"] == table[6]["n_frames"] == "n/a"
    shown = strip(MEASURES[0], rows)
    assert shown is not None
    assert shown["usual"].count("M") == 6


def test_embedded_json_cannot_end_the_script() -> None:
    value = {"name": "</script><script>alert(1)</script> & <!--"}
    text = str(embedded(value))
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 3, "n/a"),
        (math.nan, 3, "n/a"),
        (12345, 3, "12,345"),
        (0.72, 4, "0.72"),
        (0.00739, 3, "0.007"),
        (-0.0001, 3, "0"),
        (61.27, 3, "61.3"),
        (2, 4, "2"),
    ],
)
def test_number(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text
