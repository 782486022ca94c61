"""Hardware a run asks for, what of it this machine lacks, and the Trainer arguments for it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from project.module.config import UserInputError, look_up

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
STRATEGIES = (
    "auto",
    "ddp",
    "ddp_find_unused_parameters_true",
    "fsdp",
    "deepspeed",
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3",
    "deepspeed_stage_3_offload",
)
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
        accelerator: "cpu" or "cuda".
        devices: processes on a node.
        num_nodes: nodes.
        strategy: as for the Trainer.
        precision: as for the Trainer.
        missing: what the request needs and this machine does not have, a sentence each.
        device_request: ``--devices`` as given, which may name single devices.
    """

    accelerator: str
    devices: int
    num_nodes: int
    strategy: str
    precision: str
    missing: tuple[str, ...]
    device_request: Any

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

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of ``Trainer``."""
        return {
            "accelerator": self.accelerator,
            "devices": self.device_request if self.accelerator != "cpu" else self.devices,
            "num_nodes": self.num_nodes,
            "strategy": self.strategy,
            "precision": self.precision,
        }


def installed(distribution: str) -> bool:
    """Whether a package is installed; a folder of its name on the path does not count."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def resolve_hardware(trainer_flags: Mapping[str, Any]) -> Hardware:
    """Resolve ``--accelerator --devices --num_nodes --strategy --precision``.

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
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    elif accelerator == "gpu":
        accelerator = "cuda"
    missing = []
    present = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "cpu": 0,
    }[accelerator]
    request = trainer_flags.get("devices", "auto")
    devices = _count_devices(request, present)
    if accelerator != "cpu" and not present:
        missing.append(
            f"--accelerator: a {accelerator.upper()} GPU was asked for and torch "
            f"{torch.__version__} finds none here; use --accelerator cpu --devices 1 --num_nodes 1 "
            f"--strategy auto, or run where there is one."
        )
    elif accelerator != "cpu" and devices > present:
        missing.append(f"--devices: {devices} were asked for, this machine has {present}.")
    if strategy.startswith("deepspeed"):
        if not installed("deepspeed"):
            missing.append(
                "--strategy: DeepSpeed is not installed; run NEUROMAMBA_DEEPSPEED=1 bash "
                "setup_env.sh, or use --strategy auto."
            )
        if accelerator == "cpu":
            missing.append(
                f"--strategy: {strategy} on a CPU is not in this version (it comes with the open "
                f"issue 'Scale'); use --strategy auto."
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
