"""The notebook and the scripts under examples/: they run, and type commands that exist."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.trained_model import Trained
from tests.unit.repository.test_docs import PARSERS, command_in

NOTEBOOK = ROOT / "examples" / "use_a_model.ipynb"
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


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


def commands(script: Path) -> list[str]:
    """What the script gives to its ``CommandLine``, with its own variables filled in."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    texts = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "neuromamba":
            (given,) = node.args
            parts = given.values if isinstance(given, ast.JoinedStr) else [given]
            words = [
                texts[ast.unparse(part.value)]
                if isinstance(part, ast.FormattedValue)
                else ast.literal_eval(part)
                for part in parts
            ]
            found.append("".join(words))
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_commands_of_a_script_are_parsed(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = commands(script)
    assert typed
    for command in typed:
        found = command_in(["neuromamba", *shlex.split(command)])
        assert found is not None
        name, words = found
        PARSERS[name](words)


def test_scripts_have_the_form_of_the_gallery() -> None:
    assert [script.name[:2] for script in SCRIPTS] == [f"{letter}_" for letter in "abcdefgh"]
    for script in SCRIPTS:
        text = script.read_text(encoding="utf-8")
        title, underline = text.splitlines()[1:3]
        assert len(title) == len(underline) and set(underline) == {"="}, script.name
        assert "plt.show()" in text and "# %%\n" in text, script.name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_runs(script: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "project"),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.iterdir()) == []  # its files go with it
