"""``neuromamba doctor`` on stores, good and bad; the memory plan against a real training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import memory_plan
from neuromamba.__main__ import main as neuromamba
from neuromamba.commands import doctor
from neuromamba.planning import data_path
from neuromamba.planning.data_path import check_data_path
from neuromamba.planning.machine import Check


def lines(path: Path) -> dict[str, Check]:
    return {line.name.removeprefix(f"{path}: "): line for line in check_data_path(str(path))}


def test_a_store_that_can_be_read(
    pristine_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pristine_store, tmp_path / "store")
    found = lines(tmp_path / "store")
    assert {line.state for line in found.values()} <= {"ok"}
    assert (
        "20 runs" in found["runs"].found and "12 to 12 frames, grid 12x12x12" in found["runs"].found
    )
    for words in (
        "znorm_minback",
        "traits of anatomy",
        "voxelnorm_zeroback",
        "dynamics",
        "computed",
    ):
        assert words in found["scaling"].found
    assert "MB/s" in found["read speed"].found and found["file locks"].found == "work"
    assert (
        doctor.main(["--image_path", str(tmp_path / "store"), "--json", str(tmp_path / "j")]) == 0
    )
    record = json.loads((tmp_path / "j").read_text())
    assert f"{tmp_path / 'store'}: runs" in {line["name"] for line in record["checks"]}
    assert "a training can run here" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["hdf5", "metadata"]


def test_damaged_and_absent_stores(pristine_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(pristine_store, store)
    run = store / "hdf5" / "sub-01.h5"
    run.write_bytes(run.read_bytes()[:500])
    found = lines(store)
    assert found["store"].state == "missing" and "1 of 20 files" in found["store"].found
    assert "neuromamba check-store" in found["store"].remedy and "20 runs" in found["runs"].found
    assert doctor.main(["--image_path", str(store)]) == 1
    (absent,) = check_data_path(str(tmp_path / "nowhere"))
    assert absent.state == "missing" and "no folder" in absent.found and absent.remedy


def test_locks_that_do_not_work(pristine_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stream: object, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(data_path.fcntl, "flock", refuse)
    found = lines(pristine_store)["file locks"]
    assert found.state == "note" and "do not work (Function not implemented)" in found.found
    assert "HDF5_USE_FILE_LOCKING=FALSE" in found.remedy


def test_plan_of_a_store(pristine_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens and windows come from the store, which stays as it is."""
    words = f"plan --image_path {pristine_store} --dataset_name Dummy --img_size 12 12 12 4"
    words += " --embed_dim 16 --depth 1 --gpus 2 --gpu CPU --json --train_split 0.6"
    assert neuromamba(words.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["work"]["windows"] == 12 * 3
    assert found["work"]["most_tokens"] == found["work"]["tokens_brain"] == 10
    assert found["request"]["setting"]["accelerator"] == "cpu" and found["hours"] is None
    assert not (pristine_store / "splits").exists()


@pytest.mark.timeout(280)
def test_memory_of_a_training(tmp_path: Path) -> None:
    """The quick case of the benchmark: real trainings in processes of their own, within 15 %."""
    flags = "--quick --threads 1 --allocator compact --json"
    path = tmp_path / "plan.json"
    assert memory_plan.main([*flags.split(), str(path)]) == 0
    (row,) = json.loads(path.read_text())["cases"]
    assert abs(row["error"]) <= 0.15 and row["compact"]["measured"] > 3e8
    assert row["predicted"] == pytest.approx(row["compact"]["measured"], rel=0.18)
    assert path.with_suffix(".md").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", list(memory_plan.CPU_CASES)[:4])
def test_memory_of_the_four_cases(case: str, tmp_path: Path) -> None:
    flags = ["--threads", "1", "--allocator", "compact", "--cases", case, "--json"]
    assert memory_plan.main([*flags, str(tmp_path / "plan.json")]) == 0


def test_a_wrong_prediction_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 names the case; a budget that is used up leaves cases out, and says so."""
    monkeypatch.setattr(
        memory_plan, "predicted", lambda flags: {"a": 10**8 * ("16" in flags) + 10**8}
    )
    monkeypatch.setattr(
        memory_plan,
        "measured",
        lambda flags, ranks, threads: {"host": 3 * 10**8 if "16" in flags else 2 * 10**8},
    )
    monkeypatch.setattr(memory_plan, "store_for", lambda size, folder: folder)
    flags = ["--allocator", "compact", "--json", str(tmp_path / "f.json"), "--cases"]
    assert memory_plan.main([*flags, "small, fp32"]) == 0
    monkeypatch.setattr(
        memory_plan, "predicted", lambda flags: {"a": 10**8 + 10**8 // 2 * ("16" not in flags)}
    )
    assert memory_plan.main([*flags, "small, fp32"]) == 1
    assert "error: small, fp32: off by" in capsys.readouterr().err
