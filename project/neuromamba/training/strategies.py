"""Hardware a run asks for, what of it this machine lacks, and the Trainer arguments for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from neuromamba.common.errors import UserInputError
from neuromamba.layers import bf16
from neuromamba.training.hardware_flags import (
    ZERO_STAGES,
    check_hardware_flags,
    count_devices,
    installed,
)


@dataclass(frozen=True)
class Hardware:
    """Resolved request.

    Attributes:
        accelerator: "cpu", "cuda" or "xpu".
        devices: processes on a node.
        num_nodes: nodes.
        strategy: as for the Trainer.
        precision: as for the Trainer.
        missing: what the request needs and this machine does not have, a sentence each.
        device_request: ``--devices`` as given, which may name single devices.
        autocast: DeepSpeed keeps its parameters in fp32 and computes in bf16.
        slow_bf16: why bf16 operands, which were asked for, are not used on this CPU; "" where they
            are, or were not asked for.
    """

    accelerator: str
    devices: int
    num_nodes: int
    strategy: str
    precision: str
    missing: tuple[str, ...]
    device_request: Any
    autocast: bool = False
    slow_bf16: str = ""

    @property
    def computed(self) -> str:
        """The precision that is computed in: fp32 where bf16 was asked for and would be slower."""
        return "32-true" if self.slow_bf16 else self.precision

    @property
    def precision_text(self) -> str:
        """The precision asked for, and the one computed in if that is another."""
        if not self.slow_bf16:
            return self.precision
        return f"{self.precision}, computed in fp32, which is faster here ({self.slow_bf16})"

    @property
    def ranks(self) -> int:
        """Processes of the whole run."""
        return self.devices * self.num_nodes

    def require(self) -> None:
        """Refuse to run without what was asked for.

        Raises:
            UserInputError: names everything that is missing.
        """
        if self.missing:
            raise UserInputError(" ".join(self.missing))

    @property
    def zero_stage(self) -> int:
        """Stage of DeepSpeed's ZeRO; 0 for the other strategies."""
        stage: int = ZERO_STAGES.get(self.strategy, {}).get("stage", 0)
        return stage

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of ``Trainer``."""
        arguments: dict[str, Any] = {
            "accelerator": self.accelerator,
            "devices": self.device_request if self.accelerator != "cpu" else self.devices,
            "num_nodes": self.num_nodes,
            "strategy": self._strategy(),
            "precision": self.computed,
        }
        # Here and below: Lightning takes seconds to import, and a plan does without it.
        if self.accelerator == "xpu":
            from neuromamba.training.xpu import XPUAccelerator

            arguments["accelerator"] = XPUAccelerator()
        if self.autocast:
            arguments["precision"] = "32-true"
        elif self.accelerator == "xpu" and self.precision.endswith("mixed") and not self.zero_stage:
            # Lightning would take torch.cuda's autocast for everything that is not a CPU.
            from pytorch_lightning.plugins import MixedPrecision

            del arguments["precision"]
            arguments["plugins"] = [MixedPrecision(self.precision, "xpu")]  # type: ignore[arg-type]
        return arguments

    def _strategy(self) -> Any:
        backend = process_group_backend(self.accelerator)
        if self.zero_stage:
            from neuromamba.training.zero_strategy import ZeroStrategy

            return ZeroStrategy(
                autocast=self.autocast,
                process_group_backend=backend,
                **ZERO_STAGES[self.strategy],
            )
        if self.accelerator != "xpu":
            return self.strategy
        from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

        if self.strategy == "fsdp":
            return FSDPStrategy(process_group_backend=backend)
        if self.ranks > 1 or self.strategy.startswith("ddp"):
            unused = self.strategy == "ddp_find_unused_parameters_true"
            return DDPStrategy(process_group_backend=backend, find_unused_parameters=unused)
        return SingleDeviceStrategy(torch.device("xpu", 0))


def process_group_backend(accelerator: str) -> str | None:
    """torch's collectives for a kind of device; None where Lightning knows them."""
    if accelerator != "xpu":
        return None
    known = getattr(torch.distributed, "is_xccl_available", lambda: False)()
    return "xccl" if known else "ccl"  # the latter from oneccl_bindings_for_pytorch


def resolve_hardware(trainer_flags: Mapping[str, Any], autocast: bool = False) -> Hardware:
    """Resolve ``--accelerator --devices --num_nodes --strategy --precision``.

    Args:
        trainer_flags: of the Trainer, those that were given.
        autocast: ``--deepspeed_autocast``.

    Raises:
        UserInputError: an unknown name, or a number that makes no sense. What is merely absent
            on this machine goes to ``Hardware.missing``.
    """
    accelerator, strategy, precision, num_nodes = check_hardware_flags(trainer_flags, autocast)
    present = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
        "cpu": 0,
    }
    if accelerator in ("auto", "gpu"):
        absent = "cpu" if accelerator == "auto" else "cuda"
        accelerator = next((kind for kind in ("cuda", "xpu") if present[kind]), absent)
    missing = []
    here = present[accelerator]
    request = trainer_flags.get("devices", "auto")
    devices = count_devices(request, here)
    if accelerator != "cpu" and not here:
        kind = "an Intel GPU (XPU)" if accelerator == "xpu" else "a CUDA GPU"
        missing.append(
            f"--accelerator: {kind} was asked for and torch "
            f"{torch.__version__} finds none here; use --accelerator cpu --devices 1 --num_nodes 1 "
            f"--strategy auto, or run where there is one."
        )
    elif accelerator != "cpu" and devices > here:
        missing.append(f"--devices: {devices} were asked for, this machine has {here}.")
    if strategy in ZERO_STAGES and not installed("deepspeed"):
        missing.append(
            "--strategy: DeepSpeed is not installed; run NEUROMAMBA_DEEPSPEED=1 bash "
            "setup_env.sh, or use --strategy auto."
        )
    if precision == "16-mixed" and accelerator == "cpu":
        missing.append(
            "--precision: fp16 needs a GPU (on a CPU, Lightning would take bf16 instead); use "
            "--precision bf16 or 32."
        )
    if strategy == "fsdp" and accelerator == "cpu":
        missing.append("--strategy: torch offers fsdp on GPUs only; use --strategy auto.")
    slow_bf16 = ""
    if accelerator == "cpu" and precision == "bf16-mixed" and strategy not in ZERO_STAGES:
        judged = bf16.judge()
        slow_bf16 = "" if judged.pays else judged.found
    return Hardware(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        missing=tuple(missing),
        device_request=request,
        autocast=autocast,
        slow_bf16=slow_bf16,
    )
