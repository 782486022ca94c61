"""``import neuromamba``: quick, and every name of its public face is there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

import neuromamba
from tests.helpers.paths import PACKAGE, PROJECT
from tests.helpers.trained_model import Trained


def test_import_takes_neither_torch_nor_numpy() -> None:
    program = f"""
import json, sys
sys.path.insert(0, {str(PROJECT)!r})
before = set(sys.modules)
import neuromamba
dir(neuromamba)
print(json.dumps([sorted({{"torch", "numpy", "yaml"}} & set(sys.modules)),
    [name for name in sys.modules if name.startswith("neuromamba")]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    slow, ours = json.loads(done.stdout)
    assert slow == []
    assert len(ours) <= 5, ours


def test_every_name_of_the_public_face_is_there() -> None:
    assert set(neuromamba.__all__) <= set(dir(neuromamba))
    for name in neuromamba.__all__:
        assert getattr(neuromamba, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = neuromamba.nonsense  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING, the table of modules and ``__all__`` agree."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [
        node for node in tree.body if isinstance(node, ast.If) and "TYPE" in ast.unparse(node.test)
    ]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == neuromamba._DEFINED_IN
    assert set(neuromamba.__all__) == {"__version__", *seen}


def test_the_example_of_its_docstring(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.strip() for line in str(neuromamba.__doc__).splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("model = "))
    code = "\n".join(lines[start : start + 2])
    code = code.replace("output/PROJECT/RUN", str(trained.sex))
    code = code.replace("sub-01_bold.nii.gz", str(trained.scan(1)))
    scope = {"neuromamba": neuromamba}
    exec(code, scope)
    assert isinstance(scope["model"], neuromamba.LoadedModel)
    assert "probability" in capsys.readouterr().out
