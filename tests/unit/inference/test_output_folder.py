"""What a folder of results goes on with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.inference import output_folder
from neuromamba.inference.output_folder import OutputFolder


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """What a folder reads of a model."""
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    return SimpleNamespace(
        path=tmp_path / "model.ckpt",
        contents=SimpleNamespace(metadata={"task": "sex", "stage": "downstream"}),
        contract=SimpleNamespace(describe=dict),
    )


def test_results_of_another_version_or_option_are_not_continued(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    OutputFolder(out, model, "explain", {"method": "ig"}).write_run([])
    OutputFolder(out, model, "explain", {"method": "ig"})  # the same call goes on
    with pytest.raises(UserInputError, match="holds the results of another model, command or"):
        OutputFolder(out, model, "explain", {"method": "occlusion"})
    monkeypatch.setattr(output_folder, "VERSION", "0.1.0")
    with pytest.raises(UserInputError, match="version of neuromamba"):
        OutputFolder(out, model, "explain", {"method": "ig"})
