"""Run what a table of the papers needs, show what it costs, or write it as an array job."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from neuromamba.common.atomic_files import make_folder, write_text_atomically
from neuromamba.common.checkout import repository
from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.stages import run_program, run_stage, shown
from neuromamba.config.names import canonical_dataset_name
from neuromamba.reports.real_subjects.real_table import REAL_TABLES
from neuromamba.reports.reproduction import (
    GRIDS,
    TABLES,
    Job,
    PaperTable,
    Study,
    check_backbones,
    check_seeds,
    finished,
    ordered,
    paper_folder,
    resolved,
)

SCHEDULERS = ("slurm", "pbs")
# The synthetic data: small, and with an effect that a tiny model learns.
GRID = ("30", "36", "30")
SYNTHETIC = ("--subjects", "120", "--frames", "40", "--grid", *GRID, "--effect_size", "8")
DUMMY_FLAGS = ("--accelerator", "cpu", "--log_every_n_steps", "5")
# Flags of the runs that decide which cell of a table a run is.
OWNED = {
    f"--{name}"
    for name in (
        *("seed", "dataset_name", "image_path", "output_dir", "process_code", "resume_ckpt_path"),
        *("pretraining", "use_autoregressive", "use_mim", "downstream_task", "clf_head_version"),
        *("load_model_path", "freeze_feature_extractor", "lora_rank", "keep_background"),
        *("embed_dim", "depth", "limit_training_samples", "test_only", "test_ckpt_path"),
    )
}


MARKER = "reproduced"  # in the folder of a job that has finished; holds a hash of its settings


class Reproduction(NamedTuple):
    """What the flags ask for, checked.

    Attributes:
        tables: their names.
        paper: name -> table, of those that runs make.
        study: the jobs of all tables.
        dummy: whether the data are synthetic.
        store: of the data.
        out: folder of the runs.
        folder: of the tables.
    """

    tables: list[str]
    paper: dict[str, PaperTable]
    study: Study
    dummy: bool
    store: str
    out: Path
    folder: Path


def checked(args: argparse.Namespace, extra: tuple[str, ...]) -> Reproduction:
    """Check the flags.

    Args:
        args: the parsed flags.
        extra: what is given to every run.

    Raises:
        UserInputError: names the flag.
    """
    tables = list(TABLES) if "all" in args.table else list(dict.fromkeys(args.table))
    for name in tables:
        look_up(name, (*TABLES, "all", *REAL_TABLES), "--table")
    check_seeds(args.seeds)
    if args.add is not None:
        raise UserInputError("--add: only used with --study; tables are made of their runs.")
    if args.script is not None and args.job is not None:
        raise UserInputError("--job: each task of a --script has its own; leave it out.")
    refuse_owned(extra)
    if args.script is not None:
        look_up(args.script, SCHEDULERS, "--script")
    dataset = canonical_dataset_name(args.dataset_name)
    dummy = dataset == "Dummy"
    if not dummy and not args.image_path and not args.dry_run:
        raise UserInputError("--image_path: name the store of the data set.")
    if "flops" in tables and not (args.dry_run or args.collect or args.script):
        flops_script()
    out = Path(args.output_dir or f"output/reproduce_{dataset}")
    store = args.image_path or str(out / "store")
    data = ("--dataset_name", dataset, "--image_path", store)
    checkpoints = Path(args.checkpoints) if args.checkpoints else None
    study = Study(
        GRIDS["synthetic" if dummy else "published"],
        data,
        args.seeds,
        checkpoints,
        (*DUMMY_FLAGS, *extra) if dummy else extra,
    )
    paper = {name: study.table(name) for name in tables if name != "flops"}
    folder = Path(args.paper_dir or paper_folder() / ("synthetic" if dummy else dataset))
    return Reproduction(tables, paper, study, dummy, store, out, folder)


def reproduce(
    asked: Reproduction, args: argparse.Namespace, own: Sequence[str], extra: tuple[str, ...]
) -> None:
    """Do the jobs and write the tables, or write the jobs as scripts.

    Args:
        asked: the checked flags.
        args: the parsed flags.
        own: the flags as they were typed.
        extra: what is given to every run.

    Raises:
        UserInputError: a mistake that the user can correct.
        StageFailure: a run failed.
    """
    study, out = asked.study, asked.out
    if args.script is not None:
        if asked.dummy and not args.image_path:
            raise UserInputError("--script: needs --image_path; the tasks share one store.")
        if not Path(asked.store).is_dir():
            raise UserInputError(f"--image_path: no folder '{asked.store}'; the tasks would fail.")
        check_backbones(study)
        print(write_scripts(args.script, out, own, extra, ordered(study.jobs)))
        return
    check_backbones(study)
    if args.collect and not out.is_dir():
        raise UserInputError(f"--output_dir: '{out}' does not exist; there is nothing to collect.")
    if not args.collect:
        do_jobs(study, out, asked.dummy and not args.image_path, args.job)
        if args.job is not None:
            return
    write_tables(asked, typed_command(own, extra), args.collect)


def typed_command(own: Sequence[str], extra: tuple[str, ...]) -> str:
    """The command as typed, without where results went, which does not matter to who repeats it."""
    typed = [w for w in _without(own, "--output_dir", "--paper_dir") if w != "--collect"]
    return shown(("reproduce", *typed, *(("--", *extra) if extra else ())))


def _without(words: Sequence[str], *flags: str) -> tuple[str, ...]:
    """Words without some flags, each with its value."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in flags:
            skip = True
        else:
            kept.append(word)
    return tuple(kept)


def _absolute(words: Sequence[str]) -> tuple[str, ...]:
    """Paths as they are from anywhere: a job starts in the repository."""
    made = list(words)
    for flag in ("--image_path", "--checkpoints", "--output_dir", "--paper_dir"):
        if flag in made:
            at = made.index(flag) + 1
            made[at] = str(Path(made[at]).resolve())
    return tuple(made)


def refuse_owned(extra: Sequence[str]) -> None:
    """What the tables choose cannot be given to every run.

    Raises:
        UserInputError: such a flag stands after ``--``.
    """
    for word in extra:
        name = word.split("=")[0]
        if name in OWNED:
            raise UserInputError(
                f"{name}: stands after --, but the tables choose it for each run. Leave it out "
                f"(--seeds, --dataset_name, --image_path and --checkpoints go before --)."
            )


def do_jobs(study: Study, out: Path, make_store: bool, only: int | None) -> None:
    """Every job that has not finished, or the ``only`` one.

    Raises:
        UserInputError: there is no such job, or what it starts from has not finished.
        StageFailure: a run failed.
    """
    jobs = ordered(study.jobs)
    if only is not None:
        if not 0 <= only < len(jobs):
            raise UserInputError(f"--job: got {only}, expected 0 to {len(jobs) - 1}.")
        jobs = jobs[only : only + 1]
        if jobs[0].after and not finished(out, jobs[0].after):
            raise UserInputError(
                f"--job: {jobs[0].name} starts from {jobs[0].after}, which has not finished."
            )
    make_folder(out, "--output_dir")
    if make_store:
        commands = _store_commands(out)
        text = " && ".join(map(shown, commands))
        do_once(out / "store", text, "store", lambda: write_store(out, commands))
    for number, job in enumerate(jobs, start=1):
        folder = out / job.name
        command = ("train", *resolved(job, out), "--output_dir", str(folder))
        # The words of version 0.1.0, so that what it has finished counts as finished.
        text = shlex.join(("python", "project/main.py", *command[1:]))
        if job.after and (out / job.after / MARKER).is_file():
            text += (out / job.after / MARKER).read_text(encoding="utf-8")

        def work(name: str = job.name, command: tuple[str, ...] = command) -> None:
            # A run that was ended in the middle goes on from its checkpoint.
            run_stage(name, (*command, "--resume_ckpt_path", "last"))

        do_once(folder, text, f"{number}/{len(jobs)} {job.name}", work)


def do_once(folder: Path, settings: str, name: str, work: Callable[[], None]) -> None:
    """Do what makes a folder, unless it was done with these settings; then mark it as done.

    A folder without the mark was ended in the middle and is left to ``work``.

    Raises:
        UserInputError: it was done with other settings.
    """
    key, marker = hashlib.sha256(settings.encode()).hexdigest()[:16], folder / MARKER
    if marker.is_file():
        if marker.read_text(encoding="utf-8") == key:
            print(f"{name}: finished before", flush=True)
            return
        raise UserInputError(
            f"--output_dir: '{folder}' was made with other settings. Choose another folder, or "
            f"remove that one to have it made again."
        )
    print(name, flush=True)
    work()
    write_text_atomically(marker, key)


def _store_commands(out: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    nifti, store = str(out / "nifti"), str(out / "store")
    return (
        ("synthetic", "--output", nifti, *SYNTHETIC, "--num_workers", "2", "--overwrite"),
        ("preprocess", "--input", nifti, "--output", store, "--img_size", *GRID,
         "--dataset_name", "Dummy", "--num_workers", "2"),
    )  # fmt: skip


def write_store(out: Path, commands: Sequence[Sequence[str]]) -> None:
    """Make ``store/`` of a folder by commands that write ``nifti/`` first, which is removed."""
    shutil.rmtree(out / "store", ignore_errors=True)
    for command in commands:
        run_stage("store", command)
    (out / "store" / "metadata").mkdir(exist_ok=True)
    shutil.copy(out / "nifti" / "participants.csv", out / "store" / "metadata")
    shutil.rmtree(out / "nifti")


def flops_script() -> Path:
    """The script that writes the table of FLOPs.

    Raises:
        UserInputError: there is no checkout of the repository, to which it belongs.
    """
    script = paper_folder() / "flops_table.py"
    if not script.is_file():
        raise UserInputError(
            "--table: flops is written by paper/flops_table.py of the repository, and this package "
            "is installed without it. Run it from a checkout, or name the other tables."
        )
    return script


def write_tables(asked: Reproduction, command: str, collect: bool) -> None:
    """Write every table, and print where.

    Args:
        asked: the checked flags.
        command: that makes them again.
        collect: leave out the table of FLOPs, which no run makes.
    """
    from neuromamba.reports.reproduction_tables import write_table  # imports torch

    folder = asked.folder
    make_folder(folder, "--paper_dir")
    for name in asked.tables:
        if name != "flops":
            written = write_table(asked.paper[name], asked.out, folder, asked.dummy, command)
            print(written[0].read_text(encoding="utf-8"), flush=True)
            print(f"table {name}: {written[0]}", flush=True)
        elif not collect:
            flops = os.path.relpath(flops_script())
            run_program("flops", (sys.executable, flops, "--folder", str(folder)))
            print(f"table flops: {folder / 'flops.md'}", flush=True)


def write_scripts(
    scheduler: str, out: Path, own: Sequence[str], extra: Sequence[str], jobs: Sequence[Job]
) -> str:
    """Array jobs, each task of which does one job, backbones first.

    Returns:
        What to do with them.
    """
    backbones = sum("--pretraining" in job.flags for job in jobs)
    parts = [("backbones", 0, backbones), ("runs", backbones, len(jobs))]
    index = {"slurm": "$SLURM_ARRAY_TASK_ID", "pbs": "$PBS_ARRAY_INDEX"}[scheduler]
    words = _absolute(_without(own, "--script"))
    if "--output_dir" not in words:
        words = (*words, "--output_dir", str(out.resolve()))
    command = shlex.join(["neuromamba", "reproduce", *words])
    tail = f" -- {shlex.join(extra)}" if extra else ""
    make_folder(out, "--output_dir")
    lines, before = [], ""
    for name, first, end in parts:
        if first == end:
            continue
        several = end - first > 1  # PBS has no array of one
        head = {
            "slurm": f"#SBATCH --job-name=reproduce_{name}\n"
            "#SBATCH --gres=gpu:1\n#SBATCH --cpus-per-task=8\n#SBATCH --time=24:00:00\n",
            "pbs": f"#PBS -N reproduce_{name}\n"
            "#PBS -l select=1:ncpus=8:ngpus=1\n#PBS -l walltime=24:00:00\n",
        }[scheduler]
        if several:
            array = {"slurm": "#SBATCH --array=", "pbs": "#PBS -J "}[scheduler]
            head += f"{array}{first}-{end - 1}\n"
        job = f'"{index}"' if several else str(first)
        path = out / f"reproduce_{name}.{scheduler}.sh"
        text = f"set -euo pipefail\ncd {shlex.quote(str(repository() or Path.cwd()))}\n"
        text += f"source {shlex.quote(sys.prefix)}/bin/activate\n{command} --job {job}{tail}\n"
        write_text_atomically(path, f"#!/bin/bash\n{head}{text}")
        submit = {"slurm": "sbatch --parsable", "pbs": "qsub"}[scheduler]
        wait = ""
        if before:
            wait = {"slurm": "--dependency=afterok:", "pbs": "-W depend=afterok:"}[scheduler]
            wait += f"${before} "
        lines.append(f"{name}=$({submit} {wait}{shlex.quote(str(path))})  # {end - first} tasks")
        before = name
    return (
        "Check the resources in the heads of the scripts, then:\n"
        + "\n".join(lines)
        + "\nWhen they are done, give the same command --collect in place of --script."
    )
