"""How much memory the cache may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.windows import cache as window_cache
from neuromamba.data.windows.cache import cache_bytes, free_memory

MB = 10**6


@pytest.fixture
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_cache, "free_memory", lambda: 1000 * MB)


@pytest.mark.usefixtures("_free")
def test_sizes() -> None:
    window = 64 * 1000
    assert cache_bytes(0.0, 100, window) == 0
    assert cache_bytes(0.002, 100, window) == 2 * MB
    assert cache_bytes(0.9, 100, window) == 100 * window, "no more than there is to keep"
    assert cache_bytes("auto", 100, window) == 100 * window
    assert cache_bytes("auto", 250 * MB // window, window) > 0
    assert cache_bytes("auto", 250 * MB // window + 1, window) == 0
    assert cache_bytes("auto", 100 * MB // window, window, processes=2) > 0
    assert cache_bytes("auto", 200 * MB // window, window, processes=2) == 0
    for wanted, processes in ((1.1, 1), (0.6, 2)):
        with pytest.raises(UserInputError, match=r"--window_cache: got .* but 1 GB of memory"):
            cache_bytes(wanted, 10**6, window, processes)
    with pytest.raises(UserInputError, match=r"but one window takes 6\.4e-05"):
        cache_bytes(1e-5, 100, window)


def test_unknown_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_cache, "free_memory", lambda: None)
    assert cache_bytes("auto", 100, 640) == 0
    assert cache_bytes(1.0, 100, 640) == 64000


def test_free_memory(tmp_path: Path) -> None:
    """The least of the machine's and of the control groups' on the way up."""
    assert free_memory(str(tmp_path)) is None
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000 kB\n")
    assert free_memory(str(tmp_path)) == 8000 * 1024
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/job/step\n")
    assert free_memory(str(tmp_path)) == 8000 * 1024
    job = tmp_path / "sys" / "fs" / "cgroup" / "job"
    (job / "step").mkdir(parents=True)
    for folder, most, used in ((job, "5000", "4000"), (job / "step", "max", "1")):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 1\nactive_file 20\ninactive_file 300\n")
    assert free_memory(str(tmp_path)) == 5000 - 4000 + 320
    (tmp_path / "proc" / "self" / "cgroup").write_text("3:cpu,memory:/slurm\n1:name=systemd:/x\n")
    old = tmp_path / "sys" / "fs" / "cgroup" / "memory" / "slurm"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("900\n")
    (old / "memory.usage_in_bytes").write_text("100\n")
    (old / "memory.stat").write_text("cache 5\n")
    assert free_memory(str(tmp_path)) == 800


def test_this_machine() -> None:
    found = free_memory()
    assert found is None or found > 10 * MB
