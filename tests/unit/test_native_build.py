"""The C passes are built where there is a compiler, and their absence is a reason in the log."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from project.module.models.ssd import api, native, select_backend
from project.module.models.ssd.native import build

compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C compiler")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, with nothing built."""
    for name in build.SOURCES:
        shutil.copy(build.HERE / name, tmp_path)
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    return tmp_path


@compiler
def test_every_variant_is_built_once(folder: Path) -> None:
    assert build.library_path("AVX512") is None
    assert build.build()[0].startswith("built with")
    built = sorted(build.BUILT.iterdir())
    assert len(built) == len(build._variants())
    assert build.build()[0].startswith("ready")
    assert build.library_path(next(iter(build._variants()))) in built
    # A CPU that torch knows by another name gets the plain one.
    assert build.library_path("unheard of") == build.BUILT / build._name("DEFAULT")


@compiler
def test_a_changed_source_is_built_again_and_the_old_library_not_loaded(folder: Path) -> None:
    build.build()
    before = set(build.BUILT.iterdir())
    with (folder / "kernels.c").open("a") as source:
        source.write("/* changed */\n")
    assert build.library_path("DEFAULT") is None
    build.build()
    assert not before & set(build.BUILT.iterdir())


def test_no_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build.main([]) == 1
    assert "no C compiler" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="needs a shell script")
def test_a_failing_compiler_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    fake = folder / "cc"
    fake.write_text("#!/bin/sh\necho 'cc: error: no luck' >&2\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(fake))
    assert build.main([]) == 1
    assert "no luck" in capsys.readouterr().err
    assert list(build.BUILT.iterdir()) == []


def test_the_log_says_which_passes_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api, "_announced", set())
    monkeypatch.setenv(native.SWITCH, "0")
    with caplog.at_level(logging.INFO, logger=api.__name__):
        select_backend("cpu", torch.device("cpu"))
    assert f"torch passes; C passes: {native.SWITCH}=0" in caplog.text
