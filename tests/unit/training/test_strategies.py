"""What --accelerator, --devices, --strategy and --precision come to; Intel GPUs are pretended."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from neuromamba.common.errors import UserInputError
from neuromamba.training import strategies
from neuromamba.training.strategies import Hardware, process_group_backend, resolve_hardware
from neuromamba.training.xpu import XPUAccelerator
from neuromamba.training.zero_strategy import ZeroStrategy


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(strategies, "installed", lambda name: True)


@pytest.fixture
def aurora(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of 12 Intel GPUs (tiles)."""
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 12)


def resolved(line: str, **more: Any) -> Hardware:
    words = line.split()
    flags: dict[str, Any] = dict(zip(words[::2], words[1::2], strict=True))
    if "num_nodes" in flags:
        flags["num_nodes"] = int(flags["num_nodes"])
    return resolve_hardware(flags, **more)


@pytest.mark.usefixtures("aurora")
@pytest.mark.parametrize("asked", ["gpu", "xpu", "auto"])
def test_gpu_is_an_intel_one_where_there_is_no_other(asked: str) -> None:
    hardware = resolved(f"accelerator {asked} devices 12 num_nodes 32 strategy deepspeed_stage_1")
    assert (hardware.accelerator, hardware.ranks, hardware.missing) == ("xpu", 384, ())
    assert isinstance(hardware.trainer_arguments()["accelerator"], XPUAccelerator)


def test_gpu_is_an_nvidia_one_where_there_are_both(
    monkeypatch: pytest.MonkeyPatch, aurora: None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolved("accelerator gpu devices -1").accelerator == "cuda"
    assert resolved("accelerator gpu devices -1").devices == 2
    assert resolved("accelerator xpu devices -1").devices == 12


def test_without_any() -> None:
    assert resolved("accelerator auto").accelerator == "cpu"
    (message,) = resolved("accelerator gpu").missing
    assert message.startswith("--accelerator: a CUDA GPU was asked for")
    (message,) = resolved("accelerator xpu").missing
    assert message.startswith("--accelerator: an Intel GPU (XPU) was asked for")


@pytest.mark.usefixtures("aurora")
def test_strategies_of_intel_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: True, raising=False)
    for line, kind in {
        "devices 1": SingleDeviceStrategy,
        "devices 12": DDPStrategy,
        "devices 1 strategy ddp": DDPStrategy,
        "devices 12 strategy fsdp": FSDPStrategy,
        "devices 12 strategy deepspeed_stage_3": ZeroStrategy,
    }.items():
        strategy = resolved(f"accelerator xpu {line}").trainer_arguments()["strategy"]
        assert type(strategy) is kind
        if kind is not SingleDeviceStrategy:
            assert strategy._process_group_backend == "xccl"
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: False, raising=False)
    assert process_group_backend("xpu") == "ccl"
    assert process_group_backend("cuda") is process_group_backend("cpu") is None


@pytest.mark.usefixtures("aurora")
def test_mixed_precision_of_intel_gpus() -> None:
    """Lightning's own choice would autocast for CUDA."""
    arguments = resolved("accelerator xpu devices 1 precision bf16").trainer_arguments()
    (plugin,) = arguments["plugins"]
    assert isinstance(plugin, MixedPrecision) and plugin.device == "xpu"
    assert "precision" not in arguments
    arguments = resolved(
        "accelerator xpu devices 12 precision bf16 strategy deepspeed_stage_1"
    ).trainer_arguments()
    assert arguments["precision"] == "bf16-mixed" and "plugins" not in arguments


@pytest.mark.usefixtures("aurora")
def test_a_trainer_for_an_intel_gpu() -> None:
    arguments = resolved("accelerator xpu devices 1 precision bf16").trainer_arguments()
    trainer = Trainer(**arguments, logger=False, enable_progress_bar=False)
    assert trainer.strategy.root_device == torch.device("xpu", 0)
    assert trainer.precision == "bf16-mixed"


def test_numbers_of_intel_gpus(aurora: None) -> None:
    parse = XPUAccelerator.parse_devices
    assert parse("auto") == parse(-1) == list(range(12))
    assert parse("2") == parse(2) == [0, 1]
    assert parse("0,3") == parse([0, 3]) == [0, 3]
    assert XPUAccelerator.get_parallel_devices([0, 3]) == [
        torch.device("xpu", 0),
        torch.device("xpu", 3),
    ]
    with pytest.raises(ValueError, match="XPU"):
        XPUAccelerator().setup_device(torch.device("cpu"))


@pytest.mark.parametrize(
    ("strategy", "stage"),
    [("ddp", 0), ("deepspeed", 2), ("deepspeed_stage_1", 1), ("deepspeed_stage_3_offload", 3)],
)
def test_zero_stage(strategy: str, stage: int) -> None:
    hardware = resolved(f"accelerator cpu devices 2 strategy {strategy}")
    assert hardware.zero_stage == stage and not hardware.missing


def test_autocast_keeps_parameters_in_fp32() -> None:
    pytest.importorskip("deepspeed")
    line = "accelerator cpu devices 2 strategy deepspeed_stage_1 precision bf16"
    arguments = resolved(line, autocast=True).trainer_arguments()
    assert arguments["precision"] == "32-true" and arguments["strategy"]._autocast
    arguments = resolved(line).trainer_arguments()
    assert arguments["precision"] == "bf16-mixed" and not arguments["strategy"]._autocast


@pytest.mark.parametrize(
    "line", ["strategy ddp precision bf16", "strategy deepspeed_stage_1 precision 32"]
)
def test_autocast_where_it_means_nothing(line: str) -> None:
    with pytest.raises(UserInputError, match="--deepspeed_autocast: belongs to a DeepSpeed"):
        resolved(f"accelerator cpu devices 2 {line}", autocast=True)


def test_deepspeed_has_no_fp64() -> None:
    with pytest.raises(UserInputError, match="--precision: DeepSpeed has no 64"):
        resolved("accelerator cpu devices 2 strategy deepspeed_stage_1 precision 64")


def test_fsdp_on_a_cpu() -> None:
    (message,) = resolved("accelerator cpu devices 2 strategy fsdp").missing
    assert "GPUs only" in message
