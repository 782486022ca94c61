"""Runs that are stopped, killed or fail, on several ranks, and what their resumption comes to."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from neuromamba.training.resume_state import RUN_KEY
from tests.helpers.forked import Blow
from tests.helpers.launched import MAIN, environment
from tests.helpers.ranks import ZERO, needs_deepspeed
from tests.helpers.tiny_runs import DDP, LAST, NEXT, SEX, Runs, metrics, rows, weights


def assert_undisturbed(folder: Path, straight: Path) -> None:
    """Losses of every step and validation, metrics and weights are those of the other run."""
    assert rows(folder) == rows(straight)
    assert metrics(folder) == metrics(straight)
    for name in ("best", "last"):
        found, expected = weights(folder, name), weights(straight, name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), f"{name}: {key}"
    assert not list((folder / "checkpoints").glob("*.tmp"))
    assert not list((folder / "checkpoints").glob("*.previous"))


@pytest.fixture(scope="module")
def straight(runs: Runs) -> Path:
    """Undisturbed pre-training on two ranks."""
    folder = runs.new()
    assert runs.go(folder, f"{NEXT} {DDP}").statuses == (0, 0)
    assert len(rows(folder)) == 18 + 2 + 1
    return folder


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize(
    "blow",
    [
        Blow("SIGTERM", 4, (1,)),
        Blow("SIGTERM", 0, (0, 1)),
        Blow("SIGTERM", 9, (1,), "on_validation_batch_start"),
        # Agreed upon in the last step of an epoch, behind a validation, in the last step of all.
        *(
            pytest.param(blow, marks=pytest.mark.slow)
            for blow in (
                Blow("SIGTERM", 7, (0, 1)),
                Blow("SIGTERM", 9, (0,), "on_validation_end"),
                Blow("SIGTERM", 17, (0, 1)),
            )
        ),
    ],
    ids=lambda blow: f"{blow.step}-{blow.where}",
)
def test_stopped_by_a_signal(runs: Runs, straight: Path, blow: Blow) -> None:
    """To one rank or to all: all save at one step, and end; then the run is as if undisturbed."""
    folder = runs.new()
    stopped = runs.go(folder, f"{NEXT} {DDP} {LAST}", blow)
    assert stopped.statuses == (75, 75)
    assert "no checkpoint yet: starting from the beginning" in stopped.said[0]
    assert stopped.text.count("stopped in step") == 1
    assert f"wrote {folder}/checkpoints/last.ckpt. Continue with {LAST}." in stopped.said[0]
    assert not (folder / "metrics.json").exists()
    again = runs.go(folder, f"{NEXT} {DDP} {LAST}")
    assert again.statuses == (0, 0)
    assert f"from {folder}/checkpoints/last.ckpt" in again.said[0]
    assert_undisturbed(folder, straight)


def test_stopped_between_steps_only(runs: Runs) -> None:
    """Gradients are summed up over three batches: it is not stopped among them."""
    extra = f"{SEX} --gradient_accumulation_steps 3 {LAST}"
    folder, straight = runs.new(), runs.new()
    assert runs.go(straight, extra, ranks=1).statuses == (0,)
    blow = Blow("SIGTERM", 1, where="on_before_backward")  # behind the first batch of the three
    assert runs.go(folder, extra, blow, ranks=1).statuses == (75,)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (loader,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert (checkpoint["global_step"], loader["batches"]) == (3, 9)
    assert runs.go(folder, extra, ranks=1).statuses == (0,)
    assert_undisturbed(folder, straight)


def test_stopped_in_the_last_evaluation(runs: Runs) -> None:
    """The training is over and is not repeated."""
    folder, straight = runs.new(), runs.new()
    assert runs.go(straight, f"{SEX} {LAST}", ranks=1).statuses == (0,)
    blow = Blow("SIGTERM", 0, where="on_test_batch_start")
    stopped = runs.go(folder, f"{SEX} {LAST}", blow, ranks=1)
    assert stopped.statuses == (75,) and "stopped in the evaluation" in stopped.text
    again = runs.go(folder, f"{SEX} {LAST}", ranks=1)
    assert again.statuses == (0,) and "epoch 2" not in again.text
    assert_undisturbed(folder, straight)


@pytest.mark.slow
def test_early_stopping_is_not_undone(runs: Runs) -> None:
    """A run that had stopped early, killed in its evaluation, is evaluated, not trained on."""
    extra = f"{SEX} {LAST} --max_epochs 8 --learning_rate 1 --use_early_stopping"
    extra += " --early_stopping_patience 1"
    folder, straight = runs.new(), runs.new()
    assert runs.go(straight, extra, ranks=1).statuses == (0,)
    assert metrics(straight)["train/steps"] < 8 * 18
    blow = Blow("SIGKILL", 0, where="on_test_batch_start")
    assert runs.go(folder, extra, blow, ranks=1).statuses == (-9,)
    assert runs.go(folder, extra, ranks=1).statuses == (0,)
    assert_undisturbed(folder, straight)


def scontrol(folder: Path, status: int) -> dict[str, str]:
    """Environment of a job in which `scontrol` writes its arguments down."""
    folder.mkdir()
    program = folder / "scontrol"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/asked\necho "no such job" >&2\nexit {status}\n'
    )
    program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "bash"}


@pytest.mark.parametrize(
    ("name", "extra", "refused", "status", "said"),
    [
        ("SIGUSR1", LAST, 0, 0, "The job was put into the queue again."),
        ("SIGUSR2", LAST, 1, 75, "The job was not requeued: no such job. Continue with"),
        ("SIGUSR1", "", 0, 75, "not requeued: its command line has no --resume_ckpt_path last"),
        ("SIGTERM", LAST, 0, 75, f"Continue with {LAST}."),
    ],
)
def test_requeued_under_slurm(
    runs: Runs, name: str, extra: str, refused: int, status: int, said: str
) -> None:
    """On SIGUSR1, which the user has asked for; once, and behind the checkpoint."""
    folder = runs.new()
    environ = scontrol(runs.root / f"{folder.name}_bin", refused)
    blow = Blow(name, 2, (0, 1))
    stopped = runs.go(folder, f"{NEXT} {DDP} {extra}", blow, **environ)
    assert stopped.statuses == (status, status) and said in stopped.said[0]
    asked = Path(environ["PATH"].split(os.pathsep)[0]) / "asked"
    expected = "requeue 77\n" if name != "SIGTERM" and extra else None
    assert (asked.read_text() if asked.exists() else None) == expected
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_time_limit(runs: Runs, straight: Path) -> None:
    folder = runs.new()
    extra = f"{NEXT} {DDP} {LAST}"
    stopped = runs.go(folder, f"{extra} --max_time 00:00:00:00")
    assert stopped.statuses == (0, 0)
    assert "stopped in step 2 (--max_time is over); wrote " in stopped.said[0]
    assert f"Continue with {LAST}" in stopped.said[0]
    assert runs.go(folder, f"{extra} --max_time 00:01:00:00").statuses == (0, 0)
    assert_undisturbed(folder, straight)


@pytest.mark.parametrize(
    "steps",
    ["--max_steps 14 --max_epochs -1", pytest.param("--max_steps 14", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("step", [3, 9])
def test_max_steps_is_continued(runs: Runs, steps: str, step: int) -> None:
    """In the middle of an epoch, and behind one."""
    extra, where = f"{NEXT} {LAST} {steps} --batch_size 4", "on_train_batch_start"
    folder, straight = runs.new(), runs.new()
    assert runs.go(straight, extra, ranks=1).statuses == (0,)
    blow = Blow("SIGTERM", 1) if step == 3 else Blow("SIGKILL", step, where=where)
    assert runs.go(folder, extra, blow, ranks=1).statuses in ((75,), (-9,))
    again = runs.go(folder, extra, ranks=1)
    assert again.statuses == (0,) and f"continuing after step {step}," in again.text
    assert_undisturbed(folder, straight)


def test_seconds_of_all_parts_are_added_up(runs: Runs) -> None:
    folder, line, start = runs.new(), f"{NEXT} {LAST} --batch_size 4", time.monotonic()
    assert runs.go(folder, line, Blow("SIGTERM", 5), ranks=1).statuses == (75,)
    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    assert 0 < checkpoint[RUN_KEY]["seconds"] < time.monotonic() - start
    checkpoint[RUN_KEY]["seconds"] += 1000
    before = checkpoint[RUN_KEY]["seconds"]
    torch.save(checkpoint, last)
    for _ in range(2):  # the second time there is nothing left to train
        assert runs.go(folder, line, ranks=1).statuses == (0,)
        found = json.loads((folder / "metrics.json").read_text())
        assert before < found["train/seconds"] < 1000 + time.monotonic() - start
        assert found["train/steps"] == 18


# ------------------------------------------------------------------ SIGKILL


HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_save_checkpoint",
)


def killed_again_and_again(runs: Runs, extra: str, kills: int, seed: int) -> None:
    """A run that is killed in random steps, ever later, and resumed each time."""
    every = f"{NEXT} {extra} --every_n_train_steps 2 {LAST}"
    folder, straight = runs.new(), runs.new()
    assert not any(runs.go(straight, every).statuses)
    draw = random.Random(seed)
    for step in sorted(draw.sample(range(18), kills)):
        rank, hook = draw.randrange(2), draw.choice(HOOKS)
        ended = runs.go(folder, every, Blow("SIGKILL", step, (rank,), hook))
        assert ended.statuses[rank] == -9 and ended.statuses[1 - rank] not in (0, 75)
    assert not any(runs.go(folder, every).statuses)
    assert_undisturbed(folder, straight)


def test_killed_thrice(runs: Runs) -> None:
    killed_again_and_again(runs, DDP, 3, 1)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("strategy", ["ddp", *ZERO])
def test_killed_ten_times(runs: Runs, strategy: str) -> None:
    killed_again_and_again(runs, f"--strategy {strategy}", 10, 2 + ("ddp", *ZERO).index(strategy))


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize(
    ("strategy", "extra"),
    [
        *((strategy, "--gradient_accumulation_steps 2") for strategy in ("ddp", *ZERO)),
        (ZERO[2], "--val_check_interval 0.5"),
        ("ddp", "--val_check_interval 0.5 --num_workers 1"),
    ],
)
def test_stopped_and_killed_in_every_strategy(runs: Runs, strategy: str, extra: str) -> None:
    line = f"{SEX} --strategy {strategy} {extra} {LAST} --every_n_train_steps 3"
    straight = runs.new()
    assert not any(runs.go(straight, line).statuses)
    last = 17 if "accumulation" not in extra else 8
    for blow in (
        Blow("SIGTERM", 3, (1,)),
        Blow("SIGTERM", last // 2, (0, 1), "on_validation_batch_start"),
        Blow("SIGKILL", 4, (0, 1)),
        Blow("SIGKILL", last, (0, 1), "on_train_batch_end"),
    ):
        folder = runs.new()
        assert set(runs.go(folder, line, blow).statuses) <= {75, -9}
        assert not any(runs.go(folder, line).statuses)
        assert_undisturbed(folder, straight)


def tear(checkpoint: Path) -> None:
    """Cut a file short; of a folder of DeepSpeed's the share of the last rank."""
    torn = max(checkpoint.rglob("*optim_states.pt"), default=checkpoint)
    torn.write_bytes(torn.read_bytes()[:-1000])


@pytest.mark.parametrize(
    "strategy", ["ddp", pytest.param(ZERO[1], marks=[needs_deepspeed, pytest.mark.slow])]
)
def test_a_torn_checkpoint_is_passed_over(runs: Runs, strategy: str) -> None:
    folder, line = runs.new(), f"{NEXT} --strategy {strategy} {LAST} --every_n_train_steps 4"
    assert runs.go(folder, line, Blow("SIGTERM", 4, (0,))).statuses == (75, 75)
    last, earlier = (folder / "checkpoints" / f"{n}.ckpt" for n in ("last", "epoch=0-step=4"))
    tear(last)
    again = runs.go(folder, line, Blow("SIGTERM", 5, (0,)))
    assert again.statuses == (75, 75)
    assert again.text.count("passed over") == 1 and f"'{last}" in again.text
    assert f"continuing after step 4, from {earlier}" in again.said[0]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_torn_checkpoints_only(runs: Runs, ranks: int) -> None:
    """Never anew in silence where a run has been."""
    folder, line = runs.new(), f"{NEXT} {LAST} --strategy {'ddp' if ranks > 1 else 'auto'}"
    assert set(runs.go(folder, line, Blow("SIGTERM", 1, (0,)), ranks=ranks).statuses) == {75}
    tear(folder / "checkpoints" / "last.ckpt")
    none = runs.go(folder, line, ranks=ranks)
    assert set(none.statuses) == {2} and none.text.count("error: ") == 1
    message = none.said[0].splitlines()[-1]
    assert message.startswith("error: --resume_ckpt_path last: none of 1 checkpoint(s) in ")
    assert "can be used" in message and "its end is missing" in message


# ------------------------------------------------------------------ losses that are no numbers


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        pytest.param(ZERO[0], marks=[needs_deepspeed, pytest.mark.slow]),
        pytest.param(ZERO[1], marks=[needs_deepspeed, pytest.mark.slow]),
        pytest.param(ZERO[2], marks=needs_deepspeed),
    ],
)
def test_a_loss_that_is_no_number(runs: Runs, strategy: str) -> None:
    """Ends the run with the windows named, once; the checkpoints are from before."""
    folder = runs.new()
    line = f"{NEXT} --strategy {strategy} --every_n_train_steps 1"
    ended = runs.go(folder, line, Blow("nan", 3, (1,)))
    assert ended.statuses == (2, 2) and ended.text.count("error: ") == 1
    message = ended.said[1].splitlines()[-1]
    assert message.startswith("error: --learning_rate: the training loss is not a number in step 4")
    assert "epoch 1, learning rate 0.00" in message and "rank 1 on" in message
    subjects = message.split("windows: ")[1].split(". ")[0].split(", ")
    assert len(subjects) == 2 and all(s.startswith("sub-") and " window " in s for s in subjects)
    steps = {path.name for path in (folder / "checkpoints").iterdir()}
    assert steps == {f"epoch=0-step={n}.ckpt" for n in (1, 2, 3)}


def test_bad_batches_are_passed_over(runs: Runs) -> None:
    """Nothing moves in such a step, and the second one ends the run if one is allowed."""
    line = f"{NEXT} --every_n_train_steps 1 --batch_size 4"
    blows = (Blow("nan", 3), Blow("gradient", 6, where="on_after_backward"))
    folder = runs.new()
    done = runs.go(folder, f"{line} --skip_bad_batches 2", *blows, ranks=1)
    assert done.statuses == (0,)
    assert "passed over step 4 (epoch 1, learning rate" in done.text
    assert "the training loss is not a number (1 of --skip_bad_batches 2)" in done.text
    assert "the gradient is not finite (2 of --skip_bad_batches 2)" in done.text
    assert metrics(folder)["train/skipped_steps"] == 2 and metrics(folder)["train/steps"] == 18
    states = [weights(folder, f"epoch=0-step={n}") for n in range(1, 10)]
    for number, (before, after) in enumerate(pairwise(states), start=2):
        moved = any(not torch.equal(before[key], after[key]) for key in before)
        assert moved == (number not in (4, 7)), number
    ended = runs.go(runs.new(), f"{line} --skip_bad_batches 1", *blows, ranks=1)
    assert ended.statuses == (2,)
    assert "the gradient is not finite in step 7" in ended.text
    assert "--skip_bad_batches 1 steps have been passed over" in ended.text


def test_passed_over_steps_are_counted_over_resumptions(runs: Runs) -> None:
    folder, line = runs.new(), f"{NEXT} --skip_bad_batches 1 {LAST}"
    blows = (Blow("nan", 1), Blow("SIGTERM", 3))
    assert runs.go(folder, line, *blows, ranks=1).statuses == (75,)
    assert runs.go(folder, line, Blow("nan", 6), ranks=1).statuses == (2,)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize(
    "blow",
    [
        Blow("nan", 3, (1,)),
        Blow("infinite", 3, (0,), "on_before_backward"),  # with a gradient like any other
    ],
    ids=lambda blow: blow.what,
)
def test_all_strategies_pass_over_alike(runs: Runs, blow: Blow) -> None:
    """DeepSpeed is made to leave the step out; the weights are those of DDP."""
    found = {}
    for strategy in ("ddp", *ZERO):
        folder = runs.new()
        line = f"{NEXT} --strategy {strategy} --skip_bad_batches 1"
        assert runs.go(folder, line, blow).statuses == (0, 0)
        found[strategy] = [row.get("train/loss") for row in rows(folder) if "train/loss" in row]
    # The bad step's own loss is none, and is that in all.
    assert found["ddp"] == found[ZERO[0]] == found[ZERO[1]]
    for one, other in zip(found["ddp"], found[ZERO[2]], strict=True):
        assert float(one) == pytest.approx(float(other), abs=1e-5, nan_ok=True)


# ------------------------------------------------------------------ failures of a rank


@pytest.mark.parametrize(
    ("blow", "said"),
    [
        (Blow("file", 3, (1,)), "error: --image_path: 'sub-01.h5' is damaged. (rank 1 on "),
        (Blow("memory", 3, (1,)), "error: --batch_size: memory ran short (3,725,290.30 GiB more"),
        (Blow("memory", 0, (0,), "on_validation_batch_start"), "error: --eval_batch_size: memory"),
        (Blow("crash", 3, (1,)), "ValueError: a bug"),
        (Blow("SIGKILL", 3, (1,)), "lost another rank"),
    ],
    ids=lambda value: getattr(value, "what", None),
)
def test_a_rank_that_fails_ends_the_others(runs: Runs, blow: Blow, said: str) -> None:
    """With one message, and never by a wait that runs out: the nursery waits less than that."""
    folder = runs.new()
    ended = runs.go(folder, f"{NEXT} {DDP}", blow)
    (rank,) = blow.ranks
    expected = {"crash": 1, "SIGKILL": -9}.get(blow.what, 2)
    assert ended.statuses[rank] == expected and ended.statuses[1 - rank] == 2
    assert ended.text.count(said) == 1
    assert ended.text.count("error: ") == (blow.what != "crash")
    assert ("Traceback" in ended.text) == (blow.what == "crash")


def test_what_to_change_when_memory_runs_short(runs: Runs) -> None:
    ended = runs.go(runs.new(), f"{NEXT} {DDP} --batch_size 3", Blow("memory", 1, (0,)))
    message = ended.said[0].splitlines()[-1]
    assert (
        "training, --batch_size 3, " in message and " tokens in the batch. Change one: " in message
    )
    assert "--batch_size 1 with --gradient_accumulation_steps 3 (the same effective" in message
    for flag in ("--activation_checkpointing", "--precision bf16", "--strategy deepspeed_stage_1"):
        assert flag in message


# ------------------------------------------------------------------ as a user starts it


def started(store: Path, folder: Path, *launcher: str, extra: str = "") -> subprocess.Popen[bytes]:
    """A long run, once its first epoch is saved."""
    flags = (
        f"--dataset_name Dummy --image_path {store} --img_size 12 12 12 4 --patch_size 6 6 6 2 "
        f"--embed_dim 16 --depth 1 --train_split 0.6 --val_split 0.2 --max_epochs 5000 "
        f"--accelerator cpu --batch_size 2 {NEXT} --output_dir {folder} {extra}"
    )
    with open(folder.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            [*launcher, MAIN, *flags.split()],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    until = time.monotonic() + 60
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    return process


def status_of(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(40)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def children(pid: int) -> Sequence[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("to", ["rank 1", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_under_torchrun(runs: Runs, to: str) -> None:
    """torchrun itself ends with 1, whatever its processes end with."""
    folder = runs.new()
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    launcher += ("--nproc_per_node", "2")
    process = started(runs.store, folder, *launcher, extra=f"--devices 2 {DDP}")
    os.kill(children(process.pid)[1] if to == "rank 1" else process.pid, signal.SIGTERM)
    assert status_of(process) == 1
    said = folder.with_suffix(".log").read_text()
    assert said.count("stopped in step") == 1 and "(SIGTERM); wrote " in said


@pytest.mark.slow
def test_loading_processes_outlive_the_signal(runs: Runs) -> None:
    """A cluster sends it to all processes of a job, also to those that load the next batches."""
    folder = runs.new()
    process = started(runs.store, folder, sys.executable, extra="--num_workers 2")
    os.killpg(process.pid, signal.SIGUSR1)
    assert status_of(process) == 75
    said = folder.with_suffix(".log").read_text()
    assert "stopped in step" in said and "Error" not in said


@pytest.mark.slow
def test_a_lost_rank_is_told_in_one_line(runs: Runs, tmp_path: Path) -> None:
    """Without the C++ frames of torch's store."""
    folder, log = runs.new(), tmp_path / "log"
    argv = runs.argv(folder, f"{NEXT} {DDP} --devices 2 --max_epochs 4000")
    with open(log, "w") as stream:
        first = subprocess.Popen(
            [sys.executable, MAIN, *argv], stdout=stream, stderr=stream, env=environment()
        )
    until = time.monotonic() + 120
    while "epoch 1 of" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.1)
    first.kill()
    first.wait()
    while "error: " not in log.read_text() and time.monotonic() < until:
        time.sleep(0.1)
    said = log.read_text()
    assert "rank 1 on" in said and "lost another rank" in said
    assert "frame #" not in said and "TCPStore" not in said
