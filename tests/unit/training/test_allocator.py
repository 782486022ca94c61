"""``--allocator``: what is chosen where and why, and that ``retain`` keeps memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.training.allocator import choose_allocator
from tests.helpers.paths import ROOT

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")

# Page faults of ten tensors of 64 MB (16,384 pages each), after twenty that were freed again: small
# blocks that land in a hole make it too small for the next one, so that it takes some turns.
FAULTS = """
import resource, sys, torch
from neuromamba.training.allocator import choose_allocator
choose_allocator(sys.argv[1], "cpu").apply()
for turn in range(30):
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.full((1 << 24,), 1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture
def glibc_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("LD_PRELOAD", raising=False)


@pytest.mark.usefixtures("glibc_everywhere")
@pytest.mark.parametrize(
    ("requested", "accelerator", "name", "why"),
    [
        ("auto", "cpu", "retain", "auto on cpu with glibc"),
        ("auto", "cuda", "default", "auto on cuda"),
        ("default", "cpu", "default", "requested"),
        ("retain", "cpu", "retain", "requested"),
        ("retain", "cuda", "retain", "requested"),
        ("compact", "cpu", "compact", "requested; freed memory goes back at once"),
    ],
)
def test_choice(requested: str, accelerator: str, name: str, why: str) -> None:
    chosen = choose_allocator(requested, accelerator)
    assert chosen.name == name and chosen.why.startswith(why)


@pytest.mark.usefixtures("glibc_everywhere")
@pytest.mark.parametrize("obstacle", ["musl", "jemalloc"])
def test_retain_is_refused_where_it_has_no_effect(
    monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    if obstacle == "musl":
        monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
        message = "needs glibc's malloc, but the C library here is not known"
    else:
        monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
        message = "needs glibc's malloc, but LD_PRELOAD replaces it by jemalloc"
    for name in ("retain", "compact"):
        with pytest.raises(UserInputError, match=f"--allocator: {name} {message}.*use auto"):
            choose_allocator(name, "cpu")
    chosen = choose_allocator("auto", "cpu")
    assert chosen.name == "default" and chosen.why.startswith("auto; ")


def test_unknown_name() -> None:
    with pytest.raises(UserInputError, match=r"--allocator: unknown name 'retains'.*'retain'"):
        choose_allocator("retains", "cpu")


@glibc
def test_retained_memory_is_not_mapped_again() -> None:
    def faults(name: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, name], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    retained, default = faults("retain"), faults("default")
    # Huge pages, where the system has them always on, need a fault for every 2 MB only.
    assert default >= 10 * 32
    assert retained < default / 5


# Tensors of 8 MB, every other one of which is freed; what is resident then.
HOLES = """
import sys, torch
from neuromamba.training.allocator import choose_allocator
choose_allocator(sys.argv[1], "cpu").apply()
kept = [torch.full((1 << 21,), 1.0) for _ in range(40)]
del kept[::2]
print(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmRSS")))
"""


@glibc
def test_compact_leaves_no_holes() -> None:
    def resident(name: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", HOLES, name], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout) / 1024

    # 20 holes of 8 MB.
    assert resident("retain") - resident("compact") == pytest.approx(160, abs=20)


def test_the_library_leaves_the_allocator_alone() -> None:
    """Only entry points may set it; torch need not be there to choose."""
    text = "import sys, neuromamba.training.allocator as a; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", text], cwd=ROOT).returncode == 0
    users = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "project").rglob("*.py")
        if "allocator.apply()" in path.read_text(encoding="utf-8")
    ]
    package = "project/neuromamba"
    assert sorted(users) == [f"{package}/commands/train.py", f"{package}/planning/step_profile.py"]
