"""A run that is interrupted in the middle of an epoch goes on with exactly the next batch."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback

from neuromamba.commands.train import main
from neuromamba.fmamba import trainer as trainer_module
from neuromamba.fmamba.run import Run
from neuromamba.training.resume_state import RUN_KEY, loader_states
from tests.helpers.tiny import CommandLine, Finished

NEXT = "--pretraining --use_autoregressive"


class KillError(Exception):
    """In place of SIGKILL: nothing of ours or of Lightning's catches it."""


class KillAfter(Callback):
    """Ends a run behind a batch, counted over all epochs."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_start(self, *args: Any) -> None:
        """Dies before the batch after it, when the checkpoint is written."""
        if not self.left:
            raise KillError
        self.left -= 1


def curve(folder: Path) -> list[tuple[int, str]]:
    """Step and training loss, digit for digit, in the order they were logged."""
    with open(folder / "logs" / "metrics.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["train/loss"]]
    return [(int(row["step"]), row["train/loss"]) for row in rows]


def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, tuple[Any, ...]]]:
    """Filled with epoch, number and windows of every training batch."""
    found: list[tuple[int, int, tuple[Any, ...]]] = []

    class Recorder(Callback):
        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            windows = tuple(zip(batch["subject"], batch["window"].tolist(), strict=True))
            found.append((trainer.current_epoch, batch_idx, windows))

    build = trainer_module.build_callbacks
    monkeypatch.setattr(
        trainer_module, "build_callbacks", lambda *args: [*build(*args), Recorder()]
    )
    return found


def killed(cli: CommandLine, monkeypatch: pytest.MonkeyPatch, extra: str, batches: int) -> Path:
    """Folder of a run that died behind so many batches."""
    build = trainer_module.build_callbacks
    folder = cli.folder / f"killed{batches}"
    with monkeypatch.context() as patch:
        patch.setattr(
            trainer_module, "build_callbacks", lambda *args: [*build(*args), KillAfter(batches)]
        )
        with pytest.raises(KillError):
            cli.run(f"{extra} --output_dir {folder}")
    return folder


@pytest.mark.parametrize(
    ("extra", "batches", "step"),
    [
        ("", 5, 3),
        ("", 9, 9),  # the last batch of an epoch
        ("", 13, 12),  # in the second epoch
        pytest.param("--num_workers 2", 13, 12, marks=pytest.mark.slow),
        ("--gradient_accumulation_steps 2", 13, 6),
        ("--gradient_accumulation_steps 2 --num_workers 2", 7, 3),
        pytest.param(
            f"{NEXT} --num_workers 1 --no-persistent_workers", 4, 3, marks=pytest.mark.slow
        ),
        (f"{NEXT} --val_check_interval 0.5", 7, 6),
    ],
)
def test_resumed_inside_an_epoch(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, extra: str, batches: int, step: int
) -> None:
    """Losses, order and the metrics at the end are those of the undisturbed run."""
    extra = f"{extra} --max_epochs 3 --dropout 0.2 --learning_rate 1e-2 --log_every_n_steps 1"
    every = f"{extra} --every_n_train_steps 3"
    undisturbed = seen(monkeypatch)
    straight = cli.run(every)
    expected = list(undisturbed)
    undisturbed.clear()
    folder = killed(cli, monkeypatch, every, batches)
    (middle,) = (folder / "checkpoints").glob(f"epoch=*-step={step}.ckpt")
    before = len(undisturbed)
    resumed = cli.run(f"{every} --resume_ckpt_path {middle} --output_dir {folder}")
    again = undisturbed[before:]
    assert again == expected[-len(again) :]
    accumulation = 2 if "accumulation" in extra else 1
    assert len(expected) == 3 * 9
    in_epochs = divmod(step, -(-9 // accumulation))
    assert len(expected) - len(again) == 9 * in_epochs[0] + in_epochs[1] * accumulation
    assert curve(folder) == curve(straight.folder)
    assert resumed.metrics["train/steps"] == straight.metrics["train/steps"]
    a, b = straight.checkpoint()["state_dict"], resumed.checkpoint()["state_dict"]
    for key in a:
        assert torch.equal(a[key], b[key]), key
    for key, value in straight.written.items():
        if key.startswith(("val/", "test/")):
            assert resumed.written[key] == value, key


def in_the_middle(cli: CommandLine, extra: str = "") -> Path:
    """A checkpoint of step 4 of the 9 of an epoch."""
    done: Finished = cli.run(f"--every_n_train_steps 4 {extra}")
    (middle,) = (done.folder / "checkpoints").glob("*step=4.ckpt")
    return middle


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["loops"]["fit_loop"]["state_dict"])
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        (lambda state: state.pop("combined_loader"), "", "does not say which of its batches"),
        (lambda state: None, "--devices 2", "was saved by 1 process with"),
        (
            lambda state: None,
            "--gradient_accumulation_steps 2",
            "with --gradient_accumulation_steps 1, and this run has 2",
        ),
        (lambda state: None, "--grad_clip 0.001", "--grad_clip none, and this run has 0.001"),
        (lambda state: None, "--gradient_clip_val 1", "--grad_clip none, and this run has 1"),
        (
            lambda state: None,
            "--precision bf16",
            "32-true, and this run has bf16-mixed",
        ),
        (lambda state: None, "--limit_train_batches 8", "--limit_train_batches 1.0, and this run"),
        (
            lambda state: None,
            "--overfit_batches 0.5",
            "--overfit_batches 0.0, and this run",
        ),
        (lambda state: state["combined_loader"][0].update(windows=35), "", "an epoch has 36"),
    ],
)
def test_refused_inside_an_epoch(
    cli: CommandLine,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    extra: str,
    message: str,
) -> None:
    middle = changed(in_the_middle(cli, "--no-use_scheduler"), change)
    argv = cli.argv(f"--no-use_scheduler --resume_ckpt_path {middle} {extra}")
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --resume_ckpt_path: ") and message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        pytest.param(
            "--overfit_batches 0.9",
            "--overfit_batches cannot continue",
            marks=pytest.mark.filterwarnings("ignore:You requested to overfit"),
        ),
        ("--gradient_accumulation_steps 2", "between the 2 batches of a step"),
    ],
)
def test_a_place_that_cannot_be_taken_up(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], extra: str, message: str
) -> None:
    line = f"--no-use_scheduler {extra}"
    middle = changed(
        in_the_middle(cli, line), lambda state: state["combined_loader"][0].update(batches=3)
    )
    assert main(cli.argv(f"{line} --resume_ckpt_path {middle}")) == 2
    assert message in capsys.readouterr().err


def test_what_does_not_change_the_steps_is_free(cli: CommandLine) -> None:
    middle = in_the_middle(cli, "--grad_clip 1")
    free = "--gradient_clip_val 1.0 --skip_bad_batches 3 --num_workers 1 --activation_checkpointing"
    again = cli.run(f"{free} --limit_val_batches 1 --resume_ckpt_path {middle}")
    assert again.metrics["train/steps"] == 9


def test_an_older_checkpoint_does_not_say_how_it_was_trained(cli: CommandLine) -> None:
    middle = in_the_middle(cli)
    checkpoint = torch.load(middle, weights_only=True)
    del checkpoint[RUN_KEY]["settings"]
    torch.save(checkpoint, middle)
    assert cli.run(f"--grad_clip 1 --resume_ckpt_path {middle}").metrics["train/steps"] == 9


def test_the_rest_of_an_epoch_is_not_left_out(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind the last step of a run the epoch is over for Lightning, whatever was left of it."""
    line = "--no-use_scheduler --max_epochs 3"
    done = cli.run(f"{line} --max_steps 5")
    last = done.folder / "checkpoints" / "last.ckpt"
    again = cli.run(f"{line} --max_steps 5 --resume_ckpt_path {last} --output_dir {done.folder}")
    assert again.written["train/loss"] == done.written["train/loss"]
    assert again.metrics["train/steps"] == 5
    assert main(cli.argv(f"{line} --max_steps 8 --resume_ckpt_path {last}")) == 2
    assert "inside an epoch, where the training had reached --max_steps" in capsys.readouterr().err


def test_a_dry_run_says_where_it_would_go_on(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cli.folder / "dry"
    line = f"--output_dir {folder} --resume_ckpt_path last"
    assert main(cli.argv(f"{line} --dry_run")) == 0
    said = capsys.readouterr().out
    assert (
        f"from the beginning: no checkpoint is in {folder} yet\n" in said
        and "nothing is missing" in said
    )
    assert not folder.exists()
    cli.run(line)
    last = folder / "checkpoints" / "last.ckpt"
    for request in ("last", last):
        capsys.readouterr()
        argv = f"--output_dir {folder} --dry_run --resume_ckpt_path {request}"
        assert main(cli.argv(argv)) == 0
        assert f"  after step 9, from {last}\n" in capsys.readouterr().out
    last.write_bytes(b"torn")
    (folder / "checkpoints" / "best.ckpt").unlink()
    assert main(cli.argv(f"{line} --dry_run")) == 0
    assert "  - --resume_ckpt_path last: none of 1 checkpoint(s)" in capsys.readouterr().out


def test_a_checkpoint_says_where_it_was_taken(cli: CommandLine) -> None:
    checkpoint = torch.load(in_the_middle(cli), weights_only=True)
    assert loader_states(checkpoint) == [{"epoch": 0, "batches": 4, "windows": 36}]
    assert isinstance(cli.planned(), Run)
