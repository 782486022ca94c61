"""Lightning is loaded without what only other metrics use, and nothing else notices."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import lightning_utilities.core.imports as questions
import pytest

from neuromamba.training.lightning import absent_for_lightning, load_lightning
from tests.helpers.paths import PROJECT

IN_A_PROCESS = """
import gc, sys
from neuromamba.training.lightning import load_lightning

load_lightning()
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert "pytorch_lightning" in sys.modules
print(*({"matplotlib", "scipy", "scipy.signal", "transformers"} & set(sys.modules)))
import lightning_utilities.core.imports as questions
import scipy.signal
assert questions.package_available("scipy") and questions.module_available("scipy.signal")
"""


def test_what_a_training_does_not_load() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_packages_are_absent_for_lightning_only_and_for_a_while() -> None:
    def answers() -> tuple[bool, ...]:
        new = (questions.RequirementCache("scipy"), questions.RequirementCache("scipy>=1.0"))
        return (*map(bool, new), questions.package_available("scipy"))

    before = questions.find_spec, questions._version
    questions.package_available.cache_clear()
    with absent_for_lightning(("scipy",)):
        assert answers() == (False, False, False)
        assert questions.package_available("numpy") and questions.RequirementCache("numpy>=1.0")
        import scipy.special  # noqa: F401
    assert answers() == (True, True, True)
    assert (questions.find_spec, questions._version) == before


def test_an_error_leaves_nothing_behind() -> None:
    before = questions.find_spec, questions._version
    with pytest.raises(ImportError), absent_for_lightning(("scipy",)):
        raise ImportError
    assert (questions.find_spec, questions._version) == before


def test_releases_that_ask_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(questions, "_version")
    before = questions.find_spec
    with absent_for_lightning(("scipy",)):
        assert questions.find_spec is before
    assert questions.find_spec is before and not hasattr(questions, "_version")


def test_loaded_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is a program of somebody else, whose garbage stays his own."""
    monkeypatch.setitem(sys.modules, "torchmetrics", ModuleType("torchmetrics"))
    monkeypatch.setattr("gc.freeze", lambda: pytest.fail("frozen"))
    load_lightning()
