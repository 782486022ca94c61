"""The wheel: what it holds, and that it works where only it and its dependencies are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuromamba.common.version import VERSION
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

WITHOUT_THE_CHECKOUT = """
import os, runpy, sys
sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p or ".", "neuromamba"))]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
sys.path.insert(0, os.environ["SITE"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git knows, without network."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77")
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git repository")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/golden/", "assets/")):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-q", "-w", str(folder)], cwd=folder / "source", check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of packages that nobody may write to, as root installs them."""
    folder = tmp_path_factory.mktemp("root") / "site-packages"
    zipfile.ZipFile(wheel).extractall(folder)
    # Permissions do not stop root: a file in the place of the folder does.
    (folder / "neuromamba" / "layers" / "ssd_native" / "built").write_text("")
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    yield folder
    for path in paths:
        path.chmod(path.stat().st_mode | 0o200)


def run(site: Path, folder: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the installed wheel, in a folder, with a cache below it."""
    names = ("PYTHONPATH", "NEUROMAMBA_CACHE", "NEUROMAMBA_NATIVE")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {"SITE": str(site), "XDG_CACHE_HOME": str(folder / "cache")}
    # Commands that start commands: `python -m neuromamba` has to find the wheel, too.
    environment |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_CHECKOUT + program, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )


COMMAND = "from neuromamba.__main__ import main; sys.exit(main(sys.argv[1:]))"


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "brainmarks",
        "neuromamba",
        f"neuromamba-{VERSION}.dist-info",
    }
    plug_in = [name for name in names if name.startswith("brainmarks/")]
    assert plug_in == ["brainmarks/models/neuromamba.py"]  # a namespace: no __init__.py
    package = ROOT / "project" / "neuromamba"
    kept = (".py", ".j2", ".js", ".yaml", ".c", ".h")
    files = {
        f"neuromamba/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.suffix in kept and "__pycache__" not in path.parts
    }
    assert files <= set(names)
    assert {Path(name).suffix for name in names if name.startswith("neuromamba/")} == set(kept)
    assert not any("test" in Path(name).parts[1] for name in names)


def test_import_is_light(site: Path, tmp_path: Path) -> None:
    program = """
import neuromamba
assert neuromamba.__file__.startswith(os.environ["SITE"]), neuromamba.__file__
assert not {"torch", "numpy"} & set(sys.modules)
from neuromamba.common.version import code_version
print(neuromamba.__version__, code_version(), neuromamba.ModelConfig().embed_dim)
"""
    done = run(site, tmp_path, program)
    assert done.stdout.split() == [VERSION, VERSION, "192"], done.stderr


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
def test_kernels_are_built_in_the_cache_and_found_there(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, COMMAND, "build-kernels")
    cache = tmp_path / "cache" / "neuromamba" / "kernels"
    assert done.returncode == 0 and f" in {cache}: " in done.stdout, done.stderr
    again = run(site, tmp_path, COMMAND, "build-kernels")
    assert again.stdout.startswith("ready") and str(cache) in again.stdout
    program = "from neuromamba.layers.ssd import native; print(native.status().detail)"
    assert run(site, tmp_path, program).stdout.startswith("mixer-")


def test_commands_that_know_the_repository_do_without(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, COMMAND, "doctor")
    assert "of requirements.txt" in done.stdout, done.stderr
    done = run(site, tmp_path, COMMAND, "reproduce", "--table", "flops")
    assert done.returncode == 2 and "from a checkout" in done.stderr
    done = run(site, tmp_path, COMMAND, "reproduce", "--table", "1", "--dry_run")
    assert done.returncode == 0 and "14 jobs" in done.stdout, done.stderr


def test_demo_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, COMMAND, "demo", "--quick")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "output" / "demo" / "report.html").stat().st_size > 100_000
    assert "compiling the C passes" in done.stdout or "C passes mixer" in done.stderr + done.stdout
