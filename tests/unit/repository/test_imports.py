"""The import rules that import-linter cannot express."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import PACKAGE, PROJECT, ROOT
from tests.helpers.preloaded import preloaded_python

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NOT_MODULES = ("__init__.py", "__pycache__")
# Optional or slow to load: imported inside the functions that need them.
OPTIONAL = ("mamba_ssm", "causal_conv1d", "triton", "deepspeed", "wandb", "peft")


def files() -> list[Path]:
    """All Python files below ``project/``: the package, and the faces beside it."""
    return sorted(PROJECT.rglob("*.py"))


def module_name(file: Path) -> str:
    """As it is imported: the package by its own name, faces below ``project``."""
    root = PROJECT if file.is_relative_to(PACKAGE) else ROOT
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_at_load(node: ast.AST) -> set[str]:
    """Top-level packages that running ``node`` imports; functions and TYPE_CHECKING do not run."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return set()
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return set().union(*map(imported_at_load, node.orelse))
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]} if node.level == 0 else set()
    return set().union(*map(imported_at_load, ast.iter_child_nodes(node)))


def test_imported_at_load_sees_through_try_and_if() -> None:
    source = """
import a.b
try:
    from c import d
except ImportError:
    if True:
        import e
if TYPE_CHECKING:
    import hidden
def f():
    import hidden
class C:
    import g
"""
    assert imported_at_load(ast.parse(source)) == {"a", "c", "e", "g"}


def test_no_module_imports_an_optional_package_at_load() -> None:
    found = {}
    for file in files():
        packages = imported_at_load(ast.parse(file.read_text(encoding="utf-8")))
        if packages & set(OPTIONAL):
            found[str(file.relative_to(ROOT))] = sorted(packages & set(OPTIONAL))
    assert not found, f"move these imports into the functions that need them: {found}"


def test_every_module_imports_without_the_optional_packages() -> None:
    # The plug-in is imported by the suite that it belongs to, and needs it (test_brainmarks.py).
    plug_ins = PROJECT / "brainmarks"
    names = [module_name(file) for file in files() if not file.is_relative_to(plug_ins)]
    program = f"""
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocked())
failed = 0
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed += 1
        print(f"{{name}}: {{type(error).__name__}}: {{error}}")
sys.exit(failed != 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, *names],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_stands_in_a_layer() -> None:
    """A module outside the layers would escape the import rule."""
    with open(ROOT / "pyproject.toml", "rb") as stream:
        contracts = tomllib.load(stream)["tool"]["importlinter"]["contracts"]
    for contract in (c for c in contracts if c["type"] == "layers"):
        (container,) = contract["containers"]
        folder = PROJECT / container.replace(".", "/")
        known = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
        found = {path.stem for path in folder.iterdir() if path.name not in NOT_MODULES}
        assert found == known, f"layers of {container} in pyproject.toml"


def test_only_faces_import_by_the_repository() -> None:
    """``project.module`` is the reference's path; our own code has one name for each thing."""
    found = [
        str(path.relative_to(ROOT))
        for path in (*files(), *(ROOT / "benchmarks").rglob("*.py"))
        if any(
            isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "project"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert found == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "None 10000"),
        ({"OMP_WAIT_POLICY": "passive"}, "passive None"),
        ({"GOMP_SPINCOUNT": "1000"}, "None 1000"),
    ],
)
@pytest.mark.parametrize(
    "start",
    ["neuromamba.commands.doctor", "neuromamba.commands.train", "neuromamba.commands.flops"],
)
def test_threads_do_not_spin_for_long(start: str, given: dict[str, str], expected: str) -> None:
    """Set before torch loads OpenMP's runtime, which reads it then; the user's setting counts."""
    program = f"""
import os, runpy, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0)
sys.meta_path.insert(0, Finder())
runpy.run_module("{start}", run_name="__main__")
"""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in names} | given
    done = subprocess.run(
        [sys.executable, "-u", "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == expected, done.stderr


def loaded_with(*names: str) -> set[str]:
    """Modules of the package that a process without any has after importing these."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*(name for name in sys.modules if name.split('.')[0] == 'neuromamba'))"
    )
    done = subprocess.run(
        [preloaded_python(), "-W", "ignore", "-c", program, *names],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "fewer_than"), [("neuromamba.neurossm.report", 52), ("neuromamba.neurossm.module", 23)]
)
def test_a_module_loads_few_others(name: str, fewer_than: int) -> None:
    """To draw a page, or to hold a network, takes no trainer and no other family."""
    found = loaded_with(name)
    assert len(found) < fewer_than, sorted(found)
    assert not {one for one in found if one.startswith("neuromamba.training")}


@pytest.mark.parametrize(("family", "other"), [("neurossm", "fmamba"), ("fmamba", "neurossm")])
def test_a_model_family_loads_nothing_of_the_other(family: str, other: str) -> None:
    folder = PACKAGE / family
    names = [f"neuromamba.{family}.{path.stem}" for path in sorted(folder.glob("[!_]*.py"))]
    found = loaded_with(*names)
    assert found >= set(names)
    assert not {one for one in found if one.startswith(f"neuromamba.{other}")}
