"""The C passes are built where there is a compiler, and their absence is a reason in the log."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuromamba.commands.build_kernels import main
from neuromamba.layers.ssd import native, registry, select_backend
from neuromamba.layers.ssd_native import build
from tests.helpers.paths import PROJECT

compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler"
)
UNOPTIMISED = [option for option in build.COMMON if not option.startswith("-O")]
FAKE = {
    "fails": ("echo 'cc: error: no luck' >&2; exit 1", "no luck"),
    "writes nothing": ("exit 0", "it wrote no file"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources with nothing built. They hold next to nothing: what is tested is the building."""
    for name in build.SOURCES:
        (tmp_path / name).write_text("int nothing(void) { return 0; }\n" if name[-1] == "c" else "")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(build.VARIABLE, raising=False)
    return tmp_path


@pytest.fixture
def sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the real sources. Optimising takes ten times as long: left out.

    setup_env.sh has built the optimised ones, which all other tests load.
    """
    monkeypatch.setattr(build, "COMMON", UNOPTIMISED)
    for name in build.SOURCES:
        shutil.copy(Path(build.__file__).parent / name, folder)
    return folder


def made(folder: Path) -> set[Path]:
    """What stands in a folder of libraries besides the lock."""
    return {path for path in folder.iterdir() if path.name != ".lock"}


def fake_compiler(folder: Path, body: str) -> str:
    script = folder / "fake-cc"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


@compiler
def test_every_variant_is_built_once(sources: Path) -> None:
    assert build.find_library("AVX512") is None
    assert build.build()[0].startswith("built with")
    libraries = sorted((sources / "built").glob("*.so"))
    assert len(libraries) == len(build._variants())
    assert build.build()[0].startswith("ready")
    best = build.find_library(next(iter(build._variants())))
    assert best is not None and best.path in libraries and best.openmp
    # A CPU that torch knows by another name gets the plain one.
    plain = build.find_library("unheard of")
    assert plain is not None and plain.path == sources / "built" / build._name("DEFAULT")


@compiler
def test_a_changed_source_is_built_again_and_the_old_library_not_loaded(folder: Path) -> None:
    build.build()
    before = made(folder / "built")
    with (folder / "kernels.c").open("a") as source:
        source.write("/* changed */\n")
    assert build.find_library("DEFAULT") is None
    build.build()
    assert not before & made(folder / "built")


@compiler
def test_a_damaged_library_is_passed_over_and_mended(folder: Path) -> None:
    """To load half a library can end the process with a bus error."""
    build.build()
    best, *rest = build._variants()
    path = folder / "built" / build._name(best)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = build.find_library(best)
    assert found == (build.built(rest[0], folder / "built") if rest else None)
    assert build.build()[0].startswith("built with")
    assert build.find_library(best) == (path, True)


def test_the_best_one_that_this_machine_built_is_loaded() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    found = build.find_library(capability)
    if found is None:
        pytest.skip("no library was built here")
    assert native._load().detail.startswith(found.path.stem)


def test_no_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    assert main([]) == 1
    assert "no C compiler" in capsys.readouterr().err
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert main([]) == 1
    assert "CC=no-such-compiler -O2: there is no such program" in capsys.readouterr().err


@compiler
@pytest.mark.skipif(os.name != "posix", reason="needs a shell script")
def test_compiler_without_openmp(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread then does the work; that is said, and not taken for finished."""
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    refuses = 'for a; do [ "$a" = -fopenmp ] && exit 1; done; '
    script = fake_compiler(sources, f'{refuses}exec {real} "$@"')
    monkeypatch.setenv("CC", f"{script} -g0")  # arguments are allowed
    lines = build.build()
    assert "one thread: no OpenMP" in lines[0]
    found = build.find_library("DEFAULT")
    assert found is not None and not found.openmp
    monkeypatch.delenv("CC")
    assert "one thread" not in build.build()[0]


@pytest.mark.skipif(os.name != "posix", reason="needs a shell script")
@pytest.mark.parametrize("kind", FAKE)
def test_a_failing_compiler_leaves_nothing_behind(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    body, message = FAKE[kind]
    monkeypatch.setenv("CC", fake_compiler(folder, body))
    assert main([]) == 1
    assert message in capsys.readouterr().err
    assert made(folder / "built") == set()


# --- where libraries go -------------------------------------------------------------------------


def unwritable(folder: Path) -> Path:
    """As in a package that root has installed: nothing can be put beside the sources."""
    (folder / "built").write_text("")  # a folder without permissions does not stop root
    return folder / "cache" / "neuromamba" / "kernels"


@compiler
def test_a_package_that_cannot_be_written_has_its_libraries_in_the_cache(folder: Path) -> None:
    cache = unwritable(folder)
    assert f" in {cache}: " in build.build()[0]
    assert {path.suffix for path in made(cache)} == {".so", ".json"}
    assert build.build()[0].endswith(f"in {cache}")
    found = build.find_library("DEFAULT")
    assert found is not None and found.path.parent == cache


@compiler
def test_libraries_of_other_versions_stay_in_the_cache(folder: Path) -> None:
    cache = unwritable(folder)
    build.build()
    before = made(cache)
    with (folder / "kernels.c").open("a") as source:
        source.write("/* another version of the package */\n")
    build.build()
    assert before < made(cache)


@compiler
def test_the_cache_can_be_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the package could be written; what was built before is found all the same."""
    build.build()
    monkeypatch.setenv(build.VARIABLE, str(folder / "mine"))
    assert build.build()[0].startswith("ready")
    build.build(force=True)
    found = build.find_library("DEFAULT")
    assert found is not None and found.path.parent == folder / "mine" / "kernels"


def test_no_folder_to_write_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unwritable(folder)
    (folder / "cache").write_text("")
    monkeypatch.setenv("CC", fake_compiler(folder, "exit 0"))
    assert main([]) == 1
    assert str(folder / "cache") in capsys.readouterr().err


@compiler
def test_several_processes_compile_once(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from neuromamba.layers.ssd_native import build; "
        f"build.HERE = Path(sys.argv[1]); build.COMMON = {UNOPTIMISED}; print(build.build()[0])"
    )
    command = [sys.executable, "-c", program, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    said = sorted(process.communicate(timeout=120)[0].split()[0] for process in processes)
    assert said == ["built", "ready:", "ready:"]
    assert len(made(folder / "built")) == 2 * len(build._variants())


# --- when they are built ------------------------------------------------------------------------


@compiler
def test_a_run_compiles_what_is_missing_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setenv(build.SWITCH, "0")
    build.build_if_missing(lines.append)
    assert lines == [] and build.find_library("DEFAULT") is None
    monkeypatch.delenv(build.SWITCH)
    build.build_if_missing(lines.append)
    assert len(lines) == 1 and lines[0].startswith("compiling the C passes")
    assert build.find_library("DEFAULT") is not None
    build.build_if_missing(lines.append)
    assert len(lines) == 1


def test_a_run_without_a_compiler_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setenv("CC", "no-such-compiler")
    build.build_if_missing(lines.append)
    assert len(lines) == 1 and "there is no such program" in lines[0] and "gcc" in lines[0]


def test_a_computation_compiles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.delenv(build.SWITCH, raising=False)
    monkeypatch.setattr(build, "build", called)
    monkeypatch.setattr(build, "find_compiler", called)
    native._load.cache_clear()
    try:
        assert native.status().library is None
        assert "neuromamba build-kernels" in native.status().detail
    finally:
        native._load.cache_clear()


def test_the_log_says_which_passes_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "_announced", set())
    monkeypatch.setenv(native.SWITCH, "0")
    with caplog.at_level(logging.INFO, logger=registry.__name__):
        select_backend("cpu", torch.device("cpu"))
    assert f"torch passes; C passes: {native.SWITCH}=0" in caplog.text


# ------------------------------------------------------------------ folders that others can write


def planted(folder: Path) -> tuple[Path, Path, Path]:
    """A library with its record, as somebody could put them there: folder, library, record."""
    place = folder / "built"
    place.mkdir(mode=0o755)
    path = place / build._name("DEFAULT")
    path.write_bytes(b"code")
    record = build._record(path)
    digest = hashlib.sha256(b"code").hexdigest()
    record.write_text(json.dumps({"sha256": digest, "openmp": True}))
    return place, path, record


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("mode", [0o020, 0o002, 0o022])
def test_what_others_can_write_is_not_loaded(folder: Path, which: int, mode: int) -> None:
    path = planted(folder)[which]
    assert build.built("DEFAULT", folder / "built") is not None
    path.chmod(path.stat().st_mode | mode)
    assert build.built("DEFAULT", folder / "built") is None
    assert build.find_library("DEFAULT") is None
    assert f"{path} can be written by others" in build.untrusted_library()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_belongs_to_another_user_is_not_loaded(folder: Path, which: int) -> None:
    path = planted(folder)[which]
    os.chown(path, 12345, 12345)
    assert build.built("DEFAULT", folder / "built") is None
    assert "belongs to another user (12345)" in build.untrusted_library()


def test_links_are_not_loaded(folder: Path) -> None:
    _, path, _ = planted(folder)
    path.rename(folder / "elsewhere.so")
    path.symlink_to(folder / "elsewhere.so")
    assert build.built("DEFAULT", folder / "built") is None
    assert "is a link" in build.untrusted_library()


@compiler
@pytest.mark.parametrize("there", [None, 0o777, 0o775])
def test_folders_are_made_for_their_owner(folder: Path, there: int | None) -> None:
    """Under any umask; one of ours that others could write is mended."""
    if there is not None:
        (folder / "built").mkdir()
        (folder / "built").chmod(there)
    before = os.umask(0)
    try:
        build.build()
    finally:
        os.umask(before)
    assert (folder / "built").stat().st_mode & 0o777 == 0o755
    assert all(not path.stat().st_mode & 0o022 for path in made(folder / "built"))
    assert build.find_library("DEFAULT") is not None
