"""Clocks of training steps, the time ranks spend exchanging data, and the figures made of both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.fmamba import scalability
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.flop_formula import (
    forward_terms,
    head_terms,
    total,
    training_total,
    window_flops,
)
from neuromamba.fmamba.profiling import PHASES, StepClock
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.training import communication
from neuromamba.training.communication import Communication, measure, union
from tests.helpers.paths import ROOT

# --- clocks -------------------------------------------------------------------------------------

FETCH = "[_TrainingEpochLoop].train_dataloader_next"


class Ticks:
    """Every mark is a second after the one before."""

    def __init__(self) -> None:
        self.mark = count().__next__

    def seconds(self, begin: int, end: int) -> int:
        return end - begin


@pytest.fixture
def clock() -> StepClock:
    clock = StepClock()
    clock._marks = Ticks()  # type: ignore[assignment]
    clock.running = True
    return clock


def play(clock: StepClock, script: str) -> None:
    """``>name`` begins an action and ``<`` ends the last one; ``#`` is where the batch is known."""
    inside = []
    for word in script.split():
        if word == "<":
            clock.stop(inside.pop())
        elif word == "#":
            clock.batches[-1].lengths = (3, 4)
        else:
            inside.append(FETCH if word == ">fetch" else word[1:])
            clock.start(inside[-1])


BATCH = (
    ">fetch < >S.batch_to_device >M.transfer_batch_to_device < < >C.on_train_batch_start # < "
    ">run_training_batch >M.optimizer_step >S.training_step < >M.optimizer_zero_grad < "
    ">S.backward >M.on_after_backward < < < < >C.on_train_batch_end <"
)


def test_phases_are_told_apart_and_add_up(clock: StepClock) -> None:
    play(clock, f">run_training_epoch {BATCH} {BATCH}")
    clock.end()
    assert len(clock.batches) == 2
    first = clock.seconds(clock.batches[0])
    # Each change of phase is a tick: fetch 1, after it 1 of the loop, to the device 1, loop 1;
    # the step begins (optimiser), forward 1, optimiser, backward 1, optimiser, loop.
    assert first == {
        "data wait": 1,
        "to the device": 1,
        "forward": 1,
        "backward": 1,
        "optimiser": 3,
        "loops and callbacks": 3,
    }
    spans = clock.batches[0].spans
    assert sum(first.values()) == spans[-1][2] - spans[0][1]
    # The second batch begins where the first has ended.
    assert clock.batches[1].spans[0][1] == spans[-1][2]


def test_what_is_no_batch_is_not_counted(clock: StepClock) -> None:
    play(clock, f">run_training_epoch {BATCH} >M.on_validation_model_eval < >S.validation_step <")
    play(clock, f">S.batch_to_device < >save_checkpoint < {BATCH} >fetch <")
    clock.end()  # the last fetch gave nothing
    assert len(clock.batches) == 2
    one, other = map(clock.seconds, clock.batches)
    assert one == other
    assert clock.batches[0].spans[-1][2] < clock.batches[1].spans[0][1]


def test_a_clock_that_does_not_run_marks_nothing(clock: StepClock) -> None:
    clock.running = False
    play(clock, BATCH.replace("#", ""))
    assert clock.batches == [] and clock._marks.mark() == 0


def test_events_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU marks go into its queue; nothing waits before the figures are asked for."""
    waited = []

    class Event:
        now = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.now += 5
            self.at = Event.now

        def synchronize(self) -> None:
            waited.append(self.at)

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    monkeypatch.setattr(torch, "xpu", SimpleNamespace(Event=Event))
    clock = StepClock()
    clock.use(torch.device("xpu", 0))
    clock.running = True
    play(clock, f">run_training_epoch {BATCH}")
    clock.end()
    assert waited == []
    assert clock.seconds(clock.batches[0])["optimiser"] == pytest.approx(3 * 5e-3)
    assert waited


# --- exchange of data ---------------------------------------------------------------------------


def test_union() -> None:
    assert union([(3, 4), (0, 2), (1, 2.5), (4, 5)]) == [(0, 2.5), (3, 5)]
    assert union([]) == []


def event(name: str, start: float, end: float, device: str = "CPU") -> communication.Event:
    return communication.Event(name, getattr(torch.autograd.DeviceType, device), start, end)


def test_exposed_is_what_no_arithmetic_hides() -> None:
    events = [
        event("aten::mm", -5, -1),  # before the ranks met
        event("gloo:barrier", -1, 0),
        event(communication._BATCH, 0, 20),
        event("autograd::engine::evaluate_function: X", 1, 19),  # may hold a collective
        event("aten::mm", 1, 4),
        event("gloo:all_reduce", 3, 8),
        event("gloo:all_reduce", 3.5, 6),
        event("_BlockwiseBackward", 7, 10),
        event("gloo:all_gather", 12, 15),
        event("nothing known", 16, 19),
    ]
    found = measure(events, on_device=False)
    assert found == pytest.approx(Communication(exposed=3 + 3, in_flight=5 + 3, span=14))


def test_on_a_device_its_kernels_count() -> None:
    events = [
        event("aten::mm", 0, 100),
        event("nccl:all_reduce", 0, 100),
        event("ampere_sgemm", 0, 4, "CUDA"),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 3, 9, "CUDA"),
    ]
    found = measure(events, on_device=True)
    assert found == pytest.approx(Communication(exposed=5, in_flight=6, span=9))


def test_trace_of_real_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch calls the operations of a step with our scan is known as arithmetic."""
    config = ModelConfig(embed_dim=16, depth=1, img_size=(12, 12, 12, 4))
    model = build_model(config)
    packed = PackedTokens(torch.randn(16, config.token_dim), torch.arange(16), (16,))
    seen: list[communication.Event] = []

    def note(events: Iterable[communication.Event], on_device: bool) -> Communication:
        seen.extend(events)
        return measure(seen, on_device)

    monkeypatch.setattr(communication, "measure", note)
    trace = communication.Trace(torch.device("cpu"))
    trace.start(lambda: torch.ones(3).add_(1))
    prediction = model.forward_tokens(packed).prediction
    assert prediction is not None
    prediction.square().sum().backward()
    found = trace.stop()
    known = {e.name for e in seen if communication._ARITHMETIC.match(e.name)}
    assert {"_Blockwise", "_BlockwiseBackward", "AddmmBackward0", "aten::mm"} <= known
    assert not {name for name in known if "evaluate_function" in name}
    assert found.exposed == found.in_flight == 0 < found.span < 10
    (whole,) = [e for e in seen if e.name == communication._BATCH]
    assert found.span <= whole.end - whole.start
    assert min(e.start for e in seen) < whole.start  # of the meeting, which does not count


# --- figures ------------------------------------------------------------------------------------


def rank(number: int, seconds: list[float], exposed: float, tokens: list[int]) -> dict[str, Any]:
    """A rank whose batches take so long, a tenth of it waiting for data."""
    phases = [
        dict.fromkeys(PHASES, 0.0) | {"data wait": 0.1 * s, "forward": 0.9 * s} for s in seconds
    ]
    traced = [{"exposed": 3 * exposed, "in_flight": 6 * exposed, "span": 3.0}] * 2
    return {
        "rank": number,
        "host": "node",
        "device": "a device",
        "warm_up": 3,
        "phases": phases,
        "windows": [2] * len(seconds),
        "tokens": tokens,
        "flops": [10**12] * len(seconds),
        "traced": traced,
        "memory": {"host": 10**9 + number},
    }


FACTS = {"strategy": "ddp", "precision": "32", "batch_size": 2}


def test_summary_of_two_ranks() -> None:
    ranks = [rank(0, [1.0, 2.0], 0.2, [100, 50]), rank(1, [2.0, 2.0], 0.4, [100, 100])]
    found = scalability.summary({"ranks": ranks, "accumulation": 2}, FACTS)
    assert found["seconds"] == 2.0 and found["step_seconds"] == 4.0
    assert found["windows_per_second"] == 4 / 2
    assert found["tokens_per_second"] == (75 + 100) / 2
    assert found["tflops"] == 1.0
    assert found["phases"]["forward"]["mean"] == pytest.approx(0.9 * (1.5 + 2) / 2)
    assert found["phases"]["forward"]["most"] == pytest.approx(1.8)
    assert found["memory"] == {"host": 10**9 + 1}
    assert found["communication"] == pytest.approx({"exposed": 0.3, "in_flight": 0.6})
    # Rank 0: 1.5 s less a tenth and a fifth; rank 1: 2 s less a tenth and two fifths; over 2 s.
    assert found["efficiency"] == pytest.approx((1.05 + 1.0) / 2 / 2)
    assert found["token_balance"] == pytest.approx((1 + 0.75) / 2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = scalability.table(found)
    assert "of it exchange of data          600.0   30.0%" in text
    assert "rank 1 (node)" in text and "efficiency 51.2%" in text


def test_summary_without_traces_or_batches() -> None:
    untraced = rank(0, [1.0], 0.0, [10]) | {"traced": []}
    two = {"ranks": [untraced, untraced | {"rank": 1}], "accumulation": 1}
    found = scalability.summary(two, FACTS)
    assert found["communication"] is None and found["efficiency"] is None
    assert "not traced" in scalability.table(found)
    alone = scalability.summary({"ranks": [untraced], "accumulation": 1}, FACTS)
    assert alone["efficiency"] == pytest.approx(0.9)  # one rank waits for data alone
    none = rank(0, [], 0.0, [])
    found = scalability.summary({"ranks": [none], "accumulation": 1}, FACTS)
    assert found["seconds"] is None and "no batch was measured" in scalability.table(found)


def test_batches_that_were_not_full() -> None:
    """The figures say of which batches they are."""
    short = rank(0, [1.0, 1.0], 0.0, [10, 10]) | {"windows": [2, 1]}
    gathered = {"ranks": [short], "accumulation": 1}
    found = scalability.summary(gathered, FACTS)
    assert (found["windows_per_batch"], found["largest_batch"]) == (1.5, 2)
    assert "not all batches were full: 1.5 windows on average, at most 2" in scalability.table(
        found
    )
    full = scalability.summary({"ranks": [rank(0, [1.0], 0.0, [10])], "accumulation": 1}, FACTS)
    assert full["largest_batch"] == 2 and "full" not in scalability.table(full)


def test_flops_of_a_window() -> None:
    config = ModelConfig(embed_dim=16, depth=2, img_size=(12, 12, 12, 4))
    terms = forward_terms(config, 10)
    assert window_flops(config, 10) == training_total(terms)
    last = ("final norm", "output layer", "output layer: bias")
    output = sum(t.flops for t in terms if t.name in last)
    assert window_flops(config, 10, masked=0.75) == pytest.approx(
        training_total(terms) - 3 * 0.25 * output, abs=10
    )
    head = HeadConfig(name="mamba", out_features=2)
    backbone = [t for t in terms if not t.name.startswith("output layer")]
    own = 3 * total(head_terms(head, config, 10))
    assert window_flops(config, 10, head=head) == training_total(backbone) + own
    assert window_flops(config, 10, head=head, frozen=True) == total(backbone) + own


PEAK = """
import torch
from neuromamba.training import peak_memory
before = peak_memory.resident_peak()
block = torch.ones(50 * 2**20)
assert peak_memory.resident_peak() - before >= 0.9 * 4 * block.numel()
assert peak_memory.peak_memory(torch.device("cpu"))["host"] >= 4 * block.numel()
now, block = peak_memory.resident_now(), None
assert now - peak_memory.resident_now() >= 150 * 2**20
"""


def test_peak_memory_is_that_of_the_process() -> None:
    """In a process of its own: this one may have been larger before."""
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", PEAK], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_written_file(tmp_path: Path) -> None:
    found = scalability.summary({"ranks": [rank(0, [1.0], 0.0, [10])], "accumulation": 1}, FACTS)
    scalability.write(found, tmp_path / scalability.FILE)
    assert json.loads((tmp_path / "scalability.json").read_text()) == found
