"""One scan's series from a file of numbers: headers, counters, cells that are no numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.series_files import read_series_file
from tests.helpers.region_collections import LABELS, series, write_1d, write_tcs


@pytest.mark.parametrize("write", [write_1d, write_tcs])
def test_labels_of_pcp_and_of_3droistats(tmp_path: Path, write: object) -> None:
    assert callable(write)
    path = tmp_path / "a.1D"
    write(path, series(0))
    found = read_series_file(path)
    assert found.names == LABELS
    np.testing.assert_allclose(found.values, series(0), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("# made by 3dROIstats\n# more\n1 2\n3 4\n", None, 2),
        ("#1 #2 #3\n1 2\n3 4\n", None, 2),  # labels of another number of columns
        ("#1\t#2\n1\t2\n3\t4\n", ("1", "2"), 2),
        ("a b\n1 2\n3 4\n", ("a", "b"), 2),
    ],
)
def test_first_lines_of_1d(
    tmp_path: Path, text: str, names: tuple[str, ...] | None, rows: int
) -> None:
    (tmp_path / "a.1D").write_text(text)
    found = read_series_file(tmp_path / "a.1D")
    assert found.names == names
    assert len(found.values) == rows


@pytest.mark.parametrize(
    "text",
    [
        ",0,1,2\n0,1.5,2,3\n1,4,5,6\n",  # pandas, with an index
        "0,1,2\n1.5,2,3\n4,5,6\n",  # and without
        "frame,0,1,2\n0,1.5,2,3\n1,4,5,6\n",
    ],
)
def test_columns_that_are_only_counted_are_no_names_and_no_frame(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    found = read_series_file(tmp_path / "a.csv")
    assert found.names is None
    np.testing.assert_array_equal(found.values, [[1.5, 2, 3], [4, 5, 6]])


def test_absent_cells(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x\ty\n1\tn/a\n2\tNaN\n")
    with pytest.raises(UserInputError, match="line 2 has 'n/a', expected 2 numbers"):
        read_series_file(tmp_path / "a.tsv")
    found = read_series_file(tmp_path / "a.tsv", absent=True)
    np.testing.assert_array_equal(found.values, [[1, np.nan], [2, np.nan]])


WRONG = {
    "1,2\n3\n": "line 2 has '1 cells', expected 2 numbers",
    "1,2\n3,x\n": "line 2 has 'x', expected 2 numbers",
    "a,b\n1,2\n3,inf\n": "line 3 has 'inf', expected 2 numbers",
    "a,b\n": r"holds numbers of shape \(0, 2\)",
    "# nothing\n": "holds no numbers",
    "File\tSub-brick\tSigma_1\nx\t0[?]\t1\n": "has no column 'Mean_...'",
    "File\tSub-brick\tMean_1\tMean_2\nx\t0[?]\t1\n": "line 2 has 3 cells, expected 4",
    "File\tSub-brick\tMean_1\tMean_2\nx\t0[?]\t1\tz\n": "line 2 has 'z', expected 2 numbers",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_tables(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserInputError, match=WRONG[text]):
        read_series_file(tmp_path / "a.csv")


def test_fast_and_slow_parsing_agree(tmp_path: Path) -> None:
    rows = series(3)
    plain = "\n".join(",".join(map(repr, map(float, row))) for row in rows)
    (tmp_path / "a.csv").write_text(plain)
    (tmp_path / "b.csv").write_text(plain.replace(",", ",\u00a0", 1))  # float() strips the blank
    fast, slow = (read_series_file(tmp_path / name).values for name in ("a.csv", "b.csv"))
    np.testing.assert_array_equal(fast, slow)
    np.testing.assert_array_equal(fast, rows)


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("2001,2102,2203\n1.5,2,3\n4,5,6\n", 2),  # labels
        ("2001,2102,2203\n1,2,3\n4,5,6\n", 3),  # a frame of whole numbers, as the others
        ("2001,1102,2203\n1.5,2,3\n4,5,6\n", 3),
        ("1,2\n1.5,2\n", 2),
    ],
)
def test_a_first_line_of_labels_that_are_numbers(tmp_path: Path, text: str, frames: int) -> None:
    (tmp_path / "a.csv").write_text(text)
    found = read_series_file(tmp_path / "a.csv")
    assert len(found.values) == frames
    assert found.names == (("2001", "2102", "2203") if frames < text.count("\n") else None)
