"""The parts of surviving, one by one: files, signals, curves, agreement, messages."""

from __future__ import annotations

import builtins
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only

from neuromamba.common.atomic_files import remove_abandoned
from neuromamba.common.errors import UserInputError, see
from neuromamba.config.flag_parser import parse_arguments
from neuromamba.fmamba import failures, resume
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run_config import RunConfig, run_config
from neuromamba.training import checkpoint_writer, stopping
from neuromamba.training import rank_sync as agreement
from neuromamba.training.checkpoint_writer import PREVIOUS, AtomicCheckpoints, put_in_place
from neuromamba.training.curves import curve_logger, kept_rows, read_rows
from neuromamba.training.fault_tolerance import FaultTolerance
from neuromamba.training.finite import Step
from neuromamba.training.rank_sync import RankSync, Siblings
from neuromamba.training.stopping import (
    EndedElsewhereError,
    Reason,
    SaidHereError,
    Signals,
    StoppedRun,
    exit_status,
    seconds_of,
)
from neuromamba.training.strategies import resolve_hardware

# ------------------------------------------------------------------ checkpoints on the disk


class DeadError(BaseException):
    """In place of SIGKILL: nothing is cleaned up behind it."""


def make(path: Path, kind: str, content: str) -> None:
    if kind == "file":
        path.write_text(content)
    else:
        (path / "checkpoint").mkdir(parents=True)
        (path / "checkpoint" / "0.pt").write_text(content)
        (path / "latest").write_text(content)


def content(path: Path) -> str | None:
    """What a checkpoint holds; None if it is not there, or not whole."""
    if path.is_file():
        return path.read_text()
    parts = [path / "latest", path / "checkpoint" / "0.pt"]
    found = {part.read_text() for part in parts if part.is_file()}
    return found.pop() if len(found) == 1 and all(part.is_file() for part in parts) else None


@pytest.mark.parametrize("before", ["file", "folder"])
@pytest.mark.parametrize("after", ["file", "folder"])
@pytest.mark.parametrize("leftover", [False, True])
def test_killed_at_any_moment_of_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, leftover: bool
) -> None:
    """Before every change of the file system: one whole checkpoint is always there."""
    changes = [(os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "fsync")]
    originals = {name: getattr(module, name) for module, name in changes}
    calls = 0
    for moment in range(30):
        folder = tmp_path / str(moment)
        folder.mkdir()
        target, temporary = folder / "last.ckpt", folder / "last.ckpt.host-1.tmp"
        make(target, before, "old")
        make(temporary, after, "new")
        if leftover:
            make(folder / f"last.ckpt{PREVIOUS}", "folder", "older")
        calls = 0

        def dying(name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                if calls == moment:  # noqa: B023
                    raise DeadError
                calls += 1
                return originals[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for module, name in changes:
                patch.setattr(module, name, dying(name))
            patch.setattr(Path, "unlink", lambda p, **_: os.unlink(p) if p.exists() else None)
            try:
                put_in_place(temporary, target)
                dead = False
            except DeadError:
                dead = True
        whole = [content(path) for path in resume.candidates(folder)]
        assert "old" in whole or "new" in whole, moment
        assert set(whole) - {None} <= {"old", "new", "older"}
        if not dead:
            assert content(target) == "new" and {*folder.iterdir()} == {target}
            break
    assert 2 <= calls < 30


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, path = AtomicCheckpoints(), tmp_path / "checkpoints" / "last.ckpt"
    writer.save_checkpoint({"a": torch.ones(3)}, path)
    assert torch.equal(torch.load(path)["a"], torch.ones(3))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writer.os, "fsync", full)
    with pytest.raises(UserInputError, match=r"last.ckpt' cannot be written \(No space left"):
        writer.save_checkpoint({"a": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path)["a"], torch.ones(3))
    assert [*path.parent.iterdir()] == [path]


def test_leftovers_of_killed_runs_go(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = checkpoint_writer.temporary_beside(tmp_path / "last.ckpt")
    theirs = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    make(own, "folder", "new")
    make(theirs, "folder", "new")
    make(tmp_path / "last.ckpt", "folder", "old")
    assert remove_abandoned(tmp_path) == []  # folders only where they are meant
    checkpoint_writer.clean_up(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", own.name}


def test_the_newest_checkpoint_comes_first(tmp_path: Path) -> None:
    for age, name in enumerate(["last.ckpt", "best.ckpt", f"last.ckpt{PREVIOUS}", "epoch=1.ckpt"]):
        make(tmp_path / name, "folder" if age % 2 else "file", "x")
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "last.ckpt.host-1.tmp").touch()
    (tmp_path / "notes.txt").touch()
    found = [path.name for path in resume.candidates(tmp_path)]
    assert found == ["last.ckpt", "best.ckpt", f"last.ckpt{PREVIOUS}", "epoch=1.ckpt"]
    os.utime(tmp_path / "best.ckpt", (1000, 1000))
    assert resume.candidates(tmp_path)[0].name == "last.ckpt"
    assert resume.candidates(tmp_path / "none") == []


# ------------------------------------------------------------------ signals and statuses


@pytest.fixture
def signals() -> Iterator[Signals]:
    found = Signals()
    found.install()
    yield found
    found.restore()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ([], Reason.NONE),
        ([signal.SIGTERM], Reason.TERMINATED),
        ([signal.SIGUSR2], Reason.REQUEUE),
        ([signal.SIGUSR1, signal.SIGTERM], Reason.REQUEUE),
        ([signal.SIGTERM, signal.SIGTERM], Reason.TERMINATED),  # by two ways at once
    ],
)
def test_signals_are_noted(signals: Signals, sent: list[signal.Signals], reason: Reason) -> None:
    for signum in sent:
        os.kill(os.getpid(), signum)
    assert signals.received is reason


def test_signals_do_again_what_they_did() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = Signals()
    signals.install()
    signals.install()
    assert signal.getsignal(signal.SIGTERM) == signals._receive
    signals.restore()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_at_once(signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon after the first it is the same one; another one is not a second."""
    now, ended = 100.0, []
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    monkeypatch.setattr(stopping.os, "kill", lambda *sent: ended.append(sent))
    signals._receive(signal.SIGUSR1, None)
    now = 104.0
    signals._receive(signal.SIGUSR1, None)
    now = 200.0
    signals._receive(signal.SIGTERM, None)
    assert not ended
    now = 206.0
    signals._receive(signal.SIGTERM, None)
    assert ended == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_exit_statuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(stopping.time, "sleep", waits.append)
    cases: list[tuple[BaseException, int | None, str]] = [
        (StoppedRun("stopped.", 75), 75, "stopped.\n"),
        (StoppedRun("", 0), 0, ""),
        (EndedElsewhereError(), 2, ""),
        (UserInputError("--flag: bad."), 2, "error: --flag: bad.\n"),
        (SaidHereError("--flag: bad."), 2, "error: --flag: bad.\n"),
        (ValueError("a bug"), None, ""),
    ]
    for rank, waited in ((0, 0), (3, 1)):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        for error, status, said in cases:
            assert exit_status(error) == status
            assert capsys.readouterr().err == said
        # What all ranks find out before they know of each other is left to the first.
        assert len(waits) == waited
    assert exit_status(KeyboardInterrupt()) == 130 and not capsys.readouterr().err
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert exit_status(KeyboardInterrupt("Continue with --resume_ckpt_path last")) == 130
    assert capsys.readouterr().err.startswith("error: interrupted")


def test_durations() -> None:
    assert seconds_of("01:02:03:04") == 86400 + 2 * 3600 + 3 * 60 + 4


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({"SLURM_JOB_ID": "12"}, "requeue 12"),
        (
            {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"},
            "requeue 12_3",
        ),
        ({"SLURM_JOB_ID": "12; rm -r /"}, None),
        ({}, None),
    ],
)
def test_requeue(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    asked: str | None,
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if asked:
        assert stopping.requeue() == "scontrol is not on this node"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    assert (stopping.requeue() == "") == bool(asked)
    found = tmp_path / "asked"
    assert (found.read_text().strip() if found.exists() else None) == asked


# ------------------------------------------------------------------ curves


def test_rows_of_a_resumed_run() -> None:
    rows = [{"step": str(n), "train/loss": f"0.{n}"} for n in range(7)]
    rows.insert(4, {"step": "3", "val/loss": "0.5"})
    taken = {"global_step": 4}
    assert kept_rows(rows, taken) == rows[:5]
    # The validation comes again, and the row of the last step was not written any more.
    last = {"step": 3, "epoch": 0, "train/loss": 0.25}
    again = taken | {"validation_due": True, "row": last}
    assert kept_rows(rows[:3], again) == [*rows[:3], last]
    assert kept_rows(rows, again) == [*rows[:4], last]
    rows[3]["epoch"] = "0"
    assert kept_rows(rows, again) == rows[:4]


def test_a_torn_line_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n0,0,1.5\n0,1,\n0,1")
    assert read_rows(path) == [
        {"epoch": "0", "step": "0", "train/loss": "1.5"},
        {"epoch": "0", "step": "1"},
    ]


def test_curves_are_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new column has the file written anew: whole, or the old one stays."""
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    logger = curve_logger(tmp_path)
    for step in range(3):
        logger.log_metrics({"train/loss": 0.5 + step}, step)
        logger.save()
    path = tmp_path / "logs" / "metrics.csv"
    before = path.read_text()
    resumed = curve_logger(tmp_path, {"global_step": 2})
    assert [row["step"] for row in read_rows(path)] == ["0", "1"]
    resumed.log_metrics({"train/loss": 0.1}, 2)
    resumed.save()
    assert [row["step"] for row in read_rows(path)] == ["0", "1", "2"]
    original, written = builtins.open, path.read_text()

    def dying(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode:
            raise DeadError
        return original(file, mode, *args, **kwargs)

    resumed.log_metrics({"val/loss": 0.2}, 2)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", dying)
        with pytest.raises(DeadError):
            resumed.save()
    assert path.read_text() == written != before
    again = curve_logger(tmp_path, {"global_step": 3})
    again.log_metrics({"val/loss": 0.2}, 2)
    again.save()
    assert read_rows(path)[2:] == [
        {"step": "2", "train/loss": "0.1"},
        {"step": "2", "val/loss": "0.2"},
    ]
    curve_logger(tmp_path)  # a run that does not go on begins anew
    assert not path.exists()


# ------------------------------------------------------------------ agreement and messages


def test_agreement_of_one() -> None:
    numbers = RankSync()
    assert numbers.read() is None
    numbers.propose(torch.tensor([1, 0, 3], dtype=torch.int32))
    assert numbers.read() == [1, 0, 3]
    assert numbers.read() is None
    siblings = Siblings()
    siblings.watch()
    assert siblings.tell()  # nobody else is there to say it
    siblings.part()


def test_who_is_gone_for_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        server.listen()
        assert not agreement._nobody_listens()
    assert agreement._nobody_listens()
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    assert not agreement._nobody_listens()


def test_which_windows_were_bad() -> None:
    step = Step(
        [torch.tensor(1.0), torch.tensor(float("inf")), torch.tensor(float("nan"))],
        [
            (["a"], torch.tensor([1])),
            (["b", "c"], torch.tensor([0, 2])),
            (["d"], torch.tensor([3])),
        ],
    )
    assert step.bad_windows() == ("not a number", "b window 0, c window 2, d window 3")
    del step.losses[2:], step.windows[2:]
    assert step.bad_windows() == ("infinite", "b window 0, c window 2")
    step.losses[1] = torch.tensor(2.0)
    assert step.bad_windows() == ("", "a window 1, b window 0, c window 2")
    many = Step([torch.tensor(float("nan"))], [(["s"] * 20, torch.arange(20))])
    assert many.bad_windows()[1].endswith("s window 11 and 8 more")


def parsed(extra: str) -> RunConfig:
    return run_config(*parse_arguments(build_parser(), f"--dataset_name Dummy {extra}".split()))


@pytest.mark.parametrize(
    ("extra", "doing", "expected"),
    [
        (
            "--batch_size 6 --gradient_accumulation_steps 2",
            "training",
            "--batch_size 3 with --gradient_accumulation_steps 4 (the same effective batch), "
            "--activation_checkpointing, --precision bf16.",
        ),
        (
            "--batch_size 5 --activation_checkpointing --precision bf16 --devices 2",
            "training",
            "--batch_size 1 with --gradient_accumulation_steps 5 (the same effective batch), "
            "--strategy deepspeed_stage_1.",
        ),
        ("--batch_size 4 --eval_batch_size 8", "evaluation", "--eval_batch_size 4."),
        (
            "--batch_size 1 --activation_checkpointing --precision bf16 --num_workers 4",
            "training",
            "fewer --num_workers.",
        ),
        (
            "--batch_size 1 --activation_checkpointing --precision bf16",
            "training",
            "a smaller model or --img_size.",
        ),
    ],
)
def test_what_to_change_for_memory(extra: str, doing: str, expected: str) -> None:
    config = parsed(f"{extra} --accelerator cpu")
    fault_tolerance = FaultTolerance()
    fault_tolerance.doing = doing
    error = RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        "6442450944 bytes."
    )
    hardware = resolve_hardware(config.trainer)
    message = failures.memory_advice(error, fault_tolerance, config, hardware)
    assert "memory ran short (6.00 GiB more were asked for): " in message
    assert message.split("Change one: ")[1] == f"{expected} {see('memory')}"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_a_lack_of_memory(error: Exception, expected: bool) -> None:
    assert failures.is_out_of_memory(error) is expected


def test_last_needs_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserInputError, match="--resume_ckpt_path: last needs a folder"):
        parsed("--resume_ckpt_path last")
    for extra in ("--output_dir out", "--process_code name"):
        assert parsed(f"--resume_ckpt_path last {extra}").flags["resume_ckpt_path"] == "last"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "train.sh")
    parsed("--resume_ckpt_path last")
    with pytest.raises(UserInputError, match="--skip_bad_batches: got -1, expected 0 or more"):
        parsed("--skip_bad_batches -1")
