"""Plans: what a rank holds, which batches reach the effective batch, hours, jobs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neuromamba.__main__ import main as neuromamba
from neuromamba.commands import doctor
from neuromamba.commands import plan as plan_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.flag_parser import parse_arguments
from neuromamba.config.model import VARIANTS, HeadConfig, ModelConfig
from neuromamba.data.windows.loader import EpochSampler
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run import Run
from neuromamba.fmamba.run_config import run_config
from neuromamba.fmamba.steps import batches_of_epoch
from neuromamba.fmamba.weight_counts import Weights
from neuromamba.layers.ssd import native as library
from neuromamba.planning import batch_script, busy_cores, cluster_plan, flops, machine, state_memory
from neuromamba.planning.batch_script import Job
from neuromamba.planning.gpus import GPUS, find_gpu
from neuromamba.planning.memory import Setting, model_weights
from neuromamba.planning.plan_request import request_of, workload_of
from neuromamba.planning.schedule import schedule
from neuromamba.planning.step_memory import Step, step_memory
from tests.helpers.paths import PROJECT
from tests.helpers.sample_scripts import ROOT, commands_started

BASE = ["--config", str(ROOT / "configs/neuromamba_base.yaml")]
PAPERS = ["--batch_size", "3"]  # where numbers are compared with the paper's

# --- a step -------------------------------------------------------------------------------------


def step(**changes: Any) -> int:
    base: dict[str, Any] = {
        "model": ModelConfig(),
        "lengths": (5000, 4000),
        "voxels": (200_000, 180_000),
        "backend": "triton",
        "device": "cuda",
        "operand": 2,
    }
    return step_memory(Step(**(base | changes))).total


def test_a_step_grows_with_what_it_is_made_of() -> None:
    base = step()
    assert step(lengths=(10_000, 8000)) > 1.9 * base
    assert step(model=ModelConfig(embed_dim=256)) > 1.25 * base
    assert step(operand=4) > 1.5 * base
    assert step(fused=False) > base  # the convolution's output is kept as well
    assert step(checkpointing=True) < 0.5 * base
    assert step(frozen=True, head=HeadConfig()) < 0.5 * base
    assert step(head=HeadConfig(name="mamba")) > step(head=HeadConfig())
    shallow = ModelConfig(depth=1)
    assert step(masked=0.5, operand=4, model=shallow) > step(operand=4, model=shallow)
    assert step(model=ModelConfig(dropout=0.1)) > base
    assert step(augmented=True, model=shallow) >= step(model=shallow)


def test_kept_by_a_block_on_a_gpu() -> None:
    """The figures of a block one by one, fused, bf16 operands; D 192, I 384, N 48, H 2."""
    more = step(model=ModelConfig(depth=12)) - step(model=ModelConfig(depth=11))
    columns = 2 * 384 + 2 * 48 + 2
    each = 4 * 192 + 4 + 2 * (192 + columns + 384 + 384) + 4  # input, scale, operands, scan, scale
    assert more == pytest.approx(9000 * each, rel=1e-6)


@pytest.mark.parametrize("native", [False, True])
def test_the_pool_of_the_portable_backend_is_bounded(native: bool) -> None:
    """12 layers of 51 MB are kept; of 40 layers no more than the budget."""

    def scan(depth: int) -> int:
        made = Step(
            model=ModelConfig(depth=depth), lengths=(14_810,), voxels=(200_000,), native=native
        )
        return step_memory(made).groups["buffers of the scan"]

    columns = 4 * 14_810 * (2 * 384 + 2 * 48 + 2)
    if native and library.status().library is not None:  # rows are whole vector registers
        kernels = library.layer_kernels(192, 48, 192)
        assert kernels is not None
        columns = 4 * 14_810 * kernels.row_of(2 * 384 + 2 * 48 + 2)
    assert scan(12) - scan(11) == columns
    assert scan(40) == scan(30)
    assert scan(40) - scan(1) == (2**30 // columns - 1) * columns


# --- what is held -------------------------------------------------------------------------------

WEIGHTS = Weights(trained=1000, frozen=200, buffers=300)


def held(strategy: str, ranks: int, **how: Any) -> tuple[dict[str, int], dict[str, int]]:
    found = state_memory.state_memory(WEIGHTS, strategy, ranks, **how)
    return found.device, found.host


def test_one_device_holds_everything() -> None:
    device, host = held("auto", 1)
    assert device == {
        "weights": 4800,
        "gradients": 4000,
        "optimiser": 8000,
        "positional encoding": 1200,
    }
    assert host == {}
    assert held("auto", 1, optimizer="SGD")[0]["optimiser"] == 4000
    assert held("auto", 2)[0] == held("ddp", 2)[0] == device | {"buckets of gradients": 4000}


def test_zero_takes_parts() -> None:
    one, two, three = (
        held(f"deepspeed_stage_{n}", 4, parameter=2, on_cpu=True)[0] for n in (1, 2, 3)
    )
    assert one["optimiser"] == two["optimiser"] == three["optimiser"] == 2000
    assert one["fp32 copy of a part"] == one["gradient of a part"] == 1000
    assert one["weights"] == 2400 and three["part of the weights"] == 600
    assert "part of the weights" not in one
    # On a CPU only what is written to; on a GPU the whole buckets, two of them in stages 1 and 2.
    assert one["buckets of gradients"] == 2000
    gpu = held("deepspeed_stage_1", 4, parameter=2)[0]["buckets of gradients"]
    assert gpu == 2 * held("deepspeed_stage_3", 4, parameter=2)[0]["buckets of gradients"]
    assert gpu == 2 * 2 * 200_000_000


def test_offloading_moves_to_the_host() -> None:
    kept, _ = held("deepspeed_stage_3", 4)
    device, host = held("deepspeed_stage_3_offload", 4)
    assert host == {
        "fp32 copy of a part": 1000,
        "gradient of a part": 1000,
        "optimiser": 2000,
        "part of the weights": 1200,
    }
    assert {**device, **host} == kept
    assert held("deepspeed_stage_2_offload", 4, on_cpu=True)[1] == {}


@pytest.mark.parametrize(
    ("precision", "strategy", "autocast", "numbers"),
    [
        ("32-true", "ddp", False, (4, 4)),
        ("bf16-mixed", "ddp", False, (4, 2)),
        ("bf16-mixed", "deepspeed_stage_1", False, (2, 2)),
        ("bf16-mixed", "deepspeed_stage_1", True, (4, 2)),
        ("bf16-true", "auto", False, (2, 2)),
        ("64-true", "auto", False, (8, 8)),
    ],
)
def test_numbers(precision: str, strategy: str, autocast: bool, numbers: tuple[int, int]) -> None:
    assert (
        Setting(
            accelerator="cuda", strategy=strategy, precision=precision, ranks=2, autocast=autocast
        ).numbers
        == numbers
    )


def test_only_stage_3_hooks_into_the_layers() -> None:
    hooked = {
        n: Setting(
            accelerator="cuda", strategy=f"deepspeed_stage_{n}", precision="32-true", ranks=2
        ).hooked
        for n in (1, 2, 3)
    }
    assert hooked == {1: False, 2: False, 3: True}


# --- batches and hours --------------------------------------------------------------------------


def test_batches_that_reach_the_effective_batch() -> None:
    pairs = cluster_plan.reaching(1152, 384)
    assert pairs == [(1, 3), (3, 1)]
    for ranks in (1, 8, 48, 96):
        for micro, accumulation in cluster_plan.reaching(1152, ranks):
            assert micro * accumulation * ranks == 1152
    assert cluster_plan.reaching(1152, 5) == []


def plan_of(
    *words: str, gpu: str = "A5000", gpus: int = 8
) -> tuple[Any, cluster_plan.Request, cluster_plan.ClusterPlan]:
    argv = [*BASE, *PAPERS, "--gpus", str(gpus), "--gpu", gpu, *words]
    config = plan_command.planned_run(argv)
    request = request_of(config)
    setting = request.setting
    config = dataclasses.replace(
        config,
        trainer={**config.trainer, "strategy": setting.strategy, "precision": setting.precision},
    )
    work = workload_of(config)
    return work, request, cluster_plan.make_plan(config, request, work)


def test_plan_of_the_paper() -> None:
    """32 nodes of 12 tiles: micro batch 3, no accumulation, ZeRO-1, bf16."""
    _, request, plan = plan_of("--image_path", "/path/to/store", gpu="max1550-tile", gpus=384)
    assert (plan.chosen.micro, plan.chosen.accumulation) == (3, 1)
    assert plan.effective == 1152 and plan.chosen.fits
    assert request.per_node == 12 and request.setting.strategy == "deepspeed_stage_1"
    assert request.setting.precision == "bf16-mixed" and request.setting.accelerator == "xpu"
    assert plan.parameters == plan.trained == 3_082_296
    large = request_of(
        plan_command.planned_run(
            [
                *("--config", str(ROOT / "configs/neuromamba_large.yaml")),
                *("--gpus", "576", "--gpu", "Max1550-tile"),
            ]
        )
    )
    assert large.setting.strategy == "deepspeed_stage_3"


def test_hours_follow_from_the_flops() -> None:
    work, _, plan = plan_of("--windows", "1000", "--utilisation", "0.2", "--max_epochs", "3")
    model = ModelConfig()
    each = flops.training_total(flops.forward_terms(model, round(work.tokens_brain)))
    assert plan.flops_window == each and plan.flops_run == 3000 * each
    assert plan.flops_step == 1000 * each  # an epoch has no more
    rate = 8 * GPUS["A5000"].bf16 * 0.2
    assert plan.hours == pytest.approx(3000 * each / rate / 3600)
    # 125 windows a rank, 42 batches of 3, of which 48 make a step: one step an epoch.
    assert plan.schedule is not None and plan.schedule.steps == 3
    assert plan.flops_step * plan.schedule.steps == plan.flops_run
    again = plan_of("--windows", "1000", "--utilisation", "0.2", "--max_epochs", "3",
                    "--activation_checkpointing")[2]  # fmt: skip
    assert again.hours is not None and plan.hours is not None
    assert 1.25 < again.hours / plan.hours < 1.4  # one more forward pass, of about three
    fp32 = plan_of("--windows", "1000", "--precision", "32", "--max_epochs", "3")[2]
    assert fp32.hours == pytest.approx(3000 * each / (8 * 27.8e12 * 0.1) / 3600)


def test_subjects_give_the_windows() -> None:
    work, _, _ = plan_of("--subjects", "100", "--frames", "490")
    assert work.windows == 100 * 24 and "100 of 490 frames, 24 each" in work.windows_source
    assert work.most_tokens == 14_810


def test_what_does_not_fit_is_said() -> None:
    *_, plan = plan_of("--gpu_memory", "3.2")
    assert plan.chosen.micro == 1 and plan.chosen.fits  # fewer than the three of the file
    assert not plan.checkpointing
    *_, plan = plan_of("--gpu_memory", "2.0")
    assert plan.fits and plan.checkpointing and plan.checkpointing_needed
    *_, asked = plan_of("--gpu_memory", "2.0", "--activation_checkpointing")
    assert not asked.checkpointing_needed
    assert (asked.options, asked.chosen, asked.hours) == (plan.options, plan.chosen, plan.hours)
    *_, plan = plan_of("--gpu_memory", "0.5")
    assert not plan.fits and not plan.checkpointing and not plan.checkpointing_needed
    *_, plan = plan_of(gpus=5)
    assert plan.options == [] and plan.effective == 3 * 77 * 5


@pytest.mark.parametrize(
    ("flags", "windows", "ranks", "micro", "accumulation"),
    [
        ("--max_epochs 3", 1000, 8, 3, 48),
        ("--max_epochs 3", 1000, 3, 4, 5),
        ("--max_epochs 2", 7, 16, 1, 3),  # fewer windows than ranks
        ("--max_epochs 2", 4000, 8, 3, 2),
        ("--max_epochs 4 --limit_train_batches 5", 1000, 8, 3, 2),
        ("--max_epochs 4 --limit_train_batches 0.5", 1000, 8, 3, 2),
        ("--max_epochs 4 --max_steps 30", 1000, 8, 3, 2),
        ("--max_epochs -1 --max_steps 100", 100, 2, 3, 2),
    ],
)
def test_schedule_is_that_of_the_loader(
    flags: str, windows: int, ranks: int, micro: int, accumulation: int
) -> None:
    """Beside epochs that are counted batch by batch."""
    argv = [*BASE, *flags.split(), "--gpus", "1"]
    config = plan_command.planned_run(argv)
    found = schedule(config, windows, ranks, micro, accumulation)
    each = len(EpochSampler(windows, 0, rank=0, ranks=ranks))
    batches = [min(micro, each - place) for place in range(0, each, micro)]
    batches = batches[: batches_of_epoch(config, len(batches))]
    epoch = [
        ranks * sum(batches[place : place + accumulation])
        for place in range(0, len(batches), accumulation)
    ]
    most = config.trainer.get("max_steps", 10**9)
    steps = (epoch * (config.trainer["max_epochs"] if "-1" not in flags else 10**3))[:most]
    assert (found.epoch, found.step, found.last_step) == (sum(epoch), epoch[0], epoch[-1])
    assert (found.steps_epoch, found.steps, found.windows) == (len(epoch), len(steps), sum(steps))
    if "limit" not in flags:
        assert found.repeated == found.epoch - windows


def test_a_step_larger_than_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    """All figures are of the windows that come; no batch is planned that is never made."""
    _, _, plan = plan_of("--windows", "30", "--max_epochs", "3")
    assert plan.schedule is not None and plan.schedule.step == plan.schedule.epoch == 32
    assert max(option.micro for option in plan.options) == 4  # windows of a rank
    assert plan.flops_step == 32 * plan.flops_window and plan.flops_run == 3 * plan.flops_step
    words = ["plan", *BASE, "--gpus", "8", "--gpu", "A5000", "--max_epochs", "3"]
    assert neuromamba([*words, "--windows", "30"]) == 0
    text = capsys.readouterr().out
    assert "a step of 32 windows" in text and "32 are computed: 2 are repeated" in text
    assert "warning: an epoch has fewer windows than the 1,152 of the effective batch" in text
    assert neuromamba([*words, "--gpus", "5"]) == 0
    assert "the nearest make 1,150" in capsys.readouterr().out  # 10 x 23 x 5
    assert neuromamba([*words, *PAPERS, "--gpus", "5"]) == 0
    text = capsys.readouterr().out
    assert "no batches make 1,152 windows a step on 5 ranks" in text
    assert "the nearest make 1,155" in text
    hours, gpu_hours = re.findall(r"hours: ([\d.e-]+)", text)
    assert float(gpu_hours) == pytest.approx(5 * float(hours), rel=0.01)


def test_limits_of_the_data_count_without_data() -> None:
    work, _, _ = plan_of("--limit_training_samples", "100", "--num_train_fMRI_segments", "7")
    assert work.windows == 700 and "100 subjects" in work.windows_source
    work, _, _ = plan_of("--subjects", "10", "--num_train_fMRI_segments", "7")
    assert work.windows == 70


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_the_published_sizes(variant: str) -> None:
    words = ["--config", str(ROOT / f"configs/neuromamba_{variant}.yaml"), "--gpus", "1"]
    weights = model_weights(plan_command.planned_run(words))
    model = ModelConfig(embed_dim=VARIANTS[variant])
    assert weights == Weights(flops.parameter_count(model), 0, 40_960 * model.embed_dim)
    task = ["--downstream_task", "sex", "--freeze_feature_extractor"]
    frozen = model_weights(plan_command.planned_run([*words, *task]))
    assert frozen.trained == 2 * model.embed_dim + 2 and frozen.frozen > 1_000_000


def test_gpus_are_plausible_and_found() -> None:
    for name, gpu in GPUS.items():
        assert 20 * 2**30 < gpu.memory < 200 * 2**30, name
        assert 2 < gpu.bf16 / gpu.fp32 < 20 or gpu.fp32 < gpu.bf16, name
        assert gpu.source and gpu.per_node >= 1
    assert find_gpu("a5000") == GPUS["A5000"]
    with pytest.raises(UserInputError, match=r"--gpu: unknown name 'A5001'.*'A5000'"):
        find_gpu("A5001")


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan --gpu A5000", "--gpus: how many"),
        ("plan --gpus 0 --gpu A5000", "--gpus: got 0, expected 1 or more"),
        ("plan --gpus 8 --gpus_per_node 3 --gpu A5000", "--gpus_per_node: 8 GPUs do not fill"),
        ("plan --gpus 8 --gpu X9000", "--gpu: unknown name 'X9000'"),
        (
            "plan --gpus 8 --gpu A5000 --devices 2",
            "--devices: a flag of neuromamba train that neuromamba plan does not take",
        ),
        ("plan --gpus 8 --gpu A5000 --utilisation 2", "--utilisation: got 2.0"),
        ("plan --gpus 8 --gpu A5000 --script lsf", "--script: unknown name 'lsf'"),
        ("plan --gpus 8 --gpu A5000 --output job.sh", "--output: is where the job goes"),
        ("plan --gpus 8 --gpu A5000 --script pbs --json", "--json: with --script give one"),
        ("plan --gpus 8 --gpu A5000 --windows 5 --subjects 5", "--windows and --subjects"),
        ("plan --gpus 8 --gpu A5000 --frames 5", "--frames: are those of --subjects"),
        ("plan --gpus 8 --gpu A5000 --frames 5 --subjects 9", "--frames: 5 are less than a window"),
        ("plan --gpus 8 --gpu A5000 --sequence_length 1210", "--sequence_length: a window spans"),
        ("plan --gpus 8 --gpu A5000 --walltime 05:00:00", "--walltime: is the job's; give"),
        (
            "plan --gpus 8 --gpu A5000 --fast_dev_run 2",
            "--fast_dev_run: a flag of neuromamba train that",
        ),
        ("plan --gpus 1153 --gpu A5000", "--gpus: each of 1,153 GPUs trains on a window"),
        ("plan --gpus 8 --gpu A5000 --ssd_backend reference", "--ssd_backend: reference keeps"),
        ("plan --gpus 8 --gpu CPU --ssd_backend triton", "--ssd_backend: triton needs a CUDA"),
        (
            "plan --gpus 8 --gpu A5000 --script slurm --walltime 5h",
            "--walltime: got '5h', expected HH:MM:SS",
        ),
        (
            "plan --gpus 8 --gpu A5000 --script slurm --image_path /a/$x",
            "--image_path: '/a/$x' has characters",
        ),
        ("plan --image_pth x", "flag: unknown name"),
        ("doctor --image_pth x", "flag: unknown name"),
    ],
)
def test_mistakes(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert neuromamba(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_plan_as_text_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["plan", *BASE, "--gpus", "8", "--gpu", "A100-80GB", "--json"]
    assert neuromamba([*words, str(tmp_path / "plan.json")]) == 0
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert neuromamba(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == found.keys() and printed["chosen"] == found["chosen"]
    assert "pre-training, next token" in text and "3,082,296 parameters" in text
    assert "*--batch_size 48   --gradient_accumulation_steps 3 " in text  # the largest that fits
    assert found["effective"] == 1152 and found["chosen"]["micro"] == 48
    assert sum(found["memory"]["device"].values()) == found["chosen"]["memory"]
    assert found["by_strategy"]["deepspeed_stage_1"][0] == found["chosen"]["memory"]
    assert "the share is an assumption" in text and "NVIDIA A100 datasheet" in text


@pytest.mark.parametrize("json_words", [[], ["--json"]])
def test_nothing_fits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, json_words: list[str]
) -> None:
    """Status 1, what to do as the last line, no batch marked, no job."""
    words = ["plan", *BASE, "--gpus", "8", "--gpu", "A5000", "--gpu_memory", "0.5", *json_words]
    assert neuromamba([*words, "--script", "slurm", "--output", str(tmp_path / "job.sh")]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: --gpu: not even one window fits into A5000: ")
    assert "take larger GPUs" in shown.err and shown.err.count("\n") == 1
    assert "job written" not in shown.out and list(tmp_path.iterdir()) == []
    if json_words:
        assert json.loads(shown.out)["chosen"]["fits"] is False
    else:
        assert "*--batch_size" not in shown.out and "does not fit" in shown.out


# --- jobs ---------------------------------------------------------------------------------------


def job(tmp_path: Path, scheduler: str, *words: str) -> Path:
    path = tmp_path / "job.sh"
    argv = ["plan", *BASE, "--gpus", "8", "--gpu", "A5000", "--script", scheduler]
    assert neuromamba([*argv, "--output", str(path), *words]) == 0
    assert path.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", str(path)], check=True)
    return path


def started(path: Path, tmp_path: Path, **changes: str) -> tuple[list[str], Run]:
    (words,) = commands_started(str(path), tmp_path, **changes)
    at = words.index("project/main.py")
    return words[:at], Run(run_config(*parse_arguments(build_parser(), words[at + 1 :])))


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_job_starts_the_planned_run(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = job(
        tmp_path,
        scheduler,
        *("--image_path", "/path/c", "/path/d", "--dataset_name", "UKB", "S1200"),
        *("--dropout", "0.1", "--walltime", "12:00:00"),
    )
    text = path.read_text()
    assert "\nset -euo pipefail\n" in text
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    if scheduler == "pbs":
        (tmp_path / "nodes").write_text("a\nb\n")
        environment = {"PBS_NODEFILE": str(tmp_path / "nodes"), "PBS_JOBID": "12.server"}
        assert "#PBS -l select=2:ncpus=24:ngpus=4:mpiprocs=4:mem=" in text
        assert "#PBS -l walltime=12:00:00\n" in text
    else:
        assert "#SBATCH --nodes=2\n" in text and "#SBATCH --gres=gpu:4\n" in text
        assert "#SBATCH --time=12:00:00\n" in text and "--signal=USR1" in text
    for name, value in environment.items():  # of the job: its number names the folder
        monkeypatch.setenv(name, value)
    _, run = started(path, tmp_path, **environment)
    assert run.config.data.image_path == ("/path/c", "/path/d")
    environment |= {"IMAGE_PATH": "/path/a /path/b"}
    launcher, run = started(path, tmp_path, **environment)
    assert launcher[0] == {"slurm": "srun", "pbs": "mpiexec"}[scheduler]
    assert run.effective_batch == 1152
    assert (run.hardware.devices, run.hardware.num_nodes) == (4, 2)
    assert run.hardware.strategy == "deepspeed_stage_1" and run.hardware.precision == "bf16-mixed"
    assert run.config.pretrain is not None and run.config.model.dropout == 0.1
    assert run.config.data.image_path == ("/path/a", "/path/b")
    assert run.config.data.dataset_name == ("UKB", "S1200")
    assert run.config.flags["resume_ckpt_path"] == "last"
    # Slurm warns, and the run is requeued; under PBS it looks at the clock, a twentieth early.
    limit = {"slurm": None, "pbs": "00:11:24:00"}[scheduler]
    assert run.config.trainer.get("max_time") == limit
    assert run.config.flags["process_code"] is None
    _, run = started(path, tmp_path, **environment, RUN_NAME="second", RESUME="a.ckpt")
    assert run.config.flags["process_code"] == "second"
    assert run.config.flags["resume_ckpt_path"] == "a.ckpt"
    _, run = started(path, tmp_path, **environment, RESUME="")
    assert run.config.flags["resume_ckpt_path"] is None
    assert run.config.data.num_workers == 4


def test_a_downstream_job_and_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    path = job(
        tmp_path,
        "slurm",
        *("--downstream_task", "sex", "--freeze_feature_extractor", "--effective_batch", "48"),
        *("--image_path", "/path/to/store", "--dataset_name", "HCP", "--subjects", "800"),
        *("--num_workers", "6", "--max_time", "00:03:00:00"),
    )
    assert "#SBATCH --cpus-per-task=8\n" in path.read_text()
    launcher, run = started(path, tmp_path, SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2")
    assert run.config.downstream is not None and run.config.downstream.freeze_feature_extractor
    assert run.effective_batch == 48 and run.config.data.image_path == ("/path/to/store",)
    assert run.config.data.num_workers == 6 and run.config.trainer["max_time"] == "00:03:00:00"
    launcher, run = started(path, tmp_path, SMOKE_ACCELERATOR="cpu", IMAGE_PATH="")
    assert launcher == [] and run.hardware.ranks == 1 and run.hardware.accelerator == "cpu"


def test_checkpointing_goes_into_the_job_if_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    path = job(tmp_path, "slurm", "--gpu_memory", "2", "--image_path", "/path/to/store")
    _, run = started(path, tmp_path, SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2")
    assert run.config.flags["activation_checkpointing"]


def test_words_are_quoted_for_the_shell(tmp_path: Path) -> None:
    made = Job(
        "name", "about", 1, 1, 1, (), 4, 8, 3600,
        ("--bad_subj_path", "it's $HOME `id`.txt", "--depth", "2"),
        ("/a b",), ("S1200",), "", "last", "",
    )  # fmt: skip
    text = batch_script.batch_script(made, "slurm")
    (line,) = [line for line in text.splitlines() if "bad_subj" in line]
    echo = f"printf '%s\\n' {line.removeprefix('train ').removesuffix(chr(92))}"
    done = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(made.flags)


@pytest.mark.parametrize(
    ("hours", "expected"), [(None, "24:00:00"), (100.0, "24:00:00"), (2.0, "02:45:00")]
)
def test_walltime(hours: float | None, expected: str) -> None:
    assert batch_script.clock(batch_script.walltime(hours)) == expected
    assert batch_script.clock(90_061, days=True) == "01:01:01:01"


# --- the machine --------------------------------------------------------------------------------


def lines(found: list[machine.Check]) -> dict[str, machine.Check]:
    return {line.name: line for line in found}


def test_this_machine_can_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert text.rstrip().endswith("a training can run here")
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["can_train"]
    names = {line["name"] for line in found["checks"]}
    assert {"Python", "torch", "packages", "scan: cpu", "scan: triton", "memory"} <= names
    for line in found["checks"]:
        assert line["state"] in ("ok", "note", "missing")
        assert line["remedy"] or line["state"] == "ok" or line["name"] in ("/dev/shm", "GPU")


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = machine.version

    def without(name: str) -> str | None:
        old = {"nibabel": "4.0.1", "einops": None, "wandb": None, "deepspeed": None}
        return old[name] if name in old else installed(name)

    monkeypatch.setattr(machine, "version", without)
    found = lines(machine.check_machine())
    assert found["packages"].state == "missing"
    assert "missing: einops" in found["packages"].found
    assert "nibabel 4.0.1" in found["packages"].found
    assert found["wandb"].state == "note" and "pip install wandb" in found["wandb"].remedy
    assert (
        found["DeepSpeed"].state == "note" and "NEUROMAMBA_DEEPSPEED=1" in found["DeepSpeed"].remedy
    )
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "a training cannot run here" in output and "-> bash setup_env.sh" in output


@pytest.mark.parametrize(
    ("busy", "threads", "remedy"),
    [(0.3, 4, ""), (1.2, 1, ""), (1.2, 4, "OMP_NUM_THREADS=3"), (4.0, 2, "OMP_NUM_THREADS=1")],
)
def test_cores_that_others_use(
    monkeypatch: pytest.MonkeyPatch, busy: float, threads: int, remedy: str
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(machine, "busy_cores", lambda: busy)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    found = next(machine._host())
    assert found.name == "cores" and found.found.startswith(f"4, {busy} of the machine's 4 busy")
    assert (found.state == "note") == bool(remedy) and found.remedy.endswith(remedy)


def test_busy_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """3 of 4 cores computed between two looks; other systems do not tell."""
    stat = tmp_path / "stat"
    looks = ["cpu  100 0 50 700 150 0 0 0 9 9\ncpu0 1\n", "cpu  250 0 200 750 200 0 0 0 9 9\n"]
    stat.write_text(looks[0])
    monkeypatch.setattr(busy_cores, "_STAT", stat)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(busy_cores.time, "sleep", lambda seconds: stat.write_text(looks[1]))
    assert busy_cores.busy_cores() == 3.0
    monkeypatch.setattr(busy_cores, "_STAT", tmp_path / "none")
    assert busy_cores.busy_cores() is None


def test_an_empty_folder_is_not_deepspeed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "deepspeed").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(machine, "version", lambda name: None)
    (found,) = [line for line in machine._deepspeed() if line.name == "DeepSpeed"]
    assert "not installed" in found.found and f"{tmp_path}/deepspeed is not it" in found.found


def test_keys_of_loggers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "version", lambda name: "1.0")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    assert next(machine._loggers()).state == "note"
    netrc.write_text("machine api.wandb.ai login user password key\n")
    os.chmod(netrc, 0o600)
    assert next(machine._loggers()).state == "ok"
    netrc.write_text("machine broken")
    assert next(machine._loggers()).state == "note"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert next(machine._loggers()).state == "ok"


def test_schedulers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("qsub", "mpiexec"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PBS_JOBID", "12.server")
    (found,) = machine._schedulers()
    assert found.found.startswith("qsub, mpiexec; inside job 12.server")


@pytest.mark.parametrize(
    ("text", "expected"), [("2.13.0+cpu", (2, 13, 0)), ("0.33.1.post1", (0, 33, 1)), ("3", (3,))]
)
def test_versions(text: str, expected: tuple[int, ...]) -> None:
    assert machine._numbers(text) == expected


def test_a_plan_counts_what_the_training_process_loads_besides() -> None:
    """Where nothing that trains has been imported, and where all of it has."""
    program = """
from neuromamba.planning import memory
from neuromamba.training.lightning import load_lightning
from neuromamba.training.peak_memory import resident_now
before, planned = resident_now(), memory._process_itself()
load_lightning()
import neuromamba.fmamba.run
print(planned - before, resident_now() - before, memory._process_itself() - resident_now())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    added, loaded, again = map(int, done.stdout.split())
    assert added == pytest.approx(loaded, rel=0.25)
    assert abs(again) < 20_000_000
