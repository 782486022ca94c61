"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import preloaded
from tests.helpers.paths import ROOT
from tests.helpers.trained_model import Trained, train_models


def pytest_configure() -> None:
    """Nothing that is loaded while tests are collected is garbage: do not search it for some."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Nor later: a search through all loaded modules takes half a second of a test's time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _level_of_our_logger() -> Iterator[None]:
    """A run in the test's process sets it; the tests after it hear everything again."""
    logger = logging.getLogger("neuromamba")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _loading_of_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in the test's process forbids unpickling for the rest of it; the tests after it may."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")  # known to monkeypatch: gone after the test


@pytest.fixture(scope="session", autouse=True)
def _bf16_operands_on_every_processor() -> Iterator[None]:
    """What is tested must not depend on the processor; ``test_bf16`` is about the judgement."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUROMAMBA_BF16", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def _end_of_the_preloaded_python() -> Iterator[None]:
    """Whichever test has started it."""
    yield
    preloaded.end()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real development data; the test is skipped where it is absent."""
    places = [root / "shared" / "data" for root in (ROOT, ROOT.parent)]
    default = next(filter(Path.is_dir, places), places[0])
    folder = Path(os.environ.get("NEUROMAMBA_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set NEUROMAMBA_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Tiny models that were trained on NIfTI scans; see ``tests.helpers.trained_model``."""
    return train_models(tmp_path_factory.mktemp("trained"))
