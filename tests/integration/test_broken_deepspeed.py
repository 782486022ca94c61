"""DeepSpeed in bf16, and where only an empty folder has its name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.flag_tests import (
    NEXT,
    shows,
)
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import preloaded_python
from tests.helpers.tiny import CommandLine

# DeepSpeed as if it were not installed, and a folder of its name on the path.
HIDE_DEEPSPEED = """
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, PackageNotFoundError

found_by_name = Distribution.from_name

def from_name(name):
    if name == "deepspeed":
        raise PackageNotFoundError(name)
    return found_by_name(name)

class EmptyFolder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "deepspeed":
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = ["deepspeed"]
            return spec

Distribution.from_name = staticmethod(from_name)
sys.meta_path.insert(0, EmptyFolder)
"""


@shows("deepspeed_autocast")
def test_deepspeed_autocast(cli: CommandLine) -> None:
    """The parameters stay fp32; without the flag DeepSpeed makes bf16 of them."""
    pytest.importorskip("deepspeed")
    program = str(ROOT / "project" / "main.py")
    found = []
    for extra in ("", "--deepspeed_autocast"):
        folder = cli.folder / f"run{extra}"
        line = (
            f"{NEXT} --strategy deepspeed_stage_1 --precision bf16 --limit_train_batches 1 "
            f"--val_split 0 --output_dir {folder} {extra}"
        )
        done = subprocess.run(
            [preloaded_python(), program, *cli.argv(line)],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"DS_ACCELERATOR": "cpu"},
        )
        assert done.returncode == 0, done.stderr
        state = folder / "checkpoints/last.ckpt/checkpoint/mp_rank_00_model_states.pt"
        weights = torch.load(state, weights_only=True)["module"]
        found.append(weights["model.embedder.projection"].dtype)
    assert found == [torch.bfloat16, torch.float32]


def test_deepspeed_does_not_load_the_compiler() -> None:
    """It would for Muon, which no run of ours uses; torch's switch is afterwards as it was."""
    pytest.importorskip("deepspeed")
    program = """
import os, sys
from neuromamba.training.zero_strategy import prepare_deepspeed

for switch in (None, "0"):
    if switch is not None:
        os.environ["TORCHDYNAMO_DISABLE"] = switch
    prepare_deepspeed("cpu")
    assert os.environ.get("TORCHDYNAMO_DISABLE") == switch
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # as DeepSpeed does

assert "torch._inductor.compile_fx" not in sys.modules
"""
    places = os.pathsep.join([str(ROOT / "project"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [preloaded_python(), "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": places},
    )
    assert done.returncode == 0, done.stderr


def test_an_empty_deepspeed_folder_breaks_nothing(cli: CommandLine) -> None:
    """The reference's TORCH_EXTENSIONS_DIR=$PWD/deepspeed with PYTHONPATH=$PWD."""
    (cli.folder / "deepspeed").mkdir()
    (cli.folder / "sitecustomize.py").write_text(HIDE_DEEPSPEED)
    root = ROOT

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(cli.folder), str(root)])
        extensions = str(cli.folder / "deepspeed")
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "TORCH_EXTENSIONS_DIR": extensions},
        )

    assert python("-c", "import deepspeed").returncode == 0, "the trap is set"
    done = python("-c", "import neuromamba, deepspeed")
    assert "ModuleNotFoundError: import of deepspeed halted" in done.stderr
    program = str(root / "project" / "main.py")
    done = python(program, *cli.argv("--strategy deepspeed --dry_run"))
    assert done.returncode == 0, done.stderr
    assert "DeepSpeed is not installed" in done.stdout
