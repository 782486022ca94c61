"""``--scalability_check`` and ``project/deepspeed_profile.py`` on real trainings."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neuromamba.commands import profile as deepspeed_profile
from neuromamba.commands.train import main
from neuromamba.fmamba.flop_formula import window_flops
from neuromamba.fmamba.profiling import PHASES
from neuromamba.planning import scaling
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import preloaded_python
from tests.helpers.tiny import CommandLine, Finished

NEXT = "--pretraining --use_autoregressive"


def losses(done: Finished) -> list[str]:
    with open(done.folder / "logs" / "metrics.csv", newline="") as stream:
        return [row["train/loss"] for row in csv.DictReader(stream) if row["train/loss"]]


def check_figures(found: dict[str, Any], ranks: int) -> None:
    """What holds whatever the machine is doing beside."""
    assert found["ranks"] == ranks == len(found["per_rank"])
    assert found["seconds"] > 0 and found["token_balance"] <= 1
    for rank in found["per_rank"]:
        assert sum(rank["phases"].values()) == pytest.approx(rank["seconds"])
        for phase in ("forward", "backward", "optimiser"):
            assert rank["phases"][phase] > 0
        assert rank["fastest_seconds"] <= rank["median_seconds"] <= rank["slowest_seconds"]
        assert rank["tokens_per_second"] == pytest.approx(
            rank["tokens_per_batch"] / rank["seconds"]
        )
    assert set(found["phases"]) == set(PHASES)
    assert 3e8 < found["memory"]["host"] < 3e9


@pytest.mark.parametrize("extra", ["", "--gradient_accumulation_steps 2 --val_check_interval 0.5"])
def test_it_measures_and_changes_nothing(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], extra: str
) -> None:
    flags = f"{NEXT} --max_epochs 2 --log_every_n_steps 1 --dropout 0.1 {extra}"
    without = cli.run(flags)
    capsys.readouterr()
    done = cli.run(f"{flags} --scalability_check")
    assert losses(done) == losses(without) and len(losses(done)) > 1
    found = json.loads((done.folder / "scalability.json").read_text())
    check_figures(found, ranks=1)
    assert found["batches"] == 18 - 5 - (13 % 2 if extra else 0) and found["warm_up_batches"] == 5
    assert found["batch_size"] == 4 and found["strategy"] == "auto"
    # 5 of 8 patches of 2 frames are kept, of each of 4 windows.
    tokens = found["per_rank"][0]["tokens_per_batch"]
    assert tokens == 4 * 5 * 2
    flops = window_flops(cli.planned(flags).config.model, 10)
    assert found["per_rank"][0]["flops_per_batch"] == 4 * flops
    assert found["tflops"] == pytest.approx(4 * flops / found["seconds"] / 1e12)
    assert "throughput of 1 rank(s) on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("extra", ["--test_only --test_ckpt_path best.ckpt", "--barebones"])
def test_it_is_refused_where_it_cannot_be(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], extra: str
) -> None:
    if "test_only" in extra:
        extra = extra.replace("best.ckpt", str(cli.run().folder / "checkpoints" / "best.ckpt"))
    capsys.readouterr()
    assert main(cli.argv(f"--scalability_check {extra}")) == 2
    assert capsys.readouterr().err.startswith("error: --scalability_check: only used with")


def test_profile_of_a_downstream_run(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures on stdout, the run's own lines on stderr; nothing is left behind."""
    # The process is the tests': its allocator stays as it is.
    argv = cli.argv("--profile_batches 4 --warm_up_batches 1 --allocator default --json p.json")
    before = set(cli.folder.iterdir())
    assert deepspeed_profile.main([*argv, "--max_epochs", "7", "--use_early_stopping"]) == 0
    output, errors = capsys.readouterr()
    found = json.loads((cli.folder / "p.json").read_text())
    check_figures(found, ranks=1)
    assert found["batches"] == 4 and found["warm_up_batches"] == 1
    assert output.startswith("throughput of 1 rank(s)") and "writing to" in errors
    assert set(cli.folder.iterdir()) - before == {cli.folder / "p.json"}
    splits = cli.store / "splits"
    assert not splits.exists() or not list(splits.glob("*.tmp"))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--test_only --test_ckpt_path a.ckpt", "--test_only: is not for a profile"),
        ("--scalability_check", "--scalability_check: is not for a profile"),
        ("--profile_batches 0", "--profile_batches: got 0, expected 1 or more"),
        ("--json nowhere/p.json", "--json: there is no folder 'nowhere'"),
        ("--scaling depths 1 2", "--scaling: unknown name 'depths'"),
        ("--scaling batch_size", "--scaling: got 'batch_size', expected a name and numbers"),
        ("--scaling batch_size 2 x", "--scaling: got 'batch_size 2 x', expected a name"),
    ],
)
def test_mistakes(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], extra: str, message: str
) -> None:
    assert deepspeed_profile.main(cli.argv(extra)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_batches_that_are_never_made(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    """36 training windows: figures of batches of 64 would be those of batches of 36."""
    argv = cli.argv("--batch_size 64 --allocator default --json p.json")
    assert deepspeed_profile.main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --batch_size: no batch has 64 windows, since a rank has 36")
    assert not (cli.folder / "p.json").exists()


def test_two_processes(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun; what ranks exchange is told apart."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "executable", preloaded_python())
    flags = f"{NEXT} --strategy ddp --profile_batches 4 --warm_up_batches 2"
    extra = "--scaling processes 2 --point_seconds 200 --json s.json"
    assert deepspeed_profile.main(cli.argv(f"{flags} {extra}")) == 0, capsys.readouterr().err
    (found,) = json.loads((cli.folder / "s.json").read_text())["points"]
    check_figures(found, ranks=2)
    exchanged = found["communication"]
    assert 0 < exchanged["exposed"] <= exchanged["in_flight"] < 1
    assert 0 <= found["efficiency"] < 1
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        f"{NEXT} --strategy ddp --gradient_accumulation_steps 2",
        "--strategy ddp --freeze_feature_extractor --clf_head_version mamba",
    ],
)
def test_scaling_over_processes(cli: CommandLine, extra: str) -> None:
    """From the shell, one and two processes."""
    flags = f"{extra} --profile_batches 4 --warm_up_batches 2 --scaling processes 1 2"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "project/deepspeed_profile.py"),
            *cli.argv(f"{flags} --point_seconds 120 --json s.json"),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = json.loads((cli.folder / "s.json").read_text())["points"]
    check_figures(one, ranks=1)
    check_figures(two, ranks=2)
    assert one["communication"] is None and two["communication"] is not None
    assert one["relative"] == 1 and two["relative"] > 0
    assert len(done.stdout.splitlines()) == 4


# --- points that fail ---------------------------------------------------------------------------

PROGRAMS = {
    "torch's message": 'raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: 9 bytes")',
    "our message": "import sys; sys.exit('error: --batch_size: GPU memory ran short: training')",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "mistake": "import sys; print('error: --strategy: no', file=sys.stderr); sys.exit(2)",
    "crash": "1 / 0",
    "too long": "import time; time.sleep(60)",
    "bad end": (
        "import sys, pathlib, os; pathlib.Path(sys.argv[sys.argv.index('--json') + 1])"
        ".write_text('{\"seconds\": 1}'); os.abort()"
    ),
}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("torch's message", {"failed": "out of memory"}),
        ("our message", {"failed": "out of memory"}),
        ("killed", {"failed": "out of memory"}),
        ("mistake", {"failed": "--strategy: no"}),
        ("crash", {"failed": "ZeroDivisionError: division by zero"}),
        ("too long", {"failed": "not done after 1 s (--point_seconds)"}),
        ("bad end", {"seconds": 1}),
    ],
)
def test_a_point_that_fails_is_a_row(kind: str, expected: dict[str, Any], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[kind])
    limit = 1 if kind == "too long" else 60
    assert scaling.run_point([sys.executable, str(program)], limit) == expected


def test_table_of_points_one_of_which_ran_out_of_memory() -> None:
    ran = {
        "seconds": 0.5,
        "ranks": 2,
        "windows_per_second": 8.0,
        "tokens_per_second": 4000.0,
        "tflops": 0.25,
        "memory": {"host": 10**9},
        "efficiency": None,
    }
    faster = ran | {"tokens_per_second": 6000.0, "efficiency": 0.9}
    rows = [
        {"batch_size": 1, "busy_cores": None, **ran},
        {"batch_size": 2, "busy_cores": 0.0, "failed": "out of memory"},
        {"batch_size": 4, "busy_cores": 1.25, **faster},
    ]
    scaling._rate(rows)
    assert rows[0]["relative"] == 1 and rows[2]["relative"] == 1.5
    lines = scaling._table(rows, "batch_size").splitlines()
    assert lines[2].split() == ["2", "out", "of", "memory"]
    assert lines[1].split()[-1] == "100.0%"  # the system does not tell who is busy
    row = ["4", "500.0", "8", "6,000", "0.25", "1.00", "90.0%", "150.0%", "1.2"]
    assert lines[3].split() == row


def test_command_lines_of_points(cli: CommandLine) -> None:
    flags = cli.argv("--scaling sequence_length 4 8 --json a.json --depth 2")
    config = deepspeed_profile.checked(flags)
    for what, number, end in (
        ("batch_size", 8, ["--batch_size", "8"]),
        ("sequence_length", 8, ["--img_size", "12", "12", "12", "8"]),
        ("processes", 2, ["--devices", "2"]),
    ):
        command = scaling._command(config, flags, what, number)
        assert command[-len(end) :] == end
        assert "--scaling" not in command and "--json" not in command and "--depth" in command
        again = deepspeed_profile.checked(command[command.index("profile") + 1 :])
        changed = {
            "batch_size": again.data.batch_size,
            "sequence_length": again.model.img_size[3],
            "processes": again.trainer["devices"],
        }
        assert changed[what] == number
