"""Jobs that a plan writes, as a scheduler reads them; and which batch a plan takes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from neuromamba.commands.plan import plan_parser
from neuromamba.common.errors import UserInputError
from neuromamba.planning.batch_script import Job, batch_script
from neuromamba.planning.cluster_plan import Batches, _shown
from neuromamba.planning.plan_flags import REFUSED, ranks_per_node, refuse_of_training
from tests.helpers.paths import ROOT
from tests.helpers.pbs import Refused, qsub, read_directives
from tests.unit.planning.test_plan import BASE, neuromamba, plan_of

FLAGS = ("--config", "configs/neuromamba_base.yaml", "--batch_size", "24")


def script_of(tmp_path: Path, scheduler: str, **changes: object) -> Path:
    fields: dict[str, object] = {
        "name": "neuromamba",
        "about": "Trains.",
        "nodes": 2,
        "per_node": 4,
        "gpus": 4,
        "seeds": (),
        "workers": 6,
        "host_gb": 10,
        "seconds": 3600,
        "flags": FLAGS,
        "image_path": (),
        "dataset_name": ("S1200",),
        "run_name": "",
        "resume": "last",
        "max_time": "",
    }
    path = tmp_path / "job.sh"
    path.write_text(batch_script(Job(**(fields | changes)), scheduler))  # type: ignore[arg-type]
    subprocess.run(["bash", "-n", str(path)], check=True)
    return path


def submit_line(path: Path) -> list[str]:
    """Words of the line at the top that says how to submit the job."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("#     ")]
    return shlex.split(" ".join(line.removeprefix("#").rstrip("\\") for line in lines))


# --- what PBS is asked for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "ranks", "gpus", "workers"), [(2, 4, 4, 6), (32, 12, 6, 4), (1, 1, 0, 0)]
)
def test_a_node_has_cores_gpus_and_processes(
    tmp_path: Path, nodes: int, ranks: int, gpus: int, workers: int
) -> None:
    path = script_of(tmp_path, "pbs", nodes=nodes, per_node=ranks, gpus=gpus, workers=workers)
    (chunk,) = read_directives(path.read_text(), []).chunks
    assert chunk.count == nodes and chunk.number("mpiprocs") == ranks
    assert chunk.number("ngpus") == gpus and chunk.number("ncpus") == ranks * (workers + 2)
    assert chunk.resources["mem"] == f"{10 * ranks}gb"
    assert ("ngpus" in path.read_text()) == bool(gpus)


@pytest.mark.parametrize(
    "wrong",
    ["select=2:ncpus", "select=x", "select=2:cpus=3", "select=2:ngpus=a", "nodes=2", "walltime=5h"],
)
def test_the_stand_in_refuses_what_pbs_would(wrong: str) -> None:
    with pytest.raises(Refused):
        read_directives(f"#PBS -l {wrong}\n", [])


def test_a_job_without_these_has_one_core_and_no_gpu() -> None:
    """What ``select=4`` alone means, which earlier versions wrote."""
    (chunk,) = read_directives("#PBS -l select=4\n", []).chunks
    assert (chunk.number("ncpus"), chunk.number("ngpus")) == (1, 0)


def test_pbs_starts_a_process_for_each_gpu(tmp_path: Path) -> None:
    ((status, said, started),) = qsub(
        script_of(tmp_path, "pbs"), tmp_path, "-v", "IMAGE_PATH=/data/store"
    )
    assert status == 0, said
    (words,) = started
    assert words[:5] == ["mpiexec", "-n", "8", "-ppn", "4"]
    assert words[words.index("--image_path") + 1] == "/data/store"
    assert words[words.index("--num_nodes") + 1] == "2"
    assert words[words.index("--accelerator") + 1] == "gpu"


def test_a_job_on_cpus_asks_for_none(tmp_path: Path) -> None:
    path = script_of(tmp_path, "pbs", gpus=0, image_path=("/data/store",))
    ((_, _, (words,)),) = qsub(path, tmp_path)
    assert words[words.index("--accelerator") + 1] == "cpu"
    assert "gres" not in script_of(tmp_path, "slurm", gpus=0).read_text()


# --- stores and the site ------------------------------------------------------------------------


def test_a_job_without_a_store_says_so(tmp_path: Path) -> None:
    path = script_of(tmp_path, "pbs")
    assert "IMAGE_PATH=${IMAGE_PATH:-}" not in path.read_text()
    ((status, said, started),) = qsub(path, tmp_path)
    assert status == 2 and not started
    assert said.startswith("error: IMAGE_PATH is not set: name the folder of the store")
    # A trial needs none.
    ((status, said, started),) = qsub(path, tmp_path, "-v", "SMOKE_ACCELERATOR=cpu")
    assert status == 0 and "--dummy_subjects" in started[0], said


def test_the_submit_line_works_as_it_stands(tmp_path: Path) -> None:
    setup = tmp_path / "setup.sh"
    setup.write_text("export EXTRA_FLAGS=--dry_run\n")
    path = script_of(tmp_path, "pbs", image_path=("/data/a", "/data/b"), dataset_name=("A", "B"))
    program, *words, file = submit_line(path)
    assert (program, file) == ("qsub", "FILE") and "SITE_SETUP=/path/to/setup.sh" in words[-1]
    words[-1] = words[-1].replace("/path/to/setup.sh", str(setup))
    ((status, said, (started,)),) = qsub(path, tmp_path, *words)
    assert status == 0, said
    at = started.index("--image_path")
    assert started[at + 1 : at + 3] == ["/data/a", "/data/b"] and "--dry_run" in started


@pytest.mark.parametrize("stores", [(), ("/data/a",), ("/data/a", "/data/b")])
def test_slurm_is_told_them_too(tmp_path: Path, stores: tuple[str, ...]) -> None:
    words = submit_line(script_of(tmp_path, "slurm", image_path=stores))
    assert words[0] == f"IMAGE_PATH={' '.join(stores) or '/path/to/store'}"
    assert words[1] == "SITE_SETUP=/path/to/setup.sh" and words[2] == "sbatch"


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(1, 2, 3), (7, 5), (11,)])
def test_an_array_has_a_task_for_each_seed(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    path = script_of(tmp_path, "pbs", seeds=seeds, image_path=("/data/a",), run_name="mine")
    ended = qsub(path, tmp_path)
    assert [status for status, _, _ in ended] == [0] * len(seeds)
    for seed, (_, _, (words,)) in zip(seeds, ended, strict=True):
        assert words[words.index("--seed") + 1] == str(seed)
        assert words[words.index("--process_code") + 1] == f"mine_seed{seed}"
    array = (
        f"#SBATCH --array=0-{len(seeds) - 1}\n"
        in script_of(tmp_path, "slurm", seeds=seeds).read_text()
    )
    assert array == (len(seeds) > 1)


def test_a_task_without_a_seed_is_refused(tmp_path: Path) -> None:
    path = script_of(tmp_path, "pbs", seeds=(1, 2), image_path=("/data/a",))
    ended = qsub(path, tmp_path, "-v", "SEEDS=5")
    assert [status for status, _, _ in ended] == [0, 2]
    assert "no number for task 1" in ended[1][1]


def test_seeds_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    words = ["plan", *BASE, "--gpus", "8", "--gpu", "A5000", "--script", "pbs", "--seeds", "4", "9"]
    assert neuromamba([*words, "--seed", "3", "--output", str(path)]) == 0
    text = path.read_text()
    assert "#PBS -J 0-1\n" in text and text.count("--seed ") == 1 and "--seeds" not in text


# --- flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "--gpu A5000",
        "--gpus 8 --gpu A5000 --devices 4",
        "--gpus 8 --gpu A5000 --script lsf",
        "--gpus 8 --gpu X9000",
        "--gpus 8 --gpus_per_node 3 --gpu A5000",
        "--gpus 8 --gpu A5000 --seeds 1 1 --script pbs",
        "--gpus 8 --gpu A5000 --walltime 5h --script pbs",
        "--gpus 8 --gpu A5000 --epochz 3",
    ],
)
def test_a_wrong_flag_is_told_before_torch_is_loaded(words: str) -> None:
    code = (
        "import sys\nfrom neuromamba.__main__ import main\n"
        "status = main(sys.argv[1:])\nassert 'torch' not in sys.modules, 'torch was loaded'\n"
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", *words.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_flag_of_a_training_says_what_to_give_instead(name: str) -> None:
    with pytest.raises(UserInputError, match=rf"^--{name}: a flag of neuromamba train that"):
        refuse_of_training({name: 3})
    refuse_of_training({name: None})


def test_help_begins_with_the_flags_of_a_plan() -> None:
    text = plan_parser().format_help()
    assert text.index("--gpus N") < text.index("--seeds") < text.index("--output_dir")
    assert len(text[: text.index("--gpus N")].splitlines()) < 25


def test_ranks_of_a_node() -> None:
    assert ranks_per_node(8, None, None) == 8 and ranks_per_node(8, 2, None) == 2
    with pytest.raises(UserInputError, match="do not fill nodes of 3"):
        ranks_per_node(8, 3, None)


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gigabytes", "micro"), [("80", 24), ("3.2", 1), ("12", 8)])
def test_a_plan_takes_the_largest_batch_that_fits(
    gigabytes: str, micro: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the configuration's file says, which was written for the paper's machine."""
    words = ["plan", *BASE, "--gpus", "48", "--gpu", "A100-80GB", "--gpu_memory", gigabytes]
    assert neuromamba(words) == 0
    (marked,) = re.findall(r"^ \*--batch_size (\d+)", capsys.readouterr().out, re.MULTILINE)
    assert int(marked) == micro


def test_a_batch_that_is_asked_for_is_taken() -> None:
    *_, plan = plan_of("--gpu_memory", "80", gpus=48)  # with --batch_size 3
    assert plan.chosen.micro == 3 and max(one.micro for one in plan.options) == 24


def test_batches_that_are_shown() -> None:
    def option(micro: int, fits: bool | None) -> Batches:
        return Batches(micro=micro, accumulation=1, memory=micro, fits=fits)

    assert len(_shown(option(n, n <= 20) for n in range(1, 40))) == 22
    assert len(_shown(option(n, None) for n in range(1, 40))) == 12


PBS_SCRIPTS = sorted(
    path for path in (ROOT / "sample_scripts").rglob("*.sh") if "#PBS -l" in path.read_text()
)


@pytest.mark.parametrize("path", PBS_SCRIPTS, ids=lambda path: path.stem)
def test_scripts_of_the_repository_ask_for_what_a_plan_would(path: Path) -> None:
    """Cores, GPUs and processes of a node: ``select=2`` alone is one core and no GPU."""
    job = read_directives(path.read_text(), [])
    (chunk,) = job.chunks
    scripts = ROOT / "sample_scripts"
    files = (
        path,
        path.parent / "common.sh",
        scripts / "common.sh",
    )  # the first that sets it counts
    settings = "".join(one.read_text() for one in files if one.is_file())
    processes, workers = (
        int(re.findall(rf"^{name}=\$\{{{name}:-(\d+)\}}", settings, re.MULTILINE)[0])
        for name in ("DEVICES", "NUM_WORKERS")
    )
    assert chunk.number("mpiprocs") == processes == 12
    assert chunk.number("ngpus") == 6  # of two tiles
    assert chunk.number("ncpus") == processes * (workers + 2)  # as in batch_script.py
    assert len(job.node_file().splitlines()) == chunk.count * processes
    assert job.walltime and job.rerunnable


def test_there_are_scripts_for_pbs() -> None:
    assert len(PBS_SCRIPTS) == 31
