"""The flags that choose the hardware of a run, checked without torch.

What they ask for and this machine does not have is found later, by ``strategies``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any, NamedTuple

from neuromamba.common.errors import UserInputError, look_up

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


class HardwareFlags(NamedTuple):
    """``--accelerator --strategy --precision --num_nodes``, each one of the known values.

    Attributes:
        accelerator: of ``ACCELERATORS``.
        strategy: of ``STRATEGIES``.
        precision: a value of ``PRECISIONS``.
        num_nodes: 1 or more.
    """

    accelerator: str
    strategy: str
    precision: str
    num_nodes: int


def check_hardware_flags(trainer_flags: Mapping[str, Any], autocast: bool = False) -> HardwareFlags:
    """Check what is wrong on any machine.

    Args:
        trainer_flags: of the Trainer, those that were given.
        autocast: ``--deepspeed_autocast``.

    Raises:
        UserInputError: an unknown name, a number that makes no sense, or flags that contradict
            each other.
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
    count_devices(trainer_flags.get("devices", "auto"), 1)
    if strategy in ZERO_STAGES and precision == "64-true":
        raise UserInputError("--precision: DeepSpeed has no 64; use 32, bf16 or 16.")
    if autocast and (strategy not in ZERO_STAGES or precision != "bf16-mixed"):
        raise UserInputError(
            f"--deepspeed_autocast: belongs to a DeepSpeed strategy with --precision bf16, got "
            f"--strategy {strategy} --precision {precision}. Leave it out: without DeepSpeed, bf16 "
            f"keeps its parameters in fp32 anyway."
        )
    return HardwareFlags(accelerator, strategy, precision, num_nodes)


def count_devices(request: Any, present: int) -> int:
    """Number of devices in ``--devices``: a count, "auto", -1 (all), or a list such as "0,2".

    Raises:
        UserInputError: it is none of these.
    """
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


def installed(distribution: str) -> bool:
    """Whether a package is installed; a folder of its name on the path does not count."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
