"""What ``neuromamba embed`` checks before it computes (--labels, --atlas), and its page."""

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
        ("subject,sex\nsub-00,F\n00,M\n", "sex", "two values of sex for sub-00: F and M"),
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


@pytest.mark.parametrize("pool", ["region", "subject"])
def test_an_atlas_that_cannot_be_had(
    trained: Trained,
    tmp_path: Path,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One line about the atlas, before a scan is read: no scan is refused for it."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn"))
    scans = [str(trained.backbone), str(trained.nifti), "-o", str(tmp_path / "out")]
    assert embed.main([*scans, "--pool", pool, "--atlas", "AAL116"]) == 2
    told = capfd.readouterr()
    assert told.out == "" and told.err.startswith("error: --atlas: ") and told.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
