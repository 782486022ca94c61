"""Scripts of ``sample_scripts/``: every python command they start fits the command line."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from neuromamba.config.flag_parser import Parser, parse_arguments
from neuromamba.config.model import VARIANTS
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run import Run
from neuromamba.fmamba.run_config import run_config
from tests.helpers.sample_scripts import ROOT, SCRIPTS, SOURCED, commands_started

FOLDER = ROOT / "sample_scripts"
PRETRAINING = [name for name in SCRIPTS if name.startswith("pretraining/")]
HCP = [name for name in SCRIPTS if name.startswith("downstream/HCP/")]
ONE_GPU = [name for name in SCRIPTS if name.startswith("downstream/5M_fmamba_")]
SMOKE = [name for name in SCRIPTS if name.startswith("lab_server_smoke_test/")]
SLURM_JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "4"}


def read(script: str) -> str:
    return (FOLDER / script).read_text(encoding="utf-8")


def nodes_asked_for(script: str) -> int:
    (nodes,) = re.findall(r"(?m)^#PBS -l select=(\d+):ncpus=72:ngpus=6:mpiprocs=12$", read(script))
    return int(nodes)


def pbs_job(script: str, folder: Path) -> dict[str, str]:
    """What PBS sets in the job of a script, with ranks of a node as lines of the file of nodes."""
    nodes = folder / "nodes"
    names = [f"node{number:03d}" for number in range(nodes_asked_for(script)) for _ in range(2)]
    nodes.write_text("\n".join(names) + "\n")
    return {"PBS_NODEFILE": str(nodes), "PBS_JOBID": "12.server", "PBS_O_WORKDIR": str(ROOT)}


def job_of(script: str, folder: Path) -> dict[str, str]:
    return pbs_job(script, folder) if "#PBS" in read(script) else SLURM_JOB


def dummy_parser() -> Parser:
    parser: Parser = runpy.run_path(str(FOLDER / "dummy_checkpoint.py"))["dummy_parser"]()
    return parser


def planned(words: list[str]) -> Run:
    """The run that a command of a script starts, its launcher aside."""
    at = words.index("project/main.py")
    return Run(run_config(*parse_arguments(build_parser(), words[at + 1 :])))


# --- the files ------------------------------------------------------------------------------------


def test_scripts_are_those_of_the_layout() -> None:
    assert [
        f"pretraining/{name}.sh"
        for name in ("base_32nodes", "large_48nodes", "medium_32nodes", "small_32nodes")
    ] == PRETRAINING
    assert set(HCP) == {
        f"downstream/HCP/{size}_{task}_{mode}.sh"
        for size in ("5M", "E128", "E192")
        for task in ("sex", "age", "intelligence")
        for mode in ("full", "TL", "scratch")
    }
    tasks = ("age", "intelligence", "sex")
    assert [f"downstream/5M_fmamba_{task}.sh" for task in tasks] == ONE_GPU
    smoke = ("dummy_finetune", "dummy_smoke", "hcp_finetune_smoke")
    assert [f"lab_server_smoke_test/slurm_a5000_{name}.sh" for name in smoke] == SMOKE
    assert len(SCRIPTS) == sum(map(len, (PRETRAINING, HCP, ONE_GPU, SMOKE)))


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.sh")), ids=lambda path: path.name)
def test_script_parses(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    if path.name not in SOURCED:
        assert os.access(path, os.X_OK)
        assert "\nset -euo pipefail\n" in path.read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_holds_no_path_of_a_laboratory(script: str) -> None:
    absolute = re.findall(r"(?<![\w.$}/*])/(?!path/to/)\w[\w/]*", read(script))
    assert set(absolute) <= {"usr/bin/env", "/usr/bin/env"}


# --- the commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", [False, True], ids=["job", "trial"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_are_parsed(
    script: str, trial: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its scheduler runs it, with data; and on a CPU with data of its own, without launcher."""
    monkeypatch.chdir(ROOT)
    settings = {"SMOKE_ACCELERATOR": "cpu"} if trial else job_of(script, tmp_path)
    if not trial or "hcp" in script:
        settings |= {"IMAGE_PATH": "/path/to/store", "LOGGER": "csv"}
    started = commands_started(script, tmp_path, **settings)
    assert started
    for words in started:
        if "sample_scripts/dummy_checkpoint.py" in words:
            parse_arguments(dummy_parser(), words[1:])
            continue
        run = planned(words)
        launcher = {"project/main.py": None}.get(words[0], words[0])
        if trial:
            assert launcher is None
            assert (run.hardware.accelerator, run.hardware.ranks) == ("cpu", 1)
        else:
            assert launcher == ("mpiexec" if "#PBS" in read(script) else "srun")
    if trial and script not in SMOKE:
        # Twice in a row: no trial may end at the folder of the one before.
        assert run.config.flags["process_code"].startswith(Path(script).stem)


@pytest.mark.parametrize("script", PRETRAINING)
def test_pretraining_is_the_published(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    job = pbs_job(script, tmp_path) | {"IMAGE_PATH": "/path/a /path/b", "DATASET_NAME": "UKB S1200"}
    (words,) = commands_started(script, tmp_path, **job)
    size, nodes = re.fullmatch(r"pretraining/(\w+)_(\d+)nodes\.sh", script).groups()  # type: ignore[union-attr]
    run = planned(words)
    assert run.effective_batch == 1152
    assert run.config.model.embed_dim == VARIANTS[size]
    assert run.hardware.num_nodes == nodes_asked_for(script) == int(nodes)
    assert words[:5] == ["mpiexec", "-n", str(run.hardware.ranks), "-ppn", "12"]
    assert run.hardware.strategy == f"deepspeed_stage_{3 if size == 'large' else 1}"
    assert run.config.data.batch_size == (2 if size == "large" else 3)
    assert run.config.data.image_path == ("/path/a", "/path/b")
    assert run.config.trainer["max_epochs"] == 40


def test_effective_batch_on_other_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer nodes accumulate; a number that cannot reach 1,152 is refused."""
    monkeypatch.chdir(ROOT)
    script = "pretraining/base_32nodes.sh"
    for nodes, works in ((8, True), (1, True), (5, False)):
        job = pbs_job(script, tmp_path) | {"IMAGE_PATH": "/path/a"}
        (tmp_path / "nodes").write_text("".join(f"n{i}\n" for i in range(nodes)))
        if works:
            (words,) = commands_started(script, tmp_path, **job)
            assert planned(words).effective_batch == 1152
        else:
            with pytest.raises(AssertionError, match="do not divide EFFECTIVE_BATCH=1152"):
                commands_started(script, tmp_path, **job)


@pytest.mark.parametrize("script", HCP)
def test_hcp_scripts_do_what_their_names_say(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    size, task, mode = Path(script).stem.split("_")
    width, file = {"5M": (256, "5M_E256"), "E192": (192, "3M_E192"), "E128": (128, "1M_E128")}[size]
    assert re.search(r"(?m)^#PBS -J 0-2$", read(script))
    job = pbs_job(script, tmp_path) | {"IMAGE_PATH": "/path/a", "PBS_ARRAY_INDEX": "1"}
    (words,) = commands_started(script, tmp_path, **job)
    run = planned(words)
    assert (run.config.model.embed_dim, run.hardware.ranks) == (width, 24)
    assert run.config.downstream is not None
    assert run.config.downstream.task == task
    assert run.config.downstream.freeze_feature_extractor == (mode == "TL")
    loaded = f"checkpoints/{file}.pt" if mode != "scratch" else None
    assert run.config.flags["load_model_path"] == loaded
    assert run.config.flags["seed"] == 1235


def test_tasks_of_an_array_have_seeds_and_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = []
    for index in range(3):
        job = pbs_job(HCP[0], tmp_path) | {"IMAGE_PATH": "/path/a", "PBS_ARRAY_INDEX": str(index)}
        (words,) = commands_started(HCP[0], tmp_path, **job)
        flags = planned(words).config.flags
        found.append((flags["seed"], flags["process_code"]))
    assert len(dict(found)) == len({name for _, name in found}) == 3


def test_settings_reach_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "site.sh").write_text("export SEEDS='5 6'\n")
    script = "downstream/HCP/E128_sex_full.sh"
    settings = pbs_job(script, tmp_path) | {
        "IMAGE_PATH": "/path/a",
        "SITE_SETUP": str(tmp_path / "site.sh"),
        "MPIEXEC_FLAGS": "--cpu-bind depth",
        "EXTRA_FLAGS": "--dropout 0.25",
        "HEAD": "linear",
        "DEVICES": "4",
        "RESUME": "last.ckpt",
        "CHECKPOINT": "/path/to/mine.pt",
    }
    (words,) = commands_started(script, tmp_path, **settings)
    assert words[:7] == ["mpiexec", "-n", "8", "-ppn", "4", "--cpu-bind", "depth"]
    run = planned(words)
    assert run.config.model.dropout == 0.25
    assert run.config.head is not None and run.config.head.name == "linear"
    assert run.config.flags["resume_ckpt_path"] == "last.ckpt"
    assert run.config.flags["load_model_path"] == "/path/to/mine.pt"


@pytest.mark.parametrize(
    "script", ["downstream/HCP/E128_sex_full.sh", "pretraining/base_32nodes.sh"]
)
@pytest.mark.parametrize(("settings", "expected"), [({}, "last"), ({"RESUME": ""}, None)])
def test_the_same_job_once_more_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    settings: dict[str, str],
    expected: str | None,
) -> None:
    monkeypatch.chdir(ROOT)
    job = pbs_job(script, tmp_path) | {"IMAGE_PATH": "/path/a"} | settings
    (words,) = commands_started(script, tmp_path, **job)
    assert planned(words).config.flags["resume_ckpt_path"] == expected


@pytest.mark.parametrize("script", [*ONE_GPU, "pretraining/small_32nodes.sh"])
def test_without_data_a_real_run_is_refused(script: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="error: IMAGE_PATH is empty"):
        commands_started(script, tmp_path)
