"""What this machine has for a training: a line for each thing, with the remedy where it lacks."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import NamedTuple

import torch

from neuromamba.common.checkout import repository
from neuromamba.data.windows.cache import free_memory
from neuromamba.layers import bf16
from neuromamba.layers.ssd import BACKENDS, kernel_check, native
from neuromamba.planning.busy_cores import busy_cores

OLDEST_PYTHON = (3, 10)
# In requirements.txt, and needed by what a run may ask for rather than by every run.
_ON_REQUEST = {"wandb": "--loggername wandb", "tensorboard": "--loggername tensorboard"}
_INSTALL = (
    "bash setup_env.sh" if repository() else "bash setup_env.sh in a checkout of the repository"
)
_LAUNCHERS = ("sbatch", "srun", "qsub", "mpiexec")
_SMALL_SHM = 1 << 30


class Check(NamedTuple):
    """A line of the report.

    Attributes:
        name: of what was looked at.
        state: "ok", "note" (something works less well, or not everything), "missing" (no training).
        found: what there is.
        remedy: what to do; empty if nothing.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def check_machine() -> list[Check]:
    """All checks that need no data."""
    checks: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _packages,
        _devices,
        _backends,
        _kernels,
        _precision,
        _deepspeed,
        _loggers,
        _schedulers,
        _host,
        _shared_memory,
        _working_folder,
    )
    return [line for check in checks for line in check()]


def version(distribution: str) -> str | None:
    """Return the version of an installed package; a folder of its name does not count."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def gigabytes(nbytes: float) -> str:
    """Format a number of bytes in GB (1e9 bytes)."""
    return f"{nbytes / 1e9:.1f} GB"


# ------------------------------------------------------------------------------------- software


def _python() -> Iterator[Check]:
    recent = sys.version_info[:2] >= OLDEST_PYTHON
    yield Check(
        "Python",
        "ok" if recent else "missing",
        f"{platform.python_version()}, {sys.executable}",
        "" if recent else f"use Python 3.10 or newer: PYTHON=python3.11 {_INSTALL}",
    )


def _packages() -> Iterator[Check]:
    """Those of requirements.txt, in the versions it asks for."""
    lacking: list[str] = []
    old: list[str] = []
    optional: list[str] = []
    wanted = _requirements()
    for name, least, below in wanted:
        found = version(name)
        if found is None:
            (optional if name in _ON_REQUEST else lacking).append(name)
        elif _numbers(found) < _numbers(least) or (below and _numbers(found) >= _numbers(below)):
            old.append(f"{name} {found}")
    for name in optional:
        yield Check(name, "note", "not installed", f"for {_ON_REQUEST[name]}: pip install {name}")
    problems = [f"missing: {', '.join(lacking)}"] * bool(lacking)
    problems += [f"other versions than requirements.txt wants: {', '.join(old)}"] * bool(old)
    state = "missing" if lacking else "note" if old else "ok"
    yield Check(
        "packages",
        state,
        "; ".join(problems) or f"the {len(wanted)} packages of requirements.txt are installed",
        "" if state == "ok" else _INSTALL,
    )


def _requirements() -> list[tuple[str, str, str]]:
    """Packages of requirements.txt, which the installed package repeats: name, least, below."""
    root = repository()
    if root is not None:
        lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    else:
        try:
            lines = importlib.metadata.requires("neuromamba") or []
        except importlib.metadata.PackageNotFoundError:
            lines = []
    found = []
    for line in lines:
        name = re.match(r"[A-Za-z][\w.-]*", line)
        least, below = re.search(r">=([\d.]+)", line), re.search(r"<([\d.]+)", line)
        if name and least and ";" not in line:
            found.append((name[0], least[1], below[1] if below else ""))
    return found


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def _deepspeed() -> Iterator[Check]:
    found = version("deepspeed")
    where = [path or "." for path in sys.path if _empty_package(Path(path or ".") / "deepspeed")]
    if found is None:
        yield Check(
            "DeepSpeed",
            "note",
            "not installed" + (f" (the folder {where[0]}/deepspeed is not it)" if where else ""),
            f"for --strategy deepspeed_stage_N: NEUROMAMBA_DEEPSPEED=1 {_INSTALL}",
        )
    else:
        yield Check("DeepSpeed", "ok", found)
    for name, purpose in (
        ("mamba-ssm", "the Triton scan on NVIDIA GPUs"),
        ("causal-conv1d", "its fused convolution"),
    ):
        found, needed = version(name), torch.cuda.is_available()
        yield Check(
            name,
            "ok" if found or not needed else "note",
            found or f"not installed; {purpose}{'' if needed else ', not needed here'}",
            f"{_INSTALL} (causal-conv1d needs nvcc)" if needed and not found else "",
        )


def _empty_package(folder: Path) -> bool:
    """A folder that Python would take for a package though it holds none."""
    with contextlib.suppress(OSError):
        return folder.is_dir() and not (folder / "__init__.py").exists()
    return False


def _loggers() -> Iterator[Check]:
    if version("wandb") is None:
        return  # said among the packages
    has_key = "WANDB_API_KEY" in os.environ or _netrc_has("api.wandb.ai")
    yield Check(
        "wandb",
        "ok" if has_key else "note",
        f"{version('wandb')}, " + ("with a key" if has_key else "no API key: it logs offline"),
        "" if has_key else "for --loggername wandb online: wandb login, or WANDB_API_KEY",
    )


def _netrc_has(machine: str) -> bool:
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return path.exists() and netrc(str(path)).authenticators(machine) is not None
    except (OSError, NetrcParseError):
        return False


def _schedulers() -> Iterator[Check]:
    there = [name for name in _LAUNCHERS if shutil.which(name)]
    inside = [name for name in ("SLURM_JOB_ID", "PBS_JOBID") if name in os.environ]
    text = ", ".join(there) if there else "none of " + ", ".join(_LAUNCHERS)
    text += f"; inside job {os.environ[inside[0]]}" if inside else ""
    yield Check("schedulers", "ok", f"{text}; torchrun comes with torch")


# ------------------------------------------------------------------------------------- hardware


def _devices() -> Iterator[Check]:
    build = torch.version.cuda and f"CUDA {torch.version.cuda}"
    yield Check("torch", "ok", f"{torch.__version__}, {build or 'built without CUDA'}")
    count = 0
    for kind in ("cuda", "xpu"):
        backend = getattr(torch, kind)
        if not backend.is_available():
            continue
        for number in range(backend.device_count()):
            count += 1
            yield _device(kind, number)
    if not count:
        driver = shutil.which("nvidia-smi") is not None
        yield Check(
            "GPU",
            "note",
            "torch sees none" + (", though there is nvidia-smi" if driver else "") + ": CPU only",
            f"NEUROMAMBA_GPU=1 {_INSTALL}, which takes a torch with CUDA" if driver else "",
        )


def _device(kind: str, number: int) -> Check:
    backend = getattr(torch, kind)
    card = backend.get_device_properties(number)
    text = f"{card.name}, {gigabytes(card.total_memory)}"
    try:
        free, _ = backend.mem_get_info(number)
        text += f", {gigabytes(free)} free"
    except (RuntimeError, AttributeError) as error:
        return Check(
            f"{kind}:{number}",
            "note",
            f"{text}; cannot be used ({str(error).splitlines()[0]})",
            "ask who runs on it, or leave it out with CUDA_VISIBLE_DEVICES",
        )
    if kind == "cuda":
        text += f", compute capability {card.major}.{card.minor}"
    return Check(f"{kind}:{number}", "ok", text)


def _backends() -> Iterator[Check]:
    """The ways to compute the scan, and why one cannot be used."""
    kind = next((k for k in ("cuda", "xpu") if getattr(torch, k).is_available()), "cpu")
    device = torch.device(kind)
    for name, backend in BACKENDS.items():
        reason = backend.why_not(device)
        if reason is None:
            yield _working_backend(name, backend.doubt is not None, device)
            continue
        found, _, remedy = reason.partition(". ")
        here = kind == "cuda"
        yield Check(f"scan: {name}", "note" if here else "ok", found, remedy if here else "")


def _working_backend(name: str, compared: bool, device: torch.device) -> Check:
    """A backend that runs, and what a comparison with the reference has found, if it needs one."""
    found, verdict = f"works on {device.type}", kernel_check.kept_verdict(device)
    if not compared:
        return Check(f"scan: {name}", "ok", found)
    if verdict:
        remedy = "update torch and mamba-ssm; until then the portable backend runs in its place"
        return Check(f"scan: {name}", "note", f"{found}, but {verdict}", remedy)
    when = "agrees with the reference" if verdict == "" else "not yet compared with the reference"
    return Check(f"scan: {name}", "ok", f"{found}, {when}")


def _kernels() -> Iterator[Check]:
    library, detail = native.status()
    compiled = library is not None
    yield Check(
        "C passes of the scan",
        "ok" if compiled else "note",
        detail,
        ""
        if compiled
        else "neuromamba build-kernels compiles them where there is cc, gcc or clang (CC)",
    )


def _precision() -> Iterator[Check]:
    """Whether bf16 operands are worth asking for on the CPU."""
    yield Check("precision", "ok", bf16.advice())


def _host() -> Iterator[Check]:
    everywhere = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everywhere
    busy = busy_cores() or 0.0
    left = max(1, min(cores, everywhere - round(busy)))
    threads = torch.get_num_threads()  # OMP_NUM_THREADS, else all cores
    yield Check(
        "cores",
        "ok" if threads <= left else "note",
        f"{cores}, {busy:.1f} of the machine's {everywhere} busy, torch takes {threads} thread(s)",
        "" if threads <= left else f"while others compute here: export OMP_NUM_THREADS={left}",
    )
    free = free_memory()
    if free is not None:
        enough = free > 2e9
        yield Check(
            "memory",
            "ok" if enough else "note",
            f"{gigabytes(free)} free for this process",
            "" if enough else "a training of Base takes 2 GB at least; end other programs",
        )


def _shared_memory() -> Iterator[Check]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Check("/dev/shm", "note", "not there; loading processes do without it")
        return
    usage = shutil.disk_usage(folder)
    small = usage.total < _SMALL_SHM
    yield Check(
        "/dev/shm",
        "note" if small else "ok",
        f"{gigabytes(usage.free)} of {gigabytes(usage.total)} free",
        "batches that find no slot of the loader go there: more of it (docker --shm-size=8g), or "
        "fewer --num_workers"
        if small
        else "",
    )


def _working_folder() -> Iterator[Check]:
    """Runs write to output/ below it."""
    folder = Path.cwd()
    writable = os.access(folder, os.W_OK)
    free = shutil.disk_usage(folder).free
    yield Check(
        "working folder",
        "ok" if writable and free > 1e9 else "note",
        f"{folder}, {gigabytes(free)} free" + ("" if writable else ", cannot be written"),
        "" if writable and free > 1e9 else "give --output_dir on a disk with room",
    )


def check_text(found: Sequence[Check], can_train: bool) -> str:
    """A line for each check, with the remedy below it where there is one."""
    width = max(len(line.name) for line in found)
    lines = []
    for line in found:
        lines.append(f"{line.state:<8} {line.name:<{width}}  {line.found}")
        if line.remedy:
            lines.append(f"{'':<8} {'':<{width}}  -> {line.remedy}")
    lines.append("")
    lines.append("a training can run here" if can_train else "a training cannot run here")
    return "\n".join(lines)
