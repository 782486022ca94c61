"""``benchmarks/gpu_check.{sh,py}`` as far as a CPU can run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from neuromamba.fmamba.build import load_model_config
from neuromamba.layers.ssd import BACKENDS
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import preloaded_python


def test_throughput_program(tmp_path: Path) -> None:
    """All contenders run, and those on the same tokens compute the same loss."""
    pytest.importorskip("transformers", reason="stands in for mamba_ssm on a CPU")
    path = tmp_path / "figures.json"
    flags = f"--device cpu --sizes tiny --batches 1 2 --quick --precision 32 --json {path}"
    result = subprocess.run(
        [preloaded_python(), "benchmarks/gpu_check.py", *flags.split()],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(path.read_text())["rows"]
    by_name = {(row["batch"], row["contender"]): row for row in rows}
    assert len(by_name) == len(rows) == 10
    assert not [row["failed"] for row in rows if "failed" in row]
    for row in rows:
        # A share of times: beside other processes it may come out above 1.
        assert row["windows_per_s"] > 0 and row["share"] > 0, row
    for batch in (1, 2):
        assert by_name[batch, "ours, union"]["loss_difference"] < 1e-5
        assert by_name[batch, "ours, all"]["loss_difference"] < 1e-5
        assert by_name[batch, "ours, all"]["tokens"] == batch * gpu_check.TINY.num_tokens
    ours = [row for row in rows if row["contender"].startswith("ours")]
    assert all(0.001 < row["predicted_gb"] < 1 for row in ours)  # no GPU here to compare with
    # Masks that do not quite overlap: their union has more tokens than each by itself.
    assert by_name[1, "ours"]["tokens"] == by_name[1, "reference"]["tokens"]
    assert by_name[2, "ours"]["tokens"] < by_name[2, "reference"]["tokens"]
    table = path.with_suffix(".md").read_text()
    assert table in result.stdout
    assert "transformers Mamba2" in table and "ours, all" in table


def test_contender_that_cannot_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(gpu_check, "reference_mixers", fail)
    flags = f"--device cpu --sizes tiny --batches 1 --quick --json {tmp_path / 'f.json'}"
    assert gpu_check.main(flags.split()) == 1
    output, errors = capsys.readouterr()
    assert output.count("RuntimeError: no kernel image |") == 2
    assert "ours, all" in output
    assert "error: tiny x 1, reference, all: RuntimeError: no kernel image\n" in errors
    assert "error: tiny x 1, ours, union: there is no loss of 'reference'" in errors


def test_out_of_time_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows left out are named, and are no failure; a table without any row is one."""
    flags = f"--device cpu --sizes tiny --batches 1 2 --quick --json {tmp_path / 'f'} --budget"
    assert gpu_check.main([*flags.split(), "0"]) == 1
    output, errors = capsys.readouterr()
    assert "tiny x 1, tiny x 2" in output
    assert errors == "error: nothing was measured.\n"

    def last_row(*args: object) -> list[dict[str, Any]]:
        monkeypatch.setattr(gpu_check.time, "monotonic", lambda: float("inf"))
        return measured(0.0)

    monkeypatch.setattr(gpu_check, "measure_row", last_row)
    assert gpu_check.main([*flags.split(), "1000"]) == 0
    output, errors = capsys.readouterr()
    assert "| tiny x 2 " in output and not errors


def measured(*differences: float | None) -> list[dict[str, Any]]:
    """Rows of "ours, union" whose losses are so far from the reference's."""
    row = dict.fromkeys(("windows_per_s", "tokens_per_s", "tflops", "share", "added_gb"), 1.0)
    row |= {"size": "tiny", "batch": 1, "contender": "ours, union", "tokens": 10, "step_s": 1.0}
    return [row if d is None else {**row, "loss_difference": d} for d in differences]


@pytest.mark.parametrize(
    ("differences", "count", "shown"),
    [
        ((0.0, 1e-5), 0, "1.0e-05"),
        ((0.0, 3e-4, 0.0), 1, "3.0e-04"),
        ((0.0, float("nan"), 0.0), 1, "nan"),
        ((float("nan"), 1e-5), 1, "nan"),
        ((0.0, None), 1, "0.0e+00"),
    ],
)
def test_losses_that_differ_are_seen(
    differences: tuple[float | None, ...], count: int, shown: str
) -> None:
    rows = measured(*differences)
    assert len(gpu_check.faults(rows, gpu_check.LOSS_BOUND["32"])) == count
    assert f"differ by | {shown} " in gpu_check.report({}, rows)


def test_memory_that_was_not_predicted_is_seen() -> None:
    (row,) = measured(0.0)
    close, far = row | {"predicted_gb": 1.1}, row | {"predicted_gb": 0.8}
    assert gpu_check.faults([close], 1e-3) == []
    (fault,) = gpu_check.faults([far], 1e-3)
    assert fault == "tiny x 1, ours, union: the predicted memory is off by -20%."
    assert "| 1.00     | 0.80 " in gpu_check.report({}, [far])


def test_a_step_that_ran_out_of_memory_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a row that was measured; the table is printed all the same."""

    def one_fits(size: str, config: object, batch: int, *rest: object) -> list[dict[str, Any]]:
        if batch == 2:
            raise torch.OutOfMemoryError("no memory left\nand more")
        return measured(0.0)

    monkeypatch.setattr(gpu_check, "measure_row", one_fits)
    flags = f"--device cpu --sizes tiny --batches 1 2 --quick --json {tmp_path / 'f.json'}"
    assert gpu_check.main(flags.split()) == 1
    output, errors = capsys.readouterr()
    assert "no memory left |" in output and "ours, union" in output
    assert errors == "error: tiny x 2, all of them: no memory left\n"


def test_masks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The carried mask is the one of nilearn; the last resort is a brain's size."""
    import numpy as np

    grid = (96, 96, 96)
    mask, source = gpu_check.brain_mask(grid)
    assert "nilearn" in source

    def missing(grid: tuple[int, ...]) -> None:
        raise ImportError

    monkeypatch.setattr(gpu_check, "mni_mask", missing)
    monkeypatch.setattr(gpu_check, "CARRIED_MASK", tmp_path / "mask.npz")
    ellipsoid, source = gpu_check.brain_mask(grid)
    assert "ellipsoid" in source and 0.8 < ellipsoid.sum() / mask.sum() < 1.2
    np.savez_compressed(tmp_path / "mask.npz", bits=np.packbits(mask))
    carried, source = gpu_check.brain_mask(grid)
    assert "carried" in source and (carried == mask).all()


@pytest.mark.parametrize("size", gpu_check.SIZES)
def test_sizes_are_the_published_ones(size: str) -> None:
    config = gpu_check.model_config(size)
    assert config == load_model_config(ROOT / f"configs/neuromamba_{size}.yaml")
    assert config.img_size == (96, 96, 96, 20)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """One line and status 2, from the script and from the program."""
    result = subprocess.run(
        ["bash", "benchmarks/gpu_check.sh"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 2
    assert result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "no CUDA GPU" in result.stderr
    assert gpu_check.main([]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err


# Claims a GPU of compute capability 9.0; the throughput table is that of the tiny model on the CPU.
PRETENDER = """#!/bin/bash
case "$*" in
    *"is_available()"*) exit 0 ;;
    *get_device_capability*) echo 90 ;;
    *"-m pip"*) echo "pip $*" >>"{log}"; exit 1 ;;
    *"-m pytest"*) echo "pytest $*" >>"{log}"; echo "28 passed" ;;
    *"--warm"*) echo "$*" >>"{log}" ;;
    *gpu_check.py*)
        echo "table $*" >>"{log}"
        exec "{python}" benchmarks/gpu_check.py --device cpu --sizes tiny --quick --batches 1 \\
            --json "$NEUROMAMBA_GPU_CHECK_RESULTS/gpu_check_cuda.json"
        ;;
    *) exec "{python}" "$@" ;;
esac
"""


@pytest.mark.slow
def test_script_from_end_to_end(tmp_path: Path) -> None:
    """Order of the steps, what is said about what is missing, and that nothing is left behind."""
    python, log, scratch = tmp_path / "python", tmp_path / "log", tmp_path / "scratch"
    python.write_text(PRETENDER.format(python=sys.executable, log=log))
    python.chmod(0o755)
    scratch.mkdir()
    results = tmp_path / "results"
    result = subprocess.run(
        ["bash", "benchmarks/gpu_check.sh"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHON": str(python),
            "TMPDIR": str(scratch),
            "NEUROMAMBA_GPU_CHECK_RESULTS": str(results),
        },
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    steps = log.read_text().splitlines()
    warmed = {line.split()[-1] for line in steps if "--warm" in line}
    assert warmed == set(gpu_check.SIZES)
    assert [line for line in steps if line.startswith("table")] == [steps[-1]]
    assert any(line.startswith("pytest") and "tests/gpu" in line for line in steps)
    assert "ours, all" in result.stdout and "done, status 0" in result.stdout
    assert (results / "gpu_check.log").read_text() == result.stdout
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_the_kernels_of_a_card_are_in_the_table(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how much they differ from the reference; torch stands in for them."""
    right = BACKENDS["cpu"].run
    ways = {"split": lambda x, params, lengths: factor * right(x, params, lengths)}
    monkeypatch.setattr(gpu_check.triton_backend, "ways_to_call", lambda: ways)
    facts = gpu_check.compared_kernels(torch.device("cpu"))
    ((name, text),) = facts.items()
    assert name == "kernels, split, 256 tokens"
    difference = float(text.split(" by ")[1].split()[0])
    assert difference < 1e-4 if factor == 1 else difference == pytest.approx(0.5, rel=0.1)
    assert text in gpu_check.report(facts, [])
