"""The nearest spelling of a path that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuromamba.common.similar_paths import did_you_mean


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results" / "seed_1").mkdir(parents=True)
    (tmp_path / "results" / "best_model.ckpt").touch()
    return tmp_path


def test_a_misspelt_file(folder: Path) -> None:
    wanted = folder / "results" / "best_model.ckpt"
    assert did_you_mean(folder / "results" / "best_modl.ckpt") == f" Did you mean '{wanted}'?"


def test_a_misspelt_folder_above_it(folder: Path) -> None:
    found = did_you_mean(folder / "result" / "seed_9" / "last.ckpt")
    assert found == f" Did you mean '{folder / 'results'}'?"


def test_relative_paths_stay_relative(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert did_you_mean("resluts") == " Did you mean 'results'?"


@pytest.mark.parametrize("path", ["scan.nii.gz", "results/best_model.ckpt/inside", "/"])
def test_nothing_similar(folder: Path, path: str) -> None:
    assert did_you_mean(folder / path) == ""


def test_names_are_shown_with_their_invisible_characters(tmp_path: Path) -> None:
    (tmp_path / "mod\u202eel.ckpt").touch()
    assert "mod\\u202eel.ckpt" in did_you_mean(tmp_path / "model.ckpt")
