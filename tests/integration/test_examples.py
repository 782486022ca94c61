"""The notebook under examples/: its cells run, in their order, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.trained_model import Trained

NOTEBOOK = ROOT / "examples" / "use_a_model.ipynb"


def cells(kind: str) -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_cells_of_the_notebook_run(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for number, code in enumerate(cells("code")):
        code = code.replace("output/demo/finetune", str(trained.sex))
        code = re.sub(r"output/demo/nifti/[\w.-]+", str(trained.scan(1)), code)
        exec(compile(code, f"cell {number}", "exec"), scope)
    said = capsys.readouterr().out
    assert "probability" in said
    assert "no such file" in said
    assert "axes" in said or "grid" in said


def test_the_notebook_holds_no_outputs() -> None:
    """Outputs would be those of somebody's machine."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    assert len(cells("markdown")) >= 5
