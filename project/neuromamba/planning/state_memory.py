"""Memory that a training holds from step to step: weights, gradients, optimiser, by strategy.

What DeepSpeed allocates is read off its sources (0.19: ``runtime/zero/stage_1_and_2.py``,
``stage3.py``), with Lightning's settings. Its buckets have a fixed size, whatever the model's: on a
GPU they are there as a whole, on a CPU only as far as they are written to.
"""

from __future__ import annotations

from typing import NamedTuple

from neuromamba.fmamba.weight_counts import Weights
from neuromamba.training.hardware_flags import ZERO_STAGES

# Lightning's for its DeepSpeedStrategy, which takes seconds to import; a test compares.
LIGHTNING_DEFAULTS = {"reduce_bucket_size": 200_000_000, "overlap_comm": True}
_OPTIMIZER_STATES = {"AdamW": 2, "SGD": 1}  # moments, or the momentum


class State(NamedTuple):
    """Bytes of a rank by name, on the device and on the host."""

    device: dict[str, int]
    host: dict[str, int]


def state_memory(
    weights: Weights,
    strategy: str,
    ranks: int,
    parameter: int = 4,
    optimizer: str = "AdamW",
    on_cpu: bool = False,
) -> State:
    """Predict what a rank holds between steps.

    Args:
        weights: of the model.
        strategy: as in ``--strategy``.
        ranks: of the run.
        parameter: bytes of a parameter in the model (2 where DeepSpeed or ``bf16-true`` cast it).
        optimizer: as in ``--optimizer``.
        on_cpu: the device is the host.
    """
    states = _OPTIMIZER_STATES[optimizer]
    if strategy in ZERO_STAGES:
        return _zero(weights, strategy, ranks, parameter, states, on_cpu)
    trained, everything = weights.trained, weights.trained + weights.frozen
    device = {
        "weights": everything * parameter,
        "gradients": trained * parameter,
        "optimiser": states * trained * parameter,
        "positional encoding": weights.buffers * parameter,
    }
    if strategy == "fsdp":
        # One unit: a part of the weights in fp32 stays, the whole is gathered for the step.
        device["weights"] = 4 * _part(everything, ranks) + everything * parameter
        device["optimiser"] = states * 4 * _part(trained, ranks)
    elif strategy != "auto" or ranks > 1:
        device["buckets of gradients"] = trained * parameter
    return State(device, {})


def _part(number: int, ranks: int) -> int:
    return -(-number // ranks)


def _setting(strategy: str, name: str) -> int:
    """An argument of Lightning's strategy, its default where this project does not set it."""
    return int(ZERO_STAGES[strategy].get(name, LIGHTNING_DEFAULTS[name]))


def _zero(
    weights: Weights, strategy: str, ranks: int, parameter: int, states: int, on_cpu: bool
) -> State:
    trained, everything = weights.trained, weights.trained + weights.frozen
    part, stage = _part(trained, ranks), ZERO_STAGES[strategy]["stage"]
    # fp32, of this rank's part: a copy of the weights, its gradient, and the optimiser's states.
    own = {"fp32 copy of a part": 4 * part, "optimiser": 4 * states * part}
    gradient = {"gradient of a part": 4 * part}
    device = {
        "weights": everything * parameter,
        "gradients": trained * parameter,
        "positional encoding": weights.buffers * parameter,
    }
    bucket = _setting(strategy, "reduce_bucket_size")
    count = 2 if _setting(strategy, "overlap_comm") and stage < 3 else 1
    touched = min(bucket, trained) if on_cpu else count * bucket
    device["buckets of gradients"] = touched * parameter
    host: dict[str, int] = {}
    if stage == 3:
        # Gathered for the step: up to max_live_parameters (1e9), more than all of these models.
        kept = _part(everything, ranks) * parameter
        device["weights"] = everything * parameter
        settings = ZERO_STAGES[strategy]
        (host if settings.get("offload_parameters") else device)["part of the weights"] = kept
    if ZERO_STAGES[strategy].get("offload_optimizer"):
        host |= own | gradient
    else:
        device |= own | gradient
    if on_cpu:
        device |= host
        host = {}
    return State(device, host)
