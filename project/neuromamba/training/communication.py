"""Time in which ranks exchange data, separated from arithmetic by torch's profiler.

Gradients are exchanged while others are still being computed, so a clock at the joints of a step
cannot see it. The profiler records when each operation and each collective ran; what counts is the
time in which a collective was under way and nothing was computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Interval = tuple[float, float]

# What c10d calls its collectives on the host, and the kernels of NCCL and oneCCL on the device.
_COLLECTIVE = re.compile(r"^(gloo|mpi|ucc|nccl|xccl|ccl):|ncclDevKernel|ncclKernel|^oneccl|ccl_")
# Host operations that are arithmetic or copies; ranges around others (evaluate_function, Optimizer.
# step, DistributedDataParallel.forward) may contain a collective that waits.
_ARITHMETIC = re.compile(
    r"^(aten::|_\w+$|_\w+Backward$|\w+Backward\d$|torch::distributed::reducer::)"
)

_BATCH = "neuromamba: batch"  # a range around what counts


class Communication(NamedTuple):
    """Communication in one traced batch, in seconds.

    Attributes:
        exposed: collectives under way and nothing computed.
        in_flight: collectives under way.
        span: from the batch's first operation to its last.
    """

    exposed: float
    in_flight: float
    span: float


class Event(NamedTuple):
    """A recorded operation, from ``start`` to ``end`` in seconds."""

    name: str
    device_type: Any
    start: float
    end: float


class Trace:
    """Records the operations of a batch on this rank.

    Args:
        device: on which it is computed.
    """

    def __init__(self, device: torch.device) -> None:
        activities = [ProfilerActivity.CPU]
        if device.type != "cpu":
            activities.append(getattr(ProfilerActivity, device.type.upper()))
        self._device, self._profiler = device, profile(activities=activities)
        self._range = record_function(_BATCH)

    def start(self, meet: Callable[[], object]) -> None:
        """Before the batch.

        Args:
            meet: waits for the other ranks, for whom starting takes another time.
        """
        self._profiler.start()
        meet()
        self._range.__enter__()

    def stop(self) -> Communication:
        """After the batch."""
        if self._device.type != "cpu":
            getattr(torch, self._device.type).synchronize(self._device)
        self._range.__exit__(None, None, None)
        self._profiler.stop()
        # As recorded: torch's own list of events takes kilobytes and a tree for each.
        recorded = self._profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        events = (
            Event(e.name(), e.device_type(), e.start_ns() * 1e-9, e.end_ns() * 1e-9)
            for e in recorded
        )
        return measure(events, on_device=self._device.type != "cpu")


def measure(events: Iterable[Event], on_device: bool) -> Communication:
    """Sort recorded operations and add up.

    Args:
        events: of one batch.
        on_device: look at the device's kernels instead of the host's operations.
    """
    collectives: list[Interval] = []
    computing: list[Interval] = []
    begin = 0.0
    for event in events:
        if event.name == _BATCH:
            begin = event.start
        elif (event.device_type != torch.autograd.DeviceType.CPU) != on_device:
            continue
        elif _COLLECTIVE.search(event.name):
            collectives.append((event.start, event.end))
        elif on_device or _ARITHMETIC.match(event.name):
            computing.append((event.start, event.end))
    # What began before the ranks had met is not of this batch.
    exchanged, computed = (
        union(one for one in intervals if one[0] >= begin) for intervals in (collectives, computing)
    )
    everything = union([*exchanged, *computed])
    return Communication(
        exposed=_length(everything) - _length(computed),
        in_flight=_length(exchanged),
        span=everything[-1][1] - everything[0][0] if everything else 0.0,
    )


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as intervals that do not overlap, in order."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)
