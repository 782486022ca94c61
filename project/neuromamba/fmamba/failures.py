"""What to tell the user when a run fails: memory or disk that ran short, a rank that was lost."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from neuromamba.checkpoints.files import why_unwritten
from neuromamba.common.errors import UserInputError, see
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.steps import accumulation
from neuromamba.layers import bf16
from neuromamba.training.checkpoint_writer import UnwrittenError, remove
from neuromamba.training.fault_tolerance import FaultTolerance
from neuromamba.training.rank_sync import several_ranks, where
from neuromamba.training.stopping import EndedElsewhereError, SaidHereError, StoppedRun
from neuromamba.training.strategies import Hardware

_LOST = re.compile(
    r"closed by peer|connection reset|connection refused|socket.*(closed|timeout)", re.I
)


def explained(
    error: Exception, fault_tolerance: FaultTolerance, config: RunConfig, hardware: Hardware
) -> Exception:
    """What to raise in place of an error: a message for the user where there is one.

    Of several ranks that fail, the first says why, and the others end soon and without a word.
    """
    if isinstance(error, (StoppedRun, EndedElsewhereError, SaidHereError)):
        return error  # agreed upon
    if is_out_of_memory(error):
        error = UserInputError(memory_advice(error, fault_tolerance, config, hardware))
    elif is_disk_full(error):
        error = UserInputError(disk_advice(error, fault_tolerance))
    lost = several_ranks() and isinstance(error, RuntimeError) and _LOST.search(str(error))
    place = where()
    first = fault_tolerance.siblings.tell(patience=1.0 if lost else 5.0)
    if isinstance(error, UnwrittenError):
        remove(error.temporary)  # not before: the others would miss it, and say so
    if not first:
        return EndedElsewhereError()
    if lost:
        return SaidHereError(
            f"--devices/--num_nodes: {place} lost another rank, which was killed or has failed; "
            f"look for its message. Continue with {fault_tolerance.resume_flags}."
        )
    if place and isinstance(error, UserInputError):
        return SaidHereError(f"{error} ({place})")
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran short, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "out of memory" in text.lower()
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether a file could not grow; of checkpoints ``checkpoint_writer`` tells."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and error.errno in full


def disk_advice(error: BaseException, fault_tolerance: FaultTolerance) -> str:
    """Which disk is full, as far as it is known, and what to do."""
    name = getattr(error, "filename", None) or fault_tolerance.run_dir
    return (
        f"--output_dir: writing '{name}' failed ({why_unwritten(error)}). Is the disk full? Make "
        f"room, and continue with {fault_tolerance.resume_flags}."
    )


def memory_advice(
    error: BaseException, fault_tolerance: FaultTolerance, config: RunConfig, hardware: Hardware
) -> str:
    """What was at hand, and what to change; only what is not in use yet."""
    batch = fault_tolerance.batch
    evaluating = fault_tolerance.doing == "evaluation"
    size = config.data.eval_batch_size if evaluating else config.data.batch_size
    flag = "--eval_batch_size" if evaluating else "--batch_size"
    kind = "memory" if hardware.accelerator == "cpu" else "GPU memory"
    tokens = _tokens(batch, config)
    at_hand = f"{fault_tolerance.doing}, {flag} {size}" + (
        f", {tokens:,} tokens in the batch" if tokens else ""
    )
    changes = []
    if size > 1:
        less = next(n for n in range(size // 2, 0, -1) if size % n == 0)
        change = f"{flag} {less}"
        if not evaluating:
            batches = size // less * accumulation(config)
            change += f" with --gradient_accumulation_steps {batches} (the same effective batch)"
        changes.append(change)
    if not evaluating:
        if not config.flags["activation_checkpointing"]:
            changes.append("--activation_checkpointing")
        narrower = hardware.accelerator != "cpu" or bf16.judge().pays
        if hardware.precision == "32-true" and not hardware.autocast and narrower:
            changes.append("--precision bf16")
        if hardware.ranks > 1 and hardware.zero_stage < 3:
            changes.append(f"--strategy deepspeed_stage_{hardware.zero_stage + 1}")
    if config.data.num_workers and hardware.accelerator == "cpu":
        changes.append("fewer --num_workers")
    changes.append("a smaller model or --img_size" if not changes else "")
    asked = re.search(r"[Tt]ried to allocate ([\d.]+) (\w+)", " ".join(str(error).split()))
    more = ""
    if asked:
        amount, unit = asked.groups()
        if unit == "bytes":
            amount, unit = f"{float(amount) / 2**30:,.2f}", "GiB"
        more = f" ({amount} {unit} more were asked for)"
    return (
        f"{flag}: {kind} ran short{more}: {at_hand}. Change one: "
        f"{', '.join(filter(None, changes))}. {see('memory')}"
    )


def _tokens(batch: Mapping[str, Any], config: RunConfig) -> int:
    plans: Sequence[Any] = batch.get("plans", ())
    return sum(len(plan.spatial_index) for plan in plans) * config.model.token_grid[3]
