"""Intel GPUs (Aurora): the accelerator that Lightning lacks, on top of ``torch.xpu``."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.accelerators import Accelerator

_MEBIBYTE = 2**20


class XPUAccelerator(Accelerator):
    """Devices of ``torch.xpu``; one process per device (on Aurora a tile is one)."""

    def setup_device(self, device: torch.device) -> None:
        """Make the device the process's own.

        Raises:
            ValueError: it is not an XPU.
        """
        if device.type != "xpu":
            raise ValueError(f"the device should be an XPU, got {device}")
        torch.xpu.set_device(device)

    def teardown(self) -> None:
        """Give memory back."""
        torch.xpu.empty_cache()

    def get_device_stats(self, device: str | torch.device | int) -> dict[str, Any]:
        """Memory in MiB."""
        return {
            "allocated_memory_mib": torch.xpu.memory_allocated(device) / _MEBIBYTE,
            "peak_memory_mib": torch.xpu.max_memory_allocated(device) / _MEBIBYTE,
        }

    @staticmethod
    def parse_devices(devices: int | str | list[int]) -> list[int]:
        """Numbers of the devices: a count, "auto" or -1 for all, or a list such as "0,2"."""
        text = ",".join(map(str, devices)) if isinstance(devices, list) else str(devices)
        if text in ("auto", "-1"):
            return list(range(torch.xpu.device_count()))
        if "," in text or isinstance(devices, list):
            return [int(part) for part in text.split(",") if part.strip()]
        return list(range(int(text)))

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """The devices of these numbers."""
        return [torch.device("xpu", number) for number in devices]

    @staticmethod
    def auto_device_count() -> int:
        """Devices of this machine."""
        return torch.xpu.device_count()

    @staticmethod
    def is_available() -> bool:
        """Whether there is one."""
        return torch.xpu.is_available()

    @staticmethod
    def name() -> str:
        """The name for ``--accelerator``."""
        return "xpu"
