"""Commands that use a model write into no folder that holds something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import neuromamba
from neuromamba.commands.embed import main as embed
from neuromamba.commands.explain import main as explain
from neuromamba.commands.predict import main as predict
from neuromamba.commands.rollout import main as rollout
from neuromamba.common.errors import UserInputError
from neuromamba.common.files import refuse_other_content
from tests.helpers.trained_model import Trained


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("command", "model"),
    [(predict, "sex"), (embed, "sex"), (explain, "sex"), (rollout, "backbone")],
)
@pytest.mark.parametrize("place", ["run", "notes", "file_of_the_same_name"])
def test_nothing_is_replaced(
    command: Callable[[list[str]], int],
    model: str,
    place: str,
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A training run has predictions.csv and report.html, too."""
    folder = tmp_path / "out"
    if place == "run":
        folder = getattr(trained, model)
    else:
        folder.mkdir()
        name = "notes.txt" if place == "notes" else "predictions.csv"
        (folder / name).write_text("mine\n")
    before = content(folder)
    words = [str(getattr(trained, model)), str(trained.scan(7)), "-o", str(folder)]
    assert command([*words, *(["--frames", "2"] if model == "backbone" else [])]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert f"-o: '{folder}' holds something else. Choose a new folder" in line
    assert content(folder) == before


def test_own_empty_and_absent_folders_are_taken(tmp_path: Path) -> None:
    refuse_other_content(tmp_path / "absent", ("run.json",), "-o")
    refuse_other_content(tmp_path, ("run.json",), "-o")
    (tmp_path / "run.json").touch()
    (tmp_path / "other.txt").touch()
    refuse_other_content(tmp_path, ("run.json",), "-o")
    with pytest.raises(UserInputError, match="holds something else"):
        refuse_other_content(tmp_path, ("rollout.json",), "-o")


@pytest.mark.parametrize("scan", ["sub-01_bold.nii.gz", Path("a"), np.zeros(3), None])
def test_what_is_not_prepared_is_named(scan: object, trained: Trained) -> None:
    sex, backbone = neuromamba.load(trained.sex), neuromamba.load(trained.backbone)
    for method, name in (
        (sex.predict, "predict"),
        (sex.embed, "embed"),
        (sex.explain, "explain"),
        (lambda one: backbone.rollout(one, 2), "rollout"),
    ):
        with pytest.raises(UserInputError, match=rf"^{name}: got .*model\.prepare\(BOLD\)"):
            method(scan)
    with pytest.raises(UserInputError, match="got no scans"):
        neuromamba.NeuroMambaEmbedder(sex).transform([])
