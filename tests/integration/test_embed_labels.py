"""``neuromamba embed --labels``: checked before anything is computed; the page without labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuromamba.commands import embed
from tests.helpers.scans import save
from tests.helpers.trained_model import Trained, bold


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        ("subject,sex\nsub-00,F\n", "gender", "--label_column: "),
        ("subject,sex\nsub-77,F\n", "sex", "--labels: no column of "),
        ("subject,sex\nsub-00,n/a\n", "sex", "has no value of sex for any of the 10 subjects"),
        ("subject,sex\nsub-00,F\nsub-00,M\n", "sex", "two values of sex for sub-00"),
        ("".join(["subject,sex\n", *(f"sub-0{i},{'abcdefghij'[i]}\n" for i in range(10))]),
         "sex", "has 10 different texts"),
    ],
)  # fmt: skip
def test_labels_are_checked_before_anything_is_computed(
    trained: Trained,
    tmp_path: Path,
    table: str,
    column: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "labels.csv").write_text(table)
    scans = [str(trained.backbone), str(trained.nifti), "-o", str(tmp_path / "out")]
    labels = ["--labels", str(tmp_path / "labels.csv"), "--label_column", column]
    assert embed.main([*scans, *labels]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labels_without_a_report(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["--labels", str(trained.nifti / "participants.csv"), "--label_column", "sex"]
    scans = [str(trained.backbone), str(trained.nifti), "-o", "unused"]
    for without in (["--no-report"], ["--pool", "token"]):
        assert embed.main([*scans, *labels, *without]) == 2
        assert "--labels: not used with --" in capsys.readouterr().err


def test_labels_of_subjects_whose_scans_are_all_refused(trained: Trained, tmp_path: Path) -> None:
    """The page says that nothing is left to colour."""
    short = save(tmp_path / "sub-50_task-rest_bold.nii.gz", bold(0, frames=3))
    (tmp_path / "labels.csv").write_text("subject,sex\nsub-50,F\n")
    scans = [str(trained.backbone), str(trained.scan(0)), str(short), "-o", str(tmp_path / "out")]
    labels = ["--labels", str(tmp_path / "labels.csv"), "--label_column", "sex"]
    assert embed.main([*scans, *labels]) == 1
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "No scan with an answer is of a subject with a value of sex." in page
    assert "Not drawn for fewer than 3 scans" in page
    assert "a scan (the mean over the brain and over all windows)" in page
    assert "of the variance" not in page
