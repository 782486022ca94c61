"""Hardware a run asks for, what of it this machine lacks, and the Trainer arguments for it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.training.xpu import XPUAccelerator
from neuromamba.training.zero_strategy import ZeroStrategy

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "xpu")
# Arguments of ZeroStrategy. "deepspeed" alone is what Lightning makes of it.
ZERO_STAGES: Mapping[str, Mapping[str, Any]] = {
    "deepspeed": {"stage": 2},
    "deepspeed_stage_1": {"stage": 1},
    "deepspeed_stage_2": {"stage": 2},
    "deepspeed_stage_2_offload": {"stage": 2, "offload_optimizer": True},
    "deepspeed_stage_3": {"stage": 3},
    "deepspeed_stage_3_offload": {
        "stage": 3,
        "offload_optimizer": True,
        "offload_parameters": True,
    },
}
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp", *ZERO_STAGES)
# The short names of the reference's command lines, and what Lightning >= 2 calls them.
PRECISIONS: Mapping[str, str] = {
    "bf16": "bf16-mixed",
    "16": "16-mixed",
    "32": "32-true",
    "64": "64-true",
    **{name: name for name in ("bf16-mixed", "16-mixed", "bf16-true", "32-true", "64-true")},
}


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
    """

    accelerator: str
    devices: int
    num_nodes: int
    strategy: str
    precision: str
    missing: tuple[str, ...]
    device_request: Any
    autocast: bool = False

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
            "precision": self.precision,
        }
        if self.accelerator == "xpu":
            arguments["accelerator"] = XPUAccelerator()
        if self.autocast:
            arguments["precision"] = "32-true"
        elif self.accelerator == "xpu" and self.precision.endswith("mixed") and not self.zero_stage:
            # Lightning would take torch.cuda's autocast for everything that is not a CPU.
            del arguments["precision"]
            arguments["plugins"] = [MixedPrecision(self.precision, "xpu")]  # type: ignore[arg-type]
        return arguments

    def _strategy(self) -> Any:
        backend = process_group_backend(self.accelerator)
        if self.zero_stage:
            return ZeroStrategy(
                autocast=self.autocast,
                process_group_backend=backend,
                **ZERO_STAGES[self.strategy],
            )
        if self.accelerator != "xpu":
            return self.strategy
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


def installed(distribution: str) -> bool:
    """Whether a package is installed; a folder of its name on the path does not count."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def resolve_hardware(trainer_flags: Mapping[str, Any], autocast: bool = False) -> Hardware:
    """Resolve ``--accelerator --devices --num_nodes --strategy --precision``.

    Args:
        trainer_flags: of the Trainer, those that were given.
        autocast: ``--deepspeed_autocast``.

    Raises:
        UserInputError: an unknown name, or a number that makes no sense. What is merely absent
            on this machine goes to ``Hardware.missing``.
    """
    accelerator = look_up(
        str(trainer_flags.get("accelerator", "auto")), ACCELERATORS, "--accelerator"
    )
    strategy = look_up(str(trainer_flags.get("strategy", "auto")), STRATEGIES, "--strategy")
    precision = PRECISIONS[
        look_up(str(trainer_flags.get("precision", "32")), PRECISIONS, "--precision")
    ]
    num_nodes = trainer_flags.get("num_nodes", 1)
    if num_nodes < 1:
        raise UserInputError(f"--num_nodes: got {num_nodes}, expected 1 or more.")
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
    devices = _count_devices(request, here)
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
    if strategy in ZERO_STAGES and precision == "64-true":
        raise UserInputError("--precision: DeepSpeed has no 64; use 32, bf16 or 16.")
    if autocast and (strategy not in ZERO_STAGES or precision != "bf16-mixed"):
        raise UserInputError(
            f"--deepspeed_autocast: belongs to a DeepSpeed strategy with --precision bf16, got "
            f"--strategy {strategy} --precision {precision}. Leave it out: without DeepSpeed, bf16 "
            f"keeps its parameters in fp32 anyway."
        )
    if precision == "16-mixed" and accelerator == "cpu":
        missing.append(
            "--precision: fp16 needs a GPU (on a CPU, Lightning would take bf16 instead); use "
            "--precision bf16 or 32."
        )
    if strategy == "fsdp" and accelerator == "cpu":
        missing.append("--strategy: torch offers fsdp on GPUs only; use --strategy auto.")
    return Hardware(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        missing=tuple(missing),
        device_request=request,
        autocast=autocast,
    )


def _count_devices(request: Any, present: int) -> int:
    """Number of devices in ``--devices``: a count, "auto", -1 (all), or a list such as "0,2"."""
    text = str(request)
    if text in ("auto", "-1"):
        return max(1, present)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise UserInputError(
            f"--devices: got '{request}', expected a number of 1 or more, 'auto', -1 for all, or "
            f"a list such as 0,2."
        )
    return count
