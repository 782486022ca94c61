"""The reference's paths: imported and run as its users do, without an installed package.

The reference sets PYTHONPATH to the repository and imports ``project.module...``; scripts are
called from anywhere. Both work from a plain checkout.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import DATA_SCRIPTS, PROJECT, ROOT
from tests.helpers.preloaded import preloaded_python

# Path below module/ -> names that users of the reference import from it.
IMPORTS = {
    "pl_classifier": ("DownstreamModule", "FMambaModule", "PretrainModule"),
    "models.fmamba": ("FMamba",),
    "models.load_model": ("MODELS", "build_model", "load_model_config"),
    "models.utils": ("RMSNorm",),
    "utils.data_module": ("DATASETS", "FMRIDataModule"),
    "utils.data_utils": ("WindowDataset",),
    "utils.augment": ("augment_window",),
    "utils.losses": ("cross_entropy", "mse", "next_token_errors"),
    "utils.lr_scheduler": ("CosineAnnealingWarmUpRestarts",),
    "utils.masking_generator": ("hidden_tokens",),
    "utils.metrics": ("METRICS",),
    "utils.parser": ("build_parser", "parse_arguments"),
    "utils.seed_creation": ("seed_run",),
    "utils.data_preprocess_and_load.preprocessing": ("convert_folder",),
    "utils.data_preprocess_and_load.preprocessing_HCP_v2": ("main",),
    "utils.data_preprocess_and_load.datasets": ("DATASETS",),
    "utils.data_preprocess_and_load.datasets_hdf5": ("WindowDataset",),
    "utils.data_preprocess_and_load.check_and_clean_hdf5": ("check_store",),
    "utils.data_preprocess_and_load.convert_data_into_hdf5_revised": ("main",),
    "utils.data_preprocess_and_load.convert_data_into_hdf5_revised_nogzip": ("main",),
}
# Script -> the command that it is.
SCRIPTS = {
    PROJECT / "main.py": "train",
    PROJECT / "check_flops.py": "flops",
    PROJECT / "deepspeed_profile.py": "profile",
    DATA_SCRIPTS / "preprocessing.py": "preprocess",
    DATA_SCRIPTS / "preprocessing_HCP_v2.py": "preprocess",
    DATA_SCRIPTS / "check_and_clean_hdf5.py": "check-store",
    DATA_SCRIPTS / "convert_data_into_hdf5_revised.py": "convert-reference",
    DATA_SCRIPTS / "convert_data_into_hdf5_revised_nogzip.py": "convert-reference",
    PROJECT / "neurossm" / "tester.py": "regions train",
    PROJECT / "neurossm" / "Analysis" / "run_cpa_analysis.py": "regions explain-reference",
}
# Forgets an editable installation of this or another checkout, as if there were none.
PLAIN = """
import json, os, runpy, sys
from importlib import import_module
sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p or ".", "neuromamba"))]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""
IMPORT = """
found = {}
for name, wanted in json.loads(sys.argv[1]).items():
    module = import_module(name)
    found[name] = [one for one in wanted if not hasattr(module, one)]
print(json.dumps([found, sys.modules["neuromamba"].__file__]))
"""
SCRIPT = """
script = sys.argv[1]
sys.argv[:] = sys.argv[1:]
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""


def plain(
    program: str, *words: str, cwd: Path, python: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process that knows the checkout by nothing but its arguments."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [python or preloaded_python(), "-c", PLAIN + program, *words],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_without_an_installation_there_is_no_package(tmp_path: Path) -> None:
    """Or the tests below would say nothing about a plain checkout."""
    done = plain("import neuromamba", cwd=tmp_path)
    assert done.returncode == 1 and "No module named 'neuromamba'" in done.stderr


@pytest.mark.parametrize(
    ("root", "python"),
    [("project.module", sys.executable), ("module", "")],
    ids=["project.module", "module"],
)
def test_every_path_of_the_reference_is_imported(root: str, python: str, tmp_path: Path) -> None:
    """Once in a process in which no library is loaded, either."""
    wanted = {f"{root}.{path}": names for path, names in IMPORTS.items()}
    place = ROOT if root == "project.module" else PROJECT
    program = f"sys.path.insert(0, {str(place)!r})\n{IMPORT}"
    done = plain(program, json.dumps(wanted), cwd=tmp_path, python=python)
    assert done.returncode == 0, done.stderr
    missing, package = json.loads(done.stdout.splitlines()[-1])
    assert missing == {name: [] for name in wanted}
    assert Path(package).parent == PROJECT / "neuromamba"


def test_pythonpath_of_the_readme(tmp_path: Path) -> None:
    """``export PYTHONPATH=$PWD`` in the repository, and a model is built from a configuration."""
    program = """
from project.module.models.load_model import build_model, load_model_config
model = build_model(load_model_config(sys.argv[1]))
print(type(model).__name__)
"""
    config = ROOT / "configs" / "neuromamba_small.yaml"
    program = f"sys.path.insert(0, os.environ['PYTHONPATH'])\n{program}"  # PLAIN has removed none
    done = plain(program, str(config), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.stdout.split() == ["FMamba"], done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_of_every_script(script: Path, tmp_path: Path) -> None:
    for folder in (ROOT, tmp_path):
        done = plain(SCRIPT, str(script), "--help", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: neuromamba {SCRIPTS[script]} ")


def test_defaults_of_scripts_that_stand_for_a_flag(tmp_path: Path) -> None:
    """``preprocessing_HCP_v2.py`` is --layout hcp, ``..._nogzip.py`` is --compression none."""
    hcp = (DATA_SCRIPTS / "preprocessing_HCP_v2.py").read_text()
    assert 'layout="hcp", dataset_name="S1200"' in hcp
    script = DATA_SCRIPTS / "convert_data_into_hdf5_revised_nogzip.py"
    assert 'compression="none"' in script.read_text()
    done = plain(
        SCRIPT, str(script), "--input", "none", "--output", "out", "--tr", "2", cwd=tmp_path
    )
    assert done.returncode == 2 and "--input" in done.stderr


def test_faces_are_short_and_there_are_no_others() -> None:
    """A face calls or re-exports the package; code belongs there."""
    known = {f"{path.replace('.', '/')}.py" for path in IMPORTS}
    faces = set((PROJECT / "module").rglob("*.py"))
    found = {path.relative_to(PROJECT / "module").as_posix() for path in faces}
    assert {path for path in found if not path.endswith("__init__.py")} == known
    for path in faces | set(SCRIPTS):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert len(lines) <= 15, path
        tree = ast.parse("\n".join(lines))
        kinds = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While)
        assert not any(isinstance(node, kinds) for node in ast.walk(tree)), path


def test_the_readme_of_the_folder_names_the_faces() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 15
    scripts = [path.name for path in PROJECT.glob("*.py") if path.name != "__init__.py"]
    for name in ("neuromamba/", "module/", "neurossm/", *scripts):
        assert f"`{name}`" in text
