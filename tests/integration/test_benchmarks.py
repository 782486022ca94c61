"""The benchmarks: contenders compute the same, measuring measures, each script runs end to end."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import _measure, _report, backbone, loss_scaling, mixer, scaling
from neuromamba.common.errors import UserInputError
from neuromamba.layers.ssd import BACKENDS
from tests.helpers.clock import OwnClock
from tests.helpers.paths import ROOT

BOUND = {"32": 1e-5, "bf16": 3e-2}
SCRIPTS = ["mixer", "backbone", "scaling"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# --- what is compared ---------------------------------------------------------------------------


@pytest.mark.parametrize("precision", list(BOUND))
@pytest.mark.parametrize("part", ["block", "mixer", "core"])
def test_mixers_compute_the_same(part: str, precision: str) -> None:
    pytest.importorskip("transformers")
    runs, x = mixer.contenders(_report.TINY, part, 150, precision, "cpu", 64)
    assert list(runs) == list(mixer.CONTENDERS)
    assert _measure.largest_difference(runs, dict.fromkeys(runs, x)) <= BOUND[precision]


@pytest.mark.parametrize("precision", list(BOUND))
def test_backbones_compute_the_same(precision: str) -> None:
    pytest.importorskip("transformers")
    runs, probes = backbone.contenders(_report.TINY, 130, precision, "cpu", 64)
    assert list(runs) == list(backbone.CONTENDERS)
    assert _measure.largest_difference(runs, probes) <= BOUND[precision]


def test_a_contender_that_computes_something_else_is_seen() -> None:
    layers = [torch.nn.Linear(4, 4, bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)

    def difference() -> float:
        runs = {
            str(i): _measure.forward_backward(layer, (x,), weight, "32")
            for i, layer in enumerate(layers)
        }
        return _measure.largest_difference(runs, dict.fromkeys(runs, x))

    assert difference() == 0
    layers[1].register_full_backward_hook(lambda module, grads, _: (grads[0] * 1.5,))
    assert difference() == pytest.approx(0.5)  # the same output, another gradient


def test_every_run_starts_without_gradients() -> None:
    layer, x = torch.nn.Linear(4, 2), torch.randn(3, 4, requires_grad=True)
    run = _measure.forward_backward(layer, (x,), torch.ones(3, 2), "32")
    run()
    assert x.grad is not None and layer.weight.grad is not None
    first = x.grad.clone(), layer.weight.grad.clone()
    run()
    torch.testing.assert_close((x.grad, layer.weight.grad), first)


# --- measuring ----------------------------------------------------------------------------------


def test_contenders_take_turns_and_each_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = OwnClock()
    monkeypatch.setattr(_measure, "time", clock)
    runs = {
        name: lambda name=name: (calls.append(name), clock.sleep(0.02 if name == "b" else 0))
        for name in "abc"
    }
    seconds = _measure.interleaved(runs, repeats=3, warmup=1)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert [sorted(order) for order in rounds] == [["a", "b", "c"]] * 4
    assert {order[0] for order in rounds[1:]} == {"a", "b", "c"}
    assert [s["runs"] for s in seconds.values()] == [3, 3, 3]
    assert [seconds["b"][name] for name in ("min", "median", "max")] == pytest.approx([0.02] * 3)
    assert seconds["a"]["max"] == 0


def test_rate_of_products() -> None:
    products = _measure.matrix_products(_report.TINY, 100, "32")
    rows = 2 * 64 + 2 * 8 + 2
    assert list(products) == [f"gemm 100x32x{rows}", "gemm 100x100x100"]
    seconds = {name: {"median": 0.5} for name in [*products, "ours"]}
    rates = _measure.gemm_rates(seconds)
    assert rates == {
        f"100x32x{rows}": 2 * 100 * 32 * rows * _measure.PRODUCTS / 0.5,
        "100x100x100": 2 * 100**3 * _measure.PRODUCTS / 0.5,
    }


def test_share_counts_products_against_each_rate() -> None:
    seconds = {"ours": {"median": 2.0}, "transformers": {"median": 4.0}}
    rates = {"9x8x7": 100.0, "5x5x5": 200.0}
    assert backbone.gemm_shares(80.0, seconds, rates) == {
        "ours": {"9x8x7": 0.4, "5x5x5": 0.2},
        "transformers": {"9x8x7": 0.2, "5x5x5": 0.1},
    }


def test_every_backbone_warms_up_at_full_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run of a length pays for its pages."""
    ran: list[tuple[str, int]] = []

    def recorded(
        config: object, tokens: int, *rest: object, **more: object
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        runs = {name: lambda n=name: ran.append((n, tokens)) for name in backbone.CONTENDERS}
        return runs, {}

    monkeypatch.setattr(backbone, "chunk_seconds", lambda *case: {64: 1.0})
    monkeypatch.setattr(backbone, "largest_difference", lambda runs, probes: 0.0)
    monkeypatch.setattr(backbone, "contenders", recorded)
    (row,) = backbone.times(dataclasses.asdict(_report.TINY), [(130, "32")], "cpu", repeats=2)
    for name in backbone.CONTENDERS:
        assert ran.count((name, 130)) == 3 and row["seconds"][name]["runs"] == 2


def test_trained_block_is_timed_as_it_is_trained() -> None:
    """The block of the benchmark takes the fused way of the backend."""
    fused = BACKENDS["cpu"].block
    assert fused is not None
    runs, _ = mixer.contenders(_report.TINY, "block", 70, "32", "cpu", 64, ["ours"])
    calls: list[object] = []

    def block(*args: Any) -> torch.Tensor:
        calls.append(args)
        return fused(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(block=block))
        runs["ours"]()
    assert len(calls) == 1


def test_peak_memory_is_what_the_run_takes_for_a_moment() -> None:
    program = (
        "import torch; from benchmarks._measure import peak_memory\n"
        "held = torch.ones(50_000_000 // 4)\n"
        "print(*peak_memory(lambda: None, lambda: torch.ones(300_000_000 // 4)).values())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    peak, added = map(float, done.stdout.split())
    assert added == pytest.approx(0.3, abs=0.03)
    assert peak > added + 0.05


def test_child_gets_its_settings_and_reports_failure() -> None:
    assert _report.in_child("torch:get_num_threads", 2, "default") == 2
    with pytest.raises(UserInputError, match=r"math:sqrt.*ended with status 1"):
        _report.in_child("math:sqrt", 1, "default", x=1)


def test_slope_of_a_power_law() -> None:
    assert scaling.slope([10, 20, 40], [3, 6, 12]) == pytest.approx(1)
    assert scaling.slope([10, 20, 40], [3, 12, 48]) == pytest.approx(2)


def test_points_grow_as_named() -> None:
    points = scaling.points(_report.TINY, quick=False)
    for point in points:
        if point["series"] == "frames":  # tokens in proportion to frames, one window
            assert point["lengths"] == [points[0]["lengths"][0] * point["frames"] // 20]
        elif point["series"] == "windows":
            assert len(point["lengths"]) == point["amount"]
        else:
            assert point["lengths"] == [point["amount"]]
    assert [p["amount"] for p in points if p["series"] == "frames"] == [20, 50, 100, 200]


def test_a_point_too_large_for_the_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    point = {"frames": 8, "lengths": [64], "expected_gb": 2.0}
    monkeypatch.setattr(scaling, "available_memory", lambda: 2_100_000_000)
    assert scaling.memory({}, point, "32", "cpu") is None


# --- command line -------------------------------------------------------------------------------


def test_tables_line_up() -> None:
    text = _report.table("Title", ["name", "n"], [["a", 12_345], ["long name", 0.12345]])
    assert text.splitlines() == [
        "Title",
        "",
        "| name      | n      |",
        "|-----------|--------|",
        "| a         | 12,345 |",
        "| long name | 0.123  |",
    ]


def test_bad_flags_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("0", "many"):
        with pytest.raises(SystemExit):
            mixer.main(["--repeats", value])
        assert f"got '{value}', expected a whole number from 1 on" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(UserInputError, match="--json: cannot write"):
        mixer.main(["--quick", "--json", str(tmp_path / "file" / "x.json")])
    (tmp_path / "file").unlink()
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so")
    with pytest.raises(UserInputError, match="--allocator"):
        mixer.main(["--quick", "--allocator", "retain", "--json", str(tmp_path / "x.json")])
    assert list(tmp_path.iterdir()) == []


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line before anything is measured: a user's environment does not have it."""
    monkeypatch.setattr(_report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserInputError, match="make setup-dev"):
        mixer.main(["--quick"])


def test_make_bench_runs_every_script() -> None:
    (recipe,) = re.findall(r"(?m)^bench:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())
    scripts = [path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")]
    # The check on a GPU machine is a script of its own; the others are said not to be part of it.
    apart = ("gpu_check", "memory_plan", "loss_scaling", "bf16_on_cpu", "start_up")
    apart += ("short_sequences", "cpu_steps")
    assert {s for s in scripts if not s.startswith(apart) and s not in recipe} == set()


def scaling_runs(floor: float, a: float, b: float, noise: float = 0.0) -> list[dict[str, Any]]:
    """Runs that follow a law of parameters and tokens, three sizes of each, two seeds."""
    rng = np.random.default_rng(0)
    rows = []
    for width, parameters in ((32, 40_000), (64, 110_000), (128, 330_000)):
        for subjects in (20, 40, 80):
            for seed in range(2):
                tokens = 12_000 * subjects
                loss = floor + 3.0 * parameters**-a * tokens**-b + noise * rng.normal()
                row = {"width": width, "parameters": parameters, "subjects": subjects, "seed": seed}
                rows.append(row | {"tokens": tokens, "loss": loss, "dynamic_skill": 0.1})
    return rows


@pytest.mark.parametrize(("name", "floor"), [("without a floor", 0.0), ("with a floor", 0.4)])
def test_power_laws_are_found_again(name: str, floor: float) -> None:
    rows = scaling_runs(floor, 0.10, 0.24)
    law = loss_scaling.fitted(rows, name, samples=5)
    assert law["rms_error"] < 1e-6
    for key, wanted in {"E": floor, "a": 0.10, "b": 0.24, "A": 3.0}.items():
        assert law[key]["value"] == pytest.approx(wanted, abs=1e-4)
    ahead = law["further"][-1]
    tokens = ahead["times"] * 12_000 * 80
    assert ahead["loss"] == pytest.approx(floor + 3.0 * 330_000**-0.10 * tokens**-0.24, rel=1e-4)
    assert law["left_out"]["predicted"] == pytest.approx(law["left_out"]["measured"], rel=1e-4)


def test_noise_of_the_runs_widens_the_intervals() -> None:
    narrow, wide = (
        loss_scaling.fitted(scaling_runs(0.4, 0.1, 0.24, noise), "with a floor", samples=40)
        for noise in (1e-6, 1e-3)
    )
    width = [one["further"][-1]["interval"] for one in (narrow, wide)]
    assert width[1][1] - width[1][0] > 5 * (width[0][1] - width[0][0]) > 0


def test_runs_are_fitted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loss_scaling.json"
    facts = _report.machine(1) | {"load_before": 0.0}
    record = {"machine": facts, "epochs": 6, "depth": 2, "runs": scaling_runs(0.4, 0.1, 0.24, 1e-4)}
    path.write_text(json.dumps(record))
    assert loss_scaling.main(["--fit_only", "--json", str(path)]) == 0
    assert path.with_suffix(".md").read_text() in capsys.readouterr().out
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert json.loads(path.read_text())["runs"] == record["runs"]
    with pytest.raises(UserInputError, match="--image_path"):
        loss_scaling.main([])
    path.write_text(json.dumps(record | {"runs": record["runs"][:2]}))
    with pytest.raises(UserInputError, match="needs at least two"):
        loss_scaling.main(["--fit_only", "--json", str(path)])


KEYS: dict[str, tuple[str, set[str]]] = {
    "mixer": ("times", {"part", "tokens", "precision", "allocator", "seconds", "difference"}),
    "backbone": ("windows", {"tokens", "seconds", "memory", "gemm_share", "model_flops"}),
    "scaling": ("points", {"series", "amount", "tokens", "seconds", "peak_gb", "added_gb"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_quick_run(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path = tmp_path / "new" / f"{name}.json"
    flags = ["--quick", "--threads", "1", "--allocator", "default", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record: dict[str, Any] = json.loads(path.read_text())
    assert record["quick"] is True
    assert record["machine"].keys() >= {"cpu", "cpu_flags", "cores", "threads", "torch"}
    assert record["machine"]["threads"] == 1
    rows, keys = KEYS[name]
    assert record[rows]
    for row in record[rows]:
        assert row.keys() >= keys
    table = path.with_suffix(".md").read_text()
    assert table in done.stdout
    assert str(path) in done.stdout
    if name == "mixer":
        assert {row["part"] for row in record[rows]} == {"block", "mixer", "core"}
    if name == "backbone":
        for row in record[rows]:
            for shares in row["gemm_share"].values():
                assert list(shares) == list(row["gemm_flops_per_second"]) and len(shares) == 2
                assert all(0 < share < 1 for share in shares.values())
    if name == "scaling":
        assert {fit["series"] for fit in record["slopes"]} == set(scaling.LABELS)
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    else:
        assert {row["precision"] for row in record[rows]} == {"32", "bf16"}
        for row in record[rows]:
            assert all(0 < s["min"] <= s["median"] <= s["max"] for s in row["seconds"].values())
            assert row["difference"] <= BOUND[row["precision"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "column"),
    [
        ("bf16_on_cpu", "times", "after/fp32"),
        ("start_up", "commands", "now modules"),
        ("short_sequences", "cases", "apart/shared"),
        ("cpu_steps", "steps", "before/now"),
    ],
)
def test_quick_run_of_the_smaller_ones(name: str, rows: str, column: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.json"
    flags = ["--quick", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(path.read_text())
    assert len(record[rows]) > 1 and column in path.with_suffix(".md").read_text()
